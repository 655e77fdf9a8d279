//! What a GPU does while something is timed on it: clocks, temperature, power, throttling; and the board's energy counter.
//!
//! NVML is opened when it is asked for (feature `cuda`). The decisions know nothing of it, so that they are tested
//! without a GPU.

use std::fmt;

/// What a GPU says of itself at one moment.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GpuState {
    /// Clock of the multiprocessors, in MHz.
    pub clock_mhz: u32,
    /// Clock of the memory, in MHz.
    pub memory_clock_mhz: u32,
    /// Of the chip, in degrees Celsius.
    pub temperature_celsius: u32,
    /// Of the board, in watts.
    pub power_watts: f64,
    /// Why clocks are held down (heat, power); empty = they are not.
    pub throttled: Vec<&'static str>,
}

impl fmt::Display for GpuState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} MHz, memory {} MHz, {} degrees C, {:.0} W",
            self.clock_mhz, self.memory_clock_mhz, self.temperature_celsius, self.power_watts
        )?;
        if !self.throttled.is_empty() {
            write!(f, ", throttled by {}", self.throttled.join(" and "))?;
        }
        Ok(())
    }
}

/// A sample that was taken while clocks were held down, again and again.
#[derive(Clone, Debug, PartialEq)]
pub struct Throttled {
    /// How often it was tried.
    pub n_tries: usize,
    /// The GPU behind the last try.
    pub state: GpuState,
}

impl fmt::Display for Throttled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "the GPU was throttled in all of {} tries ({}): let it cool, end what else runs there, or fix a lower clock \
             (nvidia-smi --lock-gpu-clocks)",
            self.n_tries, self.state
        )
    }
}

impl std::error::Error for Throttled {}

/// Takes a sample between two looks at the GPU, and again if clocks were held down at either, up to `n_tries` times;
/// the sample and the second look.
///
/// # Errors
/// The first error of a look or of the sample, as the outer result; [`Throttled`] as the inner one if no try
/// was undisturbed.
pub fn undisturbed<T, E>(
    n_tries: usize,
    mut look: impl FnMut() -> Result<GpuState, E>,
    mut sample: impl FnMut() -> Result<T, E>,
) -> Result<Result<(T, GpuState), Throttled>, E> {
    let n_tries = n_tries.max(1);
    let mut last = GpuState::default();
    for _ in 0..n_tries {
        let before = look()?;
        let taken = sample()?;
        last = look()?;
        if before.throttled.is_empty() && last.throttled.is_empty() {
            return Ok(Ok((taken, last)));
        }
    }
    Ok(Err(Throttled {
        n_tries,
        state: last,
    }))
}

#[cfg(feature = "cuda")]
pub use nvml::Watch;

#[cfg(feature = "cuda")]
mod nvml {
    use nvml_wrapper::Nvml;
    use nvml_wrapper::bitmasks::device::ThrottleReasons;
    use nvml_wrapper::enum_wrappers::device::{Clock, TemperatureSensor};
    use nvml_wrapper::error::NvmlError;

    use super::GpuState;
    use crate::gpu;

    /// NVML, looking at one GPU.
    pub struct Watch {
        nvml: Nvml,
        pci_bus_id: String,
    }

    /// Reasons that make times another GPU's.
    const REASONS: [(ThrottleReasons, &str); 5] = [
        (ThrottleReasons::SW_POWER_CAP, "its power cap"),
        (ThrottleReasons::HW_SLOWDOWN, "its hardware (heat or power)"),
        (ThrottleReasons::SW_THERMAL_SLOWDOWN, "heat"),
        (ThrottleReasons::HW_THERMAL_SLOWDOWN, "heat, in hardware"),
        (ThrottleReasons::HW_POWER_BRAKE_SLOWDOWN, "the power brake"),
    ];

    impl Watch {
        /// Opens NVML and finds the CUDA device of an index there, by its place on the bus.
        ///
        /// # Errors
        /// A sentence that says what is missing.
        pub fn open(index: usize) -> Result<Self, String> {
            let pci_bus_id = gpu::pci_bus_id(index).map_err(|error| error.to_string())?;
            let nvml = Nvml::init().map_err(|error| {
                format!(
                    "NVML (libnvidia-ml.so.1) does not load ({error}): throttling would not be seen"
                )
            })?;
            let watch = Self { nvml, pci_bus_id };
            match watch.state() {
                Ok(_) => Ok(watch),
                Err(error) => Err(format!(
                    "NVML does not tell of {}: {error}",
                    watch.pci_bus_id
                )),
            }
        }

        /// What the board has taken up since the driver was loaded, in joules; the counter moves some ten times a second.
        ///
        /// # Errors
        /// If NVML fails, or the GPU is older than Volta.
        pub fn joules(&self) -> Result<f64, NvmlError> {
            let device = self.nvml.device_by_pci_bus_id(&*self.pci_bus_id)?;
            Ok(device.total_energy_consumption()? as f64 / 1e3)
        }

        /// The GPU as it is.
        ///
        /// # Errors
        /// If NVML fails.
        pub fn state(&self) -> Result<GpuState, NvmlError> {
            let device = self.nvml.device_by_pci_bus_id(&*self.pci_bus_id)?;
            let reasons = device.current_throttle_reasons()?;
            Ok(GpuState {
                clock_mhz: device.clock_info(Clock::SM)?,
                memory_clock_mhz: device.clock_info(Clock::Memory)?,
                temperature_celsius: device.temperature(TemperatureSensor::Gpu)?,
                power_watts: f64::from(device.power_usage()?) / 1e3,
                throttled: REASONS
                    .into_iter()
                    .filter_map(|(reason, name)| reasons.contains(reason).then_some(name))
                    .collect(),
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;
    use std::convert::Infallible;

    /// Samples 1, 2, …, with clocks held down at the looks of these numbers, from 0.
    fn take(n_tries: usize, held_down: &[usize]) -> Result<u32, Throttled> {
        let (n_looks, n_samples) = (Cell::new(0), Cell::new(0));
        let look = || {
            let look = n_looks.replace(n_looks.get() + 1);
            Ok::<_, Infallible>(GpuState {
                clock_mhz: look as u32,
                throttled: if held_down.contains(&look) {
                    vec!["heat"]
                } else {
                    Vec::new()
                },
                ..GpuState::default()
            })
        };
        let sample = || {
            n_samples.set(n_samples.get() + 1);
            Ok(n_samples.get())
        };
        let Ok(taken) = undisturbed(n_tries, look, sample);
        taken.map(|(sample, state)| {
            // The look right behind the sample.
            assert_eq!(state.clock_mhz, 2 * sample - 1);
            sample
        })
    }

    #[test]
    fn throttled_samples_are_taken_again() {
        assert_eq!(take(3, &[]), Ok(1));
        // Before the first sample, after the first, both.
        assert_eq!(take(3, &[0]), Ok(2));
        assert_eq!(take(3, &[1]), Ok(2));
        assert_eq!(take(3, &[0, 3]), Ok(3));
    }

    #[test]
    fn a_gpu_that_stays_throttled_is_an_error_that_says_what_to_do() {
        let throttled = take(2, &[1, 2, 3]).unwrap_err();
        assert_eq!((throttled.n_tries, throttled.state.clock_mhz), (2, 3));
        let text = throttled.to_string();
        for says in ["2 tries", "throttled by heat", "--lock-gpu-clocks"] {
            assert!(text.contains(says), "{text}");
        }
    }
}
