//! A fitted predictor: what `predictor` writes and `search` descends on.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::files::Files;
use crate::format::{FormatVersion, Kind};
use crate::latency_dataset::{MeasurementSettings, Metric};
use crate::store::Artifact;
use crate::tensors::FloatTensors;

const MODEL: &str = "model.json";
const WEIGHTS: &str = "weights.safetensors";
const VALIDATION: &str = "validation.json";

/// What a predictor predicts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelCard {
    /// What the latencies are of; `None` if a foreign data set did not say.
    pub settings: Option<MeasurementSettings>,
    /// What is predicted; latency before format 1.3. Where it is another metric, every number of the artifact that is named after
    /// milliseconds is in [the unit of that metric](Metric::unit).
    #[serde(default, skip_serializing_if = "Metric::is_default")]
    pub metric: Metric,
    /// The model that `search` is to use: `structured`, `mlp` or `ridge`; since format 1.3 also `transfer`.
    pub chosen: String,
    /// Why that one; empty before format 1.2.
    #[serde(default)]
    pub reason: String,
    /// The median of the training latencies, in milliseconds: what a prediction is divided by in a loss.
    pub reference_millis: f64,
    /// Architectures that it was fitted on.
    pub n_train: usize,
    /// Architectures that were held out; of a `transfer`, those that it was fitted on, each left out.
    pub n_test: usize,
}

/// How well a model predicts held-out architectures; ratios, not percent.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FiguresRecord {
    /// Held-out architectures.
    pub n: usize,
    /// Mean absolute error, in milliseconds.
    pub mae_millis: f64,
    /// Root of the mean squared error, in milliseconds.
    pub rmse_millis: f64,
    /// Mean absolute error over the measured latency.
    pub mape: f64,
    /// Median absolute error over the measured latency.
    pub median_ape: f64,
    /// The share that is predicted to within 5 %.
    pub within_5_percent: f64,
    /// The share that is predicted to within 10 %.
    pub within_10_percent: f64,
    /// Spearman's rank correlation.
    pub spearman: f64,
    /// Kendall's rank correlation, tau-b.
    pub kendall: f64,
    /// How much slower the architecture is that is predicted to be the fastest than the truly fastest, over the
    /// latter; `None` before format 1.2.
    #[serde(default)]
    pub regret: Option<f64>,
    /// Mean absolute error over the measured latency of the training architectures, each predicted without
    /// itself; `None` before format 1.2.
    #[serde(default)]
    pub left_out_mape: Option<f64>,
    /// The share that lies in its 90 % interval, calibrated on the training architectures; `None` before format
    /// 1.2.
    #[serde(default)]
    pub coverage_90: Option<f64>,
}

/// One held-out architecture.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HeldOut {
    /// The measured latency, in milliseconds.
    pub measured_millis: f64,
    /// What each model predicts, in milliseconds.
    pub predicted_millis: BTreeMap<String, f64>,
    /// The spread of each prediction: the model's own doubt, as a relative error. Empty before format 1.2, when no
    /// model had any.
    #[serde(default)]
    pub spread: BTreeMap<String, f64>,
}

/// The models on held-out architectures.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Validation {
    /// The figures of each model, by name: `structured`, `mlp`, `ridge`.
    pub models: BTreeMap<String, FiguresRecord>,
    /// The MAPE that a perfect model would have against one measurement; `None` without repeats.
    pub noise_floor_mape: Option<f64>,
    /// What the figures are made of.
    pub held_out: Vec<HeldOut>,
}

/// A fitted predictor. (`LatencyModel` is the trait of the crate `latency`.)
///
/// Files: `model.json`, `weights.safetensors`, `validation.json`.
#[derive(Clone, Debug, PartialEq)]
pub struct LatencyModelArtifact {
    /// What it predicts.
    pub card: ModelCard,
    /// The state of each model, `structured/…`, `mlp/…` and `ridge/…`.
    pub tensors: FloatTensors,
    /// How well it does.
    pub validation: Validation,
}

impl Artifact for LatencyModelArtifact {
    const KIND: Kind = Kind::LatencyModel;
    const FORMAT: FormatVersion = FormatVersion::new(1, 6);

    fn to_files(&self) -> Result<Files, Error> {
        let mut files = Files::default();
        files.put_json(MODEL, &self.card)?;
        files.put_tensors(WEIGHTS, &self.tensors)?;
        files.put_json(VALIDATION, &self.validation)?;
        Ok(files)
    }

    fn from_files(files: &Files) -> Result<Self, Error> {
        Ok(Self {
            card: files.json(MODEL)?,
            tensors: files.tensors(WEIGHTS)?,
            validation: files.json(VALIDATION)?,
        })
    }
}
