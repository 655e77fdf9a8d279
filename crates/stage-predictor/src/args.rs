//! The command line of the stage `predictor`.

use std::path::PathBuf;

use artifact::stage::{self, DeviceSpec, StageArgs};
use clap::{Parser, Subcommand};
use space::Topology;
use stage_predictor::{BenchConfig, BenchResult, Error, Model};

/// Fits a latency model on timed architectures
#[derive(Parser)]
#[command(name = "predictor", version)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Fit the models, judge them by held-out architectures, and print the folder of the latency model
    Run {
        #[command(flatten)]
        args: StageArgs,
        #[command(flatten)]
        source: Source,
    },
    /// With --config: as run. Otherwise: fit a column of a table of measured costs, and say how well the model predicts
    /// rows that are left out
    Fit(FitArgs),
    /// Fit some rows of a table of measured costs, and judge the model by all others
    Bench(TableArgs),
}

#[derive(clap::Args)]
#[group(required = true, multiple = false)]
pub(crate) struct Source {
    /// The folder of the latency data set that the stage profile wrote
    #[arg(long, value_name = "DIR")]
    pub(crate) latency_dataset: Option<PathBuf>,
    /// A Parquet file of another origin, with the columns of docs/formats.md
    #[arg(long, value_name = "FILE")]
    pub(crate) data: Option<PathBuf>,
}

/// A column of a table, and how much of it is fitted.
#[derive(clap::Args)]
pub(crate) struct TableArgs {
    /// A Parquet file: an architecture per row, a cost per column
    #[arg(long, value_name = "FILE")]
    data: PathBuf,
    /// The space of its architectures: darts (columns as in docs/formats.md) or nas-bench-201 (column arch)
    #[arg(long, value_parser = topology, default_value = "darts")]
    space: Topology,
    /// The column of the cost
    #[arg(long, value_name = "COLUMN", default_value = "latency_median_millis")]
    target: String,
    /// How many rows to fit, drawn with the seed [default: 80 % in a bench, all in a fit]
    #[arg(long, value_name = "N")]
    train: Option<usize>,
    /// The seed of the draw
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Leave out rows that cost less
    #[arg(long, value_name = "X")]
    min_value: Option<f64>,
    /// The model: structured, mlp, ridge, or auto for the best on training rows left out
    #[arg(long, default_value = "auto", value_parser = model)]
    model: Model,
    /// Print the result as one JSON object
    #[arg(long)]
    json: bool,
}

/// A column of a table, or a stage.
#[derive(clap::Args)]
pub(crate) struct FitArgs {
    /// The stage's config, a TOML file: fits a latency data set into the store, as run does
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// With --config: where artifacts are kept
    #[arg(long, value_name = "DIR", default_value = "data/artifacts")]
    store: PathBuf,
    /// With --config: override a value of it (may be repeated)
    #[arg(long = "set", value_name = "KEY=VALUE", requires = "config")]
    overrides: Vec<String>,
    /// No progress on standard error
    #[arg(long)]
    quiet: bool,
    #[command(flatten)]
    pub(crate) table: TableArgs,
}

impl FitArgs {
    /// The arguments of the stage, if there is a config.
    pub(crate) fn as_stage(&self) -> Option<(StageArgs, Source)> {
        let args = StageArgs {
            config: self.config.clone()?,
            store: self.store.clone(),
            device: DeviceSpec::Cpu,
            overrides: self.overrides.clone(),
            threads: 0,
            key_only: false,
            json: self.table.json,
            quiet: self.quiet,
        };
        let source = Source {
            latency_dataset: None,
            data: Some(self.table.data.clone()),
        };
        Some((args, source))
    }
}

impl TableArgs {
    /// Does what is to be done with the table and prints the result.
    pub(crate) fn answer(
        &self,
        run: impl FnOnce(&BenchConfig<'_>) -> Result<BenchResult, Error>,
    ) -> Result<(), Error> {
        let result = run(&BenchConfig {
            data: &self.data,
            topology: &self.space,
            target: &self.target,
            n_train: self.train,
            seed: self.seed,
            min_value: self.min_value,
            model: self.model,
        })?;
        Ok(stage::print_line(&if self.json {
            serde_json::to_string(&result).expect("numbers and strings are JSON")
        } else {
            result.to_string()
        })?)
    }
}

fn topology(name: &str) -> Result<Topology, String> {
    Topology::from_name(name)
        .ok_or_else(|| format!("expected one of {}", Topology::NAMES.join(", ")))
}

fn model(name: &str) -> Result<Model, String> {
    Model::from_name(name).ok_or_else(|| "expected auto, structured, mlp or ridge".to_owned())
}
