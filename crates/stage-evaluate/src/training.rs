//! Training from scratch, epoch by epoch, with a checkpoint after each.

use std::path::{Path, PathBuf};

use artifact::{EpochRow, FloatTensor, FloatTensors};
use candle_core::{DType, Device, Tensor};
use nn::loss::{cross_entropy, n_correct, scalar};
use nn::optimizer::{Gradients, Sgd};
use nn::parameters::Builder;
use nn::schedule::drop_path_probability;
use nn::{DerivedNet, Pass};
use space::{Genotype, NetworkSpec};

use crate::checkpoint::Checkpoint;
use crate::config::Config;
use crate::data::Data;
use crate::error::Error;

/// Random draws: stream 0 gives the initial weights, stream 1 + epoch whatever that epoch draws. So a
/// training that is taken up again needs no state of a generator.
const STREAM_INIT: u64 = 0;
const STREAM_FIRST_EPOCH: u64 = 1;

/// A training under way.
pub(crate) struct Training<'a> {
    config: &'a Config,
    data: &'a Data,
    device: Device,
    network: DerivedNet,
    sgd: Sgd,
    epochs: Vec<EpochRow>,
    checkpoint: PathBuf,
}

impl<'a> Training<'a> {
    /// Draws the initial weights, or takes up the training whose checkpoint lies in the folder.
    pub(crate) fn open(
        config: &'a Config,
        genotype: &Genotype,
        data: &'a Data,
        device: &Device,
        work_dir: &Path,
    ) -> Result<Self, Error> {
        let spec = NetworkSpec::try_from(&config.network)?;
        let mut rng = crate::rng(config.seed, STREAM_INIT);
        let builder = Builder::new(device, DType::F32, &mut rng);
        let network = DerivedNet::new(&builder, &spec, genotype, config.auxiliary_weight > 0.0)?;
        let mut training = Self {
            config,
            data,
            device: device.clone(),
            network,
            sgd: Sgd::new(config.weights.momentum, config.weights.weight_decay),
            epochs: Vec::new(),
            checkpoint: work_dir.join("training.checkpoint"),
        };
        if let Some(checkpoint) = Checkpoint::load(&training.checkpoint, device)? {
            let path = || training.checkpoint.clone();
            training
                .network
                .parameters()
                .load(&checkpoint.network)
                .map_err(|source| Error::Checkpoint {
                    path: path(),
                    source: Some(source),
                })?;
            training.sgd.load(&checkpoint.sgd)?;
            training.epochs = checkpoint.epochs;
        }
        Ok(training)
    }

    /// The epochs that are done.
    pub(crate) fn epochs(&self) -> &[EpochRow] {
        &self.epochs
    }

    /// The steps of an epoch.
    pub(crate) fn n_steps(&self) -> usize {
        self.data.train.len().div_ceil(self.config.batch_size)
    }

    /// The batches of the test.
    pub(crate) fn n_test_batches(&self) -> usize {
        self.data.test.len().div_ceil(self.config.batch_size)
    }

    /// Trains one epoch and writes the checkpoint; `on_step` is told the loss after each step.
    pub(crate) fn advance(&mut self, on_step: impl FnMut(f64)) -> Result<(), Error> {
        let row = self.epoch(on_step)?;
        self.epochs.push(row);
        Checkpoint {
            network: self.network.parameters().state()?,
            sgd: self.sgd.state()?,
            epochs: self.epochs.clone(),
        }
        .save(&self.checkpoint)
    }

    fn epoch(&mut self, mut on_step: impl FnMut(f64)) -> Result<EpochRow, Error> {
        let config = self.config;
        let epoch = self.epochs.len();
        let learning_rate = config.learning_rate(epoch);
        let drop_path = drop_path_probability(config.drop_path, epoch, config.n_epochs);
        let mut rng = crate::rng(config.seed, STREAM_FIRST_EPOCH + epoch as u64);
        let all: Vec<usize> = (0..self.data.train.len()).collect();
        let order = images::epoch_order(&all, &mut rng);

        let (mut loss_sum, mut n_right) = (0.0, 0);
        for (step, indices) in order.chunks(config.batch_size).enumerate() {
            let (x, y) = self.data.train_batch(indices, &mut rng, &self.device)?;
            let pass = Pass::training_with_drop_path(drop_path, &mut rng);
            let (loss, right) = self.step(&x, &y, &pass, learning_rate)?;
            if !loss.is_finite() {
                return Err(Error::NonFinite {
                    what: "the training loss",
                    epoch,
                    step,
                });
            }
            loss_sum += loss * indices.len() as f64;
            n_right += right;
            on_step(loss);
        }
        let n_images = order.len() as f64;
        Ok(EpochRow {
            epoch: epoch as u32,
            train_loss: loss_sum / n_images,
            train_accuracy: n_right as f64 / n_images,
            learning_rate,
            drop_path,
        })
    }

    /// One step on a batch: its loss before the step, and how many images were classified right.
    fn step(
        &mut self,
        x: &Tensor,
        y: &Tensor,
        pass: &Pass<'_>,
        learning_rate: f64,
    ) -> Result<(f64, usize), Error> {
        let config = self.config;
        let logits = self.network.forward(x, pass)?;
        let mut loss = cross_entropy(&logits.main, y, config.label_smoothing)?;
        if let Some(auxiliary) = &logits.auxiliary {
            let auxiliary = cross_entropy(auxiliary, y, config.label_smoothing)?;
            loss = (loss + (auxiliary * config.auxiliary_weight)?)?;
        }
        let parameters = self.network.parameters();
        let gradients = Gradients::collect(parameters, &mut loss.backward()?);
        let scale = match config.weights.clip_norm {
            0.0 => 1.0,
            max_norm => gradients.clip_factor(max_norm)?.0,
        };
        self.sgd
            .step(parameters, &gradients, learning_rate, scale)?;
        Ok((scalar(&loss)?, n_correct(&logits.main, y)?))
    }

    /// Tests the trained network. `on_batch` is called after each batch.
    pub(crate) fn finish(self, mut on_batch: impl FnMut()) -> Result<Trained, Error> {
        let set = &self.data.test;
        let all: Vec<usize> = (0..set.len()).collect();
        let (mut loss_sum, mut n_right) = (0.0, 0);
        for (step, indices) in all.chunks(self.config.batch_size).enumerate() {
            let (x, y) = self.data.test_batch(indices, &self.device)?;
            let logits = self.network.forward(&x, &Pass::inference())?.main;
            let loss = scalar(&cross_entropy(&logits, &y, 0.0)?)?;
            if !loss.is_finite() {
                let epoch = self.epochs.len();
                return Err(Error::NonFinite {
                    what: "the test loss",
                    epoch,
                    step,
                });
            }
            loss_sum += loss * indices.len() as f64;
            n_right += n_correct(&logits, &y)?;
            on_batch();
        }
        Ok(Trained {
            test_loss: loss_sum / set.len() as f64,
            test_accuracy: n_right as f64 / set.len() as f64,
            network: self.network,
            epochs: self.epochs,
        })
    }
}

/// A trained and tested network.
pub(crate) struct Trained {
    pub(crate) network: DerivedNet,
    pub(crate) epochs: Vec<EpochRow>,
    /// The mean cross entropy on the test images, in nats.
    pub(crate) test_loss: f64,
    /// The share of test images classified right.
    pub(crate) test_accuracy: f64,
}

impl Trained {
    /// The weights and running statistics, without those of the auxiliary head.
    pub(crate) fn weights(&self) -> Result<FloatTensors, Error> {
        self.network
            .parameters()
            .state()?
            .into_iter()
            .filter(|(name, _)| !name.starts_with("auxiliary_head."))
            .map(|(name, tensor)| {
                let values = tensor.flatten_all()?.to_vec1()?;
                Ok((name, FloatTensor::new(tensor.dims(), values)))
            })
            .collect()
    }
}
