//! One small artifact of every kind, and how it is published.

use artifact::manifest::{Build, Origin};
use artifact::{
    AnchorRecord, Artifact, CandidateRecord, CellSample, ComparedBaseline, Comparison,
    ComparisonRow, Differences, EpochRow, Evaluation, Export, FiguresRecord, FloatTensor,
    FloatTensors, Front, FrontPoint, GpuRecord, HeldOut, ImagesRecord, Interval, IntervalMethod,
    KeyParts, LatencyDataset, LatencyModelArtifact, LatencySample, MeasurementSettings, Metric,
    ModelCard, NetworkRecord, Opened, PIPELINE, Report, SearchResult, SearchSummary, Store,
    TargetRecord, TimingRecord, TimingResult, TraceRow, Unreached, Validation,
};
use serde_json::json;
use space::{CellKind, Genotype, NetworkSpec};

/// A kind with a sample.
pub(crate) trait Sample: Artifact + Clone + PartialEq + std::fmt::Debug {
    fn sample() -> Self;
}

/// Calls a generic function for every kind.
macro_rules! for_every_kind {
    ($function:ident ( $($argument:expr),* )) => {
        $function::<artifact::LatencyDataset>($($argument),*);
        $function::<artifact::LatencyModelArtifact>($($argument),*);
        $function::<artifact::SearchResult>($($argument),*);
        $function::<artifact::Evaluation>($($argument),*);
        $function::<artifact::Report>($($argument),*);
        $function::<artifact::Front>($($argument),*);
        $function::<artifact::Comparison>($($argument),*);
    };
}
pub(crate) use for_every_kind;

/// The question that the sample of a kind answers.
pub(crate) fn key_parts<A: Artifact>() -> KeyParts {
    // The last kinds are no stage's: they are made of evaluations.
    let spec = PIPELINE.iter().find(|spec| spec.output == A::KIND);
    let spec = spec.unwrap_or(&artifact::stage::EVALUATE);
    KeyParts::new(spec, &json!({"seed": 0})).unwrap()
}

/// The run that it comes from.
pub(crate) fn origin() -> Origin {
    Origin {
        device: "cpu".to_owned(),
        n_threads: 2,
        machine: json!({"n_logical_cpus": 2, "governor": null}),
        build: Build::current(),
        started_unix_secs: 1_800_000_000,
        elapsed_secs: 0.25,
    }
}

/// Publishes the sample of a kind.
pub(crate) fn publish<A: Sample>(store: &Store) -> Opened<A> {
    store
        .publish(key_parts::<A>(), origin(), A::sample())
        .unwrap()
}

pub(crate) fn genotype() -> Genotype {
    Genotype::named("PC_DARTS_cifar").unwrap()
}

pub(crate) fn settings() -> MeasurementSettings {
    MeasurementSettings {
        network: NetworkRecord::from(&NetworkSpec::cifar10()),
        timing: TimingRecord {
            batch_size: 1,
            n_threads: 2,
            n_warmup: 3,
            n_repeats: 10,
            precision: artifact::Precision::F32,
            flush_l2: false,
        },
        device: "cpu".to_owned(),
        runtime: "candle-cpu".to_owned(),
        anchor: Some(AnchorRecord {
            median_nanos: 1_234_567,
            machine: "0".repeat(64),
            revision: 8,
        }),
    }
}

impl Sample for LatencyDataset {
    fn sample() -> Self {
        let sample = |name, median_millis: f64, repeat_median_millis: Option<f64>| LatencySample {
            genotype: Genotype::named(name).unwrap(),
            median_millis,
            p10_millis: median_millis * 0.9,
            p90_millis: median_millis * 1.25,
            n_repeats: 10,
            anchor_ratio: 1.0 + f64::EPSILON,
            disturbed: repeat_median_millis.is_none(),
            chosen: repeat_median_millis.is_none(),
            repeat_median_millis,
            peak_memory_bytes: repeat_median_millis.map(|_| 650_000.0),
            energy_joules: repeat_median_millis.map(|_| 0.125),
            graph_median_millis: repeat_median_millis.map(|_| median_millis * 0.5),
            gpu: repeat_median_millis.map(|_| GpuRecord {
                clock_mhz: 1980.0,
                memory_clock_mhz: 2619.0,
                temperature_celsius: 41.0,
                power_watts: 312.5,
            }),
        };
        let cells = NetworkSpec::cifar10().cells();
        let cell = |kind: CellKind| {
            let place = cells.iter().find(|cell| cell.kind == kind).unwrap();
            CellSample {
                sample_index: 1,
                kind,
                cell: genotype().cell(kind).clone(),
                reduction_prev: place.reduction_prev,
                channels_prev_prev: place.channels_prev_prev,
                channels_prev: place.channels_prev,
                channels: place.channels,
                size_prev_prev: place.size_prev_prev,
                size_prev: place.size_prev,
                n_uses: 6,
                median_millis: 0.1,
                p10_millis: 0.09,
                p90_millis: 0.3,
                n_repeats: 10,
                anchor_ratio: 0.98,
            }
        };
        Self {
            settings: Some(settings()),
            samples: vec![
                sample("DARTS_V2", 20.1, Some(20.3)),
                sample("PC_DARTS_cifar", 1.0 / 3.0, None),
            ],
            cells: CellKind::ALL.map(cell).to_vec(),
        }
    }
}

impl Sample for LatencyModelArtifact {
    fn sample() -> Self {
        let figures = |mape| FiguresRecord {
            n: 2,
            mae_millis: 0.1,
            rmse_millis: 0.125,
            mape,
            median_ape: 0.01,
            within_5_percent: 1.0,
            within_10_percent: 1.0,
            spearman: -0.5,
            kendall: 0.0,
            regret: Some(0.25),
            left_out_mape: Some(0.02),
            coverage_90: Some(0.5),
        };
        let held_out = |measured_millis: f64| HeldOut {
            measured_millis,
            predicted_millis: [("mlp", 1.01), ("ridge", 0.97)]
                .map(|(name, ratio)| (name.to_owned(), measured_millis * ratio))
                .into(),
            spread: [("mlp".to_owned(), 1.0), ("ridge".to_owned(), 0.75)].into(),
        };
        Self {
            card: ModelCard {
                metric: artifact::Metric::PeakMemory,
                settings: Some(settings()),
                chosen: "mlp".to_owned(),
                reason: "smallest error".to_owned(),
                reference_millis: 20.3,
                n_train: 8,
                n_test: 2,
            },
            tensors: tensors(&[("mlp/0/weight", &[2, 3]), ("ridge/intercept", &[])]),
            validation: Validation {
                models: [("mlp", 0.01), ("ridge", 0.1 + 0.2)]
                    .map(|(name, mape)| (name.to_owned(), figures(mape)))
                    .into(),
                noise_floor_mape: None,
                held_out: vec![held_out(19.7), held_out(22.9)],
            },
        }
    }
}

impl Sample for SearchResult {
    fn sample() -> Self {
        let row = |epoch: u32| TraceRow {
            epoch,
            train_loss: 2.3 / f64::from(epoch + 1),
            train_accuracy: 0.1,
            valid_loss: 2.5,
            valid_accuracy: 0.1 + 0.2,
            latency_loss: 0.0,
            soft_latency_millis: 21.5,
            derived_latency_millis: 20.1,
            entropy_normal: 8.0_f64.ln(),
            entropy_reduce: 1.5,
            n_skips_normal: 2,
            n_skips_reduce: epoch,
            learning_rate: 0.1,
            genotype: genotype().to_string(),
            latency_weight: Some(0.1),
            bridge_latency_millis: (epoch > 0).then_some(21.0),
            discretisation_gap: Some(0.07),
            upper_latency_millis: Some(20.9),
            parameter_free_normal: Some(0.5),
            eigenvalue: None,
            event: (epoch > 0).then(|| "3 skips in the normal cell".to_owned()),
        };
        Self {
            genotype: genotype(),
            method: "pc-darts".to_owned(),
            seed: u64::MAX,
            objective: "target".to_owned(),
            bridge: "soft".to_owned(),
            lambda: 0.1,
            metric: Metric::PeakMemory,
            interval_millis: Some([19.5, 20.9]),
            target: Some(target()),
            settings: None,
            predicted_latency_millis: 20.1,
            reference_millis: 20.3,
            candidates: ["PDARTS", "DARTS_V2"]
                .map(|name| CandidateRecord {
                    genotype: Genotype::named(name).unwrap(),
                    predicted_latency_millis: 20.1,
                    train_loss: Some(0.6),
                    valid_loss: 0.54,
                    valid_accuracy: 0.786,
                    gradient_norm: None,
                })
                .to_vec(),
            alphas: tensors(&[
                ("alphas_normal", &[14, 8]),
                ("alphas_reduce", &[14, 8]),
                ("betas_normal", &[14]),
                ("betas_reduce", &[14]),
            ]),
            trace: vec![row(0), row(1)],
        }
    }
}

impl Sample for Evaluation {
    fn sample() -> Self {
        let row = |epoch| EpochRow {
            epoch,
            train_loss: 1.5,
            train_accuracy: 0.5,
            learning_rate: 0.025,
            drop_path: 0.3 * f64::from(epoch),
        };
        Self {
            genotype: genotype(),
            network: NetworkRecord::from(&NetworkSpec::cifar10()),
            settings: settings(),
            search: SearchSummary {
                method: "pc-darts".to_owned(),
                lambda: 0.0,
                seed: 1,
                objective: "target".to_owned(),
                metric: Metric::PeakMemory,
                predicted_latency_millis: 20.1,
                interval_millis: Some([19.5, 20.9]),
                target: Some(target()),
            },
            seed: 2,
            test_accuracy: 0.9743,
            n_test: Some(2000),
            test_loss: 0.1,
            latency: TimingResult {
                median_millis: 20.2,
                p10_millis: 20.0,
                p90_millis: 21.0,
                n_repeats: 10,
                anchor_ratio: 1.001,
                disturbed: false,
                peak_memory_bytes: Some(20.5 * f64::from(1 << 20)),
                energy_joules: Some(0.5),
            },
            n_params: 3_634_678,
            n_macs: 556_670_592,
            n_multi_adds: 586_000_000,
            epochs: vec![row(0), row(1)],
            weights: tensors(&[("classifier.bias", &[10]), ("stem.0.weight", &[2, 3, 1, 1])]),
            export: Some(Export {
                images: ImagesRecord {
                    mean: vec![0.5, 0.1],
                    std: vec![0.25, 0.3],
                    class_names: vec!["cat".to_owned(), "7".to_owned()],
                },
                onnx: vec![8, 8, 0, 255],
            }),
        }
    }
}

impl Sample for Report {
    fn sample() -> Self {
        Self {
            html: "<!doctype html>\n<p>20.2 ms, 97.43 % …</p>\n".to_owned(),
        }
    }
}

impl Sample for Front {
    fn sample() -> Self {
        let point = |asked: &str, target_millis, test_accuracy, millis: f64| FrontPoint {
            seed: 1,
            asked: asked.to_owned(),
            target_millis,
            predicted_latency_millis: 1.01 * millis,
            latency_median_millis: millis,
            latency_p10_millis: 0.9 * millis,
            latency_p90_millis: 1.25 * millis,
            disturbed: Some(target_millis.is_some()),
            test_accuracy,
            is_on_front: false,
            genotype: genotype().to_string(),
            search_result: "0".repeat(64),
            evaluation: "1".repeat(64),
        };
        let points = vec![
            point("none", None, 0.975, 21.0),
            point("0.6x", Some(12.6), 0.974, 12.5),
        ];
        Self {
            unreached: vec![Unreached {
                seed: 1,
                asked: "0.1x".to_owned(),
            }],
            ..Self::new(Metric::PeakMemory, Some(settings()), points)
        }
    }
}

impl Sample for Comparison {
    fn sample() -> Self {
        let row = |search: &str, measured_millis, target_millis| ComparisonRow {
            seed: 3,
            search: search.to_owned(),
            genotype: genotype().to_string(),
            test_accuracy: 0.9743,
            predicted_millis: 20.1,
            measured_millis,
            disturbed: measured_millis.map(|_| false),
            target_millis,
            search_result: "0".repeat(64),
            evaluation: "1".repeat(64),
        };
        let one = Interval {
            mean: -0.25,
            low: None,
            high: None,
        };
        Self {
            metric: Metric::PeakMemory,
            settings: Some(settings()),
            baseline: ComparedBaseline::Alpha,
            rows: vec![
                row("baseline", Some(25.5), None),
                row("latency-aware", Some(20.25), Some(21.0)),
                row("random", None, None),
            ],
            intervals: Some(IntervalMethod::StudentT),
            against_baseline: Differences {
                test_accuracy: Interval {
                    low: Some(-0.5),
                    high: Some(0.1 + 0.2),
                    ..one
                },
                latency: Some(one),
            },
            against_random: Differences {
                test_accuracy: one,
                latency: None,
            },
        }
    }
}

fn target() -> TargetRecord {
    TargetRecord {
        target_millis: 21.0,
        probability: 0.95,
        upper_millis: 20.9,
        is_met: true,
        derived: Genotype::named("PDARTS").unwrap(),
        n_changed_genes: 16,
    }
}

/// Arrays of these shapes, no two numbers alike.
fn tensors(shapes: &[(&str, &[usize])]) -> FloatTensors {
    let tensor = |(index, (name, shape)): (usize, &(&str, &[usize]))| {
        let values = (0..shape.iter().product())
            .map(|value: usize| (index as f32 + 0.1) / (value as f32 + 1.0))
            .collect();
        ((*name).to_owned(), FloatTensor::new(*shape, values))
    };
    shapes.iter().enumerate().map(tensor).collect()
}
