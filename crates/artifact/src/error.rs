//! What can go wrong with the files between the stages.

use std::io;
use std::path::PathBuf;

use thiserror::Error;

use crate::config::ConfigError;
use crate::format::{FormatVersion, Kind};
use crate::stage::{ExitCode, StageError};

/// Why an artifact could not be read, written or made.
#[derive(Debug, Error)]
pub enum Error {
    /// The config of a stage is not right.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A network is described that cannot be built.
    #[error("the network of the config cannot be built")]
    Network(#[from] space::NetworkSpecError),
    /// A genotype on the command line is neither published nor a file.
    #[error(transparent)]
    Genotype(#[from] crate::genotype::ReadGenotypeError),
    /// The device is not there.
    #[error("no device {device}: {reason}; use --device cpu, or see docs/gpu.md")]
    Device {
        /// The device asked for.
        device: crate::stage::DeviceSpec,
        /// What is missing.
        reason: String,
    },
    /// A setting of the config is for CUDA devices, and the run is on the processor.
    #[error("{setting} in the config is for --device cuda; on the processor say {instead}")]
    CudaOnly {
        /// The setting.
        setting: String,
        /// What the processor does.
        instead: &'static str,
    },
    /// The device has not the memory that the run will need.
    #[error(
        "{device} has {free} of memory free, and this run will need {needed}: lower batch_size (and the learning \
         rate with it), end what else runs there, or use several devices (--ranks)"
    )]
    Memory {
        /// The device.
        device: crate::stage::DeviceSpec,
        /// What the run will need at its peak, with its unit.
        needed: String,
        /// What is free, with its unit.
        free: String,
    },
    /// The thread pool exists already, with another number of threads.
    #[error("{wanted} threads were asked for, but the thread pool already runs {running}")]
    Threads {
        /// The number asked for.
        wanted: usize,
        /// The number that runs.
        running: usize,
    },
    /// The store cannot be made or written to.
    #[error(
        "cannot write to the store {path} (free the place, or name another folder with --store)"
    )]
    Store {
        /// The folder or file that could not be written.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// There is no artifact in the folder.
    #[error("{dir} is no {kind}: {what} (run the stage that writes it, or correct the path)")]
    Missing {
        /// The folder.
        dir: PathBuf,
        /// The kind that was looked for.
        kind: Kind,
        /// What is not there.
        what: &'static str,
    },
    /// A file cannot be read.
    #[error("cannot read {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// The folder holds an artifact of another kind.
    #[error("{dir} holds this: {found}; expected the folder of a {expected}")]
    Kind {
        /// The folder.
        dir: PathBuf,
        /// The kind that was looked for.
        expected: Kind,
        /// The kind that the manifest names.
        found: Kind,
    },
    /// The format is one that this program cannot read.
    #[error(
        "{path} has format {found}, this program reads {expected} \
         (run the stage again, or use the version of the program that wrote it)"
    )]
    Format {
        /// The manifest or file.
        path: PathBuf,
        /// What this program reads.
        expected: FormatVersion,
        /// What the file has.
        found: FormatVersion,
    },
    /// The artifact speaks of another search space.
    #[error(
        "{path} was made for the search space {found}, this program knows {expected}: \
         its numbers mean nothing here (run the stages again from profile on)"
    )]
    Space {
        /// The manifest or file.
        path: PathBuf,
        /// The fingerprint of the space that this program knows.
        expected: String,
        /// The fingerprint that the file carries.
        found: String,
    },
    /// A file is not what the manifest says, or not what its name says.
    #[error(
        "{file} is damaged: expected {expected}, found {found} \
         (delete the folder {dir} and run the stage again)"
    )]
    Damaged {
        /// The file.
        file: PathBuf,
        /// What should be there.
        expected: String,
        /// What is there.
        found: String,
        /// The artifact's folder.
        dir: PathBuf,
    },
    /// The content of a file does not follow the documented schema.
    #[error("{file}: {reason}")]
    Malformed {
        /// The file.
        file: PathBuf,
        /// What is wrong, and what was expected.
        reason: String,
    },
    /// A number of a result is NaN or infinite.
    #[error("{what} is NaN or infinite; such a result is not stored")]
    NonFinite {
        /// The file and the place in it.
        what: String,
    },
    /// A record cannot be written in its format.
    #[error("cannot encode {file}: {reason}")]
    Encode {
        /// The file.
        file: String,
        /// What is wrong.
        reason: String,
    },
    /// The answer could not be printed.
    #[error("cannot write to standard output")]
    Stdout(#[source] io::Error),
}

impl StageError for Error {
    fn exit_code(&self) -> ExitCode {
        match self {
            Self::Config(_)
            | Self::Network(_)
            | Self::Genotype(_)
            | Self::CudaOnly { .. }
            | Self::Threads { .. }
            | Self::Store { .. } => ExitCode::Usage,
            Self::Missing { .. }
            | Self::Read { .. }
            | Self::Kind { .. }
            | Self::Format { .. }
            | Self::Space { .. }
            | Self::Damaged { .. }
            | Self::Malformed { .. } => ExitCode::Input,
            Self::Device { .. } | Self::Memory { .. } => ExitCode::Device,
            Self::NonFinite { .. } => ExitCode::Numbers,
            Self::Encode { .. } | Self::Stdout(_) => ExitCode::Bug,
        }
    }
}
