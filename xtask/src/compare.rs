//! `compare`: is the latency-aware search better than search without latency, and than random search?
//!
//! For each seed networks are trained by one recipe: of the search with lambda = 0, of the latency-aware search, and of
//! random searches at the latter's predicted latency, with as many candidates (`[selection]`). Then all are timed, one after
//! the other.
//! Differences are taken within a seed; their mean has an interval over seeds: from eight seeds on by bootstrap, of fewer by
//! Student's t. All of it is an artifact, which a report can show.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::PathBuf;

use anyhow::Result;
use artifact::{
    ComparedBaseline, Comparison, ComparisonRow, Differences, Digest, Evaluation, Interval,
    IntervalMethod, LatencyDataset, Opened, SearchResult,
};
use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use serde_json::json;

use crate::pipeline::run_steps;
use crate::preset::{
    BASELINE, BASELINE_SEARCH, LATENCY_AWARE, PipelineArgs, RANDOM, random_steps, steps, usage,
};
use crate::publish::{Begun, COMPARE, seeds};
use crate::stage;

/// Resamples of a bootstrap.
const N_RESAMPLES: usize = 10_000;

/// What the 97.5 % quantile of Student's t is for 2, 3, … values; with more of them means are resampled. Resamples of a few
/// values hold too few means: of three, 95 % of them reach from the least value to the greatest, which the mean of another
/// three leaves every fourth time.
const STUDENT: [f64; 6] = [12.706, 4.303, 3.182, 2.776, 2.571, 2.447];

/// How often what is compared.
#[derive(clap::Args)]
pub(crate) struct CompareArgs {
    /// Seeds, from --seed (0 by default) on
    #[arg(long, value_name = "N", default_value_t = 3)]
    seeds: u64,
    /// Random searches for each seed
    #[arg(long, value_name = "N", default_value_t = 1)]
    randoms: u64,
    /// Whether the networks are timed at the end, or another time: `later` leaves that to the same command without it, in
    /// a quiet minute
    #[arg(long, value_name = "WHEN", default_value = "now")]
    timing: Timing,
    /// Which network of the search with lambda = 0 is the baseline
    #[arg(long, value_name = "WHICH", default_value = "best")]
    baseline: ComparedBaseline,
    /// Print the result as one JSON object on stdout
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Timing {
    Now,
    Later,
}

/// Runs what is not cached, publishes the comparison and prints a table, or with `--json` the object, on stdout.
pub(crate) fn run(args: &PipelineArgs, compare: &CompareArgs) -> Result<()> {
    let seeds = seeds(args, compare.seeds)?;
    if compare.randoms == 0 {
        return Err(usage("--randoms 0: expected at least 1".to_owned()));
    }
    args.shows_nothing_more()?;
    let bin_dir = stage::build_for(args)?;
    let with_seed = PipelineArgs {
        seed: seeds.clone().next().map(u64::from),
        ..args.clone()
    };
    let mut checked = steps(&with_seed)?;
    checked.extend(random_steps(1.0, args.metric()?, 0));
    stage::check(&bin_dir, args, &checked)?;
    let begun = Begun::now();
    let (mut rows, mut searches, mut settings) = (Vec::new(), Vec::new(), None);
    let mut made_of: Vec<(String, Digest)> = Vec::new();
    for seed in seeds.clone() {
        eprintln!("seed {seed}");
        let args = PipelineArgs {
            seed: Some(seed.into()),
            ..args.clone()
        };
        let mut artifacts: BTreeMap<String, PathBuf> = BTreeMap::new();
        let mut add = |search: &'static str, artifacts: &BTreeMap<String, PathBuf>| {
            let found = artifact::open::<SearchResult>(&artifacts[&format!("search ({search})")])?;
            let evaluation = &artifacts[&format!("evaluate ({search})")];
            let evaluation = artifact::open::<Evaluation>(evaluation)?;
            made_of.push((
                format!("evaluation-{:03}", made_of.len()),
                evaluation.digest(),
            ));
            rows.push(row(seed, search, &found, &evaluation));
            settings.get_or_insert(evaluation.value.settings);
            searches.push(found);
            anyhow::Ok(())
        };
        let mut steps = steps(&args)?;
        steps.retain(|step| step.stage.name != "report");
        if compare.baseline == ComparedBaseline::Alpha && args.chooses_between_candidates()? {
            let searches = steps
                .iter_mut()
                .filter(|step| step.name() == BASELINE_SEARCH);
            searches.for_each(|step| step.overrides.push("selection.n_candidates=1".to_owned()));
        }
        run_steps(&bin_dir, &args, &steps, &mut artifacts)?;
        add(BASELINE, &artifacts)?;
        add(LATENCY_AWARE, &artifacts)?;
        let found = &artifacts[&format!("search ({LATENCY_AWARE})")];
        let found = artifact::open::<SearchResult>(found)?.value;
        for draw in 0..compare.randoms {
            // No two seeds draw the same.
            let draw = u64::from(seed) * compare.randoms + draw;
            for step in random_steps(found.predicted_latency_millis, found.metric, draw) {
                run_steps(&bin_dir, &args, &[step], &mut artifacts)?;
            }
            add(RANDOM, &artifacts)?;
        }
    }
    if compare.timing == Timing::Now {
        let searches: Vec<&Opened<SearchResult>> = searches.iter().collect();
        let measured = stage::time(&bin_dir, args, &searches)?;
        for (row, (cost, disturbed)) in rows.iter_mut().zip(measured.costs) {
            row.measured_millis = Some(cost);
            row.disturbed = Some(disturbed);
        }
        let timings = artifact::open::<LatencyDataset>(&measured.dir)?;
        made_of.push(("latency-dataset".to_owned(), timings.digest()));
    }
    let comparison = Comparison {
        metric: searches[0].value.metric,
        settings,
        baseline: compare.baseline,
        intervals: interval_method(seeds.clone().count()),
        against_baseline: differences(&rows, BASELINE),
        against_random: differences(&rows, RANDOM),
        rows,
    };
    let asked = json!({
        "seeds": seeds.collect::<Vec<_>>(),
        "baseline": comparison.baseline,
    });
    let opened = begun.publish(&COMPARE, args, &asked, made_of, comparison)?;
    if compare.json {
        println!("{}", serde_json::to_string(&opened.value)?);
    } else {
        print!("{}", table(&opened.value)?);
        println!("comparison: {}", opened.dir.display());
    }
    Ok(())
}

fn row(
    seed: u32,
    search: &str,
    found: &Opened<SearchResult>,
    evaluation: &Opened<Evaluation>,
) -> ComparisonRow {
    // A random genotype is drawn about a latency; no promise was made.
    let target = found.value.target.as_ref();
    let target = target.filter(|_| search == LATENCY_AWARE);
    ComparisonRow {
        seed,
        search: search.to_owned(),
        genotype: found.value.genotype.to_string(),
        test_accuracy: evaluation.value.test_accuracy,
        predicted_millis: found.value.predicted_latency_millis,
        measured_millis: None,
        disturbed: None,
        target_millis: target.map(|target| target.target_millis),
        search_result: found.digest().to_string(),
        evaluation: evaluation.digest().to_string(),
    }
}

/// Of the latency-aware networks less those of another search.
fn differences(rows: &[ComparisonRow], other: &str) -> Differences {
    let pairs = |value: fn(&ComparisonRow) -> Option<f64>, difference: fn(f64, f64) -> f64| {
        let aware = rows.iter().filter(|row| row.search == LATENCY_AWARE);
        let differences = aware.map(|aware| {
            let others = rows.iter().filter(|row| row.search == other);
            let others = others.filter(|row| row.seed == aware.seed);
            let own = others.map(|other| Some(difference(value(aware)?, value(other)?)));
            let own: Vec<f64> = own.collect::<Option<_>>()?;
            Some(own.iter().sum::<f64>() / own.len() as f64)
        });
        let differences: Option<Vec<f64>> = differences.collect();
        differences.map(|differences| interval(&differences))
    };
    let accuracy = pairs(|row| Some(row.test_accuracy), |a, b| a - b);
    Differences {
        test_accuracy: accuracy.expect("every network was tested"),
        latency: pairs(|row| row.measured_millis, |a, b| a / b - 1.0),
    }
}

/// How the interval of the mean of so many values comes about.
fn interval_method(n: usize) -> Option<IntervalMethod> {
    match n.checked_sub(2)? {
        index if index < STUDENT.len() => Some(IntervalMethod::StudentT),
        _ => Some(IntervalMethod::Bootstrap),
    }
}

/// The mean of one value or more, and where it lies in 95 % of such samples.
fn interval(values: &[f64]) -> Interval {
    let n = values.len();
    let mean = values.iter().sum::<f64>() / n as f64;
    let ends = interval_method(n).map(|method| match method {
        IntervalMethod::StudentT => {
            let squares = values.iter().map(|value| (value - mean).powi(2));
            let error = (squares.sum::<f64>() / ((n - 1) * n) as f64).sqrt();
            let quantile = STUDENT[n - 2];
            [mean - quantile * error, mean + quantile * error]
        }
        IntervalMethod::Bootstrap => resampled(values),
    });
    Interval {
        mean,
        low: ends.map(|[low, _]| low),
        high: ends.map(|[_, high]| high),
    }
}

/// Between which the middle 95 % of the means of resamples lie.
fn resampled(values: &[f64]) -> [f64; 2] {
    let n = values.len();
    let mut rng = ChaCha8Rng::seed_from_u64(0);
    let mut means: Vec<f64> = (0..N_RESAMPLES)
        .map(|_| (0..n).map(|_| values[rng.random_range(0..n)]).sum::<f64>() / n as f64)
        .collect();
    means.sort_by(f64::total_cmp);
    [0.025, 0.975].map(|q| means[(q * (N_RESAMPLES - 1) as f64).round() as usize])
}

fn table(comparison: &Comparison) -> Result<String, std::fmt::Error> {
    let unit = comparison.metric.unit();
    let cost = |value: Option<f64>| value.map_or("–".to_owned(), |x| format!("{x:.4} {unit}"));
    let mut text = String::new();
    writeln!(
        text,
        "{:>4}  {:<14} {:>13} {:>10} {:>10} {:>10} {:>10}",
        "seed", "search", "test accuracy", "predicted", "measured", "target", "measured/T"
    )?;
    for row in &comparison.rows {
        let ratio = row.measured_millis.zip(row.target_millis);
        let ratio = ratio.map_or(String::new(), |(measured, target)| {
            let verdict = if measured <= target { "PASS" } else { "FAIL" };
            format!("{:>10.3}  {verdict}", measured / target)
        });
        let restless = match row.disturbed {
            Some(true) => "  (disturbed)",
            _ => "",
        };
        let line = format!(
            "{:>4}  {:<14} {:>11.2} % {:>10} {:>10} {:>10} {ratio}{restless}",
            row.seed,
            row.search,
            100.0 * row.test_accuracy,
            cost(Some(row.predicted_millis)),
            cost(row.measured_millis),
            row.target_millis
                .map_or(String::new(), |target| cost(Some(target))),
        );
        writeln!(text, "{}", line.trim_end())?;
    }
    let of = |search| {
        comparison
            .rows
            .iter()
            .filter(move |row| row.search == search)
    };
    let n_seeds = of(LATENCY_AWARE).count();
    let by = match comparison.intervals {
        None => " (no interval, which three seeds or more give)".to_owned(),
        Some(method) => format!(" [95 %, {}]", method.name()),
    };
    for (search, other, differences) in [
        (BASELINE, "lambda = 0", &comparison.against_baseline),
        (RANDOM, "random at its latency", &comparison.against_random),
    ] {
        let Differences {
            test_accuracy,
            latency,
        } = differences;
        let n_each = of(search).count() / n_seeds;
        let n_each = match n_each {
            1 => String::new(),
            n => format!(" ({n} for each seed)"),
        };
        writeln!(
            text,
            "\nlatency-aware against {other}{n_each}, mean over {n_seeds} seed{}{by}\n  test accuracy {}",
            if n_seeds == 1 { "" } else { "s" },
            test_accuracy.text(" points", 2),
        )?;
        if let Some(latency) = latency {
            writeln!(
                text,
                "  {} {}",
                comparison.metric.name(),
                latency.text(" %", 1),
            )?;
        }
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interval_holds_its_mean_and_narrows_with_seeds() {
        let one = interval(&[0.3]);
        assert_eq!((one.mean, one.low, one.high), (0.3, None, None));
        assert_eq!(one.text(" points", 2), "+30.00 points");
        // 4.303 standard errors of 1 / sqrt(3).
        let few = interval(&[-1.0, 0.0, 1.0]);
        assert_eq!(few.text(" %", 1), "+0.0 % [-248.4, +248.4]");
        let many = interval(&[-1.0, 0.0, 1.0].repeat(20));
        let (low, high) = many.low.zip(many.high).unwrap();
        assert!((-0.3..-0.1).contains(&low) && (0.1..0.3).contains(&high));
        assert_eq!(many, interval(&[-1.0, 0.0, 1.0].repeat(20)));
    }

    /// Where both ways meet, they agree as far as a sample of eight allows.
    #[test]
    fn seven_values_and_eight_have_like_intervals() {
        let values = [0.3, -0.2, 0.1, 0.5, -0.4, 0.0, 0.2, -0.1];
        let width = |values: &[f64]| {
            let Interval { low, high, .. } = interval(values);
            high.unwrap() - low.unwrap()
        };
        let ratio = width(&values[..7]) / width(&values);
        assert!((1.0..1.6).contains(&ratio), "{ratio}");
    }

    fn row(seed: u32, search: &str, test_accuracy: f64, measured_millis: f64) -> ComparisonRow {
        ComparisonRow {
            seed,
            search: search.to_owned(),
            genotype: String::new(),
            test_accuracy,
            predicted_millis: measured_millis,
            measured_millis: Some(measured_millis),
            disturbed: Some(false),
            target_millis: (search == LATENCY_AWARE).then_some(1.5),
            search_result: String::new(),
            evaluation: String::new(),
        }
    }

    #[test]
    fn differences_are_taken_within_a_seed() {
        let mut rows = vec![
            row(0, BASELINE, 0.5, 2.0),
            row(0, LATENCY_AWARE, 0.6, 1.0),
            row(0, RANDOM, 0.8, 1.0),
            row(0, RANDOM, 0.6, 1.0),
            row(1, BASELINE, 0.8, 4.0),
            row(1, LATENCY_AWARE, 0.9, 2.0),
            row(1, RANDOM, 0.9, 2.0),
            row(1, RANDOM, 0.7, 2.0),
        ];
        let Differences {
            test_accuracy,
            latency,
        } = differences(&rows, BASELINE);
        assert_eq!(
            test_accuracy.text(" points", 2),
            "+10.00 points [+10.00, +10.00]"
        );
        assert_eq!(latency.unwrap().text(" %", 1), "-50.0 % [-50.0, -50.0]");
        let random = differences(&rows, RANDOM).test_accuracy;
        assert!(random.mean.abs() < 1e-12 && random.low < Some(0.0) && random.high > Some(0.0));

        let comparison = |rows: Vec<ComparisonRow>| Comparison {
            metric: artifact::Metric::Latency,
            settings: None,
            baseline: ComparedBaseline::Best,
            intervals: interval_method(2),
            against_baseline: differences(&rows, BASELINE),
            against_random: differences(&rows, RANDOM),
            rows,
        };
        rows[3].measured_millis = None;
        let table = table(&comparison(rows)).unwrap();
        for text in [
            "0.667  PASS",
            "1.333  FAIL",
            "(2 for each seed), mean over 2 seeds [95 %, Student's t]",
            "latency -50.0 %",
        ] {
            assert!(table.contains(text), "{text} is not in\n{table}");
        }
        // One of the random ones was not timed.
        assert_eq!(table.matches("latency -").count(), 1, "{table}");
    }
}
