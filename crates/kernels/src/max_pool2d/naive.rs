//! The oracle of [`max_pool2d`](crate::max_pool2d()).

use super::Shape;
use crate::Element;

/// The largest value under each window; a NaN if there is one.
pub fn forward<T: Element>(x: &[T], shape: &Shape) -> Vec<T> {
    winners(x, shape).into_iter().map(|at| x[at]).collect()
}

/// The gradient of `x`: each output pixel sends its gradient to the first largest value under its window.
pub fn grad_x<T: Element>(grad: &[T], x: &[T], shape: &Shape) -> Vec<T> {
    let mut grad_x = vec![0.0; x.len()];
    for (at, &grad) in winners(x, shape).into_iter().zip(grad) {
        grad_x[at] += grad.to_f64();
    }
    grad_x.into_iter().map(T::from_f64).collect()
}

/// For every output pixel where in `x` its value comes from: the first maximum, or the last NaN.
fn winners<T: Element>(x: &[T], shape: &Shape) -> Vec<usize> {
    let window = shape.window;
    let mut winners = vec![usize::MAX; shape.n_planes() * window.output_len()];
    for plane in 0..shape.n_planes() {
        let (y_at, x_at) = (plane * window.output_len(), plane * window.input_len());
        window.for_each_tap(|out, _, input| {
            let (winner, at) = (&mut winners[y_at + out], x_at + input);
            if *winner == usize::MAX || x[at] > x[*winner] || x[at].to_f64().is_nan() {
                *winner = at;
            }
        });
    }
    winners
}
