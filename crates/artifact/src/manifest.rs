//! What stands beside the data of an artifact: where it comes from and what it must look like.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::digest::{Digest, Key, KeyParts};
use crate::error::Error;
use crate::files::Files;
use crate::format::{FormatVersion, Kind};
use crate::json;
use crate::store::Artifact;

/// The file's name.
pub const FILE: &str = "manifest.json";

/// The version of the manifest itself.
pub const VERSION: u32 = 1;

/// `manifest.json`: written last, so that a folder without it does not count.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// [`VERSION`].
    pub manifest_version: u32,
    /// What the folder holds.
    pub kind: Kind,
    /// The version of its files.
    pub format: FormatVersion,
    /// The fingerprint of the search space that codes and genotypes are of.
    pub space_fingerprint: String,
    /// What was asked: [the key](KeyParts::key) of `key_parts`.
    pub key: Key,
    /// What was asked, in full: stage, revision, resolved config, inputs, machine.
    pub key_parts: KeyParts,
    /// What came out: the digest of the files' names and digests.
    pub digest: Digest,
    /// The data files, by name.
    pub files: BTreeMap<String, FileEntry>,
    /// How it came about; nothing here enters the key or the digest.
    pub origin: Origin,
    /// The digest of the manifest's own content without this line.
    pub checksum: Digest,
}

/// A data file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileEntry {
    /// Its size.
    pub n_bytes: u64,
    /// The digest of its content.
    pub digest: Digest,
}

/// The run that an artifact comes from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Origin {
    /// The device that was asked for.
    pub device: String,
    /// Threads of the stage.
    pub n_threads: usize,
    /// The machine, as far as the stage knows it.
    pub machine: Value,
    /// The program.
    pub build: Build,
    /// When the run began that finished it, in seconds since 1970.
    pub started_unix_secs: u64,
    /// How long that run took.
    pub elapsed_secs: f64,
}

/// The program that wrote an artifact.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Build {
    /// The version of the crates.
    pub version: String,
    /// The commit that it was built from, where whoever started the program said so in `GIT_COMMIT`, as
    /// `cargo xtask` does.
    pub commit: Option<String>,
    /// Whether files differed from that commit (`GIT_DIRTY`, `true` or `false`).
    #[serde(default)]
    pub dirty: Option<bool>,
    /// The system that it was built for, such as `x86_64-linux`.
    pub target: String,
}

impl Build {
    /// This program.
    pub fn current() -> Self {
        Self {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            commit: std::env::var("GIT_COMMIT").ok(),
            dirty: std::env::var("GIT_DIRTY")
                .ok()
                .and_then(|dirty| dirty.parse().ok()),
            target: format!("{}-{}", std::env::consts::ARCH, std::env::consts::OS),
        }
    }
}

impl Manifest {
    /// The manifest of these files.
    pub fn new<A: Artifact>(key_parts: KeyParts, origin: Origin, files: &Files) -> Self {
        let mut manifest = Self {
            manifest_version: VERSION,
            kind: A::KIND,
            format: A::FORMAT,
            space_fingerprint: space::SearchSpace::darts().fingerprint(),
            key: key_parts.key(),
            key_parts,
            digest: files.digest(),
            files: files
                .iter()
                .map(|(name, bytes)| {
                    let n_bytes = bytes.len() as u64;
                    (
                        name.to_owned(),
                        FileEntry {
                            n_bytes,
                            digest: Digest::of(bytes),
                        },
                    )
                })
                .collect(),
            origin: Origin {
                machine: json::sorted(origin.machine),
                ..origin
            },
            checksum: Digest::of(&[]),
        };
        manifest.checksum = checksum(manifest.to_value());
        manifest
    }

    fn to_value(&self) -> Value {
        serde_json::to_value(self).expect("strings, numbers and JSON are JSON")
    }

    /// The file's content.
    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        json::pretty(self).expect("strings, numbers and JSON are JSON")
    }

    /// Reads a file's content, `path` being its name in messages, and sees that it is whole.
    pub(crate) fn from_bytes(path: &Path, bytes: &[u8]) -> Result<Self, Error> {
        let damaged = |expected: String, found: String| Error::Damaged {
            file: path.to_owned(),
            expected,
            found,
            dir: path.parent().unwrap_or(path).to_owned(),
        };
        let value: Value = serde_json::from_slice(bytes)
            .map_err(|error| damaged("JSON".to_owned(), error.to_string()))?;
        if let Some(version) = value.get("manifest_version").and_then(Value::as_u64)
            && version != u64::from(VERSION)
        {
            return Err(Error::Malformed {
                file: path.to_owned(),
                reason: format!("manifest version {version}, this program reads {VERSION}"),
            });
        }
        let actual = checksum(value.clone());
        let manifest: Self = serde_json::from_value(value)
            .map_err(|error| damaged("a manifest".to_owned(), error.to_string()))?;
        if manifest.checksum != actual {
            return Err(damaged(
                format!("checksum {}", manifest.checksum.short()),
                actual.short(),
            ));
        }
        Ok(manifest)
    }
}

/// The digest of a manifest without its checksum. White space does not count.
fn checksum(mut manifest: Value) -> Digest {
    if let Some(fields) = manifest.as_object_mut() {
        fields.remove("checksum");
    }
    Digest::of(json::canonical(manifest).as_bytes())
}
