//! The backward pass of a fused cell: state by state, from the last to the first.

use std::ops::{Deref, Range};

use kernels::Element;
use kernels::planes::{
    Affine, Buffer, Grid, MaxPool, Moments, NormGrad, PointwiseGrads, Source, Stencil, Target,
    Term, Unit, UnitWants, accumulate, average_backward, combine, dots, dropped_dots,
    halved_backward, pointwise_backward,
};

use super::forward::{
    Raw, Saved, SavedInput, SavedState, affine, cast_affine, norm_weights, source, source_of,
};
use super::plan::{Norm, OperationKind, Plan, UnitPlan};
use super::{CastMasks, CellRun, planes, planes_mut};
use crate::candidate::PoolKind;
use crate::layers::BATCH_NORM_EPS;

/// The gradient of a state.
enum StateGrad<'a, T: Element> {
    /// As the caller gave it.
    Given(&'a [T]),
    /// With all that was added.
    Own(Buffer<T>),
}

impl<T: Element> Deref for StateGrad<'_, T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        match self {
            Self::Given(grad) => grad,
            Self::Own(grad) => grad,
        }
    }
}

/// The gradients of a run of a cell.
pub(super) struct CellGrads<T: Element> {
    pub(super) inputs: [Option<InputGrad<T>>; 2],
    pub(super) parameters: Vec<f64>,
    pub(super) mixing: Vec<f64>,
}

/// The gradient of an input.
pub(super) enum InputGrad<T: Element> {
    /// Of the input as it came, of which every second pixel was read.
    Halved(Halves<T>),
    /// Of what its kernel made of it: what that gives is summed over all kernels that read the same.
    Preprocessed(NormedGrad<T>),
}

/// The gradients of the even and of the odd pixels of planes, all others are zero.
pub(super) struct Halves<T: Element>([Buffer<T>; 2]);

impl<T: Element> Halves<T> {
    /// Of so many planes; what they are is still to be written.
    fn any(n_planes: usize, grid: Grid) -> Self {
        Self([(); 2].map(|()| Buffer::any(n_planes * grid.halved().len())))
    }

    /// Adds them to the gradient of all pixels, or takes its place.
    pub(super) fn add_to(&self, grid: Grid, grad: &mut [T], adds: bool) {
        let halves = self.0.each_ref();
        let [even, odd] = halves.map(|half| planes(half, grid.halved().len()));
        halved_backward(grid, [&even, &odd], planes_mut(grad, grid.len()), adds);
    }
}

/// The gradient of what a batch normalisation gives, with what that of what it reads follows from.
pub(super) struct NormedGrad<T: Element> {
    grad: Buffer<T>,
    moments: Vec<Moments>,
    /// Of each channel of the gradient, and its scalar product with [what tells of the channel](Self::of).
    sums: Vec<[f64; 2]>,
    /// The factors of the normalisation; without them it was done in place.
    factors: Option<Vec<f64>>,
}

impl<T: Element> NormedGrad<T> {
    /// The gradient of what the normalisation read; `seen` is that, or what it became in place.
    pub(super) fn of<'a>(&'a self, seen: &'a [T], len: usize) -> NormGrad<'a, T> {
        let (grads, seen) = (planes(&self.grad, len), planes(seen, len));
        let (moments, sums) = (&self.moments, &self.sums);
        match &self.factors {
            Some(factors) => NormGrad::new(grads, seen, moments, BATCH_NORM_EPS, sums, factors),
            None => NormGrad::of_normalised(grads, seen, moments, BATCH_NORM_EPS, sums),
        }
    }
}

/// Gradients of parameters, each with the place of its first number.
#[derive(Default)]
struct Found(Vec<(usize, Vec<f64>)>);

impl Found {
    fn push(&mut self, start: usize, grads: Vec<f64>) {
        self.0.push((start, grads));
    }

    fn and(mut self, more: Self) -> Self {
        self.0.extend(more.0);
        self
    }
}

/// The backward pass of a cell.
pub(super) struct Backward<'a, T: Element> {
    run: CellRun<'a, T>,
    masks: CastMasks<T>,
    /// What the caller knows of the nodes' gradient, which is the sum of these.
    given: Vec<&'a [T]>,
    /// Of each state, complete once the pass is by it.
    grads: Vec<StateGrad<'a, T>>,
    /// For each operation of each edge, per channel: the sum of its node's gradient, and the product of that
    /// gradient with what the operation put into the sum.
    sums: Vec<Vec<Vec<[f64; 2]>>>,
    grad_parameters: Vec<f64>,
    grad_mixing: Vec<f64>,
}

impl<'a, T: Element> Backward<'a, T> {
    pub(super) fn new(run: CellRun<'a, T>, given: Vec<&'a [T]>) -> Self {
        let plan = run.op.plan;
        Self {
            given,
            masks: run.op.cast_masks(),
            grads: (0..plan.n_states())
                .map(|_| StateGrad::Given(&[]))
                .collect(),
            sums: plan.edges.iter().map(|_| Vec::new()).collect(),
            grad_parameters: vec![0.0; run.parameters.len()],
            grad_mixing: vec![0.0; run.mixing.len()],
            run,
        }
    }

    fn plan(&self) -> &'a Plan {
        self.run.op.plan
    }

    /// The batch normalisation that is still to come where a state is read, if one is.
    fn before(&self, state: usize) -> Option<Vec<Affine<T>>> {
        let statistics = &self.run.saved.statistics;
        self.run.op.before(state, self.run.parameters, statistics)
    }

    fn grid(&self, state: usize) -> Grid {
        if state < 2 {
            self.run.sizes.input
        } else {
            self.run.sizes.node
        }
    }

    fn x(&self, state: usize) -> Vec<&'a [T]> {
        let saved: &'a Saved<T> = self.run.saved;
        match state {
            0 | 1 => planes(saved.inputs[state].read(), self.run.sizes.input.len()),
            _ => {
                let len = self.plan().channels * self.run.sizes.node.len();
                let nodes: &'a [T] = self.run.nodes;
                planes(
                    &nodes[(state - 2) * len..][..len],
                    self.run.sizes.node.len(),
                )
            }
        }
    }

    pub(super) fn run(mut self) -> CellGrads<T> {
        for state in (0..self.plan().n_states()).rev() {
            // An input from which no variable follows needs no gradient, unless it leads to weights.
            let wants = self.run.op.wants;
            if state >= 2 || wants.weights || wants.inputs[state] {
                self.grads[state] = self.gather_state(state);
            }
            if state >= 2 {
                self.weigh_node(state);
            }
        }
        let inputs = [0, 1].map(|index| self.input(index));
        CellGrads {
            inputs,
            parameters: self.grad_parameters,
            mixing: self.grad_mixing,
        }
    }

    /// A state's gradient: what is given, and what comes from the edges that leave it. The gradients of their
    /// nodes are complete by now.
    fn gather_state(&mut self, state: usize) -> StateGrad<'a, T> {
        let plan = self.plan();
        let edges: Vec<usize> = (0..plan.edges.len())
            .filter(|&index| plan.edges[index].source == state)
            .collect();
        let (grid, node_len) = (self.grid(state), self.run.sizes.node.len());
        let state_len = plan.channels * grid.len();
        let given: Vec<&'a [T]> = match state.checked_sub(2) {
            Some(node) => self
                .given
                .iter()
                .map(|all| &all[node * state_len..][..state_len])
                .collect(),
            None => Vec::new(),
        };
        if let ([], [given]) = (&edges[..], &given[..]) {
            return StateGrad::Given(given);
        }

        // Everything that is a weighted sum of the nodes' gradients.
        let mut direct: Vec<Vec<Term<'_, T>>> = vec![Vec::new(); plan.channels];
        for given in given {
            for (terms, plane) in direct.iter_mut().zip(planes(given, grid.len())) {
                terms.push(Term::new(T::one(), plane));
            }
        }
        let mut grad_x = Buffer::any(state_len);
        if edges.is_empty() {
            combine(planes_mut(&mut grad_x, grid.len()), &direct);
            return StateGrad::Own(grad_x);
        }
        let (n_partial, x) = (plan.n_partial(), self.x(state));
        let saved: &'a SavedState<T> = &self.run.saved.states[state];
        let mut pooled: [Vec<Vec<Term<'_, T>>>; 2] =
            std::array::from_fn(|_| vec![Vec::new(); n_partial]);
        let mut pooled_sums: [Vec<[f64; 2]>; 2] =
            std::array::from_fn(|_| vec![[0.0; 2]; n_partial]);
        let mut bypass: Vec<Vec<Term<'_, T>>> = vec![Vec::new(); plan.channels - n_partial];
        for &index in &edges {
            let edge = &plan.edges[index];
            let grads = planes(&self.grads[edge.node], node_len);
            for (number, operation) in edge.operations.iter().enumerate() {
                let weight = plan.weight(self.run.mixing, edge, operation.column);
                let term = |channel| Term {
                    image_factors: self.masks.of(index, number),
                    ..Term::new(T::from_f64(weight), grads[plan.operation_plane(channel)])
                };
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
                let factor = self.run.mixing[plan.edge_weights() + edge.row];
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
        // Where nothing but units reads the state, they write what others would add to.
        let is_written = saved.pooled.iter().any(Option::is_some)
            || saved.bypass.is_some()
            || !plan.reads(state, OperationKind::rectifies)
            || direct.iter().any(|terms| !terms.is_empty());
        if is_written {
            combine(planes_mut(&mut grad_x, grid.len()), &direct);
        }
        for kind in [PoolKind::Max, PoolKind::Average] {
            let terms = &pooled[kind as usize];
            if let Some(raw) = &saved.pooled[kind as usize] {
                let own;
                let alone = terms.iter().map(|terms| match &terms[..] {
                    [term] => term.unchanged(),
                    _ => None,
                });
                let grads = match alone.collect::<Option<Vec<&[T]>>>() {
                    Some(planes) => planes,
                    None => {
                        let mut sum = Buffer::any(raw.len());
                        combine(planes_mut(&mut sum, node_len), terms);
                        own = sum;
                        planes(&own, node_len)
                    }
                };
                let sums = &pooled_sums[kind as usize];
                let unnormalised = self.unnormalise_pool(state, kind, raw, &grads, sums);
                let grads = match &unnormalised {
                    Some(grad) => planes(grad, node_len),
                    None => grads,
                };
                let partial = planes_mut(&mut grad_x[..n_partial * grid.len()], grid.len());
                self.unpool(kind, state, &x[..n_partial], raw, &grads, partial);
            }
        }
        if let Some(raw) = &saved.bypass {
            let mut grad = Buffer::any(raw.len());
            let sum = planes_mut(&mut grad, node_len);
            combine(sum, &bypass);
            MaxPool::halving(grid).add_backward(
                &x[n_partial..],
                &planes(raw, node_len),
                &planes(&grad, node_len),
                planes_mut(&mut grad_x[n_partial * grid.len()..], grid.len()),
            );
        }
        self.gather_units(state, &edges, &mut grad_x, is_written);
        StateGrad::Own(grad_x)
    }

    /// The gradient of a pooling from that of its normalisation, which all edges share, if it has one.
    fn unnormalise_pool(
        &self,
        state: usize,
        kind: PoolKind,
        raw: &[T],
        grads: &[&[T]],
        sums: &[[f64; 2]],
    ) -> Option<Buffer<T>> {
        let norm = self
            .plan()
            .edges
            .iter()
            .filter(|edge| edge.source == state)
            .flat_map(|edge| &edge.operations)
            .find_map(|operation| match &operation.kind {
                OperationKind::Pool { kind: other, norm } if *other == kind => norm.as_ref(),
                _ => None,
            })?;
        let len = self.run.sizes.node.len();
        let moments = &self.run.saved.statistics[norm.index].moments;
        let ones = vec![1.0; moments.len()];
        let chain = NormGrad::new(
            grads.to_vec(),
            planes(raw, len),
            moments,
            BATCH_NORM_EPS,
            sums,
            &ones,
        );
        let mut grad_raw = Buffer::any(raw.len());
        chain.write_to(planes_mut(&mut grad_raw, len));
        Some(grad_raw)
    }

    fn unpool(
        &self,
        kind: PoolKind,
        state: usize,
        x: &[&[T]],
        y: &[T],
        grad_y: &[&[T]],
        grad_x: Vec<&mut [T]>,
    ) {
        let (grid, len) = (self.grid(state), self.run.sizes.node.len());
        let window = self.plan().pool_window(self.plan().stride(state), grid);
        match kind {
            PoolKind::Max => {
                let y = planes(y, len);
                MaxPool::new(window, grid.n).add_backward(x, &y, grad_y, grad_x);
            }
            PoolKind::Average => {
                average_backward(&Stencil::new(window, grid.n), grad_y, grad_x);
            }
        }
    }

    /// What comes from convolutions and halvings, through the ReLU that they share: added to what is there, if anything is.
    fn gather_units(&mut self, state: usize, edges: &[usize], grad_x: &mut [T], is_written: bool) {
        let plan = self.plan();
        let grid = self.grid(state);
        let x = self.x(state);
        let (mut convolutions, mut halvings) = (Vec::new(), Vec::new());
        for &index in edges {
            for (number, operation) in plan.edges[index].operations.iter().enumerate() {
                match &operation.kind {
                    OperationKind::Conv(units) => convolutions.push((index, number, units)),
                    OperationKind::Halve { kernels, norm } => {
                        halvings.push((index, number, kernels, norm));
                    }
                    OperationKind::Pool { .. } | OperationKind::Identity => {}
                }
            }
        }
        // Every second convolution.
        let lane = |first: usize, grad: &mut [T], mut adds: bool| {
            let mut found = Found::default();
            for &(index, number, units) in convolutions.iter().skip(first).step_by(2) {
                let target = Target {
                    planes: planes_mut(grad, grid.len()),
                    adds,
                };
                let place = [index, number];
                let x = &x[..plan.n_partial()];
                self.conv(units, place, x, target, &mut found);
                adds = true;
            }
            found
        };
        if convolutions.is_empty() && halvings.is_empty() {
            return;
        }
        let partial = &mut grad_x[..plan.n_partial() * grid.len()];
        // The second half has a gradient of its own; but on one thread a single one is added at once, which comes to the same.
        let is_alone = rayon::current_num_threads() == 1 && convolutions.len() < 4;
        let is_apart = convolutions.len() > 1 && !is_alone;
        let mut second = Buffer::any(if is_apart { partial.len() } else { 0 });
        let (found, more) = if is_apart {
            rayon::join(
                || lane(0, partial, is_written),
                || lane(1, &mut second, false),
            )
        } else {
            (lane(0, partial, is_written), lane(1, partial, true))
        };
        let mut found = found.and(more);
        if !second.is_empty() {
            accumulate(
                planes_mut(partial, grid.len()),
                &planes(&second, grid.len()),
            );
        }
        if !halvings.is_empty() {
            let before = self.before(state);
            let x = source(&x[..plan.n_partial()], before.as_deref());
            let mut grads = Halves::any(x.n_planes(), grid);
            let mut adds = false;
            for (index, number, kernels, norm) in halvings {
                let chain = self.chain_of([index, number], norm);
                let target = Some((&mut grads, adds));
                self.unhalve(x, grid, kernels, &chain, target, &mut found);
                adds = true;
            }
            grads.add_to(grid, partial, is_written || !convolutions.is_empty());
        }
        self.add(found);
    }

    /// The gradient of what an operation of an edge gave before its batch normalisation.
    fn chain_of(&self, [edge, number]: [usize; 2], norm: &Norm) -> NormGrad<'_, T> {
        let plan = self.plan();
        let own = &plan.edges[edge];
        let weight = plan.weight(self.run.mixing, own, own.operations[number].column);
        let node = planes(&self.grads[own.node], self.run.sizes.node.len());
        let grads = (0..plan.n_partial()).map(|channel| node[plan.operation_plane(channel)]);
        let raw = &self.run.saved.edges[edge][number].output;
        self.chain(norm, grads.collect(), raw, &self.sums[edge][number], weight)
            .dropped(self.masks.of(edge, number))
    }

    /// The gradient of a unit's raw output.
    fn chain<'b>(
        &self,
        norm: &Norm,
        grads: Vec<&'b [T]>,
        raw: &'b [T],
        sums: &[[f64; 2]],
        weight: f64,
    ) -> NormGrad<'b, T> {
        let moments = &self.run.saved.statistics[norm.index].moments;
        let weights: Vec<f64> = norm_weights(norm, self.run.parameters, moments.len())
            .into_iter()
            .map(|own| weight * own)
            .collect();
        let len = grads.first().map_or(0, |grad| grad.len());
        let raw = planes(raw, len);
        NormGrad::new(grads, raw, moments, BATCH_NORM_EPS, sums, &weights)
    }

    /// Backward through the units of a convolution.
    fn conv(
        &self,
        units: &[UnitPlan],
        [edge, number]: [usize; 2],
        x: &[&[T]],
        grad_x: Target<'_, T>,
        found: &mut Found,
    ) {
        let plan = self.plan();
        let state = plan.edges[edge].source;
        let x_grid = self.grid(state);
        let before = self.before(state);
        let x = source(x, before.as_deref());
        let saved: &'a Raw<T> = &self.run.saved.edges[edge][number];
        let (first, second) = match units {
            [only] => {
                let chain = self.chain_of([edge, number], &only.norm);
                self.unit(only, x_grid, x, &chain, grad_x, false, found);
                return;
            }
            [first, second] => (first, second),
            _ => unreachable!("a convolution has one unit or two"),
        };
        let chain = self.chain_of([edge, number], &second.norm);
        let grid = self.run.sizes.node;
        let moments = &self.run.saved.statistics[first.norm.index].moments;
        let affine = cast_affine(&affine(&first.norm, self.run.parameters, moments));
        // What the second unit read.
        let again = (!plan.keeps_hidden()).then(|| {
            let mut raw = Buffer::any(plan.n_partial() * grid.len());
            Unit::new(plan.stencil(first.geometry, first.kernel, x_grid)).forward(
                x,
                &self.run.parameters[first.depthwise.clone()],
                &self.run.parameters[first.pointwise.clone()],
                planes_mut(&mut raw, grid.len()),
            );
            raw
        });
        let raw = again.as_ref().unwrap_or(&saved.hidden);
        let mut grad_hidden = Buffer::any(raw.len());
        let hidden = planes(raw, grid.len());
        let target = Target::new(planes_mut(&mut grad_hidden, grid.len()));
        let hidden = Source::raw(&hidden, &affine);
        let sums = self.unit(second, grid, hidden, &chain, target, true, found);
        self.affine_grads(&first.norm, &sums, 1.0, found);
        let grad_hidden = planes(&grad_hidden, grid.len());
        let chain = self.chain(&first.norm, grad_hidden, raw, &sums, 1.0);
        self.unit(first, x_grid, x, &chain, grad_x, false, found);
    }

    /// Backward through a unit; the [sums](kernels::planes::UnitGrads::sums) are returned if they are wanted.
    #[expect(
        clippy::too_many_arguments,
        reason = "what a unit reads and writes, and where it is found"
    )]
    fn unit(
        &self,
        plan: &UnitPlan,
        grid: Grid,
        z: Source<'_, T>,
        grad_y: &NormGrad<'_, T>,
        grad_z: Target<'_, T>,
        sums: bool,
        found: &mut Found,
    ) -> Vec<[f64; 2]> {
        let unit = Unit::new(self.plan().stencil(plan.geometry, plan.kernel, grid));
        let grads = unit.backward(
            z,
            &self.run.parameters[plan.depthwise.clone()],
            &self.run.parameters[plan.pointwise.clone()],
            grad_y,
            grad_z,
            UnitWants {
                weights: self.run.op.wants.weights,
                sums,
            },
        );
        if let Some(weights) = grads.weights {
            found.push(plan.depthwise.start, weights.depthwise);
            found.push(plan.pointwise.start, weights.pointwise);
        }
        grads.sums
    }

    /// Backward through two kernels on the even and the odd pixels of planes of this size, and the ReLU in front. The gradients
    /// of the pixels are added to what is there, or take its place.
    fn unhalve(
        &self,
        x: Source<'_, T>,
        grid: Grid,
        kernels: &[Range<usize>; 2],
        grad_y: &NormGrad<'_, T>,
        mut grad_x: Option<(&mut Halves<T>, bool)>,
        found: &mut Found,
    ) {
        let len = grid.halved().len();
        let mut first = 0;
        for (offset, kernel) in kernels.iter().enumerate() {
            let n_out = kernel.len() / x.n_planes().max(1);
            let target = grad_x.as_mut().map(|(grads, adds)| Target {
                planes: planes_mut(&mut grads.0[offset], len),
                adds: *adds,
            });
            let grads = PointwiseGrads {
                x: target,
                w: self.run.op.wants.weights,
            };
            let grad_w = pointwise_backward(
                x.halved(grid, offset),
                &self.run.parameters[kernel.clone()],
                &grad_y.channels(first..first + n_out),
                grads,
            );
            if let Some(grad_w) = grad_w {
                found.push(kernel.start, grad_w);
            }
            first += n_out;
        }
    }

    fn add(&mut self, found: Found) {
        for (start, grads) in found.0 {
            let sums = self.grad_parameters[start..].iter_mut();
            sums.zip(grads).for_each(|(sum, grad)| *sum += grad);
        }
    }

    /// The gradients of factor and shift of a batch normalisation whose output has these sums.
    fn affine_grads(&self, norm: &Norm, sums: &[[f64; 2]], weight: f64, found: &mut Found) {
        let Some([factor, shift]) = &norm.affine else {
            return;
        };
        let moments = &self.run.saved.statistics[norm.index].moments;
        let normalised = |(moments, &[sum, product]): (&Moments, &[f64; 2])| {
            weight * (product - moments.mean * sum) * moments.inv_std(BATCH_NORM_EPS)
        };
        found.push(
            factor.start,
            moments.iter().zip(sums).map(normalised).collect(),
        );
        found.push(
            shift.start,
            sums.iter().map(|[sum, _]| weight * sum).collect(),
        );
    }

    /// Takes the sums of a node's gradient, which is complete, with all that the node sums: they are the
    /// gradients of weights and of affine parameters, and what batch normalisations need.
    fn weigh_node(&mut self, node: usize) {
        let plan = self.plan();
        let len = self.run.sizes.node.len();
        let n_partial = plan.n_partial();
        let grads = std::mem::replace(&mut self.grads[node], StateGrad::Given(&[]));
        let grad_planes = planes(&grads, len);
        let edges: Vec<usize> = (0..plan.edges.len())
            .filter(|&index| plan.edges[index].node == node)
            .collect();
        let own: Vec<&[T]> = (0..n_partial)
            .map(|channel| grad_planes[plan.operation_plane(channel)])
            .collect();
        let mut sources: Vec<Vec<&[T]>> = vec![Vec::new(); n_partial];
        // What is dropped is measured by itself, all others together.
        let (mut measured, mut dropped) = (Vec::new(), Vec::new());
        for &index in &edges {
            let edge = &plan.edges[index];
            let state = &self.run.saved.states[edge.source];
            let x = self.x(edge.source);
            self.sums[index] = vec![Vec::new(); edge.operations.len()];
            for (number, operation) in edge.operations.iter().enumerate() {
                let output = &self.run.saved.edges[index][number];
                let (planes, norm) = source_of(operation, output, state, &x, len);
                if norm.is_none() && !self.run.op.wants.mixing {
                    continue;
                }
                if let Some(factors) = self.masks.of(index, number) {
                    dropped.push((index, number, dropped_dots(&own, &planes, factors)));
                    continue;
                }
                for (sources, plane) in sources.iter_mut().zip(planes) {
                    sources.push(plane);
                }
                measured.push((index, number));
            }
        }
        let products = match measured.is_empty() {
            true => Vec::new(),
            false => dots(&own, &sources),
        };
        let measured = measured.into_iter().enumerate().map(|(at, place)| {
            let sums = products.iter().map(|(sum, of)| [*sum, of[at]]);
            (place.0, place.1, sums.collect::<Vec<[f64; 2]>>())
        });
        for (index, number, sums) in measured.chain(dropped) {
            let edge = &plan.edges[index];
            let operation = &edge.operations[number];
            let weight = plan.weight(self.run.mixing, edge, operation.column);
            let norm = match &operation.kind {
                OperationKind::Identity => None,
                OperationKind::Pool { norm, .. } => norm.as_ref(),
                OperationKind::Halve { norm, .. } => Some(norm),
                OperationKind::Conv(units) => units.last().map(|unit| &unit.norm),
            };
            if let Some(norm) = norm {
                let mut found = Found::default();
                self.affine_grads(norm, &sums, weight, &mut found);
                self.add(found);
            }
            if self.run.op.wants.mixing && plan.n_primitives > 0 {
                let statistics = &self.run.saved.statistics;
                let affine =
                    self.run
                        .op
                        .affine_of(edge.source, norm, self.run.parameters, statistics);
                self.grad_mixing[edge.row * plan.n_primitives + operation.column] += sums
                    .iter()
                    .zip(affine)
                    .map(|([sum, product], affine)| {
                        affine.factor * (product - affine.mean * sum) + affine.bias * sum
                    })
                    .sum::<f64>();
            }
            self.sums[index][number] = sums;
        }
        if self.run.op.wants.mixing && plan.ratio > 1 {
            let own: Vec<&[T]> = (0..plan.channels - n_partial)
                .map(|channel| grad_planes[plan.bypass_plane(channel)])
                .collect();
            let mut sources: Vec<Vec<&[T]>> = vec![Vec::new(); own.len()];
            for &index in &edges {
                let source = plan.edges[index].source;
                let planes = match &self.run.saved.states[source].bypass {
                    Some(pooled) => planes(pooled, len),
                    None => self.x(source)[n_partial..].to_vec(),
                };
                for (sources, plane) in sources.iter_mut().zip(planes) {
                    sources.push(plane);
                }
            }
            for (_, products) in dots(&own, &sources) {
                for (&index, product) in edges.iter().zip(products) {
                    self.grad_mixing[plan.edge_weights() + plan.edges[index].row] += product;
                }
            }
        }
        self.grads[node] = grads;
    }

    /// Backward through the batch normalisation of an input, and through its kernels where it is halved; what comes of it
    /// is returned if any gradient of the input or of its kernels is wanted.
    fn input(&mut self, index: usize) -> Option<InputGrad<T>> {
        let wants = self.run.op.wants;
        if !wants.inputs[index] && !wants.weights {
            return None;
        }
        let plan = &self.plan().inputs[index];
        let saved: &'a SavedInput<T> = &self.run.saved.inputs[index];
        let len = self.run.sizes.input.len();
        let StateGrad::Own(grad) = std::mem::replace(&mut self.grads[index], StateGrad::Given(&[]))
        else {
            unreachable!("nobody gives the gradient of an input");
        };
        let mut found = Found::default();
        let sources: Vec<Vec<&[T]>> = planes(saved.seen(), len)
            .into_iter()
            .map(|plane| vec![plane])
            .collect();
        let sums: Vec<[f64; 2]> = dots(&planes(&grad, len), &sources)
            .into_iter()
            .map(|(sum, products)| [sum, products[0]])
            .collect();
        self.affine_grads(&plan.norm, &sums, 1.0, &mut found);
        let moments = self.run.saved.statistics[plan.norm.index].moments.clone();
        let has_factors = plan.norm.affine.is_some();
        let normed = NormedGrad {
            factors: has_factors
                .then(|| norm_weights(&plan.norm, self.run.parameters, moments.len())),
            grad,
            moments,
            sums,
        };
        let grad = match &plan.kernels[..] {
            [even, odd] => {
                let kernels = [even.clone(), odd.clone()];
                let grid = self.run.sizes.raw[index];
                let s = planes(self.run.s[index], grid.len());
                let mut grads = wants.inputs[index].then(|| Halves::any(s.len(), grid));
                let chain = normed.of(saved.seen(), len);
                let target = grads.as_mut().map(|grads| (grads, false));
                self.unhalve(Source::new(&s), grid, &kernels, &chain, target, &mut found);
                grads.map(InputGrad::Halved)
            }
            _ => Some(InputGrad::Preprocessed(normed)),
        };
        self.add(found);
        grad
    }
}
