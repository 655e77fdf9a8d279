//! Scaling and inner products in vectors.

use multiversion::multiversion;

use crate::Element;
use crate::parallel::{map, sum};

/// Partial sums of an inner product.
const LANES: usize = 32;

/// See [`naive::forward`](super::naive::forward).
pub(super) fn forward<T: Element>(x: &[T], weight: T) -> Vec<T> {
    map(x.len(), |range, y| multiply(&x[range], weight, y))
}

/// See [`naive::dot`](super::naive::dot).
pub(super) fn dot<T: Element>(a: &[T], b: &[T]) -> T {
    T::from_f64(sum(a.len(), |range| {
        inner_product(&a[range.clone()], &b[range])
    }))
}

#[multiversion(targets = "simd")]
fn multiply<T: Element>(x: &[T], weight: T, y: &mut [T]) {
    for (y, &x) in y.iter_mut().zip(x) {
        *y = weight * x;
    }
}

#[multiversion(targets = "simd")]
fn inner_product<T: Element>(a: &[T], b: &[T]) -> f64 {
    let (a_blocks, a_rest) = a.as_chunks::<LANES>();
    let (b_blocks, b_rest) = b.as_chunks::<LANES>();
    let mut lanes = [T::zero(); LANES];
    for (a, b) in a_blocks.iter().zip(b_blocks) {
        for ((lane, &a), &b) in lanes.iter_mut().zip(a).zip(b) {
            *lane += a * b;
        }
    }
    for ((lane, &a), &b) in lanes.iter_mut().zip(a_rest).zip(b_rest) {
        *lane += a * b;
    }
    lanes.iter().map(|lane| lane.to_f64()).sum()
}
