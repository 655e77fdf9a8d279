//! The binary of the stage `report`.

use std::path::PathBuf;
use std::process::ExitCode;

use artifact::stage::{self, CheckArgs, StageArgs};
use clap::{Args, Parser, Subcommand};
use stage_report::{Config, Error, Inputs};

/// Shows what a run of the pipeline found, on one HTML page
#[derive(Parser)]
#[command(name = "report", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Say whether the config is right, and do nothing else
    Check(CheckArgs),
    /// Make the page, and print its folder
    Run(RunArgs),
}

#[derive(Args)]
struct RunArgs {
    /// The folder of the latency data set
    #[arg(long, value_name = "DIR")]
    latency_dataset: PathBuf,
    /// The folder of the latency model
    #[arg(long, value_name = "DIR")]
    latency_model: PathBuf,
    /// The folder of a search result; given twice, first the baseline's, then the latency-aware one's
    #[arg(long, value_name = "DIR", required = true)]
    search_result: Vec<PathBuf>,
    /// The folder of an evaluation; given twice, first the baseline's, then the latency-aware one's
    #[arg(long, value_name = "DIR", required = true)]
    evaluation: Vec<PathBuf>,
    /// The folder of the front that a sweep left: shown as well
    #[arg(long, value_name = "DIR")]
    front: Option<PathBuf>,
    /// The folder of the comparison that `compare` left: shown as well
    #[arg(long, value_name = "DIR")]
    comparison: Option<PathBuf>,
    #[command(flatten)]
    stage: StageArgs,
}

fn main() -> ExitCode {
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .without_time()
        .init();
    match Cli::parse().command {
        Command::Check(args) => stage::main(|| args.check(|_: &Config| Ok::<(), Error>(()))),
        Command::Run(args) => stage::main(|| run(&args)),
    }
}

fn run(args: &RunArgs) -> Result<(), Error> {
    let config: Config = args.stage.load_config()?;
    let inputs = Inputs::open(
        &args.latency_dataset,
        &args.latency_model,
        &args.search_result,
        &args.evaluation,
        args.front.as_deref(),
        args.comparison.as_deref(),
    )?;
    let key = inputs.key(&config)?;
    stage::execute(&args.stage, key, serde_json::Value::Null, |_| {
        stage_report::run(&config, &inputs)
    })
    .map(drop)
}
