//! The products of [`pointwise_conv2d`](super::pointwise_conv2d()): batched matrix products of the device's
//! library (on CUDA, cuBLAS), one matrix per image.

use candle_core::{Layout, Result};

use super::Shape;
use crate::gpu::{Gpu, In, Source, source, sum_parts};

const SOURCE: Source = source!("pointwise_conv2d");

/// `n` matrices of `rows` and `columns` behind `offset`, with the strides of batch, row and column.
fn matrices(size: [usize; 3], strides: [usize; 3], offset: usize) -> Layout {
    Layout::new(size.to_vec().into(), strides.to_vec(), offset)
}

/// See [`naive::forward`](super::naive::forward).
pub(super) fn forward<S: Gpu>(x: &In<'_, S>, w: &In<'_, S>, shape: &Shape) -> Result<S> {
    let dtype = x.dtype(super::OP)?;
    let (&Shape { n, i, o, .. }, p) = (shape, shape.plane_len());
    if n == 0 {
        return x.storage.alloc(0, dtype);
    }
    let w_layout = matrices([n, o, i], [0, i, 1], w.layout.start_offset());
    let x_layout = matrices([n, i, p], [i * p, p, 1], x.layout.start_offset());
    w.storage
        .matmul(x.storage, (n, o, p, i), &w_layout, &x_layout)
}

/// See [`naive::grad_x`](super::naive::grad_x).
pub(super) fn grad_x<S: Gpu>(grad: &In<'_, S>, w: &In<'_, S>, shape: &Shape) -> Result<S> {
    let dtype = grad.dtype(super::OP)?;
    let (&Shape { n, i, o, .. }, p) = (shape, shape.plane_len());
    if n == 0 {
        return grad.storage.alloc(0, dtype);
    }
    let w_layout = matrices([n, i, o], [0, 1, i], w.layout.start_offset());
    let grad_layout = matrices([n, o, p], [o * p, p, 1], grad.layout.start_offset());
    w.storage
        .matmul(grad.storage, (n, i, p, o), &w_layout, &grad_layout)
}

/// See [`naive::grad_w`](super::naive::grad_w).
pub(super) fn grad_w<S: Gpu>(grad: &In<'_, S>, x: &In<'_, S>, shape: &Shape) -> Result<S> {
    let dtype = grad.dtype(super::OP)?;
    let (&Shape { n, i, o, .. }, p) = (shape, shape.plane_len());
    let parts = if n == 0 {
        grad.storage.alloc(0, dtype)?
    } else {
        let grad_layout = matrices([n, o, p], [o * p, p, 1], grad.layout.start_offset());
        let x_layout = matrices([n, p, i], [i * p, 1, p], x.layout.start_offset());
        grad.storage
            .matmul(x.storage, (n, o, i, p), &grad_layout, &x_layout)?
    };
    sum_parts(&SOURCE, &parts, n, o * i, dtype, dtype)
}
