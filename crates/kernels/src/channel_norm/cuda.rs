//! The launches of [`channel_norm`](super).

use candle_core::{DType, Result};

use super::{AffineGradients, COLUMNS, Gradient, Table};
use crate::gpu::{
    Arg, Entries, Entry, Gpu, Source, address_of, blocks_over, held, n_parts, source, whole,
};

const SOURCE: Source = source!("channel_norm");

/// Numbers of a channel that fall to one block; `PIECE` of the kernels.
const PIECE: usize = 1024;

pub(super) fn table<S: Gpu>(op: &Table<'_>, on: &S) -> Result<S> {
    let c = op.c;
    let table = on.alloc(c * COLUMNS, DType::F64)?;
    let [weight, bias] = op.affine.map_or([None; 2], |both| both.map(Some));
    let pointer = |tensor| address_of::<S>(tensor).map(Arg::Pointer);
    let (weight, bias) = (pointer(weight)?, pointer(bias)?);
    // Without a batch, kernels go by the type of the affine parameters.
    let dtype = match (op.is_batch, op.affine) {
        (true, _) => op.from.dtype(),
        (false, Some([weight, _])) => weight.dtype(),
        (false, None) => DType::F64,
    };
    if !op.is_batch {
        let args = [
            held::<S>(op.from)?,
            weight,
            bias,
            whole(&table)?,
            Arg::count(c)?,
            Arg::Double(op.eps),
        ];
        table.launch(&SOURCE, "given_table", dtype, blocks_over(c), &args)?;
        return Ok(table);
    }
    let len = op.from.elem_count() / c.max(1);
    Arg::count(op.from.elem_count())?;
    let n_parts = n_parts(len.div_ceil(PIECE), c);
    let parts = on.alloc(2 * n_parts * c, DType::F64)?;
    let args = [
        held::<S>(op.from)?,
        whole(&parts)?,
        Arg::count(c)?,
        Arg::count(len)?,
        Arg::count(n_parts)?,
    ];
    parts.launch(&SOURCE, "batch_parts", dtype, n_parts * c, &args)?;
    let args = [
        whole(&parts)?,
        held::<S>(op.from)?,
        weight,
        bias,
        whole(&table)?,
        Arg::count(c)?,
        Arg::count(len)?,
        Arg::count(n_parts)?,
        Arg::Double(op.eps),
    ];
    table.launch(&SOURCE, "batch_table", dtype, blocks_over(c), &args)?;
    Ok(table)
}

pub(super) fn gradient<S: Gpu>(op: &Gradient<'_>, on: &S) -> Result<S> {
    let (all, n, h, w) = op.x.dims4()?;
    let (len, dtype) = (n * h * w, op.x.dtype());
    Arg::count(all * len)?;
    let out = on.alloc(all * len, dtype)?;
    let n_pieces = len.div_ceil(PIECE);
    let groups = Entries::new(op.groups.iter().map(|group| {
        Ok(Entry {
            pointers: [
                address_of::<S>(Some(&group.grad))?,
                address_of::<S>(group.weight.as_ref())?,
                address_of::<S>(group.mask.as_ref())?,
                address_of::<S>(Some(&group.sums))?,
                0,
            ],
            ints: [0; 4],
        })
    }))?;
    let args = [
        Arg::Entries(&groups),
        held::<S>(op.x)?,
        held::<S>(op.table)?,
        whole(&out)?,
        Arg::count(all / op.groups.len().max(1))?,
        Arg::count(op.stride)?,
        Arg::count(len)?,
        Arg::count(h * w)?,
        Arg::count(n_pieces)?,
        Arg::Double(op.count),
        Arg::Double(op.eps),
    ];
    out.launch(&SOURCE, "gradient", dtype, all * n_pieces, &args)?;
    Ok(out)
}

pub(super) fn affine_gradients<S: Gpu>(op: &AffineGradients<'_>, on: &S) -> Result<S> {
    let out = on.alloc(2 * op.c, op.dtype)?;
    let args = [
        held::<S>(op.sums)?,
        held::<S>(op.table)?,
        whole(&out)?,
        Arg::count(op.c)?,
        Arg::Double(op.eps),
    ];
    out.launch(
        &SOURCE,
        "affine_gradients",
        op.dtype,
        blocks_over(op.c),
        &args,
    )?;
    Ok(out)
}
