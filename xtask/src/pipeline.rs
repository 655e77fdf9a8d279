//! `pipeline` and `run`: the steps in order, cached ones skipped by the stages themselves.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::Result;
use artifact::stage::{PREDICTOR, SEARCH};
use artifact::{Kind, SearchResult};

use crate::preset::{
    BASELINE, LATENCY_AWARE, PipelineArgs, Step, missing, step_name, steps, usage,
};
use crate::summary::Summary;
use crate::{stage, why};

/// Runs every step and prints the table, or with `json` the object, on stdout.
///
/// Found networks are timed before they are trained: one that misses its target is measured data for the predictor, and the
/// latency-aware search runs again with what that knows then, `attempts` times in all.
pub(crate) fn run(args: &PipelineArgs, attempts: u32, json: bool) -> Result<()> {
    if attempts == 0 {
        return Err(usage("--attempts 0: expected at least 1".to_owned()));
    }
    let bin_dir = stage::build_for(args)?;
    let started = Instant::now();
    let mut artifacts: BTreeMap<String, PathBuf> = BTreeMap::new();
    let steps = steps(args)?;
    stage::check(&bin_dir, args, &steps)?;
    let n_first = steps.partition_point(|step| step.stage.output != Kind::Evaluation);
    let (first, then) = steps.split_at(n_first);
    run_numbered(&bin_dir, args, first, [0, steps.len()], &mut artifacts)?;
    let mut args = args.clone();
    for attempt in 2..=attempts {
        let Some(Missed { by, measured }) = missed(&bin_dir, &args, &artifacts)? else {
            break;
        };
        eprintln!(
            "      the network takes {:.1} % more than its target: the predictor learns from that, and the search runs again ({attempt} of \
             {attempts}); plan, why and run follow with --more {}, with a baseline of that predictor",
            100.0 * by,
            measured.display()
        );
        if args.more.contains(&measured) {
            // What the predictor learned from it did not change the search.
            break;
        }
        args.more.push(measured);
        let again = [
            step_name(&PREDICTOR, None),
            step_name(&SEARCH, Some(LATENCY_AWARE)),
        ];
        for step in first.iter().filter(|step| again.contains(&step.name())) {
            run_steps(&bin_dir, &args, std::slice::from_ref(step), &mut artifacts)?;
        }
    }
    run_numbered(
        &bin_dir,
        &args,
        then,
        [n_first, steps.len()],
        &mut artifacts,
    )?;
    let evaluation = |variant: &str| artifacts[&format!("evaluate ({variant})")].clone();
    let summary = Summary::read(
        &evaluation(BASELINE),
        &evaluation(LATENCY_AWARE),
        &artifacts["report"].join("report.html"),
    )?;
    eprintln!("      {:.0} s in all\n", started.elapsed().as_secs_f64());
    if json {
        println!("{}", serde_json::to_string(&summary)?);
    } else {
        print!("{summary}");
    }
    Ok(())
}

/// A network that takes longer than it may.
struct Missed {
    /// Measured / target, less 1.
    by: f64,
    /// The latency data set of what was measured.
    measured: PathBuf,
}

/// Times the network of the latency-aware search, untrained; `None` if it keeps its target, if it has none, or if the
/// machine was too restless to tell.
fn missed(
    bin_dir: &Path,
    args: &PipelineArgs,
    artifacts: &BTreeMap<String, PathBuf>,
) -> Result<Option<Missed>> {
    let dir = &artifacts[&step_name(&SEARCH, Some(LATENCY_AWARE))];
    let search = artifact::open::<SearchResult>(dir)?;
    let Some(target) = &search.value.target else {
        return Ok(None);
    };
    let measured = stage::time(bin_dir, args, &[&search])?;
    let (cost, disturbed) = measured.costs[0];
    let by = cost / target.target_millis - 1.0;
    Ok((by > 0.0 && !disturbed).then_some(Missed {
        by,
        measured: measured.dir,
    }))
}

/// Runs the steps, and adds their artifacts to these.
pub(crate) fn run_steps(
    bin_dir: &Path,
    args: &PipelineArgs,
    steps: &[Step],
    artifacts: &mut BTreeMap<String, PathBuf>,
) -> Result<()> {
    run_numbered(bin_dir, args, steps, [0, steps.len()], artifacts)
}

/// Runs the steps, of which so many are done of so many in all.
fn run_numbered(
    bin_dir: &Path,
    args: &PipelineArgs,
    steps: &[Step],
    [mut n_done, n_steps]: [usize; 2],
    artifacts: &mut BTreeMap<String, PathBuf>,
) -> Result<()> {
    // The two searches do not read each other, nor do the two evaluations: each pair runs side by side
    // on half of the cores. (Stages that time wait until they are alone; see `MachineUse`.)
    // A target that is a ratio of the baseline waits for it.
    for group in steps.chunk_by(|a, b| a.stage == b.stage && b.reference.is_none()) {
        let names: Vec<String> = group.iter().map(Step::name).collect();
        let last = n_done + group.len();
        let numbers = if group.len() > 1 {
            format!("{}-{last}", n_done + 1)
        } else {
            last.to_string()
        };
        eprintln!("[{numbers}/{n_steps}] {}", names.join(" and "));
        let commands = group
            .iter()
            .map(|step| {
                let mut command = stage::command(bin_dir, args, step, artifacts)?;
                if group.len() > 1 && args.threads.is_none() {
                    command.args(["--threads", &(n_cores() / group.len()).max(1).to_string()]);
                }
                Ok(command)
            })
            .collect::<Result<Vec<_>>>()?;
        let group_started = Instant::now();
        for (name, done) in names.iter().zip(stage::execute_all(commands, &names)?) {
            let how = if done.cached {
                "cached".to_owned()
            } else {
                format!("{:.0} s", group_started.elapsed().as_secs_f64())
            };
            eprintln!("      {name}: {how}, {}", done.path.display());
            artifacts.insert(name.clone(), done.path);
        }
        n_done = last;
    }
    Ok(())
}

fn n_cores() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

/// The steps of a stage; an unknown name is a usage error that lists the stages.
pub(crate) fn steps_of(args: &PipelineArgs, stage_name: &str) -> Result<Vec<Step>> {
    let own: Vec<Step> = steps(args)?
        .into_iter()
        .filter(|step| step.stage.name == stage_name)
        .collect();
    if own.is_empty() {
        let names: Vec<&str> = artifact::PIPELINE.iter().map(|spec| spec.name).collect();
        return Err(usage(format!(
            "no stage `{stage_name}`: expected one of {}",
            names.join(", ")
        )));
    }
    Ok(own)
}

/// Runs the steps of one stage on cached inputs; stdout carries the artifacts' folders.
pub(crate) fn run_stage(stage_name: &str, args: &PipelineArgs) -> Result<()> {
    let wanted = steps_of(args, stage_name)?;
    let bin_dir = stage::build_for(args)?;
    let mut artifacts: BTreeMap<String, PathBuf> = BTreeMap::new();
    for step in steps(args)? {
        let name = step.name();
        let is_wanted = wanted.iter().any(|wanted| wanted.name() == name);
        let is_ready = step.needs().all(|input| artifacts.contains_key(input));
        if !is_ready && !is_wanted {
            continue;
        }
        if let Some(input) = step.needs().find(|input| !artifacts.contains_key(*input)) {
            return Err(missing(format!(
                "{name} needs {input}, which is not in the store for this preset: run it first \
                 (`cargo xtask run {}`), or `cargo xtask pipeline`",
                input.split(' ').next().unwrap_or(input)
            )));
        }
        let command = stage::command(&bin_dir, args, &step, &artifacts)?;
        let answer = stage::key(command, &name)?;
        if !is_wanted {
            if answer.cached {
                artifacts.insert(name, answer.path);
            }
            continue;
        }
        if !answer.cached {
            eprintln!(
                "{name}: {}",
                why::short_reason(&answer, &step, &args.store)?
            );
        }
        let done = stage::execute(stage::command(&bin_dir, args, &step, &artifacts)?, &name)?;
        eprintln!("{name}: {}", if done.cached { "cached" } else { "done" });
        println!("{}", done.path.display());
        artifacts.insert(name, done.path);
    }
    Ok(())
}
