//! Stage `profile`: times sampled architectures on this device.
//!
//! Architectures are drawn uniformly from the search space, no two of them one graph, each is put into
//! the network of the config and timed on a fixed number of threads: some calls to warm up, then the
//! median of the calls that count. Each of its two cells is timed on its own as well, once for every
//! geometry (width, resolution, kinds of neighbours) at which the network uses it.
//!
//! The machine does not hold still meanwhile. A network of a published genotype, the *anchor*, is timed
//! between every few architectures, and what it takes there over its median in the whole run is divided
//! out of what lies between ([`measure::Anchor`]). (Not over what it took at first: the first tenths of a
//! second may find a processor that still sleeps.) Where the anchor before and the anchor after disagree,
//! the architectures between them are timed once more, and flagged if that does not help. Some
//! architectures are timed a second time after all others: how far the two differ is the noise floor of
//! the measurement.
//!
//! What has been timed is on the disk after every few architectures; killed and started again, a
//! profile goes on where it was ([`Profiling`]).

mod bench;
mod config;
mod journal;
mod profiling;

use std::io;
use std::path::PathBuf;

use artifact::LatencyDataset;
use artifact::stage::{ExitCode, RunContext, StageError};

pub use crate::config::Config;
pub use crate::profiling::Profiling;

/// Times everything that the config asks for, or what an earlier run with this working folder left.
///
/// # Errors
/// If the config does not suit this machine, if a network cannot be built or timed, or if the working
/// folder cannot be written to.
pub fn run(config: &Config, context: &RunContext) -> Result<LatencyDataset, Error> {
    let _guard = context.machine_use.time()?;
    Profiling::open_on(context.device, config, &context.work_dir, &context.progress)?.finish()
}

/// Why there is no latency data set.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The store or the config file.
    #[error(transparent)]
    Artifact(#[from] artifact::Error),
    /// A value of the config is out of its range.
    #[error("{key} is out of range in the config, expected {expected}")]
    Setting {
        /// The key.
        key: &'static str,
        /// The range, in words.
        expected: String,
    },
    /// The journal of finished timings cannot be read or written.
    #[error("cannot write the journal {path} (free the place, or name another store with --store)")]
    Journal {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// The working folder holds something else than what this run has timed.
    #[error("the journal {path} is not of this profile (delete it to time everything again)")]
    ForeignJournal {
        /// The file.
        path: PathBuf,
    },
    /// The threads that networks run on could not be started.
    #[error("cannot start {n_threads} threads")]
    Threads {
        /// How many.
        n_threads: usize,
        /// The system's answer.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A network could not be built or run.
    #[error("cannot run {what}")]
    Network {
        /// The network or cell.
        what: String,
        /// The tensor library's answer.
        source: candle_core::Error,
    },
    /// A timing is no number to learn from.
    #[error(
        "{what} took 0 ns: the clock of this machine is too coarse to time it; raise timing.batch_size"
    )]
    Zero {
        /// The network or cell.
        what: String,
    },
}

impl StageError for Error {
    fn exit_code(&self) -> ExitCode {
        match self {
            Self::Artifact(error) => error.exit_code(),
            Self::Setting { .. } | Self::Journal { .. } => ExitCode::Usage,
            Self::ForeignJournal { .. } => ExitCode::Input,
            Self::Threads { .. } | Self::Network { .. } => ExitCode::Bug,
            Self::Zero { .. } => ExitCode::Numbers,
        }
    }
}
