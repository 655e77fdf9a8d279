//! What every latency model can do, and the numbers that it is stored as.

use std::collections::BTreeMap;

use thiserror::Error;

/// Predicts the latency of an architecture from its code.
pub trait LatencyModel: Send + Sync {
    /// The length of the codes that the model was fitted on.
    fn code_len(&self) -> usize;

    /// The latency of a code, in milliseconds.
    ///
    /// # Panics
    /// If the code is not [`code_len`](Self::code_len) long.
    fn predict_millis(&self, code: &[f32]) -> f64;

    /// The latency of a code in milliseconds, and its exact derivative with respect to each number of
    /// the code.
    ///
    /// # Panics
    /// If the code is not [`code_len`](Self::code_len) long.
    fn gradient(&self, code: &[f32]) -> (f64, Vec<f32>);

    /// The model's own doubt about a code, as a relative error; only ratios between codes mean anything
    /// until a [`Conformal`](crate::Conformal) has calibrated it. 1 for a model that has none.
    ///
    /// # Panics
    /// If the code is not [`code_len`](Self::code_len) long.
    fn spread(&self, code: &[f32]) -> f64 {
        assert_eq!(code.len(), self.code_len(), "length of the code");
        1.0
    }
}

/// What a model says of the architectures that it is fitted on, each by a fit that has not seen it.
#[derive(Clone, Debug, PartialEq)]
pub struct LeftOut {
    /// The latency of each, in milliseconds.
    pub predicted: Vec<f64>,
    /// The [`spread`](LatencyModel::spread) of each.
    pub spread: Vec<f64>,
}

/// The numbers of a model by name. [`Ridge`](crate::Ridge) and [`Mlp`](crate::Mlp) turn into a state and
/// back without a change in what they predict.
pub type State = BTreeMap<String, StateTensor>;

/// Some numbers of a model.
#[derive(Clone, Debug, PartialEq)]
pub struct StateTensor {
    /// The length along each axis; none for a single number.
    pub shape: Vec<usize>,
    /// The numbers, row-major.
    pub values: Vec<f32>,
}

impl StateTensor {
    /// Numbers of a shape.
    ///
    /// # Panics
    /// If their number is not that of the shape.
    pub fn new(shape: Vec<usize>, values: Vec<f32>) -> Self {
        assert_eq!(
            shape.iter().product::<usize>(),
            values.len(),
            "shape {shape:?}"
        );
        Self { shape, values }
    }

    /// A single number.
    pub(crate) fn scalar(value: f32) -> Self {
        Self::new(vec![], vec![value])
    }

    /// Numbers along one axis.
    pub(crate) fn vector(values: Vec<f32>) -> Self {
        Self::new(vec![values.len()], values)
    }

    /// The tensor of a name.
    pub(crate) fn find<'a>(state: &'a State, name: &str) -> Result<&'a Self, StateError> {
        state.get(name).ok_or_else(|| StateError::Missing {
            name: name.to_owned(),
        })
    }

    /// The single number of a name.
    pub(crate) fn find_scalar(state: &State, name: &str) -> Result<f32, StateError> {
        Ok(Self::find(state, name)?.expect_axes(name, &[])?[0])
    }

    /// The numbers, if they are finite and the axes have these lengths, where `None` allows any but 0.
    pub(crate) fn expect_axes(
        &self,
        name: &str,
        axes: &[Option<usize>],
    ) -> Result<&[f32], StateError> {
        let fits = self.shape.len() == axes.len()
            && self.shape.iter().zip(axes).all(|(&len, axis)| match axis {
                Some(axis) => len == *axis,
                None => len > 0,
            })
            && self.shape.iter().product::<usize>() == self.values.len();
        if !fits {
            let axes: Vec<String> = axes
                .iter()
                .map(|axis| axis.map_or("any".to_owned(), |len| len.to_string()))
                .collect();
            return Err(StateError::Shape {
                name: name.to_owned(),
                found: self.shape.clone(),
                expected: format!("[{}]", axes.join(", ")),
            });
        }
        if self.values.iter().any(|value| !value.is_finite()) {
            return Err(StateError::NonFinite {
                name: name.to_owned(),
            });
        }
        Ok(&self.values)
    }
}

/// A latency that stays positive: below the floor it fades out like an exponential, with the same slope
/// where the two meet. The value and its slope.
pub(crate) fn positive(millis: f64, floor: f64) -> (f64, f64) {
    if millis >= floor {
        (millis, 1.0)
    } else {
        let factor = (millis / floor - 1.0).exp();
        (floor * factor, factor)
    }
}

/// Checks what every fit asks of its data; the length of the codes.
pub(crate) fn check_data(
    codes: &[Vec<f32>],
    millis: &[f64],
    needed: usize,
) -> Result<usize, FitError> {
    if codes.len() != millis.len() {
        return Err(FitError::Unpaired {
            codes: codes.len(),
            millis: millis.len(),
        });
    }
    if codes.len() < needed {
        return Err(FitError::TooFew {
            needed,
            found: codes.len(),
        });
    }
    let expected = codes[0].len();
    for (index, (code, &millis)) in codes.iter().zip(millis).enumerate() {
        if code.len() != expected || expected == 0 {
            return Err(FitError::CodeLength {
                index,
                expected,
                found: code.len(),
            });
        }
        if code.iter().any(|value| !value.is_finite()) {
            return Err(FitError::Code { index });
        }
        if !(millis > 0.0 && millis.is_finite()) {
            return Err(FitError::Latency { index, millis });
        }
    }
    Ok(expected)
}

/// Why a model cannot be fitted.
#[derive(Clone, Debug, PartialEq, Error)]
pub enum FitError {
    /// There are fewer architectures than the fit needs.
    #[error("the fit needs at least {needed} architectures, there are {found}; profile more")]
    TooFew {
        /// How many it needs.
        needed: usize,
        /// How many there are.
        found: usize,
    },
    /// The numbers of codes and latencies differ.
    #[error("there are {codes} codes for {millis} latencies")]
    Unpaired {
        /// How many codes.
        codes: usize,
        /// How many latencies.
        millis: usize,
    },
    /// A code is not as long as it must be.
    #[error("code {index} holds {found} numbers, expected {expected}")]
    CodeLength {
        /// Which code.
        index: usize,
        /// The length that it must have.
        expected: usize,
        /// Its length.
        found: usize,
    },
    /// A number of a code is NaN or infinite.
    #[error("code {index} holds a number that is not finite")]
    Code {
        /// Which code.
        index: usize,
    },
    /// A latency is not a positive number.
    #[error("the latency of architecture {index} is {millis} ms; it must be positive and finite")]
    Latency {
        /// Which architecture.
        index: usize,
        /// The latency.
        millis: f64,
    },
    /// A timed cell is none of an architecture that is fitted, or its latency is not a positive number.
    #[error(
        "cell {cell} of architecture {architecture} takes {millis} ms; it must be a cell of an architecture that is fitted, \
         and its latency positive and finite"
    )]
    Cell {
        /// Which architecture.
        architecture: usize,
        /// Which of its cells.
        cell: usize,
        /// Its latency.
        millis: f64,
    },
    /// A setting of the fit is out of its range.
    #[error("{name} is {value}; it must be {expected}")]
    Setting {
        /// The name of the setting.
        name: &'static str,
        /// Its value.
        value: f64,
        /// The range, in words.
        expected: &'static str,
    },
    /// The covariance of the architectures cannot be inverted.
    #[error(
        "the covariance of the architectures is not positive definite; a latency may be out of all proportion"
    )]
    Singular,
    /// The fit ran away.
    #[error("a weight is not finite after epoch {epoch}; lower the learning rate")]
    NonFinite {
        /// The epochs done.
        epoch: usize,
    },
}

/// Why a state does not make a model.
#[derive(Clone, Debug, PartialEq, Error)]
pub enum StateError {
    /// A tensor is missing.
    #[error("the state has no tensor `{name}`")]
    Missing {
        /// Its name.
        name: String,
    },
    /// A tensor has another shape than the rest of the state asks for.
    #[error("tensor `{name}` has shape {found:?}, expected {expected}")]
    Shape {
        /// Its name.
        name: String,
        /// Its shape.
        found: Vec<usize>,
        /// The shape that it must have, in words.
        expected: String,
    },
    /// The numbers are there but contradict each other.
    #[error("the numbers make no model: {reason}")]
    Unfit {
        /// Why not.
        reason: String,
    },
    /// A tensor holds NaN or infinity.
    #[error("tensor `{name}` holds a number that is not finite")]
    NonFinite {
        /// Its name.
        name: String,
    },
}
