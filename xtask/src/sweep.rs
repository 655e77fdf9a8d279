//! `sweep`: networks from accurate to fast.
//!
//! One search per seed and target or lambda, from the loosest to the tightest; each begins with the alpha of the one
//! before, unless they are to stand for themselves. Every network is trained and timed by the same recipe, and
//! those that no other beats in both accuracy and latency are the front; or they are only timed, which tells
//! whether the searches keep their targets.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::PathBuf;

use anyhow::Result;
use artifact::stage::SEARCH;
use artifact::{Evaluation, ExitCode, Front, FrontPoint, Metric, Opened, SearchResult, Unreached};
use serde::Serialize;
use serde_json::json;

use crate::pipeline::run_steps;
use crate::preset::{
    BASELINE_SEARCH, LATENCY_AWARE, NEIGHBOUR, PipelineArgs, Step, is_ratio, parse_target,
    point_steps, step_name, steps, usage,
};
use crate::publish::{Begun, SWEEP, seeds};
use crate::stage::{self, Failed};

/// What is varied, and what becomes of it.
#[derive(clap::Args)]
pub(crate) struct SweepArgs {
    #[command(flatten)]
    points: Points,
    /// Seeds, from --seed (0 by default) on
    #[arg(long, value_name = "N", default_value_t = 1)]
    seeds: u64,
    /// Every search from an alpha of its own, not from its neighbour's
    #[arg(long)]
    cold: bool,
    /// What happens to the networks: trained, tested and timed; timed untrained; nothing, they are found
    #[arg(long, value_name = "HOW", default_value = "train")]
    evaluate: Evaluate,
    /// Print the result as one JSON object on stdout
    #[arg(long)]
    json: bool,
}

#[derive(clap::Args)]
#[group(required = true, multiple = false)]
struct Points {
    /// Targets, such as 4ms,5ms,6ms, or 0.5x,0.7x: of the predicted latency of the network found with lambda = 0
    #[arg(
        long,
        value_name = "LATENCY,…",
        value_delimiter = ',',
        allow_hyphen_values = true
    )]
    targets: Vec<String>,
    /// Weights of a penalty on the latency, such as 0,0.1,0.2
    #[arg(long, value_name = "LAMBDA,…", value_delimiter = ',')]
    lambdas: Vec<f64>,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Evaluate {
    Train,
    Time,
    None,
}

/// A network that was found.
struct Found {
    seed: u32,
    asked: String,
    search: Opened<SearchResult>,
}

/// Runs what is not cached, publishes the front and prints a table, or with `--json` an object, on stdout.
pub(crate) fn run(args: &PipelineArgs, sweep: &SweepArgs) -> Result<()> {
    let seeds = seeds(args, sweep.seeds)?;
    if args.target.is_some() {
        let message = "--target: a sweep has --targets, one or more of them";
        return Err(usage(message.to_owned()));
    }
    args.shows_nothing_more()?;
    args.leaves(
        "search",
        &["objective", "lambda", "target.latency"],
        "a sweep's --targets or --lambdas",
    )?;
    let asked = sweep.points.in_order()?;
    let bin_dir = stage::build_for(args)?;
    let mut shared: BTreeMap<String, PathBuf> = BTreeMap::new();
    let with_seed = PipelineArgs {
        seed: seeds.clone().next().map(u64::from),
        ..args.clone()
    };
    let mut first = steps(&with_seed)?;
    // The preset's own target is none of these.
    let mut checked: Vec<Step> = steps(&with_seed)?;
    checked.retain(|step| step.name() != step_name(&SEARCH, Some(LATENCY_AWARE)));
    for Point { name, overrides } in &asked {
        let [search, _] = point_steps(overrides.clone(), false, is_ratio(name));
        checked.push(search);
    }
    stage::check(&bin_dir, args, &checked)?;
    first.retain(|step| ["profile", "predictor"].contains(&step.stage.name));
    run_steps(&bin_dir, args, &first, &mut shared)?;
    let begun = Begun::now();
    let (mut found, mut evaluations) = (Vec::new(), Vec::new());
    let (mut unreached, mut refusal) = (Vec::new(), None);
    for seed in seeds {
        let args = PipelineArgs {
            seed: Some(seed.into()),
            ..args.clone()
        };
        let mut artifacts = shared.clone();
        if asked.iter().any(|point| is_ratio(&point.name)) {
            let mut baseline = steps(&args)?;
            baseline.retain(|step| step.name() == BASELINE_SEARCH);
            run_steps(&bin_dir, &args, &baseline, &mut artifacts)?;
        }
        for Point { name, overrides } in &asked {
            eprintln!("seed {seed}, {name}");
            let has_neighbour = artifacts.contains_key(NEIGHBOUR) && !sweep.cold;
            let [search, evaluate] = point_steps(overrides.clone(), has_neighbour, is_ratio(name));
            match run_steps(&bin_dir, &args, &[search], &mut artifacts) {
                Err(error) if is_out_of_reach(&error) => {
                    unreached.push(Unreached {
                        seed,
                        asked: name.clone(),
                    });
                    refusal = Some(error);
                    continue;
                }
                ran => ran?,
            }
            let dir = artifacts["search (point)"].clone();
            artifacts.insert(NEIGHBOUR.to_owned(), dir.clone());
            found.push(Found {
                seed,
                asked: name.clone(),
                search: artifact::open::<SearchResult>(&dir)?,
            });
            if sweep.evaluate == Evaluate::Train {
                run_steps(&bin_dir, &args, &[evaluate], &mut artifacts)?;
                evaluations.push(artifact::open::<Evaluation>(
                    &artifacts["evaluate (point)"],
                )?);
            }
        }
    }
    if let (Some(error), true) = (refusal, found.is_empty()) {
        return Err(error);
    }
    if sweep.evaluate == Evaluate::Train {
        let front = front(&found, &evaluations, unreached);
        let asked = json!({
            "asked": asked.iter().map(|point| &point.name).collect::<Vec<_>>(),
            "unreached": front.unreached,
        });
        let made_of = evaluations.iter().enumerate();
        let made_of = made_of.map(|(index, one)| (format!("evaluation-{index:03}"), one.digest()));
        let opened = begun.publish(&SWEEP, args, &asked, made_of, front)?;
        if sweep.json {
            println!("{}", serde_json::to_string(&opened.value)?);
        } else {
            print!("{}", front_table(&opened.value)?);
            println!("front: {}", opened.dir.display());
        }
        return Ok(());
    }
    let measured = if sweep.evaluate == Evaluate::Time {
        let searches: Vec<&Opened<SearchResult>> = found.iter().map(|one| &one.search).collect();
        let measured = stage::time(&bin_dir, args, &searches)?;
        eprintln!("measured: {}", measured.dir.display());
        measured.costs
    } else {
        Vec::new()
    };
    let kept = Kept::new(&found, &measured, unreached);
    if sweep.json {
        println!("{}", serde_json::to_string(&kept)?);
    } else {
        print!("{}", kept.table()?);
    }
    Ok(())
}

/// Whether a search ended because no network keeps to its target.
fn is_out_of_reach(error: &anyhow::Error) -> bool {
    let failed = error.downcast_ref::<Failed>();
    failed.is_some_and(|failed| failed.code() == ExitCode::Unreachable as u8)
}

/// A line of a table about targets that no network keeps to.
fn said_of(unreached: &[Unreached]) -> String {
    match unreached {
        [] => String::new(),
        _ => format!(
            "no network keeps to {}\n",
            unreached
                .iter()
                .map(Unreached::to_string)
                .collect::<Vec<_>>()
                .join(", ")
        ),
    }
}

/// A search of the sweep: its name, and the config that makes it.
struct Point {
    name: String,
    overrides: Vec<String>,
}

impl Points {
    /// The loosest first.
    fn in_order(&self) -> Result<Vec<Point>> {
        if !self.lambdas.is_empty() {
            let mut lambdas = self.lambdas.clone();
            lambdas.sort_by(f64::total_cmp);
            let point = |lambda: f64| Point {
                name: format!("lambda = {lambda}"),
                overrides: vec![
                    "objective=penalty".to_owned(),
                    format!("lambda={lambda:?}"),
                    "target.latency=none".to_owned(),
                ],
            };
            return Ok(lambdas.into_iter().map(point).collect());
        }
        let mut targets = self
            .targets
            .iter()
            .map(|text| {
                let text = text.trim();
                Ok((parse_target(text, "--targets")?, text.to_owned()))
            })
            .collect::<Result<Vec<_>>>()?;
        let n_ratios = targets.iter().filter(|(_, text)| is_ratio(text)).count();
        if n_ratios > 0 && n_ratios < targets.len() {
            return Err(usage(
                "--targets: expected latencies or ratios, not both".to_owned(),
            ));
        }
        targets.sort_by(|a, b| b.0.total_cmp(&a.0));
        let point = |(_, text): (f64, String)| Point {
            overrides: vec![
                "objective=target".to_owned(),
                format!("target.latency={text}"),
            ],
            name: text,
        };
        Ok(targets.into_iter().map(point).collect())
    }
}

/// How well targets were kept; field names are a contract of `--json`.
#[derive(Serialize)]
struct Kept {
    /// What is kept low.
    metric: Metric,
    rows: Vec<Row>,
    /// Networks whose measured latency is the target at most.
    n_met: Option<usize>,
    /// The mean of measured latency / target.
    measured_by_target: Option<f64>,
    /// The mean of predicted latency / target.
    predicted_by_target: Option<f64>,
    /// What no network keeps to.
    unreached: Vec<Unreached>,
}

#[derive(Serialize)]
struct Row {
    seed: u32,
    asked: String,
    target_millis: Option<f64>,
    predicted_millis: f64,
    upper_millis: Option<f64>,
    measured_millis: Option<f64>,
    /// Whether the machine was restless meanwhile.
    disturbed: Option<bool>,
    n_skips_normal: usize,
    /// Genes that the target changed in the derived cells.
    n_changed_genes: Option<u32>,
    /// The bridge's latency at the last alpha over that of the derived genotype, less 1.
    discretisation_gap: Option<f64>,
}

impl Kept {
    /// `measured`: a median in ms (or what else the search kept low) and whether it was disturbed, for each network, or nothing.
    fn new(found: &[Found], measured: &[(f64, bool)], unreached: Vec<Unreached>) -> Self {
        let row = |(index, one): (usize, &Found)| {
            let search = &one.search.value;
            let target = search.target.as_ref();
            Row {
                seed: one.seed,
                asked: one.asked.clone(),
                target_millis: target.map(|target| target.target_millis),
                predicted_millis: search.predicted_latency_millis,
                upper_millis: target.map(|target| target.upper_millis),
                measured_millis: measured.get(index).map(|row| row.0),
                disturbed: measured.get(index).map(|row| row.1),
                n_skips_normal: search
                    .genotype
                    .normal
                    .nodes
                    .iter()
                    .flatten()
                    .filter(|gene| gene.primitive.name() == "skip_connect")
                    .count(),
                n_changed_genes: target.map(|target| target.n_changed_genes),
                discretisation_gap: search.trace.last().and_then(|row| row.discretisation_gap),
            }
        };
        Self::of(
            metric_of(found),
            found.iter().enumerate().map(row).collect(),
            unreached,
        )
    }

    fn of(metric: Metric, rows: Vec<Row>, unreached: Vec<Unreached>) -> Self {
        let mean = |of: &dyn Fn(&Row) -> Option<f64>| {
            let ratios: Vec<f64> = rows
                .iter()
                .filter_map(|row| Some(of(row)? / row.target_millis?))
                .collect();
            (!ratios.is_empty()).then(|| ratios.iter().sum::<f64>() / ratios.len() as f64)
        };
        let met: Vec<bool> = rows
            .iter()
            .filter_map(|row| Some(row.measured_millis? <= row.target_millis?))
            .collect();
        Self {
            metric,
            n_met: (!met.is_empty()).then(|| met.iter().filter(|met| **met).count()),
            measured_by_target: mean(&|row| row.measured_millis),
            predicted_by_target: mean(&|row| Some(row.predicted_millis)),
            rows,
            unreached,
        }
    }

    fn table(&self) -> Result<String, std::fmt::Error> {
        let unit = self.metric.unit();
        let millis =
            |value: Option<f64>| value.map_or("–".to_owned(), |x| format!("{x:.4} {unit}"));
        let mut text = String::new();
        writeln!(
            text,
            "{:>4}  {:<14} {:>10} {:>10} {:>10} {:>10}  {:>10}  skips  changed  gap",
            "seed", "asked", "target", "bound", "predicted", "measured", "measured/T"
        )?;
        for row in &self.rows {
            let ratio = row
                .measured_millis
                .zip(row.target_millis)
                .map(|(own, target)| own / target);
            let word = match ratio {
                Some(ratio) if ratio <= 1.0 => " PASS",
                Some(_) => " FAIL",
                None => "",
            };
            writeln!(
                text,
                "{:>4}  {:<14} {:>10} {:>10} {:>10} {:>10}  {:>10}  {:>5}  {:>7}  {:>+4.0} %{word}{}",
                row.seed,
                row.asked,
                millis(row.target_millis),
                millis(row.upper_millis),
                millis(Some(row.predicted_millis)),
                millis(row.measured_millis),
                ratio.map_or("–".to_owned(), |ratio| format!("{ratio:.3}")),
                row.n_skips_normal,
                row.n_changed_genes
                    .map_or("–".to_owned(), |n| n.to_string()),
                100.0 * row.discretisation_gap.unwrap_or(0.0),
                if row.disturbed == Some(true) {
                    " (restless)"
                } else {
                    ""
                },
            )?;
        }
        let n = self.rows.len();
        if let Some(ratio) = self.predicted_by_target {
            writeln!(text, "\npredicted / target: {ratio:.3} on average")?;
        }
        if let (Some(n_met), Some(ratio)) = (self.n_met, self.measured_by_target) {
            writeln!(
                text,
                "measured / target: {ratio:.3} on average; {n_met} of {n} at most the target"
            )?;
        }
        text.push_str(&said_of(&self.unreached));
        Ok(text)
    }
}

/// What the searches kept low: all have one model.
fn metric_of(found: &[Found]) -> Metric {
    let first = found.first();
    first.map_or(Metric::Latency, |one| one.search.value.metric)
}

fn front(found: &[Found], evaluations: &[Opened<Evaluation>], unreached: Vec<Unreached>) -> Front {
    let point = |(one, evaluation): (&Found, &Opened<Evaluation>)| {
        let own = &evaluation.value;
        let measured = own.verdict().measured_millis;
        let [p10, p90] = match own.search.metric {
            Metric::Latency => [own.latency.p10_millis, own.latency.p90_millis],
            _ => [measured; 2],
        };
        FrontPoint {
            seed: one.seed,
            asked: one.asked.clone(),
            target_millis: own.verdict().target_millis,
            predicted_latency_millis: own.search.predicted_latency_millis,
            latency_median_millis: measured,
            latency_p10_millis: p10,
            latency_p90_millis: p90,
            disturbed: Some(own.latency.disturbed),
            test_accuracy: own.test_accuracy,
            is_on_front: false,
            genotype: own.genotype.to_string(),
            search_result: one.search.digest().to_string(),
            evaluation: evaluation.digest().to_string(),
        }
    };
    let settings = evaluations.first().map(|one| one.value.settings.clone());
    let metric = metric_of(found);
    let points = found.iter().zip(evaluations).map(point).collect();
    Front {
        unreached,
        ..Front::new(metric, settings, points)
    }
}

fn front_table(front: &Front) -> Result<String, std::fmt::Error> {
    let (unit, mut text) = (front.metric.unit(), String::new());
    writeln!(
        text,
        "{:>4}  {:<16} {:>13} {:>11}  target  front",
        "seed",
        "asked",
        "test accuracy",
        front.metric.name()
    )?;
    for point in &front.points {
        let verdict = point.target_millis.map(|target| {
            if point.latency_median_millis <= target {
                "PASS"
            } else {
                "FAIL"
            }
        });
        writeln!(
            text,
            "{:>4}  {:<16} {:>11.2} % {:>8.3} {unit}  {:<6}  {:<5}{}",
            point.seed,
            point.asked,
            100.0 * point.test_accuracy,
            point.latency_median_millis,
            verdict.unwrap_or("–"),
            if point.is_on_front { "yes" } else { "" },
            if point.disturbed == Some(true) {
                " (restless)"
            } else {
                ""
            }
        )?;
    }
    text.push_str(&said_of(&front.unreached));
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn points_go_from_loose_to_tight() {
        let points = |targets: &[&str], lambdas: &[f64]| Points {
            targets: targets.iter().map(|&text| text.to_owned()).collect(),
            lambdas: lambdas.to_vec(),
        };
        let names = |targets: &[&str], lambdas: &[f64]| -> Vec<String> {
            let points = points(targets, lambdas).in_order().unwrap();
            points.into_iter().map(|point| point.name).collect()
        };
        assert_eq!(
            names(&["4ms", "10ms", "0.5ms"], &[]),
            ["10ms", "4ms", "0.5ms"]
        );
        assert_eq!(names(&["0.5x", "0.75x"], &[]), ["0.75x", "0.5x"]);
        assert_eq!(names(&[], &[0.5, 0.0]), ["lambda = 0", "lambda = 0.5"]);
        for wrong in [&["fast"][..], &["0.5x", "4ms"]] {
            assert!(points(wrong, &[]).in_order().is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn a_table_says_how_well_targets_were_kept() {
        let row = |target_millis, measured_millis| Row {
            seed: 0,
            asked: "0.5x".to_owned(),
            target_millis: Some(target_millis),
            predicted_millis: 0.96 * target_millis,
            upper_millis: Some(target_millis),
            measured_millis: Some(measured_millis),
            disturbed: Some(false),
            n_skips_normal: 1,
            n_changed_genes: Some(2),
            discretisation_gap: Some(0.1),
        };
        let unreached = vec![Unreached {
            seed: 4,
            asked: "0.1x".to_owned(),
        }];
        let rows = vec![row(1.0, 0.9), row(2.0, 2.2)];
        let kept = Kept::of(Metric::Latency, rows, unreached);
        assert_eq!(kept.n_met, Some(1));
        assert!((kept.measured_by_target.unwrap() - 1.0).abs() < 1e-12);
        assert!((kept.predicted_by_target.unwrap() - 0.96).abs() < 1e-12);
        let table = kept.table().unwrap();
        for text in [
            "0.900  ",
            "PASS",
            "FAIL",
            "1 of 2 at most the target",
            "no network keeps to 0.1x (seed 4)",
        ] {
            assert!(table.contains(text), "{text} is not in\n{table}");
        }
    }
}
