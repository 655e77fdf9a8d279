//! `preset`: a preset for other images, made of one that is there.

use std::num::NonZero;
use std::path::{Component, Path, PathBuf};
use std::{fs, io};

use anyhow::{Context, Result};
use artifact::PIPELINE;
use serde::Deserialize;
use toml_edit::{Array, DocumentMut, Item, Value, value};

use crate::preset::{PipelineArgs, preset_dir, steps, usage};
use crate::stage;

/// Command line of `preset`.
#[derive(clap::Args)]
pub(crate) struct NewPresetArgs {
    /// The preset to write: a name in `configs/`, or a folder; it must not be there yet
    #[arg(value_name = "NAME|DIR")]
    name: String,
    /// The folder of the images
    #[arg(long, value_name = "DIR")]
    images: PathBuf,
    /// The preset that the rest is taken from
    #[arg(long, value_name = "NAME|DIR", default_value = "quick")]
    from: String,
    /// Bring images of any size to squares of so many pixels
    #[arg(long, value_name = "N")]
    resize: Option<NonZero<usize>>,
}

/// What `evaluate images` answers.
#[derive(Deserialize)]
struct Survey {
    n_train: usize,
    n_test: usize,
    n_channels: usize,
    height: usize,
    width: usize,
    class_names: Vec<String>,
}

/// What it answers where labels alone are counted.
#[derive(Deserialize)]
struct Labels {
    n_train: usize,
}

/// What must be known of the preset that the rest is taken from.
#[derive(Deserialize)]
struct EvaluateConfig {
    data: DataConfig,
    network: NetworkConfig,
}

#[derive(Deserialize)]
struct DataConfig {
    dir: PathBuf,
}

#[derive(Deserialize)]
struct NetworkConfig {
    image_size: usize,
}

/// A preset in the making.
struct Making<'a> {
    args: &'a NewPresetArgs,
    survey: Survey,
    /// How many images the other preset was made for, if they are here.
    n_base: Option<usize>,
    base_size: usize,
    /// What is changed besides the images themselves, in words.
    changes: Vec<String>,
}

/// Writes the preset once every stage would take it, and says what is in it.
pub(crate) fn run(args: &NewPresetArgs) -> Result<()> {
    let from = preset_dir(&args.from)?;
    let to = match Path::new(&args.name).components().collect::<Vec<_>>()[..] {
        [Component::Normal(name)] => Path::new("configs").join(name),
        _ => PathBuf::from(&args.name),
    };
    let Some(title) = to.file_name() else {
        return Err(usage(format!("`{}` is no name for a preset", args.name)));
    };
    let title = title.to_string_lossy().into_owned();
    if to.exists() {
        return Err(usage(format!(
            "{} is there already: choose another name, or delete it",
            to.display()
        )));
    }
    let bin_dir = stage::build()?;
    let images = |dir: &Path| {
        let mut command = stage::program(&bin_dir, "evaluate", "images");
        command.arg(dir);
        command
    };
    let mut command = images(&args.images);
    if let Some(size) = args.resize {
        command.args(["--resize", &size.to_string()]);
    }
    let survey: Survey = stage::ask(command, "evaluate images")?;
    if survey.height != survey.width {
        return Err(usage(format!(
            "the images in {} are {} x {} (height, width), but networks take squares; of PNG and JPEG files --resize {} makes some",
            args.images.display(),
            survey.height,
            survey.width,
            survey.height.min(survey.width)
        )));
    }
    let base: EvaluateConfig = artifact::config::load(&from.join("evaluate.toml"), &[])
        .map_err(|error| usage(error.to_string()))?;
    let mut n_base = None;
    if base.data.dir.is_dir() {
        let mut command = images(&base.data.dir);
        command.arg("--labels");
        let labels = stage::ask::<Labels>(command, "evaluate images");
        n_base = labels.ok().map(|labels| labels.n_train);
    }
    let mut making = Making {
        args,
        survey,
        n_base,
        base_size: base.network.image_size,
        changes: Vec::new(),
    };
    let files = making.files(&from, &title)?;

    // Elsewhere first, so that a preset that a stage would not take is not there at all.
    let trial = tempfile::tempdir().context("cannot write a preset to try it")?;
    write(trial.path(), &files)?;
    let pipeline = PipelineArgs::of_preset(trial.path().to_string_lossy().into_owned());
    stage::check(&bin_dir, &pipeline, &steps(&pipeline)?).inspect_err(|_| {
        eprintln!(
            "so {} is not written: it would be the preset {} with these images",
            to.display(),
            args.from
        );
    })?;
    write(&to, &files)?;
    let Making {
        survey, changes, ..
    } = making;
    println!(
        "{}: {} training and {} test images of {} x {} x {} (channels, height, width), {} classes: {}",
        to.display(),
        survey.n_train,
        survey.n_test,
        survey.n_channels,
        survey.height,
        survey.width,
        survey.class_names.len(),
        survey.class_names.join(", ")
    );
    for change in changes {
        println!("  {change}");
    }
    println!("next: cargo xtask pipeline --preset '{}'", args.name);
    Ok(())
}

/// Writes the files of a folder, which is made if need be.
fn write(dir: &Path, files: &[(String, String)]) -> Result<()> {
    let failed =
        |path: &Path, error: io::Error| usage(format!("cannot write {}: {error}", path.display()));
    fs::create_dir_all(dir).map_err(|error| failed(dir, error))?;
    for (name, text) in files {
        let path = dir.join(name);
        fs::write(&path, text).map_err(|error| failed(&path, error))?;
    }
    Ok(())
}

impl Making<'_> {
    /// All configs, each with the name of its file.
    fn files(&mut self, from: &Path, title: &str) -> Result<Vec<(String, String)>> {
        let dir = self.args.images.to_str();
        let dir = dir.ok_or_else(|| usage("--images: the name is no UTF-8".to_owned()))?;
        let mut files = Vec::new();
        for stage in PIPELINE {
            let name = format!("{}.toml", stage.name);
            let path = from.join(&name);
            let text = fs::read_to_string(&path)
                .map_err(|error| usage(format!("cannot read {}: {error}", path.display())))?;
            // What the first lines say is of the other preset.
            let own = text.lines().skip_while(|line| line.starts_with('#'));
            let own: Vec<&str> = own.collect();
            let text = format!(
                "# The preset {}, for the images in {dir}.\n{}\n",
                self.args.from,
                own.join("\n")
            );
            let mut config: DocumentMut = text
                .parse()
                .map_err(|error| usage(format!("{}: {error}", path.display())))?;
            if stage.name == "report" {
                set(
                    config.as_item_mut(),
                    "title",
                    format!("Latency-aware search on {title}"),
                );
            }
            self.put_images(&mut config, dir);
            if stage.name == "evaluate" && self.survey.height != self.base_size {
                self.change(&mut config, "evaluate", "auxiliary_weight", |_| {
                    Some(Value::from(0.0))
                });
            }
            if let Some(n_base) = self.n_base {
                self.put_length(
                    &mut config,
                    stage.name,
                    n_base as f64 / self.survey.n_train as f64,
                );
            }
            files.push((name, config.to_string()));
        }
        if self.n_base.is_none() {
            self.changes.push(format!(
                "the images of {} are not here: its numbers of epochs are as they were, look at n_epochs in search.toml and evaluate.toml",
                self.args.from
            ));
        }
        Ok(files)
    }

    /// The folder, and what the network must have of its images.
    fn put_images(&self, config: &mut DocumentMut, dir: &str) {
        let Survey {
            n_channels,
            height,
            class_names,
            ..
        } = &self.survey;
        if let Some(data) = table(config, "data") {
            // A comment behind the folder is of the other one.
            data["dir"] = value(dir);
            set(
                data,
                "resize",
                self.args.resize.map_or(0, NonZero::get) as i64,
            );
            if data.get("mean").is_some() {
                // As in the training images.
                set(data, "mean", Array::new());
                set(data, "std", Array::new());
            }
        }
        if let Some(network) = table(config, "network")
            && network.get("n_classes").is_some()
        {
            set(network, "in_channels", *n_channels as i64);
            set(network, "n_classes", class_names.len() as i64);
            set(network, "image_size", *height as i64);
        }
    }

    /// Makes trainings take about as many steps as before where there are `scale` times fewer images: searches on larger parts
    /// of them and then, as `evaluate`, for more epochs. Of more images searches take smaller parts.
    fn put_length(&mut self, config: &mut DocumentMut, stage: &str, scale: f64) {
        let times = |factor: f64| {
            move |old: &Value| {
                let epochs = (old.as_integer()? as f64 * factor).round();
                Some(Value::from(epochs as i64))
            }
        };
        match stage {
            "search" => {
                let part = |key: &str| config.get("data")?.get(key)?.as_float();
                let total: f64 = ["train_fraction", "valid_fraction"]
                    .into_iter()
                    .filter_map(part)
                    .sum();
                let growth = scale.min(1.0 / total.max(1e-9));
                if growth != 1.0 {
                    // Down, so that two parts are not more than the whole.
                    let grown = |old: f64| (old * growth * 1e4).floor().max(1.0) / 1e4;
                    let grown_part = |key: &str| grown(part(key).unwrap_or_default());
                    // Candidates train on what is left of the validation part, or as the weights do.
                    let left = ((1.0 - grown_part("valid_fraction")) * 1e4).round() / 1e4;
                    let most = left.max(grown_part("train_fraction"));
                    for (key, most) in [
                        ("data.train_fraction", 1.0),
                        ("data.valid_fraction", 1.0),
                        ("selection.train_fraction", most),
                    ] {
                        self.change(config, stage, key, |old| {
                            Some(Value::from(grown(old.as_float()?).min(most)))
                        });
                    }
                }
                if scale > growth {
                    for key in [
                        "n_epochs",
                        "n_warmup_epochs",
                        "selection.n_epochs",
                        "weights.n_warmup_epochs",
                    ] {
                        self.change(config, stage, key, times(scale / growth));
                    }
                }
            }
            "evaluate" if scale > 1.0 => {
                for key in ["n_epochs", "weights.n_warmup_epochs"] {
                    self.change(config, stage, key, times(scale));
                }
            }
            _ => {}
        }
    }

    /// Gives a key, if it is there, another value, and says so if that is one.
    fn change(
        &mut self,
        config: &mut DocumentMut,
        stage: &str,
        key: &str,
        new: impl Fn(&Value) -> Option<Value>,
    ) {
        let mut own = config.as_item_mut();
        for part in key.split('.') {
            // A key that is not there must not be made.
            if own.get(part).is_none() {
                return;
            }
            own = &mut own[part];
        }
        // Without the comment behind it.
        let Some(old) = own.as_value().map(|old| old.clone().decorated("", "")) else {
            return;
        };
        if let Some(new) = new(&old)
            && new.to_string() != old.to_string()
        {
            self.changes
                .push(format!("{stage}.{key} = {new} instead of {old}"));
            replace(own, new);
        }
    }
}

fn table<'a>(config: &'a mut DocumentMut, name: &str) -> Option<&'a mut Item> {
    config.get_mut(name).filter(|item| item.is_table())
}

/// Sets a key, which is made if need be; a comment behind its old value stays.
fn set(table: &mut Item, key: &str, new: impl Into<Value>) {
    replace(&mut table[key], new.into());
}

fn replace(own: &mut Item, mut new: Value) {
    if let Some(old) = own.as_value() {
        *new.decor_mut() = old.decor().clone();
    }
    *own = Item::Value(new);
}

#[cfg(test)]
mod tests {
    use super::*;

    const SEARCH: &str = "n_epochs = 16 # passes\nn_warmup_epochs = 12\n\n[selection]\nn_epochs = 3\n\n[data]\n\
        train_fraction = 0.5 # of each class\nvalid_fraction = 0.5\n";

    /// What becomes of a config of a stage, and what is said of it.
    fn as_long(stage: &str, text: &str, scale: f64) -> (String, Vec<String>) {
        let args = NewPresetArgs {
            name: "mine".to_owned(),
            images: PathBuf::from("images"),
            from: "quick".to_owned(),
            resize: None,
        };
        let survey = Survey {
            n_train: 100,
            n_test: 100,
            n_channels: 3,
            height: 32,
            width: 32,
            class_names: Vec::new(),
        };
        let mut making = Making {
            args: &args,
            survey,
            n_base: None,
            base_size: 28,
            changes: Vec::new(),
        };
        let mut config: DocumentMut = text.parse().unwrap();
        making.put_length(&mut config, stage, scale);
        (config.to_string(), making.changes)
    }

    #[test]
    fn fewer_images_are_seen_more_often() {
        let (config, changes) = as_long("search", SEARCH, 6.25);
        assert_eq!(
            config,
            "n_epochs = 100 # passes\nn_warmup_epochs = 75\n\n[selection]\nn_epochs = 19\n\n[data]\n\
             train_fraction = 0.5 # of each class\nvalid_fraction = 0.5\n"
        );
        assert_eq!(
            changes,
            [
                "search.n_epochs = 100 instead of 16",
                "search.n_warmup_epochs = 75 instead of 12",
                "search.selection.n_epochs = 19 instead of 3"
            ]
        );
        let (config, _) = as_long("evaluate", "n_epochs = 10\n", 2.0);
        assert_eq!(config, "n_epochs = 20\n");
    }

    #[test]
    fn parts_of_fewer_images_grow_before_they_are_seen_more_often() {
        let small = SEARCH
            .replace("0.5", "0.1")
            .replace("[selection]\n", "[selection]\ntrain_fraction = 0.5\n");
        let (config, changes) = as_long("search", &small, 2.0);
        assert!(config.contains("train_fraction = 0.2 # of each class\nvalid_fraction = 0.2\n"));
        assert!(
            config.contains("[selection]\ntrain_fraction = 0.8\nn_epochs = 3\n"),
            "{config}"
        );
        assert_eq!(changes.len(), 3);
        let (config, _) = as_long("search", &small, 10.0);
        assert!(config.contains("train_fraction = 0.5 # of each class\nvalid_fraction = 0.5\n"));
        assert!(
            config.contains("[selection]\ntrain_fraction = 0.5\n"),
            "{config}"
        );
        assert!(
            config.starts_with("n_epochs = 32 # passes\nn_warmup_epochs = 24\n"),
            "{config}"
        );
    }

    #[test]
    fn of_more_images_a_search_takes_smaller_parts() {
        let (config, _) = as_long("search", SEARCH, 1.0 / 6.0);
        assert_eq!(
            config,
            "n_epochs = 16 # passes\nn_warmup_epochs = 12\n\n[selection]\nn_epochs = 3\n\n[data]\n\
             train_fraction = 0.0833 # of each class\nvalid_fraction = 0.0833\n"
        );
        assert!(as_long("evaluate", "n_epochs = 10\n", 0.5).1.is_empty());
    }

    #[test]
    fn what_stays_stays() {
        assert_eq!(
            as_long("search", SEARCH, 1.0),
            (SEARCH.to_owned(), Vec::new())
        );
    }
}
