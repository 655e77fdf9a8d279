//! Cells in a row as one operation: the fast path of training on the CPU.
//!
//! States are laid out `c h w n` ([`kernels::planes`]). A unit's output is stored before its batch
//! normalisation, as are a stem's and an input's where that can be; whoever reads it (the ReLU of the next
//! convolution, the weighted sum of a node) normalises as it reads. A node is written in one pass over all that
//! it sums; channel shuffle and concatenation are a choice of the plane that is written. In the backward pass, too, the gradients of what was normalised are computed
//! where they are read, and nothing is computed that leads to no variable.
//!
//! The cells of [`supernet`](crate::supernet) and [`derived`](crate::derived) are the oracle: they build these
//! operations from the same parameters and are held against them by tests.

mod backward;
mod chain;
mod forward;
mod grouped;
mod plan;
mod stem;

use std::sync::Arc;

use candle_core::{CpuStorage, DType, Device, Layout, Result, Tensor, Var, WithDType};
use kernels::Element;
use kernels::planes::Moments;

pub(crate) use self::chain::{Chain, ChainMixing, Start};
use self::forward::{Saved, Statistics};
use self::grouped::Grouping;
pub(crate) use self::grouped::to_grouped;
pub(crate) use self::plan::{CellParts, EdgeParts, InputParts};
use self::plan::{Collector, EdgePlan, Sizes};
pub(crate) use self::plan::{Norm, OperationKind, OperationPlan, Plan, UnitPlan};
pub(crate) use self::stem::StemRun;
use crate::Pass;
use crate::layers::BatchNorm;

/// A cell, ready to run as one operation.
pub(crate) struct FusedCell {
    plan: Arc<Plan>,
    grouping: Arc<Grouping>,
    /// The parameters, in the order of the plan.
    weights: Vec<Var>,
    norms: Vec<BatchNorm>,
}

impl FusedCell {
    /// Fuses a cell; its parameters stay those of its parts.
    pub(crate) fn new(
        parts: &CellParts,
        inputs: [InputParts<'_>; 2],
        edges: &[EdgeParts<'_>],
    ) -> Self {
        let mut collector = Collector::default();
        let precision = match &inputs[1] {
            InputParts::Same(block) => block.precision(),
            InputParts::Halve(block) => block.precision(),
        };
        let inputs = inputs.map(|input| collector.input(&input));
        let edges: Vec<EdgePlan> = edges
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
        let plan = Plan {
            n_nodes,
            channels,
            ratio,
            is_reduction,
            inputs,
            edges,
            n_weights: collector.len,
            n_norms: collector.norms.len(),
            n_primitives,
            precision,
        };
        Self {
            grouping: Arc::new(Grouping::new(&plan, &collector.weights)),
            plan: Arc::new(plan),
            weights: collector.weights,
            norms: collector.norms,
        }
    }

    /// What it computes, with its parameters and batch normalisations.
    pub(crate) fn parts(&self) -> (&Plan, &[Var], &[BatchNorm]) {
        (&self.plan, &self.weights, &self.norms)
    }

    /// Whether a pass can be fused: on the CPU, and in training unless nothing is to have a gradient.
    pub(crate) fn can_run(x: &Tensor, tracked: bool, pass: &Pass<'_>) -> bool {
        matches!(x.device(), Device::Cpu)
            && matches!(x.dtype(), DType::F32 | DType::F64)
            && pass.can_fuse()
            && (pass.is_training() || !(tracked || pass.tracks_weights() || x.track_op()))
    }

    /// Whether a pass runs grouped: on CUDA, or where it is asked to, under the same conditions.
    pub(crate) fn can_group(x: &Tensor, tracked: bool, pass: &Pass<'_>) -> bool {
        pass.groups(x.device())
            && matches!(x.dtype(), DType::F32 | DType::F64)
            && (pass.is_training() || !(tracked || pass.tracks_weights() || x.track_op()))
    }

    /// The running statistics of its batch normalisations.
    fn running(&self) -> Result<Vec<Statistics>> {
        self.norms.iter().map(running).collect()
    }

    /// Draws what drop path leaves of `n` images, in the order in which the operations would run one by one.
    fn masks(&self, n: usize, pass: &Pass<'_>) -> Option<Masks> {
        if !pass.drops_paths() {
            return None;
        }
        let mask = |operation: &OperationPlan| match operation.kind {
            OperationKind::Identity => None,
            _ => pass.draw_mask(n),
        };
        let edges = self.plan.edges.iter();
        Some(
            edges
                .map(|edge| edge.operations.iter().map(mask).collect())
                .collect(),
        )
    }
}

/// Which gradients lead to a variable.
#[derive(Clone, Copy)]
struct Wants {
    inputs: [bool; 2],
    weights: bool,
    mixing: bool,
}

/// A cell that is to run.
#[derive(Clone, Copy)]
struct CellOp<'a> {
    plan: &'a Plan,
    wants: Wants,
    /// What batch normalisations go by, if not by the batch.
    running: Option<&'a [Statistics]>,
    masks: Option<&'a Masks>,
}

/// For each operation of each edge, by what drop path multiplies each image, if it may drop the operation.
type Masks = Vec<Vec<Option<Vec<f32>>>>;

impl CellOp<'_> {
    fn cast_masks<T: Element>(&self) -> CastMasks<T> {
        let cast = |&value: &f32| T::from_f64(f64::from(value));
        let cast = |mask: &Vec<f32>| mask.iter().map(cast).collect();
        let of_edge = |masks: &Vec<Option<Vec<f32>>>| {
            let masks = masks.iter().map(|mask| mask.as_ref().map(cast));
            masks.collect()
        };
        CastMasks(self.masks.map(|masks| masks.iter().map(of_edge).collect()))
    }
}

/// [`Masks`] in the element type of what they multiply, if there are any.
struct CastMasks<T>(Option<Vec<Vec<Option<Vec<T>>>>>);

impl<T> CastMasks<T> {
    /// By what an operation of an edge is multiplied.
    fn of(&self, edge: usize, operation: usize) -> Option<&[T]> {
        self.0.as_ref()?[edge][operation].as_deref()
    }
}

/// A cell that has run.
#[derive(Clone, Copy)]
struct CellRun<'a, T: Element> {
    op: CellOp<'a>,
    sizes: &'a Sizes,
    parameters: &'a [T],
    /// The weights of the operations, `e p`, and of the edges, `e`, where there are any.
    mixing: &'a [T],
    /// What it read; nothing of a stem whose output is not stored.
    s: [&'a [T]; 2],
    /// What it gave.
    nodes: &'a [T],
    saved: &'a Saved<T>,
}

/// The running statistics of a batch normalisation.
fn running(norm: &BatchNorm) -> Result<Statistics> {
    let values = |var: &Var| {
        var.as_detached_tensor()
            .to_dtype(DType::F64)?
            .to_vec1::<f64>()
    };
    let (mean, var) = norm.running();
    let moments = values(mean)?.into_iter().zip(values(var)?);
    Ok(Statistics {
        moments: moments.map(|(mean, var)| Moments { mean, var }).collect(),
        count: 0,
    })
}

/// The numbers of a contiguous argument.
fn slice<'a, T: WithDType>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [T]> {
    let Some((start, end)) = layout.contiguous_offsets() else {
        candle_core::bail!("fused: expected contiguous arguments");
    };
    Ok(&storage.as_slice::<T>()?[start..end])
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
