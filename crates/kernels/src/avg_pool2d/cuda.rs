//! The launches of [`avg_pool2d`](super::avg_pool2d()).

use candle_core::Result;

use super::{OP, Shape};
use crate::gpu::{Arg, Gpu, In, Source, blocks_over, source, whole};

const SOURCE: Source = source!("avg_pool2d");

/// See [`naive::forward`](super::naive::forward).
pub(super) fn forward<S: Gpu>(x: &In<'_, S>, shape: &Shape) -> Result<S> {
    per_pixel(x, shape, shape.window.output_len(), "forward")
}

/// See [`naive::grad_x`](super::naive::grad_x).
pub(super) fn grad_x<S: Gpu>(grad: &In<'_, S>, shape: &Shape) -> Result<S> {
    per_pixel(grad, shape, shape.window.input_len(), "grad_x")
}

/// A thread per pixel of the result.
fn per_pixel<S: Gpu>(from: &In<'_, S>, shape: &Shape, len: usize, kernel: &str) -> Result<S> {
    let dtype = from.dtype(OP)?;
    let n = shape.n_planes() * len;
    Arg::count(n)?;
    let to = from.storage.alloc(n, dtype)?;
    let args = [
        from.arg()?,
        whole(&to)?,
        Arg::count(shape.n_planes())?,
        Arg::window(&shape.window),
    ];
    to.launch(&SOURCE, kernel, dtype, blocks_over(n), &args)?;
    Ok(to)
}
