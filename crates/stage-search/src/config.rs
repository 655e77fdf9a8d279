//! The config file of the stage.

use std::fmt;

use artifact::config::{OutOfRange, Ranged};
use artifact::{Metric, Precision};
use nn::ChannelRatio;
use serde::{Deserialize, Serialize};
use space::{Genotype, Stem};

pub use crate::bridge::Bridge;
use crate::error::Error;
pub use crate::guard::Policy;
use crate::surrogate::Surrogate;

/// `search.toml`; every key but `precision`, `progressive` and `selection` is required.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Seed of the initial weights, of alpha, of the split and of the order of the data.
    pub seed: u64,
    /// Full or partial channels; or no search at all, to compare with.
    pub method: Method,
    /// The gradient of alpha.
    pub order: Order,
    /// What the loss of alpha adds for the latency.
    pub objective: ObjectiveKind,
    /// The weight of the latency in the loss of alpha; for the objective `target` what the multiplier
    /// begins with. A penalty of 0 searches for accuracy alone.
    pub lambda: f64,
    /// Where the latency model is asked.
    pub bridge: Bridge,
    /// Genotypes that the bridge `sampled` draws in a step.
    pub n_bridge_samples: usize,
    /// Passes over the training part; of each stage, where there are several.
    pub n_epochs: usize,
    /// Epochs at the beginning in which alpha stays as it is; of each stage, where there are several.
    pub n_warmup_epochs: usize,
    /// Images per step, of either part.
    pub batch_size: usize,
    /// The precision of the network's products while it is trained; other than `f32` on CUDA alone.
    #[serde(default, skip_serializing_if = "Precision::is_default")]
    pub precision: Precision,
    /// Images of the validation part on which loss and accuracy are measured after each epoch.
    pub n_validation_images: usize,
    /// The latency to keep to.
    pub target: TargetConfig,
    /// Signs of collapse, and what is done about them.
    pub guards: GuardsConfig,
    /// The images and what is done to them.
    pub data: DataConfig,
    /// The size of the supernet.
    pub network: NetworkConfig,
    /// The optimiser of the weights.
    pub weights: WeightsConfig,
    /// The optimiser of alpha and beta.
    pub architecture: ArchitectureConfig,
    /// The stages of the method `p-darts`; no search has them but `random`, which is held against one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub progressive: Option<ProgressiveConfig>,
    /// Which of several genotypes comes out; without it, the one that alpha stands for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selection: Option<SelectionConfig>,
}

/// Several genotypes are trained from scratch for a short while, and the best comes out: of that of alpha and others drawn
/// by alpha, all within target and guards; of the method `random` as many drawn at random. As DARTS chooses between its
/// runs (Liu et al. 2018, section 3.2).
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SelectionConfig {
    /// Genotypes to choose from. 1 = none is trained.
    pub n_candidates: usize,
    /// Genotypes that the candidates are taken from: the one that alpha stands for, which is a candidate in any case, and draws of
    /// alpha, of which those are that a surrogate expects to train best. Without it all are trained. The method `random` trains
    /// what it draws, whatever stands here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub n_draws: Option<usize>,
    /// The weights of that surrogate, as `search learn` prints them; without it those of the one that ships. Nobody looks at them
    /// without `n_draws`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub surrogate: Option<Surrogate>,
    /// Channels of their networks, as `network.init_channels` counts; without it as many as that. Networks that are thinner
    /// are ranked alike, and are trained in less time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub init_channels: Option<usize>,
    /// Passes over the training part, with the settings of `weights`, in networks of `network.n_layers` cells; the training
    /// loss of the last third of all steps decides.
    pub n_epochs: usize,
    /// Share of each class on which candidates are trained: `data.train_fraction`, or more of what is not the validation
    /// part. Little data ranks networks by how fast they learn, all of it by how much.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub train_fraction: Option<f64>,
}

/// A search in stages, each in a deeper supernet with fewer primitives on every edge (P-DARTS). Weights and alpha
/// begin anew in each.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProgressiveConfig {
    /// The number of cells, stage by stage; instead of `network.n_layers`.
    pub n_layers: Vec<usize>,
    /// Primitives on each edge, stage by stage: those of largest weight at the end of the stage before.
    pub n_primitives: Vec<usize>,
    /// The probability of the dropout behind skips of stride 1 at the beginning of each stage, 0..1; it falls
    /// to 0 in a straight line over the stage. Where it is not 0, cells run operation by operation, which is slower.
    pub skip_dropout: Vec<f64>,
}

impl ProgressiveConfig {
    /// As many numbers of everything, fewer and fewer primitives, and never `none` alone.
    fn is_right(&self) -> bool {
        let n_stages = self.n_layers.len();
        n_stages > 0
            && self.n_primitives.len() == n_stages
            && self.skip_dropout.len() == n_stages
            && self.n_layers.iter().all(|&n| n > 0)
            && self.n_primitives.iter().all(|n| (2..=8).contains(n))
            && self.n_primitives.is_sorted_by(|a, b| a >= b)
            && self.skip_dropout.iter().all(|p| (0.0..1.0).contains(p))
    }
}

impl Config {
    /// The number of stages.
    pub(crate) fn n_stages(&self) -> usize {
        self.progressive
            .as_ref()
            .map_or(1, |stages| stages.n_layers.len())
    }

    /// Whether anything is trained; all but a random search that draws one genotype does.
    pub(crate) fn trains(&self) -> bool {
        self.method != Method::Random || self.n_candidates() > 1
    }

    /// Genotypes that one is chosen from.
    pub(crate) fn n_candidates(&self) -> usize {
        self.selection
            .as_ref()
            .map_or(1, |selection| selection.n_candidates)
    }

    /// Genotypes that alpha is asked for, its own included; one where nothing is trained.
    pub(crate) fn n_draws(&self) -> usize {
        let n_candidates = self.n_candidates();
        let asked = self.selection.as_ref().and_then(|own| own.n_draws);
        asked.filter(|_| n_candidates > 1).unwrap_or(n_candidates)
    }

    /// What chooses between draws, where there may be more than are trained.
    pub(crate) fn surrogate(&self) -> Option<&Surrogate> {
        let chooses = self.method != Method::Random && self.n_draws() > self.n_candidates();
        chooses.then(|| self.any_surrogate())
    }

    /// The surrogate of the table `[selection]`, or else the one that ships.
    pub fn any_surrogate(&self) -> &Surrogate {
        let own = self
            .selection
            .as_ref()
            .and_then(|own| own.surrogate.as_ref());
        own.unwrap_or(Surrogate::shipped())
    }

    /// Share of each class that candidates are trained on and the weights of the supernet are not.
    pub(crate) fn further_fraction(&self) -> f64 {
        let asked = self.selection.as_ref().and_then(|own| own.train_fraction);
        asked.map_or(0.0, |fraction| fraction - self.data.train_fraction)
    }

    /// The channels that pass through the operations of the supernet, if the method takes so many.
    pub(crate) fn channel_ratio(&self) -> Option<ChannelRatio> {
        let network = &self.network;
        ChannelRatio::new(network.channel_ratio).filter(|ratio| {
            ratio.is_partial() == (self.method == Method::PcDarts)
                && network.init_channels.is_multiple_of(ratio.get())
        })
    }

    /// Epochs of all stages together.
    pub(crate) fn n_epochs_in_all(&self) -> usize {
        self.n_stages() * self.n_epochs
    }

    /// Makes sure that a batch has work for so many ranks.
    ///
    /// # Errors
    /// If it has not.
    pub fn check_ranks(&self, n_ranks: usize) -> Result<(), Error> {
        if n_ranks <= self.batch_size || !self.trains() {
            return Ok(());
        }
        Err(Error::Setting {
            key: "batch_size",
            expected: "at least one image for each of the --ranks".to_owned(),
        })
    }

    /// Checks what the types do not say.
    pub(crate) fn check(&self) -> Result<(), Error> {
        self.out_of_range()
            .map_or(Ok(()), |OutOfRange { key, expected }| {
                Err(Error::Setting { key, expected })
            })
    }
}

impl Ranged for Config {
    fn out_of_range(&self) -> Option<OutOfRange> {
        let Self {
            target,
            guards,
            data,
            network,
            weights,
            architecture,
            ..
        } = self;
        let stem = network.stem();
        let fits_stem =
            |n_channels: usize| stem != Some(Stem::Imagenet) || n_channels.is_multiple_of(2);
        let share = |value: f64| (0.0..1.0).contains(&value);
        let not_negative = |value: f64| value >= 0.0 && value.is_finite();
        let positive = |value: f64| value > 0.0 && value.is_finite();
        let rules = [
            ("lambda", not_negative(self.lambda), "0 or more"),
            (
                "target.latency",
                self.objective == ObjectiveKind::Penalty
                    || self.target.latency != TargetLatency::None,
                "a latency such as 0.4ms or 0.6x for the objectives hinge and target",
            ),
            (
                "target.latency",
                self.method != Method::Random || self.target.latency != TargetLatency::None,
                "a latency such as 0.4ms or 0.6x for the method random",
            ),
            (
                "target.of",
                genotype_of(&target.of).is_some(),
                "the name of a published genotype, or one in the tuple form",
            ),
            (
                "target.probability",
                target.probability > 0.0 && target.probability < 1.0,
                "above 0 and below 1",
            ),
            (
                "target.slack",
                share(target.slack),
                "at least 0 and below 1",
            ),
            (
                "target.multiplier_rate",
                positive(target.multiplier_rate),
                "a positive number",
            ),
            (
                "progressive",
                match self.method {
                    Method::Darts | Method::PcDarts => self.progressive.is_none(),
                    Method::PDarts => self.progressive.is_some(),
                    // With one or without: what is drawn to be held against a search is of its config otherwise.
                    Method::Random => true,
                },
                "a table [progressive] for the method p-darts, and none for darts and pc-darts (docs/search.md, Stages)",
            ),
            (
                "progressive",
                self.progressive
                    .as_ref()
                    .is_none_or(ProgressiveConfig::is_right),
                "n_layers, n_primitives (2 to 8, never more than in the stage before) and skip_dropout (at \
                 least 0 and below 1) for each stage",
            ),
            (
                "order",
                self.progressive.is_none() || self.order == Order::FirstOrder,
                "first-order for the method p-darts",
            ),
            (
                "selection",
                self.selection
                    .as_ref()
                    .is_none_or(|own| own.n_candidates >= 1 && own.n_epochs >= 1),
                "n_candidates and n_epochs of at least 1",
            ),
            (
                "selection.n_draws",
                self.method == Method::Random
                    || self
                        .selection
                        .as_ref()
                        .is_none_or(|own| own.n_draws.is_none_or(|n| n >= own.n_candidates)),
                "at least n_candidates",
            ),
            (
                "selection.init_channels",
                self.selection
                    .as_ref()
                    .and_then(|own| own.init_channels)
                    .is_none_or(|n| n >= 1 && fits_stem(n)),
                "at least 1, and even with the stem imagenet",
            ),
            ("n_bridge_samples", self.n_bridge_samples >= 1, "at least 1"),
            ("guards.max_skips", guards.max_skips <= 8, "at most 8"),
            (
                "guards.min_convolutions",
                guards.min_convolutions <= 8,
                "at most 8",
            ),
            (
                "guards.max_parameter_free",
                (0.0..=1.0).contains(&guards.max_parameter_free),
                "between 0 and 1",
            ),
            (
                "guards.min_entropy",
                not_negative(guards.min_entropy),
                "0 or more",
            ),
            (
                "guards.max_eigenvalue_growth",
                guards.max_eigenvalue_growth > 1.0,
                "a ratio above 1",
            ),
            (
                "guards.auxiliary_skip",
                not_negative(guards.auxiliary_skip),
                "0 or more",
            ),
            ("n_epochs", self.n_epochs >= 1, "at least 1"),
            (
                "n_warmup_epochs",
                self.n_warmup_epochs <= self.n_epochs,
                "at most n_epochs",
            ),
            ("batch_size", self.batch_size >= 1, "at least 1"),
            (
                "n_validation_images",
                self.n_validation_images >= 1,
                "at least 1",
            ),
            (
                "network.stem",
                stem.is_some(),
                "one of conv3x3, conv3x3-stride2, imagenet",
            ),
            ("network.n_layers", network.n_layers >= 1, "at least 1"),
            (
                "network.init_channels",
                network.init_channels >= 1 && fits_stem(network.init_channels),
                "at least 1, and even with the stem imagenet",
            ),
            (
                "network.channel_ratio",
                self.method == Method::Random || self.channel_ratio().is_some(),
                "1 for darts and p-darts, for pc-darts a divisor of network.init_channels above 1",
            ),
            (
                "data.train_fraction",
                positive(data.train_fraction),
                "a positive share",
            ),
            (
                "data.valid_fraction",
                positive(data.valid_fraction),
                "a positive share",
            ),
            (
                "data.train_fraction + data.valid_fraction",
                data.train_fraction + data.valid_fraction <= 1.0 + 1e-9,
                "at most 1",
            ),
            (
                "selection.train_fraction",
                (0.0..=1.0 - data.train_fraction - data.valid_fraction + 1e-9)
                    .contains(&self.further_fraction()),
                "at least data.train_fraction, and with data.valid_fraction at most 1",
            ),
            (
                "data.color_jitter",
                (0.0..=1.0).contains(&data.color_jitter),
                "between 0 and 1",
            ),
            (
                "data.hue_jitter",
                (0.0..=0.5).contains(&data.hue_jitter),
                "between 0 and 0.5",
            ),
            (
                "weights.learning_rate",
                positive(weights.learning_rate),
                "a positive number",
            ),
            (
                "weights.last_learning_rate",
                not_negative(weights.last_learning_rate),
                "0 or more",
            ),
            (
                "weights.n_warmup_epochs",
                weights.n_warmup_epochs < self.n_epochs,
                "fewer than n_epochs",
            ),
            (
                "weights.momentum",
                share(weights.momentum),
                "at least 0 and below 1",
            ),
            (
                "weights.weight_decay",
                not_negative(weights.weight_decay),
                "0 or more",
            ),
            (
                "weights.clip_norm",
                not_negative(weights.clip_norm),
                "0 or more",
            ),
            (
                "architecture.learning_rate",
                positive(architecture.learning_rate),
                "a positive number",
            ),
            (
                "architecture.betas",
                architecture.betas.into_iter().all(share),
                "two numbers of at least 0 and below 1",
            ),
            (
                "architecture.weight_decay",
                not_negative(architecture.weight_decay),
                "0 or more",
            ),
            (
                "architecture.clip_norm",
                not_negative(architecture.clip_norm),
                "0 or more",
            ),
        ];
        OutOfRange::first(rules)
    }
}

/// The base search.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Method {
    /// All channels pass through the operations, edges are summed (Liu et al. 2018).
    Darts,
    /// Partial channels and edge normalisation (Xu et al. 2020).
    PcDarts,
    /// Stages of growing depth and fewer and fewer primitives (Chen et al. 2019).
    PDarts,
    /// Genotypes drawn at random from those that keep to the target and not far below it: what a search
    /// must be better than.
    Random,
}

impl Method {
    /// As in the config file.
    pub fn name(self) -> &'static str {
        match self {
            Self::Darts => "darts",
            Self::PcDarts => "pc-darts",
            Self::PDarts => "p-darts",
            Self::Random => "random",
        }
    }
}

/// The bilevel approximation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Order {
    /// The weights count as constants.
    FirstOrder,
    /// The weights are those after one more step, which depends on alpha (DARTS, section 2.3); four times as
    /// expensive.
    Unrolled,
}

/// The term of the latency in the loss of alpha.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ObjectiveKind {
    /// lambda * latency / reference latency (LA-DARTS).
    Penalty,
    /// lambda * max(0, latency / target - 1).
    Hinge,
    /// multiplier * (latency / target - 1), the multiplier found by gradient ascent.
    Target,
}

impl ObjectiveKind {
    /// As in the config file.
    pub fn name(self) -> &'static str {
        match self {
            Self::Penalty => "penalty",
            Self::Hinge => "hinge",
            Self::Target => "target",
        }
    }
}

/// The latency to keep to. With any objective, the derived cells are changed at the end if they do not.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TargetConfig {
    /// The latency.
    pub latency: TargetLatency,
    /// The genotype whose latency, as predicted, a ratio is of: a published name or the tuple form.
    pub of: String,
    /// The probability with which the latency is to be kept, by the predictor's errors on held-out
    /// architectures.
    pub probability: f64,
    /// The share of the target that may stay unused.
    pub slack: f64,
    /// What the multiplier climbs per step for a violation of 1.
    pub multiplier_rate: f64,
}

/// `none`, `0.4ms`, or `0.6x` for a ratio of a genotype's latency. Where the model is of another metric, an amount of that one, such as
/// `12MiB` or `3mJ`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "TargetText", into = "String")]
pub enum TargetLatency {
    /// Any.
    None,
    /// So much, in the unit of the metric.
    Cost(f64, Metric),
    /// As a ratio.
    Ratio(f64),
}

/// How a target is written; a number alone is none.
#[derive(Deserialize)]
#[serde(untagged)]
enum TargetText {
    Text(String),
    Number(f64),
}

impl TryFrom<TargetText> for TargetLatency {
    type Error = String;

    fn try_from(text: TargetText) -> Result<Self, String> {
        let text = match text {
            TargetText::Text(text) => text,
            TargetText::Number(number) => {
                return Err(format!(
                    "`{number}` has no unit; expected none, {number}ms or {number}x"
                ));
            }
        };
        let number = |text: &str| {
            let value: f64 = text.trim().parse().ok()?;
            (value > 0.0 && value.is_finite()).then_some(value)
        };
        let text = text.trim();
        let cost = |metric: Metric| {
            let value = text.strip_suffix(metric.unit()).and_then(number)?;
            Some(Self::Cost(value, metric))
        };
        let parsed = if text == "none" {
            Some(Self::None)
        } else if let Some(value) = text.strip_suffix('x') {
            number(value).map(Self::Ratio)
        } else {
            Metric::ALL.into_iter().find_map(cost)
        };
        parsed.ok_or_else(|| {
            format!("`{text}` is no latency; expected none, 0.4ms or 0.6x (12MiB, 3mJ where the model is of such)")
        })
    }
}

impl From<TargetLatency> for String {
    fn from(latency: TargetLatency) -> Self {
        latency.to_string()
    }
}

impl fmt::Display for TargetLatency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("none"),
            Self::Cost(value, metric) => write!(f, "{value}{}", metric.unit()),
            Self::Ratio(value) => write!(f, "{value}x"),
        }
    }
}

/// The genotype of a name or in the tuple form.
pub(crate) fn genotype_of(text: &str) -> Option<Genotype> {
    Genotype::named(text).or_else(|| text.parse().ok())
}

/// Signs of collapse, read off after every epoch in which alpha moved, and what is done about them.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GuardsConfig {
    /// What follows an alarm.
    pub policy: Policy,
    /// Skip connections in the derived normal cell: more are an alarm, and no more come out at the end unless a
    /// target forces them. 8 = any.
    pub max_skips: usize,
    /// Convolutions among the eight genes of each derived cell: no fewer come out at the end unless a target forces them.
    /// 0 = any.
    pub min_convolutions: usize,
    /// The share of parameter-free primitives in softmax(alpha) of the normal cell, `none` left out: more is
    /// an alarm. 1 = any.
    pub max_parameter_free: f64,
    /// The entropy of softmax(alpha) in the normal cell, mean over edges, nats: less is an alarm. 0 = any.
    pub min_entropy: f64,
    /// Steps of the power iteration for the dominant eigenvalue of the Hessian of the validation loss in alpha;
    /// 0 = not measured.
    pub n_eigenvalue_steps: usize,
    /// The eigenvalue over its least so far: more is an alarm.
    pub max_eigenvalue_growth: f64,
    /// The weight at the start of a skip beside alpha's on every edge, which falls to 0 (DARTS-); 0 = none.
    pub auxiliary_skip: f64,
}

/// Images and augmentation.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataConfig {
    /// The folder of the data set.
    pub dir: std::path::PathBuf,
    /// Share of each class on which weights are trained, 0..1.
    pub train_fraction: f64,
    /// Share of each class on which alpha is trained, 0..1.
    pub valid_fraction: f64,
    /// Zero pixels around the image before a random crop to its size; 0 = no crop.
    pub pad: usize,
    /// Flip left to right at random.
    pub flip: bool,
    /// Side of the square that is cut out, in pixels; 0 = none.
    pub cutout: usize,
    /// Random resized crop instead of pad and crop (ImageNet).
    pub random_resized_crop: bool,
    /// Strength of brightness, contrast and saturation jitter, 0..1.
    pub color_jitter: f32,
    /// Strength of hue jitter, 0..0.5.
    pub hue_jitter: f32,
    /// Side to which images of different sizes are brought, in pixels; 0 = all images have one size.
    pub resize: usize,
}

/// The supernet.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetworkConfig {
    /// `conv3x3`, `conv3x3-stride2` or `imagenet`.
    pub stem: String,
    /// The number of cells.
    pub n_layers: usize,
    /// Channels of the first cell.
    pub init_channels: usize,
    /// One channel in so many passes through the operations (PC-DARTS's K); 1 for DARTS.
    pub channel_ratio: usize,
}

impl NetworkConfig {
    /// The stem, if there is one of that name.
    pub(crate) fn stem(&self) -> Option<Stem> {
        Stem::from_name(&self.stem)
    }
}

/// SGD with momentum on the weights.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WeightsConfig {
    /// Learning rate of the first epoch.
    pub learning_rate: f64,
    /// Learning rate that the cosine ends at.
    pub last_learning_rate: f64,
    /// Epochs over which the learning rate climbs to its first value.
    pub n_warmup_epochs: usize,
    /// Momentum.
    pub momentum: f64,
    /// L2 regularisation.
    pub weight_decay: f64,
    /// L2 norm to which gradients are clipped; 0 = not at all.
    pub clip_norm: f64,
}

/// Adam on alpha and beta.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ArchitectureConfig {
    /// Learning rate.
    pub learning_rate: f64,
    /// Decay rates of the two moments.
    pub betas: [f64; 2],
    /// L2 regularisation.
    pub weight_decay: f64,
    /// L2 norm to which gradients are clipped; 0 = not at all.
    pub clip_norm: f64,
}
