//! Pointwise (1x1) convolution: at every pixel the same matrix maps input channels to output channels.
//!
//! `y[n o p] = sum_i w[o i] * x[n i p]` over the pixels `p` of a plane: one matrix product per image.
//!
//! In bf16 both factors of each product (of the gradients' too) are rounded to bf16, to the nearest and to even in
//! the middle; sums and results stay `f32`, and so do weights.

use candle_core::{DType, Result, Tensor};

use crate::Element;
use crate::Precision;
use crate::convolution::Convolution;
use crate::error::{check, dims4};
#[cfg(any(feature = "cuda", shim))]
use crate::gpu::{Gpu, In};

pub(crate) mod cpu;
#[cfg(any(feature = "cuda", shim))]
mod cuda;
mod grouped;
pub mod naive;

pub use grouped::GroupedPointwise;

const OP: &str = "pointwise_conv2d";

/// Pointwise (1x1) convolution with stride 1 and no padding.
///
/// # Shapes
/// `x`: `n i h w`; `w`: `o i 1 1`; result: `n o h w`.
///
/// # Errors
/// If the shapes do not agree.
pub fn pointwise_conv2d(x: &Tensor, w: &Tensor) -> Result<Tensor> {
    pointwise_conv2d_in(x, w, Precision::F32)
}

/// [`pointwise_conv2d`] with products of the given precision, forward and backward.
///
/// # Errors
/// If the shapes do not agree; if a precision other than `F32` is asked of `f64` tensors, or `Tf32` on the CPU.
pub fn pointwise_conv2d_in(x: &Tensor, w: &Tensor, precision: Precision) -> Result<Tensor> {
    check_precision(x, precision)?;
    let [n, i, height, width] = dims4(OP, "x", "n i h w", x)?;
    let [o, ..] = dims4(OP, "w", "o i 1 1", w)?;
    check(OP, "w", w, &[o, i, 1, 1], x)?;
    let shape = Shape {
        n,
        i,
        o,
        plane: [height, width],
    };
    PointwiseConv2d { shape, precision }.apply(x, w)
}

/// An error unless tensors like `x` are multiplied in that precision.
fn check_precision(x: &Tensor, precision: Precision) -> Result<()> {
    if precision != Precision::F32 && x.dtype() != DType::F32 {
        candle_core::bail!(
            "{OP}: products of {:?} tensors have no other precision",
            x.dtype()
        );
    }
    if precision == Precision::Tf32 && x.device().is_cpu() {
        candle_core::bail!("{OP}: tf32 is a precision of CUDA devices");
    }
    Ok(())
}

/// Sizes of a pointwise convolution.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// Images.
    pub n: usize,
    /// Input channels.
    pub i: usize,
    /// Output channels.
    pub o: usize,
    /// Rows and columns of a plane.
    pub plane: [usize; 2],
}

impl Shape {
    /// Number of pixels of a plane.
    pub fn plane_len(&self) -> usize {
        self.plane.iter().product()
    }
}

/// A pointwise convolution whose products are of some precision.
#[derive(Clone, Copy)]
struct PointwiseConv2d {
    shape: Shape,
    precision: Precision,
}

impl Convolution for PointwiseConv2d {
    const NAMES: [&'static str; 3] = [OP, "pointwise_conv2d_grad_x", "pointwise_conv2d_grad_w"];

    fn shapes(&self) -> [candle_core::Shape; 3] {
        let &Shape {
            n,
            i,
            o,
            plane: [h, w],
        } = &self.shape;
        [
            (n, o, h, w).into(),
            (n, i, h, w).into(),
            (o, i, 1, 1).into(),
        ]
    }

    #[cfg(not(shim))]
    fn forward<T: Element>(&self, x: &[T], w: &[T]) -> Vec<T> {
        cpu::forward(
            &self.precision.factor(x),
            &self.precision.factor(w),
            &self.shape,
        )
    }

    #[cfg(not(shim))]
    fn grad_x<T: Element>(&self, grad: &[T], w: &[T]) -> Vec<T> {
        cpu::grad_x(
            &self.precision.factor(grad),
            &self.precision.factor(w),
            &self.shape,
        )
    }

    #[cfg(not(shim))]
    fn grad_w<T: Element>(&self, grad: &[T], x: &[T]) -> Vec<T> {
        cpu::grad_w(
            &self.precision.factor(grad),
            &self.precision.factor(x),
            &self.shape,
        )
    }

    #[cfg(any(feature = "cuda", shim))]
    fn launch_forward<S: Gpu>(&self, x: &In<'_, S>, w: &In<'_, S>) -> Result<S> {
        cuda::forward(x, w, &self.shape, self.precision)
    }

    #[cfg(any(feature = "cuda", shim))]
    fn launch_grad_x<S: Gpu>(&self, grad: &In<'_, S>, w: &In<'_, S>) -> Result<S> {
        cuda::grad_x(grad, w, &self.shape, self.precision)
    }

    #[cfg(any(feature = "cuda", shim))]
    fn launch_grad_w<S: Gpu>(&self, grad: &In<'_, S>, x: &In<'_, S>) -> Result<S> {
        cuda::grad_w(grad, x, &self.shape, self.precision)
    }
}
