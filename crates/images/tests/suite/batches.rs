//! Augmentation and normalisation, seen through batches.

use std::collections::BTreeSet;

use image::ImageFormat as FileFormat;
use images::{Augmentation, Batch, ImageSet, LoadOptions, Normalization, Split, batch, load};
use proptest::prelude::*;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use tempfile::tempdir;

use crate::fixtures::{Shape, encoded, pixels, write};

const SHAPE: Shape = [3, 6, 7];

fn rng(seed: u64) -> ChaCha8Rng {
    ChaCha8Rng::seed_from_u64(seed)
}

fn set(n: usize, shape: Shape) -> ImageSet {
    let planes = (0..n).flat_map(|index| pixels(index, shape)).collect();
    let labels = (0..n as u32).map(|index| index % 2).collect();
    ImageSet::from_pixels(
        planes,
        shape,
        labels,
        vec!["even".to_owned(), "odd".to_owned()],
    )
}

/// Undone, a batch shows the pixels as whole numbers.
fn identity(n_channels: usize) -> Normalization {
    Normalization {
        mean: vec![0.0; n_channels],
        std: vec![1.0 / 255.0; n_channels],
    }
}

fn make(set: &ImageSet, indices: &[usize], augmentation: &Augmentation, seed: u64) -> Batch {
    batch(
        set,
        indices,
        &identity(set.n_channels()),
        augmentation,
        &mut rng(seed),
    )
    .unwrap()
}

fn all(set: &ImageSet) -> Vec<usize> {
    (0..set.len()).collect()
}

fn flipped(planes: &[f32], width: usize) -> Vec<f32> {
    planes
        .chunks_exact(width)
        .flat_map(|row| row.iter().rev().copied())
        .collect()
}

#[test]
fn a_plain_batch_is_the_normalised_images_and_draws_nothing() {
    let set = set(4, SHAPE);
    let normalization = Normalization {
        mean: vec![0.1, 0.2, 0.3],
        std: vec![0.5, 0.25, 2.0],
    };
    let mut generator = rng(7);
    let batch = batch(
        &set,
        &[3, 1],
        &normalization,
        &Augmentation::none(),
        &mut generator,
    )
    .unwrap();
    assert_eq!(generator, rng(7), "a test does not move the generator");
    assert_eq!((batch.n, &batch.labels[..]), (2, &[1, 1][..]));
    let expected = [3, 1].into_iter().flat_map(|index| {
        pixels(index, SHAPE)
            .into_iter()
            .enumerate()
            .map(|(at, pixel)| {
                let channel = at / 42;
                (f32::from(pixel) / 255.0 - normalization.mean[channel])
                    / normalization.std[channel]
            })
    });
    for (at, (found, expected)) in batch.images.iter().zip(expected).enumerate() {
        assert!(
            (found - expected).abs() < 1e-5,
            "{found} is not {expected} at {at}"
        );
    }
}

#[test]
fn the_own_statistics_give_mean_0_and_deviation_1() {
    let set = set(5, SHAPE);
    let statistics = set.channel_statistics().unwrap();
    let batch = batch(
        &set,
        &all(&set),
        &statistics,
        &Augmentation::none(),
        &mut rng(0),
    )
    .unwrap();
    for channel in 0..3 {
        let values = || {
            batch
                .images
                .chunks_exact(42)
                .skip(channel)
                .step_by(3)
                .flatten()
        };
        let n = values().count() as f32;
        let mean = values().sum::<f32>() / n;
        let variance = values().map(|value| (value - mean).powi(2)).sum::<f32>() / n;
        assert!(
            mean.abs() < 1e-4 && (variance - 1.0).abs() < 1e-3,
            "{mean} {variance}"
        );
    }
    let flat = ImageSet::from_pixels(vec![51; 4], [1, 2, 2], vec![0], vec!["a".to_owned()]);
    let expected = Normalization {
        mean: vec![0.2],
        std: vec![1.0],
    };
    assert_eq!(
        flat.channel_statistics().unwrap(),
        expected,
        "a flat set is not divided by 0"
    );
}

#[test]
fn a_flip_happens_half_of_the_time() {
    let set = set(400, SHAPE);
    let augmentation = Augmentation {
        flip: true,
        ..Augmentation::none()
    };
    let plain = make(&set, &all(&set), &Augmentation::none(), 0);
    let batch = make(&set, &all(&set), &augmentation, 0);
    let mut n_flipped = 0;
    for (image, plain) in batch
        .images
        .chunks_exact(126)
        .zip(plain.images.chunks_exact(126))
    {
        if image != plain {
            n_flipped += 1;
            assert_eq!(flipped(image, 7), plain, "flipped twice it is the image");
        }
    }
    assert!((150..=250).contains(&n_flipped), "{n_flipped} of 400");
}

#[test]
fn a_padded_crop_is_one_of_the_windows_and_takes_them_all() {
    let shape = [1, 3, 4];
    let pad = 2;
    // Pixels from 1, so that none looks like the padding.
    let planes: Vec<u8> = (1..=12).collect();
    let set = ImageSet::from_pixels(
        planes.repeat(500),
        shape,
        vec![0; 500],
        vec!["a".to_owned()],
    );
    let at = |y: usize, x: usize| {
        let inside = (pad..pad + 3).contains(&y) && (pad..pad + 4).contains(&x);
        if inside {
            f32::from(planes[(y - pad) * 4 + x - pad])
        } else {
            0.0
        }
    };
    let window = |top: usize, left: usize| -> Vec<f32> {
        (0..12).map(|i| at(top + i / 4, left + i % 4)).collect()
    };
    let windows: Vec<Vec<f32>> = (0..25).map(|i| window(i / 5, i % 5)).collect();

    let augmentation = Augmentation {
        pad,
        ..Augmentation::none()
    };
    let batch = make(&set, &all(&set), &augmentation, 1);
    let found: BTreeSet<usize> = batch
        .images
        .chunks_exact(12)
        .map(|image| {
            let same =
                |window: &Vec<f32>| window.iter().zip(image).all(|(a, b)| (a - b).abs() < 1e-3);
            windows
                .iter()
                .position(same)
                .expect("a crop is a window of the padded image")
        })
        .collect();
    assert_eq!(found.len(), 25);
}

#[test]
fn the_padding_is_black_before_the_normalisation() {
    let set = ImageSet::from_pixels(vec![255; 40], [1, 2, 2], vec![0; 10], vec!["a".to_owned()]);
    let normalization = Normalization {
        mean: vec![0.5],
        std: vec![0.25],
    };
    let augmentation = Augmentation {
        pad: 2,
        ..Augmentation::none()
    };
    let batch = batch(&set, &all(&set), &normalization, &augmentation, &mut rng(0)).unwrap();
    assert!(batch.images.iter().all(|value| [-2.0, 2.0].contains(value)));
    assert!(batch.images.contains(&-2.0) && batch.images.contains(&2.0));
}

#[test]
fn jitter_changes_colours_and_a_crop_changes_the_window() {
    let set = set(8, [3, 12, 12]);
    let plain = make(&set, &all(&set), &Augmentation::none(), 0);
    let none = Augmentation::none;
    for augmentation in [
        Augmentation {
            color_jitter: 0.4,
            ..none()
        },
        Augmentation { hue: 0.2, ..none() },
        Augmentation {
            random_resized_crop: true,
            ..none()
        },
    ] {
        let batch = make(&set, &all(&set), &augmentation, 0);
        assert_ne!(batch.images, plain.images, "{augmentation:?}");
        assert!(
            batch
                .images
                .iter()
                .all(|value| (-1e-3..=255.001).contains(value))
        );
        assert_eq!(batch.labels, plain.labels);
    }
}

/// Everything at once.
fn everything() -> Augmentation {
    Augmentation {
        random_resized_crop: true,
        pad: 2,
        flip: true,
        color_jitter: 0.4,
        hue: 0.2,
        cutout: 3,
    }
}

#[test]
fn a_batch_depends_on_the_seed_and_not_on_the_threads() {
    let dir = tempdir().unwrap();
    for index in 0..12 {
        let shape = [3, 20 + index, 30 - index];
        let path = dir.path().join(format!("train/{}/{index}.jpg", index % 2));
        write(&path, &encoded(index, shape, FileFormat::Jpeg));
    }
    let options = LoadOptions {
        resize: Some(9),
        ..LoadOptions::default()
    };
    let in_pool = |n_threads| {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(n_threads)
            .build()
            .unwrap();
        pool.install(|| {
            let stored = load(dir.path(), Split::Train, &options).unwrap();
            [stored, set(12, SHAPE)].map(|set| {
                let statistics = set.channel_statistics().unwrap();
                let mut rng = rng(5);
                let mut make =
                    || batch(&set, &all(&set), &statistics, &everything(), &mut rng).unwrap();
                (statistics.clone(), [make(), make()])
            })
        })
    };
    let once = in_pool(1);
    assert_eq!(once, in_pool(3));
    for (_, [first, second]) in &once {
        assert_ne!(first, second, "the generator moves on");
        assert!(first.images.iter().all(|value| value.is_finite()));
    }
}

#[test]
fn the_parts_of_a_batch_are_the_batch() {
    let set = set(7, [3, 8, 8]);
    let statistics = set.channel_statistics().unwrap();
    let whole = make(&set, &all(&set), &everything(), 5);
    let (mut images, mut labels) = (Vec::new(), Vec::new());
    for part in [0..3, 3..3, 3..7] {
        let mut own = rng(5);
        let n = part.len();
        let batch =
            images::batch_part(&set, &all(&set), part, &statistics, &everything(), &mut own)
                .unwrap();
        assert_eq!(batch.n, n);
        images.extend(batch.images);
        labels.extend(batch.labels);
    }
    let expected = batch(&set, &all(&set), &statistics, &everything(), &mut rng(5)).unwrap();
    assert_eq!((images, labels), (expected.images, expected.labels));
    assert_eq!(whole.n, 7);
}

#[test]
fn a_test_sees_the_centre_of_a_stored_image() {
    // 64 rows of 96 columns, black but for the centre square of 7/8 of 64 = 56, which is white.
    let white = |y: u32, x: u32| (4..60).contains(&y) && (20..76).contains(&x);
    let image =
        image::GrayImage::from_fn(96, 64, |x, y| image::Luma([255 * u8::from(white(y, x))]));
    let dir = tempdir().unwrap();
    let path = dir.path().join("test/a/1.png");
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    image.save(&path).unwrap();

    let options = LoadOptions {
        resize: Some(28),
        ..LoadOptions::default()
    };
    let set = load(dir.path(), Split::Test, &options).unwrap();
    let batch = make(&set, &[0], &Augmentation::none(), 0);
    for (at, &value) in batch.images.iter().enumerate() {
        let (y, x) = (at % 784 / 28, at % 28);
        // Each pixel is the mean of 4 x 4, of which at the border one column or row is beyond the square: 1/8 of the weight.
        let border = [y, x].iter().filter(|&&v| v == 0 || v == 27).count() as i32;
        let expected = 255.0 * 0.875f32.powi(border);
        assert!(
            (value - expected).abs() < 1.0,
            "{value} is not {expected} at {y}, {x}"
        );
    }
}

proptest! {
    #[test]
    fn a_cutout_is_a_square_of_zeros_clipped_at_the_border(side in 1usize..12, seed: u64) {
        let [_, height, width] = SHAPE;
        let planes = vec![200; 4 * 3 * height * width];
        let set = ImageSet::from_pixels(planes, SHAPE, vec![0; 4], vec!["a".to_owned()]);
        let augmentation = Augmentation { cutout: side, ..Augmentation::none() };
        let batch = make(&set, &all(&set), &augmentation, seed);
        for image in batch.images.chunks_exact(3 * height * width) {
            let zeros: Vec<usize> = (0..height * width).filter(|&at| image[at] == 0.0).collect();
            for channel in image.chunks_exact(height * width) {
                prop_assert!(zeros.iter().copied().eq((0..height * width).filter(|&at| channel[at] == 0.0)));
            }
            let extent = |of: &dyn Fn(usize) -> usize| {
                let (min, max) = (zeros.iter().map(|&at| of(at)).min(), zeros.iter().map(|&at| of(at)).max());
                max.unwrap() - min.unwrap() + 1
            };
            let (rows, columns) = (extent(&|at| at / width), extent(&|at| at % width));
            prop_assert_eq!(zeros.len(), rows * columns, "a rectangle");
            let at_least = |len: usize| side.div_ceil(2).min(len);
            prop_assert!((at_least(height)..=side.min(height)).contains(&rows));
            prop_assert!((at_least(width)..=side.min(width)).contains(&columns));
        }
    }

    #[test]
    fn any_augmentation_keeps_the_shape(seed: u64, pad in 0usize..9, cutout in 0usize..9, height in 1usize..9, width in 1usize..9) {
        let set = set(2, [1, height, width]);
        let augmentation = Augmentation { pad, cutout, ..everything() };
        let batch = make(&set, &[1, 0, 1], &augmentation, seed);
        prop_assert_eq!(batch.images.len(), 3 * height * width);
        prop_assert_eq!(batch.labels, [1, 0, 1]);
        prop_assert!(batch.images.iter().all(|value| value.is_finite()));
    }
}
