//! The networks of differentiable architecture search, and what trains them.
//!
//! | module | what |
//! |---|---|
//! | [`parameters`] | named weights and buffers, their initialisation, import and export by PyTorch's state-dict names |
//! | [`layers`] | batch normalisation, `ReLUConvBN`, `FactorizedReduce`, stems, the linear head |
//! | [`bilevel`] | the second-order gradient of alpha, the dominant eigenvalue of its Hessian |
//! | [`candidate`] | the candidate operation of an edge ([`space::Primitive`] made real) |
//! | [`architecture`] | alpha, beta, their softmax, the soft code, the derived genotype |
//! | [`supernet`] | the weight-sharing search network, with full or partial channels |
//! | [`derived`] | the network of one genotype, and its cells one by one |
//! | [`inference`] | derived networks as they are deployed |
//! | [`auxiliary`] | the auxiliary head of the evaluation network |
//! | [`memory`] | what a training step will keep in memory |
//! | [`loss`] | cross entropy with label smoothing, accuracy |
//! | [`optimizer`] | SGD with momentum, Adam with coupled L2, global-norm clipping |
//! | [`schedule`] | learning rate and drop path over epochs |
//!
//! Activations are `[n, c, h, w]`; inside fused cells (CPU) `[c, h, w, n]`, inside grouped ones (CUDA) `[c, n, h, w]`. Everything random draws from a caller's seeded generator, and
//! everything that is summed over parameters is summed in the order of their names, so that a run
//! repeats bit for bit on the same number of threads.

pub mod architecture;
pub mod auxiliary;
mod awake;
pub mod bilevel;
pub mod candidate;
pub mod derived;
mod fused;
pub mod inference;
pub mod layers;
pub mod loss;
pub mod memory;
pub mod optimizer;
pub mod parameters;
mod pass;
pub mod schedule;
pub mod supernet;

pub use architecture::{Architecture, Candidates, ChannelRatio};
pub use kernels::{Precision, Readback, Upload, Uploads, cuda_device, one_ahead};

pub use derived::{DerivedNet, Logits, StandaloneCell};
pub use inference::{InferenceCell, InferenceNet};
pub use parameters::{Parameters, StateError};
pub use pass::Pass;
pub use supernet::Supernet;

/// The seeded generator of every random draw in this crate.
pub type Rng = rand_chacha::ChaCha8Rng;
