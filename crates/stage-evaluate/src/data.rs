//! The images of a training and of its test.

use artifact::ImagesRecord;
use candle_core::{Device, Tensor};
use collective::Share;
use images::{Augmentation, Batch, ImageSet, LoadOptions, Normalization, Split};

use crate::config::Config;
use crate::error::Error;
use crate::survey::{describe, same_classes};

/// Both splits of the data set.
pub(crate) struct Data {
    pub(crate) train: ImageSet,
    pub(crate) test: ImageSet,
    normalization: Normalization,
    augmentation: Augmentation,
}

/// Images `[n, c, h, w]` and their classes `[n]`.
pub(crate) type Tensors = (Tensor, Tensor);

impl Data {
    /// Loads both splits, and sees that they go into the network.
    pub(crate) fn load(config: &Config) -> Result<Self, Error> {
        let data = &config.data;
        let load = |split| load(config, split, None);
        let (train, test) = (load(Split::Train)?, load(Split::Test)?);
        same_classes(&data.dir, [train.class_names(), test.class_names()])?;
        let normalization = if data.mean.is_empty() {
            train.channel_statistics()?
        } else {
            Normalization {
                mean: data.mean.clone(),
                std: data.std.clone(),
            }
        };
        Ok(Self {
            train,
            test,
            normalization,
            augmentation: data.augmentation(),
        })
    }

    /// Training images, augmented, or this rank's share of them.
    pub(crate) fn train_batch(
        &self,
        indices: &[usize],
        rng: &mut nn::Rng,
        share: Option<&Share>,
    ) -> Result<Batch, Error> {
        let part = share.map_or(0..indices.len(), Share::range);
        let (normalization, augmentation) = (&self.normalization, &self.augmentation);
        Ok(images::batch_part(
            &self.train,
            indices,
            part,
            normalization,
            augmentation,
            rng,
        )?)
    }

    /// How they are normalised, and the names of their classes.
    pub(crate) fn record(&self) -> ImagesRecord {
        ImagesRecord {
            mean: self.normalization.mean.clone(),
            std: self.normalization.std.clone(),
            class_names: self.train.class_names().to_vec(),
        }
    }

    /// The shape of `n` training images.
    pub(crate) fn train_shape(&self, n: usize) -> [usize; 4] {
        let set = &self.train;
        [n, set.n_channels(), set.height(), set.width()]
    }

    /// Test images as they are.
    pub(crate) fn test_batch(&self, indices: &[usize], device: &Device) -> Result<Tensors, Error> {
        // Without augmentation nothing is drawn.
        let mut rng = crate::rng(0, 0);
        let (normalization, augmentation) = (&self.normalization, Augmentation::none());
        let batch = images::batch(&self.test, indices, normalization, &augmentation, &mut rng)?;
        tensors(batch, &self.test, device)
    }
}

fn tensors(batch: Batch, set: &ImageSet, device: &Device) -> Result<Tensors, Error> {
    let shape = (batch.n, set.n_channels(), set.height(), set.width());
    Ok((
        Tensor::from_vec(batch.images, shape, device)?,
        Tensor::from_vec(batch.labels, batch.n, device)?,
    ))
}

/// Sees that an image of each split is one and goes into the network, and that both have the same classes.
pub(crate) fn glance(config: &Config) -> Result<(), Error> {
    let look = |split| -> Result<ImageSet, Error> {
        let set = load(config, split, Some(1))?;
        // One that is to be resized is not decoded before it is asked for.
        set.image(0)?;
        Ok(set)
    };
    let [train, test] = [look(Split::Train)?, look(Split::Test)?];
    same_classes(&config.data.dir, [train.class_names(), test.class_names()])
}

/// So many images of a split, or all, which go into the network.
fn load(config: &Config, split: Split, limit: Option<usize>) -> Result<ImageSet, Error> {
    let (data, network) = (&config.data, &config.network);
    let options = LoadOptions {
        resize: (data.resize > 0).then_some(data.resize),
        limit,
        ..LoadOptions::default()
    };
    let set = images::load(&data.dir, split, &options)?;
    let found = [set.n_channels(), set.height(), set.width()];
    let expected = [network.in_channels, network.image_size, network.image_size];
    let classes_fit = match split {
        Split::Train => set.n_classes() == network.n_classes,
        // Where a data set does not name its classes, the last ones may be missing from the test.
        Split::Test => set.n_classes() <= network.n_classes,
    };
    if found == expected && classes_fit {
        return Ok(set);
    }
    Err(Error::OtherImages {
        dir: data.dir.clone(),
        split,
        found: describe(found, set.n_classes()),
        expected: describe(expected, network.n_classes),
    })
}
