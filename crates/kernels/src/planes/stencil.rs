//! Windows on planes laid out `h w n`: depthwise convolutions and average pooling, and their gradients.

use multiversion::multiversion;

use super::Grid;
use crate::{Element, Window};

/// Numbers that are worked on at a time, in registers.
const BLOCK: usize = 64;

/// Partial sums of a tap's gradient.
pub(super) const LANES: usize = 16;

/// A window over planes of `n` images, prepared as shifts of rows.
///
/// Under one tap, the pixels of a row of windows are a row of the input, shifted. Where the padding takes
/// taps away, at the borders, columns have lists of their own.
#[derive(Debug, Clone)]
pub struct Stencil {
    window: Window,
    n: usize,
    /// From output rows and columns to the input.
    forward: Direction,
    /// From input rows and columns to the output.
    backward: Direction,
}

/// What is read to compute one side from the other.
#[derive(Debug, Clone)]
struct Direction {
    /// For each row, the taps (u) and the rows that they read.
    rows: Vec<Vec<(usize, usize)>>,
    /// The columns, in runs of equal taps.
    runs: Vec<Run>,
    /// Columns of the side that is read.
    width: usize,
}

/// Columns `start`, `start + step`, … that have the same taps (v).
#[derive(Debug, Clone, PartialEq)]
struct Run {
    start: usize,
    step: usize,
    count: usize,
    /// Taps, and the columns that they read for the first column of the run.
    taps: Vec<(usize, usize)>,
    /// From one column of the run to the next, this many columns of the side that is read.
    source_step: usize,
}

impl Stencil {
    /// Prepares a window for planes of `n` images.
    pub fn new(window: Window, n: usize) -> Self {
        let Window {
            input,
            kernel,
            padding,
            stride,
            dilation,
        } = window;
        let output = window.output();
        // (tap, input) for an output position, (tap, output) for an input position.
        let sources = |axis: usize, out: usize| -> Vec<(usize, usize)> {
            (0..kernel[axis])
                .filter_map(|tap| {
                    let at = (out * stride + tap * dilation).checked_sub(padding)?;
                    (at < input[axis]).then_some((tap, at))
                })
                .collect()
        };
        let targets = |axis: usize, at: usize| -> Vec<(usize, usize)> {
            (0..kernel[axis])
                .filter_map(|tap| {
                    let shifted = (at + padding).checked_sub(tap * dilation)?;
                    (shifted.is_multiple_of(stride) && shifted / stride < output[axis])
                        .then_some((tap, shifted / stride))
                })
                .collect()
        };
        let forward = Direction {
            rows: (0..output[0]).map(|row| sources(0, row)).collect(),
            runs: runs(
                (0..output[1]).map(|col| sources(1, col)).collect(),
                1,
                stride,
            ),
            width: input[1],
        };
        let backward = Direction {
            rows: (0..input[0]).map(|row| targets(0, row)).collect(),
            runs: runs(
                (0..input[1]).map(|col| targets(1, col)).collect(),
                stride,
                1,
            ),
            width: output[1],
        };
        Self {
            window,
            n,
            forward,
            backward,
        }
    }

    /// The size of an input plane.
    pub fn input(&self) -> Grid {
        let [h, w] = self.window.input;
        Grid { h, w, n: self.n }
    }

    /// The size of an output plane.
    pub fn output(&self) -> Grid {
        let [h, w] = self.window.output();
        Grid { h, w, n: self.n }
    }

    /// Taps of a window.
    pub fn kernel_len(&self) -> usize {
        self.window.kernel_len()
    }

    /// For each output pixel, one over the number of taps that lie on the input: what an average pooling
    /// multiplies by.
    pub fn inverse_counts<T: Element>(&self) -> Vec<T> {
        let count = |taps: &Vec<(usize, usize)>| taps.len();
        let mut columns = vec![0; self.output().w];
        for run in &self.forward.runs {
            for index in 0..run.count {
                columns[run.start + index * run.step] = count(&run.taps);
            }
        }
        self.forward
            .rows
            .iter()
            .flat_map(|row| {
                let n_rows = count(row);
                columns
                    .iter()
                    .map(move |n_columns| T::from_f64(1.0 / (n_rows * n_columns).max(1) as f64))
            })
            .collect()
    }

    /// Output rows `first..` of one plane: `y = Σ w[u, v] x[…]`. `y` holds whole rows.
    pub(super) fn forward_rows<T: Element>(&self, x: &[T], w: &[T], first: usize, y: &mut [T]) {
        self.forward.gather::<T, false>(self, x, w, first, y);
    }

    /// The gradient of input rows `first..` of one plane that comes from the output's: added to `grad_x`, or in
    /// its place.
    pub(super) fn backward_rows<T: Element>(
        &self,
        grad_y: &[T],
        w: &[T],
        first: usize,
        (grad_x, adds): (&mut [T], bool),
    ) {
        let direction = &self.backward;
        if adds {
            direction.gather::<T, true>(self, grad_y, w, first, grad_x);
        } else {
            direction.gather::<T, false>(self, grad_y, w, first, grad_x);
        }
    }

    /// Adds to `sums`, one entry per tap, the products of some output rows' gradient with what the tap read.
    pub(super) fn add_tap_products<T: Element>(
        &self,
        x: &[T],
        grad_y: &[T],
        rows: std::ops::Range<usize>,
        sums: &mut [[T; LANES]],
    ) {
        let (n, [_, n_v]) = (self.n, self.window.kernel);
        let out_width = self.output().w;
        for row in rows {
            let grad_row = &grad_y[row * out_width * n..][..out_width * n];
            for run in &self.forward.runs {
                let (len, n_parts) = run.parts(n);
                for &(u, source_row) in &self.forward.rows[row] {
                    let base = source_row * self.forward.width;
                    for part in 0..n_parts {
                        let grad = &grad_row[(run.start + part * run.step) * n..][..len];
                        let shift = base + part * run.source_step;
                        correlate_run(x, grad, &run.taps, n, shift, &mut sums[u * n_v..][..n_v]);
                    }
                }
            }
        }
    }
}

impl Run {
    /// The length of contiguous stretches of this run, and their number.
    fn parts(&self, n: usize) -> (usize, usize) {
        if self.step == 1 && self.source_step == 1 {
            (self.count * n, 1)
        } else {
            (n, self.count)
        }
    }
}

/// Joins columns that have the same taps, shifted. `step`: between the columns of a run; `source_step`: between
/// what they read.
fn runs(columns: Vec<Vec<(usize, usize)>>, step: usize, source_step: usize) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    for (column, taps) in columns.into_iter().enumerate() {
        let continues = |run: &Run| {
            column == run.start + run.count * run.step
                && run.taps.len() == taps.len()
                && run.taps.iter().zip(&taps).all(|(first, own)| {
                    first.0 == own.0 && first.1 + run.count * run.source_step == own.1
                })
        };
        match runs.iter_mut().find(|run| continues(run)) {
            Some(run) => run.count += 1,
            None => runs.push(Run {
                start: column,
                step,
                count: 1,
                taps,
                source_step,
            }),
        }
    }
    runs
}

impl Direction {
    fn gather<T: Element, const ADD: bool>(
        &self,
        stencil: &Stencil,
        source: &[T],
        w: &[T],
        first: usize,
        rows: &mut [T],
    ) {
        let (n, [_, n_v]) = (stencil.n, stencil.window.kernel);
        let columns: usize = self.runs.iter().map(|run| run.count).sum();
        let mut taps: Vec<(T, usize)> = Vec::with_capacity(stencil.kernel_len());
        for (index, row) in rows.chunks_mut((columns * n).max(1)).enumerate() {
            for run in &self.runs {
                taps.clear();
                for &(u, source_row) in &self.rows[first + index] {
                    for &(v, column) in &run.taps {
                        let offset = (source_row * self.width + column) * n;
                        taps.push((w[u * n_v + v], offset));
                    }
                }
                let (len, n_parts) = run.parts(n);
                for part in 0..n_parts {
                    let y = &mut row[(run.start + part * run.step) * n..][..len];
                    weigh::<T, ADD>(source, &taps, part * run.source_step * n, y);
                }
            }
        }
    }
}

/// `y (+)= Σ weight * x[offset + shift..]`.
#[multiversion(targets = "simd")]
fn weigh<T: Element, const ADD: bool>(x: &[T], taps: &[(T, usize)], shift: usize, y: &mut [T]) {
    let len = y.len();
    let (blocks, rest) = y.as_chunks_mut::<BLOCK>();
    for (index, block) in blocks.iter_mut().enumerate() {
        let at = shift + index * BLOCK;
        let mut sums = if ADD { *block } else { [T::zero(); BLOCK] };
        for &(weight, offset) in taps {
            let source: &[T; BLOCK] = x[offset + at..][..BLOCK].try_into().expect("a block");
            for (sum, &x) in sums.iter_mut().zip(source) {
                *sum += weight * x;
            }
        }
        *block = sums;
    }
    let at = shift + len - rest.len();
    if rest.is_empty() {
        return;
    }
    if !ADD {
        rest.fill(T::zero());
    }
    for &(weight, offset) in taps {
        for (y, &x) in rest.iter_mut().zip(&x[offset + at..]) {
            *y += weight * x;
        }
    }
}

/// `sums[v] += grad * x` under the taps of one row of windows.
#[multiversion(targets = "simd")]
fn correlate_run<T: Element>(
    x: &[T],
    grad: &[T],
    taps: &[(usize, usize)],
    n: usize,
    shift: usize,
    sums: &mut [[T; LANES]],
) {
    match taps {
        &[a, b, c, d, e] => correlate_taps(x, grad, [a, b, c, d, e], n, shift, sums),
        &[a, b, c, d] => correlate_taps(x, grad, [a, b, c, d], n, shift, sums),
        &[a, b, c] => correlate_taps(x, grad, [a, b, c], n, shift, sums),
        &[a, b] => correlate_taps(x, grad, [a, b], n, shift, sums),
        taps => {
            for &tap in taps {
                correlate_taps(x, grad, [tap], n, shift, sums);
            }
        }
    }
}

#[inline(always)]
fn correlate_taps<T: Element, const N: usize>(
    x: &[T],
    grad: &[T],
    taps: [(usize, usize); N],
    n: usize,
    shift: usize,
    sums: &mut [[T; LANES]],
) {
    let (grads, rest) = grad.as_chunks::<LANES>();
    let sources = taps.map(|(_, column)| &x[(shift + column) * n..][..grad.len()]);
    let chunks = sources.map(|source| &source.as_chunks::<LANES>().0[..grads.len()]);
    let mut lanes = taps.map(|(v, _)| sums[v]);
    // Two sums per tap, so that one addition need not wait for the other.
    let mut others = [[T::zero(); LANES]; N];
    let n_pairs = grads.len() / 2;
    for pair in 0..n_pairs {
        let (even, odd) = (grads[2 * pair], grads[2 * pair + 1]);
        for tap in 0..N {
            let (x_even, x_odd) = (chunks[tap][2 * pair], chunks[tap][2 * pair + 1]);
            for lane in 0..LANES {
                lanes[tap][lane] += even[lane] * x_even[lane];
                others[tap][lane] += odd[lane] * x_odd[lane];
            }
        }
    }
    for index in 2 * n_pairs..grads.len() {
        for tap in 0..N {
            for lane in 0..LANES {
                lanes[tap][lane] += grads[index][lane] * chunks[tap][index][lane];
            }
        }
    }
    let at = grad.len() - rest.len();
    for tap in 0..N {
        for lane in 0..LANES {
            lanes[tap][lane] += others[tap][lane];
        }
        for ((lane, &grad), &x) in lanes[tap].iter_mut().zip(rest).zip(&sources[tap][at..]) {
            *lane += grad * x;
        }
    }
    for ((v, _), lanes) in taps.into_iter().zip(lanes) {
        sums[v] = lanes;
    }
}
