//! What one forward pass needs to know beyond its input.

use std::cell::RefCell;

use candle_core::{Device, Result, Tensor, Var};
use collective::Share;
use rand::RngExt;

use crate::Rng;

/// The mode of one forward pass.
///
/// A pass that does not track weights treats them as constants: the alpha step needs no gradient of
/// the weights, and inference needs none at all, so no graph is recorded for them.
pub struct Pass<'r> {
    training: bool,
    tracks_weights: bool,
    cells: Cells,
    drop_path: Option<Drop<'r>>,
    skip_dropout: Option<Drop<'r>>,
    share: Option<&'r Share>,
}

/// How cells run.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Cells {
    /// As it is best for the device: fused on the CPU, grouped on CUDA.
    OfDevice,
    /// Grouped, on any device.
    Grouped,
    /// Operation by operation.
    ByOperation,
}

struct Drop<'r> {
    probability: f64,
    rng: RefCell<&'r mut Rng>,
}

impl<'r> Drop<'r> {
    /// `None` where nothing is dropped.
    fn new(probability: f64, rng: &'r mut Rng) -> Option<Self> {
        (probability > 0.0).then(|| Self {
            probability,
            rng: RefCell::new(rng),
        })
    }

    /// A factor for each of `n` things: 0, or 1 over the probability of keeping one.
    fn factors(&self, n: usize) -> Vec<f32> {
        let keep = 1.0 - self.probability;
        let mut rng = self.rng.borrow_mut();
        (0..n)
            .map(|_| {
                if rng.random::<f64>() < keep {
                    (1.0 / keep) as f32
                } else {
                    0.0
                }
            })
            .collect()
    }
}

impl<'r> Pass<'r> {
    /// Inference: running statistics, no gradients of weights.
    pub fn inference() -> Self {
        Self {
            training: false,
            tracks_weights: false,
            cells: Cells::OfDevice,
            drop_path: None,
            skip_dropout: None,
            share: None,
        }
    }

    /// Running statistics, but gradients of the weights are recorded.
    pub fn evaluation_with_gradients() -> Self {
        Self {
            training: false,
            tracks_weights: true,
            cells: Cells::OfDevice,
            drop_path: None,
            skip_dropout: None,
            share: None,
        }
    }

    /// A weight step: batch statistics, gradients of the weights.
    pub fn training() -> Self {
        Self {
            training: true,
            tracks_weights: true,
            cells: Cells::OfDevice,
            drop_path: None,
            skip_dropout: None,
            share: None,
        }
    }

    /// An alpha step: batch statistics, weights held constant.
    pub fn architecture_step() -> Self {
        Self {
            training: true,
            tracks_weights: false,
            cells: Cells::OfDevice,
            drop_path: None,
            skip_dropout: None,
            share: None,
        }
    }

    /// A weight step in which each path is dropped with the given probability, independently per
    /// sample, and survivors are divided by the probability of keeping them.
    pub fn training_with_drop_path(probability: f64, rng: &'r mut Rng) -> Self {
        Self {
            drop_path: Drop::new(probability, rng),
            ..Self::training()
        }
    }

    /// The same pass with dropout behind each skip of stride 1 in the supernet (P-DARTS): a number becomes 0 with
    /// that probability, the others are divided by the probability of keeping them.
    pub fn with_skip_dropout(self, probability: f64, rng: &'r mut Rng) -> Self {
        Self {
            skip_dropout: Drop::new(probability, rng),
            ..self
        }
    }

    /// The same pass, operation by operation: what fused and grouped cells are held against.
    pub fn unfused(self) -> Self {
        Self {
            cells: Cells::ByOperation,
            ..self
        }
    }

    /// The same pass with cells grouped as on CUDA, on any device.
    pub fn grouped(self) -> Self {
        Self {
            cells: Cells::Grouped,
            ..self
        }
    }

    /// The same pass on this rank's share of a batch; on the CPU operation by operation, because fused cells take their
    /// statistics inside. `None` = the batch is all here.
    pub fn over(self, share: Option<&'r Share>) -> Self {
        Self { share, ..self }
    }

    /// What of the batch is here; `None` = all.
    pub(crate) fn share(&self) -> Option<&Share> {
        self.share
    }

    /// Whether batch statistics are used (and running statistics updated).
    pub fn is_training(&self) -> bool {
        self.training
    }

    /// Whether gradients of the weights are recorded.
    pub(crate) fn tracks_weights(&self) -> bool {
        self.tracks_weights
    }

    /// Whether cells may run fused: fused cells know no dropout behind skips, and no ranks.
    pub(crate) fn can_fuse(&self) -> bool {
        self.cells == Cells::OfDevice && self.skip_dropout.is_none() && self.share.is_none()
    }

    /// Whether cells run grouped on a device: these know no dropout behind skips either.
    pub(crate) fn groups(&self, device: &Device) -> bool {
        let is_asked = match self.cells {
            Cells::OfDevice => device.is_cuda(),
            Cells::Grouped => true,
            Cells::ByOperation => false,
        };
        is_asked && self.skip_dropout.is_none()
    }

    /// The tensor of a weight, tracked or constant as this pass wants it.
    pub(crate) fn weight(&self, var: &Var) -> Tensor {
        if self.tracks_weights {
            var.as_tensor().clone()
        } else {
            var.as_detached_tensor()
        }
    }

    /// Applies drop path to the output of an operation, `[n, c, h, w]`; the identity outside training.
    pub(crate) fn drop_path(&self, x: Tensor) -> Result<Tensor> {
        let n = x.dim(0)?;
        let Some(mask) = self.draw_mask(n) else {
            return Ok(x);
        };
        let mask = Tensor::from_vec(mask, (n, 1, 1, 1), x.device())?.to_dtype(x.dtype())?;
        x.broadcast_mul(&mask)
    }

    /// Whether drop path is on.
    pub(crate) fn drops_paths(&self) -> bool {
        self.drop_path.is_some()
    }

    /// By what drop path multiplies each of `n` images at one operation; `None` without drop path.
    pub(crate) fn draw_mask(&self, n: usize) -> Option<Vec<f32>> {
        let drop = self.drop_path.as_ref()?;
        let Some(share) = self.share else {
            return Some(drop.factors(n));
        };
        // Draws for the whole batch, so that all ranks draw the same.
        Some(drop.factors(share.n_images())[share.range()].to_vec())
    }

    /// Applies dropout to the output of a skip, `[n, c, h, w]`, if the pass has any.
    pub(crate) fn skip_dropout(&self, x: Tensor) -> Result<Tensor> {
        let Some(drop) = &self.skip_dropout else {
            return Ok(x);
        };
        let n = x.dim(0)?;
        let len = x.elem_count() / n.max(1);
        let mask = match self.share {
            None => drop.factors(n * len),
            // Draws for the whole batch, so that all ranks draw the same.
            Some(share) => {
                let range = share.range();
                drop.factors(share.n_images() * len)[range.start * len..range.end * len].to_vec()
            }
        };
        let mask = Tensor::from_vec(mask, x.dims(), x.device())?.to_dtype(x.dtype())?;
        x * mask
    }
}
