//! ReLU in vectors.

use multiversion::multiversion;

use crate::Element;
use crate::parallel::map;

/// See [`naive::forward`](super::naive::forward).
pub(super) fn forward<T: Element>(x: &[T]) -> Vec<T> {
    map(x.len(), |range, y| relu(&x[range], y))
}

/// See [`naive::grad_x`](super::naive::grad_x).
pub(super) fn grad_x<T: Element>(grad: &[T], y: &[T]) -> Vec<T> {
    map(y.len(), |range, grad_x| {
        mask(&grad[range.clone()], &y[range], grad_x)
    })
}

#[multiversion(targets = "simd")]
fn relu<T: Element>(x: &[T], y: &mut [T]) {
    for (y, &x) in y.iter_mut().zip(x) {
        *y = if x <= T::zero() { T::zero() } else { x };
    }
}

#[multiversion(targets = "simd")]
fn mask<T: Element>(grad: &[T], y: &[T], grad_x: &mut [T]) {
    for ((grad_x, &grad), &y) in grad_x.iter_mut().zip(grad).zip(y) {
        *grad_x = if y <= T::zero() { T::zero() } else { grad };
    }
}
