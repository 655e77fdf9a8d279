//! The config file of the stage.

use serde::{Deserialize, Serialize};

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
