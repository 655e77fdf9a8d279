//! Latency models: from the code of an architecture to milliseconds, with the exact gradient.
//!
//! | module | what |
//! |---|---|
//! | [`model`] | what every latency model can do, and the numbers that it is stored as |
//! | [`ridge`] | the additive control: one number per edge and primitive |
//! | [`mlp`] | the multi-layer regressor of LA-DARTS (arXiv 2001.06392) |
//! | [`structured`] | an ensemble of Gaussian processes that know how a cell hangs together |
//! | `sampling` | which architectures are worth timing next |
//! | [`transfer`] | the model of a new device from models of others and a handful of measurements |
//! | [`figures`] | how well a model does: errors, ranks, the noise floor |
//! | [`conformal`] | how sure a prediction is: bounds that hold as often as they say |
//!
//! A model is fitted on the codes of architectures and what they took. It answers for any vector of that
//! length, so that a search may ask about weights between architectures. Nothing here knows files or
//! tensors of a framework.

mod adam;
pub mod conformal;
mod features;
pub mod figures;
mod linalg;
pub mod mlp;
pub mod model;
mod network;
pub mod ridge;
mod sampling;
pub mod structured;
pub mod transfer;

pub use crate::conformal::Conformal;
pub use crate::figures::{Figures, mape, noise_floor_mape};
pub use crate::mlp::{Mlp, MlpConfig};
pub use crate::model::{FitError, LatencyModel, LeftOut, State, StateError, StateTensor};
pub use crate::ridge::Ridge;
pub use crate::structured::{Structured, TimedCell};
pub use crate::transfer::{Transfer, Transferred};
