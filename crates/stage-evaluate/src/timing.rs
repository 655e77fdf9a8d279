//! The latency of a found network, under the protocol of the search result.

use artifact::{AnchorRecord, MeasurementSettings, Metric, Progress, TimingResult};
use candle_core::Device;
use measure::{Anchor, Protocol, Timing};
use runtime::{Costs, Executor, Meters, On, Prepared, Unmeasured};
use space::{Genotype, NetworkSpec};

use crate::config::TimingConfig;
use crate::error::Error;

/// How many series of rounds are timed at most. A neighbour often disturbs for some seconds, which one series takes.
const MAX_SERIES: usize = 8;

/// One timing of the network, corrected for drift, and how the machine stood.
struct Round {
    timing: Timing,
    anchor_ratio: f64,
    disturbed: bool,
}

/// Times the network in rounds, with the anchor network before and after each.
///
/// The reference of the anchor is what it took when architectures were profiled, if the settings tell it, which are of this machine: so
/// predicted latency, and the measured latency of every network that was found with it, are
/// of one state of the machine. Otherwise it is its median over all rounds. Each round is corrected by
/// the anchors about it; of the undisturbed rounds (of all, if every one was disturbed) the one with the median
/// latency counts. As long as fewer than half of the rounds that are asked for are undisturbed, others follow, at most
/// [`MAX_SERIES`] times as many.
pub(crate) fn time(
    network: &Prepared,
    on: &On,
    settings: &MeasurementSettings,
    config: &TimingConfig,
    progress: &Progress,
) -> Result<TimingResult, Error> {
    let spec = NetworkSpec::try_from(&settings.network)?;
    let record = &settings.timing;
    let genotype =
        Genotype::named(AnchorRecord::GENOTYPE).expect("the anchor is a published genotype");
    let anchor = Prepared::network(&spec, &genotype, record.batch_size, on)?;
    let executor =
        Executor::new(record.n_threads).map_err(|error| Error::Threads(Box::new(error)))?;
    let protocol = Protocol {
        n_warmup: record.n_warmup,
        n_repeats: record.n_repeats,
        flush_l2: record.flush_l2,
    };
    let time = |prepared: &Prepared, what| {
        let timing = prepared.time(&executor, &protocol)?.timing;
        if timing.p10_nanos == 0 {
            Err(Error::Unmeasurable { what })
        } else {
            Ok(timing)
        }
    };

    // One job for all of them: between anchor and network the thread never sleeps, so that nothing wakes it on another
    // core, which may be a slower one.
    let rounds = executor.install(|| {
        // The first timing of all warms the machine up.
        time(&anchor, "the anchor network")?;
        let mut anchors = vec![time(&anchor, "the anchor network")?];
        let (mut timings, mut rounds) = (Vec::new(), Vec::new());
        for series in 0..MAX_SERIES {
            if tell_enough(&rounds, config.n_rounds) {
                break;
            }
            let label = match series {
                0 => "timing",
                _ => "timing once more, the machine was restless",
            };
            let bar = progress.bar(label, config.n_rounds as u64);
            for _ in 0..config.n_rounds {
                timings.push(time(network, "the network")?);
                anchors.push(time(&anchor, "the anchor network")?);
                bar.inc(1);
            }
            bar.finish();
            let reference = reference(&anchors, settings.anchor.as_ref(), config.max_disturbance);
            rounds = corrected(&timings, &anchors, &reference);
        }
        Ok::<_, Error>(rounds)
    })?;
    let Round {
        timing,
        anchor_ratio,
        disturbed,
    } = median(rounds);
    Ok(TimingResult {
        median_millis: timing.median_millis(),
        p10_millis: timing.p10_millis(),
        p90_millis: timing.p90_millis(),
        n_repeats: timing.n_repeats,
        anchor_ratio,
        disturbed,
        peak_memory_bytes: None,
        energy_joules: None,
    })
}

/// What measures here what is asked for beside latency.
pub(crate) fn meters(asks: impl Fn(Metric) -> bool, device: &Device) -> Result<Meters, Error> {
    Meters::new(device, asks(Metric::PeakMemory), asks(Metric::Energy)).map_err(unmeasured)
}

/// Measures the network of a genotype, as architectures were when they were profiled.
pub(crate) fn costs(
    meters: &Meters,
    genotype: &Genotype,
    settings: &MeasurementSettings,
    on: &On,
) -> Result<Costs, Error> {
    let spec = NetworkSpec::try_from(&settings.network)?;
    let record = &settings.timing;
    let executor =
        Executor::new(record.n_threads).map_err(|error| Error::Threads(Box::new(error)))?;
    let prepare = || Prepared::network(&spec, genotype, record.batch_size, on);
    meters.measure(&executor, prepare).map_err(unmeasured)
}

fn unmeasured(unmeasured: Unmeasured) -> Error {
    match unmeasured {
        Unmeasured::Tensor(error) => error.into(),
        Unmeasured::Threads(error) => Error::Threads(Box::new(error)),
        Unmeasured::PeakMemory(reason) => Error::Metric {
            metric: Metric::PeakMemory,
            reason: reason.to_owned(),
        },
        Unmeasured::Energy(reason) => Error::Metric {
            metric: Metric::Energy,
            reason,
        },
    }
}

/// Whether at least half as many rounds as are asked for were not disturbed.
fn tell_enough(rounds: &[Round], n_rounds: usize) -> bool {
    let n_quiet = rounds.iter().filter(|round| !round.disturbed).count();
    2 * n_quiet >= n_rounds
}

/// The anchor with the reference that latencies are corrected to.
fn reference(anchors: &[Timing], profiled: Option<&AnchorRecord>, max_disturbance: f64) -> Anchor {
    match profiled {
        Some(profiled) => Anchor::with_reference(profiled.median_nanos.max(1), max_disturbance),
        None => Anchor::new(anchors, max_disturbance),
    }
}

/// Each timing, corrected by the anchors about it.
fn corrected(timings: &[Timing], anchors: &[Timing], reference: &Anchor) -> Vec<Round> {
    let rounds = timings.iter().zip(anchors.windows(2));
    rounds
        .map(|(timing, about)| {
            let drift = reference.drift(&about[0], &about[1]);
            Round {
                timing: drift.correct(timing),
                anchor_ratio: drift.ratio,
                disturbed: drift.disturbed,
            }
        })
        .collect()
}

/// The round with the median latency (of an even number the lower one) of those that were not disturbed,
/// or of all.
///
/// # Panics
/// If there are none.
fn median(rounds: Vec<Round>) -> Round {
    let (mut quiet, mut restless): (Vec<_>, Vec<_>) =
        rounds.into_iter().partition(|round| !round.disturbed);
    let rounds = if quiet.is_empty() {
        &mut restless
    } else {
        &mut quiet
    };
    rounds.sort_by_key(|round| round.timing.median_nanos);
    rounds.swap_remove((rounds.len() - 1) / 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn latencies_are_corrected_to_the_profile_or_else_to_these_rounds() {
        let anchors = [90, 100, 110].map(|nanos| Timing::from_nanos(vec![nanos]));
        let reference_nanos =
            |profiled: Option<_>| reference(&anchors, profiled.as_ref(), 0.05).reference_nanos();
        assert_eq!(reference_nanos(None), 100);
        assert_eq!(
            reference_nanos(Some(AnchorRecord::new(80, "here".to_owned()))),
            80
        );
    }

    fn round(nanos: u64, disturbed: bool) -> Round {
        Round {
            timing: Timing::from_nanos(vec![nanos]),
            anchor_ratio: 1.0,
            disturbed,
        }
    }

    #[test]
    fn half_of_the_rounds_must_be_undisturbed() {
        let rounds = |n_quiet: usize| -> Vec<Round> {
            (0..10).map(|index| round(1, index >= n_quiet)).collect()
        };
        assert!(tell_enough(&rounds(3), 5));
        assert!(!tell_enough(&rounds(2), 5));
        assert!(tell_enough(&rounds(5), 10));
        assert!(!tell_enough(&rounds(4), 10));
    }

    #[test]
    fn the_median_undisturbed_round_counts() {
        let rounds = [
            (30, false),
            (10, true),
            (20, false),
            (90, true),
            (40, false),
        ];
        let chosen = median(
            rounds
                .map(|(nanos, disturbed)| round(nanos, disturbed))
                .into(),
        );
        assert_eq!((chosen.timing.median_nanos, chosen.disturbed), (30, false));
    }

    #[test]
    fn where_every_round_was_disturbed_one_of_them_counts_and_says_so() {
        let chosen = median(vec![round(9, true), round(7, true), round(8, true)]);
        assert_eq!((chosen.timing.median_nanos, chosen.disturbed), (8, true));
    }
}
