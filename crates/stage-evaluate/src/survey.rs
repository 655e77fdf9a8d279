//! What images a folder holds.

use std::io::Write;
use std::num::NonZero;
use std::path::{Path, PathBuf};

use clap::Args;
use images::{ImageSet, LoadOptions, Split};
use serde::Serialize;

use crate::count::thousands;
use crate::error::Error;

/// The arguments of `evaluate images`.
#[derive(Clone, Debug, Args)]
pub struct ImagesArgs {
    /// The folder of the data set
    #[arg(value_name = "DIR")]
    dir: PathBuf,
    /// Bring images of any size to this one, in pixels, as data.resize does
    #[arg(long, value_name = "N")]
    resize: Option<NonZero<usize>>,
    /// Count labels alone: no image is looked at
    #[arg(long, conflicts_with = "resize")]
    labels: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// What a folder holds; the form of its images only where they were looked at.
#[derive(Serialize)]
struct Survey {
    n_train: usize,
    n_test: usize,
    #[serde(flatten)]
    form: Option<Form>,
    class_names: Vec<String>,
    /// Of each split the images of the smallest and of the largest class.
    #[serde(skip)]
    of_class: [[usize; 2]; 2],
}

#[derive(Clone, Copy, PartialEq, Eq, Serialize)]
struct Form {
    n_channels: usize,
    height: usize,
    width: usize,
}

impl Form {
    fn of(set: &ImageSet) -> Self {
        Self {
            n_channels: set.n_channels(),
            height: set.height(),
            width: set.width(),
        }
    }
}

/// The classes of a split's images, and the names of all classes.
type Labels = (Vec<u32>, Vec<String>);

impl ImagesArgs {
    /// Reads both splits as a training would, decodes every image, and prints what is there on standard output.
    ///
    /// # Errors
    /// If a split is missing or damaged, if the images do not go together, or if standard output does not take the answer.
    pub fn run(&self) -> Result<(), Error> {
        let splits = [Split::Train, Split::Test];
        let survey = if self.labels {
            let [train, test] = splits.map(|split| images::labels(&self.dir, split));
            self.survey([train?, test?], None)?
        } else {
            let [train, test] = splits.map(|split| self.look(split));
            let ((train, train_form), (test, test_form)) = (train?, test?);
            self.survey([train, test], Some([train_form, test_form]))?
        };
        let text = match self.json {
            true => serde_json::to_string(&survey).expect("numbers and names are JSON") + "\n",
            false => survey.table(),
        };
        std::io::stdout()
            .lock()
            .write_all(text.as_bytes())
            .map_err(artifact::Error::Stdout)?;
        Ok(())
    }

    /// Labels and class names of a split, and what its images are.
    fn look(&self, split: Split) -> Result<(Labels, Form), Error> {
        let options = LoadOptions {
            resize: self.resize.map(NonZero::get),
            ..LoadOptions::default()
        };
        let set = images::load(&self.dir, split, &options)?;
        if self.resize.is_some() {
            // Otherwise they would not be decoded before a training asks for them.
            set.channel_statistics()?;
        }
        let labels = (set.labels().to_vec(), set.class_names().to_vec());
        Ok((labels, Form::of(&set)))
    }

    fn survey(
        &self,
        [(train, train_names), (test, test_names)]: [Labels; 2],
        forms: Option<[Form; 2]>,
    ) -> Result<Survey, Error> {
        let alike = forms.is_none_or(|[train, test]| train == test);
        if !alike || test_names.len() > train_names.len() {
            let describe = |index: usize, names: &[String]| match forms {
                Some(forms) => forms[index].describe(names.len()),
                None => format!("of {} classes", names.len()),
            };
            return Err(Error::UnlikeSplits {
                dir: self.dir.clone(),
                train: describe(0, &train_names),
                test: describe(1, &test_names),
            });
        }
        same_classes(&self.dir, [&train_names, &test_names])?;
        let of_class = [&train, &test].map(|labels| {
            let mut counts = vec![0; train_names.len()];
            labels.iter().for_each(|&label| counts[label as usize] += 1);
            [counts.iter().min(), counts.iter().max()].map(|n| *n.unwrap_or(&0))
        });
        Ok(Survey {
            n_train: train.len(),
            n_test: test.len(),
            form: forms.map(|[train, _]| train),
            class_names: train_names,
            of_class,
        })
    }
}

impl Survey {
    fn table(&self) -> String {
        let rows = [("train", self.n_train), ("test", self.n_test)];
        let lines = rows
            .iter()
            .zip(self.of_class)
            .map(|((name, n), [fewest, most])| {
                let [n, fewest, most] = [*n, fewest, most].map(|n| thousands(n as u64));
                let of_class = match fewest == most {
                    true => fewest,
                    false => format!("{fewest} to {most}"),
                };
                format!("{name:<5}  {n:>9} images, {of_class} of each class\n")
            });
        let lines: String = lines.collect();
        let n_classes = self.class_names.len();
        let what = match &self.form {
            Some(form) => form.describe(n_classes),
            None => format!("{n_classes} classes"),
        };
        format!("{lines}{what}: {}\n", self.class_names.join(", "))
    }
}

impl Form {
    fn describe(&self, n_classes: usize) -> String {
        describe([self.n_channels, self.height, self.width], n_classes)
    }
}

/// Sees that the classes of both splits are the same, as far as they have names.
pub(crate) fn same_classes(dir: &Path, [train, test]: [&[String]; 2]) -> Result<(), Error> {
    let has_names = |names: &[String]| {
        let mut numbered = names.iter().enumerate();
        numbered.any(|(index, name)| *name != index.to_string())
    };
    if !(has_names(train) && has_names(test)) {
        return Ok(());
    }
    let differs = train
        .iter()
        .zip(test)
        .position(|(train, test)| train != test);
    differs.map_or(Ok(()), |index| {
        Err(Error::OtherClasses {
            dir: dir.to_owned(),
            index,
            train: train[index].clone(),
            test: test[index].clone(),
        })
    })
}

/// `3 x 32 x 32 (channels, height, width) of 10 classes`.
pub(crate) fn describe([c, h, w]: [usize; 3], n_classes: usize) -> String {
    format!("{c} x {h} x {w} (channels, height, width) of {n_classes} classes")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_with_names_are_the_same_in_both_splits() {
        let names = |names: &[&str]| {
            names
                .iter()
                .map(|&name| name.to_owned())
                .collect::<Vec<_>>()
        };
        let check = |train: &[&str], test: &[&str]| {
            same_classes(Path::new("set"), [&names(train), &names(test)])
        };
        let error = check(&["cat", "dog"], &["dog", "cat"]).unwrap_err();
        assert!(error.to_string().starts_with(
            "class 0 of the train images in set is called `cat`, of the test images `dog`"
        ));
        assert!(check(&["cat", "dog"], &["cat", "dog"]).is_ok());
        // The last ones may be missing, and numbers are no names.
        assert!(check(&["cat", "dog"], &["cat"]).is_ok());
        assert!(check(&["cat", "dog"], &["0", "1"]).is_ok());
    }
}
