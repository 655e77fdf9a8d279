//! The weighted addition in vectors.

use multiversion::multiversion;

use crate::Element;
use crate::parallel::map;

/// See [`naive::forward`](super::naive::forward).
pub(super) fn forward<T: Element>(acc: &[T], x: &[T], weight: T) -> Vec<T> {
    map(x.len(), |range, y| {
        add(&acc[range.clone()], &x[range], weight, y)
    })
}

#[multiversion(targets = "simd")]
fn add<T: Element>(acc: &[T], x: &[T], weight: T, y: &mut [T]) {
    for ((y, &acc), &x) in y.iter_mut().zip(acc).zip(x) {
        *y = acc + weight * x;
    }
}
