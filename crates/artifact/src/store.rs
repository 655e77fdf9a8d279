//! Where artifacts lie: found by key, published in one step, checked when opened.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use space::SearchSpace;

use crate::digest::{Digest, Key, KeyParts};
use crate::disk;
use crate::error::Error;
use crate::files::Files;
use crate::format::{FormatVersion, Kind};
use crate::manifest::{self, Manifest, Origin};

/// A kind of artifact: a value that is some files.
pub trait Artifact: Sized {
    /// Its kind.
    const KIND: Kind;
    /// The version of the files that [`to_files`](Self::to_files) makes.
    const FORMAT: FormatVersion;

    /// The files: the same bytes for the same value.
    ///
    /// # Errors
    /// If a number is NaN or infinite, [`Error::NonFinite`].
    fn to_files(&self) -> Result<Files, Error>;

    /// The value of files whose digests are right and whose format this program reads.
    ///
    /// # Errors
    /// If their content does not follow the schema, [`Error::Malformed`].
    fn from_files(files: &Files) -> Result<Self, Error>;

    /// What it comes to, in a few lines for whoever asked for it.
    fn headlines(&self) -> Vec<String> {
        Vec::new()
    }
}

/// An artifact that lies in a folder.
#[derive(Clone, Debug, PartialEq)]
pub struct Opened<A> {
    /// What it holds.
    pub value: A,
    /// Where it comes from.
    pub manifest: Manifest,
    /// Where it lies.
    pub dir: PathBuf,
}

impl<A> Opened<A> {
    /// The digest of what it holds: what an artifact that is made of it has in its key.
    pub fn digest(&self) -> Digest {
        self.manifest.digest
    }
}

/// Opens the artifact of a folder: checks its kind, its search space, its format and every file.
///
/// # Errors
/// Each names the file, what was expected and found, and what to do about it.
pub fn open<A: Artifact>(dir: impl AsRef<Path>) -> Result<Opened<A>, Error> {
    let dir = dir.as_ref();
    let path = dir.join(manifest::FILE);
    let missing = |what| Error::Missing {
        dir: dir.to_owned(),
        kind: A::KIND,
        what,
    };
    let bytes = match fs::read(&path) {
        Ok(bytes) => bytes,
        Err(_) if !dir.exists() => return Err(missing("there is no such folder")),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(missing("it has no manifest.json"));
        }
        Err(error) if error.kind() == io::ErrorKind::NotADirectory => {
            return Err(missing("it is a file, not a folder"));
        }
        Err(source) => return Err(Error::Read { path, source }),
    };
    let manifest = Manifest::from_bytes(&path, &bytes)?;
    if manifest.kind != A::KIND {
        let (expected, found) = (A::KIND, manifest.kind);
        return Err(Error::Kind {
            dir: dir.to_owned(),
            expected,
            found,
        });
    }
    let expected = SearchSpace::darts().fingerprint();
    if manifest.space_fingerprint != expected {
        return Err(Error::Space {
            path,
            expected,
            found: manifest.space_fingerprint,
        });
    }
    if !A::FORMAT.can_read(manifest.format) {
        return Err(Error::Format {
            path,
            expected: A::FORMAT,
            found: manifest.format,
        });
    }
    let mut contents = BTreeMap::new();
    for (name, entry) in &manifest.files {
        let file = dir.join(name);
        let damaged = |expected: String, found: String| {
            Err(Error::Damaged {
                file: file.clone(),
                expected,
                found,
                dir: dir.to_owned(),
            })
        };
        let bytes = match fs::read(&file) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return damaged(
                    format!("{} bytes", entry.n_bytes),
                    "no such file".to_owned(),
                );
            }
            Err(source) => return Err(Error::Read { path: file, source }),
        };
        if bytes.len() as u64 != entry.n_bytes {
            return damaged(format!("{} bytes", entry.n_bytes), bytes.len().to_string());
        }
        let digest = Digest::of(&bytes);
        if digest != entry.digest {
            return damaged(format!("digest {}", entry.digest.short()), digest.short());
        }
        contents.insert(name.clone(), bytes);
    }
    let value = A::from_files(&Files::in_folder(dir, contents))?;
    Ok(Opened {
        value,
        manifest,
        dir: dir.to_owned(),
    })
}

/// A folder of artifacts: `<root>/<kind>-v<major>/<first 12 digits of the key>/`.
#[derive(Clone, Debug)]
pub struct Store {
    root: PathBuf,
}

impl Store {
    /// The store in a folder, which need not exist: to look for artifacts, and write nothing.
    pub fn at(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// The store in a folder, which is made, and tried whether it can be written to.
    ///
    /// # Errors
    /// If it cannot, [`Error::Store`].
    pub fn open(root: impl Into<PathBuf>) -> Result<Self, Error> {
        let store = Self::at(root);
        fs::create_dir_all(&store.root)
            .and_then(|()| tempfile::tempfile_in(&store.root).map(drop))
            .map_err(|source| Error::Store {
                path: store.root.clone(),
                source,
            })?;
        Ok(store)
    }

    /// The folder of the artifact of that key, whether or not it exists.
    pub fn dir<A: Artifact>(&self, key: &Key) -> PathBuf {
        self.kind_dir::<A>().join(key.folder())
    }

    fn kind_dir<A: Artifact>(&self) -> PathBuf {
        self.root.join(format!("{}-v{}", A::KIND, A::FORMAT.major))
    }

    /// The folder for what a stage keeps while the artifact of that key is not finished: beside the
    /// artifact-to-be, and removed when that is published.
    pub fn work_dir<A: Artifact>(&self, key: &Key) -> PathBuf {
        self.kind_dir::<A>().join(format!("{}.work", key.folder()))
    }

    /// The folder for what a stage keeps for runs with other keys.
    pub fn shared_dir<A: Artifact>(&self) -> PathBuf {
        self.kind_dir::<A>().join("shared")
    }

    /// Whether the store has an artifact of that key; it is not opened.
    pub fn contains<A: Artifact>(&self, key: &Key) -> bool {
        self.dir::<A>(key).join(manifest::FILE).is_file()
    }

    /// The artifact of that key, if there is one.
    ///
    /// # Errors
    /// If there is one that cannot be opened, as in [`open`].
    pub fn find<A: Artifact>(&self, key: &Key) -> Result<Option<Opened<A>>, Error> {
        if !self.contains::<A>(key) {
            return Ok(None);
        }
        let opened = open::<A>(self.dir::<A>(key))?;
        if opened.manifest.key != *key {
            return Err(Error::Damaged {
                file: opened.dir.join(manifest::FILE),
                expected: format!("key {key}"),
                found: opened.manifest.key.to_string(),
                dir: opened.dir,
            });
        }
        Ok(Some(opened))
    }

    /// Puts an artifact into the store in one step: written aside, to the disk, renamed. If another
    /// process was faster, its artifact stays and is opened.
    ///
    /// # Errors
    /// If a number of the value is NaN or infinite, or if the store cannot be written to; the store is
    /// then as it was.
    pub fn publish<A: Artifact>(
        &self,
        key_parts: KeyParts,
        origin: Origin,
        value: A,
    ) -> Result<Opened<A>, Error> {
        let files = value.to_files()?;
        let manifest = Manifest::new::<A>(key_parts, origin, &files);
        let dir = self.dir::<A>(&manifest.key);
        let failed = |source| Error::Store {
            path: dir.clone(),
            source,
        };
        let published = self
            .write_folder::<A>(&dir, &files, &manifest)
            .map_err(failed)?;
        // Whether or not that goes: the artifact is there, and whoever is asked for it next tries again.
        let _ = fs::remove_dir_all(self.work_dir::<A>(&manifest.key));
        if published {
            Ok(Opened {
                value,
                manifest,
                dir,
            })
        } else {
            open(dir)
        }
    }

    /// Whether this folder, and not that of a faster process, is there now.
    fn write_folder<A: Artifact>(
        &self,
        dir: &Path,
        files: &Files,
        manifest: &Manifest,
    ) -> io::Result<bool> {
        let parent = self.kind_dir::<A>();
        fs::create_dir_all(&parent)?;
        let aside = disk::folder_aside(&parent)?;
        for (name, bytes) in files.iter() {
            disk::write_synced(&aside.path().join(name), bytes)?;
        }
        disk::write_synced(&aside.path().join(manifest::FILE), &manifest.to_bytes())?;
        disk::sync_folder(aside.path())?;
        if dir.exists() && !dir.join(manifest::FILE).exists() {
            // A folder without a manifest does not count, and is in the way.
            fs::remove_dir_all(dir)?;
        }
        match fs::rename(aside.path(), dir) {
            Ok(()) => {
                // The folder is no longer there to be cleaned up.
                let _ = aside.keep();
                disk::sync_folder(&parent)?;
                Ok(true)
            }
            Err(_) if dir.join(manifest::FILE).exists() => Ok(false),
            Err(error) => Err(error),
        }
    }
}
