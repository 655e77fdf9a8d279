//! Dense convolution: every output channel reads every input channel.
//!
//! `y[n o r s] = sum_iuv w[o i u v] * x[n i (r * stride + u * dilation - padding) (s * stride + v * dilation - padding)]`,
//! where pixels outside `x` count as 0. It serves the stems and the auxiliary head.

use candle_core::{CpuStorage, CustomOp2, Layout, Result, Tensor, WithDType};

use crate::element::{elements, with_element};
use crate::error::{check, dims4};
use crate::gpu::on_gpu;
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
    x.contiguous()?
        .apply_op2(&w.contiguous()?, Conv2d(Shape { n, i, o, window }))
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

impl Shape {
    fn x(&self) -> candle_core::Shape {
        let [h, w] = self.window.input;
        (self.n, self.i, h, w).into()
    }

    fn y(&self) -> candle_core::Shape {
        let [h, w] = self.window.output();
        (self.n, self.o, h, w).into()
    }

    fn w(&self) -> candle_core::Shape {
        let [u, v] = self.window.kernel;
        (self.o, self.i, u, v).into()
    }
}

struct Conv2d(Shape);

impl CustomOp2 for Conv2d {
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
            let y = cpu::forward::<T>(elements(x, x_layout)?, elements(w, w_layout)?, &self.0);
            Ok((T::to_cpu_storage_owned(y), self.0.y()))
        })
    }

    on_gpu!(self, x, w => Ok((cuda::forward(&x, &w, &self.0)?, self.0.y())));

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
            .then(|| grad.apply_op2_no_bwd(w, &GradX(self.0)))
            .transpose()?;
        let grad_w = w
            .track_op()
            .then(|| grad.apply_op2_no_bwd(x, &GradW(self.0)))
            .transpose()?;
        Ok((grad_x, grad_w))
    }
}

struct GradX(Shape);

impl CustomOp2 for GradX {
    fn name(&self) -> &'static str {
        "conv2d_grad_x"
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
            let grad_x = cpu::grad_x::<T>(elements(grad, grad_layout)?, elements(w, w_layout)?, &self.0);
            Ok((T::to_cpu_storage_owned(grad_x), self.0.x()))
        })
    }

    on_gpu!(self, grad, w => Ok((cuda::grad_x(&grad, &w, &self.0)?, self.0.x())));
}

struct GradW(Shape);

impl CustomOp2 for GradW {
    fn name(&self) -> &'static str {
        "conv2d_grad_w"
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
            let grad_w = cpu::grad_w::<T>(elements(grad, grad_layout)?, elements(x, x_layout)?, &self.0);
            Ok((T::to_cpu_storage_owned(grad_w), self.0.w()))
        })
    }

    on_gpu!(self, grad, x => Ok((cuda::grad_w(&grad, &x, &self.0)?, self.0.w())));
}
