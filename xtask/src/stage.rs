//! Starting a stage binary.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::LazyLock;

use anyhow::{Context, Result};
use artifact::stage::SEARCH;
use artifact::{DeviceSpec, KeyParts, LatencyDataset, Opened, PIPELINE, SearchResult};
use serde::Deserialize;

use crate::ci::cargo;
use crate::cuda;
use crate::preset::{LATENCY_AWARE, PipelineArgs, Step, no_device, usage};

/// A stage that ended with an exit code other than 0.
#[derive(Debug)]
pub(crate) struct Failed {
    /// What failed.
    pub(crate) name: String,
    /// Its exit code; `None` if a signal ended it.
    code: Option<u8>,
}

impl Failed {
    /// From a process's exit code.
    pub(crate) fn new(name: &str, code: Option<i32>) -> Self {
        Self {
            name: name.to_owned(),
            code: code.and_then(|code| u8::try_from(code).ok()),
        }
    }

    /// The exit code of whoever ran it: the same; or that of a bug.
    pub(crate) fn code(&self) -> u8 {
        self.code.unwrap_or(1)
    }
}

impl std::fmt::Display for Failed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.code {
            Some(code) => write!(f, "{} ended with exit code {code}", self.name),
            None => write!(
                f,
                "{} was killed: by somebody, or by the system because memory ran out (--dry-run of search and evaluate says how much they need)",
                self.name
            ),
        }
    }
}

impl std::error::Error for Failed {}

/// What a stage answers to `--key-only`.
#[derive(Debug, Deserialize)]
pub(crate) struct KeyAnswer {
    /// The parts that the key is made of.
    pub(crate) parts: KeyParts,
    /// The artifact's folder.
    pub(crate) path: PathBuf,
    /// Whether it is there already.
    pub(crate) cached: bool,
}

/// What a stage prints with `--json` when it is done.
#[derive(Debug, Deserialize)]
pub(crate) struct Done {
    /// The artifact's folder.
    pub(crate) path: PathBuf,
    /// Whether it was there already.
    pub(crate) cached: bool,
}

/// Builds the stage binaries for a device and returns the folder that holds them.
pub(crate) fn build_for(args: &PipelineArgs) -> Result<PathBuf> {
    match args.device.parse::<DeviceSpec>() {
        // Building takes minutes and a toolkit, so the device is looked for first.
        Ok(device @ DeviceSpec::Cuda(index)) => match measure::gpu::find(index) {
            Ok(_) => cuda::build(),
            Err(error) => Err(no_device(device, &error)),
        },
        Ok(DeviceSpec::Cpu) => build(),
        Err(error) => Err(usage(error.to_string())),
    }
}

/// Builds the stage binaries and returns the folder that holds them.
pub(crate) fn build() -> Result<PathBuf> {
    let exe = std::env::current_exe().context("cannot tell where this program lies")?;
    let dir = exe.parent().context("this program lies in no folder")?;
    // The whole workspace, as `ci` builds it: another selection of packages would have other features, and
    // be compiled anew.
    let mut command = cargo(&["build", "--release", "--workspace", "--bins"]);
    // The first time takes minutes, which are not to pass in silence.
    let is_first = PIPELINE.iter().any(|stage| !dir.join(stage.name).exists());
    if !is_first {
        command.arg("--quiet");
    }
    let status = command.status().context("cannot start cargo")?;
    anyhow::ensure!(status.success(), "the stages do not build");
    Ok(dir.to_owned())
}

/// Networks that were timed.
pub(crate) struct Measured {
    /// The folder of the latency data set.
    pub(crate) dir: PathBuf,
    /// Of each network what it costs, in the unit of what its search kept low, and whether the machine was restless.
    pub(crate) costs: Vec<(f64, bool)>,
}

/// Times the networks of search results, untrained, one after the other.
pub(crate) fn time(
    bin_dir: &Path,
    args: &PipelineArgs,
    searches: &[&Opened<SearchResult>],
) -> Result<Measured> {
    let mut command = start(bin_dir, args, "evaluate", "time")?;
    for search in searches {
        command.arg("--search-result").arg(&search.dir);
    }
    let dir = execute(command, "evaluate time")?.path;
    let samples = artifact::open::<LatencyDataset>(&dir)?.value.samples;
    anyhow::ensure!(samples.len() == searches.len(), "a row for every network");
    let rows = samples.iter().zip(searches);
    let costs = rows.map(|(row, search)| {
        let metric = search.value.metric;
        let cost = metric.of(row);
        let cost = cost.with_context(|| format!("{metric} in every row"))?;
        Ok((cost, row.disturbed))
    });
    let costs = costs.collect::<Result<_>>()?;
    Ok(Measured { dir, costs })
}

/// Whether every step would take its config, and the configs go together, before the first has run for an hour.
pub(crate) fn check(bin_dir: &Path, args: &PipelineArgs, steps: &[Step]) -> Result<()> {
    for step in steps {
        if step.stage.name == SEARCH.name {
            args.promises(step)?;
        }
        let mut command = configured(bin_dir, args, step.stage.name, "check")?;
        override_for(&mut command, args, step);
        output(command, &format!("the config of {}", step.name()))?;
    }
    args.go_together()
}

/// A subcommand of a stage, with its config and where it runs.
fn start(bin_dir: &Path, args: &PipelineArgs, stage: &str, subcommand: &str) -> Result<Command> {
    let mut command = configured(bin_dir, args, stage, subcommand)?;
    command.arg("--store").arg(&args.store);
    command.args(["--device", &args.device]);
    if let Some(threads) = args.threads {
        command.args(["--threads", &threads.to_string()]);
    }
    Ok(command)
}

/// A subcommand of a stage.
pub(crate) fn program(bin_dir: &Path, stage: &str, subcommand: &str) -> Command {
    let mut command = Command::new(bin_dir.join(stage));
    // Training allocates the same buffers step after step: keep their pages (a quarter faster).
    command.env("MIMALLOC_PURGE_DELAY", "-1");
    if let Some((commit, is_dirty)) = &*SOURCE {
        command.env("GIT_COMMIT", commit);
        command.env("GIT_DIRTY", is_dirty.to_string());
    }
    command.arg(subcommand);
    command
}

/// A subcommand of a stage, with its config.
fn configured(
    bin_dir: &Path,
    args: &PipelineArgs,
    stage: &str,
    subcommand: &str,
) -> Result<Command> {
    let mut command = program(bin_dir, stage, subcommand);
    command
        .arg("--config")
        .arg(args.preset_dir()?.join(format!("{stage}.toml")));
    if let (Some(seed), "search" | "evaluate") = (args.seed, stage) {
        command.args(["--set", &format!("seed={seed}")]);
    }
    for value in args.overrides_of(stage)? {
        command.args(["--set", &value]);
    }
    Ok(command)
}

/// What a step has otherwise than the preset.
fn override_for(command: &mut Command, args: &PipelineArgs, step: &Step) {
    for value in &step.overrides {
        command.args(["--set", value]);
    }
    let (stage, variant) = (step.stage.name, step.variant);
    if let (Some(target), "search", Some(LATENCY_AWARE)) = (&args.target, stage, variant) {
        command.args(["--set", "objective=target"]);
        command.args(["--set", &format!("target.latency={target}")]);
    }
}

/// The command line of a step, given the artifacts of the steps before it.
pub(crate) fn command(
    bin_dir: &Path,
    args: &PipelineArgs,
    step: &Step,
    artifacts: &BTreeMap<String, PathBuf>,
) -> Result<Command> {
    let stage = step.stage.name;
    let subcommand = if step.genotype.is_some() {
        "take"
    } else {
        "run"
    };
    let mut command = start(bin_dir, args, stage, subcommand)?;
    command.args(&step.genotype);
    override_for(&mut command, args, step);
    if let Some(name) = step.reference {
        let dir = artifacts
            .get(name)
            .with_context(|| format!("{} needs {name}, which has not run", step.name()))?;
        let reference = artifact::open::<SearchResult>(dir)?.value.genotype;
        command.args(["--set", &format!("target.of=\"{reference}\"")]);
    }
    if let Some(name) = step.warm_start {
        let dir = artifacts
            .get(name)
            .with_context(|| format!("{} needs {name}, which has not run", step.name()))?;
        command.arg("--warm-start").arg(dir);
    }
    if stage == "predictor" {
        for dir in &args.more {
            command.arg("--more").arg(dir);
        }
    }
    if let (Some(front), "report") = (&args.front, stage) {
        command.arg("--front").arg(front);
    }
    if let (Some(comparison), "report") = (&args.comparison, stage) {
        command.arg("--comparison").arg(comparison);
    }
    for name in step.inputs {
        let path = artifacts
            .get(*name)
            .with_context(|| format!("{} needs {name}, which has not run", step.name()))?;
        let stage = name.split(' ').next().unwrap_or(name);
        let kind = PIPELINE
            .iter()
            .find(|spec| spec.name == stage)
            .with_context(|| format!("no step called {name}"))?
            .output;
        command.arg(format!("--{}", kind.name())).arg(path);
    }
    Ok(command)
}

static SOURCE: LazyLock<Option<(String, bool)>> = LazyLock::new(source);

/// The commit that lies here, and whether files differ from it; `None` without git or a repository.
fn source() -> Option<(String, bool)> {
    let git = |args: &[&str]| {
        let output = Command::new("git").args(args).output().ok()?;
        let text = String::from_utf8(output.stdout).ok()?;
        output.status.success().then(|| text.trim().to_owned())
    };
    let commit = git(&["rev-parse", "HEAD"])?;
    let changes = git(&["status", "--porcelain", "--untracked-files=no"])?;
    Some((commit, !changes.is_empty()))
}

/// Asks a step for its key.
pub(crate) fn key(mut command: Command, name: &str) -> Result<KeyAnswer> {
    command.arg("--key-only");
    parse(&output(command, name)?, name)
}

/// Runs a step to its end.
pub(crate) fn execute(command: Command, name: &str) -> Result<Done> {
    ask(command, name)
}

/// What a stage's program prints with `--json`.
pub(crate) fn ask<T: serde::de::DeserializeOwned>(mut command: Command, name: &str) -> Result<T> {
    command.arg("--json");
    parse(&output(command, name)?, name)
}

/// Runs steps side by side. Several at once show plain lines, each behind its step's name; one by itself
/// has the terminal.
pub(crate) fn execute_all(commands: Vec<Command>, names: &[String]) -> Result<Vec<Done>> {
    if let ([_], [name]) = (commands.as_slice(), names) {
        return commands
            .into_iter()
            .map(|command| execute(command, name))
            .collect();
    }
    let run = |mut command: Command, name: &str| -> Result<Done> {
        command.arg("--json");
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {command:?}"))?;
        let stderr = child.stderr.take().context("stderr is piped")?;
        // A path in a message may be no UTF-8; whatever comes, the child is waited for.
        for line in BufReader::new(stderr).split(b'\n').map_while(Result::ok) {
            eprintln!("{name:<26} {}", String::from_utf8_lossy(&line));
        }
        let output = child.wait_with_output()?;
        if !output.status.success() {
            return Err(Failed::new(name, output.status.code()).into());
        }
        parse(&String::from_utf8_lossy(&output.stdout), name)
    };
    std::thread::scope(|scope| {
        let runs: Vec<_> = commands
            .into_iter()
            .zip(names)
            .map(|(command, name)| scope.spawn(move || run(command, name)))
            .collect();
        // All are waited for, also when one fails: nothing is left running.
        let outcomes: Vec<Result<Done>> = runs
            .into_iter()
            .map(|run| {
                run.join()
                    .unwrap_or_else(|_| Err(anyhow::anyhow!("a step panicked")))
            })
            .collect();
        outcomes.into_iter().collect()
    })
}

fn output(mut command: Command, name: &str) -> Result<String> {
    // stdout carries the result alone; progress and errors go straight to the terminal.
    let output = command
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("cannot start {command:?}"))?;
    if !output.status.success() {
        return Err(Failed::new(name, output.status.code()).into());
    }
    String::from_utf8(output.stdout).with_context(|| format!("{name} printed no UTF-8"))
}

fn parse<T: serde::de::DeserializeOwned>(text: &str, name: &str) -> Result<T> {
    serde_json::from_str(text).with_context(|| format!("{name} printed no JSON: {text}"))
}
