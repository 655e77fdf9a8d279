//! Benches of whole networks: our own, and side by side with PyTorch and ONNX Runtime.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand};
use serde_json::{Value, json};

use crate::stage;

/// What to time.
#[derive(Subcommand)]
pub(crate) enum BenchCommand {
    /// Training steps: --network pc-darts|darts|derived --threads N [--json] and more, see --help behind it
    #[command(disable_help_flag = true)]
    Step(Passed),
    /// What a step takes at best here: --network pc-darts|darts|derived --threads N [--json]
    #[command(disable_help_flag = true)]
    Floor(Passed),
    /// Inferences: --genotype NAME|FILE --channels C --layers L --batch B --threads N [--json]
    #[command(disable_help_flag = true)]
    Inference(Passed),
    /// What a training step will keep in memory: [--supernet K] --channels C --layers L --batch B --image-size S
    #[command(disable_help_flag = true)]
    Memory(Passed),
    /// Both sides of PyTorch and ONNX Runtime, run in turn; prints medians and ratios
    Peers(PeersArgs),
}

/// Arguments for the bench program.
#[derive(Args)]
pub(crate) struct Passed {
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    args: Vec<String>,
}

/// Command line of `bench peers`.
#[derive(Args)]
pub(crate) struct PeersArgs {
    /// A Python with what `benches/peers/requirements.txt` lists
    #[arg(long, default_value = "python3")]
    python: PathBuf,
    /// What to time: pc-darts, darts, derived, inference-1, inference-32, inference-small; several with commas
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "pc-darts,derived,inference-1,inference-32"
    )]
    works: Vec<String>,
    /// Numbers of threads
    #[arg(long, value_delimiter = ',', default_value = "1,2")]
    threads: Vec<usize>,
    /// How often every side runs, in turn
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Where the raw rows go, one JSON object a line
    #[arg(long, default_value = "target/peers.jsonl")]
    out: PathBuf,
}

/// Runs a bench.
pub(crate) fn run(command: &BenchCommand) -> Result<()> {
    let program = stage::build()?.join("bench");
    match command {
        BenchCommand::Step(passed) => pass(&program, "step", passed),
        BenchCommand::Floor(passed) => pass(&program, "floor", passed),
        BenchCommand::Inference(passed) => pass(&program, "inference", passed),
        BenchCommand::Memory(passed) => pass(&program, "memory", passed),
        BenchCommand::Peers(args) => peers(&program, args),
    }
}

fn bench(program: &Path) -> Command {
    let mut command = Command::new(program);
    // As the stages run.
    command.env("MIMALLOC_PURGE_DELAY", "-1");
    command
}

fn pass(program: &Path, name: &str, passed: &Passed) -> Result<()> {
    let status = bench(program)
        .arg(name)
        .args(&passed.args)
        .status()
        .with_context(|| format!("cannot start {}", program.display()))?;
    match status.code() {
        Some(0) => Ok(()),
        code => Err(stage::Failed::new("bench", code).into()),
    }
}

/// One side of a comparison: its name, and the command line that times it.
struct Side {
    name: &'static str,
    args: Vec<String>,
}

/// The times of one side, in milliseconds, by what was timed, and its peak memory.
#[derive(Default)]
struct Times {
    millis: BTreeMap<&'static str, Vec<f64>>,
    peak_rss_bytes: u64,
}

impl Times {
    /// The sum of the quantiles of what was timed, an alpha step and a weight step or one inference: the medians, and the
    /// 10 % quantiles, which neighbours of a shared machine hardly move.
    fn total(&self) -> Option<[f64; 2]> {
        let all = || self.millis.values();
        (!self.millis.is_empty())
            .then(|| [0.5, 0.1].map(|q| all().map(|times| quantile(times, q)).sum()))
    }
}

/// Of times in milliseconds, one at least.
fn quantile(millis: &[f64], q: f64) -> f64 {
    let mut nanos: Vec<u64> = millis.iter().map(|millis| (1e6 * millis) as u64).collect();
    nanos.sort_unstable();
    measure::timing::quantile(&nanos, q) as f64 / 1e6
}

fn peers(program: &Path, args: &PeersArgs) -> Result<()> {
    let mut rows = std::fs::File::create(&args.out)
        .with_context(|| format!("cannot write {}", args.out.display()))?;
    let script = Path::new("benches/peers/peer.py");
    println!(
        "{:<13} {:>7}  {:<22} {:>12} {:>8} {:>12} {:>8}  {:>12}",
        "work", "threads", "who", "median", "ours is", "10 % in", "ours is", "peak memory"
    );
    for work in &args.works {
        for &threads in &args.threads {
            let (ours, sides) = sides(work, threads)?;
            let mut times: Vec<Times> = sides.iter().map(|_| Times::default()).collect();
            let mut own = Times::default();
            for round in 0..args.rounds {
                let row = answer(bench(program).args(&ours))?;
                keep(&mut own, &row, true);
                record(&mut rows, work, threads, round, "ours", &row)?;
                for (side, times) in sides.iter().zip(&mut times) {
                    let mut command = Command::new(&args.python);
                    command.arg(script).args(&side.args);
                    // A side that does not run here is left out, and said to be.
                    match answer(&mut command) {
                        Ok(row) => {
                            keep(times, &row, false);
                            record(&mut rows, work, threads, round, side.name, &row)?;
                        }
                        Err(error) => eprintln!("{}, round {round}: {error:#}", side.name),
                    }
                }
            }
            let ours = own.total().context("our own bench gave no times")?;
            let line = |name: &str, times: &Times| match times.total() {
                None => println!("{work:<13} {threads:>7}  {name:<22} {:>12}", "did not run"),
                Some([median, p10]) => println!(
                    "{work:<13} {threads:>7}  {name:<22} {median:>9.2} ms {:>7.2}x {p10:>9.2} ms {:>7.2}x  {:>8} MiB",
                    median / ours[0],
                    p10 / ours[1],
                    times.peak_rss_bytes >> 20
                ),
            };
            line("ours", &own);
            for (side, times) in sides.iter().zip(&times) {
                line(side.name, times);
            }
        }
    }
    println!("raw rows: {}", args.out.display());
    Ok(())
}

/// Our command line and those of the peers.
fn sides(work: &str, threads: usize) -> Result<(Vec<String>, Vec<Side>)> {
    let words =
        |text: &str| -> Vec<String> { text.split_whitespace().map(str::to_owned).collect() };
    let side = |name, text: String| Side {
        name,
        args: words(&text),
    };
    match work {
        "pc-darts" | "darts" | "derived" => {
            // Short steps, more of them.
            let counts = match work {
                "derived" => "--warmup 2 --steps 8",
                _ => "--warmup 1 --steps 2",
            };
            let steps = format!("--network {work} --threads {threads} {counts}");
            let mut sides = vec![
                side("torch", format!("step {steps}")),
                side(
                    "torch channels-last",
                    format!("step {steps} --mode channels-last"),
                ),
            ];
            if work == "derived" {
                sides.push(side(
                    "torch.compile",
                    format!("step {steps} --mode compile"),
                ));
            } else {
                // As the original code does: gradients of alpha and of the weights in both steps.
                sides.push(side(
                    "torch all gradients",
                    format!("step {steps} --all-gradients"),
                ));
            }
            Ok((words(&format!("step {steps} --json")), sides))
        }
        "inference-1" | "inference-32" | "inference-small" => {
            // Channels and cells of published networks, or of the small presets'.
            let (size, n_warmup, n) = match work {
                "inference-small" => ("--channels 16 --layers 8 --batch 1", 20, 1000),
                "inference-32" => ("--channels 36 --layers 20 --batch 32", 2, 10),
                _ => ("--channels 36 --layers 20 --batch 1", 2, 100),
            };
            let size = format!("{size} --threads {threads}");
            let counts = format!("--warmup {n_warmup} --steps {n}");
            let own = format!("--warmup {n_warmup} --repeats {n} --json");
            Ok((
                words(&format!("inference {size} {own}")),
                vec![
                    side(
                        "onnxruntime",
                        format!("inference --runtime onnx {size} {counts}"),
                    ),
                    side(
                        "torch",
                        format!("inference --runtime torch {size} {counts}"),
                    ),
                ],
            ))
        }
        other => bail!(
            "unknown work `{other}`, expected pc-darts, darts, derived, inference-1, inference-32 or inference-small"
        ),
    }
}

/// Runs a command and reads the JSON object that it prints last.
fn answer(command: &mut Command) -> Result<Value> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot start {command:?}"))?;
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr);
        let last = stderr.lines().last().unwrap_or_default();
        bail!("ended with {}: {last}", output.status);
    }
    let stdout = String::from_utf8_lossy(&output.stdout);
    let line = stdout.lines().last().context("it printed nothing")?;
    serde_json::from_str(line).context("it printed no JSON object")
}

/// Takes the times out of a row.
fn keep(times: &mut Times, row: &Value, is_ours: bool) {
    let raw = if is_ours && row.get("raw").is_some() {
        &row["raw"]
    } else {
        row
    };
    let numbers = |value: &Value, factor: f64| -> Vec<f64> {
        let values = value.as_array().into_iter().flatten();
        values
            .filter_map(Value::as_f64)
            .map(|value| factor * value)
            .collect()
    };
    for (name, factor) in [
        ("alpha_step_secs", 1e3),
        ("weight_step_secs", 1e3),
        ("millis", 1.0),
    ] {
        let found = numbers(&raw[name], factor);
        if !found.is_empty() {
            times.millis.entry(name).or_default().extend(found);
        }
    }
    let peak = row["peak_rss_bytes"].as_u64().unwrap_or(0);
    times.peak_rss_bytes = times.peak_rss_bytes.max(peak);
}

fn record(
    rows: &mut impl Write,
    work: &str,
    threads: usize,
    round: usize,
    who: &str,
    row: &Value,
) -> Result<()> {
    let row = json!({"work": work, "threads": threads, "round": round, "who": who, "answer": row});
    writeln!(rows, "{row}").context("cannot write the raw rows")
}
