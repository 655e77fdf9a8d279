//! Depthwise convolution over [`Runs`]: each tap is one multiply-add of a shifted run.

use multiversion::multiversion;

use super::Shape;
use crate::parallel::{build, build_with};
use crate::runs::{BLOCK, Runs};
use crate::{Element, Window};

/// See [`naive::forward`](super::naive::forward).
pub fn forward<T: Element>(x: &[T], w: &[T], shape: &Shape) -> Vec<T> {
    let Shape { n, c, window } = *shape;
    let runs = Runs::new(window);
    let [in_len, out_len, n_taps] = [window.input_len(), window.output_len(), window.kernel_len()];
    build_with(
        n * c * out_len,
        out_len,
        n_taps + 4,
        || (runs.padded(T::zero()), runs.run()),
        |(padded, run), plane, y| {
            runs.load(&x[plane * in_len..][..in_len], padded);
            weigh(
                padded,
                runs.offsets(),
                &w[plane % c * n_taps..][..n_taps],
                run,
            );
            runs.collect(run, y);
        },
    )
}

/// See [`naive::grad_x`](super::naive::grad_x).
pub fn grad_x<T: Element>(grad: &[T], w: &[T], shape: &Shape) -> Vec<T> {
    let Shape { n, c, window } = *shape;
    if let Some(transposed) = transposed(&window) {
        // The gradient of a convolution with stride 1 is one with the kernel turned by half a turn.
        let w: Vec<T> = w
            .chunks_exact(window.kernel_len())
            .flat_map(|w| w.iter().rev().copied())
            .collect();
        return forward(
            grad,
            &w,
            &Shape {
                window: transposed,
                ..*shape
            },
        );
    }
    let runs = Runs::new(window);
    let [in_len, out_len, n_taps] = [window.input_len(), window.output_len(), window.kernel_len()];
    build_with(
        n * c * in_len,
        in_len,
        n_taps + 4,
        || (runs.padded(T::zero()), runs.run()),
        |(padded, run), plane, grad_x| {
            runs.spread(&grad[plane * out_len..][..out_len], run);
            padded.fill(T::zero());
            scatter(
                run,
                runs.offsets(),
                &w[plane % c * n_taps..][..n_taps],
                padded,
            );
            runs.store(padded, grad_x);
        },
    )
}

/// See [`naive::grad_w`](super::naive::grad_w).
pub fn grad_w<T: Element>(grad: &[T], x: &[T], shape: &Shape) -> Vec<T> {
    let Shape { n, c, window } = *shape;
    let runs = Runs::new(window);
    let [in_len, out_len, n_taps] = [window.input_len(), window.output_len(), window.kernel_len()];
    let block = n.div_ceil(N_PARTIALS).max(1);
    let n_partials = n.div_ceil(block);
    let partials: Vec<f64> = build_with(
        n_partials * c * n_taps,
        n_taps,
        block * out_len,
        || {
            (
                runs.padded(T::zero()),
                runs.run(),
                vec![[T::zero(); LANES]; n_taps],
            )
        },
        |(padded, run, sums), index, partial| {
            let (images, channel) = (
                index / c * block..((index / c + 1) * block).min(n),
                index % c,
            );
            sums.fill([T::zero(); LANES]);
            for plane in images.map(|image| image * c + channel) {
                runs.load(&x[plane * in_len..][..in_len], padded);
                runs.spread(&grad[plane * out_len..][..out_len], run);
                correlate(padded, runs.offsets(), run, sums);
            }
            for (partial, lanes) in partial.iter_mut().zip(sums) {
                *partial = lanes.iter().map(|lane| lane.to_f64()).sum();
            }
        },
    );
    build(c * n_taps, c * n_taps, 1, |_, grad_w| {
        for (index, grad_w) in grad_w.iter_mut().enumerate() {
            let sum: f64 = partials.iter().skip(index).step_by(c * n_taps).sum();
            *grad_w = T::from_f64(sum);
        }
    })
}

const N_PARTIALS: usize = 8;
const LANES: usize = 16;

/// The window of the convolution that is the transpose of one with stride 1.
fn transposed(window: &Window) -> Option<Window> {
    let Window {
        kernel: [n_u, n_v],
        padding,
        stride,
        dilation,
        ..
    } = *window;
    let reach = dilation * (n_u - 1);
    (stride == 1 && n_u == n_v && padding <= reach).then(|| Window {
        input: window.output(),
        padding: reach - padding,
        ..*window
    })
}

/// `run = sum over taps of w * padded[offset..]`.
#[multiversion(targets = "simd")]
fn weigh<T: Element>(padded: &[T], offsets: &[usize], w: &[T], run: &mut [T]) {
    for (index, block) in run.chunks_exact_mut(BLOCK).enumerate() {
        let mut sums = [T::zero(); BLOCK];
        for (&offset, &w) in offsets.iter().zip(w) {
            let source = &padded[offset + index * BLOCK..][..BLOCK];
            for (sum, &x) in sums.iter_mut().zip(source) {
                *sum += w * x;
            }
        }
        block.copy_from_slice(&sums);
    }
}

/// `padded[offset..] += w * run` for every tap.
#[multiversion(targets = "simd")]
fn scatter<T: Element>(run: &[T], offsets: &[usize], w: &[T], padded: &mut [T]) {
    for (&offset, &w) in offsets.iter().zip(w) {
        for (target, &grad) in padded[offset..][..run.len()].iter_mut().zip(run) {
            *target += w * grad;
        }
    }
}

/// `sums += run * padded[offset..]`, for every tap in lanes.
#[multiversion(targets = "simd")]
fn correlate<T: Element>(padded: &[T], offsets: &[usize], run: &[T], sums: &mut [[T; LANES]]) {
    for (&offset, sums) in offsets.iter().zip(sums) {
        let mut lanes = *sums;
        let source = &padded[offset..][..run.len()];
        for (grad, x) in run.chunks_exact(LANES).zip(source.chunks_exact(LANES)) {
            for ((lane, &grad), &x) in lanes.iter_mut().zip(grad).zip(x) {
                *lane += grad * x;
            }
        }
        *sums = lanes;
    }
}
