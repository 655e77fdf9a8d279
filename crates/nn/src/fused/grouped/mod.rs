//! Cells on CUDA: what edges that leave one state compute alike runs in one launch, and a node is one launch.
//!
//! States are laid out `c n h w`, so that channels side by side are a view. Operations of one kind on the edges that
//! leave a state are a group: their kernels lie one behind the other, their outputs are channels of one tensor. ReLUs
//! and, between two units, batch normalisations happen where a depthwise convolution reads; those behind the last unit
//! where the node sums all that reaches it ([`kernels::mix`]), with channel shuffle and bypass as a choice of planes. Of
//! the backward pass each part writes a tensor of its own, and a state's gradient is one sum of all.
//!
//! Candle's graph sees a row of cells as one operation on the two states in front of it and the weights that mix; the
//! gradients of the cells' own weights are put beside the graph, where [`Gradients::collect`] finds them.
//!
//! [`Gradients::collect`]: crate::optimizer::Gradients::collect

mod backward;
mod forward;

use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Arc, Mutex};

use candle_core::{CpuStorage, CustomOp3, DType, Layout, Result, Shape, Storage, Tensor, Var};
use collective::Share;
use kernels::Conv2dGeometry;
use kernels::mix::Shuffle;
use kernels::pieces::{Following, follow, pack};

use self::forward::CellForward;
use super::chain::Chain;
use super::plan::{Norm, OperationKind, Plan, UnitPlan};
use super::{FusedCell, Wants};
use crate::Pass;
use crate::layers::{BATCH_NORM_EPS, BATCH_NORM_MOMENTUM, BatchNorm, swap_images_and_channels};
use crate::parameters::FoundGradients;

/// What of a cell's plan runs together, and in what order its parameters are packed for that.
pub(crate) struct Grouping {
    /// Of each state, the groups of convolutions on the edges that leave it.
    convs: Vec<Vec<ConvGroup>>,
    /// Of each state, the halvings on the edges that leave it.
    halvings: Vec<Vec<Halving>>,
    inputs: [Input; 2],
    /// Of each slot, the numbers of its weights among the cell's.
    slots: Vec<Vec<usize>>,
    /// The numbers of all batch normalisations, those of a group one behind the other.
    norms: Vec<usize>,
}

/// Number of a stretch of packed parameters that are read as one tensor.
type Slot = usize;

/// An operation of a cell: the numbers of its edge and among that edge's operations.
type Place = (usize, usize);

/// Of each operation of each edge, by what drop path multiplies each image, if it may drop the operation.
type DrawnMasks = Vec<Vec<Option<Tensor>>>;

/// Convolutions of one kind on edges that leave one state.
struct ConvGroup {
    places: Vec<Place>,
    units: Vec<UnitGroup>,
}

/// The same unit of all convolutions of a group.
struct UnitGroup {
    geometry: Conv2dGeometry,
    kernel: usize,
    depthwise: Slot,
    pointwise: Slot,
    norm: NormGroup,
}

/// Batch normalisations of channels that lie one behind the other.
struct NormGroup {
    /// Their numbers.
    norms: Vec<usize>,
    /// Factors and shifts, where they have any.
    affine: Option<[Slot; 2]>,
}

/// A skip at stride 2.
struct Halving {
    place: Place,
    kernels: Slot,
    norm: NormGroup,
}

/// What brings an input to the cell's width and resolution.
struct Input {
    kernels: Slot,
    halves: bool,
    norm: NormGroup,
}

/// Makes slots.
struct Slots {
    /// The weight that starts at a place of the plan's parameters.
    weights: HashMap<usize, usize>,
    slots: Vec<Vec<usize>>,
    norms: Vec<usize>,
}

impl Slots {
    fn new(vars: &[Var]) -> Self {
        let mut start = 0;
        let place = |(number, var): (usize, &Var)| {
            let at = start;
            start += var.elem_count();
            (at, number)
        };
        Self {
            weights: vars.iter().enumerate().map(place).collect(),
            slots: Vec::new(),
            norms: Vec::new(),
        }
    }

    fn add<'r>(&mut self, ranges: impl IntoIterator<Item = &'r Range<usize>>) -> Slot {
        let number = |range: &Range<usize>| self.weights[&range.start];
        let numbers = ranges.into_iter().map(number).collect();
        self.slots.push(numbers);
        self.slots.len() - 1
    }

    fn norm(&mut self, norms: &[&Norm]) -> NormGroup {
        let part = |index: usize| {
            let ranges = norms
                .iter()
                .map(|norm| norm.affine.as_ref().map(|both| &both[index]));
            ranges.collect::<Option<Vec<_>>>()
        };
        self.norms.extend(norms.iter().map(|norm| norm.index));
        NormGroup {
            norms: norms.iter().map(|norm| norm.index).collect(),
            affine: match (part(0), part(1)) {
                (Some(factors), Some(shifts)) => Some([self.add(factors), self.add(shifts)]),
                _ => None,
            },
        }
    }
}

impl Grouping {
    /// Groups the operations of a cell whose parameters these are, in the order of the plan.
    pub(super) fn new(plan: &Plan, weights: &[Var]) -> Self {
        let mut slots = Slots::new(weights);
        let inputs = plan.inputs.each_ref().map(|input| Input {
            kernels: slots.add(&input.kernels),
            halves: input.kernels.len() == 2,
            norm: slots.norm(&[&input.norm]),
        });
        let (mut convs, mut halvings) = (Vec::new(), Vec::new());
        for state in 0..plan.n_states() {
            let operations = plan
                .edges
                .iter()
                .enumerate()
                .filter(|(_, edge)| edge.source == state)
                .flat_map(|(index, edge)| {
                    let operations = edge.operations.iter().enumerate();
                    operations.map(move |(number, operation)| ((index, number), &operation.kind))
                });
            let mut groups: Vec<(Vec<Place>, Vec<&[UnitPlan]>)> = Vec::new();
            let mut own = Vec::new();
            for (place, kind) in operations {
                match kind {
                    OperationKind::Conv(units) => {
                        let is_alike = |(_, all): &&mut (Vec<Place>, Vec<&[UnitPlan]>)| {
                            are_alike(all[0], units)
                        };
                        match groups.iter_mut().find(is_alike) {
                            Some((places, all)) => {
                                places.push(place);
                                all.push(units);
                            }
                            None => groups.push((vec![place], vec![units])),
                        }
                    }
                    OperationKind::Halve { kernels, norm } => own.push(Halving {
                        place,
                        kernels: slots.add(kernels),
                        norm: slots.norm(&[norm]),
                    }),
                    OperationKind::Pool { norm, .. } => {
                        slots.norms.extend(norm.iter().map(|norm| norm.index))
                    }
                    OperationKind::Identity => {}
                }
            }
            let group = |(places, all): (Vec<Place>, Vec<&[UnitPlan]>)| ConvGroup {
                places,
                units: (0..all[0].len())
                    .map(|index| UnitGroup {
                        geometry: all[0][index].geometry,
                        kernel: all[0][index].kernel,
                        depthwise: slots.add(all.iter().map(|units| &units[index].depthwise)),
                        pointwise: slots.add(all.iter().map(|units| &units[index].pointwise)),
                        norm: slots.norm(
                            &all.iter()
                                .map(|units| &units[index].norm)
                                .collect::<Vec<_>>(),
                        ),
                    })
                    .collect(),
            };
            convs.push(groups.into_iter().map(group).collect());
            halvings.push(own);
        }
        Self {
            convs,
            halvings,
            inputs,
            slots: slots.slots,
            norms: slots.norms,
        }
    }
}

impl Grouping {
    /// The group of a convolution on an edge that leaves a state, and its number in that.
    fn conv_of(&self, state: usize, place: Place) -> (usize, usize) {
        let groups = self.convs[state].iter().enumerate();
        let mut found = groups.filter_map(|(index, group)| {
            let at = group.places.iter().position(|other| *other == place)?;
            Some((index, at))
        });
        found.next().expect("every convolution is in a group")
    }
}

/// Whether two convolutions differ in nothing but their weights.
fn are_alike(a: &[UnitPlan], b: &[UnitPlan]) -> bool {
    let sizes = |units: &[UnitPlan]| -> Vec<_> {
        units
            .iter()
            .map(|unit| (unit.geometry, unit.kernel))
            .collect()
    };
    sizes(a) == sizes(b)
}

/// The last two outputs of a row of cells, `c n h w`.
pub(crate) struct GroupedEnds {
    pub(crate) s0: Tensor,
    pub(crate) s1: Tensor,
}

/// The outputs of a stem, `n c h w`, which may be one.
pub(crate) fn to_grouped(s0: &Tensor, s1: &Tensor) -> Result<GroupedEnds> {
    let swapped = swap_images_and_channels(s1)?;
    Ok(GroupedEnds {
        s0: if s0.id() == s1.id() {
            swapped.clone()
        } else {
            swap_images_and_channels(s0)?
        },
        s1: swapped,
    })
}

/// A cell of a run.
struct CellRun {
    plan: Arc<Plan>,
    grouping: Arc<Grouping>,
    weights: Vec<Var>,
    /// Where each slot starts among the packed parameters, and how long it is.
    slots: Vec<(usize, usize)>,
    /// Outside training, the tables of all batch normalisations' running statistics, in the order of the grouping, and
    /// where those of each start.
    running: Option<(Tensor, Vec<usize>)>,
    /// What drop path leaves.
    masks: Option<DrawnMasks>,
    /// The weights of operations, `e p`, and behind them of edges, `e`; which of the two kinds they are of.
    mixing: Option<(Tensor, usize)>,
}

impl CellRun {
    /// The weight of an operation in the sum of its node, where operations are weighted.
    fn operation_weight(&self, row: usize, column: usize) -> Result<Option<Tensor>> {
        self.weight_at(row * self.plan.n_primitives + column)
    }

    /// The weight of what bypasses an edge's operations.
    fn edge_weight(&self, row: usize) -> Result<Option<Tensor>> {
        self.weight_at(self.plan.edge_weights() + row)
    }

    fn weight_at(&self, place: usize) -> Result<Option<Tensor>> {
        let mixing = self.mixing.as_ref().filter(|_| self.plan.n_primitives > 0);
        mixing
            .map(|(mixing, _)| mixing.narrow(0, place, 1))
            .transpose()
    }
}

/// A row of cells that runs: all that its forward and backward passes share.
struct Run {
    cells: Vec<CellRun>,
    packed: Tensor,
    wants: Wants,
    gives_both: bool,
    share: Option<Share>,
    found: FoundGradients,
    /// Lengths of the weights that mix, of both kinds.
    mixing_lens: [usize; 2],
}

impl Run {
    /// The parameters of a slot, contiguous.
    fn slot(&self, cell: usize, slot: Slot, shape: impl Into<Shape>) -> Result<Tensor> {
        let (start, len) = self.cells[cell].slots[slot];
        self.packed.narrow(0, start, len)?.reshape(shape.into())
    }

    fn affine(&self, cell: usize, norm: &NormGroup) -> Result<Option<[Tensor; 2]>> {
        let Some([factors, shifts]) = norm.affine else {
            return Ok(None);
        };
        let vector = |slot: Slot| self.slot(cell, slot, self.cells[cell].slots[slot].1);
        Ok(Some([vector(factors)?, vector(shifts)?]))
    }

    /// Keeps the gradients of a slot's weights, which lie one behind the other.
    fn put(&self, cell: usize, slot: Slot, gradients: &Tensor) -> Result<()> {
        let cell = &self.cells[cell];
        let gradients = gradients.flatten_all()?;
        let mut start = 0;
        for &number in &cell.grouping.slots[slot] {
            let var = &cell.weights[number];
            let own = gradients.narrow(0, start, var.elem_count())?;
            self.found.put(var, own.reshape(var.shape())?);
            start += var.elem_count();
        }
        Ok(())
    }

    /// Numbers of a channel, of all ranks.
    fn count(&self, x: &Tensor) -> Result<usize> {
        let (_, n, h, w) = x.dims4()?;
        Ok(self.share.as_ref().map_or(n, Share::n_images) * h * w)
    }

    /// The sums over all ranks.
    fn of_all_ranks(&self, sums: Tensor) -> Result<Tensor> {
        match &self.share {
            None => Ok(sums),
            Some(share) => share.collective().sum(&sums),
        }
    }

    /// Which of a cell's inputs are to have a gradient.
    fn wants_inputs(&self, cell: usize) -> [bool; 2] {
        let wants = self.wants;
        let any = wants.weights || wants.mixing || wants.inputs[0] || wants.inputs[1];
        match cell {
            0 => wants.inputs,
            1 => [wants.inputs[1], any],
            _ => [any; 2],
        }
    }
}

/// How the channels of a node are shuffled.
fn shuffle(plan: &Plan) -> Shuffle {
    Shuffle {
        n_groups: plan.ratio,
        period: plan.n_partial(),
    }
}

impl Chain<'_> {
    /// The output of the last cell, `c n h w`; `found` gets the gradients of the cells' weights.
    pub(crate) fn grouped_last(
        &self,
        ends: &GroupedEnds,
        pass: &Pass<'_>,
        found: &FoundGradients,
    ) -> Result<Tensor> {
        if self.cells.is_empty() {
            return Ok(ends.s1.clone());
        }
        let (y, shapes) = self.run_grouped(ends, pass, found, false)?;
        y.reshape(shapes[shapes.len() - 1].clone())
    }

    /// The outputs of the last two cells.
    pub(crate) fn grouped_ends(
        &self,
        ends: GroupedEnds,
        pass: &Pass<'_>,
        found: &FoundGradients,
    ) -> Result<GroupedEnds> {
        match self.cells.len() {
            0 => Ok(ends),
            1 => Ok(GroupedEnds {
                s1: self.grouped_last(&ends, pass, found)?,
                s0: ends.s1,
            }),
            _ => {
                let (y, shapes) = self.run_grouped(&ends, pass, found, true)?;
                let [shape0, shape1] = [shapes[0].clone(), shapes[1].clone()];
                let len = shape0.elem_count();
                Ok(GroupedEnds {
                    s0: y.narrow(0, 0, len)?.reshape(shape0)?,
                    s1: y.narrow(0, len, shape1.elem_count())?.reshape(shape1)?,
                })
            }
        }
    }

    /// The numbers of the last output, or of the last two, and their shapes.
    fn run_grouped(
        &self,
        ends: &GroupedEnds,
        pass: &Pass<'_>,
        found: &FoundGradients,
        gives_both: bool,
    ) -> Result<(Tensor, Vec<Shape>)> {
        let (s0, s1) = (ends.s0.contiguous()?, ends.s1.contiguous()?);
        let (_, n_images, ..) = s1.dims4()?;
        let kinds = match &self.mixing {
            None => Vec::new(),
            Some(mixing) => mixing
                .of_kinds
                .iter()
                .map(|(operations, edges)| {
                    let parts: Vec<Tensor> = [Some(operations), *edges]
                        .into_iter()
                        .flatten()
                        .map(Tensor::flatten_all)
                        .collect::<Result<_>>()?;
                    Tensor::cat(&parts, 0)
                })
                .collect::<Result<Vec<_>>>()?,
        };
        let mixing_lens = [0, 1].map(|kind| kinds.get(kind).map_or(0, Tensor::elem_count));
        let mixing = match &kinds[..] {
            [] => None,
            kinds => Some(Tensor::cat(kinds, 0)?),
        };
        let wants = Wants {
            inputs: [s0.track_op(), s1.track_op()],
            weights: pass.tracks_weights(),
            mixing: mixing.as_ref().is_some_and(Tensor::track_op),
        };

        let packed = pack_weights(&self.cells)?;
        let masks = self.masks(n_images, &s1, pass)?;
        let running = if pass.is_training() {
            None
        } else {
            Some(self.running_tables()?)
        };
        let mut masks = masks.map(Vec::into_iter);
        let mut running = running.map(Vec::into_iter);
        let mut start = 0;
        let cells = self.cells.iter().enumerate().map(|(index, cell)| {
            let slots = cell.grouping.slots.iter().map(|numbers| {
                let len: usize = numbers
                    .iter()
                    .map(|number| cell.weights[*number].elem_count())
                    .sum();
                let own = (start, len);
                start += len;
                own
            });
            let kind = self.mixing.as_ref().map(|mixing| mixing.kinds[index]);
            let mixing = kind.map(|kind| (kinds[kind].detach(), kind));
            CellRun {
                plan: cell.plan.clone(),
                grouping: cell.grouping.clone(),
                weights: cell.weights.clone(),
                slots: slots.collect(),
                running: running.as_mut().and_then(Iterator::next),
                masks: masks.as_mut().and_then(Iterator::next),
                mixing,
            }
        });
        let run = Run {
            cells: cells.collect(),
            packed,
            wants,
            gives_both,
            share: pass.share().cloned(),
            found: found.clone(),
            mixing_lens,
        };

        let ends = [s0.detach(), s1.detach()];
        let mut forward = CellForward::new(&run, ends.clone());
        for cell in 0..run.cells.len() {
            forward.cell(cell)?;
        }
        let n_given = if gives_both { 2 } else { 1 };
        let outputs = forward.outputs(n_given)?;
        let shapes = outputs
            .iter()
            .map(|output| output.shape().clone())
            .collect();
        let y = match &outputs[..] {
            [only] => only.flatten_all()?,
            outputs => pack(&outputs.iter().collect::<Vec<_>>(), None)?,
        };
        let saved = forward.saved();
        if pass.is_training() {
            self.follow(&run, &saved)?;
        }
        if !(wants.inputs[0] || wants.inputs[1] || wants.weights || wants.mixing) {
            return Ok((y, shapes));
        }
        let op = GroupedOp {
            y: y.clone(),
            state: Mutex::new(pass.is_training().then_some((run, saved))),
            has_mixing: mixing.is_some(),
        };
        // Without weights that mix, the third argument is one of the others, and gets no gradient as the third.
        let third = mixing.unwrap_or_else(|| s1.clone());
        Ok((s0.apply_op3(&s1, &third, op)?, shapes))
    }

    /// Draws what drop path leaves, for all cells at once.
    fn masks(&self, n: usize, like: &Tensor, pass: &Pass<'_>) -> Result<Option<Vec<DrawnMasks>>> {
        let Some(masks) = self
            .cells
            .iter()
            .map(|cell| cell.masks(n, pass))
            .collect::<Option<Vec<_>>>()
        else {
            return Ok(None);
        };
        let drawn: Vec<f32> = masks
            .iter()
            .flatten()
            .flatten()
            .flatten()
            .flatten()
            .copied()
            .collect();
        let n_drawn = drawn.len();
        let drawn = Tensor::from_vec(drawn, n_drawn, like.device())?.to_dtype(like.dtype())?;
        let mut start = 0;
        let mut take = |mask: &Option<Vec<f32>>| {
            let Some(mask) = mask else { return Ok(None) };
            let own = drawn.narrow(0, start, mask.len())?;
            start += mask.len();
            Ok(Some(own))
        };
        let mut of_edge =
            |masks: &Vec<Option<Vec<f32>>>| masks.iter().map(&mut take).collect::<Result<Vec<_>>>();
        let mut of_cell = |masks: &Vec<Vec<Option<Vec<f32>>>>| {
            masks.iter().map(&mut of_edge).collect::<Result<Vec<_>>>()
        };
        masks
            .iter()
            .map(&mut of_cell)
            .collect::<Result<Vec<_>>>()
            .map(Some)
    }

    /// The tables of all batch normalisations' running statistics, of each cell in the order of its grouping, and where
    /// those of each start.
    fn running_tables(&self) -> Result<Vec<(Tensor, Vec<usize>)>> {
        let norms: Vec<&BatchNorm> = self
            .cells
            .iter()
            .flat_map(|cell| {
                cell.grouping
                    .norms
                    .iter()
                    .map(|number| &cell.norms[*number])
            })
            .collect();
        let packed = |tensors: Vec<Tensor>| pack(&tensors.iter().collect::<Vec<_>>(), None);
        let means = norms
            .iter()
            .map(|norm| norm.running().0.as_detached_tensor());
        let vars = norms
            .iter()
            .map(|norm| norm.running().1.as_detached_tensor());
        let moments = packed(means.chain(vars).collect())?;
        let n = moments.elem_count() / 2;
        let moments = moments.reshape((2, n))?.to_dtype(DType::F64)?;
        let factors: Vec<Tensor> = norms
            .iter()
            .filter_map(|norm| Some(norm.affine()?.0.as_detached_tensor()))
            .collect();
        let shifts: Vec<Tensor> = norms
            .iter()
            .filter_map(|norm| Some(norm.affine()?.1.as_detached_tensor()))
            .collect();
        let affine = match factors.len() {
            0 => None,
            found if found == norms.len() => Some([packed(factors)?, packed(shifts)?]),
            _ => candle_core::bail!(
                "grouped cells: some batch normalisations have factors, and some have not"
            ),
        };
        let affine = affine.as_ref().map(|[weight, bias]| [weight, bias]);
        let table = kernels::channel_norm::given_table(&moments, affine, BATCH_NORM_EPS)?;
        let mut first = 0;
        let mut of_cell = |cell: &&FusedCell| {
            let mut starts = vec![0; cell.norms.len()];
            let mut len = 0;
            for &number in &cell.grouping.norms {
                starts[number] = len;
                len += cell.norms[number].running().0.elem_count();
            }
            let own = table.narrow(0, first, len)?;
            first += len;
            Ok((own, starts))
        };
        self.cells.iter().map(&mut of_cell).collect()
    }

    /// Moves the running statistics towards the batch's.
    fn follow(&self, run: &Run, saved: &[forward::Saved]) -> Result<()> {
        let mut pieces: Vec<Following<'_>> = Vec::new();
        for (cell, saved) in self.cells.iter().zip(saved) {
            for (norm, seen) in cell.norms.iter().zip(&saved.tables) {
                let Some((table, x)) = seen else { continue };
                pieces.push(norm.following(table.clone(), run.count(x)?));
            }
        }
        follow(&pieces, BATCH_NORM_MOMENTUM)
    }
}

/// The parameters of all cells in the order of their slots.
fn pack_weights(cells: &[&FusedCell]) -> Result<Tensor> {
    let tensors: Vec<Tensor> = cells
        .iter()
        .flat_map(|cell| {
            let numbers = cell.grouping.slots.iter().flatten();
            numbers.map(|number| cell.weights[*number].as_detached_tensor())
        })
        .collect();
    pack(&tensors.iter().collect::<Vec<_>>(), None)
}

/// A run as an operation of candle's graph.
struct GroupedOp {
    /// What came out.
    y: Tensor,
    /// What the backward pass needs; nothing outside training.
    state: Mutex<Option<(Run, Vec<forward::Saved>)>>,
    has_mixing: bool,
}

impl CustomOp3 for GroupedOp {
    fn name(&self) -> &'static str {
        "grouped_cells"
    }

    fn cpu_fwd(
        &self,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (storage, layout) = self.y.storage_and_layout();
        match storage.try_clone(layout)? {
            Storage::Cpu(storage) => Ok((storage, self.y.shape().clone())),
            _ => candle_core::bail!("grouped cells: their result lies on another device"),
        }
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        _: &candle_core::CudaStorage,
        _: &Layout,
        _: &candle_core::CudaStorage,
        _: &Layout,
        _: &candle_core::CudaStorage,
        _: &Layout,
    ) -> Result<(candle_core::CudaStorage, Shape)> {
        let (storage, layout) = self.y.storage_and_layout();
        match storage.try_clone(layout)? {
            Storage::Cuda(storage) => Ok((storage, self.y.shape().clone())),
            _ => candle_core::bail!("grouped cells: their result lies on another device"),
        }
    }

    fn bwd(
        &self,
        s0: &Tensor,
        s1: &Tensor,
        _: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let state = self
            .state
            .lock()
            .expect("no thread panicked with it")
            .take();
        let Some((run, saved)) = state else {
            candle_core::bail!(
                "grouped cells: the backward pass runs once for each forward pass in training"
            );
        };
        let ends = [s0.detach(), s1.detach()];
        let grads = backward::backward(&run, saved, ends, &grad.contiguous()?)?;
        let [grad0, grad1] = grads.inputs;
        Ok((grad0, grad1, grads.mixing.filter(|_| self.has_mixing)))
    }
}
