//! What a network takes up beside time.

use std::path::Path;

use candle_core::Device;
use measure::energy::{EnergyMeter, NoEnergy, POWERCAP};

use crate::{Executor, Prepared};

/// Measures what is asked for.
pub struct Meters {
    /// Where peak memory is asked for, one thread.
    one_thread: Option<Executor>,
    /// Where energy is asked for.
    energy: Option<Energy>,
}

/// What tells energy.
enum Energy {
    /// The processor's counters.
    Processor(EnergyMeter),
    /// The GPU's, and what it takes up at rest.
    Gpu { rest_watts: f64 },
}

/// What was asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Costs {
    /// The bytes of the network, its input and its largest set of buffers during one call on one thread.
    pub peak_memory_bytes: Option<u64>,
    /// The joules of one call.
    pub energy_joules: Option<f64>,
}

/// Why something is not measured.
#[derive(Debug)]
pub enum Unmeasured {
    /// A network cannot be run.
    Tensor(candle_core::Error),
    /// Peak memory is not to be had here, and why.
    PeakMemory(&'static str),
    /// Energy is not to be had here, and why.
    Energy(String),
    /// A thread cannot be started.
    Threads(rayon::ThreadPoolBuildError),
}

impl From<NoEnergy> for Unmeasured {
    fn from(error: NoEnergy) -> Self {
        Self::Energy(error.to_string())
    }
}

impl Meters {
    /// Looks for what it takes.
    ///
    /// # Errors
    /// If the device or this machine does not tell what is asked for.
    pub fn new(device: &Device, peak_memory: bool, energy: bool) -> Result<Self, Unmeasured> {
        if peak_memory && !device.is_cpu() {
            return Err(Unmeasured::PeakMemory(
                "only the processor's can be measured",
            ));
        }
        let one_thread = peak_memory.then(|| Executor::new(1)).transpose();
        let energy = energy.then(|| {
            if device.is_cpu() {
                return Ok(Energy::Processor(EnergyMeter::open(Path::new(POWERCAP))?));
            }
            match crate::rest_watts(device) {
                Ok(rest_watts) => Ok(Energy::Gpu { rest_watts }),
                Err(error) => Err(Unmeasured::Energy(error.to_string())),
            }
        });
        Ok(Self {
            one_thread: one_thread.map_err(Unmeasured::Threads)?,
            energy: energy.transpose()?,
        })
    }

    /// Measures a network that is prepared anew for each metric; for energy it runs on the executor.
    ///
    /// # Errors
    /// If it cannot be run, or if a counter does not answer.
    pub fn measure(
        &self,
        executor: &Executor,
        prepare: impl Fn() -> candle_core::Result<Prepared> + Sync,
    ) -> Result<Costs, Unmeasured> {
        let mut costs = Costs::default();
        if let Some(one_thread) = &self.one_thread {
            let run = |prepared: &Prepared| prepared.run().map(drop);
            let bytes = one_thread.install(|| measure::memory::peak_bytes(&prepare, run));
            let uncounted = Unmeasured::PeakMemory("this program's allocator does not count");
            costs.peak_memory_bytes = Some(bytes.map_err(Unmeasured::Tensor)?.ok_or(uncounted)?);
        }
        if let Some(energy) = &self.energy {
            let prepared = prepare().map_err(Unmeasured::Tensor)?;
            let joules = match energy {
                Energy::Processor(meter) => {
                    let run = || prepared.run().map(drop).map_err(Unmeasured::Tensor);
                    executor.install(|| meter.joules(run))?
                }
                Energy::Gpu { rest_watts } => prepared
                    .joules(executor, *rest_watts)
                    .map_err(Unmeasured::Tensor)?,
            };
            if joules <= 0.0 {
                return Err(Unmeasured::Energy(
                    "the counter rose no more under a network than at rest".to_owned(),
                ));
            }
            costs.energy_joules = Some(joules);
        }
        Ok(costs)
    }
}
