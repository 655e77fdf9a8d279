//! Pointwise convolutions, and the unit of every convolution of the search space: depthwise, then pointwise.

use pulp::{Arch, Simd, WithSimd};

use super::{Maps, PaddedMaps};
use crate::Conv2dGeometry;
use crate::planes::{Buffer, for_each, pieces_mut};
use crate::product::Panels;
use crate::simd::Vectorised;

/// Pixels that a piece of work covers.
const PIXELS: usize = 256;

/// A pointwise convolution with a bias.
#[derive(Debug, Clone)]
pub struct Pointwise {
    panels: Panels<f32>,
}

impl Pointwise {
    /// `weight`: `o c`; `bias`: `o`.
    pub fn new(weight: &[f32], bias: &[f32]) -> Self {
        let n_out = bias.len();
        let n_in = weight.len() / n_out.max(1);
        Self {
            panels: Panels::new([n_out, n_in], |o, c| weight[o * n_in + c], |o| bias[o]),
        }
    }

    /// Channels that it writes.
    pub fn n_out(&self) -> usize {
        self.panels.dims()[0]
    }

    /// Writes planes `first..` of `y`.
    pub fn forward(&self, x: &Maps, y: &mut Maps, first: usize) {
        assert_eq!((x.c, x.plane_len()), (self.panels.dims()[1], y.plane_len()));
        let planes = y.planes_mut(first..first + self.n_out()).collect();
        for_each(
            pieces_mut(planes, PIXELS),
            || (),
            |(), index, mut y| {
                let len = y.first().map_or(0, |y| y.len());
                self.panels.product(x.rows(index * PIXELS, len), &mut y);
            },
        );
    }
}

/// A depthwise convolution behind a ReLU, followed by a pointwise one.
#[derive(Debug, Clone)]
pub struct Unit {
    depthwise: Vec<f32>,
    kernel: usize,
    geometry: Conv2dGeometry,
    pointwise: Panels<f32>,
}

impl Unit {
    /// `depthwise`: `c u v` with square kernels; `pointwise`: `o c`; `bias`: `o`.
    pub fn new(
        depthwise: &[f32],
        kernel: usize,
        geometry: Conv2dGeometry,
        pointwise: &[f32],
        bias: &[f32],
    ) -> Self {
        Self {
            depthwise: depthwise.to_vec(),
            kernel,
            geometry,
            pointwise: Pointwise::new(pointwise, bias).panels,
        }
    }

    /// The zeros that it reads about its input.
    pub fn padding(&self) -> usize {
        self.geometry.padding
    }

    /// Runs the unit on an input that has been through its ReLU.
    pub fn forward(&self, x: &PaddedMaps) -> Maps {
        let [n_out, n_in] = self.pointwise.dims();
        let Conv2dGeometry {
            padding,
            stride,
            dilation,
        } = self.geometry;
        assert!(
            padding <= x.pad,
            "unit: {padding} zeros are read, {} are there",
            x.pad
        );
        let reach = (self.kernel - 1) * dilation + 1;
        let size = |size: usize| (size + 2 * padding).saturating_sub(reach) / stride + 1;
        let (h, w) = (size(x.h), size(x.w));
        let width = x.width();
        // What lies under the first tap of the first window, and the other taps from there.
        let origin = (x.pad - padding) * (width + 1);
        let taps: Vec<usize> = (0..self.kernel * self.kernel)
            .map(|tap| dilation * (tap / self.kernel * width + tap % self.kernel))
            .collect();
        let rows = (PIXELS / w.max(1)).max(1);
        let mut y = Maps::any(n_out, h, w);
        let pieces = pieces_mut(y.planes_mut(0..n_out).collect(), rows * w);
        for_each(
            pieces,
            || {
                let between = Maps::any(n_in, rows.min(h), w);
                let line = Buffer::any(((rows - 1) * stride + 1) * width + LANES_MAX * BLOCK);
                (between, line)
            },
            |(between, line), index, mut y| {
                let len = y.first().map_or(0, |y| y.len());
                let first = index * rows * stride * width + origin;
                let weights = self.depthwise.chunks(taps.len());
                for (channel, (plane, w_taps)) in
                    between.planes_mut(0..n_in).zip(weights).enumerate()
                {
                    let source = &x.plane(channel)[first..];
                    let plane = &mut plane[..len];
                    if stride == 1 {
                        // All rows at once, with what lies between them.
                        let n = (len / w - 1) * width + w;
                        weigh(source, &taps, w_taps, &mut line[..n]);
                        for (y, line) in plane.chunks_mut(w).zip(line.chunks(width)) {
                            y.copy_from_slice(&line[..w]);
                        }
                    } else {
                        for (row, y) in plane.chunks_mut(w).enumerate() {
                            let source = &source[row * stride * width..];
                            let n = (w - 1) * stride + 1;
                            weigh(source, &taps, w_taps, &mut line[..n]);
                            for (y, &x) in y.iter_mut().zip(line.iter().step_by(stride)) {
                                *y = x;
                            }
                        }
                    }
                }
                self.pointwise.product(between.rows(0, len), &mut y);
            },
        );
        y
    }
}

/// Vectors that are summed at a time.
const BLOCK: usize = 4;

/// Numbers of the longest vector.
const LANES_MAX: usize = 16;

/// `y[k] = Σ w[tap] * x[taps[tap] + k]`.
fn weigh(x: &[f32], taps: &[usize], w: &[f32], y: &mut [f32]) {
    Arch::new().dispatch(Weigh { x, taps, w, y });
}

struct Weigh<'a> {
    x: &'a [f32],
    taps: &'a [usize],
    w: &'a [f32],
    y: &'a mut [f32],
}

impl WithSimd for Weigh<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let lanes = S::F32_LANES;
        let Self { x, taps, w, y } = self;
        let mut at = 0;
        while at < y.len() {
            let left = (y.len() - at).div_ceil(lanes);
            let n = match left {
                1 => block::<S, 1>(simd, &x[at..], taps, w, &mut y[at..]),
                2 => block::<S, 2>(simd, &x[at..], taps, w, &mut y[at..]),
                3 => block::<S, 3>(simd, &x[at..], taps, w, &mut y[at..]),
                _ => block::<S, BLOCK>(simd, &x[at..], taps, w, &mut y[at..]),
            };
            at += n;
        }
    }
}

/// Some vectors of [`weigh`]; the numbers that were written.
#[inline(always)]
fn block<S: Simd, const N: usize>(
    simd: S,
    x: &[f32],
    taps: &[usize],
    w: &[f32],
    y: &mut [f32],
) -> usize {
    let lanes = S::F32_LANES;
    let mut sums = [simd.splat_f32s(0.0); N];
    for (&tap, &w) in taps.iter().zip(w) {
        let w = simd.splat_f32s(w);
        let x = &x[tap..][..N * lanes];
        for (sum, x) in sums.iter_mut().zip(x.chunks_exact(lanes)) {
            *sum = simd.mul_add_e_f32s(w, f32::load(simd, x), *sum);
        }
    }
    let len = y.len().min(N * lanes);
    for (y, sum) in y[..len].chunks_mut(lanes).zip(sums) {
        f32::store(simd, y, sum);
    }
    len
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::tests::{OnPath, agrees_on_every_path};

    /// A window of nine taps over so many numbers.
    struct Window(usize);

    impl OnPath for Window {
        fn run<S: Simd>(&self, simd: S) -> Vec<f64> {
            let numbers = |n: usize| -> Vec<f32> { (0..n).map(|i| (i as f32).sin()).collect() };
            let taps: Vec<usize> = (0..9).map(|tap| tap / 3 * 11 + tap % 3).collect();
            let (x, w) = (numbers(self.0 + 25 + BLOCK * LANES_MAX), numbers(9));
            let mut y = vec![f32::NAN; self.0];
            simd.vectorize(Weigh {
                x: &x,
                taps: &taps,
                w: &w,
                y: &mut y,
            });
            y.into_iter().map(f64::from).collect()
        }
    }

    #[test]
    fn every_kind_of_vectors_gives_the_same_windows() {
        for n in [1, 15, 16, 17, 64, 100] {
            agrees_on_every_path(&Window(n), 1e-5);
        }
    }
}
