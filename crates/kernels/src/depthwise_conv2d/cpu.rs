//! Depthwise convolution over [`Runs`]: each tap is one multiply-add of a shifted run.

use multiversion::multiversion;

use super::Shape;
use crate::Element;
use crate::parallel::{build, sum_over_images};
use crate::runs::{Runs, Tap, weigh};

/// See [`naive::forward`](super::naive::forward).
pub(super) fn forward<T: Element>(x: &[T], w: &[T], shape: &Shape) -> Vec<T> {
    let Shape { n, c, window } = *shape;
    let runs = Runs::new(window);
    let [in_len, out_len, n_taps] = [window.input_len(), window.output_len(), window.kernel_len()];
    build(
        n * c * out_len,
        out_len,
        n_taps + 4,
        || (runs.padded(T::zero()), runs.run(T::zero())),
        |(padded, run), plane, y| {
            runs.load(&x[plane * in_len..][..in_len], padded);
            weigh(padded, runs.taps(), &w[plane % c * n_taps..][..n_taps], run);
            runs.collect(run, y);
        },
    )
}

/// See [`naive::grad_x`](super::naive::grad_x).
pub(super) fn grad_x<T: Element>(grad: &[T], w: &[T], shape: &Shape) -> Vec<T> {
    let Shape { n, c, window } = *shape;
    let runs = Runs::new(window);
    let [in_len, out_len, n_taps] = [window.input_len(), window.output_len(), window.kernel_len()];
    build(
        n * c * in_len,
        in_len,
        n_taps / (window.stride * window.stride) + 4,
        || (runs.padded(T::zero()), runs.run_with_lead(T::zero())),
        |(padded, run), plane, grad_x| {
            runs.spread(&grad[plane * out_len..][..out_len], runs.behind_lead(run));
            for phase in runs.phases() {
                weigh(
                    run,
                    &phase.taps,
                    &w[plane % c * n_taps..][..n_taps],
                    &mut padded[phase.range.clone()],
                );
            }
            runs.store(padded, grad_x);
        },
    )
}

/// See [`naive::grad_w`](super::naive::grad_w).
pub(super) fn grad_w<T: Element>(grad: &[T], x: &[T], shape: &Shape) -> Vec<T> {
    let Shape { n, c, window } = *shape;
    let runs = Runs::new(window);
    let [in_len, out_len, n_taps] = [window.input_len(), window.output_len(), window.kernel_len()];
    sum_over_images(
        n,
        [c, n_taps],
        out_len,
        || {
            (
                runs.padded(T::zero()),
                runs.run(T::zero()),
                vec![[T::zero(); LANES]; n_taps],
            )
        },
        |(padded, run, sums), images, channel, partial: &mut [f64]| {
            sums.fill([T::zero(); LANES]);
            for plane in images.map(|image| image * c + channel) {
                runs.load(&x[plane * in_len..][..in_len], padded);
                runs.spread(&grad[plane * out_len..][..out_len], run);
                correlate(padded, runs.taps(), run, sums);
            }
            for (partial, lanes) in partial.iter_mut().zip(sums) {
                *partial = lanes.iter().map(|lane| lane.to_f64()).sum();
            }
        },
    )
}

/// A partial sum per tap is spread over this many.
const LANES: usize = 16;

/// `sums += run * padded[offset..]`, for every tap in lanes.
#[multiversion(targets = "simd")]
fn correlate<T: Element>(padded: &[T], taps: &[Tap], run: &[T], sums: &mut [[T; LANES]]) {
    match taps.len() {
        n if n % 5 == 0 => correlate_taps::<T, 5>(padded, taps, run, sums),
        n if n % 3 == 0 => correlate_taps::<T, 3>(padded, taps, run, sums),
        _ => correlate_taps::<T, 1>(padded, taps, run, sums),
    }
}

/// [`correlate`] for `N` taps at a time, with their sums in registers.
#[inline(always)]
fn correlate_taps<T: Element, const N: usize>(
    padded: &[T],
    taps: &[Tap],
    run: &[T],
    sums: &mut [[T; LANES]],
) {
    let (run, _) = run.as_chunks::<LANES>();
    for (taps, sums) in taps
        .as_chunks::<N>()
        .0
        .iter()
        .zip(sums.as_chunks_mut::<N>().0)
    {
        let sources = taps.map(|tap| &padded[tap.offset..].as_chunks::<LANES>().0[..run.len()]);
        let mut lanes = *sums;
        for (index, &grad) in run.iter().enumerate() {
            for (lanes, source) in lanes.iter_mut().zip(sources) {
                for ((lane, grad), x) in lanes.iter_mut().zip(grad).zip(source[index]) {
                    *lane += grad * x;
                }
            }
        }
        *sums = lanes;
    }
}
