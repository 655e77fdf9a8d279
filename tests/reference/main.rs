//! Compares the networks with reference vectors of the original PyTorch implementations.
//!
//! `cargo xtask reference DIR`: handles every file of the documented forms in DIR, prints the largest
//! relative error of each tensor group, says what it skipped, and fails where an error is over tolerance.

mod check;
mod networks;
mod ops;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use artifact::DeviceSpec;
use candle_core::Device;
use check::{Report, Vectors};
use clap::Parser;

/// Compares the networks with reference vectors of the original PyTorch implementations
#[derive(Parser)]
#[command(name = "reference", version)]
struct Cli {
    /// A folder of .safetensors files as `docs/reference.md` describes them
    dir: PathBuf,
    /// cpu, cuda or cuda:N
    #[arg(default_value = "cpu")]
    device: DeviceSpec,
}

fn main() -> ExitCode {
    let Cli { dir, device } = Cli::parse();
    match open_device(device) {
        Ok(Device::Cpu) => {}
        Ok(device) => check::compute_on(device),
        Err(error) => {
            eprintln!("error: {error:#}");
            return artifact::ExitCode::Device.into();
        }
    }
    match run(&dir) {
        Ok(report) => {
            report.print();
            ExitCode::from(if report.passed() { 0 } else { 5 })
        }
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(3)
        }
    }
}

fn open_device(spec: DeviceSpec) -> Result<Device> {
    spec.find()?;
    Ok(match spec {
        DeviceSpec::Cpu => Device::Cpu,
        DeviceSpec::Cuda(index) => nn::cuda_device(index)?,
    })
}

fn run(dir: &Path) -> Result<Report> {
    let mut files: Vec<PathBuf> = std::fs::read_dir(dir)
        .with_context(|| format!("cannot list {}", dir.display()))?
        .map(|entry| Ok(entry?.path()))
        .collect::<std::io::Result<_>>()?;
    files.retain(|path| path.extension().is_some_and(|e| e == "safetensors"));
    files.sort();
    if files.is_empty() {
        bail!(
            "{} holds no .safetensors file: name a folder of reference vectors",
            dir.display()
        );
    }
    let mut report = Report::default();
    for path in &files {
        let name = path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        if let Some(stem) = name.strip_suffix(".vectors.safetensors") {
            let state = Vectors::open(&dir.join(format!("{stem}.state.safetensors")))?;
            let vectors = Vectors::open(path)?;
            let mut group = report.file(&name);
            let checked = if stem.starts_with("derived_") {
                networks::derived(stem, &state, &vectors, &mut group)
            } else if stem.contains("_super_") {
                networks::supernet(stem, &state, &vectors, &mut group)
            } else {
                group.skip("neither derived_… nor …_super_…");
                Ok(())
            };
            checked.with_context(|| format!("in {}", path.display()))?;
        } else if name.ends_with(".state.safetensors") {
            if !dir.join(name.replace(".state.", ".vectors.")).exists() {
                report.file(&name).skip("no vectors file beside it");
            }
        } else if name.starts_with("ops_") {
            let vectors = Vectors::open(path)?;
            ops::check(&vectors, &mut report.file(&name))
                .with_context(|| format!("in {}", path.display()))?;
        } else {
            report
                .file(&name)
                .skip("not a name of the documented forms");
        }
    }
    Ok(report)
}
