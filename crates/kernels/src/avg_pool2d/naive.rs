//! The oracle of [`avg_pool2d`](crate::avg_pool2d()); sums are `f64`.

use super::Shape;
use crate::Element;

/// The mean of the input pixels under each window.
pub fn forward<T: Element>(x: &[T], shape: &Shape) -> Vec<T> {
    let (window, counts) = (shape.window, counts(shape));
    let mut y = vec![0.0; shape.n_planes() * window.output_len()];
    for plane in 0..shape.n_planes() {
        let (y_at, x_at) = (plane * window.output_len(), plane * window.input_len());
        window
            .for_each_tap(|out, _, input| y[y_at + out] += x[x_at + input].to_f64() / counts[out]);
    }
    y.into_iter().map(T::from_f64).collect()
}

/// The gradient of `x`: each output pixel shares its gradient among the input pixels under its window.
pub fn grad_x<T: Element>(grad: &[T], shape: &Shape) -> Vec<T> {
    let (window, counts) = (shape.window, counts(shape));
    let mut grad_x = vec![0.0; shape.n_planes() * window.input_len()];
    for plane in 0..shape.n_planes() {
        let (y_at, x_at) = (plane * window.output_len(), plane * window.input_len());
        window.for_each_tap(|out, _, input| {
            grad_x[x_at + input] += grad[y_at + out].to_f64() / counts[out]
        });
    }
    grad_x.into_iter().map(T::from_f64).collect()
}

/// For every output pixel the number of input pixels under its window.
fn counts(shape: &Shape) -> Vec<f64> {
    let mut counts = vec![0.0; shape.window.output_len()];
    shape.window.for_each_tap(|out, _, _| counts[out] += 1.0);
    counts
}
