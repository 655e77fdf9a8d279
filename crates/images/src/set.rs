//! A labelled set of images in memory.

use std::borrow::Cow;

use rayon::prelude::*;

use crate::Error;
use crate::decode::EncodedImage;
use crate::error::ImageFormat;

/// A labelled set of images, all of one size as far as the user of the set can tell.
///
/// Small images are held as pixels (8 bits, n c h w): `n * c * h * w` bytes, which is 154 MB for CIFAR-10's training set and
/// 8 MB for 10,000 images of Fashion-MNIST. A set loaded with [`resize`](crate::LoadOptions::resize) is held as it is
/// stored, encoded, and decoded for each batch: the size of its Parquet files (about 138 GB for ImageNet's training set, however small the
/// part that a search takes), or next to nothing for class folders, whose files are read when they are needed.
#[derive(Debug, Clone)]
pub struct ImageSet {
    format: ImageFormat,
    pixels: Pixels,
    labels: Vec<u32>,
    class_names: Vec<String>,
}

/// The images of a set.
#[derive(Debug, Clone)]
pub(crate) enum Pixels {
    /// Decoded: n c h w.
    Decoded(Vec<u8>),
    /// As stored; decoded to RGB of the set's size on demand.
    Encoded(Vec<EncodedImage>),
}

impl ImageSet {
    /// A set from pixels in memory.
    ///
    /// # Shapes
    ///
    /// `pixels`: n c h w with `[c, h, w] = shape`; `labels`: n.
    ///
    /// # Panics
    ///
    /// If the images have no pixels, the lengths disagree or a label names no class.
    pub fn from_pixels(
        pixels: Vec<u8>,
        shape: [usize; 3],
        labels: Vec<u32>,
        class_names: Vec<String>,
    ) -> Self {
        let [n_channels, height, width] = shape;
        let format = ImageFormat {
            n_channels,
            height,
            width,
        };
        assert!(format.len() > 0, "an image must have pixels");
        assert_eq!(
            pixels.len(),
            labels.len() * format.len(),
            "pixels, labels and shape must agree"
        );
        Self::new(format, Pixels::Decoded(pixels), labels, class_names)
    }

    pub(crate) fn new(
        format: ImageFormat,
        pixels: Pixels,
        labels: Vec<u32>,
        class_names: Vec<String>,
    ) -> Self {
        assert!(
            labels
                .iter()
                .all(|&label| (label as usize) < class_names.len()),
            "every label must name a class"
        );
        Self {
            format,
            pixels,
            labels,
            class_names,
        }
    }

    /// The number of images.
    pub fn len(&self) -> usize {
        self.labels.len()
    }

    /// Whether there are no images.
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty()
    }

    /// The memory of the pixels as they are kept, in bytes.
    pub fn n_bytes(&self) -> usize {
        match &self.pixels {
            Pixels::Decoded(pixels) => pixels.len(),
            Pixels::Encoded(images) => images.iter().map(EncodedImage::n_bytes).sum(),
        }
    }

    /// 1 (grey) or 3 (RGB).
    pub fn n_channels(&self) -> usize {
        self.format.n_channels
    }

    /// Rows of every image in a batch.
    pub fn height(&self) -> usize {
        self.format.height
    }

    /// Columns of every image in a batch.
    pub fn width(&self) -> usize {
        self.format.width
    }

    /// The number of classes: of the names that the data set gives or, if it gives none, the largest label of this split plus 1.
    pub fn n_classes(&self) -> usize {
        self.class_names.len()
    }

    /// The name of every class; its number where the data set gives no names.
    pub fn class_names(&self) -> &[String] {
        &self.class_names
    }

    /// The class of every image, below [`n_classes`](Self::n_classes).
    pub fn labels(&self) -> &[u32] {
        &self.labels
    }

    /// The pixels of one image as a test sees it, c h w: as stored or, in a set loaded with
    /// [`resize`](crate::LoadOptions::resize), the centre of the image scaled to the set's size.
    ///
    /// # Errors
    ///
    /// If the image has to be read or decoded and that fails.
    ///
    /// # Panics
    ///
    /// If there is no such image.
    pub fn image(&self, index: usize) -> Result<Cow<'_, [u8]>, Error> {
        match &self.pixels {
            Pixels::Decoded(pixels) => {
                let len = self.format.len();
                Ok(Cow::Borrowed(&pixels[index * len..][..len]))
            }
            Pixels::Encoded(images) => {
                let image = images[index].decode_rgb()?;
                Ok(Cow::Owned(image.center(self.format.height)))
            }
        }
    }

    pub(crate) fn format(&self) -> ImageFormat {
        self.format
    }

    pub(crate) fn pixels(&self) -> &Pixels {
        &self.pixels
    }

    /// Mean and standard deviation of every channel over all pixels of the set, black being 0 and white 1.
    ///
    /// A set loaded with [`resize`](crate::LoadOptions::resize) is decoded once for it. A channel of one single value gets the
    /// standard deviation 1, so that it can be divided by.
    ///
    /// # Errors
    ///
    /// If an image has to be read or decoded and that fails.
    pub fn channel_statistics(&self) -> Result<Normalization, Error> {
        // Integer sums, so that the order of the threads cannot show.
        let sums: Vec<Result<Vec<[u64; 2]>, Error>> = (0..self.len())
            .into_par_iter()
            .map(|index| {
                let image = self.image(index)?;
                let plane = self.format.height * self.format.width;
                Ok(image
                    .chunks_exact(plane)
                    .map(sum_and_sum_of_squares)
                    .collect())
            })
            .collect();
        let mut totals = vec![[0u64; 2]; self.n_channels()];
        for image in sums {
            for (total, sum) in totals.iter_mut().zip(image?) {
                total[0] += sum[0];
                total[1] += sum[1];
            }
        }
        let count = (self.len() * self.height() * self.width()).max(1) as f64;
        let (mean, std) = totals
            .iter()
            .map(|&[sum, squares]| {
                let mean = sum as f64 / count;
                let std = (squares as f64 / count - mean * mean).max(0.0).sqrt();
                let std = if std > 0.0 { std / 255.0 } else { 1.0 };
                ((mean / 255.0) as f32, std as f32)
            })
            .unzip();
        Ok(Normalization { mean, std })
    }
}

fn sum_and_sum_of_squares(plane: &[u8]) -> [u64; 2] {
    plane.iter().fold([0, 0], |[sum, squares], &value| {
        let value = u64::from(value);
        [sum + value, squares + value * value]
    })
}

/// What a batch subtracts from and divides every channel by, black being 0 and white 1: `(pixel / 255 - mean) / std`.
#[derive(Debug, Clone, PartialEq)]
pub struct Normalization {
    /// Mean of every channel.
    pub mean: Vec<f32>,
    /// Standard deviation of every channel.
    pub std: Vec<f32>,
}
