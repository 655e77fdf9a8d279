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

mod backward;
mod chain;
mod forward;
mod plan;

use std::sync::{Arc, Mutex};

use candle_core::{
    CpuStorage, CustomOp3, DType, Device, Layout, Result, Shape, Tensor, Var, WithDType,
};
use kernels::planes::Grid;
use kernels::{BatchStatistics, Element};

use self::backward::Backward;
pub(crate) use self::chain::Chain;
use self::chain::Inbox;
use self::forward::Saved;
pub(crate) use self::plan::{CellParts, EdgeParts, InputParts};
use self::plan::{Collector, EdgePlan};
pub(crate) use self::plan::{Norm, OperationKind, OperationPlan, Plan, UnitPlan};
use crate::Pass;
use crate::layers::BatchNorm;

/// A cell, ready to run as one operation.
pub(crate) struct FusedCell {
    plan: Arc<Plan>,
    /// The parameters, in the order of the operation's third argument.
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

    /// What it computes, with its parameters and batch normalisations.
    pub(crate) fn parts(&self) -> (&Plan, &[Var], &[BatchNorm]) {
        (&self.plan, &self.weights, &self.norms)
    }

    /// Whether a pass can be fused: training on the CPU, without drop path.
    pub(crate) fn can_run(x: &Tensor, pass: &Pass<'_>) -> bool {
        matches!(x.device(), Device::Cpu)
            && matches!(x.dtype(), DType::F32 | DType::F64)
            && pass.can_fuse()
    }

    /// Runs the cell on the outputs of the two before it, `c h w n`. `mixing`: the weights of the operations,
    /// `e p`, and of the edges, `e`, where there are any.
    fn forward(
        &self,
        [s0, s1]: [&Tensor; 2],
        mixing: Mixing<'_>,
        pass: &Pass<'_>,
        inboxes: Inboxes,
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
            DType::F64 => self.apply::<f64>(&s0, &s1, &parameters, wants, inboxes),
            _ => self.apply::<f32>(&s0, &s1, &parameters, wants, inboxes),
        }
    }

    fn apply<T: Element>(
        &self,
        s0: &Tensor,
        s1: &Tensor,
        parameters: &Tensor,
        wants: Wants,
        inboxes: Inboxes,
    ) -> Result<Tensor> {
        let saved = Arc::new(Mutex::new(None));
        let op = CellOp::<T> {
            plan: self.plan.clone(),
            wants,
            inboxes,
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

/// The weights of the operations, `e p`, and of the edges, `e`.
type Mixing<'a> = Option<(&'a Tensor, Option<&'a Tensor>)>;

/// Where gradients are left past candle's bookkeeping.
struct Inboxes {
    /// Of the first input.
    s0: Option<Inbox>,
    /// Of the output.
    out: Inbox,
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
    inboxes: Inboxes,
    saved: Arc<Mutex<Option<Saved<T>>>>,
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
        let left = self.inboxes.out.take::<T>();
        let grads = {
            let tensors = [s0, s1, parameters, out, &grad_out].map(Tensor::storage_and_layout);
            let mut slices = Vec::with_capacity(tensors.len());
            for (storage, layout) in &tensors {
                let candle_core::Storage::Cpu(storage) = &**storage else {
                    candle_core::bail!("fused cell: runs on the CPU alone");
                };
                slices.push(slice::<T>(storage, layout)?);
            }
            let given = [slices[4]].into_iter().chain(left.as_deref()).collect();
            let backward = Backward::new(self, &sizes, slices[2], &saved, slices[3], given);
            backward.run([slices[0], slices[1]])
        };
        if let Some(inbox) = &self.inboxes.s0 {
            inbox.leave(grads.left);
        }
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
