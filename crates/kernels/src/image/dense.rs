//! Dense convolutions, as stems have them.

use super::{Maps, Pointwise};
use crate::{Conv2dGeometry, Window};

/// A dense convolution with a bias: what lies under each tap becomes a plane, and those are mixed.
#[derive(Debug, Clone)]
pub struct Dense {
    kernel: usize,
    geometry: Conv2dGeometry,
    mix: Pointwise,
}

impl Dense {
    /// `weight`: `o i u v` with square kernels; `bias`: `o`.
    pub fn new(weight: &[f32], kernel: usize, geometry: Conv2dGeometry, bias: &[f32]) -> Self {
        Self {
            kernel,
            geometry,
            mix: Pointwise::new(weight, bias),
        }
    }

    /// Runs the convolution.
    pub fn forward(&self, x: &Maps) -> Maps {
        let Conv2dGeometry {
            padding,
            stride,
            dilation,
        } = self.geometry;
        let window = Window {
            input: [x.h, x.w],
            kernel: [self.kernel; 2],
            padding,
            stride,
            dilation,
        };
        let [h, w] = window.output();
        let n_taps = window.kernel_len();
        let mut columns = Maps::any(x.c * n_taps, h, w);
        for (index, column) in columns.planes_mut(0..x.c * n_taps).enumerate() {
            let (plane, tap) = (x.plane(index / n_taps), index % n_taps);
            let (u, v) = (tap / self.kernel * dilation, tap % self.kernel * dilation);
            for (row, y) in column.chunks_mut(w.max(1)).enumerate() {
                y.fill(0.0);
                let Some(row) = (row * stride + u).checked_sub(padding) else {
                    continue;
                };
                if row >= x.h {
                    continue;
                }
                // The first column of windows whose tap lies on the image.
                let first = padding.saturating_sub(v).div_ceil(stride).min(w);
                let start = (first * stride + v).saturating_sub(padding).min(x.w);
                let source = &plane[row * x.w..][start..x.w];
                for (y, &x) in y[first..].iter_mut().zip(source.iter().step_by(stride)) {
                    *y = x;
                }
            }
        }
        let mut y = Maps::any(self.mix.n_out(), h, w);
        self.mix.forward(&columns, &mut y, 0);
        y
    }
}
