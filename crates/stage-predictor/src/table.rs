//! The figures for people.

use std::fmt;

use artifact::stage::RunContext;
use artifact::{LatencyModelArtifact, ModelCard, Validation};

/// Tells how well a model does, and passes it on.
pub(crate) fn tell(
    context: &RunContext,
    model: LatencyModelArtifact,
    n_disturbed: usize,
    n_pairs: usize,
) -> LatencyModelArtifact {
    let table = Table {
        card: &model.card,
        validation: &model.validation,
        n_disturbed,
        n_pairs,
    };
    context.progress.line(&table.to_string());
    model
}

struct Table<'a> {
    card: &'a ModelCard,
    validation: &'a Validation,
    n_disturbed: usize,
    /// Architectures that were timed twice.
    n_pairs: usize,
}

impl fmt::Display for Table<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ModelCard {
            n_train,
            n_test,
            reference_millis,
            chosen,
            metric,
            ..
        } = self.card;
        writeln!(
            f,
            "{metric} model of {n_train} architectures (median {reference_millis:.3} {}), \
             judged by {n_test} held out; {} disturbed left out",
            metric.unit(),
            self.n_disturbed
        )?;
        writeln!(
            f,
            "{:11} {:>9} {:>8} {:>8} {:>8} {:>9} {:>8} {:>8} {:>8}",
            "",
            format!("MAE {}", metric.unit()),
            "MAPE",
            "±5 %",
            "±10 %",
            "Spearman",
            "Kendall",
            "left out",
            "in 90 %"
        )?;
        let percent = |ratio: f64| format!("{:.2} %", 100.0 * ratio);
        for (name, figures) in &self.validation.models {
            writeln!(
                f,
                "{:11} {:9.4} {:>8} {:>8} {:>8} {:9.4} {:8.4} {:>8} {:>8}{}",
                name,
                figures.mae_millis,
                percent(figures.mape),
                percent(figures.within_5_percent),
                percent(figures.within_10_percent),
                figures.spearman,
                figures.kendall,
                figures.left_out_mape.map_or(String::new(), percent),
                figures.coverage_90.map_or(String::new(), percent),
                if name == chosen { "  ← chosen" } else { "" },
            )?;
        }
        writeln!(f, "{chosen}: {}", self.card.reason)?;
        match self.validation.noise_floor_mape {
            Some(floor) => {
                write!(f, "{:11} {:9} {:>8}  ", "noise floor", "", percent(floor))?;
                write!(f, "({} architectures timed twice)", self.n_pairs)
            }
            None => write!(f, "noise floor unknown: no architecture was timed twice"),
        }
    }
}
