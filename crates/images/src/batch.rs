//! Images to batches: augmentation and normalisation.

use std::borrow::Cow;
use std::ops::Range;

use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use rayon::prelude::*;

use crate::error::ImageFormat;
use crate::resample::{Window, resample};
use crate::set::Pixels;
use crate::{Error, ImageSet, Normalization, color};

/// What a batch does to its images, in the order of the fields. See [`batch`].
#[derive(Debug, Clone, PartialEq)]
pub struct Augmentation {
    /// Crop a random window of 8 to 100 % of the area and of a ratio of 3/4 to 4/3, and scale it to the size of the set.
    pub random_resized_crop: bool,
    /// Pad this many black pixels on every side, then crop the old size at random; 0 = off.
    pub pad: usize,
    /// Mirror left to right with probability 1/2.
    pub flip: bool,
    /// Strength of random brightness, contrast and saturation: each is scaled by `1 - s..1 + s`; 0 = off.
    pub color_jitter: f32,
    /// Turn the hue at random by up to this part of the circle, at most 0.5; 0 = off.
    pub hue: f32,
    /// Set a square of this side to zero, around a random pixel, after the normalisation; 0 = off.
    pub cutout: usize,
}

impl Augmentation {
    /// Nothing: what a test uses.
    pub const fn none() -> Self {
        Self {
            random_resized_crop: false,
            pad: 0,
            flip: false,
            color_jitter: 0.0,
            hue: 0.0,
            cutout: 0,
        }
    }
}

/// Some images, ready for a network.
#[derive(Debug, Clone, PartialEq)]
pub struct Batch {
    /// Normalised pixels, n c h w.
    pub images: Vec<f32>,
    /// The class of every image.
    pub labels: Vec<u32>,
    /// The number of images.
    pub n: usize,
}

/// The images `indices` of a set, augmented and normalised.
///
/// Each image has a generator of its own, seeded from `rng` in order; the pixels are worked on by all threads of rayon's current
/// pool. So the result depends on the state of `rng` alone, not on the number of threads. Without augmentation nothing is drawn.
///
/// # Errors
///
/// If the normalisation is for another number of channels, or an image has to be read or decoded and that fails; of several such
/// images the error names the first.
///
/// # Panics
///
/// If there is no image of one of the indices.
pub fn batch(
    set: &ImageSet,
    indices: &[usize],
    normalization: &Normalization,
    augmentation: &Augmentation,
    rng: &mut ChaCha8Rng,
) -> Result<Batch, Error> {
    batch_part(
        set,
        indices,
        0..indices.len(),
        normalization,
        augmentation,
        rng,
    )
}

/// The images `part` of a [`batch`], which draws from `rng` what the whole batch draws: so several processes make the
/// parts of one batch.
///
/// # Errors
///
/// As [`batch`].
///
/// # Panics
///
/// As [`batch`], or if the batch has no such part.
pub fn batch_part(
    set: &ImageSet,
    indices: &[usize],
    part: Range<usize>,
    normalization: &Normalization,
    augmentation: &Augmentation,
    rng: &mut ChaCha8Rng,
) -> Result<Batch, Error> {
    let n_channels = set.n_channels();
    if [normalization.mean.len(), normalization.std.len()] != [n_channels; 2] {
        return Err(Error::Normalization {
            n_mean: normalization.mean.len(),
            n_std: normalization.std.len(),
            n_channels,
        });
    }
    let format = set.format();
    let len = format.len();
    // Without augmentation nothing is drawn, so that a test does not move the generator.
    let seeds: Vec<Option<u64>> = indices
        .iter()
        .map(|_| (*augmentation != Augmentation::none()).then(|| rng.random()))
        .collect();
    let (indices, seeds) = (&indices[part.clone()], &seeds[part]);
    let mut images = vec![0.0f32; indices.len() * len];
    // Collected before any error is looked at, so that the first one counts, not the fastest.
    let done: Vec<Result<(), Error>> = images
        .par_chunks_mut(len)
        .zip(indices.par_iter().zip(seeds))
        .map(|(out, (&index, seed))| {
            let mut rng = seed.map(ChaCha8Rng::seed_from_u64);
            let pixels = match &mut rng {
                Some(rng) => augmented(set, index, augmentation, rng)?,
                None => set.image(index)?,
            };
            let plane = format.height * format.width;
            for (channel, (out, pixels)) in out
                .chunks_exact_mut(plane)
                .zip(pixels.chunks_exact(plane))
                .enumerate()
            {
                let (mean, std) = (normalization.mean[channel], normalization.std[channel]);
                let scale = 1.0 / (255.0 * std);
                let shift = -mean / std;
                for (out, &pixel) in out.iter_mut().zip(pixels) {
                    *out = f32::from(pixel) * scale + shift;
                }
            }
            if let Some(rng) = rng.as_mut().filter(|_| augmentation.cutout > 0) {
                cut_out(out, format, augmentation.cutout, rng);
            }
            Ok(())
        })
        .collect();
    done.into_iter().collect::<Result<(), Error>>()?;
    let labels = indices.iter().map(|&index| set.labels()[index]).collect();
    Ok(Batch {
        images,
        labels,
        n: indices.len(),
    })
}

/// One image, cropped, flipped and jittered: planes c h w.
fn augmented<'a>(
    set: &'a ImageSet,
    index: usize,
    augmentation: &Augmentation,
    rng: &mut ChaCha8Rng,
) -> Result<Cow<'a, [u8]>, Error> {
    let format = set.format();
    let size = [format.height, format.width];
    let mut pixels = match set.pixels() {
        _ if !augmentation.random_resized_crop => set.image(index)?,
        Pixels::Encoded(images) => {
            let image = images[index].decode_rgb()?;
            let window = random_window(image.format, rng);
            Cow::Owned(resample(&image.pixels, image.format, window, size))
        }
        Pixels::Decoded(_) => {
            let window = random_window(format, rng);
            Cow::Owned(resample(&set.image(index)?, format, window, size))
        }
    };
    if augmentation.pad > 0 {
        let pad = augmentation.pad;
        let (down, right) = (rng.random_range(0..=2 * pad), rng.random_range(0..=2 * pad));
        pixels = Cow::Owned(shifted(&pixels, format, pad, down, right));
    }
    if augmentation.flip && rng.random::<bool>() {
        pixels
            .to_mut()
            .chunks_exact_mut(format.width)
            .for_each(<[u8]>::reverse);
    }
    if augmentation.color_jitter > 0.0 || augmentation.hue > 0.0 {
        color::jitter(
            pixels.to_mut(),
            format,
            augmentation.color_jitter,
            augmentation.hue,
            rng,
        );
    }
    Ok(pixels)
}

/// The window of a padded image that starts `down` and `right` of the padding's corner.
fn shifted(pixels: &[u8], format: ImageFormat, pad: usize, down: usize, right: usize) -> Vec<u8> {
    let ImageFormat { height, width, .. } = format;
    let mut out = vec![0u8; pixels.len()];
    // Columns x of the result that show the image, not the padding: pad <= x + right < pad + width.
    let first = pad.saturating_sub(right);
    let end = (pad + width).saturating_sub(right).min(width);
    for (row, out) in out.chunks_exact_mut(width).enumerate() {
        let (plane, y) = (row / height, row % height);
        let source = (y + down).checked_sub(pad).filter(|&y| y < height);
        if let (Some(y), true) = (source, first < end) {
            let from = &pixels[(plane * height + y) * width..][..width];
            out[first..end].copy_from_slice(&from[first + right - pad..end + right - pad]);
        }
    }
    out
}

/// A window of 8 to 100 % of the area and a ratio of 3/4 to 4/3; after ten misses the largest central one.
fn random_window(format: ImageFormat, rng: &mut ChaCha8Rng) -> Window {
    let (height, width) = (format.height as f32, format.width as f32);
    for _ in 0..10 {
        let area = height * width * rng.random_range(0.08f32..=1.0);
        let ratio = rng
            .random_range((3.0f32 / 4.0).ln()..=(4.0f32 / 3.0).ln())
            .exp();
        let (w, h) = ((area * ratio).sqrt(), (area / ratio).sqrt());
        if w <= width && h <= height {
            let top = rng.random_range(0.0..=height - h);
            let left = rng.random_range(0.0..=width - w);
            return Window {
                top,
                left,
                height: h,
                width: w,
            };
        }
    }
    let ratio = (width / height).clamp(3.0 / 4.0, 4.0 / 3.0);
    let (w, h) = (width.min(height * ratio), height.min(width / ratio));
    Window {
        top: (height - h) / 2.0,
        left: (width - w) / 2.0,
        height: h,
        width: w,
    }
}

/// Sets a square around a random pixel to zero, clipped at the border.
fn cut_out(image: &mut [f32], format: ImageFormat, side: usize, rng: &mut ChaCha8Rng) {
    let ImageFormat { height, width, .. } = format;
    let range = |center: usize, len: usize| {
        center.saturating_sub(side / 2)..(center + side - side / 2).min(len)
    };
    let rows = range(rng.random_range(0..height), height);
    let columns = range(rng.random_range(0..width), width);
    for plane in image.chunks_exact_mut(height * width) {
        for row in rows.clone() {
            plane[row * width..][columns.clone()].fill(0.0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const FORMAT: ImageFormat = ImageFormat {
        n_channels: 1,
        height: 5,
        width: 4,
    };

    fn numbered() -> Vec<u8> {
        (1..=20).collect()
    }

    #[test]
    fn a_shift_by_the_padding_is_the_image() {
        assert_eq!(shifted(&numbered(), FORMAT, 2, 2, 2), numbered());
    }

    #[test]
    fn a_shift_shows_the_padding_at_the_border() {
        let out = shifted(&numbered(), FORMAT, 1, 0, 2);
        #[rustfmt::skip]
        assert_eq!(out, [
            0, 0, 0, 0,
            2, 3, 4, 0,
            6, 7, 8, 0,
            10, 11, 12, 0,
            14, 15, 16, 0,
        ]);
    }

    proptest! {
        #[test]
        fn a_shift_agrees_with_padding_and_cropping(
            pad in 1usize..7, down in 0usize..15, right in 0usize..15,
        ) {
            prop_assume!(down <= 2 * pad && right <= 2 * pad);
            let pixels = numbered();
            let out = shifted(&pixels, FORMAT, pad, down, right);
            for y in 0..5 {
                for x in 0..4 {
                    let at = |v: usize, len: usize| v.checked_sub(pad).filter(|&v| v < len);
                    let expected = match (at(y + down, 5), at(x + right, 4)) {
                        (Some(y), Some(x)) => pixels[4 * y + x],
                        _ => 0,
                    };
                    prop_assert_eq!(out[4 * y + x], expected);
                }
            }
        }

        #[test]
        fn a_cutout_is_a_square_clipped_at_the_border(seed: u64, side in 1usize..9) {
            let mut image = vec![1.0f32; 20];
            cut_out(&mut image, FORMAT, side, &mut ChaCha8Rng::seed_from_u64(seed));
            let rows: Vec<usize> = (0..20).filter(|&i| image[i] == 0.0).map(|i| i / 4).collect();
            let columns: Vec<usize> = (0..20).filter(|&i| image[i] == 0.0).map(|i| i % 4).collect();
            let extent = |v: &[usize]| v.iter().max().unwrap() - v.iter().min().unwrap() + 1;
            let (h, w) = (extent(&rows), extent(&columns));
            prop_assert_eq!(rows.len(), h * w);
            prop_assert!(h <= side && w <= side && h >= side.min(5).div_ceil(2) && w >= side.min(4).div_ceil(2));
        }

        #[test]
        fn a_random_window_lies_in_the_image(seed: u64, height in 1usize..300, width in 1usize..300) {
            let format = ImageFormat { n_channels: 3, height, width };
            let window = random_window(format, &mut ChaCha8Rng::seed_from_u64(seed));
            prop_assert!(window.top >= 0.0 && window.left >= 0.0);
            prop_assert!(window.top + window.height <= height as f32 * 1.0001);
            prop_assert!(window.left + window.width <= width as f32 * 1.0001);
            prop_assert!(window.height > 0.0 && window.width > 0.0);
        }
    }
}
