//! What changes over the epochs.

use std::f64::consts::PI;

/// A learning rate over epochs.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Schedule {
    /// Half a cosine from `initial` at epoch 0 to `last` at epoch `n_epochs` (which is never reached).
    Cosine {
        /// The first epoch's rate.
        initial: f64,
        /// The rate that the curve ends at.
        last: f64,
    },
    /// A straight line from `initial` to 0.
    Linear {
        /// The first epoch's rate.
        initial: f64,
    },
    /// Multiplied by `factor` after every epoch.
    Exponential {
        /// The first epoch's rate.
        initial: f64,
        /// The factor per epoch.
        factor: f64,
    },
}

impl Schedule {
    /// The learning rate after so many epochs: whole ones where the rate changes between epochs alone, else the epoch
    /// and the share of its steps that are done. In the first `n_warmup` epochs the rate climbs along a line to
    /// the initial one, and the schedule counts its epochs from there.
    pub fn learning_rate(self, epoch: f64, n_epochs: usize, n_warmup: usize) -> f64 {
        let (Self::Cosine { initial, .. }
        | Self::Linear { initial }
        | Self::Exponential { initial, .. }) = self;
        if epoch < n_warmup as f64 {
            return initial * (epoch + 1.0) / (n_warmup + 1) as f64;
        }
        let done = epoch - n_warmup as f64;
        let progress = done / (n_epochs - n_warmup).max(1) as f64;
        match self {
            Self::Cosine { last, .. } => {
                last + (initial - last) * 0.5 * (1.0 + (PI * progress).cos())
            }
            Self::Linear { .. } => initial * (1.0 - progress),
            Self::Exponential { factor, .. } => initial * factor.powf(done),
        }
    }
}

/// The drop-path probability of an epoch: it grows linearly, `last` * epoch / n_epochs.
pub fn drop_path_probability(last: f64, epoch: usize, n_epochs: usize) -> f64 {
    last * epoch as f64 / n_epochs as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cosine_starts_at_the_initial_rate_and_passes_half_way() {
        let schedule = Schedule::Cosine {
            initial: 0.025,
            last: 0.001,
        };
        assert_eq!(schedule.learning_rate(0.0, 50, 0), 0.025);
        assert!((schedule.learning_rate(25.0, 50, 0) - 0.013).abs() < 1e-12);
        // PyTorch's CosineAnnealingLR(T_max = 50, eta_min = 0.001) at epoch 49.
        assert!((schedule.learning_rate(49.0, 50, 0) - 0.00102367).abs() < 1e-8);
    }

    #[test]
    fn warm_up_climbs_to_the_initial_rate() {
        let schedule = Schedule::Linear { initial: 0.5 };
        let rate = |epoch: u32| schedule.learning_rate(epoch.into(), 105, 5);
        let rates: Vec<f64> = (0..7).map(rate).collect();
        assert!(rates.windows(2).take(5).all(|pair| pair[0] < pair[1]));
        assert_eq!(rates[5], 0.5);
        assert!((rates[6] - 0.495).abs() < 1e-12);
    }

    #[test]
    fn by_steps_the_rate_falls_to_the_last_one_within_an_epoch() {
        let schedule = Schedule::Cosine {
            initial: 0.1,
            last: 0.001,
        };
        let rate = |step: u32| schedule.learning_rate(f64::from(step) / 100.0, 1, 0);
        assert_eq!(rate(0), 0.1);
        assert!((rate(50) - 0.0505).abs() < 1e-12);
        assert!((rate(99) - 0.001) < 3e-5 && rate(99) > 0.001);
    }

    #[test]
    fn exponential_multiplies_every_epoch() {
        let schedule = Schedule::Exponential {
            initial: 0.1,
            factor: 0.97,
        };
        assert!((schedule.learning_rate(3.0, 250, 0) - 0.1 * 0.97f64.powi(3)).abs() < 1e-15);
    }

    #[test]
    fn drop_path_grows_from_zero() {
        assert_eq!(drop_path_probability(0.3, 0, 600), 0.0);
        assert!((drop_path_probability(0.3, 300, 600) - 0.15).abs() < 1e-15);
    }
}
