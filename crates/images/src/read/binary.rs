//! Layouts of raw pixels: CIFAR's binary version and IDX (the MNIST family).

use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use flate2::read::GzDecoder;

use super::{Listing, Raw, numbers, only_label};
use crate::error::{ImageFormat, Place, Spot};
use crate::{Error, Split};

/// Every image of CIFAR-10 and CIFAR-100.
const CIFAR: ImageFormat = ImageFormat {
    n_channels: 3,
    height: 32,
    width: 32,
};

/// The files of a CIFAR split.
pub(super) struct Cifar {
    dir: PathBuf,
    /// Which of the two: records with one label byte (10), or with a coarse and a fine one (100).
    is_hundred: bool,
    files: Vec<PathBuf>,
    /// The text files of class names that are there.
    name_files: Vec<PathBuf>,
}

impl Cifar {
    /// CIFAR's files for a split; none if the folder holds no such files.
    pub(super) fn find(names: &[String], dir: &Path, split: Split) -> Result<Option<Self>, Error> {
        let has = |name: &str| names.iter().any(|other| other == name);
        let ten: Vec<String> = match split {
            Split::Train => (1..=5).map(|n| format!("data_batch_{n}.bin")).collect(),
            Split::Test => vec!["test_batch.bin".to_owned()],
        };
        let hundred = vec![format!("{split}.bin")];
        let is_hundred = !ten.iter().any(|name| has(name));
        let wanted = if is_hundred { hundred } else { ten };
        let Some(missing) = wanted.iter().find(|name| !has(name)) else {
            let name_files: &[&str] = match is_hundred {
                true => &["fine_label_names.txt", "coarse_label_names.txt"],
                false => &["batches.meta.txt"],
            };
            return Ok(Some(Self {
                dir: dir.to_owned(),
                is_hundred,
                files: wanted.iter().map(|name| dir.join(name)).collect(),
                name_files: name_files
                    .iter()
                    .filter(|name| has(name))
                    .map(|n| dir.join(n))
                    .collect(),
            }));
        };
        if is_hundred {
            return Ok(None);
        }
        let path = dir.join(missing);
        Err(Error::MissingFile { path, split })
    }

    pub(super) fn into_files(self) -> Vec<PathBuf> {
        self.files.into_iter().chain(self.name_files).collect()
    }

    /// Reads the records: one or two label bytes, then the planes of red, green and blue.
    pub(super) fn list(&self, label: Option<&str>) -> Result<Listing, Error> {
        let (at, n_classes, name_file) = match (self.is_hundred, label) {
            (false, _) => {
                only_label(&self.dir, label)?;
                (0, 10, "batches.meta.txt")
            }
            (true, None | Some("fine_label")) => (1, 100, "fine_label_names.txt"),
            (true, Some("coarse_label")) => (0, 20, "coarse_label_names.txt"),
            (true, Some(label)) => {
                let (path, label) = (self.dir.clone(), label.to_owned());
                return Err(Error::UnknownLabel {
                    path,
                    label,
                    known: "fine_label, coarse_label",
                });
            }
        };
        let n_labels = if self.is_hundred { 2 } else { 1 };
        let n_bytes = n_labels + CIFAR.len();
        let (mut labels, mut places, mut pixels) = (Vec::new(), Vec::new(), Vec::new());
        for path in &self.files {
            let bytes = read_file(path)?;
            let records = bytes.chunks_exact(n_bytes);
            if !records.remainder().is_empty() {
                return Err(Error::Length {
                    path: path.clone(),
                    expected: (bytes.len().next_multiple_of(n_bytes)) as u64,
                    found: bytes.len() as u64,
                    what: format!("records of {n_bytes} bytes"),
                });
            }
            let shared: Arc<Path> = Arc::from(path.as_path());
            for (index, record) in records.enumerate() {
                let spot = Spot::Byte((index * n_bytes + at) as u64);
                labels.push(i64::from(record[at]));
                places.push(Place {
                    path: shared.clone(),
                    spot,
                });
                pixels.extend_from_slice(&record[n_labels..]);
            }
        }
        let class_names = Some(class_names(&self.dir.join(name_file), n_classes));
        Ok(Listing {
            labels,
            places,
            class_names,
            raw: Some(Raw {
                format: CIFAR,
                pixels,
            }),
        })
    }
}

/// The lines of a file, if it has one for every class; else the numbers of the classes.
fn class_names(path: &Path, n_classes: usize) -> Vec<String> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let names: Vec<String> = lines.map(str::to_owned).collect();
    if names.len() == n_classes {
        names
    } else {
        numbers(n_classes)
    }
}

/// The two files of an IDX split.
pub(super) struct Idx {
    images: PathBuf,
    labels: PathBuf,
}

impl Idx {
    /// The IDX files of a split; none if the folder holds no such files.
    pub(super) fn find(names: &[String], dir: &Path, split: Split) -> Result<Option<Self>, Error> {
        let prefix = match split {
            Split::Train => "train",
            Split::Test => "t10k",
        };
        let find = |what: &str| {
            let plain = format!("{prefix}-{what}-ubyte");
            let packed = format!("{plain}.gz");
            let found = names
                .iter()
                .find(|name| **name == plain || **name == packed);
            found
                .map(|name| dir.join(name))
                .ok_or_else(|| dir.join(plain))
        };
        match (find("images-idx3"), find("labels-idx1")) {
            (Err(_), Err(_)) => Ok(None),
            (Ok(images), Ok(labels)) => Ok(Some(Self { images, labels })),
            (Err(path), _) | (_, Err(path)) => Err(Error::MissingFile { path, split }),
        }
    }

    pub(super) fn into_files(self) -> Vec<PathBuf> {
        vec![self.images, self.labels]
    }

    /// Reads grey images and their labels.
    pub(super) fn list(&self, label: Option<&str>) -> Result<Listing, Error> {
        only_label(&self.labels, label)?;
        let images = "an IDX file of images: 00 00 08 03, then three sizes that are not 0";
        let ([n_images, height, width], pixels) = read_idx(&self.images, images)?;
        let labels = "an IDX file of labels: 00 00 08 01, then their number";
        let ([n_labels], labels) = read_idx(&self.labels, labels)?;
        if n_images != n_labels {
            return Err(Error::MixedFiles {
                a: self.images.clone(),
                b: self.labels.clone(),
                what: "they hold different numbers of images and labels",
            });
        }
        let shared: Arc<Path> = Arc::from(self.labels.as_path());
        let place = |index| Place {
            path: shared.clone(),
            spot: Spot::Byte(8 + index),
        };
        Ok(Listing {
            places: (0..labels.len() as u64).map(place).collect(),
            labels: labels.into_iter().map(i64::from).collect(),
            class_names: None,
            raw: Some(Raw {
                format: ImageFormat {
                    n_channels: 1,
                    height,
                    width,
                },
                pixels,
            }),
        })
    }
}

/// Reads an IDX file of bytes: the magic number with the number of axes, the size of each axis, the values.
fn read_idx<const N: usize>(
    path: &Path,
    expected: &'static str,
) -> Result<([usize; N], Vec<u8>), Error> {
    let mut bytes = read_file(path)?;
    let wrong_at = |byte| {
        let place = Place {
            path: Arc::from(path),
            spot: Spot::Byte(byte),
        };
        Error::Header { place, expected }
    };
    let n_header = 4 + 4 * N;
    if bytes.len() < n_header || bytes[..4] != [0, 0, 8, N as u8] {
        return Err(wrong_at(0));
    }
    let mut shape = [0; N];
    for (size, bytes) in shape.iter_mut().zip(bytes[4..n_header].as_chunks().0) {
        *size = u32::from_be_bytes(*bytes) as usize;
    }
    // No images is an empty split; images without pixels are no images.
    if shape[1..].contains(&0) {
        return Err(wrong_at(8));
    }
    let n_values = shape
        .iter()
        .fold(1u64, |product, &size| product.saturating_mul(size as u64));
    let n_bytes = n_values.saturating_add(n_header as u64);
    if bytes.len() as u64 != n_bytes {
        return Err(Error::Length {
            path: path.to_owned(),
            expected: n_bytes,
            found: bytes.len() as u64,
            what: format!("a header of {n_header}, then values of shape {shape:?}"),
        });
    }
    bytes.drain(..n_header);
    Ok((shape, bytes))
}

/// A file's bytes, unpacked if it is gzip.
fn read_file(path: &Path) -> Result<Vec<u8>, Error> {
    let bytes = std::fs::read(path).map_err(|source| Error::Io {
        path: path.to_owned(),
        source,
    })?;
    if !bytes.starts_with(&[0x1f, 0x8b]) {
        return Ok(bytes);
    }
    let mut unpacked = Vec::new();
    match GzDecoder::new(bytes.as_slice()).read_to_end(&mut unpacked) {
        Ok(_) => Ok(unpacked),
        Err(source) => {
            let spot = Spot::Byte(unpacked.len() as u64);
            let place = Place {
                path: Arc::from(path),
                spot,
            };
            Err(Error::Gzip { place, source })
        }
    }
}
