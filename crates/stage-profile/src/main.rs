//! The binary of the stage `profile`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use artifact::KeyParts;
use artifact::stage::{self, CheckArgs, Progress, StageArgs};
use clap::{Parser, Subcommand};
use measure::Machine;
use stage_profile::{Architectures, Config, Error};

/// Buffers of one step are those of the next: without pages going back to the system in between, a
/// network's latency does not depend on the order in which it frees them. It counts what an inference needs.
#[global_allocator]
static ALLOCATOR: measure::memory::Counting<mimalloc::MiMalloc> =
    measure::memory::Counting(mimalloc::MiMalloc);

/// Times sampled networks and cells on this device
#[derive(Parser)]
#[command(name = "profile", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Say whether the config is right, and do nothing else
    Check(CheckArgs),
    /// Time what the config asks for, and print the folder of the latency data set
    Run {
        #[command(flatten)]
        args: StageArgs,
        /// Choose architectures in rounds until the latency model's error on those left out is no larger than this ratio,
        /// or than the noise floor: short for --set until_mape=RATIO
        #[arg(long, value_name = "RATIO", conflicts_with = "architectures")]
        until_mape: Option<f64>,
        /// Time these, a genotype in JSON per line (from predictor choose), instead of those that the config samples
        #[arg(long, value_name = "FILE")]
        architectures: Option<PathBuf>,
    },
    /// Write sampled networks as ONNX models, to be timed in another runtime or on a device where this program does not run,
    /// and a table of them for predictor fit
    Export {
        #[command(flatten)]
        args: CheckArgs,
        /// The folder to write to
        #[arg(long, value_name = "DIR")]
        dir: PathBuf,
        /// How many networks
        #[arg(long, value_name = "N", default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..=10_000))]
        n: u32,
        /// Write these, a genotype in JSON per line (from predictor choose), instead
        #[arg(long, value_name = "FILE", conflicts_with = "n")]
        architectures: Option<PathBuf>,
    },
}

fn main() -> ExitCode {
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .without_time()
        .init();
    match Cli::parse().command {
        Command::Check(args) => stage::main(|| args.check(|_: &Config| Ok::<(), Error>(()))),
        Command::Run {
            mut args,
            until_mape,
            architectures,
        } => {
            let until_mape = until_mape.map(|ratio| format!("until_mape={ratio:?}"));
            args.overrides.extend(until_mape);
            stage::main(|| run(&args, architectures))
        }
        Command::Export {
            args,
            dir,
            n,
            architectures,
        } => stage::main(|| export(&args, &dir, n, architectures)),
    }
}

fn export(
    args: &CheckArgs,
    dir: &Path,
    n: u32,
    architectures: Option<PathBuf>,
) -> Result<(), Error> {
    let config: Config = args.load()?;
    let architectures = match architectures {
        Some(file) => stage_profile::read_architectures(&file)?,
        None => Architectures::Sampled,
    };
    let progress = Progress::stderr();
    stage_profile::export(&config, architectures, n as usize, dir, &progress)?;
    Ok(stage::print_line(
        &dir.join(stage_profile::TABLE).display().to_string(),
    )?)
}

fn run(args: &StageArgs, architectures: Option<PathBuf>) -> Result<(), Error> {
    let config: Config = args.load_config()?;
    let machine = Machine::detect();
    let mut key = KeyParts::new(&stage::PROFILE, &config)?.machine(machine.fingerprint());
    let architectures = match architectures {
        Some(file) => {
            let given = stage_profile::read_architectures(&file)?;
            key = key.input("architectures", artifact::digest_files(&[file])?);
            given
        }
        None => Architectures::Sampled,
    };
    let fields = machine
        .fields()
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value.into()));
    let fields = serde_json::Value::Object(fields.collect());
    stage::execute(args, key, fields, |context| {
        stage_profile::run(&config, architectures, context)
    })
    .map(drop)
}
