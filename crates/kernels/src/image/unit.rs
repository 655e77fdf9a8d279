//! Pointwise convolutions, and the unit of every convolution of the search space: depthwise, then pointwise.

use super::windows::Windows;
use super::{Maps, PaddedMaps};
use crate::Conv2dGeometry;
use crate::planes::{Buffer, for_each, pieces_mut};
use crate::product::{Panels, Rows, row_stride};
use crate::simd::dispatch_rows;

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
    ///
    /// # Panics
    /// If the kernel is not 3 or 5, or its stride or dilation not 1 or 2: the search space has no others.
    pub fn new(
        depthwise: &[f32],
        kernel: usize,
        geometry: Conv2dGeometry,
        pointwise: &[f32],
        bias: &[f32],
    ) -> Self {
        assert!(
            Windows::are_known(kernel, geometry),
            "unit: no windows of kernel {kernel} and {geometry:?}"
        );
        Self {
            depthwise: depthwise.to_vec(),
            kernel,
            geometry,
            pointwise: Pointwise::new(pointwise, bias).panels,
        }
    }

    /// How it reads its input.
    pub fn geometry(&self) -> Conv2dGeometry {
        self.geometry
    }

    /// Runs the unit on an input that has been through its ReLU.
    ///
    /// # Panics
    /// If the input is prepared for another stride, or with fewer zeros than are read.
    pub fn forward(&self, x: &PaddedMaps) -> Maps {
        let [n_out, n_in] = self.pointwise.dims();
        let Conv2dGeometry {
            padding,
            stride,
            dilation,
        } = self.geometry;
        assert!(
            padding <= x.pad && stride == x.stride,
            "unit: {padding} zeros are read at stride {stride}, {} are there for stride {}",
            x.pad,
            x.stride
        );
        let reach = (self.kernel - 1) * dilation + 1;
        let size = |size: usize| (size + 2 * padding).saturating_sub(reach) / stride + 1;
        let (h, w) = (size(x.h), size(x.w));
        let n_rows = (PIXELS / w).max(1).min(h);
        // Of what lies between the two convolutions.
        let row_stride = row_stride(n_rows * w);
        let mut y = Maps::any(n_out, h, w);
        let pieces = pieces_mut(y.planes_mut(0..n_out).collect(), n_rows * w);
        for_each(
            pieces,
            || Buffer::scratch(n_in * row_stride + Windows::SLACK),
            |between, index, mut y| {
                let len = y.first().map_or(0, |y| y.len());
                let windows = Windows {
                    x,
                    first: index * n_rows,
                    weights: &self.depthwise,
                    kernel: self.kernel,
                    geometry: self.geometry,
                    y: between,
                    y_stride: row_stride,
                    size: [len / w, w],
                };
                dispatch_rows(w, windows);
                let between = Rows::new(between, row_stride, n_in, len);
                self.pointwise.product(between, &mut y);
            },
        );
        y
    }
}
