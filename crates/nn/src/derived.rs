//! The network of one genotype.

use candle_core::{Result, Tensor};
use space::{CellGenotype, CellKind, CellSpec, Genotype, NetworkSpec};

use crate::auxiliary::AuxiliaryHead;
use crate::candidate::{Candidate, EdgeInput};
use crate::fused::{CellParts, Chain, EdgeParts, FusedCell, InputParts, Start, to_grouped};
use crate::inference::{InferenceCell, InferenceNet};
use crate::layers::{
    Affine, FactorizedReduce, Linear, ReluConvBn, Stem, from_planes, global_average_pool,
    grouped_average_pool, swap_images_and_channels,
};
use crate::memory::{self, Path, StepMemory};
use crate::parameters::Builder;
use crate::{Parameters, Pass};

/// What brings a cell's first input to the cell's width and resolution.
pub(crate) enum Preprocess {
    Same(ReluConvBn),
    /// The previous cell was a reduction, so the state before it is twice as large.
    Halve(FactorizedReduce),
}

impl Preprocess {
    /// Builds `preprocess0` and `preprocess1` of a cell.
    pub(crate) fn pair(
        builder: &Builder<'_>,
        spec: &CellSpec,
        affine: Affine,
    ) -> Result<(Self, ReluConvBn)> {
        let scope = builder.scope("preprocess0");
        let (n_in, n_out) = (spec.channels_prev_prev, spec.channels);
        let first = if spec.reduction_prev {
            Self::Halve(FactorizedReduce::new(&scope, n_in, n_out, affine)?)
        } else {
            Self::Same(ReluConvBn::new(&scope, n_in, n_out, affine)?)
        };
        let scope = builder.scope("preprocess1");
        Ok((
            first,
            ReluConvBn::new(&scope, spec.channels_prev, n_out, affine)?,
        ))
    }

    /// What a fused cell needs of it.
    pub(crate) fn parts(&self) -> InputParts<'_> {
        match self {
            Self::Same(block) => InputParts::Same(block),
            Self::Halve(block) => InputParts::Halve(block),
        }
    }

    pub(crate) fn forward(&self, x: &Tensor, pass: &Pass<'_>) -> Result<Tensor> {
        match self {
            Self::Same(block) => block.forward(x, pass),
            Self::Halve(block) => block.forward(x, pass),
        }
    }
}

/// A cell of a derived network.
struct DerivedCell {
    spec: CellSpec,
    preprocess0: Preprocess,
    preprocess1: ReluConvBn,
    /// Per node, its two operations and the states they read.
    nodes: Vec<[(Candidate, usize); 2]>,
    fused: FusedCell,
}

impl DerivedCell {
    fn new(builder: &Builder<'_>, spec: &CellSpec, genotype: &CellGenotype) -> Result<Self> {
        let (preprocess0, preprocess1) = Preprocess::pair(builder, spec, Affine::Yes)?;
        let ops = builder.scope("_ops");
        let operation = |index: usize, gene: space::Gene| {
            let stride = spec.stride_from(gene.source);
            let scope = ops.scope(index);
            let op = Candidate::new(&scope, gene.primitive, spec.channels, stride, Affine::Yes)?;
            Ok::<_, candle_core::Error>((op, gene.source))
        };
        let nodes = genotype
            .nodes
            .iter()
            .enumerate()
            .map(|(node, [a, b])| Ok([operation(2 * node, *a)?, operation(2 * node + 1, *b)?]))
            .collect::<Result<Vec<_>>>()?;
        let fused = Self::fuse(spec, (&preprocess0, &preprocess1), &nodes);
        Ok(Self {
            spec: spec.clone(),
            preprocess0,
            preprocess1,
            nodes,
            fused,
        })
    }

    fn fuse(
        spec: &CellSpec,
        preprocess: (&Preprocess, &ReluConvBn),
        nodes: &[[(Candidate, usize); 2]],
    ) -> FusedCell {
        let parts = CellParts {
            n_nodes: nodes.len(),
            channels: spec.channels,
            ratio: 1,
            is_reduction: spec.kind == CellKind::Reduction,
            n_primitives: 0,
        };
        let edges: Vec<EdgeParts<'_>> = nodes
            .iter()
            .enumerate()
            .flat_map(|(node, operations)| operations.iter().map(move |gene| (2 + node, gene)))
            .enumerate()
            .map(|(row, (node, (candidate, source)))| EdgeParts {
                source: *source,
                node,
                row,
                operations: vec![(0, candidate)],
            })
            .collect();
        let inputs = [preprocess.0.parts(), InputParts::Same(preprocess.1)];
        FusedCell::new(&parts, inputs, &edges)
    }

    fn forward(&self, s0: &Tensor, s1: &Tensor, pass: &Pass<'_>) -> Result<Tensor> {
        let prepare = |x: Tensor, index| EdgeInput::new(x, self.spec.stride_from(index));
        let mut states = vec![
            prepare(self.preprocess0.forward(s0, pass)?, 0),
            prepare(self.preprocess1.forward(s1, pass)?, 1),
        ];
        let mut nodes = Vec::with_capacity(self.nodes.len());
        for operations in &self.nodes {
            let [a, b] = operations.each_ref().map(|(operation, source)| {
                let y = operation.forward(&states[*source], pass)?;
                if operation.is_identity() {
                    Ok(y)
                } else {
                    pass.drop_path(y)
                }
            });
            let sum = (a? + b?)?;
            states.push(prepare(sum.clone(), states.len()));
            nodes.push(sum);
        }
        Tensor::cat(&nodes, 1)
    }
}

/// One cell by itself, as a network would hold it at one position, for timing.
pub struct StandaloneCell {
    cell: DerivedCell,
}

impl StandaloneCell {
    /// Builds the cell of `genotype` for the position `spec`.
    pub fn new(builder: &Builder<'_>, spec: &CellSpec, genotype: &CellGenotype) -> Result<Self> {
        Ok(Self {
            cell: DerivedCell::new(builder, spec, genotype)?,
        })
    }

    /// The shapes `[n, c, h, w]` of the two inputs at a batch size.
    pub fn input_shapes(&self, batch_size: usize) -> [[usize; 4]; 2] {
        let spec = &self.cell.spec;
        let shape = |channels, size| [batch_size, channels, size, size];
        [
            shape(spec.channels_prev_prev, spec.size_prev_prev),
            shape(spec.channels_prev, spec.size_prev),
        ]
    }

    /// Runs the cell on the outputs of the two cells before it.
    pub fn forward(&self, s0: &Tensor, s1: &Tensor, pass: &Pass<'_>) -> Result<Tensor> {
        // As in a network: grouped on CUDA. (Between cells of a network no layout changes; at a batch of 1 none does here.)
        if pass.is_training() || !FusedCell::can_group(s1, s0.track_op(), pass) {
            return self.cell.forward(s0, s1, pass);
        }
        let chain = chain_of(std::slice::from_ref(&self.cell));
        let y = chain.grouped_last(&to_grouped(s0, s1)?, pass, Parameters::default().found())?;
        swap_images_and_channels(&y)
    }

    /// The cell as it is deployed, with its present weights.
    pub fn for_inference(&self) -> Result<InferenceCell> {
        InferenceCell::new(&self.cell.fused)
    }
}

/// What a derived network answers, each `[n, n_classes]`.
pub struct Logits {
    /// The classifier's logits.
    pub main: Tensor,
    /// The auxiliary head's, in training if there is one.
    pub auxiliary: Option<Tensor>,
}

/// The network of one genotype, with affine batch normalisation throughout.
pub struct DerivedNet {
    stem: Stem,
    cells: Vec<DerivedCell>,
    auxiliary: Option<(usize, AuxiliaryHead)>,
    classifier: Linear,
    parameters: Parameters,
}

/// Cells as one operation.
fn chain_of(cells: &[DerivedCell]) -> Chain<'_> {
    Chain {
        cells: cells.iter().map(|cell| &cell.fused).collect(),
        mixing: None,
    }
}

impl DerivedNet {
    /// Builds the network under the published names; `auxiliary` adds the head behind layer 2L/3.
    pub fn new(
        builder: &Builder<'_>,
        spec: &NetworkSpec,
        genotype: &Genotype,
        auxiliary: bool,
    ) -> Result<Self> {
        let stem = Stem::new(builder, spec)?;
        let scope = builder.scope("cells");
        let specs = spec.cells();
        let cells = specs
            .iter()
            .map(|cell| DerivedCell::new(&scope.scope(cell.layer), cell, genotype.cell(cell.kind)))
            .collect::<Result<_>>()?;
        let auxiliary = if auxiliary {
            let layer = spec.reduction_layers()[1];
            let n_in = 4 * specs[layer].channels;
            Some((
                layer,
                AuxiliaryHead::new(&builder.scope("auxiliary_head"), n_in, spec)?,
            ))
        } else {
            None
        };
        let classifier = Linear::new(
            &builder.scope("classifier"),
            spec.final_channels(),
            spec.n_classes,
        )?;
        Ok(Self {
            stem,
            cells,
            auxiliary,
            classifier,
            parameters: builder.parameters(),
        })
    }

    /// The weights and buffers.
    pub fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    /// What a training step on `n_images` will keep in memory; `spec` is that of the network.
    pub fn step_memory(&self, spec: &NetworkSpec, n_images: usize, path: Path) -> StepMemory {
        let cells = self
            .cells
            .iter()
            .map(|cell| (&cell.spec, cell.fused.parts().0));
        let stem = memory::of_stem(spec, path);
        memory::step(cells, stem, &self.parameters, n_images, path)
    }

    /// The network as it is deployed, with its present weights and running statistics.
    pub fn for_inference(&self) -> Result<InferenceNet> {
        let cells = self.cells.iter().map(|cell| &cell.fused);
        InferenceNet::new(&self.stem, cells, &self.classifier)
    }

    /// Images `[n, c, h, w]` to logits.
    pub fn forward(&self, x: &Tensor, pass: &Pass<'_>) -> Result<Logits> {
        let auxiliary = self.auxiliary.as_ref().filter(|_| pass.is_training());
        let mut auxiliary_logits = None;
        let pooled = if FusedCell::can_group(x, false, pass) {
            let found = self.parameters.found();
            let (s0, s1) = self.stem.forward(x, pass)?;
            let mut ends = to_grouped(&s0, &s1)?;
            let mut rest = &self.cells[..];
            if let Some((layer, head)) = auxiliary {
                let (first, behind) = rest.split_at(layer + 1);
                ends = chain_of(first).grouped_ends(ends, pass, found)?;
                auxiliary_logits = Some(head.forward(&swap_images_and_channels(&ends.s1)?, pass)?);
                rest = behind;
            }
            grouped_average_pool(&chain_of(rest).grouped_last(&ends, pass, found)?)?
        } else if FusedCell::can_run(x, false, pass) {
            let mut start = Start::of_images(&self.stem, x, pass)?;
            let mut rest = &self.cells[..];
            if let Some((layer, head)) = auxiliary {
                let (first, behind) = rest.split_at(layer + 1);
                let ends = chain_of(first).ends(start, pass)?;
                auxiliary_logits = Some(head.forward(&from_planes(&ends.s1)?, pass)?);
                (start, rest) = (Start::Ends(ends), behind);
            }
            chain_of(rest).pooled(&start, pass)?
        } else {
            let (mut s0, mut s1) = self.stem.forward(x, pass)?;
            for (layer, cell) in self.cells.iter().enumerate() {
                (s0, s1) = (s1.clone(), cell.forward(&s0, &s1, pass)?);
                if let Some((at, head)) = auxiliary
                    && *at == layer
                {
                    auxiliary_logits = Some(head.forward(&s1, pass)?);
                }
            }
            global_average_pool(&s1)?
        };
        let main = self.classifier.forward(&pooled, pass)?;
        Ok(Logits {
            main,
            auxiliary: auxiliary_logits,
        })
    }
}
