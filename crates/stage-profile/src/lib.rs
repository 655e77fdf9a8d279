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
//! With `until_mape` in the config, architectures are chosen in rounds, some at random and some whose measurement
//! tells the latency model most, until it is as good as asked; architectures may also be given
//! ([`Architectures`]), such as those that tell most about a device of which others are known.
//!
//! What another runtime is to time, or a device that this program does not run on, [`export`] writes as ONNX models; what it
//! takes there goes to the predictor as data of another origin.
//!
//! What has been timed is on the disk after every few architectures; killed and started again, a
//! profile goes on where it was ([`Profiling`]).

mod bench;
mod config;
mod export;
mod itinerary;
mod journal;
mod profiling;

use std::io;
use std::path::{Path, PathBuf};

use artifact::LatencyDataset;
use artifact::stage::{ExitCode, RunContext, StageError};

pub use crate::config::Config;
pub use crate::export::{TABLE, export};
pub use crate::itinerary::Architectures;
pub use crate::profiling::Profiling;

/// Times everything that the config asks for, or what an earlier run with this working folder left.
///
/// # Errors
/// If the config does not suit this machine, if a network cannot be built or timed, or if the working
/// folder cannot be written to.
pub fn run(
    config: &Config,
    architectures: Architectures,
    context: &RunContext,
) -> Result<LatencyDataset, Error> {
    let _guard = context.machine_use.time()?;
    let RunContext {
        device,
        work_dir,
        progress,
        ..
    } = context;
    Profiling::open_on(*device, config, architectures, work_dir, progress)?.finish()
}

/// The architectures of a file: the JSON form of a genotype on every line, as `predictor choose` prints them.
///
/// # Errors
/// If the file cannot be read, or if a line is no genotype.
pub fn read_architectures(file: &Path) -> Result<Architectures, Error> {
    let text = std::fs::read_to_string(file).map_err(|source| Error::ReadArchitectures {
        path: file.to_owned(),
        source,
    })?;
    let lines = text.lines().enumerate();
    let genotypes = lines.filter(|(_, line)| !line.trim().is_empty());
    let genotypes = genotypes
        .map(|(index, line)| {
            artifact::genotype_from_json(line).map_err(|source| Error::Architectures {
                path: file.to_owned(),
                line: index + 1,
                reason: source.to_string(),
            })
        })
        .collect::<Result<Vec<_>, _>>()?;
    if genotypes.is_empty() {
        return Err(Error::Architectures {
            path: file.to_owned(),
            line: 1,
            reason: "there is no genotype".to_owned(),
        });
    }
    Ok(Architectures::Given(genotypes))
}

/// Why there is no latency data set.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The store or the config file.
    #[error(transparent)]
    Artifact(#[from] artifact::Error),
    /// This machine does not tell what a network costs in a metric.
    #[error("{metric} cannot be measured here: {reason}; take it out of metrics in the config")]
    Metric {
        /// The metric.
        metric: artifact::Metric,
        /// Why not, in words.
        reason: String,
    },
    /// The file of architectures cannot be read.
    #[error("cannot read {path}")]
    ReadArchitectures {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// The file of architectures holds something else.
    #[error(
        "{path}, line {line}: {reason} (expected a genotype in JSON on every line, as predictor choose prints them)"
    )]
    Architectures {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What is wrong.
        reason: String,
    },
    /// Networks cannot be written.
    #[error("cannot write {path}")]
    Export {
        /// The file or folder.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// Networks were written there before.
    #[error("{path} is there already, perhaps with timings in it; name another folder")]
    Exported {
        /// The table.
        path: PathBuf,
    },
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
    #[error("cannot build or run {what}")]
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
            Self::Setting { .. }
            | Self::Journal { .. }
            | Self::Export { .. }
            | Self::Exported { .. } => ExitCode::Usage,
            Self::ForeignJournal { .. }
            | Self::ReadArchitectures { .. }
            | Self::Architectures { .. } => ExitCode::Input,
            Self::Threads { .. } | Self::Network { .. } => ExitCode::Bug,
            Self::Metric { .. } => ExitCode::Device,
            Self::Zero { .. } => ExitCode::Numbers,
        }
    }
}
