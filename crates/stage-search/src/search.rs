//! The bilevel search, first order: in each step alpha moves on a validation batch, then the weights on a
//! training batch.

use candle_core::{DType, Device, Tensor};
use images::{Augmentation, Batch, ImageSet, Normalization};
use latency::LatencyModel;
use nn::loss::{cross_entropy, n_correct, scalar};
use nn::optimizer::{Adam, Gradients, Sgd};
use nn::parameters::Builder;
use nn::schedule::Schedule;
use nn::{Architecture, ChannelRatio, Pass, Rng, Supernet};
use rand_chacha::rand_core::SeedableRng;
use space::{CellKind, Genotype, NetworkSpec, SearchSpace, Stem};

use crate::config::{Config, Method};
use crate::error::Error;

/// The generator of one purpose. Streams of one seed are independent, and none needs to be saved: what
/// an epoch draws depends on the seed and the epoch alone.
fn rng(seed: u64, stream: u64) -> Rng {
    let mut rng = Rng::seed_from_u64(seed);
    rng.set_stream(stream);
    rng
}

const STREAM_INIT: u64 = 0;
const STREAM_SPLIT: u64 = 1;
const STREAM_FIRST_EPOCH: u64 = 2;

/// The two parts of the training split.
pub(crate) struct Data<'a> {
    set: &'a ImageSet,
    train: Vec<usize>,
    valid: Vec<usize>,
    normalization: Normalization,
    augmentation: Augmentation,
}

impl<'a> Data<'a> {
    /// Splits by class; normalises by the statistics of the whole set.
    pub(crate) fn new(set: &'a ImageSet, config: &Config) -> Result<Self, Error> {
        let data = &config.data;
        let fractions = [data.train_fraction, data.valid_fraction];
        let mut rng = rng(config.seed, STREAM_SPLIT);
        let mut parts = images::stratified_split(set.labels(), &fractions, &mut rng).into_iter();
        let (train, valid) = parts.next().zip(parts.next()).unwrap_or_default();
        if train.len() < config.batch_size || valid.len() < config.batch_size {
            return Err(Error::Setting {
                key: "batch_size",
                expected: "no more than the images of either part of the data set",
            });
        }
        let augmentation = Augmentation {
            random_resized_crop: data.random_resized_crop,
            pad: data.pad,
            flip: data.flip,
            cutout: data.cutout,
            color_jitter: data.color_jitter,
            hue: data.hue_jitter,
        };
        let normalization = set.channel_statistics()?;
        Ok(Self {
            set,
            train,
            valid,
            normalization,
            augmentation,
        })
    }

    fn batch(
        &self,
        indices: &[usize],
        augmentation: &Augmentation,
        rng: &mut Rng,
        device: &Device,
    ) -> Result<(Tensor, Tensor), Error> {
        let Batch { images, labels, n } =
            images::batch(self.set, indices, &self.normalization, augmentation, rng)?;
        let shape = (
            n,
            self.set.n_channels(),
            self.set.height(),
            self.set.width(),
        );
        Ok((
            Tensor::from_vec(images, shape, device)?,
            Tensor::from_vec(labels, n, device)?,
        ))
    }
}

/// The latency in the loss.
pub(crate) struct Objective<'a> {
    /// Its weight.
    pub(crate) lambda: f64,
    /// The latency that counts as 1, in ms.
    pub(crate) reference_millis: f64,
    /// The frozen model.
    pub(crate) model: &'a dyn LatencyModel,
}

impl Objective<'_> {
    /// lambda * model(code) / reference as a term of the loss: its value, and a tensor whose gradient with
    /// respect to alpha is exact.
    ///
    /// The model is no tensor graph: its gradient with respect to the code is a constant g, and
    /// `sum(code * g)` has the same gradient with respect to alpha as the model itself.
    fn term(&self, code: &Tensor) -> Result<(f64, Tensor), candle_core::Error> {
        let factor = self.lambda / self.reference_millis;
        let (millis, gradient) = self.model.gradient(&code_values(code)?);
        let gradient = Tensor::from_vec(gradient, code.shape(), code.device())?;
        Ok((factor * millis, ((code * gradient)?.sum_all()? * factor)?))
    }
}

fn code_values(code: &Tensor) -> Result<Vec<f32>, candle_core::Error> {
    code.to_dtype(DType::F32)?.to_vec1()
}

/// What one epoch showed.
#[derive(Debug, Clone)]
pub(crate) struct EpochResult {
    /// Mean cross entropy of the weight steps, nats.
    pub(crate) train_loss: f64,
    /// Share of right answers in the weight steps.
    pub(crate) train_accuracy: f64,
    /// Mean cross entropy on validation images after the epoch, by running statistics, nats.
    pub(crate) valid_loss: f64,
    /// Share of right answers there.
    pub(crate) valid_accuracy: f64,
    /// The model's answer for the soft code after the epoch, in ms.
    pub(crate) soft_latency_millis: f64,
    /// The model's answer for the derived genotype after the epoch, in ms.
    pub(crate) derived_latency_millis: f64,
    /// The learning rate of the weights.
    pub(crate) learning_rate: f64,
    /// The derived genotype.
    pub(crate) genotype: Genotype,
}

/// A search in progress: everything that its steps change.
pub(crate) struct Search {
    /// The weights.
    pub(crate) network: Supernet,
    /// Alpha and beta.
    pub(crate) architecture: Architecture,
    /// The optimiser of the weights.
    pub(crate) sgd: Sgd,
    /// The optimiser of alpha and beta.
    pub(crate) adam: Adam,
    config: Config,
    pub(crate) device: Device,
}

impl Search {
    /// Draws the initial weights and architecture parameters.
    pub(crate) fn new(config: &Config, set: &ImageSet, device: &Device) -> Result<Self, Error> {
        let spec = network_spec(config, set)?;
        let ratio = ChannelRatio::new(config.network.channel_ratio)
            .filter(|ratio| {
                ratio.is_partial() == (config.method == Method::PcDarts)
                    && config.network.init_channels.is_multiple_of(ratio.get())
            })
            .ok_or(Error::Setting {
                key: "network.channel_ratio",
                expected: "1 for darts, for pc-darts a divisor of init_channels above 1",
            })?;
        let space = SearchSpace::darts();
        let mut rng = rng(config.seed, STREAM_INIT);
        let network = {
            let builder = Builder::new(device, DType::F32, &mut rng);
            Supernet::new(&builder, space, &spec, ratio)?
        };
        let architecture =
            Architecture::new(space, ratio.is_partial(), device, DType::F32, &mut rng)?;
        let arch = &config.architecture;
        Ok(Self {
            network,
            architecture,
            sgd: Sgd::new(config.weights.momentum, config.weights.weight_decay),
            adam: Adam::new(
                arch.learning_rate,
                (arch.betas[0], arch.betas[1]),
                arch.weight_decay,
            ),
            config: config.clone(),
            device: device.clone(),
        })
    }

    /// The number of steps of an epoch; a last batch that would not be full is left out.
    pub(crate) fn n_steps(&self, data: &Data<'_>) -> usize {
        data.train.len() / self.config.batch_size
    }

    /// One epoch. `on_step` is told the training loss after each step.
    pub(crate) fn epoch(
        &mut self,
        epoch: usize,
        data: &Data<'_>,
        objective: &Objective<'_>,
        mut on_step: impl FnMut(f64),
    ) -> Result<EpochResult, Error> {
        let config = self.config.clone();
        let weights = &config.weights;
        let schedule = Schedule::Cosine {
            initial: weights.learning_rate,
            last: weights.last_learning_rate,
        };
        let learning_rate = schedule.learning_rate(epoch, config.n_epochs, weights.n_warmup_epochs);
        let mut rng = rng(config.seed, STREAM_FIRST_EPOCH + epoch as u64);
        let train_order = images::epoch_order(&data.train, &mut rng);
        let valid_order = images::epoch_order(&data.valid, &mut rng);
        let n_valid_steps = data.valid.len() / config.batch_size;
        let (mut loss_sum, mut n_right, mut n_seen) = (0.0, 0, 0);
        for step in 0..self.n_steps(data) {
            let at = |what| move |value: f64| finite(value, what, epoch, step);
            let chunk = |order: &[usize], step: usize| {
                order[step * config.batch_size..][..config.batch_size].to_vec()
            };
            if epoch >= config.n_warmup_epochs {
                let indices = chunk(&valid_order, step % n_valid_steps);
                let (x, y) = data.batch(&indices, &data.augmentation, &mut rng, &self.device)?;
                at("the loss of alpha")(self.alpha_step(&x, &y, objective)?)?;
            }
            let indices = chunk(&train_order, step);
            let (x, y) = data.batch(&indices, &data.augmentation, &mut rng, &self.device)?;
            let (loss, right) = self.weight_step(&x, &y, learning_rate)?;
            loss_sum += at("the training loss")(loss)?;
            n_right += right;
            n_seen += indices.len();
            on_step(loss);
        }
        let (valid_loss, valid_accuracy) = self.validate(data)?;
        let last = self.n_steps(data);
        finite(valid_loss, "the validation loss", epoch, last)?;
        let genotype = self.architecture.derive()?;
        let soft = code_values(&self.architecture.soft_code()?)?;
        Ok(EpochResult {
            train_loss: loss_sum / self.n_steps(data) as f64,
            train_accuracy: n_right as f64 / n_seen as f64,
            valid_loss,
            valid_accuracy,
            soft_latency_millis: objective.model.predict_millis(&soft),
            derived_latency_millis: predict(objective.model, &genotype),
            learning_rate,
            genotype,
        })
    }

    fn mixing(&self, tracked: bool) -> Result<[nn::architecture::Mixing; 2], candle_core::Error> {
        let [normal, reduction] = CellKind::ALL.map(|kind| self.architecture.mixing(kind, tracked));
        Ok([normal?, reduction?])
    }

    /// Alpha and beta on a validation batch; returns the whole loss.
    fn alpha_step(
        &mut self,
        x: &Tensor,
        y: &Tensor,
        objective: &Objective<'_>,
    ) -> Result<f64, Error> {
        let logits = self
            .network
            .forward(x, &self.mixing(true)?, &Pass::architecture_step())?;
        let loss = cross_entropy(&logits, y, 0.0)?;
        let mut value = scalar(&loss)?;
        let mut total = loss;
        if objective.lambda != 0.0 {
            let (latency, term) = objective.term(&self.architecture.soft_code()?)?;
            value += latency;
            total = (total + term)?;
        }
        let parameters = self.architecture.parameters();
        let gradients = Gradients::collect(parameters, &mut total.backward()?);
        let factor = clip_factor(&gradients, self.config.architecture.clip_norm)?;
        self.adam.step(parameters, &gradients, factor)?;
        Ok(value)
    }

    /// The weights on a training batch; returns the loss and the number of right answers.
    fn weight_step(
        &mut self,
        x: &Tensor,
        y: &Tensor,
        learning_rate: f64,
    ) -> Result<(f64, usize), Error> {
        let logits = self
            .network
            .forward(x, &self.mixing(false)?, &Pass::training())?;
        let loss = cross_entropy(&logits, y, 0.0)?;
        let parameters = self.network.parameters();
        let gradients = Gradients::collect(parameters, &mut loss.backward()?);
        let factor = clip_factor(&gradients, self.config.weights.clip_norm)?;
        self.sgd
            .step(parameters, &gradients, learning_rate, factor)?;
        Ok((scalar(&loss)?, n_correct(&logits, y)?))
    }

    /// Loss and accuracy on the first validation images, not augmented.
    fn validate(&self, data: &Data<'_>) -> Result<(f64, f64), Error> {
        let n = self.config.n_validation_images.clamp(1, data.valid.len());
        let mixing = self.mixing(false)?;
        let mut rng = rng(self.config.seed, STREAM_SPLIT);
        let (mut loss_sum, mut n_right) = (0.0, 0);
        for indices in data.valid[..n].chunks(self.config.batch_size) {
            let (x, y) = data.batch(indices, &Augmentation::none(), &mut rng, &self.device)?;
            let logits = self.network.forward(&x, &mixing, &Pass::inference())?;
            loss_sum += scalar(&cross_entropy(&logits, &y, 0.0)?)? * indices.len() as f64;
            n_right += n_correct(&logits, &y)?;
        }
        Ok((loss_sum / n as f64, n_right as f64 / n as f64))
    }
}

/// The latency of a genotype by the model, in ms.
pub(crate) fn predict(model: &dyn LatencyModel, genotype: &Genotype) -> f64 {
    model.predict_millis(&SearchSpace::darts().encode(genotype))
}

fn clip_factor(gradients: &Gradients, clip_norm: f64) -> Result<f64, candle_core::Error> {
    if clip_norm == 0.0 {
        Ok(1.0)
    } else {
        Ok(gradients.clip_factor(clip_norm)?.0)
    }
}

fn finite(value: f64, what: &'static str, epoch: usize, step: usize) -> Result<f64, Error> {
    if value.is_finite() {
        Ok(value)
    } else {
        Err(Error::NonFinite { what, epoch, step })
    }
}

/// The supernet's shape: its size from the config, its ends from the images.
fn network_spec(config: &Config, set: &ImageSet) -> Result<NetworkSpec, Error> {
    let network = &config.network;
    let stem = Stem::from_name(&network.stem).ok_or(Error::Setting {
        key: "network.stem",
        expected: "one of conv3x3, conv3x3-stride2, imagenet",
    })?;
    let spec = NetworkSpec {
        stem,
        n_layers: network.n_layers,
        init_channels: network.init_channels,
        in_channels: set.n_channels(),
        n_classes: set.n_classes(),
        image_size: set.height(),
    };
    spec.validate().map_err(|error| Error::Network {
        dir: config.data.dir.clone(),
        reason: error.to_string(),
    })?;
    Ok(spec)
}
