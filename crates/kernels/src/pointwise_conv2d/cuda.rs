//! The products of [`pointwise_conv2d`](super::pointwise_conv2d()): batched matrix products of the device's
//! library (on CUDA, cuBLAS), one matrix per image.

use candle_core::{DType, Result, Tensor};

use super::{OP, Shape};
use crate::Precision;
use crate::gpu::{Factor, Gemm, Gpu, In, Source, n_parts, product, source, sum_parts};

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

/// `left[z] right[z]` for `z` below `batch`, of tensors that an operation holds.
pub(super) fn product_of<S: Gpu>(
    tensors: [&Tensor; 2],
    is_transposed: [bool; 2],
    batch: usize,
    sizes: [usize; 3],
    precision: Precision,
) -> Result<S> {
    let [(left, left_layout), (right, right_layout)] = tensors.map(Tensor::storage_and_layout);
    let (Some(left), Some(right)) = (S::of(&left), S::of(&right)) else {
        candle_core::bail!("the tensors of an operation lie on several devices");
    };
    let inputs = [
        In {
            storage: left,
            layout: left_layout,
        },
        In {
            storage: right,
            layout: right_layout,
        },
    ];
    let factor = |index: usize| Factor {
        of: &inputs[index],
        is_transposed: is_transposed[index],
        is_shared: false,
    };
    product(batch, sizes, &factor(0), &factor(1), precision, OP)
}

/// `sum_m left[o m] right[i m]`: the numbers `m` of a batch in parts, a product each, that are added up.
pub(super) fn inner_products<S: Gpu>(
    left: &Tensor,
    right: &Tensor,
    [o, i]: [usize; 2],
    [n, h, w]: [usize; 3],
    precision: Precision,
) -> Result<S> {
    let dtype = left.dtype();
    // Of images as many as divide the batch, so that all parts are as long.
    let wanted = n_parts(n * h * w / 512, (o * i).div_ceil(1024));
    let n_parts = (1..=wanted.min(n))
        .rev()
        .find(|parts| n % parts == 0)
        .unwrap_or(1);
    let (len, stretch) = (n * h * w, n / n_parts * h * w);
    let [(left, left_layout), (right, right_layout)] =
        [left, right].map(Tensor::storage_and_layout);
    let (Some(left), Some(right)) = (S::of(&left), S::of(&right)) else {
        candle_core::bail!("the tensors of an operation lie on several devices");
    };
    // In BLAS's terms, where columns are contiguous: c^T = right left^T.
    let gemm = Gemm {
        batch: n_parts,
        m: i,
        n: o,
        k: stretch,
        transposed: [true, false],
        leading: [len, len],
        strides: [stretch, stretch],
        starts: [right_layout.start_offset(), left_layout.start_offset()],
    };
    let parts = if precision == Precision::Bf16 {
        let rounded = [(right, right_layout), (left, left_layout)]
            .map(|(storage, layout)| storage.to_dtype(layout, DType::BF16));
        let [right, left] = rounded;
        S::gemm(
            &right?,
            &left?,
            &Gemm {
                starts: [0, 0],
                ..gemm
            },
            dtype,
            precision,
        )?
    } else {
        S::gemm(right, left, &gemm, dtype, precision)?
    };
    sum_parts(&SOURCE, &parts, n_parts, o * i, dtype, dtype)
}
