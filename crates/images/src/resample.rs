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

/// The window of an image scaled to `size` x `size`: planes c h w in, planes c size size out.
///
/// The filter is a triangle whose half width is one output pixel (one input pixel when the image grows); it reads beyond the
/// window but not beyond the image.
pub(crate) fn resample(pixels: &[u8], format: ImageFormat, window: Window, size: usize) -> Vec<u8> {
    let columns = taps(format.width, window.left, window.width, size);
    let rows = taps(format.height, window.top, window.height, size);
    let first_row = rows[0].first;
    let last = &rows[size - 1];
    let n_rows = last.first + last.weights.len() - first_row;

    let mut out = Vec::with_capacity(format.n_channels * size * size);
    let mut narrow = vec![0.0f32; n_rows * size];
    let mut sum = vec![0.0f32; size];
    for plane in pixels.chunks_exact(format.height * format.width) {
        for (row, narrow) in narrow.chunks_exact_mut(size).enumerate() {
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
            let read = narrow[(tap.first - first_row) * size..].chunks_exact(size);
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
