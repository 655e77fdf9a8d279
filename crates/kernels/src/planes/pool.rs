//! Maximum and average pooling of planes.

use multiversion::multiversion;

use super::stencil::{Held, Onto};
use super::{Buffer, Grid, Stencil, for_each, parts_mut};
use crate::simd::Ahead;
use crate::{Element, Window};

/// Numbers that are worked on at a time.
const BLOCK: usize = 64;

/// Maximum pooling of planes of `n` images. The gradient goes to the first maximum of a window, in
/// row-major order.
#[derive(Debug, Clone)]
pub struct MaxPool {
    window: Window,
    output: Grid,
}

impl MaxPool {
    /// Prepares a window for planes of `n` images.
    pub fn new(window: Window, n: usize) -> Self {
        let [h, w] = window.output();
        Self {
            window,
            output: Grid { h, w, n },
        }
    }

    /// Windows of 2x2 pixels side by side; at an odd size the last row and column pool alone.
    pub fn halving(input: Grid) -> Self {
        Self {
            window: Window {
                input: [input.h, input.w],
                kernel: [2, 2],
                padding: 0,
                stride: 2,
                dilation: 1,
            },
            output: input.halved(),
        }
    }

    /// The size of an output plane.
    pub fn output(&self) -> Grid {
        self.output
    }

    /// For an output pixel, where the input pixels of its window begin in a plane, in row-major order.
    fn fill_offsets(&self, row: usize, column: usize, offsets: &mut Vec<usize>) {
        let Window {
            input: [h, w],
            kernel: [n_u, n_v],
            padding,
            stride,
            dilation,
        } = self.window;
        offsets.clear();
        // What lies before the input wraps around to beyond it.
        let at = |out: usize, tap: usize| (out * stride + tap * dilation).wrapping_sub(padding);
        for row in (0..n_u).map(|u| at(row, u)).filter(|&row| row < h) {
            for v in 0..n_v {
                let column = at(column, v);
                if column < w {
                    offsets.push((row * w + column) * self.output.n);
                }
            }
        }
    }

    /// The maxima of each window of each plane; what is no number counts as one.
    pub fn forward<T: Element>(&self, x: &[&[T]], y: Vec<&mut [T]>) {
        let Grid { w, n, .. } = self.output();
        for_each(
            parts_mut(y, w * n),
            Vec::new,
            |offsets, _, (channel, start, y)| {
                for (column, y) in y.chunks_mut(n.max(1)).enumerate() {
                    self.fill_offsets(start / (w * n), column, offsets);
                    maximum(x[channel], offsets, y);
                }
            },
        );
    }

    /// Adds the gradient of each window to its first maximum.
    pub fn add_backward<T: Element>(
        &self,
        x: &[&[T]],
        y: &[&[T]],
        grad_y: &[&[T]],
        grad_x: Vec<&mut [T]>,
    ) {
        let Grid { h, w, n } = self.output();
        for_each(grad_x, Vec::new, |offsets, channel, grad_x| {
            let (x, y, grad_y) = (x[channel], y[channel], grad_y[channel]);
            for (row, column) in (0..h).flat_map(|row| (0..w).map(move |col| (row, col))) {
                self.fill_offsets(row, column, offsets);
                let at = (row * w + column) * n;
                give_to_first(x, &y[at..][..n], &grad_y[at..][..n], offsets, grad_x);
            }
        });
    }
}

#[multiversion(targets = "simd")]
fn maximum<T: Element>(x: &[T], offsets: &[usize], y: &mut [T]) {
    let len = y.len();
    let (blocks, rest) = y.as_chunks_mut::<BLOCK>();
    for (index, block) in blocks.iter_mut().enumerate() {
        let at = index * BLOCK;
        let mut maxima = [T::NEG_INFINITY; BLOCK];
        for offset in offsets {
            let source: &[T; BLOCK] = x[offset + at..][..BLOCK].try_into().expect("a block");
            for (max, &x) in maxima.iter_mut().zip(source) {
                *max = if x > *max || x.is_nan() { x } else { *max };
            }
        }
        *block = maxima;
    }
    let at = len - rest.len();
    rest.fill(T::NEG_INFINITY);
    for offset in offsets {
        for (max, &x) in rest.iter_mut().zip(&x[offset + at..]) {
            *max = if x > *max || x.is_nan() { x } else { *max };
        }
    }
}

#[multiversion(targets = "simd")]
fn give_to_first<T: Element>(x: &[T], y: &[T], grad_y: &[T], offsets: &[usize], grad_x: &mut [T]) {
    let mut at = 0;
    while at < y.len() {
        let len = BLOCK.min(y.len() - at);
        let (y, grad_y) = (&y[at..][..len], &grad_y[at..][..len]);
        // What has not been given away yet.
        let mut left = [T::zero(); BLOCK];
        left[..len].copy_from_slice(grad_y);
        for offset in offsets {
            let x = &x[offset + at..][..len];
            let grad_x = &mut grad_x[offset + at..][..len];
            for (((grad_x, left), &x), &y) in grad_x.iter_mut().zip(&mut left).zip(x).zip(y) {
                let is_it = x == y;
                *grad_x += if is_it { *left } else { T::zero() };
                *left = if is_it { T::zero() } else { *left };
            }
        }
        at += len;
    }
}

/// Average pooling without the padding: the window of `stencil`, all taps alike.
pub fn average<T: Element>(stencil: &Stencil, x: &[&[T]], y: Vec<&mut [T]>) {
    let ones = vec![T::one(); stencil.kernel_len()];
    let factors = stencil.inverse_counts();
    let Grid { w, n, .. } = stencil.output();
    for_each(
        parts_mut(y, w * n),
        || (),
        |(), _, (channel, start, y)| {
            let row = start / (w * n);
            let x = Held::new(x[channel], stencil.input().h);
            stencil.forward_rows::<T, false>(x, &ones, row, y, &mut Ahead::none());
            scale_pixels(y, &factors[row * w..][..w], n);
        },
    );
}

/// Adds the gradient of [`average`] to that of its input.
pub fn average_backward<T: Element>(stencil: &Stencil, grad_y: &[&[T]], grad_x: Vec<&mut [T]>) {
    let ones = vec![T::one(); stencil.kernel_len()];
    let factors = stencil.inverse_counts();
    let Grid { h, n, .. } = stencil.output();
    for_each(
        grad_x,
        || Buffer::scratch(stencil.output().len()),
        |scaled, channel, grad_x| {
            scaled.copy_from_slice(grad_y[channel]);
            scale_pixels(scaled, &factors, n);
            let onto = Onto::new(grad_x).adding(true);
            stencil.backward_rows(Held::new(scaled, h), &ones, 0, onto, &mut Ahead::none());
        },
    );
}

/// Multiplies the numbers of each pixel by its factor.
fn scale_pixels<T: Element>(y: &mut [T], factors: &[T], n: usize) {
    for (pixel, &factor) in y.chunks_mut(n.max(1)).zip(factors) {
        pixel.iter_mut().for_each(|y| *y *= factor);
    }
}
