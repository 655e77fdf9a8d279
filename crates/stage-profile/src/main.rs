//! The binary of the stage `profile`.

use std::path::PathBuf;
use std::process::ExitCode;

use artifact::KeyParts;
use artifact::stage::{self, CheckArgs, StageArgs};
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
}

fn main() -> ExitCode {
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .without_time()
        .init();
    match Cli::parse().command {
        Command::Check(args) => stage::main(|| args.load::<Config>().map(drop)),
        Command::Run {
            mut args,
            until_mape,
            architectures,
        } => {
            let until_mape = until_mape.map(|ratio| format!("until_mape={ratio:?}"));
            args.overrides.extend(until_mape);
            stage::main(|| run(&args, architectures))
        }
    }
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
}
