//! What a run will keep in memory, told and checked before it starts.

use std::collections::BTreeMap;
use std::fmt;

use crate::error::Error;
use crate::stage::{DeviceSpec, print_line};

/// The memory of a run at its peak, by what it is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemoryPlan {
    /// The device whose memory this is of.
    pub device: String,
    /// What it is for, and bytes.
    pub parts: Vec<(&'static str, u64)>,
}

impl MemoryPlan {
    /// Nothing yet, on a device.
    pub fn on(device: DeviceSpec) -> Self {
        Self {
            device: device.to_string(),
            parts: Vec::new(),
        }
    }

    /// With so many bytes more.
    #[must_use]
    pub fn with(mut self, what: &'static str, bytes: u64) -> Self {
        self.parts.push((what, bytes));
        self
    }

    /// The sum, in bytes.
    pub fn total_bytes(&self) -> u64 {
        self.parts.iter().map(|(_, bytes)| bytes).sum()
    }

    /// Prints it: a table, or one JSON object in bytes.
    ///
    /// # Errors
    /// If standard output does not take it, [`Error::Stdout`].
    pub fn print(&self, json: bool) -> Result<(), Error> {
        if !json {
            return print_line(&self.to_string());
        }
        let parts: BTreeMap<_, _> = self.parts.iter().copied().collect();
        let answer = serde_json::json!({
            "device": self.device,
            "parts_bytes": parts,
            "total_bytes": self.total_bytes(),
        });
        print_line(&answer.to_string())
    }

    /// Makes sure that a CUDA device has as much free. The processor is not asked: its memory can be lent.
    ///
    /// # Errors
    /// [`Error::Memory`] if it has not; [`Error::Device`] if it does not tell.
    pub fn check(&self, device: DeviceSpec) -> Result<(), Error> {
        let DeviceSpec::Cuda(index) = device else {
            return Ok(());
        };
        let free_bytes = measure::gpu::free_bytes(index).map_err(|error| Error::Device {
            device,
            reason: error.to_string(),
        })?;
        self.check_against(device, free_bytes)
    }

    fn check_against(&self, device: DeviceSpec, free_bytes: u64) -> Result<(), Error> {
        let needed_bytes = self.total_bytes();
        if needed_bytes <= free_bytes {
            return Ok(());
        }
        Err(Error::Memory {
            device,
            needed: gib(needed_bytes),
            free: gib(free_bytes),
        })
    }
}

fn gib(bytes: u64) -> String {
    format!("{:.2} GiB", bytes as f64 / f64::from(1 << 30))
}

impl fmt::Display for MemoryPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        for (what, bytes) in &self.parts {
            writeln!(f, "{what:<24} {:>10.1} MiB", mib(*bytes))?;
        }
        let (what, total) = ("at its peak", self.total_bytes());
        write!(f, "{what:<24} {:>10.1} MiB on {}", mib(total), self.device)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stage::{ExitCode, StageError};

    #[test]
    fn what_does_not_fit_says_how_much_and_what_to_do() {
        let device = DeviceSpec::Cuda(1);
        let plan = MemoryPlan::on(device)
            .with("activations", 3 << 30)
            .with("weights", 1 << 29);
        assert!(plan.check_against(device, 4 << 30).is_ok());
        let error = plan.check_against(device, 3 << 30).unwrap_err();
        assert_eq!(error.exit_code(), ExitCode::Device);
        let text = error.to_string();
        for says in ["cuda:1", "3.50 GiB", "3.00 GiB", "batch_size"] {
            assert!(text.contains(says), "{text}");
        }
        assert!(plan.check(DeviceSpec::Cpu).is_ok());
    }

    #[test]
    fn a_plan_is_a_table_with_units() {
        let plan = MemoryPlan::on(DeviceSpec::Cpu)
            .with("activations", 3 << 20)
            .with("weights", 1 << 19);
        assert_eq!(
            plan.to_string(),
            "activations                     3.0 MiB\n\
             weights                         0.5 MiB\n\
             at its peak                     3.5 MiB on cpu"
        );
    }
}
