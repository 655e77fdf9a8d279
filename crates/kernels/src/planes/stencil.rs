//! Windows on planes laid out `h w n`: depthwise convolutions and average pooling, and their gradients.

use std::ops::Range;

use pulp::{Arch, Simd, WithSimd};

use super::Grid;
use crate::{Element, Window};

/// Vectors that are summed at a time.
const BLOCK: usize = 4;

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

    /// The input rows that the windows of an output row reach.
    pub(super) fn sources(&self, row: usize) -> Range<usize> {
        reach(&self.forward.rows[row])
    }

    /// The output rows whose windows reach an input row.
    pub(super) fn targets(&self, row: usize) -> Range<usize> {
        reach(&self.backward.rows[row])
    }

    /// Output rows `first..` of one plane: `y = Σ w[u, v] x[…]`. `y` holds whole rows.
    pub(super) fn forward_rows<T: Element>(
        &self,
        x: Held<'_, T>,
        w: &[T],
        first: usize,
        y: &mut [T],
    ) {
        self.forward.gather::<T, false>(self, x, w, first, y);
    }

    /// The gradient of input rows `first..` of one plane that comes from the output's: added to `grad_x`, or in
    /// its place.
    pub(super) fn backward_rows<T: Element>(
        &self,
        grad_y: Held<'_, T>,
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

    /// Adds to `sums`, one entry per tap, the products of an output row's gradient with what the tap read.
    pub(super) fn add_tap_products<T: Element>(
        &self,
        x: Held<'_, T>,
        grad_y: Held<'_, T>,
        row: usize,
        sums: &mut [f64],
    ) {
        let (n, [_, n_v]) = (self.n, self.window.kernel);
        let width = self.forward.width;
        let grad_row = grad_y.row(row, self.output().row_len());
        for run in &self.forward.runs {
            let (len, n_parts) = run.parts(n);
            for &(u, source_row) in &self.forward.rows[row] {
                let x = x.row(source_row, width * n);
                for part in 0..n_parts {
                    let grad = &grad_row[(run.start + part * run.step) * n..][..len];
                    let shift = part * run.source_step;
                    correlate_run(x, grad, &run.taps, n, shift, &mut sums[u * n_v..][..n_v]);
                }
            }
        }
    }
}

/// The rows of a plane that are at hand: the last `n` that were written, each in the place of its number modulo `n`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Held<'a, T> {
    numbers: &'a [T],
    n: usize,
}

impl<'a, T> Held<'a, T> {
    /// `n` rows.
    pub(super) fn new(numbers: &'a [T], n: usize) -> Self {
        Self { numbers, n }
    }

    /// One row.
    pub(super) fn row(&self, row: usize, row_len: usize) -> &'a [T] {
        &self.numbers[row % self.n * row_len..][..row_len]
    }
}

/// From the first to the last of some rows.
fn reach(rows: &[(usize, usize)]) -> Range<usize> {
    let numbers = || rows.iter().map(|&(_, row)| row);
    match (numbers().min(), numbers().max()) {
        (Some(first), Some(last)) => first..last + 1,
        _ => 0..0,
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
        source: Held<'_, T>,
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
                        let offset = (source_row % source.n * self.width + column) * n;
                        taps.push((w[u * n_v + v], offset));
                    }
                }
                let (len, n_parts) = run.parts(n);
                for part in 0..n_parts {
                    let y = &mut row[(run.start + part * run.step) * n..][..len];
                    weigh::<T, ADD>(source.numbers, &taps, part * run.source_step * n, y);
                }
            }
        }
    }
}

/// `y (+)= Σ weight * x[offset + shift..]`.
fn weigh<T: Element, const ADD: bool>(x: &[T], taps: &[(T, usize)], shift: usize, y: &mut [T]) {
    Arch::new().dispatch(Weigh::<T, ADD> { x, taps, shift, y });
}

struct Weigh<'a, T, const ADD: bool> {
    x: &'a [T],
    taps: &'a [(T, usize)],
    shift: usize,
    y: &'a mut [T],
}

impl<T: Element, const ADD: bool> WithSimd for Weigh<'_, T, ADD> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let lanes = T::lanes::<S>();
        let Self { x, taps, shift, y } = self;
        let whole = y.len() / (BLOCK * lanes) * (BLOCK * lanes);
        let (blocks, rest) = y.split_at_mut(whole);
        for (index, y) in blocks.chunks_exact_mut(BLOCK * lanes).enumerate() {
            let at = shift + index * BLOCK * lanes;
            weigh_block::<T, S, ADD, BLOCK>(simd, x, taps, at, y);
        }
        for (index, y) in rest.chunks_mut(lanes).enumerate() {
            let at = shift + whole + index * lanes;
            weigh_block::<T, S, ADD, 1>(simd, x, taps, at, y);
        }
    }
}

/// Some vectors of [`weigh`].
#[inline(always)]
fn weigh_block<T: Element, S: Simd, const ADD: bool, const N: usize>(
    simd: S,
    x: &[T],
    taps: &[(T, usize)],
    at: usize,
    y: &mut [T],
) {
    let lanes = T::lanes::<S>();
    let mut sums = [T::splat(simd, T::zero()); N];
    if ADD {
        for (sum, y) in sums.iter_mut().zip(y.chunks(lanes)) {
            *sum = T::load(simd, y);
        }
    }
    for &(weight, offset) in taps {
        let weight = T::splat(simd, weight);
        let x = &x[offset + at..][..y.len()];
        for (sum, x) in sums.iter_mut().zip(x.chunks(lanes)) {
            *sum = T::mul_add(simd, weight, T::load(simd, x), *sum);
        }
    }
    for (y, sum) in y.chunks_mut(lanes).zip(sums) {
        T::store(simd, y, sum);
    }
}

/// `sums[v] += grad * x` under the taps of one row of windows.
fn correlate_run<T: Element>(
    x: &[T],
    grad: &[T],
    taps: &[(usize, usize)],
    n: usize,
    shift: usize,
    sums: &mut [f64],
) {
    Arch::new().dispatch(Correlate {
        x,
        grad,
        taps,
        n,
        shift,
        sums,
    });
}

struct Correlate<'a, T> {
    x: &'a [T],
    grad: &'a [T],
    taps: &'a [(usize, usize)],
    n: usize,
    shift: usize,
    sums: &'a mut [f64],
}

impl<T: Element> WithSimd for Correlate<'_, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(mut self, simd: S) {
        match *self.taps {
            [a, b, c, d, e] => self.taps(simd, [a, b, c, d, e]),
            [a, b, c, d] => self.taps(simd, [a, b, c, d]),
            [a, b, c] => self.taps(simd, [a, b, c]),
            [a, b] => self.taps(simd, [a, b]),
            _ => {
                for &tap in self.taps {
                    self.taps(simd, [tap]);
                }
            }
        }
    }
}

impl<T: Element> Correlate<'_, T> {
    #[inline(always)]
    fn taps<S: Simd, const N: usize>(&mut self, simd: S, taps: [(usize, usize); N]) {
        let lanes = T::lanes::<S>();
        let sources =
            taps.map(|(_, column)| &self.x[(self.shift + column) * self.n..][..self.grad.len()]);
        // Two sums per tap, so that one addition need not wait for the other.
        let mut sums = [[T::splat(simd, T::zero()); 2]; N];
        for at in (0..self.grad.len()).step_by(2 * lanes) {
            let split = self.grad.len().min(at + lanes);
            let end = self.grad.len().min(at + 2 * lanes);
            let grads = [
                T::load(simd, &self.grad[at..split]),
                T::load(simd, &self.grad[split..end]),
            ];
            for (sums, source) in sums.iter_mut().zip(sources) {
                let xs = [
                    T::load(simd, &source[at..split]),
                    T::load(simd, &source[split..end]),
                ];
                for ((sum, grad), x) in sums.iter_mut().zip(grads).zip(xs) {
                    *sum = T::mul_add(simd, grad, x, *sum);
                }
            }
        }
        for ((v, _), [even, odd]) in taps.into_iter().zip(sums) {
            self.sums[v] += T::sum(simd, even).to_f64() + T::sum(simd, odd).to_f64();
        }
    }
}
