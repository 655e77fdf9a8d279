//! Files to sets.

use std::fmt;
use std::path::{Path, PathBuf};

use rayon::prelude::*;

use crate::decode::{EncodedImage, Planes, decode};
use crate::error::{ImageFormat, Place};
use crate::set::Pixels;
use crate::split::balanced;
use crate::{Error, ImageSet};

mod binary;
mod folders;
mod parquet;

/// A part of a data set, as its makers cut it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Split {
    /// The images to train and validate on.
    Train,
    /// The images to test on.
    Test,
}

impl fmt::Display for Split {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Train => "train",
            Self::Test => "test",
        })
    }
}

/// How to load a set.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LoadOptions {
    /// Which label to use where a data set has several: `label`, `fine_label`, `coarse_label` or whatever the column is called.
    /// `None` takes `label`, else `fine_label`.
    pub label: Option<String>,
    /// Load no more images than this: the first ones of every class, as evenly over the classes as the set allows.
    pub limit: Option<usize>,
    /// `None`: the images are all of one size and are decoded once. `Some(size)`: PNG or JPEG images of any size, held
    /// encoded; each batch decodes its own to RGB of `size` x `size`.
    pub resize: Option<usize>,
}

/// Loads a split of the data set in `dir`.
///
/// # Errors
///
/// If the folder or the split is not there, a file is missing, damaged or of another format, an image does not decode or is unlike
/// the first, or a label names no class.
pub fn load(dir: &Path, split: Split, options: &LoadOptions) -> Result<ImageSet, Error> {
    let layout = layout(dir, split)?;
    let source = match &layout {
        Layout::Parquet(files) => parquet::read(files, options)?,
        Layout::Cifar(kind, files) => binary::read_cifar(*kind, files, options)?,
        Layout::Idx(files) => binary::read_idx(files)?,
        Layout::Folders => folders::read(dir, split)?,
    };
    let empty = || Error::Empty {
        dir: dir.to_owned(),
        split,
    };
    if source.labels.is_empty() {
        return Err(empty());
    }
    let set = source.into_set(options)?;
    if set.is_empty() {
        Err(empty())
    } else {
        Ok(set)
    }
}

/// The files that [`load`] reads for a split, sorted: what decides whether a result can be reused.
///
/// # Errors
///
/// If the folder or the split is not there, or one of its files is missing.
pub fn files(dir: &Path, split: Split) -> Result<Vec<PathBuf>, Error> {
    let mut files = match layout(dir, split)? {
        Layout::Parquet(files) | Layout::Cifar(_, files) => files,
        Layout::Idx(files) => files.to_vec(),
        Layout::Folders => {
            let dir = folders::split_dir(dir, split).expect("the layout has such a folder");
            folders::images(&dir)?
                .into_iter()
                .map(|(_, path)| path)
                .collect()
        }
    };
    files.sort();
    Ok(files)
}

/// How a folder holds its images.
enum Layout {
    Parquet(Vec<PathBuf>),
    Cifar(binary::Cifar, Vec<PathBuf>),
    Idx([PathBuf; 2]),
    Folders,
}

fn layout(dir: &Path, split: Split) -> Result<Layout, Error> {
    if !dir.is_dir() {
        return Err(Error::NoFolder {
            dir: dir.to_owned(),
        });
    }
    let names = list(dir)?;
    let shards = parquet::shards(&names, dir, split)?;
    if !shards.is_empty() {
        return Ok(Layout::Parquet(shards));
    }
    if let Some((kind, files)) = binary::cifar_files(&names, dir, split)? {
        return Ok(Layout::Cifar(kind, files));
    }
    if let Some(files) = binary::idx_files(&names, dir, split)? {
        return Ok(Layout::Idx(files));
    }
    match folders::split_dir(dir, split) {
        Some(_) => Ok(Layout::Folders),
        None => Err(Error::NoSplit {
            dir: dir.to_owned(),
            split,
        }),
    }
}

/// The names in a folder, sorted.
fn list(dir: &Path) -> Result<Vec<String>, Error> {
    let io = |source| Error::Io {
        path: dir.to_owned(),
        source,
    };
    let mut names = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(io)? {
        names.push(
            entry
                .map_err(io)?
                .file_name()
                .to_string_lossy()
                .into_owned(),
        );
    }
    names.sort();
    Ok(names)
}

/// What a reader found: labels with their places, and either encoded images or raw pixels.
#[derive(Default)]
struct Source {
    labels: Vec<(i64, Place)>,
    encoded: Vec<EncodedImage>,
    /// Raw pixels, n c h w, of the format beside them.
    pixels: Vec<u8>,
    format: Option<ImageFormat>,
    class_names: Option<Vec<String>>,
}

impl Source {
    fn into_set(mut self, options: &LoadOptions) -> Result<ImageSet, Error> {
        let largest = self
            .labels
            .iter()
            .map(|(label, _)| *label)
            .max()
            .unwrap_or(-1);
        let class_names = self
            .class_names
            .take()
            .unwrap_or_else(|| (0..=largest).map(|class| class.to_string()).collect());
        let n_classes = class_names.len();
        let labels: Vec<u32> = self
            .labels
            .iter()
            .map(|&(label, ref place)| {
                u32::try_from(label)
                    .ok()
                    .filter(|&label| (label as usize) < n_classes)
                    .ok_or_else(|| Error::Label {
                        place: place.clone(),
                        label,
                        n_classes,
                    })
            })
            .collect::<Result<_, _>>()?;
        let chosen = balanced(&labels, n_classes, options.limit);
        let labels: Vec<u32> = chosen.iter().map(|&index| labels[index]).collect();
        if let Some(format) = self.format {
            if options.resize.is_some() {
                let path = self.labels[0].1.path.to_path_buf();
                return Err(Error::Resize { path, format });
            }
            let images = self.pixels.chunks_exact(format.len()).collect::<Vec<_>>();
            let pixels = chosen
                .iter()
                .flat_map(|&index| images[index])
                .copied()
                .collect();
            return Ok(ImageSet::new(
                format,
                Pixels::Decoded(pixels),
                labels,
                class_names,
            ));
        }
        let images: Vec<EncodedImage> = chosen
            .iter()
            .map(|&index| self.encoded[index].clone())
            .collect();
        drop(self.encoded);
        if let Some(size) = options.resize {
            let format = ImageFormat {
                n_channels: 3,
                height: size,
                width: size,
            };
            return Ok(ImageSet::new(
                format,
                Pixels::Encoded(images),
                labels,
                class_names,
            ));
        }
        let planes: Vec<Planes> = images
            .par_iter()
            .map(decode)
            .collect::<Result<Vec<_>, Error>>()?;
        let Some(expected) = planes.first().map(|planes| planes.format) else {
            let format = ImageFormat {
                n_channels: 1,
                height: 0,
                width: 0,
            };
            return Ok(ImageSet::new(
                format,
                Pixels::Decoded(Vec::new()),
                labels,
                class_names,
            ));
        };
        if let Some(index) = planes.iter().position(|planes| planes.format != expected) {
            let (place, found) = (images[index].place.clone(), planes[index].format);
            return Err(Error::Mixed {
                place,
                found,
                expected,
            });
        }
        let pixels = planes
            .into_iter()
            .flat_map(|planes| planes.pixels)
            .collect();
        Ok(ImageSet::new(
            expected,
            Pixels::Decoded(pixels),
            labels,
            class_names,
        ))
    }
}
