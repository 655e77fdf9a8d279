//! `evaluate`: a genotype that is there, trained, tested, timed and exported as found ones are.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::Result;

use crate::pipeline::run_steps;
use crate::preset::{GIVEN, PipelineArgs, given_steps, is_ratio, parse_target, steps, usage};
use crate::stage;
use crate::summary::Network;

/// Runs what is not cached and prints a table, or with `json` the object, on stdout.
pub(crate) fn run(genotype: &str, args: &PipelineArgs, json: bool) -> Result<()> {
    args.shows_nothing_more()?;
    args.leaves("search", &["objective", "target.latency"], "evaluate")?;
    artifact::genotype_from_arg(genotype).map_err(artifact::Error::from)?;
    if let Some(target) = &args.target {
        parse_target(target, "--target")?;
        if is_ratio(target) {
            return Err(usage(format!(
                "--target {target}: there is no baseline here to be a ratio of; expected a latency such as 0.4ms"
            )));
        }
    }
    let bin_dir = stage::build_for(args)?;
    let mut steps = steps(args)?;
    steps.retain(|step| ["profile", "predictor"].contains(&step.stage.name));
    steps.extend(given_steps(genotype, args.target.as_deref()));
    stage::check(&bin_dir, args, &steps)?;
    let mut artifacts: BTreeMap<String, PathBuf> = BTreeMap::new();
    run_steps(&bin_dir, args, &steps, &mut artifacts)?;
    let network = Network::read(&artifacts[&format!("evaluate ({GIVEN})")])?;
    if json {
        println!("{}", serde_json::to_string(&network)?);
    } else {
        print!("{network}");
    }
    Ok(())
}
