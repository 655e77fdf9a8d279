//! The data files of one artifact, in memory on their way to or from the disk.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::digest::Digest;
use crate::error::Error;
use crate::json;
use crate::store::Artifact;
use crate::table::{Columns, Table};
use crate::tensors::{self, FloatTensor, FloatTensors};

/// The data files of one artifact by name; everything but the manifest.
#[derive(Debug, Default)]
pub struct Files {
    /// Where they lie; empty before they do.
    dir: PathBuf,
    contents: BTreeMap<String, Vec<u8>>,
}

impl Files {
    /// Files that lie in a folder.
    pub(crate) fn in_folder(dir: &Path, contents: BTreeMap<String, Vec<u8>>) -> Self {
        Self {
            dir: dir.to_owned(),
            contents,
        }
    }

    /// The name and content of each file, sorted by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &[u8])> {
        self.contents
            .iter()
            .map(|(name, bytes)| (name.as_str(), bytes.as_slice()))
    }

    /// The digest of all: of each name with the digest of its file.
    pub fn digest(&self) -> Digest {
        Digest::of_named(
            self.iter()
                .map(|(name, bytes)| (name.to_owned(), Digest::of(bytes))),
        )
    }

    pub(crate) fn put_text(&mut self, name: &str, text: &str) {
        self.put(name, text.as_bytes().to_vec());
    }

    /// Adds a record as JSON, after a look at whether it will be the same when it is read.
    pub(crate) fn put_json<T>(&mut self, name: &str, value: &T) -> Result<(), Error>
    where
        T: Serialize + DeserializeOwned + PartialEq,
    {
        let bytes = json::pretty(value).map_err(|error| Error::Encode {
            file: name.to_owned(),
            reason: error.to_string(),
        })?;
        match serde_json::from_slice::<T>(&bytes) {
            Ok(back) if back == *value => self.put(name, bytes),
            // JSON has no NaN: serde_json writes null, which is no number, or no longer the same.
            Ok(_) => {
                let what = format!("{name}: an optional number");
                return Err(Error::NonFinite { what });
            }
            Err(error) => {
                let text = String::from_utf8_lossy(&bytes);
                let line = text
                    .lines()
                    .nth(error.line().saturating_sub(1))
                    .unwrap_or_default();
                return Err(match line.split_once(": null") {
                    Some((field, _)) => Error::NonFinite {
                        what: format!("{name}: {}", field.trim().trim_matches('"')),
                    },
                    None => Error::Encode {
                        file: name.to_owned(),
                        reason: error.to_string(),
                    },
                });
            }
        }
        Ok(())
    }

    pub(crate) fn put_tensors(&mut self, name: &str, tensors: &FloatTensors) -> Result<(), Error> {
        for (tensor, FloatTensor { values, .. }) in tensors {
            if values.iter().any(|value| !value.is_finite()) {
                return Err(Error::NonFinite {
                    what: format!("{name}: tensor {tensor}"),
                });
            }
        }
        let bytes = tensors::encode(tensors, None).map_err(|reason| Error::Encode {
            file: name.to_owned(),
            reason,
        })?;
        self.put(name, bytes);
        Ok(())
    }

    /// Adds a table, with the settings of its latencies in the metadata.
    pub(crate) fn put_table<A: Artifact>(
        &mut self,
        name: &str,
        columns: Columns,
        settings: Option<String>,
    ) -> Result<(), Error> {
        let bytes = columns.encode::<A>(name, settings)?;
        self.put(name, bytes);
        Ok(())
    }

    pub(crate) fn put(&mut self, name: &str, bytes: Vec<u8>) {
        self.contents.insert(name.to_owned(), bytes);
    }

    pub(crate) fn text(&self, name: &str) -> Result<String, Error> {
        let bytes = self.get(name)?.to_vec();
        String::from_utf8(bytes).map_err(|error| self.malformed(name, error.to_string()))
    }

    pub(crate) fn json<T: DeserializeOwned>(&self, name: &str) -> Result<T, Error> {
        serde_json::from_slice(self.get(name)?)
            .map_err(|error| self.malformed(name, error.to_string()))
    }

    pub(crate) fn tensors(&self, name: &str) -> Result<FloatTensors, Error> {
        tensors::decode(self.get(name)?).map_err(|reason| self.malformed(name, reason))
    }

    pub(crate) fn table<A: Artifact>(&self, name: &str) -> Result<Table, Error> {
        Table::decode::<A>(&self.dir.join(name), self.get(name)?.to_vec())
    }

    pub(crate) fn get(&self, name: &str) -> Result<&[u8], Error> {
        self.contents
            .get(name)
            .map(Vec::as_slice)
            .ok_or_else(|| self.malformed(name, "the manifest lists no such file".to_owned()))
    }

    pub(crate) fn malformed(&self, name: &str, reason: String) -> Error {
        Error::Malformed {
            file: self.dir.join(name),
            reason,
        }
    }
}
