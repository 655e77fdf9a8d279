//! The checks that every change must pass, cheapest first.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::{cuda, layers, stage};

/// Runs all checks and stops at the first that fails.
pub(crate) fn run() -> Result<()> {
    step("format", cargo(&["fmt", "--all", "--check"]))?;
    eprintln!("== layers");
    layers::run()?;
    let clippy = [
        "clippy",
        "--release",
        "--workspace",
        "--all-targets",
        "--",
        "--deny",
        "warnings",
    ];
    step("clippy", cargo(&clippy))?;
    clippy_with_mpi()?;
    cuda::check()?;
    cuda::compile_kernels()?;
    // nextest where it is installed; cargo's own runner needs nothing but the toolchain.
    let tests: &[&str] = if has_nextest() {
        &[
            "nextest",
            "run",
            "--release",
            "--workspace",
            "--no-fail-fast",
        ]
    } else {
        &[
            "test",
            "--release",
            "--workspace",
            "--all-targets",
            "--no-fail-fast",
        ]
    };
    // The tests of whole stages start these.
    step(
        "build",
        cargo(&["build", "--release", "--workspace", "--bins"]),
    )?;
    step("tests", cargo(tests))?;
    step(
        "doc tests",
        // The sources of kernels-shim are those of `kernels`, and so are its examples.
        cargo(&[
            "test",
            "--release",
            "--workspace",
            "--doc",
            "--exclude",
            "kernels-shim",
        ]),
    )?;
    let mut docs = cargo(&[
        "doc",
        "--release",
        "--workspace",
        "--no-deps",
        "--exclude",
        "kernels-shim",
    ]);
    docs.env("RUSTDOCFLAGS", "--deny warnings");
    step("docs", docs)?;
    eprintln!("== all checks passed");
    Ok(())
}

/// Builds and runs the comparison with reference vectors.
pub(crate) fn reference(dir: &Path) -> Result<()> {
    let mut command = Command::new(stage::build()?.join("reference"));
    let status = command
        .arg(dir)
        .status()
        .context("cannot start the comparison")?;
    match status.code() {
        Some(0) => Ok(()),
        code => Err(stage::Failed::new("reference", code).into()),
    }
}

/// A cargo command in the environment of a plain shell: without what cargo set for xtask itself.
pub(crate) fn cargo(args: &[&str]) -> Command {
    let mut command = Command::new("cargo");
    command.args(args);
    for (name, _) in std::env::vars() {
        if name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_BIN_") {
            command.env_remove(name);
        }
    }
    command
        .env_remove("CARGO_MANIFEST_DIR")
        .env_remove("CARGO_MANIFEST_PATH");
    command
}

pub(crate) fn step(name: &str, mut command: Command) -> Result<()> {
    eprintln!("== {name}");
    let status = command
        .status()
        .with_context(|| format!("cannot start {command:?}"))?;
    if !status.success() {
        bail!("{name} failed");
    }
    Ok(())
}

/// Lints the ranks that mpirun starts, where MPI is installed.
fn clippy_with_mpi() -> Result<()> {
    let mut mpicc = Command::new("mpicc");
    mpicc.arg("--version");
    let missing = if !succeeds(mpicc) {
        Some("mpicc")
    } else if !has_libclang() {
        Some("libclang")
    } else {
        None
    };
    if let Some(missing) = missing {
        eprintln!(
            "== clippy with MPI\nleft out: there is no {missing} (docs/gpu.md says what MPI takes)"
        );
        return Ok(());
    }
    let clippy = [
        "clippy",
        "--release",
        "--workspace",
        "--all-targets",
        "--features",
        "stage-search/mpi,stage-evaluate/mpi",
        "--",
        "--deny",
        "warnings",
    ];
    step("clippy with MPI", cargo(&clippy))
}

/// Whether the library is there by which `mpi` reads MPI's headers.
fn has_libclang() -> bool {
    let is_it = |line: &str| {
        let rest = line.trim_start().strip_prefix("libclang");
        rest.is_some_and(|rest| rest.starts_with(".so") || rest.starts_with('-'))
            && !line.trim_start().starts_with("libclang-cpp")
    };
    std::env::var_os("LIBCLANG_PATH").is_some()
        || Command::new("ldconfig")
            .arg("-p")
            .output()
            .is_ok_and(|found| String::from_utf8_lossy(&found.stdout).lines().any(is_it))
}

fn has_nextest() -> bool {
    succeeds(cargo(&["nextest", "--version"]))
}

/// Whether a command starts and succeeds; it is not heard.
fn succeeds(mut command: Command) -> bool {
    command.stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}
