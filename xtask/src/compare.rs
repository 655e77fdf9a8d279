//! `compare`: is the latency-aware search better than search without latency, and than chance?
//!
//! For each seed three networks are trained by one recipe: of the search with lambda = 0, of the latency-aware
//! search, and a genotype drawn at random whose predicted latency is that of the latter. Differences are taken
//! within a seed; their mean has a bootstrap interval over seeds.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use artifact::{Evaluation, SearchResult, Verdict};
use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use serde::Serialize;

use crate::pipeline::run_steps;
use crate::preset::{BASELINE, LATENCY_AWARE, PipelineArgs, RANDOM, random_steps, steps, usage};
use crate::stage;

/// Resamples of a bootstrap.
const N_RESAMPLES: usize = 10_000;

/// Everything that was found; field names are a contract of `--json`.
#[derive(Serialize)]
struct Comparison {
    rows: Vec<Row>,
    /// Latency-aware less lambda = 0.
    against_baseline: Differences,
    /// Latency-aware less random.
    against_random: Differences,
}

/// One trained network.
#[derive(Serialize)]
struct Row {
    seed: u64,
    search: &'static str,
    test_accuracy: f64,
    latency_median_millis: f64,
    verdict: Verdict,
}

/// Of the latency-aware network less another of the same seed.
#[derive(Serialize)]
struct Differences {
    /// Of test accuracies, ratios.
    test_accuracy: Interval,
    /// latency / other latency - 1.
    latency: Interval,
}

/// A mean over seeds and its 95 % bootstrap interval.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
struct Interval {
    mean: f64,
    low: f64,
    high: f64,
}

/// Runs what is not cached and prints a table, or with `json` the object, on stdout.
pub(crate) fn run(args: &PipelineArgs, n_seeds: u64, json: bool) -> Result<()> {
    if n_seeds == 0 {
        return Err(usage("--seeds 0: expected at least 1".to_owned()));
    }
    let bin_dir = stage::build_for(args)?;
    let mut rows = Vec::new();
    let first = args.seed.unwrap_or(0);
    for seed in first..first + n_seeds {
        eprintln!("seed {seed}");
        let args = PipelineArgs {
            seed: Some(seed),
            ..args.clone()
        };
        let mut artifacts: BTreeMap<String, PathBuf> = BTreeMap::new();
        let mut steps = steps(&args)?;
        steps.retain(|step| step.stage.name != "report");
        run_steps(&bin_dir, &args, &steps, &mut artifacts)?;
        let found = &artifacts[&format!("search ({LATENCY_AWARE})")];
        let found = artifact::open::<SearchResult>(found)?.value;
        let random = random_steps(found.predicted_latency_millis, found.metric);
        for step in random {
            run_steps(&bin_dir, &args, &[step], &mut artifacts)?;
        }
        for search in [BASELINE, LATENCY_AWARE, RANDOM] {
            let dir = &artifacts[&format!("evaluate ({search})")];
            rows.push(Row::read(seed, search, dir)?);
        }
    }
    let comparison = Comparison {
        against_baseline: Differences::between(&rows, BASELINE),
        against_random: Differences::between(&rows, RANDOM),
        rows,
    };
    if json {
        println!("{}", serde_json::to_string(&comparison)?);
    } else {
        print!("{}", table(&comparison)?);
    }
    Ok(())
}

impl Row {
    fn read(seed: u64, search: &'static str, dir: &Path) -> Result<Self> {
        let evaluation = artifact::open::<Evaluation>(dir)
            .with_context(|| format!("cannot open {}", dir.display()))?
            .value;
        Ok(Self {
            seed,
            search,
            test_accuracy: evaluation.test_accuracy,
            latency_median_millis: evaluation.latency.median_millis,
            verdict: evaluation.verdict(),
        })
    }
}

impl Differences {
    fn between(rows: &[Row], other: &str) -> Self {
        let of = |search: &str, value: fn(&Row) -> f64| -> Vec<f64> {
            let own = rows.iter().filter(|row| row.search == search);
            own.map(value).collect()
        };
        let pairs = |value: fn(&Row) -> f64, difference: fn(f64, f64) -> f64| {
            let (aware, other) = (of(LATENCY_AWARE, value), of(other, value));
            let pairs = aware.into_iter().zip(other);
            Interval::bootstrap(&pairs.map(|(a, b)| difference(a, b)).collect::<Vec<f64>>())
        };
        Self {
            test_accuracy: pairs(|row| row.test_accuracy, |a, b| a - b),
            latency: pairs(|row| row.verdict.measured_millis, |a, b| a / b - 1.0),
        }
    }
}

impl Interval {
    /// The mean, and between which the middle 95 % of the means of resamples lie.
    fn bootstrap(values: &[f64]) -> Self {
        let mean = |values: &mut dyn Iterator<Item = f64>| values.sum::<f64>();
        let n = values.len();
        let mut rng = ChaCha8Rng::seed_from_u64(0);
        let mut means: Vec<f64> = (0..N_RESAMPLES)
            .map(|_| mean(&mut (0..n).map(|_| values[rng.random_range(0..n)])) / n as f64)
            .collect();
        means.sort_by(f64::total_cmp);
        let at = |quantile: f64| means[(quantile * (N_RESAMPLES - 1) as f64).round() as usize];
        Self {
            mean: mean(&mut values.iter().copied()) / n as f64,
            low: at(0.025),
            high: at(0.975),
        }
    }
}

fn table(comparison: &Comparison) -> Result<String, std::fmt::Error> {
    let mut text = String::new();
    writeln!(
        text,
        "{:>4}  {:<14} {:>13} {:>11}  target",
        "seed", "search", "test accuracy", "latency"
    )?;
    for row in &comparison.rows {
        writeln!(
            text,
            "{:>4}  {:<14} {:>11.2} % {:>8.3} {}  {}",
            row.seed,
            row.search,
            100.0 * row.test_accuracy,
            row.verdict.measured_millis,
            row.verdict.metric.unit(),
            // A random genotype is drawn about a latency; no promise was made.
            row.verdict
                .word()
                .filter(|_| row.search == LATENCY_AWARE)
                .unwrap_or("")
        )?;
    }
    let n_seeds = comparison.rows.len() / 3;
    for (other, differences) in [
        ("lambda = 0", &comparison.against_baseline),
        ("random at its latency", &comparison.against_random),
    ] {
        let Differences {
            test_accuracy,
            latency,
        } = differences;
        writeln!(
            text,
            "\nlatency-aware against {other}, mean of {n_seeds} [95 % by bootstrap]\n  \
             test accuracy {:+.2} points [{:+.2}, {:+.2}]\n  \
             latency {:+.1} % [{:+.1}, {:+.1}]",
            100.0 * test_accuracy.mean,
            100.0 * test_accuracy.low,
            100.0 * test_accuracy.high,
            100.0 * latency.mean,
            100.0 * latency.low,
            100.0 * latency.high,
        )?;
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interval_holds_its_mean_and_narrows_with_seeds() {
        let one = Interval::bootstrap(&[0.3]);
        assert_eq!((one.mean, one.low, one.high), (0.3, 0.3, 0.3));
        let few = Interval::bootstrap(&[-1.0, 0.0, 1.0]);
        let many = Interval::bootstrap(&[-1.0, 0.0, 1.0].repeat(20));
        assert_eq!((few.mean, few.low, few.high), (0.0, -1.0, 1.0));
        assert!(
            many.low < -0.1 && many.high < 0.3 && many.high > 0.1,
            "{many:?}"
        );
        assert_eq!(few, Interval::bootstrap(&[-1.0, 0.0, 1.0]));
    }

    #[test]
    fn differences_are_taken_within_a_seed() {
        let row = |seed, search, test_accuracy, latency_median_millis| Row {
            seed,
            search,
            test_accuracy,
            latency_median_millis,
            verdict: Verdict {
                metric: artifact::Metric::Latency,
                predicted_millis: 1.0,
                interval_millis: None,
                measured_millis: latency_median_millis,
                target_millis: None,
                is_in_interval: None,
                is_target_met: None,
            },
        };
        let rows = [
            row(0, BASELINE, 0.5, 2.0),
            row(0, LATENCY_AWARE, 0.6, 1.0),
            row(0, RANDOM, 0.7, 1.0),
            row(1, BASELINE, 0.8, 4.0),
            row(1, LATENCY_AWARE, 0.9, 2.0),
            row(1, RANDOM, 0.8, 2.0),
        ];
        let Differences {
            test_accuracy,
            latency,
        } = Differences::between(&rows, BASELINE);
        assert!(
            (test_accuracy.low - 0.1).abs() < 1e-12 && (test_accuracy.high - 0.1).abs() < 1e-12
        );
        assert_eq!(
            (latency.mean, latency.low, latency.high),
            (-0.5, -0.5, -0.5)
        );
        let random = Differences::between(&rows, RANDOM).test_accuracy;
        assert!(random.mean.abs() < 1e-12 && random.low < 0.0 && random.high > 0.0);
    }
}
