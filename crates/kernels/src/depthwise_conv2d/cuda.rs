//! The launches of [`depthwise_conv2d`](super::depthwise_conv2d()).

use candle_core::{DType, Result};

use super::{OP, Shape};
use crate::gpu::{Arg, Gpu, In, Source, blocks_over, n_parts, source, sum_parts, whole};

const SOURCE: Source = source!("depthwise_conv2d");

/// See [`naive::forward`](super::naive::forward).
pub(super) fn forward<S: Gpu>(x: &In<'_, S>, w: &In<'_, S>, shape: &Shape) -> Result<S> {
    let kernels = ["forward_3x3", "forward_5x5", "forward"];
    per_pixel(x, w, shape, shape.window.output_len(), kernels)
}

/// See [`naive::grad_x`](super::naive::grad_x).
pub(super) fn grad_x<S: Gpu>(grad: &In<'_, S>, w: &In<'_, S>, shape: &Shape) -> Result<S> {
    let kernels = ["grad_x_3x3", "grad_x_5x5", "grad_x"];
    per_pixel(grad, w, shape, shape.window.input_len(), kernels)
}

/// One of the kernels for windows of 3x3, of 5x5 and of any size, a thread per pixel of the result.
fn per_pixel<S: Gpu>(
    from: &In<'_, S>,
    w: &In<'_, S>,
    shape: &Shape,
    len: usize,
    [of_3x3, of_5x5, of_any]: [&str; 3],
) -> Result<S> {
    let dtype = from.dtype(OP)?;
    let kernel = match shape.window.kernel {
        [3, 3] => of_3x3,
        [5, 5] => of_5x5,
        _ => of_any,
    };
    let n_planes = shape.n * shape.c;
    let n = n_planes * len;
    Arg::count(n)?;
    let to = from.storage.alloc(n, dtype)?;
    let args = [
        from.arg()?,
        w.arg()?,
        whole(&to)?,
        Arg::count(n_planes)?,
        Arg::count(shape.c)?,
        Arg::window(&shape.window),
    ];
    to.launch(&SOURCE, kernel, dtype, blocks_over(n), &args)?;
    Ok(to)
}

/// See [`naive::grad_w`](super::naive::grad_w).
pub(super) fn grad_w<S: Gpu>(grad: &In<'_, S>, x: &In<'_, S>, shape: &Shape) -> Result<S> {
    let dtype = grad.dtype(OP)?;
    let n_weights = shape.c * shape.window.kernel_len();
    let n_parts = n_parts(shape.n, n_weights);
    let parts = grad.storage.alloc(n_parts * n_weights, DType::F64)?;
    let args = [
        grad.arg()?,
        x.arg()?,
        whole(&parts)?,
        Arg::count(shape.n)?,
        Arg::count(shape.c)?,
        Arg::count(n_parts)?,
        Arg::window(&shape.window),
    ];
    parts.launch(&SOURCE, "grad_w_parts", dtype, n_parts * n_weights, &args)?;
    sum_parts(&SOURCE, &parts, n_parts, n_weights, dtype, dtype)
}
