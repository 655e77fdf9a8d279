//! What can be wrong with a data set, always with the file, the place in it and the remedy.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::Split;

/// Where in a data set something is wrong: a file and the place in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The file.
    pub path: Arc<Path>,
    /// The place in the file.
    pub spot: Spot,
}

/// A place in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Spot {
    /// The whole file, which holds one image.
    File,
    /// A row of a table, from 0.
    Row(u64),
    /// A byte, from 0; in a gzip file, a byte of the unpacked content.
    Byte(u64),
}

impl Place {
    /// The row of a place in a table.
    pub(crate) fn row(&self) -> u64 {
        match self.spot {
            Spot::Row(row) => row,
            Spot::File | Spot::Byte(_) => panic!("{self} is not a row of a table"),
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.path.display())?;
        match self.spot {
            Spot::File => Ok(()),
            Spot::Row(row) => write!(f, ", row {row}"),
            Spot::Byte(byte) => write!(f, ", byte {byte}"),
        }
    }
}

/// Why a data set could not be loaded or a batch not be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The folder is not there.
    #[error("there is no folder {} with a data set; put one there or name the folder of one, laid out as {LAYOUTS}", dir.display())]
    NoFolder {
        /// The folder asked for.
        dir: PathBuf,
    },

    /// The folder holds no such split in any layout this crate reads.
    #[error("no {split} images in {}; the layouts read are {LAYOUTS}", dir.display())]
    NoSplit {
        /// The folder asked for.
        dir: PathBuf,
        /// The split asked for.
        split: Split,
    },

    /// One of the files that make up the split is not there.
    #[error("{} is missing, but other files of the same {split} split are there; copy or download it too", path.display())]
    MissingFile {
        /// The file that should be there.
        path: PathBuf,
        /// The split it belongs to.
        split: Split,
    },

    /// The folder holds files that do not belong together.
    #[error("{} and {} do not belong to one data set ({what}); keep one data set per folder", a.display(), b.display())]
    MixedFiles {
        /// One of the files.
        a: PathBuf,
        /// The other.
        b: PathBuf,
        /// In what they differ.
        what: &'static str,
    },

    /// The operating system could not list, open or read something.
    #[error("cannot read {}; check that it exists and that you may read it", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },

    /// A file is not Parquet, or damaged.
    #[error("{place} is not readable parquet; copy or download the file again")]
    Parquet {
        /// The file and the row from which it cannot be read.
        place: Place,
        /// The reader's reason.
        source: parquet::errors::ParquetError,
    },

    /// A table lacks a column, or the column is of another type.
    #[error(
        "{} has no column `{names}` of {expected}, only {columns}; rename or convert one, or choose another label",
        path.display()
    )]
    Column {
        /// The file.
        path: PathBuf,
        /// What the column may be called.
        names: String,
        /// What it should hold.
        expected: &'static str,
        /// The columns there, with their types.
        columns: String,
    },

    /// The label asked for is not one that the data set has.
    #[error("{} has no label \"{label}\"; it has: {known}", path.display())]
    UnknownLabel {
        /// The file or folder.
        path: PathBuf,
        /// The label asked for.
        label: String,
        /// The labels there.
        known: &'static str,
    },

    /// A row has no value where it needs one.
    #[error(
        "{place}: the {what} is null; remove the row or give it a value (a path alone is no image)"
    )]
    Null {
        /// The row.
        place: Place,
        /// What is missing: the label or the image.
        what: &'static str,
    },

    /// A gzip file is damaged.
    #[error(
        "{place} (unpacked): the gzip file ends or is damaged there; copy or download the file again"
    )]
    Gzip {
        /// The file and the byte of its unpacked content up to which it can be read.
        place: Place,
        /// The unpacker's reason.
        source: std::io::Error,
    },

    /// A binary file is shorter or longer than its format says.
    #[error("{} holds {found} bytes where {expected} are expected ({what}); copy or download the file again", path.display())]
    Length {
        /// The file.
        path: PathBuf,
        /// How many bytes there should be, once unpacked.
        expected: u64,
        /// How many there are.
        found: u64,
        /// Where the expectation comes from.
        what: String,
    },

    /// A binary file does not begin as its format says.
    #[error("{place} is not {expected}; copy or download the file again")]
    Header {
        /// The file and the byte.
        place: Place,
        /// What should be there.
        expected: &'static str,
    },

    /// An image does not decode.
    #[error("{place}: the image does not decode; replace it or remove it from the data set")]
    Decode {
        /// The image.
        place: Place,
        /// The decoder's reason.
        source: image::ImageError,
    },

    /// A label names no class.
    #[error("{place}: label {label} is not in 0..{n_classes}; {}", label_remedy(*label))]
    Label {
        /// The image.
        place: Place,
        /// Its label.
        label: i64,
        /// The number of classes.
        n_classes: usize,
    },

    /// A test image lies in the folder of a class that has no training images.
    #[error("{}: class \"{class}\" is not among the {n_classes} of the training split; remove or rename the folder", dir.display())]
    UnknownClass {
        /// The folder of the class.
        dir: PathBuf,
        /// The class.
        class: String,
        /// The number of classes in the training split.
        n_classes: usize,
    },

    /// An image is not like the first one of a set that is decoded as a whole.
    #[error(
        "{place}: the image is {found}, the first one is {expected}; make them alike, or have them brought to one size (`resize` in [data], --resize of a command)"
    )]
    Mixed {
        /// The image.
        place: Place,
        /// Its format.
        found: ImageFormat,
        /// The format of the first image.
        expected: ImageFormat,
    },

    /// Resizing was asked for where the files hold raw pixels, all of one size.
    #[error("{}: `resize` is for PNG and JPEG files, this data set holds raw pixels of {format}; leave it out", path.display())]
    Resize {
        /// The file.
        path: PathBuf,
        /// What the file holds.
        format: ImageFormat,
    },

    /// The split is there, but holds no image.
    #[error("the {split} split in {} holds no images; add some or name another folder", dir.display())]
    Empty {
        /// The data set's folder.
        dir: PathBuf,
        /// The split.
        split: Split,
    },

    /// A normalisation for another number of channels.
    #[error(
        "the normalisation has {n_mean} means and {n_std} standard deviations, the images have {n_channels} channels; give one of each per channel"
    )]
    Normalization {
        /// The number of means.
        n_mean: usize,
        /// The number of standard deviations.
        n_std: usize,
        /// The channels of the images.
        n_channels: usize,
    },
}

/// The layouts that [`load`](crate::load) reads, for messages.
const LAYOUTS: &str = "parquet shards (train-00000-of-00001.parquet), CIFAR binary (data_batch_1.bin or train.bin), \
     IDX (train-images-idx3-ubyte, .gz or not) or class folders (train/CLASS/*.png, *.jpg)";

/// What to do about a label that names no class.
fn label_remedy(label: i64) -> &'static str {
    if label == -1 {
        "this split has no labels: move it out of the folder so that another one (validation, say) is read"
    } else {
        "correct the label, the class names of the data set, or the choice of the label column"
    }
}

/// Channels and size of an image, for messages: "grey 28x28 (width x height)".
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ImageFormat {
    /// 1 (grey) or 3 (RGB).
    pub n_channels: usize,
    /// Rows.
    pub height: usize,
    /// Columns.
    pub width: usize,
}

impl ImageFormat {
    /// Bytes of one image.
    pub(crate) const fn len(&self) -> usize {
        self.n_channels * self.height * self.width
    }
}

impl fmt::Display for ImageFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let color = match self.n_channels {
            1 => "grey",
            3 => "RGB",
            n => {
                return write!(
                    f,
                    "{n} channels of {}x{} (width x height)",
                    self.width, self.height
                );
            }
        };
        write!(f, "{color} {}x{} (width x height)", self.width, self.height)
    }
}
