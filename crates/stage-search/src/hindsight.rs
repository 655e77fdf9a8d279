//! What whole trainings came to, and how much of it could be known before.

use artifact::{Evaluation, KeyParts, Metric, Opened};
use latency::Figures;
use serde_json::Value;

use crate::error::Error;
use crate::surrogate::{Surrogate, given_twice};

/// Evaluations that tell anything at least.
const MIN_EVALUATIONS: usize = 8;

/// Test accuracies of networks that were trained alike, beside their predicted latencies and what a surrogate expected of them. Where the
/// searches kept another metric low, that stands wherever latency is said.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Hindsight {
    /// Evaluations that it is of.
    pub n_evaluations: usize,
    /// What the predictions are of.
    pub metric: Metric,
    /// Spearman's rank correlation of the expected loss with the test accuracy: below 0 where this could be foretold.
    pub correlation: f64,
    /// The same of the residuals of both behind ln(predicted latency).
    pub at_equal_latency: f64,
    /// By what the test accuracy, a ratio, rises with ln(predicted latency) where the expected loss is the same: a coefficient of the
    /// least squares on both. Evaluations count as independent, also those of one genotype.
    pub accuracy_per_log_latency: Estimate,
}

/// A number that is estimated.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Estimate {
    /// The number.
    pub value: f64,
    /// Its standard error.
    pub standard_error: f64,
}

impl Hindsight {
    /// Of evaluations.
    ///
    /// # Errors
    /// If there are too few, if one is there twice, if two of them are not of one training (other images, another network, other
    /// settings; only seeds may differ, and how networks are timed) or if their predictions are of other timings, and if latencies and
    /// expectations vary too little to tell them apart.
    pub fn new(surrogate: &Surrogate, evaluations: &[Opened<Evaluation>]) -> Result<Self, Error> {
        let n = evaluations.len();
        if n < MIN_EVALUATIONS {
            return Err(Error::NoHindsight {
                reason: format!("{n} evaluations, expected at least {MIN_EVALUATIONS}: give more"),
            });
        }
        if let Some(reason) = given_twice(evaluations) {
            return Err(Error::NoHindsight { reason });
        }
        let first = &evaluations[0];
        for other in &evaluations[1..] {
            if let Some(differs) = differs([first, other]) {
                return Err(Error::NoHindsight {
                    reason: format!(
                        "{} and {} differ in {differs}: give evaluations of one config and one profile",
                        first.dir.display(),
                        other.dir.display()
                    ),
                });
            }
        }
        let mut log_latencies = Vec::with_capacity(n);
        for own in evaluations {
            let predicted = own.value.search.predicted_latency_millis;
            if !(predicted > 0.0 && predicted.is_finite()) {
                return Err(Error::NoHindsight {
                    reason: format!(
                        "{}/evaluation.json: search.predicted_latency_millis is {predicted}, expected a positive number: leave it out",
                        own.dir.display()
                    ),
                });
            }
            log_latencies.push(predicted.ln());
        }
        let of = |number: &dyn Fn(&Evaluation) -> f64| -> Vec<f64> {
            evaluations.iter().map(|own| number(&own.value)).collect()
        };
        let accuracies = of(&|own| own.test_accuracy);
        let expected = of(&|own| surrogate.score(&own.genotype));
        let vary_too_little = || {
            Error::NoHindsight {
            reason: "their predicted latencies, or what is expected of them, vary too little, or one with the other: give evaluations \
                     of more genotypes"
                .to_owned(),
        }
        };
        let at_equal_latency = [&expected, &accuracies].map(|y| residuals(&log_latencies, y));
        let [Some(expected_rest), Some(accuracies_rest)] = &at_equal_latency else {
            return Err(vary_too_little());
        };
        let accuracy_per_log_latency =
            coefficient(&log_latencies, &expected, &accuracies).ok_or_else(vary_too_little)?;
        let spearman = |x: &[f64], y: &[f64]| Figures::compute(x, y).spearman;
        Ok(Self {
            n_evaluations: n,
            metric: first.value.search.metric,
            correlation: spearman(&expected, &accuracies),
            at_equal_latency: spearman(expected_rest, accuracies_rest),
            accuracy_per_log_latency,
        })
    }

    /// What `ratio` of a predicted latency costs, in percentage points of test accuracy: more than 0 if the faster one is worse.
    pub fn points_for(&self, ratio: f64) -> Estimate {
        let Estimate {
            value,
            standard_error,
        } = self.accuracy_per_log_latency;
        Estimate {
            value: -100.0 * value * ratio.ln(),
            standard_error: 100.0 * standard_error * ratio.ln().abs(),
        }
    }
}

/// What differs between two evaluations that should be comparable.
fn differs(both: [&Opened<Evaluation>; 2]) -> Option<String> {
    let [one, other] = both.map(|own| &own.manifest.key_parts);
    if one.inputs.get("images") != other.inputs.get("images") {
        return Some("their images".to_owned());
    }
    if one.revision != other.revision {
        return Some("the revision of evaluate".to_owned());
    }
    let predicted = both.map(|own| {
        let settings = &own.value.settings;
        let anchor = settings.anchor.as_ref();
        let whose = anchor.map(|anchor| (&anchor.machine, anchor.revision));
        let what = (&settings.timing, &settings.device, &settings.runtime);
        (own.value.search.metric, what, whose)
    });
    if predicted[0] != predicted[1] {
        return Some(
            "what their predictions are of: metric, timing, device, machine or revision of profile"
                .to_owned(),
        );
    }
    let config = |parts: &KeyParts| {
        let mut config = parts.counted()["config"].take();
        if let Some(object) = config.as_object_mut() {
            object.retain(|key, _| !["seed", "timing"].contains(&key.as_str()));
        }
        config
    };
    differing_key(&config(one), &config(other))
}

/// The first key, with dots, under which two configs differ.
fn differing_key(one: &Value, other: &Value) -> Option<String> {
    let (Value::Object(a), Value::Object(b)) = (one, other) else {
        return (one != other).then(|| format!("({one} and {other})"));
    };
    a.keys().chain(b.keys()).find_map(|key| {
        let values = [a, b].map(|object| object.get(key).unwrap_or(&Value::Null));
        let inner = differing_key(values[0], values[1])?;
        let dot = if inner.starts_with('(') { " " } else { "." };
        Some(format!("{key}{dot}{inner}"))
    })
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

fn squares(values: &[f64]) -> f64 {
    values.iter().map(|value| value * value).sum()
}

/// The residuals of the least squares of `y` on `x`; `None` where `x` is constant, or `y` follows it, but for rounding.
fn residuals(x: &[f64], y: &[f64]) -> Option<Vec<f64>> {
    const ROUNDING: f64 = 1e-18;
    let [x, y] = [x, y].map(|values| {
        let mean = mean(values);
        let centred: Vec<f64> = values.iter().map(|value| value - mean).collect();
        (squares(&centred) > ROUNDING * mean * mean * values.len() as f64).then_some(centred)
    });
    let (x, y) = (x?, y?);
    let slope = slope(&x, &y);
    let rest: Vec<f64> = x.iter().zip(&y).map(|(x, y)| y - slope * x).collect();
    (squares(&rest) > ROUNDING * squares(&y)).then_some(rest)
}

/// By what `y` rises with `x`, both of mean 0.
fn slope(x: &[f64], y: &[f64]) -> f64 {
    x.iter().zip(y).map(|(x, y)| x * y).sum::<f64>() / squares(x)
}

/// The coefficient of `x` in the least squares of `y` on 1, `x` and `z`: the slope of their residuals behind `z` (Frisch & Waugh 1933).
fn coefficient(x: &[f64], z: &[f64], y: &[f64]) -> Option<Estimate> {
    let (x, y) = (residuals(z, x)?, residuals(z, y)?);
    let value = slope(&x, &y);
    let errors: f64 = x.iter().zip(&y).map(|(x, y)| (y - value * x).powi(2)).sum();
    // One degree of freedom for each of 1, x and z.
    let variance = errors / (x.len() - 3) as f64 / squares(&x);
    Some(Estimate {
        value,
        standard_error: variance.sqrt(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The normal equations by hand: x and z are orthogonal, so each coefficient is a mean of differences, and the residuals of `y` are
    /// (1, -1, -1, 1) / 4 in both halves.
    #[test]
    fn a_coefficient_is_that_of_the_normal_equations() {
        let x = [0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 1.0, 1.0];
        let z = [0.0, 1.0, 0.0, 1.0, 0.0, 1.0, 0.0, 1.0];
        let residual = [0.25, -0.25, -0.25, 0.25, 0.25, -0.25, -0.25, 0.25];
        let numbers = x.iter().zip(&z).zip(&residual);
        let y: Vec<f64> = numbers
            .map(|((x, z), r)| 5.0 + 2.0 * x - 3.0 * z + r)
            .collect();
        let found = coefficient(&x, &z, &y).unwrap();
        assert!((found.value - 2.0).abs() < 1e-12);
        // Σ r² = 1/2 over 8 - 3 degrees of freedom and Σ (x - mean)² = 2.
        assert!((found.standard_error - (0.5f64 / 5.0 / 2.0).sqrt()).abs() < 1e-12);
    }

    #[test]
    fn what_does_not_vary_by_itself_tells_nothing() {
        for n in [10, 11] {
            let x: Vec<f64> = (0..n).map(|i| (0.3 + 0.01 * f64::from(i)).ln()).collect();
            let y: Vec<f64> = (0..n).map(|i| f64::from(i * i % 7)).collect();
            let same = vec![0.4f64.ln(); n as usize];
            let follows: Vec<f64> = x.iter().map(|x| 0.7 - 0.2 * x).collect();
            assert!(coefficient(&x, &y, &follows).is_some());
            assert!(coefficient(&same, &y, &follows).is_none());
            assert!(coefficient(&x, &same, &y).is_none());
            assert!(coefficient(&x, &follows, &y).is_none());
        }
    }

    #[test]
    fn a_differing_key_is_named_with_its_values() {
        let config =
            |rate: f64| serde_json::json!({ "n_epochs": 3, "weights": { "learning_rate": rate } });
        assert_eq!(differing_key(&config(0.1), &config(0.1)), None);
        let says = differing_key(&config(0.1), &config(0.2)).unwrap();
        assert_eq!(says, "weights.learning_rate (0.1 and 0.2)");
    }
}
