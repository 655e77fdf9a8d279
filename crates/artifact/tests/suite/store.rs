//! The store: found by key, published once, left as it was by whoever fails.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Barrier;

use crate::samples::{self, Sample};
use artifact::{Artifact, Error, Evaluation, ExitCode, Report, StageError, Store};

/// Everything below a folder.
fn tree(root: &Path) -> Vec<PathBuf> {
    let mut paths = Vec::new();
    for entry in fs::read_dir(root).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            paths.extend(tree(&path));
        }
        paths.push(path);
    }
    paths.sort();
    paths
}

#[test]
fn what_is_published_is_found_by_its_key() {
    let scratch = tempfile::tempdir().unwrap();
    let store = Store::open(scratch.path().join("deep/store")).unwrap();
    let key = samples::key_parts::<Report>().key();
    assert_eq!(store.find::<Report>(&key).unwrap(), None);
    let published = samples::publish::<Report>(&store);
    assert_eq!(published.manifest.key, key);
    assert_eq!(store.find::<Report>(&key).unwrap(), Some(published.clone()));
    assert!(store.contains::<Report>(&key));
    assert_eq!(
        published.dir,
        scratch
            .path()
            .join("deep/store/report-v1")
            .join(&key.to_string()[..12])
    );
    // Another kind's artifact of that key is another one.
    assert_eq!(store.find::<Evaluation>(&key).unwrap(), None);
}

#[test]
fn looking_writes_nothing() {
    let scratch = tempfile::tempdir().unwrap();
    let store = Store::at(scratch.path().join("store"));
    let key = samples::key_parts::<Report>().key();
    assert_eq!(store.find::<Report>(&key).unwrap(), None);
    assert_eq!(tree(scratch.path()), Vec::<PathBuf>::new());
}

#[test]
fn nothing_but_the_artifact_is_left() {
    let scratch = tempfile::tempdir().unwrap();
    let store = Store::open(scratch.path()).unwrap();
    let key = samples::key_parts::<Report>().key();
    let work_dir = store.work_dir::<Report>(&key);
    fs::create_dir_all(&work_dir).unwrap();
    fs::write(work_dir.join("checkpoint"), "half").unwrap();
    let dir = samples::publish::<Report>(&store).dir;
    let expected = [
        scratch.path().join("report-v1"),
        dir.clone(),
        dir.join("manifest.json"),
        dir.join("report.html"),
    ];
    assert_eq!(tree(scratch.path()), expected);
}

#[test]
fn a_failed_publication_leaves_the_store_as_it_was() {
    let scratch = tempfile::tempdir().unwrap();
    let store = Store::open(scratch.path()).unwrap();
    let evaluation = Evaluation {
        test_loss: f64::NAN,
        ..Evaluation::sample()
    };
    let parts = samples::key_parts::<Evaluation>();
    let error = store
        .publish(parts, samples::origin(), evaluation)
        .unwrap_err();
    assert_eq!(error.exit_code(), ExitCode::Numbers);
    assert_eq!(tree(scratch.path()), Vec::<PathBuf>::new());
}

#[test]
fn of_two_publications_of_one_key_the_first_stays() {
    let scratch = tempfile::tempdir().unwrap();
    let store = Store::open(scratch.path()).unwrap();
    let first = samples::publish::<Report>(&store);
    let other = Report {
        html: "<p>later</p>".to_owned(),
    };
    let second = store
        .publish(samples::key_parts::<Report>(), samples::origin(), other)
        .unwrap();
    assert_eq!(second, first);
}

#[test]
fn many_may_publish_one_key_at_once() {
    const N: usize = 8;
    let scratch = tempfile::tempdir().unwrap();
    let store = Store::open(scratch.path()).unwrap();
    let barrier = Barrier::new(N);
    let publish = |index: usize| {
        let report = Report {
            html: format!("<p>{index}</p>"),
        };
        barrier.wait();
        store.publish(samples::key_parts::<Report>(), samples::origin(), report)
    };
    let published = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..N)
            .map(|index| scope.spawn(move || publish(index)))
            .collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap().unwrap())
            .collect::<Vec<_>>()
    });
    for opened in &published {
        assert_eq!(opened, &published[0]);
    }
    let dir = &published[0].dir;
    assert_eq!(artifact::open::<Report>(dir).unwrap(), published[0]);
    assert_eq!(tree(scratch.path()).len(), 4, "{:?}", tree(scratch.path()));
}

#[test]
fn a_folder_without_a_manifest_is_not_in_the_way() {
    let scratch = tempfile::tempdir().unwrap();
    let store = Store::open(scratch.path()).unwrap();
    let dir = store.dir::<Report>(&samples::key_parts::<Report>().key());
    fs::create_dir_all(&dir).unwrap();
    fs::write(dir.join("report.html"), "half").unwrap();
    samples::publish::<Report>(&store);
    assert_eq!(
        artifact::open::<Report>(&dir).unwrap().value,
        Report::sample()
    );
}

#[test]
fn a_store_that_cannot_be_made_is_a_mistake_of_usage() {
    let scratch = tempfile::tempdir().unwrap();
    let file = scratch.path().join("file");
    fs::write(&file, "").unwrap();
    for root in [file.clone(), file.join("store")] {
        let error = Store::open(&root).unwrap_err();
        assert!(matches!(error, Error::Store { .. }), "{error}");
        assert_eq!(error.exit_code(), ExitCode::Usage);
        assert_eq!(
            error.to_string(),
            format!(
                "cannot write to the store {} \
                 (free the place, or name another folder with --store)",
                root.display()
            )
        );
    }
    // Publishing without a look before says the same.
    let error = Store::at(&file)
        .publish(
            samples::key_parts::<Report>(),
            samples::origin(),
            Report::sample(),
        )
        .unwrap_err();
    assert_eq!(error.exit_code(), ExitCode::Usage);
    assert_eq!(fs::read(&file).unwrap(), b"");
}

#[cfg(unix)]
#[test]
fn artifacts_are_as_readable_as_other_folders() {
    use std::os::unix::fs::PermissionsExt;
    let scratch = tempfile::tempdir().unwrap();
    let plain = scratch.path().join("plain");
    fs::create_dir(&plain).unwrap();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode();
    let published = samples::publish::<Report>(&Store::at(scratch.path().join("store")));
    assert_eq!(mode(&published.dir), mode(&plain));
    assert_eq!(published.manifest.kind, Report::KIND);
}
