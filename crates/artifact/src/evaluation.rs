//! A network trained from scratch, tested and timed: what `evaluate` writes.

use std::fmt;

use serde::{Deserialize, Serialize};
use space::Genotype;

use crate::error::Error;
use crate::files::Files;
use crate::format::{FormatVersion, Kind};
use crate::latency_dataset::{MeasurementSettings, Metric, NetworkRecord};
use crate::search_result::{SearchResult, TargetRecord};
use crate::store::Artifact;
use crate::table::one_column_per_field;
use crate::tensors::FloatTensors;

const EVALUATION: &str = "evaluation.json";
const VERDICT: &str = "verdict.json";
const LATENCY: &str = "latency.json";
const EPOCHS: &str = "epochs.parquet";
const WEIGHTS: &str = "weights.safetensors";
const ONNX: &str = "model.onnx";

/// The search that found the architecture.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SearchSummary {
    /// The search method: `darts`, `pc-darts`, `p-darts` or `random`.
    pub method: String,
    /// What its loss added for the latency: `penalty`, `hinge`, `target` or `none`.
    #[serde(default = "crate::search_result::penalty")]
    pub objective: String,
    /// The balancing coefficient of the latency in its loss.
    pub lambda: f64,
    /// Its seed.
    pub seed: u64,
    /// What it kept low; latency before format 1.3. Where it is another metric, every number here and in a [`Verdict`] that is named
    /// after milliseconds is in [the unit of that metric](Metric::unit).
    #[serde(default, skip_serializing_if = "Metric::is_default")]
    pub metric: Metric,
    /// The latency that the predictor gives the architecture, in milliseconds.
    pub predicted_latency_millis: f64,
    /// Within which the latency lies with a probability of 0.9, by the predictor, in milliseconds.
    #[serde(default)]
    pub interval_millis: Option<[f64; 2]>,
    /// The latency to keep to.
    #[serde(default)]
    pub target: Option<TargetRecord>,
}

/// What the measurement says of the prediction and of the target.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Verdict {
    /// What is predicted and measured.
    #[serde(default, skip_serializing_if = "Metric::is_default")]
    pub metric: Metric,
    /// The latency that the predictor gave the architecture, in milliseconds.
    pub predicted_millis: f64,
    /// The interval that it gave, in milliseconds.
    pub interval_millis: Option<[f64; 2]>,
    /// The measured median, in milliseconds.
    pub measured_millis: f64,
    /// The latency to keep to, in milliseconds.
    pub target_millis: Option<f64>,
    /// Whether the measured latency lies in the interval; `None` without one, and where the prediction is of another machine or revision.
    pub is_in_interval: Option<bool>,
    /// Whether the measured latency is the target at most: PASS or FAIL; `None` likewise.
    pub is_target_met: Option<bool>,
}

impl Verdict {
    /// Holds a measurement, in the unit of what the search kept low, against what the search promised. Only what is corrected to the
    /// state of the profiled machine, by the code that profiled, is held against predictions; but memory is that of the network, whatever
    /// the machine.
    pub fn new(
        search: &SearchSummary,
        measured_millis: f64,
        settings: &MeasurementSettings,
    ) -> Self {
        let is_comparable = search.metric == Metric::PeakMemory || settings.anchor.is_some();
        let target_millis = search.target.as_ref().map(|target| target.target_millis);
        Self {
            metric: search.metric,
            predicted_millis: search.predicted_latency_millis,
            interval_millis: search.interval_millis,
            measured_millis,
            target_millis,
            is_in_interval: search
                .interval_millis
                .filter(|_| is_comparable)
                .map(|[low, high]| (low..=high).contains(&measured_millis)),
            is_target_met: target_millis
                .filter(|_| is_comparable)
                .map(|target| measured_millis <= target),
        }
    }

    /// `PASS` or `FAIL`; `None` without a target.
    pub fn word(&self) -> Option<&'static str> {
        self.is_target_met
            .map(|is_met| if is_met { "PASS" } else { "FAIL" })
    }
}

impl fmt::Display for Verdict {
    /// `measured 0.203 ms, predicted 0.210 ms, target 0.240 ms: PASS`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unit = self.metric.unit();
        let (measured, predicted) = (self.measured_millis, self.predicted_millis);
        write!(
            f,
            "measured {measured:.3} {unit}, predicted {predicted:.3} {unit}"
        )?;
        let Some(target) = self.target_millis else {
            return Ok(());
        };
        let word = self
            .word()
            .unwrap_or("not judged, for it was predicted of another machine or revision");
        write!(f, ", target {target:.3} {unit}: {word}")
    }
}

impl From<&SearchResult> for SearchSummary {
    fn from(search: &SearchResult) -> Self {
        Self {
            method: search.method.clone(),
            objective: search.objective.clone(),
            lambda: search.lambda,
            seed: search.seed,
            metric: search.metric,
            predicted_latency_millis: search.predicted_latency_millis,
            interval_millis: search.interval_millis,
            target: search.target.clone(),
        }
    }
}

/// A measured latency, and what else of the network was measured.
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
    /// The bytes of the network, its input and its largest set of buffers during one call on one thread; `None` where the search
    /// did not keep them low, and before format 1.3.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peak_memory_bytes: Option<f64>,
    /// What the processor takes up during one call, in joules; `None` as above.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub energy_joules: Option<f64>,
}

impl TimingResult {
    /// What the network costs, in the unit of the metric; `None` where it was not measured.
    pub fn cost(&self, metric: Metric) -> Option<f64> {
        metric.among(
            self.median_millis,
            self.peak_memory_bytes,
            self.energy_joules,
        )
    }
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
    /// The learning rate, of the first step where it falls with every one.
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

/// What a network was trained on: how its images are normalised, and what its logits are of.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImagesRecord {
    /// Subtracted from every channel, black being 0 and white 1.
    pub mean: Vec<f32>,
    /// What every channel is divided by afterwards.
    pub std: Vec<f32>,
    /// The name of every class; its number where the data set gives no names.
    pub class_names: Vec<String>,
}

/// A trained network for other programs.
#[derive(Clone, Debug, PartialEq)]
pub struct Export {
    /// What it was trained on.
    pub images: ImagesRecord,
    /// The bytes of `model.onnx`: it normalises by itself.
    pub onnx: Vec<u8>,
}

/// A network trained from scratch, tested and timed.
///
/// Files: `evaluation.json`, `latency.json`, `verdict.json`, `epochs.parquet`, `weights.safetensors`, `model.onnx`. The
/// latency, and the verdict on it, have files of their own because they alone differ from run to run.
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
    /// Test images; `None` before format 1.6.
    pub n_test: Option<u64>,
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
    /// The same for other programs; `None` where there is none, as before format 1.4.
    pub export: Option<Export>,
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
    /// Since format 1.6.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    n_test: Option<u64>,
    test_loss: f64,
    n_params: u64,
    n_macs: u64,
    n_multi_adds: u64,
    /// Since format 1.4.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    images: Option<ImagesRecord>,
}

impl Evaluation {
    fn unmeasured(&self) -> String {
        format!(
            "the {} that the search kept low was not measured",
            self.search.metric
        )
    }

    /// What the measurement says of the prediction and of the target.
    ///
    /// # Panics
    /// If what the search kept low was not measured: none that was read from files is like that.
    pub fn verdict(&self) -> Verdict {
        self.judge().expect("it was measured")
    }

    fn judge(&self) -> Option<Verdict> {
        let measured_millis = self.latency.cost(self.search.metric)?;
        Some(Verdict::new(&self.search, measured_millis, &self.settings))
    }

    /// How many times as long as in the profile the machine took while the network was timed, [if that is of note](MeasurementSettings::slowdown).
    pub fn slowdown(&self) -> Option<f64> {
        self.settings.slowdown(self.latency.anchor_ratio)
    }

    /// The standard error of the test accuracy as the share of a sample of images: other images like these would give another one.
    /// What another training would give is not in it.
    pub fn accuracy_error(&self) -> Option<f64> {
        let n_test = self.n_test? as f64;
        Some((self.test_accuracy * (1.0 - self.test_accuracy) / n_test).sqrt())
    }
}

impl Artifact for Evaluation {
    const KIND: Kind = Kind::Evaluation;
    const FORMAT: FormatVersion = FormatVersion::new(1, 6);

    fn to_files(&self) -> Result<Files, Error> {
        let mut files = Files::default();
        let record = Record {
            genotype: self.genotype.clone(),
            network: self.network.clone(),
            settings: self.settings.clone(),
            search: self.search.clone(),
            seed: self.seed,
            test_accuracy: self.test_accuracy,
            n_test: self.n_test,
            test_loss: self.test_loss,
            n_params: self.n_params,
            n_macs: self.n_macs,
            n_multi_adds: self.n_multi_adds,
            images: self.export.as_ref().map(|export| export.images.clone()),
        };
        files.put_json(EVALUATION, &record)?;
        files.put_json(LATENCY, &self.latency)?;
        let verdict = self.judge();
        let verdict = verdict.ok_or_else(|| Error::Encode {
            file: VERDICT.to_owned(),
            reason: self.unmeasured(),
        })?;
        files.put_json(VERDICT, &verdict)?;
        files.put_table::<Self>(EPOCHS, EpochRow::columns(&self.epochs), None)?;
        files.put_tensors(WEIGHTS, &self.weights)?;
        if let Some(export) = &self.export {
            files.put(ONNX, export.onnx.clone());
        }
        Ok(files)
    }

    fn from_files(files: &Files) -> Result<Self, Error> {
        let record: Record = files.json(EVALUATION)?;
        let export = record.images.map(|images| {
            let onnx = files.get(ONNX)?.to_vec();
            Ok::<_, Error>(Export { images, onnx })
        });
        let evaluation = Self {
            genotype: record.genotype,
            network: record.network,
            settings: record.settings,
            search: record.search,
            seed: record.seed,
            test_accuracy: record.test_accuracy,
            n_test: record.n_test,
            test_loss: record.test_loss,
            latency: files.json(LATENCY)?,
            n_params: record.n_params,
            n_macs: record.n_macs,
            n_multi_adds: record.n_multi_adds,
            epochs: EpochRow::rows(&files.table::<Self>(EPOCHS)?)?,
            weights: files.tensors(WEIGHTS)?,
            export: export.transpose()?,
        };
        match evaluation.latency.cost(evaluation.search.metric) {
            Some(_) => Ok(evaluation),
            None => Err(files.malformed(LATENCY, evaluation.unmeasured())),
        }
    }
    fn headlines(&self) -> Vec<String> {
        let accuracy = format!("test accuracy {:.2} %", 100.0 * self.test_accuracy);
        let accuracy = match self.n_test.zip(self.accuracy_error()) {
            Some((n, error)) => format!(
                "{accuracy} of {n} images (standard error {:.2} points)",
                100.0 * error
            ),
            None => accuracy,
        };
        let slowdown = self.slowdown().map(|ratio| {
            format!("the machine took {ratio:.2} times as long as when it was profiled: that is divided out")
        });
        let disturbed = self
            .latency
            .disturbed
            .then(|| "the machine was restless meanwhile: the latency is uncertain".to_owned());
        [accuracy, self.verdict().to_string()]
            .into_iter()
            .chain(slowdown)
            .chain(disturbed)
            .collect()
    }
}
