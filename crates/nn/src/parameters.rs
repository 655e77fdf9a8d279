//! Named weights and buffers.
//!
//! Names are the state-dict names of the original PyTorch networks (`cells.0.preprocess0.op.1.weight`),
//! so that their checkpoints load here and ours load there. `num_batches_tracked` has no use in a batch
//! normalisation of fixed momentum: it is ignored on import and left out on export (PyTorch fills it in).

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;
use std::sync::{Arc, Mutex};

use candle_core::{DType, Device, Result, Shape, Tensor, TensorId, Var};
use kernels::Precision;
use rand::RngExt;

use crate::Rng;
use crate::optimizer::Gradients;

/// Why a state could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// A weight or buffer of the network is not in the state.
    #[error("the state has no tensor `{name}`, which this network needs")]
    Missing {
        /// The missing name.
        name: String,
    },
    /// The state holds a tensor that the network does not have.
    #[error(
        "the state holds `{name}`, which this network does not have: is it of another genotype, depth or channel ratio?"
    )]
    Unexpected {
        /// The surplus name.
        name: String,
    },
    /// A tensor has another shape than the network's.
    #[error("`{name}` has shape {found:?} in the state, but {expected:?} in this network")]
    Shape {
        /// The tensor's name.
        name: String,
        /// The network's shape.
        expected: Vec<usize>,
        /// The state's shape.
        found: Vec<usize>,
    },
    /// The tensor library failed.
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
}

/// The trainable parameters and the buffers of a network, ordered by name.
#[derive(Debug, Clone, Default)]
pub struct Parameters {
    weights: BTreeMap<String, Var>,
    buffers: BTreeMap<String, Var>,
    found: FoundGradients,
}

/// Gradients that a backward pass found beside the tensor library's graph, the latest of each weight: an operation of
/// that graph has three arguments at most, and cells have hundreds of weights. Whoever collects gradients takes them.
#[derive(Debug, Clone, Default)]
pub(crate) struct FoundGradients(Arc<Mutex<HashMap<TensorId, Tensor>>>);

impl FoundGradients {
    /// Keeps the gradient of a weight.
    pub(crate) fn put(&self, weight: &Var, gradient: Tensor) {
        let mut found = self.0.lock().expect("no thread panicked with it");
        found.insert(weight.id(), gradient);
    }

    /// The gradient of a weight, which is forgotten.
    pub(crate) fn take(&self, weight: &Var) -> Option<Tensor> {
        let mut found = self.0.lock().expect("no thread panicked with it");
        found.remove(&weight.id())
    }
}

impl Parameters {
    /// The trainable parameters, ordered by name.
    pub fn weights(&self) -> &BTreeMap<String, Var> {
        &self.weights
    }

    /// The buffers (running statistics), ordered by name.
    pub fn buffers(&self) -> &BTreeMap<String, Var> {
        &self.buffers
    }

    /// The number of trainable scalars.
    pub fn n_weights(&self) -> usize {
        self.weights.values().map(|var| var.elem_count()).sum()
    }

    /// The parameters of a network built on this builder's names and nothing else.
    pub(crate) fn from_weights(weights: BTreeMap<String, Var>) -> Self {
        Self {
            weights,
            ..Self::default()
        }
    }

    /// What a backward pass finds beside the graph.
    pub(crate) fn found(&self) -> &FoundGradients {
        &self.found
    }

    /// A copy of every weight and buffer under its name.
    pub fn state(&self) -> Result<BTreeMap<String, Tensor>> {
        self.weights
            .iter()
            .chain(&self.buffers)
            .map(|(name, var)| Ok((name.clone(), var.as_detached_tensor().copy()?)))
            .collect()
    }

    /// Puts back what [`state`](Self::state) gave.
    pub(crate) fn restore(&self, state: &BTreeMap<String, Tensor>) -> Result<()> {
        for (name, var) in self.weights.iter().chain(&self.buffers) {
            var.set(&state[name])?;
        }
        Ok(())
    }

    /// Moves every weight by `factor` times its entry in a direction.
    pub(crate) fn shift(&self, direction: &Gradients, factor: f64) -> Result<()> {
        for (name, var) in &self.weights {
            if let Some(direction) = direction.get(name) {
                var.set(&(var.as_detached_tensor() + (direction * factor)?)?)?;
            }
        }
        Ok(())
    }

    /// Overwrites every weight and buffer from a state; nothing changes unless all of it fits.
    ///
    /// Entries named `….num_batches_tracked` are ignored.
    ///
    /// # Errors
    /// [`StateError`] names the first tensor that is missing, surplus, or of another shape.
    pub fn load(&self, state: &BTreeMap<String, Tensor>) -> std::result::Result<(), StateError> {
        let own = || self.weights.iter().chain(&self.buffers);
        for (name, var) in own() {
            let found = state
                .get(name)
                .ok_or_else(|| StateError::Missing { name: name.clone() })?;
            if found.shape() != var.shape() {
                return Err(StateError::Shape {
                    name: name.clone(),
                    expected: var.dims().to_vec(),
                    found: found.dims().to_vec(),
                });
            }
        }
        let is_known = |name: &String| {
            self.weights.contains_key(name)
                || self.buffers.contains_key(name)
                || name.ends_with(".num_batches_tracked")
        };
        if let Some(name) = state.keys().find(|name| !is_known(name)) {
            return Err(StateError::Unexpected { name: name.clone() });
        }
        for (name, var) in own() {
            var.set(&state[name].to_dtype(var.dtype())?.to_device(var.device())?)?;
        }
        Ok(())
    }
}

/// Creates named parameters while a network is being built; clones share one set of parameters.
#[derive(Clone)]
pub struct Builder<'r> {
    shared: Rc<RefCell<Shared<'r>>>,
    prefix: String,
    device: Device,
    dtype: DType,
    precision: Precision,
}

struct Shared<'r> {
    parameters: Parameters,
    rng: &'r mut Rng,
}

impl<'r> Builder<'r> {
    /// A builder whose initial values are drawn from `rng`, in the order of construction.
    pub fn new(device: &Device, dtype: DType, rng: &'r mut Rng) -> Self {
        let shared = Shared {
            parameters: Parameters::default(),
            rng,
        };
        Self {
            shared: Rc::new(RefCell::new(shared)),
            prefix: String::new(),
            device: device.clone(),
            dtype,
            precision: Precision::F32,
        }
    }

    /// The same builder for a network whose pointwise convolutions are computed in that precision, where cells run
    /// grouped or operation by operation: fused ones, on the CPU, know `f32` and `f64` alone.
    #[must_use]
    pub fn with_precision(self, precision: Precision) -> Self {
        Self { precision, ..self }
    }

    pub(crate) fn precision(&self) -> Precision {
        self.precision
    }

    /// A builder for the part of the network called `name`.
    pub fn scope(&self, name: impl std::fmt::Display) -> Self {
        let prefix = self.path(name);
        Self {
            prefix,
            ..self.clone()
        }
    }

    fn path(&self, name: impl std::fmt::Display) -> String {
        if self.prefix.is_empty() {
            name.to_string()
        } else {
            format!("{}.{name}", self.prefix)
        }
    }

    /// A weight drawn from U(-bound, bound) with bound = 1 / sqrt(`fan_in`), PyTorch's default for
    /// convolutions and linear layers.
    pub(crate) fn uniform(
        &self,
        name: &str,
        shape: impl Into<Shape>,
        fan_in: usize,
    ) -> Result<Var> {
        let shape = shape.into();
        let bound = 1.0 / (fan_in as f64).sqrt();
        let values: Vec<f64> = {
            let rng = &mut self.shared.borrow_mut().rng;
            (0..shape.elem_count())
                .map(|_| rng.random_range(-bound..bound))
                .collect()
        };
        let tensor = Tensor::from_vec(values, shape, &self.device)?.to_dtype(self.dtype)?;
        self.insert_weight(name, &tensor)
    }

    /// A weight of one value everywhere.
    pub(crate) fn constant(&self, name: &str, shape: impl Into<Shape>, value: f64) -> Result<Var> {
        self.insert_weight(name, &self.filled(shape, value)?)
    }

    /// A buffer of one value everywhere.
    pub(crate) fn buffer(&self, name: &str, shape: impl Into<Shape>, value: f64) -> Result<Var> {
        let var = Var::from_tensor(&self.filled(shape, value)?)?;
        let path = self.path(name);
        self.shared
            .borrow_mut()
            .parameters
            .buffers
            .insert(path, var.clone());
        Ok(var)
    }

    fn filled(&self, shape: impl Into<Shape>, value: f64) -> Result<Tensor> {
        Tensor::full(value, shape, &self.device)?.to_dtype(self.dtype)
    }

    fn insert_weight(&self, name: &str, tensor: &Tensor) -> Result<Var> {
        let var = Var::from_tensor(tensor)?;
        let path = self.path(name);
        self.shared
            .borrow_mut()
            .parameters
            .weights
            .insert(path, var.clone());
        Ok(var)
    }

    /// Everything built so far.
    pub fn parameters(&self) -> Parameters {
        self.shared.borrow().parameters.clone()
    }
}
