//! The building blocks that the networks share (Liu et al. 2018, the published code's `operations.py`).

use candle_core::{CpuStorage, D, InplaceOp1, Layout, Result, Tensor, Var};
use kernels::pieces::Following;
use kernels::{BatchStatistics, Conv2dGeometry, DeviceStatistics, Precision};

use crate::Pass;
use crate::fused::StemRun;
use crate::parameters::Builder;

/// Batch normalisation's epsilon.
pub const BATCH_NORM_EPS: f64 = 1e-5;
/// Batch normalisation's momentum: running = (1 - momentum) * running + momentum * batch.
pub const BATCH_NORM_MOMENTUM: f64 = 0.1;

/// Whether batch normalisations have a learned scale and shift.
///
/// The search uses none, because they would rescale what alpha weighs; the evaluation network has them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Affine {
    /// Normalise only.
    No,
    /// Normalise, scale and shift.
    Yes,
}

/// Batch normalisation over `n, h, w` of `[n, c, h, w]`.
#[derive(Clone)]
pub struct BatchNorm {
    affine: Option<(Var, Var)>,
    running_mean: Var,
    running_var: Var,
}

impl BatchNorm {
    /// Builds `weight` and `bias` (if affine), `running_mean` and `running_var` over `n_channels`.
    pub fn new(builder: &Builder<'_>, n_channels: usize, affine: Affine) -> Result<Self> {
        let affine = match affine {
            Affine::No => None,
            Affine::Yes => Some((
                builder.constant("weight", n_channels, 1.0)?,
                builder.constant("bias", n_channels, 0.0)?,
            )),
        };
        Ok(Self {
            affine,
            running_mean: builder.buffer("running_mean", n_channels, 0.0)?,
            running_var: builder.buffer("running_var", n_channels, 1.0)?,
        })
    }

    /// Factor and shift, where they are learned.
    pub(crate) fn affine(&self) -> Option<(&Var, &Var)> {
        self.affine.as_ref().map(|(weight, bias)| (weight, bias))
    }

    /// Running mean and variance.
    pub(crate) fn running(&self) -> (&Var, &Var) {
        (&self.running_mean, &self.running_var)
    }

    /// Normalises by the batch's statistics in training, by the running ones otherwise.
    pub fn forward(&self, x: &Tensor, pass: &Pass<'_>) -> Result<Tensor> {
        let affine = self
            .affine
            .as_ref()
            .map(|(w, b)| (pass.weight(w), pass.weight(b)));
        let affine = affine.as_ref().map(|(w, b)| (w, b));
        if pass.is_training() {
            let (y, statistics) =
                kernels::batch_norm_train_share(x, affine, BATCH_NORM_EPS, pass.share())?;
            self.follow(&statistics)?;
            Ok(y)
        } else {
            let (mean, var) = (
                self.running_mean.as_detached_tensor(),
                self.running_var.as_detached_tensor(),
            );
            kernels::batch_norm_eval(x, &mean, &var, affine, BATCH_NORM_EPS)
        }
    }

    /// Moves the running statistics, on the CPU, towards a batch's; the variance by its unbiased estimate.
    pub(crate) fn observe(&self, batch: &BatchStatistics) -> Result<()> {
        let unbias = unbias(batch.count);
        let blend = |running: &Var, batch: Vec<f64>| {
            running.as_detached_tensor().inplace_op1(&Blend(batch))
        };
        blend(&self.running_mean, batch.mean.clone())?;
        blend(
            &self.running_var,
            batch.var.iter().map(|var| var * unbias).collect(),
        )
    }

    /// [`observe`](Self::observe) on any device, without waiting for it.
    pub(crate) fn follow(&self, batch: &DeviceStatistics) -> Result<()> {
        if batch.mean.device().is_cpu() {
            return self.observe(&batch.read()?);
        }
        let blend = |running: &Var, batch: &Tensor| {
            let kept = (running.as_detached_tensor() * (1.0 - BATCH_NORM_MOMENTUM))?;
            running.set(&(kept + (batch.to_dtype(running.dtype())? * BATCH_NORM_MOMENTUM)?)?)
        };
        blend(&self.running_mean, &batch.mean)?;
        blend(&self.running_var, &(&batch.var * unbias(batch.count))?)
    }

    /// What moves the running statistics towards a batch's, of which this is the table.
    pub(crate) fn following(&self, table: Tensor, count: usize) -> Following<'_> {
        Following {
            mean: &self.running_mean,
            var: &self.running_var,
            table,
            count,
        }
    }
}

/// What makes a batch's variance an unbiased estimate.
fn unbias(count: usize) -> f64 {
    count as f64 / (count.max(2) - 1) as f64
}

/// Moves running statistics towards a batch's.
struct Blend(Vec<f64>);

impl InplaceOp1 for Blend {
    fn name(&self) -> &'static str {
        "blend"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> Result<()> {
        let Some((start, end)) = layout.contiguous_offsets() else {
            candle_core::bail!("blend: expected contiguous statistics");
        };
        macro_rules! blend {
            ($float:ty, $running:expr) => {{
                for (running, batch) in $running[start..end].iter_mut().zip(&self.0) {
                    let kept = *running * (1.0 - BATCH_NORM_MOMENTUM) as $float;
                    *running = kept + *batch as $float * BATCH_NORM_MOMENTUM as $float;
                }
                Ok(())
            }};
        }
        match storage {
            CpuStorage::F32(running) => blend!(f32, running),
            CpuStorage::F64(running) => blend!(f64, running),
            _ => candle_core::bail!("blend: statistics must be f32 or f64"),
        }
    }
}

/// A convolution without bias that mixes channels at each pixel: `[n, n_in, h, w]` to `[n, n_out, h, w]`.
pub(crate) struct Pointwise {
    weight: Var,
    precision: Precision,
}

impl Pointwise {
    /// Builds `weight`.
    pub(crate) fn new(builder: &Builder<'_>, n_in: usize, n_out: usize) -> Result<Self> {
        Ok(Self {
            weight: builder.uniform("weight", (n_out, n_in, 1, 1), n_in)?,
            precision: builder.precision(),
        })
    }

    pub(crate) fn weight(&self) -> &Var {
        &self.weight
    }

    /// Of its products.
    pub(crate) fn precision(&self) -> Precision {
        self.precision
    }

    /// Runs the layer.
    pub(crate) fn forward(&self, x: &Tensor, pass: &Pass<'_>) -> Result<Tensor> {
        kernels::pointwise_conv2d_in(x, &pass.weight(&self.weight), self.precision)
    }
}

/// ReLU, pointwise convolution, batch normalisation: `[n, n_in, h, w]` to `[n, n_out, h, w]`.
pub struct ReluConvBn {
    pointwise: Pointwise,
    norm: BatchNorm,
}

impl ReluConvBn {
    /// Builds `op.1` (convolution) and `op.2` (batch normalisation).
    pub fn new(builder: &Builder<'_>, n_in: usize, n_out: usize, affine: Affine) -> Result<Self> {
        let op = builder.scope("op");
        Ok(Self {
            pointwise: Pointwise::new(&op.scope(1), n_in, n_out)?,
            norm: BatchNorm::new(&op.scope(2), n_out, affine)?,
        })
    }

    pub(crate) fn weight(&self) -> &Var {
        self.pointwise.weight()
    }

    /// Of its products, as of all of the network.
    pub(crate) fn precision(&self) -> Precision {
        self.pointwise.precision()
    }

    pub(crate) fn norm(&self) -> &BatchNorm {
        &self.norm
    }

    /// Runs the block.
    pub fn forward(&self, x: &Tensor, pass: &Pass<'_>) -> Result<Tensor> {
        let y = self.pointwise.forward(&kernels::relu(x)?, pass)?;
        self.norm.forward(&y, pass)
    }
}

/// Halves the resolution without pooling: `[n, n_in, h, w]` to `[n, n_out, ceil(h/2), ceil(w/2)]`.
///
/// ReLU, two pointwise convolutions at stride 2 to `n_out / 2` channels each, the second on the input
/// shifted by one row and one column, concatenated, batch normalisation. An odd size is first padded
/// with one zero row or column at its end (the published networks have even sizes only).
pub struct FactorizedReduce {
    even: Pointwise,
    odd: Pointwise,
    norm: BatchNorm,
}

impl FactorizedReduce {
    /// Builds `conv_1`, `conv_2` and `bn`; `n_out` is even.
    pub fn new(builder: &Builder<'_>, n_in: usize, n_out: usize, affine: Affine) -> Result<Self> {
        Ok(Self {
            even: Pointwise::new(&builder.scope("conv_1"), n_in, n_out / 2)?,
            odd: Pointwise::new(&builder.scope("conv_2"), n_in, n_out - n_out / 2)?,
            norm: BatchNorm::new(&builder.scope("bn"), n_out, affine)?,
        })
    }

    /// The kernels on the even and on the odd pixels.
    pub(crate) fn kernels(&self) -> [&Var; 2] {
        [self.even.weight(), self.odd.weight()]
    }

    /// Of its products, as of all of the network.
    pub(crate) fn precision(&self) -> Precision {
        self.even.precision()
    }

    pub(crate) fn norm(&self) -> &BatchNorm {
        &self.norm
    }

    /// Runs the block.
    pub fn forward(&self, x: &Tensor, pass: &Pass<'_>) -> Result<Tensor> {
        self.forward_activated(&kernels::relu(x)?, pass)
    }

    /// Runs the block on an input that has been through its ReLU already.
    pub(crate) fn forward_activated(&self, x: &Tensor, pass: &Pass<'_>) -> Result<Tensor> {
        let even = self.even.forward(&subsample(x, 0)?, pass)?;
        let odd = self.odd.forward(&subsample(x, 1)?, pass)?;
        self.norm.forward(&Tensor::cat(&[even, odd], 1)?, pass)
    }
}

/// Every second pixel in both directions, from `offset` 0 or 1: `[n, c, ceil(h/2), ceil(w/2)]`.
fn subsample(x: &Tensor, offset: usize) -> Result<Tensor> {
    let (_, _, h, w) = x.dims4()?;
    let x = x.pad_with_zeros(2, 0, h % 2)?.pad_with_zeros(3, 0, w % 2)?;
    let (n, c, h, w) = x.dims4()?;
    x.reshape((n, c, h / 2, 2, w / 2, 2))?
        .narrow(3, offset, 1)?
        .narrow(5, offset, 1)?
        .reshape((n, c, h / 2, w / 2))
}

/// A dense 3x3 convolution with its batch normalisation, as the stems use it.
struct ConvBn {
    weight: Var,
    stride: usize,
    norm: BatchNorm,
}

impl ConvBn {
    fn new(
        conv: &Builder<'_>,
        norm: &Builder<'_>,
        n_in: usize,
        n_out: usize,
        stride: usize,
    ) -> Result<Self> {
        Ok(Self {
            weight: conv.uniform("weight", (n_out, n_in, 3, 3), n_in * 9)?,
            stride,
            norm: BatchNorm::new(norm, n_out, Affine::Yes)?,
        })
    }

    fn geometry(&self) -> Conv2dGeometry {
        Conv2dGeometry {
            padding: 1,
            stride: self.stride,
            dilation: 1,
        }
    }

    fn forward(&self, x: &Tensor, pass: &Pass<'_>) -> Result<Tensor> {
        let y = kernels::conv2d(x, &pass.weight(&self.weight), self.geometry())?;
        self.norm.forward(&y, pass)
    }
}

/// What turns an image into the two inputs of the first cell.
pub struct Stem {
    layout: StemLayout,
}

enum StemLayout {
    /// One convolution; both inputs are its output.
    Single(ConvBn),
    /// Three convolutions of stride 2; the inputs are the outputs of the second and of the third.
    Imagenet([ConvBn; 3]),
}

impl Stem {
    /// Builds `stem` (CIFAR) or `stem0` and `stem1` (ImageNet). Stems are affine in the search too.
    pub fn new(builder: &Builder<'_>, spec: &space::NetworkSpec) -> Result<Self> {
        let (n_in, c) = (spec.in_channels, spec.init_channels);
        let single = |stride| {
            let scope = builder.scope("stem");
            ConvBn::new(&scope.scope(0), &scope.scope(1), n_in, 3 * c, stride)
        };
        let layout = match spec.stem {
            space::Stem::Conv3x3 => StemLayout::Single(single(1)?),
            space::Stem::Conv3x3Stride2 => StemLayout::Single(single(2)?),
            space::Stem::Imagenet => {
                let (first, second) = (builder.scope("stem0"), builder.scope("stem1"));
                StemLayout::Imagenet([
                    ConvBn::new(&first.scope(0), &first.scope(1), n_in, c / 2, 2)?,
                    ConvBn::new(&first.scope(3), &first.scope(4), c / 2, c, 2)?,
                    ConvBn::new(&second.scope(1), &second.scope(2), c, c, 2)?,
                ])
            }
        };
        Ok(Self { layout })
    }

    /// Channels of an image.
    pub(crate) fn n_in(&self) -> usize {
        let (weight, ..) = self
            .convolutions()
            .next()
            .expect("a stem has a convolution");
        weight.dims()[1]
    }

    /// The convolutions one after the other: kernel, geometry and batch normalisation of each.
    pub(crate) fn convolutions(&self) -> impl Iterator<Item = (&Var, Conv2dGeometry, &BatchNorm)> {
        let convolutions = match &self.layout {
            StemLayout::Single(conv) => std::slice::from_ref(conv),
            StemLayout::Imagenet(convolutions) => convolutions,
        };
        let parts = convolutions.iter();
        parts.map(|conv| (&conv.weight, conv.geometry(), &conv.norm))
    }

    /// The stem with images `[n, c, h, w]`, ready to run in front of fused cells: if one convolution gives both states, and
    /// images have no gradient.
    pub(crate) fn run<'a>(&'a self, x: &Tensor, pass: &Pass<'_>) -> Result<Option<StemRun<'a>>> {
        match &self.layout {
            StemLayout::Single(conv) if !x.track_op() => {
                let weight = pass.weight(&conv.weight);
                StemRun::new(x, weight, conv.geometry(), &conv.norm, pass).map(Some)
            }
            StemLayout::Single(_) | StemLayout::Imagenet(_) => Ok(None),
        }
    }

    /// `[n, in_channels, h, w]` to the states that the first cell reads: (of two cells ago, of one ago).
    pub fn forward(&self, x: &Tensor, pass: &Pass<'_>) -> Result<(Tensor, Tensor)> {
        match &self.layout {
            StemLayout::Single(conv) => {
                let y = conv.forward(x, pass)?;
                Ok((y.clone(), y))
            }
            StemLayout::Imagenet([a, b, c]) => {
                let y = kernels::relu(&a.forward(x, pass)?)?;
                let s0 = b.forward(&y, pass)?;
                let s1 = c.forward(&kernels::relu(&s0)?, pass)?;
                Ok((s0, s1))
            }
        }
    }
}

/// An affine map of the last axis: `[n, n_in]` to `[n, n_out]`.
pub struct Linear {
    weight: Var,
    bias: Var,
}

impl Linear {
    /// Builds `weight` `[n_out, n_in]` and `bias` `[n_out]`.
    pub fn new(builder: &Builder<'_>, n_in: usize, n_out: usize) -> Result<Self> {
        Ok(Self {
            weight: builder.uniform("weight", (n_out, n_in), n_in)?,
            bias: builder.uniform("bias", n_out, n_in)?,
        })
    }

    /// Weight and bias.
    pub(crate) fn weights(&self) -> (&Var, &Var) {
        (&self.weight, &self.bias)
    }

    /// Runs the layer.
    pub fn forward(&self, x: &Tensor, pass: &Pass<'_>) -> Result<Tensor> {
        x.matmul(&pass.weight(&self.weight).t()?)?
            .broadcast_add(&pass.weight(&self.bias))
    }
}

/// The mean over all pixels: `[n, c, h, w]` to `[n, c]`.
pub(crate) fn global_average_pool(x: &Tensor) -> Result<Tensor> {
    x.flatten_from(2)?.mean(D::Minus1)
}

/// `[n, c, h, w]` to the layout of fused cells, `[c, h, w, n]`.
pub(crate) fn to_planes(x: &Tensor) -> Result<Tensor> {
    x.permute((1, 2, 3, 0))?.contiguous()
}

/// `[c, h, w, n]` to `[n, c, h, w]`.
pub(crate) fn from_planes(x: &Tensor) -> Result<Tensor> {
    x.permute((3, 0, 1, 2))?.contiguous()
}

/// `[n, c, h, w]` to the layout of grouped cells and back: images and channels change places.
pub(crate) fn swap_images_and_channels(x: &Tensor) -> Result<Tensor> {
    x.transpose(0, 1)?.contiguous()
}

/// The mean over all pixels: `[c, n, h, w]` to `[n, c]`.
pub(crate) fn grouped_average_pool(x: &Tensor) -> Result<Tensor> {
    x.flatten_from(2)?.mean(D::Minus1)?.t()
}

/// The mean over all pixels: `[c, h, w, n]` to `[n, c]`.
pub(crate) fn planes_average_pool(x: &Tensor) -> Result<Tensor> {
    let (c, h, w, n) = x.dims4()?;
    x.reshape((c, h * w, n))?.mean(1)?.t()
}
