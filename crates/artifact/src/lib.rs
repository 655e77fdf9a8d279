//! The files between the stages: record types, formats, digests, keys, the store, and the command line
//! that all stages share.
//!
//! A stage is asked by a [key](KeyParts) (its name and revision, the resolved config, the digests of its
//! inputs) and answers with an [artifact](Artifact): a folder of files and a manifest. If the
//! [store](Store) has the answer, nothing runs. This is a whole stage but for what it computes:
//!
//! ```no_run
//! use artifact::config::{OutOfRange, Ranged};
//! use artifact::stage::{self, RunContext, StageArgs};
//! use artifact::{Error, KeyParts, LatencyDataset, LatencyModelArtifact};
//! use clap::Parser;
//!
//! #[derive(Parser)]
//! struct Cli {
//!     #[command(flatten)]
//!     args: StageArgs,
//!     #[arg(long)]
//!     latency_dataset: std::path::PathBuf,
//! }
//!
//! #[derive(serde::Serialize, serde::Deserialize)]
//! #[serde(deny_unknown_fields)]
//! struct Config {
//!     seed: u64,
//! }
//!
//! impl Ranged for Config {
//!     fn out_of_range(&self) -> Option<OutOfRange> {
//!         None // any seed will do
//!     }
//! }
//!
//! fn main() -> std::process::ExitCode {
//!     let cli = Cli::parse();
//!     stage::main(|| run(&cli)) // prints the error, gives the exit code
//! }
//!
//! fn run(cli: &Cli) -> Result<(), Error> {
//!     let config: Config = cli.args.load_config()?; // --config and --set
//!     let dataset = artifact::open::<LatencyDataset>(&cli.latency_dataset)?;
//!     let key = KeyParts::new(&stage::PREDICTOR, &config)?
//!         .input("latency-dataset", dataset.digest());
//!     // --key-only; or what the store has; or runs, publishes, and prints the folder.
//!     stage::execute(&cli.args, key, serde_json::Value::Null, |context| {
//!         fit(&config, &dataset.value, context)
//!     })
//!     .map(drop)
//! }
//! # fn fit(_: &Config, _: &LatencyDataset, _: &RunContext) -> Result<LatencyModelArtifact, Error> {
//! #     unimplemented!()
//! # }
//! ```
//!
//! | module | what |
//! |---|---|
//! | [`stage`] | the pipeline's table, arguments, from a key to an artifact, exit codes, progress |
//! | [`config`] | one TOML file and its overrides, with errors that say where |
//! | [`digest`] | what came out, and what was asked |
//! | [`store`], [`manifest`], [`format`](mod@format) | where artifacts lie, how they are published and checked |
//! | [`checkpoint`] | the state of a run that is not finished |
//! | [`cost_table`] | tables of measured costs that others published |
//! | [`latency_dataset`], [`latency_model`], [`search_result`], [`evaluation`], [`report`], [`front`], [`comparison`] | the kinds |
//! | [`genotype`] | genotypes in JSON and on the command line |
//!
//! Whatever is written is written aside, flushed to the disk and renamed: it is there as a whole or not
//! at all. The same value gives the same bytes. The schema of every file: `docs/formats.md`.

pub mod checkpoint;
pub mod comparison;
pub mod config;
pub mod cost_table;
pub mod digest;
mod disk;
pub mod error;
pub mod evaluation;
mod files;
pub mod format;
pub mod front;
pub mod genotype;
mod json;
pub mod latency_dataset;
pub mod latency_model;
pub mod manifest;
pub mod memory;
mod precision;
mod progress;
pub mod report;
pub mod search_result;
pub mod stage;
pub mod store;
mod table;
mod tensors;

pub use crate::checkpoint::{Checkpoint, RawTensor};
pub use crate::comparison::{
    ComparedBaseline, Comparison, ComparisonRow, Differences, Interval, IntervalMethod,
};
pub use crate::config::ConfigError;
pub use crate::cost_table::CostTable;
pub use crate::digest::{Digest, Key, KeyParts, digest_files};
pub use crate::error::Error;
pub use crate::evaluation::{
    EpochRow, Evaluation, Export, ImagesRecord, SearchSummary, TimingResult, Verdict,
};
pub use crate::files::Files;
pub use crate::format::{FormatVersion, Kind};
pub use crate::front::{Front, FrontPoint, Unreached};
pub use crate::genotype::{genotype_from_arg, genotype_from_json, genotype_to_json};
pub use crate::latency_dataset::{
    AnchorRecord, CellSample, GpuRecord, LatencyDataset, LatencySample, MeasurementSettings,
    Metric, NetworkRecord, TimingRecord, architectures_to_csv,
};
pub use crate::latency_model::{
    FiguresRecord, HeldOut, LatencyModelArtifact, ModelCard, Validation,
};
pub use crate::manifest::Manifest;
pub use crate::memory::MemoryPlan;
pub use crate::precision::Precision;
pub use crate::report::Report;
pub use crate::search_result::{CandidateRecord, SearchResult, TargetRecord, TraceRow};
pub use crate::stage::{
    Bar, DeviceSpec, ExitCode, PIPELINE, Progress, Refusal, RunContext, StageArgs, StageError,
    StageSpec,
};
pub use crate::store::{Artifact, Opened, Store, open};
pub use crate::tensors::{FloatTensor, FloatTensors};
