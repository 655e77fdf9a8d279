//! Broken data sets: every error names the file, the place and the remedy.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use arrow::array::{Int64Array, StringArray};
use images::{
    Augmentation, Error, ImageSet, LoadOptions, Normalization, Split, batch, files, load,
};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use tempfile::tempdir;

use crate::fixtures::{Shape, Table, gzip, idx, png, write, write_cifar, write_idx};

const GREY: Shape = [1, 4, 5];

fn error(dir: &Path, split: Split, options: &LoadOptions) -> Error {
    load(dir, split, options).expect_err("the data set is broken")
}

/// The message of loading the training split, with the folder's name replaced.
#[track_caller]
fn assert_message(dir: &Path, expected: &str) {
    assert_message_with(dir, Split::Train, &LoadOptions::default(), expected);
}

#[track_caller]
fn assert_message_with(dir: &Path, split: Split, options: &LoadOptions, expected: &str) {
    let message = error(dir, split, options).to_string();
    assert_eq!(message.replace(dir.to_str().unwrap(), "DIR"), expected);
}

fn table(n: usize) -> Table {
    let labels: Vec<i64> = (0..n as i64).collect();
    Table::new((0..n).map(|i| png(i, GREY)).collect(), &labels)
}

const LAYOUTS: &str = "parquet shards (train-00000-of-00001.parquet), CIFAR binary (data_batch_1.bin or train.bin), \
    IDX (train-images-idx3-ubyte, .gz or not) or class folders (train/CLASS/*.png, *.jpg)";

#[test]
fn no_folder() {
    let dir = tempdir().unwrap();
    let missing = dir.path().join("nowhere");
    let expected = format!(
        "there is no folder DIR with a data set; put one there or name the folder of one, laid out as {LAYOUTS}"
    );
    assert_message(&missing, &expected);
    assert!(matches!(
        files(&missing, Split::Train),
        Err(Error::NoFolder { .. })
    ));
}

#[test]
fn no_such_split() {
    let dir = tempdir().unwrap();
    table(1).write(&dir.path().join("train.parquet"));
    let expected = format!("no test images in DIR; the layouts read are {LAYOUTS}");
    assert_message_with(dir.path(), Split::Test, &LoadOptions::default(), &expected);
    assert!(matches!(
        files(dir.path(), Split::Test),
        Err(Error::NoSplit { .. })
    ));
}

#[test]
fn a_missing_shard() {
    for missing in 0..3 {
        let dir = tempdir().unwrap();
        for shard in (0..3).filter(|&shard| shard != missing) {
            table(1).write(
                &dir.path()
                    .join(format!("train-0000{shard}-of-00003.parquet")),
            );
        }
        let expected = format!(
            "DIR/train-0000{missing}-of-00003.parquet is missing, but other files of the same train split are there; \
             copy or download it too"
        );
        assert_message(dir.path(), &expected);
        assert!(matches!(
            files(dir.path(), Split::Train),
            Err(Error::MissingFile { .. })
        ));
    }
}

#[test]
fn a_missing_binary_file() {
    let dir = tempdir().unwrap();
    for batch in [1, 2, 4, 5] {
        write_cifar(
            &dir.path().join(format!("data_batch_{batch}.bin")),
            &[&[0]],
            0,
        );
    }
    write_idx(dir.path(), "t10k", GREY, &[0]);
    fs::remove_file(dir.path().join("t10k-labels-idx1-ubyte")).unwrap();
    let missing = |split, name: &str| {
        let Error::MissingFile { path, .. } = error(dir.path(), split, &LoadOptions::default())
        else {
            panic!("a file is missing");
        };
        assert_eq!(path, dir.path().join(name));
    };
    missing(Split::Train, "data_batch_3.bin");
    missing(Split::Test, "t10k-labels-idx1-ubyte");
}

#[test]
fn shards_of_two_sets() {
    let dir = tempdir().unwrap();
    table(1).write(&dir.path().join("train-00000-of-00001.parquet"));
    table(1).write(&dir.path().join("train-00000-of-00002.parquet"));
    assert_message(
        dir.path(),
        "DIR/train-00000-of-00001.parquet and DIR/train-00000-of-00002.parquet do not belong to one data set (by their names \
         they are shards of different sets or the same shard); keep one data set per folder",
    );

    let dir = tempdir().unwrap();
    let shard = |name| dir.path().join(name);
    table(2)
        .named("label", &["cat", "dog"])
        .write(&shard("train-00000-of-00002.parquet"));
    table(2)
        .named("label", &["dog", "cat"])
        .write(&shard("train-00001-of-00002.parquet"));
    assert_message(
        dir.path(),
        "DIR/train-00000-of-00002.parquet and DIR/train-00001-of-00002.parquet do not belong to one data set (they name \
         different classes); keep one data set per folder",
    );
}

#[test]
fn truncated_parquet() {
    let dir = tempdir().unwrap();
    let path = dir.path().join("train.parquet");
    table(3).write(&path);
    let whole = fs::read(&path).unwrap();
    for len in [0, 3, whole.len() / 2, whole.len() - 1] {
        fs::write(&path, &whole[..len]).unwrap();
        assert_message(
            dir.path(),
            "DIR/train.parquet is not readable parquet; copy or download the file again",
        );
    }
}

#[test]
fn damaged_parquet_is_an_error_or_other_data_but_never_a_panic() {
    let dir = tempdir().unwrap();
    let path = dir.path().join("train.parquet");
    table(3).named("label", &["a", "b", "c"]).write(&path);
    let whole = fs::read(&path).unwrap();
    let mut n_errors = 0;
    for at in 0..whole.len() {
        let mut damaged = whole.clone();
        damaged[at] ^= 0x55;
        fs::write(&path, damaged).unwrap();
        n_errors += usize::from(load(dir.path(), Split::Train, &LoadOptions::default()).is_err());
    }
    assert!(
        n_errors > whole.len() / 4,
        "{n_errors} of {} damages were seen",
        whole.len()
    );
}

#[test]
fn columns_that_are_missing_or_of_another_type() {
    let dir = tempdir().unwrap();
    let path = dir.path().join("train.parquet");
    let mut other = table(1);
    other.labels[0].0 = "class";
    other.write(&path);
    let columns = r#"image: Struct("bytes": Binary, "path": Utf8), class: Int64"#;
    let remedy = "rename or convert one, or choose another label";
    assert_message(
        dir.path(),
        &format!(
            "DIR/train.parquet has no column `label` or `fine_label` of integers, only {columns}; {remedy}"
        ),
    );
    let options = LoadOptions {
        label: Some("kind".to_owned()),
        ..LoadOptions::default()
    };
    assert_message_with(
        dir.path(),
        Split::Train,
        &options,
        &format!("DIR/train.parquet has no column `kind` of integers, only {columns}; {remedy}"),
    );

    let mut other = table(1);
    other.image_column = "picture";
    other.write(&path);
    let message = error(dir.path(), Split::Train, &LoadOptions::default()).to_string();
    assert!(message.contains(
        "has no column `image` or `img` of a struct with a binary field `bytes`, only picture: "
    ));

    let mut other = table(1);
    other.labels[0].1 = Arc::new(StringArray::from(vec!["cat"]));
    other.write(&path);
    let message = error(dir.path(), Split::Train, &LoadOptions::default()).to_string();
    assert!(
        message.contains("of integers, only") && message.contains("label: Utf8"),
        "{message}"
    );
}

#[test]
fn a_label_that_the_layout_does_not_have() {
    let options = LoadOptions {
        label: Some("fine".to_owned()),
        ..LoadOptions::default()
    };
    let dir = tempdir().unwrap();
    write_cifar(&dir.path().join("train.bin"), &[&[0, 0]], 0);
    assert_message_with(
        dir.path(),
        Split::Train,
        &options,
        "DIR has no label \"fine\"; it has: fine_label, coarse_label",
    );
    write_idx(dir.path(), "t10k", GREY, &[0]);
    assert_message_with(
        dir.path(),
        Split::Test,
        &options,
        "DIR/t10k-labels-idx1-ubyte has no label \"fine\"; it has: label",
    );
}

#[test]
fn nulls() {
    let dir = tempdir().unwrap();
    let path = dir.path().join("train.parquet");
    let mut broken = table(3);
    broken.images[2] = None;
    broken.write(&path);
    let remedy = "remove the row or give it a value (a path alone is no image)";
    assert_message(
        dir.path(),
        &format!("DIR/train.parquet, row 2: the image is null; {remedy}"),
    );

    let mut broken = table(3);
    broken.labels[0].1 = Arc::new(Int64Array::from(vec![Some(0), None, Some(1)]));
    broken.write(&path);
    assert_message(
        dir.path(),
        &format!("DIR/train.parquet, row 1: the label is null; {remedy}"),
    );
}

#[test]
fn truncated_gzip() {
    let dir = tempdir().unwrap();
    write_idx(dir.path(), "train", GREY, &[0, 1]);
    let path = dir.path().join("train-images-idx3-ubyte");
    let packed = gzip(&fs::read(&path).unwrap());
    fs::remove_file(&path).unwrap();
    fs::write(
        dir.path().join("train-images-idx3-ubyte.gz"),
        &packed[..packed.len() - 9],
    )
    .unwrap();
    let message = error(dir.path(), Split::Train, &LoadOptions::default()).to_string();
    assert!(
        message.contains("train-images-idx3-ubyte.gz, byte 56 (unpacked): the gzip"),
        "{message}"
    );
    assert!(
        message.ends_with("is damaged there; copy or download the file again"),
        "{message}"
    );
}

#[test]
fn binary_files_of_a_wrong_length() {
    let dir = tempdir().unwrap();
    let path = dir.path().join("test_batch.bin");
    write_cifar(&path, &[&[0], &[1]], 0);
    fs::write(&path, &fs::read(&path).unwrap()[..5000]).unwrap();
    assert_message_with(
        dir.path(),
        Split::Test,
        &LoadOptions::default(),
        "DIR/test_batch.bin holds 5000 bytes where 6146 are expected (records of 3073 bytes); copy or download the file again",
    );

    write_idx(dir.path(), "train", GREY, &[0, 1]);
    let path = dir.path().join("train-images-idx3-ubyte");
    let whole = fs::read(&path).unwrap();
    fs::write(&path, &whole[..50]).unwrap();
    assert_message(
        dir.path(),
        "DIR/train-images-idx3-ubyte holds 50 bytes where 56 are expected (a header of 16, then values of shape [2, 4, 5]); \
         copy or download the file again",
    );
    // A size whose product does not fit into 64 bits.
    fs::write(&path, idx(&[u32::MAX; 3], &[0; 100])).unwrap();
    assert!(matches!(
        error(dir.path(), Split::Train, &LoadOptions::default()),
        Error::Length { found: 116, .. }
    ));
}

#[test]
fn wrong_idx_headers() {
    let dir = tempdir().unwrap();
    write_idx(dir.path(), "train", GREY, &[0]);
    let images = dir.path().join("train-images-idx3-ubyte");
    let labels = dir.path().join("train-labels-idx1-ubyte");
    fs::write(&images, fs::read(&labels).unwrap()).unwrap();
    assert_message(
        dir.path(),
        "DIR/train-images-idx3-ubyte, byte 0 is not an IDX file of images: 00 00 08 03, then three sizes that are not 0; \
         copy or download the file again",
    );
    fs::write(&images, idx(&[1, 0, 5], &[])).unwrap();
    let message = error(dir.path(), Split::Train, &LoadOptions::default()).to_string();
    assert!(message.contains("byte 8 is not"), "{message}");

    write_idx(dir.path(), "train", GREY, &[0]);
    fs::write(&labels, idx(&[2], &[0, 1])).unwrap();
    assert_message(
        dir.path(),
        "DIR/train-images-idx3-ubyte and DIR/train-labels-idx1-ubyte do not belong to one data set (they hold different \
         numbers of images and labels); keep one data set per folder",
    );
}

#[test]
fn images_that_do_not_decode() {
    let dir = tempdir().unwrap();
    let mut broken = table(9);
    // Of several, the first is named, whichever thread is first.
    for row in [5, 7, 8] {
        broken.images[row].as_mut().unwrap().truncate(40);
    }
    broken.write(&dir.path().join("train.parquet"));
    let remedy = "the image does not decode; replace it or remove it from the data set";
    assert_message(dir.path(), &format!("DIR/train.parquet, row 5: {remedy}"));

    write(&dir.path().join("test/a/1.jpg"), b"no image");
    let expected = format!("DIR/test/a/1.jpg: {remedy}");
    assert_message_with(dir.path(), Split::Test, &LoadOptions::default(), &expected);
}

#[test]
fn labels_that_name_no_class() {
    let dir = tempdir().unwrap();
    let path = dir.path().join("train.parquet");
    let labelled =
        |labels: &[i64]| Table::new(labels.iter().map(|_| png(0, GREY)).collect(), labels);
    labelled(&[0, 2])
        .named("label", &["cat", "dog"])
        .write(&path);
    let remedy =
        "correct the label, the class names of the data set, or the choice of the label column";
    assert_message(
        dir.path(),
        &format!("DIR/train.parquet, row 1: label 2 is not in 0..2; {remedy}"),
    );
    labelled(&[0, 1 << 40]).write(&path);
    assert_message(
        dir.path(),
        &format!("DIR/train.parquet, row 1: label 1099511627776 is not in 0..65536; {remedy}"),
    );
    labelled(&[-1, -1])
        .named("label", &["cat", "dog"])
        .write(&path);
    assert_message(
        dir.path(),
        "DIR/train.parquet, row 0: label -1 is not in 0..2; this split has no labels: move it out of the folder so that \
         another one (validation, say) is read",
    );

    write_cifar(&dir.path().join("test_batch.bin"), &[&[0], &[10]], 0);
    let expected = format!("DIR/test_batch.bin, byte 3073: label 10 is not in 0..10; {remedy}");
    assert_message_with(dir.path(), Split::Test, &LoadOptions::default(), &expected);
}

#[test]
fn a_test_class_without_training_images() {
    let dir = tempdir().unwrap();
    write(&dir.path().join("train/cat/1.png"), &png(0, GREY));
    write(&dir.path().join("test/dog/1.png"), &png(0, GREY));
    assert_message_with(
        dir.path(),
        Split::Test,
        &LoadOptions::default(),
        "DIR/test/dog: class \"dog\" is not among the 1 of the training split; remove or rename the folder",
    );
}

#[test]
fn images_unlike_the_first() {
    let dir = tempdir().unwrap();
    let remedy = "make them alike, or have them brought to one size (`resize` in [data], --resize of a command)";
    for (other, found) in [([1, 5, 4], "grey 4x5"), ([3, 4, 5], "RGB 5x4")] {
        let images = vec![png(0, GREY), png(1, GREY), png(2, other)];
        Table::new(images, &[0, 0, 0]).write(&dir.path().join("train.parquet"));
        assert_message(
            dir.path(),
            &format!(
                "DIR/train.parquet, row 2: the image is {found} (width x height), the first one is grey 5x4 (width x height); \
                 {remedy}"
            ),
        );
    }
}

#[test]
fn raw_pixels_are_not_resized() {
    let dir = tempdir().unwrap();
    write_idx(dir.path(), "train", GREY, &[0]);
    let options = LoadOptions {
        resize: Some(8),
        ..LoadOptions::default()
    };
    assert_message_with(
        dir.path(),
        Split::Train,
        &options,
        "DIR/train-labels-idx1-ubyte: `resize` is for PNG and JPEG files, this data set holds raw pixels of grey 5x4 \
         (width x height); leave it out",
    );
}

#[test]
fn empty_splits() {
    let expected = "the train split in DIR holds no images; add some or name another folder";
    let dir = tempdir().unwrap();
    table(0).write(&dir.path().join("train.parquet"));
    assert_message(dir.path(), expected);

    let dir = tempdir().unwrap();
    fs::create_dir_all(dir.path().join("train/cat")).unwrap();
    assert_message(dir.path(), expected);

    let dir = tempdir().unwrap();
    write_idx(dir.path(), "train", GREY, &[]);
    assert_message(dir.path(), expected);

    let dir = tempdir().unwrap();
    table(1).write(&dir.path().join("train.parquet"));
    let options = LoadOptions {
        limit: Some(0),
        ..LoadOptions::default()
    };
    assert_message_with(dir.path(), Split::Train, &options, expected);
}

fn make_batch(set: &ImageSet, normalization: &Normalization) -> Result<images::Batch, Error> {
    let mut rng = ChaCha8Rng::seed_from_u64(0);
    batch(set, &[0, 1], normalization, &Augmentation::none(), &mut rng)
}

#[test]
fn a_normalisation_for_other_channels() {
    let set = ImageSet::from_pixels(vec![0; 8], [1, 2, 2], vec![0, 0], vec!["a".to_owned()]);
    let normalization = Normalization {
        mean: vec![0.5; 3],
        std: vec![0.2; 3],
    };
    assert_eq!(
        make_batch(&set, &normalization).unwrap_err().to_string(),
        "the normalisation has 3 means and 3 standard deviations, the images have 1 channels; give one of each per channel"
    );
}

#[test]
fn an_image_that_breaks_after_loading() {
    let dir = tempdir().unwrap();
    let (one, two) = (
        dir.path().join("train/a/1.png"),
        dir.path().join("train/a/2.png"),
    );
    write(&one, &png(0, GREY));
    write(&two, &png(1, GREY));
    let options = LoadOptions {
        resize: Some(2),
        ..LoadOptions::default()
    };
    let set = load(dir.path(), Split::Train, &options).unwrap();
    let normalization = Normalization {
        mean: vec![0.0; 3],
        std: vec![1.0; 3],
    };

    fs::write(&two, b"no image").unwrap();
    let Error::Decode { place, .. } = make_batch(&set, &normalization).unwrap_err() else {
        panic!("the second image does not decode");
    };
    assert_eq!(*place.path, *two);
    fs::remove_file(&one).unwrap();
    let message = make_batch(&set, &normalization).unwrap_err().to_string();
    assert_eq!(
        message.replace(dir.path().to_str().unwrap(), "DIR"),
        "cannot read DIR/train/a/1.png; check that it exists and that you may read it"
    );
}
