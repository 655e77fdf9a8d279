//! What can go wrong in a search.

use std::path::PathBuf;

use artifact::{ExitCode, StageError};

/// Why a search stopped.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A value of the config is out of its range.
    #[error("{key} is out of range in the config, expected {expected}")]
    Setting {
        /// The key.
        key: &'static str,
        /// What would be right.
        expected: String,
    },
    /// The config's network cannot be built for these images.
    #[error("the config's network cannot be built for the images in {dir}: {reason}")]
    Network {
        /// The data set.
        dir: PathBuf,
        /// Why.
        reason: String,
    },
    /// The latency model's state does not make a model.
    #[error("the latency model in {path}: {source}; run the predictor stage again")]
    LatencyModel {
        /// The artifact's folder.
        path: String,
        /// What is wrong.
        source: latency::StateError,
    },
    /// NaN or infinity.
    #[error(
        "{what} is not finite in epoch {epoch}, step {step}: lower the learning rate or check the data"
    )]
    NonFinite {
        /// Which number.
        what: &'static str,
        /// The epoch, from 0.
        epoch: usize,
        /// The step within the epoch, from 0.
        step: usize,
    },
    /// The latency model is of a kind that this program does not know.
    #[error(
        "the latency model in {path} chose `{chosen}`, expected structured, mlp, ridge or transfer; run the predictor stage again"
    )]
    UnknownModel {
        /// The artifact's folder.
        path: String,
        /// The name that it gives.
        chosen: String,
    },
    /// The target is of another metric than the model.
    #[error(
        "target.latency is in {} in the config, but the model in {path} is of {metric}: give it in {}, as a ratio such as 0.6x, \
         or fit a model with metric = \"{asked}\"",
        asked.unit(),
        metric.unit()
    )]
    Metric {
        /// The artifact's folder.
        path: String,
        /// What it is of.
        metric: artifact::Metric,
        /// What the target is of.
        asked: artifact::Metric,
    },
    /// The latency model was fitted on codes of another length.
    #[error(
        "the latency model in {path} reads codes of {found} numbers, this space has {expected}; run the predictor stage again"
    )]
    CodeLength {
        /// The artifact's folder.
        path: String,
        /// The length of this space's codes.
        expected: usize,
        /// The model's.
        found: usize,
    },
    /// Networks here take square images.
    #[error(
        "the images in {dir} are {height} x {width} pixels, the network needs square ones; set data.resize"
    )]
    NotSquare {
        /// The data set.
        dir: PathBuf,
        /// Rows.
        height: usize,
        /// Columns.
        width: usize,
    },
    /// The alpha of another search does not fit this one.
    #[error("the alpha to begin with does not fit this search: {what}; was it another method?")]
    WarmStart {
        /// What does not fit.
        what: String,
    },
    /// Nothing in the space is that fast.
    #[error(
        "no network keeps to the target: {target_millis:.4} {unit}, but the least one found takes up to {fastest_millis:.4} {unit} \
         by the latency model; raise target.latency or shrink the network"
    )]
    Unreachable {
        /// Of the metric.
        unit: &'static str,
        /// What was asked for, in ms.
        target_millis: f64,
        /// The bound of the fastest genotype, in ms.
        fastest_millis: f64,
    },
    /// No genotype drawn at random keeps to the target and near it, nor does any that was taken there.
    #[error(
        "none of {n_draws} genotypes drawn at random takes between {low_millis:.4} and {target_millis:.4} {unit} by the latency \
         model, nor does any that was brought nearer node by node; widen target.slack or move target.latency"
    )]
    NothingDrawn {
        /// Of the metric.
        unit: &'static str,
        /// The least latency, in ms.
        low_millis: f64,
        /// The target, in ms.
        target_millis: f64,
        /// Genotypes drawn.
        n_draws: usize,
    },
    /// The latency model cannot promise anything.
    #[error(
        "the latency model in {path} promises no latency with a probability of {probability}: it {why}; let the profile time more architectures (n_architectures, or \
         a smaller until_mape where it stops by that), raise held_out, or ask for model = \"auto\", and run the predictor stage again; or lower \
         target.probability"
    )]
    NoPromise {
        /// The artifact's folder.
        path: String,
        /// What it lacks.
        why: String,
        /// What was asked for.
        probability: f64,
    },
    /// Too few candidates of a search say what they came to.
    #[error(
        "{} candidates of the search in {} have a training loss, expected at least {needed}: take a search with more of \
         selection.n_candidates, of a version that chooses by that loss",
        found, dir.display()
    )]
    TooFewCandidates {
        /// The folder of its result.
        dir: PathBuf,
        /// Those that have one.
        found: usize,
        /// How many there should be.
        needed: usize,
    },
    /// Evaluations cannot be compared with each other.
    #[error("these evaluations do not tell what could be known: {reason}")]
    NoHindsight {
        /// Why.
        reason: String,
    },
    /// No surrogate can be learned from some searches.
    #[error("nothing can be learned from these searches: {reason}")]
    NothingToLearn {
        /// Why.
        reason: String,
    },
    /// A checkpoint does not fit.
    #[error("the checkpoint {path} does not fit this search: {what}; delete it and start again")]
    Checkpoint {
        /// The file.
        path: PathBuf,
        /// What does not fit.
        what: String,
    },
    /// The images.
    #[error(transparent)]
    Images(#[from] images::Error),
    /// The store.
    #[error(transparent)]
    Artifact(#[from] artifact::Error),
    /// The ranks that train together.
    #[error(transparent)]
    Ranks(#[from] collective::Error),
    /// The tensor library.
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
}

impl StageError for Error {
    fn exit_code(&self) -> ExitCode {
        match self {
            Self::Setting { .. }
            | Self::Network { .. }
            | Self::Metric { .. }
            | Self::NothingDrawn { .. } => ExitCode::Usage,
            Self::LatencyModel { .. }
            | Self::UnknownModel { .. }
            | Self::CodeLength { .. }
            | Self::NotSquare { .. }
            | Self::WarmStart { .. }
            | Self::NoPromise { .. }
            | Self::TooFewCandidates { .. }
            | Self::NoHindsight { .. }
            | Self::NothingToLearn { .. }
            | Self::Checkpoint { .. }
            | Self::Images(_) => ExitCode::Input,
            Self::NonFinite { .. } => ExitCode::Numbers,
            Self::Unreachable { .. } => ExitCode::Unreachable,
            Self::Artifact(error) => error.exit_code(),
            Self::Ranks(error) => of_ranks(error),
            // A rank may be lost in the middle of a step.
            Self::Tensor(error) => collective::Error::of(error).map_or(ExitCode::Bug, of_ranks),
        }
    }
}

fn of_ranks(error: &collective::Error) -> ExitCode {
    use collective::Class;
    match error.class() {
        Class::Usage => ExitCode::Usage,
        Class::Input => ExitCode::Input,
        Class::Device => ExitCode::Device,
        Class::Numbers => ExitCode::Numbers,
        Class::Bug => ExitCode::Bug,
    }
}
