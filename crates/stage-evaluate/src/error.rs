//! What can go wrong in an evaluation.

use std::path::PathBuf;

use artifact::{ExitCode, StageError};

/// Why there is no evaluation.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A config value that no type can exclude.
    #[error("config: {key} must be {expected}")]
    Setting {
        /// The key.
        key: &'static str,
        /// What would be right.
        expected: String,
    },
    /// The network of the config is not the one whose latency was predicted.
    #[error(
        "config: [network] is {configured}, but the search result predicts the latency of {profiled}; \
         make [network] the same in profile.toml and evaluate.toml"
    )]
    OtherNetwork {
        /// The network of the config.
        configured: String,
        /// The network of the search result.
        profiled: String,
    },
    /// Search results that are not of one latency model.
    #[error(
        "{dir} and {first} predict latencies of different networks or protocols; time them one by one"
    )]
    OtherSettings {
        /// The folder of one search result.
        dir: PathBuf,
        /// That of the first.
        first: PathBuf,
    },
    /// The images do not go into the network.
    #[error(
        "the {split} images in {dir} are {found}, but [network] in the config is for {expected}; \
         correct [network], or data.dir"
    )]
    OtherImages {
        /// The folder of the data set.
        dir: PathBuf,
        /// Which of them.
        split: images::Split,
        /// What the images are.
        found: String,
        /// What the network takes.
        expected: String,
    },
    /// Training and test images do not go into one network.
    #[error(
        "the train images in {dir} are {train}, the test images {test}; correct the classes, or make the images alike (--resize does so \
         with PNG and JPEG files)"
    )]
    UnlikeSplits {
        /// The folder of the data set.
        dir: PathBuf,
        /// What the training images are.
        train: String,
        /// What the test images are.
        test: String,
    },
    /// A class is another one in the test.
    #[error(
        "class {index} of the train images in {dir} is called `{train}`, of the test images `{test}`; give both splits the same classes in \
         the same order"
    )]
    OtherClasses {
        /// The folder of the data set.
        dir: PathBuf,
        /// Its number.
        index: usize,
        /// Its name among the training images.
        train: String,
        /// Its name among the test images.
        test: String,
    },
    /// NaN or infinity.
    #[error(
        "{what} is NaN or infinite in epoch {epoch}, step {step}; lower weights.learning_rate, clip the \
         gradients (weights.clip_norm), or look for broken images"
    )]
    NonFinite {
        /// Which number.
        what: &'static str,
        /// The epoch, from 0.
        epoch: usize,
        /// The step within the epoch, from 0.
        step: usize,
    },
    /// The clock cannot tell how long a network takes.
    #[error(
        "{what} takes no time that this machine's clock can tell; raise timing.batch_size in profile.toml"
    )]
    Unmeasurable {
        /// What was timed.
        what: &'static str,
    },
    /// A checkpoint does not fit what is trained.
    #[error("{path} is no checkpoint of this training; delete it")]
    Checkpoint {
        /// The file.
        path: PathBuf,
        /// What does not fit, if it is a tensor of the network.
        source: Option<nn::StateError>,
    },
    /// This machine does not tell what the network costs in the metric that the search kept low.
    #[error(
        "{metric} cannot be measured here: {reason}; evaluate on a machine that tells it, or search with a model of latency"
    )]
    Metric {
        /// The metric.
        metric: artifact::Metric,
        /// Why not, in words.
        reason: String,
    },
    /// The threads of the timing could not be started.
    #[error("cannot start the threads of the timing")]
    Threads(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The images cannot be had.
    #[error(transparent)]
    Images(#[from] images::Error),
    /// The files between the stages.
    #[error(transparent)]
    Artifact(#[from] artifact::Error),
    /// The ranks that train together.
    #[error(transparent)]
    Ranks(#[from] collective::Error),
    /// The tensor library failed.
    #[error("the network cannot be run")]
    Tensor(#[from] candle_core::Error),
}

impl StageError for Error {
    fn exit_code(&self) -> ExitCode {
        match self {
            Self::Setting { .. }
            | Self::OtherNetwork { .. }
            | Self::OtherSettings { .. }
            | Self::OtherImages { .. } => ExitCode::Usage,
            Self::Images(_)
            | Self::UnlikeSplits { .. }
            | Self::OtherClasses { .. }
            | Self::Checkpoint { .. } => ExitCode::Input,
            Self::NonFinite { .. } | Self::Unmeasurable { .. } => ExitCode::Numbers,
            Self::Metric { .. } => ExitCode::Device,
            Self::Artifact(error) => error.exit_code(),
            Self::Ranks(error) => of_ranks(error),
            // A rank may be lost in the middle of a step.
            Self::Tensor(error) => collective::Error::of(error).map_or(ExitCode::Bug, of_ranks),
            Self::Threads(_) => ExitCode::Bug,
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
