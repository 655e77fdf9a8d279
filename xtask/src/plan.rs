//! `plan`: what is cached, what will run, and why.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::Result;

use crate::preset::{PipelineArgs, steps};
use crate::{stage, why};

/// Prints one line per step on stdout.
pub(crate) fn run(args: &PipelineArgs) -> Result<()> {
    let bin_dir = stage::build_for(args)?;
    let mut artifacts: BTreeMap<String, PathBuf> = BTreeMap::new();
    let steps = steps(args)?;
    stage::check(&bin_dir, args, &steps)?;
    for step in steps {
        let name = step.name();
        let missing: Vec<&str> = step
            .needs()
            .filter(|input| !artifacts.contains_key(*input))
            .collect();
        if !missing.is_empty() {
            println!("{name:<26} will run   after {}", missing.join(", "));
            continue;
        }
        let answer = stage::key(stage::command(&bin_dir, args, &step, &artifacts)?, &name)?;
        if answer.cached {
            println!("{name:<26} cached     {}", answer.path.display());
            artifacts.insert(name, answer.path);
        } else {
            let reason = why::short_reason(&answer, &step, &args.store)?;
            println!("{name:<26} will run   {reason}");
        }
    }
    Ok(())
}
