//! The launches of [`max_pool2d`](super::max_pool2d()).

use candle_core::Result;

use super::{OP, Shape};
use crate::gpu::{Arg, Gpu, In, Source, blocks_over, source, whole};

const SOURCE: Source = source!("max_pool2d");

/// See [`naive::forward`](super::naive::forward).
pub(super) fn forward<S: Gpu>(x: &In<'_, S>, shape: &Shape) -> Result<S> {
    let dtype = x.dtype(OP)?;
    let n = shape.n_planes() * shape.window.output_len();
    let y = x.storage.alloc(n, dtype)?;
    let args = [
        x.arg()?,
        whole(&y)?,
        Arg::count(shape.n_planes())?,
        Arg::window(&shape.window),
    ];
    y.launch(&SOURCE, "forward", dtype, blocks_over(n), &args)?;
    Ok(y)
}

/// See [`naive::grad_x`](super::naive::grad_x).
pub(super) fn grad_x<S: Gpu>(grad: &In<'_, S>, x: &In<'_, S>, shape: &Shape) -> Result<S> {
    let dtype = x.dtype(OP)?;
    Arg::count(x.len())?;
    let grad_x = x.storage.alloc(x.len(), dtype)?;
    let args = [
        grad.arg()?,
        x.arg()?,
        whole(&grad_x)?,
        Arg::count(shape.n_planes())?,
        Arg::window(&shape.window),
    ];
    grad_x.launch(&SOURCE, "grad_x", dtype, blocks_over(x.len()), &args)?;
    Ok(grad_x)
}
