//! The forward pass of grouped cells, and what it leaves for the backward pass.

use candle_core::{Result, Tensor};
use kernels::activated_depthwise::ActivatedDepthwise;
use kernels::channel_norm::{batch_table, given_table};
use kernels::halves::halves;
use kernels::mix::{Shuffle, Term, mix};
use kernels::pointwise_conv2d::GroupedPointwise;
use kernels::{Pool2dGeometry, batch_norm};

use super::{NormGroup, Place, Run, shuffle};
use crate::candidate::{PoolKind, pool_geometry};
use crate::fused::plan::{OperationKind, Plan};
use crate::layers::BATCH_NORM_EPS;

/// The pooling of what bypasses the operations at stride 2.
pub(super) const HALVING_POOL: Pool2dGeometry = Pool2dGeometry {
    kernel: 2,
    padding: 0,
    stride: 2,
};

/// What the backward pass needs of a cell.
pub(super) struct Saved {
    pub(super) inputs: Vec<SavedInput>,
    /// Of each state, itself and what edges that leave it made of it.
    pub(super) states: Vec<SavedState>,
    /// Of each node, what it sums: operations with their places, bypasses with their edges.
    pub(super) nodes: Vec<NodeTerms>,
    /// Of each batch normalisation, the table of the batch, and what it is of.
    pub(super) tables: Vec<Option<(Tensor, Tensor)>>,
}

/// A preprocessed input.
pub(super) struct SavedInput {
    /// What it was made of, behind its ReLU.
    pub(super) z: Tensor,
    /// The halves of that, where it is halved.
    pub(super) halves: Option<Tensor>,
    /// Before its batch normalisation.
    pub(super) raw: Tensor,
}

pub(super) struct SavedState {
    pub(super) x: Tensor,
    /// Of each group, each unit's output of the depthwise convolution, the raw one, and the table of its normalisation.
    pub(super) convs: Vec<Vec<[Tensor; 3]>>,
    /// The halves, and the raw output of each halving.
    pub(super) halvings: Option<(Tensor, Vec<Tensor>)>,
    pub(super) pooled: [Option<Tensor>; 2],
    /// What bypasses the operations, padded as it is pooled, where it is; and pooled.
    pub(super) bypass: Option<[Tensor; 2]>,
}

#[derive(Default)]
pub(super) struct NodeTerms {
    pub(super) operations: Vec<(Place, Term)>,
    pub(super) bypasses: Vec<(usize, Term)>,
}

/// A row of cells under way.
pub(super) struct CellForward<'a> {
    run: &'a Run,
    /// Of what the row starts from and of each cell, the nodes: channels side by side.
    outputs: Vec<Vec<Tensor>>,
    /// The same in one, behind a ReLU, while somebody may still read it.
    activated: Vec<Option<Tensor>>,
    saved: Vec<Saved>,
}

impl<'a> CellForward<'a> {
    pub(super) fn new(run: &'a Run, ends: [Tensor; 2]) -> Self {
        Self {
            run,
            outputs: ends.map(|end| vec![end]).into(),
            activated: vec![None, None],
            saved: Vec::with_capacity(run.cells.len()),
        }
    }

    /// The last `n` outputs.
    pub(super) fn outputs(&self, n: usize) -> Result<Vec<Tensor>> {
        let first = self.outputs.len() - n;
        (first..self.outputs.len())
            .map(|index| self.whole(index, false))
            .collect()
    }

    /// What the backward pass needs of each cell; nothing outside training.
    pub(super) fn saved(self) -> Vec<Saved> {
        self.saved
    }

    /// All nodes of an output side by side.
    fn whole(&self, index: usize, activates: bool) -> Result<Tensor> {
        let nodes = &self.outputs[index];
        if let ([only], false) = (&nodes[..], activates) {
            return Ok(only.clone());
        }
        let mut first = 0;
        let mut terms = Vec::with_capacity(nodes.len());
        for node in nodes {
            terms.push(Term::new(node, first)?);
            first += node.dim(0)?;
        }
        let (_, n, h, w) = nodes[0].dims4()?;
        mix(
            &terms,
            &nodes[0],
            [first, n, h, w],
            IN_ORDER,
            false,
            activates,
        )
    }

    /// An output behind its ReLU, which is computed once.
    fn activated(&mut self, index: usize) -> Result<Tensor> {
        if let Some(known) = &self.activated[index] {
            return Ok(known.clone());
        }
        let activated = self.whole(index, true)?;
        self.activated[index] = Some(activated.clone());
        Ok(activated)
    }

    /// Runs the next cell.
    pub(super) fn cell(&mut self, cell: usize) -> Result<()> {
        let run = self.run;
        let plan = &run.cells[cell].plan;
        let is_training = run.cells[cell].running.is_none();
        let mut tables: Vec<Option<(Tensor, Tensor)>> = vec![None; plan.n_norms];
        let mut inputs = Vec::with_capacity(2);
        let mut states: Vec<SavedState> = Vec::with_capacity(plan.n_states());
        for index in [0, 1] {
            let z = self.activated(cell + index)?;
            let (input, x) = self.input(cell, index, z, &mut tables)?;
            inputs.push(input);
            states.push(self.state(cell, index, x, &mut tables)?);
        }
        // Whatever comes behind reads later outputs.
        self.activated[cell] = None;
        let mut nodes = Vec::with_capacity(plan.n_nodes);
        let mut of_nodes = Vec::with_capacity(plan.n_nodes);
        for node in 2..plan.n_states() {
            let terms = self.terms(cell, node, &states, &tables)?;
            let all: Vec<Term> = terms
                .operations
                .iter()
                .map(|(_, term)| term.clone())
                .collect();
            let bypasses = terms.bypasses.iter().map(|(_, term)| term.clone());
            let all: Vec<Term> = all.into_iter().chain(bypasses).collect();
            let shape = node_shape(plan, &states[1].x)?;
            let x = mix(&all, &states[1].x, shape, shuffle(plan), true, false)?;
            nodes.push(x.clone());
            of_nodes.push(terms);
            if node + 1 < plan.n_states() {
                states.push(self.state(cell, node, x, &mut tables)?);
            } else {
                states.push(SavedState {
                    x,
                    convs: Vec::new(),
                    halvings: None,
                    pooled: [None, None],
                    bypass: None,
                });
            }
        }
        self.outputs.push(nodes);
        self.activated.push(None);
        if is_training {
            self.saved.push(Saved {
                inputs,
                states,
                nodes: of_nodes,
                tables,
            });
        } else {
            // Nobody reads these again.
            self.outputs[cell] = Vec::new();
        }
        Ok(())
    }

    /// What a group of batch normalisations goes by; in training that of the batch, which is kept for each.
    fn table(
        &self,
        cell: usize,
        norm: &NormGroup,
        raw: &Tensor,
        tables: &mut [Option<(Tensor, Tensor)>],
    ) -> Result<Tensor> {
        let c = raw.dim(0)? / norm.norms.len();
        if let Some((table, starts)) = &self.run.cells[cell].running {
            return table.narrow(0, starts[norm.norms[0]], norm.norms.len() * c);
        }
        let affine = self.run.affine(cell, norm)?;
        let affine = affine.as_ref().map(|[factors, shifts]| [factors, shifts]);
        let table = self.of_batch(raw, affine)?;
        for (index, number) in norm.norms.iter().enumerate() {
            tables[*number] = Some((table.narrow(0, index * c, c)?, raw.clone()));
        }
        Ok(table)
    }

    /// The table of the whole batch.
    fn of_batch(&self, raw: &Tensor, affine: Option<[&Tensor; 2]>) -> Result<Tensor> {
        let Some(share) = &self.run.share else {
            return batch_table(raw, affine, BATCH_NORM_EPS);
        };
        let own = batch_table(raw, None, BATCH_NORM_EPS)?;
        let moments = own.narrow(1, 0, 2)?.t()?.contiguous()?;
        given_table(&batch_norm::union(&moments, share)?, affine, BATCH_NORM_EPS)
    }

    fn input(
        &self,
        cell: usize,
        index: usize,
        z: Tensor,
        tables: &mut [Option<(Tensor, Tensor)>],
    ) -> Result<(SavedInput, Tensor)> {
        let run = self.run;
        let plan = &run.cells[cell].plan;
        let input = &run.cells[cell].grouping.inputs[index];
        let n_in = z.dim(0)?;
        let halves = if input.halves {
            Some(halves(&z, false)?)
        } else {
            None
        };
        let n_kernels = if input.halves { 2 } else { 1 };
        let kernels = run.slot(
            cell,
            input.kernels,
            (n_kernels, plan.channels / n_kernels, n_in),
        )?;
        let raw = GroupedPointwise::new(halves.as_ref().unwrap_or(&z), &kernels, plan.precision)?
            .forward()?;
        let table = self.table(cell, &input.norm, &raw, tables)?;
        let term = Term {
            norm: Some(table),
            ..Term::new(&raw, 0)?
        };
        let (c, n, h, w) = raw.dims4()?;
        let x = mix(&[term], &raw, [c, n, h, w], IN_ORDER, false, false)?;
        Ok((SavedInput { z, halves, raw }, x))
    }

    /// What edges that leave a state make of it.
    fn state(
        &self,
        cell: usize,
        state: usize,
        x: Tensor,
        tables: &mut [Option<(Tensor, Tensor)>],
    ) -> Result<SavedState> {
        let run = self.run;
        let (plan, grouping) = (&run.cells[cell].plan, &run.cells[cell].grouping);
        let c = plan.n_partial();
        let partial = x.narrow(0, 0, c)?;
        let mut convs = Vec::with_capacity(grouping.convs[state].len());
        for group in &grouping.convs[state] {
            let n_groups = group.places.len();
            let mut units: Vec<[Tensor; 3]> = Vec::with_capacity(group.units.len());
            for unit in &group.units {
                let (source, norm) = match units.last() {
                    None => (&partial, None),
                    Some([_, raw, table]) => (raw, Some(table)),
                };
                let side = unit.kernel;
                let kernels = run.slot(cell, unit.depthwise, (n_groups, c, side, side))?;
                let depthwise =
                    ActivatedDepthwise::new(source, norm, &kernels, unit.geometry)?.forward()?;
                let kernels = run.slot(cell, unit.pointwise, (n_groups, c, c))?;
                let raw = GroupedPointwise::new(&depthwise, &kernels, plan.precision)?.forward()?;
                let table = self.table(cell, &unit.norm, &raw, tables)?;
                units.push([depthwise, raw, table]);
            }
            convs.push(units);
        }
        let halvings = if grouping.halvings[state].is_empty() {
            None
        } else {
            let halved = halves(&partial, true)?;
            let mut raws = Vec::with_capacity(grouping.halvings[state].len());
            for halving in &grouping.halvings[state] {
                let kernels = run.slot(cell, halving.kernels, (2, c / 2, c))?;
                let raw = GroupedPointwise::new(&halved, &kernels, plan.precision)?.forward()?;
                self.table(cell, &halving.norm, &raw, tables)?;
                raws.push(raw);
            }
            Some((halved, raws))
        };
        let mut pooled = [None, None];
        for kind in [PoolKind::Max, PoolKind::Average] {
            let is_this = |of: &OperationKind| matches!(of, OperationKind::Pool { kind: of, .. } if *of == kind);
            if !plan.reads(state, is_this) {
                continue;
            }
            let geometry = pool_geometry(plan.stride(state));
            let raw = match kind {
                PoolKind::Max => kernels::max_pool2d(&partial, geometry)?,
                PoolKind::Average => kernels::avg_pool2d(&partial, geometry)?,
            };
            self.pool_tables(cell, state, kind, &raw, tables)?;
            pooled[kind as usize] = Some(raw);
        }
        let bypass = if plan.stride(state) == 2 && plan.ratio > 1 {
            // At an odd size the last row and column pool alone.
            let (_, _, h, w) = x.dims4()?;
            let padded = x
                .narrow(0, c, plan.channels - c)?
                .pad_with_same(2, 0, h % 2)?
                .pad_with_same(3, 0, w % 2)?
                .contiguous()?;
            let pooled = kernels::max_pool2d(&padded, HALVING_POOL)?;
            Some([padded, pooled])
        } else {
            None
        };
        Ok(SavedState {
            x,
            convs,
            halvings,
            pooled,
            bypass,
        })
    }

    /// The tables of the normalisations behind a pooling, which see the same on all edges.
    fn pool_tables(
        &self,
        cell: usize,
        state: usize,
        kind: PoolKind,
        raw: &Tensor,
        tables: &mut [Option<(Tensor, Tensor)>],
    ) -> Result<()> {
        let own = &self.run.cells[cell];
        let mut of_batch: Option<Tensor> = None;
        for number in pool_norms(&own.plan, state, kind) {
            let table = match (&own.running, &of_batch) {
                (Some((table, starts)), _) => table.narrow(0, starts[number], raw.dim(0)?)?,
                (None, Some(known)) => known.clone(),
                (None, None) => self.of_batch(raw, None)?,
            };
            tables[number] = Some((table.clone(), raw.clone()));
            of_batch = Some(table);
        }
        Ok(())
    }

    /// What a node sums.
    fn terms(
        &self,
        cell: usize,
        node: usize,
        states: &[SavedState],
        tables: &[Option<(Tensor, Tensor)>],
    ) -> Result<NodeTerms> {
        let own = &self.run.cells[cell];
        let (plan, c) = (&own.plan, own.plan.n_partial());
        let mut terms = NodeTerms::default();
        for (index, edge) in plan.edges.iter().enumerate() {
            if edge.node != node {
                continue;
            }
            let state = &states[edge.source];
            for (number, operation) in edge.operations.iter().enumerate() {
                let place = (index, number);
                let (x, norm) = match &operation.kind {
                    OperationKind::Identity => (state.x.narrow(0, 0, c)?, None),
                    OperationKind::Pool { kind, norm } => {
                        let pooled = state.pooled[*kind as usize].clone().expect("it is read");
                        (pooled, norm.as_ref())
                    }
                    OperationKind::Halve { norm, .. } => {
                        let all = own.grouping.halvings[edge.source].iter();
                        let at = all
                            .map(|halving| halving.place)
                            .position(|other| other == place);
                        let (_, raws) = state.halvings.as_ref().expect("it is read");
                        (raws[at.expect("it has its halving")].clone(), Some(norm))
                    }
                    OperationKind::Conv(units) => {
                        let (group, at) = own.grouping.conv_of(edge.source, place);
                        let [_, raw, _] =
                            state.convs[group].last().expect("a convolution has a unit");
                        (
                            raw.narrow(0, at * c, c)?,
                            units.last().map(|unit| &unit.norm),
                        )
                    }
                };
                let table = norm.map(|norm| {
                    let table = tables[norm.index].as_ref().map(|(table, _)| table.clone());
                    match (table, &own.running) {
                        (Some(table), _) => Ok(table),
                        (None, Some((table, starts))) => table.narrow(0, starts[norm.index], c),
                        (None, None) => candle_core::bail!(
                            "grouped cells: a batch normalisation has seen nothing"
                        ),
                    }
                });
                let term = Term {
                    norm: table.transpose()?,
                    weight: own.operation_weight(edge.row, operation.column)?,
                    mask: own
                        .masks
                        .as_ref()
                        .and_then(|masks| masks[index][number].clone()),
                    ..Term::new(&x, 0)?
                };
                terms.operations.push((place, term));
            }
            if plan.ratio > 1 {
                let bypass = match &state.bypass {
                    Some([_, pooled]) => pooled.clone(),
                    None => state.x.narrow(0, c, plan.channels - c)?,
                };
                let term = Term {
                    weight: own.edge_weight(edge.row)?,
                    ..Term::new(&bypass, c)?
                };
                terms.bypasses.push((index, term));
            }
        }
        Ok(terms)
    }
}

/// Channels as they are.
pub(super) const IN_ORDER: Shuffle = Shuffle {
    n_groups: 1,
    period: 1,
};

/// The numbers of the batch normalisations behind a pooling of a state.
pub(super) fn pool_norms(plan: &Plan, state: usize, kind: PoolKind) -> Vec<usize> {
    let edges = plan.edges.iter().filter(|edge| edge.source == state);
    let operations = edges.flat_map(|edge| &edge.operations);
    let norm = operations.filter_map(|operation| match &operation.kind {
        OperationKind::Pool {
            kind: other,
            norm: Some(norm),
        } if *other == kind => Some(norm.index),
        _ => None,
    });
    norm.collect()
}

/// The shape of a node of a cell whose preprocessed inputs are like this.
fn node_shape(plan: &Plan, input: &Tensor) -> Result<[usize; 4]> {
    let (c, n, h, w) = input.dims4()?;
    let stride = if plan.is_reduction { 2 } else { 1 };
    Ok([c, n, h.div_ceil(stride), w.div_ceil(stride)])
}
