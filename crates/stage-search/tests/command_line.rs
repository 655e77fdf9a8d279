//! The program: what it prints, where it stops, and with which exit code.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use artifact::manifest::{Build, Origin};
use artifact::{
    Digest, Evaluation, FloatTensor, HeldOut, KeyParts, LatencyModelArtifact, MeasurementSettings,
    Metric, ModelCard, SearchResult, SearchSummary, Store, TimingResult, Validation, stage,
};
use command_line::{Answer, assert_nothing_stored, text};
use latency::{LatencyModel, Ridge};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use serde_json::Value;
use space::{Genotype, Primitive, SearchSpace};

const CONFIG: &str = r#"seed = 3
method = "pc-darts"
order = "first-order"
objective = "penalty"
lambda = 0.5
bridge = "soft"
n_bridge_samples = 2
n_epochs = 2
n_warmup_epochs = 1
batch_size = 8
n_validation_images = 8

[target]
latency = "none"
of = "PC_DARTS_cifar"
probability = 0.95
slack = 0.05
multiplier_rate = 0.5

[guards]
policy = "warn"
max_skips = 8
min_convolutions = 0
max_parameter_free = 1.0
min_entropy = 0.0
n_eigenvalue_steps = 0
max_eigenvalue_growth = 2.0
auxiliary_skip = 0.0

[data]
dir = "DATA"
train_fraction = 0.5
valid_fraction = 0.5
pad = 1
flip = true
cutout = 4
random_resized_crop = false
color_jitter = 0.0
hue_jitter = 0.0
resize = 0

[network]
stem = "conv3x3"
n_layers = 3
init_channels = 4
channel_ratio = 2

[weights]
learning_rate = 0.05
last_learning_rate = 0.0
n_warmup_epochs = 0
momentum = 0.9
weight_decay = 3e-4
clip_norm = 5.0

[architecture]
learning_rate = 6e-3
betas = [0.5, 0.999]
weight_decay = 1e-3
clip_norm = 0.0
"#;

/// Height and width of the images, in pixels.
const SIZE: usize = 8;

/// A folder with images, a config and a latency model.
struct Place {
    dir: tempfile::TempDir,
    latency_model: PathBuf,
}

impl Place {
    fn new() -> Self {
        Self::with(Metric::Latency)
    }

    /// With a model of that metric.
    fn with(metric: Metric) -> Self {
        let dir = tempfile::tempdir().unwrap();
        write_images(&dir.path().join("data"));
        let config = CONFIG.replace("DATA", text(&dir.path().join("data")));
        fs::write(dir.path().join("search.toml"), config).unwrap();
        let latency_model = latency_model(&dir.path().join("models"), metric);
        Self { dir, latency_model }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn run(&self, more: &[&str]) -> Answer {
        self.run_in("store", more)
    }

    fn command(&self, store: &str, more: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_search"));
        command
            .arg("run")
            .arg("--config")
            .arg(self.path("search.toml"))
            .arg("--store")
            .arg(self.path(store))
            .arg("--latency-model")
            .arg(&self.latency_model)
            .args(more);
        if !more.contains(&"--threads") {
            command.args(["--threads", "1"]);
        }
        command
    }

    /// Whether it would take the config.
    fn check(&self, more: &[&str]) -> Answer {
        let config = self.path("search.toml");
        let mut command = Command::new(env!("CARGO_BIN_EXE_search"));
        Answer::of(
            command
                .args(["check", "--config", text(&config)])
                .args(more),
        )
    }

    fn run_in(&self, store: &str, more: &[&str]) -> Answer {
        Answer::of(&mut self.command(store, more))
    }

    /// Runs it in the store `killed` until it has said such a line, and kills it (SIGKILL); false if it ended before that.
    fn is_killed_behind(&self, sets: &[&str], mut is_such: impl FnMut(&str) -> bool) -> bool {
        let mut child = self
            .command("killed", sets)
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        lines.any(|line| is_such(&line.unwrap()));
        // It may have ended by itself.
        let _ = child.kill();
        !child.wait().unwrap().success()
    }
}

fn folder(answer: &Value) -> PathBuf {
    PathBuf::from(answer["path"].as_str().unwrap())
}

/// Writes a data set in IDX: dark and bright images, by class.
fn write_images(dir: &Path) {
    write_images_of(dir, SIZE);
}

fn write_images_of(dir: &Path, size: usize) {
    const N: usize = 40;
    fs::create_dir_all(dir).unwrap();
    let header = |axes: &[usize]| {
        let mut bytes = vec![0, 0, 8, axes.len() as u8];
        axes.iter()
            .for_each(|&n| bytes.extend((n as u32).to_be_bytes()));
        bytes
    };
    let pixels = (0..N).flat_map(|index| {
        (0..size * size).map(move |pixel| (120 * (index % 2) + (7 * index + 3 * pixel) % 90) as u8)
    });
    let images: Vec<u8> = header(&[N, size, size]).into_iter().chain(pixels).collect();
    let labels: Vec<u8> = header(&[N])
        .into_iter()
        .chain((0..N).map(|index| (index % 2) as u8))
        .collect();
    fs::write(dir.join("train-images-idx3-ubyte"), images).unwrap();
    fs::write(dir.join("train-labels-idx1-ubyte"), labels).unwrap();
}

/// What the latencies of the model are of: networks for the images of [`write_images`].
fn profiled() -> Value {
    serde_json::json!({
        "network": {
            "stem": "conv3x3", "n_layers": 3, "init_channels": 4, "in_channels": 1, "n_classes": 2, "image_size": SIZE,
        },
        "timing": { "batch_size": 1, "n_threads": 1, "n_warmup": 1, "n_repeats": 3 },
        "device": "cpu",
        "runtime": "native-cpu",
    })
}

/// Publishes an additive model of a law in which separable convolutions are slow.
fn latency_model(store: &Path, metric: Metric) -> PathBuf {
    let space = SearchSpace::darts();
    let law = |genotype: &Genotype| {
        let is_slow = |primitive| {
            matches!(
                primitive,
                Primitive::SepConv3x3 | Primitive::SepConv5x5 | Primitive::DilConv5x5
            )
        };
        let cells = space::CellKind::ALL.map(|kind| genotype.cell(kind).genes());
        let n_slow = cells
            .into_iter()
            .flatten()
            .filter(|(_, gene)| is_slow(gene.primitive))
            .count();
        1.0 + n_slow as f64
    };
    let mut rng = ChaCha8Rng::seed_from_u64(0);
    let genotypes: Vec<Genotype> = (0..300).map(|_| space.sample(&mut rng)).collect();
    let codes: Vec<Vec<f32>> = genotypes.iter().map(|g| space.encode(g)).collect();
    let millis: Vec<f64> = genotypes.iter().map(law).collect();
    let ridge = Ridge::fit(&codes, &millis, 0.01).unwrap();
    let held_out = genotypes[..100]
        .iter()
        .enumerate()
        .map(|(index, genotype)| {
            let predicted = ridge.predict_millis(&space.encode(genotype));
            HeldOut {
                measured_millis: predicted * (0.97 + 0.0006 * index as f64),
                predicted_millis: [("ridge".to_owned(), predicted)].into(),
                spread: Default::default(),
            }
        });
    let held_out = held_out.collect();
    let tensors = ridge
        .state()
        .into_iter()
        .map(|(name, tensor)| {
            let tensor = FloatTensor::new(tensor.shape, tensor.values);
            (format!("ridge/{name}"), tensor)
        })
        .collect();
    let value = LatencyModelArtifact {
        card: ModelCard {
            metric,
            settings: Some(serde_json::from_value(profiled()).unwrap()),
            chosen: "ridge".to_owned(),
            reason: String::new(),
            reference_millis: 5.0,
            n_train: 300,
            n_test: 0,
        },
        tensors,
        validation: Validation {
            models: [].into(),
            noise_floor_mape: None,
            held_out,
        },
    };
    let parts = KeyParts::new(&stage::PREDICTOR, &serde_json::json!({})).unwrap();
    Store::at(store)
        .publish(parts, origin(), value)
        .unwrap()
        .dir
}

fn origin() -> Origin {
    Origin {
        device: "cpu".to_owned(),
        n_threads: 1,
        machine: Value::Null,
        build: Build::current(),
        started_unix_secs: 0,
        elapsed_secs: 0.0,
    }
}

#[test]
fn a_search_is_made_once_and_its_bytes_repeat() {
    let place = Place::new();
    let first = place.run(&["--json"]).json();
    assert_eq!(first["kind"], "search-result");
    assert_eq!(first["cached"], false);
    let again = place.run(&["--json"]).json();
    assert_eq!(again["cached"], true);
    assert_eq!(again["path"], first["path"]);

    let elsewhere = place.run_in("other store", &["--json"]).json();
    assert_eq!(elsewhere["key"], first["key"]);
    for name in ["genotype.json", "alphas.safetensors", "trace.parquet"] {
        let [a, b] =
            [&first, &elsewhere].map(|answer| fs::read(folder(answer).join(name)).unwrap());
        assert!(a == b, "{name} differs");
    }
    let other = place.run(&["--json", "--set", "seed=4"]).json();
    let [a, b] =
        [&first, &other].map(|answer| fs::read(folder(answer).join("alphas.safetensors")).unwrap());
    assert!(a != b, "another seed finds the same alpha");
}

#[test]
fn two_that_are_asked_for_the_same_make_it_once() {
    let place = Place::new();
    let start = || {
        let mut command = place.command("store", &["--json"]);
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped());
        child.spawn().unwrap()
    };
    let answers: Vec<Value> = [start(), start()]
        .into_iter()
        .map(|child| {
            let output = child.wait_with_output().unwrap();
            serde_json::from_slice(&output.stdout).unwrap()
        })
        .collect();
    assert_eq!(answers[0]["path"], answers[1]["path"]);
    let n_cached = answers.iter().filter(|answer| answer["cached"] == true);
    assert_eq!(n_cached.count(), 1);
    assert!(!folder(&answers[0]).with_extension("work").exists());
}

#[test]
fn the_trace_has_a_row_per_epoch_and_alpha_is_frozen_at_first() {
    let place = Place::new();
    let answer = place.run(&["--json", "--set", "n_epochs=3"]).json();
    let SearchResult {
        trace,
        predicted_latency_millis,
        ..
    } = artifact::open::<SearchResult>(&folder(&answer))
        .unwrap()
        .value;
    assert_eq!(
        trace.iter().map(|row| row.epoch).collect::<Vec<_>>(),
        [0, 1, 2]
    );
    let soft: Vec<f64> = trace.iter().map(|row| row.soft_latency_millis).collect();
    // The first epoch leaves alpha as it was drawn; all primitives weigh about the same there.
    let entropy = 8_f64.ln();
    assert!((trace[0].entropy_normal - entropy).abs() < 1e-4);
    assert!(trace[1].entropy_normal < trace[0].entropy_normal);
    assert!(soft[1] != soft[0] && soft[2] != soft[1], "{soft:?}");
    assert_eq!(
        trace[2].derived_latency_millis.to_bits(),
        predicted_latency_millis.to_bits()
    );
    for row in &trace {
        let expected = 0.5 * row.soft_latency_millis / 5.0;
        assert!((row.latency_loss - expected).abs() < 1e-12);
    }
}

#[test]
fn a_strong_lambda_finds_what_the_model_calls_fast() {
    let place = Place::new();
    let more = [
        "--set",
        "n_epochs=6",
        "--set",
        "architecture.learning_rate=0.1",
    ];
    let predicted = |lambda| {
        let answer = place
            .run(&[&["--json", "--set", lambda][..], &more].concat())
            .json();
        let opened = artifact::open::<SearchResult>(&folder(&answer)).unwrap();
        opened.value.predicted_latency_millis
    };
    let (blind, aware) = (predicted("lambda=0"), predicted("lambda=100"));
    assert!(
        aware < 1.3 && aware < blind,
        "{aware} ms against {blind} ms"
    );
}

fn search_result(answer: &Value) -> SearchResult {
    artifact::open::<SearchResult>(&folder(answer))
        .unwrap()
        .value
}

const TARGET: [&str; 5] = [
    "--json",
    "--set",
    "objective=target",
    "--set",
    "architecture.learning_rate=0.05",
];

#[test]
fn a_target_is_met_with_its_probability_and_not_by_far() {
    let place = Place::new();
    for (set, target_millis) in [("5.5ms", 5.5), ("3.5ms", 3.5), ("12ms", 12.0)] {
        let target = format!("target.latency={set}");
        let answer = place.run(
            &[
                &TARGET[..],
                &["--set", &target, "--set", "target.slack=0.15"],
            ]
            .concat(),
        );
        let found = search_result(&answer.json());
        let record = found.target.unwrap();
        assert_eq!(record.target_millis, target_millis);
        assert!(record.is_met && record.upper_millis <= target_millis);
        // Of errors between -3 and +3 %, 95 % are below +2.6 or +2.7 %.
        let ratio = record.upper_millis / found.predicted_latency_millis;
        assert!((1.026..1.0285).contains(&ratio), "{ratio}");
        let [low, high] = found.interval_millis.unwrap();
        assert!(low < found.predicted_latency_millis && found.predicted_latency_millis < high);
        let last = found.trace.last().unwrap();
        assert_eq!(last.latency_weight, Some(found.lambda));
        if found.lambda > 0.0 {
            assert!(record.upper_millis >= 0.85 * target_millis);
        }
        if record.n_changed_genes > 0 {
            assert!(
                last.event
                    .as_ref()
                    .unwrap()
                    .contains("genes of the derived cells changed")
            );
            assert_ne!(record.derived, found.genotype);
        } else {
            assert_eq!(record.derived, found.genotype);
        }
    }
}

#[test]
fn another_metric_is_kept_to_in_its_unit() {
    let place = Place::with(Metric::PeakMemory);
    let search = |target| place.run(&[&TARGET[..], &["--set", target]].concat());
    let answer = search("target.latency=5.5MiB");
    assert!(answer.stderr.contains(" MiB"), "{}", answer.stderr);
    let found = search_result(&answer.json());
    assert_eq!(found.metric, Metric::PeakMemory);
    let record = found.target.unwrap();
    assert!(record.target_millis == 5.5 && record.is_met, "{record:?}");
    search("target.latency=5.5ms").failed(2, &["is in ms", "of peak-memory", "MiB"]);
    search("target.latency=0.5MiB").failed(6, &["0.5000 MiB", "the least"]);
}

#[test]
fn a_ratio_is_of_the_genotype_that_it_names() {
    let place = Place::new();
    let sets = [
        "--set",
        "target.latency=0.75x",
        "--set",
        "target.of=DARTS_V1",
    ];
    let slow = {
        let answer = place.run(&[&TARGET[..], &sets].concat()).json();
        search_result(&answer).target.unwrap().target_millis
    };
    let text = Genotype::named("DARTS_V1").unwrap().to_string();
    let of = format!("target.of=\"{text}\"");
    let sets = ["--set", "target.latency=0.75x", "--set", &of];
    let answer = place.run(&[&TARGET[..], &sets].concat()).json();
    assert_eq!(search_result(&answer).target.unwrap().target_millis, slow);
    assert!((slow - 0.75 * millis_by_law(&text)).abs() < 0.1, "{slow}");
}

/// What a genotype takes by the law.
fn millis_by_law(text: &str) -> f64 {
    let n_slow = text.matches("sep_conv").count() + text.matches("dil_conv_5x5").count();
    1.0 + n_slow as f64
}

#[test]
fn a_given_genotype_is_recorded_with_what_is_predicted_of_it() {
    let place = Place::new();
    let take = |genotype: &str, target: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_search"));
        command.args(["take", genotype, "--config"]);
        command.arg(place.path("search.toml")).arg("--store");
        command.arg(place.path("store")).arg("--latency-model");
        command.arg(&place.latency_model).args(["--set", target]);
        Answer::of(command.arg("--json"))
    };
    let expected = millis_by_law(&Genotype::named("DARTS_V1").unwrap().to_string());
    for (target, is_met) in [("99ms", true), ("2ms", false)] {
        let answer = take("DARTS_V1", &format!("target.latency={target}"));
        let found = search_result(&answer.json());
        assert_eq!(found.genotype, Genotype::named("DARTS_V1").unwrap());
        assert_eq!(found.method, "given");
        let predicted = found.predicted_latency_millis;
        assert!((predicted - expected).abs() < 0.2, "{predicted}");
        let target = found.target.unwrap();
        assert_eq!((target.is_met, target.n_changed_genes), (is_met, 0));
        assert!(found.candidates.is_empty() && found.alphas.is_empty());
    }
    take("DARTS_V3", "target.latency=none").failed(2, &["DARTS_V3", "DARTS_V1"]);
}

#[test]
fn what_is_too_fast_for_the_space_is_refused_before_the_search() {
    let place = Place::new();
    let sets = ["--set", "objective=target", "--set", "target.latency=0.5ms"];
    place
        .run(&sets)
        .failed(6, &["0.5000 ms", "the least", "target.latency"]);
    for (set, says) in [
        ("target.latency=fast", "none, 0.4ms or 0.6x"),
        ("objective=target", "target.latency"),
        ("method=random", "target.latency"),
        ("target.of=NASNET", "target.of"),
        ("target.probability=1.0", "target.probability"),
        ("guards.max_eigenvalue_growth=1.0", "above 1"),
        ("precision=bf16", "is for --device cuda"),
        ("precision=f16", "tf32"),
    ] {
        place.run(&["--set", set]).failed(2, &[says]);
    }
    let sure = [
        "--set",
        "target.probability=0.999",
        "--set",
        "target.latency=5ms",
    ];
    place.run(&sure).failed(3, &["held-out", "0.999"]);
    assert_nothing_stored(&place.path("store"));
}

#[test]
fn a_random_genotype_keeps_to_the_target() {
    let place = Place::new();
    let sets = [
        "--json",
        "--set",
        "method=random",
        "--set",
        "target.latency=8.3ms",
    ];
    let answer = place
        .run(&[&sets[..], &["--set", "target.slack=0.2"]].concat())
        .json();
    let found = search_result(&answer);
    let target = found.target.unwrap();
    assert!(target.is_met && target.upper_millis > 0.8 * 8.3);
    assert!(found.trace.is_empty() && found.alphas.is_empty());
    assert_eq!(
        (found.method.as_str(), found.objective.as_str()),
        ("random", "none")
    );
    let other = place.run(&[&sets[..], &["--set", "target.slack=0.2", "--set", "seed=9"]].concat());
    assert_ne!(search_result(&other.json()).genotype, found.genotype);
}

const WITHIN_8MS: [&str; 5] = [
    "--json",
    "--set",
    "objective=target",
    "--set",
    "target.latency=8ms",
];

const SELECTS: [&str; 2] = ["--set", "selection={n_candidates=3, n_epochs=2}"];

/// All candidates of a result keep to its target, and the one that came out is the best of them.
#[track_caller]
fn assert_the_best_came_out(found: &SearchResult) {
    let candidates = &found.candidates;
    assert_eq!(candidates.len(), 3);
    assert_eq!(candidates[0].genotype, found.genotype);
    assert!(candidates.is_sorted_by(|a, b| a.train_loss <= b.train_loss));
    assert!(candidates[0].train_loss < candidates[2].train_loss);
    for (index, candidate) in candidates.iter().enumerate() {
        let target = found.target.as_ref().unwrap();
        assert!(candidate.predicted_latency_millis <= target.target_millis);
        let others = &candidates[index + 1..];
        assert!(
            others
                .iter()
                .all(|other| other.genotype != candidate.genotype)
        );
    }
}

#[test]
fn of_several_candidates_the_best_comes_out() {
    let place = Place::new();
    let alone = search_result(&place.run(&WITHIN_8MS).json());
    assert!(alone.candidates.is_empty());
    let sets = [&WITHIN_8MS[..], &SELECTS].concat();
    let answer = place.run(&sets);
    let found = search_result(&answer.json());
    assert_the_best_came_out(&found);
    // Alpha is as it was without a choice, and what it stands for is one of the candidates.
    assert_eq!(found.alphas, alone.alphas);
    assert!(
        found
            .candidates
            .iter()
            .any(|candidate| candidate.genotype == alone.genotype)
    );
    let event = found.trace.last().unwrap().event.as_deref().unwrap();
    assert!(event.contains("of 3 candidates"), "{event}");
    for text in ["candidate 1/3: train", "candidate 3/3: train"] {
        assert!(answer.stderr.contains(text), "{}", answer.stderr);
    }
    let again = search_result(&place.run_in("other store", &sets).json());
    assert_eq!(again, found);
}

/// Two surrogates that want the opposite choose opposite candidates from the same draws, within the target; what alpha stands for
/// stays one of them.
#[test]
fn of_many_draws_the_surrogate_chooses_candidates() {
    let place = Place::new();
    let alone = search_result(&place.run(&WITHIN_8MS).json());
    let poolings = |weight: &str| {
        let selection = format!(
            "selection={{n_candidates=3, n_epochs=1, n_draws=40, surrogate={{normal_max_pool_3x3={weight}, normal_avg_pool_3x3={weight}}}}}"
        );
        let found = search_result(
            &place
                .run(&[&WITHIN_8MS[..], &["--set", &selection]].concat())
                .json(),
        );
        assert_the_best_came_out(&found);
        let event = found.trace.last().unwrap().event.as_deref().unwrap();
        assert!(
            event.contains("of 3 candidates out of 40 genotypes"),
            "{event}"
        );
        let (own, draws): (Vec<_>, Vec<_>) = found
            .candidates
            .iter()
            .map(|own| &own.genotype)
            .partition(|genotype| **genotype == alone.genotype);
        assert_eq!(own.len(), 1);
        let is_pooling =
            |primitive| [Primitive::MaxPool3x3, Primitive::AvgPool3x3].contains(&primitive);
        draws
            .iter()
            .map(|genotype| {
                let genes = genotype.normal.genes();
                genes.filter(|(_, gene)| is_pooling(gene.primitive)).count()
            })
            .collect::<Vec<_>>()
    };
    let (few, many) = (poolings("0.1"), poolings("-0.1"));
    assert!(few.iter().all(|&n| n <= 1), "{few:?}");
    assert!(many.iter().all(|&n| n >= 4), "{many:?}");
    let selection =
        "selection={n_candidates=3, n_epochs=1, n_draws=40, surrogate={normal_max_pol_3x3=0.1}}";
    place
        .run(&["--set", selection])
        .failed(2, &["normal_max_pol_3x3", "search learn"]);
}

#[test]
fn what_candidates_of_searches_told_is_learned() {
    let place = Place::new();
    let searched = |seed: &str, selection: &str| {
        let (seed, selection) = (
            format!("seed={seed}"),
            format!("selection={{n_epochs=1, {selection}}}"),
        );
        let random = [
            "--json",
            "--set",
            "method=random",
            "--set",
            "target.latency=9ms",
            "--set",
            "target.slack=0.9",
        ];
        place
            .run(&[&random[..], &["--set", &seed, "--set", &selection]].concat())
            .json()
    };
    let (one, other, small) = (
        searched("1", "n_candidates=30"),
        searched("2", "n_candidates=30"),
        searched("1", "n_candidates=4"),
    );
    // The method draws what it trains, whatever else is asked.
    for n_draws in [2, 60] {
        let same = searched("1", &format!("n_candidates=30, n_draws={n_draws}"));
        assert_eq!(
            search_result(&same).candidates,
            search_result(&one).candidates
        );
    }
    let [one, other, small] = [one, other, small].map(|answer| folder(&answer));
    let asked = |args: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_search"));
        Answer::of(command.args(args))
    };
    let learned = asked(&["learn", text(&one), text(&other)]);
    assert_eq!(learned.code, 0, "{}", learned.stderr);
    let table = &learned.stdout;
    assert!(table.contains("60 candidates (searches: 2)"), "{table}");
    // A config takes it as it is. What expects the opposite foretells the opposite.
    let file = place.path("search.toml");
    let config = fs::read_to_string(&file).unwrap();
    let expects = |table: &str| {
        let selection = "[selection]\nn_candidates = 2\nn_draws = 9\nn_epochs = 1\n";
        fs::write(&file, format!("{config}\n{selection}\n{table}")).unwrap();
        let answer = asked(&["expect", "--config", text(&file), text(&one)]);
        assert_eq!(answer.code, 0, "{}", answer.stderr);
        let (says, correlation) = answer.stdout.trim().rsplit_once(' ').unwrap();
        assert!(says.contains("30 candidates, rank correlation"), "{says}");
        correlation.parse::<f64>().unwrap()
    };
    let opposite = table
        .replace(" = -", " = +")
        .replace(" = 0", " = -0")
        .replace(" = +", " = ");
    assert_eq!(expects(&opposite), -expects(table));
    let found = search_result(&place.run(&["--json"]).json());
    assert_eq!(found.candidates.len(), 2);
    asked(&["learn", text(&one)]).failed(3, &["30 candidates in all"]);
    asked(&["learn", text(&one), text(&one)]).failed(3, &[text(&one), "one search"]);
    for command in [&["learn"][..], &["expect", "--config", text(&file)]] {
        asked(&[command, &[text(&small)]].concat()).failed(3, &[text(&small), "4 candidates"]);
    }
}

/// Publishes evaluations of networks whose accuracy rises by 2 points where the latency is e times as long, and falls by 0.1 for every
/// pooling of the normal cell.
fn evaluations(
    store: &Path,
    [n, n_epochs]: [usize; 2],
    images: &str,
    change: impl Fn(&mut Evaluation),
) -> Vec<PathBuf> {
    let mut rng = ChaCha8Rng::seed_from_u64(7);
    let publish = |index| {
        let genotype = SearchSpace::darts().sample(&mut rng);
        let millis = 1.0 + index as f64 / n as f64;
        let genes = genotype.normal.genes();
        let n_poolings = genes
            .filter(|(_, gene)| {
                matches!(
                    gene.primitive,
                    Primitive::MaxPool3x3 | Primitive::AvgPool3x3
                )
            })
            .count();
        let settings: MeasurementSettings = serde_json::from_value(profiled()).unwrap();
        let mut value = Evaluation {
            genotype,
            network: settings.network.clone(),
            settings,
            search: SearchSummary {
                method: "random".to_owned(),
                objective: "target".to_owned(),
                lambda: 0.0,
                seed: index,
                metric: Metric::Latency,
                predicted_latency_millis: millis,
                interval_millis: None,
                target: None,
            },
            seed: index,
            test_accuracy: 0.7 + 0.02 * millis.ln() - 0.001 * n_poolings as f64,
            n_test: Some(2000),
            test_loss: 1.0,
            latency: TimingResult {
                median_millis: millis,
                p10_millis: millis,
                p90_millis: millis,
                n_repeats: 3,
                anchor_ratio: 1.0,
                disturbed: false,
                peak_memory_bytes: None,
                energy_joules: None,
            },
            n_params: 1,
            n_macs: 1,
            n_multi_adds: 1,
            epochs: Vec::new(),
            weights: Default::default(),
            export: None,
        };
        change(&mut value);
        let config = serde_json::json!({
            "seed": index, "n_epochs": n_epochs, "data": { "dir": format!("images of {index}"), "pad": 2 },
        });
        let parts = KeyParts::new(&stage::EVALUATE, &config).unwrap();
        let parts = parts.input("images", Digest::of(images.as_bytes()));
        Store::at(store)
            .publish(parts, origin(), value)
            .unwrap()
            .dir
    };
    (0..n as u64).map(publish).collect()
}

#[test]
fn what_is_expected_is_held_against_whole_trainings() {
    let place = Place::new();
    let file = place.path("search.toml");
    let mut config = fs::read_to_string(&file).unwrap();
    config += "[selection]\nn_candidates = 2\nn_draws = 9\nn_epochs = 1\n[selection.surrogate]\n\
               normal_max_pool_3x3 = 0.1\nnormal_avg_pool_3x3 = 0.1\n";
    fs::write(&file, config).unwrap();
    let asked = |dirs: &[PathBuf]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_search"));
        command.args(["expect", "--config", text(&file), "--evaluations"]);
        Answer::of(command.args(dirs))
    };
    let published = |n_epochs, images: &str, change: &dyn Fn(&mut Evaluation)| {
        let n_stores = fs::read_dir(place.dir.path()).unwrap().count();
        let store = place.path(&format!("store {n_stores}"));
        evaluations(&store, [40, n_epochs], images, change)
    };
    let all = published(3, "images", &|_| ());
    let answer = asked(&all);
    assert_eq!(answer.code, 0, "{}", answer.stderr);
    let says = &answer.stdout;
    let number = |before: &str| -> f64 {
        let (_, rest) = says.split_once(before).expect(before);
        let number = rest.split([',', ';', ' ']).next().expect("a number");
        number.parse().expect(number)
    };
    assert!(says.starts_with("40 evaluations"), "{says}");
    // Latency tells more of these than poolings do; what is left is all poolings.
    let correlation = number("test accuracy ");
    assert!((-0.9..0.0).contains(&correlation), "{says}");
    assert!(number("equal predicted latency ") < -0.99, "{says}");
    // Poolings that go with latency by chance are not its cost.
    assert_eq!(number("costs "), 0.71, "{says}");

    asked(&all[..7]).failed(3, &["7 evaluations", "at least 8"]);
    asked(&[&all[..8], &all[..1]].concat()).failed(3, &[text(&all[0]), "give it once"]);
    let is_refused = |others: &[PathBuf], says: &str| {
        let mixed = [&all[..8], &others[8..9]].concat();
        asked(&mixed).failed(3, &[text(&others[8]), says]);
    };
    is_refused(&published(4, "images", &|_| ()), "n_epochs (3 and 4)");
    is_refused(&published(3, "other images", &|_| ()), "their images");
    let on_two: &dyn Fn(&mut Evaluation) = &|own| own.settings.timing.n_threads = 2;
    is_refused(&published(3, "images", on_two), "timing");
    let negative: &dyn Fn(&mut Evaluation) = &|own| own.search.predicted_latency_millis = -0.1;
    is_refused(&published(3, "images", negative), "is -0.1");
    let alike: &dyn Fn(&mut Evaluation) = &|own| own.search.predicted_latency_millis = 0.3;
    asked(&published(3, "images", alike)).failed(3, &["vary too little", "more genotypes"]);
}

#[test]
fn candidates_may_be_thinner_than_the_network_that_is_profiled() {
    let place = Place::new();
    let sets = |channels: &str| format!("selection={{n_candidates=2, n_epochs=1{channels}}}");
    let searching = |channels: &str, more: &[&str]| {
        let set = sets(channels);
        place
            .run(&[&["--json", "--set", &set], more].concat())
            .json()
    };
    let losses = |channels: &str| {
        let mut candidates = search_result(&searching(channels, &[])).candidates;
        candidates.sort_by_key(|own| own.genotype.to_string());
        let losses: Vec<_> = candidates.iter().map(|own| own.train_loss).collect();
        losses
    };
    // The tests' network has four.
    assert_eq!(losses(""), losses(", init_channels=4"));
    assert_ne!(losses(""), losses(", init_channels=8"));
    let bytes = |channels: &str| {
        let set = [
            "--set",
            "method=random",
            "--set",
            "target.latency=8ms",
            "--dry-run",
        ];
        searching(channels, &set)["total_bytes"].as_u64().unwrap()
    };
    assert!(bytes("") < bytes(", init_channels=8"));
}

/// Forty images: a quarter each for weights and alpha; candidates see that quarter, or everything that is not alpha's.
#[test]
fn candidates_may_see_more_images_than_the_supernet() {
    let place = Place::new();
    let trained_on = |fraction: &str| {
        let selection = format!("selection={{n_candidates=2, n_epochs=2{fraction}}}");
        let data = ["data.train_fraction=0.25", "data.valid_fraction=0.25"];
        let sets = [
            "--json", "--set", data[0], "--set", data[1], "--set", &selection,
        ];
        let answer = place.run(&sets);
        (search_result(&answer.json()), answer.stderr)
    };
    let (quarter, said) = trained_on("");
    assert!(said.contains("candidate 2/2: 2/2"), "{said}");
    let (more, said) = trained_on(", train_fraction=0.75");
    assert!(said.contains("candidate 2/2: 6/6"), "{said}");
    assert_eq!(quarter.alphas, more.alphas);
    assert_ne!(quarter.candidates, more.candidates);
    // No share said and the same share said are one thing.
    let (same, _) = trained_on(", train_fraction=0.25");
    assert_eq!(quarter.candidates, same.candidates);
}

/// Kills a search when it says that it has trained the first candidate; the next run keeps that one, of candidates that it
/// chooses from as many draws anew.
#[test]
fn a_search_that_is_killed_between_candidates_goes_on_with_the_next() {
    let place = Place::new();
    let sets = [
        "--json",
        "--set",
        "lambda=0.0",
        "--set",
        "selection={n_candidates=3, n_epochs=2, n_draws=20}",
    ];
    let was_killed = place.is_killed_behind(&sets, |line| line.contains("candidate 2/3"));
    let resumed = place.run_in("killed", &sets);
    assert!(
        was_killed && !resumed.stderr.contains("candidate 1/3"),
        "{}",
        resumed.stderr
    );
    let undisturbed = place.run_in("undisturbed", &sets).json();
    assert_eq!(resumed.json()["digest"], undisturbed["digest"]);
}

/// Weights of epochs on two numbers of threads are nobody else's.
#[test]
fn a_search_that_went_on_on_other_threads_leaves_no_warm_up() {
    let place = Place::new();
    let sets = [
        "--json",
        "--set",
        "n_epochs=6",
        "--set",
        "n_warmup_epochs=5",
    ];
    let was_killed = place.is_killed_behind(&sets, |line| line.contains("epoch 2/6: train"));
    let shared = place.path("killed").join("search-result-v1/shared");
    assert!(
        was_killed && !shared.exists(),
        "it was through before it died"
    );
    place
        .run_in("killed", &[&sets[..], &["--threads", "2"]].concat())
        .json();
    assert!(!shared.exists());
}

#[test]
fn random_search_chooses_between_as_many() {
    let place = Place::new();
    let random = [
        "--json",
        "--set",
        "method=random",
        "--set",
        "target.latency=8ms",
        "--set",
        "target.slack=0.3",
    ];
    let alone = search_result(&place.run(&random).json());
    assert!(alone.candidates.is_empty());
    let found = search_result(&place.run(&[&random[..], &SELECTS].concat()).json());
    assert_the_best_came_out(&found);
    assert!(
        found
            .candidates
            .iter()
            .any(|candidate| candidate.genotype == alone.genotype)
    );
    assert!(found.trace.is_empty() && found.alphas.is_empty());

    let dry =
        |sets: &[&str]| place.run(&[sets, &["--dry-run"]].concat()).json()["total_bytes"].clone();
    assert_eq!(dry(&random), 0);
    let selecting = dry(&[&random[..], &SELECTS].concat()).as_u64().unwrap();
    let searching = dry(&[&["--json"], &SELECTS[..]].concat()).as_u64().unwrap();
    assert!(
        (1 << 20..searching).contains(&selecting),
        "{selecting} of {searching}"
    );
}

#[test]
fn guards_cap_the_skips_and_say_so() {
    let place = Place::new();
    // A penalty that drives everything to what costs nothing, and a skip that all nodes like.
    let sets = [
        "--json",
        "--set",
        "lambda=100",
        "--set",
        "architecture.learning_rate=0.1",
        "--set",
        "guards.max_skips=0",
        "--set",
        "guards.max_parameter_free=0.2",
    ];
    let found = search_result(&place.run(&sets).json());
    assert_eq!(found.genotype.n_skips(space::CellKind::Normal), 0);
    let event = found.trace.last().unwrap().event.clone().unwrap();
    assert!(event.contains("free of parameters"), "{event}");
}

#[test]
fn stop_and_roll_back_return_to_alpha_before_the_alarm() {
    let place = Place::new();
    let base = [
        "--json",
        "--set",
        "n_epochs=4",
        "--set",
        "architecture.learning_rate=0.1",
        "--set",
        "guards.max_parameter_free=0.0",
    ];
    let with = |policy| {
        let policy = format!("guards.policy={policy}");
        search_result(&place.run(&[&base[..], &["--set", &policy]].concat()).json())
    };
    let stopped = with("stop");
    // The first epoch of alpha is the second of all; nothing before it was an alarm.
    assert_eq!(stopped.trace.len(), 2);
    assert!(stopped.trace[1].event.as_ref().unwrap().contains("stopped"));
    let rolled = with("roll-back");
    assert_eq!(rolled.trace.len(), 4);
    for row in &rolled.trace[1..] {
        assert!(row.event.as_ref().unwrap().contains("went back"));
    }
    // Both end with alpha as it was drawn.
    assert_eq!(stopped.alphas, rolled.alphas);
    let warned = with("warn");
    assert_eq!(warned.trace.len(), 4);
    assert_ne!(warned.alphas, rolled.alphas);
}

#[test]
fn every_bridge_order_and_guard_runs_and_leaves_its_mark() {
    let place = Place::new();
    let alphas = |sets: &[&str]| {
        let sets: Vec<&str> = sets.iter().flat_map(|set| ["--set", *set]).collect();
        let found = search_result(&place.run(&[&["--json"], &sets[..]].concat()).json());
        (found.alphas, found.trace)
    };
    let (plain, trace) = alphas(&[]);
    assert!(trace[1].eigenvalue.is_none() && trace[0].bridge_latency_millis.is_none());
    assert!(trace[1].bridge_latency_millis.is_some());
    for (sets, is_other) in [
        // An additive model has the same gradient wherever it is asked.
        (&["bridge=hard"][..], false),
        (&["bridge=sampled"], false),
        (&["order=unrolled"], true),
        (&["guards.auxiliary_skip=0.5"], true),
        (&["objective=hinge", "target.latency=3ms"], true),
        // A look changes nothing.
        (&["guards.n_eigenvalue_steps=2"], false),
    ] {
        let (other, trace) = alphas(sets);
        assert_eq!(other != plain, is_other, "{sets:?}");
        if sets == ["guards.n_eigenvalue_steps=2"] {
            assert!(trace[0].eigenvalue.is_none() && trace[1].eigenvalue.is_some());
        }
        if sets == ["bridge=hard"] {
            assert!(trace.iter().all(|row| row.discretisation_gap == Some(0.0)));
        }
    }
}

/// Kills a search again and again, lets it end, and asserts that its bytes are those of one that nobody disturbed,
/// which is returned.
fn killed_and_undisturbed(place: &Place, sets: &[&str]) -> Value {
    // How many lines each run may say before it dies.
    let mut n_killed = 0;
    for n_lines in [1, 4, 2, 7, 3, 5] {
        let mut n_said = 0;
        let is_killed = place.is_killed_behind(sets, |_| {
            n_said += 1;
            n_said == n_lines
        });
        n_killed += usize::from(is_killed);
    }
    assert!(n_killed > 0, "every run was through before it died");
    let resumed = place.run_in("killed", sets).json();
    let undisturbed = place.run_in("undisturbed", sets).json();
    assert_eq!(resumed["digest"], undisturbed["digest"]);
    undisturbed
}

/// P-DARTS: each stage goes on with the primitives of largest weight, in another supernet, with an alpha of its own.
#[test]
fn p_darts_drops_primitives_between_its_stages_and_resumes_in_any() {
    let place = Place::new();
    let config = place.path("search.toml");
    let good = fs::read_to_string(&config)
        .unwrap()
        .replace("\"pc-darts\"", "\"p-darts\"")
        .replace("channel_ratio = 2", "channel_ratio = 1");
    let stages =
        |text: &str| fs::write(&config, format!("{good}\n[progressive]\n{text}\n")).unwrap();
    stages("n_layers = [3, 4, 5]\nn_primitives = [8, 4, 2]\nskip_dropout = [0.0, 0.4, 0.7]");
    let sets = ["--json", "--set", "architecture.learning_rate=0.3"];
    let found = search_result(&killed_and_undisturbed(&place, &sets));
    assert_eq!(found.method, "p-darts");
    assert_eq!(found.trace.len(), 3 * 2);
    // In the first epoch of each stage alpha stands still: all that are left weigh about the same.
    let entropies: Vec<f64> = found.trace.iter().map(|row| row.entropy_normal).collect();
    for (stage, n) in [8.0_f64, 4.0, 2.0].into_iter().enumerate() {
        assert!(
            (entropies[2 * stage] - n.ln()).abs() < 1e-4,
            "{entropies:?}"
        );
        assert!(entropies[2 * stage + 1] < n.ln() - 1e-3, "{entropies:?}");
    }
    // Memory is planned for the stage that needs most.
    let planned = |text: &str| {
        stages(text);
        place.run(&["--dry-run", "--json"]).json()["total_bytes"].as_u64()
    };
    let all =
        planned("n_layers = [3, 4, 5]\nn_primitives = [8, 4, 2]\nskip_dropout = [0.0, 0.4, 0.7]");
    let each = [
        planned("n_layers = [3]\nn_primitives = [8]\nskip_dropout = [0.0]"),
        planned("n_layers = [4]\nn_primitives = [4]\nskip_dropout = [0.4]"),
        planned("n_layers = [5]\nn_primitives = [2]\nskip_dropout = [0.7]"),
    ];
    assert!(
        each[0] < all && all == each.into_iter().max().flatten(),
        "{each:?} {all:?}"
    );

    // Dropout is on: without it the search goes another way.
    stages("n_layers = [3, 4, 5]\nn_primitives = [8, 4, 2]\nskip_dropout = [0.0, 0.0, 0.0]");
    let other = search_result(&place.run(&sets).json());
    assert_eq!(other.trace[1], found.trace[1]);
    assert_ne!(other.trace[2].train_loss, found.trace[2].train_loss);

    stages("n_layers = [3, 4]\nn_primitives = [4, 8]\nskip_dropout = [0.0, 0.0]");
    place
        .run(&[])
        .failed(2, &["progressive", "never more than in the stage before"]);
    fs::write(&config, &good).unwrap();
    place.run(&[]).failed(2, &["progressive", "p-darts"]);
}

/// A search with everything that has a state, killed again and again at whatever moment it has reached when
/// its line is read, ends with the bytes of one that nobody disturbed.
#[test]
fn a_search_that_is_killed_again_and_again_ends_with_the_same_bytes() {
    let place = Place::new();
    let sets = [
        "--json",
        "--set",
        "n_epochs=6",
        "--set",
        "objective=target",
        "--set",
        "target.latency=5ms",
        "--set",
        "bridge=sampled",
        "--set",
        "order=unrolled",
        "--set",
        "guards.policy=roll-back",
        "--set",
        "guards.max_skips=1",
        "--set",
        "guards.n_eigenvalue_steps=2",
        "--set",
        "guards.max_eigenvalue_growth=1.05",
        "--set",
        "guards.auxiliary_skip=0.3",
        "--set",
        "architecture.learning_rate=0.05",
        SELECTS[0],
        SELECTS[1],
    ];
    let undisturbed = killed_and_undisturbed(&place, &sets);
    let found = search_result(&undisturbed);
    assert!(found.trace.iter().any(|row| row.event.is_some()));
    assert!(found.trace.iter().any(|row| row.latency_weight > Some(0.0)));
}

#[test]
fn searches_with_one_warm_up_run_it_once_and_end_with_the_same_bytes() {
    let place = Place::new();
    let warm_ups = |store: &str| {
        let shared = place.path(store).join("search-result-v1/shared");
        let entries = fs::read_dir(shared).unwrap();
        entries
            .map(|entry| entry.unwrap().path())
            .collect::<Vec<_>>()
    };
    let says_so = |answer: &Answer| {
        answer
            .stderr
            .contains("from a search with the same warm-up")
    };
    let first = place.run(&["--json"]);
    assert!(!says_so(&first));
    let others: [&[&str]; 3] = [
        &[
            "--set",
            "lambda=2.0",
            "--set",
            "bridge=sampled",
            "--set",
            "order=unrolled",
        ],
        &[
            "--set",
            "objective=target",
            "--set",
            "target.latency=6ms",
            "--set",
            "n_bridge_samples=3",
            "--set",
            "selection={n_candidates=3, n_draws=5, n_epochs=2}",
        ],
        &[
            "--set",
            "guards.policy=roll-back",
            "--set",
            "guards.max_skips=0",
            "--set",
            "architecture.learning_rate=0.1",
        ],
    ];
    for (index, sets) in others.into_iter().enumerate() {
        let sets = [&["--json"], sets].concat();
        let behind = place.run(&sets);
        assert!(says_so(&behind), "{}", behind.stderr);
        assert_eq!(warm_ups("store").len(), 1);
        let alone = place.run_in(&format!("alone {index}"), &sets);
        assert!(!says_so(&alone));
        let [behind, alone] = [behind, alone].map(|answer| folder(&answer.json()));
        for name in ["genotype.json", "alphas.safetensors", "trace.parquet"] {
            let [a, b] = [&behind, &alone].map(|folder| fs::read(folder.join(name)).unwrap());
            assert!(a == b, "{name} differs: {sets:?}");
        }
    }

    // What the weights depend on makes another warm-up.
    for set in [
        "seed=4",
        "guards.auxiliary_skip=0.5",
        "weights.momentum=0.8",
        "n_epochs=3",
    ] {
        assert!(!says_so(&place.run(&["--set", set])), "{set}");
    }
    assert!(!says_so(&place.run(&[
        "--set",
        "lambda=3.0",
        "--threads",
        "2"
    ])));
    assert_eq!(warm_ups("store").len(), 6);

    // A damaged one is none.
    for path in warm_ups("store") {
        let mut bytes = fs::read(&path).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        fs::write(path, bytes).unwrap();
    }
    let afresh = place.run(&["--set", "lambda=4.0"]);
    assert!(
        !says_so(&afresh) && afresh.code == 0 && afresh.stderr.contains("is damaged"),
        "{}",
        afresh.stderr
    );
}

#[test]
fn a_warm_start_begins_with_the_neighbours_alpha() {
    let place = Place::new();
    let first = folder(&place.run(&["--json"]).json());
    // All epochs are warm-up: alpha stays what it was.
    let still = [
        "--json",
        "--set",
        "n_warmup_epochs=2",
        "--warm-start",
        text(&first),
    ];
    let second = search_result(&place.run(&still).json());
    let neighbour = artifact::open::<SearchResult>(&first).unwrap().value;
    assert_eq!(second.alphas, neighbour.alphas);
    let darts = [
        "--set",
        "method=darts",
        "--set",
        "network.channel_ratio=1",
        "--warm-start",
        text(&first),
    ];
    place.run(&darts).failed(3, &["betas", "another method"]);
}

#[test]
fn a_config_mistake_is_shown_with_its_place() {
    let place = Place::new();
    let file = place.path("search.toml");
    let good = fs::read_to_string(&file).unwrap();
    fs::write(&file, good.replace("momentum = 0.9", "momentun = 0.9")).unwrap();
    place
        .run(&[])
        .failed(2, &["search.toml:52:1", "momentun", "`momentum`"]);
    fs::write(&file, good.replace("n_epochs = 2", "n_epochs = \"two\"")).unwrap();
    place.run(&[]).failed(2, &["search.toml:8:12", "\"two\""]);
    fs::write(&file, good).unwrap();
    for (set, key, expected) in [
        ("lamda=0.1", "lamda", "lambda"),
        ("lambda=-1.0", "lambda", "0 or more"),
        ("method=enas", "enas", "pc-darts"),
        ("data.train_fraction=0.7", "valid_fraction", "at most 1"),
        (
            "selection={n_candidates=2, n_epochs=1, train_fraction=0.4}",
            "selection.train_fraction",
            "at least data.train_fraction",
        ),
        (
            "selection={n_candidates=2, n_epochs=1, train_fraction=0.6}",
            "selection.train_fraction",
            "at most 1",
        ),
        (
            "selection={n_candidates=2, n_epochs=1, n_draws=1}",
            "selection.n_draws",
            "at least n_candidates",
        ),
        (
            "selection={n_candidates=2, n_epochs=1, init_channels=0}",
            "selection.init_channels",
            "at least 1",
        ),
        ("batch_size=21", "batch_size", "images of either part"),
        ("network.channel_ratio=3", "channel_ratio", "a divisor"),
        ("method=darts", "network.channel_ratio", "1 for darts"),
        ("network.channel_ratio=0", "channel_ratio", "a divisor"),
        ("network.stem=deep", "network.stem", "conv3x3-stride2"),
        ("network.n_layers=0", "network.n_layers", "at least 1"),
        ("network.init_channels=0", "init_channels", "at least 1"),
        (
            "network={stem=\"imagenet\", n_layers=3, init_channels=5, channel_ratio=5}",
            "network.init_channels",
            "even",
        ),
        ("n_validation_images=0", "n_validation_images", "at least 1"),
        ("data.pad=8", "data.pad", "8 pixels"),
        ("data.cutout=9", "data.cutout", "8 pixels"),
        ("architecture.betas=[0.5,1.0]", "betas", "below 1"),
    ] {
        place.run(&["--set", set]).failed(2, &[key, expected]);
        // Nothing of that waits for the stages before.
        place.check(&["--set", set]).failed(2, &[key, expected]);
    }
    assert_eq!(place.check(&[]).code, 0);
    // What is drawn to be held against a search in stages has its config.
    let random = [
        "method=random",
        "target.latency=8ms",
        "progressive={n_layers=[3], n_primitives=[8], skip_dropout=[0.0]}",
    ];
    let random = random.map(|set| ["--set", set]).concat();
    assert_eq!(place.check(&random).code, 0);
    assert_nothing_stored(&place.path("store"));
}

#[test]
fn a_missing_damaged_or_foreign_latency_model_is_named() {
    let place = Place::new();
    let file = place.latency_model.join("weights.safetensors");
    let good = fs::read(&file).unwrap();
    let mut flipped = good.clone();
    *flipped.last_mut().unwrap() ^= 4;
    for damaged in [&flipped[..], &good[..good.len() / 2]] {
        fs::write(&file, damaged).unwrap();
        place.run(&[]).failed(3, &[text(&file), "damaged"]);
    }
    fs::write(&file, good).unwrap();

    // A whole manifest that says another search space.
    let manifest_file = place.latency_model.join("manifest.json");
    let good = fs::read(&manifest_file).unwrap();
    let mut manifest: Value = serde_json::from_slice(&good).unwrap();
    manifest["space_fingerprint"] = "00ff".into();
    let fields = manifest.as_object_mut().unwrap();
    fields.remove("checksum");
    let checksum = Digest::of(serde_json::to_string(fields).unwrap().as_bytes());
    fields.insert("checksum".to_owned(), checksum.to_string().into());
    fs::write(&manifest_file, manifest.to_string()).unwrap();
    let ours = SearchSpace::darts().fingerprint();
    place
        .run(&[])
        .failed(3, &[text(&manifest_file), "search space 00ff", &ours]);
    assert_nothing_stored(&place.path("store"));

    let place = Place {
        latency_model: place.path("nothing"),
        ..place
    };
    place
        .run(&[])
        .failed(3, &[text(&place.path("nothing")), "latency-model"]);
}

#[test]
fn missing_and_broken_images_are_named() {
    let place = Place::new();
    let nowhere = place.path("nowhere");
    place
        .run(&["--set", &format!("data.dir={}", text(&nowhere))])
        .failed(3, &[text(&nowhere), "there is no folder"]);

    fs::remove_dir_all(place.path("data")).unwrap();
    fs::create_dir_all(place.path("data/train/a")).unwrap();
    let broken = place.path("data/train/a/broken.png");
    fs::write(&broken, "no image").unwrap();
    place
        .run(&[])
        .failed(3, &[text(&broken), "does not decode"]);
    assert_nothing_stored(&place.path("store"));
}

#[test]
fn a_model_of_networks_for_other_images_is_pointed_out() {
    let place = Place::new();
    let line = "the latency model is of networks for images";
    let own = place.run(&[]);
    assert_eq!(own.code, 0, "{}", own.stderr);
    assert!(!own.stderr.contains(line), "{}", own.stderr);
    write_images_of(&place.path("data"), 2 * SIZE);
    let other = place.run(&[]);
    assert_eq!(other.code, 0, "{}", other.stderr);
    assert!(other.stderr.contains(line), "{}", other.stderr);
    let here = format!(
        "are 1x{0}x{0} (channels, height, width) of 2 classes",
        2 * SIZE
    );
    assert!(other.stderr.contains(&here), "{}", other.stderr);
}

#[test]
fn a_loss_that_is_no_number_ends_the_run_and_leaves_nothing() {
    let place = Place::new();
    let diverging = ["weights.learning_rate=1e30", "weights.clip_norm=0.0"];
    place
        .run(&["--set", diverging[0], "--set", diverging[1]])
        .failed(5, &["not finite", "epoch", "step", "learning rate"]);
    assert_nothing_stored(&place.path("store"));
}

#[test]
fn a_device_that_is_not_there_is_refused() {
    let place = Place::new();
    place.run(&["--device", "cuda"]).failed(4, &["cuda"]);
    assert_eq!(place.run(&["--device", "tpu"]).code, 2);
    assert_nothing_stored(&place.path("store"));
}

#[test]
fn a_store_that_cannot_be_written_to_is_named() {
    let place = Place::new();
    fs::write(place.path("store"), "a file").unwrap();
    place
        .run(&[])
        .failed(2, &[text(&place.path("store")), "--store"]);
}

#[test]
fn two_ranks_search_as_one_does() {
    let place = Place::new();
    // Two steps of each kind: what two orders of sums differ by in f32 does not grow to anything yet.
    let settings = [
        "--json",
        "--set",
        "n_warmup_epochs=0",
        "--set",
        "selection={n_candidates=3, n_epochs=2, n_draws=12}",
    ];
    let alone = place.run(&settings).json();
    let together = place
        .run(&[&settings[..], &["--ranks", "2"]].concat())
        .json();
    assert_ne!(alone["key"], together["key"]);
    let [alone, together] = [&alone, &together].map(|answer| {
        artifact::open::<SearchResult>(&folder(answer))
            .unwrap()
            .value
    });
    let mut largest: f32 = 0.0;
    for (name, tensor) in &alone.alphas {
        for (a, b) in tensor.values.iter().zip(&together.alphas[name].values) {
            largest = largest.max((a - b).abs());
        }
    }
    // A step of Adam moves alpha by 6e-3.
    assert!(largest < 1e-4, "alpha differs by {largest}");
    for (a, b) in alone.trace.iter().zip(&together.trace) {
        assert!((a.train_loss - b.train_loss).abs() < 1e-4);
        assert!((a.valid_loss - b.valid_loss).abs() < 1e-4);
        assert_eq!(a.train_accuracy, b.train_accuracy);
    }
    assert_eq!(together.candidates.len(), 3);
    for (a, b) in alone.candidates.iter().zip(&together.candidates) {
        assert_eq!(a.genotype, b.genotype);
        assert!((a.valid_loss - b.valid_loss).abs() < 1e-3);
    }
    // Cached, without the other rank.
    let again = place.run(&[&settings[..], &["--ranks", "2"]].concat());
    assert_eq!(again.json()["cached"], true);
}

/// Ranks whose gradients, which are `f32` as no statistics are, come out otherwise on the second: as on a machine
/// that computes differently.
#[derive(Debug)]
struct Skewed(collective::Sockets);

impl collective::Collective for Skewed {
    fn rank(&self) -> usize {
        self.0.rank()
    }

    fn n_ranks(&self) -> usize {
        self.0.n_ranks()
    }

    fn gather(&self, own: &[u8]) -> Result<Vec<Vec<u8>>, collective::Error> {
        self.0.gather(own)
    }

    fn sum(&self, x: &candle_core::Tensor) -> candle_core::Result<candle_core::Tensor> {
        let sum = self.0.sum(x)?;
        match x.dtype() {
            candle_core::DType::F32 => sum * (1.0 - 2.0 * self.rank() as f64),
            _ => Ok(sum),
        }
    }
}

#[test]
fn ranks_that_derive_different_genotypes_end() {
    let place = Place::new();
    let rendezvous = collective::Rendezvous::open("127.0.0.1:0").unwrap();
    let at = rendezvous.address().unwrap().to_string();
    let search = |ranks: collective::Sockets| {
        let config = artifact::config::load(
            &place.path("search.toml"),
            &[
                "n_warmup_epochs=0".to_owned(),
                "architecture.learning_rate=0.3".to_owned(),
            ],
        )
        .unwrap();
        let inputs = stage_search::Inputs::open(&place.latency_model, None).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let context = artifact::RunContext::for_tests(dir.path());
        let ranks = std::sync::Arc::new(Skewed(ranks));
        let error =
            stage_search::run_together(&config, &inputs, &context, Some(ranks)).unwrap_err();
        use artifact::StageError;
        assert_eq!(error.exit_code(), artifact::ExitCode::Numbers, "{error}");
        error.to_string()
    };
    let [first, second] = std::thread::scope(|scope| {
        let first = scope.spawn(|| search(rendezvous.wait(2, "s", || Ok(())).unwrap()));
        let second = scope.spawn(|| search(collective::Sockets::join(&at, 1, 2, "s").unwrap()));
        [first.join().unwrap(), second.join().unwrap()]
    });
    assert!(
        first.contains("the ranks disagree on the derived genotype"),
        "{first}"
    );
    assert_eq!(first, second);
}

#[test]
fn ranks_that_cannot_be_are_refused() {
    let place = Place::new();
    place
        .run(&["--ranks", "0"])
        .failed(2, &["--ranks", "1..=1024"]);
    place
        .run(&["--ranks", "2", "--rank", "2", "--rendezvous", "127.0.0.1:1"])
        .failed(2, &["--rank 2 is none of --ranks 2"]);
    place
        .run(&["--ranks", "2", "--rank", "1"])
        .failed(2, &["--rendezvous"]);
    place
        .run(&["--ranks", "9"])
        .failed(2, &["batch_size", "--ranks"]);
    let random = [
        "--ranks",
        "9",
        "--set",
        "method=random",
        "--set",
        "target.latency=8ms",
    ];
    place
        .run(&[&random[..], &SELECTS].concat())
        .failed(2, &["batch_size", "--ranks"]);
}
