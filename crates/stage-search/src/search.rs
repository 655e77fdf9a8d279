//! The bilevel search: in each step alpha moves on a validation batch, then the weights on a training
//! batch.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use collective::{Collective, Share};
use images::{Augmentation, Batch, ImageSet, Normalization};
use nn::architecture::AlphaNumbers;
use nn::bilevel::{dominant_eigenvalue, unrolled_gradient};
use nn::loss::{Tally, cross_entropy, hits, n_correct, scalar};
use nn::memory::{Path, StepMemory};
use nn::optimizer::{Adam, Gradients, Sgd};
use nn::parameters::{Builder, Parameters};
use nn::schedule::Schedule;
use nn::{Architecture, Candidates, Pass, Readback, Rng, Supernet, Upload, Uploads};
use rand_chacha::rand_core::SeedableRng;
use serde::{Deserialize, Serialize};
use space::{CellKind, Genotype, NetworkSpec, Primitive, SearchSpace};

use crate::config::{Config, Order};
use crate::error::Error;
use crate::guard::{self, Memory, Panel, Policy};
use crate::objective::Objective;
use crate::predictor::Predictor;

/// The generator of one purpose. Streams of one seed are independent, and none needs to be saved: what
/// an epoch draws depends on the seed and the epoch alone.
pub(crate) fn rng(seed: u64, stream: u64) -> Rng {
    let mut rng = Rng::seed_from_u64(seed);
    rng.set_stream(stream);
    rng
}

const STREAM_INIT: u64 = 0;
const STREAM_SPLIT: u64 = 1;
const STREAM_FIRST_EPOCH: u64 = 2;
const STREAM_FIRST_BRIDGE: u64 = 1 << 32;
const STREAM_FIRST_DROPOUT: u64 = 1 << 34;
const STREAM_FIRST_STAGE: u64 = 1 << 35;
/// Of the method `random`.
pub(crate) const STREAM_GENOTYPES: u64 = 1 << 33;
/// Of the candidates that alpha is asked for, and of their training.
pub(crate) const STREAM_CANDIDATES: u64 = STREAM_GENOTYPES + 1;
pub(crate) const STREAM_CANDIDATE_INIT: u64 = STREAM_GENOTYPES + 2;
pub(crate) const STREAM_FIRST_CANDIDATE_EPOCH: u64 = 1 << 36;

/// The two parts of the images with these labels, and what candidates are trained on besides the first: indices.
pub(crate) fn split(labels: &[u32], config: &Config) -> Result<[Vec<usize>; 3], Error> {
    let data = &config.data;
    let further = config.further_fraction();
    let fractions = [data.train_fraction, data.valid_fraction, further];
    let mut rng = rng(config.seed, STREAM_SPLIT);
    let parts = images::stratified_split(labels, &fractions, &mut rng);
    let parts: [_; 3] = parts.try_into().expect("as many parts as fractions");
    let [n_train, n_valid, _] = parts.each_ref().map(Vec::len);
    if n_train.min(n_valid) < config.batch_size {
        return Err(Error::Setting {
            key: "batch_size",
            expected: format!(
                "no more than the images of either part of the data set, {n_train} and {n_valid}: more of either by \
                 data.train_fraction and data.valid_fraction"
            ),
        });
    }
    Ok(parts)
}

/// Whether what is done to the images leaves something of them.
pub(crate) fn fits_images(config: &Config, set: &ImageSet) -> Result<(), Error> {
    let (data, side) = (&config.data, set.height().min(set.width()));
    let wrong = [("data.pad", data.pad), ("data.cutout", data.cutout)]
        .into_iter()
        .find(|(_, pixels)| *pixels >= side);
    wrong.map_or(Ok(()), |(key, _)| {
        Err(Error::Setting {
            key,
            expected: format!("less than the side of the images, {side} pixels"),
        })
    })
}

/// The two parts of the training split, and what candidates are trained on.
pub(crate) struct Data<'a> {
    set: &'a ImageSet,
    pub(crate) train: Vec<usize>,
    pub(crate) valid: Vec<usize>,
    /// `train`, and more where the config says so.
    pub(crate) candidates_train: Vec<usize>,
    normalization: Normalization,
    pub(crate) augmentation: Augmentation,
}

impl<'a> Data<'a> {
    /// Splits by class; normalises by the statistics of the whole set.
    pub(crate) fn new(set: &'a ImageSet, config: &Config) -> Result<Self, Error> {
        let data = &config.data;
        let [train, valid, further] = split(set.labels(), config)?;
        fits_images(config, set)?;
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
            candidates_train: [train.as_slice(), &further].concat(),
            train,
            valid,
            normalization,
            augmentation,
        })
    }

    /// The images, or this rank's share of them.
    pub(crate) fn batch(
        &self,
        indices: &[usize],
        augmentation: &Augmentation,
        rng: &mut Rng,
        share: Option<&Share>,
    ) -> Result<Batch, Error> {
        let part = share.map_or(0..indices.len(), Share::range);
        let (set, normalization) = (self.set, &self.normalization);
        Ok(images::batch_part(
            set,
            indices,
            part,
            normalization,
            augmentation,
            rng,
        )?)
    }

    /// The same of a batch that is on its way.
    pub(crate) fn started(
        &self,
        batch: Started,
        uploads: &Uploads,
        device: &Device,
    ) -> Result<(Tensor, Tensor), Error> {
        let Started { images, labels } = batch;
        let n = labels.len();
        let shape = (
            n,
            self.set.n_channels(),
            self.set.height(),
            self.set.width(),
        );
        Ok((
            uploads.take(images, shape)?,
            Tensor::from_vec(labels, n, device)?,
        ))
    }

    /// Loss and accuracy on the first `n` validation images, not augmented; `forward` maps images to logits.
    pub(crate) fn validate(
        &self,
        n: usize,
        config: &Config,
        ranks: Option<&Arc<dyn Collective>>,
        device: &Device,
        forward: impl Fn(&Tensor) -> candle_core::Result<Tensor>,
    ) -> Result<(f64, f64), Error> {
        let n = n.clamp(1, self.valid.len());
        let mut rng = rng(config.seed, STREAM_SPLIT);
        let (mut loss_sum, mut n_right) = (0.0, 0);
        for indices in self.valid[..n].chunks(config.batch_size) {
            let share = ranks.map(|ranks| Share::of(ranks, indices.len()));
            let batch = self.batch(indices, &Augmentation::none(), &mut rng, share.as_ref())?;
            let n_own = batch.n;
            if n_own == 0 {
                continue;
            }
            let (x, y) = self.tensors(batch, device)?;
            let logits = forward(&x)?;
            loss_sum += scalar(&cross_entropy(&logits, &y, 0.0)?)? * n_own as f64;
            n_right += n_correct(&logits, &y)?;
        }
        let mut sums = vec![loss_sum, n_right as f64];
        if let Some(ranks) = ranks {
            sums = ranks.sum(&Tensor::new(sums, device)?)?.to_vec1()?;
        }
        Ok((sums[0] / n as f64, sums[1] / n as f64))
    }

    /// What the images keep in memory while batches of so many are trained on, in bytes.
    pub(crate) fn n_bytes(&self, n_images: usize) -> u64 {
        let pixels = self.set.n_channels() * self.set.height() * self.set.width();
        // A training and a validation batch are used, as many wait, and as many are made.
        (self.set.n_bytes() + 6 * 4 * n_images * pixels) as u64
    }

    /// Images `[n, c, h, w]` and their classes `[n]` on the device.
    pub(crate) fn tensors(&self, batch: Batch, device: &Device) -> Result<(Tensor, Tensor), Error> {
        let Batch { images, labels, n } = batch;
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

/// A batch whose images are on their way to the device.
pub(crate) struct Started {
    images: Upload,
    labels: Vec<u32>,
}

impl Started {
    pub(crate) fn new(batch: Batch, uploads: &Uploads) -> Result<Self, Error> {
        Ok(Self {
            images: uploads.start(batch.images)?,
            labels: batch.labels,
        })
    }
}

/// How well the weights do after an epoch.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) struct Performance {
    /// Mean cross entropy of the weight steps, nats.
    pub(crate) train_loss: f64,
    /// Share of right answers in the weight steps.
    pub(crate) train_accuracy: f64,
    /// Mean cross entropy on validation images after the epoch, by running statistics, nats.
    pub(crate) valid_loss: f64,
    /// Share of right answers there.
    pub(crate) valid_accuracy: f64,
}

/// What one epoch showed.
#[derive(Debug, Clone)]
pub(crate) struct EpochResult {
    /// Of the weights.
    pub(crate) performance: Performance,
    /// The latency in the loss after the epoch.
    pub(crate) latency_loss: f64,
    /// The latency of the bridge's codes, mean over the steps of alpha, in ms; `None` if there were none.
    pub(crate) bridge_latency_millis: Option<f64>,
    /// The latency of the bridge's code after the epoch over that of the derived genotype, less 1.
    pub(crate) discretisation_gap: f64,
    /// The model's answer for the soft code after the epoch, in ms.
    pub(crate) soft_latency_millis: f64,
    /// The model's answer for the derived genotype after the epoch, in ms.
    pub(crate) derived_latency_millis: f64,
    /// The learning rate of the weights.
    pub(crate) learning_rate: f64,
    /// The derived genotype.
    pub(crate) genotype: Genotype,
    /// The signs of collapse.
    pub(crate) panel: Panel,
}

/// What the steps of an epoch told, as far as it was read.
#[derive(Default)]
struct Numbers {
    n_steps: usize,
    /// The sum of the training losses, nats.
    loss: f64,
    n_right: f64,
}

impl Numbers {
    /// Takes the losses of alpha's and the weights' steps, and the right answers, of some steps.
    fn add(
        &mut self,
        epoch: usize,
        rows: Vec<[f64; 3]>,
        mut on_step: impl FnMut(f64),
    ) -> Result<(), Error> {
        for [alpha_loss, loss, n_right] in rows {
            finite(alpha_loss, "the loss of alpha", epoch, self.n_steps)?;
            self.loss += finite(loss, "the training loss", epoch, self.n_steps)?;
            self.n_right += n_right;
            self.n_steps += 1;
            on_step(loss);
        }
        Ok(())
    }
}

/// Alpha and its optimiser at one moment.
pub(crate) struct Snapshot {
    /// Alpha and beta.
    pub(crate) architecture: BTreeMap<String, Tensor>,
    /// Steps of Adam.
    pub(crate) n_adam_steps: u64,
    /// Its moments.
    pub(crate) adam: BTreeMap<String, Tensor>,
}

/// A search in progress: everything that its steps change.
pub(crate) struct Search<'a> {
    /// The weights.
    pub(crate) network: Supernet,
    /// Alpha and beta.
    pub(crate) architecture: Architecture,
    /// The optimiser of the weights.
    pub(crate) sgd: Sgd,
    /// The optimiser of alpha and beta.
    pub(crate) adam: Adam,
    /// The latency in the loss of alpha.
    pub(crate) objective: Box<dyn Objective>,
    /// What the guards remember.
    pub(crate) memory: Memory,
    /// Alpha as it was before the last alarm; only where a policy may go back.
    pub(crate) good: Option<Snapshot>,
    pub(crate) predictor: &'a Predictor,
    config: Config,
    pub(crate) device: Device,
    /// The shape of the supernet.
    spec: NetworkSpec,
    /// The epoch and the step in it that run, or ran last.
    now: [usize; 2],
    /// The stage of a progressive search, from 0.
    pub(crate) stage: usize,
    /// The primitives that edges still have.
    pub(crate) candidates: Candidates,
    /// The ranks that search together; `None` = this process alone.
    ranks: Option<Arc<dyn Collective>>,
    /// The weight of the auxiliary skip in this epoch.
    auxiliary_skip: f64,
    /// The probability of the dropout behind skips in this epoch.
    skip_dropout: f64,
    /// What the processor knows of alpha.
    seen: Seen,
    /// The numbers of threads that the weights were trained on.
    pub(crate) n_threads: BTreeSet<usize>,
}

/// What the processor knows of alpha. On CUDA it is copied right behind the step that made it, in front of the step of the
/// weights: so whoever waits for it leaves the device that step to do.
#[derive(Default)]
struct Seen {
    on_its_way: Readback,
    known: Option<AlphaNumbers>,
    /// Whether the objective is still to learn what alpha's last step derives.
    owes_observation: bool,
}

impl<'a> Search<'a> {
    /// Draws the initial weights and architecture parameters.
    pub(crate) fn new(
        config: &Config,
        set: &ImageSet,
        predictor: &'a Predictor,
        objective: Box<dyn Objective>,
        device: &Device,
        ranks: Option<Arc<dyn Collective>>,
    ) -> Result<Self, Error> {
        let spec = network_spec(config, set)?;
        let space = SearchSpace::darts();
        let candidates = Candidates::all(space);
        let (network, architecture) = networks(config, &spec, 0, &candidates, device)?;
        let mut search = Self {
            network,
            architecture,
            sgd: sgd(config),
            adam: adam(config),
            objective,
            memory: Memory::default(),
            good: None,
            predictor,
            config: config.clone(),
            device: device.clone(),
            spec,
            now: [0; 2],
            stage: 0,
            candidates,
            ranks,
            auxiliary_skip: 0.0,
            skip_dropout: 0.0,
            seen: Seen::default(),
            n_threads: BTreeSet::new(),
        };
        search.remember()?;
        Ok(search)
    }

    /// What a step will keep in memory; of several stages in the one that needs most.
    pub(crate) fn memory(&self, n_images: usize, path: Path) -> Result<StepMemory, Error> {
        let stages = (0..self.config.n_stages())
            .map(|stage| self.step_memory(stage, n_images, path))
            .collect::<Result<Vec<_>, _>>()?;
        let most = stages.into_iter().max_by_key(StepMemory::total_bytes);
        Ok(most.expect("there is a stage"))
    }

    /// What a step of a stage will keep in memory, before the first has begun. Which primitives are left then is not known:
    /// those that need most.
    fn step_memory(&self, stage: usize, n_images: usize, path: Path) -> Result<StepMemory, Error> {
        let Some(stages) = &self.config.progressive else {
            return Ok(self.network.step_memory(&self.spec, n_images, path));
        };
        // Dropout behind skips is for cells operation by operation.
        let path = match stages.skip_dropout[stage] {
            0.0 => path,
            _ => Path::Operations,
        };
        let needs = Primitive::ALL.map(|primitive| match primitive {
            Primitive::None => 0.0,
            Primitive::MaxPool3x3 | Primitive::AvgPool3x3 | Primitive::SkipConnect => 1.0,
            Primitive::DilConv3x3 | Primitive::DilConv5x5 => 2.0,
            Primitive::SepConv3x3 | Primitive::SepConv5x5 => 3.0,
        });
        let space = SearchSpace::darts();
        let mut candidates = Candidates::all(space);
        let needs = needs.repeat(space.n_edges());
        candidates.keep_largest([&needs, &needs], stages.n_primitives[stage]);
        let (network, _) = networks(&self.config, &self.spec, stage, &candidates, &self.device)?;
        Ok(network.step_memory(&self.spec, n_images, path))
    }

    /// This rank's part of a batch.
    fn share(&self, n_images: usize) -> Option<Share> {
        let ranks = self.ranks.as_ref()?;
        Some(Share::of(ranks, n_images))
    }

    /// Whether this process tells and stores what comes out: alone, or rank 0.
    pub(crate) fn is_first(&self) -> bool {
        self.ranks.as_ref().is_none_or(|ranks| ranks.rank() == 0)
    }

    /// Makes sure that all ranks came to the same.
    pub(crate) fn agree(&self, what: &'static str, own: &str) -> Result<(), Error> {
        match &self.ranks {
            Some(ranks) => Ok(collective::agree(&**ranks, what, own)?),
            None => Ok(()),
        }
    }

    /// Begins with another search's alpha and beta.
    pub(crate) fn warm_start(&mut self, alphas: &BTreeMap<String, Tensor>) -> Result<(), Error> {
        let load = self.architecture.parameters().load(alphas);
        load.map_err(|error| Error::WarmStart {
            what: error.to_string(),
        })?;
        self.forget_alpha();
        self.remember()
    }

    /// Goes to the stage of an epoch if it is another: on every edge the primitives of largest weight stay; weights,
    /// alpha and their optimisers begin anew.
    pub(crate) fn enter(&mut self, epoch: usize) -> Result<(), Error> {
        let stage = epoch / self.config.n_epochs;
        let Some(stages) = self
            .config
            .progressive
            .as_ref()
            .filter(|_| stage != self.stage)
        else {
            return Ok(());
        };
        let [normal, reduction] =
            CellKind::ALL.map(|kind| self.architecture.operation_weights(kind));
        let n_primitives = stages.n_primitives[stage];
        let mut candidates = self.candidates.clone();
        candidates.keep_largest([&normal?, &reduction?], n_primitives);
        self.begin(stage, candidates)?;
        self.remember()
    }

    /// A new supernet and alpha for a stage.
    pub(crate) fn begin(&mut self, stage: usize, candidates: Candidates) -> Result<(), Error> {
        nn::memory::free_buffers();
        (self.network, self.architecture) =
            networks(&self.config, &self.spec, stage, &candidates, &self.device)?;
        (self.sgd, self.adam) = (sgd(&self.config), adam(&self.config));
        self.forget_alpha();
        (self.stage, self.candidates) = (stage, candidates);
        // What another network was like is no measure for this one, nor have its steps of alpha anything to do with these.
        self.memory.least_eigenvalue = None;
        self.memory.n_roll_backs = 0;
        Ok(())
    }

    /// Alpha is another from here on than its last step left.
    pub(crate) fn forget_alpha(&mut self) {
        self.seen = Seen::default();
    }

    /// What the processor knows of alpha, read now if it is not.
    fn alpha_numbers(&mut self) -> Result<AlphaNumbers, Error> {
        if let Some(known) = &self.seen.known {
            return Ok(known.clone());
        }
        let numbers = match self.seen.on_its_way.wait()? {
            Some(numbers) => numbers,
            None => self.architecture.numbers()?.to_vec1()?,
        };
        // Losses may be read many steps later.
        if !numbers.iter().all(|number| number.is_finite()) {
            let [epoch, step] = self.now;
            let what = "alpha";
            return Err(Error::NonFinite { what, epoch, step });
        }
        let numbers = AlphaNumbers::of(SearchSpace::darts(), numbers)?;
        self.seen.known = Some(numbers.clone());
        Ok(numbers)
    }

    /// Tells the objective what alpha's last step derives, if it wants to know and does not yet.
    fn settle(&mut self) -> Result<(), Error> {
        if std::mem::take(&mut self.seen.owes_observation) {
            let derived = self.alpha_numbers()?.derive(SearchSpace::darts());
            if let Some(upper) = self.upper_millis(&derived) {
                self.objective.observe(upper);
            }
        }
        Ok(())
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
        mut on_step: impl FnMut(f64),
    ) -> Result<EpochResult, Error> {
        let config = self.config.clone();
        // The epoch of this stage; random draws go by the epoch of the whole search.
        let own = epoch % config.n_epochs;
        let learning_rate = self.learning_rate(epoch);
        self.auxiliary_skip = guard::auxiliary_skip(&config.guards, own, config.n_epochs);
        let stages = config.progressive.as_ref();
        let left = 1.0 - own as f64 / config.n_epochs as f64;
        self.skip_dropout = stages.map_or(0.0, |stages| stages.skip_dropout[self.stage] * left);
        let mut dropout_rng = rng(config.seed, STREAM_FIRST_DROPOUT + epoch as u64);
        self.adam.set_learning_rate(
            config.architecture.learning_rate * 0.5_f64.powi(self.memory.n_roll_backs as i32),
        );
        let mut bridge_rng = self.bridge_rng(epoch);
        let mut rng = rng(config.seed, STREAM_FIRST_EPOCH + epoch as u64);
        let train_order = images::epoch_order(&data.train, &mut rng);
        let valid_order = images::epoch_order(&data.valid, &mut rng);
        let n_valid_steps = data.valid.len() / config.batch_size;
        let moves_alpha = !self.is_warm_up(epoch);
        let share = self.share(config.batch_size);
        let share = share.as_ref();
        let chunk = |order: &[usize], step: usize| {
            order[step * config.batch_size..][..config.batch_size].to_vec()
        };
        // In the order of the steps, so that what is drawn does not depend on who is ahead.
        let batches = (0..self.n_steps(data)).map(|step| {
            let valid = moves_alpha.then(|| {
                let indices = chunk(&valid_order, step % n_valid_steps);
                data.batch(&indices, &data.augmentation, &mut rng, share)
            });
            let indices = chunk(&train_order, step);
            let train = data.batch(&indices, &data.augmentation, &mut rng, share)?;
            Ok::<_, Error>((valid.transpose()?, train))
        });
        let mut numbers = Numbers::default();
        let mut bridge_sum = 0.0;
        let mut tally = Tally::new(&self.device);
        // Of a step and of the one behind it, two batches each.
        let (device, uploads) = (self.device.clone(), Uploads::new(&self.device, 4)?);
        images::prefetched(batches, |batches| {
            let started = nn::one_ahead(&device, batches, |batch| {
                let (valid, train) = batch?;
                let valid = valid.map(|valid| Started::new(valid, &uploads));
                Ok::<_, Error>((valid.transpose()?, Started::new(train, &uploads)?))
            });
            for (step, batches) in started.enumerate() {
                self.now = [epoch, step];
                let (valid, train) = batches?;
                let train = data.started(train, &uploads, &device)?;
                let zero = Tensor::zeros((), DType::F64, &self.device)?;
                let mut alpha_loss = zero;
                if let Some(valid) = valid {
                    let valid = data.started(valid, &uploads, &device)?;
                    let rngs = [&mut bridge_rng, &mut dropout_rng];
                    let (loss, latency, millis) =
                        self.alpha_step(&valid, &train, learning_rate, rngs, share)?;
                    finite(latency, "the latency in the loss", epoch, numbers.n_steps)?;
                    bridge_sum += millis;
                    alpha_loss = loss;
                }
                let (loss, hits) =
                    self.weight_step(&train, learning_rate, &mut dropout_rng, share)?;
                numbers.add(
                    epoch,
                    tally.add([&alpha_loss, &loss, &hits], share)?,
                    &mut on_step,
                )?;
            }
            numbers.add(epoch, tally.read(share)?, &mut on_step)
        })?;
        self.settle()?;
        let n_seen = numbers.n_steps * config.batch_size;
        let n_steps = self.n_steps(data) as f64;
        let mixing = self.mixing(false)?;
        let (valid_loss, valid_accuracy) = data.validate(
            config.n_validation_images,
            &config,
            self.ranks.as_ref(),
            &self.device,
            |x| self.network.forward(x, &mixing, &Pass::inference()),
        )?;
        finite(valid_loss, "the validation loss", epoch, n_steps as usize)?;
        let performance = Performance {
            train_loss: numbers.loss / n_steps,
            train_accuracy: numbers.n_right / n_seen as f64,
            valid_loss,
            valid_accuracy,
        };
        let mut result = self.look(epoch, performance, &mut bridge_rng)?;
        let guards = &config.guards;
        if moves_alpha {
            result.bridge_latency_millis = Some(bridge_sum / n_steps);
            if guards.policy != Policy::Off && guards.n_eigenvalue_steps > 0 {
                let eigenvalue = self.eigenvalue(data)?;
                let what = "the Hessian's eigenvalue";
                let eigenvalue = finite(eigenvalue, what, epoch, n_steps as usize)?;
                result.panel.eigenvalue = Some(eigenvalue);
            }
        }
        Ok(result)
    }

    /// Whether this process searches alone.
    pub(crate) fn is_alone(&self) -> bool {
        self.ranks.is_none()
    }

    /// Whether alpha stands still in this epoch.
    pub(crate) fn is_warm_up(&self, epoch: usize) -> bool {
        epoch % self.config.n_epochs < self.config.n_warmup_epochs
    }

    /// What an epoch of the warm-up showed whose weights are known already.
    pub(crate) fn recall(
        &mut self,
        epoch: usize,
        performance: Performance,
    ) -> Result<EpochResult, Error> {
        let mut bridge_rng = self.bridge_rng(epoch);
        self.look(epoch, performance, &mut bridge_rng)
    }

    fn bridge_rng(&self, epoch: usize) -> Rng {
        rng(self.config.seed, STREAM_FIRST_BRIDGE + epoch as u64)
    }

    /// That of the weights in an epoch.
    fn learning_rate(&self, epoch: usize) -> f64 {
        let (config, weights) = (&self.config, &self.config.weights);
        let schedule = Schedule::Cosine {
            initial: weights.learning_rate,
            last: weights.last_learning_rate,
        };
        let own = epoch % config.n_epochs;
        schedule.learning_rate(own as f64, config.n_epochs, weights.n_warmup_epochs)
    }

    /// What alpha stands for after an epoch.
    fn look(
        &mut self,
        epoch: usize,
        performance: Performance,
        bridge_rng: &mut Rng,
    ) -> Result<EpochResult, Error> {
        let alpha = self.alpha_numbers()?;
        let genotype = alpha.derive(SearchSpace::darts());
        let (bridge_latency, _) = self.bridge_latency(&alpha, bridge_rng);
        let derived_latency_millis = self.predictor.predict(&genotype);
        Ok(EpochResult {
            performance,
            latency_loss: self.objective.term(bridge_latency).0,
            bridge_latency_millis: None,
            discretisation_gap: bridge_latency / derived_latency_millis - 1.0,
            soft_latency_millis: self.predictor.predict_code(&alpha.soft_code),
            derived_latency_millis,
            learning_rate: self.learning_rate(epoch),
            panel: Panel {
                n_skips_normal: genotype.n_skips(CellKind::Normal),
                entropy_normal: self.architecture.entropy(CellKind::Normal)?,
                parameter_free_normal: self.architecture.parameter_free(CellKind::Normal)?,
                eigenvalue: None,
            },
            genotype,
        })
    }

    /// Reads the signs after an epoch in which alpha moved, and does what the policy says; tells what it saw
    /// and did.
    pub(crate) fn guard(&mut self, panel: &Panel) -> Result<Option<String>, Error> {
        let guards = &self.config.guards;
        let policy = guards.policy;
        if policy == Policy::Off {
            return Ok(None);
        }
        let Some(alarm) = self.memory.judge(panel, guards) else {
            self.remember()?;
            return Ok(None);
        };
        Ok(Some(match policy {
            Policy::Off | Policy::Warn => alarm,
            Policy::Stop => {
                self.go_back()?;
                self.memory.has_stopped = true;
                format!("{alarm}: stopped, alpha as before the alarm")
            }
            Policy::RollBack => {
                self.go_back()?;
                self.memory.n_roll_backs += 1;
                format!("{alarm}: alpha went back to before the alarm, steps halved")
            }
        }))
    }

    fn remember(&mut self) -> Result<(), Error> {
        if matches!(self.config.guards.policy, Policy::Stop | Policy::RollBack) {
            let (n_adam_steps, adam) = self.adam.state()?;
            self.good = Some(Snapshot {
                architecture: self.architecture.parameters().state()?,
                n_adam_steps,
                adam,
            });
        }
        Ok(())
    }

    fn go_back(&mut self) -> Result<(), Error> {
        self.forget_alpha();
        if let Some(good) = &self.good {
            let load = self.architecture.parameters().load(&good.architecture);
            load.map_err(|error| Error::WarmStart {
                what: error.to_string(),
            })?;
            self.adam.load(good.n_adam_steps, &good.adam)?;
        }
        Ok(())
    }

    /// The dominant eigenvalue of the Hessian of the loss in alpha and beta, on the first validation
    /// batch.
    fn eigenvalue(&self, data: &Data<'_>) -> Result<f64, Error> {
        let mut rng = rng(self.config.seed, STREAM_SPLIT);
        let indices = &data.valid[..self.config.batch_size];
        let share = self.share(indices.len());
        let share = share.as_ref();
        let batch = data.batch(indices, &Augmentation::none(), &mut rng, share)?;
        let (x, y) = data.tensors(batch, &self.device)?;
        // A look does not move the running statistics.
        let before = self.network.parameters().state()?;
        let eigenvalue = dominant_eigenvalue(
            self.architecture.parameters(),
            self.config.guards.n_eigenvalue_steps,
            share,
            || {
                let pass = Pass::architecture_step().over(share);
                let logits = self.network.forward(&x, &self.mixing(true)?, &pass)?;
                weighted(cross_entropy(&logits, &y, 0.0)?, share)
            },
        )?;
        let restored = self.network.parameters().load(&before);
        restored.map_err(|error| Error::WarmStart {
            what: error.to_string(),
        })?;
        Ok(eigenvalue)
    }

    fn mixing(&self, tracked: bool) -> Result<[nn::architecture::Mixing; 2], candle_core::Error> {
        let [normal, reduction] = CellKind::ALL.map(|kind| {
            let mixing = self.architecture.mixing(kind, tracked)?;
            if self.auxiliary_skip > 0.0 {
                mixing.with_auxiliary_skip(self.auxiliary_skip)
            } else {
                Ok(mixing)
            }
        });
        Ok([normal?, reduction?])
    }

    fn bridge_latency(&self, alpha: &AlphaNumbers, rng: &mut Rng) -> (f64, Vec<f32>) {
        let (bridge, n_samples) = (self.config.bridge, self.config.n_bridge_samples);
        let ranks = [&alpha.ranks[0][..], &alpha.ranks[1][..]];
        bridge.latency(self.predictor, &alpha.soft_code, ranks, n_samples, rng)
    }

    /// The latency in the loss of alpha: its value, a tensor whose gradient in alpha is exact, and the
    /// latency in ms.
    ///
    /// The model is no tensor graph: its gradient with respect to the code is a constant g, and
    /// `sum(code * g)` has the same gradient with respect to alpha as the model itself.
    fn latency_term(&mut self, rng: &mut Rng) -> Result<(f64, Tensor, f64), Error> {
        let alpha = self.alpha_numbers()?;
        let (millis, gradient) = self.bridge_latency(&alpha, rng);
        let (value, slope) = self.objective.term(millis);
        let code = self.architecture.soft_code()?;
        let gradient = Tensor::from_vec(gradient, code.shape(), code.device())?;
        let term = ((code * gradient)?.sum_all()? * slope)?;
        Ok((value, term, millis))
    }

    /// Alpha and beta on a validation batch; returns the cross entropy (this rank's part of it, on the device), what
    /// the latency added, and the latency in ms. The training batch is for the unrolled step alone.
    fn alpha_step(
        &mut self,
        valid: &(Tensor, Tensor),
        train: &(Tensor, Tensor),
        learning_rate: f64,
        [bridge_rng, dropout_rng]: [&mut Rng; 2],
        share: Option<&Share>,
    ) -> Result<(Tensor, f64, f64), Error> {
        self.settle()?;
        let (latency, term, millis) = self.latency_term(bridge_rng)?;
        let loss = |(x, y): &(Tensor, Tensor), pass: &Pass<'_>| {
            let logits = self.network.forward(x, &self.mixing(true)?, pass)?;
            weighted(cross_entropy(&logits, y, 0.0)?, share)
        };
        // Every rank has the whole latency: each adds its part of it.
        let term = weighted(term, share)?;
        let parameters = self.architecture.parameters();
        let with_latency = |loss: Tensor| {
            if self.objective.weight() == 0.0 {
                Ok(loss)
            } else {
                loss + &term
            }
        };
        let (cross_entropy, gradients) = match self.config.order {
            Order::FirstOrder => {
                let pass = Pass::architecture_step().over(share);
                let pass = pass.with_skip_dropout(self.skip_dropout, dropout_rng);
                let loss = loss(valid, &pass)?;
                let total = with_latency(loss.clone())?;
                let gradients = Gradients::collect(parameters, &mut total.backward()?);
                (loss, gradients.summed(share)?)
            }
            Order::Unrolled => {
                let (total, gradients) = unrolled_gradient(
                    self.network.parameters(),
                    parameters,
                    &self.sgd,
                    learning_rate,
                    share,
                    || loss(train, &Pass::training().over(share)),
                    || with_latency(loss(valid, &Pass::training().over(share))?),
                )?;
                let own = with_latency(Tensor::zeros_like(&total)?)?;
                ((total - own)?, gradients)
            }
        };
        let (gradients, factor) = gradients.clip(self.config.architecture.clip_norm)?;
        self.adam.step(parameters, &gradients, factor)?;
        self.seen.known = None;
        self.seen.owes_observation = self.objective.observes();
        if !self.device.is_cpu() {
            self.seen.on_its_way.start(&self.architecture.numbers()?)?;
        }
        Ok((cross_entropy.detach(), latency, millis))
    }

    /// The latency that a genotype keeps below with the target's probability, in ms.
    pub(crate) fn upper_millis(&self, genotype: &Genotype) -> Option<f64> {
        self.predictor
            .upper(genotype, self.config.target.probability)
    }

    /// The weights on a training batch; returns the loss and the number of right answers, this rank's part of both, on
    /// the device.
    fn weight_step(
        &mut self,
        (x, y): &(Tensor, Tensor),
        learning_rate: f64,
        dropout_rng: &mut Rng,
        share: Option<&Share>,
    ) -> Result<(Tensor, Tensor), Error> {
        let pass = Pass::training().over(share);
        let pass = pass.with_skip_dropout(self.skip_dropout, dropout_rng);
        let logits = self.network.forward(x, &self.mixing(false)?, &pass)?;
        let (parameters, clip_norm) = (self.network.parameters(), self.config.weights.clip_norm);
        descend(
            &logits,
            y,
            parameters,
            &mut self.sgd,
            learning_rate,
            clip_norm,
            share,
        )
    }
}

/// Initial weights and alpha of a stage.
fn networks(
    config: &Config,
    spec: &NetworkSpec,
    stage: usize,
    candidates: &Candidates,
    device: &Device,
) -> Result<(Supernet, Architecture), Error> {
    let ratio = config.channel_ratio().expect("a config that was checked");
    let spec = match &config.progressive {
        Some(stages) => NetworkSpec {
            n_layers: stages.n_layers[stage],
            ..spec.clone()
        },
        None => spec.clone(),
    };
    let stream = match stage {
        0 => STREAM_INIT,
        later => STREAM_FIRST_STAGE + later as u64,
    };
    let mut rng = rng(config.seed, stream);
    let space = SearchSpace::darts();
    let network = {
        let builder = Builder::new(device, DType::F32, &mut rng)
            .with_precision(crate::precision(config.precision));
        Supernet::with_candidates(&builder, space, &spec, ratio, candidates)?
    };
    let architecture = Architecture::new(space, ratio.is_partial(), device, DType::F32, &mut rng)?;
    let has_all = *candidates == Candidates::all(space);
    let architecture = match has_all {
        true => architecture,
        false => architecture.with_candidates(candidates)?,
    };
    Ok((network, architecture))
}

/// A step of the weights behind logits `[n, classes]` and classes `[n]`; returns this rank's part of the loss and of the
/// number of right answers, on the device.
pub(crate) fn descend(
    logits: &Tensor,
    y: &Tensor,
    parameters: &Parameters,
    sgd: &mut Sgd,
    learning_rate: f64,
    clip_norm: f64,
    share: Option<&Share>,
) -> Result<(Tensor, Tensor), Error> {
    let (loss, gradients) = gradients(logits, y, parameters, share)?;
    let (gradients, factor) = gradients.clip(clip_norm)?;
    sgd.step(parameters, &gradients, learning_rate, factor)?;
    Ok((loss, hits(&logits.detach(), y)?))
}

/// This rank's part of the loss behind logits `[n, classes]` and classes `[n]`, and the gradients over all ranks.
pub(crate) fn gradients(
    logits: &Tensor,
    y: &Tensor,
    parameters: &Parameters,
    share: Option<&Share>,
) -> Result<(Tensor, Gradients), Error> {
    let loss = weighted(cross_entropy(logits, y, 0.0)?, share)?;
    let gradients = Gradients::collect(parameters, &mut loss.backward()?).summed(share)?;
    Ok((loss.detach(), gradients))
}

pub(crate) fn sgd(config: &Config) -> Sgd {
    Sgd::new(config.weights.momentum, config.weights.weight_decay)
}

fn adam(config: &Config) -> Adam {
    let own = &config.architecture;
    Adam::new(
        own.learning_rate,
        (own.betas[0], own.betas[1]),
        own.weight_decay,
    )
}

/// What a mean over this rank's images, or what every rank has, adds to the mean over the batch.
fn weighted(loss: Tensor, share: Option<&Share>) -> Result<Tensor, candle_core::Error> {
    match share {
        None => Ok(loss),
        Some(share) => loss * share.weight(),
    }
}

pub(crate) fn finite(
    value: f64,
    what: &'static str,
    epoch: usize,
    step: usize,
) -> Result<f64, Error> {
    if value.is_finite() {
        Ok(value)
    } else {
        Err(Error::NonFinite { what, epoch, step })
    }
}

/// The supernet's shape: its size from the config, its ends from the images.
pub(crate) fn network_spec(config: &Config, set: &ImageSet) -> Result<NetworkSpec, Error> {
    let network = &config.network;
    let spec = NetworkSpec {
        stem: network.stem().expect("a config that was checked"),
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
