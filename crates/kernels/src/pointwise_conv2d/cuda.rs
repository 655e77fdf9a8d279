//! The products of [`pointwise_conv2d`](super::pointwise_conv2d()): batched matrix products of the device's
//! library (on CUDA, cuBLAS), one matrix per image.

use candle_core::Result;

use super::{OP, Shape};
use crate::Precision;
use crate::gpu::{Factor, Gpu, In, Source, product, source, sum_parts};

const SOURCE: Source = source!("pointwise_conv2d");

/// The weights, `o i` for every image.
fn weights<'a, 'b, S>(w: &'b In<'a, S>, is_transposed: bool) -> Factor<'a, 'b, S> {
    Factor {
        of: w,
        is_transposed,
        is_shared: true,
    }
}

/// A plane after the other of every image, `c p`.
fn images<'a, 'b, S>(x: &'b In<'a, S>, is_transposed: bool) -> Factor<'a, 'b, S> {
    Factor {
        of: x,
        is_transposed,
        is_shared: false,
    }
}

/// See [`naive::forward`](super::naive::forward).
pub(super) fn forward<S: Gpu>(
    x: &In<'_, S>,
    w: &In<'_, S>,
    shape: &Shape,
    precision: Precision,
) -> Result<S> {
    let (&Shape { n, i, o, .. }, p) = (shape, shape.plane_len());
    let (w, x) = (weights(w, false), images(x, false));
    product(n, [o, p, i], &w, &x, precision, OP)
}

/// See [`naive::grad_x`](super::naive::grad_x).
pub(super) fn grad_x<S: Gpu>(
    grad: &In<'_, S>,
    w: &In<'_, S>,
    shape: &Shape,
    precision: Precision,
) -> Result<S> {
    let (&Shape { n, i, o, .. }, p) = (shape, shape.plane_len());
    let (w, grad) = (weights(w, true), images(grad, false));
    product(n, [i, p, o], &w, &grad, precision, OP)
}

/// See [`naive::grad_w`](super::naive::grad_w).
pub(super) fn grad_w<S: Gpu>(
    grad: &In<'_, S>,
    x: &In<'_, S>,
    shape: &Shape,
    precision: Precision,
) -> Result<S> {
    let dtype = grad.dtype(OP)?;
    let (&Shape { n, i, o, .. }, p) = (shape, shape.plane_len());
    let (left, right) = (images(grad, false), images(x, true));
    let parts = product(n, [o, i, p], &left, &right, precision, OP)?;
    sum_parts(&SOURCE, &parts, n, o * i, dtype, dtype)
}
