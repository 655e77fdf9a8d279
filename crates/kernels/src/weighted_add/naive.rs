//! The oracle of [`weighted_add`](crate::weighted_add()).

use crate::Element;

/// `acc + weight * x`.
pub fn forward<T: Element>(acc: &[T], x: &[T], weight: T) -> Vec<T> {
    acc.iter()
        .zip(x)
        .map(|(&acc, &x)| acc + weight * x)
        .collect()
}
