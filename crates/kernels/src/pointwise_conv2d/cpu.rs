//! Pointwise convolution as a matrix product.

use super::Shape;
use crate::Element;
use crate::gemm::{Matrix, add_product};
use crate::parallel::{build, sum_over_images};

/// See [`naive::forward`](super::naive::forward).
pub fn forward<T: Element>(x: &[T], w: &[T], shape: &Shape) -> Vec<T> {
    product(x, w, shape.n, [shape.o, shape.i], shape.plane_len())
}

/// See [`naive::grad_x`](super::naive::grad_x).
pub fn grad_x<T: Element>(grad: &[T], w: &[T], shape: &Shape) -> Vec<T> {
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

fn product<T: Element>(x: &[T], w: &[T], n: usize, [o, i]: [usize; 2], len: usize) -> Vec<T> {
    build(
        n * o * len,
        o * len,
        i,
        || (),
        |(), image, y| {
            add_product(
                Matrix::new(w, o, i),
                Matrix::new(&x[image * i * len..][..i * len], i, len),
                y,
            );
        },
    )
}

/// See [`naive::grad_w`](super::naive::grad_w).
pub fn grad_w<T: Element>(grad: &[T], x: &[T], shape: &Shape) -> Vec<T> {
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
