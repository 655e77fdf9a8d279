//! The oracle of [`pointwise_conv2d`](crate::pointwise_conv2d()); sums are `f64`.

use super::Shape;
use crate::Element;

/// `y[n o p] = sum_i w[o i] * x[n i p]`.
pub fn forward<T: Element>(x: &[T], w: &[T], shape: &Shape) -> Vec<T> {
    let mut y = vec![0.0; shape.n * shape.o * shape.plane_len()];
    for_each_product(shape, |y_at, w_at, x_at| {
        y[y_at] += w[w_at].to_f64() * x[x_at].to_f64()
    });
    y.into_iter().map(T::from_f64).collect()
}

/// `grad_x[n i p] = sum_o w[o i] * grad[n o p]`.
pub fn grad_x<T: Element>(grad: &[T], w: &[T], shape: &Shape) -> Vec<T> {
    let mut grad_x = vec![0.0; shape.n * shape.i * shape.plane_len()];
    for_each_product(shape, |y_at, w_at, x_at| {
        grad_x[x_at] += w[w_at].to_f64() * grad[y_at].to_f64()
    });
    grad_x.into_iter().map(T::from_f64).collect()
}

/// `grad_w[o i] = sum_np grad[n o p] * x[n i p]`.
pub fn grad_w<T: Element>(grad: &[T], x: &[T], shape: &Shape) -> Vec<T> {
    let mut grad_w = vec![0.0; shape.o * shape.i];
    for_each_product(shape, |y_at, w_at, x_at| {
        grad_w[w_at] += grad[y_at].to_f64() * x[x_at].to_f64()
    });
    grad_w.into_iter().map(T::from_f64).collect()
}

/// Calls `visit(index in y, index in w, index in x)` for every product of the sum.
fn for_each_product(shape: &Shape, mut visit: impl FnMut(usize, usize, usize)) {
    let len = shape.plane_len();
    for n in 0..shape.n {
        for o in 0..shape.o {
            for i in 0..shape.i {
                for p in 0..len {
                    visit(
                        (n * shape.o + o) * len + p,
                        o * shape.i + i,
                        (n * shape.i + i) * len + p,
                    );
                }
            }
        }
    }
}
