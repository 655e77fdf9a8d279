//! Derived networks as they are deployed: prepared once, on the CPU, then run image by image.
//!
//! Batch normalisations (by their running statistics) are folded into the convolutions in front of them, weights
//! are packed for the processor, and a state is kept behind its ReLU where only that is read. The images of a
//! batch run side by side on the threads of the current rayon pool; a single image spreads the operations of
//! a cell over them. No answer depends on the number of threads. [`DerivedNet`] in evaluation mode is the
//! oracle; both agree but for the order of sums.
//!
//! [`DerivedNet`]: crate::DerivedNet

use candle_core::{DType, Result, Tensor, Var};
use kernels::Conv2dGeometry;
use kernels::image::{Dense, Maps, PaddedMaps, Pointwise, Unit, average_pool, max_pool};
use rayon::prelude::*;

use crate::awake::Awake;
use crate::candidate::PoolKind;
use crate::fused::{FusedCell, Norm, OperationKind, OperationPlan, UnitPlan};
use crate::layers::{BATCH_NORM_EPS, BatchNorm, Linear, Stem};

/// A derived network that is ready to run.
pub struct InferenceNet {
    stem: InferenceStem,
    cells: Vec<InferenceCell>,
    classifier: Pointwise,
    in_channels: usize,
}

impl InferenceNet {
    pub(crate) fn new<'a>(
        stem: &Stem,
        cells: impl Iterator<Item = &'a FusedCell>,
        classifier: &Linear,
    ) -> Result<Self> {
        let (weight, bias) = classifier.weights();
        Ok(Self {
            stem: InferenceStem::new(stem)?,
            cells: cells.map(InferenceCell::new).collect::<Result<_>>()?,
            classifier: Pointwise::new(&numbers(weight)?, &numbers(bias)?),
            in_channels: stem.n_in(),
        })
    }

    /// Images laid out `n c h w` to logits `n o`.
    ///
    /// # Panics
    /// If `images` is not `n` images of the network's channels and this size.
    pub fn run(&self, images: &[f32], n: usize, [h, w]: [usize; 2]) -> Vec<f32> {
        let len = self.in_channels * h * w;
        assert_eq!(images.len(), n * len);
        let run = |image: &[f32]| self.image(Maps::from_slice(self.in_channels, h, w, image));
        let images = images.chunks_exact(len.max(1));
        if n == 1 {
            let _awake = Awake::others();
            images.flat_map(run).collect()
        } else if n > 1 && rayon::current_num_threads() > 1 {
            let images: Vec<&[f32]> = images.collect();
            let logits: Vec<Vec<f32>> = images.into_par_iter().map(run).collect();
            logits.concat()
        } else {
            images.flat_map(run).collect()
        }
    }

    fn image(&self, image: Maps) -> Vec<f32> {
        let (s0, s1) = self.stem.run(&image);
        let (mut s0, mut s1) = (s0.map(CellOutput::input), CellOutput::input(s1));
        for cell in &self.cells {
            let out = cell.run(&s0.as_ref().unwrap_or(&s1).activated, &s1.activated);
            s0 = Some(std::mem::replace(&mut s1, out));
        }
        let means: Vec<f32> = s1.nodes.iter().flat_map(Maps::planes).map(mean).collect();
        let mut logits = Maps::any(self.classifier.n_out(), 1, 1);
        self.classifier
            .forward(&Maps::from_slice(means.len(), 1, 1, &means), &mut logits, 0);
        logits.to_vec()
    }
}

fn mean(plane: &[f32]) -> f32 {
    (plane.iter().map(|&x| f64::from(x)).sum::<f64>() / plane.len().max(1) as f64) as f32
}

/// The convolutions in front of the first cell, each followed by a ReLU, which all who read it begin with.
struct InferenceStem {
    convolutions: Vec<Dense>,
}

impl InferenceStem {
    fn new(stem: &Stem) -> Result<Self> {
        let convolutions = stem.convolutions().map(|(weight, geometry, norm)| {
            let folded = Folded::new(norm)?;
            let kernel = weight.dims()[3];
            let weight = folded.scale(&numbers(weight)?);
            Ok(Dense::new(&weight, kernel, geometry, &folded.bias))
        });
        Ok(Self {
            convolutions: convolutions.collect::<Result<_>>()?,
        })
    }

    /// The states that the first cell reads; of two cells ago only if it is another one.
    fn run(&self, image: &Maps) -> (Option<Maps>, Maps) {
        let mut before = None;
        let mut x: Option<Maps> = None;
        for convolution in &self.convolutions {
            let y = rectified(&convolution.forward(x.as_ref().unwrap_or(image)));
            before = x.replace(y);
        }
        (before, x.expect("a stem has a convolution"))
    }
}

fn rectified(x: &Maps) -> Maps {
    let mut y = Maps::any(x.c, x.h, x.w);
    x.rectify_into(&mut y, 0);
    y
}

/// What a cell leaves.
pub struct CellOutput {
    /// All nodes behind their ReLU, which is all that other cells read.
    pub activated: Maps,
    /// The nodes as they are.
    pub nodes: Vec<Maps>,
}

impl CellOutput {
    fn input(activated: Maps) -> Self {
        Self {
            activated,
            nodes: Vec::new(),
        }
    }
}

/// A cell that is ready to run.
pub struct InferenceCell {
    channels: usize,
    inputs: [Input; 2],
    operations: Vec<Operation>,
    n_nodes: usize,
    /// The operations that can run side by side, one group after the other.
    levels: Vec<Vec<usize>>,
    /// For each state, the number of groups after which it is there.
    ready: Vec<usize>,
    /// For each state, the zeros that convolutions read about it, and their stride; `None` if no convolution does.
    padding: Vec<Option<[usize; 2]>>,
}

/// What brings an input to the cell's width and resolution.
enum Input {
    Same(Pointwise),
    Halve([Pointwise; 2]),
}

struct Operation {
    source: usize,
    node: usize,
    kind: Kind,
}

enum Kind {
    Pool(PoolKind, usize),
    Identity,
    Halve([Pointwise; 2]),
    Conv(Vec<Unit>),
}

/// A state of a cell, in the forms in which it is read.
struct State {
    raw: Maps,
    padded: Option<PaddedMaps>,
}

impl InferenceCell {
    pub(crate) fn new(cell: &FusedCell) -> Result<Self> {
        let (plan, weights, norms) = cell.parts();
        let weights: Vec<f32> = weights
            .iter()
            .map(numbers)
            .collect::<Result<Vec<_>>>()?
            .concat();
        let folded: Vec<Folded> = norms.iter().map(Folded::new).collect::<Result<_>>()?;
        let fold = |norm: &Norm| &folded[norm.index];
        let halves = |kernels: &[std::ops::Range<usize>; 2], norm: &Norm| {
            let Folded { factor, bias } = fold(norm);
            let n_even = factor.len() / 2;
            [0..n_even, n_even..factor.len()]
                .into_iter()
                .zip(kernels)
                .map(|(channels, kernel)| {
                    let folded = Folded {
                        factor: factor[channels.clone()].to_vec(),
                        bias: bias[channels].to_vec(),
                    };
                    Pointwise::new(&folded.scale(&weights[kernel.clone()]), &folded.bias)
                })
                .collect::<Vec<_>>()
                .try_into()
                .expect("two halves")
        };
        let unit = |unit: &UnitPlan| {
            let folded = fold(&unit.norm);
            Unit::new(
                &weights[unit.depthwise.clone()],
                unit.kernel,
                unit.geometry,
                &folded.scale(&weights[unit.pointwise.clone()]),
                &folded.bias,
            )
        };
        let operation = |source: usize, node: usize, operation: &OperationPlan| Operation {
            source,
            node,
            kind: match &operation.kind {
                OperationKind::Pool { kind, .. } => Kind::Pool(*kind, plan.stride(source)),
                OperationKind::Identity => Kind::Identity,
                OperationKind::Halve { kernels, norm } => Kind::Halve(halves(kernels, norm)),
                OperationKind::Conv(units) => Kind::Conv(units.iter().map(unit).collect()),
            },
        };
        let inputs = plan.inputs.each_ref().map(|input| {
            if let [even, odd] = &input.kernels[..] {
                return Input::Halve(halves(&[even.clone(), odd.clone()], &input.norm));
            }
            let folded = fold(&input.norm);
            let weight = folded.scale(&weights[input.kernels[0].clone()]);
            Input::Same(Pointwise::new(&weight, &folded.bias))
        });
        let operations: Vec<Operation> = plan
            .edges
            .iter()
            .flat_map(|edge| edge.operations.iter().map(move |own| (edge, own)))
            .map(|(edge, own)| operation(edge.source, edge.node, own))
            .collect();
        let padding = (0..plan.n_states())
            .map(|state| {
                let convolutions = operations.iter().filter_map(|operation| {
                    let Kind::Conv(units) = &operation.kind else {
                        return None;
                    };
                    (operation.source == state).then(|| units[0].geometry().padding)
                });
                Some([convolutions.max()?, plan.stride(state)])
            })
            .collect();
        let (levels, ready) = levels(&operations, plan.n_states());
        Ok(Self {
            channels: plan.channels,
            inputs,
            levels,
            ready,
            operations,
            n_nodes: plan.n_nodes,
            padding,
        })
    }

    /// Runs the cell on the outputs of the two before it, behind their ReLU.
    pub fn run(&self, s0: &Maps, s1: &Maps) -> CellOutput {
        let input = |index: usize| {
            let raw = self.inputs[index].run([s0, s1][index]);
            self.state(raw, index)
        };
        let (first, second) = both(|| input(0), || input(1));
        let mut states: Vec<Option<State>> = vec![Some(first), Some(second)];
        states.resize_with(2 + self.n_nodes, || None);
        let mut outputs: Vec<Option<Maps>> = self.operations.iter().map(|_| None).collect();
        let mut activated = None;
        for (number, level) in self.levels.iter().enumerate() {
            let run = |&index: &usize| self.operations[index].run(&states);
            let results: Vec<Option<Maps>> = if rayon::current_num_threads() > 1 {
                level.par_iter().map(run).collect()
            } else {
                level.iter().map(run).collect()
            };
            for (&index, result) in level.iter().zip(results) {
                outputs[index] = result;
            }
            // The nodes that are complete now.
            for node in 2..states.len() {
                if self.ready[node] != number + 1 {
                    continue;
                }
                let raw = self.join(node, &mut outputs, &states);
                let activated = activated
                    .get_or_insert_with(|| Maps::any(self.n_nodes * self.channels, raw.h, raw.w));
                raw.rectify_into(activated, (node - 2) * self.channels);
                states[node] = Some(self.state(raw, node));
            }
        }
        let nodes = states.drain(2..).flatten();
        CellOutput {
            activated: activated.expect("a cell has nodes"),
            nodes: nodes.map(|state| state.raw).collect(),
        }
    }

    fn state(&self, raw: Maps, index: usize) -> State {
        State {
            padded: self.padding[index]
                .map(|[pad, stride]| PaddedMaps::rectified(&raw, pad, stride)),
            raw,
        }
    }

    /// The sum of a node's operations, in their order, so that it is what it is on any number of threads.
    fn join(&self, node: usize, outputs: &mut [Option<Maps>], states: &[Option<State>]) -> Maps {
        let own = self.operations.iter().zip(outputs);
        let own = own.filter(|(operation, _)| operation.node == node);
        let sum = own.fold(None, |sum: Option<Maps>, (operation, output)| {
            let source = || &read(states, operation.source).raw;
            match (sum, output.take()) {
                (None, Some(output)) => Some(output),
                (None, None) => Some(copy(source())),
                (Some(mut sum), output) => {
                    sum.add(output.as_ref().unwrap_or_else(source));
                    Some(sum)
                }
            }
        });
        sum.expect("a node of a derived network sums two operations")
    }
}

fn read(states: &[Option<State>], index: usize) -> &State {
    states[index].as_ref().expect("levels are in order")
}

fn copy(x: &Maps) -> Maps {
    let mut y = Maps::any(x.c, x.h, x.w);
    for (y, x) in y.planes_mut(0..x.c).zip(x.planes()) {
        y.copy_from_slice(x);
    }
    y
}

/// Groups operations by when their sources are there. Also, for each state, the number of groups after which it is.
fn levels(operations: &[Operation], n_states: usize) -> (Vec<Vec<usize>>, Vec<usize>) {
    let mut ready = vec![0; n_states];
    let mut levels: Vec<Vec<usize>> = Vec::new();
    // A node reads only states before it.
    for node in 2..n_states {
        for (index, operation) in operations.iter().enumerate() {
            if operation.node == node {
                let level = ready[operation.source];
                levels.resize_with(levels.len().max(level + 1), Vec::new);
                levels[level].push(index);
                ready[node] = ready[node].max(level + 1);
            }
        }
    }
    (levels, ready)
}

/// Two pieces of work, side by side where there are threads.
fn both<A: Send, B: Send>(a: impl FnOnce() -> A + Send, b: impl FnOnce() -> B + Send) -> (A, B) {
    if rayon::current_num_threads() > 1 {
        rayon::join(a, b)
    } else {
        (a(), b())
    }
}

impl Input {
    fn run(&self, x: &Maps) -> Maps {
        match self {
            Self::Same(mix) => {
                let mut y = Maps::any(mix.n_out(), x.h, x.w);
                mix.forward(x, &mut y, 0);
                y
            }
            Self::Halve(halves) => halve(x, halves),
        }
    }
}

/// Half the channels from the even pixels, half from the odd ones.
fn halve(x: &Maps, halves: &[Pointwise; 2]) -> Maps {
    let n_out = halves.iter().map(Pointwise::n_out).sum();
    let mut y = Maps::any(n_out, x.h.div_ceil(2), x.w.div_ceil(2));
    let mut first = 0;
    for (offset, half) in halves.iter().enumerate() {
        half.forward(&x.subsample(offset), &mut y, first);
        first += half.n_out();
    }
    y
}

impl Operation {
    /// The operation's output; `None` of the identity, whose output is its source.
    fn run(&self, states: &[Option<State>]) -> Option<Maps> {
        let State { raw, padded } = read(states, self.source);
        match &self.kind {
            Kind::Pool(PoolKind::Max, stride) => Some(max_pool(raw, *stride)),
            Kind::Pool(PoolKind::Average, stride) => Some(average_pool(raw, *stride)),
            Kind::Identity => None,
            Kind::Halve(halves) => Some(halve(&rectified(raw), halves)),
            Kind::Conv(units) => {
                let (first, rest) = units.split_first().expect("a convolution has a unit");
                let mut y = first.forward(padded.as_ref().expect("a convolution reads it"));
                for unit in rest {
                    let Conv2dGeometry {
                        padding, stride, ..
                    } = unit.geometry();
                    y = unit.forward(&PaddedMaps::rectified(&y, padding, stride));
                }
                Some(y)
            }
        }
    }
}

/// A batch normalisation by running statistics as a factor and a bias per channel.
struct Folded {
    factor: Vec<f32>,
    bias: Vec<f32>,
}

impl Folded {
    fn new(norm: &BatchNorm) -> Result<Self> {
        let (mean, var) = norm.running();
        let (mean, var) = (doubles(mean)?, doubles(var)?);
        let (weight, shift) = match norm.affine() {
            Some((weight, shift)) => (doubles(weight)?, doubles(shift)?),
            None => (vec![1.0; mean.len()], vec![0.0; mean.len()]),
        };
        let factors = weight
            .iter()
            .zip(&var)
            .map(|(weight, var)| weight / (var + BATCH_NORM_EPS).sqrt());
        let factor: Vec<f64> = factors.collect();
        let bias = shift
            .iter()
            .zip(&factor)
            .zip(&mean)
            .map(|((shift, factor), mean)| (shift - factor * mean) as f32)
            .collect();
        Ok(Self {
            factor: factor.into_iter().map(|factor| factor as f32).collect(),
            bias,
        })
    }

    /// Weights `o …`, each output channel times its factor.
    fn scale(&self, weight: &[f32]) -> Vec<f32> {
        let n_in = weight.len() / self.factor.len().max(1);
        let rows = weight.chunks(n_in.max(1)).zip(&self.factor);
        rows.flat_map(|(row, factor)| row.iter().map(move |weight| factor * weight))
            .collect()
    }
}

fn numbers(var: &Var) -> Result<Vec<f32>> {
    flat(var)?.to_dtype(DType::F32)?.to_vec1()
}

fn doubles(var: &Var) -> Result<Vec<f64>> {
    flat(var)?.to_dtype(DType::F64)?.to_vec1()
}

fn flat(var: &Var) -> Result<Tensor> {
    var.as_detached_tensor().flatten_all()
}
