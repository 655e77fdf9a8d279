//! The backward pass of grouped cells: cell by cell and state by state, from the last to the first.

use candle_core::{Result, Tensor};
use kernels::activated_depthwise::ActivatedDepthwise;
use kernels::channel_norm::{GroupGrad, affine_gradients, gradient};
use kernels::halves::halves_gradient;
use kernels::mix::{Term, dots, mix, weight_gradients};
use kernels::pointwise_conv2d::GroupedPointwise;
use kernels::{avg_pool2d, max_pool2d};

use super::forward::{HALVING_POOL, IN_ORDER, Saved, SavedInput, pool_norms};
use super::{CellRun, NormGroup, Place, Run, shuffle};
use crate::candidate::{PoolKind, pool_geometry};
use crate::fused::plan::OperationKind;
use crate::layers::BATCH_NORM_EPS;

/// The gradients of a row of cells, as far as they are wanted; those of weights are put where they are collected.
pub(super) struct Grads {
    pub(super) inputs: [Option<Tensor>; 2],
    pub(super) mixing: Option<Tensor>,
}

/// What somebody who read an output sends back, channels of all nodes side by side; only where `gate` is above 0.
struct Sent {
    grad: Tensor,
    gate: Option<Tensor>,
}

/// Runs backward, from the gradient of what came out.
pub(super) fn backward(
    run: &Run,
    saved: Vec<Saved>,
    ends: [Tensor; 2],
    grad: &Tensor,
) -> Result<Grads> {
    let n = saved.len();
    let mut pending: Vec<Vec<Sent>> = (0..n + 2).map(|_| Vec::new()).collect();
    // The last output's numbers lie last.
    let mut end = grad.elem_count();
    for index in (0..n).rev().take(if run.gives_both { 2 } else { 1 }) {
        let [c, rest @ ..] = node_dims(&saved[index])?;
        let c = c * run.cells[index].plan.n_nodes;
        let len = c * rest.iter().product::<usize>();
        let own = grad.narrow(0, end - len, len)?;
        end -= len;
        pending[index + 2].push(Sent {
            grad: own.reshape((c, rest[0], rest[1], rest[2]))?,
            gate: None,
        });
    }
    let mut mixing: [Vec<Tensor>; 2] = [Vec::new(), Vec::new()];
    for (index, saved) in saved.into_iter().enumerate().rev() {
        let given = pending.pop().unwrap_or_default();
        let mut cell = Cell {
            run,
            index,
            own: &run.cells[index],
            saved: &saved,
            given,
            grads: saved.states.iter().map(|_| None).collect(),
            sums: run.cells[index]
                .plan
                .edges
                .iter()
                .map(|edge| vec![None; edge.operations.len()])
                .collect(),
            grad_mixing: Vec::new(),
        };
        let sent = cell.run()?;
        if let Some((_, kind)) = &run.cells[index].mixing {
            mixing[*kind].append(&mut cell.grad_mixing);
        }
        for (input, sent) in sent.into_iter().enumerate() {
            pending[index + input].extend(sent);
        }
    }
    let mut pending = pending.into_iter();
    let inputs = ends.map(|end| {
        let sent = pending.next().unwrap_or_default();
        if sent.is_empty() {
            return Ok(None);
        }
        let (c, n, h, w) = end.dims4()?;
        let terms = sent.iter().map(|sent| {
            Ok(Term {
                gate: sent.gate.clone(),
                ..Term::new(&sent.grad, 0)?
            })
        });
        let terms = terms.collect::<Result<Vec<_>>>()?;
        mix(&terms, &end, [c, n, h, w], IN_ORDER, false, false).map(Some)
    });
    let [first, second] = inputs;
    Ok(Grads {
        inputs: [first?, second?],
        mixing: if run.wants.mixing {
            Some(sum_of_mixing(run, &mixing)?)
        } else {
            None
        },
    })
}

/// The gradient of the weights that mix, of both kinds of cells one behind the other.
fn sum_of_mixing(run: &Run, found: &[Vec<Tensor>; 2]) -> Result<Tensor> {
    let sums = found.iter().zip(run.mixing_lens).map(|(found, len)| {
        let terms = found
            .iter()
            .map(|grad| Term::new(&grad.reshape((1, 1, 1, len))?, 0));
        let terms = terms.collect::<Result<Vec<_>>>()?;
        mix(&terms, &run.packed, [1, 1, 1, len], IN_ORDER, false, false)?.flatten_all()
    });
    Tensor::cat(&sums.collect::<Result<Vec<_>>>()?, 0)
}

/// The shape of a node.
fn node_dims(saved: &Saved) -> Result<[usize; 4]> {
    let (c, n, h, w) = saved.states[saved.states.len() - 1].x.dims4()?;
    Ok([c, n, h, w])
}

/// A cell on the way back.
struct Cell<'a> {
    run: &'a Run,
    index: usize,
    own: &'a CellRun,
    saved: &'a Saved,
    /// What the readers of its output sent.
    given: Vec<Sent>,
    /// Of each state, once the pass is by it.
    grads: Vec<Option<Tensor>>,
    /// Of each operation of each edge, the sums of its node's gradient, and of that times its raw output, of each
    /// channel: of this rank, and of all.
    sums: Vec<Vec<Option<[Tensor; 2]>>>,
    grad_mixing: Vec<Tensor>,
}

impl Cell<'_> {
    /// What goes to its two inputs.
    fn run(&mut self) -> Result<[Option<Sent>; 2]> {
        let wants = self.run.wants_inputs(self.index);
        for state in (0..self.saved.states.len()).rev() {
            if state >= 2 || wants[state] || self.run.wants.weights {
                self.grads[state] = Some(self.gather(state)?);
            }
            if state >= 2 {
                self.weigh(state)?;
            }
        }
        Ok([self.input(0, wants[0])?, self.input(1, wants[1])?])
    }

    fn grad(&self, state: usize) -> Result<&Tensor> {
        match &self.grads[state] {
            Some(grad) => Ok(grad),
            None => candle_core::bail!("grouped cells: the gradient of state {state} is missing"),
        }
    }

    /// What a node's gradient is to an operation on one of its edges.
    fn of_node(&self, (edge, number): Place) -> Result<Term> {
        let plan = &self.own.plan;
        let (edge_plan, operation) = (&plan.edges[edge], &plan.edges[edge].operations[number]);
        Ok(Term {
            n_channels: plan.n_partial(),
            shuffled_from: Some(0),
            weight: self.own.operation_weight(edge_plan.row, operation.column)?,
            mask: self
                .own
                .masks
                .as_ref()
                .and_then(|masks| masks[edge][number].clone()),
            ..Term::new(self.grad(edge_plan.node)?, 0)?
        })
    }

    /// A state's gradient: what was given, and what comes from the edges that leave it.
    fn gather(&self, state: usize) -> Result<Tensor> {
        let (plan, saved) = (&self.own.plan, &self.saved.states[state]);
        let c = plan.n_partial();
        let (all, n, h, w) = saved.x.dims4()?;
        let partial = saved.x.narrow(0, 0, c)?;
        let mut terms = Vec::new();
        if let Some(node) = state.checked_sub(2) {
            for sent in &self.given {
                let own = |tensor: &Tensor| tensor.narrow(0, node * all, all);
                terms.push(Term {
                    gate: sent.gate.as_ref().map(own).transpose()?,
                    ..Term::new(&own(&sent.grad)?, 0)?
                });
            }
        }
        let mut pooled: [Vec<Term>; 2] = [Vec::new(), Vec::new()];
        let mut bypass = Vec::new();
        for (index, edge) in plan.edges.iter().enumerate() {
            if edge.source != state {
                continue;
            }
            for (number, operation) in edge.operations.iter().enumerate() {
                match &operation.kind {
                    OperationKind::Identity => terms.push(self.of_node((index, number))?),
                    OperationKind::Pool { kind, .. } => {
                        pooled[*kind as usize].push(self.of_node((index, number))?)
                    }
                    OperationKind::Halve { .. } | OperationKind::Conv(_) => {}
                }
            }
            if plan.ratio > 1 {
                let term = Term {
                    first: if saved.bypass.is_some() { 0 } else { c },
                    n_channels: all - c,
                    shuffled_from: Some(c),
                    weight: self.own.edge_weight(edge.row)?,
                    ..Term::new(self.grad(edge.node)?, 0)?
                };
                if saved.bypass.is_some() {
                    bypass.push(term);
                } else {
                    terms.push(term);
                }
            }
        }
        if let (Some([padded, raw]), false) = (&saved.bypass, bypass.is_empty()) {
            let (k, n, out_h, out_w) = raw.dims4()?;
            let grad = mix(
                &bypass,
                raw,
                [k, n, out_h, out_w],
                shuffle(plan),
                false,
                false,
            )?;
            // What pads repeats a pixel that stands before it in its window, so it never wins.
            let grad = max_pool2d::gradient(padded, &grad, HALVING_POOL)?;
            let grad = grad.narrow(2, 0, h)?.narrow(3, 0, w)?.contiguous()?;
            terms.push(Term::new(&grad, c)?);
        }
        for kind in [PoolKind::Max, PoolKind::Average] {
            if let Some(raw) = &saved.pooled[kind as usize] {
                let grad = self.pool(state, kind, &partial, raw, &pooled[kind as usize])?;
                terms.push(Term::new(&grad, 0)?);
            }
        }
        for group in 0..saved.convs.len() {
            terms.push(Term::new(&self.conv(state, group, &partial)?, 0)?);
        }
        if let Some((halves, raws)) = &saved.halvings {
            let grad = self.halvings(state, halves, raws, [h, w])?;
            terms.push(Term {
                gate: Some(partial),
                ..Term::new(&grad, 0)?
            });
        }
        mix(
            &terms,
            &saved.x,
            [all, n, h, w],
            shuffle(plan),
            false,
            false,
        )
    }

    fn pool(
        &self,
        state: usize,
        kind: PoolKind,
        x: &Tensor,
        raw: &Tensor,
        terms: &[Term],
    ) -> Result<Tensor> {
        let plan = &self.own.plan;
        let (c, n, h, w) = raw.dims4()?;
        let mut grad = mix(terms, raw, [c, n, h, w], shuffle(plan), false, false)?;
        // All edges normalise the same, so that what comes from them is added up first.
        if let Some(number) = pool_norms(plan, state, kind).first()
            && let Some((table, _)) = &self.saved.tables[*number]
        {
            let sums =
                self.run
                    .of_all_ranks(dots(&[Term::new(raw, 0)?], &grad, IN_ORDER, false)?)?;
            grad = self.through_norm(vec![whole_group(&grad, &sums)?], 1, raw, table)?;
        }
        let geometry = pool_geometry(plan.stride(state));
        match kind {
            PoolKind::Max => max_pool2d::gradient(x, &grad, geometry),
            PoolKind::Average => avg_pool2d::gradient(x, &grad, geometry),
        }
    }

    fn through_norm(
        &self,
        groups: Vec<GroupGrad>,
        stride: usize,
        raw: &Tensor,
        table: &Tensor,
    ) -> Result<Tensor> {
        gradient(
            &groups,
            stride,
            raw,
            table,
            self.run.count(raw)?,
            BATCH_NORM_EPS,
        )
    }

    /// The table of a batch normalisation that stands alone.
    fn table(&self, norm: &NormGroup) -> Result<&Tensor> {
        match &self.saved.tables[norm.norms[0]] {
            Some((table, _)) => Ok(table),
            None => candle_core::bail!("grouped cells: a batch normalisation has seen nothing"),
        }
    }

    /// What operations of a node's edges get of its gradient, as their batch normalisations want it.
    fn groups(&self, places: &[Place]) -> Result<Vec<GroupGrad>> {
        let group = |&(edge, number): &Place| {
            let Some([_, sums]) = &self.sums[edge][number] else {
                candle_core::bail!("grouped cells: the sums of an operation are missing");
            };
            let Term {
                x, weight, mask, ..
            } = self.of_node((edge, number))?;
            Ok(GroupGrad {
                grad: x,
                weight,
                mask,
                sums: sums.clone(),
            })
        };
        places.iter().map(group).collect()
    }

    /// Puts the gradients of factors and shifts, where there are any.
    fn put_affine(&self, norm: &NormGroup, sums: &Tensor, table: &Tensor) -> Result<()> {
        let Some([factors, shifts]) = norm.affine.filter(|_| self.run.wants.weights) else {
            return Ok(());
        };
        let grads = affine_gradients(sums, table, self.run.packed.dtype(), BATCH_NORM_EPS)?;
        self.run.put(self.index, factors, &grads.get(0)?)?;
        self.run.put(self.index, shifts, &grads.get(1)?)
    }

    /// The same for operations, each with the sums of its node. Where batch normalisations have factors, operations have no
    /// weights.
    fn put_affine_of(&self, norm: &NormGroup, places: &[Place], table: &Tensor) -> Result<()> {
        if norm.affine.is_none() || !self.run.wants.weights {
            return Ok(());
        }
        let sums = places
            .iter()
            .map(|(edge, number)| match &self.sums[*edge][*number] {
                Some([own, _]) => Ok(own.clone()),
                None => candle_core::bail!("grouped cells: the sums of an operation are missing"),
            });
        let sums = sums.collect::<Result<Vec<_>>>()?;
        let sums = match &sums[..] {
            [only] => only.clone(),
            sums => Tensor::cat(sums, 0)?,
        };
        self.put_affine(norm, &sums, table)
    }

    /// Through a group of convolutions, to the state that they read.
    fn conv(&self, state: usize, group: usize, partial: &Tensor) -> Result<Tensor> {
        let (run, plan) = (self.run, &self.own.plan);
        let units = &self.saved.states[state].convs[group];
        let group = &self.own.grouping.convs[state][group];
        let (n_groups, c) = (group.places.len(), plan.n_partial());
        let Some([_, _, table]) = units.last() else {
            candle_core::bail!("grouped cells: a convolution has no unit");
        };
        self.put_affine_of(&group.units[units.len() - 1].norm, &group.places, table)?;
        let mut groups = self.groups(&group.places)?;
        let mut stride = plan.ratio;
        let mut index = units.len();
        loop {
            index -= 1;
            let (unit, [depthwise, raw, table]) = (&group.units[index], &units[index]);
            let grad = self.through_norm(groups, stride, raw, table)?;
            let kernels = run.slot(self.index, unit.pointwise, (n_groups, c, c))?;
            let pointwise = GroupedPointwise::new(depthwise, &kernels, plan.precision)?;
            if run.wants.weights {
                self.put_pointwise(unit.pointwise, pointwise.grad_w(&grad)?)?;
            }
            let grad = pointwise.grad_x(&grad)?;
            let kernels = run.slot(
                self.index,
                unit.depthwise,
                (n_groups, c, unit.kernel, unit.kernel),
            )?;
            let before = index
                .checked_sub(1)
                .map(|before| (&group.units[before].norm, &units[before]));
            let (source, norm) = match before {
                None => (partial, None),
                Some((_, [_, raw, table])) => (raw, Some(table)),
            };
            let convolution = ActivatedDepthwise::new(source, norm, &kernels, unit.geometry)?;
            if run.wants.weights {
                run.put(self.index, unit.depthwise, &convolution.grad_w(&grad)?)?;
            }
            let grad = convolution.grad_z(&grad)?;
            let Some((norm, [_, raw, table])) = before else {
                return Ok(grad);
            };
            let own = dots(&[Term::new(raw, 0)?], &grad, IN_ORDER, false)?;
            self.put_affine(norm, &own.squeeze(0)?, table)?;
            groups = vec![whole_group(&grad, &run.of_all_ranks(own)?)?];
            stride = 1;
        }
    }

    /// Keeps the gradients of a slot's kernels, one tensor each.
    fn put_pointwise(&self, slot: usize, gradients: Vec<Tensor>) -> Result<()> {
        let numbers = &self.own.grouping.slots[slot];
        for (number, gradient) in numbers.iter().zip(gradients) {
            let var = &self.own.weights[*number];
            self.run.found.put(var, gradient.reshape(var.shape())?);
        }
        Ok(())
    }

    /// Through the halvings of a state, to that as it is behind its ReLU.
    fn halvings(
        &self,
        state: usize,
        halves: &Tensor,
        raws: &[Tensor],
        plane: [usize; 2],
    ) -> Result<Tensor> {
        let plan = &self.own.plan;
        let c = plan.n_partial();
        let mut terms = Vec::with_capacity(raws.len());
        for (halving, raw) in self.own.grouping.halvings[state].iter().zip(raws) {
            let table = self.table(&halving.norm)?;
            self.put_affine_of(&halving.norm, &[halving.place], table)?;
            let grad = self.through_norm(self.groups(&[halving.place])?, plan.ratio, raw, table)?;
            let kernels = self.run.slot(self.index, halving.kernels, (2, c / 2, c))?;
            let pointwise = GroupedPointwise::new(halves, &kernels, plan.precision)?;
            if self.run.wants.weights {
                self.put_pointwise(halving.kernels, pointwise.grad_w(&grad)?)?;
            }
            terms.push(Term::new(&pointwise.grad_x(&grad)?, 0)?);
        }
        let (k, n, h, w) = halves.dims4()?;
        let grad = match &terms[..] {
            [only] => only.x.clone(),
            terms => mix(terms, halves, [k, n, h, w], IN_ORDER, false, false)?,
        };
        halves_gradient(&grad, plane)
    }

    /// Takes the sums of a node's gradient, which is complete, with all that the node sums.
    fn weigh(&mut self, node: usize) -> Result<()> {
        let plan = &self.own.plan;
        let grad = self.grad(node)?.clone();
        let nodes = &self.saved.nodes[node - 2];
        let wants_mixing = self.run.wants.mixing && plan.n_primitives > 0;
        // Sums are for who normalises, and for weights.
        let operations: Vec<&(Place, Term)> = nodes
            .operations
            .iter()
            .filter(|(_, term)| wants_mixing || term.norm.is_some())
            .collect();
        let n_places = self
            .own
            .mixing
            .as_ref()
            .map_or(0, |(_, kind)| self.run.mixing_lens[*kind]);
        if !operations.is_empty() {
            let terms: Vec<Term> = operations.iter().map(|(_, term)| term.clone()).collect();
            let own = dots(&terms, &grad, shuffle(plan), true)?;
            if wants_mixing {
                let place = |((edge, number), _): &&(Place, Term)| {
                    let edge = &plan.edges[*edge];
                    edge.row * plan.n_primitives + edge.operations[*number].column
                };
                let places: Vec<usize> = operations.iter().map(place).collect();
                self.grad_mixing
                    .push(weight_gradients(&terms, &own, &places, n_places)?);
            }
            let all = self.run.of_all_ranks(own.clone())?;
            for (index, ((edge, number), _)) in operations.into_iter().enumerate() {
                self.sums[*edge][*number] = Some([own.get(index)?, all.get(index)?]);
            }
        }
        if wants_mixing && !nodes.bypasses.is_empty() {
            let terms: Vec<Term> = nodes
                .bypasses
                .iter()
                .map(|(_, term)| term.clone())
                .collect();
            let own = dots(&terms, &grad, shuffle(plan), true)?;
            let place = |(edge, _): &(usize, Term)| plan.edge_weights() + plan.edges[*edge].row;
            let places: Vec<usize> = nodes.bypasses.iter().map(place).collect();
            self.grad_mixing
                .push(weight_gradients(&terms, &own, &places, n_places)?);
        }
        Ok(())
    }

    /// Backward through the preprocessing of an input.
    fn input(&self, index: usize, is_wanted: bool) -> Result<Option<Sent>> {
        let run = self.run;
        if !is_wanted && !run.wants.weights {
            return Ok(None);
        }
        let plan = &self.own.plan;
        let input = &self.own.grouping.inputs[index];
        let SavedInput { z, halves, raw } = &self.saved.inputs[index];
        let grad = self.grad(index)?;
        let table = self.table(&input.norm)?;
        let own = dots(&[Term::new(raw, 0)?], grad, IN_ORDER, false)?;
        self.put_affine(&input.norm, &own.squeeze(0)?, table)?;
        let groups = vec![whole_group(grad, &run.of_all_ranks(own)?)?];
        let grad = self.through_norm(groups, 1, raw, table)?;
        let n_kernels = if input.halves { 2 } else { 1 };
        let kernels = run.slot(
            self.index,
            input.kernels,
            (n_kernels, plan.channels / n_kernels, z.dim(0)?),
        )?;
        let pointwise =
            GroupedPointwise::new(halves.as_ref().unwrap_or(z), &kernels, plan.precision)?;
        if run.wants.weights {
            self.put_pointwise(input.kernels, pointwise.grad_w(&grad)?)?;
        }
        if !is_wanted {
            return Ok(None);
        }
        let mut grad = pointwise.grad_x(&grad)?;
        if input.halves {
            let (_, _, h, w) = z.dims4()?;
            grad = halves_gradient(&grad, [h, w])?;
        }
        Ok(Some(Sent {
            grad,
            gate: Some(z.clone()),
        }))
    }
}

/// All channels of a gradient as one group, with their sums, `1 c 2`.
fn whole_group(grad: &Tensor, sums: &Tensor) -> Result<GroupGrad> {
    Ok(GroupGrad {
        grad: grad.clone(),
        weight: None,
        mask: None,
        sums: sums.squeeze(0)?,
    })
}
