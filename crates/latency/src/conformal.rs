//! How far from a prediction the truth lies, read off architectures that the model has not seen.
//!
//! Split conformal prediction (Vovk, Gammerman and Shafer 2005; Lei et al. 2018) on ratios: the *score* of a
//! held-out architecture is ln(measured / predicted) / spread, where the spread is whatever the model says of
//! its own doubt, in units of relative error (1 everywhere for a model that says nothing). If the next
//! architecture is drawn like the held-out ones, its score falls into each of the n + 1 gaps between
//! theirs with the same probability, whatever the model and the law of the errors. So the bounds hold at the wanted
//! rate on average; they promise nothing about one region of the space, nor about architectures that
//! are drawn otherwise, such as the ones that a search prefers.

use crate::model::FitError;

/// The scores of held-out architectures.
#[derive(Clone, Debug, PartialEq)]
pub struct Conformal {
    /// ln(measured / predicted) / spread, ascending.
    scores: Vec<f64>,
    /// Their magnitudes, ascending.
    magnitudes: Vec<f64>,
}

impl Conformal {
    /// Reads the scores off held-out architectures: what a model predicts of each, its spread (positive, relative), and
    /// what was measured, predicted and measured in the same unit.
    ///
    /// # Errors
    /// If there are no architectures, if the slices differ in length, or if a number is not positive and finite.
    pub fn fit(predicted: &[f64], spread: &[f64], measured: &[f64]) -> Result<Self, FitError> {
        let n = measured.len();
        if predicted.len() != n || spread.len() != n {
            return Err(FitError::Unpaired {
                codes: predicted.len().min(spread.len()),
                millis: n,
            });
        }
        if n == 0 {
            return Err(FitError::TooFew {
                needed: 1,
                found: 0,
            });
        }
        let positive = |value: f64| value > 0.0 && value.is_finite();
        let mut scores = Vec::with_capacity(n);
        for (index, &measured) in measured.iter().enumerate() {
            for (name, value) in [
                ("a held-out prediction", predicted[index]),
                ("the spread of a held-out prediction", spread[index]),
            ] {
                if !positive(value) {
                    return Err(FitError::Setting {
                        name,
                        value,
                        expected: "positive and finite",
                    });
                }
            }
            if !positive(measured) {
                return Err(FitError::Latency {
                    index,
                    millis: measured,
                });
            }
            scores.push((measured / predicted[index]).ln() / spread[index]);
        }
        let mut magnitudes: Vec<f64> = scores.iter().map(|score| score.abs()).collect();
        scores.sort_by(f64::total_cmp);
        magnitudes.sort_by(f64::total_cmp);
        Ok(Self { scores, magnitudes })
    }

    /// The latency that an architecture does not exceed with that probability, in the unit of the prediction.
    ///
    /// Infinite where the held-out architectures are too few to tell: with n of them above
    /// n / (n + 1).
    pub fn upper(&self, predicted: f64, spread: f64, probability: f64) -> f64 {
        predicted * (spread * quantile(&self.scores, probability)).exp()
    }

    /// The latencies between which an architecture lies with that probability, as far below the prediction as above, as
    /// ratios. From 0 to infinity where the held-out architectures are too few to tell.
    pub fn interval(&self, predicted: f64, spread: f64, probability: f64) -> (f64, f64) {
        let factor = (spread * quantile(&self.magnitudes, probability)).exp();
        (predicted / factor, predicted * factor)
    }

    /// The largest probability with which anything is promised: n / (n + 1) with n held-out architectures.
    pub fn most(&self) -> f64 {
        let n = self.scores.len() as f64;
        n / (n + 1.0)
    }

    /// The probability that an architecture takes no longer than the target, between 1 / (n + 1) and n / (n + 1).
    ///
    /// Between the scores it is interpolated, so it grows with the target and has a slope to climb; with
    /// targets inside the range of the scores, [`upper`](Self::upper) errs on the safe side of it.
    pub fn probability_below(&self, predicted: f64, spread: f64, target: f64) -> f64 {
        let n = self.scores.len();
        if target <= 0.0 {
            return 1.0 / (n as f64 + 1.0);
        }
        let score = (target / predicted).ln() / spread;
        let n_below = self.scores.partition_point(|&other| other <= score);
        let fraction = match (n_below.checked_sub(1), self.scores.get(n_below)) {
            (Some(below), Some(&above)) => {
                let below = self.scores[below];
                (score - below) / (above - below)
            }
            _ => 0.0,
        };
        ((n_below as f64 + fraction) / (n as f64 + 1.0)).max(1.0 / (n as f64 + 1.0))
    }
}

/// The ⌈p (n + 1)⌉-th smallest of n values: the next one drawn like them is no larger with probability p or more.
/// Infinite if there is no such value; negative infinity for p = 0.
fn quantile(sorted: &[f64], probability: f64) -> f64 {
    assert!(
        (0.0..=1.0).contains(&probability),
        "{probability} is no probability"
    );
    // Without the small number 0.9 · 10 would round up to the 10th.
    let rank = (probability * (sorted.len() as f64 + 1.0) - 1e-9).ceil() as usize;
    match rank.checked_sub(1) {
        None => f64::NEG_INFINITY,
        Some(index) => sorted.get(index).copied().unwrap_or(f64::INFINITY),
    }
}

#[cfg(test)]
mod tests {
    use rand::{RngExt, SeedableRng};
    use rand_chacha::ChaCha8Rng;
    use rand_distr::{Distribution, StandardNormal};

    use super::*;

    /// Predictions, spreads and measurements whose relative error is lopsided, biased, and in
    /// proportion to the spread.
    fn draw(n: usize, rng: &mut ChaCha8Rng) -> [Vec<f64>; 3] {
        let mut columns = [vec![], vec![], vec![]];
        for _ in 0..n {
            let predicted = rng.random_range(1.0..20.0);
            let spread = rng.random_range(0.01..0.1);
            let normal: f64 = StandardNormal.sample(rng);
            let error = 0.4 + normal + 0.3 * normal * normal;
            columns[0].push(predicted);
            columns[1].push(spread);
            columns[2].push(predicted * f64::exp(spread * error));
        }
        columns
    }

    /// The mean over many calibrations of the ratio of fresh draws for which the claim holds.
    fn rate(n_held_out: usize, holds: impl Fn(&Conformal, f64, f64, f64) -> bool) -> f64 {
        let mut rng = ChaCha8Rng::seed_from_u64(4);
        let (mut n_held, mut n) = (0, 0);
        for _ in 0..300 {
            let [predicted, spread, measured] = draw(n_held_out, &mut rng);
            let conformal = Conformal::fit(&predicted, &spread, &measured).unwrap();
            let [predicted, spread, measured] = draw(100, &mut rng);
            for index in 0..100 {
                let (p, s, m) = (predicted[index], spread[index], measured[index]);
                n_held += usize::from(holds(&conformal, p, s, m));
                n += 1;
            }
        }
        n_held as f64 / n as f64
    }

    #[test]
    fn bounds_hold_as_often_as_they_say() {
        for probability in [0.5, 0.8, 0.9] {
            let upper = rate(99, |c, p, s, m| m <= c.upper(p, s, probability));
            assert!((upper - probability).abs() < 0.01, "{probability}: {upper}");
            let interval = rate(99, |c, p, s, m| {
                let (low, high) = c.interval(p, s, probability);
                low <= m && m <= high
            });
            assert!(
                (interval - probability).abs() < 0.01,
                "{probability}: {interval}"
            );
        }
    }

    #[test]
    fn a_stated_probability_comes_true() {
        // Of the targets that are said to be met with 70 to 80 %, 70 to 80 % are met.
        let mut rng = ChaCha8Rng::seed_from_u64(9);
        let [predicted, spread, measured] = draw(400, &mut rng);
        let conformal = Conformal::fit(&predicted, &spread, &measured).unwrap();
        let (mut n_met, mut n) = (0, 0);
        let [predicted, spread, measured] = draw(20_000, &mut rng);
        for index in 0..measured.len() {
            let target = predicted[index] * rng.random_range(0.8..1.4);
            let p = conformal.probability_below(predicted[index], spread[index], target);
            if (0.7..0.8).contains(&p) {
                n_met += usize::from(measured[index] <= target);
                n += 1;
            }
        }
        let rate = f64::from(u32::try_from(n_met).unwrap()) / f64::from(n);
        assert!((0.68..0.82).contains(&rate), "{rate} of {n}");
    }

    #[test]
    fn four_scores_by_hand() {
        // Errors of e^-0.2, e^0.1, e^0.2, e^0.3.
        let measured = [-0.2f64, 0.1, 0.2, 0.3].map(|error| 10.0 * error.exp());
        let conformal = Conformal::fit(&[10.0; 4], &[1.0; 4], &measured).unwrap();
        let close = |a: f64, b: f64| assert!((a - b).abs() < 1e-9, "{a} is not {b}");
        close(conformal.upper(10.0, 1.0, 0.6), measured[2]);
        close(conformal.upper(10.0, 1.0, 0.61), measured[3]);
        close(conformal.upper(20.0, 0.5, 0.8), 20.0 * 0.15f64.exp());
        assert_eq!(conformal.upper(10.0, 1.0, 0.9), f64::INFINITY);
        let (low, high) = conformal.interval(10.0, 1.0, 0.8);
        close(low, 10.0 * (-0.3f64).exp());
        close(high, 10.0 * 0.3f64.exp());
        assert_eq!(conformal.interval(10.0, 1.0, 0.9), (0.0, f64::INFINITY));

        let below = |score: f64| conformal.probability_below(10.0, 1.0, 10.0 * score.exp());
        close(below(0.1), 0.4);
        close(below(0.15), 0.5);
        close(below(-5.0), 0.2);
        close(below(5.0), 0.8);
        close(conformal.probability_below(10.0, 1.0, 0.0), 0.2);
    }

    #[test]
    fn what_cannot_be_calibrated_is_refused() {
        let refusal = |predicted: &[f64], spread: &[f64], measured: &[f64]| {
            Conformal::fit(predicted, spread, measured)
                .unwrap_err()
                .to_string()
        };
        assert_eq!(
            refusal(&[], &[], &[]),
            "the fit needs at least 1 architectures, there are 0; profile more"
        );
        assert_eq!(
            refusal(&[1.0], &[1.0], &[1.0, 2.0]),
            "there are 1 codes for 2 latencies"
        );
        assert_eq!(
            refusal(&[-1.0], &[1.0], &[1.0]),
            "a held-out prediction is -1; it must be positive and finite"
        );
        assert_eq!(
            refusal(&[1.0], &[0.0], &[1.0]),
            "the spread of a held-out prediction is 0; it must be positive and finite"
        );
        assert_eq!(
            refusal(&[1.0], &[1.0], &[f64::NAN]),
            "the latency of architecture 0 is NaN ms; it must be positive and finite"
        );
    }
}
