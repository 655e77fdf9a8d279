//! The launches of batch normalisation.

use candle_core::{DType, Result, Tensor};

use super::{Given, Shape};
use crate::gpu::{Arg, Gpu, In, Source, blocks_over, held, n_parts, source, sum_parts, whole};

const SOURCE: Source = source!("batch_norm");

/// Numbers of a plane that fall to one block; `PIECE` of the kernels.
const PIECE: usize = 1024;

/// See [`naive::statistics`](super::naive::statistics): the table `2 c`.
pub(super) fn statistics<S: Gpu>(x: &In<'_, S>, shape: &Shape) -> Result<S> {
    let dtype = x.dtype("batch_norm_statistics")?;
    Arg::count(x.len())?;
    let n_parts = n_parts(shape.n, shape.c);
    let parts = x.storage.alloc(2 * n_parts * shape.c, DType::F64)?;
    let args = [
        x.arg()?,
        whole(&parts)?,
        Arg::count(shape.n)?,
        Arg::count(shape.c)?,
        Arg::count(shape.len)?,
        Arg::count(n_parts)?,
    ];
    parts.launch(&SOURCE, "statistics_parts", dtype, n_parts * shape.c, &args)?;
    let table = x.storage.alloc(2 * shape.c, DType::F64)?;
    let args = [
        whole(&parts)?,
        x.arg()?,
        whole(&table)?,
        Arg::count(shape.c)?,
        Arg::count(shape.len)?,
        Arg::count(n_parts)?,
        Arg::Double((shape.n * shape.len) as f64),
    ];
    table.launch(&SOURCE, "statistics", dtype, blocks_over(shape.c), &args)?;
    Ok(table)
}

/// See [`naive::forward`](super::naive::forward).
pub(super) fn forward<S: Gpu>(
    x: &In<'_, S>,
    affine: Option<(&In<'_, S>, &In<'_, S>)>,
    given: &Given,
) -> Result<S> {
    let dtype = x.dtype("batch_norm")?;
    Arg::count(x.len())?;
    let y = x.storage.alloc(x.len(), dtype)?;
    let [weight, bias] = match affine {
        Some((weight, bias)) => [weight.arg()?, bias.arg()?],
        None => [NULL; 2],
    };
    let Shape { n, c, len } = given.shape;
    let n_pieces = len.div_ceil(PIECE);
    let args = [
        x.arg()?,
        held::<S>(&given.mean)?,
        held::<S>(&given.var)?,
        weight,
        bias,
        whole(&y)?,
        Arg::count(c)?,
        Arg::count(len)?,
        Arg::count(n_pieces)?,
        Arg::Double(given.eps),
        Arg::Int(i32::from(affine.is_some())),
    ];
    let kernel = of(given, ["forward_train", "forward_eval"]);
    y.launch(&SOURCE, kernel, dtype, n * c * n_pieces, &args)?;
    Ok(y)
}

/// See [`naive::sums`](super::naive::sums): the table `c 2`.
pub(super) fn sums<S: Gpu>(grad: &In<'_, S>, x: &In<'_, S>, given: &Given) -> Result<S> {
    let dtype = x.dtype("batch_norm_grad_sums")?;
    let Shape { n, c, len } = given.shape;
    let n_parts = n_parts(n, c);
    let parts = x.storage.alloc(2 * n_parts * c, DType::F64)?;
    let args = [
        grad.arg()?,
        x.arg()?,
        held::<S>(&given.mean)?,
        held::<S>(&given.var)?,
        whole(&parts)?,
        Arg::count(n)?,
        Arg::count(c)?,
        Arg::count(len)?,
        Arg::count(n_parts)?,
        Arg::Double(given.eps),
    ];
    let kernel = of(given, ["grad_sums_parts_train", "grad_sums_parts_eval"]);
    parts.launch(&SOURCE, kernel, dtype, n_parts * c, &args)?;
    sum_parts(&SOURCE, &parts, n_parts, 2 * c, dtype, DType::F64)
}

/// See [`naive::grad_x`](super::naive::grad_x).
pub(super) fn grad_x<S: Gpu>(
    grad: &In<'_, S>,
    x: &In<'_, S>,
    sums: &In<'_, S>,
    given: &Given,
    weight: Option<&Tensor>,
) -> Result<S> {
    let dtype = x.dtype("batch_norm_grad_x")?;
    let grad_x = x.storage.alloc(x.len(), dtype)?;
    let Shape { n, c, len } = given.shape;
    let n_pieces = len.div_ceil(PIECE);
    let args = [
        grad.arg()?,
        x.arg()?,
        sums.arg()?,
        held::<S>(&given.mean)?,
        held::<S>(&given.var)?,
        weight.map_or(Ok(NULL), held::<S>)?,
        whole(&grad_x)?,
        Arg::count(c)?,
        Arg::count(len)?,
        Arg::count(n_pieces)?,
        Arg::Double(given.count as f64),
        Arg::Double(given.eps),
        Arg::Int(i32::from(weight.is_some())),
    ];
    let kernel = of(given, ["grad_x_train", "grad_x_eval"]);
    grad_x.launch(&SOURCE, kernel, dtype, n * c * n_pieces, &args)?;
    Ok(grad_x)
}

const NULL: Arg<'static> = Arg::Pointer(0);

/// The kernel for statistics of the batch, which are doubles, or for given ones, of the element type.
fn of<'a>(given: &Given, [train, eval]: [&'a str; 2]) -> &'a str {
    if given.is_train { train } else { eval }
}
