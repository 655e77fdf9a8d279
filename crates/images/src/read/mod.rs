//! Files to sets.
//!
//! Every layout is read in two steps: first the labels, which decide what is kept ([`Listing`]), then the images that are kept.
//! So a limited set needs the memory of its own images only, and a decoded set never holds all of its encoded files.

use std::fmt;
use std::path::{Path, PathBuf};

use crate::decode::{EncodedImage, PixelBuffer};
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

impl Split {
    /// What files and folders of the split may be called, in the order in which they are looked for.
    fn names(self) -> &'static [&'static str] {
        match self {
            Self::Train => &["train"],
            Self::Test => &["test", "validation", "valid", "val"],
        }
    }
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
/// Of a Parquet data set only the columns of the image and the label are read. Images are decoded by all threads of rayon's
/// current pool; the set does not depend on their number.
///
/// # Errors
///
/// If the folder or the split is not there or empty, a file is missing, damaged or of another format, an image does not decode or
/// is unlike the first, or a label names no class. Of several such images the error names the first.
///
/// # Panics
///
/// If `options.resize` is 0.
pub fn load(dir: &Path, split: Split, options: &LoadOptions) -> Result<ImageSet, Error> {
    assert_ne!(
        options.resize,
        Some(0),
        "images cannot be resized to nothing"
    );
    let layout = Layout::detect(dir, split)?;
    let listing = layout.list(options.label.as_deref())?;
    let (labels, class_names) = listing.classes()?;
    let chosen = balanced(&labels, class_names.len(), options.limit);
    if chosen.is_empty() {
        let dir = dir.to_owned();
        return Err(Error::Empty { dir, split });
    }

    let (format, pixels) = match (listing.raw, options.resize) {
        (Some(raw), None) => (raw.format, Pixels::Decoded(raw.gather(&chosen))),
        (Some(raw), Some(_)) => {
            let path = listing.places[0].path.to_path_buf();
            let format = raw.format;
            return Err(Error::Resize { path, format });
        }
        (None, None) => {
            let mut buffer = PixelBuffer::default();
            let places: Vec<&Place> = chosen.iter().map(|&i| &listing.places[i]).collect();
            layout.read(&places, |images| buffer.decode(&images))?;
            (buffer.format, Pixels::Decoded(buffer.pixels))
        }
        (None, Some(size)) => {
            let mut encoded = Vec::with_capacity(chosen.len());
            let places: Vec<&Place> = chosen.iter().map(|&i| &listing.places[i]).collect();
            layout.read(&places, |images| {
                encoded.extend(images);
                Ok(())
            })?;
            let format = ImageFormat {
                n_channels: 3,
                height: size,
                width: size,
            };
            (format, Pixels::Encoded(encoded))
        }
    };
    let labels = chosen.iter().map(|&index| labels[index]).collect();
    Ok(ImageSet::new(format, pixels, labels, class_names))
}

/// The class of every image of a split, in the order of [`load`], and the names of the classes; no image is decoded.
///
/// # Errors
///
/// As [`load`], as far as it is about folders, files and labels.
pub fn labels(dir: &Path, split: Split) -> Result<(Vec<u32>, Vec<String>), Error> {
    let (labels, class_names) = Layout::detect(dir, split)?.list(None)?.classes()?;
    if labels.is_empty() {
        let dir = dir.to_owned();
        return Err(Error::Empty { dir, split });
    }
    Ok((labels, class_names))
}

/// The files that [`load`] reads for a split, sorted: what decides whether a result can be reused.
///
/// # Errors
///
/// If the folder or the split is not there, or one of its files is missing.
pub fn files(dir: &Path, split: Split) -> Result<Vec<PathBuf>, Error> {
    let mut files = match Layout::detect(dir, split)? {
        Layout::Parquet(files) => files,
        Layout::Cifar(cifar) => cifar.into_files(),
        Layout::Idx(idx) => idx.into_files(),
        Layout::Folders(folders) => folders.into_files(),
    };
    files.sort();
    Ok(files)
}

/// How a folder holds the images of a split.
enum Layout {
    Parquet(Vec<PathBuf>),
    Cifar(binary::Cifar),
    Idx(binary::Idx),
    Folders(folders::Folders),
}

impl Layout {
    /// Tells the layouts apart by the names of the files, in the order of the variants.
    fn detect(dir: &Path, split: Split) -> Result<Self, Error> {
        if !dir.is_dir() {
            let dir = dir.to_owned();
            return Err(Error::NoFolder { dir });
        }
        let names = list_dir(dir)?;
        if let Some(shards) = parquet::shards(&names, dir, split)? {
            return Ok(Self::Parquet(shards));
        }
        if let Some(cifar) = binary::Cifar::find(&names, dir, split)? {
            return Ok(Self::Cifar(cifar));
        }
        if let Some(idx) = binary::Idx::find(&names, dir, split)? {
            return Ok(Self::Idx(idx));
        }
        if let Some(folders) = folders::Folders::find(dir, split)? {
            return Ok(Self::Folders(folders));
        }
        let dir = dir.to_owned();
        Err(Error::NoSplit { dir, split })
    }

    /// What there is.
    fn list(&self, label: Option<&str>) -> Result<Listing, Error> {
        match self {
            Self::Parquet(files) => parquet::list(files, label),
            Self::Cifar(cifar) => cifar.list(label),
            Self::Idx(idx) => idx.list(label),
            Self::Folders(folders) => folders.list(label),
        }
    }

    /// Hands the encoded images at some places, in order, to `take`, some at a time.
    fn read(
        &self,
        places: &[&Place],
        mut take: impl FnMut(Vec<EncodedImage>) -> Result<(), Error>,
    ) -> Result<(), Error> {
        if let Self::Parquet(_) = self {
            return parquet::read(places, take);
        }
        // Files of their own are read by whoever decodes them.
        for places in places.chunks(N_IMAGES_AT_A_TIME) {
            let file = |&place: &&Place| EncodedImage {
                place: place.clone(),
                bytes: None,
            };
            take(places.iter().map(file).collect())?;
        }
        Ok(())
    }
}

/// How many encoded images are in memory while a set is decoded.
const N_IMAGES_AT_A_TIME: usize = 512;

/// The names in a folder, sorted.
fn list_dir(dir: &Path) -> Result<Vec<String>, Error> {
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

/// What there is in a split, before anything is decoded.
struct Listing {
    /// Of every image, as stored.
    labels: Vec<i64>,
    /// Of every image or, for layouts of raw pixels, of its label.
    places: Vec<Place>,
    /// `None` if the data set does not say how many classes there are.
    class_names: Option<Vec<String>>,
    /// The images themselves, if the layout holds raw pixels.
    raw: Option<Raw>,
}

/// Raw pixels, n c h w.
struct Raw {
    format: ImageFormat,
    pixels: Vec<u8>,
}

impl Raw {
    fn gather(self, chosen: &[usize]) -> Vec<u8> {
        let len = self.format.len();
        if chosen.len() * len == self.pixels.len() {
            return self.pixels;
        }
        chosen
            .iter()
            .flat_map(|&index| &self.pixels[index * len..][..len])
            .copied()
            .collect()
    }
}

impl Listing {
    /// Labels that are sure to name a class, and the names.
    fn classes(&self) -> Result<(Vec<u32>, Vec<String>), Error> {
        /// A label beyond this is no class number but something else, unless the data set names that many classes.
        const MAX_UNNAMED_CLASSES: usize = 1 << 16;
        let n_classes = self
            .class_names
            .as_ref()
            .map_or(MAX_UNNAMED_CLASSES, Vec::len);
        let checked = self.labels.iter().zip(&self.places).map(|(&label, place)| {
            u32::try_from(label)
                .ok()
                .filter(|&label| (label as usize) < n_classes)
                .ok_or_else(|| {
                    let place = place.clone();
                    Error::Label {
                        place,
                        label,
                        n_classes,
                    }
                })
        });
        let labels = checked.collect::<Result<Vec<u32>, Error>>()?;
        let names = self.class_names.clone().unwrap_or_else(|| {
            let n_classes = labels.iter().max().map_or(0, |max| max + 1);
            numbers(n_classes as usize)
        });
        Ok((labels, names))
    }
}

/// Names for classes that have none.
fn numbers(n_classes: usize) -> Vec<String> {
    (0..n_classes).map(|class| class.to_string()).collect()
}

/// An error if a label other than `label` is asked for in a layout that has but one.
fn only_label(path: &Path, label: Option<&str>) -> Result<(), Error> {
    match label {
        None | Some("label") => Ok(()),
        Some(label) => {
            let (path, label) = (path.to_owned(), label.to_owned());
            Err(Error::UnknownLabel {
                path,
                label,
                known: "label",
            })
        }
    }
}
