//! A cell as one operation: the fast path of training on the CPU.
//!
//! States are laid out `c h w n` ([`kernels::planes`]). A unit's output is stored before its batch
//! normalisation; whoever reads it (the ReLU of the next unit, the weighted sum of a node) normalises as it
//! reads. A node is written in one pass over all that it sums; channel shuffle and concatenation are a choice
//! of the plane that is written. In the backward pass, too, the gradients of what was normalised are computed
//! where they are read, and nothing is computed that leads to no variable.
//!
//! The cells of [`supernet`](crate::supernet) and [`derived`](crate::derived) are the oracle: they build these
//! operations from the same parameters and are held against them by tests.

use std::ops::Range;
use std::sync::{Arc, Mutex};

use candle_core::{
    CpuStorage, CustomOp3, DType, Device, Layout, Result, Shape, Tensor, Var, WithDType,
};
use kernels::planes::{
    Affine, Buffer, Grid, MaxPool, Moments, NormGrad, PointwiseGrads, Stencil, Term, Unit,
    accumulate, activate, average, average_backward, combine, dots, mask, moments,
    pointwise_backward, pointwise_forward, subsample, subsample_backward,
};
use kernels::{BatchStatistics, Conv2dGeometry, Element, Pool2dGeometry, Window};

use crate::Pass;
use crate::candidate::{Candidate, PoolKind, pool_geometry};
use crate::layers::{BATCH_NORM_EPS, BatchNorm, FactorizedReduce, ReluConvBn};

/// A cell, ready to run as one operation.
pub(crate) struct FusedCell {
    plan: Arc<Plan>,
    /// The parameters, in the order of the operation's third argument.
    weights: Vec<Var>,
    norms: Vec<BatchNorm>,
}

/// What a cell computes. Ranges and offsets are places among its parameters.
struct Plan {
    n_nodes: usize,
    /// Channels of a node, and one in how many of them passes through the operations.
    channels: usize,
    ratio: usize,
    is_reduction: bool,
    inputs: [InputPlan; 2],
    edges: Vec<EdgePlan>,
    /// Numbers of all parameters; behind them come the weights of the operations, `e p`, and of the edges, `e`.
    n_weights: usize,
    n_norms: usize,
    /// Operations that can stand on an edge; 0 where nothing is weighted.
    n_primitives: usize,
}

/// What brings an input to the cell's width and resolution.
struct InputPlan {
    /// The kernel, or those of the even and the odd pixels.
    kernels: Vec<Range<usize>>,
    norm: Norm,
}

struct EdgePlan {
    source: usize,
    node: usize,
    /// The row of its weights.
    row: usize,
    operations: Vec<OperationPlan>,
}

struct OperationPlan {
    /// The column of its weight.
    column: usize,
    kind: OperationKind,
}

enum OperationKind {
    Pool {
        kind: PoolKind,
        norm: Option<Norm>,
    },
    Identity,
    Halve {
        kernels: [Range<usize>; 2],
        norm: Norm,
    },
    Conv(Vec<UnitPlan>),
}

struct UnitPlan {
    depthwise: Range<usize>,
    pointwise: Range<usize>,
    geometry: Conv2dGeometry,
    kernel: usize,
    norm: Norm,
}

/// A batch normalisation: its number, and the places of its factor and shift if it has them.
#[derive(Clone)]
struct Norm {
    index: usize,
    affine: Option<[Range<usize>; 2]>,
}

/// One edge of a cell that is to be fused.
pub(crate) struct EdgeParts<'a> {
    pub(crate) source: usize,
    pub(crate) node: usize,
    pub(crate) row: usize,
    /// The operations, with the columns of their weights.
    pub(crate) operations: Vec<(usize, &'a Candidate)>,
}

/// The preprocessing of an input that is to be fused.
pub(crate) enum InputParts<'a> {
    Same(&'a ReluConvBn),
    Halve(&'a FactorizedReduce),
}

/// The sizes of a cell that is to be fused.
pub(crate) struct CellParts {
    pub(crate) n_nodes: usize,
    pub(crate) channels: usize,
    pub(crate) ratio: usize,
    pub(crate) is_reduction: bool,
    pub(crate) n_primitives: usize,
}

/// Collects the parameters of a cell.
#[derive(Default)]
struct Collector {
    weights: Vec<Var>,
    norms: Vec<BatchNorm>,
    len: usize,
}

impl Collector {
    fn weight(&mut self, var: &Var) -> Range<usize> {
        let start = self.len;
        self.len += var.elem_count();
        self.weights.push(var.clone());
        start..self.len
    }

    fn norm(&mut self, norm: &BatchNorm) -> Norm {
        let affine = norm
            .affine()
            .map(|(weight, bias)| [self.weight(weight), self.weight(bias)]);
        self.norms.push(norm.clone());
        Norm {
            index: self.norms.len() - 1,
            affine,
        }
    }

    fn input(&mut self, parts: &InputParts<'_>) -> InputPlan {
        match parts {
            InputParts::Same(block) => InputPlan {
                kernels: vec![self.weight(block.weight())],
                norm: self.norm(block.norm()),
            },
            InputParts::Halve(block) => InputPlan {
                kernels: block.kernels().map(|var| self.weight(var)).into(),
                norm: self.norm(block.norm()),
            },
        }
    }

    /// The plan of an operation; `None` of zeros.
    fn operation(&mut self, column: usize, candidate: &Candidate) -> Option<OperationPlan> {
        let kind = match candidate {
            Candidate::None { .. } => return None,
            Candidate::Identity => OperationKind::Identity,
            Candidate::Pool { kind, norm, .. } => OperationKind::Pool {
                kind: *kind,
                norm: norm.as_ref().map(|norm| self.norm(norm)),
            },
            Candidate::Reduce(block) => OperationKind::Halve {
                kernels: block.kernels().map(|var| self.weight(var)),
                norm: self.norm(block.norm()),
            },
            Candidate::Conv(units) => {
                let plan = |unit: &crate::candidate::ConvUnit| UnitPlan {
                    depthwise: self.weight(unit.depthwise()),
                    pointwise: self.weight(unit.pointwise()),
                    geometry: unit.geometry(),
                    kernel: unit.kernel(),
                    norm: self.norm(unit.norm()),
                };
                OperationKind::Conv(units.iter().map(plan).collect())
            }
        };
        Some(OperationPlan { column, kind })
    }
}

impl FusedCell {
    /// Fuses a cell; its parameters stay those of its parts.
    pub(crate) fn new(
        parts: &CellParts,
        inputs: [InputParts<'_>; 2],
        edges: &[EdgeParts<'_>],
    ) -> Self {
        let mut collector = Collector::default();
        let inputs = inputs.map(|input| collector.input(&input));
        let edges = edges
            .iter()
            .map(|edge| EdgePlan {
                source: edge.source,
                node: edge.node,
                row: edge.row,
                operations: edge
                    .operations
                    .iter()
                    .filter_map(|(column, candidate)| collector.operation(*column, candidate))
                    .collect(),
            })
            .collect();
        let &CellParts {
            n_nodes,
            channels,
            ratio,
            is_reduction,
            n_primitives,
        } = parts;
        Self {
            plan: Arc::new(Plan {
                n_nodes,
                channels,
                ratio,
                is_reduction,
                inputs,
                edges,
                n_weights: collector.len,
                n_norms: collector.norms.len(),
                n_primitives,
            }),
            weights: collector.weights,
            norms: collector.norms,
        }
    }

    /// Whether a pass can be fused: training on the CPU, without drop path.
    pub(crate) fn can_run(x: &Tensor, pass: &Pass<'_>) -> bool {
        matches!(x.device(), Device::Cpu)
            && matches!(x.dtype(), DType::F32 | DType::F64)
            && pass.can_fuse()
    }

    /// Runs the cell on the outputs of the two before it, `c h w n`. `mixing`: the weights of the operations,
    /// `e p`, and of the edges, `e`, where there are any.
    pub(crate) fn forward(
        &self,
        s0: &Tensor,
        s1: &Tensor,
        mixing: Option<(&Tensor, Option<&Tensor>)>,
        pass: &Pass<'_>,
    ) -> Result<Tensor> {
        let mut parameters = self
            .weights
            .iter()
            .map(|var| pass.weight(var).flatten_all())
            .collect::<Result<Vec<_>>>()?;
        let mut wants_mixing = false;
        if let Some((operations, edges)) = mixing {
            for tensor in [Some(operations), edges].into_iter().flatten() {
                wants_mixing |= tensor.track_op();
                parameters.push(tensor.flatten_all()?);
            }
        }
        let parameters = Tensor::cat(&parameters, 0)?;
        let wants = Wants {
            inputs: [s0.track_op(), s1.track_op()],
            weights: pass.tracks_weights(),
            mixing: wants_mixing,
        };
        let (s0, s1) = (s0.contiguous()?, s1.contiguous()?);
        match s0.dtype() {
            DType::F64 => self.apply::<f64>(&s0, &s1, &parameters, wants),
            _ => self.apply::<f32>(&s0, &s1, &parameters, wants),
        }
    }

    fn apply<T: Element>(
        &self,
        s0: &Tensor,
        s1: &Tensor,
        parameters: &Tensor,
        wants: Wants,
    ) -> Result<Tensor> {
        let saved = Arc::new(Mutex::new(None));
        let op = CellOp::<T> {
            plan: self.plan.clone(),
            wants,
            saved: saved.clone(),
        };
        let y = s0.apply_op3(s1, parameters, op)?;
        let saved = saved.lock().expect("no thread panicked with it");
        let statistics = saved.as_ref().map(|saved| &saved.statistics[..]);
        for (norm, statistics) in self.norms.iter().zip(statistics.unwrap_or_default()) {
            norm.observe(&BatchStatistics {
                mean: statistics.moments.iter().map(|m| m.mean).collect(),
                var: statistics.moments.iter().map(|m| m.var).collect(),
                count: statistics.count,
            })?;
        }
        Ok(y)
    }
}

/// Which gradients lead to a variable.
#[derive(Clone, Copy)]
struct Wants {
    inputs: [bool; 2],
    weights: bool,
    mixing: bool,
}

/// One run of a cell.
struct CellOp<T: Element> {
    plan: Arc<Plan>,
    wants: Wants,
    saved: Arc<Mutex<Option<Saved<T>>>>,
}

/// What the backward pass needs of the forward pass, besides arguments and result.
struct Saved<T: Element> {
    inputs: [SavedInput<T>; 2],
    states: Vec<SavedState<T>>,
    /// For each edge, the raw outputs of its operations: of each unit of a convolution, of the halving.
    edges: Vec<Vec<Vec<Buffer<T>>>>,
    /// By the number of the batch normalisation.
    statistics: Vec<Statistics>,
}

/// What a batch normalisation saw.
#[derive(Clone, Default)]
struct Statistics {
    moments: Vec<Moments>,
    /// Values of a channel.
    count: usize,
}

/// A preprocessed input.
struct SavedInput<T: Element> {
    /// The even and the odd pixels, where the input is halved.
    halves: Option<[Buffer<T>; 2]>,
    /// Before its batch normalisation.
    raw: Buffer<T>,
    x: Buffer<T>,
}

/// What edges read of a state, other than itself.
#[derive(Default)]
struct SavedState<T: Element> {
    activated: Option<Buffer<T>>,
    halves: Option<[Buffer<T>; 2]>,
    pooled: [Option<Buffer<T>>; 2],
    bypass: Option<Buffer<T>>,
}

/// The planes of a buffer.
fn planes<T>(buffer: &[T], len: usize) -> Vec<&[T]> {
    buffer.chunks(len.max(1)).collect()
}

fn planes_mut<T>(buffer: &mut [T], len: usize) -> Vec<&mut [T]> {
    buffer.chunks_mut(len.max(1)).collect()
}

fn cast<T: Element>(values: &[f64]) -> Vec<T> {
    values.iter().map(|&value| T::from_f64(value)).collect()
}

/// The sizes of a run.
struct Sizes {
    /// Of the inputs as they come.
    raw: [Grid; 2],
    /// Of the preprocessed inputs.
    input: Grid,
    /// Of the nodes.
    node: Grid,
}

impl Plan {
    fn n_partial(&self) -> usize {
        self.channels / self.ratio
    }

    fn n_states(&self) -> usize {
        2 + self.n_nodes
    }

    fn stride(&self, state: usize) -> usize {
        if self.is_reduction && state < 2 { 2 } else { 1 }
    }

    /// The plane of a node to which an operation's channel goes: the first group of the shuffle.
    fn operation_plane(&self, channel: usize) -> usize {
        channel * self.ratio
    }

    /// The plane of a node to which a bypassing channel goes, counted from 0 behind the partial ones.
    fn bypass_plane(&self, channel: usize) -> usize {
        let n_partial = self.n_partial();
        channel % n_partial * self.ratio + channel / n_partial + 1
    }

    fn sizes(&self, shapes: [&Shape; 2]) -> Result<Sizes> {
        let grid = |shape: &Shape| {
            let (_, h, w, n) = shape.dims4()?;
            Ok::<_, candle_core::Error>(Grid { h, w, n })
        };
        let raw = [grid(shapes[0])?, grid(shapes[1])?];
        let input = raw[1];
        let node = if self.is_reduction {
            input.halved()
        } else {
            input
        };
        let first = match self.inputs[0].kernels.len() {
            2 => raw[0].halved(),
            _ => raw[0],
        };
        if first != input {
            candle_core::bail!(
                "fused cell: inputs of {:?} and {:?} do not meet",
                raw[0],
                raw[1]
            );
        }
        Ok(Sizes { raw, input, node })
    }

    /// The weight of an operation; 1 where nothing is weighted.
    fn weight<T: Element>(&self, parameters: &[T], edge: &EdgePlan, column: usize) -> f64 {
        match self.n_primitives {
            0 => 1.0,
            n => parameters[self.n_weights + edge.row * n + column].to_f64(),
        }
    }

    /// Where the weights of edges start.
    fn edge_weights(&self) -> usize {
        self.n_weights + self.edges.len() * self.n_primitives
    }

    fn stencil(&self, geometry: Conv2dGeometry, kernel: usize, grid: Grid) -> Stencil {
        let Conv2dGeometry {
            padding,
            stride,
            dilation,
        } = geometry;
        let window = Window {
            input: [grid.h, grid.w],
            kernel: [kernel; 2],
            padding,
            stride,
            dilation,
        };
        Stencil::new(window, grid.n)
    }

    fn pool_window(&self, stride: usize, grid: Grid) -> Window {
        let Pool2dGeometry {
            kernel,
            padding,
            stride,
        } = pool_geometry(stride);
        Window {
            input: [grid.h, grid.w],
            kernel: [kernel; 2],
            padding,
            stride,
            dilation: 1,
        }
    }

    /// Whether any edge that leaves a state has such an operation.
    fn reads(&self, state: usize, is_such: impl Fn(&OperationKind) -> bool) -> bool {
        self.edges
            .iter()
            .filter(|edge| edge.source == state)
            .flat_map(|edge| &edge.operations)
            .any(|operation| is_such(&operation.kind))
    }
}

/// What a batch normalisation does to each channel.
fn affine<T: Element>(norm: &Norm, parameters: &[T], moments: &[Moments]) -> Vec<Affine<f64>> {
    moments
        .iter()
        .enumerate()
        .map(|(channel, moments)| {
            let (weight, bias) = match &norm.affine {
                None => (1.0, 0.0),
                Some([weight, bias]) => (
                    parameters[weight.start + channel].to_f64(),
                    parameters[bias.start + channel].to_f64(),
                ),
            };
            Affine {
                mean: moments.mean,
                factor: weight * moments.inv_std(BATCH_NORM_EPS),
                bias,
            }
        })
        .collect()
}

/// By what each channel of a batch normalisation is multiplied.
fn norm_weights<T: Element>(norm: &Norm, parameters: &[T], n_channels: usize) -> Vec<f64> {
    match &norm.affine {
        None => vec![1.0; n_channels],
        Some([weight, _]) => parameters[weight.clone()]
            .iter()
            .map(|weight| weight.to_f64())
            .collect(),
    }
}

/// The activated input of a unit: the ReLU of what was normalised.
fn normalise_and_activate<T: Element>(raw: &[T], len: usize, affine: &[Affine<f64>]) -> Buffer<T> {
    let mut z = Buffer::any(raw.len());
    let affine: Vec<Affine<T>> = affine.iter().map(Affine::cast).collect();
    activate(planes_mut(&mut z, len), &planes(raw, len), &affine);
    z
}

/// Even and odd pixels of each plane.
fn halves<T: Element>(x: &[&[T]], grid: Grid) -> [Buffer<T>; 2] {
    [0, 1].map(|offset| {
        let len = grid.halved().len();
        let mut y = Buffer::any(x.len() * len);
        for (x, y) in x.iter().zip(planes_mut(&mut y, len)) {
            subsample(grid, offset, x, y);
        }
        y
    })
}

/// Two kernels on the even and the odd pixels, one half of the output each.
fn halve<T: Element>(
    halves: &[Buffer<T>; 2],
    kernels: [&[T]; 2],
    activates: bool,
    len: usize,
) -> (Buffer<T>, Vec<Moments>) {
    let n_in = halves[0].len() / len.max(1);
    let n_out = kernels.map(|kernel| kernel.len() / n_in.max(1));
    let mut y = Buffer::any((n_out[0] + n_out[1]) * len);
    let (even, odd) = y.split_at_mut(n_out[0] * len);
    let mut found = Vec::new();
    for ((half, kernel), y) in halves.iter().zip(kernels).zip([even, odd]) {
        let y = planes_mut(y, len);
        found.extend(pointwise_forward(&planes(half, len), activates, kernel, y));
    }
    (y, found)
}

impl<T: Element> CellOp<T> {
    fn input(
        &self,
        index: usize,
        s: &[T],
        sizes: &Sizes,
        parameters: &[T],
        statistics: &mut [Statistics],
    ) -> SavedInput<T> {
        let plan = &self.plan.inputs[index];
        let (raw_grid, grid) = (sizes.raw[index], sizes.input);
        let s = planes(s, raw_grid.len());
        let (halves, raw, moments) = match &plan.kernels[..] {
            [even, odd] => {
                let halves = halves(&s, raw_grid);
                let kernels = [&parameters[even.clone()], &parameters[odd.clone()]];
                let (raw, moments) = halve(&halves, kernels, true, grid.len());
                (Some(halves), raw, moments)
            }
            kernels => {
                let mut raw = Buffer::any(self.plan.channels * grid.len());
                let y = planes_mut(&mut raw, grid.len());
                let kernel = &parameters[kernels[0].clone()];
                let moments = pointwise_forward(&s, true, kernel, y);
                (None, raw, moments)
            }
        };
        let mut x = Buffer::any(raw.len());
        let affine = affine(&plan.norm, parameters, &moments);
        let terms: Vec<Vec<Term<'_, T>>> = planes(&raw, grid.len())
            .into_iter()
            .zip(&affine)
            .map(|(plane, affine)| {
                let Affine { mean, factor, .. } = affine.cast();
                vec![Term {
                    factor,
                    mean,
                    plane,
                }]
            })
            .collect();
        let bias: Vec<T> = affine.iter().map(|a| T::from_f64(a.bias)).collect();
        combine(planes_mut(&mut x, grid.len()), &terms, &bias);
        statistics[plan.norm.index] = Statistics {
            moments,
            count: grid.len(),
        };
        SavedInput { halves, raw, x }
    }

    /// What the edges that leave a state share.
    fn state(
        &self,
        state: usize,
        x: &[&[T]],
        sizes: &Sizes,
        statistics: &mut [Statistics],
    ) -> SavedState<T> {
        let plan = &*self.plan;
        let grid = if state < 2 { sizes.input } else { sizes.node };
        let out_len = sizes.node.len();
        let (partial, bypass) = x.split_at(plan.n_partial());
        let stride = plan.stride(state);
        let is_unit = |kind: &OperationKind| {
            matches!(kind, OperationKind::Conv(_) | OperationKind::Halve { .. })
        };
        let activated = plan.reads(state, is_unit).then(|| {
            let mut z = Buffer::any(partial.len() * grid.len());
            let identity = vec![Affine::identity().cast(); partial.len()];
            activate(planes_mut(&mut z, grid.len()), partial, &identity);
            z
        });
        let halves = plan
            .reads(state, |kind| matches!(kind, OperationKind::Halve { .. }))
            .then(|| {
                let z = activated.as_deref().expect("a halving reads activations");
                halves(&planes(z, grid.len()), grid)
            });
        let pooled = [PoolKind::Max, PoolKind::Average].map(|pool| {
            let is_this = |kind: &OperationKind| matches!(kind, OperationKind::Pool { kind, .. } if *kind == pool);
            plan.reads(state, is_this).then(|| {
                let window = plan.pool_window(stride, grid);
                let mut y = Buffer::any(partial.len() * out_len);
                let rows = planes_mut(&mut y, out_len);
                match pool {
                    PoolKind::Max => MaxPool::new(window, grid.n).forward(partial, rows),
                    PoolKind::Average => average(&Stencil::new(window, grid.n), partial, rows),
                }
                y
            })
        });
        for edge in plan.edges.iter().filter(|edge| edge.source == state) {
            for operation in &edge.operations {
                if let OperationKind::Pool {
                    kind,
                    norm: Some(norm),
                } = &operation.kind
                {
                    // All edges normalise the same pooling: it is looked at once.
                    let first = plan.edges.iter().find(|other| other.source == state);
                    let known = first
                        .filter(|first| first.row != edge.row)
                        .and_then(|first| {
                            first.operations.iter().find_map(|other| match &other.kind {
                                OperationKind::Pool {
                                    kind: other,
                                    norm: Some(norm),
                                } if other == kind => Some(statistics[norm.index].clone()),
                                _ => None,
                            })
                        });
                    let pooled = pooled[*kind as usize].as_deref().expect("it is read");
                    statistics[norm.index] = known
                        .filter(|known| !known.moments.is_empty())
                        .unwrap_or_else(|| Statistics {
                            moments: moments(&planes(pooled, out_len)),
                            count: out_len,
                        });
                }
            }
        }
        let bypass = (stride == 2 && !bypass.is_empty()).then(|| {
            let mut y = Buffer::any(bypass.len() * out_len);
            MaxPool::halving(grid).forward(bypass, planes_mut(&mut y, out_len));
            y
        });
        SavedState {
            activated,
            halves,
            pooled,
            bypass,
        }
    }

    /// The raw outputs of an operation's units.
    fn operation(
        &self,
        operation: &OperationPlan,
        state: &SavedState<T>,
        grid: Grid,
        parameters: &[T],
        statistics: &mut [Statistics],
    ) -> Vec<Buffer<T>> {
        match &operation.kind {
            OperationKind::Pool { .. } | OperationKind::Identity => Vec::new(),
            OperationKind::Halve { kernels, norm } => {
                let halves = state.halves.as_ref().expect("it is read");
                let kernels = kernels.each_ref().map(|kernel| &parameters[kernel.clone()]);
                let len = grid.halved().len();
                let (y, moments) = halve(halves, kernels, false, len);
                statistics[norm.index] = Statistics {
                    moments,
                    count: len,
                };
                vec![y]
            }
            OperationKind::Conv(units) => {
                let mut outputs: Vec<Buffer<T>> = Vec::with_capacity(units.len());
                let (mut grid, mut hidden) = (grid, Buffer::default());
                for (index, plan) in units.iter().enumerate() {
                    let unit = Unit::new(self.plan.stencil(plan.geometry, plan.kernel, grid));
                    if let Some(previous) = index.checked_sub(1) {
                        let norm = &units[previous].norm;
                        let moments = &statistics[norm.index].moments;
                        let affine = affine(norm, parameters, moments);
                        hidden = normalise_and_activate(&outputs[previous], grid.len(), &affine);
                    }
                    let z = match index {
                        0 => state.activated.as_deref().expect("it is read"),
                        _ => &hidden,
                    };
                    let len = unit.stencil().output().len();
                    let mut y = Buffer::any(self.plan.n_partial() * len);
                    let moments = unit.forward(
                        &planes(z, grid.len()),
                        &parameters[plan.depthwise.clone()],
                        &parameters[plan.pointwise.clone()],
                        planes_mut(&mut y, len),
                    );
                    statistics[plan.norm.index] = Statistics {
                        moments,
                        count: len,
                    };
                    outputs.push(y);
                    grid = unit.stencil().output();
                }
                outputs
            }
        }
    }

    fn forward(&self, s: [&[T]; 2], sizes: &Sizes, parameters: &[T]) -> (Vec<T>, Saved<T>) {
        let plan = &*self.plan;
        let mut statistics = vec![Statistics::default(); plan.n_norms];
        let inputs =
            [0, 1].map(|index| self.input(index, s[index], sizes, parameters, &mut statistics));
        let node_len = sizes.node.len();
        let mut out = Buffer::any(plan.n_nodes * plan.channels * node_len);
        let mut states: Vec<SavedState<T>> = Vec::with_capacity(plan.n_states());
        for (index, input) in inputs.iter().enumerate() {
            let x = planes(&input.x, sizes.input.len());
            states.push(self.state(index, &x, sizes, &mut statistics));
        }
        let mut edges: Vec<Vec<Vec<Buffer<T>>>> = Vec::with_capacity(plan.edges.len());
        for node in 2..plan.n_states() {
            for edge in plan.edges.iter().filter(|edge| edge.node == node) {
                let grid = if edge.source < 2 {
                    sizes.input
                } else {
                    sizes.node
                };
                let outputs = edge.operations.iter().map(|operation| {
                    let state = &states[edge.source];
                    self.operation(operation, state, grid, parameters, &mut statistics)
                });
                edges.push(outputs.collect());
            }
            let (before, rest) = out.split_at_mut((node - 2) * plan.channels * node_len);
            let own = &mut rest[..plan.channels * node_len];
            let x_of = |state: usize| -> Vec<&[T]> {
                match state {
                    0 | 1 => planes(&inputs[state].x, sizes.input.len()),
                    _ => planes(
                        &before[(state - 2) * plan.channels * node_len..]
                            [..plan.channels * node_len],
                        node_len,
                    ),
                }
            };
            // What each plane of the node is the weighted sum of.
            let mut terms: Vec<Vec<Term<'_, T>>> = vec![Vec::new(); plan.channels];
            let mut bias = vec![0.0; plan.channels];
            for (edge, outputs) in plan.edges.iter().zip(&edges) {
                if edge.node != node {
                    continue;
                }
                let state = &states[edge.source];
                let x = x_of(edge.source);
                for (operation, outputs) in edge.operations.iter().zip(outputs) {
                    let weight = plan.weight(parameters, edge, operation.column);
                    let (source, norm) = source_of(operation, outputs, state, &x, node_len);
                    let affine = match norm {
                        Some(norm) => affine(norm, parameters, &statistics[norm.index].moments),
                        None => vec![Affine::identity(); plan.n_partial()],
                    };
                    for (channel, (plane, affine)) in source.into_iter().zip(affine).enumerate() {
                        let at = plan.operation_plane(channel);
                        bias[at] += weight * affine.bias;
                        terms[at].push(Term {
                            factor: T::from_f64(weight * affine.factor),
                            mean: T::from_f64(affine.mean),
                            plane,
                        });
                    }
                }
                if plan.ratio > 1 {
                    let weight = parameters[plan.edge_weights() + edge.row];
                    let bypass = match &state.bypass {
                        Some(pooled) => planes(pooled, node_len),
                        None => x[plan.n_partial()..].to_vec(),
                    };
                    for (channel, plane) in bypass.into_iter().enumerate() {
                        terms[plan.bypass_plane(channel)].push(Term::new(weight, plane));
                    }
                }
            }
            combine(planes_mut(own, node_len), &terms, &cast(&bias));
            if node + 1 < plan.n_states() {
                let x = planes(own, node_len);
                states.push(self.state(node, &x, sizes, &mut statistics));
            }
        }
        let saved = Saved {
            inputs,
            states,
            edges,
            statistics,
        };
        (out.into_vec(), saved)
    }
}

/// What an operation puts into the sum, `n_partial` planes, and the batch normalisation that is still to come.
fn source_of<'a, T: Element>(
    operation: &'a OperationPlan,
    outputs: &'a [Buffer<T>],
    state: &'a SavedState<T>,
    x: &[&'a [T]],
    len: usize,
) -> (Vec<&'a [T]>, Option<&'a Norm>) {
    match &operation.kind {
        OperationKind::Identity => (x.to_vec(), None),
        OperationKind::Pool { kind, norm } => {
            let pooled = state.pooled[*kind as usize].as_deref().expect("it is read");
            (planes(pooled, len), norm.as_ref())
        }
        OperationKind::Halve { norm, .. } => (planes(&outputs[0], len), Some(norm)),
        OperationKind::Conv(units) => {
            let last = units.len() - 1;
            (planes(&outputs[last], len), Some(&units[last].norm))
        }
    }
}

/// The gradients of a run.
struct CellGrads<T: Element> {
    inputs: [Option<Vec<T>>; 2],
    parameters: Vec<f64>,
}

/// What the backward pass works on.
struct Backward<'a, T: Element> {
    op: &'a CellOp<T>,
    sizes: &'a Sizes,
    parameters: &'a [T],
    saved: &'a Saved<T>,
    /// The nodes, as the forward pass left them.
    nodes: &'a [T],
    /// Of each state.
    grads: Vec<Buffer<T>>,
    /// For each operation of each edge, per channel: the sum of its node's gradient, and the product of that
    /// gradient with what the operation put into the sum.
    sums: Vec<Vec<Vec<[f64; 2]>>>,
    grad_parameters: Vec<f64>,
}

impl<'a, T: Element> Backward<'a, T> {
    fn new(
        op: &'a CellOp<T>,
        sizes: &'a Sizes,
        parameters: &'a [T],
        saved: &'a Saved<T>,
        nodes: &'a [T],
        grad_nodes: &[T],
    ) -> Self {
        let plan = &*op.plan;
        let node_len = plan.channels * sizes.node.len();
        let mut grads: Vec<Buffer<T>> = (0..2)
            .map(|_| Buffer::zeros(plan.channels * sizes.input.len()))
            .collect();
        grads.extend(grad_nodes.chunks(node_len.max(1)).map(Buffer::copy_of));
        Self {
            op,
            sizes,
            parameters,
            saved,
            nodes,
            grads,
            sums: plan.edges.iter().map(|_| Vec::new()).collect(),
            grad_parameters: vec![0.0; parameters.len()],
        }
    }

    fn plan(&self) -> &'a Plan {
        &self.op.plan
    }

    fn grid(&self, state: usize) -> Grid {
        if state < 2 {
            self.sizes.input
        } else {
            self.sizes.node
        }
    }

    fn x(&self, state: usize) -> Vec<&'a [T]> {
        let saved: &'a Saved<T> = self.saved;
        match state {
            0 | 1 => planes(&saved.inputs[state].x, self.sizes.input.len()),
            _ => {
                let len = self.plan().channels * self.sizes.node.len();
                let nodes: &'a [T] = self.nodes;
                planes(&nodes[(state - 2) * len..][..len], self.sizes.node.len())
            }
        }
    }

    fn run(mut self, s: [&[T]; 2]) -> CellGrads<T> {
        for state in (0..self.plan().n_states()).rev() {
            let mut grad = std::mem::take(&mut self.grads[state]);
            self.gather_state(state, &mut grad);
            self.grads[state] = grad;
            if state >= 2 {
                self.weigh_node(state);
            }
        }
        let inputs = [0, 1].map(|index| self.input(index, s[index]));
        CellGrads {
            inputs,
            parameters: self.grad_parameters,
        }
    }

    /// Adds to a state's gradient what comes from the edges that leave it. The gradients of their nodes are
    /// complete by now.
    fn gather_state(&mut self, state: usize, grad_x: &mut [T]) {
        let plan = self.plan();
        let edges: Vec<usize> = (0..plan.edges.len())
            .filter(|&index| plan.edges[index].source == state)
            .collect();
        if edges.is_empty() {
            return;
        }
        let (grid, node_len) = (self.grid(state), self.sizes.node.len());
        let (n_partial, x) = (plan.n_partial(), self.x(state));
        let saved: &'a SavedState<T> = &self.saved.states[state];

        // Everything that is a weighted sum of the nodes' gradients.
        let mut direct: Vec<Vec<Term<'_, T>>> = vec![Vec::new(); plan.channels];
        let mut pooled: [Vec<Vec<Term<'_, T>>>; 2] =
            std::array::from_fn(|_| vec![Vec::new(); n_partial]);
        let mut pooled_sums: [Vec<[f64; 2]>; 2] =
            std::array::from_fn(|_| vec![[0.0; 2]; n_partial]);
        let mut bypass: Vec<Vec<Term<'_, T>>> = vec![Vec::new(); plan.channels - n_partial];
        for &index in &edges {
            let edge = &plan.edges[index];
            let grads = planes(&self.grads[edge.node], node_len);
            for (number, operation) in edge.operations.iter().enumerate() {
                let weight = plan.weight(self.parameters, edge, operation.column);
                let term =
                    |channel| Term::new(T::from_f64(weight), grads[plan.operation_plane(channel)]);
                match &operation.kind {
                    OperationKind::Identity => {
                        for (channel, terms) in direct[..n_partial].iter_mut().enumerate() {
                            terms.push(term(channel));
                        }
                    }
                    OperationKind::Pool { kind, norm } => {
                        for (channel, terms) in pooled[*kind as usize].iter_mut().enumerate() {
                            terms.push(term(channel));
                            if norm.is_some() {
                                let own = self.sums[index][number][channel];
                                let all = &mut pooled_sums[*kind as usize][channel];
                                all[0] += weight * own[0];
                                all[1] += weight * own[1];
                            }
                        }
                    }
                    OperationKind::Halve { .. } | OperationKind::Conv(_) => {}
                }
            }
            if plan.ratio > 1 {
                let factor = self.parameters[plan.edge_weights() + edge.row];
                for channel in 0..plan.channels - n_partial {
                    let plane = grads[plan.bypass_plane(channel)];
                    let terms = match saved.bypass {
                        Some(_) => &mut bypass[channel],
                        None => &mut direct[n_partial + channel],
                    };
                    terms.push(Term::new(factor, plane));
                }
            }
        }
        let no_bias = vec![T::zero(); plan.channels];
        accumulate(planes_mut(grad_x, grid.len()), &direct, &no_bias);
        for kind in [PoolKind::Max, PoolKind::Average] {
            let terms = &pooled[kind as usize];
            if let Some(raw) = &saved.pooled[kind as usize] {
                let mut grad = Buffer::any(raw.len());
                combine(
                    planes_mut(&mut grad, node_len),
                    terms,
                    &no_bias[..n_partial],
                );
                let grad =
                    self.unnormalise_pool(state, kind, raw, grad, &pooled_sums[kind as usize]);
                let partial = planes_mut(&mut grad_x[..n_partial * grid.len()], grid.len());
                self.unpool(kind, state, &x[..n_partial], raw, grad, partial);
            }
        }
        if let Some(raw) = &saved.bypass {
            let mut grad = Buffer::any(raw.len());
            combine(
                planes_mut(&mut grad, node_len),
                &bypass,
                &no_bias[..plan.channels - n_partial],
            );
            MaxPool::halving(grid).add_backward(
                &x[n_partial..],
                &planes(raw, node_len),
                &planes(&grad, node_len),
                planes_mut(&mut grad_x[n_partial * grid.len()..], grid.len()),
            );
        }
        self.gather_units(state, &edges, grad_x);
    }

    /// The gradient of a pooling from that of its normalisation, which all edges share.
    fn unnormalise_pool(
        &self,
        state: usize,
        kind: PoolKind,
        raw: &[T],
        grad: Buffer<T>,
        sums: &[[f64; 2]],
    ) -> Buffer<T> {
        let norm = self
            .plan()
            .edges
            .iter()
            .filter(|edge| edge.source == state)
            .flat_map(|edge| &edge.operations)
            .find_map(|operation| match &operation.kind {
                OperationKind::Pool { kind: other, norm } if *other == kind => norm.as_ref(),
                _ => None,
            });
        let Some(norm) = norm else {
            return grad;
        };
        let len = self.sizes.node.len();
        let moments = &self.saved.statistics[norm.index].moments;
        let ones = vec![1.0; moments.len()];
        let chain = NormGrad::new(
            planes(&grad, len),
            planes(raw, len),
            moments,
            BATCH_NORM_EPS,
            sums,
            &ones,
        );
        let mut grad_raw = Buffer::zeros(raw.len());
        chain.add_to(planes_mut(&mut grad_raw, len));
        grad_raw
    }

    fn unpool(
        &self,
        kind: PoolKind,
        state: usize,
        x: &[&[T]],
        y: &[T],
        mut grad_y: Buffer<T>,
        grad_x: Vec<&mut [T]>,
    ) {
        let (grid, len) = (self.grid(state), self.sizes.node.len());
        let window = self.plan().pool_window(self.plan().stride(state), grid);
        match kind {
            PoolKind::Max => MaxPool::new(window, grid.n).add_backward(
                x,
                &planes(y, len),
                &planes(&grad_y, len),
                grad_x,
            ),
            PoolKind::Average => average_backward(
                &Stencil::new(window, grid.n),
                planes_mut(&mut grad_y, len),
                grad_x,
            ),
        }
    }

    /// What comes from convolutions and halvings, through the ReLU that they share.
    fn gather_units(&mut self, state: usize, edges: &[usize], grad_x: &mut [T]) {
        let saved: &'a SavedState<T> = &self.saved.states[state];
        let Some(z) = &saved.activated else {
            return;
        };
        let plan = self.plan();
        let grid = self.grid(state);
        let n_partial = plan.n_partial();
        let mut grad_z = Buffer::zeros(z.len());
        let mut grad_halves = saved
            .halves
            .as_ref()
            .map(|halves| halves.each_ref().map(|half| Buffer::zeros(half.len())));
        for &index in edges {
            let edge = &plan.edges[index];
            let grads = std::mem::take(&mut self.grads[edge.node]);
            let node = planes(&grads, self.sizes.node.len());
            let own: Vec<&[T]> = (0..n_partial)
                .map(|channel| node[plan.operation_plane(channel)])
                .collect();
            for (number, operation) in edge.operations.iter().enumerate() {
                let weight = plan.weight(self.parameters, edge, operation.column);
                match &operation.kind {
                    OperationKind::Conv(units) => {
                        let z = planes(z, grid.len());
                        let grad_z = planes_mut(&mut grad_z, grid.len());
                        self.conv(units, [index, number], &own, weight, &z, grad_z);
                    }
                    OperationKind::Halve { kernels, norm } => {
                        let chain = self.chain(
                            norm,
                            &own,
                            &self.saved.edges[index][number][0],
                            &self.sums[index][number],
                            weight,
                        );
                        let halves = saved.halves.as_ref().expect("it is read");
                        let grads = grad_halves.as_mut().expect("it is read");
                        self.unhalve(halves, kernels, &chain, false, Some(grads));
                    }
                    OperationKind::Pool { .. } | OperationKind::Identity => {}
                }
            }
            self.grads[edge.node] = grads;
        }
        if let Some(halves) = grad_halves {
            add_halves(&halves, grid, &mut grad_z);
        }
        let z = planes(z, grid.len());
        mask(planes_mut(&mut grad_z, grid.len()), &z);
        let terms: Vec<Vec<Term<'_, T>>> = planes(&grad_z, grid.len())
            .into_iter()
            .map(|plane| vec![Term::new(T::one(), plane)])
            .collect();
        let partial = &mut grad_x[..n_partial * grid.len()];
        accumulate(
            planes_mut(partial, grid.len()),
            &terms,
            &vec![T::zero(); n_partial],
        );
    }

    /// The gradient of a unit's raw output.
    fn chain<'b>(
        &self,
        norm: &Norm,
        grads: &[&'b [T]],
        raw: &'b [T],
        sums: &[[f64; 2]],
        weight: f64,
    ) -> NormGrad<'b, T> {
        let moments = &self.saved.statistics[norm.index].moments;
        let weights: Vec<f64> = norm_weights(norm, self.parameters, moments.len())
            .into_iter()
            .map(|own| weight * own)
            .collect();
        let len = grads.first().map_or(0, |grad| grad.len());
        NormGrad::new(
            grads.to_vec(),
            planes(raw, len),
            moments,
            BATCH_NORM_EPS,
            sums,
            &weights,
        )
    }

    /// Backward through the units of a convolution.
    fn conv(
        &mut self,
        units: &[UnitPlan],
        [edge, number]: [usize; 2],
        grads: &[&[T]],
        weight: f64,
        z: &[&[T]],
        grad_z: Vec<&mut [T]>,
    ) {
        let plan = self.plan();
        let source = self.grid(plan.edges[edge].source);
        let outputs: &'a [Buffer<T>] = &self.saved.edges[edge][number];
        let last = units.len() - 1;
        let chain = self.chain(
            &units[last].norm,
            grads,
            &outputs[last],
            &self.sums[edge][number],
            weight,
        );
        if last == 0 {
            self.unit(&units[0], source, z, &chain, grad_z);
            return;
        }
        let (first, second) = (&units[0], &units[1]);
        let grid = self.sizes.node;
        let moments = &self.saved.statistics[first.norm.index].moments;
        let affine = affine(&first.norm, self.parameters, moments);
        let hidden = normalise_and_activate(&outputs[0], grid.len(), &affine);
        let mut grad_hidden = Buffer::zeros(hidden.len());
        let hidden = planes(&hidden, grid.len());
        self.unit(
            second,
            grid,
            &hidden,
            &chain,
            planes_mut(&mut grad_hidden, grid.len()),
        );
        mask(planes_mut(&mut grad_hidden, grid.len()), &hidden);
        let grad_hidden = planes(&grad_hidden, grid.len());
        let raw: Vec<Vec<&[T]>> = planes(&outputs[0], grid.len())
            .into_iter()
            .map(|plane| vec![plane])
            .collect();
        let sums: Vec<[f64; 2]> = dots(&grad_hidden, &raw)
            .into_iter()
            .map(|(sum, products)| [sum, products[0]])
            .collect();
        self.add_affine_grads(&first.norm, &sums, 1.0);
        let chain = self.chain(&first.norm, &grad_hidden, &outputs[0], &sums, 1.0);
        self.unit(first, source, z, &chain, grad_z);
    }

    fn unit(
        &mut self,
        plan: &UnitPlan,
        grid: Grid,
        z: &[&[T]],
        grad_y: &NormGrad<'_, T>,
        grad_z: Vec<&mut [T]>,
    ) {
        let unit = Unit::new(self.plan().stencil(plan.geometry, plan.kernel, grid));
        let grads = unit.backward(
            z,
            &self.parameters[plan.depthwise.clone()],
            &self.parameters[plan.pointwise.clone()],
            grad_y,
            grad_z,
            self.op.wants.weights,
        );
        if let Some(grads) = grads {
            self.add(&plan.depthwise, &grads.depthwise);
            self.add(&plan.pointwise, &grads.pointwise);
        }
    }

    /// Backward through two kernels on even and odd pixels.
    fn unhalve(
        &mut self,
        halves: &[Buffer<T>; 2],
        kernels: &[Range<usize>; 2],
        grad_y: &NormGrad<'_, T>,
        activates: bool,
        mut grad_halves: Option<&mut [Buffer<T>; 2]>,
    ) {
        let len = grad_y.plane_len();
        let mut first = 0;
        for (index, (half, kernel)) in halves.iter().zip(kernels).enumerate() {
            let n_out = kernel.len() * len / half.len().max(1);
            let x = grad_halves
                .as_mut()
                .map(|grads| planes_mut(&mut grads[index], len));
            let grads = PointwiseGrads {
                x,
                w: self.op.wants.weights,
            };
            let grad_w = pointwise_backward(
                &planes(half, len),
                activates,
                &self.parameters[kernel.clone()],
                &grad_y.channels(first..first + n_out),
                grads,
            );
            if let Some(grad_w) = grad_w {
                self.add(kernel, &grad_w);
            }
            first += n_out;
        }
    }

    fn add(&mut self, range: &Range<usize>, grads: &[f64]) {
        for (sum, grad) in self.grad_parameters[range.clone()].iter_mut().zip(grads) {
            *sum += grad;
        }
    }

    /// The gradients of factor and shift of a batch normalisation whose output has these sums.
    fn add_affine_grads(&mut self, norm: &Norm, sums: &[[f64; 2]], weight: f64) {
        let Some([factor, shift]) = &norm.affine else {
            return;
        };
        let moments = &self.saved.statistics[norm.index].moments;
        for (channel, (moments, &[sum, product])) in moments.iter().zip(sums).enumerate() {
            let normalised = (product - moments.mean * sum) * moments.inv_std(BATCH_NORM_EPS);
            self.grad_parameters[factor.start + channel] += weight * normalised;
            self.grad_parameters[shift.start + channel] += weight * sum;
        }
    }

    /// Takes the sums of a node's gradient, which is complete, with all that the node sums: they are the
    /// gradients of weights and of affine parameters, and what batch normalisations need.
    fn weigh_node(&mut self, node: usize) {
        let plan = self.plan();
        let len = self.sizes.node.len();
        let n_partial = plan.n_partial();
        let grads = std::mem::take(&mut self.grads[node]);
        let grad_planes = planes(&grads, len);
        let edges: Vec<usize> = (0..plan.edges.len())
            .filter(|&index| plan.edges[index].node == node)
            .collect();
        let mut sources: Vec<Vec<&[T]>> = vec![Vec::new(); n_partial];
        let mut measured = Vec::new();
        for &index in &edges {
            let edge = &plan.edges[index];
            let state = &self.saved.states[edge.source];
            let x = self.x(edge.source);
            self.sums[index] = vec![Vec::new(); edge.operations.len()];
            for (number, operation) in edge.operations.iter().enumerate() {
                let outputs = &self.saved.edges[index][number];
                let (planes, norm) = source_of(operation, outputs, state, &x, len);
                if norm.is_some() || self.op.wants.mixing {
                    for (sources, plane) in sources.iter_mut().zip(planes) {
                        sources.push(plane);
                    }
                    measured.push((index, number));
                }
            }
        }
        let own: Vec<&[T]> = (0..n_partial)
            .map(|channel| grad_planes[plan.operation_plane(channel)])
            .collect();
        let products = dots(&own, &sources);
        for (at, (index, number)) in measured.into_iter().enumerate() {
            let sums: Vec<[f64; 2]> = products
                .iter()
                .map(|(sum, products)| [*sum, products[at]])
                .collect();
            let edge = &plan.edges[index];
            let operation = &edge.operations[number];
            let weight = plan.weight(self.parameters, edge, operation.column);
            let norm = match &operation.kind {
                OperationKind::Identity => None,
                OperationKind::Pool { norm, .. } => norm.as_ref(),
                OperationKind::Halve { norm, .. } => Some(norm),
                OperationKind::Conv(units) => units.last().map(|unit| &unit.norm),
            };
            if let Some(norm) = norm {
                self.add_affine_grads(norm, &sums, weight);
            }
            if self.op.wants.mixing && plan.n_primitives > 0 {
                let affine = match norm {
                    Some(norm) => affine(
                        norm,
                        self.parameters,
                        &self.saved.statistics[norm.index].moments,
                    ),
                    None => vec![Affine::identity(); n_partial],
                };
                self.grad_parameters
                    [plan.n_weights + edge.row * plan.n_primitives + operation.column] += sums
                    .iter()
                    .zip(affine)
                    .map(|([sum, product], affine)| {
                        affine.factor * (product - affine.mean * sum) + affine.bias * sum
                    })
                    .sum::<f64>();
            }
            self.sums[index][number] = sums;
        }
        if self.op.wants.mixing && plan.ratio > 1 {
            let own: Vec<&[T]> = (0..plan.channels - n_partial)
                .map(|channel| grad_planes[plan.bypass_plane(channel)])
                .collect();
            let mut sources: Vec<Vec<&[T]>> = vec![Vec::new(); own.len()];
            for &index in &edges {
                let source = plan.edges[index].source;
                let planes = match &self.saved.states[source].bypass {
                    Some(pooled) => planes(pooled, len),
                    None => self.x(source)[n_partial..].to_vec(),
                };
                for (sources, plane) in sources.iter_mut().zip(planes) {
                    sources.push(plane);
                }
            }
            for (_, products) in dots(&own, &sources) {
                for (&index, product) in edges.iter().zip(products) {
                    self.grad_parameters[plan.edge_weights() + plan.edges[index].row] += product;
                }
            }
        }
        self.grads[node] = grads;
    }

    /// Backward through the preprocessing of an input.
    fn input(&mut self, index: usize, s: &[T]) -> Option<Vec<T>> {
        let wants = self.op.wants;
        if !wants.inputs[index] && !wants.weights {
            return None;
        }
        let op = self.op;
        let plan = &op.plan.inputs[index];
        let saved: &'a SavedInput<T> = &self.saved.inputs[index];
        let (raw_grid, len) = (self.sizes.raw[index], self.sizes.input.len());
        let grads = std::mem::take(&mut self.grads[index]);
        let grads = planes(&grads, len);
        let raw: Vec<Vec<&[T]>> = planes(&saved.raw, len)
            .into_iter()
            .map(|plane| vec![plane])
            .collect();
        let sums: Vec<[f64; 2]> = dots(&grads, &raw)
            .into_iter()
            .map(|(sum, products)| [sum, products[0]])
            .collect();
        self.add_affine_grads(&plan.norm, &sums, 1.0);
        let chain = self.chain(&plan.norm, &grads, &saved.raw, &sums, 1.0);
        let mut grad_s = Buffer::zeros(if wants.inputs[index] { s.len() } else { 0 });
        match (&saved.halves, &plan.kernels[..]) {
            (Some(halves), [even, odd]) => {
                let kernels = [even.clone(), odd.clone()];
                let mut grads = halves.each_ref().map(|half| Buffer::zeros(half.len()));
                let wanted = wants.inputs[index].then_some(&mut grads);
                self.unhalve(halves, &kernels, &chain, true, wanted);
                if wants.inputs[index] {
                    add_halves(&grads, raw_grid, &mut grad_s);
                }
            }
            (_, kernels) => {
                let grads = PointwiseGrads {
                    x: wants.inputs[index].then(|| planes_mut(&mut grad_s, raw_grid.len())),
                    w: wants.weights,
                };
                let kernel = &self.parameters[kernels[0].clone()];
                let s = planes(s, raw_grid.len());
                if let Some(grad_w) = pointwise_backward(&s, true, kernel, &chain, grads) {
                    self.add(&kernels[0], &grad_w);
                }
            }
        }
        wants.inputs[index].then(|| grad_s.into_vec())
    }
}

/// Adds the gradients of even and odd pixels to that of all pixels.
fn add_halves<T: Element>(halves: &[Buffer<T>; 2], grid: Grid, grad_x: &mut [T]) {
    for (offset, half) in halves.iter().enumerate() {
        let half = planes(half, grid.halved().len());
        for (half, grad_x) in half.into_iter().zip(planes_mut(grad_x, grid.len())) {
            subsample_backward(grid, offset, half, grad_x);
        }
    }
}

fn slice<'a, T: WithDType>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [T]> {
    let Some((start, end)) = layout.contiguous_offsets() else {
        candle_core::bail!("fused cell: expected contiguous arguments");
    };
    Ok(&storage.as_slice::<T>()?[start..end])
}

impl<T: Element> CustomOp3 for CellOp<T> {
    fn name(&self) -> &'static str {
        "fused_cell"
    }

    fn cpu_fwd(
        &self,
        s0: &CpuStorage,
        l0: &Layout,
        s1: &CpuStorage,
        l1: &Layout,
        parameters: &CpuStorage,
        l2: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let sizes = self.plan.sizes([l0.shape(), l1.shape()])?;
        let s = [slice::<T>(s0, l0)?, slice::<T>(s1, l1)?];
        let (out, saved) = self.forward(s, &sizes, slice::<T>(parameters, l2)?);
        *self.saved.lock().expect("no thread panicked with it") = Some(saved);
        let Grid { h, w, n } = sizes.node;
        let shape = Shape::from((self.plan.n_nodes * self.plan.channels, h, w, n));
        Ok((T::to_cpu_storage_owned(out), shape))
    }

    fn bwd(
        &self,
        s0: &Tensor,
        s1: &Tensor,
        parameters: &Tensor,
        out: &Tensor,
        grad_out: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let saved = self
            .saved
            .lock()
            .expect("no thread panicked with it")
            .take();
        let Some(saved) = saved else {
            candle_core::bail!("fused cell: the backward pass runs once for each forward pass");
        };
        let sizes = self.plan.sizes([s0.shape(), s1.shape()])?;
        let grad_out = grad_out.contiguous()?;
        let grads = {
            let tensors = [s0, s1, parameters, out, &grad_out].map(Tensor::storage_and_layout);
            let mut slices = Vec::with_capacity(tensors.len());
            for (storage, layout) in &tensors {
                let candle_core::Storage::Cpu(storage) = &**storage else {
                    candle_core::bail!("fused cell: runs on the CPU alone");
                };
                slices.push(slice::<T>(storage, layout)?);
            }
            let backward = Backward::new(self, &sizes, slices[2], &saved, slices[3], slices[4]);
            backward.run([slices[0], slices[1]])
        };
        let [grad0, grad1] = grads.inputs;
        let tensor = |grad: Option<Vec<T>>, like: &Tensor| {
            grad.map(|grad| Tensor::from_vec(grad, like.shape(), like.device()))
                .transpose()
        };
        let wants = self.wants;
        let grad_parameters = (wants.weights || wants.mixing).then(|| cast::<T>(&grads.parameters));
        Ok((
            tensor(grad0, s0)?,
            tensor(grad1, s1)?,
            tensor(grad_parameters, parameters)?,
        ))
    }
}
