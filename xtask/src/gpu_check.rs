//! `gpu-check`: what can be proved with a GPU alone, in one file.

use std::fs;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::cuda;
use crate::preset::PipelineArgs;
use crate::stage::{self, Done};

/// Where everything goes.
const DIR: &str = "target/gpu-check";

/// Runs the kernel suite on CUDA and times architectures there; a check that fails is in the file too, and makes
/// the command fail.
pub(crate) fn run(args: &PipelineArgs) -> Result<()> {
    let bin_dir = stage::build_for(args)?;
    fs::create_dir_all(DIR).with_context(|| format!("cannot make {DIR}"))?;
    let checks = [
        ("kernel_suite", cuda::test_kernels().map(|()| Value::Null)),
        ("profile", profile(&bin_dir, args)),
    ];
    let is_good = checks.iter().all(|(_, outcome)| outcome.is_ok());
    let checks: serde_json::Map<String, Value> = checks
        .into_iter()
        .map(|(name, outcome)| {
            let value = match outcome {
                Ok(found) => json!({"passed": true, "found": found}),
                Err(error) => json!({"passed": false, "error": format!("{error:#}")}),
            };
            (name.to_owned(), value)
        })
        .collect();
    let devices: Vec<String> = measure::gpu::driver()
        .map(|driver| driver.devices.iter().map(ToString::to_string).collect())
        .unwrap_or_default();
    let file = Path::new(DIR).join("gpu-check.json");
    let text = serde_json::to_string_pretty(&json!({"devices": devices, "checks": checks}))?;
    fs::write(&file, text).with_context(|| format!("cannot write {}", file.display()))?;
    println!("{}", file.display());
    anyhow::ensure!(is_good, "a check failed: see {}", file.display());
    Ok(())
}

/// Times 200 architectures in a store of its own.
fn profile(bin_dir: &Path, args: &PipelineArgs) -> Result<Value> {
    let step = crate::preset::steps(args)?
        .into_iter()
        .find(|step| step.stage.name == "profile")
        .context("the pipeline has a step profile")?;
    let mut args = args.clone();
    args.store = Path::new(DIR).join("artifacts");
    args.overrides = vec![
        "profile.n_architectures=200".to_owned(),
        "profile.n_repeated=20".to_owned(),
    ];
    let started = Instant::now();
    let command = stage::command(bin_dir, &args, &step, &Default::default())?;
    let Done { path, cached } = stage::execute(command, "profile")?;
    let elapsed_secs = (!cached).then(|| started.elapsed().as_secs_f64());
    Ok(json!({"latency_dataset": path, "elapsed_secs": elapsed_secs}))
}
