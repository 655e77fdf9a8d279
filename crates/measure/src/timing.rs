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

/// What the repeats of one thing took.
///
/// A quantile q of n times t(0) ≤ … ≤ t(n-1) is the linear interpolation between the two order
/// statistics about position q (n - 1), rounded to the nanosecond (Hyndman and Fan's type 7, the
/// default of NumPy and R).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// The 50 % quantile.
    pub median_nanos: u64,
    /// The 10 % quantile.
    pub p10_nanos: u64,
    /// The 90 % quantile.
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
        Self {
            median_nanos: quantile(&nanos, 0.5),
            p10_nanos: quantile(&nanos, 0.1),
            p90_nanos: quantile(&nanos, 0.9),
            n_repeats: u32::try_from(nanos.len()).unwrap_or(u32::MAX),
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

    /// The noise of a single repeat: (p90 - p10) / median, a ratio. 0 where the median is 0.
    pub fn spread(&self) -> f64 {
        match self.median_nanos {
            0 => 0.0,
            median => (self.p90_nanos - self.p10_nanos) as f64 / median as f64,
        }
    }
}

/// Times a closure: the warm-up calls, then the repeats, on the monotonic clock.
///
/// # Errors
/// The first error of the closure; nothing is called after it.
pub fn time<E>(protocol: &Protocol, run: impl FnMut() -> Result<(), E>) -> Result<Timing, E> {
    let start = Instant::now();
    let clock = || u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX);
    time_on(clock, protocol, run)
}

/// [`time`] on a clock that gives nanoseconds since some moment and never goes back.
fn time_on<E>(
    mut now_nanos: impl FnMut() -> u64,
    protocol: &Protocol,
    mut run: impl FnMut() -> Result<(), E>,
) -> Result<Timing, E> {
    for _ in 0..protocol.n_warmup {
        run()?;
    }
    let nanos = (0..protocol.n_repeats.max(1))
        .map(|_| {
            let before = now_nanos();
            run()?;
            Ok(now_nanos() - before)
        })
        .collect::<Result<_, _>>()?;
    Ok(Timing::from_nanos(nanos))
}

/// A quantile of sorted times: see [`Timing`].
pub(crate) fn quantile(sorted: &[u64], q: f64) -> u64 {
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
        // numpy.quantile([10, 20, 40, 80], [0.1, 0.5, 0.9]) = [13, 30, 68]
        let timing = Timing::from_nanos(vec![80, 10, 40, 20]);
        assert_eq!(
            timing,
            Timing {
                median_nanos: 30,
                p10_nanos: 13,
                p90_nanos: 68,
                n_repeats: 4
            }
        );
        assert_eq!(timing.spread(), 55.0 / 30.0);
        let one = Timing::from_nanos(vec![7]);
        assert_eq!((one.p10_nanos, one.median_nanos, one.p90_nanos), (7, 7, 7));
    }

    #[test]
    fn millis_are_a_millionth_of_nanos() {
        let timing = Timing::from_nanos(vec![1_500_000, 2_500_000, 3_500_000]);
        assert_eq!(timing.median_millis(), 2.5);
        assert_eq!(timing.p10_millis(), 1.7);
        assert_eq!(timing.p90_millis(), 3.3);
    }

    #[test]
    fn only_the_repeats_count_and_each_on_its_own() {
        let clock = Cell::new(0);
        let n_calls = Cell::new(0);
        let timing = time_on(
            || clock.get(),
            &Protocol {
                n_warmup: 2,
                n_repeats: 3,
                flush_l2: false,
            },
            || {
                // The calls take 1000, 1000 (warm-up), then 10, 30, 20.
                let nanos = [1000, 1000, 10, 30, 20][n_calls.get()];
                n_calls.set(n_calls.get() + 1);
                clock.set(clock.get() + nanos);
                Ok::<(), Infallible>(())
            },
        );
        let Ok(timing) = timing;
        assert_eq!(n_calls.get(), 5);
        assert_eq!(
            timing,
            Timing {
                median_nanos: 20,
                p10_nanos: 12,
                p90_nanos: 28,
                n_repeats: 3
            }
        );
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
