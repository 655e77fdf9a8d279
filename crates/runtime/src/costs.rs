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
    energy: Option<EnergyMeter>,
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
        const NOT_CPU: &str = "only the processor's can be measured";
        if peak_memory && !device.is_cpu() {
            return Err(Unmeasured::PeakMemory(NOT_CPU));
        }
        if energy && !device.is_cpu() {
            return Err(Unmeasured::Energy(NOT_CPU.to_owned()));
        }
        let one_thread = peak_memory.then(|| Executor::new(1)).transpose();
        let energy = energy.then(|| EnergyMeter::open(Path::new(POWERCAP)));
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
        if let Some(meter) = &self.energy {
            let prepared = prepare().map_err(Unmeasured::Tensor)?;
            let run = || prepared.run().map(drop).map_err(Unmeasured::Tensor);
            costs.energy_joules = Some(executor.install(|| meter.joules(run))?);
        }
        Ok(costs)
    }
}
