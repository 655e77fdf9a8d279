//! The oracle of [`relu`](crate::relu()).

use crate::Element;

/// `max(x, 0)`.
pub fn forward<T: Element>(x: &[T]) -> Vec<T> {
    x.iter()
        .map(|&x| if x <= T::zero() { T::zero() } else { x })
        .collect()
}

/// The gradient of `x` from the output `y` and its gradient.
pub fn grad_x<T: Element>(grad: &[T], y: &[T]) -> Vec<T> {
    grad.iter()
        .zip(y)
        .map(|(&grad, &y)| if y <= T::zero() { T::zero() } else { grad })
        .collect()
}
