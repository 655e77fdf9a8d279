//! What the loss of alpha adds for the latency.

use crate::config::{Config, ObjectiveKind};

/// A term of the loss that depends on the latency alone.
pub(crate) trait Objective {
    /// The term at this latency, and its slope per ms.
    fn term(&self, latency_millis: f64) -> (f64, f64);

    /// Whether [`observe`](Self::observe) does anything: what it learns from has to be read back from the device.
    fn observes(&self) -> bool {
        false
    }

    /// Learns, after a step of alpha, the latency that the derived genotype keeps below.
    fn observe(&mut self, _upper_millis: f64) {}

    /// The factor of the latency in the loss: lambda, or the multiplier.
    fn weight(&self) -> f64;

    /// Puts back what [`weight`](Self::weight) gave.
    fn set_weight(&mut self, weight: f64);
}

/// The objective of the config. A config with a target has its latency in ms by now.
pub(crate) fn new(
    config: &Config,
    reference_millis: f64,
    target_millis: Option<f64>,
) -> Box<dyn Objective> {
    let weight = config.lambda;
    match (config.objective, target_millis) {
        (ObjectiveKind::Hinge, Some(target_millis)) => Box::new(Hinge {
            weight,
            target_millis,
        }),
        (ObjectiveKind::Target, Some(target_millis)) => Box::new(Target {
            multiplier: weight,
            rate: config.target.multiplier_rate,
            target_millis,
        }),
        _ => Box::new(Penalty {
            weight,
            reference_millis,
        }),
    }
}

/// lambda * latency / reference, as in LA-DARTS.
struct Penalty {
    weight: f64,
    reference_millis: f64,
}

impl Objective for Penalty {
    fn term(&self, latency_millis: f64) -> (f64, f64) {
        let slope = self.weight / self.reference_millis;
        (slope * latency_millis, slope)
    }

    fn weight(&self) -> f64 {
        self.weight
    }

    fn set_weight(&mut self, weight: f64) {
        self.weight = weight;
    }
}

/// lambda * max(0, latency / target - 1): nothing below the target.
struct Hinge {
    weight: f64,
    target_millis: f64,
}

impl Objective for Hinge {
    fn term(&self, latency_millis: f64) -> (f64, f64) {
        let excess = latency_millis / self.target_millis - 1.0;
        if excess > 0.0 {
            (self.weight * excess, self.weight / self.target_millis)
        } else {
            (0.0, 0.0)
        }
    }

    fn weight(&self) -> f64 {
        self.weight
    }

    fn set_weight(&mut self, weight: f64) {
        self.weight = weight;
    }
}

/// multiplier * (latency / target - 1), the Lagrangian of the constraint: alpha descends on it, the
/// multiplier ascends. The violation that it ascends on is that of the derived genotype, by the upper
/// bound of its latency (as LightNAS does with the prediction): what counts is the network that comes out.
struct Target {
    /// Never below 0: a network that is fast enough is not made slower for its own sake.
    multiplier: f64,
    /// The ascent per step, for a violation of 1.
    rate: f64,
    target_millis: f64,
}

impl Objective for Target {
    fn term(&self, latency_millis: f64) -> (f64, f64) {
        let violation = latency_millis / self.target_millis - 1.0;
        (
            self.multiplier * violation,
            self.multiplier / self.target_millis,
        )
    }

    fn observes(&self) -> bool {
        true
    }

    fn observe(&mut self, upper_millis: f64) {
        let violation = upper_millis / self.target_millis - 1.0;
        self.multiplier = (self.multiplier + self.rate * violation).max(0.0);
    }

    fn weight(&self) -> f64 {
        self.multiplier
    }

    fn set_weight(&mut self, weight: f64) {
        self.multiplier = weight;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The slope is the derivative of the value.
    fn assert_slope(objective: &dyn Objective, at: f64) {
        let (above, below) = (objective.term(at + 1e-6).0, objective.term(at - 1e-6).0);
        let (_, slope) = objective.term(at);
        assert!((slope - (above - below) / 2e-6).abs() < 1e-6);
    }

    #[test]
    fn values_by_hand_and_slopes_by_differences() {
        let penalty = Penalty {
            weight: 0.2,
            reference_millis: 4.0,
        };
        assert_eq!(penalty.term(2.0), (0.1, 0.05));
        let hinge = Hinge {
            weight: 0.5,
            target_millis: 2.0,
        };
        assert_eq!(hinge.term(1.9), (0.0, 0.0));
        assert_eq!(hinge.term(3.0), (0.25, 0.25));
        let target = Target {
            multiplier: 0.5,
            rate: 0.1,
            target_millis: 2.0,
        };
        assert_eq!(target.term(1.0), (-0.25, 0.25));
        for at in [0.7, 1.5, 2.5, 9.0] {
            assert_slope(&penalty, at);
            assert_slope(&hinge, at);
            assert_slope(&target, at);
        }
    }

    #[test]
    fn the_multiplier_climbs_on_the_violation_and_falls_to_nothing_without_one() {
        let mut target = Target {
            multiplier: 0.0,
            rate: 0.1,
            target_millis: 2.0,
        };
        target.observe(3.0);
        target.observe(4.0);
        assert!((target.weight() - 0.15).abs() < 1e-12);
        target.observe(2.0);
        assert!((target.weight() - 0.15).abs() < 1e-12);
        for _ in 0..10 {
            target.observe(1.0);
        }
        assert_eq!(target.weight(), 0.0);
    }

    /// With alpha's answer modelled as latency = 5 - 2 multiplier, the multiplier ends where the
    /// constraint holds.
    #[test]
    fn the_multiplier_settles_at_the_target() {
        let mut target = Target {
            multiplier: 0.0,
            rate: 0.05,
            target_millis: 2.0,
        };
        for _ in 0..500 {
            let latency = 5.0 - 2.0 * target.weight();
            target.observe(latency);
        }
        assert!((target.weight() - 1.5).abs() < 1e-6);
    }
}
