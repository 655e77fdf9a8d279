//! The state of an unfinished training on the disk.

use std::collections::BTreeMap;
use std::path::Path;

use artifact::{EpochRow, RawTensor};
use candle_core::{Device, Tensor};
use serde::{Deserialize, Serialize};

use crate::error::Error;

/// Everything that an epoch changes. What an epoch draws depends on the seed and the epoch alone, so there
/// is no state of a generator.
pub(crate) struct Checkpoint {
    /// Weights and running statistics by name.
    pub(crate) network: BTreeMap<String, Tensor>,
    /// The optimiser's buffers by name.
    pub(crate) sgd: BTreeMap<String, Tensor>,
    /// The epochs that are done.
    pub(crate) epochs: Vec<EpochRow>,
}

/// What is no tensor.
#[derive(Serialize, Deserialize)]
struct Meta {
    epochs: Vec<Epoch>,
}

/// An [`EpochRow`] in JSON, which gives back every float as it was.
#[derive(Serialize, Deserialize)]
struct Epoch {
    epoch: u32,
    train_loss: f64,
    train_accuracy: f64,
    learning_rate: f64,
    drop_path: f64,
}

/// The names of tensors start with what they belong to.
const NETWORK: &str = "network.";
const SGD: &str = "sgd.";

impl Checkpoint {
    /// Replaces the checkpoint of that file, in one step.
    pub(crate) fn save(&self, path: &Path) -> Result<(), Error> {
        let epochs = self.epochs.iter().map(|row| Epoch {
            epoch: row.epoch,
            train_loss: row.train_loss,
            train_accuracy: row.train_accuracy,
            learning_rate: row.learning_rate,
            drop_path: row.drop_path,
        });
        let meta = Meta {
            epochs: epochs.collect(),
        };
        let mut tensors = BTreeMap::new();
        for (prefix, own) in [(NETWORK, &self.network), (SGD, &self.sgd)] {
            for (name, tensor) in own {
                let values: Vec<f32> = tensor.flatten_all()?.to_vec1()?;
                tensors.insert(
                    format!("{prefix}{name}"),
                    RawTensor::new(tensor.dims(), &values),
                );
            }
        }
        let meta = serde_json::to_value(meta).expect("numbers are JSON");
        Ok(artifact::Checkpoint { meta, tensors }.save(path)?)
    }

    /// The checkpoint of that file, if there is one; a damaged one counts as none.
    pub(crate) fn load(path: &Path, device: &Device) -> Result<Option<Self>, Error> {
        let Some(artifact::Checkpoint { meta, tensors }) = artifact::Checkpoint::load(path)? else {
            return Ok(None);
        };
        let foreign = || Error::Checkpoint {
            path: path.to_owned(),
            source: None,
        };
        let meta: Meta = serde_json::from_value(meta).map_err(|_| foreign())?;
        let [mut network, mut sgd] = [BTreeMap::new(), BTreeMap::new()];
        for (name, tensor) in &tensors {
            let values = tensor.values::<f32>().ok_or_else(foreign)?;
            let value = Tensor::from_vec(values, tensor.shape.as_slice(), device)?;
            if let Some(name) = name.strip_prefix(NETWORK) {
                network.insert(name.to_owned(), value);
            } else if let Some(name) = name.strip_prefix(SGD) {
                sgd.insert(name.to_owned(), value);
            }
        }
        let epochs = meta.epochs.into_iter().map(|row| EpochRow {
            epoch: row.epoch,
            train_loss: row.train_loss,
            train_accuracy: row.train_accuracy,
            learning_rate: row.learning_rate,
            drop_path: row.drop_path,
        });
        Ok(Some(Self {
            network,
            sgd,
            epochs: epochs.collect(),
        }))
    }
}
