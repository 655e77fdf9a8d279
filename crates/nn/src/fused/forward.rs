//! The forward pass of a fused cell, and what it leaves for the backward pass.

use kernels::planes::{
    Affine, Buffer, Grid, MaxPool, Moments, Source, Stencil, Term, Unit, average, combine, moments,
    normalise, normalise_in_place, pointwise_forward,
};
use kernels::{BatchStatistics, Element};
use rayon::prelude::*;

use super::plan::{EdgePlan, Norm, OperationKind, OperationPlan, Sizes};
use super::{CellOp, planes, planes_mut};
use crate::candidate::PoolKind;
use crate::layers::BATCH_NORM_EPS;

/// What the backward pass needs of the forward pass, besides arguments and result.
pub(super) struct Saved<T: Element> {
    pub(super) inputs: [SavedInput<T>; 2],
    pub(super) states: Vec<SavedState<T>>,
    /// For each edge, what its operations gave.
    pub(super) edges: Vec<Vec<Raw<T>>>,
    /// By the number of the batch normalisation.
    pub(super) statistics: Vec<Statistics>,
}

/// What an operation gave, before its batch normalisation.
pub(super) struct Raw<T: Element> {
    /// Of a convolution the last unit, of a halving; empty where it is nobody's own.
    pub(super) output: Buffer<T>,
    /// Of a convolution of two units the first, if it [is kept](Plan::keeps_hidden); empty otherwise.
    pub(super) hidden: Buffer<T>,
}

impl<T: Element> Raw<T> {
    fn new(output: Buffer<T>) -> Self {
        Self {
            output,
            hidden: Buffer::default(),
        }
    }
}

/// What a batch normalisation saw.
#[derive(Clone, Default)]
pub(super) struct Statistics {
    pub(super) moments: Vec<Moments>,
    /// Values of a channel.
    pub(super) count: usize,
}

impl Statistics {
    pub(super) fn of_batch(&self) -> BatchStatistics {
        BatchStatistics {
            mean: self.moments.iter().map(|m| m.mean).collect(),
            var: self.moments.iter().map(|m| m.var).collect(),
            count: self.count,
        }
    }
}

/// A preprocessed input.
pub(super) struct SavedInput<T: Element> {
    /// Before its batch normalisation, if that has factors: without them `x` tells as much.
    raw: Option<Buffer<T>>,
    /// Behind it, unless edges read what [is stored before it](Plan::is_raw).
    x: Option<Buffer<T>>,
}

impl<T: Element> SavedInput<T> {
    /// What tells of each channel as it was before its batch normalisation.
    pub(super) fn seen(&self) -> &[T] {
        let seen = self.raw.as_ref().or(self.x.as_ref());
        seen.expect("one of them is stored")
    }

    /// The same, without the rest.
    pub(super) fn into_seen(self) -> Buffer<T> {
        self.raw.or(self.x).expect("one of them is stored")
    }

    /// What edges read.
    pub(super) fn read(&self) -> &[T] {
        self.x.as_deref().unwrap_or_else(|| self.seen())
    }
}

/// What edges read of a state, other than itself.
pub(super) struct SavedState<T: Element> {
    pub(super) pooled: [Option<Buffer<T>>; 2],
    pub(super) bypass: Option<Buffer<T>>,
}

/// What a batch normalisation does to each channel.
pub(super) fn affine<T: Element>(
    norm: &Norm,
    parameters: &[T],
    moments: &[Moments],
) -> Vec<Affine<f64>> {
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

/// The same in another precision.
pub(super) fn cast_affine<T: Element>(affine: &[Affine<f64>]) -> Vec<Affine<T>> {
    affine.iter().map(Affine::cast).collect()
}

/// By what each channel of a batch normalisation is multiplied.
pub(super) fn norm_weights<T: Element>(
    norm: &Norm,
    parameters: &[T],
    n_channels: usize,
) -> Vec<f64> {
    match &norm.affine {
        None => vec![1.0; n_channels],
        Some([weight, _]) => parameters[weight.clone()]
            .iter()
            .map(|weight| weight.to_f64())
            .collect(),
    }
}

/// Two kernels on what a ReLU makes of the even and of the odd pixels of planes of this size, one half of the output each.
fn halve<T: Element>(
    x: Source<'_, T>,
    grid: Grid,
    kernels: [&[T]; 2],
) -> (Buffer<T>, Vec<Moments>) {
    let (n_in, len) = (x.n_planes(), grid.halved().len());
    let n_out = kernels.map(|kernel| kernel.len() / n_in.max(1));
    let mut y = Buffer::any((n_out[0] + n_out[1]) * len);
    let (even, odd) = y.split_at_mut(n_out[0] * len);
    let mut found = Vec::new();
    for (offset, (kernel, y)) in kernels.into_iter().zip([even, odd]).enumerate() {
        let x = x.halved(grid, offset);
        found.extend(pointwise_forward(x, kernel, planes_mut(y, len)));
    }
    (y, found)
}

/// What the kernel of an input made of it, before its batch normalisation.
pub(super) struct Preprocessed<T: Element> {
    raw: Buffer<T>,
    moments: Vec<Moments>,
}

/// What each of some kernels makes of an output that is as large as they want it, all in one pass.
pub(super) fn preprocess<T: Element>(
    s: Source<'_, T>,
    grid: Grid,
    kernels: &[&[T]],
) -> Vec<Preprocessed<T>> {
    let n_out = |kernel: &[T]| kernel.len() / s.n_planes().max(1);
    let mut raw: Vec<Buffer<T>> = kernels
        .iter()
        .map(|kernel| Buffer::any(n_out(kernel) * grid.len()))
        .collect();
    let y = raw.iter_mut().flat_map(|raw| planes_mut(raw, grid.len()));
    let moments = pointwise_forward(s, &kernels.concat(), y.collect());
    let mut moments = moments.into_iter();
    let made = kernels.iter().zip(raw).map(|(kernel, raw)| Preprocessed {
        raw,
        moments: moments.by_ref().take(n_out(kernel)).collect(),
    });
    made.collect()
}

impl CellOp<'_> {
    /// A preprocessed input. `made`: what its kernel made of it, unless that is still to come: an input that is halved is
    /// looked at here.
    fn input<T: Element>(
        &self,
        index: usize,
        s: &[T],
        made: Option<Preprocessed<T>>,
        sizes: &Sizes,
        parameters: &[T],
        statistics: &mut [Statistics],
    ) -> SavedInput<T> {
        let plan = &self.plan.inputs[index];
        let (raw_grid, grid) = (sizes.raw[index], sizes.input);
        let Preprocessed { raw, moments } = match (made, &plan.kernels[..]) {
            (Some(made), _) => made,
            (None, [even, odd]) => {
                let kernels = [&parameters[even.clone()], &parameters[odd.clone()]];
                let s = planes(s, raw_grid.len());
                let (raw, moments) = halve(Source::new(&s), raw_grid, kernels);
                Preprocessed { raw, moments }
            }
            (None, _) => unreachable!("what is not halved is preprocessed by the chain"),
        };
        let moments = self.settle(&plan.norm, moments);
        let affine = || cast_affine::<T>(&affine(&plan.norm, parameters, &moments));
        let (raw, x) = if plan.norm.affine.is_none() {
            let mut x = raw;
            normalise_in_place(planes_mut(&mut x, grid.len()), &affine());
            (None, Some(x))
        } else if self.plan.is_raw(index) {
            (Some(raw), None)
        } else {
            let mut x = Buffer::any(raw.len());
            let y = planes_mut(&mut x, grid.len());
            normalise(y, &planes(&raw, grid.len()), &affine());
            (Some(raw), Some(x))
        };
        statistics[plan.norm.index] = Statistics {
            moments,
            count: grid.len(),
        };
        SavedInput { raw, x }
    }

    /// The moments that a batch normalisation goes by: those that were found, or the running ones.
    fn settle(&self, norm: &Norm, found: Vec<Moments>) -> Vec<Moments> {
        match self.running {
            Some(running) => running[norm.index].moments.clone(),
            None => found,
        }
    }

    /// The batch normalisation that is still to come where a state is read, if one is.
    pub(super) fn affine_of_state<T: Element>(
        &self,
        state: usize,
        parameters: &[T],
        statistics: &[Statistics],
    ) -> Option<Vec<Affine<f64>>> {
        (state < 2 && self.plan.is_raw(state)).then(|| {
            let norm = &self.plan.inputs[state].norm;
            affine(norm, parameters, &statistics[norm.index].moments)
        })
    }

    /// The same, in the element type of what it is done to.
    pub(super) fn before<T: Element>(
        &self,
        state: usize,
        parameters: &[T],
        statistics: &[Statistics],
    ) -> Option<Vec<Affine<T>>> {
        let affine = self.affine_of_state(state, parameters, statistics)?;
        Some(cast_affine(&affine))
    }

    /// What is done to what an operation puts into a sum: its batch normalisation, or else the one that is still to come
    /// where it reads its state.
    pub(super) fn affine_of<T: Element>(
        &self,
        state: usize,
        norm: Option<&Norm>,
        parameters: &[T],
        statistics: &[Statistics],
    ) -> Vec<Affine<f64>> {
        match norm {
            Some(norm) => affine(norm, parameters, &statistics[norm.index].moments),
            None => self
                .affine_of_state(state, parameters, statistics)
                .unwrap_or_else(|| vec![Affine::identity(); self.plan.n_partial()]),
        }
    }

    /// What the edges that leave a state share.
    fn state<T: Element>(
        &self,
        state: usize,
        x: &[&[T]],
        sizes: &Sizes,
        statistics: &mut [Statistics],
    ) -> SavedState<T> {
        let plan = self.plan;
        let grid = if state < 2 { sizes.input } else { sizes.node };
        let out_len = sizes.node.len();
        let (partial, bypass) = x.split_at(plan.n_partial());
        let stride = plan.stride(state);
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
        // All edges normalise the same pooling, which is looked at once.
        let mut seen: [Option<Statistics>; 2] = [None, None];
        let edges = plan.edges.iter().filter(|edge| edge.source == state);
        for operation in edges.flat_map(|edge| &edge.operations) {
            if let OperationKind::Pool {
                kind,
                norm: Some(norm),
            } = &operation.kind
            {
                let index = *kind as usize;
                let pooled = pooled[index].as_deref().expect("it is read");
                statistics[norm.index] = match self.running {
                    Some(running) => running[norm.index].clone(),
                    None => {
                        let own = seen[index].get_or_insert_with(|| Statistics {
                            moments: moments(&planes(pooled, out_len)),
                            count: out_len,
                        });
                        own.clone()
                    }
                };
            }
        }
        let bypass = (stride == 2 && !bypass.is_empty()).then(|| {
            let mut y = Buffer::any(bypass.len() * out_len);
            MaxPool::halving(grid).forward(bypass, planes_mut(&mut y, out_len));
            y
        });
        SavedState { pooled, bypass }
    }

    /// What an operation gives, and what its batch normalisations saw. `before`: what is still to be done to what it reads.
    fn operation<T: Element>(
        &self,
        operation: &OperationPlan,
        x: &[&[T]],
        mut before: Option<Vec<Affine<T>>>,
        grid: Grid,
        parameters: &[T],
    ) -> (Raw<T>, Vec<(usize, Statistics)>) {
        match &operation.kind {
            OperationKind::Pool { .. } | OperationKind::Identity => {
                (Raw::new(Buffer::default()), Vec::new())
            }
            OperationKind::Halve { kernels, norm } => {
                let kernels = kernels.each_ref().map(|kernel| &parameters[kernel.clone()]);
                let count = grid.halved().len();
                let x = source(&x[..self.plan.n_partial()], before.as_deref());
                let (y, moments) = halve(x, grid, kernels);
                let moments = self.settle(norm, moments);
                let seen = vec![(norm.index, Statistics { moments, count })];
                (Raw::new(y), seen)
            }
            OperationKind::Conv(units) => {
                let (mut grid, mut raw) = (grid, Raw::new(Buffer::default()));
                let mut found: Vec<(usize, Statistics)> = Vec::with_capacity(units.len());
                for (index, plan) in units.iter().enumerate() {
                    let unit = Unit::new(self.plan.stencil(plan.geometry, plan.kernel, grid));
                    let hidden = planes(&raw.output, grid.len());
                    let read = match index {
                        0 => &x[..self.plan.n_partial()],
                        _ => &hidden,
                    };
                    let source = source(read, before.as_deref());
                    let count = unit.stencil().output().len();
                    let mut y = Buffer::any(self.plan.n_partial() * count);
                    let moments = unit.forward(
                        source,
                        &parameters[plan.depthwise.clone()],
                        &parameters[plan.pointwise.clone()],
                        planes_mut(&mut y, count),
                    );
                    let moments = self.settle(&plan.norm, moments);
                    let affine = affine(&plan.norm, parameters, &moments);
                    before = Some(cast_affine(&affine));
                    found.push((plan.norm.index, Statistics { moments, count }));
                    let hidden = std::mem::replace(&mut raw.output, y);
                    if self.plan.keeps_hidden() {
                        raw.hidden = hidden;
                    }
                    grid = unit.stencil().output();
                }
                (raw, found)
            }
        }
    }

    /// The nodes of a cell from the outputs of the two before it, and from what was made of them.
    pub(super) fn forward<T: Element>(
        &self,
        s: [&[T]; 2],
        made: [Option<Preprocessed<T>>; 2],
        sizes: &Sizes,
        parameters: &[T],
        mixing: &[T],
    ) -> (Buffer<T>, Saved<T>) {
        let plan = self.plan;
        let mut statistics = vec![Statistics::default(); plan.n_norms];
        let [made0, made1] = made;
        let inputs = [(0, made0), (1, made1)].map(|(index, made)| {
            self.input(index, s[index], made, sizes, parameters, &mut statistics)
        });
        let node_len = sizes.node.len();
        let mut out = Buffer::any(plan.n_nodes * plan.channels * node_len);
        let mut states: Vec<SavedState<T>> = Vec::with_capacity(plan.n_states());
        for (index, input) in inputs.iter().enumerate() {
            let x = planes(input.read(), sizes.input.len());
            states.push(self.state(index, &x, sizes, &mut statistics));
        }
        let mut edges: Vec<Vec<Raw<T>>> = Vec::with_capacity(plan.edges.len());
        let masks = self.cast_masks::<T>();
        for node in 2..plan.n_states() {
            let into_node = plan.edges.iter().filter(|edge| edge.node == node);
            let operations: Vec<(&EdgePlan, &OperationPlan)> = into_node
                .clone()
                .flat_map(|edge| {
                    edge.operations
                        .iter()
                        .map(move |operation| (edge, operation))
                })
                .collect();
            let (before, rest) = out.split_at_mut((node - 2) * plan.channels * node_len);
            let own = &mut rest[..plan.channels * node_len];
            let x_of = |state: usize| -> Vec<&[T]> {
                match state {
                    0 | 1 => planes(inputs[state].read(), sizes.input.len()),
                    _ => planes(
                        &before[(state - 2) * plan.channels * node_len..]
                            [..plan.channels * node_len],
                        node_len,
                    ),
                }
            };
            let x_of = &x_of;
            let outputs: Vec<_> = operations
                .into_par_iter()
                .map(|(edge, operation)| {
                    let grid = match edge.source {
                        0 | 1 => sizes.input,
                        _ => sizes.node,
                    };
                    let x = x_of(edge.source);
                    let before = self.before(edge.source, parameters, &statistics);
                    self.operation(operation, &x, before, grid, parameters)
                })
                .collect();
            let mut outputs = outputs.into_iter();
            for edge in into_node {
                let of_edge = outputs.by_ref().take(edge.operations.len());
                let keep = |(output, found): (_, Vec<(usize, Statistics)>)| {
                    for (index, found) in found {
                        statistics[index] = found;
                    }
                    output
                };
                edges.push(of_edge.map(keep).collect());
            }
            // What each plane of the node is the weighted sum of.
            let into_node = || {
                let edges = plan.edges.iter().zip(&edges).enumerate();
                edges.filter(|(_, (edge, _))| edge.node == node)
            };
            let mut terms: Vec<Vec<Term<'_, T>>> = vec![Vec::new(); plan.channels];
            for (index, (edge, outputs)) in into_node() {
                let state = &states[edge.source];
                let x = x_of(edge.source);
                for (number, (operation, output)) in edge.operations.iter().zip(outputs).enumerate()
                {
                    let weight = plan.weight(mixing, edge, operation.column);
                    let (source, norm) = source_of(operation, output, state, &x, node_len);
                    let affine = self.affine_of(edge.source, norm, parameters, &statistics);
                    for (channel, (plane, affine)) in source.into_iter().zip(affine).enumerate() {
                        terms[plan.operation_plane(channel)].push(Term {
                            affine: Affine {
                                factor: weight * affine.factor,
                                bias: weight * affine.bias,
                                ..affine
                            }
                            .cast(),
                            plane,
                            image_factors: masks.of(index, number),
                        });
                    }
                }
                if plan.ratio > 1 {
                    let weight = mixing[plan.edge_weights() + edge.row];
                    let bypass = match &state.bypass {
                        Some(pooled) => planes(pooled, node_len),
                        None => x[plan.n_partial()..].to_vec(),
                    };
                    for (channel, plane) in bypass.into_iter().enumerate() {
                        terms[plan.bypass_plane(channel)].push(Term::new(weight, plane));
                    }
                }
            }
            combine(planes_mut(own, node_len), &terms);
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
        (out, saved)
    }
}

/// Planes that a unit reads, with what is still to be done to them.
pub(super) fn source<'a, T>(
    planes: &'a [&'a [T]],
    affine: Option<&'a [Affine<T>]>,
) -> Source<'a, T> {
    match affine {
        None => Source::new(planes),
        Some(affine) => Source::raw(planes, affine),
    }
}

/// What an operation puts into the sum, `n_partial` planes, and the batch normalisation that is still to come.
pub(super) fn source_of<'a, T: Element>(
    operation: &'a OperationPlan,
    raw: &'a Raw<T>,
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
        OperationKind::Halve { norm, .. } => (planes(&raw.output, len), Some(norm)),
        OperationKind::Conv(units) => {
            let norm = units.last().map(|unit| &unit.norm);
            (planes(&raw.output, len), norm)
        }
    }
}
