//! A profile under way: what is timed, in which order, and what is remembered of it.

use std::ops::Range;
use std::path::{Path, PathBuf};

use artifact::stage::{Bar, Progress};
use artifact::{
    AnchorRecord, CellSample, DeviceSpec, LatencyDataset, LatencySample, MeasurementSettings,
    Metric,
};
use candle_core::Device;
use measure::{Anchor, Drift, Machine, Timing};
use serde::{Deserialize, Serialize};
use space::NetworkSpec;

use crate::bench::{Bench, Costs, Position, positions};
use crate::itinerary::{Architectures, Itinerary, Timed};
use crate::journal::Journal;
use crate::{Config, Error};

/// The journal's name in the working folder.
const JOURNAL: &str = "visits.jsonl";

/// A profile under way.
///
/// Architectures are *visited* in turn, some a second time, in the order of an itinerary. The
/// visits fall into blocks of `anchor_every` with a timing of the anchor between every two. A finished
/// block goes to the journal at once; a profile that is opened on a journal goes on behind it.
pub struct Profiling {
    itinerary: Itinerary,
    block_len: usize,
    positions: Vec<Position>,
    bench: Bench,
    /// Tells disturbed blocks; its reference is of no account before the run is complete.
    anchor: Anchor,
    max_disturbance: f64,
    /// The latest timing of the anchor.
    before: Timing,
    visits: Vec<Visit>,
    n_disturbed: usize,
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
}

impl Visit {
    /// How the machine stood about this visit.
    fn drift(&self, anchor: &Anchor) -> Drift {
        anchor.drift(&self.before.into(), &self.after.into())
    }
}

/// A visit without what lies around it.
struct Visited {
    network: Nanos,
    cells: Vec<Nanos>,
    costs: Costs,
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
        let (journal, visits) = Journal::open::<Visit>(&path).map_err(journal_error)?;
        let foreign = || Error::ForeignJournal { path: path.clone() };
        // Where the timings decide what comes next, those of the journal decide it again.
        while visits.len() > itinerary.n_visits() {
            let so_far = &visits[..itinerary.n_visits()];
            if !itinerary.extend(&timed(so_far, config.max_disturbance)) {
                return Err(foreign());
            }
        }
        let is_ours = |(index, visit): (usize, &Visit)| {
            let is_first = itinerary.is_first(index);
            let asks = |metric| is_first && config.metrics.contains(&metric);
            visit.index == index
                && visit.cells.len() == if is_first { positions.len() } else { 0 }
                && visit.peak_memory_bytes.is_some() == asks(Metric::PeakMemory)
                && visit.energy_joules.is_some() == asks(Metric::Energy)
        };
        if !visits.iter().enumerate().all(is_ours) {
            return Err(foreign());
        }

        let bench = Bench::new(config, network, open_device(device)?)?;
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
        let anchor = Anchor::new(&[before], config.max_disturbance);
        let n_disturbed = visits
            .iter()
            .filter(|visit| visit.drift(&anchor).disturbed)
            .count();

        let bar = progress.bar("timing architectures", itinerary.most_visits() as u64);
        bar.skip(visits.len() as u64);
        Ok(Self {
            itinerary,
            block_len: config.anchor_every,
            positions,
            bench,
            anchor,
            max_disturbance: config.max_disturbance,
            before,
            visits,
            n_disturbed,
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
        let first = self.visits.len();
        if first == self.itinerary.n_visits() {
            let timed = timed(&self.visits, self.max_disturbance);
            if !self.itinerary.extend(&timed) {
                return Ok(false);
            }
            if let Some(progress) = self.itinerary.progress() {
                self.progress.line(&progress);
            }
        }
        let indices = first..self.itinerary.n_visits().min(first + self.block_len);
        let mut block = self.time_block(indices.clone())?;
        if self.is_disturbed(&block) {
            block = self.time_block(indices)?;
        }
        self.journal
            .append(&block)
            .map_err(|source| Error::Journal {
                path: self.journal_path.clone(),
                source,
            })?;
        if self.is_disturbed(&block) {
            self.n_disturbed += block.len();
            self.bar.message(format!("{} disturbed", self.n_disturbed));
        }
        let n_new = block.len() as u64;
        self.visits.extend(block);
        self.bar.inc(n_new);
        Ok(true)
    }

    fn is_disturbed(&self, block: &[Visit]) -> bool {
        block
            .iter()
            .any(|visit| visit.drift(&self.anchor).disturbed)
    }

    fn time_block(&mut self, indices: Range<usize>) -> Result<Vec<Visit>, Error> {
        let timings = indices
            .clone()
            .map(|index| self.time_visit(index))
            .collect::<Result<Vec<_>, _>>()?;
        let before = self.before;
        self.before = self.bench.time_anchor()?;
        let (before, after) = (before.into(), self.before.into());
        Ok(indices
            .zip(timings)
            .map(|(index, visited)| Visit {
                index,
                before,
                after,
                network: visited.network,
                cells: visited.cells,
                peak_memory_bytes: visited.costs.peak_memory_bytes,
                energy_joules: visited.costs.energy_joules,
            })
            .collect())
    }

    /// Times a network and, on the first visit, its cells at every position, and measures what else is asked for.
    fn time_visit(&self, index: usize) -> Result<Visited, Error> {
        let genotype = self.itinerary.architecture(index);
        let network = self.bench.time_network(genotype)?.into();
        if !self.itinerary.is_first(index) {
            return Ok(Visited {
                network,
                cells: Vec::new(),
                costs: Costs::default(),
            });
        }
        let cells = self
            .positions
            .iter()
            .map(|Position { spec, .. }| Ok(self.bench.time_cell(spec, genotype)?.into()))
            .collect::<Result<_, Error>>()?;
        Ok(Visited {
            network,
            cells,
            costs: self.bench.costs(genotype)?,
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
        let anchor = anchor_of(&self.visits, self.max_disturbance);
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
                repeat_median_millis: seconds.get(row).and_then(|second| {
                    let drift = second.drift(&anchor);
                    let timing = drift.correct(&second.network.into());
                    (!drift.disturbed).then(|| timing.median_millis())
                }),
                peak_memory_bytes: visit.peak_memory_bytes.map(|bytes| bytes as f64),
                energy_joules: visit.energy_joules,
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
        self.settings.anchor = Some(AnchorRecord {
            median_nanos: anchor.reference_nanos(),
            machine: self.device.fingerprint(Machine::detect().fingerprint())?,
        });
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

/// The anchor of some visits.
fn anchor_of(visits: &[Visit], max_disturbance: f64) -> Anchor {
    let anchors: Vec<Timing> = visits.iter().map(|visit| visit.after.into()).collect();
    Anchor::new(&anchors, max_disturbance)
}

/// What visits say, corrected for drift; `None` for those that were disturbed.
fn timed(visits: &[Visit], max_disturbance: f64) -> Timed {
    let anchor = anchor_of(visits, max_disturbance);
    let millis = visits.iter().map(|visit| {
        let drift = visit.drift(&anchor);
        let timing = drift.correct(&visit.network.into());
        (!drift.disturbed).then(|| timing.median_millis())
    });
    Timed(millis.collect())
}
