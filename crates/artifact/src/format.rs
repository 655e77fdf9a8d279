//! The kinds of artifacts and the versions of their formats.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// The kinds of artifacts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// Timed architectures: [`LatencyDataset`](crate::LatencyDataset).
    LatencyDataset,
    /// A fitted predictor: [`LatencyModelArtifact`](crate::LatencyModelArtifact).
    LatencyModel,
    /// A found architecture: [`SearchResult`](crate::SearchResult).
    SearchResult,
    /// A trained, tested and timed network: [`Evaluation`](crate::Evaluation).
    Evaluation,
    /// A page for people: [`Report`](crate::Report).
    Report,
    /// Networks from accurate to fast: [`Front`](crate::Front).
    Front,
    /// Networks of several searches and seeds: [`Comparison`](crate::Comparison).
    Comparison,
}

impl Kind {
    /// Every kind, in the order of the pipeline; the last two are made of several runs of it.
    pub const ALL: [Self; 7] = [
        Self::LatencyDataset,
        Self::LatencyModel,
        Self::SearchResult,
        Self::Evaluation,
        Self::Report,
        Self::Front,
        Self::Comparison,
    ];

    /// The name in folders, manifests and command lines, such as `latency-dataset`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::LatencyDataset => "latency-dataset",
            Self::LatencyModel => "latency-model",
            Self::SearchResult => "search-result",
            Self::Evaluation => "evaluation",
            Self::Report => "report",
            Self::Front => "front",
            Self::Comparison => "comparison",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// The version of a kind's files.
///
/// The major number changes when a reader of the old files would go wrong; it is part of the
/// folder's name, so that versions live beside each other. The minor number changes when something
/// is added that an old reader may ignore.
///
/// # Change log
///
/// | kind | version | change |
/// |---|---|---|
/// | all | 1.0 | the first |
/// | all but the report | 1.1 | `settings.anchor`: what latencies are corrected to |
/// | latency model | 1.2 | the model `structured`, `reason`, `spread`, and the figures `regret`, `left_out_mape`, `coverage_90` |
/// | latency-dataset | 1.2 | the columns `peak_memory_bytes` and `energy_joules`, where they were measured |
/// | latency model | 1.3 | `metric`, where it is not latency; the model `transfer` |
/// | latency model | 1.4 | of the model `structured`, `relative_noises` and a function more |
/// | latency model | 1.5 | of the model `structured`, `cells` where some were timed, which then have coefficients, too |
/// | search-result | 1.2 | `objective`, `bridge`, `target`, `interval_millis`; in the trace the weight of the latency, the bridge, the bound, the panel of collapse, events |
/// | search-result | 1.3 | `metric`, where it is not latency |
/// | search-result | 1.4, 1.5 | `candidates`; of each its `gradient_norm`, where candidates were taken by it |
/// | search-result | 1.6 | of each candidate its `train_loss`, which decides instead of `valid_loss` |
/// | evaluation | 1.3 | `search.metric`, where it is not latency; in `latency.json` what was measured of that metric |
/// | evaluation | 1.4 | `model.onnx`; `images`: how they are normalised, and the names of the classes |
/// | front | 1.1 | `metric`, where it is not latency |
/// | evaluation | 1.2 | `search.objective`, `search.target`, `search.interval_millis`; `verdict.json` |
/// | latency-dataset | 1.3 | the columns `latency_graph_median_millis` and `gpu_…`, on CUDA |
/// | latency-dataset, search-result, evaluation; latency model | 1.3; 1.4 | `settings.timing.precision` and `.flush_l2`, where they are not `f32` and false |
/// | latency-dataset; latency model; search-result; evaluation; front | 1.4; 1.6; 1.7; 1.5; 1.2 | `settings.anchor.revision`: whose code the anchor ran by |
/// | evaluation | 1.6 | `n_test` |
/// | front | 1.3 | `disturbed`; `unreached` |
/// | latency-dataset | 1.5 | the column `chosen`, of a profile in rounds |
/// | comparison | 1.0 | the first |
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FormatVersion {
    /// Changes with what old readers cannot read.
    pub major: u16,
    /// Changes with what old readers may ignore.
    pub minor: u16,
}

impl FormatVersion {
    /// The version `major.minor`.
    pub const fn new(major: u16, minor: u16) -> Self {
        Self { major, minor }
    }

    /// Whether a program whose own version is `self` reads files of version `file`: the same major
    /// number, and nothing in the file that is newer than the program.
    pub const fn can_read(self, file: Self) -> bool {
        self.major == file.major && file.minor <= self.minor
    }
}

impl fmt::Display for FormatVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// The text is no version such as `1.0`.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("`{0}` is no format version; expected two numbers, such as 1.0")]
pub struct ParseFormatVersionError(String);

impl FromStr for FormatVersion {
    type Err = ParseFormatVersionError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.split_once('.')
            .and_then(|(major, minor)| Some(Self::new(major.parse().ok()?, minor.parse().ok()?)))
            .ok_or_else(|| ParseFormatVersionError(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_the_names_in_json() {
        for kind in Kind::ALL {
            let json = serde_json::to_value(kind).unwrap();
            assert_eq!(json, kind.name());
            assert_eq!(serde_json::from_value::<Kind>(json).unwrap(), kind);
        }
    }

    #[test]
    fn a_program_reads_what_is_not_newer_than_itself() {
        let program = FormatVersion::new(2, 3);
        let reads = |major, minor| program.can_read(FormatVersion::new(major, minor));
        assert!(reads(2, 0) && reads(2, 3));
        assert!(!reads(2, 4) && !reads(1, 3) && !reads(3, 0));
    }

    #[test]
    fn versions_read_back() {
        let version = FormatVersion::new(1, 12);
        assert_eq!(version.to_string().parse(), Ok(version));
        for text in ["1", "1.", "1.0.0", "v1.0", "-1.0"] {
            assert!(text.parse::<FormatVersion>().is_err(), "{text}");
        }
    }
}
