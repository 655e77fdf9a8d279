//! The first convolution of a network, with its batch normalisation: what a chain of fused cells begins with.

use std::ops::Range;

use candle_core::{Result, Tensor};
use kernels::planes::{Affine, Buffer, Dense, Grid, NormGrad, dots, normalise};
use kernels::{Conv2dGeometry, Element, Window};

use super::forward::Statistics;
use super::{planes, planes_mut, running};
use crate::Pass;
use crate::layers::{BATCH_NORM_EPS, BatchNorm, to_planes};

/// A dense convolution of images and its affine batch normalisation, `[c, h, w, n]` to `[o, h', w', n]`, with the images
/// that it is to run on. Images have no gradient.
pub(crate) struct StemRun<'a> {
    /// The images, `c h w n`.
    pub(super) x: Tensor,
    /// The kernel, and the factor and shift of the normalisation.
    pub(super) parameters: [Tensor; 3],
    pub(super) norm: &'a BatchNorm,
    dense: Dense,
    running: Option<Statistics>,
}

impl<'a> StemRun<'a> {
    /// Of images `n c h w`.
    pub(crate) fn new(
        x: &Tensor,
        weight: Tensor,
        geometry: Conv2dGeometry,
        norm: &'a BatchNorm,
        pass: &Pass<'_>,
    ) -> Result<Self> {
        let (factor, shift) = norm.affine().expect("stems have affine normalisations");
        let x = to_planes(x)?;
        let (_, h, w, n) = x.dims4()?;
        let window = Window {
            input: [h, w],
            kernel: [weight.dim(2)?, weight.dim(3)?],
            padding: geometry.padding,
            stride: geometry.stride,
            dilation: geometry.dilation,
        };
        Ok(Self {
            x,
            parameters: [weight, pass.weight(factor), pass.weight(shift)],
            norm,
            dense: Dense::new(window, n),
            running: match pass.is_training() {
                true => None,
                false => Some(running(norm)?),
            },
        })
    }

    /// What it computes, with its parameters from `start` on.
    pub(super) fn plan(&self, start: usize) -> StemPlan {
        let [weight, factor, shift] = self.parameters.each_ref().map(Tensor::elem_count);
        StemPlan {
            dense: self.dense.clone(),
            running: self.running.clone(),
            weight: start..start + weight,
            affine: start + weight..start + weight + factor + shift,
        }
    }
}

/// What a stem computes, and the places of its parameters.
pub(super) struct StemPlan {
    dense: Dense,
    /// What the normalisation goes by outside training.
    running: Option<Statistics>,
    weight: Range<usize>,
    affine: Range<usize>,
}

/// A stem that has run.
pub(super) struct SavedStem<T: Element> {
    /// What the convolution gave.
    raw: Buffer<T>,
    /// What its normalisation went by, and what it does.
    pub(super) statistics: Statistics,
    affine: Vec<Affine<T>>,
    /// What it gave, if that is stored.
    pub(super) y: Option<Buffer<T>>,
}

impl<T: Element> SavedStem<T> {
    /// Planes of `len` numbers, with the normalisation that is still to come.
    pub(super) fn raw(&self, len: usize) -> (Vec<&[T]>, &[Affine<T>]) {
        (planes(&self.raw, len), &self.affine)
    }

    /// What the normalisation gave; nothing, if that is not stored.
    pub(super) fn output(&self) -> &[T] {
        self.y.as_deref().unwrap_or(&[])
    }
}

impl StemPlan {
    /// The size of its output's planes.
    pub(super) fn grid(&self) -> Grid {
        self.dense.output()
    }

    /// Planes of its output.
    pub(super) fn n_out(&self) -> usize {
        self.affine.len() / 2
    }

    /// Runs the stem; what its normalisation gives is stored where `stores`.
    pub(super) fn forward<T: Element>(
        &self,
        x: &[T],
        parameters: &[T],
        stores: bool,
    ) -> SavedStem<T> {
        let (len, n_out) = (self.grid().len(), self.n_out());
        let mut raw = Buffer::any(n_out * len);
        let weight = &parameters[self.weight.clone()];
        let x = planes(x, self.dense.input().len());
        let found = self.dense.forward(&x, weight, planes_mut(&mut raw, len));
        let statistics = self.running.clone().unwrap_or(Statistics {
            moments: found,
            count: len,
        });
        let (factors, shifts) = parameters[self.affine.clone()].split_at(n_out);
        let channels = statistics.moments.iter().zip(factors).zip(shifts);
        let affine: Vec<Affine<T>> = channels
            .map(|((moments, factor), shift)| {
                Affine {
                    mean: moments.mean,
                    factor: factor.to_f64() * moments.inv_std(BATCH_NORM_EPS),
                    bias: shift.to_f64(),
                }
                .cast()
            })
            .collect();
        let y = stores.then(|| {
            let mut y = Buffer::any(raw.len());
            normalise(planes_mut(&mut y, len), &planes(&raw, len), &affine);
            y
        });
        SavedStem {
            raw,
            statistics,
            affine,
            y,
        }
    }

    /// Puts the gradients of its parameters into their places among all.
    pub(super) fn backward<T: Element>(
        &self,
        x: &[T],
        parameters: &[T],
        saved: &SavedStem<T>,
        grad_y: &[T],
        grads: &mut [f64],
    ) {
        let len = self.grid().len();
        let (raw, moments) = (planes(&saved.raw, len), &saved.statistics.moments);
        let grad_y = planes(grad_y, len);
        let sources: Vec<Vec<&[T]>> = raw.iter().map(|plane| vec![*plane]).collect();
        let sums: Vec<[f64; 2]> = dots(&grad_y, &sources)
            .into_iter()
            .map(|(sum, products)| [sum, products[0]])
            .collect();
        let factors: Vec<f64> = parameters[self.affine.clone()][..self.n_out()]
            .iter()
            .map(|factor| factor.to_f64())
            .collect();
        let of_factors = moments.iter().zip(&sums).map(|(moments, &[sum, product])| {
            (product - moments.mean * sum) * moments.inv_std(BATCH_NORM_EPS)
        });
        let of_shifts = sums.iter().map(|[sum, _]| *sum);
        for (grad, found) in grads[self.affine.clone()]
            .iter_mut()
            .zip(of_factors.chain(of_shifts))
        {
            *grad = found;
        }
        let chain = NormGrad::new(grad_y, raw, moments, BATCH_NORM_EPS, &sums, &factors);
        let x = planes(x, self.dense.input().len());
        grads[self.weight.clone()].copy_from_slice(&self.dense.backward(&x, &chain));
    }
}
