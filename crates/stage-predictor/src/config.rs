//! What the stage is asked.

use std::fmt;

use artifact::Metric;
use artifact::config::{OutOfRange, Ranged};
use latency::MlpConfig;
use serde::{Deserialize, Serialize};

use crate::Error;

/// The file `predictor.toml` of a preset.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The seed of the split and of the regressor.
    pub seed: u64,
    /// The ratio of architectures that are held out for validation.
    pub held_out: f64,
    /// What is modelled: `latency`, `peak-memory` or `energy`, if the data set holds it.
    #[serde(default, skip_serializing_if = "Metric::is_default")]
    pub metric: Metric,
    /// The model that the search will use; the others are its controls.
    pub model: Model,
    /// The multi-layer regressor.
    pub mlp: MlpSettings,
    /// The additive model.
    pub ridge: RidgeSettings,
}

/// Which model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Model {
    /// The one with the smallest error on training architectures left out.
    Auto,
    /// [`latency::Structured`].
    Structured,
    /// [`latency::Mlp`].
    Mlp,
    /// [`latency::Ridge`].
    Ridge,
}

impl Model {
    /// The name in files, figures and tensor names.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Structured => "structured",
            Self::Mlp => "mlp",
            Self::Ridge => "ridge",
        }
    }
}

impl Model {
    /// The model of that [`name`](Self::name).
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::Auto, Self::Structured, Self::Mlp, Self::Ridge]
            .into_iter()
            .find(|model| model.name() == name)
    }
}

impl fmt::Display for Model {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// The table `[mlp]`; see [`MlpConfig`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MlpSettings {
    /// The widths of the hidden layers.
    pub hidden: Vec<usize>,
    /// Passes over the training architectures.
    pub n_epochs: usize,
    /// Architectures of one step.
    pub batch_size: usize,
    /// The learning rate at first; it falls to 0 along a cosine.
    pub learning_rate: f64,
    /// The decoupled weight decay, per unit of learning rate.
    pub weight_decay: f64,
    /// Regressors whose predictions are averaged.
    pub n_members: usize,
}

/// The table `[ridge]`; see [`latency::Ridge::fit_cv`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RidgeSettings {
    /// The penalties to choose from by cross-validation on the training architectures.
    pub l2: Vec<f64>,
}

impl Ranged for Config {
    fn out_of_range(&self) -> Option<OutOfRange> {
        let mlp = &self.mlp;
        let not_negative = |value: f64| value >= 0.0 && value.is_finite();
        let rules = [
            (
                "held_out",
                self.held_out > 0.0 && self.held_out < 1.0,
                "a ratio above 0 and below 1",
            ),
            (
                "ridge.l2",
                !self.ridge.l2.is_empty()
                    && self
                        .ridge
                        .l2
                        .iter()
                        .all(|&own| own > 0.0 && own.is_finite()),
                "one penalty or more, each above 0",
            ),
            (
                "mlp.hidden",
                !mlp.hidden.is_empty() && !mlp.hidden.contains(&0),
                "the width of one hidden layer or more, each at least 1",
            ),
            ("mlp.n_epochs", mlp.n_epochs >= 1, "at least 1"),
            ("mlp.batch_size", mlp.batch_size >= 1, "at least 1"),
            ("mlp.n_members", mlp.n_members >= 2, "at least 2"),
            (
                "mlp.learning_rate",
                not_negative(mlp.learning_rate),
                "0 or more",
            ),
            (
                "mlp.weight_decay",
                not_negative(mlp.weight_decay),
                "0 or more",
            ),
        ];
        OutOfRange::first(rules)
    }
}

impl Config {
    pub(crate) fn check(&self) -> Result<(), Error> {
        if self.held_out > 0.0 && self.held_out < 1.0 {
            Ok(())
        } else {
            Err(Error::HeldOut {
                held_out: self.held_out,
            })
        }
    }

    pub(crate) fn mlp(&self) -> MlpConfig {
        let MlpSettings {
            hidden,
            n_epochs,
            batch_size,
            learning_rate,
            weight_decay,
            n_members,
        } = self.mlp.clone();
        MlpConfig {
            hidden,
            n_epochs,
            batch_size,
            learning_rate,
            weight_decay,
            n_members,
            seed: self.seed,
        }
    }
}
