//! `preset`: a preset for other images, made of one that is there.

use std::fs;
use std::num::NonZero;
use std::path::{Component, Path, PathBuf};

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

impl Survey {
    fn of(bin_dir: &Path, dir: &Path, resize: usize) -> Result<Self> {
        let mut command = stage::program(bin_dir, "evaluate", "images");
        command.arg(dir);
        if resize > 0 {
            command.args(["--resize", &resize.to_string()]);
        }
        stage::ask(command, "evaluate images")
    }
}

/// What must be known of the images of the preset that the rest is taken from.
#[derive(Deserialize)]
struct EvaluateConfig {
    data: DataConfig,
}

#[derive(Deserialize)]
struct DataConfig {
    dir: PathBuf,
    resize: usize,
}

/// Writes the preset once every stage would take it, and says what is in it.
pub(crate) fn run(args: &NewPresetArgs) -> Result<()> {
    let from = preset_dir(&args.from)?;
    let to = match Path::new(&args.name).components().collect::<Vec<_>>()[..] {
        [Component::Normal(name)] => Path::new("configs").join(name),
        _ => PathBuf::from(&args.name),
    };
    if to.exists() {
        return Err(usage(format!(
            "{} is there already: choose another name, or delete it",
            to.display()
        )));
    }
    let bin_dir = stage::build()?;
    let resize = args.resize.map_or(0, NonZero::get);
    let survey = Survey::of(&bin_dir, &args.images, resize)?;
    if survey.height != survey.width {
        return Err(usage(format!(
            "the images in {} are {} x {} (height, width), but networks take squares: --resize {} makes them so",
            args.images.display(),
            survey.height,
            survey.width,
            survey.height.min(survey.width)
        )));
    }
    let base: EvaluateConfig = artifact::config::load(&from.join("evaluate.toml"), &[])
        .map_err(|error| usage(error.to_string()))?;
    let n_base = match base.data.dir.is_dir() {
        true => Some(Survey::of(&bin_dir, &base.data.dir, base.data.resize)?.n_train),
        false => None,
    };

    // Beside its place first, so that a preset that no stage takes is not there at all.
    let part = to.with_added_extension("part");
    let _ = fs::remove_dir_all(&part);
    let written = write(&from, &part, args, &survey, n_base).and_then(|changes| {
        let pipeline = PipelineArgs::of_preset(&part);
        stage::check(&bin_dir, &pipeline, &steps(&pipeline)?)?;
        fs::rename(&part, &to).with_context(|| format!("cannot write {}", to.display()))?;
        Ok(changes)
    });
    let changes = written.inspect_err(|_| {
        let _ = fs::remove_dir_all(&part);
    })?;
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
    println!("next: cargo xtask pipeline --preset {}", args.name);
    Ok(())
}

/// Writes all configs to `part`; what is changed besides the images themselves is returned, in words.
fn write(
    from: &Path,
    part: &Path,
    args: &NewPresetArgs,
    survey: &Survey,
    n_base: Option<usize>,
) -> Result<Vec<String>> {
    fs::create_dir_all(part).with_context(|| format!("cannot write {}", part.display()))?;
    let dir = args
        .images
        .to_str()
        .context("the folder's name is no UTF-8")?;
    let mut changes = Vec::new();
    for stage in PIPELINE {
        let file = format!("{}.toml", stage.name);
        let text = fs::read_to_string(from.join(&file))
            .with_context(|| format!("cannot read {}", from.join(&file).display()))?;
        let mut config: DocumentMut = text
            .parse()
            .map_err(|error| usage(format!("{}: {error}", from.join(&file).display())))?;
        if stage.name == "report" {
            set(
                config.as_item_mut(),
                "title",
                format!("Latency-aware search on {}", args.name),
            );
        }
        if let Some(data) = table(&mut config, "data") {
            set(data, "dir", dir);
            set(data, "resize", args.resize.map_or(0, NonZero::get) as i64);
            if data.get("mean").is_some() {
                // As in the training images.
                set(data, "mean", Array::new());
                set(data, "std", Array::new());
            }
        }
        if let Some(network) = table(&mut config, "network")
            && network.get("n_classes").is_some()
        {
            set(network, "in_channels", survey.n_channels as i64);
            set(network, "n_classes", survey.class_names.len() as i64);
            set(network, "image_size", survey.height as i64);
        }
        if let Some(n_base) = n_base {
            let scale = n_base as f64 / survey.n_train as f64;
            changes.extend(as_long(&mut config, stage.name, scale));
        }
        fs::write(part.join(&file), config.to_string())
            .with_context(|| format!("cannot write {}", part.join(&file).display()))?;
    }
    if n_base.is_none() {
        changes.push(format!(
            "the images of {} are not here: its numbers of epochs are as they were, look at n_epochs in search.toml and evaluate.toml",
            args.from
        ));
    }
    Ok(changes)
}

/// Trains for about as many steps as before where there are `scale` times fewer images: for more epochs or, in searches on
/// more images, on smaller parts.
fn as_long(config: &mut DocumentMut, stage: &str, scale: f64) -> Vec<String> {
    let mut changes = Vec::new();
    let mut change =
        |item: Option<&mut Item>, table: &str, key: &str, new: &dyn Fn(&Value) -> Option<Value>| {
            let Some(own) = item.and_then(|item| item.get_mut(key)) else {
                return;
            };
            let Some(old) = own.as_value() else {
                return;
            };
            // Without the comment behind it.
            let old = old.clone().decorated("", "");
            if let Some(new) = new(&old)
                && new.to_string() != old.to_string()
            {
                changes.push(format!("{stage}.{table}{key} = {new} instead of {old}"));
                replace(own, new);
            }
        };
    let epochs = |old: &Value| {
        let epochs = (old.as_integer()? as f64 * scale).round();
        Some(Value::from(epochs.max(1.0) as i64))
    };
    let fraction = |old: &Value| {
        let fraction = (old.as_float()? * scale * 1e4).round() / 1e4;
        Some(Value::from(fraction.max(1e-4)))
    };
    match stage {
        "search" if scale > 1.0 => {
            for key in ["n_epochs", "n_warmup_epochs"] {
                change(Some(config.as_item_mut()), "", key, &epochs);
            }
            change(
                config.get_mut("selection"),
                "selection.",
                "n_epochs",
                &epochs,
            );
        }
        "search" => {
            for key in ["train_fraction", "valid_fraction"] {
                change(config.get_mut("data"), "data.", key, &fraction);
            }
            change(
                config.get_mut("selection"),
                "selection.",
                "train_fraction",
                &fraction,
            );
        }
        "evaluate" if scale > 1.0 => change(Some(config.as_item_mut()), "", "n_epochs", &epochs),
        _ => {}
    }
    changes
}

fn table<'a>(config: &'a mut DocumentMut, name: &str) -> Option<&'a mut Item> {
    config.get_mut(name).filter(|item| item.is_table())
}

/// Sets a key; a comment behind its old value stays.
fn set(table: &mut Item, key: &str, new: impl Into<Value>) {
    match table.get_mut(key) {
        Some(own) => replace(own, new.into()),
        None => table[key] = value(new),
    }
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

    #[test]
    fn fewer_images_are_seen_more_often() {
        let mut config: DocumentMut = SEARCH.parse().unwrap();
        let changes = as_long(&mut config, "search", 6.25);
        assert_eq!(
            config.to_string(),
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
    }

    #[test]
    fn of_more_images_a_search_takes_smaller_parts() {
        let mut config: DocumentMut = SEARCH.parse().unwrap();
        as_long(&mut config, "search", 1.0 / 6.0);
        assert_eq!(
            config.to_string(),
            "n_epochs = 16 # passes\nn_warmup_epochs = 12\n\n[selection]\nn_epochs = 3\n\n[data]\n\
             train_fraction = 0.0833 # of each class\nvalid_fraction = 0.0833\n"
        );
        assert!(as_long(&mut "n_epochs = 10\n".parse().unwrap(), "evaluate", 0.5).is_empty());
    }

    #[test]
    fn what_stays_stays() {
        let mut config: DocumentMut = SEARCH.parse().unwrap();
        assert!(as_long(&mut config, "search", 1.0).is_empty());
        assert_eq!(config.to_string(), SEARCH);
    }
}
