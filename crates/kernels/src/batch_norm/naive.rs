//! The oracle of [`batch_norm_train`](crate::batch_norm_train) and [`batch_norm_eval`](crate::batch_norm_eval);
//! sums are `f64`.

use super::{BatchStatistics, Channel, Shape, Sums};
use crate::Element;

/// Mean and biased variance of every channel, in two passes.
pub fn statistics<T: Element>(x: &[T], shape: &Shape) -> BatchStatistics {
    let count = shape.n * shape.len;
    let mean_of = |term: &dyn Fn(usize, f64) -> f64| {
        let mut sums = vec![0.0; shape.c];
        for_each_channel(x, shape, |c, x| sums[c] += term(c, x.to_f64()));
        sums.into_iter()
            .map(|sum| sum / count as f64)
            .collect::<Vec<_>>()
    };
    let mean = mean_of(&|_, x| x);
    let var = mean_of(&|c, x| (x - mean[c]).powi(2));
    BatchStatistics { mean, var, count }
}

/// `y = (x - mean) * inv_std * weight + bias`.
pub fn forward<T: Element>(x: &[T], channels: &[Channel], shape: &Shape) -> Vec<T> {
    let mut y = Vec::with_capacity(x.len());
    for_each_channel(x, shape, |c, x| {
        let Channel { weight, bias, .. } = channels[c];
        y.push(T::from_f64(
            channels[c].normalized(x.to_f64()) * weight + bias,
        ));
    });
    y
}

/// The sums over every channel that the gradients are made of.
pub fn sums<T: Element>(grad: &[T], x: &[T], channels: &[Channel], shape: &Shape) -> Vec<Sums> {
    let mut sums = vec![Sums::default(); shape.c];
    let mut grad = grad.iter().map(|grad| grad.to_f64());
    for_each_channel(x, shape, |c, x| {
        let grad = grad.next().unwrap_or_default();
        sums[c].grad += grad;
        sums[c].grad_normalized += grad * channels[c].normalized(x.to_f64());
    });
    sums
}

/// The gradient of `x` where mean and variance are those of `x`:
/// `weight * inv_std * (grad - mean(grad) - normalized(x) * mean(grad * normalized(x)))`.
/// With sums of zero it is the gradient where mean and variance are constants.
pub fn grad_x<T: Element>(
    grad: &[T],
    x: &[T],
    channels: &[Channel],
    sums: &[Sums],
    shape: &Shape,
) -> Vec<T> {
    let count = (shape.n * shape.len) as f64;
    let mut grad_x = Vec::with_capacity(x.len());
    for_each_channel(x, shape, |c, x| {
        let (channel, sums, grad) = (channels[c], sums[c], grad[grad_x.len()].to_f64());
        let centred = grad
            - sums.grad / count
            - channel.normalized(x.to_f64()) * sums.grad_normalized / count;
        grad_x.push(T::from_f64(channel.weight * channel.inv_std * centred));
    });
    grad_x
}

/// Calls `visit(channel, element)` for all elements in order.
fn for_each_channel<T: Element>(x: &[T], shape: &Shape, mut visit: impl FnMut(usize, T)) {
    for (index, &x) in x.iter().enumerate() {
        visit(index / shape.len % shape.c, x);
    }
}
