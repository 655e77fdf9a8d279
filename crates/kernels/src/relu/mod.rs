//! `y = max(x, 0)`, with gradient 0 at 0 as in PyTorch. A NaN stays NaN and lets its gradient through.

use candle_core::{CpuStorage, CustomOp1, CustomOp2, Layout, Result, Shape, Tensor, WithDType};

use crate::element::{elements, with_element};
use crate::gpu::on_gpu;

mod cpu;
#[cfg(any(feature = "cuda", shim))]
mod cuda;
pub mod naive;

/// `max(x, 0)` for `x` of any shape.
pub fn relu(x: &Tensor) -> Result<Tensor> {
    x.contiguous()?.apply_op1(Relu)
}

struct Relu;

impl CustomOp1 for Relu {
    fn name(&self) -> &'static str {
        "relu"
    }

    #[cfg(not(shim))]
    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        with_element!(self.name(), x, T => {
            let y = cpu::forward::<T>(elements(x, layout)?);
            Ok((T::to_cpu_storage_owned(y), layout.shape().clone()))
        })
    }

    on_gpu!(self, x => Ok((cuda::forward(&x)?, x.layout.shape().clone())));

    fn bwd(&self, _x: &Tensor, y: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        grad.contiguous()?.apply_op2_no_bwd(y, &ReluGradX).map(Some)
    }
}

struct ReluGradX;

impl CustomOp2 for ReluGradX {
    fn name(&self) -> &'static str {
        "relu_grad_x"
    }

    #[cfg(not(shim))]
    fn cpu_fwd(
        &self,
        grad: &CpuStorage,
        grad_layout: &Layout,
        y: &CpuStorage,
        y_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        with_element!(self.name(), grad, T => {
            let grad_x = cpu::grad_x::<T>(elements(grad, grad_layout)?, elements(y, y_layout)?);
            Ok((T::to_cpu_storage_owned(grad_x), y_layout.shape().clone()))
        })
    }

    on_gpu!(self, grad, y => Ok((cuda::grad_x(&grad, &y)?, y.layout.shape().clone())));
}
