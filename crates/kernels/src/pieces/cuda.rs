//! The launches of [`pieces`](super): each takes as many tensors as fit into one.

use candle_core::{DType, Result};

use super::{Follow, Pack, Sgd, Squares};
use crate::gpu::{Arg, Entries, Entry, Gpu, MAX_ENTRIES, Source, address_of, source, whole};

const SOURCE: Source = source!("pieces");

/// Numbers of a tensor that fall to one block; `PIECE` of the kernels.
const PIECE: usize = 1024;

/// A tensor of a launch: its numbers, its pointers, and one number more.
struct Piece {
    len: usize,
    pointers: [u64; 3],
    number: usize,
}

/// Calls `launch(entries, how many, blocks, blocks of the launches before)` for as many pieces as a launch takes, and
/// again.
fn in_launches(
    pieces: &[Piece],
    mut launch: impl FnMut(Arg<'_>, Arg<'_>, usize, usize) -> Result<()>,
) -> Result<()> {
    let mut n_before = 0;
    for pieces in pieces.chunks(MAX_ENTRIES) {
        let mut n_blocks = 0;
        let entries = Entries::new(pieces.iter().map(|piece| {
            let first = n_blocks;
            n_blocks += piece.len.div_ceil(PIECE);
            let [a, b, c] = piece.pointers;
            let ints = [piece.len, first, piece.number];
            let [len, first, number] = ints.map(i32::try_from);
            match (len, first, number) {
                (Ok(len), Ok(first), Ok(number)) => Ok(Entry {
                    pointers: [a, b, c, 0, 0],
                    ints: [len, first, number, 0],
                }),
                _ => candle_core::bail!("{ints:?} numbers are too many for one launch on CUDA"),
            }
        }))?;
        let n_entries = Arg::count(pieces.len())?;
        launch(Arg::Entries(&entries), n_entries, n_blocks, n_before)?;
        n_before += n_blocks;
    }
    Ok(())
}

pub(super) fn pack<S: Gpu>(op: &Pack<'_>, on: &S) -> Result<S> {
    let n: usize = op.tensors.iter().map(|tensor| tensor.elem_count()).sum();
    let out = on.alloc(n, op.dtype)?;
    let mut start = 0;
    let mut pieces = Vec::with_capacity(op.tensors.len());
    for tensor in op.tensors {
        let len = tensor.elem_count();
        pieces.push(Piece {
            len,
            pointers: [address_of::<S>(Some(tensor))?, 0, 0],
            number: start,
        });
        start += len;
    }
    let factor = Arg::Pointer(address_of::<S>(op.factor)?);
    in_launches(&pieces, |entries, n_entries, n_blocks, _| {
        let args = [entries, n_entries, factor, whole(&out)?];
        out.launch(&SOURCE, "pack", op.dtype, n_blocks, &args)
    })?;
    Ok(out)
}

pub(super) fn squares<S: Gpu>(op: &Squares<'_>, on: &S) -> Result<S> {
    let mut pieces = Vec::with_capacity(op.tensors.len());
    for tensor in op.tensors {
        pieces.push(Piece {
            len: tensor.elem_count(),
            pointers: [address_of::<S>(Some(tensor))?, 0, 0],
            number: 0,
        });
    }
    let n_parts: usize = pieces.iter().map(|piece| piece.len.div_ceil(PIECE)).sum();
    let parts = on.alloc(n_parts, DType::F64)?;
    let dtype = op.tensors[0].dtype();
    in_launches(&pieces, |entries, n_entries, n_blocks, n_before| {
        let args = [entries, n_entries, whole(&parts)?, Arg::count(n_before)?];
        parts.launch(&SOURCE, "squares_parts", dtype, n_blocks, &args)
    })?;
    let out = on.alloc(1, DType::F64)?;
    let args = [whole(&parts)?, whole(&out)?, Arg::count(n_parts)?];
    out.launch(&SOURCE, "sum", dtype, 1, &args)?;
    Ok(out)
}

pub(super) fn sgd<S: Gpu>(op: &Sgd<'_>, on: &S) -> Result<S> {
    let mut pieces = Vec::with_capacity(op.pieces.len());
    for piece in op.pieces {
        let tensors = [
            piece.weight.as_tensor(),
            piece.buffer.as_tensor(),
            piece.grad,
        ];
        let [weight, buffer, grad] = tensors.map(|tensor| address_of::<S>(Some(tensor)));
        pieces.push(Piece {
            len: piece.weight.elem_count(),
            pointers: [weight?, buffer?, grad?],
            number: 0,
        });
    }
    let dtype = op.pieces[0].weight.dtype();
    let step = op.step;
    let numbers = [
        step.momentum,
        step.weight_decay,
        step.learning_rate,
        step.gradient_scale,
    ];
    let [momentum, decay, rate, scale] = numbers.map(Arg::Double);
    in_launches(&pieces, |entries, n_entries, n_blocks, _| {
        let args = [entries, n_entries, momentum, decay, rate, scale];
        on.launch(&SOURCE, "sgd", dtype, n_blocks, &args)
    })?;
    on.alloc(1, dtype)
}

pub(super) fn follow<S: Gpu>(op: &Follow<'_>, on: &S) -> Result<S> {
    let mut pieces = Vec::with_capacity(op.pieces.len());
    for piece in op.pieces {
        let tensors = [piece.mean.as_tensor(), piece.var.as_tensor(), &piece.table];
        let [mean, var, table] = tensors.map(|tensor| address_of::<S>(Some(tensor)));
        pieces.push(Piece {
            len: piece.mean.elem_count(),
            pointers: [mean?, var?, table?],
            number: piece.count,
        });
    }
    let dtype = op.pieces[0].mean.dtype();
    in_launches(&pieces, |entries, n_entries, n_blocks, _| {
        let args = [entries, n_entries, Arg::Double(op.momentum)];
        on.launch(&SOURCE, "follow", dtype, n_blocks, &args)
    })?;
    on.alloc(1, dtype)
}
