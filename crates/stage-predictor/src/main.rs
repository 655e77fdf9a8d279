//! The binary of the stage `predictor`.

mod args;

use std::path::PathBuf;
use std::process::ExitCode;

use artifact::KeyParts;
use artifact::stage::{self, StageArgs};
use clap::Parser;
use stage_predictor::{Config, Error, Inputs, SourceModels, bench, fit};

use crate::args::{Cli, Command, Source};

fn main() -> ExitCode {
    match Cli::parse().command {
        Command::Check(args) => stage::main(|| args.check(|_: &Config| Ok::<(), Error>(()))),
        Command::Run {
            args,
            source,
            source_models,
            more,
        } => stage::main(|| run(&args, source, &source_models, &more)),
        Command::Fit(args) => match args.as_stage() {
            Some((args, source)) => stage::main(|| run(&args, source, &[], &[])),
            None => stage::main(|| args.table.answer(false, fit)),
        },
        Command::Transfer(args) => stage::main(|| args.answer()),
        Command::Choose {
            source_models,
            n,
            seed,
        } => stage::main(|| {
            let sources = SourceModels::open(&source_models)?;
            for genotype in stage_predictor::choose(sources, n as usize, seed)? {
                stage::print_line(&artifact::genotype_to_json(&genotype).to_string())?;
            }
            Ok::<(), Error>(())
        }),
        Command::Bench(args) => stage::main(|| args.table.answer(args.rounds, bench)),
    }
}

fn run(
    args: &StageArgs,
    source: Source,
    source_models: &[PathBuf],
    more: &[PathBuf],
) -> Result<(), Error> {
    let config: Config = args.load_config()?;
    let mut inputs = match (source.latency_dataset, source.data) {
        (Some(dir), _) => Inputs::open(&dir)?,
        (_, Some(file)) => Inputs::read(&file)?,
        (None, None) => unreachable!("clap asks for one of the two"),
    };
    let sources = SourceModels::open(source_models)?;
    let mut key =
        KeyParts::new(&stage::PREDICTOR, &config)?.input("latency-dataset", inputs.digest);
    for (index, digest) in sources.digests().enumerate() {
        key = key.input(&format!("source-model-{index}"), digest);
    }
    let mut known = vec![inputs.digest];
    for (index, dir) in more.iter().enumerate() {
        let digest = inputs.add(dir)?;
        if known.contains(&digest) {
            return Err(Error::Twice { dir: dir.clone() });
        }
        known.push(digest);
        key = key.input(&format!("more-{index:03}"), digest);
    }
    stage::execute(args, key, serde_json::Value::Null, |context| {
        if sources.is_empty() {
            stage_predictor::run(&config, inputs, context)
        } else {
            stage_predictor::run_transfer(&config, inputs, sources, context)
        }
    })
    .map(drop)
}
