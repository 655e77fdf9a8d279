//! How something is timed, and on what: the protocol, the anchor against drift, the machine.
//!
//! | module | what |
//! |---|---|
//! | [`timing`] | warm-up, repeats, median and quantiles of a closure |
//! | [`anchor`] | corrects for drift of the machine, and says which timings it disturbed |
//! | `cuda` (feature `cuda`) | the same on a CUDA stream, by events |
//! | [`machine`] | the machine of the timings, and a fingerprint of what stays the same on it |
//! | [`gpu`] | the CUDA devices, as the driver tells them |
//! | [`watch`] | what a GPU does meanwhile: clocks, heat, throttling, energy |
//! | [`memory`] | the largest memory that the process has held, and what a piece of work needs |
//! | [`energy`] | what the processor takes up, where the machine tells |
//!
//! Nothing here knows a network, a file format or a thread pool: what is timed is a closure.

pub mod anchor;
#[cfg(feature = "cuda")]
pub mod cuda;
pub mod energy;
pub mod gpu;
pub mod machine;
pub mod memory;
pub mod timing;
pub mod watch;

pub use crate::anchor::{Anchor, Drift};
pub use crate::energy::EnergyMeter;
pub use crate::machine::Machine;
pub use crate::memory::peak_rss_bytes;
pub use crate::timing::{Protocol, Timing, time};
