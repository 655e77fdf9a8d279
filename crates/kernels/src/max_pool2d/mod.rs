//! Max pooling: the largest value under each window. Padding never wins.
//!
//! The gradient goes to the first maximum of a window in row-major order, as in PyTorch. A window with a NaN
//! gives NaN, and its gradient goes to the last NaN.

use candle_core::{CpuStorage, CustomOp1, CustomOp2, Layout, Result, Tensor, WithDType};

use crate::element::{elements, with_element};
use crate::error::{check, dims4};
use crate::gpu::on_gpu;
use crate::{Pool2dGeometry, Window};

mod cpu;
#[cfg(any(feature = "cuda", shim))]
mod cuda;
pub mod naive;

const OP: &str = "max_pool2d";

/// Max pooling.
///
/// # Shapes
/// `x`: `n c h w`; result: `n c h' w'` with `h' = geometry.out_size(h)`.
///
/// # Errors
/// If `x` has not four axes, the window does not fit, or the padding is more than half of the window.
pub fn max_pool2d(x: &Tensor, geometry: Pool2dGeometry) -> Result<Tensor> {
    let [n, c, h, w] = dims4(OP, "x", "n c h w", x)?;
    let window = geometry.window(OP, [h, w])?;
    x.contiguous()?.apply_op1(MaxPool2d(Shape { n, c, window }))
}

/// The gradient of `x` from that of the result, for who is not recorded for `backward`.
///
/// # Errors
/// As [`max_pool2d`], or if the shapes do not agree.
pub fn gradient(x: &Tensor, grad: &Tensor, geometry: Pool2dGeometry) -> Result<Tensor> {
    let [n, c, h, w] = dims4(OP, "x", "n c h w", x)?;
    let window = geometry.window(OP, [h, w])?;
    let [out_h, out_w] = window.output();
    check(OP, "grad", grad, &[n, c, out_h, out_w], x)?;
    let shape = Shape { n, c, window };
    grad.contiguous()?
        .apply_op2_no_bwd(&x.contiguous()?, &GradX(shape))
}

/// Sizes of a pooling.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// Images.
    pub n: usize,
    /// Channels.
    pub c: usize,
    /// The windows on a plane.
    pub window: Window,
}

impl Shape {
    /// Number of planes.
    pub fn n_planes(&self) -> usize {
        self.n * self.c
    }

    pub(crate) fn x(&self) -> candle_core::Shape {
        let [h, w] = self.window.input;
        (self.n, self.c, h, w).into()
    }

    pub(crate) fn y(&self) -> candle_core::Shape {
        let [h, w] = self.window.output();
        (self.n, self.c, h, w).into()
    }
}

struct MaxPool2d(Shape);

impl CustomOp1 for MaxPool2d {
    fn name(&self) -> &'static str {
        OP
    }

    #[cfg(not(shim))]
    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, candle_core::Shape)> {
        with_element!(self.name(), x, T => {
            let y = cpu::forward::<T>(elements(x, layout)?, &self.0);
            Ok((T::to_cpu_storage_owned(y), self.0.y()))
        })
    }

    on_gpu!(self, x => Ok((cuda::forward(&x, &self.0)?, self.0.y())));

    fn bwd(&self, x: &Tensor, _y: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        grad.contiguous()?
            .apply_op2_no_bwd(x, &GradX(self.0))
            .map(Some)
    }
}

struct GradX(Shape);

impl CustomOp2 for GradX {
    fn name(&self) -> &'static str {
        "max_pool2d_grad_x"
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
            let grad_x = cpu::grad_x::<T>(elements(grad, grad_layout)?, elements(x, x_layout)?, &self.0);
            Ok((T::to_cpu_storage_owned(grad_x), self.0.x()))
        })
    }

    on_gpu!(self, grad, x => Ok((cuda::grad_x(&grad, &x, &self.0)?, self.0.x())));
}
