//! Batch normalisation: every channel is brought to mean 0 and variance 1, then scaled and shifted.
//!
//! `y = (x - mean[c]) / sqrt(var[c] + eps) * weight[c] + bias[c]`; without affine parameters weight is 1 and
//! bias is 0. In training, mean and (biased) variance are those of the batch, and the gradient goes through
//! them; in evaluation they are given and constant. Statistics and the sums of the gradient are `f64`.

use std::sync::Arc;

use candle_core::{
    CpuStorage, CustomOp1, CustomOp2, CustomOp3, DType, Device, Layout, Result, Tensor, WithDType,
};

use crate::Error;
use crate::element::{elements, with_element};
use crate::error::{check, dims4};

mod cpu;
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
) -> Result<(Tensor, BatchStatistics)> {
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
    let table: Vec<Vec<f64>> = x.apply_op1_no_bwd(&Statistics(shape))?.to_vec2()?;
    let [mean, var] =
        <[Vec<f64>; 2]>::try_from(table).expect("the statistics are a table of two rows");
    let statistics = BatchStatistics {
        mean,
        var,
        count: shape.n * shape.len,
    };
    let y = normalize(
        &x,
        affine,
        BatchNorm {
            shape,
            channels: channels(&statistics.mean, &statistics.var, eps),
            is_train: true,
        },
    )?;
    Ok((y, statistics))
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
    let [mean, var] = [mean, var].map(|t| t.to_dtype(DType::F64)?.to_vec1::<f64>());
    normalize(
        &x.contiguous()?,
        affine,
        BatchNorm {
            shape,
            channels: channels(&mean?, &var?, eps),
            is_train: false,
        },
    )
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

/// The channels without affine parameters.
fn channels(mean: &[f64], var: &[f64], eps: f64) -> Arc<[Channel]> {
    let channel = |(&mean, &var): (&f64, &f64)| Channel {
        mean,
        inv_std: 1.0 / (var + eps).sqrt(),
        weight: 1.0,
        bias: 0.0,
    };
    mean.iter().zip(var).map(channel).collect()
}

/// The channels with the given affine parameters.
fn with_affine<T: WithDType>(channels: &[Channel], weight: &[T], bias: &[T]) -> Vec<Channel> {
    let affine = weight
        .iter()
        .zip(bias)
        .map(|(weight, bias)| (weight.to_f64(), bias.to_f64()));
    channels
        .iter()
        .zip(affine)
        .map(|(channel, (weight, bias))| Channel {
            weight,
            bias,
            ..*channel
        })
        .collect()
}

fn normalize(x: &Tensor, affine: Option<(&Tensor, &Tensor)>, op: BatchNorm) -> Result<Tensor> {
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

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, candle_core::Shape)> {
        with_element!(self.name(), x, T => {
            let BatchStatistics { mut mean, var, .. } = cpu::statistics::<T>(elements(x, layout)?, &self.0);
            mean.extend(var);
            Ok((CpuStorage::F64(mean), (2, self.0.c).into()))
        })
    }
}

/// The normalisation itself, with affine parameters as its second and third argument or without.
struct BatchNorm {
    shape: Shape,
    channels: Arc<[Channel]>,
    is_train: bool,
}

impl BatchNorm {
    /// The gradient of `x`, and the sums that are the gradients of bias and weight.
    fn gradients(
        &self,
        x: &Tensor,
        channels: Arc<[Channel]>,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Vec<Sums>)> {
        let shape = self.shape;
        let op = GradSums {
            shape,
            channels: channels.clone(),
        };
        let table: Vec<Vec<f64>> = grad.apply_op2_no_bwd(x, &op)?.to_vec2()?;
        let sums = table.into_iter().map(|row| Sums {
            grad: row[0],
            grad_normalized: row[1],
        });
        let sums: Vec<Sums> = sums.collect();
        if !x.track_op() {
            return Ok((None, sums));
        }
        // Nothing goes through statistics that are constants.
        let through = if self.is_train {
            sums.clone()
        } else {
            vec![Sums::default(); shape.c]
        };
        let grad_x = grad.apply_op2_no_bwd(
            x,
            &GradX {
                shape,
                channels,
                sums: through,
            },
        )?;
        Ok((Some(grad_x), sums))
    }
}

impl CustomOp1 for BatchNorm {
    fn name(&self) -> &'static str {
        "batch_norm"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, candle_core::Shape)> {
        with_element!("batch_norm", x, T => {
            let y = cpu::forward::<T>(elements(x, layout)?, &self.channels, &self.shape);
            Ok((T::to_cpu_storage_owned(y), layout.shape().clone()))
        })
    }

    fn bwd(&self, x: &Tensor, _y: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        Ok(self
            .gradients(x, self.channels.clone(), &grad.contiguous()?)?
            .0)
    }
}

impl CustomOp3 for BatchNorm {
    fn name(&self) -> &'static str {
        "batch_norm_affine"
    }

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
            let channels = with_affine(&self.channels, weight, bias);
            let y = cpu::forward::<T>(elements(x, x_layout)?, &channels, &self.shape);
            Ok((T::to_cpu_storage_owned(y), x_layout.shape().clone()))
        })
    }

    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        bias: &Tensor,
        _y: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let [weight_values, bias_values] =
            [weight, bias].map(|t| t.to_dtype(DType::F64)?.to_vec1::<f64>());
        let channels = with_affine(&self.channels, &weight_values?, &bias_values?);
        let (grad_x, sums) = self.gradients(x, channels.into(), &grad.contiguous()?)?;
        let gradient = |like: &Tensor, of: fn(&Sums) -> f64| {
            let values: Vec<f64> = sums.iter().map(of).collect();
            let on_device = || {
                Tensor::from_vec(values, self.shape.c, &Device::Cpu)?
                    .to_dtype(like.dtype())?
                    .to_device(like.device())
            };
            like.track_op().then(on_device).transpose()
        };
        Ok((
            grad_x,
            gradient(weight, |sums| sums.grad_normalized)?,
            gradient(bias, |sums| sums.grad)?,
        ))
    }
}

/// [`Sums`] of every channel from the gradient and `x`, as a table `c 2` of `f64`.
struct GradSums {
    shape: Shape,
    channels: Arc<[Channel]>,
}

impl CustomOp2 for GradSums {
    fn name(&self) -> &'static str {
        "batch_norm_grad_sums"
    }

    fn cpu_fwd(
        &self,
        grad: &CpuStorage,
        grad_layout: &Layout,
        x: &CpuStorage,
        x_layout: &Layout,
    ) -> Result<(CpuStorage, candle_core::Shape)> {
        with_element!(self.name(), grad, T => {
            let (grad, x) = (elements::<T>(grad, grad_layout)?, elements(x, x_layout)?);
            let sums = cpu::sums(grad, x, &self.channels, &self.shape);
            let table = sums.iter().flat_map(|sums| [sums.grad, sums.grad_normalized]).collect();
            Ok((CpuStorage::F64(table), (self.shape.c, 2).into()))
        })
    }
}

/// The gradient of `x`.
struct GradX {
    shape: Shape,
    channels: Arc<[Channel]>,
    sums: Vec<Sums>,
}

impl CustomOp2 for GradX {
    fn name(&self) -> &'static str {
        "batch_norm_grad_x"
    }

    fn cpu_fwd(
        &self,
        grad: &CpuStorage,
        grad_layout: &Layout,
        x: &CpuStorage,
        x_layout: &Layout,
    ) -> Result<(CpuStorage, candle_core::Shape)> {
        with_element!(self.name(), grad, T => {
            let (grad, x) = (elements::<T>(grad, grad_layout)?, elements(x, x_layout)?);
            let grad_x = cpu::grad_x(grad, x, &self.channels, &self.sums, &self.shape);
            Ok((T::to_cpu_storage_owned(grad_x), x_layout.shape().clone()))
        })
    }
}
