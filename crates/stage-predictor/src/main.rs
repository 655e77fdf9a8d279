//! The binary of the stage `predictor`.

mod args;

use std::process::ExitCode;

use artifact::KeyParts;
use artifact::stage::{self, StageArgs};
use clap::Parser;
use stage_predictor::{Config, Error, Inputs, bench, fit};

use crate::args::{Cli, Command, Source};

fn main() -> ExitCode {
    match Cli::parse().command {
        Command::Run { args, source } => stage::main(|| run(&args, source)),
        Command::Fit(args) => match args.as_stage() {
            Some((args, source)) => stage::main(|| run(&args, source)),
            None => stage::main(|| args.table.answer(fit)),
        },
        Command::Transfer(args) => stage::main(|| args.answer()),
        Command::Bench(args) => stage::main(|| args.answer(bench)),
    }
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
