//! `y = weight * x` for a single number `weight` that may carry a gradient, such as the share of a primitive.

use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor, WithDType};

use crate::Error;
use crate::element::{elements, with_element};
use crate::error::check;
use crate::gpu::on_gpu;

mod cpu;
#[cfg(any(feature = "cuda", shim))]
mod cuda;
pub mod naive;

const OP: &str = "scale";

/// `weight * x`.
///
/// # Shapes
/// `x`: any; `weight`: `[]` or `[1]`; result: that of `x`.
///
/// # Errors
/// If `weight` is not a single number of the type of `x`.
pub fn scale(x: &Tensor, weight: &Tensor) -> Result<Tensor> {
    check_weight(OP, weight, x)?;
    x.contiguous()?.apply_op2(weight, Scale)
}

/// An error unless `weight` is one number of the type of `x`.
pub(crate) fn check_weight(op: &'static str, weight: &Tensor, x: &Tensor) -> Result<()> {
    if !matches!(weight.dims(), [] | [1]) {
        return Err(Error::Shape {
            op,
            argument: "weight",
            expected: "[] or [1]".to_owned(),
            actual: weight.dims().to_vec(),
        }
        .into());
    }
    Ok(check(op, "weight", weight, weight.dims(), x)?)
}

struct Scale;

impl CustomOp2 for Scale {
    fn name(&self) -> &'static str {
        OP
    }

    #[cfg(not(shim))]
    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        with_element!(self.name(), x, T => {
            let weight = elements::<T>(weight, weight_layout)?[0];
            let y = cpu::forward::<T>(elements(x, x_layout)?, weight);
            Ok((T::to_cpu_storage_owned(y), x_layout.shape().clone()))
        })
    }

    on_gpu!(self, x, weight => Ok((cuda::forward(&x, &weight)?, x.layout.shape().clone())));

    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        _y: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        gradients(x, weight, &grad.contiguous()?)
    }
}

/// The gradients of `x` and `weight` in `weight * x`, where they lead to a variable.
pub(crate) fn gradients(
    x: &Tensor,
    weight: &Tensor,
    grad: &Tensor,
) -> Result<(Option<Tensor>, Option<Tensor>)> {
    let grad_x = x
        .track_op()
        .then(|| grad.apply_op2_no_bwd(weight, &Scale))
        .transpose()?;
    let grad_weight = weight
        .track_op()
        .then(|| grad.apply_op2_no_bwd(x, &Dot)?.reshape(weight.shape()))
        .transpose()?;
    Ok((grad_x, grad_weight))
}

/// The inner product of two tensors of one shape, as a tensor without axes.
struct Dot;

impl CustomOp2 for Dot {
    fn name(&self) -> &'static str {
        "dot"
    }

    #[cfg(not(shim))]
    fn cpu_fwd(
        &self,
        a: &CpuStorage,
        a_layout: &Layout,
        b: &CpuStorage,
        b_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        with_element!(self.name(), a, T => {
            let dot = cpu::dot::<T>(elements(a, a_layout)?, elements(b, b_layout)?);
            Ok((T::to_cpu_storage_owned(vec![dot]), ().into()))
        })
    }

    on_gpu!(self, a, b => Ok((cuda::dot(&a, &b)?, ().into())));
}
