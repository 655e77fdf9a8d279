//! What the end-to-end tests share: the binaries, the tiny preset, scratch stores.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// The repository's root, where the pipeline expects to be started.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("the package lies in the repository")
}

/// A binary of this workspace.
///
/// # Panics
/// If it is not built: binaries of other packages are not built for tests. `cargo xtask ci` builds them.
pub fn binary(name: &str) -> PathBuf {
    let test = std::env::current_exe().expect("a test runs from a file");
    let dir = test
        .parent()
        .and_then(Path::parent)
        .expect("target/release/deps/…");
    let path = dir
        .join(name)
        .with_extension(std::env::consts::EXE_EXTENSION);
    assert!(
        path.exists(),
        "{} is not there: run `cargo build --release --workspace --bins` first",
        path.display()
    );
    path
}

/// A config of the tiny preset.
pub fn tiny(stage: &str) -> PathBuf {
    root()
        .join("tests/presets/tiny")
        .join(stage)
        .with_extension("toml")
}

/// A command of a binary, started in the repository's root, with the store given.
pub fn command(name: &str, store: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(binary(name));
    command
        .current_dir(root())
        .args(args)
        .arg("--store")
        .arg(store);
    command
}

/// Runs a command to its end.
///
/// # Panics
/// If it cannot be started.
pub fn output(mut command: Command) -> Output {
    command
        .output()
        .unwrap_or_else(|error| panic!("cannot start {command:?}: {error}"))
}

/// stdout of a run that must succeed.
///
/// # Panics
/// If it fails; the message holds its stderr.
pub fn stdout(command: Command) -> String {
    let described = format!("{command:?}");
    let output = output(command);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "{described}\n{}\n{stderr}",
        output.status
    );
    String::from_utf8(output.stdout).expect("stdout is UTF-8")
}
