//! Artifacts that are missing, damaged or of another kind, format or search space are refused, with the
//! file, what was expected and found, and what to do.

use std::fs;
use std::path::{Path, PathBuf};

use crate::samples::{self, Sample, for_every_kind};
use artifact::{
    Artifact, Digest, Error, Evaluation, ExitCode, LatencyDataset, LatencyModelArtifact, Report,
    StageError, Store,
};
use serde_json::{Value, json};
use space::SearchSpace;
use tempfile::TempDir;

/// A published sample.
struct Published {
    _scratch: TempDir,
    store: Store,
    dir: PathBuf,
}

impl Published {
    fn new<A: Sample>() -> Self {
        let scratch = tempfile::tempdir().unwrap();
        let store = Store::at(scratch.path());
        let dir = samples::publish::<A>(&store).dir;
        Self {
            _scratch: scratch,
            store,
            dir,
        }
    }

    fn files(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(&self.dir).unwrap();
        entries.map(|entry| entry.unwrap().path()).collect()
    }

    /// Why it does not open; paths shortened to begin at the folder.
    fn refusal<A: Sample>(&self) -> String {
        refusal::<A>(&self.dir)
    }

    /// Changes the manifest as somebody would who also corrects its checksum.
    fn forge(&self, change: impl FnOnce(&mut Value)) {
        let path = self.dir.join("manifest.json");
        let mut manifest: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        change(&mut manifest);
        let checksum = {
            let mut manifest = manifest.clone();
            manifest.as_object_mut().unwrap().remove("checksum");
            Digest::of(manifest.to_string().as_bytes())
        };
        manifest["checksum"] = json!(checksum);
        fs::write(&path, manifest.to_string()).unwrap();
    }
}

fn refusal<A: Sample>(dir: &Path) -> String {
    let error = artifact::open::<A>(dir).unwrap_err();
    assert_eq!(error.exit_code(), ExitCode::Input, "{error}");
    error.to_string().replace(dir.to_str().unwrap(), "DIR")
}

fn is_refused_when_truncated<A: Sample>() {
    let published = Published::new::<A>();
    for path in published.files() {
        let name = path.file_name().unwrap().to_str().unwrap();
        let whole = fs::read(&path).unwrap();
        for n_left in [0, 1, whole.len() / 2, whole.len() - 2] {
            fs::write(&path, &whole[..n_left]).unwrap();
            let text = published.refusal::<A>();
            assert!(
                text.starts_with(&format!("DIR/{name} is damaged: expected "))
                    && text.ends_with("(delete the folder DIR and run the stage again)"),
                "{text}"
            );
        }
        fs::write(&path, whole).unwrap();
    }
    artifact::open::<A>(&published.dir).unwrap();
}

fn is_refused_with_a_flipped_bit<A: Sample>() {
    let published = Published::new::<A>();
    for path in published.files() {
        let name = path.file_name().unwrap().to_str().unwrap();
        let whole = fs::read(&path).unwrap();
        for index in (0..whole.len()).step_by(5) {
            let mut flipped = whole.clone();
            flipped[index] ^= 1 << (index % 8);
            fs::write(&path, flipped).unwrap();
            let text = published.refusal::<A>();
            assert!(
                text.starts_with(&format!("DIR/{name}")),
                "byte {index}: {text}"
            );
        }
        fs::write(&path, whole).unwrap();
    }
    artifact::open::<A>(&published.dir).unwrap();
}

fn is_refused_without_a_file<A: Sample>() {
    let published = Published::new::<A>();
    for path in published.files() {
        let name = path.file_name().unwrap().to_str().unwrap();
        let whole = fs::read(&path).unwrap();
        fs::remove_file(&path).unwrap();
        let text = published.refusal::<A>();
        if name == "manifest.json" {
            // It does not exist, for whoever looks by key; who gives the folder is told why.
            let key = samples::key_parts::<A>().key();
            assert!(!published.store.contains::<A>(&key));
            assert_eq!(published.store.find::<A>(&key).unwrap(), None);
            let kind = A::KIND;
            assert_eq!(
                text,
                format!(
                    "DIR is no {kind}: it has no manifest.json \
                     (run the stage that writes it, or correct the path)"
                )
            );
        } else {
            assert_eq!(
                text,
                format!(
                    "DIR/{name} is damaged: expected {} bytes, found no such file \
                     (delete the folder DIR and run the stage again)",
                    whole.len()
                )
            );
        }
        fs::write(&path, whole).unwrap();
    }
}

#[test]
fn truncated_files_are_refused() {
    for_every_kind!(is_refused_when_truncated());
}

#[test]
fn flipped_bits_are_refused() {
    for_every_kind!(is_refused_with_a_flipped_bit());
}

#[test]
fn missing_files_are_refused() {
    for_every_kind!(is_refused_without_a_file());
}

#[test]
fn what_is_no_folder_is_refused() {
    let scratch = tempfile::tempdir().unwrap();
    assert_eq!(
        refusal::<Report>(&scratch.path().join("nowhere")),
        "DIR is no report: there is no such folder (run the stage that writes it, or correct the path)"
    );
    let file = scratch.path().join("file");
    fs::write(&file, "").unwrap();
    assert_eq!(
        refusal::<Report>(&file),
        "DIR is no report: it is a file, not a folder \
         (run the stage that writes it, or correct the path)"
    );
}

#[test]
fn another_kind_is_refused() {
    assert_eq!(
        Published::new::<LatencyModelArtifact>().refusal::<LatencyDataset>(),
        "DIR holds this: latency-model; expected the folder of a latency-dataset"
    );
}

#[test]
fn another_search_space_is_refused_naming_both() {
    let ours = SearchSpace::darts().fingerprint();
    let theirs = "0123".repeat(16);
    let published = Published::new::<LatencyModelArtifact>();
    published.forge(|manifest| manifest["space_fingerprint"] = json!(theirs));
    assert_eq!(
        published.refusal::<LatencyModelArtifact>(),
        format!(
            "DIR/manifest.json was made for the search space {theirs}, this program knows {ours}: \
             its numbers mean nothing here (run the stages again from profile on)"
        )
    );
}

#[test]
fn formats_that_are_newer_or_of_another_major_version_are_refused() {
    let own = Evaluation::FORMAT;
    for (major, minor) in [(own.major, own.minor + 1), (2, 0), (0, 9)] {
        let published = Published::new::<Evaluation>();
        published.forge(|manifest| manifest["format"] = json!({"major": major, "minor": minor}));
        assert_eq!(
            published.refusal::<Evaluation>(),
            format!(
                "DIR/manifest.json has format {major}.{minor}, this program reads {own} \
                 (run the stage again, or use the version of the program that wrote it)"
            )
        );
    }
}

#[test]
fn another_manifest_version_is_refused() {
    let published = Published::new::<Report>();
    published.forge(|manifest| manifest["manifest_version"] = json!(2));
    assert_eq!(
        published.refusal::<Report>(),
        "DIR/manifest.json: manifest version 2, this program reads 1"
    );
}

#[test]
fn a_manifest_may_say_more_than_this_program_knows() {
    let published = Published::new::<Report>();
    published.forge(|manifest| manifest["remark"] = json!("from a newer program"));
    artifact::open::<Report>(&published.dir).unwrap();
}

#[test]
fn a_changed_manifest_is_refused() {
    let published = Published::new::<Report>();
    let path = published.dir.join("manifest.json");
    let text = fs::read_to_string(&path).unwrap();
    let changed = text.replace("\"seed\": 0", "\"seed\": 1");
    assert_ne!(changed, text);
    fs::write(&path, changed).unwrap();
    let text = published.refusal::<Report>();
    assert!(
        text.starts_with("DIR/manifest.json is damaged: expected checksum "),
        "{text}"
    );
}

#[test]
fn an_artifact_under_anothers_key_is_not_taken_for_it() {
    let published = Published::new::<Report>();
    let mut parts = samples::key_parts::<Report>();
    parts.revision += 1;
    let key = parts.key();
    fs::rename(&published.dir, published.store.dir::<Report>(&key)).unwrap();
    let error = published.store.find::<Report>(&key).unwrap_err();
    assert_eq!(error.exit_code(), ExitCode::Input);
    assert!(
        error
            .to_string()
            .contains(&format!("expected key {key}, found ")),
        "{error}"
    );
}

#[test]
fn content_that_does_not_follow_the_schema_is_refused() {
    let published = Published::new::<LatencyModelArtifact>();
    let path = published.dir.join("model.json");
    let text = fs::read_to_string(&path).unwrap();
    let text = text.replace("\"chosen\"", "\"chozen\"");
    fs::write(&path, &text).unwrap();
    // As a program would that has another idea of the schema.
    published.forge(|manifest| {
        let digest = Digest::of(text.as_bytes());
        manifest["files"]["model.json"]["digest"] = json!(digest);
    });
    let error = artifact::open::<LatencyModelArtifact>(&published.dir).unwrap_err();
    assert!(matches!(error, Error::Malformed { .. }), "{error}");
    assert_eq!(
        published.refusal::<LatencyModelArtifact>(),
        "DIR/model.json: unknown field `chozen`, expected one of `settings`, `metric`, `chosen`, `reason`, \
         `reference_millis`, `n_train`, `n_test` at line 26 column 10"
    );
}
