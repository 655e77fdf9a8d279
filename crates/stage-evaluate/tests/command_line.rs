//! The program: what it prints, where it stops, and with which exit code.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use artifact::{Evaluation, LatencyDataset, Metric};
use command_line::{Answer, assert_nothing_stored, text};

mod fixture;

/// A folder with images, a config and a search result.
struct Place {
    dir: tempfile::TempDir,
    search_result: PathBuf,
}

fn evaluate(args: &[&str]) -> Answer {
    Answer::of(Command::new(env!("CARGO_BIN_EXE_evaluate")).args(args))
}

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("data");
        fixture::write_images(&data);
        fs::write(
            dir.path().join("evaluate.toml"),
            fixture::config_text(&data),
        )
        .unwrap();
        let search_result =
            fixture::search_result(&dir.path().join("searches"), Some(fixture::settings()));
        Self { dir, search_result }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn run(&self, more: &[&str]) -> Answer {
        self.run_in("store", more)
    }

    fn run_in(&self, store: &str, more: &[&str]) -> Answer {
        let [config, store] = ["evaluate.toml", store].map(|name| self.path(name));
        let mut args = vec!["run", "--config", text(&config), "--store", text(&store)];
        args.extend([
            "--search-result",
            text(&self.search_result),
            "--threads",
            "1",
        ]);
        args.extend(more);
        evaluate(&args)
    }
}

#[test]
fn an_evaluation_is_made_once_and_its_bytes_repeat() {
    let place = Place::new();
    let first = place.run(&["--json"]).json();
    assert_eq!(first["kind"], "evaluation");
    assert_eq!(first["cached"], false);
    let again = place.run(&["--json"]).json();
    assert_eq!(again["cached"], true);
    assert_eq!(again["path"], first["path"]);

    let elsewhere = place.run_in("other store", &["--json"]).json();
    assert_eq!(elsewhere["key"], first["key"]);
    let folder = |answer: &serde_json::Value| PathBuf::from(answer["path"].as_str().unwrap());
    for name in ["evaluation.json", "epochs.parquet", "weights.safetensors"] {
        let [a, b] =
            [&first, &elsewhere].map(|answer| fs::read(folder(answer).join(name)).unwrap());
        assert!(a == b, "{name} differs");
    }
}

#[test]
fn the_key_says_what_it_is_made_of_and_writes_nothing() {
    let place = Place::new();
    let answer = place.run(&["--key-only"]).json();
    assert_eq!(answer["stage"], "evaluate");
    assert_eq!(answer["cached"], false);
    assert_eq!(answer["parts"]["config"]["n_epochs"], 3);
    let inputs = answer["parts"]["inputs"].as_object().unwrap();
    assert_eq!(
        inputs.keys().collect::<Vec<_>>(),
        ["images", "search-result"]
    );
    assert_nothing_stored(&place.path("store"));

    let other = place
        .run(&["--key-only", "--set", "weights.momentum=0.8"])
        .json();
    assert_ne!(other["key"], answer["key"]);
    // A data set that was moved is the same.
    let moved = place.path("moved");
    fs::create_dir(&moved).unwrap();
    for file in fs::read_dir(place.path("data")).unwrap() {
        let file = file.unwrap();
        fs::copy(file.path(), moved.join(file.file_name())).unwrap();
    }
    let other = place
        .run(&["--key-only", "--set", &format!("data.dir={}", text(&moved))])
        .json();
    assert_eq!(other["key"], answer["key"]);
    assert_eq!(other["parts"]["config"]["data"]["dir"], text(&moved));
    // One changed pixel is another one.
    let images = place.path("data/train-images-idx3-ubyte");
    let mut bytes = fs::read(&images).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&images, bytes).unwrap();
    let other = place.run(&["--key-only"]).json();
    assert_ne!(
        other["parts"]["inputs"]["images"],
        answer["parts"]["inputs"]["images"]
    );
}

#[test]
fn networks_are_timed_without_training_a_row_each() {
    let place = Place::new();
    let time = |found: &[&PathBuf]| {
        let [config, store] = ["evaluate.toml", "store"].map(|name| place.path(name));
        let mut args = vec!["time", "--config", text(&config), "--store", text(&store)];
        args.extend(found.iter().flat_map(|dir| ["--search-result", text(dir)]));
        evaluate(&[&args[..], &["--json"]].concat())
    };
    let answer = time(&[&place.search_result, &place.search_result]).json();
    assert_eq!(answer["kind"], "latency-dataset");
    let dir = answer["path"].as_str().unwrap();
    let measured = artifact::open::<artifact::LatencyDataset>(dir)
        .unwrap()
        .value;
    assert_eq!(measured.samples.len(), 2);
    assert!(measured.samples.iter().all(|row| row.median_millis > 0.0));
    let network = measured.settings.unwrap().network;
    assert_eq!(network, fixture::settings().network);

    let mut other = fixture::settings();
    other.timing.n_repeats += 1;
    let other = fixture::search_result(&place.path("others"), Some(other));
    time(&[&place.search_result, &other]).failed(2, &["others", "different networks"]);
    evaluate(&["time"]).failed(2, &["--search-result"]);
}

/// What is predicted of another machine, or by inference of another revision, is not held against what this one takes.
#[test]
fn a_prediction_of_another_machine_or_revision_is_not_judged() {
    let anchor = |machine, revision| artifact::AnchorRecord {
        median_nanos: 1_000_000,
        machine,
        revision,
    };
    let here = measure::Machine::detect().fingerprint();
    let now = artifact::stage::PROFILE.revision;
    for (anchor, what) in [
        (
            anchor("another one".to_owned(), now),
            Some("of this machine"),
        ),
        (
            anchor(here.clone(), now - 1),
            Some("by the code of this program"),
        ),
        (anchor(here.clone(), now), None),
    ] {
        let mut place = Place::new();
        let mut settings = fixture::settings();
        settings.anchor = Some(anchor);
        place.search_result = fixture::search_result(&place.path("profiled"), Some(settings));
        let answer = place.run(&["--json"]);
        let says = answer.stderr.contains("not held against each other");
        assert_eq!(says, what.is_some());
        let dir = answer.json()["path"].as_str().unwrap().to_owned();
        let evaluation = artifact::open::<Evaluation>(&dir).unwrap().value;
        assert_eq!(evaluation.settings.anchor.is_some(), what.is_none());
        let verdict = evaluation.verdict();
        let word = verdict.word().unwrap_or("not judged");
        assert_eq!(word == "not judged", what.is_some());
        // Of what is cached as well.
        for answer in [answer, place.run(&["--json"])] {
            let line = answer
                .stderr
                .lines()
                .find(|line| line.contains(", target "));
            assert!(
                line.is_some_and(|line| line.contains(word)),
                "{}",
                answer.stderr
            );
        }
        assert!(verdict.target_millis.is_some() && verdict.interval_millis.is_some());
        assert_eq!(
            (
                verdict.is_target_met.is_some(),
                verdict.is_in_interval.is_some()
            ),
            (what.is_none(), what.is_none())
        );
    }
}

#[test]
fn what_the_search_kept_low_is_measured_and_judged() {
    let mut place = Place::new();
    let settings = || Some(fixture::settings());
    let searches = place.path("searches of memory");
    place.search_result = fixture::search_result_of(Metric::PeakMemory, &searches, settings());
    let answer = place.run(&["--json"]).json();
    let dir = Path::new(answer["path"].as_str().unwrap());
    let evaluation = artifact::open::<Evaluation>(dir).unwrap().value;
    let verdict = evaluation.verdict();
    let bytes = evaluation.latency.peak_memory_bytes.unwrap();
    assert_eq!(verdict.metric, Metric::PeakMemory);
    assert_eq!(verdict.measured_millis, bytes / f64::from(1 << 20));
    // At least the input: one image of 32 by 32.
    assert!((4096.0..1e8).contains(&bytes), "{bytes}");
    assert_eq!(
        (verdict.is_target_met, evaluation.latency.energy_joules),
        (Some(true), None)
    );

    // The same when it is only timed, a row for the predictor.
    let store = place.path("store");
    let config = place.path("evaluate.toml");
    let answer = evaluate(&[
        "time",
        "--json",
        "--config",
        text(&config),
        "--store",
        text(&store),
        "--search-result",
        text(&place.search_result),
    ]);
    let (answer_of_time, answer) = (&answer, answer.json());
    let dir = Path::new(answer["path"].as_str().unwrap());
    let dataset = artifact::open::<LatencyDataset>(dir).unwrap().value;
    assert_eq!(dataset.samples[0].peak_memory_bytes, Some(bytes));
    assert!(
        answer_of_time.stderr.contains("MiB: PASS"),
        "{}",
        answer_of_time.stderr
    );
}

#[test]
fn progress_goes_to_standard_error_in_plain_lines() {
    let place = Place::new();
    let answer = place.run(&["--set", "n_epochs=2"]);
    assert_eq!(answer.code, 0, "{}", answer.stderr);
    assert_eq!(answer.stdout.lines().count(), 1, "the folder alone");
    for line in [
        "epoch 1/2: 3/3",
        "epoch 2/2: 3/3",
        "test accuracy ",
        "(standard error ",
        "\nmeasured ",
    ] {
        assert!(
            answer.stderr.contains(line),
            "`{line}` is not in\n{}",
            answer.stderr
        );
    }
    let quiet = place.run(&["--set", "n_epochs=2", "--set", "seed=9", "--quiet"]);
    assert_eq!((quiet.code, quiet.stderr.as_str()), (0, ""));
}

#[test]
fn a_config_mistake_is_shown_with_its_place() {
    let place = Place::new();
    let file = place.path("evaluate.toml");
    let good = fs::read_to_string(&file).unwrap();
    fs::write(&file, good.replace("momentum = 0.9", "momentun = 0.9")).unwrap();
    place.run(&[]).failed(
        2,
        &["evaluate.toml:34:1", "momentun", "expected", "`momentum`"],
    );
    fs::write(&file, good.replace("n_epochs = 3", "n_epochs = \"three\"")).unwrap();
    place
        .run(&[])
        .failed(2, &["evaluate.toml:2:12", "\"three\""]);
    fs::write(&file, good).unwrap();
    place
        .run(&["--set", "batchsize=3"])
        .failed(2, &["--set batchsize=3"]);
    place
        .run(&["--set", "drop_path=1.5"])
        .failed(2, &["drop_path", "below 1"]);
    place
        .run(&[
            "--set",
            "data.mean=[0.5,0.5]",
            "--set",
            "data.std=[0.5,0.5]",
        ])
        .failed(2, &["data.mean", "in_channels"]);
    place
        .run(&["--set", "precision=bf16"])
        .failed(2, &["precision = \"bf16\"", "--device cuda"]);
    // The auxiliary head wants 8 to 10 pixels behind the last reduction.
    place
        .run(&["--set", "network.image_size=24"])
        .failed(2, &["auxiliary_weight"]);
}

#[test]
fn network_profile_and_images_must_agree() {
    let place = Place::new();
    place
        .run(&["--set", "network.n_layers=4"])
        .failed(2, &["\"n_layers\":4", "\"n_layers\":3", "profile.toml"]);

    let other = fixture::search_result(&place.path("foreign"), None);
    let place = Place {
        search_result: other,
        ..place
    };
    let answer = place.run(&["--set", "network.n_classes=4"]);
    answer.failed(
        2,
        &[
            "1 x 32 x 32",
            "of 3 classes",
            "of 4 classes",
            text(&place.path("data")),
        ],
    );
    // Nothing is known of the protocol, which is no hindrance.
    let answer = place.run(&["--set", "n_epochs=2"]);
    assert_eq!(answer.code, 0, "{}", answer.stderr);
    assert!(
        answer.stderr.contains("one image on one thread"),
        "{}",
        answer.stderr
    );
}

#[test]
fn a_missing_or_damaged_search_result_is_named() {
    let place = Place::new();
    let file = place.search_result.join("genotype.json");
    let bytes = fs::read(&file).unwrap();
    let mut flipped = bytes.clone();
    flipped[20] ^= 4;
    for damaged in [&flipped[..], &bytes[..bytes.len() / 2]] {
        fs::write(&file, damaged).unwrap();
        place.run(&[]).failed(3, &[text(&file), "damaged"]);
    }
    let place = Place {
        search_result: place.path("nothing"),
        ..place
    };
    place
        .run(&[])
        .failed(3, &[text(&place.path("nothing")), "search-result"]);
}

#[test]
fn missing_and_broken_images_are_named() {
    let place = Place::new();
    let nowhere = place.path("nowhere");
    let set = format!("data.dir={}", text(&nowhere));
    place
        .run(&["--set", &set])
        .failed(3, &[text(&nowhere), "there is no folder"]);

    let broken = place.path("data/train/a/broken.png");
    fs::remove_dir_all(place.path("data")).unwrap();
    for split in ["train", "test"] {
        fs::create_dir_all(place.path(&format!("data/{split}/a"))).unwrap();
        fs::write(
            place.path(&format!("data/{split}/a/broken.png")),
            "no image",
        )
        .unwrap();
    }
    place
        .run(&[])
        .failed(3, &[text(&broken), "does not decode"]);
    assert_nothing_stored(&place.path("store"));
}

#[test]
fn a_folder_of_images_is_surveyed() {
    let place = Place::new();
    let data = place.path("data");
    let images = |more: &[&str]| evaluate(&[&["images", text(&data)], more].concat());
    let answer = images(&["--json"]).json();
    assert_eq!(
        answer,
        serde_json::json!({
            "n_train": 40, "n_test": 22, "n_channels": 1, "height": 32, "width": 32, "class_names": ["0", "1", "2"]
        })
    );
    let labels = images(&["--labels", "--json"]).json();
    assert_eq!(
        labels,
        serde_json::json!({"n_train": 40, "n_test": 22, "class_names": ["0", "1", "2"]})
    );
    let said = images(&[]);
    assert_eq!(
        said.stdout,
        "train         40 images, 13 to 14 of each class\n\
         test          22 images, 7 to 8 of each class\n\
         1 x 32 x 32 (channels, height, width) of 3 classes: 0, 1, 2\n"
    );
    images(&["--resize", "8"]).failed(3, &["`resize` is for PNG and JPEG"]);

    // Training images of one class less.
    let labels = data.join("train-labels-idx1-ubyte");
    let mut bytes = fs::read(&labels).unwrap();
    bytes[8..].iter_mut().for_each(|label| *label = 0);
    fs::write(&labels, bytes).unwrap();
    images(&[]).failed(3, &["of 1 classes, the test images", "of 3 classes"]);
    images(&["--labels"]).failed(3, &["of 1 classes", "of 3 classes"]);
}

/// Also where images are resized, and so not decoded before they are needed.
#[test]
fn a_file_that_is_no_image_is_found_before_a_training() {
    let place = Place::new();
    let data = place.path("pictures");
    for split in ["train", "test"] {
        let class = data.join(split).join("a");
        fs::create_dir_all(&class).unwrap();
        fs::write(class.join("broken.png"), "no image").unwrap();
    }
    evaluate(&["images", text(&data), "--resize", "8"])
        .failed(3, &["broken.png", "does not decode"]);
    let (config, dir) = (
        place.path("evaluate.toml"),
        format!("data.dir={}", text(&data)),
    );
    let mut check = vec!["check", "--config", text(&config), "--set", &dir];
    for set in [
        "network.in_channels=3",
        "network.n_classes=1",
        "data.resize=32",
    ] {
        check.extend(["--set", set]);
    }
    evaluate(&check).failed(3, &["broken.png", "does not decode"]);
}

#[test]
fn a_loss_that_is_no_number_ends_the_run_and_leaves_nothing() {
    let place = Place::new();
    place
        .run(&[
            "--set",
            "weights.learning_rate=1e30",
            "--set",
            "weights.clip_norm=0.0",
        ])
        .failed(5, &["NaN or infinite", "epoch", "step", "learning_rate"]);
    assert_nothing_stored(&place.path("store"));
}

#[test]
fn a_device_that_is_not_there_is_refused() {
    let place = Place::new();
    place.run(&["--device", "cuda:1"]).failed(4, &["cuda:1"]);
    assert_eq!(place.run(&["--device", "tpu"]).code, 2);
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
fn counts_are_the_published_ones() {
    let count = |genotype: &str, network: &str| {
        evaluate(&[
            "count",
            "--genotype",
            genotype,
            "--network",
            network,
            "--json",
        ])
        .json()
    };
    let answer = count("DARTS_V2", "cifar10");
    assert_eq!(answer["n_params"], 3_349_342);
    assert_eq!(answer["n_macs"], 528_359_040);
    let answer = count("PC_DARTS_image", "imagenet");
    assert!(answer["n_multi_adds"].as_u64().unwrap() > answer["n_macs"].as_u64().unwrap());

    // From a file, in the tuple form and in ours.
    let dir = tempfile::tempdir().unwrap();
    let genotype = space::Genotype::named("PDARTS").unwrap();
    for content in [
        genotype.to_string(),
        artifact::genotype_to_json(&genotype).to_string(),
    ] {
        let file = dir.path().join("found");
        fs::write(&file, content).unwrap();
        assert_eq!(count(text(&file), "imagenet")["n_params"], 4_944_352);
    }

    let table = evaluate(&["count", "--genotype", "DARTS_V2", "--network", "cifar10"]);
    assert!(table.stdout.contains("3,349,342"), "{}", table.stdout);
}

#[test]
fn a_genotype_that_is_none_is_explained() {
    let count =
        |genotype: &str| evaluate(&["count", "--genotype", genotype, "--network", "cifar10"]);
    count("DARTS_V3").failed(2, &["DARTS_V3", "DARTS_V2, PDARTS", "file"]);
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("broken.txt");
    fs::write(&file, "Genotype(normal=[('sep_conv_7x7', 1)").unwrap();
    count(text(&file)).failed(2, &[text(&file), "sep_conv_7x7"]);
}
