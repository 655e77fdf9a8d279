//! What the stage is asked.

use artifact::config::{OutOfRange, Ranged};
use artifact::{Metric, NetworkRecord, TimingRecord};
use serde::{Deserialize, Serialize};

use crate::Error;

/// The file `profile.toml` of a preset.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The seed of the sampled architectures.
    pub seed: u64,
    /// Architectures to time, no two of them one graph; with `until_mape` at most so many.
    pub n_architectures: usize,
    /// Of these, the first so many are timed a second time after all others: the noise floor.
    pub n_repeated: usize,
    /// Architectures between two timings of the anchor.
    pub anchor_every: usize,
    /// The ratio by which the anchor's timings before and after may differ. If they differ by more, the
    /// architectures between them are timed once more, and flagged if that does not help.
    pub max_disturbance: f64,
    /// Whether to time every sampled cell on its own as well.
    pub cells: bool,
    /// Where given, architectures are chosen in rounds until the latency model's mean relative error on architectures
    /// left out is no larger than this ratio, or than the noise floor.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until_mape: Option<f64>,
    /// What is measured beside latency: `peak-memory`, `energy`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub metrics: Vec<Metric>,
    /// The frame that the architectures fill.
    pub network: NetworkRecord,
    /// How each timing is made.
    pub timing: TimingRecord,
}

impl Config {
    /// Checks what the types do not say, against the machine's number of logical processors.
    pub(crate) fn check(&self, n_logical_cpus: usize) -> Result<(), Error> {
        if let Some(OutOfRange { key, expected }) = self.out_of_range() {
            return Err(Error::Setting { key, expected });
        }
        if self.timing.n_threads > n_logical_cpus {
            return Err(Error::Setting {
                key: "timing.n_threads",
                expected: format!(
                    "between 1 and the {n_logical_cpus} logical processors of this machine"
                ),
            });
        }
        Ok(())
    }
}

impl Ranged for Config {
    fn out_of_range(&self) -> Option<OutOfRange> {
        let timing = &self.timing;
        let rules = [
            (
                "n_architectures",
                self.n_architectures >= 1,
                "at least 1".to_owned(),
            ),
            (
                "n_repeated",
                self.n_repeated <= self.n_architectures,
                format!("at most n_architectures, {}", self.n_architectures),
            ),
            (
                "anchor_every",
                self.anchor_every >= 1,
                "at least 1".to_owned(),
            ),
            (
                "max_disturbance",
                self.max_disturbance > 0.0 && self.max_disturbance.is_finite(),
                "a positive ratio, such as 0.05".to_owned(),
            ),
            (
                "metrics",
                !self.metrics.contains(&Metric::Latency),
                "what is measured beside latency: peak-memory, energy".to_owned(),
            ),
            (
                "until_mape",
                self.until_mape
                    .is_none_or(|ratio| ratio > 0.0 && ratio < 1.0),
                "a ratio between 0 and 1, such as 0.03".to_owned(),
            ),
            (
                "timing.batch_size",
                timing.batch_size >= 1,
                "at least 1".to_owned(),
            ),
            (
                "timing.n_repeats",
                timing.n_repeats >= 1,
                "at least 1".to_owned(),
            ),
            (
                "timing.n_threads",
                timing.n_threads >= 1,
                "at least 1".to_owned(),
            ),
        ];
        OutOfRange::first(rules)
    }
}
