//! Networks that several searches found with several seeds, and what one of them gains: what `cargo xtask compare` writes.

use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::files::Files;
use crate::format::{FormatVersion, Kind};
use crate::latency_dataset::{MeasurementSettings, Metric};
use crate::store::Artifact;
use crate::table::one_column_per_field;

const ROWS: &str = "comparison.parquet";
const COMPARISON: &str = "comparison.json";

/// Trained networks of the search with lambda = 0, of the latency-aware search and of random searches, seed by seed, and
/// how the latency-aware ones differ from the others of their seed.
///
/// Files: `comparison.parquet` with a row for each network, and `comparison.json` with the same and the differences.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Comparison {
    /// What is kept low. Where it is not latency, every number that is named after milliseconds is in
    /// [the unit of that metric](Metric::unit).
    pub metric: Metric,
    /// What latencies are of; measured ones are of one network after the other.
    pub settings: Option<MeasurementSettings>,
    /// Which network of the search with lambda = 0 is the baseline.
    pub baseline: ComparedBaseline,
    /// Seed by seed.
    pub rows: Vec<ComparisonRow>,
    /// How the ends of intervals came about; `None` of one seed, which has none.
    pub intervals: Option<IntervalMethod>,
    /// Latency-aware less lambda = 0.
    pub against_baseline: Differences,
    /// Latency-aware less random.
    pub against_random: Differences,
}

/// Which network of the search with lambda = 0 is compared with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum ComparedBaseline {
    /// The best of as many candidates as the other searches train
    Best,
    /// What alpha stands for, where no candidate is trained: so the published searches end
    Alpha,
}

/// A trained network.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ComparisonRow {
    /// What is compared with each other has one seed.
    pub seed: u32,
    /// `baseline`, `latency-aware` or `random`.
    pub search: String,
    /// The architecture, in the tuple form.
    pub genotype: String,
    /// The share of test images classified right.
    pub test_accuracy: f64,
    /// The latency that the predictor gives the network, in milliseconds.
    pub predicted_millis: f64,
    /// The measured median, in milliseconds; `None` where networks are timed later.
    pub measured_millis: Option<f64>,
    /// Whether the machine was restless meanwhile.
    pub disturbed: Option<bool>,
    /// The latency to keep to, in milliseconds; `None` where none was asked for, as of the other searches.
    pub target_millis: Option<f64>,
    /// The digest of the search result.
    pub search_result: String,
    /// The digest of the evaluation.
    pub evaluation: String,
}

one_column_per_field!(ComparisonRow {
    seed,
    search,
    genotype,
    test_accuracy,
    predicted_millis,
    measured_millis,
    disturbed,
    target_millis,
    search_result,
    evaluation,
});

/// How the 95 % intervals of means over seeds come about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum IntervalMethod {
    /// By Student's t.
    StudentT,
    /// By resampling the seeds.
    Bootstrap,
}

impl IntervalMethod {
    /// In a sentence.
    pub fn name(self) -> &'static str {
        match self {
            Self::StudentT => "Student's t",
            Self::Bootstrap => "bootstrap",
        }
    }
}

/// Of the latency-aware network less the others of the same seed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Differences {
    /// Of test accuracies, ratios.
    pub test_accuracy: Interval,
    /// latency / other latency - 1; `None` where networks are timed later.
    pub latency: Option<Interval>,
}

/// A mean over seeds and its 95 % interval, which one seed does not have.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Interval {
    /// The mean.
    pub mean: f64,
    /// Its lower end.
    pub low: Option<f64>,
    /// Its upper end.
    pub high: Option<f64>,
}

impl Interval {
    /// A hundred times the mean with its unit, and the ends in brackets.
    pub fn text(&self, unit: &str, n_decimals: usize) -> String {
        let own = |value: f64| format!("{:+.n_decimals$}", 100.0 * value);
        let ends = self.low.zip(self.high);
        let ends = ends.map(|(low, high)| format!(" [{}, {}]", own(low), own(high)));
        format!("{}{unit}{}", own(self.mean), ends.unwrap_or_default())
    }
}

impl Artifact for Comparison {
    const KIND: Kind = Kind::Comparison;
    const FORMAT: FormatVersion = FormatVersion::new(1, 0);

    fn to_files(&self) -> Result<Files, Error> {
        let mut files = Files::default();
        files.put_json(COMPARISON, self)?;
        files.put_table::<Self>(ROWS, ComparisonRow::columns(&self.rows), None)?;
        Ok(files)
    }

    fn from_files(files: &Files) -> Result<Self, Error> {
        let comparison: Self = files.json(COMPARISON)?;
        Ok(Self {
            rows: ComparisonRow::rows(&files.table::<Self>(ROWS)?)?,
            ..comparison
        })
    }
}
