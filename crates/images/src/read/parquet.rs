//! Hugging Face's Parquet layout: an image column of encoded files, an integer label column.

use std::fs::File;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Int64Type};
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{ParquetRecordBatchReaderBuilder, RowSelection};
use parquet::errors::ParquetError;

use super::{Listing, N_IMAGES_AT_A_TIME};
use crate::decode::EncodedImage;
use crate::error::{Place, Spot};
use crate::{Error, Split};

/// The shards of a split in order; none if the folder holds no such files.
pub(super) fn shards(
    names: &[String],
    dir: &Path,
    split: Split,
) -> Result<Option<Vec<PathBuf>>, Error> {
    for prefix in split.names() {
        let numbered = names
            .iter()
            .filter_map(|name| Some((shard_number(name, prefix)?, name)));
        let mut found: Vec<((usize, usize), &String)> = numbered.collect();
        found.sort();
        let Some(&((_, n_shards), first)) = found.first() else {
            continue;
        };
        let missing = |index| {
            let path = dir.join(format!("{prefix}-{index:05}-of-{n_shards:05}.parquet"));
            Err(Error::MissingFile { path, split })
        };
        for (index, &((shard, n), name)) in found.iter().enumerate() {
            if n != n_shards || shard < index {
                let what = "by their names they are shards of different sets or the same shard";
                return Err(Error::MixedFiles {
                    a: dir.join(first),
                    b: dir.join(name),
                    what,
                });
            }
            if shard > index {
                return missing(index);
            }
        }
        if found.len() < n_shards {
            return missing(found.len());
        }
        return Ok(Some(
            found.into_iter().map(|(_, name)| dir.join(name)).collect(),
        ));
    }
    Ok(None)
}

/// Which shard of how many a file is: `train-00000-of-00003.parquet`, with a hash before the dot in older data sets, or
/// `train.parquet`, which is all there is.
fn shard_number(name: &str, prefix: &str) -> Option<(usize, usize)> {
    let rest = name.strip_prefix(prefix)?.strip_suffix(".parquet")?;
    if rest.is_empty() {
        return Some((0, 1));
    }
    let (index, rest) = rest.strip_prefix('-')?.split_once("-of-")?;
    let n_shards = rest
        .split_once('-')
        .map_or(rest, |(n_shards, _hash)| n_shards);
    let (index, n_shards) = (index.parse().ok()?, n_shards.parse().ok()?);
    (index < n_shards).then_some((index, n_shards))
}

/// Reads the labels and class names of all shards.
pub(super) fn list(files: &[PathBuf], label: Option<&str>) -> Result<Listing, Error> {
    let mut listing = Listing {
        labels: Vec::new(),
        places: Vec::new(),
        class_names: None,
        raw: None,
    };
    for path in files {
        let shard = Shard::open(Arc::from(path.as_path()))?;
        shard.image_column()?;
        let column = shard.label_column(label)?;
        let names = shard.class_names(column);
        if path == &files[0] {
            listing.class_names = names;
        } else if listing.class_names != names {
            let (a, b) = (files[0].clone(), path.clone());
            return Err(Error::MixedFiles {
                a,
                b,
                what: "they name different classes",
            });
        }
        let rows: Vec<u64> = (0..shard.n_rows as u64).collect();
        shard.read(column, &rows, |array, places| {
            let labels = cast(array, &DataType::Int64).expect("integers become integers");
            let labels = labels.as_primitive::<Int64Type>();
            for (label, place) in labels.iter().zip(places) {
                let Some(label) = label else {
                    return Err(Error::Null {
                        place,
                        what: "label",
                    });
                };
                listing.labels.push(label);
                listing.places.push(place);
            }
            Ok(())
        })?;
    }
    Ok(listing)
}

/// Hands the encoded images at some places, in order, to `take`, some at a time.
pub(super) fn read(
    places: &[&Place],
    mut take: impl FnMut(Vec<EncodedImage>) -> Result<(), Error>,
) -> Result<(), Error> {
    for places in places.chunk_by(|a, b| a.path == b.path) {
        let shard = Shard::open(places[0].path.clone())?;
        let column = shard.image_column()?;
        let rows: Vec<u64> = places.iter().map(|place| place.row()).collect();
        shard.read(column, &rows, |array, places| {
            let bytes = match array.as_struct_opt() {
                Some(fields) => fields
                    .column_by_name("bytes")
                    .expect("the column was checked"),
                None => array,
            };
            let bytes = cast(bytes, &DataType::LargeBinary).expect("bytes become bytes");
            let images = bytes
                .as_binary::<i64>()
                .iter()
                .zip(places)
                .map(|(bytes, place)| match bytes {
                    Some(bytes) => Ok(EncodedImage {
                        place,
                        bytes: Some(bytes.into()),
                    }),
                    None => Err(Error::Null {
                        place,
                        what: "image",
                    }),
                });
            take(images.collect::<Result<_, _>>()?)
        })?;
    }
    Ok(())
}

/// An opened file.
struct Shard {
    path: Arc<Path>,
    n_rows: usize,
    builder: ParquetRecordBatchReaderBuilder<File>,
}

impl Shard {
    fn open(path: Arc<Path>) -> Result<Self, Error> {
        let file = File::open(&path).map_err(|source| Error::Io {
            path: path.to_path_buf(),
            source,
        })?;
        let opened = ParquetRecordBatchReaderBuilder::try_new(file).and_then(|builder| {
            // A wild number here would be memory for as many rows below.
            let metadata = builder.metadata();
            let groups = metadata.row_groups().iter();
            let n_rows = groups
                .map(|group| i128::from(group.num_rows()))
                .sum::<i128>();
            match i128::from(metadata.file_metadata().num_rows()) == n_rows && n_rows >= 0 {
                true => Ok((n_rows as usize, builder)),
                false => Err(ParquetError::General(
                    "its parts do not add up to its number of rows".to_owned(),
                )),
            }
        });
        match opened {
            Ok((n_rows, builder)) => Ok(Self {
                path,
                n_rows,
                builder,
            }),
            Err(source) => {
                let spot = Spot::File;
                let place = Place { path, spot };
                Err(Error::Parquet { place, source })
            }
        }
    }

    /// The column of images: encoded files, by themselves or as the field `bytes` of a struct.
    fn image_column(&self) -> Result<usize, Error> {
        fn is_binary(kind: &DataType) -> bool {
            matches!(
                kind,
                DataType::Binary | DataType::LargeBinary | DataType::BinaryView
            )
        }
        self.column(
            &["image", "img"],
            "a struct with a binary field `bytes`",
            |kind| match kind {
                DataType::Struct(fields) => fields
                    .find("bytes")
                    .is_some_and(|(_, field)| is_binary(field.data_type())),
                kind => is_binary(kind),
            },
        )
    }

    fn label_column(&self, label: Option<&str>) -> Result<usize, Error> {
        match label {
            Some(label) => self.column(&[label], "integers", DataType::is_integer),
            None => self.column(&["label", "fine_label"], "integers", DataType::is_integer),
        }
    }

    /// The first of the named columns that is there.
    fn column(
        &self,
        names: &[&str],
        expected: &'static str,
        is_expected: impl FnOnce(&DataType) -> bool,
    ) -> Result<usize, Error> {
        let fields = self.builder.schema().fields();
        let found = names.iter().find_map(|name| fields.find(name));
        match found {
            Some((index, field)) if is_expected(field.data_type()) => Ok(index),
            _ => Err(Error::Column {
                path: self.path.to_path_buf(),
                names: names.join("` or `"),
                expected,
                columns: fields
                    .iter()
                    .map(|field| format!("{}: {}", field.name(), field.data_type()))
                    .collect::<Vec<_>>()
                    .join(", "),
            }),
        }
    }

    /// The names of a label's classes, in the metadata that the library `datasets` writes.
    fn class_names(&self, column: usize) -> Option<Vec<String>> {
        let entries = self
            .builder
            .metadata()
            .file_metadata()
            .key_value_metadata()?;
        let entry = entries.iter().find(|entry| entry.key == "huggingface")?;
        let metadata: serde_json::Value = serde_json::from_str(entry.value.as_deref()?).ok()?;
        let label = self.builder.schema().field(column).name();
        let names = metadata["info"]["features"][label]["names"].as_array()?;
        names
            .iter()
            .map(|name| name.as_str().map(str::to_owned))
            .collect()
    }

    /// Hands some rows of one column, given in ascending order, and their places to `each`, some at a time.
    fn read(
        self,
        column: usize,
        rows: &[u64],
        mut each: impl FnMut(&ArrayRef, Vec<Place>) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let Self {
            path,
            n_rows,
            builder,
        } = self;
        let place = |row: u64| Place {
            path: path.clone(),
            spot: Spot::Row(row),
        };
        let unreadable = |row, source| Error::Parquet {
            place: place(row),
            source,
        };
        let mut rest = rows;
        let ranges = rows.chunk_by(|a, b| a + 1 == *b).map(|run| {
            let (first, last) = (run[0] as usize, run[run.len() - 1] as usize);
            Range {
                start: first,
                end: last + 1,
            }
        });
        let columns = ProjectionMask::roots(builder.parquet_schema(), [column]);
        let mut reader = builder
            .with_projection(columns)
            .with_row_selection(RowSelection::from_consecutive_ranges(ranges, n_rows))
            .with_batch_size(N_IMAGES_AT_A_TIME)
            .build()
            .map_err(|source| unreadable(0, source))?;
        while let Some(batch) =
            no_panic(|| reader.next().transpose().map_err(ParquetError::from))
                .map_err(|source| unreadable(rest.first().copied().unwrap_or(0), source))?
        {
            let (read, unread) = rest.split_at(batch.num_rows());
            each(batch.column(0), read.iter().copied().map(place).collect())?;
            rest = unread;
        }
        match rest.first() {
            None => Ok(()),
            Some(&row) => {
                let source = ParquetError::EOF("the file ends before this row".to_owned());
                Err(unreadable(row, source))
            }
        }
    }
}

/// What the reader does, its panic made an error: on some damaged files it panics. It must not be used after an error.
fn no_panic<T>(read: impl FnOnce() -> Result<T, ParquetError>) -> Result<T, ParquetError> {
    catch_unwind(AssertUnwindSafe(read)).unwrap_or_else(|_| {
        let problem = "the parquet reader panicked, as it does on some damaged files";
        Err(ParquetError::General(problem.to_owned()))
    })
}
