//! `sweep`: a front of networks, from accurate to fast.
//!
//! One search per target or lambda, from the loosest to the tightest; each begins with the alpha of the one
//! before. Every network is trained and timed by the same recipe; those that no other beats in both
//! accuracy and latency are the front.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::{Context, Result};
use artifact::{Evaluation, SearchResult, Verdict};
use serde::Serialize;
use serde_json::Value;

use crate::pipeline::run_steps;
use crate::preset::{NEIGHBOUR, PipelineArgs, point_steps, steps, usage};
use crate::stage;

/// What is varied.
#[derive(clap::Args)]
#[group(required = true, multiple = false)]
pub(crate) struct Points {
    /// Targets, such as 4ms,5ms,6ms
    #[arg(long, value_name = "LATENCY,…", value_delimiter = ',')]
    targets: Vec<String>,
    /// Weights of a penalty on the latency, such as 0,0.1,0.2
    #[arg(long, value_name = "LAMBDA,…", value_delimiter = ',')]
    lambdas: Vec<f64>,
}

/// A trained network; field names are a contract of the file.
#[derive(Debug, PartialEq, Serialize)]
struct Point {
    /// The target or lambda that it was searched with.
    asked: String,
    test_accuracy: f64,
    latency_median_millis: f64,
    predicted_latency_millis: f64,
    verdict: Verdict,
    genotype: Value,
    search_result: PathBuf,
    evaluation: PathBuf,
    /// Whether no other point is both as accurate and as fast.
    is_on_front: bool,
}

/// Runs what is not cached, writes the points to `out` and prints a table on stdout.
pub(crate) fn run(args: &PipelineArgs, points: &Points, out: Option<PathBuf>) -> Result<()> {
    let out = out.unwrap_or_else(|| args.store.join("front.json"));
    let asked = points.in_order()?;
    let bin_dir = stage::build_for(args)?;
    let mut artifacts: BTreeMap<String, PathBuf> = BTreeMap::new();
    let mut first = steps(args);
    first.retain(|step| ["profile", "predictor"].contains(&step.stage.name));
    run_steps(&bin_dir, args, &first, &mut artifacts)?;
    let mut found = Vec::with_capacity(asked.len());
    for (name, overrides) in asked {
        eprintln!("{name}");
        let has_neighbour = artifacts.contains_key(NEIGHBOUR);
        for step in point_steps(overrides, has_neighbour) {
            run_steps(&bin_dir, args, &[step], &mut artifacts)?;
        }
        let [search_result, evaluation] =
            ["search (point)", "evaluate (point)"].map(|name| artifacts[name].clone());
        artifacts.insert(NEIGHBOUR.to_owned(), search_result.clone());
        let search = artifact::open::<SearchResult>(&search_result)?.value;
        let own = artifact::open::<Evaluation>(&evaluation)?.value;
        found.push(Point {
            asked: name,
            test_accuracy: own.test_accuracy,
            latency_median_millis: own.latency.median_millis,
            predicted_latency_millis: search.predicted_latency_millis,
            verdict: own.verdict(),
            genotype: artifact::genotype_to_json(&own.genotype),
            search_result,
            evaluation,
            is_on_front: false,
        });
    }
    mark_front(&mut found);
    let json = serde_json::to_string_pretty(&found)?;
    std::fs::write(&out, json + "\n").with_context(|| format!("cannot write {}", out.display()))?;
    println!(
        "{:<16} {:>13} {:>11}  target  front",
        "asked", "test accuracy", "latency"
    );
    for point in &found {
        println!(
            "{:<16} {:>11.2} % {:>8.3} ms  {:<6}  {}",
            point.asked,
            100.0 * point.test_accuracy,
            point.latency_median_millis,
            point.verdict.word().unwrap_or("–"),
            if point.is_on_front { "yes" } else { "" }
        );
    }
    println!("front: {}", out.display());
    Ok(())
}

impl Points {
    /// The name and the config of each point, the loosest first.
    fn in_order(&self) -> Result<Vec<(String, Vec<String>)>> {
        if !self.lambdas.is_empty() {
            let mut lambdas = self.lambdas.clone();
            lambdas.sort_by(f64::total_cmp);
            let point = |lambda: f64| {
                let sets = ["objective=penalty".to_owned(), format!("lambda={lambda:?}")];
                (format!("lambda = {lambda}"), sets.to_vec())
            };
            return Ok(lambdas.into_iter().map(point).collect());
        }
        let mut targets = self
            .targets
            .iter()
            .map(|text| {
                let number = text.trim().strip_suffix("ms").and_then(|n| n.parse().ok());
                let millis: f64 = number.ok_or_else(|| {
                    usage(format!(
                        "--targets {text}: expected latencies such as 4ms,5ms"
                    ))
                })?;
                Ok((millis, text.trim().to_owned()))
            })
            .collect::<Result<Vec<_>>>()?;
        targets.sort_by(|a, b| b.0.total_cmp(&a.0));
        let point = |(_, text): (f64, String)| {
            let sets = [
                "objective=target".to_owned(),
                format!("target.latency={text}"),
            ];
            (text, sets.to_vec())
        };
        Ok(targets.into_iter().map(point).collect())
    }
}

/// Marks the points that no other beats: as accurate and as fast, and better in one.
fn mark_front(points: &mut [Point]) {
    let values: Vec<(f64, f64)> = points
        .iter()
        .map(|point| (point.test_accuracy, point.latency_median_millis))
        .collect();
    for (point, &(accuracy, millis)) in points.iter_mut().zip(&values) {
        point.is_on_front = !values.iter().any(|&(other_accuracy, other_millis)| {
            other_accuracy >= accuracy
                && other_millis <= millis
                && (other_accuracy, other_millis) != (accuracy, millis)
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn points_go_from_loose_to_tight() {
        let names = |targets: &[&str], lambdas: &[f64]| -> Vec<String> {
            let points = Points {
                targets: targets.iter().map(|&text| text.to_owned()).collect(),
                lambdas: lambdas.to_vec(),
            };
            let points = points.in_order().unwrap();
            points.into_iter().map(|(name, _)| name).collect()
        };
        assert_eq!(
            names(&["4ms", "10ms", "0.5ms"], &[]),
            ["10ms", "4ms", "0.5ms"]
        );
        assert_eq!(names(&[], &[0.5, 0.0]), ["lambda = 0", "lambda = 0.5"]);
        let wrong = Points {
            targets: vec!["fast".to_owned()],
            lambdas: vec![],
        };
        assert!(wrong.in_order().unwrap_err().to_string().contains("fast"));
    }

    #[test]
    fn the_front_is_what_nothing_beats() {
        let point = |test_accuracy, latency_median_millis| Point {
            asked: String::new(),
            test_accuracy,
            latency_median_millis,
            predicted_latency_millis: 1.0,
            verdict: Verdict {
                predicted_millis: 1.0,
                interval_millis: None,
                measured_millis: 1.0,
                target_millis: None,
                is_in_interval: None,
                is_target_met: None,
            },
            genotype: Value::Null,
            search_result: PathBuf::new(),
            evaluation: PathBuf::new(),
            is_on_front: false,
        };
        let mut points = [
            point(0.9, 3.0),
            point(0.8, 2.0),
            point(0.79, 2.5),
            point(0.8, 2.1),
            point(0.9, 3.0),
        ];
        mark_front(&mut points);
        assert_eq!(
            points.map(|point| point.is_on_front),
            [true, true, false, false, true]
        );
    }
}
