//! Windows on planes laid out `h w n`: depthwise convolutions and average pooling, and their gradients.
//!
//! A row of one side is computed from rows of the other in one walk over the columns of these: what each column gives to
//! the few columns of the result that it reaches is added to sums in registers, and a column of the result is written when
//! the last that reach it have passed. So every number is loaded once per row of taps, and borders need no loops of their own.

// By indices that the compiler knows sums stay in registers.
#![expect(clippy::needless_range_loop)]

use std::ops::Range;

use pulp::{Arch, Simd, WithSimd};

use super::Grid;
use crate::{Element, Window};

/// Taps of a row of a window, at most.
const MOST_TAPS: usize = 5;

/// Rows of taps, at most.
const MOST_ROWS: usize = 8;

/// A window over planes of `n` images, prepared as walks over columns.
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
    /// All columns and taps (v).
    walks: Vec<Walk>,
    /// Columns of the side that is read, and of the one that is written.
    widths: [usize; 2],
}

/// Columns `first`, `first + step`, … of the result and taps such that tap `t` of column `i` of these reads column
/// `source + (i + t) * source_step`.
#[derive(Debug, Clone)]
struct Walk {
    first: usize,
    step: usize,
    count: usize,
    taps: Vec<usize>,
    /// May lie in the padding.
    source: isize,
    source_step: usize,
    /// Whether an earlier walk has written these columns.
    adds: bool,
}

impl Stencil {
    /// Prepares a window for planes of `n` images.
    ///
    /// # Panics
    /// If a window has more than eight rows.
    pub fn new(window: Window, n: usize) -> Self {
        let Window {
            input,
            kernel,
            padding,
            stride,
            dilation,
        } = window;
        assert!(kernel[0] <= MOST_ROWS);
        let output = window.output();
        // (tap, output) for an input row.
        let targets = |at: usize| -> Vec<(usize, usize)> {
            (0..kernel[0])
                .filter_map(|tap| {
                    let shifted = (at + padding).checked_sub(tap * dilation)?;
                    (shifted.is_multiple_of(stride) && shifted / stride < output[0])
                        .then_some((tap, shifted / stride))
                })
                .collect()
        };
        // A step along which one tap takes the place of another.
        let step = stride / gcd(stride, dilation) * dilation;
        let (signed, padding) = (|n: usize| n as isize, padding as isize);
        let forward = Direction {
            rows: (0..output[0]).map(|row| sources(&window, 0, row)).collect(),
            walks: walks(
                [output[1], kernel[1]],
                step / stride,
                step,
                |column, tap| Some(signed(column * stride + tap * dilation) - padding),
            ),
            widths: [input[1], output[1]],
        };
        let backward = Direction {
            rows: (0..input[0]).map(targets).collect(),
            walks: walks([input[1], kernel[1]], step, step / stride, |column, tap| {
                let shifted = signed(column) + padding - signed(tap * dilation);
                (shifted % signed(stride) == 0).then(|| shifted.div_euclid(signed(stride)))
            }),
            widths: [output[1], input[1]],
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
        let count = |column| sources(&self.window, 1, column).len();
        let columns: Vec<usize> = (0..self.output().w).map(count).collect();
        self.forward
            .rows
            .iter()
            .flat_map(|row| {
                let counts = columns.iter().map(move |n_columns| row.len() * n_columns);
                counts.map(|count| T::from_f64(1.0 / count.max(1) as f64))
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

    /// Output rows `first..` of one plane: `y = Σ w[u, v] x[…]`, with `RELU` of `max(x, 0)`. `y` holds whole rows.
    pub(super) fn forward_rows<T: Element, const RELU: bool>(
        &self,
        x: Held<'_, T>,
        w: &[T],
        first: usize,
        y: &mut [T],
    ) {
        self.forward.gather::<T, RELU, false>(self, x, w, first, y);
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
            .gather::<T, false, false>(self, grad_y, w, first, grad_x);
    }

    /// Adds the gradient of all input rows of one plane that comes from the output's.
    pub(super) fn add_backward<T: Element>(&self, grad_y: Held<'_, T>, w: &[T], grad_x: &mut [T]) {
        self.backward
            .gather::<T, false, true>(self, grad_y, w, 0, grad_x);
    }

    /// Adds to `sums`, one entry per tap, the products of some output rows' gradients with what the tap read, with `RELU`
    /// `max(x, 0)`.
    pub(super) fn add_tap_products<T: Element, const RELU: bool>(
        &self,
        x: Held<'_, T>,
        grad_y: Held<'_, T>,
        rows: Range<usize>,
        sums: &mut [f64],
    ) {
        Arch::new().dispatch(Correlate::<T, RELU> {
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

/// The taps of an output row (`axis` 0) or column (1) that lie on the input, and what they read.
fn sources(window: &Window, axis: usize, output: usize) -> Vec<(usize, usize)> {
    let read = |tap: usize| {
        let at = output * window.stride + tap * window.dilation;
        let at = at.checked_sub(window.padding)?;
        (at < window.input[axis]).then_some((tap, at))
    };
    (0..window.kernel[axis]).filter_map(read).collect()
}

/// From the first to the last of some rows.
fn reach(rows: &[(usize, usize)]) -> Range<usize> {
    let numbers = || rows.iter().map(|&(_, row)| row);
    match (numbers().min(), numbers().max()) {
        (Some(first), Some(last)) => first..last + 1,
        _ => 0..0,
    }
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// All columns of the result and all taps. `source`: the column that a tap of a column reads, if any; `step` columns of the result
/// on, it is `source_step` further.
fn walks(
    [width, n_taps]: [usize; 2],
    step: usize,
    source_step: usize,
    source: impl Fn(usize, usize) -> Option<isize>,
) -> Vec<Walk> {
    let mut walks: Vec<Walk> = Vec::new();
    for first in 0..step.min(width) {
        // In the order of what they read.
        let mut reads: Vec<(isize, usize)> = (0..n_taps)
            .filter_map(|tap| Some((source(first, tap)?, tap)))
            .collect();
        reads.sort_unstable();
        let own = walks.len();
        for (source, tap) in reads {
            let follows = |walk: &&mut Walk| {
                let next = walk.source + (walk.taps.len() * source_step) as isize;
                next == source && walk.taps.len() < MOST_TAPS
            };
            match walks[own..].iter_mut().find(follows) {
                Some(walk) => walk.taps.push(tap),
                None => walks.push(Walk {
                    first,
                    step,
                    count: (width - first).div_ceil(step),
                    taps: vec![tap],
                    source,
                    source_step,
                    adds: walks.len() > own,
                }),
            }
        }
        // Columns that nothing reaches are written all the same.
        if walks.len() == own {
            walks.push(Walk {
                first,
                step,
                count: (width - first).div_ceil(step),
                taps: Vec::new(),
                source: 0,
                source_step,
                adds: false,
            });
        }
    }
    walks
}

impl Walk {
    /// The columns of a side of `width` that are read, as numbers of steps from `source`.
    #[inline(always)]
    fn steps(&self, width: usize) -> Range<usize> {
        let padding = self.source.min(0).unsigned_abs();
        let behind = (width as isize - self.source).max(0) as usize;
        let most = match self.taps.len() {
            0 => 0,
            n_taps => self.count + n_taps - 1,
        };
        let end = behind.div_ceil(self.source_step).min(most);
        padding.div_ceil(self.source_step).min(end)..end
    }

    /// The column that is read at a step.
    #[inline(always)]
    fn column(&self, step: usize) -> usize {
        (self.source + (step * self.source_step) as isize) as usize
    }
}

impl Direction {
    fn gather<T: Element, const RELU: bool, const ADD: bool>(
        &self,
        stencil: &Stencil,
        source: Held<'_, T>,
        w: &[T],
        first: usize,
        rows: &mut [T],
    ) {
        Arch::new().dispatch(Gather::<T, RELU, ADD> {
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
struct Gather<'a, T, const RELU: bool, const ADD: bool> {
    direction: &'a Direction,
    stencil: &'a Stencil,
    source: Held<'a, T>,
    w: &'a [T],
    first: usize,
    rows: &'a mut [T],
}

impl<T: Element, const RELU: bool, const ADD: bool> WithSimd for Gather<'_, T, RELU, ADD> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self {
            direction, source, ..
        } = self;
        let (n, [_, n_v]) = (self.stencil.n, self.stencil.window.kernel);
        let [source_width, width] = direction.widths;
        for (index, y) in self.rows.chunks_mut((width * n).max(1)).enumerate() {
            let rows = &direction.rows[self.first + index];
            for walk in &direction.walks {
                let pass = Pass::<RELU> {
                    walk,
                    steps: walk.steps(source_width),
                    n,
                    adds: ADD || walk.adds,
                };
                let read = |&(u, row): &(usize, usize)| Read {
                    row: source.row(row, source_width * n),
                    weights: &self.w[u * n_v..][..n_v],
                };
                let reads = rows.iter().map(read);
                match walk.taps[..] {
                    [] => pass.walk(simd, [], reads, y),
                    [a] => pass.walk(simd, [a], reads, y),
                    [a, b] => pass.walk(simd, [a, b], reads, y),
                    [a, b, c] => pass.walk(simd, [a, b, c], reads, y),
                    [a, b, c, d] => pass.walk(simd, [a, b, c, d], reads, y),
                    [a, b, c, d, e, ..] => pass.walk(simd, [a, b, c, d, e], reads, y),
                }
            }
        }
    }
}

/// A row that is read, and the weights of its taps.
struct Read<'a, T> {
    row: &'a [T],
    weights: &'a [T],
}

/// A walk for one row of the result.
struct Pass<'a, const RELU: bool> {
    walk: &'a Walk,
    steps: Range<usize>,
    n: usize,
    adds: bool,
}

impl<const RELU: bool> Pass<'_, RELU> {
    /// All images, as many at a time as sums fit the registers.
    #[inline(always)]
    fn walk<'a, T: Element, S: Simd, const K: usize>(
        &self,
        simd: S,
        taps: [usize; K],
        reads: impl Iterator<Item = Read<'a, T>>,
        y: &mut [T],
    ) {
        // Weights in the order of the columns that they are for.
        let mut rows: [(&[T], [T; K]); MOST_ROWS] = [(&[], [T::zero(); K]); MOST_ROWS];
        let mut n_rows = 0;
        for Read { row, weights } in reads {
            rows[n_rows].0 = row;
            for k in 0..K {
                rows[n_rows].1[k] = weights[taps[K - 1 - k]];
            }
            n_rows += 1;
        }
        let rows = &rows[..n_rows];
        let (lanes, n) = (T::lanes::<S>(), self.n);
        let images = |start, end| Images { n, start, end };
        let mut at = 0;
        if S::REGISTER_COUNT >= 32 {
            while n - at >= 4 * lanes {
                self.images::<T, S, K, 4>(simd, rows, images(at, at + 4 * lanes), y);
                at += 4 * lanes;
            }
        }
        while n - at >= 2 * lanes {
            self.images::<T, S, K, 2>(simd, rows, images(at, at + 2 * lanes), y);
            at += 2 * lanes;
        }
        while at < n {
            let end = n.min(at + lanes);
            self.images::<T, S, K, 1>(simd, rows, images(at, end), y);
            at = end;
        }
    }

    /// Some images: `V` vectors, or less than one.
    #[inline(always)]
    fn images<T: Element, S: Simd, const K: usize, const V: usize>(
        &self,
        simd: S,
        rows: &[(&[T], [T; K])],
        images: Images,
        y: &mut [T],
    ) {
        let Self { walk, steps, .. } = self;
        let count = if self.adds { walk.count } else { 0 };
        let zero = [T::splat(simd, T::zero()); V];
        // Of column `step + 1 + k - K` of the result.
        let mut sums = [zero; K];
        for k in 0..K {
            if let Some(index) = (steps.start + 1 + k).checked_sub(K) {
                sums[k] = walk.column_of::<T, S, V>(simd, y, [index, count], &images);
            }
        }
        for step in steps.clone() {
            let column = walk.column(step) * images.n;
            let at = column + images.start..column + images.end;
            for (row, weights) in rows {
                let x = read::<T, S, RELU, V>(simd, &row[at.clone()]);
                for k in 0..K {
                    let weight = T::splat(simd, weights[k]);
                    for v in 0..V {
                        sums[k][v] = T::mul_add(simd, weight, x[v], sums[k][v]);
                    }
                }
            }
            if K > 0 && step + 1 >= K {
                write::<T, S, V>(simd, &mut y[walk.place(step + 1 - K, &images)], sums[0]);
            }
            for k in 1..K {
                sums[k - 1] = sums[k];
            }
            if K > 0 {
                sums[K - 1] = walk.column_of::<T, S, V>(simd, y, [step + 1, count], &images);
            }
        }
        // Columns whose last taps lie in the padding, and those that nothing reaches.
        for k in 0..K {
            if let Some(index) = (steps.end + 1 + k).checked_sub(K)
                && index < walk.count
            {
                write::<T, S, V>(simd, &mut y[walk.place(index, &images)], sums[k]);
            }
        }
        if !self.adds {
            let first = 0..(steps.start + 1).saturating_sub(K).min(walk.count);
            for index in first.chain(steps.end + 1..walk.count) {
                write::<T, S, V>(simd, &mut y[walk.place(index, &images)], zero);
            }
        }
    }
}

/// Some of the `n` images.
struct Images {
    n: usize,
    start: usize,
    end: usize,
}

impl Walk {
    /// Where images of a column of the result lie.
    #[inline(always)]
    fn place(&self, index: usize, images: &Images) -> Range<usize> {
        let column = (self.first + index * self.step) * images.n;
        column + images.start..column + images.end
    }

    /// Images of a column of the result, or zeros for those from `count` on.
    #[inline(always)]
    fn column_of<T: Element, S: Simd, const V: usize>(
        &self,
        simd: S,
        y: &[T],
        [index, count]: [usize; 2],
        images: &Images,
    ) -> [T::Vector<S>; V] {
        if index < count {
            load::<T, S, V>(simd, &y[self.place(index, images)])
        } else {
            [T::splat(simd, T::zero()); V]
        }
    }
}

/// `V` vectors, or what there is of one.
#[inline(always)]
fn load<T: Element, S: Simd, const V: usize>(simd: S, x: &[T]) -> [T::Vector<S>; V] {
    if V == 1 {
        return [T::load(simd, x); V];
    }
    let lanes = T::lanes::<S>();
    // One look at the length for all.
    let x = &x[..V * lanes];
    let mut vectors = [T::splat(simd, T::zero()); V];
    for v in 0..V {
        vectors[v] = T::load(simd, &x[v * lanes..][..lanes]);
    }
    vectors
}

/// [`load`], with `RELU` of `max(x, 0)`.
#[inline(always)]
fn read<T: Element, S: Simd, const RELU: bool, const V: usize>(
    simd: S,
    x: &[T],
) -> [T::Vector<S>; V] {
    let mut vectors = load::<T, S, V>(simd, x);
    if RELU {
        for v in 0..V {
            vectors[v] = T::relu(simd, vectors[v]);
        }
    }
    vectors
}

#[inline(always)]
fn write<T: Element, S: Simd, const V: usize>(simd: S, y: &mut [T], vectors: [T::Vector<S>; V]) {
    if V == 1 {
        return T::store(simd, y, vectors[0]);
    }
    let lanes = T::lanes::<S>();
    let y = &mut y[..V * lanes];
    for v in 0..V {
        T::store(simd, &mut y[v * lanes..][..lanes], vectors[v]);
    }
}

/// [`Stencil::add_tap_products`].
struct Correlate<'a, T, const RELU: bool> {
    stencil: &'a Stencil,
    x: Held<'a, T>,
    grad_y: Held<'a, T>,
    rows: Range<usize>,
    sums: &'a mut [f64],
}

impl<T: Element, const RELU: bool> WithSimd for Correlate<'_, T, RELU> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { stencil, x, .. } = self;
        let (n, [_, n_v]) = (stencil.n, stencil.window.kernel);
        let [source_width, width] = stencil.forward.widths;
        let mut sums = vec![T::splat(simd, T::zero()); self.sums.len()];
        for row in self.rows {
            let grad = self.grad_y.row(row, width * n);
            for walk in &stencil.forward.walks {
                let products = Products::<T, RELU> {
                    walk,
                    steps: walk.steps(source_width),
                    grad,
                    n,
                };
                let read = |(u, row): (usize, usize)| (u * n_v, x.row(row, source_width * n));
                let rows = &stencil.forward.rows[row][..];
                match walk.taps[..] {
                    [] => {}
                    [a] => products.add(simd, [a], rows, read, &mut sums),
                    [a, b] => products.add(simd, [a, b], rows, read, &mut sums),
                    [a, b, c] => products.add(simd, [a, b, c], rows, read, &mut sums),
                    [a, b, c, d] => products.add(simd, [a, b, c, d], rows, read, &mut sums),
                    [a, b, c, d, e, ..] => {
                        products.add(simd, [a, b, c, d, e], rows, read, &mut sums)
                    }
                }
            }
        }
        for (sum, own) in self.sums.iter_mut().zip(sums) {
            *sum += T::sum(simd, own).to_f64();
        }
    }
}

/// The products of a row's gradient with what taps read under a walk.
struct Products<'a, T, const RELU: bool> {
    walk: &'a Walk,
    steps: Range<usize>,
    grad: &'a [T],
    n: usize,
}

impl<T: Element, const RELU: bool> Products<'_, T, RELU> {
    /// As many rows at a time as sums fit the registers. `read`: where the sums of a row's taps begin, and what it holds.
    #[inline(always)]
    fn add<'b, S: Simd, const K: usize>(
        &self,
        simd: S,
        taps: [usize; K],
        mut rows: &[(usize, usize)],
        read: impl Fn((usize, usize)) -> (usize, &'b [T]),
        sums: &mut [T::Vector<S>],
    ) {
        if S::REGISTER_COUNT >= 32 {
            let (threes, rest) = rows.as_chunks::<3>();
            for &own in threes {
                self.rows(simd, taps, own.map(&read), sums);
            }
            rows = rest;
        }
        let (twos, rest) = rows.as_chunks::<2>();
        for &own in twos {
            self.rows(simd, taps, own.map(&read), sums);
        }
        for &own in rest {
            self.rows(simd, taps, [read(own)], sums);
        }
    }

    #[inline(always)]
    fn rows<S: Simd, const K: usize, const R: usize>(
        &self,
        simd: S,
        taps: [usize; K],
        rows: [(usize, &[T]); R],
        sums: &mut [T::Vector<S>],
    ) {
        let (lanes, n) = (T::lanes::<S>(), self.n);
        let images = |start, end| Images { n, start, end };
        let mut own = [[T::splat(simd, T::zero()); K]; R];
        for r in 0..R {
            for k in 0..K {
                own[r][k] = sums[rows[r].0 + taps[k]];
            }
        }
        let mut at = 0;
        if S::REGISTER_COUNT >= 32 && K <= 3 {
            while n - at >= 2 * lanes {
                self.images::<S, K, R, 2>(simd, &rows, images(at, at + 2 * lanes), &mut own);
                at += 2 * lanes;
            }
        }
        while at < n {
            let end = n.min(at + lanes);
            self.images::<S, K, R, 1>(simd, &rows, images(at, end), &mut own);
            at = end;
        }
        for r in 0..R {
            for k in 0..K {
                sums[rows[r].0 + taps[k]] = own[r][k];
            }
        }
    }

    #[inline(always)]
    fn images<S: Simd, const K: usize, const R: usize, const V: usize>(
        &self,
        simd: S,
        rows: &[(usize, &[T]); R],
        images: Images,
        all: &mut [[T::Vector<S>; K]; R],
    ) {
        let Self {
            walk, steps, grad, ..
        } = self;
        let zero = [T::splat(simd, T::zero()); V];
        let mut sums = [[zero; K]; R];
        // Of column `step - t` of the result.
        let mut grads = [zero; K];
        for t in 1..K {
            if let Some(index) = steps.start.checked_sub(t) {
                grads[t] = walk.column_of::<T, S, V>(simd, grad, [index, walk.count], &images);
            }
        }
        for step in steps.clone() {
            grads[0] = walk.column_of::<T, S, V>(simd, grad, [step, walk.count], &images);
            let column = walk.column(step) * images.n;
            let at = column + images.start..column + images.end;
            for r in 0..R {
                let x = read::<T, S, RELU, V>(simd, &rows[r].1[at.clone()]);
                for t in 0..K {
                    for v in 0..V {
                        sums[r][t][v] = T::mul_add(simd, grads[t][v], x[v], sums[r][t][v]);
                    }
                }
            }
            for t in 1..K {
                grads[K - t] = grads[K - t - 1];
            }
        }
        for r in 0..R {
            for t in 0..K {
                for v in 0..V {
                    all[r][t] = T::plus(simd, all[r][t], sums[r][t][v]);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::tests::{OnPath, agrees_on_every_path};

    /// A window, for so many images.
    struct All<T>(Window, usize, std::marker::PhantomData<T>);

    impl<T: Element> OnPath for All<T> {
        fn run<S: Simd>(&self, simd: S) -> Vec<f64> {
            let Self(window, n, _) = *self;
            let numbers = |len: usize, shift: f64| -> Vec<T> {
                let sine = |i| T::from_f64(0.1 * (i as f64 + shift).sin());
                (0..len).map(sine).collect()
            };
            let stencil = Stencil::new(window, n);
            let (input, output) = (stencil.input(), stencil.output());
            let (x, grad) = (numbers(input.len(), 0.0), numbers(output.len(), 0.5));
            let w = numbers(window.kernel_len(), 0.25);
            let [x, grad_y] = [(&x, input.h), (&grad, output.h)].map(|(x, h)| Held::new(x, h));
            let (mut y, mut grad_x) = (numbers(output.len(), 1.0), numbers(input.len(), 2.0));
            simd.vectorize(Gather::<T, true, false> {
                direction: &stencil.forward,
                stencil: &stencil,
                source: x,
                w: &w,
                first: 0,
                rows: &mut y,
            });
            simd.vectorize(Gather::<T, false, true> {
                direction: &stencil.backward,
                stencil: &stencil,
                source: grad_y,
                w: &w,
                first: 0,
                rows: &mut grad_x,
            });
            let mut sums = vec![0.0; w.len()];
            simd.vectorize(Correlate::<T, true> {
                stencil: &stencil,
                x,
                grad_y,
                rows: 0..output.h,
                sums: &mut sums,
            });
            let found = y.iter().chain(&grad_x).map(|number| number.to_f64());
            found.chain(sums).collect()
        }
    }

    #[test]
    fn every_kind_of_vectors_gives_the_same_sums() {
        for (kernel, stride, dilation) in [(3, 1, 1), (5, 1, 2), (3, 2, 1), (5, 2, 2), (7, 1, 1)] {
            for n in [1, 5, 16, 33, 64, 71] {
                let window = Window {
                    input: [6, 7],
                    kernel: [kernel; 2],
                    padding: dilation * (kernel / 2),
                    stride,
                    dilation,
                };
                agrees_on_every_path(&All::<f64>(window, n, std::marker::PhantomData), 1e-12);
                agrees_on_every_path(&All::<f32>(window, n, std::marker::PhantomData), 2e-5);
            }
        }
    }
}
