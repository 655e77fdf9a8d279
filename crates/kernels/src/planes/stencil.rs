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
use crate::simd::{Ahead, load, mask, store};
use crate::{Element, Window};

/// Taps of a row of a window, at most.
const MOST_TAPS: usize = 5;

/// Rows of taps, at most.
const MOST_ROWS: usize = 8;

/// How planes are read: as they are, through a ReLU, or through a batch normalisation and the ReLU behind it.
const AS_IS: u8 = 0;
const RECTIFIED: u8 = 1;
const NORMALISED: u8 = 2;

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
    /// The columns that are read, as numbers of steps from `source`.
    steps: Range<usize>,
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
                [input[1], output[1], kernel[1]],
                step / stride,
                step,
                |column, tap| Some(signed(column * stride + tap * dilation) - padding),
            ),
            widths: [input[1], output[1]],
        };
        let backward = Direction {
            rows: (0..input[0]).map(targets).collect(),
            walks: walks(
                [output[1], input[1], kernel[1]],
                step,
                step / stride,
                |column, tap| {
                    let shifted = signed(column) + padding - signed(tap * dilation);
                    (shifted % signed(stride) == 0).then(|| shifted.div_euclid(signed(stride)))
                },
            ),
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

    /// Input rows or columns from one window to the next.
    pub(super) fn stride(&self) -> usize {
        self.window.stride
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

    /// Output rows `first..` of one plane: `y = Σ w[u, v] x[…]`, with `RELU` of `max(x, 0)`, or of what a normalisation that `x`
    /// [is held behind](Held::behind) makes of it. `y` holds whole rows.
    pub(super) fn forward_rows<T: Element, const RELU: bool>(
        &self,
        x: Held<'_, T>,
        w: &[T],
        first: usize,
        y: &mut [T],
        ahead: &mut Ahead<'_, T>,
    ) {
        let (onto, direction) = (Onto::new(y), &self.forward);
        debug_assert!(RELU || x.affine.is_none());
        match (RELU, x.affine) {
            (false, _) => direction.gather::<T, AS_IS, AS_IS>(self, x, w, first, onto, ahead),
            (true, None) => direction.gather::<T, RECTIFIED, AS_IS>(self, x, w, first, onto, ahead),
            (true, Some(_)) => {
                direction.gather::<T, NORMALISED, AS_IS>(self, x, w, first, onto, ahead);
            }
        }
    }

    /// The gradient of input rows `first..` of one plane that comes from the output's, or what of it passes the
    /// [ReLU in front](Onto::behind_relu).
    pub(super) fn backward_rows<T: Element>(
        &self,
        grad_y: Held<'_, T>,
        w: &[T],
        first: usize,
        grad_x: Onto<'_, T>,
        ahead: &mut Ahead<'_, T>,
    ) {
        let direction = &self.backward;
        match (grad_x.masks, grad_x.affine) {
            ([], _) => direction.gather::<T, AS_IS, AS_IS>(self, grad_y, w, first, grad_x, ahead),
            (_, None) => {
                direction.gather::<T, AS_IS, RECTIFIED>(self, grad_y, w, first, grad_x, ahead);
            }
            (_, Some(_)) => {
                direction.gather::<T, AS_IS, NORMALISED>(self, grad_y, w, first, grad_x, ahead);
            }
        }
    }

    /// Adds to `sums` the products of some output rows' gradients with what each tap read, with `RELU` what passes it, as
    /// in [`forward_rows`](Self::forward_rows).
    pub(super) fn add_tap_products<T: Element, const RELU: bool>(
        &self,
        x: Held<'_, T>,
        grad_y: Held<'_, T>,
        rows: Range<usize>,
        sums: TapSums<'_, T>,
        ahead: &mut Ahead<'_, T>,
    ) {
        let arch = Arch::new();
        debug_assert!(RELU || x.affine.is_none());
        macro_rules! correlate {
            ($read:ident) => {
                arch.dispatch(Correlate::<T, $read> {
                    stencil: self,
                    x,
                    grad_y,
                    rows,
                    sums,
                    ahead,
                })
            };
        }
        match (RELU, x.affine) {
            (false, _) => correlate!(AS_IS),
            (true, None) => correlate!(RECTIFIED),
            (true, Some(_)) => correlate!(NORMALISED),
        }
    }
}

/// Sums of the products of taps, whose rows come part by part.
#[derive(Debug)]
pub(super) struct TapSums<'a, T> {
    /// Of each tap a vector of partial sums, side by side; room for one of a cache line each.
    pub(super) partial: &'a mut [T],
    /// Whether these begin with the rows at hand.
    pub(super) is_first: bool,
    /// Of each tap, where they are added to with the last rows.
    pub(super) total: &'a mut [f64],
    /// Whether these are the last rows.
    pub(super) is_last: bool,
}

/// The rows of a plane that are at hand: the last `n` that were written, each in the place of its number modulo `n`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Held<'a, T> {
    numbers: &'a [T],
    n: usize,
    /// What a ReLU in front reads is the first of these times a number, plus the second.
    affine: Option<[T; 2]>,
}

impl<'a, T> Held<'a, T> {
    /// `n` rows.
    pub(super) fn new(numbers: &'a [T], n: usize) -> Self {
        Self {
            numbers,
            n,
            affine: None,
        }
    }

    /// Rows whose batch normalisation is still to come.
    pub(super) fn behind(self, affine: [T; 2]) -> Self {
        Self {
            affine: Some(affine),
            ..self
        }
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
    [source_width, width, n_taps]: [usize; 3],
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
                    steps: 0..0,
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
                steps: 0..0,
                adds: false,
            });
        }
    }
    for walk in &mut walks {
        walk.steps = walk.steps_of(source_width);
    }
    walks
}

impl Walk {
    /// [`steps`](Self::steps) over a side of `width`.
    fn steps_of(&self, width: usize) -> Range<usize> {
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
    fn gather<T: Element, const READ: u8, const MASK: u8>(
        &self,
        stencil: &Stencil,
        source: Held<'_, T>,
        w: &[T],
        first: usize,
        onto: Onto<'_, T>,
        ahead: &mut Ahead<'_, T>,
    ) {
        Arch::new().dispatch(Gather::<T, READ, MASK> {
            direction: self,
            stencil,
            source,
            w,
            first,
            onto,
            ahead,
        });
    }
}

/// Where rows of a result go.
#[derive(Debug)]
pub(super) struct Onto<'a, T> {
    rows: &'a mut [T],
    /// If what goes there is the gradient in front of a ReLU, what that reads: where it is zero or less, nothing goes there.
    masks: &'a [T],
    /// Factor and shift that make of `masks` what the ReLU reads.
    affine: Option<[T; 2]>,
    /// Whether the result is added to what is there.
    adds: bool,
}

impl<'a, T> Onto<'a, T> {
    /// Rows that hold nothing yet.
    pub(super) fn new(rows: &'a mut [T]) -> Self {
        Self {
            rows,
            masks: &[],
            affine: None,
            adds: false,
        }
    }

    /// Rows that hold something, to be added to if it `adds`.
    pub(super) fn adding(self, adds: bool) -> Self {
        Self { adds, ..self }
    }

    /// Rows for the gradient in front of a ReLU that reads `masks`, or these times the first of `affine`, plus the second.
    pub(super) fn behind_relu(self, masks: &'a [T], affine: Option<[T; 2]>) -> Self {
        assert_eq!(masks.len(), self.rows.len());
        Self {
            masks,
            affine,
            ..self
        }
    }
}

/// [`Direction::gather`]; `MASK`: how a ReLU reads what masks the result, [`AS_IS`] if nothing does.
struct Gather<'a, 'b, T, const READ: u8, const MASK: u8> {
    direction: &'a Direction,
    stencil: &'a Stencil,
    source: Held<'a, T>,
    w: &'a [T],
    first: usize,
    onto: Onto<'a, T>,
    ahead: &'a mut Ahead<'b, T>,
}

impl<T: Element, const READ: u8, const MASK: u8> WithSimd for Gather<'_, '_, T, READ, MASK> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let direction = self.direction;
        let n = self.stencil.n;
        let [source_width, width] = direction.widths;
        let Onto {
            rows,
            masks,
            affine,
            adds,
        } = self.onto;
        let len = (width * n).max(1);
        for (index, y) in rows.chunks_mut(len).enumerate() {
            let masks = match MASK {
                AS_IS => &[],
                _ => &masks[index * len..][..len],
            };
            let rows = &direction.rows[self.first + index];
            for walk in &direction.walks {
                let pass = Pass::<T, READ, MASK> {
                    walk,
                    rows,
                    source: self.source,
                    source_len: source_width * n,
                    w: self.w,
                    n_v: self.stencil.window.kernel[1],
                    masks,
                    affine,
                    n,
                    adds: adds || walk.adds,
                };
                match walk.taps[..] {
                    [] => pass.walk(simd, [], y, self.ahead),
                    [a] => pass.walk(simd, [a], y, self.ahead),
                    [a, b] => pass.walk(simd, [a, b], y, self.ahead),
                    [a, b, c] => pass.walk(simd, [a, b, c], y, self.ahead),
                    [a, b, c, d] => pass.walk(simd, [a, b, c, d], y, self.ahead),
                    [a, b, c, d, e, ..] => pass.walk(simd, [a, b, c, d, e], y, self.ahead),
                }
            }
        }
    }
}

/// A walk for one row of the result.
struct Pass<'a, T, const READ: u8, const MASK: u8> {
    walk: &'a Walk,
    /// The taps (u) and the rows of the source that they read.
    rows: &'a [(usize, usize)],
    source: Held<'a, T>,
    /// Numbers of such a row.
    source_len: usize,
    w: &'a [T],
    n_v: usize,
    masks: &'a [T],
    affine: Option<[T; 2]>,
    n: usize,
    adds: bool,
}

impl<T: Element, const READ: u8, const MASK: u8> Pass<'_, T, READ, MASK> {
    /// All images, as many at a time as sums fit the registers.
    #[inline(always)]
    fn walk<S: Simd, const K: usize>(
        &self,
        simd: S,
        taps: [usize; K],
        y: &mut [T],
        ahead: &mut Ahead<'_, T>,
    ) {
        // Weights in the order of the columns that they are for.
        let mut rows: [(&[T], [T; K]); MOST_ROWS] = [(&[], [T::zero(); K]); MOST_ROWS];
        for (slot, &(u, row)) in rows.iter_mut().zip(self.rows) {
            slot.0 = self.source.row(row, self.source_len);
            let weights = &self.w[u * self.n_v..][..self.n_v];
            for k in 0..K {
                slot.1[k] = weights[taps[K - 1 - k]];
            }
        }
        let rows = &rows[..self.rows.len()];
        let (lanes, n) = (T::lanes::<S>(), self.n);
        let images = |start, end| Images { n, start, end };
        let mut at = 0;
        if S::REGISTER_COUNT >= 32 {
            while n - at >= 4 * lanes {
                self.images::<S, K, 4>(simd, rows, images(at, at + 4 * lanes), y, ahead);
                at += 4 * lanes;
            }
        }
        while n - at >= 2 * lanes {
            self.images::<S, K, 2>(simd, rows, images(at, at + 2 * lanes), y, ahead);
            at += 2 * lanes;
        }
        while at < n {
            let end = n.min(at + lanes);
            self.images::<S, K, 1>(simd, rows, images(at, end), y, ahead);
            at = end;
        }
    }

    /// Some images: `V` vectors, or less than one.
    #[inline(always)]
    fn images<S: Simd, const K: usize, const V: usize>(
        &self,
        simd: S,
        rows: &[(&[T], [T; K])],
        images: Images,
        y: &mut [T],
        ahead: &mut Ahead<'_, T>,
    ) {
        let walk = self.walk;
        let steps = walk.steps.clone();
        let affine = affine_vectors(simd, self.source.affine);
        let mask_affine = affine_vectors(simd, self.affine);
        // What is masked is added to when it has been masked.
        let count = match MASK {
            AS_IS if self.adds => walk.count,
            _ => 0,
        };
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
            ahead.fetch::<V>();
            for (row, weights) in rows {
                let x = read::<T, S, READ, V>(simd, &row[at.clone()], affine);
                for k in 0..K {
                    let weight = T::splat(simd, weights[k]);
                    for v in 0..V {
                        sums[k][v] = T::mul_add(simd, weight, x[v], sums[k][v]);
                    }
                }
            }
            if K > 0 && step + 1 >= K {
                let place = walk.place(step + 1 - K, &images);
                self.store::<S, V>(simd, y, place, sums[0], mask_affine);
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
                let place = walk.place(index, &images);
                self.store::<S, V>(simd, y, place, sums[k], mask_affine);
            }
        }
        if !self.adds {
            let first = 0..(steps.start + 1).saturating_sub(K).min(walk.count);
            for index in first.chain(steps.end + 1..walk.count) {
                store::<T, S, V>(simd, &mut y[walk.place(index, &images)], zero);
            }
        }
    }

    /// Writes a column of the result.
    #[inline(always)]
    fn store<S: Simd, const V: usize>(
        &self,
        simd: S,
        y: &mut [T],
        place: Range<usize>,
        mut sums: [T::Vector<S>; V],
        affine: [T::Vector<S>; 2],
    ) {
        let y = &mut y[place.clone()];
        if MASK != AS_IS {
            let x = normalised::<T, S, MASK, V>(simd, &self.masks[place], affine);
            sums = mask::<T, S, V>(simd, sums, x, y, self.adds);
        }
        store::<T, S, V>(simd, y, sums);
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

/// Factor and shift of what is read [`NORMALISED`].
#[inline(always)]
fn affine_vectors<T: Element, S: Simd>(simd: S, affine: Option<[T; 2]>) -> [T::Vector<S>; 2] {
    let [factor, shift] = affine.unwrap_or([T::zero(); 2]);
    [T::splat(simd, factor), T::splat(simd, shift)]
}

/// [`load`], and what a ReLU reads of it.
#[inline(always)]
fn normalised<T: Element, S: Simd, const READ: u8, const V: usize>(
    simd: S,
    x: &[T],
    [factor, shift]: [T::Vector<S>; 2],
) -> [T::Vector<S>; V] {
    let mut vectors = load::<T, S, V>(simd, x);
    if READ == NORMALISED {
        for v in 0..V {
            vectors[v] = T::mul_add(simd, factor, vectors[v], shift);
        }
    }
    vectors
}

/// [`load`], and what is made of it.
#[inline(always)]
fn read<T: Element, S: Simd, const READ: u8, const V: usize>(
    simd: S,
    x: &[T],
    affine: [T::Vector<S>; 2],
) -> [T::Vector<S>; V] {
    let mut vectors = normalised::<T, S, READ, V>(simd, x, affine);
    if READ != AS_IS {
        for v in 0..V {
            vectors[v] = T::relu(simd, vectors[v]);
        }
    }
    vectors
}

/// [`Stencil::add_tap_products`].
struct Correlate<'a, 'b, T, const READ: u8> {
    stencil: &'a Stencil,
    x: Held<'a, T>,
    grad_y: Held<'a, T>,
    rows: Range<usize>,
    sums: TapSums<'a, T>,
    ahead: &'a mut Ahead<'b, T>,
}

impl<T: Element, const READ: u8> WithSimd for Correlate<'_, '_, T, READ> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { stencil, x, .. } = self;
        let (n, [_, n_v]) = (stencil.n, stencil.window.kernel);
        let [source_width, width] = stencil.forward.widths;
        let (sums, lanes) = (self.sums, T::lanes::<S>());
        let partial = &mut sums.partial[..sums.total.len() * lanes];
        if sums.is_first {
            partial.fill(T::zero());
        }
        for row in self.rows {
            let grad = self.grad_y.row(row, width * n);
            for walk in &stencil.forward.walks {
                let products = Products::<T, READ> {
                    walk,
                    source: x,
                    grad,
                    n,
                };
                let read = |(u, row): (usize, usize)| (u * n_v, x.row(row, source_width * n));
                let rows = &stencil.forward.rows[row][..];
                match walk.taps[..] {
                    [] => {}
                    [a] => products.add(simd, [a], rows, read, partial, self.ahead),
                    [a, b] => products.add(simd, [a, b], rows, read, partial, self.ahead),
                    [a, b, c] => products.add(simd, [a, b, c], rows, read, partial, self.ahead),
                    [a, b, c, d] => {
                        products.add(simd, [a, b, c, d], rows, read, partial, self.ahead)
                    }
                    [a, b, c, d, e, ..] => {
                        products.add(simd, [a, b, c, d, e], rows, read, partial, self.ahead)
                    }
                }
            }
        }
        if sums.is_last {
            for (total, partial) in sums.total.iter_mut().zip(partial.chunks(lanes)) {
                *total += T::sum(simd, T::load(simd, partial)).to_f64();
            }
        }
    }
}

/// The products of a row's gradient with what taps read under a walk.
struct Products<'a, T, const READ: u8> {
    walk: &'a Walk,
    source: Held<'a, T>,
    grad: &'a [T],
    n: usize,
}

impl<T: Element, const READ: u8> Products<'_, T, READ> {
    /// As many rows at a time as sums fit the registers. `read`: where the sums of a row's taps begin, and what it holds.
    #[inline(always)]
    fn add<'b, S: Simd, const K: usize>(
        &self,
        simd: S,
        taps: [usize; K],
        mut rows: &[(usize, usize)],
        read: impl Fn((usize, usize)) -> (usize, &'b [T]),
        sums: &mut [T],
        ahead: &mut Ahead<'_, T>,
    ) {
        if S::REGISTER_COUNT >= 32 {
            let (threes, rest) = rows.as_chunks::<3>();
            for &own in threes {
                self.rows(simd, taps, own.map(&read), sums, ahead);
            }
            rows = rest;
        }
        let (twos, rest) = rows.as_chunks::<2>();
        for &own in twos {
            self.rows(simd, taps, own.map(&read), sums, ahead);
        }
        for &own in rest {
            self.rows(simd, taps, [read(own)], sums, ahead);
        }
    }

    #[inline(always)]
    fn rows<S: Simd, const K: usize, const R: usize>(
        &self,
        simd: S,
        taps: [usize; K],
        rows: [(usize, &[T]); R],
        sums: &mut [T],
        ahead: &mut Ahead<'_, T>,
    ) {
        let (lanes, n) = (T::lanes::<S>(), self.n);
        let images = |start, end| Images { n, start, end };
        let mut own = [[T::splat(simd, T::zero()); K]; R];
        for r in 0..R {
            for k in 0..K {
                let at = (rows[r].0 + taps[k]) * lanes;
                own[r][k] = T::load(simd, &sums[at..][..lanes]);
            }
        }
        let mut at = 0;
        if S::REGISTER_COUNT >= 32 {
            while K <= 3 && n - at >= 4 * lanes {
                let images = images(at, at + 4 * lanes);
                self.images::<S, K, R, 4>(simd, &rows, images, &mut own, ahead);
                at += 4 * lanes;
            }
            while n - at >= 2 * lanes {
                let images = images(at, at + 2 * lanes);
                self.images::<S, K, R, 2>(simd, &rows, images, &mut own, ahead);
                at += 2 * lanes;
            }
        }
        while at < n {
            let end = n.min(at + lanes);
            self.images::<S, K, R, 1>(simd, &rows, images(at, end), &mut own, ahead);
            at = end;
        }
        for r in 0..R {
            for k in 0..K {
                let at = (rows[r].0 + taps[k]) * lanes;
                T::store(simd, &mut sums[at..][..lanes], own[r][k]);
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
        ahead: &mut Ahead<'_, T>,
    ) {
        let Self { walk, grad, .. } = self;
        let steps = walk.steps.clone();
        let affine = affine_vectors(simd, self.source.affine);
        let zero = [T::splat(simd, T::zero()); V];
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
            ahead.fetch::<V>();
            for r in 0..R {
                let x = read::<T, S, READ, V>(simd, &rows[r].1[at.clone()], affine);
                for v in 0..V {
                    for t in 0..K {
                        all[r][t] = T::mul_add(simd, grads[t][v], x[v], all[r][t]);
                    }
                }
            }
            for t in 1..K {
                grads[K - t] = grads[K - t - 1];
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::product::LINE;
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
            let masks = numbers(input.len(), 0.75);
            let normalised = x.behind([1.5, 0.05].map(T::from_f64));
            let mut of_normalised = numbers(output.len(), 3.0);
            simd.vectorize(Gather::<T, NORMALISED, AS_IS> {
                direction: &stencil.forward,
                stencil: &stencil,
                source: normalised,
                w: &w,
                first: 0,
                onto: Onto::new(&mut of_normalised),
                ahead: &mut Ahead::none(),
            });
            simd.vectorize(Gather::<T, RECTIFIED, AS_IS> {
                direction: &stencil.forward,
                stencil: &stencil,
                source: x,
                w: &w,
                first: 0,
                onto: Onto::new(&mut y),
                ahead: &mut Ahead::none(),
            });
            let onto = Onto::new(&mut grad_x).adding(true);
            simd.vectorize(Gather::<T, AS_IS, RECTIFIED> {
                direction: &stencil.backward,
                stencil: &stencil,
                source: grad_y,
                w: &w,
                first: 0,
                onto: onto.behind_relu(&masks, None),
                ahead: &mut Ahead::none(),
            });
            let onto = Onto::new(&mut grad_x).adding(true);
            simd.vectorize(Gather::<T, AS_IS, NORMALISED> {
                direction: &stencil.backward,
                stencil: &stencil,
                source: grad_y,
                w: &w,
                first: 0,
                onto: onto.behind_relu(&masks, normalised.affine),
                ahead: &mut Ahead::none(),
            });
            // In two parts.
            let mut sums = vec![0.0; w.len()];
            let mut of_rectified = vec![0.0; w.len()];
            let mut partial = vec![T::from_f64(f64::NAN); w.len() * LINE];
            for rows in [0..output.h / 2, output.h / 2..output.h] {
                simd.vectorize(Correlate::<T, NORMALISED> {
                    stencil: &stencil,
                    x: normalised,
                    grad_y,
                    sums: TapSums {
                        partial: &mut partial,
                        is_first: rows.start == 0,
                        total: &mut sums,
                        is_last: rows.end == output.h,
                    },
                    rows,
                    ahead: &mut Ahead::none(),
                });
            }
            simd.vectorize(Correlate::<T, RECTIFIED> {
                stencil: &stencil,
                x,
                grad_y,
                sums: TapSums {
                    partial: &mut partial,
                    is_first: true,
                    total: &mut of_rectified,
                    is_last: true,
                },
                rows: 0..output.h,
                ahead: &mut Ahead::none(),
            });
            let found = y.iter().chain(&of_normalised).chain(&grad_x);
            let found = found.map(|number| number.to_f64());
            found.chain(sums).chain(of_rectified).collect()
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
