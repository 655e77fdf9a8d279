//! Networks from accurate to fast, and which of them nothing beats: what `cargo xtask sweep` writes.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::files::Files;
use crate::format::{FormatVersion, Kind};
use crate::latency_dataset::{MeasurementSettings, Metric};
use crate::store::Artifact;
use crate::table::one_column_per_field;

const POINTS: &str = "front.parquet";
const FRONT: &str = "front.json";

/// Trained networks of several targets or lambdas.
///
/// Files: `front.parquet` with a row for each, and `front.json` with the same and what the latencies are of.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Front {
    /// What is kept low; latency before format 1.1. Where it is another metric, every number that is named after milliseconds is in
    /// [the unit of that metric](Metric::unit), and the percentiles are the measured value itself.
    #[serde(default, skip_serializing_if = "Metric::is_default")]
    pub metric: Metric,
    /// What the latencies are of.
    pub settings: Option<MeasurementSettings>,
    /// Seed by seed, from the loosest to the tightest.
    pub points: Vec<FrontPoint>,
    /// What was asked for as well, but no network keeps to; empty before format 1.3, when that ended a sweep.
    #[serde(default)]
    pub unreached: Vec<Unreached>,
}

/// A target that no network keeps to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Unreached {
    /// The seed of the search.
    pub seed: u32,
    /// The target, such as `0.3x`.
    pub asked: String,
}

impl fmt::Display for Unreached {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (seed {})", self.asked, self.seed)
    }
}

/// A trained network.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FrontPoint {
    /// The seed of the search.
    pub seed: u32,
    /// What was asked: a target such as `0.6x`, or `lambda = 0.1`.
    pub asked: String,
    /// The latency to keep to, in milliseconds; `None` if there was none.
    pub target_millis: Option<f64>,
    /// The latency that the predictor gives the network, in milliseconds.
    pub predicted_latency_millis: f64,
    /// The measured median, in milliseconds.
    pub latency_median_millis: f64,
    /// The 10th percentile over the repeats, in milliseconds.
    pub latency_p10_millis: f64,
    /// The 90th percentile over the repeats, in milliseconds.
    pub latency_p90_millis: f64,
    /// Whether the machine was restless meanwhile; `None` before format 1.3.
    #[serde(default)]
    pub disturbed: Option<bool>,
    /// The share of test images classified right.
    pub test_accuracy: f64,
    /// Whether no other point beats it: as accurate and as fast, and better in one.
    pub is_on_front: bool,
    /// The architecture, in the tuple form.
    pub genotype: String,
    /// The digest of the search result.
    pub search_result: String,
    /// The digest of the evaluation.
    pub evaluation: String,
}

one_column_per_field!(FrontPoint {
    seed,
    asked,
    target_millis,
    predicted_latency_millis,
    latency_median_millis,
    latency_p10_millis,
    latency_p90_millis,
    disturbed,
    test_accuracy,
    is_on_front,
    genotype,
    search_result,
    evaluation,
});

impl Front {
    /// The front of these points, each marked whether it is on it.
    pub fn new(
        metric: Metric,
        settings: Option<MeasurementSettings>,
        mut points: Vec<FrontPoint>,
    ) -> Self {
        let values: Vec<(f64, f64)> = points
            .iter()
            .map(|point| (point.test_accuracy, point.latency_median_millis))
            .collect();
        for (point, &(accuracy, millis)) in points.iter_mut().zip(&values) {
            point.is_on_front = !values.iter().any(|&(other_accuracy, other_millis)| {
                other_accuracy >= accuracy
                    && other_millis <= millis
                    && (other_accuracy, other_millis) != (accuracy, millis)
            });
        }
        Self {
            metric,
            settings,
            points,
            unreached: Vec::new(),
        }
    }
}

impl Artifact for Front {
    const KIND: Kind = Kind::Front;
    const FORMAT: FormatVersion = FormatVersion::new(1, 3);

    fn to_files(&self) -> Result<Files, Error> {
        let mut files = Files::default();
        files.put_json(FRONT, self)?;
        files.put_table::<Self>(POINTS, FrontPoint::columns(&self.points), None)?;
        Ok(files)
    }

    fn from_files(files: &Files) -> Result<Self, Error> {
        let front: Self = files.json(FRONT)?;
        Ok(Self {
            points: FrontPoint::rows(&files.table::<Self>(POINTS)?)?,
            ..front
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_front_is_what_nothing_beats() {
        let point = |test_accuracy, latency_median_millis| FrontPoint {
            seed: 0,
            asked: String::new(),
            target_millis: None,
            predicted_latency_millis: 1.0,
            latency_median_millis,
            latency_p10_millis: 1.0,
            latency_p90_millis: 1.0,
            disturbed: None,
            test_accuracy,
            is_on_front: false,
            genotype: String::new(),
            search_result: String::new(),
            evaluation: String::new(),
        };
        let points = [(0.9, 3.0), (0.8, 2.0), (0.79, 2.5), (0.8, 2.1), (0.9, 3.0)]
            .map(|(accuracy, millis)| point(accuracy, millis));
        let front = Front::new(Metric::Latency, None, points.to_vec());
        let marks: Vec<bool> = front.points.iter().map(|point| point.is_on_front).collect();
        assert_eq!(marks, [true, true, false, false, true]);
    }
}
