//! Tables, and the Parquet file that holds them; those of others may be CSV.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, BooleanArray, Float64Array, RecordBatch, StringArray, UInt32Array,
};
use arrow::compute::{CastOptions, cast_with_options, concat_batches};
use arrow::csv::ReaderBuilder;
use arrow::csv::reader::Format;
use arrow::datatypes::{DataType, Field, Float64Type, Schema, UInt32Type};
use arrow::error::ArrowError;
use bytes::Bytes;
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use parquet::arrow::arrow_writer::ArrowWriterOptions;
use parquet::basic::{Compression, ZstdLevel};
use parquet::file::metadata::KeyValue;
use parquet::file::properties::WriterProperties;
use space::SearchSpace;

use crate::error::Error;
use crate::format::ParseFormatVersionError;
use crate::store::Artifact;

/// Columns on their way into a file.
#[derive(Default)]
pub(crate) struct Columns {
    fields: Vec<Field>,
    arrays: Vec<ArrayRef>,
    /// The first number that is NaN or infinite: its column and row.
    non_finite: Option<(String, usize)>,
}

impl Columns {
    fn push(&mut self, name: &str, nullable: bool, array: ArrayRef) {
        self.fields
            .push(Field::new(name, array.data_type().clone(), nullable));
        self.arrays.push(array);
    }

    /// Adds a column.
    pub(crate) fn put<T: Column>(&mut self, name: &str, values: impl Iterator<Item = T>) {
        T::put(self, name, values);
    }

    fn floats(&mut self, name: &str, nullable: bool, values: impl Iterator<Item = Option<f64>>) {
        let values: Vec<Option<f64>> = values.collect();
        let row = values
            .iter()
            .position(|value| value.is_some_and(|value| !value.is_finite()));
        if let (Some(row), None) = (row, &self.non_finite) {
            self.non_finite = Some((name.to_owned(), row));
        }
        self.push(name, nullable, Arc::new(Float64Array::from(values)));
    }

    /// The Parquet file: the same bytes for the same columns.
    ///
    /// The metadata says what the file belongs to, so that a stray one explains itself.
    pub(crate) fn encode<A: Artifact>(
        self,
        file: &str,
        settings: Option<String>,
    ) -> Result<Vec<u8>, Error> {
        if let Some((column, row)) = self.non_finite {
            let what = format!("{file}: {column} in row {row}");
            return Err(Error::NonFinite { what });
        }
        let failed = |reason: String| Error::Encode {
            file: file.to_owned(),
            reason,
        };
        let mut metadata = vec![
            KeyValue::new("kind".to_owned(), A::KIND.to_string()),
            KeyValue::new("format".to_owned(), A::FORMAT.to_string()),
            KeyValue::new(
                "space_fingerprint".to_owned(),
                SearchSpace::darts().fingerprint(),
            ),
        ];
        metadata.extend(settings.map(|text| KeyValue::new("settings".to_owned(), text)));
        let properties = WriterProperties::builder()
            .set_created_by("artifact".to_owned())
            .set_compression(Compression::ZSTD(ZstdLevel::default()))
            .set_key_value_metadata(Some(metadata))
            .build();
        let options = ArrowWriterOptions::new()
            .with_properties(properties)
            .with_skip_arrow_metadata(true);
        let schema = Arc::new(Schema::new(self.fields));
        let batch = RecordBatch::try_new(schema.clone(), self.arrays)
            .map_err(|error| failed(error.to_string()))?;
        let mut bytes = Vec::new();
        ArrowWriter::try_new_with_options(&mut bytes, schema, options)
            .and_then(|mut writer| {
                writer.write(&batch)?;
                writer.close()
            })
            .map_err(|error| failed(error.to_string()))?;
        Ok(bytes)
    }
}

/// A type that is one column of a table. Of an `Option`, a file may have gaps or no column at all.
pub(crate) trait Column: Sized {
    fn put(columns: &mut Columns, name: &str, values: impl Iterator<Item = Self>);
    fn get(table: &Table, name: &str) -> Result<Vec<Self>, Error>;
}

impl Column for u32 {
    fn put(columns: &mut Columns, name: &str, values: impl Iterator<Item = Self>) {
        columns.push(name, false, Arc::new(UInt32Array::from_iter_values(values)));
    }

    fn get(table: &Table, name: &str) -> Result<Vec<Self>, Error> {
        let column = table.column(name, &DataType::UInt32)?;
        Ok(column.as_primitive::<UInt32Type>().values().to_vec())
    }
}

impl Column for f64 {
    fn put(columns: &mut Columns, name: &str, values: impl Iterator<Item = Self>) {
        columns.floats(name, false, values.map(Some));
    }

    fn get(table: &Table, name: &str) -> Result<Vec<Self>, Error> {
        let column = table.column(name, &DataType::Float64)?;
        let values = column.as_primitive::<Float64Type>().values().to_vec();
        table.check_finite(name, values.iter().copied().map(Some))?;
        Ok(values)
    }
}

impl Column for Option<f64> {
    fn put(columns: &mut Columns, name: &str, values: impl Iterator<Item = Self>) {
        columns.floats(name, true, values);
    }

    fn get(table: &Table, name: &str) -> Result<Vec<Self>, Error> {
        if !table.has(name) {
            return Ok(vec![None; table.n_rows()]);
        }
        let column = table.nullable_column(name, &DataType::Float64)?;
        let values: Vec<Self> = column.as_primitive::<Float64Type>().iter().collect();
        table.check_finite(name, values.iter().copied())?;
        Ok(values)
    }
}

impl Column for bool {
    fn put(columns: &mut Columns, name: &str, values: impl Iterator<Item = Self>) {
        let values: Vec<bool> = values.collect();
        columns.push(name, false, Arc::new(BooleanArray::from(values)));
    }

    fn get(table: &Table, name: &str) -> Result<Vec<Self>, Error> {
        let column = table.column(name, &DataType::Boolean)?;
        Ok(column.as_boolean().iter().flatten().collect())
    }
}

impl Column for Option<bool> {
    fn put(columns: &mut Columns, name: &str, values: impl Iterator<Item = Self>) {
        let values: Vec<Self> = values.collect();
        columns.push(name, true, Arc::new(BooleanArray::from(values)));
    }

    fn get(table: &Table, name: &str) -> Result<Vec<Self>, Error> {
        if !table.has(name) {
            return Ok(vec![None; table.n_rows()]);
        }
        let column = table.nullable_column(name, &DataType::Boolean)?;
        Ok(column.as_boolean().iter().collect())
    }
}

impl Column for String {
    fn put(columns: &mut Columns, name: &str, values: impl Iterator<Item = Self>) {
        columns.push(name, false, Arc::new(StringArray::from_iter_values(values)));
    }

    fn get(table: &Table, name: &str) -> Result<Vec<Self>, Error> {
        let column = table.column(name, &DataType::Utf8)?;
        let column = column.as_string::<i32>();
        Ok(column.iter().flatten().map(str::to_owned).collect())
    }
}

impl Column for Option<String> {
    fn put(columns: &mut Columns, name: &str, values: impl Iterator<Item = Self>) {
        let values: Vec<Self> = values.collect();
        columns.push(name, true, Arc::new(StringArray::from(values)));
    }

    fn get(table: &Table, name: &str) -> Result<Vec<Self>, Error> {
        if !table.has(name) {
            return Ok(vec![None; table.n_rows()]);
        }
        let column = table.nullable_column(name, &DataType::Utf8)?;
        let column = column.as_string::<i32>().iter();
        Ok(column.map(|text| text.map(str::to_owned)).collect())
    }
}

/// Gives a struct `columns(&[Self])` and `rows(&Table)`: one column per listed field, of the same name.
macro_rules! one_column_per_field {
    ($Row:ident { $($field:ident),+ $(,)? }) => {
        impl $Row {
            fn columns(rows: &[Self]) -> $crate::table::Columns {
                let mut columns = $crate::table::Columns::default();
                $(columns.put(stringify!($field), rows.iter().map(|row| row.$field.clone()));)+
                columns
            }

            fn rows(table: &$crate::table::Table) -> Result<Vec<Self>, $crate::Error> {
                $(let mut $field = table.get(stringify!($field))?.into_iter();)+
                let rows = (0..table.n_rows()).map_while(|_| {
                    Some(Self { $($field: $field.next()?),+ })
                });
                Ok(rows.collect())
            }
        }
    };
}
pub(crate) use one_column_per_field;

/// The rows of a CSV file whose first line names the columns; their types are those that all values have.
fn decode_csv(bytes: &[u8]) -> Result<RecordBatch, ArrowError> {
    let format = Format::default().with_header(true);
    let (schema, _) = format.infer_schema(bytes, None)?;
    let schema = Arc::new(schema);
    let reader = ReaderBuilder::new(schema.clone())
        .with_format(format)
        .build(bytes)?;
    concat_batches(&schema, &reader.collect::<Result<Vec<_>, _>>()?)
}

/// The columns of a file that was read.
pub(crate) struct Table {
    file: PathBuf,
    batch: RecordBatch,
    metadata: BTreeMap<String, String>,
    is_csv: bool,
}

impl Table {
    /// Reads a table, whoever wrote it: CSV with a row of names if the file's own name ends so, else Parquet.
    pub(crate) fn read<A: Artifact>(file: &Path) -> Result<Self, Error> {
        let bytes = std::fs::read(file).map_err(|source| Error::Read {
            path: file.to_owned(),
            source,
        })?;
        match file.extension() {
            Some(extension) if extension.eq_ignore_ascii_case("csv") => {
                let batch = decode_csv(&bytes).map_err(|error| Error::Malformed {
                    file: file.to_owned(),
                    reason: format!("not readable as CSV: {error}"),
                })?;
                Ok(Self {
                    file: file.to_owned(),
                    batch,
                    metadata: BTreeMap::new(),
                    is_csv: true,
                })
            }
            _ => Self::decode::<A>(file, bytes),
        }
    }

    /// Reads a Parquet file of an artifact; `file` is its name in messages. What the file says of itself
    /// is held against this program; it may say nothing.
    pub(crate) fn decode<A: Artifact>(file: &Path, bytes: Vec<u8>) -> Result<Self, Error> {
        let malformed = |error: &dyn std::fmt::Display| Error::Malformed {
            file: file.to_owned(),
            reason: format!("not readable as Parquet: {error}"),
        };
        let builder = ParquetRecordBatchReaderBuilder::try_new(Bytes::from(bytes))
            .map_err(|error| malformed(&error))?;
        let metadata = builder.metadata().file_metadata().key_value_metadata();
        let metadata = metadata
            .into_iter()
            .flatten()
            .filter_map(|pair| Some((pair.key.clone(), pair.value.clone()?)))
            .collect();
        let schema = builder.schema().clone();
        let batches = builder
            .build()
            .map_err(|error| malformed(&error))?
            .collect::<Result<Vec<_>, _>>()
            .map_err(|error| malformed(&error))?;
        let batch = concat_batches(&schema, &batches).map_err(|error| malformed(&error))?;
        let table = Self {
            file: file.to_owned(),
            batch,
            metadata,
            is_csv: false,
        };
        table.check::<A>()?;
        Ok(table)
    }

    fn check<A: Artifact>(&self) -> Result<(), Error> {
        let path = || self.file.clone();
        let kind = self.metadata("kind");
        if let Some(found) = kind.filter(|&found| found != A::KIND.name()) {
            let expected = A::KIND;
            return Err(self.malformed(format!("belongs to a {found}, expected a {expected}")));
        }
        if let Some(found) = self.metadata("format") {
            let found = found
                .parse()
                .map_err(|error: ParseFormatVersionError| self.malformed(error.to_string()))?;
            if !A::FORMAT.can_read(found) {
                return Err(Error::Format {
                    path: path(),
                    expected: A::FORMAT,
                    found,
                });
            }
        }
        let expected = SearchSpace::darts().fingerprint();
        match self.metadata("space_fingerprint") {
            Some(found) if found != expected => Err(Error::Space {
                path: path(),
                expected,
                found: found.to_owned(),
            }),
            _ => Ok(()),
        }
    }

    /// Where a row is, in words: of CSV a line, from 1 with the names.
    pub(crate) fn row(&self, row: usize) -> String {
        match self.is_csv {
            true => format!("line {}", row + 2),
            false => format!("row {row}"),
        }
    }

    pub(crate) fn n_rows(&self) -> usize {
        self.batch.num_rows()
    }

    pub(crate) fn metadata(&self, key: &str) -> Option<&str> {
        self.metadata.get(key).map(String::as_str)
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        self.batch.column_by_name(name).is_some()
    }

    pub(crate) fn malformed(&self, reason: String) -> Error {
        Error::Malformed {
            file: self.file.clone(),
            reason,
        }
    }

    /// The values of a column.
    pub(crate) fn get<T: Column>(&self, name: &str) -> Result<Vec<T>, Error> {
        T::get(self, name)
    }

    /// A column without gaps.
    fn column(&self, name: &str, wanted: &DataType) -> Result<ArrayRef, Error> {
        let column = self.nullable_column(name, wanted)?;
        match (0..column.len()).find(|&row| column.is_null(row)) {
            Some(row) => {
                let row = self.row(row);
                Err(self.malformed(format!("column {name} has no value in {row}")))
            }
            None => Ok(column),
        }
    }

    fn check_finite(
        &self,
        name: &str,
        mut values: impl Iterator<Item = Option<f64>>,
    ) -> Result<(), Error> {
        match values.position(|value| value.is_some_and(|value| !value.is_finite())) {
            Some(row) => {
                let row = self.row(row);
                Err(self.malformed(format!("column {name} is NaN or infinite in {row}")))
            }
            None => Ok(()),
        }
    }

    pub(crate) fn nullable_column(&self, name: &str, wanted: &DataType) -> Result<ArrayRef, Error> {
        let column = self.batch.column_by_name(name).ok_or_else(|| {
            let schema = self.batch.schema();
            let names: Vec<_> = schema
                .fields()
                .iter()
                .map(|field| field.name().as_str())
                .collect();
            let hint = match (self.is_csv, &names[..]) {
                (true, [_]) => " (columns are separated by commas)",
                _ => "",
            };
            self.malformed(format!(
                "no column {name}; the file has {}{hint}",
                names.join(", ")
            ))
        })?;
        let strict = CastOptions {
            safe: false,
            ..CastOptions::default()
        };
        cast_with_options(column, wanted, &strict).map_err(|error| {
            let cast = cast_with_options(column, wanted, &CastOptions::default());
            let wrong = cast.ok().and_then(|cast| {
                let rows = 0..column.len();
                rows.into_iter()
                    .find(|&row| cast.is_null(row) && !column.is_null(row))
            });
            let texts = column.as_string_opt::<i32>();
            self.malformed(match (wrong, texts) {
                (Some(row), Some(texts)) => format!(
                    "column {name} is '{}' in {}, expected {}",
                    texts.value(row),
                    self.row(row),
                    in_words(wanted)
                ),
                _ => format!(
                    "column {name} is {}, expected {}: {error}",
                    in_words(column.data_type()),
                    in_words(wanted)
                ),
            })
        })
    }
}

/// A type of a column, as those who write the file by hand would say it.
fn in_words(of: &DataType) -> String {
    match of {
        DataType::Float64 => "a number".to_owned(),
        DataType::UInt32 => "a whole number, 0 or more".to_owned(),
        DataType::Boolean => "true or false".to_owned(),
        DataType::Utf8 => "text".to_owned(),
        other => other.to_string(),
    }
}
