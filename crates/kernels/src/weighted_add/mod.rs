//! `y = acc + weight * x` in one pass, for a single number `weight` that may carry a gradient: what a mixed
//! operation adds up.

use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor, WithDType};

use crate::element::{elements, with_element};
use crate::error::check;
use crate::gpu::on_gpu;
use crate::scale::{check_weight, gradients};

mod cpu;
#[cfg(any(feature = "cuda", shim))]
mod cuda;
pub mod naive;

const OP: &str = "weighted_add";

/// `acc + weight * x`.
///
/// # Shapes
/// `acc`, `x` and the result: any, but the same; `weight`: `[]` or `[1]`.
///
/// # Errors
/// If `acc` and `x` differ in shape, or `weight` is not a single number of their type.
pub fn weighted_add(acc: &Tensor, x: &Tensor, weight: &Tensor) -> Result<Tensor> {
    check(OP, "x", x, acc.dims(), acc)?;
    check_weight(OP, weight, acc)?;
    acc.contiguous()?
        .apply_op3(&x.contiguous()?, weight, WeightedAdd)
}

struct WeightedAdd;

impl CustomOp3 for WeightedAdd {
    fn name(&self) -> &'static str {
        OP
    }

    #[cfg(not(shim))]
    fn cpu_fwd(
        &self,
        acc: &CpuStorage,
        acc_layout: &Layout,
        x: &CpuStorage,
        x_layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        with_element!(self.name(), acc, T => {
            let weight = elements::<T>(weight, weight_layout)?[0];
            let y = cpu::forward::<T>(elements(acc, acc_layout)?, elements(x, x_layout)?, weight);
            Ok((T::to_cpu_storage_owned(y), acc_layout.shape().clone()))
        })
    }

    on_gpu!(self, acc, x, weight => Ok((cuda::forward(&acc, &x, &weight)?, acc.layout.shape().clone())));

    fn bwd(
        &self,
        acc: &Tensor,
        x: &Tensor,
        weight: &Tensor,
        _y: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let grad = grad.contiguous()?;
        let (grad_x, grad_weight) = gradients(x, weight, &grad)?;
        Ok((acc.track_op().then_some(grad), grad_x, grad_weight))
    }
}
