//! Dense convolution: every output channel reads every input channel.
//!
//! `y[n o r s] = sum_iuv w[o i u v] * x[n i (r * stride + u * dilation - padding) (s * stride + v * dilation - padding)]`,
//! where pixels outside `x` count as 0. It serves the stems and the auxiliary head.

use candle_core::{Result, Tensor};

use crate::Element;
use crate::convolution::Convolution;
use crate::error::{check, dims4};
#[cfg(any(feature = "cuda", shim))]
use crate::gpu::{Gpu, In};
use crate::{Conv2dGeometry, Window};

mod cpu;
#[cfg(any(feature = "cuda", shim))]
mod cuda;
pub mod naive;

const OP: &str = "conv2d";

/// Dense convolution.
///
/// # Shapes
/// `x`: `n i h w`; `w`: `o i u v`; result: `n o h' w'` with `h' = geometry.out_size(h, u)`.
///
/// # Errors
/// If the shapes do not agree or the kernel does not fit the padded input.
pub fn conv2d(x: &Tensor, w: &Tensor, geometry: Conv2dGeometry) -> Result<Tensor> {
    let [n, i, height, width] = dims4(OP, "x", "n i h w", x)?;
    let [o, _, u, v] = dims4(OP, "w", "o i u v", w)?;
    check(OP, "w", w, &[o, i, u, v], x)?;
    let window = Window::new(OP, [height, width], [u, v], geometry)?;
    Shape { n, i, o, window }.apply(x, w)
}

/// Sizes of a dense convolution.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// Images.
    pub n: usize,
    /// Input channels.
    pub i: usize,
    /// Output channels.
    pub o: usize,
    /// The windows on a plane.
    pub window: Window,
}

impl Convolution for Shape {
    const NAMES: [&'static str; 3] = [OP, "conv2d_grad_x", "conv2d_grad_w"];

    fn shapes(&self) -> [candle_core::Shape; 3] {
        let ([h, w], [out_h, out_w]) = (self.window.input, self.window.output());
        let [u, v] = self.window.kernel;
        [
            (self.n, self.o, out_h, out_w).into(),
            (self.n, self.i, h, w).into(),
            (self.o, self.i, u, v).into(),
        ]
    }

    #[cfg(not(shim))]
    fn forward<T: Element>(&self, x: &[T], w: &[T]) -> Vec<T> {
        cpu::forward(x, w, self)
    }

    #[cfg(not(shim))]
    fn grad_x<T: Element>(&self, grad: &[T], w: &[T]) -> Vec<T> {
        cpu::grad_x(grad, w, self)
    }

    #[cfg(not(shim))]
    fn grad_w<T: Element>(&self, grad: &[T], x: &[T]) -> Vec<T> {
        cpu::grad_w(grad, x, self)
    }

    #[cfg(any(feature = "cuda", shim))]
    fn launch_forward<S: Gpu>(&self, x: &In<'_, S>, w: &In<'_, S>) -> Result<S> {
        cuda::forward(x, w, self)
    }

    #[cfg(any(feature = "cuda", shim))]
    fn launch_grad_x<S: Gpu>(&self, grad: &In<'_, S>, w: &In<'_, S>) -> Result<S> {
        cuda::grad_x(grad, w, self)
    }

    #[cfg(any(feature = "cuda", shim))]
    fn launch_grad_w<S: Gpu>(&self, grad: &In<'_, S>, x: &In<'_, S>) -> Result<S> {
        cuda::grad_w(grad, x, self)
    }
}
