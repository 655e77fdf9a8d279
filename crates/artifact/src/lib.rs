//! The files between the stages.

pub mod checkpoint;
pub mod config;
pub mod digest;
mod disk;
pub mod error;
pub mod evaluation;
mod files;
pub mod format;
pub mod genotype;
mod json;
pub mod latency_dataset;
pub mod latency_model;
pub mod manifest;
mod progress;
pub mod report;
pub mod search_result;
pub mod stage;
pub mod store;
mod table;
mod tensors;

pub use crate::checkpoint::{Checkpoint, RawTensor};
pub use crate::config::ConfigError;
pub use crate::digest::{Digest, Key, KeyParts, digest_files};
pub use crate::error::Error;
pub use crate::evaluation::{EpochRow, Evaluation, SearchSummary, TimingResult};
pub use crate::files::Files;
pub use crate::format::{FormatVersion, Kind};
pub use crate::genotype::{genotype_from_arg, genotype_from_json, genotype_to_json};
pub use crate::latency_dataset::{
    CellSample, LatencyDataset, LatencySample, MeasurementSettings, NetworkRecord, TimingRecord,
};
pub use crate::latency_model::{
    FiguresRecord, HeldOut, LatencyModelArtifact, ModelCard, Validation,
};
pub use crate::manifest::Manifest;
pub use crate::report::Report;
pub use crate::search_result::{SearchResult, TraceRow};
pub use crate::stage::{
    Bar, DeviceSpec, ExitCode, PIPELINE, Progress, RunContext, StageArgs, StageError, StageSpec,
};
pub use crate::store::{Artifact, Opened, Store, open};
pub use crate::tensors::{FloatTensor, FloatTensors};
