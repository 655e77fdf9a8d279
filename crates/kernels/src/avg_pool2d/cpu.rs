//! Average pooling over [`Runs`]: a convolution with ones, divided by the number of pixels.

use multiversion::multiversion;

use super::Shape;
use crate::Element;
use crate::parallel::build;
use crate::runs::{Runs, weigh};

/// See [`naive::forward`](super::naive::forward).
pub(super) fn forward<T: Element>(x: &[T], shape: &Shape) -> Vec<T> {
    let window = shape.window;
    let runs = Runs::new(window);
    let (ones, shares) = (vec![T::one(); window.kernel_len()], shares(shape, &runs));
    let [in_len, out_len] = [window.input_len(), window.output_len()];
    build(
        shape.n_planes() * out_len,
        out_len,
        window.kernel_len() + 4,
        || (runs.padded(T::zero()), runs.run(T::zero())),
        |(padded, run), plane, y| {
            runs.load(&x[plane * in_len..][..in_len], padded);
            weigh(padded, runs.taps(), &ones, run);
            multiply(run, &shares);
            runs.collect(run, y);
        },
    )
}

/// See [`naive::grad_x`](super::naive::grad_x).
pub(super) fn grad_x<T: Element>(grad: &[T], shape: &Shape) -> Vec<T> {
    let window = shape.window;
    let runs = Runs::new(window);
    let (ones, shares) = (vec![T::one(); window.kernel_len()], shares(shape, &runs));
    let [in_len, out_len] = [window.input_len(), window.output_len()];
    build(
        shape.n_planes() * in_len,
        in_len,
        window.kernel_len() + 4,
        || (runs.padded(T::zero()), runs.run_with_lead(T::zero())),
        |(padded, run), plane, grad_x| {
            runs.spread(&grad[plane * out_len..][..out_len], runs.behind_lead(run));
            multiply(runs.behind_lead(run), &shares);
            for phase in runs.phases() {
                weigh(run, &phase.taps, &ones, &mut padded[phase.range.clone()]);
            }
            runs.store(padded, grad_x);
        },
    )
}

/// What a pixel counts for in each window, as a run: one over the number of input pixels under the window.
fn shares<T: Element>(shape: &Shape, runs: &Runs) -> Vec<T> {
    let mut counts = vec![T::zero(); shape.window.output_len()];
    shape
        .window
        .for_each_tap(|out, _, _| counts[out] += T::one());
    let shares: Vec<T> = counts.into_iter().map(|count| T::one() / count).collect();
    let mut run = runs.run(T::zero());
    runs.spread(&shares, &mut run);
    run
}

#[multiversion(targets = "simd")]
fn multiply<T: Element>(run: &mut [T], factors: &[T]) {
    run.iter_mut()
        .zip(factors)
        .for_each(|(x, &factor)| *x *= factor);
}
