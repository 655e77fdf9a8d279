//! Colour jitter: brightness, contrast, saturation and hue, in random order.

use rand::RngExt;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

use crate::error::ImageFormat;

/// The weights of red, green and blue in grey (ITU-R 601).
const LUMA: [f32; 3] = [0.299, 0.587, 0.114];

/// One step of the jitter.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Step {
    /// Scales the distance from black.
    Brightness(f32),
    /// Scales the distance from the mean grey of the image.
    Contrast(f32),
    /// Scales the distance from the grey of the pixel.
    Saturation(f32),
    /// Turns the hue by a part of the circle.
    Hue(f32),
}

/// Jitters an image of planes c h w; to a grey image, saturation and hue do nothing.
pub(crate) fn jitter(
    pixels: &mut [u8],
    format: ImageFormat,
    strength: f32,
    hue: f32,
    rng: &mut ChaCha8Rng,
) {
    let mut factor = || rng.random_range((1.0 - strength).max(0.0)..=1.0 + strength);
    let mut steps = [
        Step::Brightness(factor()),
        Step::Contrast(factor()),
        Step::Saturation(factor()),
        Step::Hue(rng.random_range(-hue..=hue)),
    ];
    steps.shuffle(rng);

    let plane = format.height * format.width;
    let channel = |c: usize| c.min(format.n_channels - 1) * plane;
    let mut colors: Vec<[f32; 3]> = (0..plane)
        .map(|i| [0, 1, 2].map(|c| f32::from(pixels[channel(c) + i])))
        .collect();
    for step in steps {
        apply(step, &mut colors);
    }
    for (c, plane) in pixels.chunks_exact_mut(plane).enumerate() {
        for (pixel, color) in plane.iter_mut().zip(&colors) {
            *pixel = color[c].round() as u8;
        }
    }
}

/// Applies one step to colours of 0 to 255.
fn apply(step: Step, colors: &mut [[f32; 3]]) {
    let scale = |color: [f32; 3], from: f32, factor: f32| {
        color.map(|value| (from + (value - from) * factor).clamp(0.0, 255.0))
    };
    match step {
        Step::Brightness(factor) => {
            colors
                .iter_mut()
                .for_each(|color| *color = scale(*color, 0.0, factor));
        }
        Step::Contrast(factor) => {
            let mean = colors.iter().map(luma).sum::<f32>() / colors.len() as f32;
            colors
                .iter_mut()
                .for_each(|color| *color = scale(*color, mean, factor));
        }
        Step::Saturation(factor) => {
            colors
                .iter_mut()
                .for_each(|color| *color = scale(*color, luma(color), factor));
        }
        Step::Hue(turn) => colors
            .iter_mut()
            .for_each(|color| *color = turned(*color, turn)),
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
    fn each_step_scales_its_own_distance() {
        let after = |step| {
            let mut colors = [[200.0, 100.0, 100.0], [0.0, 0.0, 0.0]];
            apply(step, &mut colors);
            colors
        };
        assert_eq!(
            after(Step::Brightness(0.5)),
            [[100.0, 50.0, 50.0], [0.0; 3]]
        );
        assert_eq!(after(Step::Brightness(2.0))[0], [255.0, 200.0, 200.0]);
        let grey = luma(&[200.0, 100.0, 100.0]);
        assert_eq!(after(Step::Contrast(0.0)), [[grey / 2.0; 3]; 2]);
        assert_eq!(after(Step::Saturation(0.0)), [[grey; 3], [0.0; 3]]);
        assert_eq!(after(Step::Hue(0.5))[0], [100.0, 200.0, 200.0]);
    }

    #[test]
    fn no_strength_changes_nothing() {
        for n_channels in [1, 3] {
            let format = ImageFormat {
                n_channels,
                height: 2,
                width: 2,
            };
            let mut pixels: Vec<u8> = (0..4 * n_channels as u8).map(|i| i * 20).collect();
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

    #[test]
    fn a_strength_changes_colours_within_its_range() {
        let format = ImageFormat {
            n_channels: 3,
            height: 1,
            width: 1,
        };
        let mut seen = Vec::new();
        for seed in 0..200 {
            // A white pixel knows brightness only.
            let mut pixels = [200; 3];
            jitter(
                &mut pixels,
                format,
                0.2,
                0.1,
                &mut ChaCha8Rng::seed_from_u64(seed),
            );
            assert!(
                pixels
                    .iter()
                    .all(|&p| p == pixels[0] && (160..=240).contains(&p))
            );
            seen.push(pixels[0]);
        }
        seen.sort_unstable();
        assert!(seen[10] < 170 && seen[190] > 230, "the whole range is used");
    }
}
