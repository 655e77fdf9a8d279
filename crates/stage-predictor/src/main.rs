//! The binary of the stage `predictor`.

use std::path::PathBuf;
use std::process::ExitCode;

use artifact::stage::{self, StageArgs};
use artifact::{KeyParts, LatencyDataset, digest_files};
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
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .without_time()
        .init();
    let Command::Run { args, source } = Cli::parse().command;
    stage::main(|| run(&args, source))
}

fn run(args: &StageArgs, source: Source) -> Result<(), Error> {
    let config: Config = args.load_config()?;
    let (dataset, digest) = match (source.latency_dataset, source.data) {
        (_, Some(file)) => (
            LatencyDataset::read_parquet(&file)?,
            digest_files(std::slice::from_ref(&file))?,
        ),
        (dir, None) => {
            let opened = artifact::open::<LatencyDataset>(dir.unwrap_or_default())?;
            let digest = opened.digest();
            (opened.value, digest)
        }
    };
    let key = KeyParts::new(&stage::PREDICTOR, &config)?.input("latency-dataset", digest);
    stage::execute(args, key, serde_json::Value::Null, |context| {
        stage_predictor::run(&config, Inputs { dataset }, context)
    })
}
