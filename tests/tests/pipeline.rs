//! The pipeline through real files, on the tiny preset.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use artifact::{Comparison, Front, LatencyDataset, LatencyModelArtifact, SearchResult, Store};
use pipeline_tests::{binary, command, output, root, stdout, tiny};
use serde_json::Value;
use space::Genotype;
use tempfile::TempDir;

fn xtask(store: &Path, args: &[&str]) -> std::process::Command {
    let mut all = args.to_vec();
    all.extend(["--preset", "tests/presets/tiny", "--threads", "2"]);
    command("xtask", store, &all)
}

/// Every file below a folder but manifests, which hold times, and what was measured.
fn bytes_of(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut files = BTreeMap::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if path.is_dir() {
            files.extend(bytes_of(&path));
        } else if name != "manifest.json" && name != "latency.json" && name != "verdict.json" {
            files.insert(path.clone(), std::fs::read(&path).unwrap());
        }
    }
    files
}

fn folders(store: &Path, kind: &str) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = std::fs::read_dir(store.join(format!("{kind}-v1")))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.join("manifest.json").exists())
        .collect();
    found.sort();
    found
}

#[test]
fn the_pipeline_runs_is_cached_and_reruns_only_what_changed() {
    let dir = TempDir::new().unwrap();
    let store = dir.path().join("store");

    let plan = stdout(xtask(&store, &["plan"]));
    assert!(plan.lines().next().unwrap().contains("will run"), "{plan}");

    let first: Value =
        serde_json::from_str(&stdout(xtask(&store, &["pipeline", "--json"]))).unwrap();
    for search in ["baseline", "latency_aware"] {
        let row = &first[search];
        let accuracy = row["test_accuracy"].as_f64().unwrap();
        assert!((0.0..=1.0).contains(&accuracy), "{row}");
        for field in [
            "latency_median_millis",
            "latency_p10_millis",
            "latency_p90_millis",
        ] {
            assert!(row[field].as_f64().unwrap() > 0.0, "{field} of {row}");
        }
        assert!(
            row["predicted_latency_millis"].as_f64().unwrap() > 0.0,
            "{row}"
        );
        assert!(row["n_params"].as_u64().unwrap() > 0 && row["n_macs"].as_u64().unwrap() > 0);
        assert_eq!(row["genotype"]["normal"].as_array().unwrap().len(), 8);
        assert_eq!(row["seed"].as_u64(), Some(0));
        let evaluation = root().join(row["evaluation"].as_str().unwrap());
        assert!(evaluation.join("model.onnx").is_file(), "{row}");
    }
    let latency = |search: &str| first[search]["latency_median_millis"].as_f64().unwrap();
    let reduction = 1.0 - latency("latency_aware") / latency("baseline");
    assert!((first["latency_reduction"].as_f64().unwrap() - reduction).abs() < 1e-12);
    let report = root().join(first["report"].as_str().unwrap());
    assert!(std::fs::read_to_string(report).unwrap().contains("<svg"));

    // A second run changes nothing and says the same.
    let before = bytes_of(&store);
    let second: Value =
        serde_json::from_str(&stdout(xtask(&store, &["pipeline", "--json"]))).unwrap();
    assert_eq!(first, second);
    assert_eq!(before.len(), bytes_of(&store).len());
    let plan = stdout(xtask(&store, &["plan"]));
    assert!(plan.lines().all(|line| line.contains("cached")), "{plan}");

    // One key of search: profile and predictor stay, and `why` names the key.
    let changed = ["--set", "search.lambda=0.25"];
    let plan = stdout(xtask(&store, &[&["plan"], &changed[..]].concat()));
    let line = |name: &str| {
        plan.lines()
            .find(|line| line.starts_with(name))
            .unwrap_or_else(|| panic!("{plan}"))
    };
    for cached in [
        "profile",
        "predictor",
        "search (baseline)",
        "evaluate (baseline)",
    ] {
        assert!(line(cached).contains("cached"), "{plan}");
    }
    assert!(
        line("search (latency-aware)").contains("will run"),
        "{plan}"
    );
    let why = stdout(xtask(&store, &[&["why", "search"], &changed[..]].concat()));
    assert!(
        why.contains("config.lambda: ") && why.contains("in the store, 0.25 now"),
        "{why}"
    );

    // One stage alone, on cached inputs.
    let run = stdout(xtask(&store, &[&["run", "search"], &changed[..]].concat()));
    assert_eq!(run.lines().count(), 2, "{run}");
    assert_eq!(folders(&store, "search-result").len(), 3);
    assert_eq!(folders(&store, "latency-dataset").len(), 1);

    resume_repeats_the_bytes(dir.path(), &store);
}

/// A killed search, started again, ends with the bytes of the undisturbed one.
fn resume_repeats_the_bytes(scratch: &Path, store: &Path) {
    let model = folders(store, "latency-model").pop().unwrap();
    let config = tiny("search");
    let args = |store: &Path| {
        let (config, model) = (config.to_str().unwrap(), model.to_str().unwrap());
        let args = [
            "run",
            "--config",
            config,
            "--latency-model",
            model,
            "--threads",
            "2",
        ];
        command("search", store, &args)
    };
    let fresh = scratch.join("resumed");
    let mut child = args(&fresh)
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // The second epoch is under way when the first one's line and checkpoint are out.
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let told = lines.any(|line| line.unwrap().contains("epoch 1/3"));
    assert!(told, "the search never said that its first epoch was over");
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(
        !fresh.join("search-result-v1").exists() || folders(&fresh, "search-result").is_empty()
    );

    let resumed = PathBuf::from(stdout(args(&fresh)).trim());
    let undisturbed = PathBuf::from(stdout(args(store)).trim());
    let name = |path: &Path| path.file_name().unwrap().to_owned();
    assert_eq!(
        name(&resumed),
        name(&undisturbed),
        "the key must not depend on the store"
    );
    let strip = |dir: &Path| -> Vec<(std::ffi::OsString, Vec<u8>)> {
        bytes_of(dir)
            .into_iter()
            .map(|(path, bytes)| (name(&path), bytes))
            .collect()
    };
    assert_eq!(
        strip(&root().join(resumed)),
        strip(&root().join(undisturbed))
    );
}

#[test]
fn a_sweep_is_timed_the_predictor_learns_from_it_and_a_front_comes_out() {
    let dir = TempDir::new().unwrap();
    let store = dir.path().join("store");
    // Targets that any network keeps: of so few timed architectures nothing tighter can be promised.
    let sweep = |how: &str, more: &[&str]| {
        // No network keeps to the last one, which ends nothing.
        let args = ["sweep", "--targets", "9x,8x,0.0001x", "--evaluate", how];
        let promise = ["--set", "search.target.probability=0.5"];
        stdout(xtask(&store, &[&args[..], &promise, more].concat()))
    };
    let timed: Value = serde_json::from_str(&sweep("time", &["--json"])).unwrap();
    let rows = timed["rows"].as_array().unwrap();
    let asked: Vec<&str> = rows
        .iter()
        .filter_map(|row| row["asked"].as_str())
        .collect();
    assert_eq!(asked, ["9x", "8x"]);
    assert!(
        rows.iter()
            .all(|row| row["measured_millis"].as_f64() > Some(0.0)),
        "{timed}"
    );
    assert_eq!(timed["n_met"], 2);
    let unreached = serde_json::json!([{ "seed": 0, "asked": "0.0001x" }]);
    assert_eq!(timed["unreached"], unreached);
    // Alone it does end the sweep.
    let alone = ["sweep", "--targets", "0.0001x", "--evaluate", "none"];
    let promise = ["--set", "search.target.probability=0.5"];
    let failed = output(xtask(&store, &[&alone[..], &promise].concat()));
    assert_eq!(failed.status.code(), Some(6), "{failed:?}");

    // What was measured is a data set that the predictor takes beside the profile's.
    let sets = folders(&store, "latency-dataset");
    let open = |dir: &PathBuf| artifact::open::<LatencyDataset>(dir).unwrap().value;
    let measured = sets
        .iter()
        .find(|dir| open(dir).samples.len() == 2)
        .unwrap();
    let n_undisturbed = open(measured)
        .samples
        .iter()
        .filter(|row| !row.disturbed)
        .count();
    let more = ["--more", measured.to_str().unwrap()];
    let n_train = |dir: &str| {
        let model = artifact::open::<LatencyModelArtifact>(root().join(dir));
        model.unwrap().value.card.n_train
    };
    let without = stdout(xtask(&store, &["run", "predictor"]));
    let with = stdout(xtask(&store, &[&["run", "predictor"], &more[..]].concat()));
    assert_eq!(
        n_train(with.trim()),
        n_train(without.trim()) + n_undisturbed
    );
    // The searches know of the new model.
    let plan = stdout(xtask(&store, &[&["plan"], &more[..]].concat()));
    let line = |name: &str| plan.lines().find(|line| line.starts_with(name)).unwrap();
    assert!(line("predictor").contains("cached"), "{plan}");
    assert!(line("search (baseline)").contains("will run"), "{plan}");

    let said = sweep("train", &[]);
    assert!(said.contains("0  9x") && said.contains("PASS"), "{said}");
    let named = "no network keeps to 0.0001x (seed 0)";
    assert!(said.contains(named), "{said}");
    let fronts = folders(&store, "front");
    assert_eq!(fronts.len(), 1);
    let front = artifact::open::<Front>(&fronts[0]).unwrap().value;
    assert_eq!(front.points.len(), 2);
    assert!(front.points.iter().any(|point| point.is_on_front));
    assert_eq!(serde_json::to_value(front.unreached).unwrap(), unreached);
    // The searches were those that were timed before.
    assert_eq!(folders(&store, "search-result").len(), 3);
}

#[test]
fn a_comparison_trains_first_and_times_later() {
    let dir = TempDir::new().unwrap();
    let store = dir.path().join("store");
    let compare = |more: &[&str]| -> Value {
        let args = ["compare", "--seeds", "1", "--randoms", "2", "--json"];
        let target = ["--target", "9x", "--set", "search.target.probability=0.5"];
        let said = stdout(xtask(&store, &[&args[..], &target, more].concat()));
        serde_json::from_str(&said).unwrap()
    };
    let later = compare(&["--timing", "later"]);
    let rows = |of: &Value| of["rows"].as_array().unwrap().clone();
    let column = |of: &Value, name: &str| -> Vec<Value> {
        rows(of).iter().map(|row| row[name].clone()).collect()
    };
    let searches = ["baseline", "latency-aware", "random", "random"];
    assert_eq!(column(&later, "search"), searches);
    assert_ne!(rows(&later)[2]["genotype"], rows(&later)[3]["genotype"]);
    assert!(
        rows(&later)
            .iter()
            .all(|row| row["measured_millis"].is_null())
    );
    assert!(later["against_random"]["latency"].is_null());
    let n_sets = folders(&store, "latency-dataset").len();

    let now = compare(&[]);
    for name in ["genotype", "test_accuracy", "predicted_millis"] {
        assert_eq!(column(&later, name), column(&now, name));
    }
    let n_measured = rows(&now)
        .iter()
        .filter(|row| row["measured_millis"].as_f64() > Some(0.0))
        .count();
    assert_eq!(n_measured, 4);
    assert!(now["against_random"]["latency"]["mean"].is_f64());
    assert_eq!(folders(&store, "latency-dataset").len(), n_sets + 1);
    assert_eq!(folders(&store, "evaluation").len(), 4);

    // Asked again, it is the same. Both are kept, and a report shows one.
    assert_eq!(compare(&[]), now);
    let comparisons = folders(&store, "comparison");
    let open = |dir: &PathBuf| artifact::open::<Comparison>(dir).unwrap().value;
    let is_timed = |dir: &PathBuf| open(dir).against_random.latency.is_some();
    let of_now = comparisons.iter().find(|dir| is_timed(dir));
    assert_eq!(comparisons.len(), 2);
    let kept = serde_json::to_value(open(of_now.unwrap())).unwrap();
    assert_eq!(kept, now);
    let shown = ["--comparison", of_now.unwrap().to_str().unwrap()];
    let run = ["run", "report", "--seed", "0", "--target", "9x"];
    let promise = ["--set", "search.target.probability=0.5"];
    let said = stdout(xtask(&store, &[&run[..], &promise, &shown].concat()));
    let page = std::fs::read_to_string(root().join(said.trim()).join("report.html")).unwrap();
    assert!(page.contains("4 networks of 1 seed"));

    // What alpha stands for with lambda = 0 is chosen from nothing.
    let n_without = || {
        let searches = folders(&store, "search-result").into_iter();
        let found = searches.map(|dir| artifact::open::<SearchResult>(&dir).unwrap().value);
        let baselines = found.filter(|own| own.objective == "penalty");
        baselines.filter(|own| own.candidates.is_empty()).count()
    };
    assert_eq!(n_without(), 0);
    let alpha = compare(&["--baseline", "alpha", "--timing", "later"]);
    assert_eq!(column(&alpha, "search"), searches);
    assert_eq!(n_without(), 1);
}

#[test]
fn a_genotype_that_is_there_is_evaluated_like_a_found_one() {
    let dir = TempDir::new().unwrap();
    let store = dir.path().join("store");
    let genotype = Genotype::named("PC_DARTS_cifar").unwrap();
    let evaluate = |given: &str| -> Value {
        let said = stdout(xtask(&store, &["evaluate", given, "--json"]));
        serde_json::from_str(&said).unwrap()
    };
    let network = evaluate("PC_DARTS_cifar");
    assert_eq!(network["genotype"], artifact::genotype_to_json(&genotype));
    assert!(network["latency_median_millis"].as_f64() > Some(0.0));
    let folder = root().join(network["evaluation"].as_str().unwrap());
    assert!(folder.join("model.onnx").is_file());
    let [search] = &folders(&store, "search-result")[..] else {
        panic!("one search result");
    };
    let record = artifact::open::<SearchResult>(search).unwrap().value;
    assert_eq!((&*record.method, &*record.objective), ("given", "none"));
    assert_eq!(record.genotype, genotype);
    assert!(record.target.is_none() && record.trace.is_empty());

    // However it is named, it is the same.
    let file = dir.path().join("genotype.json");
    std::fs::write(&file, artifact::genotype_to_json(&genotype).to_string()).unwrap();
    for given in [genotype.to_string(), file.to_str().unwrap().to_owned()] {
        assert_eq!(evaluate(&given), network);
    }
    assert_eq!(folders(&store, "evaluation").len(), 1);
    for (given, more, says) in [
        ("PC_DARTS", &[][..], "PC_DARTS_cifar"),
        ("PC_DARTS_cifar", &["--target", "0.5x"], "no baseline"),
    ] {
        let failed = output(xtask(&store, &[&["evaluate", given], more].concat()));
        let stderr = String::from_utf8_lossy(&failed.stderr);
        assert_eq!(failed.status.code(), Some(2), "{stderr}");
        assert!(stderr.contains(says), "{stderr}");
    }
}

#[test]
fn a_network_that_misses_its_target_teaches_the_predictor() {
    let dir = TempDir::new().unwrap();
    let store = dir.path().join("store");
    // A profile that claims a tenth of every latency: no network keeps what the predictor promises after that.
    let profile = root().join(stdout(xtask(&store, &["run", "profile"])).trim());
    let mut opened = artifact::open::<LatencyDataset>(&profile).unwrap();
    for row in &mut opened.value.samples {
        row.median_millis /= 10.0;
        row.p10_millis /= 10.0;
        row.p90_millis /= 10.0;
        row.repeat_median_millis = row.repeat_median_millis.map(|millis| millis / 10.0);
        row.disturbed = false;
    }
    std::fs::remove_dir_all(&opened.dir).unwrap();
    let manifest = opened.manifest;
    Store::open(&store)
        .unwrap()
        .publish(manifest.key_parts, manifest.origin, opened.value)
        .unwrap();

    let pipeline = |attempts: &str| {
        let args = ["pipeline", "--target", "2x", "--attempts", attempts];
        // A network ten times as slow as all others must not make of predictions what no latency can be.
        let promise = [
            "--set",
            "search.target.probability=0.5",
            "--set",
            "predictor.model=structured",
        ];
        // Rounds of an evaluation never count as disturbed here, whatever the machine does.
        let restless = ["--set", "evaluate.timing.max_disturbance=1e9"];
        let output = output(xtask(&store, &[&args[..], &promise, &restless].concat()));
        assert!(output.status.success(), "{output:?}");
        let said = [output.stdout, output.stderr].concat();
        String::from_utf8(said).unwrap()
    };
    let once = pipeline("1");
    assert!(once.contains("FAIL"), "{once}");
    assert!(!once.contains("runs again"), "{once}");
    assert_eq!(folders(&store, "latency-model").len(), 1);

    let twice = pipeline("2");
    assert!(twice.contains("runs again (2 of 2)"), "{twice}");
    let models = folders(&store, "latency-model");
    let n_train = models.iter().map(|dir| {
        let model = artifact::open::<LatencyModelArtifact>(dir).unwrap();
        model.value.card.n_train
    });
    let n_train: Vec<_> = n_train.collect();
    assert_eq!(n_train.len(), 2);
    assert_eq!(n_train[0].abs_diff(n_train[1]), 1);
    // Both searches of the target, and the baseline's.
    assert_eq!(folders(&store, "search-result").len(), 3);

    let again = pipeline("2");
    assert!(again.contains("      search (baseline): cached"), "{again}");
    assert_eq!(folders(&store, "latency-model").len(), 2);
    assert_eq!(folders(&store, "search-result").len(), 3);
}

#[test]
fn a_wrong_stage_or_preset_is_a_usage_error() {
    let dir = TempDir::new().unwrap();
    for args in [
        &["run", "serach"][..],
        &["why", "nothing"],
        &["plan", "--set", "lambda=1"],
        &["plan", "--set", "nosuch.lambda=1"],
    ] {
        let output = output(xtask(dir.path(), args));
        assert_eq!(output.status.code(), Some(2), "{args:?}");
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(
            stderr.contains("profile, predictor, search, evaluate, report"),
            "{stderr}"
        );
    }
    let output = output(command(
        "xtask",
        dir.path(),
        &["plan", "--preset", "nosuch"],
    ));
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("quick"));
}

/// An IDX data set: `n` grey images of `[height, width]` in each split, of two classes in turn.
fn write_idx(dir: &Path, n: usize, [height, width]: [usize; 2]) {
    std::fs::create_dir_all(dir).unwrap();
    let header = |magic: u32, sizes: &[usize]| -> Vec<u8> {
        let sizes = sizes.iter().map(|&size| size as u32);
        std::iter::once(magic)
            .chain(sizes)
            .flat_map(u32::to_be_bytes)
            .collect()
    };
    for split in ["train", "t10k"] {
        let mut images = header(0x803, &[n, height, width]);
        images.extend((0..n * height * width).map(|i| (i * 7) as u8));
        let mut labels = header(0x801, &[n]);
        labels.extend((0..n).map(|i| (i % 2) as u8));
        std::fs::write(dir.join(format!("{split}-images-idx3-ubyte")), images).unwrap();
        std::fs::write(dir.join(format!("{split}-labels-idx1-ubyte")), labels).unwrap();
    }
}

#[test]
fn a_preset_for_other_images_is_written_and_taken() {
    let dir = TempDir::new().unwrap();
    let at = |name: &str| dir.path().join(name);
    let text = |name: &str| at(name).to_str().unwrap().to_owned();
    write_idx(&at("squares"), 2000, [12, 12]);
    write_idx(&at("oblong"), 4, [12, 14]);
    write_idx(&at("few"), 4, [12, 12]);
    let preset = |name: &str, images: &str, more: &[&str]| {
        let mut command = std::process::Command::new(binary("xtask"));
        let name = match name {
            "" => PathBuf::new(),
            name => at(name),
        };
        command.current_dir(root()).arg("preset").arg(name);
        command.arg("--images").arg(at(images));
        output({
            command.args(["--from", "tests/presets/tiny"]).args(more);
            command
        })
    };
    let done = preset("mine", "squares", &[]);
    let stderr = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "{stderr}");
    let said = String::from_utf8_lossy(&done.stdout);
    assert!(
        said.contains("2000 training and 2000 test images of 1 x 12 x 12"),
        "{said}"
    );
    // Five times fewer images than what the preset was made for.
    assert!(
        said.contains("search.data.train_fraction = 0.04 instead of 0.008\n"),
        "{said}"
    );
    let config = std::fs::read_to_string(at("mine").join("evaluate.toml")).unwrap();
    for line in [
        "n_epochs = 5\n",
        "in_channels = 1\n",
        "n_classes = 2\n",
        "image_size = 12          # pixels, square\n",
        "init_channels = 4\n",
    ] {
        assert!(config.contains(line), "{config}");
    }
    assert!(config.contains(&format!("dir = \"{}\"", text("squares"))));
    let store = at("store");
    let plan = stdout(command(
        "xtask",
        &store,
        &["plan", "--preset", &text("mine")],
    ));
    assert!(plan.contains("will run"), "{plan}");

    for (name, images, code, says) in [
        ("mine", "squares", 2, "is there already"),
        ("other", "oblong", 2, "12 x 14 (height, width)"),
        ("other", "nowhere", 3, "there is no folder"),
        // Too few for a batch: a search would not take them.
        ("other", "few", 2, "is not written"),
        ("", "squares", 2, "no name for a preset"),
    ] {
        let failed = preset(name, images, &[]);
        let stderr = String::from_utf8_lossy(&failed.stderr);
        assert_eq!(failed.status.code(), Some(code), "{stderr}");
        assert!(stderr.contains(says), "{stderr}");
    }
    // What no stage takes is not left behind.
    let names = std::fs::read_dir(dir.path()).unwrap();
    let names = names.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned());
    assert!(names.into_iter().all(|name| !name.starts_with("other")));
}

/// What the last stage would refuse is refused before the first one runs.
#[test]
fn networks_and_images_that_do_not_go_together_end_a_run_before_it_begins() {
    let dir = TempDir::new().unwrap();
    for (overrides, says) in [
        (
            &[
                "evaluate.network.n_classes=9",
                "profile.network.n_classes=9",
            ][..],
            "of 10 classes, but [network]",
        ),
        (&["profile.network.init_channels=8"], "make them the same"),
        (
            &["predictor.metric=peak-memory"],
            "profile.metrics=[\"peak-memory\"]",
        ),
        (
            &["search.objective=target", "search.target.latency=3MiB"],
            "a number of ms",
        ),
        (&["search.target.latency=0.4"], "`0.4` has no unit"),
        (
            &["search.objective=target", "search.target.latency=0.9x"],
            "19 held-out architectures",
        ),
        (&["search.method=darts"], "network.channel_ratio"),
    ] {
        let mut args = vec!["pipeline"];
        args.extend(overrides.iter().flat_map(|value| ["--set", value]));
        let failed = output(xtask(dir.path(), &args));
        let stderr = String::from_utf8_lossy(&failed.stderr);
        assert_eq!(failed.status.code(), Some(2), "{stderr}");
        assert!(stderr.contains(says), "{stderr}");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }
    // So does what is given beside the configs, and what a sweep asks for.
    for (args, code, says) in [
        (&["pipeline", "--more", "nowhere"][..], 3, "nowhere"),
        (&["pipeline", "--front", "nowhere"], 3, "nowhere"),
        (&["pipeline", "--comparison", "nowhere"], 3, "nowhere"),
        (&["compare", "--comparison", "."], 2, "makes no report"),
        (&["sweep", "--lambdas=-0.1"], 2, "lambda is out of range"),
        (&["sweep", "--targets", "3MiB"], 2, "a number of ms"),
    ] {
        let failed = output(xtask(dir.path(), args));
        let stderr = String::from_utf8_lossy(&failed.stderr);
        assert_eq!(failed.status.code(), Some(code), "{stderr}");
        assert!(stderr.contains(says), "{stderr}");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}

#[test]
fn one_baseline_serves_all_targets() {
    let dir = TempDir::new().unwrap();
    let key = |overrides: &[&str]| {
        let sets = overrides.iter().flat_map(|value| ["--set", value]);
        let args: Vec<&str> = ["plan"].into_iter().chain(sets).collect();
        let plan = stdout(xtask(dir.path(), &args));
        let of_baseline = plan.lines().find(|line| line.contains("search (baseline)"));
        of_baseline.unwrap().to_owned()
    };
    let overrides = [
        "search.target.slack=0.3",
        "search.target.multiplier_rate=0.5",
        "search.target.of=PDARTS",
        "search.n_bridge_samples=7",
    ];
    assert_eq!(key(&[]), key(&overrides));
}

#[test]
fn a_stage_without_its_inputs_says_which_one_to_run() {
    let dir = TempDir::new().unwrap();
    let output = output(xtask(dir.path(), &["run", "search"]));
    assert_eq!(output.status.code(), Some(3));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(stderr.contains("cargo xtask run"), "{stderr}");
}

#[test]
fn a_stages_exit_code_is_handed_on() {
    let dir = TempDir::new().unwrap();
    let output = output(xtask(dir.path(), &["pipeline", "--device", "cuda"]));
    assert_eq!(
        output.status.code(),
        Some(4),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}
