//! The whole state of an unfinished run, in one file.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use safetensors::tensor::{SafeTensors, TensorView};
use serde::{Deserialize, Serialize};
use serde_json::Value;

pub use safetensors::Dtype;

use crate::digest::Digest;
use crate::disk;
use crate::error::Error;
use crate::json;

/// The entry of the file's metadata that is ours.
const HEADER: &str = "checkpoint";

/// The state of an unfinished run: arrays, and everything else as JSON.
///
/// [`save`](Self::save) replaces the last checkpoint in one step, so that a run that is killed at any
/// moment finds either the old one or the new. The file is safetensors.
#[derive(Clone, Debug, PartialEq)]
pub struct Checkpoint {
    /// Epoch, step, random states, history: whatever is no array. JSON has no NaN.
    pub meta: Value,
    /// The arrays, by name.
    pub tensors: BTreeMap<String, RawTensor>,
}

/// An array of any type of number, as bytes.
#[derive(Clone, Debug, PartialEq)]
pub struct RawTensor {
    /// The type of the numbers.
    pub dtype: Dtype,
    /// The length of each axis.
    pub shape: Vec<usize>,
    /// The numbers, row-major and little-endian.
    pub bytes: Vec<u8>,
}

/// A type of number that a [`RawTensor`] may hold.
pub trait Element: Copy + sealed::Sealed {
    /// Its name in the file.
    const DTYPE: Dtype;
    #[doc(hidden)]
    fn put(self, bytes: &mut Vec<u8>);
    #[doc(hidden)]
    fn get(bytes: &[u8]) -> Self;
}

mod sealed {
    pub trait Sealed {}
}

macro_rules! elements {
    ($($type:ident $dtype:ident),+) => {$(
        impl sealed::Sealed for $type {}
        impl Element for $type {
            const DTYPE: Dtype = Dtype::$dtype;
            fn put(self, bytes: &mut Vec<u8>) {
                bytes.extend(self.to_le_bytes());
            }
            fn get(bytes: &[u8]) -> Self {
                Self::from_le_bytes(bytes.try_into().expect("a chunk is one number"))
            }
        }
    )+};
}
elements!(f32 F32, f64 F64, u8 U8, u32 U32, i64 I64, u64 U64);

impl RawTensor {
    /// The array of these numbers.
    ///
    /// # Panics
    /// If there are not as many as the shape says.
    pub fn new<T: Element>(shape: impl Into<Vec<usize>>, values: &[T]) -> Self {
        let shape = shape.into();
        assert_eq!(
            shape.iter().product::<usize>(),
            values.len(),
            "values of shape {shape:?}"
        );
        let mut bytes = Vec::with_capacity(size_of_val(values));
        values.iter().for_each(|value| value.put(&mut bytes));
        Self {
            dtype: T::DTYPE,
            shape,
            bytes,
        }
    }

    /// The numbers; `None` if they are of another type.
    pub fn values<T: Element>(&self) -> Option<Vec<T>> {
        (self.dtype == T::DTYPE).then(|| {
            self.bytes
                .chunks_exact(size_of::<T>())
                .map(T::get)
                .collect()
        })
    }
}

#[derive(Serialize, Deserialize)]
struct Header {
    digest: Digest,
    meta: Value,
}

impl Checkpoint {
    /// Replaces the checkpoint of that file, in one step; the folder is made if need be.
    ///
    /// # Errors
    /// If the disk does not take it, [`Error::Store`].
    pub fn save(&self, path: &Path) -> Result<(), Error> {
        let encode = |reason: String| Error::Encode {
            file: path.display().to_string(),
            reason,
        };
        let views: Vec<(&String, TensorView<'_>)> = self
            .tensors
            .iter()
            .map(|(name, tensor)| {
                TensorView::new(tensor.dtype, tensor.shape.clone(), &tensor.bytes)
                    .map(|view| (name, view))
                    .map_err(|error| encode(format!("tensor {name}: {error}")))
            })
            .collect::<Result<_, _>>()?;
        let header = Header {
            digest: self.digest(),
            meta: self.meta.clone(),
        };
        let header = serde_json::to_string(&header).expect("strings and JSON are JSON");
        let metadata = [(HEADER.to_owned(), header)].into();
        let bytes = safetensors::serialize(views, Some(metadata))
            .map_err(|error| encode(error.to_string()))?;
        disk::replace(path, &bytes).map_err(|source| Error::Store {
            path: path.to_owned(),
            source,
        })
    }

    /// The checkpoint of that file. `None` if there is none, and with a warning if it is damaged: the run
    /// then starts from the beginning.
    ///
    /// # Errors
    /// If there is a file that cannot be read, [`Error::Read`].
    pub fn load(path: &Path) -> Result<Option<Self>, Error> {
        let bytes = match std::fs::read(path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => {
                return Err(Error::Read {
                    path: path.to_owned(),
                    source,
                });
            }
        };
        match Self::decode(&bytes) {
            Ok(checkpoint) => Ok(Some(checkpoint)),
            Err(reason) => {
                tracing::warn!(path = %path.display(), %reason, "the checkpoint is damaged, starting afresh");
                Ok(None)
            }
        }
    }

    fn decode(bytes: &[u8]) -> Result<Self, String> {
        let (_, metadata) = SafeTensors::read_metadata(bytes).map_err(|error| error.to_string())?;
        let header = metadata
            .metadata()
            .as_ref()
            .and_then(|entries| entries.get(HEADER));
        let header: Header = serde_json::from_str(header.ok_or("it has no header")?)
            .map_err(|error| error.to_string())?;
        let file = SafeTensors::deserialize(bytes).map_err(|error| error.to_string())?;
        let tensors = file.iter().map(|(name, view)| {
            let (dtype, shape) = (view.dtype(), view.shape().to_vec());
            (
                name.to_owned(),
                RawTensor {
                    dtype,
                    shape,
                    bytes: view.data().to_vec(),
                },
            )
        });
        let checkpoint = Self {
            meta: header.meta,
            tensors: tensors.collect(),
        };
        if checkpoint.digest() != header.digest {
            return Err("its digest differs".to_owned());
        }
        Ok(checkpoint)
    }

    /// The digest of everything in it.
    fn digest(&self) -> Digest {
        let meta = (
            "meta".to_owned(),
            Digest::of(json::canonical(self.meta.clone()).as_bytes()),
        );
        let tensors = self.tensors.iter().map(|(name, tensor)| {
            let RawTensor {
                dtype,
                shape,
                bytes,
            } = tensor;
            (
                format!("tensor {name} {dtype:?} {shape:?}"),
                Digest::of(bytes),
            )
        });
        Digest::of_named(tensors.chain([meta]))
    }
}
