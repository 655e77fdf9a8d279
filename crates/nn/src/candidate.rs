//! The candidate operations of an edge.

use candle_core::{Result, Tensor, Var};
use kernels::{Conv2dGeometry, DeviceStatistics, Pool2dGeometry};
use space::Primitive;

use crate::Pass;
use crate::layers::{Affine, BatchNorm, FactorizedReduce, Pointwise};
use crate::parameters::Builder;

/// The 3x3 pooling of the space at the given stride.
pub(crate) const fn pool_geometry(stride: usize) -> Pool2dGeometry {
    Pool2dGeometry {
        kernel: 3,
        padding: 1,
        stride,
    }
}

/// One candidate operation on `n_channels` channels at stride 1 or 2.
///
/// Two forms differ as in the published code: the search form ([`Affine::No`]) follows each pooling
/// with a batch normalisation, the evaluation form ([`Affine::Yes`]) has bare poolings.
pub enum Candidate {
    /// Zeros, subsampled at stride 2.
    None {
        /// 1 or 2.
        stride: usize,
    },
    /// 3x3 pooling.
    Pool {
        /// Maximum or average.
        kind: PoolKind,
        /// 1 or 2.
        stride: usize,
        /// The batch normalisation of the search form.
        norm: Option<BatchNorm>,
    },
    /// The identity (skip at stride 1).
    Identity,
    /// Skip at stride 2.
    Reduce(FactorizedReduce),
    /// ReLU, depthwise, pointwise, batch normalisation: once (dilated) or twice (separable).
    Conv(Vec<ConvUnit>),
}

/// Which pooling.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PoolKind {
    /// Maximum.
    Max,
    /// Average without the padding.
    Average,
}

impl PoolKind {
    /// Pools 3x3 with padding 1.
    pub(crate) fn apply(self, x: &Tensor, stride: usize) -> Result<Tensor> {
        match self {
            Self::Max => kernels::max_pool2d(x, pool_geometry(stride)),
            Self::Average => kernels::avg_pool2d(x, pool_geometry(stride)),
        }
    }
}

/// Depthwise, pointwise, batch normalisation, behind a ReLU.
pub struct ConvUnit {
    depthwise: Var,
    pointwise: Pointwise,
    geometry: Conv2dGeometry,
    norm: BatchNorm,
}

impl ConvUnit {
    /// Builds the unit whose layers are numbers `first`, `first + 1`, `first + 2` of `op`.
    fn new(
        op: &Builder<'_>,
        first: usize,
        n_channels: usize,
        kernel: usize,
        geometry: Conv2dGeometry,
        affine: Affine,
    ) -> Result<Self> {
        let taps = kernel * kernel;
        Ok(Self {
            depthwise: op
                .scope(first)
                .uniform("weight", (n_channels, 1, kernel, kernel), taps)?,
            pointwise: Pointwise::new(&op.scope(first + 1), n_channels, n_channels)?,
            geometry,
            norm: BatchNorm::new(&op.scope(first + 2), n_channels, affine)?,
        })
    }

    pub(crate) fn depthwise(&self) -> &Var {
        &self.depthwise
    }

    pub(crate) fn pointwise(&self) -> &Var {
        self.pointwise.weight()
    }

    pub(crate) fn geometry(&self) -> Conv2dGeometry {
        self.geometry
    }

    /// Side of the depthwise kernel.
    pub(crate) fn kernel(&self) -> usize {
        self.depthwise.dims()[3]
    }

    pub(crate) fn norm(&self) -> &BatchNorm {
        &self.norm
    }

    /// Runs the unit on an input that has been through its ReLU already.
    fn forward_activated(&self, x: &Tensor, pass: &Pass<'_>) -> Result<Tensor> {
        let y = kernels::depthwise_conv2d(x, &pass.weight(&self.depthwise), self.geometry)?;
        let y = self.pointwise.forward(&y, pass)?;
        self.norm.forward(&y, pass)
    }
}

/// An edge's input in the forms in which candidate operations want it, each made once.
///
/// All edges that leave one state at one stride share it: the ReLU in front of every convolution and the
/// poolings depend on the state alone.
pub struct EdgeInput {
    x: Tensor,
    stride: usize,
    activated: std::cell::OnceCell<Tensor>,
    pooled: [std::cell::OnceCell<Pooled>; 2],
}

/// A pooled state; in training also its normalisation, which has no parameters in the search form.
struct Pooled {
    raw: Tensor,
    normalised: Option<(Tensor, DeviceStatistics)>,
}

impl EdgeInput {
    /// Prepares a state `[n, c, h, w]` for the operations of the edges that leave it at this stride.
    pub fn new(x: Tensor, stride: usize) -> Self {
        Self {
            x,
            stride,
            activated: Default::default(),
            pooled: Default::default(),
        }
    }

    fn activated(&self) -> Result<&Tensor> {
        get_or_try_init(&self.activated, || kernels::relu(&self.x))
    }

    fn pooled(&self, kind: PoolKind, pass: &Pass<'_>, normalise: bool) -> Result<&Pooled> {
        get_or_try_init(&self.pooled[kind as usize], || {
            let raw = kind.apply(&self.x, self.stride)?;
            let normalised = if normalise && pass.is_training() {
                Some(kernels::batch_norm_train_share(
                    &raw,
                    None,
                    crate::layers::BATCH_NORM_EPS,
                    pass.share(),
                )?)
            } else {
                None
            };
            Ok(Pooled { raw, normalised })
        })
    }
}

fn get_or_try_init<T>(
    cell: &std::cell::OnceCell<T>,
    init: impl FnOnce() -> Result<T>,
) -> Result<&T> {
    if let Some(value) = cell.get() {
        return Ok(value);
    }
    let value = init()?;
    Ok(cell.get_or_init(|| value))
}

impl Candidate {
    /// Builds the operation under the published names (`op.1.weight`, `conv_1.weight`, or `1.running_mean`
    /// for a pooling's batch normalisation in the search form).
    pub fn new(
        builder: &Builder<'_>,
        primitive: Primitive,
        n_channels: usize,
        stride: usize,
        affine: Affine,
    ) -> Result<Self> {
        let op = builder.scope("op");
        let unit = |first, kernel, geometry| {
            ConvUnit::new(&op, first, n_channels, kernel, geometry, affine)
        };
        let separable = |kernel: usize| {
            let geometry = |stride| Conv2dGeometry {
                padding: kernel / 2,
                stride,
                dilation: 1,
            };
            Ok::<_, candle_core::Error>(Self::Conv(vec![
                unit(1, kernel, geometry(stride))?,
                unit(5, kernel, geometry(1))?,
            ]))
        };
        let dilated = |kernel: usize| {
            let geometry = Conv2dGeometry {
                padding: kernel - 1,
                stride,
                dilation: 2,
            };
            Ok::<_, candle_core::Error>(Self::Conv(vec![unit(1, kernel, geometry)?]))
        };
        let pool = |kind| {
            let norm = match affine {
                Affine::No => Some(BatchNorm::new(&builder.scope(1), n_channels, affine)?),
                Affine::Yes => None,
            };
            Ok::<_, candle_core::Error>(Self::Pool { kind, stride, norm })
        };
        match primitive {
            Primitive::None => Ok(Self::None { stride }),
            Primitive::MaxPool3x3 => pool(PoolKind::Max),
            Primitive::AvgPool3x3 => pool(PoolKind::Average),
            Primitive::SkipConnect if stride == 1 => Ok(Self::Identity),
            Primitive::SkipConnect => Ok(Self::Reduce(FactorizedReduce::new(
                builder, n_channels, n_channels, affine,
            )?)),
            Primitive::SepConv3x3 => separable(3),
            Primitive::SepConv5x5 => separable(5),
            Primitive::DilConv3x3 => dilated(3),
            Primitive::DilConv5x5 => dilated(5),
        }
    }

    /// Runs the operation: `[n, c, h, w]` to `[n, c, ceil(h/stride), ceil(w/stride)]`.
    pub fn forward(&self, input: &EdgeInput, pass: &Pass<'_>) -> Result<Tensor> {
        match self {
            Self::None { stride } => {
                let (n, c, h, w) = input.x.dims4()?;
                let shape = (n, c, h.div_ceil(*stride), w.div_ceil(*stride));
                Tensor::zeros(shape, input.x.dtype(), input.x.device())
            }
            Self::Pool { kind, norm, .. } => {
                let pooled = input.pooled(*kind, pass, norm.is_some())?;
                match (norm, &pooled.normalised) {
                    (None, _) => Ok(pooled.raw.clone()),
                    (Some(norm), Some((y, statistics))) => {
                        norm.follow(statistics)?;
                        Ok(y.clone())
                    }
                    (Some(norm), None) => norm.forward(&pooled.raw, pass),
                }
            }
            Self::Identity => Ok(input.x.clone()),
            Self::Reduce(reduce) => reduce.forward_activated(input.activated()?, pass),
            Self::Conv(units) => {
                let (first, rest) = units.split_first().expect("a convolution has a unit");
                let mut y = first.forward_activated(input.activated()?, pass)?;
                for unit in rest {
                    y = unit.forward_activated(&kernels::relu(&y)?, pass)?;
                }
                Ok(y)
            }
        }
    }

    /// Whether the operation is the plain identity, which drop path leaves alone.
    pub fn is_identity(&self) -> bool {
        matches!(self, Self::Identity)
    }
}
