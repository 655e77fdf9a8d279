//! The launches of [`ActivatedDepthwise`].

use candle_core::{DType, Result, Tensor};

use super::ActivatedDepthwise;
use crate::gpu::{
    Arg, Gpu, Source, address_of, blocks_over, held, n_parts, source, sum_parts, whole,
};

const SOURCE: Source = source!("activated_depthwise");

/// The kernel for windows of 3x3, of 5x5 or of any size.
fn of<'a>(op: &ActivatedDepthwise, [of_3x3, of_5x5, of_any]: [&'a str; 3]) -> &'a str {
    match op.window.kernel {
        [3, 3] => of_3x3,
        [5, 5] => of_5x5,
        _ => of_any,
    }
}

fn sizes(op: &ActivatedDepthwise) -> Result<[Arg<'static>; 4]> {
    Ok([
        Arg::count(op.n_groups)?,
        Arg::count(op.c)?,
        Arg::count(op.n)?,
        Arg::Int(i32::from(op.is_shared)),
    ])
}

fn norm<S: Gpu>(op: &ActivatedDepthwise) -> Result<Arg<'static>> {
    Ok(Arg::Pointer(address_of::<S>(op.norm.as_ref())?))
}

pub(super) fn forward<S: Gpu>(op: &ActivatedDepthwise, on: &S) -> Result<S> {
    let dtype = op.x.dtype();
    let len = op.n_groups * op.c * op.n * op.window.output_len();
    Arg::count(len)?;
    let y = on.alloc(len, dtype)?;
    let [groups, c, n, is_shared] = sizes(op)?;
    let args = [
        held::<S>(&op.x)?,
        norm::<S>(op)?,
        held::<S>(&op.w)?,
        whole(&y)?,
        groups,
        c,
        n,
        is_shared,
        Arg::window(&op.window),
    ];
    let kernel = of(op, ["forward_3x3", "forward_5x5", "forward"]);
    y.launch(&SOURCE, kernel, dtype, blocks_over(len), &args)?;
    Ok(y)
}

pub(super) fn grad_z<S: Gpu>(op: &ActivatedDepthwise, grad: &Tensor, on: &S) -> Result<S> {
    let dtype = op.x.dtype();
    let len = op.n_inputs() * op.n * op.window.input_len();
    Arg::count(len)?;
    Arg::count(grad.elem_count())?;
    let grad_z = on.alloc(len, dtype)?;
    let [groups, c, n, is_shared] = sizes(op)?;
    let args = [
        held::<S>(grad)?,
        held::<S>(&op.x)?,
        norm::<S>(op)?,
        held::<S>(&op.w)?,
        whole(&grad_z)?,
        groups,
        c,
        n,
        is_shared,
        Arg::window(&op.window),
    ];
    let kernel = of(op, ["grad_z_3x3", "grad_z_5x5", "grad_z"]);
    grad_z.launch(&SOURCE, kernel, dtype, blocks_over(len), &args)?;
    Ok(grad_z)
}

pub(super) fn grad_w<S: Gpu>(op: &ActivatedDepthwise, grad: &Tensor, on: &S) -> Result<S> {
    let dtype = op.x.dtype();
    let n_weights = op.w.elem_count();
    let n_parts = n_parts(op.n, n_weights);
    let parts = on.alloc(n_parts * n_weights, DType::F64)?;
    let [groups, c, n, is_shared] = sizes(op)?;
    let args = [
        held::<S>(grad)?,
        held::<S>(&op.x)?,
        norm::<S>(op)?,
        whole(&parts)?,
        groups,
        c,
        n,
        is_shared,
        Arg::count(n_parts)?,
        Arg::window(&op.window),
    ];
    parts.launch(&SOURCE, "grad_w_parts", dtype, n_parts * n_weights, &args)?;
    sum_parts(&SOURCE, &parts, n_parts, n_weights, dtype, dtype)
}
