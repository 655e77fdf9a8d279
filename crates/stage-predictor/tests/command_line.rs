//! The program: what it fits, from what, that its bytes repeat, and how it fails.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use arrow::array::{ArrayRef, Float64Array, RecordBatch, StringArray};
use artifact::manifest::{Build, Origin};
use artifact::{
    CellSample, Digest, KeyParts, LatencyDataset, LatencyModelArtifact, LatencySample, Metric,
    Opened, Store, open, stage,
};
use command_line::{Answer, assert_nothing_stored, text};
use latency::{LatencyModel, Mlp, Ridge, State, StateTensor, Structured, Transferred};
use parquet::arrow::ArrowWriter;
use parquet::file::metadata::KeyValue;
use parquet::file::properties::WriterProperties;
use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use space::{CellKind, Genotype, Primitive, SearchSpace, Topology};

const CONFIG: &str = "\
seed = 0
held_out = 0.25
model = \"mlp\"

[mlp]
hidden = [8]
n_epochs = 10
batch_size = 16
learning_rate = 2e-3
weight_decay = 0.3
n_members = 2

[ridge]
l2 = [0.1, 1.0, 10.0]
";

/// A folder with a config, a data set and a store.
struct Place {
    dir: tempfile::TempDir,
    dataset: PathBuf,
}

/// What the program published.
#[track_caller]
fn model_of(answer: &Answer) -> Opened<LatencyModelArtifact> {
    open(answer.done()).unwrap()
}

impl Place {
    fn new() -> Self {
        Self::with(dataset(120))
    }

    fn with(dataset: LatencyDataset) -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("predictor.toml"), CONFIG).unwrap();
        let dataset = publish(&dir.path().join("profiles"), dataset);
        Self { dir, dataset }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Runs the program on a source, `--latency-dataset DIR` or `--data FILE`.
    fn run_on(&self, flag: &str, source: &Path, store: &str, more: &[&str]) -> Answer {
        let mut command = Command::new(env!("CARGO_BIN_EXE_predictor"));
        command
            .arg("run")
            .arg("--config")
            .arg(self.path("predictor.toml"));
        command
            .arg("--store")
            .arg(self.path(store))
            .arg(flag)
            .arg(source)
            .args(more);
        Answer::of(&mut command)
    }

    fn run(&self, more: &[&str]) -> Answer {
        self.run_on("--latency-dataset", &self.dataset, "store", more)
    }
}

/// What a primitive takes, in milliseconds.
fn cost(primitive: Primitive) -> f64 {
    match primitive {
        Primitive::SepConv5x5 => 0.21,
        Primitive::SepConv3x3 => 0.15,
        Primitive::DilConv5x5 => 0.13,
        Primitive::DilConv3x3 => 0.09,
        Primitive::MaxPool3x3 | Primitive::AvgPool3x3 => 0.03,
        Primitive::SkipConnect | Primitive::None => 0.01,
    }
}

/// An additive law with 1 % of noise. Row 5 is disturbed and ten times as slow; the first twelve are timed
/// twice.
fn dataset(n: usize) -> LatencyDataset {
    let law = |genotype: &Genotype| {
        let genes = CellKind::ALL.map(|kind| genotype.cell(kind).genes());
        0.6 + genes
            .into_iter()
            .flatten()
            .map(|(_, gene)| cost(gene.primitive))
            .sum::<f64>()
    };
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let samples = (0..n)
        .map(|index| {
            let genotype = SearchSpace::darts().sample(&mut rng);
            let mut noisy = || law(&genotype) * (0.995 + 0.01 * rng.random::<f64>());
            let disturbed = index == 5;
            let median_millis = if disturbed { 10.0 } else { 1.0 } * noisy();
            LatencySample {
                median_millis,
                p10_millis: 0.99 * median_millis,
                p90_millis: 1.04 * median_millis,
                n_repeats: 15,
                anchor_ratio: 1.0,
                disturbed,
                chosen: false,
                repeat_median_millis: (index < 12).then(&mut noisy),
                peak_memory_bytes: None,
                energy_joules: None,
                graph_median_millis: None,
                gpu: None,
                genotype,
            }
        })
        .collect();
    LatencyDataset {
        settings: None,
        samples,
        cells: Vec::new(),
    }
}

fn publish(store: &Path, dataset: LatencyDataset) -> PathBuf {
    let parts = KeyParts::new(&stage::PROFILE, &serde_json::json!({})).unwrap();
    let origin = Origin {
        device: "cpu".to_owned(),
        n_threads: 1,
        machine: serde_json::Value::Null,
        build: Build::current(),
        started_unix_secs: 0,
        elapsed_secs: 0.0,
    };
    let store = Store::open(store).unwrap();
    store.publish(parts, origin, dataset).unwrap().dir
}

/// Writes the required columns of a data set, as another program would, with some metadata.
fn write_foreign(file: &Path, dataset: &LatencyDataset, metadata: Vec<KeyValue>) {
    let mut columns: Vec<(String, ArrayRef)> = Vec::new();
    for kind in CellKind::ALL {
        for index in 0..8 {
            let gene = |sample: &LatencySample| {
                let gene = sample.genotype.cell(kind).nodes[index / 2][index % 2];
                format!("{}@{}", gene.primitive.name(), gene.source)
            };
            let genes = StringArray::from_iter_values(dataset.samples.iter().map(gene));
            columns.push((format!("{kind}_{index}"), Arc::new(genes)));
        }
    }
    let millis = Float64Array::from_iter_values(dataset.samples.iter().map(|s| s.median_millis));
    columns.push(("latency_median_millis".to_owned(), Arc::new(millis)));
    let batch = RecordBatch::try_from_iter(columns).unwrap();
    let properties = WriterProperties::builder()
        .set_key_value_metadata(Some(metadata))
        .build();
    let file = File::create(file).unwrap();
    let mut writer = ArrowWriter::try_new(file, batch.schema(), Some(properties)).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
}

/// The tensors under a prefix, as the crate `latency` takes them.
fn state(model: &LatencyModelArtifact, prefix: &str) -> State {
    let tensors = model.tensors.iter().filter_map(|(name, tensor)| {
        let name = name.strip_prefix(prefix)?.to_owned();
        Some((
            name,
            StateTensor::new(tensor.shape.clone(), tensor.values.clone()),
        ))
    });
    tensors.collect()
}

#[test]
fn all_models_are_fitted_and_judged_by_what_was_held_out() {
    let place = Place::with(dataset(300));
    let answer = place.run(&[]);
    let Opened { value: model, .. } = model_of(&answer);
    let card = &model.card;
    assert_eq!(card.chosen, "mlp");
    assert_eq!(
        (card.n_train, card.n_test),
        (224, 75),
        "a quarter of 299, and the rest"
    );
    assert!(
        (1.0..4.0).contains(&card.reference_millis),
        "{}",
        card.reference_millis
    );

    let validation = &model.validation;
    let names: Vec<&String> = validation.models.keys().collect();
    assert_eq!(names, ["mlp", "ridge", "structured"]);
    assert_eq!(card.reason, "mlp is what the config asks for");
    for (name, figures) in &validation.models {
        assert_eq!(figures.n, 75);
        assert!(
            figures.mape < 0.05 && figures.spearman > 0.9,
            "{name}: {figures:?}"
        );
    }
    // Two measurements with uniform noise of ±0.5 %: the mean difference is a third of 1 %, over √2.
    let floor = validation.noise_floor_mape.unwrap();
    assert!((0.001..0.005).contains(&floor), "{floor}");

    // What is stored is what was judged.
    let structured = Structured::from_state(&Topology::darts(), &state(&model, "structured/"));
    let structured = structured.unwrap();
    let models: [(&str, &dyn LatencyModel); 3] = [
        ("structured", &structured),
        ("mlp", &Mlp::from_state(&state(&model, "mlp/")).unwrap()),
        (
            "ridge",
            &Ridge::from_state(&state(&model, "ridge/")).unwrap(),
        ),
    ];
    let samples = dataset(300).samples;
    let mut held_out = BTreeSet::new();
    for row in &validation.held_out {
        let index = samples
            .iter()
            .position(|s| s.median_millis == row.measured_millis)
            .unwrap();
        assert!(held_out.insert(index) && !samples[index].disturbed);
        let code = SearchSpace::darts().encode(&samples[index].genotype);
        for (name, model) in models {
            assert_eq!(row.spread[name], model.spread(&code));
            let (stored, now) = (row.predicted_millis[name], model.predict_millis(&code));
            assert!(
                (stored - now).abs() <= 1e-6 * stored,
                "{name}: {stored} against {now}"
            );
        }
    }
    assert_eq!(held_out.len(), 75);

    for text in [
        "mlp",
        "ridge",
        "noise floor",
        "1 disturbed left out",
        "11 architectures timed",
    ] {
        assert!(
            answer.stderr.contains(text),
            "`{text}` is not in\n{}",
            answer.stderr
        );
    }
}

#[test]
fn the_same_question_gives_the_same_bytes() {
    let place = Place::new();
    let on = |store| {
        place.run_on(
            "--latency-dataset",
            &place.dataset,
            store,
            &["--json", "--quiet"],
        )
    };
    let first = on("store").json();
    assert_eq!(first["kind"], "latency-model");
    assert_eq!(first["cached"], false);
    let cached = on("store");
    assert_eq!(cached.stderr, "");
    assert_eq!(cached.json()["cached"], true);

    let elsewhere = on("other store").json();
    assert_eq!(elsewhere["cached"], false);
    assert_eq!(elsewhere["digest"], first["digest"]);
    let other_seed = place.run(&["--json", "--set", "seed=1"]).json();
    assert_ne!(other_seed["digest"], first["digest"]);
}

#[test]
fn the_key_holds_config_and_data_and_writes_nothing() {
    let place = Place::new();
    let answer = place.run(&["--key-only"]).json();
    assert_eq!(answer["stage"], "predictor");
    assert_eq!(answer["cached"], false);
    let digest = open::<LatencyDataset>(&place.dataset).unwrap().digest();
    assert_eq!(
        answer["parts"]["inputs"],
        serde_json::json!({ "latency-dataset": digest.to_string() })
    );
    assert_eq!(answer["parts"]["machine"], serde_json::Value::Null);
    let other = place.run(&["--key-only", "--set", "model=ridge"]).json();
    assert_ne!(other["key"], answer["key"]);
    assert!(!place.path("store").exists());
}

#[test]
fn a_foreign_file_needs_the_documented_columns_alone() {
    let place = Place::new();
    let file = place.path("foreign.parquet");
    write_foreign(&file, &dataset(120), Vec::new());
    let mut command = Command::new(env!("CARGO_BIN_EXE_predictor"));
    command
        .arg("fit")
        .arg("--config")
        .arg(place.path("predictor.toml"));
    command
        .arg("--store")
        .arg(place.path("store"))
        .arg("--data")
        .arg(&file);
    let answer = Answer::of(&mut command);
    let model = model_of(&answer).value;
    assert_eq!(model.card.settings, None);
    assert_eq!(
        model.card.n_train + model.card.n_test,
        120,
        "nothing says that one is disturbed"
    );
    assert_eq!(model.validation.noise_floor_mape, None);
    assert!(
        answer.stderr.contains("noise floor unknown"),
        "{}",
        answer.stderr
    );
}

#[test]
fn a_foreign_file_that_does_not_fit_is_named() {
    let place = Place::new();
    let run = |file: &Path| place.run_on("--data", file, "store", &[]);
    let file = place.path("foreign.parquet");
    let name = file.to_str().unwrap();

    run(&file).failed(3, &[name]);
    fs::write(&file, "no parquet").unwrap();
    run(&file).failed(3, &[name]);

    let fingerprint = KeyValue::new("space_fingerprint".to_owned(), "00ff".to_owned());
    write_foreign(&file, &dataset(30), vec![fingerprint]);
    let ours = SearchSpace::darts().fingerprint();
    run(&file).failed(3, &[name, "search space 00ff", &ours]);

    let mut negative = dataset(30);
    negative.samples[7].median_millis = -1.0;
    write_foreign(&file, &negative, Vec::new());
    run(&file).failed(3, &[name, "latency_median_millis", "row 7"]);
    assert_nothing_stored(&place.path("store"));
}

#[test]
fn one_source_is_needed_and_no_more() {
    let place = Place::new();
    let config = place.path("predictor.toml");
    Answer::of(
        Command::new(env!("CARGO_BIN_EXE_predictor"))
            .arg("run")
            .arg("--config")
            .arg(config),
    )
    .failed(2, &["--latency-dataset", "--data"]);
    place
        .run(&["--data", "file.parquet"])
        .failed(2, &["--data", "cannot be used with"]);
}

#[test]
fn a_missing_damaged_or_foreign_data_set_is_named() {
    let place = Place::new();
    let nothing = place.path("nothing");
    place
        .run_on("--latency-dataset", &nothing, "store", &[])
        .failed(3, &[nothing.to_str().unwrap(), "latency-dataset"]);

    let file = place.dataset.join("samples.parquet");
    let good = fs::read(&file).unwrap();
    let mut flipped = good.clone();
    flipped[good.len() / 2] ^= 1;
    for damaged in [&flipped[..], &good[..good.len() / 2]] {
        fs::write(&file, damaged).unwrap();
        place
            .run(&[])
            .failed(3, &[file.to_str().unwrap(), "damaged"]);
    }
    fs::write(&file, good).unwrap();

    // A whole manifest that says another search space.
    let file = place.dataset.join("manifest.json");
    let mut manifest: serde_json::Value =
        serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
    manifest["space_fingerprint"] = "00ff".into();
    let fields = manifest.as_object_mut().unwrap();
    fields.remove("checksum");
    let checksum = Digest::of(serde_json::to_string(fields).unwrap().as_bytes());
    fields.insert("checksum".to_owned(), checksum.to_string().into());
    fs::write(&file, manifest.to_string()).unwrap();
    let ours = SearchSpace::darts().fingerprint();
    place
        .run(&[])
        .failed(3, &[file.to_str().unwrap(), "search space 00ff", &ours]);
    assert_nothing_stored(&place.path("store"));
}

#[test]
fn too_few_architectures_are_refused_with_the_remedy() {
    let place = Place::with(dataset(20));
    place.run(&[]).failed(
        3,
        &[
            "19 undisturbed",
            "1 disturbed",
            "at least 20",
            "n_architectures",
        ],
    );
    assert_nothing_stored(&place.path("store"));
    // One more, and there is a model.
    let place = Place::with(dataset(21));
    assert_eq!(model_of(&place.run(&[])).value.card.n_train, 15);
}

#[test]
fn what_a_profile_chose_is_fitted_and_judges_nothing() {
    let mut dataset = dataset(41);
    dataset.samples[..35]
        .iter_mut()
        .for_each(|row| row.chosen = true);
    let card = model_of(&Place::with(dataset.clone()).run(&[])).value.card;
    // Of 40 undisturbed ones a quarter would be held out.
    assert_eq!((card.n_train, card.n_test), (34, 6));
    dataset.samples.iter_mut().for_each(|row| row.chosen = true);
    Place::with(dataset)
        .run(&[])
        .failed(3, &["none drawn at random"]);
}

#[test]
fn a_config_mistake_is_shown_with_its_place() {
    let place = Place::new();
    let file = place.path("predictor.toml");
    let broken = |from: &str, to: &str| {
        fs::write(&file, CONFIG.replace(from, to)).unwrap();
        place.run(&[])
    };
    broken("held_out = 0.25", "heldout = 0.25").failed(
        2,
        &["predictor.toml:2:1", "heldout", "expected", "`held_out`"],
    );
    broken("n_epochs = 10", "n_epochs = \"ten\"").failed(2, &["predictor.toml:7:12", "\"ten\""]);
    broken("model = \"mlp\"", "model = \"lstm\"").failed(
        2,
        &[
            "predictor.toml:3:9",
            "lstm",
            "`auto`, `structured`, `mlp`, `ridge`",
        ],
    );

    fs::write(&file, CONFIG).unwrap();
    for (set, says) in [
        ("held_out=0.0", "held_out"),
        ("held_out=1.0", "held_out"),
        ("held_out=0.9999", "lower it"),
        ("mlp.hidden=[0]", "hidden"),
        ("mlp.n_members=1", "n_members"),
        ("ridge.l2=[]", "one penalty or more"),
        ("ridge.l2=[0.0]", "above 0"),
        ("mlp.batch_size=0", "mlp.batch_size"),
        ("mlp.n_epochs=0", "mlp.n_epochs"),
        ("mlp.learning_rate=-1.0", "mlp.learning_rate"),
        ("ridge.l3=[1.0]", "--set ridge.l3=[1.0]"),
    ] {
        place.run(&["--set", set]).failed(2, &[says]);
    }
    assert_nothing_stored(&place.path("store"));
}

#[test]
fn a_data_set_takes_part_once() {
    let place = Place::new();
    let more = ["--more", text(&place.dataset)];
    place.run(&more).failed(2, &[text(&place.dataset), "twice"]);
}

#[test]
fn a_fit_that_runs_away_ends_the_run() {
    let place = Place::new();
    place
        .run(&["--set", "mlp.learning_rate=1e30"])
        .failed(5, &["not finite", "learning rate"]);
    assert_nothing_stored(&place.path("store"));
}

#[test]
fn a_device_or_store_that_is_not_there_is_named() {
    let place = Place::new();
    place
        .run(&["--device", "cuda"])
        .failed(4, &["cuda:0", "CUDA"]);
    fs::write(place.path("store"), "a file, not a folder").unwrap();
    place
        .run(&[])
        .failed(2, &[place.path("store").to_str().unwrap(), "--store"]);
}

#[test]
fn another_metric_is_modelled_by_its_name() {
    let mut measured = dataset(60);
    for sample in &mut measured.samples {
        // Mebibytes that differ from the milliseconds.
        let mebibytes = 2.0 * sample.median_millis + 1.0;
        sample.peak_memory_bytes = Some((mebibytes * f64::from(1 << 20)).round());
    }
    let place = Place::with(measured);
    let latency = model_of(&place.run(&[])).value;
    let answer = place.run(&["--set", "metric=\"peak-memory\""]);
    assert!(answer.stderr.contains("MAE MiB"), "{}", answer.stderr);
    let memory = model_of(&answer).value;
    assert_eq!(latency.card.metric, Metric::Latency);
    assert_eq!(memory.card.metric, Metric::PeakMemory);
    let expected = 2.0 * latency.card.reference_millis + 1.0;
    assert!((memory.card.reference_millis - expected).abs() < 1e-5);
    assert!(latency.validation.noise_floor_mape.is_some());
    assert_eq!(memory.validation.noise_floor_mape, None);
    place
        .run(&["--set", "metric=\"energy\""])
        .failed(3, &["holds no energy", "metrics = [\"energy\"]"]);
}

#[test]
fn a_few_timings_and_the_model_of_another_device_make_a_model() {
    let place = Place::new();
    let source = place.run(&[]).stdout.trim_end().to_owned();
    let mut command = Command::new(env!("CARGO_BIN_EXE_predictor"));
    command.args(["choose", "--source-model", &source, "--n", "8"]);
    let chosen = Answer::of(&mut command);
    assert_eq!(chosen.code, 0, "{}", chosen.stderr);
    let again = Answer::of(&mut command);
    assert_eq!(again.stdout, chosen.stdout);

    // The new device is three times as slow.
    let mut timed = dataset(120);
    let lines = chosen.stdout.lines();
    let chosen: Vec<Genotype> = lines
        .map(|line| artifact::genotype_from_json(line).unwrap())
        .collect();
    assert_eq!(chosen.len(), 8);
    timed.samples.truncate(8);
    let known = source_model(&model_of(&place.run(&[])).value);
    let space = SearchSpace::darts();
    for (sample, genotype) in timed.samples.iter_mut().zip(&chosen) {
        sample.genotype = genotype.clone();
        sample.median_millis = 3.0 * known.predict_millis(&space.encode(genotype));
        sample.disturbed = false;
    }
    let mut in_rounds = timed.clone();
    in_rounds.samples[3].chosen = true;
    let timed = publish(&place.path("other"), timed);
    let in_rounds = publish(&place.path("rounds"), in_rounds);
    let run = |more: &[&str]| place.run_on("--latency-dataset", &timed, "store", more);
    run(&[]).failed(3, &["8 undisturbed architectures", "at least 20"]);
    let asked = ["--source-model", &source];
    let answer = run(&asked);
    assert!(answer.stderr.contains("transfer"), "{}", answer.stderr);
    let model = model_of(&answer).value;
    assert_eq!(model.card.chosen, "transfer");
    assert_eq!((model.card.n_train, model.card.n_test), (8, 8));
    // What a profile chose judges this model no more than another.
    let answer = place.run_on("--latency-dataset", &in_rounds, "store", &asked);
    let judged = model_of(&answer).value;
    let n_judges = judged.validation.held_out.len();
    assert_eq!((judged.card.n_test, n_judges), (7, 7));
    assert!(model.validation.models["transfer"].mape < 0.02);
    let moved = Transferred::from_state(&Topology::darts(), &state(&model, "transfer/")).unwrap();
    for sample in &dataset(40).samples {
        let code = space.encode(&sample.genotype);
        let expected = 3.0 * known.predict_millis(&code);
        let said = moved.predict_millis(&code);
        assert!(
            (said - expected).abs() < 0.05 * expected,
            "{said} {expected}"
        );
    }
    run(&["--source-model", timed.to_str().unwrap()]).failed(3, &["latency-dataset"]);
    let key = run(&["--source-model", &source, "--key-only"]).json();
    assert!(
        key["parts"]["inputs"]["source-model-0"].is_string(),
        "{key}"
    );
}

fn source_model(model: &LatencyModelArtifact) -> Structured {
    Structured::from_state(&Topology::darts(), &state(model, "structured/")).unwrap()
}

/// The cells of a data set, timed on their own at two positions, the second of which a network has twice: a law of their own
/// latencies.
fn cells(dataset: &LatencyDataset) -> Vec<CellSample> {
    let of = |(row, sample): (usize, &LatencySample)| {
        let cells = CellKind::ALL.map(|kind| (kind, sample.genotype.cell(kind).clone()));
        let row = u32::try_from(row).unwrap();
        cells.into_iter().flat_map(move |(kind, cell)| {
            let millis: f64 = cell.genes().map(|(_, gene)| cost(gene.primitive)).sum();
            [(14, 1, 0.4), (7, 2, 0.3)].map(|(size, n_uses, share)| CellSample {
                sample_index: row,
                kind,
                cell: cell.clone(),
                reduction_prev: false,
                channels_prev_prev: 16,
                channels_prev: 16,
                channels: 16,
                size_prev_prev: size,
                size_prev: size,
                n_uses,
                median_millis: share * millis,
                p10_millis: share * millis,
                p90_millis: share * millis,
                n_repeats: 15,
                anchor_ratio: 1.0,
            })
        })
    };
    dataset.samples.iter().enumerate().flat_map(of).collect()
}

#[test]
fn timed_cells_are_fitted_with_their_networks() {
    let mut data = dataset(60);
    let alone = Place::with(data.clone());
    data.cells = cells(&data);
    let place = Place::with(data);
    let model = model_of(&place.run(&[])).value;
    let without = model_of(&alone.run(&[])).value;
    let shape = |model: &LatencyModelArtifact, name: &str| {
        let tensor = model.tensors.get(&format!("structured/{name}"))?;
        Some(tensor.shape.clone())
    };
    // 59 are undisturbed, a quarter of them is held out.
    assert_eq!(shape(&model, "codes"), Some(vec![44, 224]));
    assert_eq!(shape(&model, "cells"), Some(vec![88, 2]));
    assert_eq!(shape(&model, "alphas").unwrap()[1], 44 + 88);
    assert_eq!(shape(&without, "cells"), None);
    let error = |model: &LatencyModelArtifact| model.validation.models["structured"].mape;
    assert!(
        error(&model) < 0.8 * error(&without),
        "{} {}",
        error(&model),
        error(&without)
    );
    // The controls know nothing of cells.
    for control in ["ridge", "mlp"] {
        assert_eq!(
            model.validation.models[control],
            without.validation.models[control]
        );
    }

    let table = place.dataset.join("samples.parquet");
    let beside = place.dataset.join("cells.parquet");
    let beside = beside.to_str().unwrap();
    let bench = |more: &[&str]| {
        let arguments = ["bench", "--train", "40", "--model", "structured", "--json"];
        predictor(&[&arguments, more].concat(), &table)
    };
    let mape = |more: &[&str]| -> f64 { bench(more).json()["median_ape"].as_f64().unwrap() };
    assert!(mape(&["--cells", beside]) < mape(&[]));

    // Cells of other architectures, and of another space.
    let mut others = dataset(60);
    others.samples.swap(0, 7);
    others.cells = cells(&others);
    let others = publish(&place.path("others"), others).join("cells.parquet");
    bench(&["--cells", others.to_str().unwrap()])
        .failed(3, &["a cell of the architecture in row 0"]);
    let costs = place.path("costs.parquet");
    write_costs(&costs);
    let space = ["--space", "nas-bench-201", "--target", "a_ms"];
    let arguments = [&["bench", "--cells", beside], &space[..]].concat();
    predictor(&arguments, &costs).failed(3, &[]);
    let config = place.path("predictor.toml");
    let config = config.to_str().unwrap();
    let arguments = ["fit", "--config", config, "--cells", beside];
    predictor(&arguments, &table).failed(2, &[]);
}

/// A table of 400 architectures of NAS-Bench-201 and three devices, one with gaps.
fn write_costs(file: &Path) {
    let names = [
        "none",
        "skip_connect",
        "nor_conv_1x1",
        "nor_conv_3x3",
        "avg_pool_3x3",
    ];
    let mut rng = ChaCha8Rng::seed_from_u64(6);
    let (mut archs, mut columns) = (Vec::new(), [vec![], vec![], vec![]]);
    for row in 0..400 {
        let ops: [usize; 6] = std::array::from_fn(|_| rng.random_range(0..5));
        let name = |edge: usize| names[ops[edge]];
        archs.push(format!(
            "|{}~0|+|{}~0|{}~1|+|{}~0|{}~1|{}~2|",
            name(0),
            name(1),
            name(2),
            name(3),
            name(4),
            name(5)
        ));
        for (device, column) in columns.iter_mut().enumerate() {
            let costs = [0.0, 0.3, 1.0 + device as f64, 4.0, 0.8];
            let sum: f64 = ops.iter().map(|&op| costs[op]).sum();
            let noise = 1.0 + 0.01 * (2.0 * rng.random::<f64>() - 1.0);
            let gap = device == 2 && row % 4 == 0;
            column.push((!gap).then_some((2.0 + sum) * noise));
        }
    }
    let mut arrays: Vec<(&str, ArrayRef)> = vec![("arch", Arc::new(StringArray::from(archs)))];
    for (name, column) in ["a_ms", "b_ms", "c_ms"].into_iter().zip(columns) {
        arrays.push((name, Arc::new(Float64Array::from(column))));
    }
    let batch = RecordBatch::try_from_iter_with_nullable(
        arrays.into_iter().map(|(name, array)| (name, array, true)),
    )
    .unwrap();
    let mut writer =
        ArrowWriter::try_new(File::create(file).unwrap(), batch.schema(), None).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
}

fn predictor(arguments: &[&str], file: &Path) -> Answer {
    let mut command = Command::new(env!("CARGO_BIN_EXE_predictor"));
    command.arg(arguments[0]).arg("--data").arg(file);
    Answer::of(command.args(&arguments[1..]))
}

#[test]
fn a_table_of_costs_is_benched_fitted_and_transferred() {
    let place = Place::new();
    let file = place.path("costs.parquet");
    write_costs(&file);
    let json = |arguments: &[&str]| predictor(arguments, &file).json();
    let space = ["--space", "nas-bench-201", "--json"];
    let with = |first: &str, rest: &[&'static str]| {
        let arguments = [&[first], &space[..], rest].concat();
        json(&arguments)
    };
    let answer = with(
        "bench",
        &["--target", "c_ms", "--train", "60", "--seed", "1"],
    );
    assert_eq!(answer["n_train"], 60);
    assert_eq!(answer["n_test"], 240, "gaps do not count");
    assert_eq!(answer["model"], "structured");
    assert!(
        answer["reason"].as_str().unwrap().contains("ridge"),
        "{answer}"
    );
    for (figure, low, high) in [
        ("mape", 0.001, 0.03),
        ("median_ape", 0.001, 0.03),
        ("within_5_percent", 0.9, 1.0),
        ("within_10_percent", 0.95, 1.0),
        ("spearman", 0.98, 1.0),
        ("kendall", 0.9, 1.0),
        ("regret", 0.0, 0.2),
        ("coverage_90", 0.75, 1.0),
    ] {
        let value = answer[figure].as_f64().unwrap();
        assert!((low..=high).contains(&value), "{figure}: {answer}");
    }
    let again = with(
        "bench",
        &["--target", "c_ms", "--train", "60", "--seed", "1"],
    );
    assert_eq!(again["mape"], answer["mape"]);
    let other = with(
        "bench",
        &["--target", "c_ms", "--train", "60", "--seed", "2"],
    );
    assert_ne!(other["mape"], answer["mape"]);
    let ridge = with(
        "bench",
        &["--target", "c_ms", "--train", "60", "--model", "ridge"],
    );
    assert_eq!(ridge["model"], "ridge");
    let dear = with(
        "bench",
        &["--target", "c_ms", "--train", "60", "--min-value", "10"],
    );
    assert!(dear["n_test"].as_u64().unwrap() < 200, "{dear}");

    let fitted = with("fit", &["--target", "a_ms", "--train", "50"]);
    assert_eq!(
        (&fitted["n_train"], &fitted["n_test"]),
        (&50.into(), &50.into())
    );
    assert!(fitted["mape"].as_f64().unwrap() < 0.05, "{fitted}");

    let moved = with(
        "transfer",
        &[
            "--target",
            "c_ms",
            "--sources",
            "a_ms,b_ms",
            "--train",
            "10",
            "--pool",
            "0..200",
            "--test",
            "200..400",
        ],
    );
    assert_eq!(
        (&moved["n_train"], &moved["n_test"]),
        (&10.into(), &150.into())
    );
    assert!(moved["spearman"].as_f64().unwrap() > 0.97, "{moved}");

    let draws = [
        "transfer",
        "--target",
        "c_ms",
        "--sources",
        "a_ms,b_ms",
        "--draws",
        "3",
    ];
    let answer = predictor(&[&draws[..], &space[..]].concat(), &file);
    assert_eq!(answer.done().lines().count(), 3, "{answer:?}");
    let rounds = ["--target", "c_ms", "--train", "70", "--rounds"];
    let rounds = with("bench", &rounds);
    assert_eq!(
        (&rounds["n_train"], &rounds["n_test"]),
        (&70.into(), &230.into())
    );
    assert!(rounds["mape"].as_f64().unwrap() < 0.03, "{rounds}");
}

#[test]
fn a_table_that_cannot_be_used_is_named() {
    let place = Place::new();
    let file = place.path("costs.parquet");
    write_costs(&file);
    let failed = |arguments: &[&str], code: i32, says: &[&str]| {
        predictor(arguments, &file).failed(code, says);
    };
    let space = ["--space", "nas-bench-201"];
    let bench = |rest: &[&'static str]| [&["bench"], &space[..], rest].concat();
    failed(
        &bench(&["--target", "d_ms"]),
        3,
        &["costs.parquet", "no column d_ms", "a_ms"],
    );
    failed(&bench(&["--target", "arch"]), 3, &["column arch"]);
    failed(
        &bench(&["--target", "a_ms", "--train", "400"]),
        2,
        &["--train"],
    );
    failed(
        &bench(&["--target", "a_ms", "--train", "9"]),
        2,
        &["at least 10"],
    );
    failed(
        &["bench", "--space", "darts", "--target", "a_ms"],
        3,
        &["no column normal_0"],
    );
    failed(
        &["bench", "--space", "mars", "--target", "a_ms"],
        2,
        &["nas-bench-201"],
    );
    fs::write(&file, "no parquet").unwrap();
    failed(&bench(&["--target", "a_ms"]), 3, &["costs.parquet"]);
}
