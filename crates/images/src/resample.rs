//! Scaling a window of an image: bilinear, with the filter widened when the image shrinks (no aliasing).

use crate::error::ImageFormat;

/// A window of an image, in pixels of the image.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Window {
    pub(crate) top: f32,
    pub(crate) left: f32,
    pub(crate) height: f32,
    pub(crate) width: f32,
}

/// The window of an image scaled to `[height, width]`: planes c h w in, planes c height width out.
///
/// The filter is a triangle whose half width is one output pixel (one input pixel when the image grows); it reads beyond the
/// window but not beyond the image.
pub(crate) fn resample(
    pixels: &[u8],
    format: ImageFormat,
    window: Window,
    [height, width]: [usize; 2],
) -> Vec<u8> {
    let columns = taps(format.width, window.left, window.width, width);
    let rows = taps(format.height, window.top, window.height, height);
    let first_row = rows[0].first;
    let last = &rows[height - 1];
    let n_rows = last.first + last.weights.len() - first_row;

    let mut out = Vec::with_capacity(format.n_channels * height * width);
    let mut narrow = vec![0.0f32; n_rows * width];
    let mut sum = vec![0.0f32; width];
    for plane in pixels.chunks_exact(format.height * format.width) {
        for (row, narrow) in narrow.chunks_exact_mut(width).enumerate() {
            let row = &plane[(first_row + row) * format.width..][..format.width];
            for (value, tap) in narrow.iter_mut().zip(&columns) {
                let read = &row[tap.first..][..tap.weights.len()];
                *value = tap
                    .weights
                    .iter()
                    .zip(read)
                    .map(|(w, &p)| w * f32::from(p))
                    .sum();
            }
        }
        for tap in &rows {
            sum.fill(0.0);
            let read = narrow[(tap.first - first_row) * width..].chunks_exact(width);
            for (weight, row) in tap.weights.iter().zip(read) {
                for (sum, value) in sum.iter_mut().zip(row) {
                    *sum += weight * value;
                }
            }
            out.extend(sum.iter().map(|value| value.round() as u8));
        }
    }
    out
}

/// The input pixels that one output pixel is the weighted mean of.
struct Taps {
    first: usize,
    weights: Vec<f32>,
}

/// Along one axis: the window `start..start + extent` of `n` input pixels becomes `size` output pixels.
fn taps(n: usize, start: f32, extent: f32, size: usize) -> Vec<Taps> {
    let scale = extent / size as f32;
    let half_width = scale.max(1.0);
    (0..size)
        .map(|index| {
            let center = start + (index as f32 + 0.5) * scale;
            let first = ((center - half_width + 0.5).max(0.0) as usize).min(n - 1);
            let end = ((center + half_width + 0.5).max(0.0) as usize).clamp(first + 1, n);
            let mut weights: Vec<f32> = (first..end)
                .map(|pixel| (1.0 - (pixel as f32 + 0.5 - center).abs() / half_width).max(0.0))
                .collect();
            let sum: f32 = weights.iter().sum();
            weights.iter_mut().for_each(|weight| *weight /= sum);
            Taps { first, weights }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const FORMAT: ImageFormat = ImageFormat {
        n_channels: 1,
        height: 4,
        width: 6,
    };

    fn ramp() -> Vec<u8> {
        (0..24).map(|i| 10 * (i % 6)).collect()
    }

    fn window(top: f32, left: f32, height: f32, width: f32) -> Window {
        Window {
            top,
            left,
            height,
            width,
        }
    }

    #[test]
    fn the_whole_image_at_its_size_is_the_image() {
        assert_eq!(
            resample(&ramp(), FORMAT, window(0.0, 0.0, 4.0, 6.0), [4, 6]),
            ramp()
        );
    }

    #[test]
    fn a_window_at_its_size_is_cut_out() {
        let out = resample(&ramp(), FORMAT, window(1.0, 2.0, 2.0, 3.0), [2, 3]);
        assert_eq!(out, [20, 30, 40, 20, 30, 40]);
    }

    #[test]
    fn halving_takes_weighted_means() {
        // The triangle over four columns weighs them 1 3 3 1; at the border what lies outside is left out: (3 3 1) / 7.
        let out = resample(&ramp(), FORMAT, window(0.0, 0.0, 4.0, 6.0), [2, 3]);
        assert_eq!(out[..3], [7, 25, 43]);
        assert_eq!(out[..3], out[3..]);
    }

    #[test]
    fn doubling_goes_in_even_steps() {
        let out = resample(&ramp(), FORMAT, window(0.0, 1.0, 4.0, 2.0), [1, 4]);
        // Column centres 1.25, 1.75, 2.25, 2.75 of a ramp that is 10 at 1.5 and 20 at 2.5.
        assert_eq!(out, [8, 13, 18, 23]);
    }

    proptest! {
        #[test]
        fn a_flat_image_stays_flat(
            value: u8, top in 0.0f32..3.0, left in 0.0f32..5.0, height in 0.05f32..1.0, width in 0.05f32..1.0,
            size in [1usize..9, 1usize..9],
        ) {
            let out = resample(&[value; 24], FORMAT, window(top, left, height, width), size);
            prop_assert_eq!(out, vec![value; size[0] * size[1]]);
        }
    }
}
