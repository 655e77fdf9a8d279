//! Pointwise (1x1) convolution: at every pixel the same matrix maps input channels to output channels.
//!
//! `y[n o p] = sum_i w[o i] * x[n i p]` over the pixels `p` of a plane: one matrix product per image.
//!
//! In bf16 both factors of each product (of the gradients' too) are rounded to bf16, to the nearest and to even in
//! the middle; sums and results stay `f32`, and so do weights.

use candle_core::{CpuStorage, CustomOp2, DType, Layout, Result, Tensor, WithDType};

use crate::Precision;
use crate::element::{elements, with_element};
use crate::error::{check, dims4};
use crate::gpu::on_gpu;

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
    x.contiguous()?
        .apply_op2(&w.contiguous()?, PointwiseConv2d(shape, precision))
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

    fn x(&self) -> candle_core::Shape {
        let [h, w] = self.plane;
        (self.n, self.i, h, w).into()
    }

    fn y(&self) -> candle_core::Shape {
        let [h, w] = self.plane;
        (self.n, self.o, h, w).into()
    }

    fn w(&self) -> candle_core::Shape {
        (self.o, self.i, 1, 1).into()
    }
}

struct PointwiseConv2d(Shape, Precision);

impl CustomOp2 for PointwiseConv2d {
    fn name(&self) -> &'static str {
        OP
    }

    #[cfg(not(shim))]
    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        w: &CpuStorage,
        w_layout: &Layout,
    ) -> Result<(CpuStorage, candle_core::Shape)> {
        with_element!(self.name(), x, T => {
            let y = cpu::forward::<T>(&self.1.factor(elements(x, x_layout)?), &self.1.factor(elements(w, w_layout)?), &self.0);
            Ok((T::to_cpu_storage_owned(y), self.0.y()))
        })
    }

    on_gpu!(self, x, w => Ok((cuda::forward(&x, &w, &self.0, self.1)?, self.0.y())));

    fn bwd(
        &self,
        x: &Tensor,
        w: &Tensor,
        _y: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let grad = grad.contiguous()?;
        let grad_x = x
            .track_op()
            .then(|| grad.apply_op2_no_bwd(w, &GradX(self.0, self.1)))
            .transpose()?;
        let grad_w = w
            .track_op()
            .then(|| grad.apply_op2_no_bwd(x, &GradW(self.0, self.1)))
            .transpose()?;
        Ok((grad_x, grad_w))
    }
}

struct GradX(Shape, Precision);

impl CustomOp2 for GradX {
    fn name(&self) -> &'static str {
        "pointwise_conv2d_grad_x"
    }

    #[cfg(not(shim))]
    fn cpu_fwd(
        &self,
        grad: &CpuStorage,
        grad_layout: &Layout,
        w: &CpuStorage,
        w_layout: &Layout,
    ) -> Result<(CpuStorage, candle_core::Shape)> {
        with_element!(self.name(), grad, T => {
            let grad_x = cpu::grad_x::<T>(&self.1.factor(elements(grad, grad_layout)?), &self.1.factor(elements(w, w_layout)?), &self.0);
            Ok((T::to_cpu_storage_owned(grad_x), self.0.x()))
        })
    }

    on_gpu!(self, grad, w => Ok((cuda::grad_x(&grad, &w, &self.0, self.1)?, self.0.x())));
}

struct GradW(Shape, Precision);

impl CustomOp2 for GradW {
    fn name(&self) -> &'static str {
        "pointwise_conv2d_grad_w"
    }

    #[cfg(not(shim))]
    fn cpu_fwd(
        &self,
        grad: &CpuStorage,
        grad_layout: &Layout,
        x: &CpuStorage,
        x_layout: &Layout,
    ) -> Result<(CpuStorage, candle_core::Shape)> {
        with_element!(self.name(), grad, T => {
            let grad_w = cpu::grad_w::<T>(&self.1.factor(elements(grad, grad_layout)?), &self.1.factor(elements(x, x_layout)?), &self.0);
            Ok((T::to_cpu_storage_owned(grad_w), self.0.w()))
        })
    }

    on_gpu!(self, grad, x => Ok((cuda::grad_w(&grad, &x, &self.0, self.1)?, self.0.w())));
}
