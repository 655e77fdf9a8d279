//! The oracle of [`scale`](crate::scale()).

use crate::Element;

/// `weight * x`.
pub fn forward<T: Element>(x: &[T], weight: T) -> Vec<T> {
    x.iter().map(|&x| weight * x).collect()
}

/// The inner product of `a` and `b`, summed in `f64`: the gradient of the weight from that of the output and `x`.
pub fn dot<T: Element>(a: &[T], b: &[T]) -> T {
    T::from_f64(a.iter().zip(b).map(|(a, b)| a.to_f64() * b.to_f64()).sum())
}
