//! The arrows of ARCHITECTURE.md, checked against what cargo knows.

use std::collections::BTreeSet;

use anyhow::{Context, Result, bail};
use cargo_metadata::{DependencyKind, MetadataCommand};

/// Which of our crates each crate may use. A crate that is not listed may use none and is an error.
const ALLOWED: &[(&str, &[&str])] = &[
    ("space", &[]),
    ("artifact", &["space", "measure"]),
    ("collective", &[]),
    ("command-line", &[]),
    ("tract-oracle", &[]),
    ("kernels", &["collective"]),
    ("kernels-shim", &["collective", "kernels"]),
    ("images", &[]),
    ("measure", &[]),
    ("nn", &["space", "kernels", "collective"]),
    ("nn-shim", &["space", "kernels-shim", "collective"]),
    ("latency", &["space"]),
    ("runtime", &["space", "nn", "kernels", "measure"]),
    (
        "stage-profile",
        &["space", "artifact", "latency", "nn", "runtime", "measure"],
    ),
    ("stage-predictor", &["space", "artifact", "latency"]),
    (
        "stage-search",
        &["space", "artifact", "nn", "latency", "images", "collective"],
    ),
    (
        "stage-evaluate",
        &[
            "space",
            "artifact",
            "nn",
            "images",
            "runtime",
            "measure",
            "collective",
        ],
    ),
    ("stage-report", &["artifact", "space"]),
    ("xtask", &["artifact", "measure"]),
];

/// What the tests of any crate may use, and nothing but tests.
const OF_TESTS: [&str; 2] = ["command-line", "tract-oracle"];

/// The packages of the end-to-end tests and of the benches, which may use everything but xtask.
const OUTSIDE: [&str; 2] = ["pipeline-tests", "network-bench"];

/// External crates that some of ours must not know: (crate, what, why).
const ABSENT: &[(&str, &[&str], &str)] = &[
    (
        "space",
        &["serde", "serde_json", "candle-core", "arrow", "parquet"],
        "it is mathematics: no tensors, no files",
    ),
    (
        "measure",
        &["candle-core", "candle-nn"],
        "it times a closure and knows no network",
    ),
    (
        "artifact",
        &["candle-core", "candle-nn"],
        "files are read without a tensor library",
    ),
    (
        "latency",
        &["candle-core", "arrow", "parquet"],
        "it is mathematics on slices",
    ),
];

/// Fails on the first crate that uses what it must not.
pub(crate) fn run() -> Result<()> {
    let metadata = MetadataCommand::new()
        .no_deps()
        .exec()
        .context("cargo metadata failed")?;
    let ours: BTreeSet<&str> = metadata.packages.iter().map(|p| p.name.as_str()).collect();
    let mut violations = Vec::new();
    for package in &metadata.packages {
        let name = package.name.as_str();
        let allowed = ALLOWED.iter().find(|(crate_name, _)| *crate_name == name);
        if allowed.is_none() && !OUTSIDE.contains(&name) {
            violations.push(format!("{name} is not in the table of xtask/src/layers.rs"));
            continue;
        }
        for dependency in &package.dependencies {
            let used = dependency.name.as_str();
            if ours.contains(used) {
                let of_tests =
                    dependency.kind == DependencyKind::Development && OF_TESTS.contains(&used);
                let may = match allowed {
                    Some((_, list)) => list.contains(&used) || of_tests,
                    None => used != "xtask",
                };
                if !may {
                    violations.push(format!(
                        "{name} uses {used}, which its layer does not allow"
                    ));
                }
            }
            let absent = ABSENT
                .iter()
                .filter(|(crate_name, _, _)| *crate_name == name);
            for (_, forbidden, why) in absent {
                if dependency.kind == DependencyKind::Normal && forbidden.contains(&used) {
                    violations.push(format!("{name} uses {used}: {why}"));
                }
            }
        }
    }
    if !violations.is_empty() {
        bail!("layer rules broken:\n  {}", violations.join("\n  "));
    }
    eprintln!("{} crates keep to their layers", metadata.packages.len());
    Ok(())
}
