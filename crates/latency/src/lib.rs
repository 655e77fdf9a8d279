//! Latency models: from the code of an architecture to milliseconds, with the exact gradient.
//!
//! | module | what |
//! |---|---|
//! | [`model`] | what every latency model can do, and the numbers that it is stored as |
//! | [`ridge`] | the additive control: one number per edge and primitive |
//! | [`mlp`] | the multi-layer regressor of LA-DARTS (arXiv 2001.06392) |
//! | [`figures`] | how well a model does: errors, ranks, the noise floor |
//! | [`conformal`] | how sure a prediction is: bounds that hold as often as they say |
//!
//! A model is fitted on the codes of architectures and what they took. It answers for any vector of that
//! length, so that a search may ask about weights between architectures. Nothing here knows files or
//! tensors of a framework.

mod adam;
pub mod conformal;
pub mod figures;
pub mod mlp;
pub mod model;
mod network;
pub mod ridge;

pub use crate::conformal::Conformal;
pub use crate::figures::{Figures, noise_floor_mape};
pub use crate::mlp::{Mlp, MlpConfig, cost_classes};
pub use crate::model::{FitError, LatencyModel, State, StateError, StateTensor};
pub use crate::ridge::Ridge;
