//! The binary of the stage `evaluate`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use artifact::Evaluation;
use artifact::stage::{self, CheckArgs, StageArgs};
use clap::{Parser, Subcommand};
use collective::{RankArgs, Team};
use measure::Machine;
use stage_evaluate::{Config, CountArgs, Error, Found, ImagesArgs, Inputs};

/// Buffers of one step are those of the next: without pages going back to the system in between, a
/// network's latency does not depend on the order in which it frees them. It counts what an inference needs.
#[global_allocator]
static ALLOCATOR: measure::memory::Counting<mimalloc::MiMalloc> =
    measure::memory::Counting(mimalloc::MiMalloc);

/// Trains the found network from scratch, tests it and times it
#[derive(Parser)]
#[command(name = "evaluate", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Say whether the config is right, and do nothing else
    Check(CheckArgs),
    /// Train, test and time the network of a search result, and print the evaluation's folder
    Run {
        /// The folder of the search result
        #[arg(long, value_name = "DIR")]
        search_result: PathBuf,
        #[command(flatten)]
        args: StageArgs,
        #[command(flatten)]
        ranks: RankArgs,
        /// Print what the training will keep in memory (with --json as one object, in bytes), and do nothing else
        #[arg(long)]
        dry_run: bool,
    },
    /// Time the networks of search results, untrained, and print the folder of a latency data set with a row for each
    Time {
        /// The folder of a search result (may be repeated)
        #[arg(long = "search-result", value_name = "DIR", required = true)]
        search_results: Vec<PathBuf>,
        #[command(flatten)]
        args: StageArgs,
    },
    /// Print what a genotype costs in a published network: parameters and multiply-adds
    Count(CountArgs),
    /// Print what images a folder holds: how many, of what size and classes
    Images(ImagesArgs),
}

fn main() -> ExitCode {
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .without_time()
        .init();
    let command = Cli::parse().command;
    stage::main(|| match command {
        Command::Check(args) => args.check(stage_evaluate::check),
        Command::Run {
            search_result,
            args,
            ranks,
            dry_run,
        } => run(&search_result, args, ranks, dry_run),
        Command::Time {
            search_results,
            args,
        } => time(&search_results, &args),
        Command::Count(args) => args.run(),
        Command::Images(args) => args.run(),
    })
}

fn run(
    search_result: &Path,
    mut args: StageArgs,
    ranks: RankArgs,
    dry_run: bool,
) -> Result<(), Error> {
    let ranks = ranks.open()?;
    args.device = args.device.behind(ranks.device_offset());
    let config: Config = args.load_config()?;
    let inputs = Inputs::open(search_result)?;
    if dry_run {
        args.device.find()?;
        let plan = stage_evaluate::memory(&config, &inputs, args.device, ranks.n_ranks())?;
        return Ok(plan.print(args.json)?);
    }
    let parts = inputs.key(&config)?.ranks(ranks.n_ranks());
    let key = parts.key().to_string();
    if ranks.rank() > 0 {
        return stage::follow::<Evaluation, _>(&args, parts, |context| match ranks.meet(&key)? {
            Some(team) => stage_evaluate::follow(&config, &inputs, context, team.collective()),
            None => Ok(()),
        });
    }
    stage::execute(&args, parts, machine(), |context| {
        let team = ranks.meet(&key)?;
        let together = team.as_ref().map(Team::collective);
        stage_evaluate::run_together(&config, &inputs, context, together)
    })
    .map(drop)
}

fn time(search_results: &[PathBuf], args: &StageArgs) -> Result<(), Error> {
    let config: Config = args.load_config()?;
    let found = Found::open(search_results)?;
    let key = found.key(&config)?;
    let timed = stage::execute(args, key, machine(), |context| {
        stage_evaluate::time(&config, &found, context)
    })?;
    if let Some(timed) = timed {
        args.tell(&found.verdicts(&timed.value));
    }
    Ok(())
}

/// What this machine is, for the manifest.
fn machine() -> serde_json::Value {
    let fields = Machine::detect().fields().into_iter();
    let fields = fields.map(|(name, value)| (name.to_owned(), value.into()));
    serde_json::Value::Object(fields.collect())
}
