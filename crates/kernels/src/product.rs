//! Small matrix products on planes, at the speed of the processor: `y[o] = bias[o] + Σ w[o, c] x[c]`.

use pulp::{Arch, Simd, WithSimd};

use crate::simd::Vectorised;

/// Rows of a result that are worked on at a time: with two vectors each they fill the registers.
const ROWS: usize = 6;

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

    /// Writes the rows `y`, all of one length. Column `c` starts at `x[c * stride]`; a stride of an odd number of
    /// cache lines keeps the columns out of each other's way.
    pub(crate) fn product(&self, x: &[T], stride: usize, y: &mut [&mut [T]]) {
        assert_eq!(y.len(), self.n_out);
        let len = y.first().map_or(0, |y| y.len());
        assert!(len <= stride && x.len() >= self.n_in.saturating_sub(1) * stride + len);
        assert!(y.iter().all(|y| y.len() == len));
        Arch::new().dispatch(Product {
            panels: self,
            x,
            stride,
            y,
            len,
        });
    }
}

struct Product<'a, 'b, T> {
    panels: &'a Panels<T>,
    x: &'a [T],
    stride: usize,
    y: &'a mut [&'b mut [T]],
    len: usize,
}

impl<T: Vectorised> WithSimd for Product<'_, '_, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let width = 2 * T::lanes::<S>();
        for at in (0..self.len).step_by(width) {
            let len = width.min(self.len - at);
            let panels = self.panels.numbers.chunks(ROWS * (self.panels.n_in + 1));
            for (panel, y) in panels.zip(self.y.chunks_mut(ROWS)) {
                let tile = Tile {
                    panel,
                    x: &self.x[at.min(self.x.len())..],
                    stride: self.stride,
                    at,
                    len,
                };
                match y.len() {
                    6 => tile.write::<S, 6>(simd, y),
                    5 => tile.write::<S, 5>(simd, y),
                    4 => tile.write::<S, 4>(simd, y),
                    3 => tile.write::<S, 3>(simd, y),
                    2 => tile.write::<S, 2>(simd, y),
                    _ => tile.write::<S, 1>(simd, y),
                }
            }
        }
    }
}

/// Up to two vectors of up to [`ROWS`] rows.
struct Tile<'a, T> {
    panel: &'a [T],
    x: &'a [T],
    stride: usize,
    at: usize,
    len: usize,
}

impl<T: Vectorised> Tile<'_, T> {
    #[inline(always)]
    fn write<S: Simd, const R: usize>(&self, simd: S, y: &mut [&mut [T]]) {
        if self.len == 2 * T::lanes::<S>() {
            self.sums::<S, R, true>(simd, y);
        } else {
            self.sums::<S, R, false>(simd, y);
        }
    }

    #[inline(always)]
    fn sums<S: Simd, const R: usize, const WHOLE: bool>(&self, simd: S, y: &mut [&mut [T]]) {
        let lanes = T::lanes::<S>();
        let (split, len) = if WHOLE {
            (lanes, 2 * lanes)
        } else {
            (lanes.min(self.len), self.len)
        };
        let (bias, weights) = self.panel.split_at(R);
        let mut sums = [[T::splat(simd, bias[0]); 2]; R];
        for r in 0..R {
            sums[r] = [T::splat(simd, bias[r]); 2];
        }
        let columns = self.x.chunks(self.stride.max(1));
        for (w, x) in weights.as_chunks::<R>().0.iter().zip(columns) {
            let x = [T::load(simd, &x[..split]), T::load(simd, &x[split..len])];
            for r in 0..R {
                let w = T::splat(simd, w[r]);
                sums[r][0] = T::mul_add(simd, w, x[0], sums[r][0]);
                sums[r][1] = T::mul_add(simd, w, x[1], sums[r][1]);
            }
        }
        for (y, sums) in y.iter_mut().zip(sums) {
            let (first, second) = y[self.at..][..len].split_at_mut(split);
            T::store(simd, first, sums[0]);
            T::store(simd, second, sums[1]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
            panels.product(&x, stride, &mut rows);
            for (o, row) in y.chunks(len.max(1)).enumerate() {
                for (k, &y) in row.iter().enumerate() {
                    let sum: f64 = (0..n_in).map(|c| weight(o, c) * x[c * stride + k]).sum();
                    assert!((y - sum - o as f64).abs() < 1e-12, "{n_out} {n_in} {len}");
                }
            }
        }
    }
}
