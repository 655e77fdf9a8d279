//! The same done to many small tensors in few launches: weights, their gradients, running statistics.

use candle_core::{DType, Result, Shape, Tensor, Var};

use crate::error::check;
use crate::gpu::{OnHeld, read};

#[cfg(any(feature = "cuda", shim))]
mod cuda;

/// The numbers of all tensors one behind the other, times `factor` if there is one.
///
/// # Shapes
/// `tensors`: any, contiguous, at least one, of one type; `factor`: one number of that type.
///
/// # Errors
/// If the types differ.
pub fn pack(tensors: &[&Tensor], factor: Option<&Tensor>) -> Result<Tensor> {
    let first = first("pack", tensors)?;
    if let Some(factor) = factor {
        crate::scale::check_weight("pack", factor, first)?;
    }
    Pack {
        tensors,
        factor,
        dtype: first.dtype(),
    }
    .run(first)
}

/// The sum of the squares of all numbers, `[1]`, `f64`.
///
/// # Errors
/// If the types of the tensors differ, or there are none.
pub fn sum_of_squares(tensors: &[&Tensor]) -> Result<Tensor> {
    Squares { tensors }.run(first("sum_of_squares", tensors)?)
}

fn first<'a>(op: &'static str, tensors: &[&'a Tensor]) -> Result<&'a Tensor> {
    let Some(first) = tensors.first() else {
        candle_core::bail!("{op}: no tensors");
    };
    for tensor in tensors {
        check(op, "tensor", tensor, tensor.dims(), first)?;
    }
    Ok(first)
}

struct Pack<'a> {
    tensors: &'a [&'a Tensor],
    factor: Option<&'a Tensor>,
    dtype: DType,
}

impl OnHeld for Pack<'_> {
    const OP: &'static str = "pack";

    fn result(&self) -> (Shape, DType) {
        let n: usize = self.tensors.iter().map(|tensor| tensor.elem_count()).sum();
        (n.into(), self.dtype)
    }

    #[cfg(any(feature = "cuda", shim))]
    fn launch<S: crate::gpu::Gpu>(&self, on: &S) -> Result<S> {
        cuda::pack(self, on)
    }

    fn oracle(&self) -> Result<Vec<f64>> {
        let factor = self
            .factor
            .map(read)
            .transpose()?
            .map_or(1.0, |factor| factor[0]);
        let mut all = Vec::new();
        for tensor in self.tensors {
            all.extend(read(tensor)?.into_iter().map(|value| factor * value));
        }
        Ok(all)
    }
}

struct Squares<'a> {
    tensors: &'a [&'a Tensor],
}

impl OnHeld for Squares<'_> {
    const OP: &'static str = "sum_of_squares";

    fn result(&self) -> (Shape, DType) {
        (1.into(), DType::F64)
    }

    #[cfg(any(feature = "cuda", shim))]
    fn launch<S: crate::gpu::Gpu>(&self, on: &S) -> Result<S> {
        cuda::squares(self, on)
    }

    fn oracle(&self) -> Result<Vec<f64>> {
        let mut sum = 0.0;
        for tensor in self.tensors {
            sum += read(tensor)?.iter().map(|value| value * value).sum::<f64>();
        }
        Ok(vec![sum])
    }
}

/// A weight that a step changes.
pub struct SgdPiece<'a> {
    /// The weight.
    pub weight: &'a Var,
    /// Its momentum.
    pub buffer: &'a Var,
    /// Its gradient, contiguous.
    pub grad: &'a Tensor,
}

/// What a step of SGD goes by.
#[derive(Debug, Clone, Copy)]
pub struct SgdStep {
    /// Of the buffers.
    pub momentum: f64,
    /// Times the weight, added to its gradient.
    pub weight_decay: f64,
    /// Of the step.
    pub learning_rate: f64,
    /// By what gradients are multiplied.
    pub gradient_scale: f64,
}

/// `buffer = momentum * buffer + gradient_scale * grad + weight_decay * weight; weight -= learning_rate * buffer`, in
/// place.
///
/// # Errors
/// If shapes or types differ.
pub fn sgd(pieces: &[SgdPiece<'_>], step: SgdStep) -> Result<()> {
    let Some(first) = pieces.first() else {
        return Ok(());
    };
    for SgdPiece {
        weight,
        buffer,
        grad,
    } in pieces
    {
        for (what, tensor) in [("buffer", buffer.as_tensor()), ("gradient", grad)] {
            check("sgd", what, tensor, weight.dims(), first.weight)?;
        }
    }
    let on = first.weight.as_detached_tensor();
    if on.device().is_cpu() && cfg!(not(shim)) {
        return pieces.iter().try_for_each(|piece| sgd_here(piece, step));
    }
    Sgd { pieces, step }.run(&on).map(|_| ())
}

fn sgd_here(piece: &SgdPiece<'_>, step: SgdStep) -> Result<()> {
    let SgdPiece {
        weight,
        buffer,
        grad,
    } = piece;
    let decay = (weight.as_detached_tensor() * step.weight_decay)?;
    let grad = ((grad.detach() * step.gradient_scale)? + decay)?;
    buffer.set(&((buffer.as_detached_tensor() * step.momentum)? + grad)?)?;
    let moved = (buffer.as_detached_tensor() * step.learning_rate)?;
    weight.set(&(weight.as_detached_tensor() - moved)?)
}

struct Sgd<'a> {
    pieces: &'a [SgdPiece<'a>],
    #[cfg_attr(not(any(feature = "cuda", shim)), expect(dead_code))]
    step: SgdStep,
}

impl OnHeld for Sgd<'_> {
    const OP: &'static str = "sgd";

    /// Nothing of use: what changes are the tensors that it holds.
    fn result(&self) -> (Shape, DType) {
        (1.into(), self.pieces[0].weight.dtype())
    }

    #[cfg(any(feature = "cuda", shim))]
    fn launch<S: crate::gpu::Gpu>(&self, on: &S) -> Result<S> {
        cuda::sgd(self, on)
    }

    fn oracle(&self) -> Result<Vec<f64>> {
        candle_core::bail!("sgd: in place on CUDA devices alone")
    }
}

/// A batch normalisation whose running statistics follow a batch.
pub struct Following<'a> {
    /// Running mean.
    pub mean: &'a Var,
    /// Running variance.
    pub var: &'a Var,
    /// The batch's table, contiguous: one of [`channel_norm`](crate::channel_norm).
    pub table: Tensor,
    /// Numbers of a channel that it is of.
    pub count: usize,
}

/// `running = (1 - momentum) * running + momentum * batch`, in place; the variance by its unbiased estimate.
///
/// # Errors
/// If shapes differ.
pub fn follow(pieces: &[Following<'_>], momentum: f64) -> Result<()> {
    let Some(first) = pieces.first() else {
        return Ok(());
    };
    for Following {
        mean, var, table, ..
    } in pieces
    {
        let c = mean.elem_count();
        check("follow", "var", var.as_tensor(), &[c], first.mean)?;
        crate::channel_norm::check_table("follow", table, c)?;
    }
    let on = first.mean.as_detached_tensor();
    if on.device().is_cpu() && cfg!(not(shim)) {
        return pieces
            .iter()
            .try_for_each(|piece| follow_here(piece, momentum));
    }
    Follow { pieces, momentum }.run(&on).map(|_| ())
}

fn follow_here(piece: &Following<'_>, momentum: f64) -> Result<()> {
    let unbias = piece.count as f64 / (piece.count.max(2) - 1) as f64;
    let columns = [(piece.mean, 0, 1.0), (piece.var, 1, unbias)];
    for (running, column, factor) in columns {
        let batch = (piece.table.narrow(1, column, 1)?.flatten_all()? * (momentum * factor))?;
        let kept = (running.as_detached_tensor() * (1.0 - momentum))?;
        running.set(&(kept + batch.to_dtype(running.dtype())?)?)?;
    }
    Ok(())
}

struct Follow<'a> {
    pieces: &'a [Following<'a>],
    #[cfg_attr(not(any(feature = "cuda", shim)), expect(dead_code))]
    momentum: f64,
}

impl OnHeld for Follow<'_> {
    const OP: &'static str = "follow";

    /// Nothing of use: what changes are the tensors that it holds.
    fn result(&self) -> (Shape, DType) {
        (1.into(), self.pieces[0].mean.dtype())
    }

    #[cfg(any(feature = "cuda", shim))]
    fn launch<S: crate::gpu::Gpu>(&self, on: &S) -> Result<S> {
        cuda::follow(self, on)
    }

    fn oracle(&self) -> Result<Vec<f64>> {
        candle_core::bail!("follow: in place on CUDA devices alone")
    }
}
