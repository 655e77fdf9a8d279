//! Max pooling over [`Runs`]: each tap is one comparison of a shifted run.

use std::array::from_fn;

use multiversion::multiversion;

use super::Shape;
use crate::Element;
use crate::parallel::build;
use crate::runs::{Runs, Tap};

/// Elements that are compared at a time; the length of a run is a multiple of it.
const LANES: usize = 32;

/// See [`naive::forward`](super::naive::forward).
pub(super) fn forward<T: Element>(x: &[T], shape: &Shape) -> Vec<T> {
    let window = shape.window;
    let runs = Runs::new(window);
    let [in_len, out_len] = [window.input_len(), window.output_len()];
    build(
        shape.n_planes() * out_len,
        out_len,
        window.kernel_len() + 4,
        || (runs.padded(T::NEG_INFINITY), runs.run(T::zero())),
        |(padded, run), plane, y| {
            runs.load(&x[plane * in_len..][..in_len], padded);
            highest(padded, runs.taps(), run);
            runs.collect(run, y);
        },
    )
}

/// See [`naive::grad_x`](super::naive::grad_x). The winners are looked for once more: that costs less than to keep them.
pub(super) fn grad_x<T: Element>(grad: &[T], x: &[T], shape: &Shape) -> Vec<T> {
    let window = shape.window;
    let runs = Runs::new(window);
    let [in_len, out_len] = [window.input_len(), window.output_len()];
    let mut first = vec![T::NEG_INFINITY; out_len];
    window.for_each_tap(|out, tap, _| {
        if first[out] == T::NEG_INFINITY {
            first[out] = T::from_f64(tap as f64);
        }
    });
    let mut first_run = runs.run(T::zero());
    runs.spread(&first, &mut first_run);
    build(
        shape.n_planes() * in_len,
        in_len,
        2 * window.kernel_len() + 4,
        || {
            let run = || runs.run_with_lead(T::zero());
            (
                runs.padded(T::NEG_INFINITY),
                runs.padded(T::zero()),
                run(),
                run(),
            )
        },
        |(padded, padded_grad, winners, grad_run), plane, grad_x| {
            runs.load(&x[plane * in_len..][..in_len], padded);
            find_winners(padded, runs.taps(), &first_run, runs.behind_lead(winners));
            runs.spread(
                &grad[plane * out_len..][..out_len],
                runs.behind_lead(grad_run),
            );
            for phase in runs.phases() {
                send_back(
                    winners,
                    grad_run,
                    &phase.taps,
                    &mut padded_grad[phase.range.clone()],
                );
            }
            runs.store(padded_grad, grad_x);
        },
    )
}

/// Whether `x`, which comes later, takes the place of `best`.
#[inline(always)]
fn wins<T: Element>(x: T, best: T) -> bool {
    x > best || x.is_nan()
}

/// `run = max over taps of padded[offset..]`.
#[multiversion(targets = "simd")]
fn highest<T: Element>(padded: &[T], taps: &[Tap], run: &mut [T]) {
    for (index, block) in run.as_chunks_mut::<LANES>().0.iter_mut().enumerate() {
        let mut best = [T::NEG_INFINITY; LANES];
        for tap in taps {
            let source = &padded[tap.offset + index * LANES..][..LANES];
            for (best, &x) in best.iter_mut().zip(source) {
                *best = if wins(x, *best) { x } else { *best };
            }
        }
        *block = best;
    }
}

/// `winners` = the tap with the highest value; `first`, the first tap that is no padding, if all are -∞.
#[multiversion(targets = "simd")]
fn find_winners<T: Element>(padded: &[T], taps: &[Tap], first: &[T], winners: &mut [T]) {
    let blocks = winners
        .as_chunks_mut::<LANES>()
        .0
        .iter_mut()
        .zip(first.as_chunks::<LANES>().0);
    for (index, (block, first)) in blocks.enumerate() {
        let (mut best, mut winner) = ([T::NEG_INFINITY; LANES], *first);
        for tap in taps {
            let source = &padded[tap.offset + index * LANES..][..LANES];
            let tap = T::from_f64(tap.index as f64);
            // Arrays as values: as places, the compiler would store them under a mask, which is slow.
            let wins: [bool; LANES] = from_fn(|lane| wins(source[lane], best[lane]));
            best = from_fn(|lane| if wins[lane] { source[lane] } else { best[lane] });
            winner = from_fn(|lane| if wins[lane] { tap } else { winner[lane] });
        }
        *block = winner;
    }
}

/// `padded` = sum over taps of the gradients of those windows that the tap won.
#[multiversion(targets = "simd")]
fn send_back<T: Element>(winners: &[T], grad: &[T], taps: &[Tap], padded: &mut [T]) {
    for (index, block) in padded.as_chunks_mut::<LANES>().0.iter_mut().enumerate() {
        let mut sums = [T::zero(); LANES];
        for tap in taps {
            let at = tap.offset + index * LANES;
            let (winners, grad) = (&winners[at..][..LANES], &grad[at..][..LANES]);
            let tap = T::from_f64(tap.index as f64);
            for ((sum, &winner), &grad) in sums.iter_mut().zip(winners).zip(grad) {
                *sum += if winner == tap { grad } else { T::zero() };
            }
        }
        *block = sums;
    }
}
