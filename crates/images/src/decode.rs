//! PNG and JPEG to planes of pixels.

use std::path::Path;
use std::sync::Arc;

use image::DynamicImage;

use crate::Error;
use crate::error::{ImageFormat, Place, Spot};
use crate::resample::{self, Window};

/// An image as it is stored.
#[derive(Debug, Clone)]
pub(crate) struct EncodedImage {
    /// Where it comes from.
    pub(crate) place: Place,
    /// Its bytes; `None` if it is a file of its own, which is read when needed.
    pub(crate) bytes: Option<Box<[u8]>>,
}

impl EncodedImage {
    /// An image that is a file of its own.
    pub(crate) fn file(path: &Path) -> Self {
        Self {
            place: Place {
                path: Arc::from(path),
                spot: Spot::File,
            },
            bytes: None,
        }
    }
}

/// A decoded image: planes c h w.
#[derive(Debug)]
pub(crate) struct Planes {
    pub(crate) format: ImageFormat,
    pub(crate) pixels: Vec<u8>,
}

impl Planes {
    /// What a test sees: the centre square of 7/8 of the shorter side, scaled to `size` x `size`. At 224 that is the usual
    /// "resize to 256, crop 224 from the centre" in one step.
    pub(crate) fn center(&self, size: usize) -> Vec<u8> {
        let (height, width) = (self.format.height as f32, self.format.width as f32);
        let side = height.min(width) * 0.875;
        let window = Window {
            top: (height - side) / 2.0,
            left: (width - side) / 2.0,
            height: side,
            width: side,
        };
        resample::resample(&self.pixels, self.format, window, size)
    }
}

/// Decodes an image; grey stays grey, everything else becomes RGB. Transparency is dropped.
pub(crate) fn decode(image: &EncodedImage) -> Result<Planes, Error> {
    let decoded = decode_any(image)?;
    Ok(if decoded.color().has_color() {
        rgb(decoded)
    } else {
        grey(decoded)
    })
}

/// Decodes an image to RGB, whatever it is stored as.
pub(crate) fn decode_rgb(image: &EncodedImage) -> Result<Planes, Error> {
    decode_any(image).map(rgb)
}

fn decode_any(image: &EncodedImage) -> Result<DynamicImage, Error> {
    let read;
    let bytes = match &image.bytes {
        Some(bytes) => bytes,
        None => {
            read = std::fs::read(&image.place.path).map_err(|source| Error::Io {
                path: image.place.path.to_path_buf(),
                source,
            })?;
            read.as_slice()
        }
    };
    image::load_from_memory(bytes).map_err(|source| Error::Decode {
        place: image.place.clone(),
        source,
    })
}

fn grey(image: DynamicImage) -> Planes {
    let image = image.into_luma8();
    let (width, height) = image.dimensions();
    Planes {
        format: ImageFormat {
            n_channels: 1,
            height: height as usize,
            width: width as usize,
        },
        pixels: image.into_raw(),
    }
}

fn rgb(image: DynamicImage) -> Planes {
    let image = image.into_rgb8();
    let (width, height) = image.dimensions();
    let mut pixels = Vec::with_capacity(image.as_raw().len());
    for channel in 0..3 {
        pixels.extend(image.as_raw().iter().skip(channel).step_by(3));
    }
    Planes {
        format: ImageFormat {
            n_channels: 3,
            height: height as usize,
            width: width as usize,
        },
        pixels,
    }
}
