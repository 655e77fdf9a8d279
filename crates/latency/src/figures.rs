//! How well a model does: errors, ranks, the noise floor.

/// How predictions compare with measurements.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Figures {
    /// Pairs that were compared.
    pub n: usize,
    /// The mean of |predicted - measured|, in milliseconds.
    pub mae_millis: f64,
    /// The root of the mean of (predicted - measured)², in milliseconds.
    pub rmse_millis: f64,
    /// The mean of |predicted - measured| / measured, a ratio.
    pub mape: f64,
    /// The median of |predicted - measured| / measured, a ratio.
    pub median_ape: f64,
    /// The ratio of pairs with |predicted - measured| ≤ 5 % of measured.
    pub within_5_percent: f64,
    /// The ratio of pairs with |predicted - measured| ≤ 10 % of measured.
    pub within_10_percent: f64,
    /// Spearman's rank correlation, ties at their mean rank. 0 where one side is constant.
    pub spearman: f64,
    /// Kendall's tau-b. 0 where one side is constant.
    pub kendall: f64,
    /// How much slower the architecture is that is predicted to be the fastest than the truly fastest, over
    /// the latter.
    pub regret: f64,
}

/// The mean of |predicted - measured| / measured.
pub fn mape(predicted: &[f64], measured: &[f64]) -> f64 {
    let errors = predicted.iter().zip(measured);
    errors.map(|(p, m)| (p - m).abs() / m).sum::<f64>() / measured.len() as f64
}

impl Figures {
    /// Compares predictions with measurements, in milliseconds.
    ///
    /// # Panics
    /// If there are none, or not as many of one as of the other.
    pub fn compute(predicted: &[f64], measured: &[f64]) -> Self {
        let n = predicted.len();
        assert_eq!(n, measured.len(), "one measurement per prediction");
        assert!(n > 0, "figures need at least one pair");

        let mean = |of: &dyn Fn(f64, f64) -> f64| {
            predicted
                .iter()
                .zip(measured)
                .map(|(&p, &m)| of(p, m))
                .sum::<f64>()
                / n as f64
        };
        let ape = |p: f64, m: f64| (p - m).abs() / m;
        let mut apes: Vec<f64> = predicted
            .iter()
            .zip(measured)
            .map(|(&p, &m)| ape(p, m))
            .collect();
        apes.sort_by(f64::total_cmp);
        Self {
            n,
            mae_millis: mean(&|p, m| (p - m).abs()),
            rmse_millis: mean(&|p, m| (p - m).powi(2)).sqrt(),
            mape: mape(predicted, measured),
            median_ape: (apes[(n - 1) / 2] + apes[n / 2]) / 2.0,
            within_5_percent: mean(&|p, m| f64::from(u8::from(ape(p, m) <= 0.05))),
            within_10_percent: mean(&|p, m| f64::from(u8::from(ape(p, m) <= 0.1))),
            spearman: pearson(&ranks(predicted), &ranks(measured)),
            kendall: kendall(predicted, measured),
            regret: regret(predicted, measured),
        }
    }
}

fn regret(predicted: &[f64], measured: &[f64]) -> f64 {
    let pairs = predicted.iter().zip(measured);
    let (_, chosen) = pairs
        .min_by(|a, b| a.0.total_cmp(b.0))
        .expect("at least one pair");
    let fastest = measured.iter().copied().fold(f64::INFINITY, f64::min);
    chosen / fastest - 1.0
}

/// The rank of each value from 0, equal values at the mean of their ranks.
fn ranks(values: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|&a, &b| values[a].total_cmp(&values[b]));
    let mut ranks = vec![0.0; values.len()];
    let mut first = 0;
    for equal in order.chunk_by(|&a, &b| values[a] == values[b]) {
        let rank = first as f64 + (equal.len() - 1) as f64 / 2.0;
        equal.iter().for_each(|&index| ranks[index] = rank);
        first += equal.len();
    }
    ranks
}

fn pearson(a: &[f64], b: &[f64]) -> f64 {
    let n = a.len() as f64;
    let (mean_a, mean_b) = (a.iter().sum::<f64>() / n, b.iter().sum::<f64>() / n);
    let [mut aa, mut bb, mut ab] = [0.0; 3];
    for (a, b) in a.iter().zip(b) {
        let (a, b) = (a - mean_a, b - mean_b);
        aa += a * a;
        bb += b * b;
        ab += a * b;
    }
    ratio(ab, aa, bb)
}

/// Tau-b: (concordant - discordant) / √((pairs untied in a) (pairs untied in b)).
fn kendall(a: &[f64], b: &[f64]) -> f64 {
    let [mut balance, mut untied_a, mut untied_b] = [0i64; 3];
    for i in 0..a.len() {
        for j in 0..i {
            let sign_a = i64::from(a[i] > a[j]) - i64::from(a[i] < a[j]);
            let sign_b = i64::from(b[i] > b[j]) - i64::from(b[i] < b[j]);
            balance += sign_a * sign_b;
            untied_a += sign_a.abs();
            untied_b += sign_b.abs();
        }
    }
    ratio(balance as f64, untied_a as f64, untied_b as f64)
}

/// `ab` / √(`aa` · `bb`), 0 where there is no variation to relate.
fn ratio(ab: f64, aa: f64, bb: f64) -> f64 {
    if aa > 0.0 && bb > 0.0 {
        ab / (aa.sqrt() * bb.sqrt())
    } else {
        0.0
    }
}

/// The MAPE of a perfect model against one measurement, a ratio, from things measured twice: the mean
/// of |a - b| / ((a + b) / 2), over √2, because the difference of two measurements is √2 as noisy as one.
///
/// 0 without pairs.
pub fn noise_floor_mape(pairs: &[(f64, f64)]) -> f64 {
    if pairs.is_empty() {
        return 0.0;
    }
    let sum: f64 = pairs
        .iter()
        .map(|(a, b)| (a - b).abs() / ((a + b) / 2.0))
        .sum();
    sum / pairs.len() as f64 / std::f64::consts::SQRT_2
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn close(a: f64, b: f64) -> bool {
        (a - b).abs() < 1e-12
    }

    #[test]
    fn errors_of_four_pairs_by_hand() {
        let figures = Figures::compute(&[10.5, 18.0, 40.0, 56.0], &[10.0, 20.0, 40.0, 50.0]);
        assert_eq!(figures.n, 4);
        assert!(close(figures.mae_millis, 8.5 / 4.0));
        assert!(close(figures.rmse_millis, (40.25f64 / 4.0).sqrt()));
        assert!(close(figures.mape, (0.05 + 0.1 + 0.0 + 0.12) / 4.0));
        assert!(close(figures.median_ape, 0.075));
        assert_eq!(figures.within_5_percent, 0.5);
        assert_eq!(figures.within_10_percent, 0.75);
        assert!(close(figures.spearman, 1.0));
        assert!(close(figures.kendall, 1.0));
    }

    #[test]
    fn ranks_with_ties_by_hand() {
        let (a, b) = ([1.0, 2.0, 2.0, 3.0], [1.0, 3.0, 2.0, 3.0]);
        assert_eq!(ranks(&a), [0.0, 1.5, 1.5, 3.0]);
        assert_eq!(ranks(&b), [0.0, 2.5, 1.0, 2.5]);
        // Of six pairs four agree, one is tied in a, another in b.
        assert!(close(kendall(&a, &b), 4.0 / 5.0));
        assert!(close(pearson(&ranks(&a), &ranks(&b)), 3.75 / 4.5));
    }

    #[test]
    fn a_constant_model_ranks_nothing() {
        let figures = Figures::compute(&[3.0, 3.0, 3.0], &[1.0, 2.0, 3.0]);
        assert_eq!((figures.spearman, figures.kendall), (0.0, 0.0));
        let one = Figures::compute(&[3.0], &[4.0]);
        assert_eq!((one.mape, one.median_ape, one.spearman), (0.25, 0.25, 0.0));
    }

    #[test]
    fn the_noise_floor_by_hand() {
        let floor = noise_floor_mape(&[(9.0, 11.0), (5.0, 5.0)]);
        assert!(close(floor, 0.1 / std::f64::consts::SQRT_2));
        assert_eq!(noise_floor_mape(&[]), 0.0);
    }

    proptest! {
        #[test]
        fn ranks_do_not_change_with_a_rising_function(
            values in prop::collection::vec((0u32..20, 1u32..20), 2..40)
        ) {
            let predicted: Vec<f64> = values.iter().map(|&(p, _)| f64::from(p)).collect();
            let measured: Vec<f64> = values.iter().map(|&(_, m)| f64::from(m)).collect();
            let before = Figures::compute(&predicted, &measured);

            let cubed: Vec<f64> = predicted.iter().map(|p| p.powi(3) + 1.0).collect();
            let after = Figures::compute(&cubed, &measured);
            prop_assert_eq!(after.spearman, before.spearman);
            prop_assert_eq!(after.kendall, before.kendall);

            let negative: Vec<f64> = predicted.iter().map(|p| -p).collect();
            let reversed = Figures::compute(&negative, &measured);
            prop_assert!(close(reversed.spearman, -before.spearman));
            prop_assert!(close(reversed.kendall, -before.kendall));
        }
    }
}
