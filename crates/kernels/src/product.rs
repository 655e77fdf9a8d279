//! Small matrix products on rows of numbers, at the speed of the processor: `y[o] = bias[o] + Σ w[o, c] x[c]`, and the
//! gradient of `w`.

use std::ops::Range;

use pulp::{Arch, Simd, WithSimd};

use crate::Element;
use crate::planes::Buffer;
use crate::simd::{Ahead, Vectorised, load, mask, prefetch_line, store};

/// Rows of a result that are worked on at a time: with [`WIDTH`] vectors each they fill 32 registers, half of them 16.
const ROWS: usize = 8;

/// Vectors of each of these rows.
const WIDTH: usize = 3;

/// Rows and columns of a gradient of `w` that are worked on at a time.
const SQUARE: usize = 4;

/// Numbers of a cache line, of the shorter type.
pub(crate) const LINE: usize = 16;

/// From one row of `len` numbers to the next: an odd number of cache lines, so that the rows do not fight for one
/// place in the cache.
pub(crate) fn row_stride(len: usize) -> usize {
    (len.div_ceil(LINE) | 1) * LINE
}

/// Some rows of `len` numbers, `stride` apart.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rows<'a, T> {
    numbers: &'a [T],
    stride: usize,
    n: usize,
    len: usize,
}

impl<'a, T> Rows<'a, T> {
    /// The first `n` rows of `numbers`.
    pub(crate) fn new(numbers: &'a [T], stride: usize, n: usize, len: usize) -> Self {
        assert!(len <= stride && (n == 0 || numbers.len() >= (n - 1) * stride + len));
        Self {
            numbers,
            stride,
            n,
            len,
        }
    }

    /// Some columns.
    pub(crate) fn columns(&self, range: Range<usize>) -> Self {
        assert!(range.end <= self.len);
        Self {
            numbers: &self.numbers[range.start.min(self.numbers.len())..],
            len: range.len(),
            ..*self
        }
    }

    /// One row.
    pub(crate) fn row(&self, index: usize) -> &'a [T] {
        &self.numbers[index * self.stride..][..self.len]
    }
}

/// A matrix in the order in which [`Panels::product`] reads it: panels of [`ROWS`] rows, in each the bias of
/// every row, then column by column the weights of all rows.
#[derive(Debug, Clone)]
pub(crate) struct Panels<T> {
    numbers: Vec<T>,
    n_out: usize,
    n_in: usize,
}

impl<T: Vectorised> Panels<T> {
    /// Packs the matrix whose entry for row `o` and column `c` is `weight(o, c)`.
    pub(crate) fn new(
        [n_out, n_in]: [usize; 2],
        weight: impl Fn(usize, usize) -> T,
        bias: impl Fn(usize) -> T,
    ) -> Self {
        let mut numbers = Vec::with_capacity(n_out * (n_in + 1));
        for first in (0..n_out).step_by(ROWS) {
            let rows = first..n_out.min(first + ROWS);
            numbers.extend(rows.clone().map(&bias));
            for column in 0..n_in {
                numbers.extend(rows.clone().map(|row| weight(row, column)));
            }
        }
        Self {
            numbers,
            n_out,
            n_in,
        }
    }

    /// Rows and columns.
    pub(crate) fn dims(&self) -> [usize; 2] {
        [self.n_out, self.n_in]
    }

    /// Writes the rows `y` from those of `x`.
    pub(crate) fn product(&self, x: Rows<'_, T>, y: &mut [&mut [T]]) {
        assert!(y.iter().all(|y| y.len() == x.len));
        self.product_at(x, y, 0, &mut Ahead::none());
    }

    /// Writes the columns of the rows `y` from `start` on, as many as `x` has.
    pub(crate) fn product_at(
        &self,
        x: Rows<'_, T>,
        y: &mut [&mut [T]],
        start: usize,
        ahead: &mut Ahead<'_, T>,
    ) {
        let masks = Masks {
            rows: &[],
            start: 0,
            adds: false,
        };
        self.write::<false>(x, y, start, masks, ahead);
    }

    /// The same where a ReLU reads `masks`: writes, or adds, what passes it.
    pub(crate) fn masked_product_at(
        &self,
        x: Rows<'_, T>,
        y: &mut [&mut [T]],
        start: usize,
        masks: Masks<'_, T>,
        ahead: &mut Ahead<'_, T>,
    ) {
        assert_eq!(masks.rows.len(), y.len());
        self.write::<true>(x, y, start, masks, ahead);
    }

    fn write<const MASK: bool>(
        &self,
        x: Rows<'_, T>,
        y: &mut [&mut [T]],
        start: usize,
        masks: Masks<'_, T>,
        ahead: &mut Ahead<'_, T>,
    ) {
        assert_eq!([y.len(), x.n], self.dims());
        Arch::new().dispatch(Product::<T, MASK> {
            panels: self,
            x,
            y,
            start,
            masks,
            ahead,
        });
    }
}

/// `grad_w[o * C + c] += Σ grad_y[o] * x[c]`.
pub(crate) fn add_outer<T: Element>(grad_w: &mut [f64], grad_y: Rows<'_, T>, x: Rows<'_, T>) {
    OuterSums::default().add(grad_w, grad_y, x, true, &mut Ahead::none());
}

/// Scalar products of rows whose columns come part by part.
#[derive(Debug)]
pub(crate) struct OuterSums<T: Element> {
    /// Of each product a vector of partial sums, in the order in which they are computed; nothing before the first part.
    sums: Buffer<T>,
    is_begun: bool,
}

impl<T: Element> Default for OuterSums<T> {
    fn default() -> Self {
        Self {
            sums: Buffer::default(),
            is_begun: false,
        }
    }
}

impl<T: Element> OuterSums<T> {
    /// Takes some columns; with the last ones `grad_w[o * C + c] += Σ grad_y[o] * x[c]` over all.
    pub(crate) fn add(
        &mut self,
        grad_w: &mut [f64],
        grad_y: Rows<'_, T>,
        x: Rows<'_, T>,
        is_last: bool,
        ahead: &mut Ahead<'_, T>,
    ) {
        assert_eq!((grad_w.len(), grad_y.len), (grad_y.n * x.n, x.len));
        if !is_last && self.sums.is_empty() {
            // No vector holds more than a cache line.
            self.sums = Buffer::scratch(grad_w.len() * LINE);
        }
        Arch::new().dispatch(Outer {
            grad_w,
            grad_y,
            x,
            sums: &mut self.sums,
            is_first: !self.is_begun,
            is_last,
            ahead,
        });
        self.is_begun = !is_last;
    }
}

struct Outer<'a, 'b, T> {
    grad_w: &'a mut [f64],
    grad_y: Rows<'a, T>,
    x: Rows<'a, T>,
    sums: &'a mut [T],
    is_first: bool,
    is_last: bool,
    ahead: &'a mut Ahead<'b, T>,
}

impl<T: Element> WithSimd for Outer<'_, '_, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(mut self, simd: S) {
        let sides = |n: usize| {
            let whole = (0..n / SQUARE).map(|index| (index * SQUARE, true));
            whole.chain((n - n % SQUARE..n).map(|index| (index, false)))
        };
        for (row, rows) in sides(self.grad_y.n) {
            for (column, columns) in sides(self.x.n) {
                let at = [row, column];
                match (rows, columns) {
                    (true, true) => self.products::<S, SQUARE, SQUARE>(simd, at),
                    (true, false) => self.products::<S, SQUARE, 1>(simd, at),
                    (false, true) => self.products::<S, 1, SQUARE>(simd, at),
                    (false, false) => self.products::<S, 1, 1>(simd, at),
                }
            }
        }
    }
}

impl<T: Element> Outer<'_, '_, T> {
    /// The scalar products of some rows with some others.
    // By indices that the compiler knows sums stay in registers.
    #[expect(clippy::needless_range_loop)]
    #[inline(always)]
    fn products<S: Simd, const R: usize, const C: usize>(
        &mut self,
        simd: S,
        [row, column]: [usize; 2],
    ) {
        let lanes = T::lanes::<S>();
        let n_sums = match (self.is_first, self.is_last) {
            (true, true) => 0,
            _ => R * C * lanes,
        };
        let (own, others) = std::mem::take(&mut self.sums).split_at_mut(n_sums);
        self.sums = others;
        let mut sums = [[T::splat(simd, T::zero()); C]; R];
        if !self.is_first {
            let own = &T::vectors::<S>(own).0[..R * C];
            for r in 0..R {
                for c in 0..C {
                    sums[r][c] = own[r * C + c];
                }
            }
        }
        let rows: [&[T]; R] = std::array::from_fn(|r| self.grad_y.row(row + r));
        let columns: [&[T]; C] = std::array::from_fn(|c| self.x.row(column + c));
        let n_whole = self.x.len / lanes;
        let whole_rows = rows.map(|row| &T::vectors::<S>(row).0[..n_whole]);
        let whole_columns = columns.map(|column| &T::vectors::<S>(column).0[..n_whole]);
        for index in 0..n_whole {
            self.ahead.fetch::<1>();
            let own = whole_rows.map(|row| row[index]);
            for c in 0..C {
                let x = whole_columns[c][index];
                for r in 0..R {
                    sums[r][c] = T::mul_add(simd, own[r], x, sums[r][c]);
                }
            }
        }
        let rest = n_whole * lanes..self.x.len;
        if !rest.is_empty() {
            for c in 0..C {
                let x = T::load(simd, &columns[c][rest.clone()]);
                for r in 0..R {
                    let own = T::load(simd, &rows[r][rest.clone()]);
                    sums[r][c] = T::mul_add(simd, own, x, sums[r][c]);
                }
            }
        }
        if self.is_last {
            for r in 0..R {
                let grad_w = &mut self.grad_w[(row + r) * self.x.n + column..][..C];
                for c in 0..C {
                    grad_w[c] += T::sum(simd, sums[r][c]).to_f64();
                }
            }
        } else {
            let own = &mut own[..R * C * lanes];
            for r in 0..R {
                for c in 0..C {
                    T::store(simd, &mut own[(r * C + c) * lanes..][..lanes], sums[r][c]);
                }
            }
        }
    }
}

/// What a ReLU reads whose gradient is written, or what it gives: where that is zero or less, nothing is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Masks<'a, T> {
    /// That, row by row.
    pub(crate) rows: &'a [&'a [T]],
    /// The column of these for the first one that is written.
    pub(crate) start: usize,
    /// Whether the gradient is added to what is there.
    pub(crate) adds: bool,
}

/// The rows that a [`Panels`] writes; with `MASK` masked.
struct Product<'a, 'b, 'c, T, const MASK: bool> {
    panels: &'a Panels<T>,
    x: Rows<'a, T>,
    y: &'a mut [&'b mut [T]],
    /// The first column of `y` that is written.
    start: usize,
    masks: Masks<'a, T>,
    ahead: &'a mut Ahead<'c, T>,
}

impl<T: Vectorised, const MASK: bool> WithSimd for Product<'_, '_, '_, T, MASK> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let lanes = T::lanes::<S>();
        let mut at = 0;
        while at < self.x.len {
            let len = if self.x.len - at < WIDTH * lanes {
                lanes.min(self.x.len - at)
            } else {
                WIDTH * lanes
            };
            let panels = self.panels.numbers.chunks(ROWS * (self.panels.n_in + 1));
            for (index, (panel, y)) in panels.zip(self.y.chunks_mut(ROWS)).enumerate() {
                let masks = Masks {
                    rows: match MASK {
                        true => &self.masks.rows[index * ROWS..][..y.len()],
                        false => &[],
                    },
                    start: self.masks.start + at,
                    ..self.masks
                };
                let tile = Tile::<T, MASK> {
                    panel,
                    masks,
                    n_rows: y.len(),
                    n_in: self.panels.n_in,
                    x: &self.x.numbers[at.min(self.x.numbers.len())..],
                    stride: self.x.stride,
                    columns: self.start + at..self.start + at + len,
                };
                if len < WIDTH * lanes {
                    tile.write_rows::<S, 1>(simd, y, self.ahead);
                } else {
                    tile.write_rows::<S, WIDTH>(simd, y, self.ahead);
                }
            }
            at += len;
        }
    }
}

/// Some columns of the rows of a panel.
struct Tile<'a, T, const MASK: bool> {
    panel: &'a [T],
    masks: Masks<'a, T>,
    n_rows: usize,
    n_in: usize,
    x: &'a [T],
    stride: usize,
    /// Of the result: a whole number of vectors, or less than one.
    columns: Range<usize>,
}

impl<T: Vectorised, const MASK: bool> Tile<'_, T, MASK> {
    /// All rows, `V` vectors of each.
    #[inline(always)]
    fn write_rows<S: Simd, const V: usize>(
        &self,
        simd: S,
        y: &mut [&mut [T]],
        ahead: &mut Ahead<'_, T>,
    ) {
        // Sums, columns and a weight are to fit the registers.
        if S::REGISTER_COUNT >= 32 && self.n_rows == ROWS {
            return self.write::<S, ROWS, V>(simd, y, 0, ahead);
        }
        let mut first = 0;
        while self.n_rows - first >= ROWS / 2 {
            self.write::<S, { ROWS / 2 }, V>(simd, y, first, ahead);
            first += ROWS / 2;
        }
        for row in first..self.n_rows {
            self.write::<S, 1, V>(simd, y, row, ahead);
        }
    }

    /// `R` rows from `first` on.
    // By indices that the compiler knows sums stay in registers.
    #[expect(clippy::needless_range_loop)]
    #[inline(always)]
    fn write<S: Simd, const R: usize, const V: usize>(
        &self,
        simd: S,
        y: &mut [&mut [T]],
        first: usize,
        ahead: &mut Ahead<'_, T>,
    ) {
        let lanes = T::lanes::<S>();
        // What is to be written comes while sums are taken.
        for y in &y[first..first + R] {
            let y = &y[self.columns.clone()];
            for v in 0..V {
                prefetch_line(&y[v * lanes..]);
            }
        }
        let mut sums = [[T::splat(simd, self.panel[first]); V]; R];
        for r in 0..R {
            sums[r] = [T::splat(simd, self.panel[first + r]); V];
        }
        for column in 0..self.n_in {
            ahead.fetch::<2>();
            self.add::<S, R, V>(simd, column, first, &mut sums);
        }
        for r in 0..R {
            let y = &mut y[first + r][self.columns.clone()];
            if MASK {
                let x = &self.masks.rows[first + r][self.masks.start..][..y.len()];
                let x = load::<T, S, V>(simd, x);
                sums[r] = mask::<T, S, V>(simd, sums[r], x, y, self.masks.adds);
            }
            store::<T, S, V>(simd, y, sums[r]);
        }
    }

    /// Adds what a column of the matrix gives.
    #[inline(always)]
    fn add<S: Simd, const R: usize, const V: usize>(
        &self,
        simd: S,
        column: usize,
        first: usize,
        sums: &mut [[T::Vector<S>; V]; R],
    ) {
        let w = &self.panel[(column + 1) * self.n_rows + first..][..R];
        let x = load::<T, S, V>(simd, &self.x[column * self.stride..]);
        for r in 0..R {
            let w = T::splat(simd, w[r]);
            for v in 0..V {
                sums[r][v] = T::mul_add(simd, w, x[v], sums[r][v]);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::tests::{OnPath, agrees_on_every_path};

    #[test]
    fn a_product_is_the_sum_that_defines_it_whatever_its_size() {
        for [n_out, n_in, len] in [
            [1, 1, 1],
            [6, 4, 32],
            [7, 3, 33],
            [13, 5, 100],
            [4, 0, 9],
            [5, 2, 0],
            [0, 3, 8],
        ] {
            let stride = len + 3;
            let x: Vec<f64> = (0..n_in * stride).map(|i| (i as f64).sin()).collect();
            let weight = |o: usize, c: usize| ((o * 31 + c * 7) as f64).cos();
            let panels = Panels::new([n_out, n_in], weight, |o| o as f64);
            let mut y = vec![f64::NAN; n_out * len];
            let mut rows: Vec<&mut [f64]> = y.chunks_mut(len.max(1)).collect();
            rows.resize_with(n_out, || &mut []);
            let x_rows = Rows::new(&x, stride, n_in, len);
            for part in [0..len / 3, len / 3..len] {
                panels.product_at(
                    x_rows.columns(part.clone()),
                    &mut rows,
                    part.start,
                    &mut Ahead::none(),
                );
            }
            for (o, row) in y.chunks(len.max(1)).enumerate() {
                for (k, &y) in row.iter().enumerate() {
                    let sum: f64 = (0..n_in).map(|c| weight(o, c) * x[c * stride + k]).sum();
                    assert!((y - sum - o as f64).abs() < 1e-12, "{n_out} {n_in} {len}");
                }
            }
            // The same behind a ReLU, and added to.
            let read: Vec<f64> = (0..len + 2 + n_out).map(|i| (i as f64).cos()).collect();
            let masks: Vec<&[f64]> = (0..n_out).map(|o| &read[o..]).collect();
            let before = y.clone();
            for adds in [false, true] {
                let mut rows: Vec<&mut [f64]> = y.chunks_mut(len.max(1)).collect();
                rows.resize_with(n_out, || &mut []);
                let masks = Masks {
                    rows: &masks,
                    start: 2,
                    adds,
                };
                panels.masked_product_at(x_rows, &mut rows, 0, masks, &mut Ahead::none());
            }
            let rows = y.chunks(len.max(1)).zip(before.chunks(len.max(1)));
            for (o, (row, before)) in rows.enumerate() {
                for (k, (y, before)) in row.iter().zip(before).enumerate() {
                    let expected = if read[o + 2 + k] <= 0.0 {
                        0.0
                    } else {
                        2.0 * before
                    };
                    assert!((y - expected).abs() < 1e-12, "{n_out} {n_in} {len}");
                }
            }
        }
    }

    #[test]
    fn an_outer_product_adds_every_scalar_product() {
        for [n_out, n_in, len] in [[4, 4, 32], [5, 9, 37], [1, 2, 3], [0, 4, 8], [3, 3, 0]] {
            let stride = row_stride(len);
            let numbers = |n: usize, shift: f64| -> Vec<f64> {
                (0..n * stride).map(|i| (i as f64 + shift).sin()).collect()
            };
            let (y, x) = (numbers(n_out, 0.0), numbers(n_in, 0.5));
            let (y, x) = (
                Rows::new(&y, stride, n_out, len),
                Rows::new(&x, stride, n_in, len),
            );
            let mut grad_w = vec![1.0; n_out * n_in];
            // In parts, of which one is empty.
            let mut sums = OuterSums::default();
            for (part, is_last) in [(0..len / 3, false), (0..0, false), (len / 3..len, true)] {
                let [y, x] = [y, x].map(|rows| rows.columns(part.clone()));
                sums.add(&mut grad_w, y, x, is_last, &mut Ahead::none());
            }
            for (index, grad) in grad_w.iter().enumerate() {
                let pairs = y.row(index / n_in).iter().zip(x.row(index % n_in));
                let sum: f64 = pairs.map(|(y, x)| y * x).sum();
                assert!((grad - 1.0 - sum).abs() < 1e-12, "{n_out} {n_in} {len}");
            }
        }
    }

    /// A product and an outer product of one size.
    struct Both<T>([usize; 3], std::marker::PhantomData<T>);

    impl<T: Element> OnPath for Both<T> {
        fn run<S: Simd>(&self, simd: S) -> Vec<f64> {
            let Self([n_out, n_in, len], _) = *self;
            let stride = row_stride(len);
            let numbers = |n: usize, shift: f64| -> Vec<T> {
                (0..n * stride)
                    .map(|i| T::from_f64((i as f64 + shift).sin()))
                    .collect()
            };
            let (x, grad) = (numbers(n_in, 0.0), numbers(n_out, 0.5));
            let x = Rows::new(&x, stride, n_in, len);
            let weight = |o: usize, c: usize| T::from_f64(((o * 31 + c * 7) as f64).cos());
            let panels = Panels::new([n_out, n_in], weight, |o| T::from_f64(o as f64));
            let mut y = vec![T::zero(); n_out * len];
            let mut rows: Vec<&mut [T]> = y.chunks_mut(len).collect();
            let mut masks = Masks {
                rows: &[],
                start: 0,
                adds: false,
            };
            simd.vectorize(Product::<T, false> {
                panels: &panels,
                x,
                y: &mut rows,
                start: 0,
                masks,
                ahead: &mut Ahead::none(),
            });
            // Then added to, behind a ReLU.
            let read = numbers(n_out, 0.25);
            let read: Vec<&[T]> = read.chunks(stride).map(|row| &row[..len]).collect();
            (masks.rows, masks.adds) = (&read, true);
            simd.vectorize(Product::<T, true> {
                panels: &panels,
                x,
                y: &mut rows,
                start: 0,
                masks,
                ahead: &mut Ahead::none(),
            });
            let mut answers: Vec<f64> = y.iter().map(|y| y.to_f64()).collect();
            let grad_y = Rows::new(&grad, stride, n_out, len);
            // As a whole, and in three parts.
            let mut sums = vec![T::zero(); n_out * n_in * LINE];
            for ends in [&[len][..], &[len / 3, len / 2, len]] {
                let mut grad_w = vec![0.0; n_out * n_in];
                let mut start = 0;
                for &end in ends {
                    let [grad_y, x] = [grad_y, x].map(|rows| rows.columns(start..end));
                    simd.vectorize(Outer {
                        grad_w: &mut grad_w,
                        grad_y,
                        x,
                        sums: &mut sums,
                        is_first: start == 0,
                        is_last: end == len,
                        ahead: &mut Ahead::none(),
                    });
                    start = end;
                }
                answers.extend(grad_w);
            }
            answers
        }
    }

    #[test]
    fn every_kind_of_vectors_gives_the_same_products() {
        for size in [
            [1, 1, 1],
            [6, 4, 32],
            [13, 5, 100],
            [7, 3, 33],
            [16, 64, 17],
        ] {
            agrees_on_every_path(&Both::<f64>(size, std::marker::PhantomData), 1e-12);
            agrees_on_every_path(&Both::<f32>(size, std::marker::PhantomData), 2e-5);
        }
    }
}
