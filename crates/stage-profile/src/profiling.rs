//! A profile under way: what is timed, in which order, and what is remembered of it.

use std::path::{Path, PathBuf};

use artifact::stage::{Bar, Progress};
use artifact::{
    AnchorRecord, CellSample, DeviceSpec, GpuRecord, LatencyDataset, LatencySample,
    MeasurementSettings, Metric,
};
use candle_core::Device;
use measure::{Anchor, Drift, Machine, Timing};
use runtime::Costs;
use serde::{Deserialize, Serialize};
use space::NetworkSpec;

use crate::bench::{Bench, Position, TimedNetwork, positions};
use crate::itinerary::{Architectures, Itinerary, Timed};
use crate::journal::Journal;
use crate::{Config, Error};

/// The journal's name in the working folder.
const JOURNAL: &str = "visits.jsonl";
/// How often a disturbed visit is made again at most.
const MAX_REVISITS: u32 = 3;
/// The share of all visits that is made again whatever it brings.
const FEW: f64 = 0.1;

/// A profile under way.
///
/// Architectures are *visited* in turn, some a second time, in the order of an itinerary. The
/// visits fall into blocks of `anchor_every` with a timing of the anchor between every two. Those that were
/// disturbed are made again after all others of their round: what disturbs a machine often lasts for many visits. A finished
/// block goes to the journal at once; a profile that is opened on a journal goes on behind it.
pub struct Profiling {
    itinerary: Itinerary,
    block_len: usize,
    positions: Vec<Position>,
    bench: Bench,
    max_disturbance: f64,
    /// The latest timing of the anchor.
    before: Timing,
    visits: Vec<Visit>,
    /// How often each visit was made again.
    n_revisits: Vec<u32>,
    journal: Journal,
    journal_path: PathBuf,
    settings: MeasurementSettings,
    device: DeviceSpec,
    progress: Progress,
    bar: Bar,
}

/// What one visit of an architecture brought: times as they were taken.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Visit {
    /// Counts the visits from 0.
    index: usize,
    /// The anchor before the block of this visit.
    before: Nanos,
    /// The anchor after it.
    after: Nanos,
    network: Nanos,
    /// One for each position; none on a second visit.
    cells: Vec<Nanos>,
    /// What else was asked for; none on a second visit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    peak_memory_bytes: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    energy_joules: Option<f64>,
    /// On CUDA: the network launched as one graph, on the first visit, where it could be captured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    graph: Option<Nanos>,
    /// On CUDA: the GPU behind the timing of the network.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    gpu: Option<GpuRecord>,
}

impl Visit {
    /// How the machine stood about it.
    fn drift(&self, anchor: &Anchor) -> Drift {
        anchor.drift(&self.before.into(), &self.after.into())
    }
}

/// The anchor of a run; it tells which of its visits were disturbed.
fn anchor(visits: &[Visit], max_disturbance: f64) -> Anchor {
    let anchors: Vec<Timing> = visits.iter().map(|visit| visit.after.into()).collect();
    Anchor::new(&anchors, max_disturbance)
}

/// A visit without what lies around it.
struct Visited {
    network: Nanos,
    gpu: Option<GpuRecord>,
    cells: Vec<Nanos>,
    costs: Costs,
    graph: Option<Timing>,
}

/// A [`Timing`] in the journal.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Nanos {
    median: u64,
    p10: u64,
    p90: u64,
    n_repeats: u32,
}

impl From<Timing> for Nanos {
    fn from(timing: Timing) -> Self {
        Self {
            median: timing.median_nanos,
            p10: timing.p10_nanos,
            p90: timing.p90_nanos,
            n_repeats: timing.n_repeats,
        }
    }
}

impl From<Nanos> for Timing {
    fn from(nanos: Nanos) -> Self {
        Self {
            median_nanos: nanos.median,
            p10_nanos: nanos.p10,
            p90_nanos: nanos.p90,
            n_repeats: nanos.n_repeats,
        }
    }
}

impl Profiling {
    /// Opens a profile on its working folder, which is made if need be, and times the anchor.
    ///
    /// # Errors
    /// If the config does not suit this machine, if the folder cannot be written to or holds the journal
    /// of another run, or if the anchor cannot be timed.
    pub fn open(config: &Config, work_dir: &Path, progress: &Progress) -> Result<Self, Error> {
        Self::open_on(
            DeviceSpec::Cpu,
            config,
            Architectures::Sampled,
            work_dir,
            progress,
        )
    }

    /// [`open`](Self::open) on a device, for architectures that are sampled or given.
    ///
    /// # Errors
    /// As [`open`](Self::open); and if there is no such device.
    pub fn open_on(
        device: DeviceSpec,
        config: &Config,
        architectures: Architectures,
        work_dir: &Path,
        progress: &Progress,
    ) -> Result<Self, Error> {
        config.check(Machine::detect().n_logical_cpus)?;
        config.timing.check(device)?;
        let network = NetworkSpec::try_from(&config.network)?;
        let positions = if config.cells {
            positions(&network)
        } else {
            Vec::new()
        };
        let mut itinerary = Itinerary::new(config, architectures)?;

        let path = work_dir.join(JOURNAL);
        let journal_error = |source| Error::Journal {
            path: path.clone(),
            source,
        };
        std::fs::create_dir_all(work_dir).map_err(journal_error)?;
        let (journal, entries) = Journal::open::<Visit>(&path).map_err(journal_error)?;
        let foreign = || Error::ForeignJournal { path: path.clone() };
        let (mut visits, mut n_revisits) = (vec![], vec![]);
        for visit in entries {
            if visit.index > visits.len() {
                return Err(foreign());
            }
            // Where the timings decide what comes next, those of the journal decide it again.
            if visit.index == itinerary.n_visits()
                && !itinerary.extend(&timed(&visits, config.max_disturbance))
            {
                return Err(foreign());
            }
            let is_first = itinerary.is_first(visit.index);
            let asks = |metric| is_first && config.metrics.contains(&metric);
            if visit.cells.len() != if is_first { positions.len() } else { 0 }
                || visit.peak_memory_bytes.is_some() != asks(Metric::PeakMemory)
                || visit.energy_joules.is_some() != asks(Metric::Energy)
            {
                return Err(foreign());
            }
            take_in(visit, &mut visits, &mut n_revisits);
        }

        let bench = Bench::new(config, network, open_device(device)?, progress)?;
        if !visits.is_empty() {
            progress.line(&format!(
                "going on with {} of {} timed architectures",
                visits.len(),
                itinerary.n_visits()
            ));
        }
        // The first timing wakes the machine up.
        bench.time_anchor()?;
        let before = bench.time_anchor()?;

        let bar = progress.bar("timing architectures", itinerary.most_visits() as u64);
        bar.skip(visits.len() as u64);
        Ok(Self {
            itinerary,
            block_len: config.anchor_every,
            positions,
            bench,
            max_disturbance: config.max_disturbance,
            before,
            visits,
            n_revisits,
            journal,
            journal_path: path,
            settings: MeasurementSettings {
                network: config.network.clone(),
                timing: config.timing.clone(),
                device: device.to_string(),
                runtime: match device {
                    DeviceSpec::Cpu => runtime::NATIVE_CPU,
                    DeviceSpec::Cuda(_) => runtime::CANDLE_CUDA,
                }
                .to_owned(),
                anchor: None,
            },
            device,
            progress: progress.clone(),
            bar,
        })
    }

    /// Times one block and writes it to the journal; false, and nothing is timed, if none is left.
    ///
    /// # Errors
    /// If a network cannot be built or timed, or if the journal cannot be written to.
    pub fn advance(&mut self) -> Result<bool, Error> {
        let Some(indices) = self.next_block() else {
            return Ok(false);
        };
        let block = self.time_block(&indices)?;
        self.journal
            .append(&block)
            .map_err(|source| Error::Journal {
                path: self.journal_path.clone(),
                source,
            })?;
        for visit in block {
            if take_in(visit, &mut self.visits, &mut self.n_revisits) {
                self.bar.inc(1);
            }
        }
        Ok(true)
    }

    /// The visits that come next: new ones; those that were disturbed; those of a new round.
    fn next_block(&mut self) -> Option<Vec<usize>> {
        if self.visits.len() == self.itinerary.n_visits() {
            let disturbed = to_revisit(&self.visits, &self.n_revisits, self.max_disturbance);
            if !disturbed.is_empty() {
                self.bar
                    .message(format!("{} disturbed, once more", disturbed.len()));
                return Some(disturbed.into_iter().take(self.block_len).collect());
            }
            self.bar.message(String::new());
            let timed = timed(&self.visits, self.max_disturbance);
            if !self.itinerary.extend(&timed) {
                return None;
            }
            if let Some(progress) = self.itinerary.progress() {
                self.progress.line(&progress);
            }
        }
        let first = self.visits.len();
        let end = self.itinerary.n_visits().min(first + self.block_len);
        Some((first..end).collect())
    }

    fn time_block(&mut self, indices: &[usize]) -> Result<Vec<Visit>, Error> {
        let timings = indices
            .iter()
            .map(|&index| self.time_visit(index))
            .collect::<Result<Vec<_>, _>>()?;
        let before = self.before;
        self.before = self.bench.time_anchor()?;
        let (before, after) = (before.into(), self.before.into());
        Ok(indices
            .iter()
            .zip(timings)
            .map(|(&index, visited)| Visit {
                index,
                before,
                after,
                network: visited.network,
                cells: visited.cells,
                peak_memory_bytes: visited.costs.peak_memory_bytes,
                energy_joules: visited.costs.energy_joules,
                graph: visited.graph.map(Nanos::from),
                gpu: visited.gpu,
            })
            .collect())
    }

    /// Times a network and, on the first visit, its cells at every position and the network again, and measures what else is
    /// asked for. A neighbour that slows down one timing of the network between two undisturbed anchors seldom slows down
    /// both.
    fn time_visit(&self, index: usize) -> Result<Visited, Error> {
        let genotype = self.itinerary.architecture(index);
        let TimedNetwork { timing, gpu } = self.bench.time_network(genotype)?;
        if !self.itinerary.is_first(index) {
            return Ok(Visited {
                network: timing.into(),
                gpu,
                cells: Vec::new(),
                costs: Costs::default(),
                graph: None,
            });
        }
        let cells = self
            .positions
            .iter()
            .map(|Position { spec, .. }| Ok(self.bench.time_cell(spec, genotype)?.into()))
            .collect::<Result<Vec<_>, Error>>()?;
        let timing = match cells.is_empty() {
            true => timing,
            false => timing.faster(self.bench.time_network(genotype)?.timing),
        };
        Ok(Visited {
            network: timing.into(),
            gpu,
            cells,
            costs: self.bench.costs(genotype)?,
            graph: self.bench.time_captured(genotype)?,
        })
    }

    /// Times what is left; the whole data set, drift corrected: all times are as if the anchor had taken
    /// its median over the whole run.
    ///
    /// # Errors
    /// See [`advance`](Self::advance).
    pub fn finish(mut self) -> Result<LatencyDataset, Error> {
        while self.advance()? {}
        self.bar.finish();
        if let Some(progress) = self.itinerary.progress() {
            self.progress.line(&progress);
        }
        let anchor = anchor(&self.visits, self.max_disturbance);
        let (firsts, seconds): (Vec<&Visit>, Vec<&Visit>) = self
            .visits
            .iter()
            .partition(|visit| self.itinerary.is_first(visit.index));
        let mut samples = Vec::with_capacity(firsts.len());
        let mut cells = Vec::with_capacity(firsts.len() * self.positions.len());
        for (row, visit) in firsts.into_iter().enumerate() {
            let genotype = self.itinerary.architecture(visit.index);
            let drift = visit.drift(&anchor);
            let timing = drift.correct(&visit.network.into());
            samples.push(LatencySample {
                genotype: genotype.clone(),
                median_millis: timing.median_millis(),
                p10_millis: timing.p10_millis(),
                p90_millis: timing.p90_millis(),
                n_repeats: timing.n_repeats,
                anchor_ratio: drift.ratio,
                disturbed: drift.disturbed,
                chosen: !self.itinerary.is_drawn(visit.index),
                repeat_median_millis: seconds.get(row).and_then(|second| {
                    let drift = second.drift(&anchor);
                    let timing = drift.correct(&second.network.into());
                    (!drift.disturbed).then(|| timing.median_millis())
                }),
                peak_memory_bytes: visit.peak_memory_bytes.map(|bytes| bytes as f64),
                energy_joules: visit.energy_joules,
                graph_median_millis: visit
                    .graph
                    .map(|nanos| drift.correct(&nanos.into()).median_millis()),
                gpu: visit.gpu,
            });
            for (Position { spec, n_uses }, &nanos) in self.positions.iter().zip(&visit.cells) {
                let timing = drift.correct(&nanos.into());
                cells.push(CellSample {
                    sample_index: row as u32,
                    kind: spec.kind,
                    cell: genotype.cell(spec.kind).clone(),
                    reduction_prev: spec.reduction_prev,
                    channels_prev_prev: spec.channels_prev_prev,
                    channels_prev: spec.channels_prev,
                    channels: spec.channels,
                    size_prev_prev: spec.size_prev_prev,
                    size_prev: spec.size_prev,
                    n_uses: *n_uses,
                    median_millis: timing.median_millis(),
                    p10_millis: timing.p10_millis(),
                    p90_millis: timing.p90_millis(),
                    n_repeats: timing.n_repeats,
                    anchor_ratio: drift.ratio,
                });
            }
        }
        let machine = self.device.fingerprint(Machine::detect().fingerprint())?;
        self.settings.anchor = Some(AnchorRecord::new(anchor.reference_nanos(), machine));
        Ok(LatencyDataset {
            settings: Some(self.settings),
            samples,
            cells,
        })
    }
}

fn open_device(spec: DeviceSpec) -> Result<Device, Error> {
    match spec {
        DeviceSpec::Cpu => Ok(Device::Cpu),
        DeviceSpec::Cuda(index) => nn::cuda_device(index).map_err(|error| {
            let reason = error.to_string();
            artifact::Error::Device {
                device: spec,
                reason,
            }
            .into()
        }),
    }
}

/// Takes a visit among the others; true if it is a new one. Of two of one index the less disturbed one stays: about
/// which the anchor took less.
fn take_in(visit: Visit, visits: &mut Vec<Visit>, n_revisits: &mut Vec<u32>) -> bool {
    let Some(earlier) = visits.get_mut(visit.index) else {
        visits.push(visit);
        n_revisits.push(0);
        return true;
    };
    n_revisits[visit.index] += 1;
    let disturbance = |visit: &Visit| visit.before.median.max(visit.after.median);
    if disturbance(&visit) < disturbance(earlier) {
        *earlier = visit;
    }
    false
}

/// The visits that were disturbed and are to be made again: those first that were made again least often. Where the machine
/// does not come to rest, none: once a round of them settles fewer than half, and more than [`FEW`] of all visits are left.
fn to_revisit(visits: &[Visit], n_revisits: &[u32], max_disturbance: f64) -> Vec<usize> {
    let anchor = anchor(visits, max_disturbance);
    let is_disturbed = |&index: &usize| visits[index].drift(&anchor).disturbed;
    let mut disturbed: Vec<usize> = (0..visits.len())
        .filter(|&index| n_revisits[index] < MAX_REVISITS)
        .filter(is_disturbed)
        .collect();
    disturbed.sort_by_key(|&index| n_revisits[index]);
    let n_rounds = disturbed.first().map_or(0, |&index| n_revisits[index]);
    let again: Vec<usize> = (0..visits.len())
        .filter(|&index| n_rounds > 0 && n_revisits[index] >= n_rounds)
        .collect();
    let n_left = again
        .iter()
        .copied()
        .filter(|index| is_disturbed(index))
        .count();
    if n_left as f64 > FEW * visits.len() as f64 && 2 * n_left > again.len() {
        disturbed.clear();
    }
    disturbed
}

/// What visits say, corrected for drift; `None` for those that were disturbed.
fn timed(visits: &[Visit], max_disturbance: f64) -> Timed {
    let anchor = anchor(visits, max_disturbance);
    let millis = visits.iter().map(|visit| {
        let drift = visit.drift(&anchor);
        let timing = drift.correct(&visit.network.into());
        (!drift.disturbed).then(|| timing.median_millis())
    });
    Timed(millis.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A visit between two anchors whose network took so long.
    fn visit(index: usize, [before, after]: [u64; 2], network: u64) -> Visit {
        let nanos = |nanos| Timing::from_nanos(vec![nanos; 9]).into();
        Visit {
            index,
            before: nanos(before),
            after: nanos(after),
            network: nanos(network),
            cells: vec![],
            peak_memory_bytes: None,
            energy_joules: None,
            graph: None,
            gpu: None,
        }
    }

    #[test]
    fn anchors_that_disagree_and_slow_ones_are_disturbances() {
        let visits = [
            visit(0, [1000, 1000], 500),
            visit(1, [1000, 1010], 600),
            visit(2, [1010, 1480], 700),
            visit(3, [1480, 1480], 900),
            visit(4, [1000, 990], 500),
            visit(5, [990, 1000], 500),
        ];
        assert_eq!(anchor(&visits, 0.05).reference_nanos(), 1005);
        let is_timed = timed(&visits, 0.05)
            .0
            .iter()
            .map(Option::is_some)
            .collect::<Vec<_>>();
        assert_eq!(is_timed, [true, true, false, false, true, true]);
    }

    #[test]
    fn a_machine_that_does_not_come_to_rest_is_not_asked_for_ever() {
        // Of twenty visits the first `n` were disturbed, and those before `n_settled` no longer are.
        let after_rounds = |n: usize, n_settled: usize, n_rounds: u32| {
            let visits: Vec<Visit> = (0..20)
                .map(|index| match (n_settled..n).contains(&index) {
                    true => visit(index, [1000, 1480], 700),
                    false => visit(index, [1000, 1000], 500),
                })
                .collect();
            let n_revisits: Vec<u32> = (0..20)
                .map(|index| if index < n { n_rounds } else { 0 })
                .collect();
            to_revisit(&visits, &n_revisits, 0.05)
        };
        assert_eq!(after_rounds(9, 0, 0), Vec::from_iter(0..9));
        assert_eq!(after_rounds(9, 5, 1), [5, 6, 7, 8], "most came to rest");
        assert!(after_rounds(9, 4, 1).is_empty(), "most did not");
        assert_eq!(after_rounds(2, 0, 1), [0, 1], "these cost little");
        assert!(after_rounds(2, 0, MAX_REVISITS).is_empty());
    }

    #[test]
    fn of_two_visits_the_less_disturbed_one_stays() {
        let (mut visits, mut n_revisits) = (vec![], vec![]);
        let mut take = |visit| take_in(visit, &mut visits, &mut n_revisits);
        assert!(take(visit(0, [1000, 1480], 700)));
        assert!(take(visit(1, [1000, 1000], 600)));
        assert!(!take(visit(0, [1000, 1000], 500)));
        assert!(!take(visit(0, [1480, 1480], 700)));
        assert!(!take(visit(1, [1010, 1010], 900)));
        let medians: Vec<u64> = visits.iter().map(|visit| visit.network.median).collect();
        assert_eq!(medians, [500, 600]);
        assert_eq!(n_revisits, [2, 1]);
    }
}
