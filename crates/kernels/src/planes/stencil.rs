//! Windows on planes laid out `h w n`: depthwise convolutions and average pooling, and their gradients.

use std::ops::Range;

use pulp::{Arch, Simd, WithSimd};

use super::Grid;
use crate::{Element, Window};

/// Vectors that are summed at a time: half of the registers.
const BLOCK: usize = 8;

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

    /// The gradient of input rows `first..` of one plane that comes from the output's.
    pub(super) fn backward_rows<T: Element>(
        &self,
        grad_y: Held<'_, T>,
        w: &[T],
        first: usize,
        grad_x: &mut [T],
    ) {
        self.backward
            .gather::<T, false>(self, grad_y, w, first, grad_x);
    }

    /// Adds the gradient of all input rows of one plane that comes from the output's.
    pub(super) fn add_backward<T: Element>(&self, grad_y: Held<'_, T>, w: &[T], grad_x: &mut [T]) {
        self.backward.gather::<T, true>(self, grad_y, w, 0, grad_x);
    }

    /// Adds to `sums`, one entry per tap, the products of some output rows' gradients with what the tap read.
    pub(super) fn add_tap_products<T: Element>(
        &self,
        x: Held<'_, T>,
        grad_y: Held<'_, T>,
        rows: Range<usize>,
        sums: &mut [f64],
    ) {
        Arch::new().dispatch(Correlate {
            stencil: self,
            x,
            grad_y,
            rows,
            sums,
        });
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
        Arch::new().dispatch(Gather::<T, ADD> {
            direction: self,
            stencil,
            source,
            w,
            first,
            rows,
        });
    }
}

/// [`Direction::gather`].
struct Gather<'a, T, const ADD: bool> {
    direction: &'a Direction,
    stencil: &'a Stencil,
    source: Held<'a, T>,
    w: &'a [T],
    first: usize,
    rows: &'a mut [T],
}

impl<T: Element, const ADD: bool> WithSimd for Gather<'_, T, ADD> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self {
            direction, source, ..
        } = self;
        let (n, [_, n_v]) = (self.stencil.n, self.stencil.window.kernel);
        let columns: usize = direction.runs.iter().map(|run| run.count).sum();
        let mut taps: Vec<(T, usize)> = Vec::with_capacity(self.w.len());
        for (index, row) in self.rows.chunks_mut((columns * n).max(1)).enumerate() {
            for run in &direction.runs {
                taps.clear();
                for &(u, source_row) in &direction.rows[self.first + index] {
                    let start = source_row % source.n * direction.width;
                    for &(v, column) in &run.taps {
                        taps.push((self.w[u * n_v + v], (start + column) * n));
                    }
                }
                let (len, n_parts) = run.parts(n);
                for part in 0..n_parts {
                    let y = &mut row[(run.start + part * run.step) * n..][..len];
                    let shift = part * run.source_step * n;
                    weigh::<T, S, ADD>(simd, source.numbers, &taps, shift, y);
                }
            }
        }
    }
}

/// `y (+)= Σ weight * x[offset + shift..]`.
#[inline(always)]
fn weigh<T: Element, S: Simd, const ADD: bool>(
    simd: S,
    x: &[T],
    taps: &[(T, usize)],
    shift: usize,
    y: &mut [T],
) {
    let lanes = T::lanes::<S>();
    let mut at = 0;
    while y.len() - at >= BLOCK * lanes {
        weigh_block::<T, S, ADD, BLOCK>(simd, x, taps, shift, at, y);
        at += BLOCK * lanes;
    }
    while y.len() - at >= BLOCK / 2 * lanes {
        weigh_block::<T, S, ADD, { BLOCK / 2 }>(simd, x, taps, shift, at, y);
        at += BLOCK / 2 * lanes;
    }
    while at < y.len() {
        weigh_block::<T, S, ADD, 1>(simd, x, taps, shift, at, y);
        at += lanes;
    }
}

/// Some vectors of [`weigh`], or what is left.
#[inline(always)]
fn weigh_block<T: Element, S: Simd, const ADD: bool, const N: usize>(
    simd: S,
    x: &[T],
    taps: &[(T, usize)],
    shift: usize,
    at: usize,
    y: &mut [T],
) {
    let lanes = T::lanes::<S>();
    let y = &mut y[at..];
    let len = y.len().min(N * lanes);
    let y = &mut y[..len];
    let mut sums = [T::splat(simd, T::zero()); N];
    if ADD {
        for (sum, y) in sums.iter_mut().zip(y.chunks(lanes)) {
            *sum = T::load(simd, y);
        }
    }
    let x = &x[shift + at..];
    if len == N * lanes {
        for &(weight, offset) in taps {
            let weight = T::splat(simd, weight);
            let x = &T::vectors::<S>(&x[offset..][..N * lanes]).0[..N];
            for (sum, &x) in sums.iter_mut().zip(x) {
                *sum = T::mul_add(simd, weight, x, *sum);
            }
        }
    } else {
        for &(weight, offset) in taps {
            let weight = T::splat(simd, weight);
            for (sum, x) in sums.iter_mut().zip(x[offset..][..len].chunks(lanes)) {
                *sum = T::mul_add(simd, weight, T::load(simd, x), *sum);
            }
        }
    }
    for (y, sum) in y.chunks_mut(lanes).zip(sums) {
        T::store(simd, y, sum);
    }
}

/// [`Stencil::add_tap_products`].
struct Correlate<'a, T> {
    stencil: &'a Stencil,
    x: Held<'a, T>,
    grad_y: Held<'a, T>,
    rows: Range<usize>,
    sums: &'a mut [f64],
}

impl<T: Element> WithSimd for Correlate<'_, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { stencil, x, .. } = self;
        let (n, [_, n_v]) = (stencil.n, stencil.window.kernel);
        let (row_len, width) = (stencil.output().row_len(), stencil.forward.width);
        let mut sums = vec![[T::splat(simd, T::zero()); 2]; self.sums.len()];
        for row in self.rows {
            let grad_row = self.grad_y.row(row, row_len);
            for run in &stencil.forward.runs {
                let (len, n_parts) = run.parts(n);
                for &(u, source_row) in &stencil.forward.rows[row] {
                    let x = x.row(source_row, width * n);
                    let sums = &mut sums[u * n_v..][..n_v];
                    for part in 0..n_parts {
                        let grad = &grad_row[(run.start + part * run.step) * n..][..len];
                        let x = &x[part * run.source_step * n..];
                        correlate_taps(simd, x, grad, &run.taps, n, sums);
                    }
                }
            }
        }
        for (sum, [even, odd]) in self.sums.iter_mut().zip(sums) {
            *sum += T::sum(simd, even).to_f64() + T::sum(simd, odd).to_f64();
        }
    }
}

/// `sums[v] += grad * x` under the taps of one row of windows.
#[inline(always)]
fn correlate_taps<T: Element, S: Simd>(
    simd: S,
    x: &[T],
    grad: &[T],
    taps: &[(usize, usize)],
    n: usize,
    sums: &mut [[T::Vector<S>; 2]],
) {
    match *taps {
        [a, b, c, d, e] => correlate(simd, x, grad, [a, b, c, d, e], n, sums),
        [a, b, c, d] => correlate(simd, x, grad, [a, b, c, d], n, sums),
        [a, b, c] => correlate(simd, x, grad, [a, b, c], n, sums),
        [a, b] => correlate(simd, x, grad, [a, b], n, sums),
        _ => {
            for &tap in taps {
                correlate(simd, x, grad, [tap], n, sums);
            }
        }
    }
}

/// [`correlate_taps`] for `N` of them.
#[inline(always)]
fn correlate<T: Element, S: Simd, const N: usize>(
    simd: S,
    x: &[T],
    grad: &[T],
    taps: [(usize, usize); N],
    n: usize,
    all: &mut [[T::Vector<S>; 2]],
) {
    let lanes = T::lanes::<S>();
    let sources = taps.map(|(_, column)| &x[column * n..][..grad.len()]);
    // Two sums per tap, so that one addition need not wait for the other.
    let mut sums = taps.map(|(v, _)| all[v]);
    let pairs = T::vectors::<S>(grad).0.as_chunks::<2>().0;
    let source_pairs =
        sources.map(|source| &T::vectors::<S>(source).0.as_chunks::<2>().0[..pairs.len()]);
    for (index, grads) in pairs.iter().enumerate() {
        for (sums, source) in sums.iter_mut().zip(source_pairs) {
            let xs = source[index];
            for half in 0..2 {
                sums[half] = T::mul_add(simd, grads[half], xs[half], sums[half]);
            }
        }
    }
    for at in (pairs.len() * 2 * lanes..grad.len()).step_by(lanes) {
        let part = at..grad.len().min(at + lanes);
        let grad = T::load(simd, &grad[part.clone()]);
        for (sums, source) in sums.iter_mut().zip(sources) {
            sums[0] = T::mul_add(simd, grad, T::load(simd, &source[part.clone()]), sums[0]);
        }
    }
    for ((v, _), sums) in taps.into_iter().zip(sums) {
        all[v] = sums;
    }
}
