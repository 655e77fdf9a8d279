//! Training from scratch, epoch by epoch, with a checkpoint after each.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use artifact::{DeviceSpec, EpochRow, Export, FloatTensor, FloatTensors, ImagesRecord, MemoryPlan};
use candle_core::{DType, Device, Tensor};
use collective::{Collective, Share};
use images::Batch;
use nn::loss::{Tally, cross_entropy, hits, n_correct, scalar};
use nn::optimizer::{Gradients, Sgd};
use nn::parameters::Builder;
use nn::schedule::drop_path_probability;
use nn::{DerivedNet, Pass, Uploads};
use space::{Genotype, NetworkSpec};

use crate::checkpoint::Checkpoint;
use crate::config::Config;
use crate::data::Data;
use crate::error::Error;

/// Random draws: stream 0 gives the initial weights, stream 1 + epoch whatever that epoch draws. So a
/// training that is taken up again needs no state of a generator.
const STREAM_INIT: u64 = 0;
const STREAM_FIRST_EPOCH: u64 = 1;
/// What an epoch drops; apart from its images, which are made ahead.
const STREAM_FIRST_DROP_PATH: u64 = 1 << 32;

/// A training under way.
pub(crate) struct Training<'a> {
    config: &'a Config,
    data: &'a Data,
    device: Device,
    /// The ranks that train together; `None` = this process alone.
    ranks: Option<Arc<dyn Collective>>,
    network: DerivedNet,
    sgd: Sgd,
    epochs: Vec<EpochRow>,
    checkpoint: PathBuf,
}

impl<'a> Training<'a> {
    /// Draws the initial weights; checkpoints go to the folder.
    pub(crate) fn new(
        config: &'a Config,
        genotype: &Genotype,
        data: &'a Data,
        device: &Device,
        work_dir: &Path,
        ranks: Option<Arc<dyn Collective>>,
    ) -> Result<Self, Error> {
        if let Some(ranks) = &ranks {
            let n_ranks = ranks.n_ranks();
            let last = data.train.len() % config.batch_size;
            if config.batch_size < n_ranks || (last > 0 && last < n_ranks) {
                return Err(Error::Setting {
                    key: "batch_size",
                    expected: "such that every batch of an epoch, the last one too, has an image for each of the --ranks".to_owned(),
                });
            }
        }
        let spec = NetworkSpec::try_from(&config.network)?;
        let mut rng = crate::rng(config.seed, STREAM_INIT);
        let builder = Builder::new(device, DType::F32, &mut rng)
            .with_precision(crate::precision(config.precision));
        let network = DerivedNet::new(&builder, &spec, genotype, config.auxiliary_weight > 0.0)?;
        Ok(Self {
            config,
            data,
            device: device.clone(),
            ranks,
            network,
            sgd: Sgd::new(config.weights.momentum, config.weights.weight_decay),
            epochs: Vec::new(),
            checkpoint: work_dir.join("training.checkpoint"),
        })
    }

    /// [`new`](Self::new), or the training whose checkpoint lies in the folder.
    pub(crate) fn open(
        config: &'a Config,
        genotype: &Genotype,
        data: &'a Data,
        device: &Device,
        work_dir: &Path,
        ranks: Option<Arc<dyn Collective>>,
    ) -> Result<Self, Error> {
        let mut training = Self::new(config, genotype, data, device, work_dir, ranks)?;
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
        if let Some(ranks) = &training.ranks {
            let n_done = training.epochs.len().to_string();
            let genotype = genotype.to_string();
            collective::agree(&**ranks, "the genotype", &genotype)?;
            collective::agree(&**ranks, "the epochs that are done", &n_done)?;
        }
        Ok(training)
    }

    /// What a step by each of so many ranks will keep in memory, and on the processor the images.
    pub(crate) fn memory(&self, device: DeviceSpec, n_ranks: usize) -> Result<MemoryPlan, Error> {
        let config = self.config;
        let path = nn::memory::Path::of(&self.device, n_ranks);
        let n_images = config.batch_size.div_ceil(n_ranks);
        // A last batch of less than half as many has buffers of its own.
        let n_last = self.data.train.len() % config.batch_size;
        let n_more = match path {
            nn::memory::Path::Fused if 2 * n_last < config.batch_size => n_last,
            _ => 0,
        };
        let spec = NetworkSpec::try_from(&config.network)?;
        let mut plan = MemoryPlan::on(device);
        let step = self.network.step_memory(&spec, n_images + n_more, path);
        for (what, bytes) in step.parts() {
            plan = plan.with(what, bytes);
        }
        if self.device.is_cpu() {
            let pixels = spec.in_channels * spec.image_size * spec.image_size;
            let sets = self.data.train.n_bytes() + self.data.test.n_bytes();
            // A batch is used, one waits, and one is made.
            plan = plan
                .with("images", (sets + 3 * 4 * n_images * pixels) as u64)
                .with("program", nn::memory::PROGRAM_BYTES);
        }
        Ok(plan)
    }

    fn share(&self, n_images: usize) -> Option<Share> {
        Some(Share::of(self.ranks.as_ref()?, n_images))
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
        if let Some(ranks) = &self.ranks {
            // Rank 0 keeps the state for all, if it is that of all.
            let loss = self.epochs.last().map_or(0.0, |row| row.train_loss);
            collective::agree(&**ranks, "the training loss", &loss.to_string())?;
            collective::agree(&**ranks, "the weights", &self.digest()?)?;
            if ranks.rank() > 0 {
                return Ok(());
            }
        }
        Checkpoint {
            network: self.network.parameters().state()?,
            sgd: self.sgd.state()?,
            epochs: self.epochs.clone(),
        }
        .save(&self.checkpoint)
    }

    /// The sum of all weights' squares, to the last bit: of equal networks it is equal.
    fn digest(&self) -> Result<String, Error> {
        let mut sum = 0.0;
        for var in self.network.parameters().weights().values() {
            sum += scalar(&var.as_detached_tensor().sqr()?.sum_all()?)?;
        }
        Ok(format!("a network of squares {sum:e}"))
    }

    fn epoch(&mut self, mut on_step: impl FnMut(f64)) -> Result<EpochRow, Error> {
        let config = self.config;
        let epoch = self.epochs.len();
        let drop_path = drop_path_probability(config.drop_path, epoch, config.n_epochs);
        let mut rng = crate::rng(config.seed, STREAM_FIRST_EPOCH + epoch as u64);
        let mut drop_path_rng = crate::rng(config.seed, STREAM_FIRST_DROP_PATH + epoch as u64);
        let all: Vec<usize> = (0..self.data.train.len()).collect();
        let order = images::epoch_order(&all, &mut rng);

        let sizes: Vec<usize> = order
            .chunks(config.batch_size)
            .map(<[usize]>::len)
            .collect();
        let shares: Vec<Option<Share>> = sizes.iter().map(|&n| self.share(n)).collect();
        let data = self.data;
        // In the order of the steps, so that what is drawn does not depend on who is ahead.
        let batches = order
            .chunks(config.batch_size)
            .zip(&shares)
            .map(|(indices, share)| data.train_batch(indices, &mut rng, share.as_ref()));
        let (mut loss_sum, mut n_right, mut n_steps) = (0.0, 0.0, 0);
        let mut take = |rows: Vec<[f64; 2]>| {
            for [loss, hits] in rows {
                if !loss.is_finite() {
                    return Err(Error::NonFinite {
                        what: "the training loss",
                        epoch,
                        step: n_steps,
                    });
                }
                loss_sum += loss * sizes[n_steps] as f64;
                n_right += hits;
                n_steps += 1;
                on_step(loss);
            }
            Ok(())
        };
        let mut tally = Tally::new(&self.device);
        // Of a step and of the one behind it.
        let (device, uploads) = (self.device.clone(), Uploads::new(&self.device, 2)?);
        let at = [epoch, config.n_epochs];
        let learning_rate = |step| config.weights.learning_rate(at, [step, sizes.len()]);
        images::prefetched(batches, |batches| {
            let started = nn::one_ahead(&device, batches, |batch| {
                let Batch { images, labels, .. } = batch?;
                Ok::<_, Error>((uploads.start(images)?, labels))
            });
            for (step, (batch, share)) in started.zip(&shares).enumerate() {
                let share = share.as_ref();
                let (images, labels) = batch?;
                let n = labels.len();
                let x = uploads.take(images, &data.train_shape(n)[..])?;
                let y = Tensor::from_vec(labels, n, &device)?;
                let pass = Pass::training_with_drop_path(drop_path, &mut drop_path_rng).over(share);
                let (loss, hits) = self.step(&x, &y, &pass, learning_rate(step), share)?;
                take(tally.add([&loss, &hits], share)?)?;
            }
            take(tally.read(shares.last().and_then(Option::as_ref))?)
        })?;
        let n_images = order.len() as f64;
        Ok(EpochRow {
            epoch: epoch as u32,
            train_loss: loss_sum / n_images,
            train_accuracy: n_right / n_images,
            learning_rate: learning_rate(0),
            drop_path,
        })
    }

    /// One step on a batch: its loss before the step, and how many images were classified right; this rank's part of
    /// both, on the device.
    fn step(
        &mut self,
        x: &Tensor,
        y: &Tensor,
        pass: &Pass<'_>,
        learning_rate: f64,
        share: Option<&Share>,
    ) -> Result<(Tensor, Tensor), Error> {
        let config = self.config;
        let logits = self.network.forward(x, pass)?;
        let mut loss = cross_entropy(&logits.main, y, config.label_smoothing)?;
        if let Some(auxiliary) = &logits.auxiliary {
            let auxiliary = cross_entropy(auxiliary, y, config.label_smoothing)?;
            loss = (loss + (auxiliary * config.auxiliary_weight)?)?;
        }
        if let Some(share) = share {
            loss = (loss * share.weight())?;
        }
        let parameters = self.network.parameters();
        let gradients = Gradients::collect(parameters, &mut loss.backward()?).summed(share)?;
        let (gradients, factor) = gradients.clip(config.weights.clip_norm)?;
        self.sgd
            .step(parameters, &gradients, learning_rate, factor)?;
        Ok((loss.detach(), hits(&logits.main.detach(), y)?))
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
            n_test: set.len(),
            network: self.network,
            epochs: self.epochs,
            images: self.data.record(),
        })
    }
}

/// A trained and tested network.
pub(crate) struct Trained {
    pub(crate) network: DerivedNet,
    pub(crate) epochs: Vec<EpochRow>,
    /// What it was trained on.
    pub(crate) images: ImagesRecord,
    /// The mean cross entropy on the test images, in nats.
    pub(crate) test_loss: f64,
    /// The share of test images classified right.
    pub(crate) test_accuracy: f64,
    /// Test images.
    pub(crate) n_test: usize,
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

    /// The network for other programs.
    pub(crate) fn export(&self, spec: &NetworkSpec, genotype: &Genotype) -> Result<Export, Error> {
        let images = runtime::onnx::Images {
            mean: &self.images.mean,
            std: &self.images.std,
            class_names: &self.images.class_names,
        };
        let onnx = runtime::onnx::encode(spec, genotype, self.network.parameters(), &images)?;
        Ok(Export {
            images: self.images.clone(),
            onnx,
        })
    }
}
