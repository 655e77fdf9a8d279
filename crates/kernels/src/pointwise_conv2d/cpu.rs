//! Pointwise convolution as a matrix product.

use super::Shape;
use crate::Element;
use crate::gemm::{Matrix, add_product};
use crate::parallel::{build, sum_over_images};

/// See [`naive::forward`](super::naive::forward).
pub(super) fn forward<T: Element>(x: &[T], w: &[T], shape: &Shape) -> Vec<T> {
    product(x, w, shape.n, [shape.o, shape.i], shape.plane_len())
}

/// See [`naive::grad_x`](super::naive::grad_x).
pub(super) fn grad_x<T: Element>(grad: &[T], w: &[T], shape: &Shape) -> Vec<T> {
    let transposed: Vec<T> = (0..shape.i)
        .flat_map(|i| w.iter().skip(i).step_by(shape.i).copied())
        .collect();
    product(
        grad,
        &transposed,
        shape.n,
        [shape.i, shape.o],
        shape.plane_len(),
    )
}

/// `w * x` for every image, where `w` is `o i` and the image `i len`.
pub(crate) fn product<T: Element>(
    x: &[T],
    w: &[T],
    n: usize,
    [o, i]: [usize; 2],
    len: usize,
) -> Vec<T> {
    // A task is an image, or some rows of its result where there are few images.
    let rows = if n < FEW_IMAGES {
        (1..=ROWS).rev().find(|rows| o % rows == 0).unwrap_or(o)
    } else {
        o
    };
    build(
        n * o * len,
        rows * len,
        i,
        || (),
        |(), task, y| {
            let (image, row) = (task * rows / o, task * rows % o);
            let w = Matrix::new(&w[row * i..][..rows * i], rows, i);
            add_product(w, Matrix::new(&x[image * i * len..][..i * len], i, len), y);
        },
    )
}

/// Fewer images than this are no work for all threads.
pub(crate) const FEW_IMAGES: usize = 8;

/// The most rows of a result that one task then computes.
const ROWS: usize = 16;

/// See [`naive::grad_w`](super::naive::grad_w).
pub(super) fn grad_w<T: Element>(grad: &[T], x: &[T], shape: &Shape) -> Vec<T> {
    let (Shape { n, i, o, .. }, len) = (*shape, shape.plane_len());
    sum_over_images(
        n,
        [1, o * i],
        len,
        || (),
        |(), images, _, partial: &mut [T]| {
            for image in images {
                let grad = Matrix::new(&grad[image * o * len..][..o * len], o, len);
                let x = Matrix::new(&x[image * i * len..][..i * len], i, len);
                add_product(grad, x.transposed(), partial);
            }
        },
    )
}
