//! From a key to an artifact.

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::samples::{self, Sample};
use artifact::stage::{self, RunContext, StageArgs};
use artifact::{Checkpoint, Error, Evaluation, ExitCode, Report, StageError, Store};
use clap::Parser;
use serde_json::{Value, json};

#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    args: StageArgs,
}

fn args(store: &Path, more: &[&str]) -> StageArgs {
    let store = store.to_str().unwrap();
    let args = [
        "report",
        "--config",
        "report.toml",
        "--store",
        store,
        "--quiet",
    ];
    Cli::parse_from(args.iter().chain(more)).args
}

fn execute(
    args: &StageArgs,
    run: impl FnOnce(&RunContext) -> Result<Report, Error> + Send,
) -> Result<(), Error> {
    let machine = json!({"cpu_model": "a processor"});
    stage::execute(args, samples::key_parts::<Report>(), machine, run).map(drop)
}

#[test]
fn a_stage_runs_once() {
    let scratch = tempfile::tempdir().unwrap();
    let args = args(scratch.path(), &[]);
    let n_runs = AtomicUsize::new(0);
    let run = |context: &RunContext| {
        n_runs.fetch_add(1, Ordering::Relaxed);
        assert!(context.work_dir.is_dir());
        assert_eq!(context.n_threads, args.n_threads());
        Ok(Report::sample())
    };
    for _ in 0..3 {
        execute(&args, run).unwrap();
    }
    assert_eq!(n_runs.into_inner(), 1);
    let key = samples::key_parts::<Report>().key();
    let found = Store::at(scratch.path())
        .find::<Report>(&key)
        .unwrap()
        .unwrap();
    assert_eq!(found.manifest.origin.machine["cpu_model"], "a processor");
    assert_eq!(found.manifest.origin.device, "cpu");
    assert_eq!(found.manifest.key_parts, samples::key_parts::<Report>());
}

#[test]
fn asking_for_the_key_does_nothing() {
    let scratch = tempfile::tempdir().unwrap();
    let store = scratch.path().join("store");
    execute(&args(&store, &["--key-only"]), |_| {
        unreachable!("it must not run")
    })
    .unwrap();
    assert!(!store.exists());
}

#[test]
fn a_damaged_answer_is_neither_taken_nor_replaced() {
    let scratch = tempfile::tempdir().unwrap();
    let args = args(scratch.path(), &[]);
    let dir = samples::publish::<Report>(&Store::at(scratch.path())).dir;
    fs::write(dir.join("report.html"), "<p>other</p>").unwrap();
    let error = execute(&args, |_| unreachable!("it must not run")).unwrap_err();
    assert_eq!(error.exit_code(), ExitCode::Input);
    assert!(
        error.to_string().ends_with(&format!(
            "(delete the folder {} and run the stage again)",
            dir.display()
        )),
        "{error}"
    );
    // The remedy works.
    fs::remove_dir_all(&dir).unwrap();
    execute(&args, |_| Ok(Report::sample())).unwrap();
}

#[test]
fn checkpoints_outlive_a_failure_and_end_with_success() {
    let scratch = tempfile::tempdir().unwrap();
    let args = args(scratch.path(), &[]);
    let checkpoint = Checkpoint {
        meta: json!({"epoch": 1}),
        tensors: Default::default(),
    };
    let failure = || Error::NonFinite {
        what: "the loss".to_owned(),
    };
    let mut work_dir = None;
    execute(&args, |context| {
        work_dir = Some(context.work_dir.clone());
        checkpoint.save(&context.work_dir.join("checkpoint"))?;
        Err(failure())
    })
    .unwrap_err();
    let work_dir = work_dir.unwrap();
    execute(&args, |context| {
        assert_eq!(context.work_dir, work_dir);
        let found = Checkpoint::load(&context.work_dir.join("checkpoint"))?;
        assert_eq!(found.as_ref(), Some(&checkpoint));
        Ok(Report::sample())
    })
    .unwrap();
    assert!(!work_dir.exists());
}

#[test]
fn a_failure_without_a_checkpoint_leaves_nothing() {
    let scratch = tempfile::tempdir().unwrap();
    let args = args(scratch.path(), &[]);
    let error = execute(&args, |_| {
        Err(Error::NonFinite {
            what: "the loss".to_owned(),
        })
    })
    .unwrap_err();
    assert_eq!(error.exit_code(), ExitCode::Numbers);
    let left: Vec<_> = fs::read_dir(scratch.path().join("report-v1"))
        .unwrap()
        .collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn a_result_that_is_none_is_not_published() {
    let scratch = tempfile::tempdir().unwrap();
    let parts = samples::key_parts::<Evaluation>();
    let key = parts.key();
    let error = stage::execute(&args(scratch.path(), &[]), parts, Value::Null, |_| {
        Ok::<_, Error>(Evaluation {
            test_accuracy: f64::NAN,
            ..Evaluation::sample()
        })
    })
    .unwrap_err();
    assert_eq!(error.exit_code(), ExitCode::Numbers);
    assert!(!Store::at(scratch.path()).contains::<Evaluation>(&key));
}

#[test]
fn a_device_that_is_not_there_is_an_error_even_where_the_answer_is() {
    let scratch = tempfile::tempdir().unwrap();
    samples::publish::<Report>(&Store::at(scratch.path()));
    let args = args(scratch.path(), &["--device", "cuda:1"]);
    let error = execute(&args, |_| unreachable!("it must not run")).unwrap_err();
    assert_eq!(error.exit_code(), ExitCode::Device);
    assert!(error.to_string().contains("cuda:1"), "{error}");
}

#[test]
fn a_store_that_cannot_be_written_to_is_noticed_before_the_run() {
    let scratch = tempfile::tempdir().unwrap();
    let file = scratch.path().join("file");
    fs::write(&file, "").unwrap();
    let args = args(&file.join("store"), &[]);
    let error = execute(&args, |_| unreachable!("it must not run")).unwrap_err();
    assert_eq!(error.exit_code(), ExitCode::Usage);
}

#[test]
fn errors_give_the_exit_code_and_so_does_a_panic() {
    #[derive(Debug, thiserror::Error)]
    #[error("no such device")]
    struct NoDevice;
    impl StageError for NoDevice {
        fn exit_code(&self) -> ExitCode {
            ExitCode::Device
        }
    }
    // `std::process::ExitCode` cannot be compared otherwise.
    let code = |code: std::process::ExitCode| format!("{code:?}");
    let ended = |run: fn() -> Result<(), NoDevice>| code(stage::main(run));
    assert_eq!(ended(|| Ok(())), code(ExitCode::Done.into()));
    assert_eq!(ended(|| Err(NoDevice)), code(ExitCode::Device.into()));
    assert_eq!(ended(|| panic!("a bug")), code(ExitCode::Bug.into()));
}

#[test]
fn devices_are_read_as_written() {
    use artifact::DeviceSpec;
    for (text, device) in [
        ("cpu", DeviceSpec::Cpu),
        ("cuda:0", DeviceSpec::Cuda(0)),
        ("cuda:12", DeviceSpec::Cuda(12)),
    ] {
        assert_eq!(text.parse(), Ok(device));
        assert_eq!(device.to_string(), text);
    }
    assert_eq!("cuda".parse(), Ok(DeviceSpec::Cuda(0)));
    for text in ["", "gpu", "cuda:", "cuda:-1", "cuda0", "CPU"] {
        let error = text.parse::<DeviceSpec>().unwrap_err();
        assert_eq!(
            error.to_string(),
            format!("`{text}` is no device; expected cpu, cuda or cuda:N")
        );
    }
}
