//! The config file of the stage.

use serde::{Deserialize, Serialize};

use crate::error::Error;

/// `search.toml`; every key is required.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Seed of the initial weights, of alpha, of the split and of the order of the data.
    pub seed: u64,
    /// Full or partial channels.
    pub method: Method,
    /// Weight of latency / reference latency in the loss of alpha; 0 searches for accuracy alone.
    pub lambda: f64,
    /// Passes over the training part.
    pub n_epochs: usize,
    /// Epochs at the beginning in which alpha stays as it is.
    pub n_warmup_epochs: usize,
    /// Images per step, of either part.
    pub batch_size: usize,
    /// Images of the validation part on which loss and accuracy are measured after each epoch.
    pub n_validation_images: usize,
    /// The images and what is done to them.
    pub data: DataConfig,
    /// The size of the supernet.
    pub network: NetworkConfig,
    /// The optimiser of the weights.
    pub weights: WeightsConfig,
    /// The optimiser of alpha and beta.
    pub architecture: ArchitectureConfig,
}

impl Config {
    /// Checks what the types do not say.
    pub(crate) fn check(&self) -> Result<(), Error> {
        let Self {
            data,
            weights,
            architecture,
            ..
        } = self;
        let share = |value: f64| (0.0..1.0).contains(&value);
        let not_negative = |value: f64| value >= 0.0 && value.is_finite();
        let positive = |value: f64| value > 0.0 && value.is_finite();
        let rules = [
            ("lambda", not_negative(self.lambda), "0 or more"),
            ("n_epochs", self.n_epochs >= 1, "at least 1"),
            ("batch_size", self.batch_size >= 1, "at least 1"),
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
        match rules.into_iter().find(|(_, holds, _)| !holds) {
            Some((key, _, expected)) => Err(Error::Setting { key, expected }),
            None => Ok(()),
        }
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
}

impl Method {
    /// As in the config file.
    pub fn name(self) -> &'static str {
        match self {
            Self::Darts => "darts",
            Self::PcDarts => "pc-darts",
        }
    }
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
