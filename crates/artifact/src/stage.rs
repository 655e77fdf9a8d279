//! What the five stages have in common: the pipeline's table, arguments, the way from a key to an
//! artifact, exit codes.

use std::fmt;
use std::fs;
use std::io::{self, Write};
use std::num::NonZero;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use thiserror::Error as ThisError;

use crate::config::{self, Ranged};
use crate::digest::KeyParts;
use crate::error::Error;
use crate::format::Kind;
use crate::manifest::{Build, Origin};
use crate::store::{Artifact, Opened, Store};

pub use crate::progress::{Bar, Progress};

/// One stage of the pipeline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StageSpec {
    /// The name of the stage and of its program.
    pub name: &'static str,
    /// The package of the program.
    pub package: &'static str,
    /// Counts the changes of the code after which the same config and inputs give something else; part
    /// of every key.
    pub revision: u32,
    /// What it reads.
    pub inputs: &'static [Kind],
    /// What it writes.
    pub output: Kind,
    /// Whether it computes on the device of `--device`, so that what comes out depends on it.
    pub uses_device: bool,
}

/// Times sampled architectures on this machine.
pub const PROFILE: StageSpec = StageSpec {
    name: "profile",
    package: "stage-profile",
    revision: 11,
    inputs: &[],
    output: Kind::LatencyDataset,
    uses_device: true,
};

/// Fits the latency model.
pub const PREDICTOR: StageSpec = StageSpec {
    name: "predictor",
    package: "stage-predictor",
    revision: 6,
    inputs: &[Kind::LatencyDataset],
    output: Kind::LatencyModel,
    uses_device: false,
};

/// Searches for an architecture.
pub const SEARCH: StageSpec = StageSpec {
    name: "search",
    package: "stage-search",
    revision: 19,
    inputs: &[Kind::LatencyModel],
    output: Kind::SearchResult,
    uses_device: true,
};

/// Trains the found network from scratch, tests it and times it.
pub const EVALUATE: StageSpec = StageSpec {
    name: "evaluate",
    package: "stage-evaluate",
    revision: 18,
    inputs: &[Kind::SearchResult],
    output: Kind::Evaluation,
    uses_device: true,
};

/// Puts everything on one page.
pub const REPORT: StageSpec = StageSpec {
    name: "report",
    package: "stage-report",
    revision: 7,
    inputs: &[
        Kind::LatencyDataset,
        Kind::LatencyModel,
        Kind::SearchResult,
        Kind::SearchResult,
        Kind::Evaluation,
        Kind::Evaluation,
    ],
    output: Kind::Report,
    uses_device: false,
};

/// The pipeline, in the order in which it runs.
pub const PIPELINE: [StageSpec; 5] = [PROFILE, PREDICTOR, SEARCH, EVALUATE, REPORT];

/// How a stage's process ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExitCode {
    /// The artifact is there, whether made now or before.
    Done = 0,
    /// A mistake of the program.
    Bug = 1,
    /// The command line or the config is not right.
    Usage = 2,
    /// An input is missing, unreadable, or of another search space.
    Input = 3,
    /// There is no such device.
    Device = 4,
    /// Numbers went wrong: NaN, divergence.
    Numbers = 5,
    /// Nothing keeps to the target.
    Unreachable = 6,
}

impl From<ExitCode> for std::process::ExitCode {
    fn from(code: ExitCode) -> Self {
        Self::from(code as u8)
    }
}

/// An error that knows how the process ends.
pub trait StageError: std::error::Error {
    /// The exit code.
    fn exit_code(&self) -> ExitCode;
}

/// What a command that is no stage was asked cannot be done, and why.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Refusal {
    code: ExitCode,
    message: String,
}

impl Refusal {
    /// The command line or the config is not right.
    pub fn usage(message: impl fmt::Display) -> Self {
        Self::new(ExitCode::Usage, message)
    }

    /// A refusal that ends the process so.
    pub fn new(code: ExitCode, message: impl fmt::Display) -> Self {
        let message = message.to_string();
        Self { code, message }
    }
}

impl StageError for Refusal {
    fn exit_code(&self) -> ExitCode {
        self.code
    }
}

/// The device of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceSpec {
    /// The processor.
    Cpu,
    /// The CUDA device of that index.
    Cuda(usize),
}

impl fmt::Display for DeviceSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(index) => write!(f, "cuda:{index}"),
        }
    }
}

impl DeviceSpec {
    /// The device that many behind this one; there is but one processor.
    #[must_use]
    pub fn behind(self, offset: usize) -> Self {
        match self {
            Self::Cpu => Self::Cpu,
            Self::Cuda(index) => Self::Cuda(index + offset),
        }
    }

    /// Makes sure that the device is there: the CUDA device's description, `None` for the processor.
    ///
    /// # Errors
    /// If this program was built without CUDA, or if the machine has no such device, [`Error::Device`].
    pub fn find(&self) -> Result<Option<measure::gpu::Gpu>, Error> {
        let Self::Cuda(index) = *self else {
            return Ok(None);
        };
        let missing = |reason| Error::Device {
            device: *self,
            reason,
        };
        if !cfg!(feature = "cuda") {
            return Err(missing(
                "this program was built without CUDA (the feature `cuda`)".to_owned(),
            ));
        }
        measure::gpu::find(index)
            .map(Some)
            .map_err(|error| missing(error.to_string()))
    }
}

impl DeviceSpec {
    /// The fingerprint of what times are taken on: of the machine, and of the GPU if it is one.
    ///
    /// # Errors
    /// As [`find`](Self::find).
    pub fn fingerprint(&self, machine: String) -> Result<String, Error> {
        Ok(match self.find()? {
            Some(gpu) => format!("{machine}, {gpu}"),
            None => machine,
        })
    }
}

/// The text names no device.
#[derive(Clone, Debug, PartialEq, Eq, ThisError)]
#[error("`{0}` is no device; expected cpu, cuda or cuda:N")]
pub struct ParseDeviceError(String);

impl FromStr for DeviceSpec {
    type Err = ParseDeviceError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "cpu" => Some(Self::Cpu),
            "cuda" => Some(Self::Cuda(0)),
            _ => text
                .strip_prefix("cuda:")
                .and_then(|index| index.parse().ok())
                .map(Self::Cuda),
        }
        .ok_or_else(|| ParseDeviceError(text.to_owned()))
    }
}

/// The arguments that every stage has.
#[derive(Clone, Debug, clap::Args)]
pub struct StageArgs {
    /// The stage's config, a TOML file
    #[arg(long, value_name = "FILE")]
    pub config: PathBuf,
    /// Where artifacts are kept
    #[arg(long, value_name = "DIR", default_value = "data/artifacts")]
    pub store: PathBuf,
    /// cpu, cuda or cuda:N
    #[arg(long, default_value = "cpu")]
    pub device: DeviceSpec,
    /// Override a value of the config; of a table, TABLE.KEY=VALUE (may be repeated)
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub overrides: Vec<String>,
    /// Threads to compute with; 0 means all cores
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = parse_threads)]
    pub threads: usize,
    /// Print the key and its parts as JSON, and do nothing else
    #[arg(long)]
    pub key_only: bool,
    /// Print the result as one JSON object
    #[arg(long)]
    pub json: bool,
    /// No progress on standard error
    #[arg(long)]
    pub quiet: bool,
}

/// A number of threads, of which a machine has use for some at most.
fn parse_threads(text: &str) -> Result<usize, String> {
    let n = text
        .parse()
        .map_err(|_| "expected a whole number, 0 for all cores".to_owned())?;
    let n_cores = std::thread::available_parallelism().map_or(1, NonZero::get);
    let most = MOST_THREADS.max(4 * n_cores);
    if n <= most {
        Ok(n)
    } else {
        Err(format!(
            "expected at most {most}, for this machine has {n_cores} cores"
        ))
    }
}

/// Threads that a stage takes on any machine.
const MOST_THREADS: usize = 64;

impl StageArgs {
    /// The config of the file and the overrides; see [`config::load_ranged`].
    ///
    /// # Errors
    /// As [`config::load_ranged`].
    pub fn load_config<C: DeserializeOwned + Ranged>(&self) -> Result<C, Error> {
        Ok(config::load_ranged(&self.config, &self.overrides)?)
    }

    /// Tells some lines on standard error, unless that is to be quiet.
    pub fn tell(&self, lines: &[String]) {
        if !self.quiet {
            let progress = Progress::stderr();
            lines.iter().for_each(|line| progress.line(line));
        }
    }

    /// The number of threads to compute with: all cores where 0 was given.
    pub fn n_threads(&self) -> usize {
        match self.threads {
            0 => std::thread::available_parallelism().map_or(1, NonZero::get),
            n => n,
        }
    }
}

/// What a stage's `check` is asked: whether it would take a config.
#[derive(clap::Args, Debug, Clone)]
pub struct CheckArgs {
    /// The stage's config, a TOML file
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Override a value of the config (may be repeated)
    #[arg(long = "set", value_name = "KEY=VALUE")]
    overrides: Vec<String>,
}

impl CheckArgs {
    /// The config, if it is right.
    ///
    /// # Errors
    /// As [`config::load_ranged`].
    pub fn load<C: DeserializeOwned + Ranged>(&self) -> Result<C, Error> {
        Ok(config::load_ranged(&self.config, &self.overrides)?)
    }

    /// Says on standard output that the config is right, if it is and `also` has nothing against it.
    ///
    /// # Errors
    /// As [`load`](Self::load) and `also`.
    pub fn check<C, E>(&self, also: impl FnOnce(&C) -> Result<(), E>) -> Result<(), E>
    where
        C: DeserializeOwned + Ranged,
        E: From<Error>,
    {
        also(&self.load()?)?;
        Ok(print_line(&format!("{}: right", self.config.display()))?)
    }
}

/// What a stage's library needs besides its config and inputs.
#[derive(Clone)]
pub struct RunContext {
    /// The device that was asked for.
    pub device: DeviceSpec,
    /// Threads to compute with, at least 1.
    pub n_threads: usize,
    /// Where to tell how far the run is.
    pub progress: Progress,
    /// Who may compute while something is timed: nobody.
    pub machine_use: MachineUse,
    /// A folder for checkpoints, which exists. It outlives a run that is killed or fails, so that the next
    /// run with the same key goes on from there, and is removed when the artifact is published.
    pub work_dir: PathBuf,
    /// A folder for what runs with other keys can use as well. It need not exist, and stays.
    pub shared_dir: PathBuf,
    /// What the stage is asked, the device included.
    pub parts: KeyParts,
}

impl RunContext {
    /// A silent run on one thread of the processor, as tests want it.
    pub fn for_tests(work_dir: &Path) -> Self {
        Self {
            device: DeviceSpec::Cpu,
            n_threads: 1,
            progress: Progress::hidden(),
            machine_use: MachineUse::in_store(work_dir, &Progress::hidden()),
            work_dir: work_dir.to_owned(),
            shared_dir: work_dir.join("shared"),
            parts: KeyParts::new(&SEARCH, &Value::Null).expect("null is JSON"),
        }
    }
}

/// Keeps the stages that share a store from disturbing each other's timings: any number of them may
/// compute at once, but who times is alone.
///
/// A lock on the file `.machine.lock` in the store, held by the process, so that it ends with it.
#[derive(Clone)]
pub struct MachineUse {
    path: PathBuf,
    progress: Progress,
}

/// The right to compute or to time; it ends when this is dropped.
#[derive(Debug)]
pub struct MachineGuard {
    _file: fs::File,
}

impl MachineUse {
    fn in_store(root: &Path, progress: &Progress) -> Self {
        Self {
            path: root.join(".machine.lock"),
            progress: progress.clone(),
        }
    }

    /// Waits until nothing is timed, and keeps it so.
    ///
    /// # Errors
    /// If the store cannot be written to, [`Error::Store`].
    pub fn compute(&self) -> Result<MachineGuard, Error> {
        self.lock(fs::File::try_lock_shared, fs::File::lock_shared)
    }

    /// Waits until nobody computes or times, and keeps it so.
    ///
    /// # Errors
    /// As [`compute`](Self::compute).
    pub fn time(&self) -> Result<MachineGuard, Error> {
        self.lock(fs::File::try_lock, fs::File::lock)
    }

    fn lock(
        &self,
        try_to_take: impl FnOnce(&fs::File) -> Result<(), fs::TryLockError>,
        take: impl FnOnce(&fs::File) -> io::Result<()>,
    ) -> Result<MachineGuard, Error> {
        let path = &self.path;
        let guard = || {
            let file = fs::File::options().create(true).append(true).open(path)?;
            if try_to_take(&file).is_err() {
                let store = path.parent().unwrap_or(path).display();
                let line = format!(
                    "waiting until the other stages that use {store} are done: who times is alone"
                );
                self.progress.line(&line);
                take(&file)?;
            }
            io::Result::Ok(MachineGuard { _file: file })
        };
        guard().map_err(|source| Error::Store {
            path: path.clone(),
            source,
        })
    }
}

/// Builds rayon's global thread pool with `n` threads. [`execute`] calls it before a run.
///
/// All numerical work runs on that pool. candle has a second one, for elementwise operations on large
/// tensors, whose idle threads spin; it is held to one thread, so that the two do not compete.
///
/// # Errors
/// If the pool exists already with another number of threads, [`Error::Threads`].
pub fn configure_threads(n: usize) -> Result<(), Error> {
    // SAFETY: called before the run starts a thread; nothing else reads the environment by then.
    unsafe { std::env::set_var("CANDLE_NUM_THREADS", "1") };
    let built = rayon::ThreadPoolBuilder::new()
        .num_threads(n)
        .build_global();
    match (built, rayon::current_num_threads()) {
        (Err(_), running) if running != n => Err(Error::Threads { wanted: n, running }),
        _ => Ok(()),
    }
}

/// From a key to an artifact: prints the key (`--key-only`), or finds the artifact in the store, or runs
/// the stage, on a thread of the pool, and publishes what comes out; then tells what it comes to, prints where it lies, and returns it.
///
/// `machine` describes the machine in the manifest, as far as the stage knows it ([`Value::Null`]);
/// what of it belongs into the key stands in `parts`.
///
/// # Errors
/// What the run returns; or what stands in the way of looking up, publishing and printing.
pub fn execute<A, E>(
    args: &StageArgs,
    parts: KeyParts,
    machine: Value,
    run: impl FnOnce(&RunContext) -> Result<A, E> + Send,
) -> Result<Option<Opened<A>>, E>
where
    A: Artifact + Send,
    E: From<Error> + Send,
{
    // Before anything is looked up: a device that is not there is an error, cached or not.
    let parts = match args.device.find()? {
        Some(gpu) if uses_device(&parts.stage) => parts.gpu(&gpu.to_string()),
        _ => parts,
    };
    let key = parts.key();
    let store = Store::at(&args.store);
    if args.key_only {
        let answer = json!({
            "stage": parts.stage,
            "key": key,
            "path": store.dir::<A>(&key),
            "cached": store.contains::<A>(&key),
            "parts": parts,
        });
        print_line(&answer.to_string())?;
        return Ok(None);
    }
    if let Some(found) = store.find::<A>(&key)? {
        // Of a process that was killed just before it removed this.
        let _ = fs::remove_dir_all(store.work_dir::<A>(&key));
        announce(&found, args, true)?;
        return Ok(Some(found));
    }

    let store = Store::open(&args.store)?;
    let n_threads = args.n_threads();
    configure_threads(n_threads)?;
    let progress = if args.quiet {
        Progress::hidden()
    } else {
        Progress::stderr()
    };
    let work_dir = store.work_dir::<A>(&key);
    let working = Working::in_folder(&work_dir, &progress)?;
    // Another process may have made it meanwhile.
    if let Some(found) = store.find::<A>(&key)? {
        working.leave();
        announce(&found, args, true)?;
        return Ok(Some(found));
    }
    let machine_use = MachineUse::in_store(&args.store, &progress);
    let context = RunContext {
        device: args.device,
        n_threads,
        progress,
        machine_use,
        work_dir,
        shared_dir: store.shared_dir::<A>(),
        parts: parts.clone(),
    };

    let started_unix_secs = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |d| d.as_secs());
    let clock = Instant::now();
    // On a thread of the pool: every hand-over from another one costs.
    let value = match rayon::scope(|_| run(&context)) {
        Ok(value) => value,
        Err(error) => {
            working.leave();
            return Err(error);
        }
    };
    let origin = Origin {
        device: args.device.to_string(),
        n_threads,
        machine,
        build: Build::current(),
        started_unix_secs,
        elapsed_secs: clock.elapsed().as_secs_f64(),
    };
    let published = match store.publish(parts, origin, value) {
        Ok(published) => published,
        Err(error) => {
            working.leave();
            return Err(error.into());
        }
    };
    announce(&published, args, false)?;
    Ok(Some(published))
}

/// The working folder of a run, which no other process has: one that is asked for the same waits for this one.
struct Working {
    dir: PathBuf,
    lock: PathBuf,
    _file: fs::File,
}

impl Working {
    /// Makes the folder if need be, and waits until nobody else works in it.
    fn in_folder(dir: &Path, progress: &Progress) -> Result<Self, Error> {
        let lock = dir.join(".lock");
        let take = || {
            fs::create_dir_all(dir)?;
            let file = fs::File::options().create(true).append(true).open(&lock)?;
            if file.try_lock().is_err() {
                progress.line("waiting for another process that makes the same");
                file.lock()?;
            }
            // Whoever had it may have removed it, and another may have made one since.
            let is_there = is_at(&file, &lock)?;
            io::Result::Ok((file, is_there))
        };
        // The folder may be removed at any moment until it is locked.
        let was_removed = |error: &io::Error| {
            let kinds = [io::ErrorKind::NotFound, io::ErrorKind::AlreadyExists];
            kinds.contains(&error.kind())
                && dir.parent().is_some_and(Path::is_dir)
                && !dir.is_file()
        };
        loop {
            match take() {
                Ok((file, true)) => {
                    return Ok(Self {
                        dir: dir.to_owned(),
                        lock,
                        _file: file,
                    });
                }
                Err(source) if !was_removed(&source) => {
                    return Err(Error::Store {
                        path: dir.to_owned(),
                        source,
                    });
                }
                _ => {}
            }
        }
    }

    /// Ends without an artifact: checkpoints stay for the next run; without any, nothing stays.
    fn leave(self) {
        let _ = fs::remove_file(&self.lock);
        // Removes empty folders only.
        let _ = fs::remove_dir(&self.dir);
    }
}

/// Whether an open file is the one at a path.
#[cfg(unix)]
fn is_at(file: &fs::File, path: &Path) -> io::Result<bool> {
    use std::os::unix::fs::MetadataExt;
    let (own, there) = (file.metadata()?, fs::metadata(path)?);
    Ok((own.dev(), own.ino()) == (there.dev(), there.ino()))
}

/// Whether there is a file at a path, where it cannot be told which.
#[cfg(not(unix))]
fn is_at(_: &fs::File, path: &Path) -> io::Result<bool> {
    Ok(path.exists())
}

/// Takes part in a run whose first process calls [`execute`] with the same arguments: with that process's working
/// folder, silent, and without a result of its own. Does nothing if the artifact is there already.
///
/// # Errors
/// What the run returns; or what stands in the way of looking up.
pub fn follow<A, E>(
    args: &StageArgs,
    parts: KeyParts,
    run: impl FnOnce(&RunContext) -> Result<(), E> + Send,
) -> Result<(), E>
where
    A: Artifact,
    E: From<Error> + Send,
{
    let parts = match args.device.find()? {
        Some(gpu) if uses_device(&parts.stage) => parts.gpu(&gpu.to_string()),
        _ => parts,
    };
    let key = parts.key();
    let store = Store::open(&args.store)?;
    if args.key_only || store.contains::<A>(&key) {
        return Ok(());
    }
    let n_threads = args.n_threads();
    configure_threads(n_threads)?;
    let context = RunContext {
        device: args.device,
        n_threads,
        progress: Progress::hidden(),
        machine_use: MachineUse::in_store(&args.store, &Progress::hidden()),
        work_dir: store.work_dir::<A>(&key),
        shared_dir: store.shared_dir::<A>(),
        parts,
    };
    rayon::scope(|_| run(&context))
}

fn uses_device(stage: &str) -> bool {
    PIPELINE
        .iter()
        .any(|spec| spec.name == stage && spec.uses_device)
}

/// Tells what an artifact comes to, on standard error, and prints where it lies: its folder, or with `--json` one object.
///
/// # Errors
/// If standard output does not take it, [`Error::Stdout`].
pub fn announce<A: Artifact>(
    artifact: &Opened<A>,
    args: &StageArgs,
    cached: bool,
) -> Result<(), Error> {
    #[derive(Serialize)]
    struct Answer<'a> {
        kind: Kind,
        key: crate::Key,
        digest: crate::Digest,
        path: &'a Path,
        cached: bool,
    }
    let Opened {
        manifest,
        dir,
        value,
    } = artifact;
    args.tell(&value.headlines());
    if args.json {
        let (kind, key, digest) = (manifest.kind, manifest.key, manifest.digest);
        let answer = Answer {
            kind,
            key,
            digest,
            path: dir,
            cached,
        };
        print_line(
            &serde_json::to_string(&answer).map_err(|error| Error::Encode {
                file: "the answer".to_owned(),
                reason: error.to_string(),
            })?,
        )
    } else {
        print_line(&dir.display().to_string())
    }
}

/// Prints the result of a command on standard output.
///
/// # Errors
/// If standard output is closed.
pub fn print_line(line: &str) -> Result<(), Error> {
    let mut stdout = io::stdout().lock();
    writeln!(stdout, "{line}")
        .and_then(|()| stdout.flush())
        .map_err(Error::Stdout)
}

/// The body of a stage's `main`: runs it, prints its error, and says how the process ends. A panic is a
/// bug, and ends it so.
pub fn main<E: StageError>(run: impl FnOnce() -> Result<(), E>) -> std::process::ExitCode {
    match catch_unwind(AssertUnwindSafe(run)) {
        Ok(Ok(())) => ExitCode::Done.into(),
        Ok(Err(error)) => report_error(&error),
        Err(_) => ExitCode::Bug.into(),
    }
}

/// Prints an error and what led to it on standard error, and says how the process ends.
pub fn report_error(error: &dyn StageError) -> std::process::ExitCode {
    eprintln!("error: {}", chain(error));
    error.exit_code().into()
}

/// The texts of an error and its sources; a source that its error already quotes is left out.
fn chain(error: &(impl StageError + ?Sized)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let cause = error.to_string();
        if !text.contains(&cause) {
            text += &format!(": {cause}");
        }
        source = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn a_folder_is_worked_in_by_one_at_a_time() {
        let store = tempfile::tempdir().unwrap();
        let dir = store.path().join("key.work");
        let n_inside = AtomicUsize::new(0);
        let work = || {
            for _ in 0..200 {
                let working = Working::in_folder(&dir, &Progress::hidden()).unwrap();
                assert_eq!(n_inside.fetch_add(1, Ordering::SeqCst), 0);
                std::thread::yield_now();
                n_inside.fetch_sub(1, Ordering::SeqCst);
                working.leave();
            }
        };
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(work);
            }
        });
        assert!(!dir.exists());
    }
}
