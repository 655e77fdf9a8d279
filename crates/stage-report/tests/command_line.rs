//! The program on artifacts in a store: the page, and where it stops with which exit code.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use artifact::stage::EVALUATE;
use artifact::{Evaluation, LatencyModelArtifact};
use command_line::{Answer, text};
use space::Genotype;

mod fixture;

/// A folder with a config and the artifacts of a run.
struct Place {
    dir: tempfile::TempDir,
    latency_dataset: PathBuf,
    latency_model: PathBuf,
    searches: [PathBuf; 2],
    evaluations: [PathBuf; 2],
}

impl Place {
    fn new() -> Self {
        Self::with(|_| (), |_| ())
    }

    /// A place with something changed in the model or in the second evaluation.
    fn with(
        change_model: impl FnOnce(&mut LatencyModelArtifact),
        change_aware: impl FnOnce(&mut Evaluation),
    ) -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::write(
            dir.path().join("report.toml"),
            "# Page\ntitle = \"A run\"\n",
        )
        .unwrap();
        let inputs = dir.path().join("inputs");
        let mut model = fixture::latency_model();
        change_model(&mut model);
        let mut baseline = fixture::evaluation("PC_DARTS_cifar", 0.0, 0.882, None);
        let mut aware = fixture::evaluation("DARTS_V2", 0.5, 0.8805, None);
        change_aware(&mut aware);
        // Both are of the same machine.
        baseline.settings.anchor = aware.settings.anchor.clone();
        let (latency_dataset, latency_model) = fixture::publish_model(&inputs, model);
        let [(first, baseline), (second, aware)] = [baseline, aware]
            .map(|evaluation| fixture::publish_with_search(&inputs, &latency_model, evaluation));
        Self {
            latency_dataset,
            latency_model,
            searches: [first, second],
            evaluations: [baseline, aware],
            dir,
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn run(&self, more: &[&str]) -> Answer {
        let [config, store] = ["report.toml", "store"].map(|name| self.path(name));
        let [first, second] = self.searches.each_ref().map(|path| text(path));
        let [baseline, aware] = self.evaluations.each_ref().map(|path| text(path));
        let args = [
            ["--config", text(&config)],
            ["--store", text(&store)],
            ["--latency-dataset", text(&self.latency_dataset)],
            ["--latency-model", text(&self.latency_model)],
            ["--search-result", first],
            ["--search-result", second],
            ["--evaluation", baseline],
            ["--evaluation", aware],
        ];
        report(&[&["run"], args.as_flattened(), more].concat())
    }

    /// The page.
    #[track_caller]
    fn page(&self, more: &[&str]) -> String {
        let answer = self.run(more);
        assert_eq!(answer.code, 0, "{}", answer.stderr);
        let file = Path::new(answer.stdout.trim_end()).join("report.html");
        // Spaces before units do not break; that is no matter here.
        fs::read_to_string(file).unwrap().replace('\u{a0}', " ")
    }
}

fn report(args: &[&str]) -> Answer {
    Answer::of(Command::new(env!("CARGO_BIN_EXE_report")).args(args))
}

#[test]
fn a_right_config_is_said_to_be_right() {
    let place = Place::new();
    let config = place.path("report.toml");
    let answer = report(&["check", "--config", text(&config)]);
    assert_eq!(
        (answer.code, answer.stdout),
        (0, format!("{}: right\n", text(&config)))
    );
}

#[test]
fn a_front_is_shown_where_there_is_one() {
    let place = Place::new();
    assert!(!place.page(&[]).contains("The front"));
    let front = fixture::publish(&place.path("fronts"), &EVALUATE, fixture::front());
    let page = place.page(&["--front", text(&front)]);
    for said in [
        "4 networks, searched with 0.7x, 0.5x (2 seeds)",
        "at most the target: 3 of 4",
        "1 of them while the machine was restless",
        "No network keeps to 0.2x (seed 1).",
        "test accuracy, %",
    ] {
        assert!(page.contains(said), "{said}");
    }
    let section = page.split("<h2>The front</h2>").nth(1).unwrap();
    let section = section.split("</section>").next().unwrap();
    // Two are on the front; one more of each mark in the legend.
    assert_eq!(section.matches("mark first").count(), 2 + 1);
    assert_eq!(section.matches("mark second").count(), 2 + 1);
}

#[test]
fn a_comparison_is_shown_where_there_is_one() {
    let place = Place::new();
    assert!(!place.page(&[]).contains("Several seeds"));
    let comparison = fixture::publish(&place.path("comparisons"), &EVALUATE, fixture::comparison());
    let page = place.page(&["--comparison", text(&comparison)]);
    let section = page.split("<h2>Several seeds</h2>").nth(1).unwrap();
    let section = section.split("</section>").next().unwrap();
    for said in [
        "8 networks of 2 seeds, trained alike and timed one after the other. 1 of them while the machine was restless.",
        "Measured latency at most the target: 1 of 2.",
        "<td>−0.05 [−1.95, +1.85]</td><td>−30.6 [−44.6, −16.6]</td>",
        "95 % interval (Student&#x27;s t)",
        "measured latency, ms",
        "seed 5, latency-aware",
        "seed 5, baseline (restless)",
        "the best of as many trained candidates",
    ] {
        assert!(section.contains(said), "{said} is not in {section}");
    }
    // A mark for each network, and one of each search in the legend.
    for (mark, n) in [("first", 2 + 1), ("second", 2 + 1), ("third", 4 + 1)] {
        assert_eq!(section.matches(&format!("mark {mark}")).count(), n);
    }
}

#[test]
fn the_page_shows_both_networks_in_numbers_and_drawings() {
    let page = Place::new().page(&[]);
    assert!(page.starts_with("<!doctype html>"));
    for name in ["PC_DARTS_cifar", "DARTS_V2"] {
        let genotype = Genotype::named(name).unwrap();
        let escaped = genotype.to_string().replace('\'', "&#x27;");
        assert!(page.contains(&escaped), "{name}");
    }
    // Two networks with two cells; histogram, scatter, two charts of the search and of the training; four in the legend.
    assert_eq!(page.matches("<svg ").count(), 4 + 6 + 4);
    assert_eq!(
        page.matches("<svg ").count(),
        page.matches("</svg>").count()
    );
    assert_eq!(page.matches(">skip</text>").count(), 1 + 5);
    assert_eq!(page.matches("<code>model.onnx</code>").count(), 2);
    for text in [
        "88.20 %",
        "88.05 %",
        "−0.15 points",
        "1.96 %",
        "3.53 %",
        "0.31 %",
    ] {
        assert!(page.contains(text), "{text}");
    }
}

#[test]
fn the_page_is_complete_in_itself() {
    let page = Place::new().page(&[]);
    for outside in [
        "http:", "https:", "//cdn", "<script", "<link", "<img", "@import", "url(h",
    ] {
        assert!(!page.contains(outside), "{outside}");
    }
}

#[test]
fn texts_from_outside_are_no_markup() {
    let place = Place::new();
    let page = place.page(&["--set", r#"title="<script>alert(1)</script> & co""#]);
    assert!(!page.contains("<script>"));
    assert!(page.contains("<h1>&lt;script&gt;alert(1)&lt;&#x2f;script&gt; &amp; co</h1>"));

    let place = Place::with(
        |model| {
            let figures = model.validation.models["mlp"].clone();
            model.validation.models.insert("<b>".to_owned(), figures);
            for held_out in &mut model.validation.held_out {
                held_out.predicted_millis.insert("<b>".to_owned(), 1.0);
            }
        },
        |aware| aware.search.method = "<i>".to_owned(),
    );
    let page = place.page(&[]);
    assert!(!page.contains("<b>") && !page.contains("<i>"));
    assert!(page.contains("&lt;b&gt;") && page.contains("&lt;i&gt;"));
}

#[test]
fn the_same_artifacts_give_the_same_bytes() {
    let place = Place::new();
    let first = place.page(&[]);
    fs::remove_dir_all(place.path("store")).unwrap();
    assert!(place.page(&[]) == first);
}

#[test]
fn what_makes_numbers_doubtful_is_said() {
    let page = Place::with(|_| (), |aware| aware.latency.disturbed = true).page(&[]);
    assert!(page.contains("restless while the latency-aware network"));
    let without_repeats = |model: &mut LatencyModelArtifact| {
        model.validation.noise_floor_mape = None;
    };
    assert!(
        !Place::with(without_repeats, |_| ())
            .page(&[])
            .contains("noise floor")
    );
}

#[test]
fn a_target_is_passed_or_failed_and_the_interval_tells_where_the_measurement_lies() {
    for (ratio, word, says) in [
        (1.02, "PASS", "target is met"),
        (0.9, "FAIL", "target is missed"),
    ] {
        let place = Place::with(
            |_| (),
            |aware| {
                *aware = fixture::evaluation("DARTS_V2", 0.123_456, 0.8805, Some(ratio));
            },
        );
        let page = place.page(&[]);
        for text in [word, says, "inside", "0.1235 (target)"] {
            assert!(page.contains(text), "{text}");
        }
    }
    let page = Place::with(
        |_| (),
        |aware| {
            aware.search.interval_millis = aware
                .search
                .interval_millis
                .map(|[low, _]| [low / 2.0, low]);
        },
    )
    .page(&[]);
    assert!(page.contains("outside") && !page.contains("PASS") && !page.contains("FAIL"));
    let page = Place::with(
        |_| (),
        |aware| {
            *aware = fixture::evaluation("DARTS_V2", 0.123_456, 0.8805, Some(1.02));
            aware.settings.anchor = None;
        },
    )
    .page(&[]);
    assert!(page.contains("predicted of another machine") && page.contains("is not judged"));
    for text in ["PASS", "FAIL", "measured inside", "measured outside"] {
        assert!(!page.contains(text), "{text}");
    }
}

#[test]
fn the_searches_are_shown_with_their_candidates_and_signs_of_collapse() {
    let page = Place::with(
        |_| (),
        |aware| *aware = fixture::evaluation("DARTS_V2", 0.25, 0.8805, Some(1.02)),
    )
    .page(&[]);
    let section = page.split("<h2>The search</h2>").nth(1).unwrap();
    let section = section.split("</section>").next().unwrap();
    assert_eq!(section.matches(": the network found").count(), 2);
    assert_eq!(section.matches(": candidate 2<").count(), 2);
    for text in [
        "cross entropy, nats",
        "predicted latency, ms",
        ">target</text>",
        "2.077 nats",
        "43.2 %",
        "+34.5 %",
        "0.457",
        "training loss",
        "0.557",
        "81.23 %",
        "latency-aware, epoch 4: 3 skips in the normal cell",
    ] {
        assert!(section.contains(text), "{text}");
    }
}

#[test]
fn an_evaluation_of_another_search_is_named() {
    let place = Place::new();
    let [first, second] = place.searches.clone();
    let place = Place {
        searches: [second.clone(), first],
        ..place
    };
    place.run(&[]).failed(
        3,
        &[text(&place.evaluations[0]), text(&second), "in the order"],
    );
}

#[test]
fn artifacts_of_other_runs_are_named() {
    let (place, other) = (
        Place::new(),
        Place::with(|model| model.card.n_train += 1, |_| ()),
    );
    let [baseline, aware] = place.searches.clone();
    let Place {
        latency_dataset,
        evaluations,
        ..
    } = &place;
    let of_other_model = Place {
        latency_model: other.latency_model.clone(),
        latency_dataset: latency_dataset.clone(),
        searches: [baseline.clone(), aware.clone()],
        evaluations: evaluations.clone(),
        ..Place::new()
    };
    let model = text(&other.latency_model);
    of_other_model.run(&[]).failed(
        3,
        &[text(&aware), "was not made from", model, "--latency-model"],
    );
    let [first, second] = evaluations.clone();
    let swapped = Place {
        searches: [aware.clone(), baseline],
        evaluations: [second, first],
        ..place
    };
    swapped
        .run(&[])
        .failed(2, &[text(&aware), "give the baseline"]);
}

#[test]
fn networks_timed_differently_are_not_compared() {
    let place = Place::with(|_| (), |aware| aware.settings.timing.n_threads = 2);
    let [baseline, aware] = place.evaluations.each_ref().map(|path| text(path));
    place
        .run(&[])
        .failed(3, &[baseline, aware, "different settings"]);
}

#[test]
fn a_missing_damaged_or_wrong_artifact_is_named() {
    let place = Place::new();
    let file = place.latency_model.join("validation.json");
    let bytes = fs::read(&file).unwrap();
    fs::write(&file, &bytes[..bytes.len() - 9]).unwrap();
    place.run(&[]).failed(3, &[text(&file), "damaged"]);

    let place = Place {
        latency_model: place.latency_dataset.clone(),
        ..place
    };
    place
        .run(&[])
        .failed(3, &["latency-dataset", "latency-model"]);
    let nothing = place.path("nothing");
    let place = Place {
        latency_dataset: nothing.clone(),
        ..place
    };
    place
        .run(&[])
        .failed(3, &[text(&nothing), "latency-dataset"]);
    assert!(!place.path("store").exists());
}

#[test]
fn config_and_command_line_mistakes_are_usage_errors() {
    let place = Place::new();
    fs::write(place.path("report.toml"), "title = \"A\"\ntitel = \"B\"\n").unwrap();
    place
        .run(&[])
        .failed(2, &["report.toml:2:1", "titel", "`title`"]);
    fs::write(place.path("report.toml"), "title = 3\n").unwrap();
    place.run(&[]).failed(2, &["report.toml:1:9", "string"]);
    fs::write(place.path("report.toml"), "title = \"A\"\n").unwrap();
    let third = text(&place.evaluations[0]).to_owned();
    place
        .run(&["--evaluation", &third])
        .failed(2, &["--evaluation was given 3 times", "expected twice"]);
    let third = text(&place.searches[0]).to_owned();
    place
        .run(&["--search-result", &third])
        .failed(2, &["--search-result was given 3 times", "expected twice"]);
}

#[test]
fn a_device_or_a_store_that_cannot_be_used_is_named() {
    let place = Place::new();
    place.run(&["--device", "cuda"]).failed(4, &["cuda:0"]);
    fs::write(place.path("store"), "a file").unwrap();
    place
        .run(&[])
        .failed(2, &[text(&place.path("store")), "--store"]);
}

#[test]
fn the_key_is_made_of_all_inputs() {
    let place = Place::new();
    let answer = place.run(&["--key-only"]);
    let answer: serde_json::Value = serde_json::from_str(&answer.stdout).unwrap();
    assert_eq!(answer["stage"], "report");
    assert_eq!(answer["parts"]["inputs"].as_object().unwrap().len(), 6);
    let other = Place::with(|_| (), |aware| aware.test_accuracy += 0.01).run(&["--key-only"]);
    let other: serde_json::Value = serde_json::from_str(&other.stdout).unwrap();
    assert_ne!(other["key"], answer["key"]);
}
