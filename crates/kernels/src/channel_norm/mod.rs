//! Batch normalisation in parts, for who normalises where a number is read: the statistics of a batch as a table, and
//! the gradient through them. [`batch_norm_train`](crate::batch_norm_train) is the whole of it.
//!
//! Layout `c n h w`. A table has a row `(mean, variance, factor, bias)` for each channel, `f64`: who reads `x` through
//! it sees `factor * (x - mean) + bias`, where `factor = weight / sqrt(variance + eps)`.
//!
//! Nothing here is recorded for `backward`.

use candle_core::{DType, Result, Shape, Tensor};

use crate::error::{check, dims4};
use crate::gpu::{OnHeld, read};

#[cfg(any(feature = "cuda", shim))]
mod cuda;

/// Numbers of a channel in a table.
pub const COLUMNS: usize = 4;

/// An error unless `table` is one of `c` channels.
pub(crate) fn check_table(op: &'static str, table: &Tensor, c: usize) -> Result<()> {
    check(op, "norm", table, &[c, COLUMNS], table)?;
    match table.dtype() {
        DType::F64 => Ok(()),
        other => candle_core::bail!("{op}: a table of {other:?} is none of a normalisation"),
    }
}

fn check_affine(op: &'static str, affine: Option<[&Tensor; 2]>, c: usize) -> Result<()> {
    for tensor in affine.into_iter().flatten() {
        check(op, "weight or bias", tensor, &[c], tensor)?;
    }
    Ok(())
}

/// The table of a batch, with its mean and biased variance.
///
/// # Shapes
/// `x`: `c n h w`; `affine`: weight and bias, `[c]` each; result: `c 4`.
///
/// # Errors
/// If the shapes do not agree or there are no numbers in a channel.
pub fn batch_table(x: &Tensor, affine: Option<[&Tensor; 2]>, eps: f64) -> Result<Tensor> {
    const OP: &str = "batch_table";
    let [c, n, h, w] = dims4(OP, "x", "c n h w", x)?;
    check_affine(OP, affine, c)?;
    if n * h * w == 0 {
        return Err(crate::Error::Empty {
            op: OP,
            shape: x.dims().to_vec(),
        }
        .into());
    }
    let op = Table {
        from: x,
        is_batch: true,
        c,
        affine,
        eps,
    };
    op.run(x)
}

/// The table of given statistics.
///
/// # Shapes
/// `moments`: means, then variances, `2 c`, `f64`; `affine`: weight and bias, `[c]` each; result: `c 4`.
///
/// # Errors
/// If the shapes do not agree.
pub fn given_table(moments: &Tensor, affine: Option<[&Tensor; 2]>, eps: f64) -> Result<Tensor> {
    const OP: &str = "given_table";
    let (_, c) = moments.dims2()?;
    check(OP, "moments", moments, &[2, c], moments)?;
    check_affine(OP, affine, c)?;
    if moments.dtype() != DType::F64 {
        candle_core::bail!("{OP}: statistics are f64, not {:?}", moments.dtype());
    }
    let op = Table {
        from: moments,
        is_batch: false,
        c,
        affine,
        eps,
    };
    op.run(moments)
}

struct Table<'a> {
    /// The batch, or its statistics.
    from: &'a Tensor,
    is_batch: bool,
    c: usize,
    affine: Option<[&'a Tensor; 2]>,
    eps: f64,
}

impl OnHeld for Table<'_> {
    const OP: &'static str = "table";

    fn result(&self) -> (Shape, DType) {
        ((self.c, COLUMNS).into(), DType::F64)
    }

    #[cfg(any(feature = "cuda", shim))]
    fn launch<S: crate::gpu::Gpu>(&self, on: &S) -> Result<S> {
        cuda::table(self, on)
    }

    fn oracle(&self) -> Result<Vec<f64>> {
        let from = read(self.from)?;
        let affine = self
            .affine
            .map(|[weight, bias]| Ok::<_, candle_core::Error>([read(weight)?, read(bias)?]));
        let affine = affine.transpose()?;
        let len = from.len() / self.c.max(1);
        let rows = (0..self.c).flat_map(|c| {
            let [mean, var] = if self.is_batch {
                let x = &from[c * len..][..len];
                let mean = x.iter().sum::<f64>() / len as f64;
                [
                    mean,
                    x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / len as f64,
                ]
            } else {
                [from[c], from[self.c + c]]
            };
            let [weight, bias] = affine
                .as_ref()
                .map_or([1.0, 0.0], |[weight, bias]| [weight[c], bias[c]]);
            [mean, var, weight / (var + self.eps).sqrt(), bias]
        });
        Ok(rows.collect())
    }
}

/// What comes back to the output of one group of channels that are normalised apart, such as those of one edge.
#[derive(Debug, Clone)]
pub struct GroupGrad {
    /// The gradient of a sum, `k n h w`, of which channel `c * stride` counts for the group's channel `c`.
    pub grad: Tensor,
    /// By what the group is weighted in that sum, one number.
    pub weight: Option<Tensor>,
    /// By what its images are multiplied there, `[n]`.
    pub mask: Option<Tensor>,
    /// The sums of `mask * grad`, and of its products with the raw numbers, of all ranks: `c 2`, `f64`, as
    /// [`dots`](crate::mix::dots) gives them.
    pub sums: Tensor,
}

/// The gradient of what is normalised, with that which goes through the statistics:
/// `factor * (g - mean(g) - normalised x * mean(g * normalised x))`, where `g = weight * mask * grad`.
///
/// # Shapes
/// `x` and the result: `e c n h w` for `e` groups, as `(e c) n h w`; `table`: `(e c) 4`. `count` is that of a
/// channel's numbers, of all ranks.
///
/// # Errors
/// If the shapes do not agree.
pub fn gradient(
    groups: &[GroupGrad],
    stride: usize,
    x: &Tensor,
    table: &Tensor,
    count: usize,
    eps: f64,
) -> Result<Tensor> {
    const OP: &str = "channel_norm_gradient";
    let [all, n, h, w] = dims4(OP, "x", "c n h w", x)?;
    let c = all / groups.len().max(1);
    check_table(OP, table, c * groups.len())?;
    for group in groups {
        let [k, ..] = dims4(OP, "grad", "k n h w", &group.grad)?;
        check(OP, "grad", &group.grad, &[k, n, h, w], x)?;
        if k < (c.max(1) - 1) * stride + 1 {
            candle_core::bail!("{OP}: {k} channels are too few for {c} with a stride of {stride}");
        }
        check(OP, "sums", &group.sums, &[c, 2], &group.sums)?;
        if let Some(mask) = &group.mask {
            check(OP, "mask", mask, &[n], x)?;
        }
        if let Some(weight) = &group.weight {
            crate::scale::check_weight(OP, weight, x)?;
        }
    }
    let op = Gradient {
        groups,
        stride,
        x,
        table,
        count: count as f64,
        eps,
    };
    op.run(x)
}

struct Gradient<'a> {
    groups: &'a [GroupGrad],
    stride: usize,
    x: &'a Tensor,
    table: &'a Tensor,
    count: f64,
    eps: f64,
}

impl OnHeld for Gradient<'_> {
    const OP: &'static str = "channel_norm_gradient";

    fn result(&self) -> (Shape, DType) {
        (self.x.shape().clone(), self.x.dtype())
    }

    #[cfg(any(feature = "cuda", shim))]
    fn launch<S: crate::gpu::Gpu>(&self, on: &S) -> Result<S> {
        cuda::gradient(self, on)
    }

    fn oracle(&self) -> Result<Vec<f64>> {
        let (_, n, h, w) = self.x.dims4()?;
        let (plane, len) = (h * w, n * h * w);
        let (x, table) = (read(self.x)?, read(self.table)?);
        let rows = table.as_chunks::<COLUMNS>().0;
        let c = rows.len() / self.groups.len().max(1);
        let mut out = vec![0.0; x.len()];
        for (index, group) in self.groups.iter().enumerate() {
            let (grad, sums) = (read(&group.grad)?, read(&group.sums)?);
            let weight = group
                .weight
                .as_ref()
                .map(read)
                .transpose()?
                .map_or(1.0, |weight| weight[0]);
            let mask = group.mask.as_ref().map(read).transpose()?;
            for channel in 0..c {
                let [mean, var, factor, _] = rows[index * c + channel];
                let inv_std = 1.0 / (var + self.eps).sqrt();
                let [sum, product] = [sums[2 * channel], sums[2 * channel + 1]];
                let products = inv_std * (product - mean * sum);
                for i in 0..len {
                    let at = (index * c + channel) * len + i;
                    let own = grad[channel * self.stride * len + i]
                        * mask.as_ref().map_or(1.0, |mask| mask[i / plane]);
                    let normalised = (x[at] - mean) * inv_std;
                    let centred = own - sum / self.count - normalised * products / self.count;
                    out[at] = factor * weight * centred;
                }
            }
        }
        Ok(out)
    }
}

/// The gradients of factors and shifts, `2 c`, from the sums of a normalisation's output, this rank's.
///
/// # Shapes
/// `sums`: `c 2`, as those of [`GroupGrad`]; `table`: `c 4`.
///
/// # Errors
/// If the shapes do not agree.
pub fn affine_gradients(sums: &Tensor, table: &Tensor, dtype: DType, eps: f64) -> Result<Tensor> {
    let (c, _) = sums.dims2()?;
    check_table("affine_gradients", table, c)?;
    check("affine_gradients", "sums", sums, &[c, 2], table)?;
    let op = AffineGradients {
        sums,
        table,
        c,
        dtype,
        eps,
    };
    op.run(sums)
}

struct AffineGradients<'a> {
    sums: &'a Tensor,
    table: &'a Tensor,
    c: usize,
    dtype: DType,
    eps: f64,
}

impl OnHeld for AffineGradients<'_> {
    const OP: &'static str = "affine_gradients";

    fn result(&self) -> (Shape, DType) {
        ((2, self.c).into(), self.dtype)
    }

    #[cfg(any(feature = "cuda", shim))]
    fn launch<S: crate::gpu::Gpu>(&self, on: &S) -> Result<S> {
        cuda::affine_gradients(self, on)
    }

    fn oracle(&self) -> Result<Vec<f64>> {
        let (sums, table) = (read(self.sums)?, read(self.table)?);
        let rows = sums
            .as_chunks::<2>()
            .0
            .iter()
            .zip(table.as_chunks::<COLUMNS>().0);
        let of_weight = |(&[sum, product], &[mean, var, ..]): (&[f64; 2], &[f64; COLUMNS])| {
            (product - mean * sum) / (var + self.eps).sqrt()
        };
        let weights = rows.clone().map(of_weight);
        Ok(weights.chain(rows.map(|([sum, _], _)| *sum)).collect())
    }
}
