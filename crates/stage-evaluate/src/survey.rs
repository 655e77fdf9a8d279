//! What images a folder holds.

use std::io::Write;
use std::num::NonZero;
use std::path::PathBuf;

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
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// The answer in JSON.
#[derive(Serialize)]
struct Answer<'a> {
    n_train: usize,
    n_test: usize,
    n_channels: usize,
    height: usize,
    width: usize,
    class_names: &'a [String],
}

impl ImagesArgs {
    /// Reads both splits, as a training would, and prints what is there on standard output.
    ///
    /// # Errors
    /// If a split is missing or damaged, if the images do not go together, or if standard output does not take the answer.
    pub fn run(&self) -> Result<(), Error> {
        let options = LoadOptions {
            resize: self.resize.map(NonZero::get),
            ..LoadOptions::default()
        };
        let load = |split| images::load(&self.dir, split, &options);
        let (train, test) = (load(Split::Train)?, load(Split::Test)?);
        if form(&train) != form(&test) || train.n_classes() < test.n_classes() {
            return Err(Error::UnlikeSplits {
                dir: self.dir.clone(),
                train: describe(form(&train), train.n_classes()),
                test: describe(form(&test), test.n_classes()),
            });
        }
        let text = if self.json {
            json(&train, &test)
        } else {
            table(&train, &test)
        };
        std::io::stdout()
            .lock()
            .write_all(text.as_bytes())
            .map_err(artifact::Error::Stdout)?;
        Ok(())
    }
}

/// `3 x 32 x 32 (channels, height, width) of 10 classes`.
pub(crate) fn describe([c, h, w]: [usize; 3], n_classes: usize) -> String {
    format!("{c} x {h} x {w} (channels, height, width) of {n_classes} classes")
}

fn form(set: &ImageSet) -> [usize; 3] {
    [set.n_channels(), set.height(), set.width()]
}

fn json(train: &ImageSet, test: &ImageSet) -> String {
    let [n_channels, height, width] = form(train);
    let answer = Answer {
        n_train: train.len(),
        n_test: test.len(),
        n_channels,
        height,
        width,
        class_names: train.class_names(),
    };
    serde_json::to_string(&answer).expect("numbers and names are JSON") + "\n"
}

fn table(train: &ImageSet, test: &ImageSet) -> String {
    let rows = [("train", train), ("test", test)];
    let lines = rows.map(|(name, set)| {
        let mut counts = vec![0; train.n_classes()];
        for &label in set.labels() {
            counts[label as usize] += 1;
        }
        let [fewest, most] = [counts.iter().min(), counts.iter().max()].map(|n| *n.unwrap_or(&0));
        let of_class = match fewest == most {
            true => thousands(fewest),
            false => format!("{} to {}", thousands(fewest), thousands(most)),
        };
        let n = thousands(set.len() as u64);
        format!("{name:<5}  {n:>9} images, {of_class} of each class\n")
    });
    let names = train.class_names().join(", ");
    format!(
        "{}{}: {names}\n",
        lines.concat(),
        describe(form(train), train.n_classes())
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(labels: &[u32]) -> ImageSet {
        let names = ["cat", "dog"].map(str::to_owned);
        ImageSet::from_pixels(
            vec![0; labels.len() * 6],
            [1, 2, 3],
            labels.to_vec(),
            names.into(),
        )
    }

    #[test]
    fn a_survey_says_how_many_images_of_what_form() {
        let (train, test) = (set(&[0, 1, 1]), set(&[1, 0]));
        assert_eq!(
            table(&train, &test),
            "train          3 images, 1 to 2 of each class\n\
             test           2 images, 1 of each class\n\
             1 x 2 x 3 (channels, height, width) of 2 classes: cat, dog\n"
        );
        assert_eq!(
            json(&train, &test),
            "{\"n_train\":3,\"n_test\":2,\"n_channels\":1,\"height\":2,\"width\":3,\"class_names\":[\"cat\",\"dog\"]}\n"
        );
    }
}
