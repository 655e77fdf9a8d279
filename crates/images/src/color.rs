//! Colour jitter: brightness, contrast, saturation, hue, in this order.

use rand::RngExt;
use rand_chacha::ChaCha8Rng;

use crate::error::ImageFormat;

/// The weights of red, green and blue in grey (ITU-R 601).
const LUMA: [f32; 3] = [0.299, 0.587, 0.114];

/// Jitters an image of planes c h w; a grey image has no saturation or hue.
pub(crate) fn jitter(
    pixels: &mut [u8],
    format: ImageFormat,
    strength: f32,
    hue: f32,
    rng: &mut ChaCha8Rng,
) {
    let mut factor = || rng.random_range(1.0 - strength..=1.0 + strength);
    let [brightness, contrast, saturation] = [factor(), factor(), factor()];
    let turn = if hue > 0.0 {
        rng.random_range(-hue..=hue)
    } else {
        0.0
    };
    let plane = format.height * format.width;
    if format.n_channels != 3 {
        let mean = pixels.iter().map(|&p| f32::from(p)).sum::<f32>() / pixels.len().max(1) as f32;
        let mean = mean * brightness;
        for pixel in pixels {
            let value = f32::from(*pixel) * brightness;
            *pixel = (mean + (value - mean) * contrast).round() as u8;
        }
        return;
    }
    let mut colors: Vec<[f32; 3]> = (0..plane)
        .map(|i| [0, 1, 2].map(|c| (f32::from(pixels[c * plane + i]) * brightness).min(255.0)))
        .collect();
    let mean = colors.iter().map(luma).sum::<f32>() / plane.max(1) as f32;
    for color in &mut colors {
        *color = color.map(|value| (mean + (value - mean) * contrast).clamp(0.0, 255.0));
        let grey = luma(color);
        *color = color.map(|value| (grey + (value - grey) * saturation).clamp(0.0, 255.0));
        if turn != 0.0 {
            *color = turned(*color, turn);
        }
    }
    for (i, color) in colors.iter().enumerate() {
        for (c, value) in color.iter().enumerate() {
            pixels[c * plane + i] = value.round() as u8;
        }
    }
}

fn luma(color: &[f32; 3]) -> f32 {
    color
        .iter()
        .zip(LUMA)
        .map(|(value, weight)| value * weight)
        .sum()
}

/// The colour with its hue turned by a part of the circle; value and chroma stay.
fn turned(color: [f32; 3], turn: f32) -> [f32; 3] {
    let [r, g, b] = color;
    let max = r.max(g).max(b);
    let chroma = max - r.min(g).min(b);
    if chroma == 0.0 {
        return color;
    }
    let sextant = if max == r {
        (g - b) / chroma
    } else if max == g {
        2.0 + (b - r) / chroma
    } else {
        4.0 + (r - g) / chroma
    };
    let hue = (sextant + 6.0 * turn).rem_euclid(6.0);
    // Each channel is at its peak at its own hue and falls off linearly (HSV).
    [5.0, 3.0, 1.0].map(|offset: f32| {
        let k = (offset + hue) % 6.0;
        max - chroma * k.min(4.0 - k).clamp(0.0, 1.0)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand_chacha::rand_core::SeedableRng;

    #[test]
    fn a_third_of_the_circle_turns_red_into_green() {
        let close = |a: [f32; 3], b: [f32; 3]| a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-3);
        assert!(close(
            turned([200.0, 10.0, 10.0], 1.0 / 3.0),
            [10.0, 200.0, 10.0]
        ));
        assert!(close(
            turned([200.0, 10.0, 10.0], -1.0 / 3.0),
            [10.0, 10.0, 200.0]
        ));
        assert!(close(turned([30.0, 80.0, 120.0], 0.0), [30.0, 80.0, 120.0]));
    }

    #[test]
    fn no_strength_changes_nothing() {
        let format = ImageFormat {
            n_channels: 3,
            height: 2,
            width: 2,
        };
        let mut pixels: Vec<u8> = (0..12).map(|i| i * 20).collect();
        let before = pixels.clone();
        jitter(
            &mut pixels,
            format,
            0.0,
            0.0,
            &mut ChaCha8Rng::seed_from_u64(1),
        );
        assert_eq!(pixels, before);
    }
}
