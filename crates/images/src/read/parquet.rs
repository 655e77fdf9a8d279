//! Hugging Face's Parquet layout: an image column of encoded files, an integer label column.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Int64Type, Schema};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use parquet::errors::ParquetError;

use super::{LoadOptions, Source};
use crate::decode::EncodedImage;
use crate::error::{Place, Spot};
use crate::{Error, Split};

/// What the test split may be called.
const TEST_NAMES: [&str; 4] = ["test", "validation", "valid", "val"];

/// The shards of a split, sorted; none if the folder holds no such files.
pub(super) fn shards(names: &[String], dir: &Path, split: Split) -> Result<Vec<PathBuf>, Error> {
    let prefixes: &[&str] = match split {
        Split::Train => &["train"],
        Split::Test => &TEST_NAMES,
    };
    for prefix in prefixes {
        let own: Vec<&String> = names
            .iter()
            .filter(|name| is_shard_of(name, prefix))
            .collect();
        let Some(first) = own.first() else { continue };
        // train-00000-of-00003.parquet: the name says how many there must be.
        if let Some(total) = shard_count(first) {
            for index in 0..total {
                let expected = format!("{prefix}-{index:05}-of-{total:05}.parquet");
                if !names.contains(&expected) {
                    return Err(Error::MissingFile {
                        path: dir.join(expected),
                        split,
                    });
                }
            }
        }
        return Ok(own.into_iter().map(|name| dir.join(name)).collect());
    }
    Ok(Vec::new())
}

fn is_shard_of(name: &str, prefix: &str) -> bool {
    name.strip_prefix(prefix)
        .and_then(|rest| rest.strip_suffix(".parquet"))
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('-'))
}

fn shard_count(name: &str) -> Option<usize> {
    name.strip_suffix(".parquet")?
        .rsplit_once("-of-")?
        .1
        .parse()
        .ok()
}

/// Reads all rows of all shards.
pub(super) fn read(files: &[PathBuf], options: &LoadOptions) -> Result<Source, Error> {
    let mut source = Source::default();
    for path in files {
        read_shard(path, options, &mut source)?;
    }
    Ok(source)
}

fn read_shard(path: &Path, options: &LoadOptions, source: &mut Source) -> Result<(), Error> {
    let shared: Arc<Path> = Arc::from(path);
    let place = |row: u64| Place {
        path: shared.clone(),
        spot: Spot::Row(row),
    };
    let unreadable = |row| move |source: ParquetError| (row, source);
    let damaged = |(row, source)| Error::Parquet {
        place: place(row),
        source,
    };
    let file = File::open(path).map_err(|source| Error::Io {
        path: path.to_owned(),
        source,
    })?;
    let builder = ParquetRecordBatchReaderBuilder::try_new(file)
        .map_err(unreadable(0))
        .map_err(damaged)?;
    let schema = builder.schema().clone();
    let image_column = find_column(path, &schema, &["image", "img"], "an image column")?;
    let labels: Vec<&str> = match &options.label {
        Some(label) => vec![label],
        None => vec!["label", "fine_label"],
    };
    let label_column = find_column(path, &schema, &labels, "a label column")?;
    if source.class_names.is_none() {
        let metadata = builder.metadata().file_metadata().key_value_metadata();
        source.class_names = metadata
            .into_iter()
            .flatten()
            .find(|entry| entry.key == "huggingface")
            .and_then(|entry| class_names(entry.value.as_deref()?, &label_column));
    }
    let mut row = 0u64;
    let reader = builder.build().map_err(unreadable(0)).map_err(damaged)?;
    for batch in reader {
        let batch = batch.map_err(|error| damaged((row, ParquetError::from(error))))?;
        let bytes = image_bytes(path, &schema, &batch, &image_column)?;
        let labels = integers(path, &schema, &batch, &label_column)?;
        let labels = labels.as_primitive::<Int64Type>();
        let bytes = bytes.as_binary::<i64>();
        for index in 0..batch.num_rows() {
            let place = place(row + index as u64);
            for (array, column) in [
                (bytes as &dyn Array, &image_column),
                (labels as &dyn Array, &label_column),
            ] {
                if array.is_null(index) {
                    return Err(Error::Null {
                        place,
                        column: column.clone(),
                    });
                }
            }
            source.labels.push((labels.value(index), place.clone()));
            let bytes = Some(bytes.value(index).into());
            source.encoded.push(EncodedImage { place, bytes });
        }
        row += batch.num_rows() as u64;
    }
    Ok(())
}

fn find_column(path: &Path, schema: &Schema, names: &[&str], what: &str) -> Result<String, Error> {
    names
        .iter()
        .find(|name| schema.field_with_name(name).is_ok())
        .map(|name| (*name).to_owned())
        .ok_or_else(|| {
            column_error(
                path,
                schema,
                format!("expected {what} called {}", names.join(" or ")),
            )
        })
}

fn column_error(path: &Path, schema: &Schema, problem: String) -> Error {
    let columns: Vec<String> = schema
        .fields()
        .iter()
        .map(|field| format!("{} ({})", field.name(), field.data_type()))
        .collect();
    Error::Column {
        path: path.to_owned(),
        problem,
        columns: columns.join(", "),
    }
}

/// The encoded images: of a struct its field `bytes`, or the column itself.
fn image_bytes(
    path: &Path,
    schema: &Schema,
    batch: &RecordBatch,
    column: &str,
) -> Result<ArrayRef, Error> {
    let array = batch
        .column_by_name(column)
        .expect("the column was found in the schema");
    let bytes = match array.as_struct_opt() {
        Some(fields) => fields.column_by_name("bytes").cloned(),
        None => Some(array.clone()),
    };
    bytes
        .filter(|bytes| {
            let kind = bytes.data_type();
            kind.is_binary() || matches!(kind, DataType::BinaryView)
        })
        .and_then(|bytes| cast(&bytes, &DataType::LargeBinary).ok())
        .ok_or_else(|| {
            let problem = format!(
                "column {column} must hold encoded images: a struct with a binary field `bytes`"
            );
            column_error(path, schema, problem)
        })
}

fn integers(
    path: &Path,
    schema: &Schema,
    batch: &RecordBatch,
    column: &str,
) -> Result<ArrayRef, Error> {
    let array = batch
        .column_by_name(column)
        .expect("the column was found in the schema");
    Some(array)
        .filter(|array| array.data_type().is_integer())
        .and_then(|array| cast(array, &DataType::Int64).ok())
        .ok_or_else(|| column_error(path, schema, format!("column {column} must hold integers")))
}

/// The class names in the metadata that the `datasets` library writes.
fn class_names(metadata: &str, label: &str) -> Option<Vec<String>> {
    let metadata: serde_json::Value = serde_json::from_str(metadata).ok()?;
    let names = metadata
        .get("info")?
        .get("features")?
        .get(label)?
        .get("names")?
        .as_array()?;
    names
        .iter()
        .map(|name| Some(name.as_str()?.to_owned()))
        .collect()
}
