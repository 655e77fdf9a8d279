//! The oracle of [`conv2d`](crate::conv2d()); sums are `f64`.

use super::Shape;
use crate::Element;

/// `y[n o r s] = sum_iuv w[o i u v] * x[n i r' s']`, where `(r', s')` is the pixel under tap `(u, v)`.
pub fn forward<T: Element>(x: &[T], w: &[T], shape: &Shape) -> Vec<T> {
    let mut y = vec![0.0; shape.n * shape.o * shape.window.output_len()];
    for_each_product(shape, |y_at, w_at, x_at| {
        y[y_at] += w[w_at].to_f64() * x[x_at].to_f64()
    });
    y.into_iter().map(T::from_f64).collect()
}

/// The gradient of `x`: every output pixel sends its gradient back through its taps.
pub fn grad_x<T: Element>(grad: &[T], w: &[T], shape: &Shape) -> Vec<T> {
    let mut grad_x = vec![0.0; shape.n * shape.i * shape.window.input_len()];
    for_each_product(shape, |y_at, w_at, x_at| {
        grad_x[x_at] += w[w_at].to_f64() * grad[y_at].to_f64()
    });
    grad_x.into_iter().map(T::from_f64).collect()
}

/// The gradient of `w`: over images and output pixels, the gradient times what lay under the tap.
pub fn grad_w<T: Element>(grad: &[T], x: &[T], shape: &Shape) -> Vec<T> {
    let mut grad_w = vec![0.0; shape.o * shape.i * shape.window.kernel_len()];
    for_each_product(shape, |y_at, w_at, x_at| {
        grad_w[w_at] += grad[y_at].to_f64() * x[x_at].to_f64()
    });
    grad_w.into_iter().map(T::from_f64).collect()
}

/// Calls `visit(index in y, index in w, index in x)` for every product of the sum.
fn for_each_product(shape: &Shape, mut visit: impl FnMut(usize, usize, usize)) {
    let Shape { n, i, o, window } = *shape;
    for image in 0..n {
        for (out_channel, in_channel) in (0..o).flat_map(|o| (0..i).map(move |i| (o, i))) {
            let y_at = (image * o + out_channel) * window.output_len();
            let w_at = (out_channel * i + in_channel) * window.kernel_len();
            let x_at = (image * i + in_channel) * window.input_len();
            window.for_each_tap(|out, tap, input| visit(y_at + out, w_at + tap, x_at + input));
        }
    }
}
