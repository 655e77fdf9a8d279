//! The backward pass of a fused cell: state by state, from the last to the first.

use std::ops::Range;

use kernels::Element;
use kernels::planes::{
    Affine, Buffer, Grid, MaxPool, NormGrad, PointwiseGrads, Stencil, Term, Unit, accumulate,
    average_backward, combine, dots, mask, pointwise_backward, subsample_backward,
};

use super::forward::{
    Saved, SavedInput, SavedState, affine, norm_weights, normalise_and_activate, source_of,
};
use super::plan::{Norm, OperationKind, Plan, Sizes, UnitPlan};
use super::{CellOp, planes, planes_mut};
use crate::candidate::PoolKind;
use crate::layers::BATCH_NORM_EPS;

/// The gradients of a run.
pub(super) struct CellGrads<T: Element> {
    pub(super) inputs: [Option<Vec<T>>; 2],
    pub(super) parameters: Vec<f64>,
}

/// What the backward pass works on.
pub(super) struct Backward<'a, T: Element> {
    pub(super) op: &'a CellOp<T>,
    pub(super) sizes: &'a Sizes,
    pub(super) parameters: &'a [T],
    pub(super) saved: &'a Saved<T>,
    /// The nodes, as the forward pass left them.
    pub(super) nodes: &'a [T],
    /// Of each state.
    pub(super) grads: Vec<Buffer<T>>,
    /// For each operation of each edge, per channel: the sum of its node's gradient, and the product of that
    /// gradient with what the operation put into the sum.
    pub(super) sums: Vec<Vec<Vec<[f64; 2]>>>,
    pub(super) grad_parameters: Vec<f64>,
}

impl<'a, T: Element> Backward<'a, T> {
    pub(super) fn new(
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

    pub(super) fn plan(&self) -> &'a Plan {
        &self.op.plan
    }

    pub(super) fn grid(&self, state: usize) -> Grid {
        if state < 2 {
            self.sizes.input
        } else {
            self.sizes.node
        }
    }

    pub(super) fn x(&self, state: usize) -> Vec<&'a [T]> {
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

    pub(super) fn run(mut self, s: [&[T]; 2]) -> CellGrads<T> {
        for state in (0..self.plan().n_states()).rev() {
            // An input from which no variable follows needs no gradient, unless it leads to weights.
            let wants = self.op.wants;
            if state >= 2 || wants.weights || wants.inputs[state] {
                let mut grad = std::mem::take(&mut self.grads[state]);
                self.gather_state(state, &mut grad);
                self.grads[state] = grad;
            }
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
    pub(super) fn gather_state(&mut self, state: usize, grad_x: &mut [T]) {
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
    pub(super) fn unnormalise_pool(
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

    pub(super) fn unpool(
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
    pub(super) fn gather_units(&mut self, state: usize, edges: &[usize], grad_x: &mut [T]) {
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
    pub(super) fn chain<'b>(
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
    pub(super) fn conv(
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

    pub(super) fn unit(
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
    pub(super) fn unhalve(
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

    pub(super) fn add(&mut self, range: &Range<usize>, grads: &[f64]) {
        for (sum, grad) in self.grad_parameters[range.clone()].iter_mut().zip(grads) {
            *sum += grad;
        }
    }

    /// The gradients of factor and shift of a batch normalisation whose output has these sums.
    pub(super) fn add_affine_grads(&mut self, norm: &Norm, sums: &[[f64; 2]], weight: f64) {
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
    pub(super) fn weigh_node(&mut self, node: usize) {
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
    pub(super) fn input(&mut self, index: usize, s: &[T]) -> Option<Vec<T>> {
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
pub(super) fn add_halves<T: Element>(halves: &[Buffer<T>; 2], grid: Grid, grad_x: &mut [T]) {
    for (offset, half) in halves.iter().enumerate() {
        let half = planes(half, grid.halved().len());
        for (half, grad_x) in half.into_iter().zip(planes_mut(grad_x, grid.len())) {
            subsample_backward(grid, offset, half, grad_x);
        }
    }
}
