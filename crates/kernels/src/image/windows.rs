//! Depthwise windows over planes with zeros about them. Several rows of a result are summed at a time: what is loaded
//! for a column of taps serves several rows.

use pulp::{Simd, WithSimd};

use super::PaddedMaps;
use crate::Conv2dGeometry;
use crate::product::LINE;
use crate::simd::Vectorised;

/// Rows that are summed at a time.
const ROWS: usize = 8;

/// Rows of all planes of a depthwise convolution.
pub(super) struct Windows<'a> {
    pub(super) x: &'a PaddedMaps,
    /// The first row.
    pub(super) first: usize,
    /// `c u v`.
    pub(super) weights: &'a [f32],
    /// 3 or 5.
    pub(super) kernel: usize,
    pub(super) geometry: Conv2dGeometry,
    /// Where the rows go, `y_stride` from plane to plane; behind the last plane [`SLACK`](Self::SLACK) numbers more.
    pub(super) y: &'a mut [f32],
    pub(super) y_stride: usize,
    /// Rows and columns of each plane.
    pub(super) size: [usize; 2],
}

impl Windows<'_> {
    /// Numbers behind the planes that are written, and are of no account.
    pub(super) const SLACK: usize = 4 * LINE;

    /// Whether there are such windows.
    pub(super) fn are_known(kernel: usize, geometry: Conv2dGeometry) -> bool {
        let Conv2dGeometry {
            stride, dilation, ..
        } = geometry;
        matches!((kernel, stride, dilation), (3 | 5, 1 | 2, 1 | 2))
    }

    #[inline(always)]
    fn planes<S: Simd, const K: usize, const Q: usize, const D: usize>(self, simd: S) {
        let margin = self.x.pad - self.geometry.padding;
        let pitch = self.x.pitch();
        let origin = (margin + self.first * Q) * pitch;
        let [n_rows, n_columns] = self.size;
        let rows = PlaneRows::<K, Q, D> {
            pitch,
            columns: std::array::from_fn(|v| self.x.column(margin + v * D)),
            w: n_columns,
        };
        for (channel, taps) in self.weights.chunks_exact(K * K).enumerate() {
            let x = &self.x.plane(channel)[origin..];
            let y = &mut self.y[channel * self.y_stride..];
            rows.write(simd, x, taps, y, n_rows);
        }
    }
}

impl WithSimd for Windows<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Conv2dGeometry {
            stride, dilation, ..
        } = self.geometry;
        match (self.kernel, stride, dilation) {
            (3, 1, 1) => self.planes::<S, 3, 1, 1>(simd),
            (3, 1, 2) => self.planes::<S, 3, 1, 2>(simd),
            (3, 2, 1) => self.planes::<S, 3, 2, 1>(simd),
            (3, 2, 2) => self.planes::<S, 3, 2, 2>(simd),
            (5, 1, 1) => self.planes::<S, 5, 1, 1>(simd),
            (5, 1, 2) => self.planes::<S, 5, 1, 2>(simd),
            (5, 2, 1) => self.planes::<S, 5, 2, 1>(simd),
            (5, 2, 2) => self.planes::<S, 5, 2, 2>(simd),
            other => unreachable!("windows of kernel, stride and dilation {other:?}"),
        }
    }
}

/// Rows of one plane, `w` columns each: kernel `K`, stride `Q`, dilation `D`.
struct PlaneRows<const K: usize, const Q: usize, const D: usize> {
    /// From one row that is read to the next.
    pitch: usize,
    /// In these, what lies under each column of taps of the first window; from there the other windows' follows.
    columns: [usize; K],
    w: usize,
}

impl<const K: usize, const Q: usize, const D: usize> PlaneRows<K, Q, D> {
    #[inline(always)]
    fn write<S: Simd>(&self, simd: S, x: &[f32], taps: &[f32], y: &mut [f32], n_rows: usize) {
        let (lanes, w) = (S::F32_LANES, self.w);
        let mut row = 0;
        while row < n_rows {
            let left = n_rows - row;
            // Rather some rows too many, if there is room for them, than few at a time.
            let is_room = |n: usize| {
                row * Q * self.pitch + self.extent(n, w.max(lanes)) <= x.len()
                    && (row + n - 1) * w + w.max(lanes) <= y.len()
            };
            let n = match left {
                ROWS.. => ROWS,
                5.. if is_room(ROWS) => ROWS,
                4.. => 4,
                3 if is_room(4) => 4,
                2.. => 2,
                _ => 1,
            };
            for column in (0..w).step_by(lanes) {
                // The last vector of a row ends where the row does; what a row shorter than a vector writes behind itself,
                // the next one overwrites.
                let at = column.min(w.saturating_sub(lanes));
                let (x, y) = (&x[row * Q * self.pitch + at..], &mut y[row * w + at..]);
                match n {
                    ROWS => self.block::<S, ROWS>(simd, x, taps, y),
                    4 => self.block::<S, 4>(simd, x, taps, y),
                    2 => self.block::<S, 2>(simd, x, taps, y),
                    _ => self.block::<S, 1>(simd, x, taps, y),
                }
            }
            row += n.min(left);
        }
    }

    /// The numbers from the first that `n` rows of `lanes` columns read to behind the last.
    #[inline(always)]
    fn extent(&self, n: usize, lanes: usize) -> usize {
        let reach = self
            .columns
            .iter()
            .fold(0, |reach, &column| reach.max(column));
        (Q * (n - 1) + D * (K - 1)) * self.pitch + reach + lanes
    }

    /// One vector of each of `R` rows.
    // By indices that the compiler knows sums stay in registers.
    #[expect(clippy::needless_range_loop)]
    #[inline(always)]
    fn block<S: Simd, const R: usize>(&self, simd: S, x: &[f32], taps: &[f32], y: &mut [f32]) {
        let lanes = S::F32_LANES;
        let x = &x[..self.extent(R, lanes)];
        let y = &mut y[..(R - 1) * self.w + lanes];
        let mut sums = [simd.splat_f32s(0.0); R];
        // A loop that is not unrolled: otherwise all that one row sums comes first, and the processor waits for it.
        for v in 0..std::hint::black_box(K).min(K) {
            let column: [S::f32s; K] = std::array::from_fn(|u| simd.splat_f32s(taps[u * K + v]));
            for u in 0..K {
                for r in 0..R {
                    let at = (Q * r + D * u) * self.pitch + self.columns[v];
                    // SAFETY: `x` holds `extent(R, lanes)` numbers: up to the last row and column that there are, and `lanes` more.
                    let x = unsafe { x.get_unchecked(at..at + lanes) };
                    sums[r] = simd.mul_add_e_f32s(column[u], f32::load(simd, x), sums[r]);
                }
            }
        }
        for r in 0..R {
            f32::store(simd, &mut y[r * self.w..][..lanes], sums[r]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::Maps;
    use crate::planes::Buffer;
    use crate::product::row_stride;
    use crate::simd::tests::{OnPath, agrees_on_every_path};

    /// Two planes of that many rows and columns behind a ReLU, with some zeros more than are read.
    struct Case {
        size: [usize; 2],
        kernel: usize,
        geometry: Conv2dGeometry,
        margin: usize,
    }

    const N_PLANES: usize = 2;

    impl Case {
        fn numbers(n: usize, shift: f32) -> Vec<f32> {
            (0..n).map(|i| (1.7 * i as f32 + shift).sin()).collect()
        }

        fn x(&self) -> Vec<f32> {
            let [h, w] = self.size;
            Self::numbers(N_PLANES * h * w, 0.3)
        }

        fn weights(&self) -> Vec<f32> {
            Self::numbers(N_PLANES * self.kernel * self.kernel, 1.1)
        }

        /// Rows and columns of a result.
        fn out(&self) -> [usize; 2] {
            let Conv2dGeometry {
                padding,
                stride,
                dilation,
            } = self.geometry;
            let reach = (self.kernel - 1) * dilation + 1;
            self.size
                .map(|size| (size + 2 * padding - reach) / stride + 1)
        }

        /// The sums that define it.
        fn expected(&self) -> Vec<f64> {
            let (x, weights) = (self.x(), self.weights());
            let ([h, w], k) = (self.size, self.kernel);
            let [h_out, w_out] = self.out();
            let at = |out: usize, tap: usize, size: usize| {
                let Conv2dGeometry {
                    padding,
                    stride,
                    dilation,
                } = self.geometry;
                let at = (out * stride + tap * dilation).checked_sub(padding)?;
                (at < size).then_some(at)
            };
            let value = |plane: usize, row: usize, column: usize| {
                let mut sum = 0.0;
                for tap in 0..k * k {
                    if let (Some(row), Some(column)) = (at(row, tap / k, h), at(column, tap % k, w))
                    {
                        let x = f64::from(x[(plane * h + row) * w + column]).max(0.0);
                        sum += x * f64::from(weights[plane * k * k + tap]);
                    }
                }
                sum
            };
            (0..N_PLANES * h_out * w_out)
                .map(|i| value(i / (h_out * w_out), i / w_out % h_out, i % w_out))
                .collect()
        }
    }

    impl OnPath for Case {
        fn run<S: Simd>(&self, simd: S) -> Vec<f64> {
            let ([h, w], [n_rows, n_columns]) = (self.size, self.out());
            let x = Maps::from_slice(N_PLANES, h, w, &self.x());
            let Conv2dGeometry {
                padding, stride, ..
            } = self.geometry;
            let x = PaddedMaps::rectified(&x, padding + self.margin, stride);
            let weights = self.weights();
            // In two parts, of which the second has the last rows alone.
            let mut all = vec![Vec::<f32>::new(); N_PLANES];
            for part in [0..n_rows / 2, n_rows / 2..n_rows] {
                let y_stride = row_stride(part.len() * n_columns);
                let mut y = Buffer::scratch(N_PLANES * y_stride + Windows::SLACK);
                y.fill(f32::NAN);
                simd.vectorize(Windows {
                    x: &x,
                    first: part.start,
                    weights: &weights,
                    kernel: self.kernel,
                    geometry: self.geometry,
                    y: &mut y,
                    y_stride,
                    size: [part.len(), n_columns],
                });
                for (all, y) in all.iter_mut().zip(y.chunks(y_stride.max(1))) {
                    all.extend(&y[..part.len() * n_columns]);
                }
            }
            all.concat().into_iter().map(f64::from).collect()
        }
    }

    #[test]
    fn windows_of_any_size_are_the_sums_that_define_them_in_every_kind_of_vectors() {
        let sizes = [1, 2, 3, 4, 5, 7, 8, 9, 14, 16, 17, 32, 35];
        for (index, h) in sizes.into_iter().enumerate() {
            for w in [sizes[(3 * index + 1) % sizes.len()], h] {
                for choice in 0..8 {
                    let pick = |bit: usize| 1 + (choice >> bit & 1);
                    let (kernel, dilation) = (1 + 2 * pick(0), pick(2));
                    let geometry = Conv2dGeometry {
                        padding: dilation * (kernel / 2),
                        stride: pick(1),
                        dilation,
                    };
                    let case = Case {
                        size: [h, w],
                        kernel,
                        geometry,
                        margin: index % 3,
                    };
                    let (found, expected) = (case.run(pulp::Scalar), case.expected());
                    assert_eq!(found.len(), expected.len());
                    for (found, expected) in found.iter().zip(&expected) {
                        let error = (found - expected).abs();
                        assert!(
                            error < 1e-5,
                            "{h}x{w} k{kernel} {geometry:?}: {found}, {expected}"
                        );
                    }
                    agrees_on_every_path(&case, 1e-5);
                }
            }
        }
    }
}
