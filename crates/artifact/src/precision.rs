//! In which precision a network's products are computed.

use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::stage::DeviceSpec;

/// The precision of the pointwise convolutions' products, as it stands in configs, files and command lines. Whatever it is, weights,
/// statistics and all that lies between two operations are `f32`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Precision {
    /// `f32`.
    #[default]
    F32,
    /// TF32, in the tensor cores of a GPU from Ampere on.
    Tf32,
    /// Factors rounded to bf16, sums in `f32`, in tensor cores too.
    Bf16,
}

impl Precision {
    /// As in configs.
    pub const fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Tf32 => "tf32",
            Self::Bf16 => "bf16",
        }
    }

    /// Whether it is the one that is meant where none is named.
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }

    /// Makes sure that the device computes so.
    ///
    /// # Errors
    /// [`Error::CudaOnly`] for anything but `f32` on the CPU.
    pub fn check(self, device: DeviceSpec) -> Result<(), Error> {
        match device {
            DeviceSpec::Cpu if !self.is_default() => Err(Error::CudaOnly {
                setting: format!("precision = \"{}\"", self.name()),
                instead: "precision = \"f32\"",
            }),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_processor_knows_f32_alone() {
        assert!(Precision::F32.check(DeviceSpec::Cpu).is_ok());
        assert!(Precision::Bf16.check(DeviceSpec::Cuda(0)).is_ok());
        let refused = Precision::Tf32.check(DeviceSpec::Cpu).unwrap_err();
        assert_eq!(
            refused.to_string(),
            "precision = \"tf32\" in the config is for --device cuda; on the processor say precision = \"f32\""
        );
    }
}
