//! The launches of [`conv2d`](super::conv2d()).

use candle_core::{DType, Result};

use super::{OP, Shape};
use crate::gpu::{Arg, Gpu, In, Source, blocks_over, n_parts, source, sum_parts, whole};

const SOURCE: Source = source!("conv2d");

/// See [`naive::forward`](super::naive::forward).
pub(super) fn forward<S: Gpu>(x: &In<'_, S>, w: &In<'_, S>, shape: &Shape) -> Result<S> {
    let n = shape.n * shape.o * shape.window.output_len();
    per_pixel(x, w, shape, n, "forward")
}

/// See [`naive::grad_x`](super::naive::grad_x).
pub(super) fn grad_x<S: Gpu>(grad: &In<'_, S>, w: &In<'_, S>, shape: &Shape) -> Result<S> {
    let n = shape.n * shape.i * shape.window.input_len();
    per_pixel(grad, w, shape, n, "grad_x")
}

/// A thread per number of the result, of which there are `n`.
fn per_pixel<S: Gpu>(
    from: &In<'_, S>,
    w: &In<'_, S>,
    shape: &Shape,
    n: usize,
    kernel: &str,
) -> Result<S> {
    let dtype = from.dtype(OP)?;
    Arg::count(n)?;
    let to = from.storage.alloc(n, dtype)?;
    let args = [
        from.arg()?,
        w.arg()?,
        whole(&to)?,
        Arg::count(shape.n)?,
        Arg::count(shape.i)?,
        Arg::count(shape.o)?,
        Arg::window(&shape.window),
    ];
    to.launch(&SOURCE, kernel, dtype, blocks_over(n), &args)?;
    Ok(to)
}

/// See [`naive::grad_w`](super::naive::grad_w).
pub(super) fn grad_w<S: Gpu>(grad: &In<'_, S>, x: &In<'_, S>, shape: &Shape) -> Result<S> {
    let dtype = grad.dtype(OP)?;
    let n_weights = shape.o * shape.i * shape.window.kernel_len();
    let n_parts = n_parts(shape.n, n_weights);
    let parts = grad.storage.alloc(n_parts * n_weights, DType::F64)?;
    let args = [
        grad.arg()?,
        x.arg()?,
        whole(&parts)?,
        Arg::count(shape.n)?,
        Arg::count(shape.i)?,
        Arg::count(shape.o)?,
        Arg::count(n_parts)?,
        Arg::window(&shape.window),
    ];
    parts.launch(&SOURCE, "grad_w_parts", dtype, n_parts * n_weights, &args)?;
    sum_parts(&SOURCE, &parts, n_parts, n_weights, dtype, dtype)
}
