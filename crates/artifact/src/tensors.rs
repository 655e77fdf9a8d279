//! Arrays of numbers, and the safetensors file that holds them.

use std::collections::{BTreeMap, HashMap};

use safetensors::tensor::{Dtype, SafeTensors, TensorView};

/// An array of 32-bit floats, row-major.
#[derive(Clone, Debug, PartialEq)]
pub struct FloatTensor {
    /// The length of each axis.
    pub shape: Vec<usize>,
    /// The numbers; as many as the product of the shape.
    pub values: Vec<f32>,
}

impl FloatTensor {
    /// The array of these numbers.
    ///
    /// # Panics
    /// If there are not as many as the shape says.
    pub fn new(shape: impl Into<Vec<usize>>, values: Vec<f32>) -> Self {
        let shape = shape.into();
        assert_eq!(
            shape.iter().product::<usize>(),
            values.len(),
            "values of shape {shape:?}"
        );
        Self { shape, values }
    }
}

/// Named arrays, sorted by name.
pub type FloatTensors = BTreeMap<String, FloatTensor>;

/// A safetensors file of these arrays, sorted by name. A message names what cannot be written.
pub(crate) fn encode(
    tensors: &FloatTensors,
    metadata: Option<HashMap<String, String>>,
) -> Result<Vec<u8>, String> {
    let bytes: Vec<Vec<u8>> = tensors
        .values()
        .map(|tensor| {
            tensor
                .values
                .iter()
                .flat_map(|value| value.to_le_bytes())
                .collect()
        })
        .collect();
    let views = tensors.iter().zip(&bytes).map(|((name, tensor), bytes)| {
        TensorView::new(Dtype::F32, tensor.shape.clone(), bytes)
            .map(|view| (name, view))
            .map_err(|error| format!("tensor {name}: {error}"))
    });
    let views: Vec<_> = views.collect::<Result<_, _>>()?;
    safetensors::serialize(views, metadata).map_err(|error| error.to_string())
}

/// The arrays of a safetensors file. A message names what cannot be read.
pub(crate) fn decode(bytes: &[u8]) -> Result<FloatTensors, String> {
    let file = SafeTensors::deserialize(bytes).map_err(|error| error.to_string())?;
    file.iter()
        .map(|(name, view)| {
            if view.dtype() != Dtype::F32 {
                return Err(format!("tensor {name} is {:?}, expected F32", view.dtype()));
            }
            let (numbers, _) = view.data().as_chunks::<4>();
            let values = numbers
                .iter()
                .map(|&bytes| f32::from_le_bytes(bytes))
                .collect();
            Ok((
                name.to_owned(),
                FloatTensor {
                    shape: view.shape().to_vec(),
                    values,
                },
            ))
        })
        .collect()
}
