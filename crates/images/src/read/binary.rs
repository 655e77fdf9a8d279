//! Layouts of raw pixels: CIFAR's binary version and IDX (the MNIST family).

use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use flate2::read::GzDecoder;

use super::{LoadOptions, Source};
use crate::error::{ImageFormat, Place, Spot};
use crate::{Error, Split};

const CIFAR: ImageFormat = ImageFormat {
    n_channels: 3,
    height: 32,
    width: 32,
};

/// Which CIFAR.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Cifar {
    /// One label byte.
    Ten,
    /// A coarse and a fine label byte.
    Hundred,
}

/// CIFAR's files for a split; none if the folder holds no such files.
pub(super) fn cifar_files(
    names: &[String],
    dir: &Path,
    split: Split,
) -> Result<Option<(Cifar, Vec<PathBuf>)>, Error> {
    let has = |name: &str| names.iter().any(|other| other == name);
    let ten = (1..=5)
        .map(|n| format!("data_batch_{n}.bin"))
        .collect::<Vec<_>>();
    let is_ten = ten.iter().any(|name| has(name)) || has("test_batch.bin");
    let wanted = match (is_ten, split) {
        (true, Split::Train) => ten,
        (true, Split::Test) => vec!["test_batch.bin".to_owned()],
        (false, Split::Train) if has("train.bin") => vec!["train.bin".to_owned()],
        (false, Split::Test) if has("test.bin") => vec!["test.bin".to_owned()],
        _ => return Ok(None),
    };
    if let Some(missing) = wanted.iter().find(|name| !has(name)) {
        return Err(Error::MissingFile {
            path: dir.join(missing),
            split,
        });
    }
    let files = wanted.iter().map(|name| dir.join(name)).collect();
    Ok(Some((
        if is_ten { Cifar::Ten } else { Cifar::Hundred },
        files,
    )))
}

/// Records of one or two label bytes and three planes.
pub(super) fn read_cifar(
    kind: Cifar,
    files: &[PathBuf],
    options: &LoadOptions,
) -> Result<Source, Error> {
    let unknown = |known| Error::UnknownLabel {
        path: files[0].clone(),
        label: options.label.clone().unwrap_or_default(),
        known,
    };
    // (label bytes, the one that counts, classes)
    let (n_labels, at, n_classes) = match (kind, options.label.as_deref()) {
        (Cifar::Ten, None | Some("label")) => (1, 0, 10),
        (Cifar::Ten, Some(_)) => return Err(unknown("label")),
        (Cifar::Hundred, None | Some("fine_label")) => (2, 1, 100),
        (Cifar::Hundred, Some("coarse_label")) => (2, 0, 20),
        (Cifar::Hundred, Some(_)) => return Err(unknown("fine_label, coarse_label")),
    };
    let record = n_labels + CIFAR.len();
    let mut source = Source {
        class_names: Some(
            (0..n_classes)
                .map(|class: usize| class.to_string())
                .collect(),
        ),
        format: Some(CIFAR),
        ..Source::default()
    };
    for path in files {
        let bytes = read_file(path)?;
        let n = bytes.len() / record;
        if bytes.len() != n * record {
            return Err(Error::Length {
                path: path.clone(),
                expected: ((n + 1) * record) as u64,
                found: bytes.len() as u64,
                what: format!("records of {record} bytes"),
            });
        }
        let shared: Arc<Path> = Arc::from(path.as_path());
        for (index, record_bytes) in bytes.chunks_exact(record).enumerate() {
            let spot = Spot::Byte((index * record + at) as u64);
            let place = Place {
                path: shared.clone(),
                spot,
            };
            source.labels.push((i64::from(record_bytes[at]), place));
            source.pixels.extend_from_slice(&record_bytes[n_labels..]);
        }
    }
    Ok(source)
}

/// The two IDX files of a split; none if the folder holds no images file.
pub(super) fn idx_files(
    names: &[String],
    dir: &Path,
    split: Split,
) -> Result<Option<[PathBuf; 2]>, Error> {
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
        (found.map(|name| dir.join(name)), dir.join(plain))
    };
    match (find("images-idx3"), find("labels-idx1")) {
        ((None, _), (None, _)) => Ok(None),
        ((Some(images), _), (Some(labels), _)) => Ok(Some([images, labels])),
        ((None, path), _) | (_, (None, path)) => Err(Error::MissingFile { path, split }),
    }
}

/// Grey images and their labels.
pub(super) fn read_idx([images, labels]: &[PathBuf; 2]) -> Result<Source, Error> {
    let (image_shape, pixels) =
        read_idx_file(images, 3, "an IDX file of images (magic 00 00 08 03)")?;
    let (label_shape, label_bytes) =
        read_idx_file(labels, 1, "an IDX file of labels (magic 00 00 08 01)")?;
    if image_shape[0] != label_shape[0] {
        return Err(Error::MixedFiles {
            a: images.clone(),
            b: labels.clone(),
            what: "they hold different numbers of images and labels",
        });
    }
    let shared: Arc<Path> = Arc::from(labels.as_path());
    let header = 8;
    let labels = label_bytes.iter().enumerate().map(|(index, &label)| {
        let spot = Spot::Byte((header + index) as u64);
        (
            i64::from(label),
            Place {
                path: shared.clone(),
                spot,
            },
        )
    });
    Ok(Source {
        labels: labels.collect(),
        pixels,
        format: Some(ImageFormat {
            n_channels: 1,
            height: image_shape[1],
            width: image_shape[2],
        }),
        ..Source::default()
    })
}

fn read_idx_file(
    path: &Path,
    n_axes: usize,
    expected: &'static str,
) -> Result<(Vec<usize>, Vec<u8>), Error> {
    let mut bytes = read_file(path)?;
    let header = 4 + 4 * n_axes;
    if bytes.len() < header || bytes[..4] != [0, 0, 8, n_axes as u8] {
        let place = Place {
            path: Arc::from(path),
            spot: Spot::Byte(0),
        };
        return Err(Error::Header { place, expected });
    }
    let (sizes, _) = bytes[4..header].as_chunks::<4>();
    let shape: Vec<usize> = sizes
        .iter()
        .map(|&size| u32::from_be_bytes(size) as usize)
        .collect();
    let n_bytes = header as u64 + shape.iter().map(|&size| size as u64).product::<u64>();
    if bytes.len() as u64 != n_bytes {
        return Err(Error::Length {
            path: path.to_owned(),
            expected: n_bytes,
            found: bytes.len() as u64,
            what: format!("its header says {shape:?}"),
        });
    }
    bytes.drain(..header);
    Ok((shape, bytes))
}

/// A file's bytes, unpacked if it is gzip.
fn read_file(path: &Path) -> Result<Vec<u8>, Error> {
    let io = |source| Error::Io {
        path: path.to_owned(),
        source,
    };
    let bytes = std::fs::read(path).map_err(io)?;
    if !bytes.starts_with(&[0x1f, 0x8b]) {
        return Ok(bytes);
    }
    let mut unpacked = Vec::new();
    GzDecoder::new(bytes.as_slice())
        .read_to_end(&mut unpacked)
        .map_err(io)?;
    Ok(unpacked)
}
