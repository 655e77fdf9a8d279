//! One folder per class: `train/CLASS/*.png`.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{Listing, list_dir, only_label};
use crate::error::{Place, Spot};
use crate::{Error, Split};

const EXTENSIONS: [&str; 3] = ["png", "jpg", "jpeg"];

/// The class folders of a split.
pub(super) struct Folders {
    /// The folder of the split.
    dir: PathBuf,
    /// Files of every class, in the order of the names; a folder without images is no class.
    images: Vec<(String, Vec<PathBuf>)>,
    /// The classes of the training split, in the order of the names.
    classes: Vec<String>,
}

impl Folders {
    /// The class folders of a split; none if there is no folder for the split.
    pub(super) fn find(dir: &Path, split: Split) -> Result<Option<Self>, Error> {
        let Some(own) = split_dir(dir, split) else {
            return Ok(None);
        };
        let images = class_folders(&own)?;
        let names =
            |images: &[(String, _)]| images.iter().map(|(class, _)| class.clone()).collect();
        // Both splits must number the classes alike.
        let classes = match split_dir(dir, Split::Train) {
            Some(train) if train != own => names(&class_folders(&train)?),
            _ => names(&images),
        };
        Ok(Some(Self {
            dir: own,
            images,
            classes,
        }))
    }

    pub(super) fn into_files(self) -> Vec<PathBuf> {
        self.images
            .into_iter()
            .flat_map(|(_, files)| files)
            .collect()
    }

    pub(super) fn list(&self, label: Option<&str>) -> Result<Listing, Error> {
        only_label(&self.dir, label)?;
        let (mut labels, mut places) = (Vec::new(), Vec::new());
        for (class, files) in &self.images {
            let label = self
                .classes
                .binary_search(class)
                .map_err(|_| Error::UnknownClass {
                    dir: self.dir.join(class),
                    class: class.clone(),
                    n_classes: self.classes.len(),
                })?;
            for file in files {
                labels.push(label as i64);
                places.push(Place {
                    path: Arc::from(file.as_path()),
                    spot: Spot::File,
                });
            }
        }
        Ok(Listing {
            labels,
            places,
            class_names: Some(self.classes.clone()),
            raw: None,
        })
    }
}

fn split_dir(dir: &Path, split: Split) -> Option<PathBuf> {
    split
        .names()
        .iter()
        .map(|name| dir.join(name))
        .find(|path| path.is_dir())
}

/// The images of every class folder that has some, sorted.
fn class_folders(split_dir: &Path) -> Result<Vec<(String, Vec<PathBuf>)>, Error> {
    let mut found = Vec::new();
    for class in list_dir(split_dir)? {
        let class_dir = split_dir.join(&class);
        if !class_dir.is_dir() {
            continue;
        }
        let files: Vec<PathBuf> = list_dir(&class_dir)?
            .into_iter()
            .map(|name| class_dir.join(name))
            .filter(|path| is_image(path))
            .collect();
        if !files.is_empty() {
            found.push((class, files));
        }
    }
    Ok(found)
}

fn is_image(path: &Path) -> bool {
    path.extension().is_some_and(|extension| {
        EXTENSIONS
            .iter()
            .any(|known| extension.eq_ignore_ascii_case(known))
    })
}
