//! The binary of the stage `evaluate`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use artifact::stage::{self, StageArgs};
use clap::{Parser, Subcommand};
use measure::Machine;
use stage_evaluate::{Config, CountArgs, Error, Inputs};

/// Buffers of one step are those of the next: without pages going back to the system in between, a
/// network's latency does not depend on the order in which it frees them.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Trains the found network from scratch, tests it and times it
#[derive(Parser)]
#[command(name = "evaluate", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Train, test and time the network of a search result, and print the evaluation's folder
    Run {
        /// The folder of the search result
        #[arg(long, value_name = "DIR")]
        search_result: PathBuf,
        #[command(flatten)]
        args: StageArgs,
    },
    /// Print what a genotype costs in a published network: parameters and multiply-adds
    Count(CountArgs),
}

fn main() -> ExitCode {
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .without_time()
        .init();
    let command = Cli::parse().command;
    stage::main(|| match command {
        Command::Run {
            search_result,
            args,
        } => run(&search_result, &args),
        Command::Count(args) => args.run(),
    })
}

fn run(search_result: &Path, args: &StageArgs) -> Result<(), Error> {
    let config: Config = args.load_config()?;
    let inputs = Inputs::open(search_result)?;
    let key = inputs.key(&config)?;
    let fields = Machine::detect().fields().into_iter();
    let machine = fields
        .map(|(name, value)| (name.to_owned(), value.into()))
        .collect();
    stage::execute(args, key, serde_json::Value::Object(machine), |context| {
        stage_evaluate::run(&config, &inputs, context)
    })
}
