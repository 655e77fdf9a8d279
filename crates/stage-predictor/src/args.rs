//! The command line of the stage `predictor`.

use std::ops::Range;
use std::path::PathBuf;

use artifact::stage::{self, CheckArgs, DeviceSpec, StageArgs};
use clap::{Parser, Subcommand};
use space::Topology;
use stage_predictor::{BenchConfig, BenchResult, Error, Model, TransferConfig};

/// Fits a latency model on timed architectures
#[derive(Parser)]
#[command(name = "predictor", version)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Say whether the config is right, and do nothing else
    Check(CheckArgs),
    /// Fit the models, judge them by held-out architectures, and print the folder of the latency model
    Run {
        #[command(flatten)]
        args: StageArgs,
        #[command(flatten)]
        source: Source,
        /// The folder of a latency model of another device (may be repeated): the model of this one is made from those
        /// and from the data set, which may be small
        #[arg(long = "source-model", value_name = "DIR")]
        source_models: Vec<PathBuf>,
        /// The folder of a latency data set of the same network and protocol whose architectures are fitted as well, such
        /// as `evaluate time` leaves (may be repeated)
        #[arg(long, value_name = "DIR", conflicts_with = "source_models")]
        more: Vec<PathBuf>,
    },
    /// With --config: as run. Otherwise: fit a column of a table of measured costs, and say how well the model predicts
    /// rows that are left out
    Fit(FitArgs),
    /// Fit some rows of a table of measured costs, and judge the model by all others
    Bench(BenchArgs),
    /// Make the model of a new device from those of others and a few architectures, which it chooses
    Transfer(TransferArgs),
    /// Say which architectures to time on a new device, given models of others: a genotype in JSON per line, for
    /// profile run --architectures
    Choose {
        /// The folder of a latency model of another device (may be repeated)
        #[arg(long = "source-model", value_name = "DIR", required = true)]
        source_models: Vec<PathBuf>,
        /// How many architectures, 3 to 400
        #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u64).range(3..=400))]
        n: u64,
        /// The seed of the draw of architectures that may be timed
        #[arg(long, default_value_t = 0)]
        seed: u64,
    },
}

#[derive(clap::Args)]
#[group(required = true, multiple = false)]
pub(crate) struct Source {
    /// The folder of the latency data set that the stage profile wrote
    #[arg(long, value_name = "DIR")]
    pub(crate) latency_dataset: Option<PathBuf>,
    /// A Parquet or CSV file of another origin, with the columns of docs/formats.md
    #[arg(long, value_name = "FILE")]
    pub(crate) data: Option<PathBuf>,
}

/// A column of a table, and how much of it is fitted.
#[derive(clap::Args)]
pub(crate) struct TableArgs {
    /// A Parquet or CSV file: an architecture per row, a cost per column
    #[arg(long, value_name = "FILE")]
    data: PathBuf,
    /// The space of its architectures: darts (columns as in docs/formats.md) or nas-bench-201 (column arch)
    #[arg(long, value_parser = topology, default_value = "darts")]
    space: Topology,
    /// The column of the cost
    #[arg(long, value_name = "COLUMN", default_value = "latency_median_millis")]
    target: String,
    /// Cells of its architectures, timed on their own, that the structured model is fitted to as well: the cells.parquet
    /// beside the samples.parquet of a latency data set
    #[arg(long, value_name = "FILE")]
    cells: Option<PathBuf>,
    /// How many rows to fit, drawn with the seed [default: 80 % in a bench, all in a fit]
    #[arg(long, value_name = "N")]
    train: Option<usize>,
    /// The seed of the draw
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Fit the first rows of the file instead of drawing some
    #[arg(long)]
    in_order: bool,
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

/// A column of a table, and how the rows that are fitted are chosen.
#[derive(clap::Args)]
pub(crate) struct BenchArgs {
    #[command(flatten)]
    pub(crate) table: TableArgs,
    /// Choose most of the rows in rounds, as profile --until-mape does, instead of drawing all
    #[arg(long)]
    pub(crate) rounds: bool,
}

/// A column of a table, or a stage.
#[derive(clap::Args)]
pub(crate) struct FitArgs {
    /// The stage's config, a TOML file: fits a latency data set into the store, as run does
    #[arg(long, value_name = "FILE", conflicts_with_all = ["space", "target", "cells", "train", "seed", "in_order", "min_value", "model"])]
    config: Option<PathBuf>,
    /// With --config: where artifacts are kept
    #[arg(
        long,
        value_name = "DIR",
        default_value = "data/artifacts",
        requires = "config"
    )]
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
        rounds: bool,
        run: impl FnOnce(&BenchConfig<'_>) -> Result<BenchResult, Error>,
    ) -> Result<(), Error> {
        let result = run(&BenchConfig {
            data: &self.data,
            topology: &self.space,
            cells: self.cells.as_deref(),
            target: &self.target,
            n_train: self.train,
            seed: self.seed,
            in_order: self.in_order,
            min_value: self.min_value,
            model: self.model,
            rounds,
        })?;
        print(&result, self.json)
    }
}

/// A new device, the devices that are known, and what is timed.
#[derive(clap::Args)]
pub(crate) struct TransferArgs {
    /// A Parquet or CSV file: an architecture per row, a device per column
    #[arg(long, value_name = "FILE")]
    data: PathBuf,
    /// The space of its architectures: darts (columns as in docs/formats.md) or nas-bench-201 (column arch)
    #[arg(long, value_parser = topology)]
    space: Topology,
    /// The column of the new device
    #[arg(long, value_name = "COLUMN")]
    target: String,
    /// The columns of the devices that are known
    #[arg(long, value_name = "A,B,…", value_delimiter = ',', required = true)]
    sources: Vec<String>,
    /// How many architectures are timed on the new device, 3 to 400
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u64).range(3..=400))]
    train: u64,
    /// The seed of the draw of architectures that may be timed
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// How often to draw, with this seed and the next ones: a result per line
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..))]
    draws: u64,
    /// Leave out rows whose target costs less
    #[arg(long, value_name = "X")]
    min_value: Option<f64>,
    /// The rows that may be timed and that the sources are fitted on, such as 0..900 [default: all]
    #[arg(long, value_name = "A..B", value_parser = rows)]
    pool: Option<Range<usize>>,
    /// The rows to judge by [default: all that are not timed]
    #[arg(long, value_name = "A..B", value_parser = rows)]
    test: Option<Range<usize>>,
    /// Only the middle part of pool and test by cost counts, such as 0.8
    #[arg(long, value_name = "RATIO", default_value_t = 1.0, value_parser = ratio)]
    middle: f64,
    /// Print the result as one JSON object
    #[arg(long)]
    json: bool,
}

impl TransferArgs {
    /// Does it, judges it, and prints the result.
    pub(crate) fn answer(&self) -> Result<(), Error> {
        let results = stage_predictor::transfer(&TransferConfig {
            data: &self.data,
            topology: &self.space,
            target: &self.target,
            sources: &self.sources,
            n_train: self.train as usize,
            seed: self.seed,
            n_draws: self.draws,
            min_value: self.min_value,
            pool: self.pool.clone(),
            test: self.test.clone(),
            middle: self.middle,
        })?;
        results
            .iter()
            .try_for_each(|result| print(result, self.json))
    }
}

fn print(result: &BenchResult, json: bool) -> Result<(), Error> {
    Ok(stage::print_line(&if json {
        serde_json::to_string(result).expect("numbers and strings are JSON")
    } else {
        result.to_string()
    })?)
}

fn rows(text: &str) -> Result<Range<usize>, String> {
    let (start, end) = text
        .split_once("..")
        .ok_or("expected two numbers, such as 0..900")?;
    let number = |text: &str| text.parse().map_err(|_| format!("`{text}` is no row"));
    Ok(number(start)?..number(end)?)
}

fn ratio(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(ratio) if ratio > 0.0 && ratio <= 1.0 => Ok(ratio),
        _ => Err("expected a ratio above 0, at most 1".to_owned()),
    }
}

fn topology(name: &str) -> Result<Topology, String> {
    Topology::from_name(name)
        .ok_or_else(|| format!("expected one of {}", Topology::NAMES.join(", ")))
}

fn model(name: &str) -> Result<Model, String> {
    Model::from_name(name).ok_or_else(|| "expected auto, structured, mlp or ridge".to_owned())
}
