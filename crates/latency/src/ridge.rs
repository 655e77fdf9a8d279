//! The additive control: one number per edge and primitive.

use crate::model::{FitError, LatencyModel, State, StateError, StateTensor};

/// latency = intercept + weights · code.
#[derive(Clone, Debug, PartialEq)]
pub struct Ridge {
    weights: Vec<f32>,
    intercept: f32,
    l2: f64,
}

impl Ridge {
    /// stub
    pub fn fit(codes: &[Vec<f32>], millis: &[f64], l2: f64) -> Result<Self, FitError> {
        let _ = millis;
        Ok(Self {
            weights: vec![0.0; codes[0].len()],
            intercept: 0.0,
            l2,
        })
    }

    /// stub
    pub fn fit_cv(codes: &[Vec<f32>], millis: &[f64]) -> Result<Self, FitError> {
        Self::fit(codes, millis, 1.0)
    }

    /// The penalty of the fit.
    pub fn l2(&self) -> f64 {
        self.l2
    }

    /// The numbers of the model.
    pub fn state(&self) -> State {
        State::from([
            (
                "weights".to_owned(),
                StateTensor::new(vec![self.weights.len()], self.weights.clone()),
            ),
            (
                "intercept".to_owned(),
                StateTensor::new(vec![], vec![self.intercept]),
            ),
        ])
    }

    /// The model of a state.
    ///
    /// # Errors
    /// If a tensor is missing or does not fit the others.
    pub fn from_state(state: &State) -> Result<Self, StateError> {
        let _ = state;
        Err(StateError::Missing {
            name: "weights".to_owned(),
        })
    }
}

impl LatencyModel for Ridge {
    fn code_len(&self) -> usize {
        self.weights.len()
    }

    fn predict_millis(&self, code: &[f32]) -> f64 {
        let _ = code;
        0.0
    }

    fn gradient(&self, code: &[f32]) -> (f64, Vec<f32>) {
        (self.predict_millis(code), self.weights.clone())
    }
}
