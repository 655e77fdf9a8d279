//! Tiny data sets to read.

use std::fs::{self, File};
use std::io::{Cursor, Write};
use std::path::Path;
use std::sync::Arc;

use arrow::array::{ArrayRef, BinaryArray, Int64Array, RecordBatch, StringArray, StructArray};
use arrow::datatypes::{DataType, Field};
use image::{ExtendedColorType, ImageFormat as FileFormat};
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, ZstdLevel};
use parquet::file::metadata::KeyValue;
use parquet::file::properties::WriterProperties;

/// Channels, height, width.
pub(crate) type Shape = [usize; 3];

/// The pixels of image number `index`, c h w: smooth, and different for every image, channel, row and column.
pub(crate) fn pixels(index: usize, [c, h, w]: Shape) -> Vec<u8> {
    let mut pixels = Vec::new();
    for c in 0..c {
        for y in 0..h {
            pixels.extend((0..w).map(|x| (11 * index + 40 * c + 5 * y + 3 * x) as u8));
        }
    }
    pixels
}

/// The same pixels as a file.
pub(crate) fn encoded(index: usize, shape: Shape, format: FileFormat) -> Vec<u8> {
    let [c, h, w] = shape;
    let planes = pixels(index, shape);
    let interleaved: Vec<u8> = (0..h * w)
        .flat_map(|at| planes[at..].iter().step_by(h * w).take(c).copied())
        .collect();
    let color = if c == 1 {
        ExtendedColorType::L8
    } else {
        ExtendedColorType::Rgb8
    };
    let mut bytes = Vec::new();
    image::write_buffer_with_format(
        &mut Cursor::new(&mut bytes),
        &interleaved,
        w as u32,
        h as u32,
        color,
        format,
    )
    .unwrap();
    bytes
}

pub(crate) fn png(index: usize, shape: Shape) -> Vec<u8> {
    encoded(index, shape, FileFormat::Png)
}

/// A table as Hugging Face's library writes it.
pub(crate) struct Table {
    pub(crate) image_column: &'static str,
    pub(crate) images: Vec<Option<Vec<u8>>>,
    pub(crate) labels: Vec<(&'static str, ArrayRef)>,
    pub(crate) metadata: Option<String>,
    pub(crate) compression: Compression,
}

impl Table {
    /// Images as PNG, one `label` each, no class names.
    pub(crate) fn new(images: Vec<Vec<u8>>, labels: &[i64]) -> Self {
        Self {
            image_column: "image",
            images: images.into_iter().map(Some).collect(),
            labels: vec![("label", Arc::new(Int64Array::from(labels.to_vec())))],
            metadata: None,
            compression: Compression::SNAPPY,
        }
    }

    pub(crate) fn named(mut self, label: &str, names: &[&str]) -> Self {
        let names: Vec<String> = names.iter().map(|name| format!("\"{name}\"")).collect();
        self.metadata = Some(format!(
            r#"{{"info": {{"features": {{"{label}": {{"names": [{}], "_type": "ClassLabel"}}}}}}}}"#,
            names.join(", ")
        ));
        self
    }

    pub(crate) fn zstd(mut self) -> Self {
        self.compression = Compression::ZSTD(ZstdLevel::default());
        self
    }

    pub(crate) fn write(self, path: &Path) {
        let bytes: BinaryArray = self.images.iter().map(Option::as_deref).collect();
        let paths = StringArray::from(vec![None::<&str>; self.images.len()]);
        let images = StructArray::from(vec![
            (
                Arc::new(Field::new("bytes", DataType::Binary, true)),
                Arc::new(bytes) as ArrayRef,
            ),
            (
                Arc::new(Field::new("path", DataType::Utf8, true)),
                Arc::new(paths) as ArrayRef,
            ),
        ]);
        let mut columns = vec![(self.image_column, Arc::new(images) as ArrayRef)];
        columns.extend(self.labels);
        let columns = columns.into_iter().map(|(name, array)| (name, array, true));
        let batch = RecordBatch::try_from_iter_with_nullable(columns).unwrap();

        let metadata = self
            .metadata
            .map(|value| vec![KeyValue::new("huggingface".to_owned(), value)]);
        let properties = WriterProperties::builder()
            .set_compression(self.compression)
            .set_key_value_metadata(metadata)
            .build();
        let file = File::create(path).unwrap();
        let mut writer = ArrowWriter::try_new(file, batch.schema(), Some(properties)).unwrap();
        writer.write(&batch).unwrap();
        writer.close().unwrap();
    }
}

/// A CIFAR file: `labels` bytes before the planes of every image; images count from `first`.
pub(crate) fn write_cifar(path: &Path, labels: &[&[u8]], first: usize) {
    let mut bytes = Vec::new();
    for (index, labels) in labels.iter().enumerate() {
        bytes.extend_from_slice(labels);
        bytes.extend(pixels(first + index, [3, 32, 32]));
    }
    fs::write(path, bytes).unwrap();
}

/// The bytes of an IDX file.
pub(crate) fn idx(shape: &[u32], values: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0, 0, 8, shape.len() as u8];
    bytes.extend(shape.iter().flat_map(|size| size.to_be_bytes()));
    bytes.extend_from_slice(values);
    bytes
}

/// IDX images of `[1, h, w]`, as many as there are labels.
pub(crate) fn write_idx(dir: &Path, prefix: &str, shape: Shape, labels: &[u8]) {
    let [_, h, w] = shape;
    let n = labels.len();
    let values: Vec<u8> = (0..n).flat_map(|index| pixels(index, shape)).collect();
    let images = idx(&[n as u32, h as u32, w as u32], &values);
    fs::write(dir.join(format!("{prefix}-images-idx3-ubyte")), images).unwrap();
    let labels = idx(&[n as u32], labels);
    fs::write(dir.join(format!("{prefix}-labels-idx1-ubyte")), labels).unwrap();
}

pub(crate) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// Writes a file and the folders it needs.
pub(crate) fn write(path: &Path, bytes: &[u8]) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, bytes).unwrap();
}
