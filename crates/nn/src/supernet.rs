//! The weight-sharing search network: every edge computes all primitives at once.
//!
//! With a [`ChannelRatio`] of K > 1 it is PC-DARTS's network (Xu et al. 2020): the first C/K channels of
//! a state pass through the operations, the rest bypass them, and the channels are shuffled afterwards.
//! Nothing in that depends on where the weighted sum over edges is taken, so a node sums operations and
//! bypasses apart and concatenates and shuffles once, instead of once per edge.

use candle_core::{Result, Tensor};
use kernels::Pool2dGeometry;
use space::{CellKind, CellSpec, NetworkSpec, Primitive, SearchSpace};

use crate::architecture::{Candidates, ChannelRatio, Mixing};
use crate::candidate::{Candidate, EdgeInput};
use crate::derived::Preprocess;
use crate::fused::{
    CellParts, Chain, ChainMixing, EdgeParts, FusedCell, InputParts, Start, to_grouped,
};
use crate::layers::{Affine, Linear, ReluConvBn, Stem, global_average_pool, grouped_average_pool};
use crate::memory::{self, Path, StepMemory};
use crate::parameters::Builder;
use crate::{Parameters, Pass};

/// The weighted sum of all primitives on an edge.
struct MixedOp {
    /// Each with its column in alpha.
    candidates: Vec<(usize, Candidate)>,
}

impl MixedOp {
    fn new(
        builder: &Builder<'_>,
        n_channels: usize,
        stride: usize,
        has: impl Fn(usize) -> bool,
    ) -> Result<Self> {
        let scope = builder.scope("_ops");
        let candidates = Primitive::ALL
            .into_iter()
            .enumerate()
            .filter(|(index, _)| has(*index))
            .map(|(index, primitive)| {
                let scope = scope.scope(index);
                let candidate = Candidate::new(&scope, primitive, n_channels, stride, Affine::No)?;
                Ok((index, candidate))
            })
            .collect::<Result<_>>()?;
        Ok(Self { candidates })
    }

    /// Adds this edge's operations, weighted by `weights` `[p]`, to the node's sum.
    fn accumulate(
        &self,
        mut sum: Option<Tensor>,
        input: &EdgeInput,
        weights: &Tensor,
        pass: &Pass<'_>,
    ) -> Result<Option<Tensor>> {
        for (index, candidate) in &self.candidates {
            // Zeros add nothing: `none` acts through the softmax alone.
            if matches!(candidate, Candidate::None { .. }) {
                continue;
            }
            let mut y = candidate.forward(input, pass)?;
            if candidate.is_identity() {
                y = pass.skip_dropout(y)?;
            }
            sum = Some(weighted_sum(sum, &y, &weights.narrow(0, *index, 1)?)?);
        }
        Ok(sum)
    }
}

fn weighted_sum(sum: Option<Tensor>, x: &Tensor, weight: &Tensor) -> Result<Tensor> {
    match sum {
        None => kernels::scale(x, weight),
        Some(sum) => kernels::weighted_add(&sum, x, weight),
    }
}

/// What the edges that leave one state share.
struct SearchState {
    /// The channels that pass through the operations.
    input: EdgeInput,
    /// The others, at the resolution behind the edge; `None` where all channels pass.
    bypass: Option<Tensor>,
}

impl SearchState {
    fn new(x: &Tensor, ratio: ChannelRatio, stride: usize) -> Result<Self> {
        if !ratio.is_partial() {
            return Ok(Self {
                input: EdgeInput::new(x.clone(), stride),
                bypass: None,
            });
        }
        let n_channels = x.dim(1)?;
        let n_partial = n_channels / ratio.get();
        let partial = x.narrow(1, 0, n_partial)?.contiguous()?;
        let mut bypass = x.narrow(1, n_partial, n_channels - n_partial)?;
        if stride == 2 {
            // At an odd size the last row and column pool alone, so that the size is ceil(h / 2) as
            // behind the operations (the published networks have even sizes only).
            let (_, _, h, w) = bypass.dims4()?;
            bypass = bypass
                .pad_with_same(2, 0, h % 2)?
                .pad_with_same(3, 0, w % 2)?;
            bypass = kernels::max_pool2d(
                &bypass,
                Pool2dGeometry {
                    kernel: 2,
                    padding: 0,
                    stride: 2,
                },
            )?;
        }
        Ok(Self {
            input: EdgeInput::new(partial, stride),
            bypass: Some(bypass),
        })
    }
}

/// A cell of the supernet.
struct SearchCell {
    spec: CellSpec,
    ratio: ChannelRatio,
    space: SearchSpace,
    preprocess0: Preprocess,
    preprocess1: ReluConvBn,
    edges: Vec<MixedOp>,
    fused: FusedCell,
}

impl SearchCell {
    fn new(
        builder: &Builder<'_>,
        space: SearchSpace,
        spec: &CellSpec,
        ratio: ChannelRatio,
        candidates: &Candidates,
    ) -> Result<Self> {
        let ops = builder.scope("_ops");
        let edges = space
            .edges()
            .iter()
            .map(|edge| {
                let stride = spec.stride_from(edge.source);
                let has = |primitive| candidates.has(spec.kind, edge.index, primitive);
                let n_channels = spec.channels / ratio.get();
                MixedOp::new(&ops.scope(edge.index), n_channels, stride, has)
            })
            .collect::<Result<Vec<_>>>()?;
        let (preprocess0, preprocess1) = Preprocess::pair(builder, spec, Affine::No)?;
        let fused = Self::fuse(space, spec, ratio, (&preprocess0, &preprocess1), &edges);
        Ok(Self {
            spec: spec.clone(),
            ratio,
            space,
            preprocess0,
            preprocess1,
            edges,
            fused,
        })
    }

    fn fuse(
        space: SearchSpace,
        spec: &CellSpec,
        ratio: ChannelRatio,
        preprocess: (&Preprocess, &ReluConvBn),
        edges: &[MixedOp],
    ) -> FusedCell {
        let parts = CellParts {
            n_nodes: space.n_nodes(),
            channels: spec.channels,
            ratio: ratio.get(),
            is_reduction: spec.kind == CellKind::Reduction,
            n_primitives: space.n_primitives(),
        };
        let edges: Vec<EdgeParts<'_>> = space
            .edges()
            .iter()
            .zip(edges)
            .map(|(edge, mixed)| EdgeParts {
                source: edge.source,
                node: edge.node,
                row: edge.index,
                operations: mixed.candidates.iter().map(|(p, one)| (*p, one)).collect(),
            })
            .collect();
        let inputs = [preprocess.0.parts(), InputParts::Same(preprocess.1)];
        FusedCell::new(&parts, inputs, &edges)
    }

    fn forward(
        &self,
        s0: &Tensor,
        s1: &Tensor,
        mixing: &Mixing,
        pass: &Pass<'_>,
    ) -> Result<Tensor> {
        let s0 = self.preprocess0.forward(s0, pass)?;
        let s1 = self.preprocess1.forward(s1, pass)?;
        let prepare =
            |x: &Tensor, index| SearchState::new(x, self.ratio, self.spec.stride_from(index));
        let mut states = vec![prepare(&s0, 0)?, prepare(&s1, 1)?];
        let weights = mixing.of_operations()?;
        let n_nodes = self.space.n_nodes();
        let mut nodes = Vec::with_capacity(n_nodes);
        for node in 2..2 + n_nodes {
            let (mut operations, mut bypasses) = (None, None);
            for edge in &self.space.edges()[self.space.edges_into(node)] {
                let state = &states[edge.source];
                let row = weights.narrow(0, edge.index, 1)?.flatten_all()?;
                operations =
                    self.edges[edge.index].accumulate(operations, &state.input, &row, pass)?;
                if let (Some(bypass), Some(edges)) = (&state.bypass, &mixing.edges) {
                    let weight = edges.narrow(0, edge.index, 1)?;
                    bypasses = Some(weighted_sum(bypasses, bypass, &weight)?);
                }
            }
            let mut sum = operations.expect("every node has an incoming edge");
            if let Some(bypasses) = bypasses {
                sum = shuffle_channels(&Tensor::cat(&[sum, bypasses], 1)?, self.ratio)?;
            }
            if node + 1 < 2 + n_nodes {
                states.push(prepare(&sum, node)?);
            }
            nodes.push(sum);
        }
        Tensor::cat(&nodes, 1)
    }
}

/// Channel shuffle with K groups: `[n, K, c/K, h, w]`, the middle two axes exchanged, flattened.
fn shuffle_channels(x: &Tensor, ratio: ChannelRatio) -> Result<Tensor> {
    let (n, c, h, w) = x.dims4()?;
    x.reshape((n, ratio.get(), c / ratio.get(), h * w))?
        .transpose(1, 2)?
        .reshape((n, c, h, w))
}

/// The search network of DARTS or, with partial channels, PC-DARTS.
pub struct Supernet {
    stem: Stem,
    cells: Vec<SearchCell>,
    classifier: Linear,
    ratio: ChannelRatio,
    parameters: Parameters,
}

impl Supernet {
    /// Builds the network under the published names.
    ///
    /// # Errors
    /// If K does not divide the initial channels.
    pub fn new(
        builder: &Builder<'_>,
        space: SearchSpace,
        spec: &NetworkSpec,
        ratio: ChannelRatio,
    ) -> Result<Self> {
        Self::with_candidates(builder, space, spec, ratio, &Candidates::all(space))
    }

    /// The same where edges have some of the primitives only; those keep their published names.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn with_candidates(
        builder: &Builder<'_>,
        space: SearchSpace,
        spec: &NetworkSpec,
        ratio: ChannelRatio,
        candidates: &Candidates,
    ) -> Result<Self> {
        if !spec.init_channels.is_multiple_of(ratio.get()) {
            candle_core::bail!(
                "supernet: {} initial channels cannot be split by a channel ratio of {}",
                spec.init_channels,
                ratio.get()
            );
        }
        let stem = Stem::new(builder, spec)?;
        let scope = builder.scope("cells");
        let cells = spec
            .cells()
            .iter()
            .map(|cell| SearchCell::new(&scope.scope(cell.layer), space, cell, ratio, candidates))
            .collect::<Result<_>>()?;
        let classifier = Linear::new(
            &builder.scope("classifier"),
            spec.final_channels(),
            spec.n_classes,
        )?;
        Ok(Self {
            stem,
            cells,
            classifier,
            ratio,
            parameters: builder.parameters(),
        })
    }

    /// The weights and buffers.
    pub fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    /// The cells as one operation.
    fn chain<'a>(&'a self, mixing: &'a [Mixing; 2]) -> Result<Chain<'a>> {
        let of_kind = |mixing: &'a Mixing| {
            let edges = mixing.edges.as_ref().filter(|_| self.ratio.is_partial());
            Ok::<_, candle_core::Error>((mixing.of_operations()?, edges))
        };
        let cells = &self.cells;
        Ok(Chain {
            cells: cells.iter().map(|cell| &cell.fused).collect(),
            mixing: Some(ChainMixing {
                of_kinds: [of_kind(&mixing[0])?, of_kind(&mixing[1])?],
                kinds: cells.iter().map(|cell| cell.spec.kind.index()).collect(),
            }),
        })
    }

    /// What a weight step on `n_images` will keep in memory; `spec` is that of the network.
    pub fn step_memory(&self, spec: &NetworkSpec, n_images: usize, path: Path) -> StepMemory {
        let cells = self
            .cells
            .iter()
            .map(|cell| (&cell.spec, cell.fused.parts().0));
        let stem = memory::of_stem(spec, path);
        memory::step(cells, stem, &self.parameters, n_images, path)
    }

    /// Images `[n, c, h, w]` to logits `[n, n_classes]`; `mixing` per cell kind.
    ///
    /// # Errors
    /// If channels are partial but edges are not normalised: the bypass is weighted by beta alone.
    pub fn forward(&self, x: &Tensor, mixing: &[Mixing; 2], pass: &Pass<'_>) -> Result<Tensor> {
        if self.ratio.is_partial() && mixing.iter().any(|mixing| mixing.edges.is_none()) {
            candle_core::bail!("supernet: partial channels need edge normalisation (beta)");
        }
        let is_tracked = |mixing: &Mixing| {
            let edges = mixing.edges.as_ref();
            mixing.operations.track_op() || edges.is_some_and(Tensor::track_op)
        };
        let is_tracked = mixing.iter().any(is_tracked);
        let pooled = if FusedCell::can_group(x, is_tracked, pass) {
            let (s0, s1) = self.stem.forward(x, pass)?;
            let ends = to_grouped(&s0, &s1)?;
            let found = self.parameters.found();
            grouped_average_pool(&self.chain(mixing)?.grouped_last(&ends, pass, found)?)?
        } else if FusedCell::can_run(x, is_tracked, pass) {
            let start = Start::of_images(&self.stem, x, pass)?;
            self.chain(mixing)?.pooled(&start, pass)?
        } else {
            let (mut s0, mut s1) = self.stem.forward(x, pass)?;
            for cell in &self.cells {
                let mixing = &mixing[cell.spec.kind.index()];
                let out = cell.forward(&s0, &s1, mixing, pass)?;
                (s0, s1) = (s1, out);
            }
            global_average_pool(&s1)?
        };
        self.classifier.forward(&pooled, pass)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{DType, Device};
    use rand_chacha::rand_core::SeedableRng;
    use space::CellKind;

    /// Summing operations and bypasses apart must equal the published order of things: concatenate and
    /// shuffle on every edge, then sum the edges weighted by beta.
    #[test]
    fn a_node_equals_the_sum_of_its_edges_one_by_one() -> Result<()> {
        let mut rng = crate::Rng::seed_from_u64(5);
        let spec = NetworkSpec {
            n_layers: 3,
            init_channels: 8,
            image_size: 8,
            ..NetworkSpec::cifar10()
        };
        let space = SearchSpace::darts();
        let ratio = ChannelRatio::new(4).expect("4 is not 0");
        let architecture =
            crate::Architecture::new(space, true, &Device::Cpu, DType::F64, &mut rng)?;
        let builder = Builder::new(&Device::Cpu, DType::F64, &mut rng);
        for cell_spec in &spec.cells() {
            let cell = SearchCell::new(&builder, space, cell_spec, ratio, &Candidates::all(space))?;
            let pass = Pass::training();
            let input = |channels: usize, size: usize| {
                let n = 2 * channels * size * size;
                let values: Vec<f64> = (0..n).map(|i| (i as f64 * 0.37).sin()).collect();
                Tensor::from_vec(values, (2, channels, size, size), &Device::Cpu)
            };
            let s0 = input(cell_spec.channels_prev_prev, cell_spec.size_prev_prev)?;
            let s1 = input(cell_spec.channels_prev, cell_spec.size_prev)?;
            let mixing = architecture.mixing(cell_spec.kind, false)?;
            let fast = cell.forward(&s0, &s1, &mixing, &pass)?;

            let edges = mixing
                .edges
                .as_ref()
                .expect("edges are normalised")
                .to_vec1::<f64>()?;
            let operations = mixing.operations.to_vec2::<f64>()?;
            let mut states = vec![
                cell.preprocess0.forward(&s0, &pass)?,
                cell.preprocess1.forward(&s1, &pass)?,
            ];
            for node in 2..6 {
                let mut sum: Option<Tensor> = None;
                for edge in &space.edges()[space.edges_into(node)] {
                    let stride = if cell_spec.kind == CellKind::Reduction && edge.source < 2 {
                        2
                    } else {
                        1
                    };
                    let state = SearchState::new(&states[edge.source], ratio, stride)?;
                    let mut mixed: Option<Tensor> = None;
                    for (p, candidate) in &cell.edges[edge.index].candidates {
                        let y =
                            (candidate.forward(&state.input, &pass)? * operations[edge.index][*p])?;
                        mixed = Some(match mixed {
                            Some(mixed) => (mixed + y)?,
                            None => y,
                        });
                    }
                    let parts = [
                        mixed.expect("eight primitives"),
                        state.bypass.expect("partial"),
                    ];
                    let y =
                        (shuffle_channels(&Tensor::cat(&parts, 1)?, ratio)? * edges[edge.index])?;
                    sum = Some(match sum {
                        Some(sum) => (sum + y)?,
                        None => y,
                    });
                }
                states.push(sum.expect("every node has an incoming edge"));
            }
            let slow = Tensor::cat(&states[2..], 1)?;
            let difference = (fast - slow)?.abs()?.max_all()?.to_scalar::<f64>()?;
            assert!(
                difference < 1e-12,
                "layer {}: {difference}",
                cell_spec.layer
            );
        }
        Ok(())
    }
}
