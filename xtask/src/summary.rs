//! The one table that the pipeline ends with.

use std::fmt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use artifact::{Evaluation, Metric, Opened, Verdict};
use serde::Serialize;
use serde_json::Value;

/// The pipeline's result; field names are a contract of `--json`.
#[derive(Serialize)]
pub(crate) struct Summary {
    baseline: Row,
    latency_aware: Row,
    /// 1 - latency-aware / baseline, of the measured medians.
    latency_reduction: f64,
    /// The same of what the search kept low, which need not be latency.
    cost_reduction: f64,
    report: PathBuf,
}

#[derive(Serialize)]
struct Row {
    /// The folder of its evaluation.
    evaluation: PathBuf,
    genotype: Value,
    test_accuracy: f64,
    /// Test images; `None` where the evaluation does not say.
    n_test: Option<u64>,
    /// The standard error of the accuracy that these leave.
    #[serde(skip)]
    accuracy_error: Option<f64>,
    latency_median_millis: f64,
    latency_p10_millis: f64,
    latency_p90_millis: f64,
    predicted_latency_millis: f64,
    n_params: u64,
    n_macs: u64,
    seed: u64,
    /// The anchor network's latency around this one over that in the profile: what was divided out.
    anchor_ratio: f64,
    /// The same, if it is far from 1.
    #[serde(skip)]
    slowdown: Option<f64>,
    /// Whether the machine was restless while the network was timed.
    disturbed: bool,
    verdict: Verdict,
}

impl Row {
    fn read(dir: &Path) -> Result<Self> {
        let Opened {
            value: evaluation, ..
        } = artifact::open::<Evaluation>(dir)
            .with_context(|| format!("cannot open {}", dir.display()))?;
        Ok(Self {
            evaluation: dir.to_owned(),
            genotype: artifact::genotype_to_json(&evaluation.genotype),
            test_accuracy: evaluation.test_accuracy,
            n_test: evaluation.n_test,
            accuracy_error: evaluation.accuracy_error(),
            latency_median_millis: evaluation.latency.median_millis,
            latency_p10_millis: evaluation.latency.p10_millis,
            latency_p90_millis: evaluation.latency.p90_millis,
            predicted_latency_millis: evaluation.search.predicted_latency_millis,
            n_params: evaluation.n_params,
            n_macs: evaluation.n_macs,
            seed: evaluation.search.seed,
            anchor_ratio: evaluation.latency.anchor_ratio,
            slowdown: evaluation.slowdown(),
            disturbed: evaluation.latency.disturbed,
            verdict: evaluation.verdict(),
        })
    }
}

impl Summary {
    /// Reads both evaluations.
    pub(crate) fn read(baseline: &Path, latency_aware: &Path, report: &Path) -> Result<Self> {
        let (baseline, latency_aware) = (Row::read(baseline)?, Row::read(latency_aware)?);
        let ratio = latency_aware.latency_median_millis / baseline.latency_median_millis;
        let costs = [&latency_aware, &baseline].map(|row| row.verdict.measured_millis);
        Ok(Self {
            latency_reduction: 1.0 - ratio,
            cost_reduction: 1.0 - costs[0] / costs[1],
            baseline,
            latency_aware,
            report: report.to_owned(),
        })
    }
}

/// One network by itself; field names are a contract of `--json`.
#[derive(Serialize)]
#[serde(transparent)]
pub(crate) struct Network(Row);

impl Network {
    /// Reads its evaluation.
    pub(crate) fn read(evaluation: &Path) -> Result<Self> {
        Row::read(evaluation).map(Self)
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(row) = self;
        write_table(f, &[("given", row)])?;
        writeln!(f)?;
        if let (Some(n), Some(error)) = (row.n_test, row.accuracy_error) {
            writeln!(
                f,
                "one seed: {} test images alone give the accuracy a standard error of {:.1} points",
                thousands(n),
                100.0 * error
            )?;
        }
        row.write_verdict(f)?;
        row.write_notes(f, "given")?;
        writeln!(
            f,
            "the network: {}",
            row.evaluation.join("model.onnx").display()
        )
    }
}

impl Row {
    /// Whether the target is met and the prediction right, where that can be told.
    fn write_verdict(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verdict = &self.verdict;
        let (metric, unit) = (verdict.metric, verdict.metric.unit());
        if let (Some(word), Some(target)) = (verdict.word(), verdict.target_millis) {
            writeln!(
                f,
                "{word}: measured {:.3} {unit}, target {target:.3} {unit} ({:.1} % of it)",
                verdict.measured_millis,
                100.0 * verdict.measured_millis / target
            )?;
        }
        if let (Some([low, high]), Some(false)) = (verdict.interval_millis, verdict.is_in_interval)
        {
            writeln!(
                f,
                "the measured {metric} is outside of what was predicted, {low:.3} to {high:.3} {unit}"
            )?;
        }
        Ok(())
    }

    /// What there is to know of its timing.
    fn write_notes(&self, f: &mut fmt::Formatter<'_>, name: &str) -> fmt::Result {
        if let Some(ratio) = self.slowdown {
            writeln!(
                f,
                "while the {name} network was timed the machine took {ratio:.2} times as long as when it was profiled, which is divided \
                 out: as it was, {:.3} ms",
                ratio * self.latency_median_millis
            )?;
        }
        if self.disturbed {
            writeln!(
                f,
                "the machine was restless while the {name} network was timed: its latency is uncertain"
            )?;
        }
        Ok(())
    }
}

/// A line of names, and one for each network.
fn write_table(f: &mut fmt::Formatter<'_>, networks: &[(&str, &Row)]) -> fmt::Result {
    let columns = [
        "search",
        "test accuracy",
        "latency (p10 to p90)",
        "predicted",
        "parameters",
        "multiply-adds",
    ];
    let cells = |(name, row): &(&str, &Row)| {
        [
            (*name).to_owned(),
            format!("{:.2} %", 100.0 * row.test_accuracy),
            format!(
                "{:.3} ms ({:.3} to {:.3})",
                row.latency_median_millis, row.latency_p10_millis, row.latency_p90_millis
            ),
            format!(
                "{:.3} {}",
                row.predicted_latency_millis,
                row.verdict.metric.unit()
            ),
            thousands(row.n_params),
            thousands(row.n_macs),
        ]
    };
    let names = [columns.map(str::to_owned)].into_iter();
    let rows: Vec<[String; 6]> = names.chain(networks.iter().map(cells)).collect();
    let width = |column: usize| rows.iter().map(|row| row[column].len()).max().unwrap_or(0);
    for (index, row) in rows.iter().enumerate() {
        for (column, cell) in row.iter().enumerate() {
            let width = width(column);
            if column == 0 {
                write!(f, "{cell:<width$}")?;
            } else {
                write!(f, "   {cell:>width$}")?;
            }
        }
        writeln!(f)?;
        if index == 0 {
            let total: usize = (0..columns.len()).map(width).sum();
            writeln!(f, "{}", "-".repeat(total + 3 * (columns.len() - 1)))?;
        }
    }
    Ok(())
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let both = [
            ("lambda = 0", &self.baseline),
            ("latency-aware", &self.latency_aware),
        ];
        write_table(f, &both)?;
        let verdict = &self.latency_aware.verdict;
        let (metric, unit) = (verdict.metric, verdict.metric.unit());
        let points = 100.0 * (self.latency_aware.test_accuracy - self.baseline.test_accuracy);
        let change = |reduction: f64| match reduction < 0.0 {
            true => format!("{:.1} % higher", -100.0 * reduction),
            false => format!("{:.1} % lower", 100.0 * reduction),
        };
        write!(f, "\nmeasured latency {}", change(self.latency_reduction))?;
        if metric != Metric::Latency {
            let reduction = change(self.cost_reduction);
            let measured =
                [&self.baseline, &self.latency_aware].map(|row| row.verdict.measured_millis);
            let [before, own] = measured;
            write!(
                f,
                ", {metric} {reduction} ({own:.3} {unit} instead of {before:.3})"
            )?;
        }
        writeln!(
            f,
            ", test accuracy {points:+.2} percentage points (seed {})",
            self.latency_aware.seed
        )?;
        if self.latency_aware.genotype == self.baseline.genotype {
            writeln!(
                f,
                "both searches found the same cells: what differs is noise of the timing"
            )?;
        } else if let (Some(n), [Some(own), Some(other)]) = (
            self.latency_aware.n_test,
            [&self.latency_aware, &self.baseline].map(|row| row.accuracy_error),
        ) {
            writeln!(
                f,
                "one seed: {} test images alone give the difference a standard error of up to {:.1} points; several seeds: cargo xtask compare --seeds 3",
                thousands(n),
                100.0 * own.hypot(other)
            )?;
        }
        self.latency_aware.write_verdict(f)?;
        for (name, row) in both {
            row.write_notes(f, name)?;
        }
        let found = &self.latency_aware.evaluation;
        writeln!(
            f,
            "the latency-aware network: {}",
            found.join("model.onnx").display()
        )?;
        writeln!(f, "report: {}", self.report.display())
    }
}

/// 1234567 as 1,234,567.
fn thousands(n: u64) -> String {
    let digits = n.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::thousands;

    #[test]
    fn thousands_are_separated() {
        assert_eq!(thousands(7), "7");
        assert_eq!(thousands(1234), "1,234");
        assert_eq!(thousands(1_930_618), "1,930,618");
    }
}
