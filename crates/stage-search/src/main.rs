//! The binary of the stage `search`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use artifact::stage::{self, CheckArgs, StageArgs};
use artifact::{RunContext, SearchResult};
use clap::{Parser, Subcommand};
use collective::{RankArgs, Team};
use stage_search::{Config, Error, Hindsight, Inputs, Learned};

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
    /// Say whether the config is right, and do nothing else
    Check(CheckArgs),
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
        #[command(flatten)]
        ranks: RankArgs,
        /// Print what the search will keep in memory (with --json as one object, in bytes), and do nothing else
        #[arg(long)]
        dry_run: bool,
    },
    /// Take a genotype that is there, as if a search had found it, and print the folder of the search result, which `evaluate run` trains, tests,
    /// times and exports
    Take {
        /// The name of a published genotype, its text, or a file with the text or JSON
        genotype: String,
        #[command(flatten)]
        args: StageArgs,
        /// The folder of the latency model
        #[arg(long, value_name = "DIR")]
        latency_model: PathBuf,
    },
    /// Learn from the candidates of searches what to expect of genotypes, and print it as the table [selection.surrogate] of search.toml
    Learn {
        /// The folders of their results
        #[arg(required = true, value_name = "DIR")]
        search_results: Vec<PathBuf>,
    },
    /// Say how well the surrogate of a config, or else the one that ships, foretold what candidates of searches came to
    Expect {
        #[command(flatten)]
        args: CheckArgs,
        /// The folders are of evaluations, all trained alike: hold it against their test accuracies, and say what latency was worth
        #[arg(long)]
        evaluations: bool,
        /// The folders of search results, or of evaluations
        #[arg(required = true, value_name = "DIR")]
        dirs: Vec<PathBuf>,
    },
}

fn main() -> ExitCode {
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .without_time()
        .init();
    let command = Cli::parse().command;
    stage::main(|| match command {
        Command::Check(args) => args.check(stage_search::check),
        Command::Run {
            args,
            latency_model,
            warm_start,
            ranks,
            dry_run,
        } => run(args, &latency_model, warm_start.as_deref(), ranks, dry_run),
        Command::Take {
            genotype,
            args,
            latency_model,
        } => take(&genotype, &args, &latency_model),
        Command::Learn { search_results } => learn(&search_results),
        Command::Expect {
            args,
            evaluations: false,
            dirs,
        } => expect(&args.load::<Config>()?, &dirs),
        Command::Expect {
            args,
            evaluations: true,
            dirs,
        } => look_back(&args.load::<Config>()?, &dirs),
    })
}

fn take(genotype: &str, args: &StageArgs, latency_model: &Path) -> Result<(), Error> {
    let config: Config = args.load_config()?;
    let genotype = artifact::genotype_from_arg(genotype).map_err(artifact::Error::from)?;
    let inputs = Inputs::open(latency_model, None)?;
    let parts = inputs.key_of(&config, &genotype)?;
    stage::execute(args, parts, serde_json::Value::Null, |_| {
        stage_search::take(&config, &inputs, genotype)
    })
    .map(drop)
}

fn learn(search_results: &[PathBuf]) -> Result<(), Error> {
    let opened = search_results.iter().map(artifact::open);
    let searches = opened.collect::<Result<Vec<_>, _>>()?;
    Ok(stage::print_line(&Learned::new(&searches)?.to_toml())?)
}

fn expect(config: &Config, search_results: &[PathBuf]) -> Result<(), Error> {
    for dir in search_results {
        let search = artifact::open(dir)?;
        let (n, agreement) = config.any_surrogate().agreement(&search)?;
        stage::print_line(&format!(
            "{}: {n} candidates, rank correlation {agreement:.2}",
            dir.display()
        ))?;
    }
    Ok(())
}

fn look_back(config: &Config, evaluations: &[PathBuf]) -> Result<(), Error> {
    let opened = evaluations.iter().map(artifact::open);
    let evaluations = opened.collect::<Result<Vec<_>, _>>()?;
    let found = Hindsight::new(config.any_surrogate(), &evaluations)?;
    let cost = found.points_for(0.7);
    let metric = found.metric;
    Ok(stage::print_line(&format!(
        "{} evaluations: rank correlation of the expected loss with the test accuracy {:.2} (below 0: foretold), at equal predicted \
         {metric} {:.2}; at equal expected loss, 0.7 of a predicted {metric} costs {:.2} points of test accuracy (standard error {:.2})",
        found.n_evaluations,
        found.correlation,
        found.at_equal_latency,
        cost.value,
        cost.standard_error,
    ))?)
}

fn run(
    mut args: StageArgs,
    latency_model: &Path,
    warm_start: Option<&Path>,
    ranks: RankArgs,
    dry_run: bool,
) -> Result<(), Error> {
    let ranks = ranks.open()?;
    args.device = args.device.behind(ranks.device_offset());
    let config: Config = args.load_config()?;
    config.check_ranks(ranks.n_ranks())?;
    let inputs = Inputs::open(latency_model, warm_start)?;
    if dry_run {
        args.device.find()?;
        let plan = stage_search::memory(&config, &inputs, args.device, ranks.n_ranks())?;
        return Ok(plan.print(args.json)?);
    }
    let parts = inputs.key(&config)?.ranks(ranks.n_ranks());
    let key = parts.key().to_string();
    let search = |context: &RunContext| {
        let team = ranks.meet(&key)?;
        let together = team.as_ref().map(Team::collective);
        stage_search::run_together(&config, &inputs, context, together)
    };
    if ranks.rank() > 0 {
        return stage::follow::<SearchResult, _>(&args, parts, |context| search(context).map(drop));
    }
    stage::execute(&args, parts, serde_json::Value::Null, search).map(drop)
}
