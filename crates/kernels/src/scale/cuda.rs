//! The launches of [`scale`](super::scale()).

use candle_core::{DType, Result};

use crate::gpu::{
    Arg, BLOCKS_OF_A_REDUCTION, Gpu, In, Source, blocks_over, source, sum_parts, whole,
};

const SOURCE: Source = source!("scale");

/// See [`naive::forward`](super::naive::forward).
pub(super) fn forward<S: Gpu>(x: &In<'_, S>, weight: &In<'_, S>) -> Result<S> {
    let dtype = x.dtype("scale")?;
    let y = x.storage.alloc(x.len(), dtype)?;
    let args = [x.arg()?, weight.arg()?, whole(&y)?, Arg::count(x.len())?];
    y.launch(&SOURCE, "forward", dtype, blocks_over(x.len()), &args)?;
    Ok(y)
}

/// See [`naive::dot`](super::naive::dot).
pub(super) fn dot<S: Gpu>(a: &In<'_, S>, b: &In<'_, S>) -> Result<S> {
    let dtype = a.dtype("dot")?;
    let n_blocks = blocks_over(a.len()).clamp(1, BLOCKS_OF_A_REDUCTION);
    let parts = a.storage.alloc(n_blocks, DType::F64)?;
    let args = [a.arg()?, b.arg()?, whole(&parts)?, Arg::count(a.len())?];
    parts.launch(&SOURCE, "dot_parts", dtype, n_blocks, &args)?;
    sum_parts(&SOURCE, &parts, n_blocks, 1, dtype, dtype)
}
