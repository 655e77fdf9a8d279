//! `why`: which part of a stage's key differs from what the store holds.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use artifact::{Key, KeyParts};
use serde::Deserialize;
use serde_json::Value;

use crate::pipeline::steps_of;
use crate::preset::{PipelineArgs, Step, steps};
use crate::stage::{self, KeyAnswer};

/// Explains every step of a stage on stdout.
pub(crate) fn run(stage_name: &str, args: &PipelineArgs) -> Result<()> {
    let wanted = steps_of(args, stage_name)?;
    let bin_dir = stage::build_for(args)?;
    let mut artifacts: BTreeMap<String, PathBuf> = BTreeMap::new();
    for step in steps(args)? {
        let name = step.name();
        let is_wanted = wanted.iter().any(|wanted| wanted.name() == name);
        let missing: Vec<&str> = step
            .needs()
            .filter(|input| !artifacts.contains_key(*input))
            .collect();
        if !missing.is_empty() {
            if is_wanted {
                println!(
                    "{name}: its key is not known before {} has run",
                    missing.join(", ")
                );
            }
            continue;
        }
        let answer = stage::key(stage::command(&bin_dir, args, &step, &artifacts)?, &name)?;
        if is_wanted {
            explain(&name, &answer, &step, &args.store)?;
        }
        if answer.cached {
            artifacts.insert(name, answer.path);
        }
    }
    Ok(())
}

fn explain(name: &str, answer: &KeyAnswer, step: &Step, store: &Path) -> Result<()> {
    if answer.cached {
        println!(
            "{name}: cached under the same key, {}",
            answer.path.display()
        );
        return Ok(());
    }
    match nearest(answer, step, store)? {
        None => println!(
            "{name}: the store holds no {} yet",
            step.stage.output.name()
        ),
        Some((path, differences)) => {
            println!(
                "{name}: not cached; the nearest artifact is {}",
                path.display()
            );
            for difference in differences {
                println!("  {difference}");
            }
        }
    }
    Ok(())
}

/// Half a line for `plan`.
pub(crate) fn short_reason(answer: &KeyAnswer, step: &Step, store: &Path) -> Result<String> {
    Ok(match nearest(answer, step, store)? {
        None => format!("no {} yet", step.stage.output.name()),
        Some((_, differences)) => match differences.as_slice() {
            [] => "its artifact is gone".to_owned(),
            [one] => one.clone(),
            [one, rest @ ..] => format!("{one} (and {} more)", rest.len()),
        },
    })
}

/// What is read of a manifest, whatever its version.
#[derive(Deserialize)]
struct Manifest {
    key: Key,
    key_parts: KeyParts,
}

/// The artifact of the same kind whose key parts differ least, and how they differ.
fn nearest(
    answer: &KeyAnswer,
    step: &Step,
    store: &Path,
) -> Result<Option<(PathBuf, Vec<String>)>> {
    let wanted = leaves(&answer.parts.counted());
    let prefix = format!("{}-v", step.stage.output.name());
    let mut best: Option<(PathBuf, Vec<String>)> = None;
    for kind_dir in list(store)? {
        let is_kind = kind_dir
            .file_name()
            .is_some_and(|n| n.to_string_lossy().starts_with(&prefix));
        if !is_kind {
            continue;
        }
        for dir in list(&kind_dir)? {
            // What cannot be read is like nothing.
            let text = std::fs::read_to_string(dir.join("manifest.json")).unwrap_or_default();
            let Ok(Manifest { key, key_parts }) = serde_json::from_str(&text) else {
                continue;
            };
            let mut differences = diff(&leaves(&key_parts.counted()), &wanted);
            if key != key_parts.key() {
                differences.push("the key: of an earlier version in the store".to_owned());
            }
            if best
                .as_ref()
                .is_none_or(|(_, fewest)| differences.len() < fewest.len())
            {
                best = Some((dir, differences));
            }
        }
    }
    Ok(best)
}

/// The sorted contents of a folder; of one that does not exist, nothing.
fn list(dir: &Path) -> Result<Vec<PathBuf>> {
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) if error.kind() == std::io::ErrorKind::NotADirectory => return Ok(Vec::new()),
        Err(error) => return Err(error).with_context(|| format!("cannot list {}", dir.display())),
    };
    let mut paths: Vec<PathBuf> = entries
        .map(|entry| Ok(entry?.path()))
        .collect::<std::io::Result<_>>()?;
    paths.sort();
    Ok(paths)
}

/// Every leaf of a JSON value by its path.
fn leaves(value: &Value) -> BTreeMap<String, String> {
    fn walk(path: &str, value: &Value, leaves: &mut BTreeMap<String, String>) {
        let join = |name: &str| {
            if path.is_empty() {
                name.to_owned()
            } else {
                format!("{path}.{name}")
            }
        };
        match value {
            Value::Object(map) => map.iter().for_each(|(k, v)| walk(&join(k), v, leaves)),
            other => {
                leaves.insert(path.to_owned(), other.to_string());
            }
        }
    }
    let mut found = BTreeMap::new();
    walk("", value, &mut found);
    found
}

fn diff(old: &BTreeMap<String, String>, new: &BTreeMap<String, String>) -> Vec<String> {
    let names: BTreeSet<&String> = old.keys().chain(new.keys()).collect();
    let or_absent = |value: Option<&String>| value.map_or("absent", String::as_str).to_owned();
    names
        .into_iter()
        .filter(|name| old.get(*name) != new.get(*name))
        .map(|name| {
            format!(
                "{name}: {} in the store, {} now",
                or_absent(old.get(name)),
                or_absent(new.get(name))
            )
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_changed_leaf_is_named_by_its_path() {
        let old = leaves(&json!({"config": {"lambda": 0.5, "data": {"pad": 2}}}));
        let new = leaves(&json!({"config": {"lambda": 0.7, "data": {"pad": 2}}}));
        assert_eq!(
            diff(&old, &new),
            ["config.lambda: 0.5 in the store, 0.7 now"]
        );
    }

    #[test]
    fn an_added_leaf_was_absent() {
        let new = leaves(&json!({"revision": 2}));
        assert_eq!(
            diff(&BTreeMap::new(), &new),
            ["revision: absent in the store, 2 now"]
        );
    }
}
