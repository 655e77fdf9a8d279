//! Programs as their users see them: what they print and how they end. For the tests of command lines, so everything here
//! panics where a test would fail.

use std::fs;
use std::path::Path;
use std::process::Command;

/// What a program answered.
#[derive(Debug)]
pub struct Answer {
    /// The exit code.
    pub code: i32,
    /// What it said.
    pub stdout: String,
    /// What it said besides: progress, errors.
    pub stderr: String,
}

impl Answer {
    /// Runs a command to its end.
    ///
    /// # Panics
    /// If it cannot be started, is killed, or says what is no text.
    #[track_caller]
    pub fn of(command: &mut Command) -> Self {
        let output = command.output().expect("the program starts");
        let text = |bytes| String::from_utf8(bytes).expect("text");
        Self {
            code: output.status.code().expect("nobody killed it"),
            stdout: text(output.stdout),
            stderr: text(output.stderr),
        }
    }

    /// Asserts that the program failed with that code, answered nothing and said all of these.
    ///
    /// # Panics
    /// If it did not.
    #[track_caller]
    pub fn failed(&self, code: i32, says: &[&str]) {
        assert_eq!(self.code, code, "{}", self.stderr);
        assert_eq!(self.stdout, "");
        for text in says {
            assert!(
                self.stderr.contains(text),
                "`{text}` is not in\n{}",
                self.stderr
            );
        }
    }

    /// Asserts that the program did what it was asked to; its answer without the end of the line.
    ///
    /// # Panics
    /// If it did not.
    #[track_caller]
    pub fn done(&self) -> &str {
        assert_eq!(self.code, 0, "{}", self.stderr);
        self.stdout.trim_end()
    }

    /// The answer as JSON.
    ///
    /// # Panics
    /// If the program failed or its answer is no JSON.
    #[track_caller]
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(self.done()).expect("JSON")
    }
}

/// A path as an argument.
///
/// # Panics
/// If it is no text.
pub fn text(path: &Path) -> &str {
    path.to_str().expect("text")
}

/// Asserts that a store holds no file but the lock of the machine. One that is not there holds nothing.
///
/// # Panics
/// If it does, or if a folder in it cannot be read.
#[track_caller]
pub fn assert_nothing_stored(store: &Path) {
    let mut folders = Vec::from_iter(store.exists().then(|| store.to_owned()));
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).expect("a folder that can be read") {
            let path = entry.expect("a folder that can be read").path();
            assert!(path.is_dir() || path.ends_with(".machine.lock"), "{path:?}");
            if path.is_dir() {
                folders.push(path);
            }
        }
    }
}
