//! Every version of every format that was ever written still opens.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use crate::samples::{Sample, for_every_kind};
use artifact::{FormatVersion, Kind, LatencyDataset};

fn formats() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/formats")
}

/// The folders `<kind>-<version>` of a kind.
fn versions(kind: Kind) -> Vec<(FormatVersion, PathBuf)> {
    let entries = std::fs::read_dir(formats()).unwrap();
    let paths = entries.map(|entry| entry.unwrap().path());
    paths
        .filter_map(|path| {
            let name = path.file_name()?.to_str()?;
            let version = name.strip_prefix(kind.name())?.strip_prefix('-')?;
            Some((version.parse().ok()?, path))
        })
        .collect()
}

fn every_version_opens<A: Sample>() {
    let versions = versions(A::KIND);
    assert!(
        versions.iter().any(|(version, _)| *version == A::FORMAT),
        "no sample of {} {}: run the example write_format_samples and commit it",
        A::KIND,
        A::FORMAT
    );
    for (version, dir) in versions {
        let opened = artifact::open::<A>(&dir).unwrap();
        assert_eq!(opened.manifest.format, version, "{}", dir.display());
        if version == A::FORMAT {
            assert_eq!(opened.value, A::sample(), "{}", dir.display());
        }
    }
}

#[test]
fn every_version_of_every_kind_opens() {
    for_every_kind!(every_version_opens());
}

/// Who reads an anchor that does not say whose code took it must not take it for that of today's.
#[test]
fn an_anchor_without_a_revision_is_of_none() {
    let dir = formats().join("latency-dataset-1.3");
    let dataset = artifact::open::<LatencyDataset>(&dir).unwrap().value;
    let anchor = dataset.settings.unwrap().anchor.unwrap();
    assert_eq!(anchor.revision, 0);
    assert!(!anchor.is_of(&anchor.machine));
}

#[test]
fn every_folder_is_the_sample_of_some_kind() {
    let known: BTreeSet<PathBuf> = Kind::ALL
        .into_iter()
        .flat_map(versions)
        .map(|(_, path)| path)
        .collect();
    for entry in std::fs::read_dir(formats()).unwrap() {
        let path = entry.unwrap().path();
        assert!(known.contains(&path), "{} is of no kind", path.display());
    }
}
