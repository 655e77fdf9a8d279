//! The auxiliary head: a second classifier behind the last reduction, in training only.

use candle_core::{Result, Tensor, Var};
use kernels::{Conv2dGeometry, Pool2dGeometry};
use space::{NetworkSpec, Stem};

use crate::Pass;
use crate::layers::{Affine, BatchNorm, Linear, Pointwise};
use crate::parameters::Builder;

/// ReLU, 5x5 average pooling, 1x1 convolution to 128, BN, ReLU, 2x2 convolution to 768, BN (none on
/// ImageNet), ReLU, linear.
pub struct AuxiliaryHead {
    pool: Pool2dGeometry,
    reduce: Pointwise,
    reduce_norm: BatchNorm,
    expand: Var,
    expand_norm: Option<BatchNorm>,
    classifier: Linear,
}

impl AuxiliaryHead {
    /// Builds `features.2` … and `classifier` for `n_in` input channels.
    pub fn new(builder: &Builder<'_>, n_in: usize, spec: &NetworkSpec) -> Result<Self> {
        let imagenet = spec.stem == Stem::Imagenet;
        let features = builder.scope("features");
        let affine = Affine::Yes;
        Ok(Self {
            pool: Pool2dGeometry {
                kernel: 5,
                padding: 0,
                stride: if imagenet { 2 } else { 3 },
            },
            reduce: Pointwise::new(&features.scope(2), n_in, 128)?,
            reduce_norm: BatchNorm::new(&features.scope(3), 128, affine)?,
            expand: features
                .scope(5)
                .uniform("weight", (768, 128, 2, 2), 128 * 4)?,
            expand_norm: if imagenet {
                None
            } else {
                Some(BatchNorm::new(&features.scope(6), 768, affine)?)
            },
            classifier: Linear::new(&builder.scope("classifier"), 768, spec.n_classes)?,
        })
    }

    /// `[n, n_in, s, s]` to logits `[n, n_classes]`; s = 8 on CIFAR, 7 on ImageNet, so that a single
    /// pixel remains.
    pub fn forward(&self, x: &Tensor, pass: &Pass<'_>) -> Result<Tensor> {
        let y = kernels::avg_pool2d(&kernels::relu(x)?, self.pool)?;
        let y = self.reduce.forward(&y, pass)?;
        let y = kernels::relu(&self.reduce_norm.forward(&y, pass)?)?;
        let geometry = Conv2dGeometry {
            padding: 0,
            stride: 1,
            dilation: 1,
        };
        let mut y = kernels::conv2d(&y, &pass.weight(&self.expand), geometry)?;
        if let Some(norm) = &self.expand_norm {
            y = norm.forward(&y, pass)?;
        }
        self.classifier
            .forward(&kernels::relu(&y)?.flatten_from(1)?, pass)
    }
}
