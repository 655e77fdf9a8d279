//! `gpu-check`: what can be proved with a GPU alone, in one file.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use artifact::{LatencyDataset, LatencySample};
use clap::Args;
use serde_json::{Map, Value, json};

use crate::cuda;
use crate::preset::PipelineArgs;
use crate::stage::{self, Done};

/// Where everything goes.
const DIR: &str = "target/gpu-check";

/// Command line of `gpu-check`.
#[derive(Args)]
pub(crate) struct GpuCheckArgs {
    /// cuda or cuda:N; cpu tries the checks themselves
    #[arg(long, default_value = "cuda")]
    device: String,
    /// The preset whose profile is taken
    #[arg(long, value_name = "NAME|DIR", default_value = "quick")]
    preset: String,
    /// Architectures to time
    #[arg(long, value_name = "N", default_value_t = 200)]
    n_architectures: usize,
    /// A folder of reference vectors (docs/reference.md)
    #[arg(long, value_name = "DIR")]
    reference: Option<PathBuf>,
    /// A Python with PyTorch for the same device: its steps are timed beside ours
    #[arg(long, value_name = "FILE")]
    python: Option<PathBuf>,
}

impl GpuCheckArgs {
    fn is_cpu(&self) -> bool {
        self.device == "cpu"
    }
}

/// What came of a check.
enum Outcome {
    Passed(Value),
    Failed(anyhow::Error),
    /// Why it was not made.
    LeftOut(&'static str),
}

impl Outcome {
    fn of(result: Result<Value>) -> Self {
        match result {
            Ok(found) => Self::Passed(found),
            Err(error) => Self::Failed(error),
        }
    }

    fn to_json(&self) -> Value {
        match self {
            Self::Passed(found) => json!({"passed": true, "found": found}),
            Self::Failed(error) => json!({"passed": false, "error": format!("{error:#}")}),
            Self::LeftOut(why) => json!({"left_out": why}),
        }
    }
}

/// Makes every check; one that fails is in the file too, and makes the command fail.
pub(crate) fn run(args: &GpuCheckArgs) -> Result<()> {
    let pipeline = PipelineArgs {
        store: Path::new(DIR).join("artifacts"),
        device: args.device.clone(),
        ..PipelineArgs::of_preset(args.preset.clone())
    };
    let bin_dir = stage::build_for(&pipeline)?;
    fs::create_dir_all(DIR).with_context(|| format!("cannot make {DIR}"))?;
    let checks = [
        ("kernel_suite", kernel_suite(args)),
        ("reference", reference(&bin_dir, args)),
        ("profile", profile(&bin_dir, &pipeline, args)),
        (
            "profile_flushed_with_energy",
            flushed(&bin_dir, &pipeline, args),
        ),
        ("step", steps(&bin_dir, args)),
    ];
    let n_failed = checks
        .iter()
        .filter(|(_, outcome)| matches!(outcome, Outcome::Failed(_)))
        .count();
    let checks: Map<String, Value> = checks
        .into_iter()
        .map(|(name, outcome)| (name.to_owned(), outcome.to_json()))
        .collect();
    let devices: Vec<String> = measure::gpu::driver()
        .map(|driver| driver.devices.iter().map(ToString::to_string).collect())
        .unwrap_or_default();
    let file = Path::new(DIR).join("gpu-check.json");
    let answer = json!({"device": args.device, "devices": devices, "checks": checks});
    fs::write(&file, serde_json::to_string_pretty(&answer)?)
        .with_context(|| format!("cannot write {}", file.display()))?;
    println!("{}", file.display());
    ensure!(
        n_failed == 0,
        "{n_failed} checks failed: see {}",
        file.display()
    );
    Ok(())
}

fn kernel_suite(args: &GpuCheckArgs) -> Outcome {
    if args.is_cpu() {
        return Outcome::LeftOut("on the processor it is part of cargo xtask ci");
    }
    Outcome::of(cuda::test_kernels().map(|()| Value::Null))
}

fn reference(bin_dir: &Path, args: &GpuCheckArgs) -> Outcome {
    let Some(dir) = &args.reference else {
        return Outcome::LeftOut("no --reference DIR");
    };
    let mut command = Command::new(bin_dir.join("reference"));
    command.arg(dir).arg(&args.device);
    Outcome::of(lines_of(&mut command).map(|lines| json!({"report": lines})))
}

/// Times architectures in a store of its own.
fn profile(bin_dir: &Path, pipeline: &PipelineArgs, args: &GpuCheckArgs) -> Outcome {
    let n = args.n_architectures;
    let sets = [
        format!("profile.n_architectures={n}"),
        format!("profile.n_repeated={}", n.div_ceil(10)),
    ];
    Outcome::of(profile_with(bin_dir, pipeline, &sets))
}

/// The same with what is off otherwise: the L2 cache flushed, energy counted.
fn flushed(bin_dir: &Path, pipeline: &PipelineArgs, args: &GpuCheckArgs) -> Outcome {
    if args.is_cpu() {
        return Outcome::LeftOut("the L2 cache is flushed on CUDA alone");
    }
    let sets = [
        "profile.n_architectures=10".to_owned(),
        "profile.n_repeated=2".to_owned(),
        "profile.timing.flush_l2=true".to_owned(),
        "profile.metrics=[\"energy\"]".to_owned(),
    ];
    Outcome::of(profile_with(bin_dir, pipeline, &sets))
}

fn profile_with(bin_dir: &Path, pipeline: &PipelineArgs, sets: &[String]) -> Result<Value> {
    let step = crate::preset::steps(pipeline)?
        .into_iter()
        .find(|step| step.stage.name == "profile")
        .context("the pipeline has a step profile")?;
    let pipeline = PipelineArgs {
        overrides: sets.to_vec(),
        ..pipeline.clone()
    };
    let started = Instant::now();
    let command = stage::command(bin_dir, &pipeline, &step, &Default::default())?;
    let Done { path, cached } = stage::execute(command, "profile")?;
    let elapsed_secs = (!cached).then(|| started.elapsed().as_secs_f64());
    let samples = artifact::open::<LatencyDataset>(&path)?.value.samples;
    Ok(json!({
        "latency_dataset": path,
        "elapsed_secs": elapsed_secs,
        "samples": summary(&samples),
    }))
}

/// The medians over the samples.
fn summary(samples: &[LatencySample]) -> Value {
    let median_of = |of: &dyn Fn(&LatencySample) -> Option<f64>| {
        let mut values: Vec<f64> = samples.iter().filter_map(of).collect();
        values.sort_by(f64::total_cmp);
        values.get(values.len() / 2).copied()
    };
    json!({
        "n": samples.len(),
        "n_disturbed": samples.iter().filter(|sample| sample.disturbed).count(),
        "n_captured": samples.iter().filter(|sample| sample.graph_median_millis.is_some()).count(),
        "latency_millis": median_of(&|sample| Some(sample.median_millis)),
        "latency_graph_millis": median_of(&|sample| sample.graph_median_millis),
        "repeat_error": median_of(&|sample| {
            Some((sample.repeat_median_millis? / sample.median_millis - 1.0).abs())
        }),
        "energy_joules": median_of(&|sample| sample.energy_joules),
        "gpu_clock_mhz": median_of(&|sample| Some(sample.gpu?.clock_mhz)),
        "gpu_power_watts": median_of(&|sample| Some(sample.gpu?.power_watts)),
    })
}

/// A search step and a training step, ours and PyTorch's on the same device.
fn steps(bin_dir: &Path, args: &GpuCheckArgs) -> Outcome {
    let precisions: &[&str] = if args.is_cpu() {
        &["f32"]
    } else {
        &["f32", "tf32", "bf16"]
    };
    let mut rows = Vec::new();
    for network in ["pc-darts", "derived"] {
        for precision in precisions {
            match step_row(bin_dir, args, network, precision) {
                Ok(row) => rows.push(row),
                Err(error) => {
                    return Outcome::Failed(error.context(format!("{network}, {precision}")));
                }
            }
        }
    }
    Outcome::Passed(rows.into())
}

fn step_row(bin_dir: &Path, args: &GpuCheckArgs, network: &str, precision: &str) -> Result<Value> {
    // A search's batch on CIFAR-10; on the processor one that takes seconds.
    let (batch, n_steps) = if args.is_cpu() {
        ("4", "2")
    } else {
        ("256", "10")
    };
    let sizes = [
        "step",
        "--network",
        network,
        "--device",
        &args.device,
        "--precision",
        precision,
        "--batch",
        batch,
        "--threads",
        "1",
        "--warmup",
        "2",
        "--steps",
        n_steps,
    ];
    let mut ours = Command::new(bin_dir.join("bench"));
    ours.args(sizes).arg("--json");
    let ours = object_of(&mut ours)?;
    let mut row =
        json!({"network": network, "precision": precision, "batch": batch, "ours": ours["raw"]});
    if let Some(python) = &args.python {
        let mut peer = Command::new(python);
        peer.arg("benches/peers/peer.py").args(sizes);
        let theirs = object_of(&mut peer)?;
        row["ours_is_times_as_fast"] = json!(total(&theirs)? / total(&ours["raw"])?);
        row["pytorch"] = theirs;
    }
    Ok(row)
}

/// The medians of alpha steps and weight steps, added up.
fn total(times: &Value) -> Result<f64> {
    let mut sum = 0.0;
    for name in ["alpha_step_secs", "weight_step_secs"] {
        let values = times[name]
            .as_array()
            .with_context(|| format!("{name} is no list"))?;
        let mut secs: Vec<f64> = values.iter().filter_map(Value::as_f64).collect();
        secs.sort_by(f64::total_cmp);
        sum += secs.get(secs.len() / 2).copied().unwrap_or(0.0);
    }
    ensure!(sum > 0.0, "no step was timed");
    Ok(sum)
}

/// What a program prints, if it ends well.
fn lines_of(command: &mut Command) -> Result<Vec<String>> {
    let output = command
        .output()
        .with_context(|| format!("cannot start {command:?}"))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(
        output.status.success(),
        "{command:?} ended with {}: {text}{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(text.lines().map(str::to_owned).collect())
}

/// The last line that a program prints, an object.
fn object_of(command: &mut Command) -> Result<Value> {
    let lines = lines_of(command)?;
    let last = lines.last().map_or("", String::as_str);
    serde_json::from_str(last).with_context(|| format!("{command:?} printed no JSON object"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_of_both_steps_are_added_up() {
        let times = json!({"alpha_step_secs": [3.0, 1.0, 2.0], "weight_step_secs": [0.5]});
        assert_eq!(total(&times).unwrap(), 2.5);
        // A derived network has no alpha step.
        let times = json!({"alpha_step_secs": [], "weight_step_secs": [0.5, 0.7, 0.6]});
        assert_eq!(total(&times).unwrap(), 0.6);
        assert!(total(&json!({"alpha_step_secs": [], "weight_step_secs": []})).is_err());
    }

    #[test]
    fn a_check_that_was_left_out_did_not_pass() {
        assert_eq!(
            Outcome::LeftOut("why").to_json(),
            json!({"left_out": "why"})
        );
        let failed = Outcome::of(Err(anyhow::anyhow!("no"))).to_json();
        assert_eq!(failed, json!({"passed": false, "error": "no"}));
    }
}
