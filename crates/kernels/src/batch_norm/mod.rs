//! Batch normalisation: every channel is brought to mean 0 and variance 1, then scaled and shifted.
//!
//! `y = (x - mean[c]) / sqrt(var[c] + eps) * weight[c] + bias[c]`; without affine parameters weight is 1 and
//! bias is 0. In training, mean and (biased) variance are those of the batch, and the gradient goes through
//! them; in evaluation they are given and constant. Statistics and the sums of the gradient are `f64`.

use candle_core::{
    CpuStorage, CustomOp1, CustomOp2, CustomOp3, DType, Layout, Result, Tensor, WithDType,
};

use collective::Share;

use crate::Error;
use crate::element::{elements, with_element};
use crate::error::{check, dims4};
use crate::gpu::on_gpu;

mod cpu;
#[cfg(any(feature = "cuda", shim))]
mod cuda;
pub mod naive;

/// Mean and variance of every channel over a batch. The variance is the biased one, which normalises;
/// running statistics take the unbiased one, `var * count / (count - 1)`.
#[derive(Debug, Clone, PartialEq)]
pub struct BatchStatistics {
    /// Mean of every channel.
    pub mean: Vec<f64>,
    /// Biased variance of every channel.
    pub var: Vec<f64>,
    /// Number of values per channel: images times pixels.
    pub count: usize,
}

/// [`BatchStatistics`] that still lie on the device of the batch, so that nobody waited for them.
#[derive(Debug, Clone)]
pub struct DeviceStatistics {
    /// Mean of every channel, `[c]`, `f64`.
    pub mean: Tensor,
    /// Biased variance of every channel, `[c]`, `f64`.
    pub var: Tensor,
    /// Number of values per channel: images times pixels, of all ranks.
    pub count: usize,
}

impl DeviceStatistics {
    /// Reads them back.
    ///
    /// # Errors
    /// If the device fails.
    pub fn read(&self) -> Result<BatchStatistics> {
        Ok(BatchStatistics {
            mean: self.mean.to_vec1()?,
            var: self.var.to_vec1()?,
            count: self.count,
        })
    }
}

/// Batch normalisation with the statistics of the batch, which come back beside the result.
///
/// # Shapes
/// `x` and the result: `n c h w`; `affine`: weight and bias, `[c]` each.
///
/// # Errors
/// If the shapes do not agree or there are no values per channel.
pub fn batch_norm_train(
    x: &Tensor,
    affine: Option<(&Tensor, &Tensor)>,
    eps: f64,
) -> Result<(Tensor, DeviceStatistics)> {
    batch_norm_train_share(x, affine, eps, None)
}

/// [`batch_norm_train`] where `x` is this rank's share of the batch: statistics and gradient are those of the
/// whole batch. The gradients of weight and bias are those of this rank's images, to be summed over the ranks as
/// all gradients are.
///
/// # Errors
/// As there, or if a rank cannot be reached.
pub fn batch_norm_train_share(
    x: &Tensor,
    affine: Option<(&Tensor, &Tensor)>,
    eps: f64,
    share: Option<&Share>,
) -> Result<(Tensor, DeviceStatistics)> {
    const OP: &str = "batch_norm_train";
    let shape = Shape::of(OP, x, affine)?;
    if shape.n * shape.len == 0 {
        return Err(Error::Empty {
            op: OP,
            shape: x.dims().to_vec(),
        }
        .into());
    }
    let x = x.contiguous()?;
    let table = x.apply_op1_no_bwd(&Statistics(shape))?;
    let (table, count) = match share {
        None => (table, shape.n * shape.len),
        Some(share) => (union(&table, share)?, share.n_images() * shape.len),
    };
    let [mean, var] = [0, 1].map(|row| table.get(row));
    let given = Given {
        shape,
        mean: mean?,
        var: var?,
        eps,
        is_train: true,
        count,
        share: share.cloned(),
    };
    let statistics = DeviceStatistics {
        mean: given.mean.clone(),
        var: given.var.clone(),
        count,
    };
    Ok((normalize(&x, affine, given)?, statistics))
}

/// Mean and variance, `2 c`, of the union of all ranks' images from those of each (Chan, Golub, LeVeque 1983).
///
/// # Errors
/// If a rank cannot be reached.
pub fn union(table: &Tensor, share: &Share) -> Result<Tensor> {
    let c = table.dim(1)?;
    let rows = share.rows(&table.flatten_all()?)?;
    let (means, vars) = (rows.narrow(1, 0, c)?, rows.narrow(1, c, c)?);
    let n_images = share.n_images() as f64;
    let parts: Vec<f64> = share
        .counts()
        .iter()
        .map(|&n| n as f64 / n_images)
        .collect();
    let parts = Tensor::from_vec(parts, (share.counts().len(), 1), table.device())?;
    let mean = means.broadcast_mul(&parts)?.sum_keepdim(0)?;
    let spread = means.broadcast_sub(&mean)?.sqr()?;
    let var = (vars + spread)?.broadcast_mul(&parts)?.sum_keepdim(0)?;
    Tensor::cat(&[mean, var], 0)
}

/// Batch normalisation with given statistics, to which no gradient goes.
///
/// # Shapes
/// `x` and the result: `n c h w`; `mean`, `var`, and the weight and bias of `affine`: `[c]` each.
///
/// # Errors
/// If the shapes do not agree.
pub fn batch_norm_eval(
    x: &Tensor,
    mean: &Tensor,
    var: &Tensor,
    affine: Option<(&Tensor, &Tensor)>,
    eps: f64,
) -> Result<Tensor> {
    const OP: &str = "batch_norm_eval";
    let shape = Shape::of(OP, x, affine)?;
    check(OP, "mean", mean, &[shape.c], x)?;
    check(OP, "var", var, &[shape.c], x)?;
    let given = Given {
        shape,
        mean: mean.contiguous()?.detach(),
        var: var.contiguous()?.detach(),
        eps,
        is_train: false,
        count: shape.n * shape.len,
        share: None,
    };
    normalize(&x.contiguous()?, affine, given)
}

/// Sizes of a batch normalisation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// Images.
    pub n: usize,
    /// Channels.
    pub c: usize,
    /// Pixels of a plane.
    pub len: usize,
}

impl Shape {
    fn of(
        op: &'static str,
        x: &Tensor,
        affine: Option<(&Tensor, &Tensor)>,
    ) -> std::result::Result<Self, Error> {
        let [n, c, h, w] = dims4(op, "x", "n c h w", x)?;
        if let Some((weight, bias)) = affine {
            check(op, "weight", weight, &[c], x)?;
            check(op, "bias", bias, &[c], x)?;
        }
        Ok(Self { n, c, len: h * w })
    }
}

/// What normalises one channel.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Channel {
    /// Mean.
    pub mean: f64,
    /// `1 / sqrt(var + eps)`.
    pub inv_std: f64,
    /// Factor after the normalisation.
    pub weight: f64,
    /// Shift after the factor.
    pub bias: f64,
}

impl Channel {
    /// `x` at mean 0 and variance 1.
    pub fn normalized(&self, x: f64) -> f64 {
        (x - self.mean) * self.inv_std
    }
}

/// Sums over the values of one channel.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Sums {
    /// Of the gradient: the gradient of the bias.
    pub grad: f64,
    /// Of the gradient times the normalised `x`: the gradient of the weight.
    pub grad_normalized: f64,
}

/// The statistics that normalise, on the device of `x`.
#[derive(Clone)]
struct Given {
    shape: Shape,
    /// `[c]`: `f64` where it is that of the batch, else of the type of `x`.
    mean: Tensor,
    /// `[c]`, as the mean.
    var: Tensor,
    eps: f64,
    /// Whether they are those of the batch, so that the gradient goes through them.
    is_train: bool,
    /// Values per channel that they are of.
    count: usize,
    /// What of the batch this rank has; `None` = all.
    share: Option<Share>,
}

impl Given {
    /// The channels without affine parameters.
    #[cfg(not(shim))]
    fn channels(&self) -> Result<Vec<Channel>> {
        let [mean, var] = [&self.mean, &self.var].map(|t| t.to_dtype(DType::F64)?.to_vec1::<f64>());
        let channel = |(mean, var): (f64, f64)| Channel {
            mean,
            inv_std: 1.0 / (var + self.eps).sqrt(),
            weight: 1.0,
            bias: 0.0,
        };
        Ok(mean?.into_iter().zip(var?).map(channel).collect())
    }
}

fn normalize(x: &Tensor, affine: Option<(&Tensor, &Tensor)>, given: Given) -> Result<Tensor> {
    let op = BatchNorm(given);
    match affine {
        Some((weight, bias)) => x.apply_op3(&weight.contiguous()?, &bias.contiguous()?, op),
        None => x.apply_op1(op),
    }
}

/// Mean and variance of every channel, as a table `2 c` of `f64`.
struct Statistics(Shape);

impl CustomOp1 for Statistics {
    fn name(&self) -> &'static str {
        "batch_norm_statistics"
    }

    #[cfg(not(shim))]
    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, candle_core::Shape)> {
        with_element!(self.name(), x, T => {
            let BatchStatistics { mut mean, var, .. } = cpu::statistics::<T>(elements(x, layout)?, &self.0);
            mean.extend(var);
            Ok((CpuStorage::F64(mean), (2, self.0.c).into()))
        })
    }

    on_gpu!(self, x => Ok((cuda::statistics(&x, &self.0)?, (2, self.0.c).into())));
}

/// The normalisation itself, with affine parameters as its second and third argument or without.
struct BatchNorm(Given);

impl BatchNorm {
    /// The gradient of `x`, and the table `c 2` of [`Sums`] that holds the gradients of bias and weight.
    fn gradients(
        &self,
        x: &Tensor,
        weight: Option<&Tensor>,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Tensor)> {
        let grad = grad.contiguous()?;
        let sums = grad.apply_op2_no_bwd(x, &GradSums(self.0.clone()))?;
        let op = GradX {
            given: self.0.clone(),
            weight: weight.map(Tensor::detach),
        };
        let grad_x = || match &self.0.share {
            None => grad.apply_op3_no_bwd(x, &sums, &op),
            Some(share) => grad.apply_op3_no_bwd(x, &share.collective().sum(&sums)?, &op),
        };
        let grad_x = x.track_op().then(grad_x).transpose()?;
        Ok((grad_x, sums))
    }
}

impl CustomOp1 for BatchNorm {
    fn name(&self) -> &'static str {
        "batch_norm"
    }

    #[cfg(not(shim))]
    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, candle_core::Shape)> {
        with_element!("batch_norm", x, T => {
            let y = cpu::forward::<T>(elements(x, layout)?, &self.0.channels()?, &self.0.shape);
            Ok((T::to_cpu_storage_owned(y), layout.shape().clone()))
        })
    }

    on_gpu!(self, x => Ok((cuda::forward(&x, None, &self.0)?, x.layout.shape().clone())));

    fn bwd(&self, x: &Tensor, _y: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        Ok(self.gradients(x, None, grad)?.0)
    }
}

impl CustomOp3 for BatchNorm {
    fn name(&self) -> &'static str {
        "batch_norm_affine"
    }

    #[cfg(not(shim))]
    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
        bias: &CpuStorage,
        bias_layout: &Layout,
    ) -> Result<(CpuStorage, candle_core::Shape)> {
        with_element!("batch_norm_affine", x, T => {
            let (weight, bias) = (elements::<T>(weight, weight_layout)?, elements::<T>(bias, bias_layout)?);
            let mut channels = self.0.channels()?;
            for ((channel, weight), bias) in channels.iter_mut().zip(weight).zip(bias) {
                (channel.weight, channel.bias) = (weight.to_f64(), bias.to_f64());
            }
            let y = cpu::forward::<T>(elements(x, x_layout)?, &channels, &self.0.shape);
            Ok((T::to_cpu_storage_owned(y), x_layout.shape().clone()))
        })
    }

    on_gpu!(self, x, weight, bias => {
        let y = cuda::forward(&x, Some((&weight, &bias)), &self.0)?;
        Ok((y, x.layout.shape().clone()))
    });

    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        bias: &Tensor,
        _y: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let (grad_x, sums) = self.gradients(x, Some(weight), grad)?;
        let gradient = |like: &Tensor, column: usize| {
            let column = || {
                sums.narrow(1, column, 1)?
                    .squeeze(1)?
                    .to_dtype(like.dtype())
            };
            like.track_op().then(column).transpose()
        };
        Ok((grad_x, gradient(weight, 1)?, gradient(bias, 0)?))
    }
}

/// [`Sums`] of every channel from the gradient and `x`, as a table `c 2` of `f64`.
struct GradSums(Given);

impl CustomOp2 for GradSums {
    fn name(&self) -> &'static str {
        "batch_norm_grad_sums"
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
            let (grad, x) = (elements::<T>(grad, grad_layout)?, elements(x, x_layout)?);
            let sums = cpu::sums(grad, x, &self.0.channels()?, &self.0.shape);
            let table = sums.iter().flat_map(|sums| [sums.grad, sums.grad_normalized]).collect();
            Ok((CpuStorage::F64(table), (self.0.shape.c, 2).into()))
        })
    }

    on_gpu!(self, grad, x => Ok((cuda::sums(&grad, &x, &self.0)?, (self.0.shape.c, 2).into())));
}

/// The gradient of `x` from that of the result, `x` and the table of [`GradSums`].
struct GradX {
    given: Given,
    weight: Option<Tensor>,
}

impl CustomOp3 for GradX {
    fn name(&self) -> &'static str {
        "batch_norm_grad_x"
    }

    #[cfg(not(shim))]
    fn cpu_fwd(
        &self,
        grad: &CpuStorage,
        grad_layout: &Layout,
        x: &CpuStorage,
        x_layout: &Layout,
        sums: &CpuStorage,
        sums_layout: &Layout,
    ) -> Result<(CpuStorage, candle_core::Shape)> {
        let mut channels = self.given.channels()?;
        if let Some(weight) = &self.weight {
            let weight: Vec<f64> = weight.to_dtype(DType::F64)?.to_vec1()?;
            for (channel, weight) in channels.iter_mut().zip(weight) {
                channel.weight = weight;
            }
        }
        // Nothing goes through statistics that are constants.
        let sums: Vec<Sums> = elements::<f64>(sums, sums_layout)?
            .chunks_exact(2)
            .map(|row| match self.given.is_train {
                true => Sums {
                    grad: row[0],
                    grad_normalized: row[1],
                },
                false => Sums::default(),
            })
            .collect();
        with_element!(self.name(), grad, T => {
            let (grad, x) = (elements::<T>(grad, grad_layout)?, elements(x, x_layout)?);
            let grad_x = cpu::grad_x(grad, x, &channels, &sums, &self.given);
            Ok((T::to_cpu_storage_owned(grad_x), x_layout.shape().clone()))
        })
    }

    on_gpu!(self, grad, x, sums => {
        let grad_x = cuda::grad_x(&grad, &x, &sums, &self.given, self.weight.as_ref())?;
        Ok((grad_x, x.layout.shape().clone()))
    });
}
