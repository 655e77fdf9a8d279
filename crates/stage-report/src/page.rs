//! What the page says: every number as the text that stands in it.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

use artifact::manifest::Manifest;
use artifact::{
    CandidateRecord, ComparedBaseline, Comparison, ComparisonRow, Differences, Evaluation,
    FiguresRecord, Interval, LatencyModelArtifact, MeasurementSettings, Metric, Opened,
    SearchResult, TraceRow, Unreached,
};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::Serde;
use minijinja::{AutoEscape, Environment};
use serde::Serialize;
use serde_json::Value;

use space::Primitive;

use crate::svg::cell;
use crate::svg::charts::{self, Curve, Marked, Series, Swept};
use crate::{Config, Inputs};

const TEMPLATE: &str = include_str!("report.html.jinja");

/// What the two networks are called.
const NAMES: [&str; 2] = ["baseline", "latency-aware"];

/// Everything that the template shows.
#[derive(Serialize)]
struct Page<'a> {
    title: &'a str,
    tiles: Vec<Tile>,
    conclusion: String,
    conditions: Vec<(&'static str, String)>,
    names: [&'static str; 2],
    results: Vec<Row>,
    notes: Vec<String>,
    histogram: String,
    histogram_caption: String,
    models: Vec<&'a str>,
    figures: Vec<Row>,
    noise_floor: Option<String>,
    scatter: String,
    scatter_caption: String,
    front: Option<String>,
    front_caption: String,
    comparison: Option<Seeds>,
    search_losses: String,
    search_latencies: String,
    search_ends: Vec<Row>,
    candidates: Option<Table>,
    events: Vec<String>,
    loss_curves: String,
    accuracy_curves: String,
    networks: Vec<Network>,
    legend: Vec<(String, &'static str)>,
    artifacts: Vec<Provenance>,
    machines: Vec<Machine>,
}

/// A number that is seen from afar.
#[derive(Serialize)]
struct Tile {
    value: String,
    what: Cow<'static, str>,
    detail: String,
}

/// A line of a table.
#[derive(Serialize)]
struct Row {
    name: Cow<'static, str>,
    cells: Vec<String>,
}

/// A table with a line of names above.
#[derive(Serialize)]
struct Table {
    heads: Vec<String>,
    rows: Vec<Row>,
}

/// What several seeds found.
#[derive(Serialize)]
struct Seeds {
    chart: String,
    caption: String,
    gains: Table,
    note: String,
    networks: Table,
}

/// A network with its cells.
#[derive(Serialize)]
struct Network {
    name: String,
    normal: String,
    reduction: String,
    tuple_form: String,
    /// The folder that holds it as ONNX; `None` of evaluations before there was that.
    evaluation: Option<String>,
}

/// Where an artifact comes from.
#[derive(Serialize)]
struct Provenance {
    name: &'static str,
    stage: String,
    seed: String,
    digest: String,
    key: String,
    made_from: String,
    run: String,
    build: String,
    config: String,
}

/// A machine, and what was made on it.
#[derive(Serialize)]
struct Machine {
    made: String,
    fields: Vec<(String, String)>,
}

/// The page: the same bytes for the same artifacts.
pub(crate) fn render(config: &Config, inputs: &Inputs) -> Result<String, minijinja::Error> {
    let mut environment = Environment::new();
    environment.set_auto_escape_callback(|_| AutoEscape::Html);
    environment.set_syntax(SyntaxConfig::builder().trim_blocks(true).build()?);
    environment.add_template("report", TEMPLATE)?;
    environment
        .get_template("report")?
        .render(Serde(page(config, inputs)))
}

fn page<'a>(config: &'a Config, inputs: &'a Inputs) -> Page<'a> {
    let evaluations = inputs.evaluations.each_ref().map(|opened| &opened.value);
    let [baseline, aware] = evaluations;
    let latencies = evaluations.map(|evaluation| evaluation.latency.median_millis);
    let model = &inputs.latency_model.value;
    let noise_floor = model
        .validation
        .noise_floor_mape
        .map(|floor| percent(floor, 2));
    let (histogram, histogram_caption) = histogram(inputs, latencies);
    let (models, figures) = figures(inputs);
    let searches = inputs.searches.each_ref().map(|opened| &opened.value);
    let (front, front_caption) = front(inputs).unzip();
    let front_caption = front_caption.unwrap_or_default();
    Page {
        title: &config.title,
        tiles: tiles(inputs),
        conclusion: conclusion(evaluations),
        conditions: conditions(&aware.settings),
        names: NAMES,
        results: results(baseline, aware),
        notes: notes(inputs),
        histogram,
        histogram_caption,
        models,
        figures,
        noise_floor,
        scatter: scatter(model),
        scatter_caption: format!(
            "{} architectures that the models were not fitted on; fitted on {}.",
            model.card.n_test, model.card.n_train
        ),
        front,
        front_caption,
        comparison: inputs
            .comparison
            .as_ref()
            .map(|own| seeds(&own.value, inputs)),
        search_losses: charts::curves(
            "Loss of the supernets",
            "cross entropy, nats",
            &traces(searches, |row| row.valid_loss),
            None,
        ),
        search_latencies: derived_costs(searches),
        search_ends: search_ends(searches),
        candidates: candidates(searches),
        events: events(searches),
        loss_curves: curves("Loss", "cross entropy, nats", evaluations, |evaluation| {
            let losses = evaluation.epochs.iter().map(|row| row.train_loss).collect();
            (losses, evaluation.test_loss)
        }),
        accuracy_curves: curves("Accuracy", "accuracy, %", evaluations, |evaluation| {
            let shares = evaluation
                .epochs
                .iter()
                .map(|row| 100.0 * row.train_accuracy)
                .collect();
            (shares, 100.0 * evaluation.test_accuracy)
        }),
        networks: inputs.evaluations.iter().zip(NAMES).map(network).collect(),
        legend: cell::legend(),
        artifacts: manifests(inputs)
            .map(|(name, manifest)| provenance(name, manifest))
            .collect(),
        machines: machines(inputs),
    }
}

/// The verdict, where there was a target, and the numbers that are seen from afar.
fn tiles(inputs: &Inputs) -> Vec<Tile> {
    let evaluations = inputs.evaluations.each_ref().map(|opened| &opened.value);
    let costs = evaluations.map(measured);
    let metric = evaluations[1].search.metric;
    let unit = metric.unit();
    let accuracies = evaluations.map(|evaluation| evaluation.test_accuracy);
    let validation = &inputs.latency_model.value.validation;
    let chosen = &inputs.latency_model.value.card.chosen;
    let chosen = validation.models.get(chosen);
    let verdict = evaluations[1].verdict();
    let target = verdict.word().zip(verdict.target_millis);
    let verdict = target.map(|(word, target)| Tile {
        value: word.to_owned(),
        what: "target".into(),
        detail: format!(
            "measured {}\u{a0}{unit}, at most {}\u{a0}{unit}",
            millis(verdict.measured_millis),
            millis(target)
        ),
    });
    let numbers = [
        Tile {
            value: format!("{}\u{a0}%", signed(100.0 * (costs[1] / costs[0] - 1.0), 1)),
            what: format!("measured {}", noun(metric)).into(),
            detail: format!(
                "{}\u{a0}{unit} against {}\u{a0}{unit}",
                millis(costs[1]),
                millis(costs[0])
            ),
        },
        Tile {
            value: format!(
                "{}\u{a0}points",
                signed(100.0 * (accuracies[1] - accuracies[0]), 2)
            ),
            what: "test accuracy, one seed".into(),
            detail: match evaluations.map(Evaluation::accuracy_error) {
                [Some(own), Some(other)] => format!(
                    "{} against {}; standard error up to {:.1}\u{a0}points by the test images alone",
                    percent(accuracies[1], 2),
                    percent(accuracies[0], 2),
                    100.0 * own.hypot(other)
                ),
                _ => format!(
                    "{} against {}",
                    percent(accuracies[1], 2),
                    percent(accuracies[0], 2)
                ),
            },
        },
        Tile {
            value: chosen.map_or("–".to_owned(), |figures| percent(figures.mape, 1)),
            what: format!("error of the {} model", noun(metric)).into(),
            detail: match validation.noise_floor_mape {
                Some(floor) => format!(
                    "mean over held-out architectures; noise {}",
                    percent(floor, 2)
                ),
                None => "mean over held-out architectures".to_owned(),
            },
        },
    ];
    verdict.into_iter().chain(numbers).collect()
}

/// What was measured of what the search kept low, in the unit of the metric.
fn measured(evaluation: &Evaluation) -> f64 {
    evaluation.verdict().measured_millis
}

/// A metric in a sentence.
fn noun(metric: Metric) -> &'static str {
    match metric {
        Metric::Latency => "latency",
        Metric::PeakMemory => "peak memory",
        Metric::Energy => "energy",
    }
}

fn conclusion([baseline, aware]: [&Evaluation; 2]) -> String {
    let points = 100.0 * (aware.test_accuracy - baseline.test_accuracy);
    let metric = aware.search.metric;
    let (cost, unit) = (noun(metric), metric.unit());
    let change = 100.0 * (measured(aware) / measured(baseline) - 1.0);
    let change = compared(change, "%", 1)
        .map_or("the same as".to_owned(), |change| format!("{change} than"));
    let accuracy = compared(points, "percentage points", 2);
    if let Some(target) = &aware.search.target {
        return format!(
            "Asked for at most {}\u{a0}{unit}, the search found a network that takes {}\u{a0}{unit}: {}. Its {cost} is {change} \
             that of the network found for accuracy alone; its test accuracy is {}.",
            millis(target.target_millis),
            millis(measured(aware)),
            match aware.verdict().is_target_met {
                Some(true) => "the target is met",
                Some(false) => "the target is missed",
                None =>
                    "that is of another machine or revision than the target, which is not judged",
            },
            accuracy.unwrap_or("the same".to_owned()),
        );
    }
    format!(
        "With λ = {}, the search found a network whose {cost} is {change} that of the network found with \
         λ = {}; its test accuracy is {}.",
        short(aware.search.lambda),
        short(baseline.search.lambda),
        accuracy.unwrap_or("the same".to_owned()),
    )
}

/// A coefficient in at most four digits.
fn short(value: f64) -> String {
    let text = format!("{value:.4}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// "12.3 % lower", "0.4 % higher"; `None` for what rounds to nothing.
fn compared(change: f64, unit: &str, n_decimals: usize) -> Option<String> {
    let amount = format!("{:.n_decimals$}", change.abs());
    let direction = if change < 0.0 { "lower" } else { "higher" };
    (amount.parse() != Ok(0.0)).then(|| format!("{amount}\u{a0}{unit} {direction}"))
}

/// What the latencies are of.
fn conditions(settings: &MeasurementSettings) -> Vec<(&'static str, String)> {
    let (network, timing) = (&settings.network, &settings.timing);
    let (size, n_repeats, n_warmup) = (network.image_size, timing.n_repeats, timing.n_warmup);
    vec![
        (
            "one call",
            format!("{} at a time", plural(timing.batch_size, "image")),
        ),
        (
            "on",
            format!(
                "{} ({}), {}",
                settings.device,
                settings.runtime,
                plural(timing.n_threads, "thread")
            ),
        ),
        (
            "median of",
            format!(
                "those of {n_repeats} calls that nothing disturbed (at most 5 % above the fastest tenth), after {n_warmup} that do not count"
            ),
        ),
        (
            "corrected by",
            "the faster of two timings of an anchor network, before and after".to_owned(),
        ),
        (
            "network",
            format!(
                "{}, {} at first, stem {}",
                plural(network.n_layers, "cell"),
                plural(network.init_channels, "channel"),
                network.stem
            ),
        ),
        (
            "images",
            format!(
                "{size}×{size} pixels, {}, {} classes",
                plural(network.in_channels, "channel"),
                network.n_classes
            ),
        ),
    ]
}

fn results(baseline: &Evaluation, aware: &Evaluation) -> Vec<Row> {
    let both = [baseline, aware];
    let metric = aware.search.metric;
    let (cost, unit) = (noun(metric), metric.unit());
    let row = |name: &str, of: &dyn Fn(&Evaluation) -> String, change: String| Row {
        name: name.to_owned().into(),
        cells: both
            .iter()
            .map(|evaluation| of(evaluation))
            .chain([change])
            .collect(),
    };
    let change = |of: &dyn Fn(&Evaluation) -> f64| {
        format!(
            "{}\u{a0}%",
            signed(100.0 * (of(aware) / of(baseline) - 1.0), 1)
        )
    };
    let error = |e: &Evaluation| e.search.predicted_latency_millis / measured(e) - 1.0;
    let points = 100.0 * (aware.test_accuracy - baseline.test_accuracy);
    let mut rows = vec![
        row(
            "search",
            &|e| format!("{}, seed {}", e.search.method, e.search.seed),
            String::new(),
        ),
        row(
            "weight of the latency, λ",
            &|e| format!("{} ({})", short(e.search.lambda), e.search.objective),
            String::new(),
        ),
        row(
            "test accuracy ± standard error",
            &|e| match e.accuracy_error() {
                Some(error) => {
                    format!("{} ± {:.2}", percent(e.test_accuracy, 2), 100.0 * error)
                }
                None => percent(e.test_accuracy, 2),
            },
            format!("{}\u{a0}points", signed(points, 2)),
        ),
        row(
            "measured latency, median",
            &|e| format!("{}\u{a0}ms", millis(e.latency.median_millis)),
            change(&|e| e.latency.median_millis),
        ),
        row(
            "10th to 90th percentile",
            &|e| {
                format!(
                    "{} – {}\u{a0}ms",
                    millis(e.latency.p10_millis),
                    millis(e.latency.p90_millis)
                )
            },
            String::new(),
        ),
        row(
            &format!("predicted {cost}"),
            &|e| format!("{}\u{a0}{unit}", millis(e.search.predicted_latency_millis)),
            change(&|e| e.search.predicted_latency_millis),
        ),
        row(
            "predicted interval, 90\u{a0}%",
            &|e| {
                let verdict = e.verdict();
                match (verdict.interval_millis, verdict.is_in_interval) {
                    (Some([low, high]), Some(is_in)) => format!(
                        "{} – {}\u{a0}{unit}: measured {}",
                        millis(low),
                        millis(high),
                        if is_in { "inside" } else { "outside" }
                    ),
                    _ => "–".to_owned(),
                }
            },
            String::new(),
        ),
        row(
            "predicted bound",
            &|e| match &e.search.target {
                Some(target) => format!(
                    "{}\u{a0}{unit}, probability {}",
                    millis(target.upper_millis),
                    target.probability
                ),
                None => "–".to_owned(),
            },
            String::new(),
        ),
        row(
            "target",
            &|e| match e.verdict().target_millis {
                Some(target) => format!("{}\u{a0}{unit}", millis(target)),
                None => "–".to_owned(),
            },
            String::new(),
        ),
        row(
            "verdict",
            &|e| match (e.verdict().word(), &e.search.target) {
                (Some(word), _) => word.to_owned(),
                (None, Some(_)) => "none: predicted of another machine or revision".to_owned(),
                (None, None) => "–".to_owned(),
            },
            String::new(),
        ),
        row(
            "predicted against measured",
            &|e| format!("{}\u{a0}%", signed(100.0 * error(e), 1)),
            String::new(),
        ),
        row(
            "parameters",
            &|e| thousands(e.n_params),
            change(&|e| e.n_params as f64),
        ),
        row(
            "multiply-adds",
            &|e| thousands(e.n_macs),
            change(&|e| e.n_macs as f64),
        ),
        row(
            "multiply-adds, BN, ReLU and pooling included",
            &|e| thousands(e.n_multi_adds),
            change(&|e| e.n_multi_adds as f64),
        ),
    ];
    if metric != Metric::Latency {
        let own = row(
            &format!("measured {cost}"),
            &|e| format!("{}\u{a0}{unit}", millis(measured(e))),
            change(&measured),
        );
        let before = rows
            .iter()
            .position(|row| row.name.starts_with("predicted"));
        rows.insert(before.unwrap_or(rows.len()), own);
    }
    rows
}

/// What a reader must know before believing the numbers.
fn notes(inputs: &Inputs) -> Vec<String> {
    let mut notes = Vec::new();
    for (opened, name) in inputs.evaluations.iter().zip(NAMES) {
        let latency = &opened.value.latency;
        if let Some(ratio) = opened.value.slowdown() {
            notes.push(format!(
                "While the {name} network was timed, the machine took {ratio:.2} times as long as when it was profiled. That is divided out \
                 of its latency, as it is for the target: as it was, one call took {}\u{a0}ms.",
                millis(ratio * latency.median_millis)
            ));
        }
        if latency.disturbed {
            notes.push(format!(
                "The machine was restless while the {name} network was timed: its latency is uncertain."
            ));
        }
    }
    let settings = &inputs.evaluations[0].value.settings;
    match &inputs.latency_dataset.value.settings {
        Some(profiled) if profiled != settings => notes.push(
            "The networks were timed under other settings than the latency data set: predicted and \
             measured latencies cannot be compared."
                .to_owned(),
        ),
        Some(_) => {}
        None => notes.push(
            "The latency data set does not say how it was measured: predicted and measured latencies \
             may be of different things."
                .to_owned(),
        ),
    }
    notes
}

fn histogram(inputs: &Inputs, latencies: [f64; 2]) -> (String, String) {
    let samples = &inputs.latency_dataset.value.samples;
    // Those that a profile in rounds chose are not random.
    let drawn = samples.iter().filter(|sample| !sample.chosen);
    let sampled: Vec<f64> = drawn.clone().map(|sample| sample.median_millis).collect();
    let marked = [0, 1].map(|index| Marked {
        name: NAMES[index],
        millis: latencies[index],
    });
    let [baseline, aware] = latencies.map(|latency| {
        let n_slower = sampled.iter().filter(|millis| **millis > latency).count();
        percent(n_slower as f64 / sampled.len().max(1) as f64, 0)
    });
    let disturbed = match drawn.filter(|sample| sample.disturbed).count() {
        0 => String::new(),
        n => format!(" Disturbed timings: {n}."),
    };
    let caption = format!(
        "{} random architectures, timed. {aware} of them are slower than the latency-aware network, \
         {baseline} than the baseline.{disturbed}",
        sampled.len()
    );
    (charts::histogram(&sampled, &marked), caption)
}

/// The front of a sweep, and what it is of.
fn front(inputs: &Inputs) -> Option<(String, String)> {
    let points = &inputs.front.as_ref()?.value.points;
    let networks: Vec<Swept> = points
        .iter()
        .map(|point| Swept {
            millis: point.latency_median_millis,
            accuracy: 100.0 * point.test_accuracy,
            is_on_front: point.is_on_front,
        })
        .collect();
    let seeds: BTreeSet<u32> = points.iter().map(|point| point.seed).collect();
    let mut asked: Vec<&str> = Vec::new();
    for point in points {
        if !asked.contains(&point.asked.as_str()) {
            asked.push(&point.asked);
        }
    }
    let targets: Vec<&_> = points
        .iter()
        .filter(|point| point.target_millis.is_some())
        .collect();
    let n_met = targets
        .iter()
        .filter(|point| Some(point.latency_median_millis) <= point.target_millis)
        .count();
    let front = &inputs.front.as_ref()?.value;
    let metric = front.metric;
    let cost = noun(metric);
    let unreached = front.unreached.iter().map(Unreached::to_string);
    let unreached = match unreached.collect::<Vec<_>>() {
        own if own.is_empty() => String::new(),
        own => format!(" No network keeps to {}.", own.join(", ")),
    };
    let elsewhere = elsewhere(front.settings.as_ref(), inputs);
    let met = match targets.len() {
        0 => String::new(),
        n => format!(" Measured {cost} at most the target: {n_met} of {n}."),
    };
    let restless = restless(points.iter().map(|point| point.disturbed));
    let caption = format!(
        "{}, searched with {} ({}), trained and timed alike.{restless}{met}{unreached}{elsewhere}",
        plural(points.len(), "network"),
        asked.join(", "),
        plural(seeds.len(), "seed"),
    );
    let of = format!("{cost}, {}", metric.unit());
    Some((charts::front(&of, &networks), caption))
}

/// A sentence where some of several networks were timed while the machine was restless.
fn restless(disturbed: impl Iterator<Item = Option<bool>>) -> String {
    match disturbed.filter(|own| *own == Some(true)).count() {
        0 => String::new(),
        n => format!(" {n} of them while the machine was restless."),
    }
}

/// A sentence where networks beside those of the run are of other conditions.
fn elsewhere(settings: Option<&MeasurementSettings>, inputs: &Inputs) -> &'static str {
    let own = &inputs.evaluations[0].value.settings;
    let conditions = |of: &MeasurementSettings| {
        (
            of.network.clone(),
            of.timing.clone(),
            of.device.clone(),
            of.runtime.clone(),
        )
    };
    match settings {
        Some(settings) if conditions(settings) != conditions(own) => {
            " Not to be compared with the two networks above: network, protocol or device are others."
        }
        _ => "",
    }
}

/// What several seeds found, and what the latency-aware search gains.
fn seeds(comparison: &Comparison, inputs: &Inputs) -> Seeds {
    const SEARCHES: [(&str, &str); 3] = [
        ("latency-aware", "latency-aware"),
        ("baseline", "λ = 0"),
        ("random", "random at its latency"),
    ];
    let (metric, rows) = (comparison.metric, &comparison.rows);
    let (cost, unit) = (noun(metric), metric.unit());
    let is_measured = rows.iter().all(|row| row.measured_millis.is_some());
    let series = SEARCHES.map(|(search, name)| {
        let own = rows.iter().filter(|row| row.search == search);
        let points = own.map(|row| {
            let cost = row.measured_millis.filter(|_| is_measured);
            let cost = cost.unwrap_or(row.predicted_millis);
            [cost, 100.0 * row.test_accuracy]
        });
        let points = points.collect();
        Series { name, points }
    });
    let how = if is_measured { "measured" } else { "predicted" };
    let n_seeds = rows.iter().map(|row| row.seed).collect::<BTreeSet<_>>();
    let restless = restless(rows.iter().map(|row| row.disturbed));
    let targets = rows
        .iter()
        .filter_map(|row| Some(row.measured_millis? <= row.target_millis?));
    let targets: Vec<bool> = targets.collect();
    let met = match targets.len() {
        0 => String::new(),
        n => format!(
            " Measured {cost} at most the target: {} of {n}.",
            targets.iter().filter(|met| **met).count()
        ),
    };
    // With a true minus.
    let text = |own: &Interval, n_decimals| own.text("", n_decimals).replace('-', "−");
    let gain = |name: &'static str, own: &Differences| Row {
        name: name.into(),
        cells: vec![
            text(&own.test_accuracy, 2),
            own.latency
                .as_ref()
                .map_or("–".to_owned(), |latency| text(latency, 1)),
        ],
    };
    let value = |value: Option<f64>| value.map_or("–".to_owned(), millis);
    let network = |row: &ComparisonRow| Row {
        name: format!(
            "seed {}, {}{}",
            row.seed,
            row.search,
            if row.disturbed == Some(true) {
                " (restless)"
            } else {
                ""
            }
        )
        .into(),
        cells: vec![
            format!("{:.2}", 100.0 * row.test_accuracy),
            value(Some(row.predicted_millis)),
            value(row.measured_millis),
            value(row.target_millis),
        ],
    };
    let baseline = match comparison.baseline {
        ComparedBaseline::Best => {
            "λ = 0: the best of as many trained candidates as the others choose from. "
        }
        ComparedBaseline::Alpha => "λ = 0: what alpha stands for, no candidate was trained. ",
    };
    Seeds {
        chart: charts::searches(&format!("{how} {cost}, {unit}"), &series),
        caption: format!(
            "{} of {}, trained alike{}.{restless}{met}{}",
            plural(rows.len(), "network"),
            plural(n_seeds.len(), "seed"),
            if is_measured {
                " and timed one after the other"
            } else {
                ", not timed yet"
            },
            elsewhere(comparison.settings.as_ref(), inputs)
        ),
        gains: Table {
            heads: vec!["test accuracy, points".to_owned(), format!("{cost}, %")],
            rows: vec![
                gain("less λ = 0", &comparison.against_baseline),
                gain(
                    "less random search at its latency",
                    &comparison.against_random,
                ),
            ],
        },
        note: match comparison.intervals {
            None => {
                format!("{baseline}One seed has no interval; three or more tell what chance does.")
            }
            Some(method) => format!(
                "{baseline}Differences within a seed, their mean over seeds and its 95\u{a0}% interval ({}). An interval that holds 0 tells no difference.",
                method.name()
            ),
        },
        networks: Table {
            heads: vec![
                "test accuracy, %".to_owned(),
                format!("predicted, {unit}"),
                format!("measured, {unit}"),
                format!("target, {unit}"),
            ],
            rows: rows.iter().map(network).collect(),
        },
    }
}

/// The name of a model for people.
fn model_name(model: &str) -> &str {
    match model {
        "mlp" => "MLP",
        "ridge" => "additive (ridge)",
        other => other,
    }
}

/// What belongs to each model, the chosen one first.
fn chosen_first<'a, T>(models: &'a BTreeMap<String, T>, chosen: &str) -> Vec<(&'a str, &'a T)> {
    let mut models: Vec<(&str, &T)> = models
        .iter()
        .map(|(name, value)| (name.as_str(), value))
        .collect();
    models.sort_by_key(|(name, _)| *name != chosen);
    models
}

/// The heads and rows of the models' table.
fn figures(inputs: &Inputs) -> (Vec<&str>, Vec<Row>) {
    let model = &inputs.latency_model.value;
    let (names, figures): (Vec<&str>, Vec<&FiguresRecord>) =
        chosen_first(&model.validation.models, &model.card.chosen)
            .into_iter()
            .unzip();
    let unit = model.card.metric.unit();
    let row = |name: &'static str, of: &dyn Fn(&FiguresRecord) -> String| Row {
        name: name.into(),
        cells: figures.iter().map(|figures| of(figures)).collect(),
    };
    let rows = vec![
        row("mean absolute error", &|f| {
            format!("{}\u{a0}{unit}", millis(f.mae_millis))
        }),
        row("root mean square error", &|f| {
            format!("{}\u{a0}{unit}", millis(f.rmse_millis))
        }),
        row("mean relative error (MAPE)", &|f| percent(f.mape, 2)),
        row("median relative error", &|f| percent(f.median_ape, 2)),
        row("within 5 %", &|f| percent(f.within_5_percent, 1)),
        row("within 10 %", &|f| percent(f.within_10_percent, 1)),
        row("rank correlation (Spearman)", &|f| {
            format!("{:.3}", f.spearman)
        }),
        row("rank correlation (Kendall)", &|f| {
            format!("{:.3}", f.kendall)
        }),
    ];
    (names.into_iter().map(model_name).collect(), rows)
}

fn scatter(model: &LatencyModelArtifact) -> String {
    let (metric, chosen) = (model.card.metric, &model.card.chosen);
    let of = format!("{}, {}", noun(metric), metric.unit());
    let held_out = &model.validation.held_out;
    let Some(first) = held_out.first() else {
        return charts::scatter(&of, &[]);
    };
    let series: Vec<Series<'_>> = chosen_first(&first.predicted_millis, chosen)
        .into_iter()
        .map(|(name, _)| Series {
            name: model_name(name),
            points: held_out
                .iter()
                .filter_map(|held| Some([held.measured_millis, *held.predicted_millis.get(name)?]))
                .collect(),
        })
        .collect();
    charts::scatter(&of, &series)
}

fn curves(
    title: &str,
    y_title: &str,
    evaluations: [&Evaluation; 2],
    of: impl Fn(&Evaluation) -> (Vec<f64>, f64),
) -> String {
    let [baseline, aware] = [0, 1].map(|index| {
        let (values, test) = of(evaluations[index]);
        Curve {
            name: NAMES[index],
            values,
            test: Some(test),
        }
    });
    charts::curves(title, y_title, &[baseline, aware], None)
}

/// A number of each epoch of the two searches.
fn traces(searches: [&SearchResult; 2], of: impl Fn(&TraceRow) -> f64) -> [Curve<'static>; 2] {
    [0, 1].map(|index| Curve {
        name: NAMES[index],
        values: searches[index].trace.iter().map(&of).collect(),
        test: None,
    })
}

/// What the genotype that alpha stands for is predicted to take after each epoch, and the target.
fn derived_costs(searches: [&SearchResult; 2]) -> String {
    let metric = searches[1].metric;
    let target = searches[1].target.as_ref();
    charts::curves(
        "Predictions of what alpha stands for",
        &format!("predicted {}, {}", noun(metric), metric.unit()),
        &traces(searches, |row| row.derived_latency_millis),
        target.map(|target| ("target", target.target_millis)),
    )
}

/// What the searches came to, with the signs of collapse.
fn search_ends(searches: [&SearchResult; 2]) -> Vec<Row> {
    let row = |name: &'static str, of: &dyn Fn(&SearchResult) -> Option<String>| Row {
        name: name.into(),
        cells: searches
            .iter()
            .map(|search| of(search).unwrap_or("–".to_owned()))
            .collect(),
    };
    let at_end = |name, of: &dyn Fn(&TraceRow) -> Option<String>| {
        row(name, &|search| search.trace.last().and_then(of))
    };
    let skips = |cell: &space::CellGenotype| {
        let genes = cell.genes();
        let skips = genes.filter(|(_, gene)| gene.primitive == Primitive::SkipConnect);
        skips.count().to_string()
    };
    let mut rows = vec![
        row("skips in the normal cell, of 8 operations", &|search| {
            Some(skips(&search.genotype.normal))
        }),
        row("skips in the reduction cell", &|search| {
            Some(skips(&search.genotype.reduction))
        }),
        at_end("entropy of alpha, normal cell", &|row| {
            Some(format!("{:.3}\u{a0}nats", row.entropy_normal))
        }),
        at_end("entropy of alpha, reduction cell", &|row| {
            Some(format!("{:.3}\u{a0}nats", row.entropy_reduce))
        }),
        at_end("skips and poolings in alpha, normal cell", &|row| {
            row.parameter_free_normal.map(|share| percent(share, 1))
        }),
        at_end("discretisation gap", &|row| {
            let gap = row.discretisation_gap?;
            Some(format!("{}\u{a0}%", signed(100.0 * gap, 1)))
        }),
    ];
    let eigenvalue = |search: &&SearchResult| search.trace.last()?.eigenvalue;
    if searches.iter().any(|search| eigenvalue(search).is_some()) {
        rows.push(at_end(
            "largest eigenvalue of the Hessian in alpha",
            &|row| row.eigenvalue.map(|value| format!("{value:.3}")),
        ));
    }
    let changed = |search: &SearchResult| search.target.as_ref().map(|own| own.n_changed_genes);
    if searches.iter().any(|search| changed(search).is_some()) {
        rows.push(row("operations changed to meet the target", &|search| {
            changed(search).map(|n| n.to_string())
        }));
    }
    rows
}

/// What the networks were chosen from, each in front of the others of its search.
fn candidates(searches: [&SearchResult; 2]) -> Option<Table> {
    let metric = searches[1].metric;
    let all = searches.iter().zip(NAMES).flat_map(|(search, name)| {
        let numbered = search.candidates.iter().enumerate();
        numbered.map(move |(index, own)| (name, index, own))
    });
    let row = |(name, index, own): (&str, usize, &CandidateRecord)| Row {
        name: match index {
            0 => format!("{name}: the network found"),
            _ => format!("{name}: candidate {}", index + 1),
        }
        .into(),
        cells: vec![
            format!(
                "{}\u{a0}{}",
                millis(own.predicted_latency_millis),
                metric.unit()
            ),
            own.train_loss
                .map_or("–".to_owned(), |loss| format!("{loss:.3}")),
            format!("{:.3}", own.valid_loss),
            percent(own.valid_accuracy, 2),
        ],
    };
    let rows: Vec<Row> = all.map(row).collect();
    let heads = vec![
        format!("predicted {}", noun(metric)),
        "training loss".to_owned(),
        "validation loss".to_owned(),
        "validation accuracy".to_owned(),
    ];
    (!rows.is_empty()).then_some(Table { heads, rows })
}

/// What the guards saw and did, and how the genotypes came about.
fn events(searches: [&SearchResult; 2]) -> Vec<String> {
    let of_one = |(search, name): (&SearchResult, &str)| -> Vec<String> {
        let told = |row: &TraceRow| {
            let event = row.event.as_ref()?;
            Some(format!("{name}, epoch {}: {event}", row.epoch + 1))
        };
        search.trace.iter().filter_map(told).collect()
    };
    searches.into_iter().zip(NAMES).flat_map(of_one).collect()
}

fn network((evaluation, name): (&Opened<Evaluation>, &str)) -> Network {
    let Opened {
        value: evaluation,
        manifest,
        ..
    } = evaluation;
    let genotype = &evaluation.genotype;
    Network {
        name: format!("{name}, λ = {}", short(evaluation.search.lambda)),
        normal: cell::draw(
            &genotype.normal,
            &format!("Normal cell of the {name} network"),
        ),
        reduction: cell::draw(
            &genotype.reduction,
            &format!("Reduction cell of the {name} network"),
        ),
        tuple_form: genotype.to_string(),
        evaluation: evaluation.export.is_some().then(|| manifest.key.folder()),
    }
}

/// The manifests of all inputs, with the names that they go by in the page.
fn manifests(inputs: &Inputs) -> impl Iterator<Item = (&'static str, &Manifest)> {
    let [baseline_search, aware_search] = &inputs.searches;
    let [baseline, aware] = &inputs.evaluations;
    let front = inputs.front.as_ref();
    let front = front.map(|front| ("front", &front.manifest));
    let comparison = inputs.comparison.as_ref();
    let comparison = comparison.map(|own| ("comparison", &own.manifest));
    [
        ("latency data set", &inputs.latency_dataset.manifest),
        ("latency model", &inputs.latency_model.manifest),
        ("search, baseline", &baseline_search.manifest),
        ("search, latency-aware", &aware_search.manifest),
        ("evaluation, baseline", &baseline.manifest),
        ("evaluation, latency-aware", &aware.manifest),
    ]
    .into_iter()
    .chain(front)
    .chain(comparison)
}

fn provenance(name: &'static str, manifest: &Manifest) -> Provenance {
    let (parts, origin) = (&manifest.key_parts, &manifest.origin);
    let made_from: Vec<String> = parts
        .inputs
        .iter()
        .map(|(name, digest)| format!("{name} {}", digest.short()))
        .collect();
    let build = &origin.build;
    Provenance {
        name,
        stage: format!("{}, revision {}", parts.stage, parts.revision),
        seed: parts
            .config
            .get("seed")
            .map_or("none".to_owned(), Value::to_string),
        digest: manifest.digest.short(),
        key: manifest.key.folder(),
        made_from: if made_from.is_empty() {
            "–".to_owned()
        } else {
            made_from.join(", ")
        },
        run: format!(
            "{:.0} s on {} with {}",
            origin.elapsed_secs,
            origin.device,
            plural(origin.n_threads, "thread")
        ),
        build: match &build.commit {
            Some(commit) => format!("{} ({commit}), {}", build.version, build.target),
            None => format!("{}, {}", build.version, build.target),
        },
        config: serde_json::to_string_pretty(&parts.config).expect("JSON is JSON"),
    }
}

/// The machines of the inputs, each once.
fn machines(inputs: &Inputs) -> Vec<Machine> {
    let mut machines: Vec<(&Value, Vec<&str>)> = Vec::new();
    for (name, manifest) in manifests(inputs) {
        let machine = &manifest.origin.machine;
        match machines.iter_mut().find(|(known, _)| *known == machine) {
            Some((_, names)) => names.push(name),
            None => machines.push((machine, vec![name])),
        }
    }
    machines
        .into_iter()
        .filter_map(|(machine, names)| {
            let fields = machine.as_object().filter(|fields| !fields.is_empty())?;
            let text = |value: &Value| {
                value
                    .as_str()
                    .map_or_else(|| value.to_string(), str::to_owned)
            };
            Some(Machine {
                made: names.join("; "),
                fields: fields
                    .iter()
                    .map(|(name, value)| (name.clone(), text(value)))
                    .collect(),
            })
        })
        .collect()
}

/// Milliseconds with four significant digits or so.
pub(crate) fn millis(millis: f64) -> String {
    let n_decimals = match millis.abs() {
        x if x < 10.0 => 3,
        x if x < 100.0 => 2,
        _ => 1,
    };
    format!("{millis:.n_decimals$}")
}

/// A ratio in percent.
fn percent(ratio: f64, n_decimals: usize) -> String {
    format!("{:.n_decimals$}\u{a0}%", 100.0 * ratio)
}

/// A number with its sign, a true minus.
fn signed(value: f64, n_decimals: usize) -> String {
    let digits = format!("{:.n_decimals$}", value.abs());
    let sign = match value {
        _ if digits.parse() == Ok(0.0) => "±",
        value if value < 0.0 => "−",
        _ => "+",
    };
    format!("{sign}{digits}")
}

/// 1234567 as 1,234,567.
fn thousands(n: u64) -> String {
    let digits = n.to_string();
    let (first, rest) = digits.split_at((digits.len() - 1) % 3 + 1);
    let mut text = first.to_owned();
    for group in rest.as_bytes().chunks(3) {
        text.push(',');
        text.extend(group.iter().map(|&digit| char::from(digit)));
    }
    text
}

/// "1 image", "2 images".
fn plural(n: usize, noun: &str) -> String {
    if n == 1 {
        format!("1 {noun}")
    } else {
        format!("{n} {noun}s")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_for_people() {
        assert_eq!(thousands(7), "7");
        assert_eq!(thousands(999), "999");
        assert_eq!(thousands(1_000), "1,000");
        assert_eq!(thousands(12_345_678), "12,345,678");
        assert_eq!(signed(-3.1234, 2), "−3.12");
        assert_eq!(signed(0.004, 2), "±0.00");
        assert_eq!(signed(2.0, 1), "+2.0");
        assert_eq!(
            [millis(1.23456), millis(23.456), millis(2345.6)],
            ["1.235", "23.46", "2345.6"]
        );
        assert_eq!(percent(0.12345, 1), "12.3\u{a0}%");
        assert_eq!(plural(1, "thread"), "1 thread");
    }

    #[test]
    fn changes_are_told_in_the_right_direction() {
        assert_eq!(compared(-31.24, "%", 1).unwrap(), "31.2\u{a0}% lower");
        assert_eq!(compared(0.4, "%", 1).unwrap(), "0.4\u{a0}% higher");
        assert_eq!(compared(-0.04, "%", 1), None);
    }
}
