//! The binary of the stage `search`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use artifact::stage::{self, StageArgs};
use clap::{Parser, Subcommand};
use stage_search::{Config, Error, Inputs};

/// Buffers of one step are those of the next: without pages going back to the system in between, a
/// step is a quarter faster.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Searches for an architecture that is accurate and fast
#[derive(Parser)]
#[command(name = "search", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Search as the config says, and print the folder of the search result
    Run {
        #[command(flatten)]
        args: StageArgs,
        /// The folder of the latency model
        #[arg(long, value_name = "DIR")]
        latency_model: PathBuf,
        /// The folder of a search result whose alpha this search begins with
        #[arg(long, value_name = "DIR")]
        warm_start: Option<PathBuf>,
    },
}

fn main() -> ExitCode {
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .without_time()
        .init();
    let Command::Run {
        args,
        latency_model,
        warm_start,
    } = Cli::parse().command;
    stage::main(|| run(&args, &latency_model, warm_start.as_deref()))
}

fn run(args: &StageArgs, latency_model: &Path, warm_start: Option<&Path>) -> Result<(), Error> {
    let config: Config = args.load_config()?;
    let inputs = Inputs::open(latency_model, warm_start)?;
    let key = inputs.key(&config)?;
    stage::execute(args, key, serde_json::Value::Null, |context| {
        stage_search::run(&config, &inputs, context)
    })
}
