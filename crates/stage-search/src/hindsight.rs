//! What whole trainings came to, and how much of it could be known before.

use artifact::{Evaluation, Opened};
use latency::Figures;
use serde_json::Value;

use crate::error::Error;
use crate::surrogate::Surrogate;

/// Evaluations that tell anything at least.
const MIN_EVALUATIONS: usize = 8;

/// Test accuracies of networks that were trained alike, beside their latencies and what a surrogate expected.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Hindsight {
    /// Evaluations that it is of.
    pub n_evaluations: usize,
    /// Of ranks, between what the surrogate expects (a loss) and test accuracies: below 0 if it foretells them.
    pub correlation: f64,
    /// The same of what is left of both when what goes with ln(predicted latency) is taken out, by least squares.
    pub at_equal_latency: f64,
    /// By what the test accuracy rises, a ratio, where the latency is e times as long and as much is expected; and the standard
    /// error of that. Both by least squares on ln(predicted latency) and what is expected.
    pub accuracy_per_fold: [f64; 2],
}

impl Hindsight {
    /// Of evaluations.
    ///
    /// # Errors
    /// If there are too few, or if two of them are not of one training: of other images, in another network, with other settings.
    /// Only seeds may differ, and how networks are timed.
    pub fn new(surrogate: &Surrogate, evaluations: &[Opened<Evaluation>]) -> Result<Self, Error> {
        if evaluations.len() < MIN_EVALUATIONS {
            return Err(Error::TooFewEvaluations {
                found: evaluations.len(),
                needed: MIN_EVALUATIONS,
            });
        }
        let (first, others) = evaluations.split_first().expect("there are some");
        for other in others {
            if let Some(differs) = differs([first, other]) {
                return Err(Error::OtherTraining {
                    dirs: [first, other].map(|own| own.dir.clone()),
                    differs,
                });
            }
        }
        let of = |number: &dyn Fn(&Evaluation) -> f64| -> Vec<f64> {
            evaluations.iter().map(|own| number(&own.value)).collect()
        };
        let accuracies = of(&|own| own.test_accuracy);
        let latencies = of(&|own| own.search.predicted_latency_millis.ln());
        let expected = of(&|own| surrogate.score(&own.genotype));
        let [rest_of_expected, rest_of_accuracies] =
            [&expected, &accuracies].map(|y| rest(&latencies, y));
        let spearman = |x: &[f64], y: &[f64]| Figures::compute(x, y).spearman;
        // What is left where as much is expected: of two regressors, the slope of one is that of such rests (Frisch & Waugh 1933).
        let [latencies_alone, accuracies_alone] =
            [&latencies, &accuracies].map(|y| rest(&expected, y));
        let square = |values: &[f64]| values.iter().map(|value| value * value).sum::<f64>();
        let errors = square(&rest(&latencies_alone, &accuracies_alone));
        let error = (errors / (evaluations.len() - 3) as f64 / square(&latencies_alone)).sqrt();
        Ok(Self {
            n_evaluations: evaluations.len(),
            correlation: spearman(&expected, &accuracies),
            at_equal_latency: spearman(&rest_of_expected, &rest_of_accuracies),
            accuracy_per_fold: [slope(&latencies_alone, &accuracies_alone), error],
        })
    }

    /// What `ratio` of a latency costs, in points of accuracy, and the standard error.
    pub fn points_for(&self, ratio: f64) -> [f64; 2] {
        let folds = -ratio.ln();
        let [cost, error] = self.accuracy_per_fold;
        [100.0 * cost * folds, 100.0 * error * folds.abs()]
    }
}

/// What differs between two evaluations that should be of one training.
fn differs(both: [&Opened<Evaluation>; 2]) -> Option<String> {
    let [one, other] = both.map(|own| &own.manifest.key_parts);
    if one.inputs.get("images") != other.inputs.get("images") {
        return Some("images".to_owned());
    }
    if both[0].value.search.metric != both[1].value.search.metric {
        return Some("the metric of their searches".to_owned());
    }
    let settings = |config: &Value| {
        let mut config = config.as_object().cloned().unwrap_or_default();
        config.retain(|key, _| !["seed", "timing"].contains(&key.as_str()));
        // Where the images lay does not matter.
        if let Some(Value::Object(data)) = config.get_mut("data") {
            data.remove("dir");
        }
        config
    };
    let [one, other] = [one, other].map(|parts| settings(&parts.config));
    let keys = one.keys().chain(other.keys());
    let mut keys = keys.filter(|key| one.get(*key) != other.get(*key));
    keys.next().cloned()
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

/// By what `y` rises with `x`, by least squares; 0 where all `x` are one.
fn slope(x: &[f64], y: &[f64]) -> f64 {
    let (mean_x, mean_y) = (mean(x), mean(y));
    let pairs = || {
        x.iter()
            .map(|x| x - mean_x)
            .zip(y.iter().map(|y| y - mean_y))
    };
    let squares: f64 = pairs().map(|(x, _)| x * x).sum();
    let products: f64 = pairs().map(|(x, y)| x * y).sum();
    if squares > 0.0 {
        products / squares
    } else {
        0.0
    }
}

/// What is left of `y` when its mean and what goes with `x` are taken out.
fn rest(x: &[f64], y: &[f64]) -> Vec<f64> {
    let (slope, mean_x, mean_y) = (slope(x, y), mean(x), mean(y));
    let rests = x.iter().zip(y);
    rests
        .map(|(x, y)| y - mean_y - slope * (x - mean_x))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_goes_with_latency_is_taken_out() {
        let x = [0.0, 1.0, 2.0, 3.0];
        let y = [1.0, 3.5, 4.5, 7.0];
        assert!((slope(&x, &y) - 1.9).abs() < 1e-12);
        assert!(slope(&x, &rest(&x, &y)).abs() < 1e-12);
        assert_eq!(slope(&[2.0; 4], &y), 0.0);
        let found = Hindsight {
            n_evaluations: 8,
            correlation: 0.0,
            at_equal_latency: 0.0,
            accuracy_per_fold: [0.0158, 0.002],
        };
        let [cost, error] = found.points_for(0.7);
        assert!((cost - 0.5636).abs() < 1e-3 && (error - 0.0713).abs() < 1e-3);
    }
}
