//! Corrects for drift of the machine: clock, heat, neighbours.
//!
//! One fixed workload, the anchor, is timed again and again among the samples. What it takes now
//! against its reference, the median over all its timings, is the drift of the machine, and the samples
//! between two anchors are divided by it; of the two the faster one tells, since what disturbs makes slower. Where they
//! disagree, something disturbed the machine in between, and no correction can say what it did to the sample. Nor can one ratio speak for a machine that is much slower than
//! usual: a neighbour on the same core does not slow all networks alike.
//!
//! ```
//! use measure::{Anchor, Timing};
//!
//! let took = |nanos| Timing::from_nanos(vec![nanos]);
//! let anchor = Anchor::new(&[took(1000), took(1010), took(990)], 0.05);
//! assert_eq!(anchor.reference_nanos(), 1000);
//!
//! let drift = anchor.drift(&took(1090), &took(1110)); // before, after
//! assert_eq!(drift.ratio, 1.09);
//! assert!(!drift.disturbed);
//! assert_eq!(drift.correct(&took(5450)), took(5000));
//! ```

use crate::timing::{Timing, quantile};

/// The slowdown up to which a sample can be corrected, over the disturbance that is allowed: 20 % where that is 5 %.
const DRIFT_TO_DISTURBANCE: f64 = 4.0;

/// What the anchor takes on the whole, and how much two timings of it may differ.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Anchor {
    reference_nanos: u64,
    max_disturbance: f64,
}

impl Anchor {
    /// An anchor whose reference is the median of the medians of these timings.
    /// `max_disturbance` is the ratio, such as 0.05, by which the anchors about a sample may differ; by four times as much both may
    /// be slower than the reference.
    ///
    /// # Panics
    /// If there are no timings, or if the reference is 0.
    pub fn new(timings: &[Timing], max_disturbance: f64) -> Self {
        let mut nanos: Vec<u64> = timings.iter().map(|timing| timing.median_nanos).collect();
        assert!(!nanos.is_empty(), "an anchor needs at least one timing");
        nanos.sort_unstable();
        Self::with_reference(quantile(&nanos, 0.5), max_disturbance)
    }

    /// The anchor of an earlier run, with the reference that it had there.
    ///
    /// # Panics
    /// If the reference is 0.
    pub fn with_reference(reference_nanos: u64, max_disturbance: f64) -> Self {
        assert!(reference_nanos > 0, "an anchor must take some time");
        Self {
            reference_nanos,
            max_disturbance,
        }
    }

    /// What the anchor takes on the whole.
    pub fn reference_nanos(&self) -> u64 {
        self.reference_nanos
    }

    /// The drift between two timings of the anchor, the one before and the one after some samples.
    pub fn drift(&self, before: &Timing, after: &Timing) -> Drift {
        let (before, after) = (before.median_nanos as f64, after.median_nanos as f64);
        let ratio = before.min(after) / self.reference_nanos as f64;
        Drift {
            ratio,
            disturbed: (after - before).abs() > self.max_disturbance * before.min(after)
                || ratio > 1.0 + DRIFT_TO_DISTURBANCE * self.max_disturbance,
        }
    }
}

/// How the machine stood while some samples were timed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Drift {
    /// The faster anchor about the samples over its reference: above 1, the machine is slower now.
    pub ratio: f64,
    /// Whether the anchors before and after the samples differ by more than is allowed, or the machine was slower than
    /// its reference by more than four times as much.
    pub disturbed: bool,
}

impl Drift {
    /// What the timing would have been with the anchor at its reference: all its times divided by the ratio.
    pub fn correct(&self, timing: &Timing) -> Timing {
        let corrected = |nanos: u64| (nanos as f64 / self.ratio).round() as u64;
        Timing {
            median_nanos: corrected(timing.median_nanos),
            p10_nanos: corrected(timing.p10_nanos),
            p90_nanos: corrected(timing.p90_nanos),
            n_repeats: timing.n_repeats,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn took(nanos: u64) -> Timing {
        Timing::from_nanos(vec![nanos])
    }

    #[test]
    fn the_reference_is_a_median_that_one_outlier_does_not_move() {
        let timings = [1000, 9000, 1002, 998, 1001].map(took);
        let anchor = Anchor::new(&timings, 0.05);
        assert_eq!(anchor.reference_nanos(), 1001);
        assert_eq!(anchor, Anchor::with_reference(1001, 0.05));
    }

    #[test]
    fn a_machine_twice_as_slow_is_disturbed_and_corrected_all_the_same() {
        let anchor = Anchor::with_reference(500, 0.05);
        let drift = anchor.drift(&took(1000), &took(1000));
        assert_eq!(
            drift,
            Drift {
                ratio: 2.0,
                disturbed: true
            }
        );
        let timing = Timing {
            median_nanos: 40,
            p10_nanos: 20,
            p90_nanos: 80,
            n_repeats: 9,
        };
        assert_eq!(
            drift.correct(&timing),
            Timing {
                median_nanos: 20,
                p10_nanos: 10,
                p90_nanos: 40,
                n_repeats: 9
            }
        );
    }

    #[test]
    fn anchors_that_disagree_or_are_slow_are_a_disturbance() {
        let anchor = Anchor::with_reference(1000, 0.05);
        for (before, after, disturbed) in [
            (1000, 1050, false),
            (1050, 1000, false),
            (1000, 1051, true),
            (1051, 1000, true),
            (1150, 1200, false),
            (1210, 1230, true), // slower by more than 20 %
            (700, 720, false),  // faster
        ] {
            assert_eq!(
                anchor.drift(&took(before), &took(after)).disturbed,
                disturbed
            );
        }
    }

    #[test]
    #[should_panic(expected = "at least one timing")]
    fn an_anchor_without_timings_is_a_bug() {
        Anchor::new(&[], 0.05);
    }
}
