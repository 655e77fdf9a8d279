//! Operations on the planes of one image: what a deployed network is made of.
//!
//! One image is laid out `c h w`, all its activations stay in the nearest caches, and several images run one
//! after the other or on several threads. Weights are packed when a network is prepared, with the batch
//! normalisation folded in. `f32` alone; the operations of the crate's root are the oracle.
//!
//! Work is spread over the current rayon pool in pieces that do not depend on its size.

mod dense;
mod maps;
mod pool;
mod unit;
mod windows;

pub use dense::Dense;
pub use maps::{Maps, PaddedMaps};
pub use pool::{average_pool, max_pool};
pub use unit::{Pointwise, Unit};
