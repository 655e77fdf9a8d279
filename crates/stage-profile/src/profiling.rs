//! A profile under way: what is timed, in which order, and what is remembered of it.

use std::collections::HashSet;
use std::ops::Range;
use std::path::{Path, PathBuf};

use artifact::stage::{Bar, Progress};
use artifact::{
    AnchorRecord, CellSample, DeviceSpec, LatencyDataset, LatencySample, MeasurementSettings,
};
use candle_core::Device;
use measure::{Anchor, Drift, Machine, Timing};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use serde::{Deserialize, Serialize};
use space::{Genotype, NetworkSpec, SearchSpace};

use crate::bench::{Bench, Position, positions};
use crate::journal::Journal;
use crate::{Config, Error};

/// The journal's name in the working folder.
const JOURNAL: &str = "visits.jsonl";

/// A profile under way.
///
/// Architectures are *visited* in turn, and the first `n_repeated` a second time after all others. The
/// visits fall into blocks of `anchor_every` with a timing of the anchor between every two. A finished
/// block goes to the journal at once; a profile that is opened on a journal goes on behind it.
pub struct Profiling {
    architectures: Vec<Genotype>,
    n_visits: usize,
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
}

impl Visit {
    /// How the machine stood about this visit.
    fn drift(&self, anchor: &Anchor) -> Drift {
        anchor.drift(&self.before.into(), &self.after.into())
    }
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
        Self::open_on(DeviceSpec::Cpu, config, work_dir, progress)
    }

    /// [`open`](Self::open) on a device.
    ///
    /// # Errors
    /// As [`open`](Self::open); and if there is no such device.
    pub fn open_on(
        device: DeviceSpec,
        config: &Config,
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
        let n_visits = config.n_architectures + config.n_repeated;

        let path = work_dir.join(JOURNAL);
        let journal_error = |source| Error::Journal {
            path: path.clone(),
            source,
        };
        std::fs::create_dir_all(work_dir).map_err(journal_error)?;
        let (journal, visits) = Journal::open::<Visit>(&path).map_err(journal_error)?;
        let is_ours = |(index, visit): (usize, &Visit)| {
            let n_cells = if index < config.n_architectures {
                positions.len()
            } else {
                0
            };
            visit.index == index && visit.cells.len() == n_cells
        };
        if visits.len() > n_visits || !visits.iter().enumerate().all(is_ours) {
            return Err(Error::ForeignJournal { path });
        }

        let bench = Bench::new(config, network, open_device(device)?)?;
        if !visits.is_empty() {
            progress.line(&format!(
                "going on with {} of {n_visits} timed architectures",
                visits.len()
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

        let bar = progress.bar("timing architectures", n_visits as u64);
        bar.skip(visits.len() as u64);
        Ok(Self {
            architectures: sample(config.seed, config.n_architectures),
            n_visits,
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
            bar,
        })
    }

    /// Times one block and writes it to the journal; false, and nothing is timed, if none is left.
    ///
    /// # Errors
    /// If a network cannot be built or timed, or if the journal cannot be written to.
    pub fn advance(&mut self) -> Result<bool, Error> {
        let first = self.visits.len();
        let indices = first..self.n_visits.min(first + self.block_len);
        if indices.is_empty() {
            return Ok(false);
        }
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
            .map(|(index, (network, cells))| Visit {
                index,
                before,
                after,
                network,
                cells,
            })
            .collect())
    }

    /// Times a network and, on the first visit, its cells at every position.
    fn time_visit(&self, index: usize) -> Result<(Nanos, Vec<Nanos>), Error> {
        let n_architectures = self.architectures.len();
        let genotype = &self.architectures[index % n_architectures];
        let network = self.bench.time_network(genotype)?.into();
        if index >= n_architectures {
            return Ok((network, Vec::new()));
        }
        let cells = self
            .positions
            .iter()
            .map(|Position { spec, .. }| Ok(self.bench.time_cell(spec, genotype)?.into()))
            .collect::<Result<_, Error>>()?;
        Ok((network, cells))
    }

    /// Times what is left; the whole data set, drift corrected: all times are as if the anchor had taken
    /// its median over the whole run.
    ///
    /// # Errors
    /// See [`advance`](Self::advance).
    pub fn finish(mut self) -> Result<LatencyDataset, Error> {
        while self.advance()? {}
        self.bar.finish();
        let anchors: Vec<Timing> = self.visits.iter().map(|visit| visit.after.into()).collect();
        let anchor = Anchor::new(&anchors, self.max_disturbance);
        let (firsts, seconds) = self.visits.split_at(self.architectures.len());
        let mut samples = Vec::with_capacity(firsts.len());
        let mut cells = Vec::with_capacity(firsts.len() * self.positions.len());
        for (visit, genotype) in firsts.iter().zip(&self.architectures) {
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
                repeat_median_millis: seconds.get(visit.index).and_then(|second| {
                    let drift = second.drift(&anchor);
                    let timing = drift.correct(&second.network.into());
                    (!drift.disturbed).then(|| timing.median_millis())
                }),
            });
            for (Position { spec, n_uses }, &nanos) in self.positions.iter().zip(&visit.cells) {
                let timing = drift.correct(&nanos.into());
                cells.push(CellSample {
                    sample_index: visit.index as u32,
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

/// Draws architectures uniformly, no two of them one graph.
fn sample(seed: u64, n: usize) -> Vec<Genotype> {
    let space = SearchSpace::darts();
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut seen = HashSet::with_capacity(n);
    let mut architectures = Vec::with_capacity(n);
    while architectures.len() < n {
        let genotype = space.sample(&mut rng);
        if seen.insert(genotype.canonical()) {
            architectures.push(genotype);
        }
    }
    architectures
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sampled_architectures_are_distinct_graphs_and_repeat_with_the_seed() {
        let architectures = sample(7, 500);
        let graphs: HashSet<Genotype> = architectures.iter().map(Genotype::canonical).collect();
        assert_eq!(graphs.len(), 500);
        assert_eq!(sample(7, 500), architectures);
        assert_eq!(
            sample(7, 20),
            architectures[..20],
            "more architectures keep the first ones"
        );
        assert_ne!(sample(8, 20), architectures[..20]);
    }
}
