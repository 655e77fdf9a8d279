//! Where windows lie on a plane.

use crate::Error;

/// How a convolution kernel moves over its input; the same along both axes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Conv2dGeometry {
    /// Zeros added on each side, in pixels.
    pub padding: usize,
    /// Step between neighbouring windows, in pixels; at least 1.
    pub stride: usize,
    /// Distance between neighbouring taps of a window, in pixels; at least 1.
    pub dilation: usize,
}

impl Conv2dGeometry {
    /// The output size along an axis of `size` pixels for a kernel of `kernel` taps: 0 if the kernel does not fit.
    pub const fn out_size(&self, size: usize, kernel: usize) -> usize {
        let (padded, extent) = (
            size + 2 * self.padding,
            self.dilation * kernel.saturating_sub(1) + 1,
        );
        if padded < extent {
            0
        } else {
            (padded - extent) / self.stride + 1
        }
    }
}

/// How a square pooling window moves over its input; the same along both axes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Pool2dGeometry {
    /// Side of the window, in pixels.
    pub kernel: usize,
    /// Pixels added on each side that belong to no input; at most half of `kernel`, so no window lies outside the input.
    pub padding: usize,
    /// Step between neighbouring windows, in pixels; at least 1.
    pub stride: usize,
}

impl Pool2dGeometry {
    /// The output size along an axis of `size` pixels: 0 if the window does not fit.
    pub const fn out_size(&self, size: usize) -> usize {
        self.conv().out_size(size, self.kernel)
    }

    const fn conv(&self) -> Conv2dGeometry {
        Conv2dGeometry {
            padding: self.padding,
            stride: self.stride,
            dilation: 1,
        }
    }

    pub(crate) fn window(&self, op: &'static str, input: [usize; 2]) -> Result<Window, Error> {
        if 2 * self.padding > self.kernel {
            return Err(Error::Padding {
                op,
                padding: self.padding,
                kernel: self.kernel,
            });
        }
        Window::new(op, input, [self.kernel; 2], self.conv())
    }
}

/// All windows of an operation on a plane of `input` pixels: one per output pixel, `kernel` taps each.
/// Pairs are (rows, columns).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Window {
    /// Size of the input plane.
    pub input: [usize; 2],
    /// Number of taps.
    pub kernel: [usize; 2],
    /// Pixels added on each side.
    pub padding: usize,
    /// Step between neighbouring windows.
    pub stride: usize,
    /// Distance between neighbouring taps.
    pub dilation: usize,
}

impl Window {
    pub(crate) fn new(
        op: &'static str,
        input: [usize; 2],
        kernel: [usize; 2],
        geometry: Conv2dGeometry,
    ) -> Result<Self, Error> {
        let Conv2dGeometry {
            padding,
            stride,
            dilation,
        } = geometry;
        let window = Self {
            input,
            kernel,
            padding,
            stride,
            dilation,
        };
        let is_valid = stride > 0
            && dilation > 0
            && input.into_iter().chain(kernel).all(|size| size > 0)
            && window.output().into_iter().all(|size| size > 0);
        if is_valid {
            Ok(window)
        } else {
            Err(Error::Window { op, window })
        }
    }

    /// Size of the output plane.
    pub fn output(&self) -> [usize; 2] {
        let Self {
            padding,
            stride,
            dilation,
            ..
        } = *self;
        let geometry = Conv2dGeometry {
            padding,
            stride,
            dilation,
        };
        [0, 1].map(|axis| geometry.out_size(self.input[axis], self.kernel[axis]))
    }

    /// Number of pixels of the input plane.
    pub fn input_len(&self) -> usize {
        self.input.iter().product()
    }

    /// Number of pixels of the output plane.
    pub fn output_len(&self) -> usize {
        self.output().iter().product()
    }

    /// Number of taps of a window.
    pub fn kernel_len(&self) -> usize {
        self.kernel.iter().product()
    }

    /// Calls `visit(output pixel, tap, input pixel)` for every tap that does not lie in the padding: output
    /// pixels in row-major order, the taps of each in row-major order. What the naive operations are made of.
    pub fn for_each_tap(&self, mut visit: impl FnMut(usize, usize, usize)) {
        let [[h, w], [n_u, n_v], [out_h, out_w]] = [self.input, self.kernel, self.output()];
        let source = |out: usize, tap: usize, size: usize| {
            (out * self.stride + tap * self.dilation)
                .checked_sub(self.padding)
                .filter(|&at| at < size)
        };
        for (row, col) in (0..out_h).flat_map(|row| (0..out_w).map(move |col| (row, col))) {
            for (u, v) in (0..n_u).flat_map(|u| (0..n_v).map(move |v| (u, v))) {
                if let (Some(y), Some(x)) = (source(row, u, h), source(col, v, w)) {
                    visit(row * out_w + col, u * n_v + v, y * w + x);
                }
            }
        }
    }
}
