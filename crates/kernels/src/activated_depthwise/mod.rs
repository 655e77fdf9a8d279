//! ReLU and depthwise convolution in one, for several convolutions of one input at once; what is read can be normalised
//! on the way.
//!
//! `y[e c n r s] = sum_uv w[e c u v] * relu(z)[c n (r * stride + u * dilation - padding) (s * stride + …)]`, where
//! pixels outside count as 0, and `z` is `x`, or `factor * (x - mean) + bias` with a table of
//! [`channel_norm`](crate::channel_norm).
//!
//! Layout `c n h w`: `x` is `c n h w`, one input of all groups, or `(e c) n h w`, one for each.
//!
//! Nothing here is recorded for `backward`.

use candle_core::{DType, Result, Shape as Dims, Tensor};

use crate::error::{check, dims4};
use crate::gpu::{OnHeld, read};
use crate::{Conv2dGeometry, Window};

#[cfg(any(feature = "cuda", shim))]
mod cuda;

const OP: &str = "activated_depthwise";

/// The convolutions of some groups: what they read and their kernels.
#[derive(Debug, Clone)]
pub struct ActivatedDepthwise {
    x: Tensor,
    norm: Option<Tensor>,
    w: Tensor,
    /// Groups, channels of a group, images.
    n_groups: usize,
    c: usize,
    n: usize,
    window: Window,
    is_shared: bool,
}

impl ActivatedDepthwise {
    /// Convolutions of `x`, one input of all groups or one for each.
    ///
    /// # Shapes
    /// `x`: `c n h w` or `(e c) n h w`; `norm`: as many rows as `x` has channels; `w`: `e c u v`; all contiguous.
    ///
    /// # Errors
    /// If the shapes do not agree or the kernel does not fit the padded input.
    pub fn new(
        x: &Tensor,
        norm: Option<&Tensor>,
        w: &Tensor,
        geometry: Conv2dGeometry,
    ) -> Result<Self> {
        let [channels, n, height, width] = dims4(OP, "x", "c n h w", x)?;
        let [n_groups, c, u, v] = dims4(OP, "w", "e c u v", w)?;
        let is_shared = channels == c;
        if !is_shared {
            check(OP, "x", x, &[n_groups * c, n, height, width], w)?;
        }
        check(OP, "w", w, &[n_groups, c, u, v], x)?;
        if let Some(norm) = norm {
            crate::channel_norm::check_table(OP, norm, channels)?;
        }
        let window = Window::new(OP, [height, width], [u, v], geometry)?;
        Ok(Self {
            x: x.clone(),
            norm: norm.cloned(),
            w: w.clone(),
            n_groups,
            c,
            n,
            window,
            is_shared,
        })
    }

    /// The result, `(e c) n h' w'`.
    ///
    /// # Errors
    /// If the device fails.
    pub fn forward(&self) -> Result<Tensor> {
        Forward(self).run(&self.x)
    }

    /// The gradient of `z`, of the shape of `x`, from that of the result; where all groups read one input, the sum of
    /// theirs.
    ///
    /// # Errors
    /// If the shapes do not agree.
    pub fn grad_z(&self, grad: &Tensor) -> Result<Tensor> {
        self.check_grad(grad)?;
        GradZ(self, grad).run(&self.x)
    }

    /// The gradient of the kernels, `e c u v`, from that of the result.
    ///
    /// # Errors
    /// If the shapes do not agree.
    pub fn grad_w(&self, grad: &Tensor) -> Result<Tensor> {
        self.check_grad(grad)?;
        GradW(self, grad).run(&self.x)
    }

    fn check_grad(&self, grad: &Tensor) -> Result<()> {
        let [h, w] = self.window.output();
        Ok(check(
            OP,
            "grad",
            grad,
            &[self.n_groups * self.c, self.n, h, w],
            &self.x,
        )?)
    }

    /// The channels of `x`.
    #[cfg(any(feature = "cuda", shim))]
    fn n_inputs(&self) -> usize {
        if self.is_shared {
            self.c
        } else {
            self.n_groups * self.c
        }
    }

    /// `z`, as plain numbers.
    fn z(&self) -> Result<Vec<f64>> {
        let mut z = read(&self.x)?;
        if let Some(norm) = &self.norm {
            let table = read(norm)?;
            let len = self.n * self.window.input_len();
            for (z, &[mean, _, factor, bias]) in z.chunks_mut(len).zip(table.as_chunks::<4>().0) {
                z.iter_mut().for_each(|z| *z = factor * (*z - mean) + bias);
            }
        }
        Ok(z)
    }

    /// Calls `visit(number of the result, number of `w`, number of `x`)` for every tap in the input.
    fn for_each_tap(&self, mut visit: impl FnMut(usize, usize, usize)) {
        let window = self.window;
        for (channel, image) in
            (0..self.n_groups * self.c).flat_map(|c| (0..self.n).map(move |n| (c, n)))
        {
            let source = if self.is_shared {
                channel % self.c
            } else {
                channel
            };
            let y_at = (channel * self.n + image) * window.output_len();
            let x_at = (source * self.n + image) * window.input_len();
            let w_at = channel * window.kernel_len();
            window.for_each_tap(|out, tap, input| visit(y_at + out, w_at + tap, x_at + input));
        }
    }
}

struct Forward<'a>(&'a ActivatedDepthwise);

impl OnHeld for Forward<'_> {
    const OP: &'static str = OP;

    fn result(&self) -> (Dims, DType) {
        let [h, w] = self.0.window.output();
        (
            (self.0.n_groups * self.0.c, self.0.n, h, w).into(),
            self.0.x.dtype(),
        )
    }

    #[cfg(any(feature = "cuda", shim))]
    fn launch<S: crate::gpu::Gpu>(&self, on: &S) -> Result<S> {
        cuda::forward(self.0, on)
    }

    fn oracle(&self) -> Result<Vec<f64>> {
        let (z, w) = (self.0.z()?, read(&self.0.w)?);
        let mut y = vec![0.0; self.result().0.elem_count()];
        self.0
            .for_each_tap(|y_at, w_at, x_at| y[y_at] += w[w_at] * z[x_at].max(0.0));
        Ok(y)
    }
}

struct GradZ<'a>(&'a ActivatedDepthwise, &'a Tensor);

impl OnHeld for GradZ<'_> {
    const OP: &'static str = "activated_depthwise_grad_z";

    fn result(&self) -> (Dims, DType) {
        (self.0.x.shape().clone(), self.0.x.dtype())
    }

    #[cfg(any(feature = "cuda", shim))]
    fn launch<S: crate::gpu::Gpu>(&self, on: &S) -> Result<S> {
        cuda::grad_z(self.0, self.1, on)
    }

    fn oracle(&self) -> Result<Vec<f64>> {
        let (z, w, grad) = (self.0.z()?, read(&self.0.w)?, read(self.1)?);
        let mut grad_z = vec![0.0; z.len()];
        self.0.for_each_tap(|y_at, w_at, x_at| {
            if z[x_at] > 0.0 {
                grad_z[x_at] += w[w_at] * grad[y_at];
            }
        });
        Ok(grad_z)
    }
}

struct GradW<'a>(&'a ActivatedDepthwise, &'a Tensor);

impl OnHeld for GradW<'_> {
    const OP: &'static str = "activated_depthwise_grad_w";

    fn result(&self) -> (Dims, DType) {
        (self.0.w.shape().clone(), self.0.w.dtype())
    }

    #[cfg(any(feature = "cuda", shim))]
    fn launch<S: crate::gpu::Gpu>(&self, on: &S) -> Result<S> {
        cuda::grad_w(self.0, self.1, on)
    }

    fn oracle(&self) -> Result<Vec<f64>> {
        let (z, grad) = (self.0.z()?, read(self.1)?);
        let mut grad_w = vec![0.0; self.0.w.elem_count()];
        self.0
            .for_each_tap(|y_at, w_at, x_at| grad_w[w_at] += grad[y_at] * z[x_at].max(0.0));
        Ok(grad_w)
    }
}
