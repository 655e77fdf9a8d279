//! Pointwise convolutions in the layout `c n h w`, for several groups at once: `y[e o m] = sum_i w[e o i] * x[e i m]`
//! over all pixels `m` of a batch, one matrix product per group. Nothing here is recorded for `backward`.

use candle_core::{DType, Result, Shape, Tensor};

use super::OP;
use crate::Precision;
use crate::error::{check, dims4};
use crate::gpu::{OnHeld, read};

/// The convolutions of some groups: what they read and their kernels.
#[derive(Debug, Clone)]
pub struct GroupedPointwise {
    x: Tensor,
    w: Tensor,
    precision: Precision,
    /// Groups, input and output channels of a group.
    sizes: [usize; 3],
    /// Images and plane.
    batch: [usize; 3],
}

impl GroupedPointwise {
    /// Convolutions of `x`.
    ///
    /// # Shapes
    /// `x`: `(e i) n h w`; `w`: `e o i`; both contiguous.
    ///
    /// # Errors
    /// If the shapes do not agree, or as [`pointwise_conv2d_in`](crate::pointwise_conv2d_in) for the precision.
    pub fn new(x: &Tensor, w: &Tensor, precision: Precision) -> Result<Self> {
        super::check_precision(x, precision)?;
        let [_, n, height, width] = dims4(OP, "x", "(e i) n h w", x)?;
        let (e, o, i) = w.dims3()?;
        check(OP, "x", x, &[e * i, n, height, width], w)?;
        Ok(Self {
            x: x.clone(),
            w: w.clone(),
            precision,
            sizes: [e, i, o],
            batch: [n, height, width],
        })
    }

    /// The result, `(e o) n h w`.
    ///
    /// # Errors
    /// If the device fails.
    pub fn forward(&self) -> Result<Tensor> {
        let [e, i, o] = self.sizes;
        let shape = [e, o, self.len(), i];
        Product {
            left: [&self.w, &self.x],
            transposed: [false, false],
            shape,
            of: self,
        }
        .run(&self.x)?
        .reshape(&self.shape(o)[..])
    }

    /// The gradient of `x` from that of the result.
    ///
    /// # Errors
    /// If the shapes do not agree.
    pub fn grad_x(&self, grad: &Tensor) -> Result<Tensor> {
        let [e, i, o] = self.sizes;
        check(OP, "grad", grad, &self.shape(o), &self.x)?;
        let shape = [e, i, self.len(), o];
        Product {
            left: [&self.w, grad],
            transposed: [true, false],
            shape,
            of: self,
        }
        .run(grad)?
        .reshape(&self.shape(i)[..])
    }

    /// The gradients of the kernels of every group, `o i` each, from that of the result.
    ///
    /// # Errors
    /// If the shapes do not agree.
    pub fn grad_w(&self, grad: &Tensor) -> Result<Vec<Tensor>> {
        let [e, i, o] = self.sizes;
        check(OP, "grad", grad, &self.shape(o), &self.x)?;
        let of = |group: usize| {
            let (grad, x) = (
                grad.narrow(0, group * o, o)?,
                self.x.narrow(0, group * i, i)?,
            );
            GradW {
                grad: &grad,
                x: &x,
                of: self,
            }
            .run(&grad)
        };
        (0..e).map(of).collect()
    }

    fn len(&self) -> usize {
        self.batch.iter().product()
    }

    fn shape(&self, c: usize) -> [usize; 4] {
        let [n, h, w] = self.batch;
        [self.sizes[0] * c, n, h, w]
    }
}

/// `left[z] right[z]`, rows x inner times inner x columns, for every group `z`.
struct Product<'a> {
    left: [&'a Tensor; 2],
    transposed: [bool; 2],
    /// Groups, rows, columns, inner.
    shape: [usize; 4],
    of: &'a GroupedPointwise,
}

impl OnHeld for Product<'_> {
    const OP: &'static str = OP;

    fn result(&self) -> (Shape, DType) {
        let [e, rows, columns, _] = self.shape;
        ((e, rows, columns).into(), self.of.x.dtype())
    }

    #[cfg(any(feature = "cuda", shim))]
    fn launch<S: crate::gpu::Gpu>(&self, _: &S) -> Result<S> {
        let [e, rows, columns, inner] = self.shape;
        let [left, right] = self.left;
        super::cuda::product_of(
            [left, right],
            self.transposed,
            e,
            [rows, columns, inner],
            self.of.precision,
        )
    }

    fn oracle(&self) -> Result<Vec<f64>> {
        let [e, rows, columns, inner] = self.shape;
        let [left, right] = [read(self.left[0])?, read(self.left[1])?];
        let [left, right] = [&left, &right].map(|values| self.of.precision.factor(values));
        let mut y = vec![0.0; e * rows * columns];
        for (z, row, i) in
            (0..e).flat_map(|z| (0..rows).flat_map(move |r| (0..inner).map(move |i| (z, r, i))))
        {
            let at = if self.transposed[0] {
                i * rows + row
            } else {
                row * inner + i
            };
            let factor = left[z * rows * inner + at];
            let y = y[(z * rows + row) * columns..][..columns].iter_mut();
            y.zip(&right[(z * inner + i) * columns..])
                .for_each(|(y, x)| *y += factor * x);
        }
        Ok(y)
    }
}

/// `sum_m grad[o m] x[i m]` of one group.
struct GradW<'a> {
    grad: &'a Tensor,
    x: &'a Tensor,
    of: &'a GroupedPointwise,
}

impl OnHeld for GradW<'_> {
    const OP: &'static str = "pointwise_conv2d_grad_w";

    fn result(&self) -> (Shape, DType) {
        let [_, i, o] = self.of.sizes;
        ((o, i).into(), self.x.dtype())
    }

    #[cfg(any(feature = "cuda", shim))]
    fn launch<S: crate::gpu::Gpu>(&self, _: &S) -> Result<S> {
        let [_, i, o] = self.of.sizes;
        super::cuda::inner_products(self.grad, self.x, [o, i], self.of.batch, self.of.precision)
    }

    fn oracle(&self) -> Result<Vec<f64>> {
        let [_, i, o] = self.of.sizes;
        let (grad, x, len) = (read(self.grad)?, read(self.x)?, self.of.len());
        let [grad, x] = [&grad, &x].map(|values| self.of.precision.factor(values));
        let of = |(o, i): (usize, usize)| {
            let rows = grad[o * len..][..len].iter().zip(&x[i * len..][..len]);
            rows.map(|(grad, x)| grad * x).sum::<f64>()
        };
        Ok((0..o)
            .flat_map(|o| (0..i).map(move |i| (o, i)))
            .map(of)
            .collect())
    }
}
