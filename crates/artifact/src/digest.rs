//! What came out ([`Digest`]) and what was asked for ([`Key`]).

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use thiserror::Error;

use crate::error::Error;
use crate::json;
use crate::stage::StageSpec;

/// A BLAKE3 digest; written as 64 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Digest(blake3::Hash);

impl Digest {
    /// The digest of some bytes.
    pub fn of(bytes: &[u8]) -> Self {
        Self(blake3::hash(bytes))
    }

    /// The digest of named digests, in whatever order they come.
    pub fn of_named(named: impl IntoIterator<Item = (String, Digest)>) -> Self {
        let mut named: Vec<_> = named.into_iter().collect();
        named.sort_by(|(a, x), (b, y)| (a, x.0.as_bytes()).cmp(&(b, y.0.as_bytes())));
        let mut hasher = blake3::Hasher::new();
        for (name, digest) in named {
            // With its length before it, a name cannot be mistaken for part of a digest.
            hasher.update(&(name.len() as u64).to_le_bytes());
            hasher.update(name.as_bytes());
            hasher.update(digest.0.as_bytes());
        }
        Self(hasher.finalize())
    }

    /// The first 12 digits: enough to tell digests apart in names and messages.
    pub fn short(&self) -> String {
        self.0.to_hex()[..12].to_owned()
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0.to_hex())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Digest({})", self.short())
    }
}

/// The text is no digest.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("`{0}` is no digest; expected 64 lower-case hexadecimal digits")]
pub struct ParseDigestError(String);

impl FromStr for Digest {
    type Err = ParseDigestError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        // One spelling only: upper-case digits are refused.
        blake3::Hash::from_hex(text)
            .ok()
            .filter(|hash| hash.to_hex().as_str() == text)
            .map(Self)
            .ok_or_else(|| ParseDigestError(text.to_owned()))
    }
}

impl TryFrom<String> for Digest {
    type Error = ParseDigestError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> Self {
        digest.to_string()
    }
}

/// The name of a question: the digest of what [counts](KeyParts::counted) of its [`KeyParts`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Key(Digest);

impl Key {
    /// The name of the artifact's folder: the key's first 12 digits.
    pub fn folder(&self) -> String {
        self.0.short()
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What a stage is asked: everything that decides what comes out, and where images lie.
///
/// Inputs count by what they hold ([`Digest`]), not by how they were asked for: an input that is made
/// again with the same bytes leaves the key as it was.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeyParts {
    /// The stage.
    pub stage: String,
    /// The revision of its code, see [`StageSpec::revision`].
    pub revision: u32,
    /// The resolved config, objects sorted by key.
    pub config: Value,
    /// What it reads.
    pub inputs: BTreeMap<String, Digest>,
    /// The fingerprint of the machine, if what comes out is about the machine; and the GPU that computes, if
    /// one does, and how many processes, if several do.
    pub machine: Option<String>,
}

impl KeyParts {
    /// A stage with its resolved config; `1` and `1.0` in a TOML file are one and the same where the
    /// config has a float, and comments and the order of keys are gone.
    ///
    /// # Errors
    /// If the config does not serialise to JSON.
    pub fn new(spec: &StageSpec, config: &impl Serialize) -> Result<Self, Error> {
        let config = serde_json::to_value(config).map_err(|error| Error::Encode {
            file: format!("the config of {}", spec.name),
            reason: error.to_string(),
        })?;
        Ok(Self {
            stage: spec.name.to_owned(),
            revision: spec.revision,
            config: json::sorted(config),
            inputs: BTreeMap::new(),
            machine: None,
        })
    }

    /// With one more input. Names are kinds (`latency-model`), or say which one it is (`images`).
    #[must_use]
    pub fn input(mut self, name: &str, digest: Digest) -> Self {
        self.inputs.insert(name.to_owned(), digest);
        self
    }

    /// With the fingerprint of the machine.
    #[must_use]
    pub fn machine(mut self, fingerprint: String) -> Self {
        self.machine = Some(fingerprint);
        self
    }

    /// With the GPU that computes: it rounds otherwise than the processor, and takes other times.
    #[must_use]
    pub fn gpu(mut self, name: &str) -> Self {
        let machine = self.machine.map(|fingerprint| format!("{fingerprint}, "));
        self.machine = Some(machine.unwrap_or_default() + name);
        self
    }

    /// With the number of processes that compute together: their sums round otherwise than one process does. One is
    /// what a key without this means.
    #[must_use]
    pub fn ranks(self, n_ranks: usize) -> Self {
        match n_ranks {
            0 | 1 => self,
            n => self.gpu(&format!("{n} ranks")),
        }
    }

    /// With the number of threads that compute, where bytes must be those of so many.
    #[must_use]
    pub fn threads(self, n_threads: usize) -> Self {
        self.gpu(&format!("{n_threads} threads"))
    }

    /// The parts as JSON, without the folder where images lie (`data.dir` of the config): what they are is an input.
    pub fn counted(&self) -> Value {
        let mut parts = serde_json::to_value(self).expect("strings, numbers and JSON are JSON");
        if let Some(Value::Object(data)) = parts.pointer_mut("/config/data") {
            data.remove("dir");
        }
        parts
    }

    /// The key: BLAKE3 of the parts that [count](Self::counted), as JSON with sorted keys and no white space.
    pub fn key(&self) -> Key {
        Key(Digest::of(json::canonical(self.counted()).as_bytes()))
    }
}

/// The digest of files' names and contents, for what enters a key without being an artifact (image
/// sets). Names are taken from the innermost folder that holds all the files, so that the set may be
/// moved; the order of `paths` does not count.
///
/// Reads in parallel on threads of its own, so that
/// [`configure_threads`](crate::stage::configure_threads) may come later.
///
/// # Errors
/// If a file cannot be read, [`Error::Read`].
pub fn digest_files(paths: &[PathBuf]) -> Result<Digest, Error> {
    let root = common_folder(paths);
    let digest = |path: &PathBuf| {
        let mut hasher = blake3::Hasher::new();
        std::fs::File::open(path)
            .and_then(|file| hasher.update_reader(file).map(drop))
            .map_err(|source| Error::Read {
                path: path.clone(),
                source,
            })?;
        Ok((relative_name(path, &root), Digest(hasher.finalize())))
    };
    let named: Result<Vec<_>, Error> = match rayon::ThreadPoolBuilder::new().build() {
        Ok(pool) => pool.install(|| paths.par_iter().map(digest).collect()),
        Err(_) => paths.iter().map(digest).collect(),
    };
    Ok(Digest::of_named(named?))
}

/// The innermost folder that holds all the files.
fn common_folder(paths: &[PathBuf]) -> PathBuf {
    let mut folders = paths
        .iter()
        .map(|path| path.parent().unwrap_or(Path::new("")));
    let Some(first) = folders.next() else {
        return PathBuf::new();
    };
    folders.fold(first.to_owned(), |common, folder| {
        common
            .components()
            .zip(folder.components())
            .take_while(|(a, b)| a == b)
            .map(|(component, _)| component)
            .collect()
    })
}

/// The path from `root` to the file, with `/` between its parts.
fn relative_name(path: &Path, root: &Path) -> String {
    let relative = path.strip_prefix(root).unwrap_or(path);
    let parts: Vec<_> = relative
        .components()
        .map(|part| part.as_os_str().to_string_lossy())
        .collect();
    parts.join("/")
}
