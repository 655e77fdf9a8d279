//! The launch of [`weighted_add`](super::weighted_add()).

use candle_core::Result;

use crate::gpu::{Arg, Gpu, In, Source, blocks_over, source, whole};

const SOURCE: Source = source!("weighted_add");

/// See [`naive::forward`](super::naive::forward).
pub(super) fn forward<S: Gpu>(acc: &In<'_, S>, x: &In<'_, S>, weight: &In<'_, S>) -> Result<S> {
    let dtype = acc.dtype("weighted_add")?;
    let y = acc.storage.alloc(acc.len(), dtype)?;
    let args = [
        acc.arg()?,
        x.arg()?,
        weight.arg()?,
        whole(&y)?,
        Arg::count(acc.len())?,
    ];
    y.launch(&SOURCE, "forward", dtype, blocks_over(acc.len()), &args)?;
    Ok(y)
}
