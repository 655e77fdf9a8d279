//! The program: what it writes, where it goes on after an interruption, and how it fails.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use artifact::stage::Progress;
use artifact::{KeyParts, LatencyDataset, Opened, Store, open};
use command_line::Answer;
use space::Genotype;
use stage_profile::{Config, Error, Profiling};

/// Two layers of four channels; nothing counts as disturbed, whatever else the machine does.
const CONFIG: &str = "\
seed = 3
n_architectures = 24
n_repeated = 4
anchor_every = 5
max_disturbance = 1e9
cells = true

[network]
stem = \"conv3x3\"
n_layers = 3
init_channels = 4
in_channels = 1
n_classes = 10
image_size = 8

[timing]
batch_size = 1
n_threads = 1
n_warmup = 1
n_repeats = 2
";

/// A folder with a config and a store.
struct Place {
    dir: tempfile::TempDir,
}

/// What the program published.
#[track_caller]
fn dataset_of(answer: &Answer) -> Opened<LatencyDataset> {
    open(answer.done()).unwrap()
}

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("profile.toml"), CONFIG).unwrap();
        Self { dir }
    }

    fn config(&self) -> PathBuf {
        self.dir.path().join("profile.toml")
    }

    fn store(&self) -> PathBuf {
        self.dir.path().join("store")
    }

    fn command(&self, more: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_profile"));
        command.arg("run").arg("--config").arg(self.config());
        command.arg("--store").arg(self.store()).args(more);
        command
    }

    fn run(&self, more: &[&str]) -> Answer {
        Answer::of(&mut self.command(more))
    }

    /// Where the program keeps what it has timed while the data set is not complete.
    fn work_dir(&self, more: &[&str]) -> PathBuf {
        let answer = self.run(&[more, &["--key-only"]].concat()).json();
        let parts: KeyParts = serde_json::from_value(answer["parts"].clone()).unwrap();
        Store::at(self.store()).work_dir::<LatencyDataset>(&parts.key())
    }

    fn journal(&self, more: &[&str]) -> PathBuf {
        self.work_dir(more).join("visits.jsonl")
    }
}

fn config() -> Config {
    toml::from_str(CONFIG).unwrap()
}

/// Asserts that every architecture is there once, timed, with its cells.
#[track_caller]
fn assert_complete(dataset: &LatencyDataset, n_architectures: usize, n_repeated: usize) {
    let samples = &dataset.samples;
    assert_eq!(samples.len(), n_architectures);
    let graphs: HashSet<Genotype> = samples.iter().map(|s| s.genotype.canonical()).collect();
    assert_eq!(graphs.len(), n_architectures);
    for (index, sample) in samples.iter().enumerate() {
        assert!(sample.p10_millis > 0.0 && sample.anchor_ratio > 0.0);
        assert!(sample.p10_millis <= sample.median_millis);
        assert!(sample.median_millis <= sample.p90_millis);
        assert_eq!(sample.n_repeats, 2);
        assert!(!sample.disturbed);
        assert_eq!(sample.repeat_median_millis.is_some(), index < n_repeated);
    }

    // One normal and two reduction cells, all of different geometries.
    assert_eq!(dataset.cells.len(), 3 * n_architectures);
    for (row, cell) in dataset.cells.iter().enumerate() {
        let sample = &samples[cell.sample_index as usize];
        assert_eq!(cell.sample_index as usize, row / 3);
        assert_eq!(cell.cell, *sample.genotype.cell(cell.kind));
        assert_eq!(cell.anchor_ratio, sample.anchor_ratio);
        assert_eq!(
            (cell.kind.name(), cell.channels, cell.size_prev),
            [("normal", 4, 8), ("reduce", 8, 8), ("reduce", 16, 4)][row % 3]
        );
        assert_eq!(cell.n_uses, 1);
        assert!(cell.p10_millis > 0.0 && cell.p10_millis <= cell.p90_millis);
    }
}

#[test]
fn a_data_set_is_made_once() {
    let place = Place::new();
    let first = place.run(&[]);
    let dataset = dataset_of(&first);
    assert_complete(&dataset.value, 24, 4);
    let settings = dataset.value.settings.unwrap();
    assert_eq!(settings.network, config().network);
    assert_eq!(settings.timing, config().timing);
    assert_eq!(settings.device, "cpu");
    assert!(!place.work_dir(&[]).exists(), "the journal is gone");

    let again = place.run(&["--json"]).json();
    assert_eq!(again["cached"], true);
    assert_eq!(again["kind"], "latency-dataset");
    assert_eq!(again["path"], first.stdout.trim_end());
    assert_eq!(again["digest"], dataset.manifest.digest.to_string());
}

#[test]
fn the_key_holds_config_and_machine_and_writes_nothing() {
    let place = Place::new();
    let answer = place.run(&["--key-only"]).json();
    assert_eq!(answer["stage"], "profile");
    assert_eq!(answer["cached"], false);
    assert_eq!(answer["parts"]["config"]["timing"]["n_repeats"], 2);
    assert_eq!(answer["parts"]["inputs"], serde_json::json!({}));
    assert_eq!(
        answer["parts"]["machine"].as_str(),
        Some(measure::Machine::detect().fingerprint().as_str())
    );
    assert!(!place.store().exists());

    let other = place
        .run(&["--key-only", "--set", "timing.n_repeats=3"])
        .json();
    assert_ne!(other["key"], answer["key"]);
    // The threads of the stage are not those of what it times.
    let same = place.run(&["--key-only", "--threads", "1"]).json();
    assert_eq!(same["key"], answer["key"]);
}

#[test]
fn cells_are_left_out_where_nobody_asks_for_them() {
    let place = Place::new();
    let dataset = dataset_of(&place.run(&["--set", "cells=false"])).value;
    assert_eq!(dataset.samples.len(), 24);
    assert!(dataset.cells.is_empty());
}

#[test]
fn an_interrupted_profile_goes_on_where_it_was() {
    let place = Place::new();
    let journal = place.journal(&[]);
    let mut profiling =
        Profiling::open(&config(), &place.work_dir(&[]), &Progress::hidden()).unwrap();
    for _ in 0..3 {
        assert!(profiling.advance().unwrap());
    }
    drop(profiling);
    let timed = fs::read_to_string(&journal).unwrap();
    assert_eq!(timed.lines().count(), 15);

    // The process was killed in the middle of a write.
    let whole = &timed[..timed.trim_end().rfind('\n').unwrap() + 1];
    fs::write(&journal, &timed[..timed.len() - 9]).unwrap();
    let resumed = place.run(&[]);
    assert!(
        resumed.stderr.contains("going on with 14 of 28"),
        "{}",
        resumed.stderr
    );
    let dataset = dataset_of(&resumed).value;
    assert_complete(&dataset, 24, 4);
    // What had been timed was not timed again, and all of it is corrected to one reference.
    let mut references = Vec::new();
    for (line, sample) in whole.lines().zip(&dataset.samples) {
        let visit: serde_json::Value = serde_json::from_str(line).unwrap();
        let nanos = |name: &str| visit[name]["median"].as_f64().unwrap();
        let corrected = (nanos("network") / sample.anchor_ratio).round() / 1e6;
        assert_eq!(sample.median_millis, corrected);
        references.push(nanos("before").min(nanos("after")) / sample.anchor_ratio);
    }
    for reference in &references {
        assert!((reference / references[0] - 1.0).abs() < 1e-12);
    }
}

#[test]
fn drift_is_corrected_to_the_median_of_the_whole_run() {
    // A machine that begins half asleep, is disturbed once, and ends a little slower than it was.
    let took = |nanos: u64| serde_json::json!({ "median": nanos, "p10": nanos - 10, "p90": nanos + 20, "n_repeats": 2 });
    let visits = [
        // (anchor before, anchor after, network)
        (3000, 1000, 8000),
        (1000, 1000, 5000),
        (1000, 1000, 6000),
        (1000, 2000, 9000),
        (1100, 1100, 5500),
        (1100, 1100, 6600),
    ];
    let folder = tempfile::tempdir().unwrap();
    let lines = visits
        .iter()
        .enumerate()
        .map(|(index, (before, after, network))| {
            let (before, after, network) = (took(*before), took(*after), took(*network));
            let visit = serde_json::json!({
                "index": index, "before": before, "after": after, "network": network, "cells": [],
            });
            format!("{visit}\n")
        });
    fs::write(
        folder.path().join("visits.jsonl"),
        lines.collect::<String>(),
    )
    .unwrap();
    let config = Config {
        n_architectures: 4,
        n_repeated: 2,
        max_disturbance: 0.05,
        cells: false,
        ..config()
    };
    let profiling = Profiling::open(&config, folder.path(), &Progress::hidden()).unwrap();
    let samples = profiling.finish().unwrap().samples;
    // The reference is the median of 1000, 1000, 1000, 2000, 1100, 1100.
    let expected = [
        (1000.0 / 1050.0, true, 8400),
        (1000.0 / 1050.0, false, 5250),
        (1000.0 / 1050.0, false, 6300),
        (1000.0 / 1050.0, true, 9450),
    ];
    for (sample, (ratio, disturbed, nanos)) in samples.iter().zip(expected) {
        assert_eq!(sample.anchor_ratio, ratio);
        assert_eq!(sample.disturbed, disturbed);
        assert_eq!(sample.median_millis, f64::from(nanos) / 1e6);
        assert!(sample.p10_millis < sample.median_millis);
        assert!(sample.median_millis < sample.p90_millis);
    }
    let repeats: Vec<Option<f64>> = samples.iter().map(|s| s.repeat_median_millis).collect();
    assert_eq!(repeats, [Some(0.00525), Some(0.0063), None, None]);
}

#[test]
fn a_killed_process_loses_nothing_that_is_in_the_journal() {
    let place = Place::new();
    let more = ["--set", "n_architectures=2000", "--set", "cells=false"];
    let journal = place.journal(&more);
    let mut process = place
        .command(&more)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let n_lines = || fs::read_to_string(&journal).map_or(0, |text| text.lines().count());
    while n_lines() < 10 {
        assert!(process.try_wait().unwrap().is_none(), "it ended too early");
        std::thread::yield_now();
    }
    process.kill().unwrap();
    process.wait().unwrap();

    let before = fs::read_to_string(&journal).unwrap();
    let config = Config {
        n_architectures: 2000,
        cells: false,
        ..config()
    };
    let mut profiling =
        Profiling::open(&config, &place.work_dir(&more), &Progress::hidden()).unwrap();
    profiling.advance().unwrap();
    let after = fs::read_to_string(&journal).unwrap();
    let n_whole = before.rfind('\n').unwrap() + 1;
    assert!(after.starts_with(&before[..n_whole]));
    for (index, line) in after.lines().enumerate() {
        let visit: serde_json::Value = serde_json::from_str(line).unwrap();
        assert_eq!(visit["index"], index);
    }
}

#[test]
fn rounds_go_on_where_they_were() {
    let folder = tempfile::tempdir().unwrap();
    let config = Config {
        n_architectures: 70,
        cells: false,
        // Out of reach: all are timed.
        until_mape: Some(1e-9),
        ..config()
    };
    let open = || Profiling::open(&config, folder.path(), &Progress::hidden()).unwrap();
    let mut profiling = open();
    // The first round is 40 architectures and 3 of them again; this ends within the second.
    for _ in 0..11 {
        assert!(profiling.advance().unwrap());
    }
    drop(profiling);
    let journal = folder.path().join("visits.jsonl");
    let before = fs::read_to_string(&journal).unwrap();
    assert_eq!(before.lines().count(), 53);
    let dataset = open().finish().unwrap();
    assert!(fs::read_to_string(&journal).unwrap().starts_with(&before));
    let graphs: HashSet<Genotype> = dataset
        .samples
        .iter()
        .map(|s| s.genotype.canonical())
        .collect();
    assert_eq!(graphs.len(), 70);
    for (row, sample) in dataset.samples.iter().enumerate() {
        assert_eq!(sample.repeat_median_millis.is_some(), row < 4);
        // Of the second round half is drawn, and all of the last one, which is that short.
        assert_eq!(sample.chosen, (50..60).contains(&row), "row {row}");
    }
    // The same timings, the same architectures.
    assert_eq!(open().finish().unwrap(), dataset);
}

#[test]
fn rounds_end_at_the_figure() {
    let place = Place::new();
    let asked = [
        "--until-mape",
        "0.95",
        "--set",
        "n_architectures=60",
        "--set",
        "cells=false",
    ];
    let answer = place.run(&asked);
    // How good the model is depends on what else the machine does; that it ends there does not.
    let said = "40 architectures: error on those left out ";
    let (_, said) = answer.stderr.split_once(said).unwrap();
    let (percent, _) = said.split_once(" %").unwrap();
    let reached = percent.parse::<f64>().unwrap() <= 95.0;
    let n_samples = dataset_of(&answer).value.samples.len();
    assert_eq!(n_samples, if reached { 40 } else { 60 }, "{percent} %");
    place
        .run(&["--until-mape", "3"])
        .failed(2, &["until_mape", "between 0 and 1"]);
}

#[test]
fn peak_memory_is_measured_and_the_same_every_time() {
    let asked = ["--set", "metrics=[\"peak-memory\"]", "--set", "cells=false"];
    let bytes = || -> Vec<f64> {
        let samples = dataset_of(&Place::new().run(&asked)).value.samples;
        let bytes = samples.iter().map(|s| s.peak_memory_bytes.unwrap());
        bytes.collect()
    };
    let first = bytes();
    assert_eq!(bytes(), first);
    // A network of some thousand weights, on 8 x 8 pixels.
    let plausible = |&bytes: &f64| (10e3..10e6).contains(&bytes) && bytes.fract() == 0.0;
    assert!(first.iter().all(plausible), "{first:?}");
    assert!(first.iter().any(|bytes| *bytes != first[0]));

    let place = Place::new();
    let samples = dataset_of(&place.run(&[])).value.samples;
    assert!(samples.iter().all(|s| s.peak_memory_bytes.is_none()));
    place
        .run(&["--set", "metrics=[\"latency\"]"])
        .failed(2, &["metrics", "beside latency"]);
    // What the processor does not do is refused, not left out.
    for (set, says) in [
        ("timing.flush_l2=true", "timing.flush_l2 = false"),
        ("timing.precision=\"tf32\"", "precision = \"f32\""),
    ] {
        place
            .run(&["--set", set])
            .failed(2, &["--device cuda", says]);
    }
}

#[test]
fn energy_is_measured_or_refused_but_not_guessed() {
    let place = Place::new();
    let asked = [
        "--set",
        "metrics=[\"energy\"]",
        "--set",
        "n_architectures=4",
    ];
    let answer = place.run(&asked);
    if measure::EnergyMeter::open(Path::new(measure::energy::POWERCAP)).is_ok() {
        let samples = dataset_of(&answer).value.samples;
        assert!(samples.iter().all(|s| s.energy_joules.is_some()));
    } else {
        answer.failed(
            4,
            &["energy cannot be measured here", "metrics in the config"],
        );
    }
}

#[test]
fn architectures_may_be_given() {
    let place = Place::new();
    let file = place.dir.path().join("architectures.jsonl");
    let given = ["PC_DARTS_cifar", "DARTS_V2"].map(|name| Genotype::named(name).unwrap());
    let lines = given
        .iter()
        .map(|genotype| format!("{}\n", artifact::genotype_to_json(genotype)));
    fs::write(&file, lines.collect::<String>()).unwrap();
    let asked = ["--architectures", file.to_str().unwrap()];
    let key = place.run(&[&asked[..], &["--key-only"]].concat()).json();
    assert!(key["parts"]["inputs"]["architectures"].is_string(), "{key}");
    let samples = dataset_of(&place.run(&asked)).value.samples;
    let timed: Vec<&Genotype> = samples.iter().map(|s| &s.genotype).collect();
    assert_eq!(timed, given.iter().collect::<Vec<_>>());
    assert!(samples.iter().all(|s| s.repeat_median_millis.is_some()));

    fs::write(&file, "{\"normal\": 3}\n").unwrap();
    place
        .run(&asked)
        .failed(3, &["architectures.jsonl, line 1", "predictor choose"]);
    fs::write(&file, "\n").unwrap();
    place.run(&asked).failed(3, &["there is no genotype"]);
    place
        .run(&["--architectures", "/nowhere.jsonl"])
        .failed(3, &["cannot read /nowhere.jsonl"]);
}

#[test]
fn a_restless_machine_is_flagged_and_not_taken_for_noise() {
    let folder = tempfile::tempdir().unwrap();
    // No two timings of the anchor agree to the nanosecond for ever; those that do are undisturbed.
    let config = Config {
        max_disturbance: 1e-12,
        ..config()
    };
    let dataset = Profiling::open(&config, folder.path(), &Progress::hidden())
        .unwrap()
        .finish()
        .unwrap();
    let n_disturbed = dataset.samples.iter().filter(|s| s.disturbed).count();
    assert!(n_disturbed > 0, "the anchor never varied");
    assert_eq!(dataset.samples.len(), 24);
}

#[test]
fn the_journal_of_another_run_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let mut profiling = Profiling::open(&config(), folder.path(), &Progress::hidden()).unwrap();
    profiling.advance().unwrap();
    drop(profiling);
    let other = Config {
        cells: false,
        ..config()
    };
    let Err(error) = Profiling::open(&other, folder.path(), &Progress::hidden()) else {
        panic!("a journal with cells cannot be that of a run without");
    };
    assert!(matches!(error, Error::ForeignJournal { .. }), "{error}");
}

#[test]
fn a_config_mistake_is_shown_with_its_place() {
    let place = Place::new();
    let broken = |from: &str, to: &str| {
        fs::write(place.config(), CONFIG.replace(from, to)).unwrap();
        place.run(&[])
    };
    broken("anchor_every = 5", "anchor_evry = 5").failed(
        2,
        &[
            "profile.toml:4:1",
            "anchor_evry",
            "expected",
            "`anchor_every`",
        ],
    );
    broken("n_layers = 3", "n_layers = \"three\"").failed(2, &["profile.toml:10:12", "\"three\""]);
    broken("\"conv3x3\"", "\"conv5x5\"").failed(2, &["profile.toml:9:8", "conv5x5", "conv3x3"]);
    broken("n_layers = 3\n", "").failed(2, &["profile.toml", "n_layers"]);

    fs::write(place.config(), CONFIG).unwrap();
    for (set, says) in [
        ("n_architectures=0", "n_architectures"),
        ("n_repeated=25", "at most n_architectures, 24"),
        ("anchor_every=0", "anchor_every"),
        ("max_disturbance=0.0", "max_disturbance"),
        ("timing.n_repeats=0", "timing.n_repeats"),
        ("timing.n_threads=100000", "logical processors"),
        ("network.image_size=0", "image_size"),
        ("timing.n_repeat=3", "--set timing.n_repeat=3"),
    ] {
        place.run(&["--set", set]).failed(2, &[says]);
    }
    place
        .run(&["--no-such-flag"])
        .failed(2, &["--no-such-flag"]);
    let missing = Path::new("no such file.toml");
    Answer::of(
        Command::new(env!("CARGO_BIN_EXE_profile"))
            .args(["run", "--config"])
            .arg(missing),
    )
    .failed(2, &["no such file.toml"]);
}

#[test]
fn a_device_that_is_not_there_is_named() {
    let place = Place::new();
    place
        .run(&["--device", "cuda:1"])
        .failed(4, &["cuda:1", "CUDA"]);
    place
        .run(&["--device", "gpu"])
        .failed(2, &["gpu", "cuda:N"]);
    assert!(!place.store().exists());
}

#[test]
fn a_store_that_cannot_be_written_to_is_named() {
    let place = Place::new();
    fs::write(place.store(), "a file, not a folder").unwrap();
    place
        .run(&[])
        .failed(2, &[place.store().to_str().unwrap(), "--store"]);
}

#[test]
fn a_damaged_data_set_is_not_taken_for_a_cached_one() {
    let place = Place::new();
    let dir = dataset_of(&place.run(&["--set", "cells=false"])).dir;
    let file = dir.join("samples.parquet");
    let mut bytes = fs::read(&file).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&file, bytes).unwrap();
    place
        .run(&["--set", "cells=false"])
        .failed(3, &[file.to_str().unwrap(), "damaged"]);
}

/// Networks for another runtime are those that a profile would time here, and one takes them.
#[test]
fn exported_networks_are_those_of_a_profile_and_run_elsewhere() {
    let place = Place::new();
    let dir = place.dir.path().join("networks");
    let export_to = |dir: &Path, more: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_profile"));
        command.arg("export").arg("--config").arg(place.config());
        Answer::of(command.arg("--dir").arg(dir).args(more))
    };
    let export = || export_to(&dir, &["--n", "5"]);
    let table = export().done().to_owned();
    assert_eq!(Path::new(&table), dir.join("networks.csv"));
    let csv = fs::read_to_string(&table).unwrap();
    let timed = csv.lines().enumerate().map(|(index, line)| match index {
        0 => format!("{line},latency_median_millis\n"),
        n => format!("{line},{n}\n"),
    });
    let timed_path = dir.join("timed.csv");
    fs::write(&timed_path, timed.collect::<String>()).unwrap();
    let elsewhere = LatencyDataset::read(&timed_path).unwrap();
    let here = dataset_of(&place.run(&[])).value;
    let genotypes = |dataset: &LatencyDataset| -> Vec<Genotype> {
        let samples = dataset.samples.iter();
        samples.map(|sample| sample.genotype.clone()).collect()
    };
    assert_eq!(genotypes(&elsewhere), genotypes(&here)[..5]);

    let onnx = fs::read(dir.join("0004.onnx")).unwrap();
    let logits = tract_oracle::answer(&onnx, [2, 1, 8, 8], &[0.5; 128]);
    assert_eq!(logits.len(), 2 * 10);
    assert!(
        logits
            .iter()
            .all(|logit| logit.is_finite() && *logit != 0.0)
    );
    // Two images alike.
    assert_eq!(logits[..10], logits[10..]);

    // Those that are given, the same.
    let given = place.dir.path().join("given.jsonl");
    let two = &here.samples[3..5];
    let lines = two.iter().map(|sample| {
        let line = artifact::genotype_to_json(&sample.genotype);
        format!("{line}\n")
    });
    fs::write(&given, lines.collect::<String>()).unwrap();
    let chosen = place.dir.path().join("chosen");
    export_to(&chosen, &["--architectures", given.to_str().unwrap()]).done();
    assert_eq!(fs::read(chosen.join("0001.onnx")).unwrap(), onnx);
    assert!(!chosen.join("0002.onnx").exists());

    // Timings may stand in the table by now.
    export().failed(2, &["networks.csv", "is there already"]);
    assert_eq!(fs::read_to_string(&table).unwrap(), csv);
}
