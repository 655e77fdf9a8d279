//! Times one network, one cell, the anchor: what touches the device.

use std::sync::Once;

use artifact::stage::Progress;
use artifact::{AnchorRecord, GpuRecord, Metric, Precision, TimingRecord};
use candle_core::Device;
use measure::{Protocol, Timing};
use runtime::{Costs, Executor, Meters, On, Prepared, Timed, Unmeasured};
use space::{CellSpec, Genotype, NetworkSpec};

use crate::{Config, Error};

const ANCHOR: &str = AnchorRecord::GENOTYPE;

/// A device with all that stays the same from one timing to the next.
pub(crate) struct Bench {
    executor: Executor,
    on: On,
    protocol: Protocol,
    batch_size: usize,
    network: NetworkSpec,
    anchor: Prepared,
    meters: Meters,
    progress: Progress,
    /// Says that networks cannot be captured.
    warning: Once,
}

/// A network's timing, and the GPU behind it.
pub(crate) struct TimedNetwork {
    pub(crate) timing: Timing,
    pub(crate) gpu: Option<GpuRecord>,
}

impl Bench {
    pub(crate) fn new(
        config: &Config,
        network: NetworkSpec,
        device: Device,
        progress: &Progress,
    ) -> Result<Self, Error> {
        let &TimingRecord {
            batch_size,
            n_threads,
            n_warmup,
            n_repeats,
            precision,
            flush_l2,
        } = &config.timing;
        let asks = |metric| config.metrics.contains(&metric);
        let meters = Meters::new(&device, asks(Metric::PeakMemory), asks(Metric::Energy))
            .map_err(|unmeasured| Error::unmeasured(unmeasured, ANCHOR))?;
        let executor = Executor::new(n_threads).map_err(|error| Error::Threads {
            n_threads,
            source: Box::new(error),
        })?;
        let anchor = Genotype::named(ANCHOR).expect("the anchor is a published genotype");
        let on = On {
            device,
            precision: match precision {
                Precision::F32 => nn::Precision::F32,
                Precision::Tf32 => nn::Precision::Tf32,
                Precision::Bf16 => nn::Precision::Bf16,
            },
        };
        let anchor = Prepared::network(&network, &anchor, batch_size, &on).map_err(|source| {
            Error::Network {
                what: ANCHOR.to_owned(),
                source,
            }
        })?;
        let protocol = Protocol {
            n_warmup,
            n_repeats,
            flush_l2,
        };
        Ok(Self {
            executor,
            on,
            protocol,
            batch_size,
            network,
            anchor,
            meters,
            progress: progress.clone(),
            warning: Once::new(),
        })
    }

    pub(crate) fn time_anchor(&self) -> Result<Timing, Error> {
        let timed = self.time(&self.anchor).map_err(|error| error.of(ANCHOR));
        Ok(timed?.timing)
    }

    pub(crate) fn time_network(&self, genotype: &Genotype) -> Result<TimedNetwork, Error> {
        let timed = Prepared::network(&self.network, genotype, self.batch_size, &self.on)
            .map_err(Untimed::Tensor)
            .and_then(|network| self.time(&network))
            .map_err(|error| error.of(genotype))?;
        Ok(TimedNetwork {
            timing: timed.timing,
            gpu: timed.gpu.map(|state| GpuRecord {
                clock_mhz: state.clock_mhz.into(),
                memory_clock_mhz: state.memory_clock_mhz.into(),
                temperature_celsius: state.temperature_celsius.into(),
                power_watts: state.power_watts,
            }),
        })
    }

    pub(crate) fn time_cell(&self, spec: &CellSpec, genotype: &Genotype) -> Result<Timing, Error> {
        let cell = genotype.cell(spec.kind);
        let timed = Prepared::cell(spec, cell, self.batch_size, &self.on)
            .map_err(Untimed::Tensor)
            .and_then(|cell| self.time(&cell))
            .map_err(|error| error.of(format!("the {} cell of {genotype}", spec.kind)));
        Ok(timed?.timing)
    }

    /// What is asked for beside latency.
    pub(crate) fn costs(&self, genotype: &Genotype) -> Result<Costs, Error> {
        let prepare = || Prepared::network(&self.network, genotype, self.batch_size, &self.on);
        let costs = self.meters.measure(&self.executor, prepare);
        costs.map_err(|unmeasured| Error::unmeasured(unmeasured, genotype))
    }

    /// On CUDA, the network launched as one graph; `None` on the CPU. Where it cannot be captured there is none either, and
    /// a line says why.
    pub(crate) fn time_captured(&self, genotype: &Genotype) -> Result<Option<Timing>, Error> {
        if self.on.device.is_cpu() {
            return Ok(None);
        }
        let failed = |source| Error::Network {
            what: genotype.to_string(),
            source,
        };
        let prepared = Prepared::network(&self.network, genotype, self.batch_size, &self.on);
        let prepared = prepared.map_err(failed)?;
        match prepared.time_captured(&self.executor, &self.protocol) {
            Ok(timed) => timed.transpose().map_err(failed),
            Err(reason) => {
                self.warning.call_once(|| {
                    self.progress.line(&format!(
                        "a network cannot be captured in a CUDA graph ({reason}): latency_graph_median_millis \
                         stays empty where that is so"
                    ));
                });
                Ok(None)
            }
        }
    }

    fn time(&self, prepared: &Prepared) -> Result<Timed, Untimed> {
        let timed = prepared
            .time(&self.executor, &self.protocol)
            .map_err(Untimed::Tensor)?;
        // A clock that is too coarse must not pass for a fast network.
        if timed.timing.p10_nanos > 0 {
            Ok(timed)
        } else {
            Err(Untimed::Zero)
        }
    }
}

impl Error {
    fn unmeasured(unmeasured: Unmeasured, what: impl ToString) -> Self {
        match unmeasured {
            Unmeasured::Tensor(source) => Self::Network {
                what: what.to_string(),
                source,
            },
            Unmeasured::PeakMemory(reason) => Self::Metric {
                metric: Metric::PeakMemory,
                reason: reason.to_owned(),
            },
            Unmeasured::Energy(reason) => Self::Metric {
                metric: Metric::Energy,
                reason,
            },
            Unmeasured::Threads(error) => Self::Threads {
                n_threads: 1,
                source: Box::new(error),
            },
        }
    }
}

/// Why something could not be timed; what it was is not said yet.
enum Untimed {
    Tensor(candle_core::Error),
    Zero,
}

impl Untimed {
    fn of(self, what: impl ToString) -> Error {
        let what = what.to_string();
        match self {
            Self::Tensor(source) => Error::Network { what, source },
            Self::Zero => Error::Zero { what },
        }
    }
}

/// A geometry of cells, and how many layers of the network have it.
#[derive(Debug, PartialEq)]
pub(crate) struct Position {
    pub(crate) spec: CellSpec,
    pub(crate) n_uses: u32,
}

/// The distinct geometries of a network's cells, in the order of the first layer that has each.
pub(crate) fn positions(network: &NetworkSpec) -> Vec<Position> {
    let mut positions: Vec<Position> = Vec::new();
    for cell in network.cells() {
        let spec = cell.geometry();
        match positions.iter_mut().find(|position| position.spec == spec) {
            Some(position) => position.n_uses += 1,
            None => positions.push(Position { spec, n_uses: 1 }),
        }
    }
    positions
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_cover_every_layer_once() {
        for network in [NetworkSpec::cifar10(), NetworkSpec::imagenet()] {
            let positions = positions(&network);
            let n_uses: Vec<u32> = positions.iter().map(|position| position.n_uses).collect();
            assert_eq!(n_uses.iter().sum::<u32>() as usize, network.n_layers);
            for position in &positions {
                let layers = network
                    .cells()
                    .iter()
                    .filter(|c| c.geometry() == position.spec)
                    .count();
                assert_eq!(position.n_uses as usize, layers);
            }
        }
        // Behind the stem, behind stem and cell, uniform, reduction, behind it, uniform, ….
        assert_eq!(
            positions(&NetworkSpec::cifar10())
                .iter()
                .map(|p| p.n_uses)
                .collect::<Vec<_>>(),
            [1, 1, 4, 1, 1, 5, 1, 1, 5]
        );
    }
}
