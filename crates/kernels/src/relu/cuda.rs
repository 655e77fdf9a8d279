//! The launches of [`relu`](super::relu()).

use candle_core::Result;

use crate::gpu::{Arg, Gpu, In, Source, blocks_over, source, whole};

const SOURCE: Source = source!("relu");

/// See [`naive::forward`](super::naive::forward).
pub(super) fn forward<S: Gpu>(x: &In<'_, S>) -> Result<S> {
    let dtype = x.dtype("relu")?;
    let y = x.storage.alloc(x.len(), dtype)?;
    let args = [x.arg()?, whole(&y)?, Arg::count(x.len())?];
    y.launch(&SOURCE, "forward", dtype, blocks_over(x.len()), &args)?;
    Ok(y)
}

/// See [`naive::grad_x`](super::naive::grad_x).
pub(super) fn grad_x<S: Gpu>(grad: &In<'_, S>, y: &In<'_, S>) -> Result<S> {
    let dtype = y.dtype("relu")?;
    let grad_x = y.storage.alloc(y.len(), dtype)?;
    let args = [grad.arg()?, y.arg()?, whole(&grad_x)?, Arg::count(y.len())?];
    y.storage
        .launch(&SOURCE, "grad_x", dtype, blocks_over(y.len()), &args)?;
    Ok(grad_x)
}
