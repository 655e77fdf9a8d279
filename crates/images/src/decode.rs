//! PNG and JPEG to planes of pixels.

use image::DynamicImage;
use rayon::prelude::*;

use crate::Error;
use crate::error::{ImageFormat, Place};
use crate::resample::{Window, resample};

/// An image as it is stored.
#[derive(Debug, Clone)]
pub(crate) struct EncodedImage {
    /// Where it comes from.
    pub(crate) place: Place,
    /// Its bytes; `None` if it is a file of its own, which is read when needed.
    pub(crate) bytes: Option<Box<[u8]>>,
}

impl EncodedImage {
    /// The bytes that are kept in memory.
    pub(crate) fn n_bytes(&self) -> usize {
        self.bytes.as_ref().map_or(0, |bytes| bytes.len())
    }

    fn decode(&self) -> Result<DynamicImage, Error> {
        let read;
        let bytes = match &self.bytes {
            Some(bytes) => bytes,
            None => {
                let path = &self.place.path;
                read = std::fs::read(path).map_err(|source| Error::Io {
                    path: path.to_path_buf(),
                    source,
                })?;
                read.as_slice()
            }
        };
        image::load_from_memory(bytes).map_err(|source| Error::Decode {
            place: self.place.clone(),
            source,
        })
    }

    /// Decodes to RGB, whatever the image is stored as.
    pub(crate) fn decode_rgb(&self) -> Result<Planes, Error> {
        self.decode().map(rgb)
    }

    /// Decodes; grey stays grey, everything else becomes RGB. Transparency is dropped.
    fn decode_as_is(&self) -> Result<Planes, Error> {
        let image = self.decode()?;
        Ok(if image.color().has_color() {
            rgb(image)
        } else {
            grey(image)
        })
    }
}

/// Decoded images of one format, one after the other: n c h w.
#[derive(Debug, Default)]
pub(crate) struct PixelBuffer {
    /// The format of the first image.
    pub(crate) format: ImageFormat,
    pub(crate) pixels: Vec<u8>,
}

impl PixelBuffer {
    /// Decodes images in parallel and appends them in order.
    pub(crate) fn decode(&mut self, images: &[EncodedImage]) -> Result<(), Error> {
        // Collected before any error is looked at, so that the first one counts, not the fastest.
        let decoded: Vec<_> = images.par_iter().map(EncodedImage::decode_as_is).collect();
        for (planes, image) in decoded.into_iter().zip(images) {
            let Planes {
                format: found,
                pixels,
            } = planes?;
            if self.pixels.is_empty() {
                self.format = found;
            }
            if found != self.format {
                let (place, expected) = (image.place.clone(), self.format);
                return Err(Error::Mixed {
                    place,
                    found,
                    expected,
                });
            }
            self.pixels.extend(pixels);
        }
        Ok(())
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
        resample(&self.pixels, self.format, window, [size; 2])
    }
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
