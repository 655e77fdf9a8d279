//! Every layout, read back.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use arrow::array::{Int32Array, Int64Array, UInt8Array};
use image::ImageFormat as FileFormat;
use images::{ImageSet, LoadOptions, Split, files, load};
use tempfile::tempdir;

use crate::fixtures::{Shape, Table, encoded, gzip, pixels, png, write, write_cifar, write_idx};

const GREY: Shape = [1, 4, 5];
const RGB: Shape = [3, 4, 5];

fn plain(dir: &Path, split: Split) -> ImageSet {
    load(dir, split, &LoadOptions::default()).unwrap()
}

fn with_label(label: &str) -> LoadOptions {
    LoadOptions {
        label: Some(label.to_owned()),
        ..LoadOptions::default()
    }
}

/// The set holds the images of these numbers.
fn assert_images(set: &ImageSet, shape: Shape, numbers: &[usize]) {
    assert_eq!([set.n_channels(), set.height(), set.width()], shape);
    assert_eq!(set.len(), numbers.len());
    for (index, &number) in numbers.iter().enumerate() {
        assert_eq!(
            *set.image(index).unwrap(),
            *pixels(number, shape),
            "image {index}"
        );
    }
}

/// The names of the files that decide about a split.
fn file_names(dir: &Path, split: Split) -> Vec<String> {
    let files = files(dir, split).unwrap();
    let relative = files.iter().map(|path| path.strip_prefix(dir).unwrap());
    relative
        .map(|path| path.to_str().unwrap().to_owned())
        .collect()
}

#[test]
fn parquet_shards_are_read_in_order() {
    let dir = tempdir().unwrap();
    let names = ["shirt", "shoe", "bag"];
    let first = Table::new(vec![png(0, GREY), png(1, GREY)], &[2, 0]);
    let second = Table::new(vec![png(2, GREY)], &[1]);
    first
        .named("label", &names)
        .write(&dir.path().join("train-00000-of-00002.parquet"));
    second
        .named("label", &names)
        .zstd()
        .write(&dir.path().join("train-00001-of-00002.parquet"));

    let set = plain(dir.path(), Split::Train);
    assert_images(&set, GREY, &[0, 1, 2]);
    assert_eq!(set.labels(), [2, 0, 1]);
    assert_eq!(set.class_names(), names);
    assert_eq!(
        file_names(dir.path(), Split::Train),
        [
            "train-00000-of-00002.parquet",
            "train-00001-of-00002.parquet"
        ]
    );
}

#[test]
fn parquet_of_many_row_groups_and_batches_keeps_the_order() {
    let dir = tempdir().unwrap();
    let n = 1300;
    let labels: Vec<i64> = (0..n).map(|i| i % 7).collect();
    let images = (0..n as usize).map(|i| png(i, GREY)).collect();
    Table::new(images, &labels).write(&dir.path().join("train.parquet"));
    let set = plain(dir.path(), Split::Train);
    assert_images(&set, GREY, &(0..n as usize).collect::<Vec<_>>());
    assert!(
        set.labels()
            .iter()
            .enumerate()
            .all(|(i, &label)| label == i as u32 % 7)
    );
}

#[test]
fn the_label_of_a_parquet_set_can_be_chosen() {
    let dir = tempdir().unwrap();
    let mut table =
        Table::new(vec![png(0, RGB), png(1, RGB)], &[]).named("fine_label", &["a", "b"]);
    table.image_column = "img";
    table.labels = vec![
        ("coarse_label", Arc::new(Int32Array::from(vec![4, 2]))),
        ("fine_label", Arc::new(UInt8Array::from(vec![1, 0]))),
    ];
    table.write(
        &dir.path()
            .join("train-00000-of-00001-a09b74b3ef9c3b56.parquet"),
    );

    let fine = plain(dir.path(), Split::Train);
    assert_images(&fine, RGB, &[0, 1]);
    assert_eq!(fine.labels(), [1, 0]);
    assert_eq!(fine.class_names(), ["a", "b"]);
    let coarse = load(dir.path(), Split::Train, &with_label("coarse_label")).unwrap();
    assert_eq!(coarse.labels(), [4, 2]);
    assert_eq!(
        coarse.class_names(),
        ["0", "1", "2", "3", "4"],
        "no names: the numbers"
    );
}

#[test]
fn the_test_split_goes_by_several_names() {
    for name in ["test", "validation", "valid", "val"] {
        let dir = tempdir().unwrap();
        let table = || Table::new(vec![png(0, GREY)], &[0]);
        table().write(&dir.path().join(format!("{name}-00000-of-00001.parquet")));
        assert_images(&plain(dir.path(), Split::Test), GREY, &[0]);

        let dir = tempdir().unwrap();
        write(&dir.path().join(name).join("class/0.png"), &png(3, GREY));
        assert_images(&plain(dir.path(), Split::Test), GREY, &[3]);
    }
}

#[test]
fn jpeg_is_close_to_what_was_encoded() {
    for shape in [[1, 16, 24], [3, 16, 24]] {
        let dir = tempdir().unwrap();
        let jpeg = encoded(0, shape, FileFormat::Jpeg);
        Table::new(vec![jpeg], &[0]).write(&dir.path().join("train.parquet"));
        let set = plain(dir.path(), Split::Train);
        assert_eq!([set.n_channels(), set.height(), set.width()], shape);
        let image = set.image(0).unwrap();
        let error = |(a, b): (&u8, u8)| f64::from(a.abs_diff(b));
        let sum: f64 = image.iter().zip(pixels(0, shape)).map(error).sum();
        assert!(
            sum / (image.len() as f64) < 6.0,
            "mean error {}",
            sum / image.len() as f64
        );
    }
}

#[test]
fn a_limit_takes_the_first_images_of_every_class() {
    let dir = tempdir().unwrap();
    let images = |range: std::ops::Range<usize>| range.map(|i| png(i, GREY)).collect();
    let first = Table::new(images(0..4), &[0, 0, 0, 0]);
    let second = Table::new(images(4..8), &[1, 0, 1, 2]);
    first.write(&dir.path().join("train-00000-of-00002.parquet"));
    second.write(&dir.path().join("train-00001-of-00002.parquet"));
    let limited = |limit| {
        let options = LoadOptions {
            limit: Some(limit),
            ..LoadOptions::default()
        };
        load(dir.path(), Split::Train, &options).unwrap()
    };

    assert_images(&limited(3), GREY, &[0, 4, 7]);
    assert_images(&limited(5), GREY, &[0, 1, 4, 6, 7]);
    assert_eq!(limited(5).labels(), [0, 0, 1, 1, 2]);
    assert_eq!(limited(3).n_classes(), 3);
    assert_images(&limited(100), GREY, &[0, 1, 2, 3, 4, 5, 6, 7]);
}

#[test]
fn cifar_10_has_one_label_byte() {
    let dir = tempdir().unwrap();
    for batch in 1..=5u8 {
        let path = dir.path().join(format!("data_batch_{batch}.bin"));
        write_cifar(&path, &[&[batch], &[0]], 2 * usize::from(batch - 1));
    }
    write_cifar(&dir.path().join("test_batch.bin"), &[&[9]], 77);

    let train = plain(dir.path(), Split::Train);
    assert_images(&train, [3, 32, 32], &[0, 1, 2, 3, 4, 5, 6, 7, 8, 9]);
    assert_eq!(train.labels(), [1, 0, 2, 0, 3, 0, 4, 0, 5, 0]);
    assert_eq!(
        train.class_names(),
        ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"]
    );
    assert_images(&plain(dir.path(), Split::Test), [3, 32, 32], &[77]);
    assert_eq!(file_names(dir.path(), Split::Train).len(), 5);

    let names = "airplane\nautomobile\nbird\ncat\ndeer\ndog\nfrog\nhorse\nship\ntruck\n\n";
    fs::write(dir.path().join("batches.meta.txt"), names).unwrap();
    assert_eq!(plain(dir.path(), Split::Test).class_names()[9], "truck");
    assert_eq!(
        file_names(dir.path(), Split::Test),
        ["batches.meta.txt", "test_batch.bin"]
    );

    let options = LoadOptions {
        limit: Some(2),
        ..with_label("label")
    };
    assert_images(
        &load(dir.path(), Split::Train, &options).unwrap(),
        [3, 32, 32],
        &[0, 1],
    );
}

#[test]
fn cifar_100_has_a_coarse_and_a_fine_label_byte() {
    let dir = tempdir().unwrap();
    write_cifar(&dir.path().join("train.bin"), &[&[19, 99], &[3, 42]], 0);
    write_cifar(&dir.path().join("test.bin"), &[&[0, 7]], 5);

    let fine = plain(dir.path(), Split::Train);
    assert_images(&fine, [3, 32, 32], &[0, 1]);
    assert_eq!((fine.labels(), fine.n_classes()), (&[99, 42][..], 100));
    let coarse = load(dir.path(), Split::Train, &with_label("coarse_label")).unwrap();
    assert_eq!((coarse.labels(), coarse.n_classes()), (&[19, 3][..], 20));
    assert_images(&plain(dir.path(), Split::Test), [3, 32, 32], &[5]);
}

#[test]
fn idx_is_read_plain_and_packed() {
    let dir = tempdir().unwrap();
    write_idx(dir.path(), "train", GREY, &[3, 0, 3]);
    write_idx(dir.path(), "t10k", GREY, &[1]);

    let set = plain(dir.path(), Split::Train);
    assert_images(&set, GREY, &[0, 1, 2]);
    assert_eq!(set.labels(), [3, 0, 3]);
    assert_eq!(set.n_classes(), 4, "the largest label plus 1");
    assert_images(&plain(dir.path(), Split::Test), GREY, &[0]);

    for name in ["train-images-idx3-ubyte", "train-labels-idx1-ubyte"] {
        let path = dir.path().join(name);
        fs::write(
            dir.path().join(format!("{name}.gz")),
            gzip(&fs::read(&path).unwrap()),
        )
        .unwrap();
        fs::remove_file(path).unwrap();
    }
    let packed = plain(dir.path(), Split::Train);
    assert_images(&packed, GREY, &[0, 1, 2]);
    assert_eq!(packed.labels(), [3, 0, 3]);
    assert_eq!(
        file_names(dir.path(), Split::Train),
        ["train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"]
    );
}

#[test]
fn class_folders_are_numbered_by_name_in_both_splits() {
    let dir = tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    write(&at("train/wolf/b.PNG"), &png(2, GREY));
    write(&at("train/wolf/a.png"), &png(1, GREY));
    write(&at("train/fox/z.png"), &png(0, GREY));
    write(&at("train/yak/1.png"), &png(3, GREY));
    write(&at("train/notes/readme.txt"), b"no image, so no class");
    write(&at("train/readme.txt"), b"no class");
    write(&at("test/yak/1.png"), &png(4, GREY));

    let train = plain(dir.path(), Split::Train);
    assert_images(&train, GREY, &[0, 1, 2, 3]);
    assert_eq!(train.labels(), [0, 1, 1, 2]);
    assert_eq!(train.class_names(), ["fox", "wolf", "yak"]);
    assert_eq!(
        file_names(dir.path(), Split::Train),
        [
            "train/fox/z.png",
            "train/wolf/a.png",
            "train/wolf/b.PNG",
            "train/yak/1.png"
        ]
    );

    let test = plain(dir.path(), Split::Test);
    assert_eq!(test.labels(), [2]);
    assert_eq!(test.class_names(), train.class_names());
}

#[test]
fn a_resized_set_takes_images_of_any_size_and_colour() {
    let dir = tempdir().unwrap();
    let images = [
        encoded(0, [3, 20, 40], FileFormat::Jpeg),
        png(1, [1, 33, 17]),
    ];
    Table::new(images.to_vec(), &[0, 1]).write(&dir.path().join("train.parquet"));
    write(&dir.path().join("test/0/wide.jpeg"), &images[0]);
    write(&dir.path().join("test/1/tall.png"), &images[1]);

    let options = LoadOptions {
        resize: Some(8),
        ..LoadOptions::default()
    };
    let table = load(dir.path(), Split::Train, &options).unwrap();
    assert_eq!(
        [table.n_channels(), table.height(), table.width()],
        [3, 8, 8]
    );
    let folders = load(dir.path(), Split::Test, &options).unwrap();
    for index in 0..2 {
        let image = table.image(index).unwrap();
        assert_eq!(image.len(), 3 * 8 * 8);
        assert_eq!(image, folders.image(index).unwrap());
    }
    let grey = table.image(1).unwrap();
    assert_eq!(grey[..64], grey[64..128], "grey is RGB of equal channels");
}

#[test]
fn unused_columns_are_not_read() {
    // A column that cannot become an integer does no harm as long as nobody asks for it.
    let dir = tempdir().unwrap();
    let mut table = Table::new(vec![png(0, GREY)], &[0]);
    table
        .labels
        .push(("fine_label", Arc::new(Int64Array::from(vec![None]))));
    table.write(&dir.path().join("train.parquet"));
    assert_eq!(plain(dir.path(), Split::Train).labels(), [0]);
}
