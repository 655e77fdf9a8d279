//! The launches of [`halves`](super::halves()).

use candle_core::Result;

use super::Halves;
use crate::gpu::{Arg, Gpu, OnHeld, Source, blocks_over, held, source, whole};

const SOURCE: Source = source!("halves");

pub(super) fn halves<S: Gpu>(op: &Halves<'_>, on: &S) -> Result<S> {
    let (shape, dtype) = op.result();
    let n = shape.elem_count();
    Arg::count(n.max(op.from.elem_count()))?;
    let out = on.alloc(n, dtype)?;
    let [h, w] = op.whole;
    let mut args = vec![
        held::<S>(op.from)?,
        whole(&out)?,
        Arg::count(op.c * op.n)?,
        Arg::count(h)?,
        Arg::count(w)?,
    ];
    let kernel = if op.is_gradient {
        "gradient"
    } else {
        args.push(Arg::Int(i32::from(op.activates)));
        "forward"
    };
    out.launch(&SOURCE, kernel, dtype, blocks_over(n), &args)?;
    Ok(out)
}
