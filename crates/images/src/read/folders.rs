//! One folder per class: `train/CLASS/*.png`.

use std::path::{Path, PathBuf};

use super::{Source, list};
use crate::decode::EncodedImage;
use crate::{Error, Split};

const EXTENSIONS: [&str; 3] = ["png", "jpg", "jpeg"];

/// The folder of a split, if there is one.
pub(super) fn split_dir(dir: &Path, split: Split) -> Option<PathBuf> {
    let names: &[&str] = match split {
        Split::Train => &["train"],
        Split::Test => &["test", "validation", "valid", "val"],
    };
    names
        .iter()
        .map(|name| dir.join(name))
        .find(|path| path.is_dir())
}

/// The images of every class, sorted: (class, file).
pub(super) fn images(split_dir: &Path) -> Result<Vec<(String, PathBuf)>, Error> {
    let mut found = Vec::new();
    for class in list(split_dir)? {
        let class_dir = split_dir.join(&class);
        if !class_dir.is_dir() {
            continue;
        }
        for name in list(&class_dir)? {
            let path = class_dir.join(name);
            let extension = path
                .extension()
                .map(|e| e.to_string_lossy().to_ascii_lowercase());
            if extension.is_some_and(|e| EXTENSIONS.contains(&e.as_str())) {
                found.push((class.clone(), path));
            }
        }
    }
    Ok(found)
}

/// Classes are the folders of the training split in alphabetical order, whichever split is read.
pub(super) fn read(dir: &Path, split: Split) -> Result<Source, Error> {
    let own = split_dir(dir, split).ok_or_else(|| Error::NoSplit {
        dir: dir.to_owned(),
        split,
    })?;
    let train = split_dir(dir, Split::Train).unwrap_or_else(|| own.clone());
    let mut classes: Vec<String> = images(&train)?
        .into_iter()
        .map(|(class, _)| class)
        .collect();
    classes.dedup();
    let mut source = Source::default();
    for (class, path) in images(&own)? {
        let label = classes
            .iter()
            .position(|known| *known == class)
            .ok_or_else(|| Error::UnknownClass {
                dir: own.join(&class),
                class,
                n_classes: classes.len(),
            })?;
        let image = EncodedImage::file(&path);
        source.labels.push((label as i64, image.place.clone()));
        source.encoded.push(image);
    }
    source.class_names = Some(classes);
    Ok(source)
}
