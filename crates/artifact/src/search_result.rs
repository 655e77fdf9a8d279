//! A found architecture, and how it was found: what `search` writes and `evaluate` trains.

use serde::{Deserialize, Serialize};
use space::Genotype;

use crate::error::Error;
use crate::files::Files;
use crate::format::{FormatVersion, Kind};
use crate::latency_dataset::{MeasurementSettings, Metric};
use crate::store::Artifact;
use crate::table::one_column_per_field;
use crate::tensors::FloatTensors;

const GENOTYPE: &str = "genotype.json";
const ALPHAS: &str = "alphas.safetensors";
const TRACE: &str = "trace.parquet";

/// A latency that a search was to keep to, and how it ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TargetRecord {
    /// The latency that must not be exceeded, in milliseconds.
    pub target_millis: f64,
    /// The probability with which it is to be kept, 0..1.
    pub probability: f64,
    /// The latency that the architecture keeps below with that probability, by the predictor, in
    /// milliseconds.
    pub upper_millis: f64,
    /// Whether that is the target at most.
    pub is_met: bool,
    /// The architecture that alpha stood for, or drew as a candidate, before its cells were changed to meet the target.
    #[serde(with = "crate::genotype")]
    pub derived: Genotype,
    /// Genes in which it differs from the architecture found.
    pub n_changed_genes: u32,
}

/// An architecture that a search trained for a short while to choose between several.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CandidateRecord {
    /// The architecture.
    #[serde(with = "crate::genotype")]
    pub genotype: Genotype,
    /// Its predicted latency, in milliseconds.
    pub predicted_latency_millis: f64,
    /// The mean cross entropy of the last third of its steps, in nats, of revisions before 13 those of its last epoch: the least
    /// one was chosen. `None` before format 1.6, when
    /// the validation loss decided.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub train_loss: Option<f64>,
    /// The mean cross entropy on the validation images, in nats.
    pub valid_loss: f64,
    /// The share of validation images classified right.
    pub valid_accuracy: f64,
    /// The norm of the gradient of its loss before any training, where candidates were taken by it; no search does so any more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gradient_norm: Option<f64>,
}

/// A found architecture.
///
/// Files: `genotype.json`, `alphas.safetensors`, `trace.parquet`.
#[derive(Clone, Debug, PartialEq)]
pub struct SearchResult {
    /// The architecture.
    pub genotype: Genotype,
    /// The search method: `darts`, `pc-darts`, `p-darts` or `random`; `given` where nothing was searched. The last two have no alpha and no
    /// trace.
    pub method: String,
    /// The seed of the search.
    pub seed: u64,
    /// What the loss of alpha adds for the latency: `penalty`, `hinge` or `target`; `none` where a search
    /// has no such loss.
    pub objective: String,
    /// How alpha became an input of the latency model: `soft`, `hard` or `sampled`; `none` where there is no
    /// alpha.
    pub bridge: String,
    /// The balancing coefficient of the latency in the loss; with the objective `target` what it was at the
    /// end.
    pub lambda: f64,
    /// What the search kept low; latency before format 1.3. Where it is another metric, every number of the result that is
    /// named after milliseconds is in [the unit of that metric](Metric::unit).
    pub metric: Metric,
    /// What the predicted latency is of; `None` if the predictor does not say.
    pub settings: Option<MeasurementSettings>,
    /// The predicted latency of the architecture, in milliseconds.
    pub predicted_latency_millis: f64,
    /// Within which the latency lies with a probability of 0.9, by the predictor's held-out architectures,
    /// in milliseconds; `None` if it has none.
    pub interval_millis: Option<[f64; 2]>,
    /// The latency to keep to; `None` if there was none.
    pub target: Option<TargetRecord>,
    /// What predictions were divided by in the loss, in milliseconds.
    pub reference_millis: f64,
    /// The architectures that this one was chosen from, itself in front; none where there was no choice, and before
    /// format 1.4.
    pub candidates: Vec<CandidateRecord>,
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
    /// The latency term of the loss for alpha as it is at the end of the epoch, `lambda` included.
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
    /// The weight of the latency in the loss at the end of the epoch: lambda, or the multiplier.
    pub latency_weight: Option<f64>,
    /// The mean latency that the model gave the bridge's codes in the epoch's alpha steps, in
    /// milliseconds; `None` where alpha stood still.
    pub bridge_latency_millis: Option<f64>,
    /// The discretisation gap: latency of the bridge's code over that of the derived genotype, less 1, at
    /// the end of the epoch.
    pub discretisation_gap: Option<f64>,
    /// The latency that the derived genotype keeps below with the target's probability, in milliseconds.
    pub upper_latency_millis: Option<f64>,
    /// The share of parameter-free primitives (skip, poolings) in softmax(alpha) of the normal cell,
    /// `none` left out, mean over edges.
    pub parameter_free_normal: Option<f64>,
    /// The dominant eigenvalue of the Hessian of the validation loss in alpha and beta.
    pub eigenvalue: Option<f64>,
    /// What the guards saw and did, and what was done to the derived cells at the end.
    pub event: Option<String>,
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
    latency_weight,
    bridge_latency_millis,
    discretisation_gap,
    upper_latency_millis,
    parameter_free_normal,
    eigenvalue,
    event,
});

/// `genotype.json`.
#[derive(PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Record {
    #[serde(with = "crate::genotype")]
    genotype: Genotype,
    method: String,
    seed: u64,
    #[serde(default = "penalty")]
    objective: String,
    #[serde(default = "soft")]
    bridge: String,
    lambda: f64,
    #[serde(default, skip_serializing_if = "Metric::is_default")]
    metric: Metric,
    #[serde(default)]
    interval_millis: Option<[f64; 2]>,
    #[serde(default)]
    target: Option<TargetRecord>,
    settings: Option<MeasurementSettings>,
    predicted_latency_millis: f64,
    reference_millis: f64,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    candidates: Vec<CandidateRecord>,
}

/// The only objective of format 1.1.
pub(crate) fn penalty() -> String {
    "penalty".to_owned()
}

/// The only bridge of format 1.1.
fn soft() -> String {
    "soft".to_owned()
}

impl Artifact for SearchResult {
    const KIND: Kind = Kind::SearchResult;
    const FORMAT: FormatVersion = FormatVersion::new(1, 7);

    fn to_files(&self) -> Result<Files, Error> {
        let mut files = Files::default();
        let record = Record {
            genotype: self.genotype.clone(),
            method: self.method.clone(),
            seed: self.seed,
            objective: self.objective.clone(),
            bridge: self.bridge.clone(),
            lambda: self.lambda,
            metric: self.metric,
            interval_millis: self.interval_millis,
            target: self.target.clone(),
            settings: self.settings.clone(),
            predicted_latency_millis: self.predicted_latency_millis,
            reference_millis: self.reference_millis,
            candidates: self.candidates.clone(),
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
            objective: record.objective,
            bridge: record.bridge,
            lambda: record.lambda,
            metric: record.metric,
            interval_millis: record.interval_millis,
            target: record.target,
            settings: record.settings,
            predicted_latency_millis: record.predicted_latency_millis,
            reference_millis: record.reference_millis,
            candidates: record.candidates,
            alphas: files.tensors(ALPHAS)?,
            trace: TraceRow::rows(&files.table::<Self>(TRACE)?)?,
        })
    }

    fn headlines(&self) -> Vec<String> {
        let unit = self.metric.unit();
        let predicted = format!(
            "found: {:.4} {unit} predicted",
            self.predicted_latency_millis
        );
        vec![match (&self.target, self.interval_millis) {
            (Some(target), _) => format!(
                "{predicted}, at most {:.4} {unit} with a probability of {}, target {:.4} {unit}{}",
                target.upper_millis,
                target.probability,
                target.target_millis,
                if target.is_met { "" } else { ": not kept" }
            ),
            (None, Some([low, high])) => {
                format!("{predicted}, {low:.4} to {high:.4} {unit} with a probability of 0.9")
            }
            (None, None) => predicted,
        }]
    }
}
