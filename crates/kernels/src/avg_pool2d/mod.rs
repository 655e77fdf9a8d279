//! Average pooling: the mean under each window. Padding is left out of the mean: a window at the border
//! divides by the number of input pixels under it.

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Tensor, WithDType};

use crate::Pool2dGeometry;
use crate::element::{elements, with_element};
use crate::error::{check, dims4};
use crate::gpu::on_gpu;
pub use crate::max_pool2d::Shape;

mod cpu;
#[cfg(any(feature = "cuda", shim))]
mod cuda;
pub mod naive;

const OP: &str = "avg_pool2d";

/// Average pooling.
///
/// # Shapes
/// `x`: `n c h w`; result: `n c h' w'` with `h' = geometry.out_size(h)`.
///
/// # Errors
/// If `x` has not four axes, the window does not fit, or the padding is more than half of the window.
pub fn avg_pool2d(x: &Tensor, geometry: Pool2dGeometry) -> Result<Tensor> {
    let [n, c, h, w] = dims4(OP, "x", "n c h w", x)?;
    let window = geometry.window(OP, [h, w])?;
    x.contiguous()?.apply_op1(AvgPool2d(Shape { n, c, window }))
}

/// The gradient of `x` from that of the result, for who is not recorded for `backward`.
///
/// # Errors
/// As [`avg_pool2d`], or if the shapes do not agree.
pub fn gradient(x: &Tensor, grad: &Tensor, geometry: Pool2dGeometry) -> Result<Tensor> {
    let [n, c, h, w] = dims4(OP, "x", "n c h w", x)?;
    let window = geometry.window(OP, [h, w])?;
    let [out_h, out_w] = window.output();
    check(OP, "grad", grad, &[n, c, out_h, out_w], x)?;
    let shape = Shape { n, c, window };
    grad.contiguous()?.apply_op1_no_bwd(&GradX(shape))
}

struct AvgPool2d(Shape);

impl CustomOp1 for AvgPool2d {
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

    fn bwd(&self, _x: &Tensor, _y: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        grad.contiguous()?
            .apply_op1_no_bwd(&GradX(self.0))
            .map(Some)
    }
}

struct GradX(Shape);

impl CustomOp1 for GradX {
    fn name(&self) -> &'static str {
        "avg_pool2d_grad_x"
    }

    #[cfg(not(shim))]
    fn cpu_fwd(
        &self,
        grad: &CpuStorage,
        layout: &Layout,
    ) -> Result<(CpuStorage, candle_core::Shape)> {
        with_element!(self.name(), grad, T => {
            let grad_x = cpu::grad_x::<T>(elements(grad, layout)?, &self.0);
            Ok((T::to_cpu_storage_owned(grad_x), self.0.x()))
        })
    }

    on_gpu!(self, grad => Ok((cuda::grad_x(&grad, &self.0)?, self.0.x())));
}
