//! The binary of the stage `profile`.

use std::process::ExitCode;

use artifact::KeyParts;
use artifact::stage::{self, StageArgs};
use clap::{Parser, Subcommand};
use measure::Machine;
use stage_profile::{Config, Error};

/// Buffers of one step are those of the next: without pages going back to the system in between, a
/// network's latency does not depend on the order in which it frees them.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Times sampled networks and cells on this device
#[derive(Parser)]
#[command(name = "profile", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Time what the config asks for, and print the folder of the latency data set
    Run(StageArgs),
}

fn main() -> ExitCode {
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .without_time()
        .init();
    let Command::Run(args) = Cli::parse().command;
    stage::main(|| run(&args))
}

fn run(args: &StageArgs) -> Result<(), Error> {
    let config: Config = args.load_config()?;
    let machine = Machine::detect();
    let key = KeyParts::new(&stage::PROFILE, &config)?.machine(machine.fingerprint());
    let fields = machine
        .fields()
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value.into()));
    let fields = serde_json::Value::Object(fields.collect());
    stage::execute(args, key, fields, |context| {
        stage_profile::run(&config, context)
    })
}
