//! Warm-up, repeats, median and quantiles of a closure.

use std::time::Instant;

/// How often something is run to time it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Protocol {
    /// Calls before the first that counts: caches fill, clocks rise, lazy initialisation happens.
    pub n_warmup: u32,
    /// Calls that count, each timed on its own. At least one is made.
    pub n_repeats: u32,
    /// On CUDA, whether the L2 cache is overwritten in front of each call that counts; the processor's are as they are.
    pub flush_l2: bool,
}

/// The slowdown of a repeat, over the 10 % quantile, from which it was disturbed: a core that is shared with a neighbour computes
/// a fifth to a half slower for milliseconds at a time, and what one thing takes by itself varies by a percent or two.
const DISTURBED: f64 = 0.05;

/// What the repeats of one thing took.
///
/// A quantile q of n times t(0) ≤ … ≤ t(n-1) is the linear interpolation between the two order
/// statistics about position q (n - 1), rounded to the nanosecond (Hyndman and Fan's type 7, the
/// default of NumPy and R). The median is that of the repeats that nothing disturbed: of those no more than 5 % above the 10 %
/// quantile. On a machine at rest these are nearly all; on one with neighbours the median of all is a matter of how busy they were.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// The 50 % quantile of the repeats that nothing disturbed.
    pub median_nanos: u64,
    /// The 10 % quantile of all.
    pub p10_nanos: u64,
    /// The 90 % quantile of all.
    pub p90_nanos: u64,
    /// The number of times behind the quantiles.
    pub n_repeats: u32,
}

impl Timing {
    /// Summarises times, in any order.
    ///
    /// # Panics
    /// If there are none.
    pub fn from_nanos(mut nanos: Vec<u64>) -> Self {
        assert!(!nanos.is_empty(), "a timing needs at least one time");
        nanos.sort_unstable();
        let p10_nanos = quantile(&nanos, 0.1);
        let most = (p10_nanos as f64 * (1.0 + DISTURBED)).ceil() as u64;
        let n_undisturbed = nanos.partition_point(|&nanos| nanos <= most);
        Self {
            // Where hardly any is undisturbed, their median may lie below the quantile of all.
            median_nanos: quantile(&nanos[..n_undisturbed], 0.5).max(p10_nanos),
            p10_nanos,
            p90_nanos: quantile(&nanos, 0.9),
            n_repeats: u32::try_from(nanos.len()).unwrap_or(u32::MAX),
        }
    }

    /// Of two timings of one thing the one with the lower median: what disturbs makes slower.
    #[must_use]
    pub fn faster(self, other: Self) -> Self {
        if other.median_nanos < self.median_nanos {
            other
        } else {
            self
        }
    }

    /// [`median_nanos`](Self::median_nanos) in milliseconds.
    pub fn median_millis(&self) -> f64 {
        millis(self.median_nanos)
    }

    /// [`p10_nanos`](Self::p10_nanos) in milliseconds.
    pub fn p10_millis(&self) -> f64 {
        millis(self.p10_nanos)
    }

    /// [`p90_nanos`](Self::p90_nanos) in milliseconds.
    pub fn p90_millis(&self) -> f64 {
        millis(self.p90_nanos)
    }
}

/// Times a closure: the warm-up calls, then the repeats, on the monotonic clock.
///
/// # Errors
/// The first error of the closure; nothing is called after it.
pub fn time<E>(protocol: &Protocol, run: impl FnMut() -> Result<(), E>) -> Result<Timing, E> {
    repeats(protocol, run).map(Timing::from_nanos)
}

/// What each repeat took, in nanoseconds, in the order of the calls.
///
/// # Errors
/// As [`time`].
pub fn repeats<E>(protocol: &Protocol, run: impl FnMut() -> Result<(), E>) -> Result<Vec<u64>, E> {
    let start = Instant::now();
    let clock = || u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX);
    repeats_on(clock, protocol, run)
}

/// [`repeats`] on a clock that gives nanoseconds since some moment and never goes back.
fn repeats_on<E>(
    mut now_nanos: impl FnMut() -> u64,
    protocol: &Protocol,
    mut run: impl FnMut() -> Result<(), E>,
) -> Result<Vec<u64>, E> {
    for _ in 0..protocol.n_warmup {
        run()?;
    }
    (0..protocol.n_repeats.max(1))
        .map(|_| {
            let before = now_nanos();
            run()?;
            Ok(now_nanos() - before)
        })
        .collect()
}

/// A quantile of sorted times, one at least: see [`Timing`].
pub fn quantile(sorted: &[u64], q: f64) -> u64 {
    let position = q * (sorted.len() - 1) as f64;
    let below = sorted[position.floor() as usize];
    let above = sorted[position.ceil() as usize];
    below + ((above - below) as f64 * position.fract()).round() as u64
}

fn millis(nanos: u64) -> f64 {
    nanos as f64 / 1e6
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::convert::Infallible;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn quantiles_interpolate_as_numpy_does() {
        // numpy.quantile([1010, 1020, 1040, 1050], [0.1, 0.5, 0.9]) = [1013, 1030, 1047]
        let timing = Timing::from_nanos(vec![1050, 1010, 1040, 1020]);
        assert_eq!(
            timing,
            Timing {
                median_nanos: 1030,
                p10_nanos: 1013,
                p90_nanos: 1047,
                n_repeats: 4
            }
        );
        let one = Timing::from_nanos(vec![7]);
        assert_eq!((one.p10_nanos, one.median_nanos, one.p90_nanos), (7, 7, 7));
    }

    #[test]
    fn neighbours_do_not_move_the_median() {
        let quiet: Vec<u64> = (0..40).map(|i| 1000 + i % 10).collect();
        let undisturbed = Timing::from_nanos(quiet.clone()).median_nanos;
        // A fifth slower for a share of the repeats.
        for n_slow in [4, 12, 20, 28, 34] {
            let nanos = quiet.iter().enumerate();
            let disturbed = nanos.map(|(i, &nanos)| {
                if (i * 7) % 40 < n_slow {
                    nanos * 6 / 5
                } else {
                    nanos
                }
            });
            let timing = Timing::from_nanos(disturbed.collect());
            assert!(
                timing.median_nanos.abs_diff(undisturbed) <= 3,
                "{n_slow}: {timing:?}"
            );
            assert_eq!(timing.n_repeats, 40);
            assert!(timing.p90_nanos >= 1008);
        }
    }

    #[test]
    fn of_two_timings_the_faster_one_counts() {
        let [slow, fast] = [1200, 1000].map(|nanos| Timing::from_nanos(vec![nanos; 3]));
        assert_eq!((slow.faster(fast), fast.faster(slow)), (fast, fast));
    }

    #[test]
    fn millis_are_a_millionth_of_nanos() {
        let timing = Timing::from_nanos(vec![2_450_000, 2_500_000, 2_550_000]);
        assert_eq!(timing.median_millis(), 2.5);
        assert_eq!(timing.p10_millis(), 2.46);
        assert_eq!(timing.p90_millis(), 2.54);
    }

    #[test]
    fn only_the_repeats_count_and_each_on_its_own() {
        let clock = Cell::new(0);
        let n_calls = Cell::new(0);
        let nanos = repeats_on(
            || clock.get(),
            &Protocol {
                n_warmup: 2,
                n_repeats: 3,
                flush_l2: false,
            },
            || {
                // The calls take 9000, 9000 (warm-up), then 1000, 1020, 1010.
                let nanos = [9000, 9000, 1000, 1020, 1010][n_calls.get()];
                n_calls.set(n_calls.get() + 1);
                clock.set(clock.get() + nanos);
                Ok::<(), Infallible>(())
            },
        );
        assert_eq!(n_calls.get(), 5);
        assert_eq!(nanos, Ok(vec![1000, 1020, 1010]));
    }

    #[test]
    fn at_least_one_repeat_is_made() {
        let mut n_calls = 0;
        let Ok(timing) = time(
            &Protocol {
                n_warmup: 0,
                n_repeats: 0,
                flush_l2: false,
            },
            || {
                n_calls += 1;
                Ok::<(), Infallible>(())
            },
        );
        assert_eq!((n_calls, timing.n_repeats), (1, 1));
    }

    #[test]
    fn the_first_error_ends_it() {
        for n_good in 0..4 {
            let mut n_calls = 0;
            let result = time(
                &Protocol {
                    n_warmup: 2,
                    n_repeats: 2,
                    flush_l2: false,
                },
                || {
                    n_calls += 1;
                    if n_calls > n_good {
                        Err("broken")
                    } else {
                        Ok(())
                    }
                },
            );
            assert_eq!(result, Err("broken"));
            assert_eq!(n_calls, n_good + 1);
        }
    }

    proptest! {
        #[test]
        fn quantiles_are_ordered_and_within_the_times(
            nanos in prop::collection::vec(0..u64::MAX / 4, 1..50)
        ) {
            let timing = Timing::from_nanos(nanos.clone());
            prop_assert!(*nanos.iter().min().unwrap() <= timing.p10_nanos);
            prop_assert!(timing.p10_nanos <= timing.median_nanos);
            prop_assert!(timing.median_nanos <= timing.p90_nanos);
            prop_assert!(timing.p90_nanos <= *nanos.iter().max().unwrap());
        }
    }
}
