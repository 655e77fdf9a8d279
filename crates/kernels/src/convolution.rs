//! Convolutions as operations of candle's. Their result is linear in both arguments, so the gradient of each is made of that
//! of the result and of the other argument.

use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor, WithDType};

use crate::Element;
use crate::element::{elements, with_element};
use crate::gpu::on_gpu;
#[cfg(any(feature = "cuda", shim))]
use crate::gpu::{Gpu, In};

/// A convolution of images `x` with kernels `w`, of fixed sizes. Arguments are contiguous.
pub(crate) trait Convolution: Copy + Send + Sync + 'static {
    /// The names of the operation and of those that give the gradients of `x` and of `w`.
    const NAMES: [&'static str; 3];

    /// The shapes of the result, of `x` and of `w`.
    fn shapes(&self) -> [Shape; 3];

    /// The result.
    #[cfg(not(shim))]
    fn forward<T: Element>(&self, x: &[T], w: &[T]) -> Vec<T>;

    /// The gradient of `x`.
    #[cfg(not(shim))]
    fn grad_x<T: Element>(&self, grad: &[T], w: &[T]) -> Vec<T>;

    /// The gradient of `w`.
    #[cfg(not(shim))]
    fn grad_w<T: Element>(&self, grad: &[T], x: &[T]) -> Vec<T>;

    /// The result, on a GPU.
    #[cfg(any(feature = "cuda", shim))]
    fn launch_forward<S: Gpu>(&self, x: &In<'_, S>, w: &In<'_, S>) -> Result<S>;

    /// The gradient of `x`, on a GPU.
    #[cfg(any(feature = "cuda", shim))]
    fn launch_grad_x<S: Gpu>(&self, grad: &In<'_, S>, w: &In<'_, S>) -> Result<S>;

    /// The gradient of `w`, on a GPU.
    #[cfg(any(feature = "cuda", shim))]
    fn launch_grad_w<S: Gpu>(&self, grad: &In<'_, S>, x: &In<'_, S>) -> Result<S>;

    /// The operation on tensors of these shapes.
    fn apply(self, x: &Tensor, w: &Tensor) -> Result<Tensor> {
        x.contiguous()?
            .apply_op2(&w.contiguous()?, Operation(self, Makes::Result))
    }
}

/// What of a convolution is made, from two of the three: result, `x` and `w`.
#[derive(Clone, Copy)]
enum Makes {
    Result,
    GradX,
    GradW,
}

struct Operation<C>(C, Makes);

impl<C: Convolution> Operation<C> {
    fn shape(&self) -> Shape {
        let [y, x, w] = self.0.shapes();
        match self.1 {
            Makes::Result => y,
            Makes::GradX => x,
            Makes::GradW => w,
        }
    }
}

impl<C: Convolution> CustomOp2 for Operation<C> {
    fn name(&self) -> &'static str {
        let [own, grad_x, grad_w] = C::NAMES;
        match self.1 {
            Makes::Result => own,
            Makes::GradX => grad_x,
            Makes::GradW => grad_w,
        }
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
            let (a, b) = (elements::<T>(a, a_layout)?, elements::<T>(b, b_layout)?);
            let made = match self.1 {
                Makes::Result => self.0.forward(a, b),
                Makes::GradX => self.0.grad_x(a, b),
                Makes::GradW => self.0.grad_w(a, b),
            };
            Ok((T::to_cpu_storage_owned(made), self.shape()))
        })
    }

    on_gpu!(self, a, b => {
        let made = match self.1 {
            Makes::Result => self.0.launch_forward(&a, &b)?,
            Makes::GradX => self.0.launch_grad_x(&a, &b)?,
            Makes::GradW => self.0.launch_grad_w(&a, &b)?,
        };
        Ok((made, self.shape()))
    });

    fn bwd(
        &self,
        x: &Tensor,
        w: &Tensor,
        _y: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let grad = grad.contiguous()?;
        let grad_of = |argument: &Tensor, other: &Tensor, makes| {
            let wanted = argument.track_op();
            let apply = || grad.apply_op2_no_bwd(other, &Self(self.0, makes));
            wanted.then(apply).transpose()
        };
        Ok((grad_of(x, w, Makes::GradX)?, grad_of(w, x, Makes::GradW)?))
    }
}
