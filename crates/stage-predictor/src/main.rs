//! The binary of the stage `predictor`.

use std::path::PathBuf;
use std::process::ExitCode;

use artifact::KeyParts;
use artifact::stage::{self, StageArgs};
use clap::{Parser, Subcommand};
use stage_predictor::{Config, Error, Inputs};

/// Fits a latency model on timed architectures
#[derive(Parser)]
#[command(name = "predictor", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Fit the models, judge them by held-out architectures, and print the folder of the latency model
    #[command(visible_alias = "fit")]
    Run {
        #[command(flatten)]
        args: StageArgs,
        #[command(flatten)]
        source: Source,
    },
}

#[derive(clap::Args)]
#[group(required = true, multiple = false)]
struct Source {
    /// The folder of the latency data set that the stage profile wrote
    #[arg(long, value_name = "DIR")]
    latency_dataset: Option<PathBuf>,
    /// A Parquet file of another origin, with the columns of docs/formats.md
    #[arg(long, value_name = "FILE")]
    data: Option<PathBuf>,
}

fn main() -> ExitCode {
    let Command::Run { args, source } = Cli::parse().command;
    stage::main(|| run(&args, source))
}

fn run(args: &StageArgs, source: Source) -> Result<(), Error> {
    let config: Config = args.load_config()?;
    let inputs = match (source.latency_dataset, source.data) {
        (Some(dir), _) => Inputs::open(&dir)?,
        (_, Some(file)) => Inputs::read_parquet(&file)?,
        (None, None) => unreachable!("clap asks for one of the two"),
    };
    let key = KeyParts::new(&stage::PREDICTOR, &config)?.input("latency-dataset", inputs.digest);
    stage::execute(args, key, serde_json::Value::Null, |context| {
        stage_predictor::run(&config, inputs, context)
    })
}
