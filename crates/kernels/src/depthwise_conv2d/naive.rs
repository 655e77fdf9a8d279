//! The oracle of [`depthwise_conv2d`](crate::depthwise_conv2d()); sums are `f64`.

use super::Shape;
use crate::Element;

/// `y[n c r s] = sum_uv w[c u v] * x[n c r' s']`, where `(r', s')` is the pixel under tap `(u, v)`.
pub fn forward<T: Element>(x: &[T], w: &[T], shape: &Shape) -> Vec<T> {
    let Shape { n, c, window } = *shape;
    let mut y = vec![0.0; n * c * window.output_len()];
    for plane in 0..n * c {
        let (y_at, w_at, x_at) = (
            plane * window.output_len(),
            plane % c * window.kernel_len(),
            plane * window.input_len(),
        );
        window.for_each_tap(|out, tap, input| {
            y[y_at + out] += w[w_at + tap].to_f64() * x[x_at + input].to_f64();
        });
    }
    y.into_iter().map(T::from_f64).collect()
}

/// The gradient of `x`: every output pixel sends its gradient back through its taps.
pub fn grad_x<T: Element>(grad: &[T], w: &[T], shape: &Shape) -> Vec<T> {
    let Shape { n, c, window } = *shape;
    let mut grad_x = vec![0.0; n * c * window.input_len()];
    for plane in 0..n * c {
        let (y_at, w_at, x_at) = (
            plane * window.output_len(),
            plane % c * window.kernel_len(),
            plane * window.input_len(),
        );
        window.for_each_tap(|out, tap, input| {
            grad_x[x_at + input] += w[w_at + tap].to_f64() * grad[y_at + out].to_f64();
        });
    }
    grad_x.into_iter().map(T::from_f64).collect()
}

/// The gradient of `w`: over images and output pixels, the gradient times what lay under the tap.
pub fn grad_w<T: Element>(grad: &[T], x: &[T], shape: &Shape) -> Vec<T> {
    let Shape { n, c, window } = *shape;
    let mut grad_w = vec![0.0; c * window.kernel_len()];
    for plane in 0..n * c {
        let (y_at, w_at, x_at) = (
            plane * window.output_len(),
            plane % c * window.kernel_len(),
            plane * window.input_len(),
        );
        window.for_each_tap(|out, tap, input| {
            grad_w[w_at + tap] += grad[y_at + out].to_f64() * x[x_at + input].to_f64();
        });
    }
    grad_w.into_iter().map(T::from_f64).collect()
}
