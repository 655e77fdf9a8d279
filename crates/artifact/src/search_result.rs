//! A found architecture, and how it was found: what `search` writes and `evaluate` trains.

use serde::{Deserialize, Serialize};
use space::Genotype;

use crate::error::Error;
use crate::files::Files;
use crate::format::{FormatVersion, Kind};
use crate::latency_dataset::MeasurementSettings;
use crate::store::Artifact;
use crate::table::one_column_per_field;
use crate::tensors::FloatTensors;

const GENOTYPE: &str = "genotype.json";
const ALPHAS: &str = "alphas.safetensors";
const TRACE: &str = "trace.parquet";

/// A found architecture.
///
/// Files: `genotype.json`, `alphas.safetensors`, `trace.parquet`.
#[derive(Clone, Debug, PartialEq)]
pub struct SearchResult {
    /// The architecture.
    pub genotype: Genotype,
    /// The search method: `pc-darts` or `darts`.
    pub method: String,
    /// The seed of the search.
    pub seed: u64,
    /// The balancing coefficient of the latency in the loss.
    pub lambda: f64,
    /// What the predicted latency is of; `None` if the predictor does not say.
    pub settings: Option<MeasurementSettings>,
    /// The predicted latency of the architecture, in milliseconds.
    pub predicted_latency_millis: f64,
    /// What predictions were divided by in the loss, in milliseconds.
    pub reference_millis: f64,
    /// The architecture parameters: `alphas_normal`, `alphas_reduce` (14 x 8: edges, primitives), and for
    /// PC-DARTS `betas_normal`, `betas_reduce` (14).
    pub alphas: FloatTensors,
    /// One row per epoch.
    pub trace: Vec<TraceRow>,
}

/// One epoch of a search.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TraceRow {
    /// The epoch, from 0.
    pub epoch: u32,
    /// The mean cross entropy of the weight steps, in nats.
    pub train_loss: f64,
    /// The share of training images classified right.
    pub train_accuracy: f64,
    /// The mean cross entropy on the validation images, in nats.
    pub valid_loss: f64,
    /// The share of validation images classified right.
    pub valid_accuracy: f64,
    /// The mean latency term of the loss, `lambda` included.
    pub latency_loss: f64,
    /// The predicted latency of the soft code, in milliseconds.
    pub soft_latency_millis: f64,
    /// The predicted latency of the derived genotype, in milliseconds.
    pub derived_latency_millis: f64,
    /// The entropy of softmax(alpha) in the normal cell, mean over edges, in nats.
    pub entropy_normal: f64,
    /// The entropy of softmax(alpha) in the reduction cell, mean over edges, in nats.
    pub entropy_reduce: f64,
    /// Skip connections in the derived normal cell.
    pub n_skips_normal: u32,
    /// Skip connections in the derived reduction cell.
    pub n_skips_reduce: u32,
    /// The learning rate of the weights.
    pub learning_rate: f64,
    /// The derived genotype, in the tuple form.
    pub genotype: String,
}

one_column_per_field!(TraceRow {
    epoch,
    train_loss,
    train_accuracy,
    valid_loss,
    valid_accuracy,
    latency_loss,
    soft_latency_millis,
    derived_latency_millis,
    entropy_normal,
    entropy_reduce,
    n_skips_normal,
    n_skips_reduce,
    learning_rate,
    genotype,
});

/// `genotype.json`.
#[derive(PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Record {
    #[serde(with = "crate::genotype")]
    genotype: Genotype,
    method: String,
    seed: u64,
    lambda: f64,
    settings: Option<MeasurementSettings>,
    predicted_latency_millis: f64,
    reference_millis: f64,
}

impl Artifact for SearchResult {
    const KIND: Kind = Kind::SearchResult;
    const FORMAT: FormatVersion = FormatVersion::new(1, 1);

    fn to_files(&self) -> Result<Files, Error> {
        let mut files = Files::default();
        let record = Record {
            genotype: self.genotype.clone(),
            method: self.method.clone(),
            seed: self.seed,
            lambda: self.lambda,
            settings: self.settings.clone(),
            predicted_latency_millis: self.predicted_latency_millis,
            reference_millis: self.reference_millis,
        };
        files.put_json(GENOTYPE, &record)?;
        files.put_tensors(ALPHAS, &self.alphas)?;

        files.put_table::<Self>(TRACE, TraceRow::columns(&self.trace), None)?;
        Ok(files)
    }

    fn from_files(files: &Files) -> Result<Self, Error> {
        let record: Record = files.json(GENOTYPE)?;
        Ok(Self {
            genotype: record.genotype,
            method: record.method,
            seed: record.seed,
            lambda: record.lambda,
            settings: record.settings,
            predicted_latency_millis: record.predicted_latency_millis,
            reference_millis: record.reference_millis,
            alphas: files.tensors(ALPHAS)?,
            trace: TraceRow::rows(&files.table::<Self>(TRACE)?)?,
        })
    }
}
