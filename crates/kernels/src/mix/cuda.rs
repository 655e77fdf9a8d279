//! The launches of [`mix`](super::mix()).

use candle_core::{DType, Result};

use super::{Dots, Mix, Term, WeightGradients};
use crate::gpu::{
    Arg, Entries, Entry, Gpu, Source, address_of, blocks_over, held, n_parts, source, sum_parts,
    whole,
};

const SOURCE: Source = source!("mix");

/// Numbers of a channel that fall to one block; `PIECE` of the kernels.
const PIECE: usize = 1024;

fn entries<S: Gpu>(terms: &[Term], places: Option<&[usize]>) -> Result<Box<Entries>> {
    Entries::new(terms.iter().enumerate().map(|(index, term)| {
        let parts = [&term.norm, &term.weight, &term.mask, &term.gate];
        let [norm, weight, mask, gate] = parts.map(|part| address_of::<S>(part.as_ref()));
        Ok(Entry {
            pointers: [
                address_of::<S>(Some(&term.x))?,
                norm?,
                weight?,
                mask?,
                gate?,
            ],
            ints: [
                term.first as i32,
                (term.first + term.n_channels) as i32,
                term.shuffled_from.map_or(-1, |from| from as i32),
                places.map_or(-1, |places| places[index] as i32),
            ],
        })
    }))
}

pub(super) fn mix<S: Gpu>(op: &Mix<'_>, on: &S) -> Result<S> {
    let [c, n, h, w] = op.shape;
    let len = n * h * w;
    Arg::count(c * len)?;
    let y = on.alloc(c * len, op.dtype)?;
    let n_pieces = len.div_ceil(PIECE);
    let terms = entries::<S>(op.terms, None)?;
    let args = [
        Arg::Entries(&terms),
        whole(&y)?,
        Arg::count(op.terms.len())?,
        Arg::count(op.shuffle.n_groups)?,
        Arg::count(op.shuffle.period)?,
        Arg::Int(i32::from(op.is_shuffled)),
        Arg::count(len)?,
        Arg::count(h * w)?,
        Arg::count(n_pieces)?,
        Arg::Int(i32::from(op.activates)),
    ];
    y.launch(&SOURCE, "forward", op.dtype, c * n_pieces, &args)?;
    Ok(y)
}

pub(super) fn dots<S: Gpu>(op: &Dots<'_>, on: &S) -> Result<S> {
    let (_, n, h, w) = op.grad.dims4()?;
    let (len, dtype) = (n * h * w, op.grad.dtype());
    let n_sums = op.terms.len() * op.n_rows;
    if n_sums == 0 {
        return on.alloc(0, DType::F64);
    }
    let n_parts = n_parts(len.div_ceil(PIECE), n_sums);
    let parts = on.alloc(2 * n_parts * n_sums, DType::F64)?;
    let terms = entries::<S>(op.terms, None)?;
    let args = [
        Arg::Entries(&terms),
        held::<S>(op.grad)?,
        whole(&parts)?,
        Arg::count(op.terms.len())?,
        Arg::count(op.n_rows)?,
        Arg::count(op.shuffle.n_groups)?,
        Arg::count(op.shuffle.period)?,
        Arg::Int(i32::from(op.is_shuffled)),
        Arg::count(len)?,
        Arg::count(h * w)?,
        Arg::count(n_parts)?,
    ];
    parts.launch(&SOURCE, "dots_parts", dtype, n_parts * n_sums, &args)?;
    sum_parts(&SOURCE, &parts, n_parts, 2 * n_sums, dtype, DType::F64)
}

pub(super) fn weight_gradients<S: Gpu>(op: &WeightGradients<'_>, on: &S) -> Result<S> {
    let out = on.alloc(op.n, op.dtype)?;
    let terms = entries::<S>(op.terms, Some(op.places))?;
    let args = [
        Arg::Entries(&terms),
        held::<S>(op.dots)?,
        whole(&out)?,
        Arg::count(op.terms.len())?,
        Arg::count(op.n_rows)?,
        Arg::count(op.n)?,
    ];
    out.launch(
        &SOURCE,
        "weight_gradients",
        op.dtype,
        blocks_over(op.n),
        &args,
    )?;
    Ok(out)
}
