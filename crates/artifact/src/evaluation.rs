//! A network trained from scratch, tested and timed: what `evaluate` writes.

use serde::{Deserialize, Serialize};
use space::Genotype;

use crate::error::Error;
use crate::files::Files;
use crate::format::{FormatVersion, Kind};
use crate::latency_dataset::{MeasurementSettings, NetworkRecord};
use crate::store::Artifact;
use crate::table::one_column_per_field;
use crate::tensors::FloatTensors;

const EVALUATION: &str = "evaluation.json";
const LATENCY: &str = "latency.json";
const EPOCHS: &str = "epochs.parquet";
const WEIGHTS: &str = "weights.safetensors";

/// The search that found the architecture.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SearchSummary {
    /// The search method: `pc-darts` or `darts`.
    pub method: String,
    /// The balancing coefficient of the latency in its loss.
    pub lambda: f64,
    /// Its seed.
    pub seed: u64,
    /// The latency that the predictor gives the architecture, in milliseconds.
    pub predicted_latency_millis: f64,
}

/// A measured latency.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TimingResult {
    /// The median over the repeats, corrected for drift, in milliseconds.
    pub median_millis: f64,
    /// The 10th percentile over the repeats.
    pub p10_millis: f64,
    /// The 90th percentile over the repeats.
    pub p90_millis: f64,
    /// Calls that count.
    pub n_repeats: u32,
    /// The anchor network's latency around this one over its reference: what was divided out.
    pub anchor_ratio: f64,
    /// Whether the machine was too restless meanwhile.
    pub disturbed: bool,
}

/// One epoch of the training.
#[derive(Clone, Debug, PartialEq)]
pub struct EpochRow {
    /// The epoch, from 0.
    pub epoch: u32,
    /// The mean loss, auxiliary head included, in nats.
    pub train_loss: f64,
    /// The share of training images classified right.
    pub train_accuracy: f64,
    /// The learning rate.
    pub learning_rate: f64,
    /// The probability that a path is dropped.
    pub drop_path: f64,
}

one_column_per_field!(EpochRow {
    epoch,
    train_loss,
    train_accuracy,
    learning_rate,
    drop_path
});

/// A network trained from scratch, tested and timed.
///
/// Files: `evaluation.json`, `latency.json`, `epochs.parquet`, `weights.safetensors`. The latency has a
/// file of its own because it alone differs from run to run.
#[derive(Clone, Debug, PartialEq)]
pub struct Evaluation {
    /// The architecture.
    pub genotype: Genotype,
    /// The network that it was put into.
    pub network: NetworkRecord,
    /// What the latency is of.
    pub settings: MeasurementSettings,
    /// Where the architecture comes from.
    pub search: SearchSummary,
    /// The seed of the training.
    pub seed: u64,
    /// The share of test images classified right.
    pub test_accuracy: f64,
    /// The mean cross entropy on the test images, in nats.
    pub test_loss: f64,
    /// The measured latency.
    pub latency: TimingResult,
    /// Trained numbers, without the auxiliary head.
    pub n_params: u64,
    /// Multiply-accumulates of convolutions and linear layers for one image.
    pub n_macs: u64,
    /// Multiply-adds in the convention of the published numbers.
    pub n_multi_adds: u64,
    /// One row per epoch.
    pub epochs: Vec<EpochRow>,
    /// The trained network, under the names of the original PyTorch state dict.
    pub weights: FloatTensors,
}

/// `evaluation.json`.
#[derive(PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Record {
    #[serde(with = "crate::genotype")]
    genotype: Genotype,
    network: NetworkRecord,
    settings: MeasurementSettings,
    search: SearchSummary,
    seed: u64,
    test_accuracy: f64,
    test_loss: f64,
    n_params: u64,
    n_macs: u64,
    n_multi_adds: u64,
}

impl Artifact for Evaluation {
    const KIND: Kind = Kind::Evaluation;
    const FORMAT: FormatVersion = FormatVersion::new(1, 1);

    fn to_files(&self) -> Result<Files, Error> {
        let mut files = Files::default();
        let record = Record {
            genotype: self.genotype.clone(),
            network: self.network.clone(),
            settings: self.settings.clone(),
            search: self.search.clone(),
            seed: self.seed,
            test_accuracy: self.test_accuracy,
            test_loss: self.test_loss,
            n_params: self.n_params,
            n_macs: self.n_macs,
            n_multi_adds: self.n_multi_adds,
        };
        files.put_json(EVALUATION, &record)?;
        files.put_json(LATENCY, &self.latency)?;
        files.put_table::<Self>(EPOCHS, EpochRow::columns(&self.epochs), None)?;
        files.put_tensors(WEIGHTS, &self.weights)?;
        Ok(files)
    }

    fn from_files(files: &Files) -> Result<Self, Error> {
        let record: Record = files.json(EVALUATION)?;
        Ok(Self {
            genotype: record.genotype,
            network: record.network,
            settings: record.settings,
            search: record.search,
            seed: record.seed,
            test_accuracy: record.test_accuracy,
            test_loss: record.test_loss,
            latency: files.json(LATENCY)?,
            n_params: record.n_params,
            n_macs: record.n_macs,
            n_multi_adds: record.n_multi_adds,
            epochs: EpochRow::rows(&files.table::<Self>(EPOCHS)?)?,
            weights: files.tensors(WEIGHTS)?,
        })
    }
}
