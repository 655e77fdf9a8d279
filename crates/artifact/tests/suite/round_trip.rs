//! What is written is read as it was, to the last bit, and the same value gives the same bytes.

use std::collections::BTreeMap;
use std::fs;

use crate::samples::{self, Sample, for_every_kind};
use artifact::{
    Artifact, Evaluation, ExitCode, FloatTensor, LatencyDataset, LatencyModelArtifact,
    LatencySample, NetworkRecord, Report, SearchResult, StageError, Store,
};
use proptest::prelude::*;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use space::{NetworkSpec, SearchSpace};

/// Writes and reads in memory.
fn back<A: Artifact>(value: &A) -> A {
    A::from_files(&value.to_files().unwrap()).unwrap()
}

fn message<A: Artifact>(value: &A) -> String {
    let error = value.to_files().expect_err("such a number is refused");
    assert_eq!(error.exit_code(), ExitCode::Numbers);
    error.to_string()
}

fn comes_back<A: Sample>() {
    let scratch = tempfile::tempdir().unwrap();
    let published = samples::publish::<A>(&Store::at(scratch.path()));
    assert_eq!(published.value, A::sample());
    let opened = artifact::open::<A>(&published.dir).unwrap();
    assert_eq!(opened, published);
}

fn has_one_form<A: Sample>() {
    let [one, two] = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let [one, two] = [one, two].map(|scratch| {
        let opened = samples::publish::<A>(&Store::at(scratch.path()));
        let files: BTreeMap<String, Vec<u8>> = fs::read_dir(&opened.dir)
            .unwrap()
            .map(|entry| {
                let path = entry.unwrap().path();
                let name = path.file_name().unwrap().to_string_lossy().into_owned();
                (name, fs::read(path).unwrap())
            })
            .collect();
        (opened.digest(), files)
    });
    assert_eq!(one, two, "{}", A::KIND);
    for (name, bytes) in one.1 {
        if name.ends_with(".json") {
            let text = String::from_utf8(bytes).unwrap();
            assert!(
                text.starts_with("{\n  \"") && text.ends_with("\n}\n"),
                "{name}"
            );
        }
    }
}

#[test]
fn every_kind_comes_back() {
    for_every_kind!(comes_back());
}

#[test]
fn every_kind_has_one_form() {
    for_every_kind!(has_one_form());
}

#[test]
fn a_digest_is_of_what_came_out_not_of_how() {
    let scratch = tempfile::tempdir().unwrap();
    let store = Store::at(scratch.path());
    let one = samples::publish::<Report>(&store);
    let mut parts = samples::key_parts::<Report>();
    parts.revision += 1;
    let mut origin = samples::origin();
    origin.elapsed_secs *= 2.0;
    let other = store.publish(parts, origin, Report::sample()).unwrap();
    assert_ne!(one.dir, other.dir);
    assert_eq!(one.digest(), other.digest());
    let changed = Report {
        html: "<p>".to_owned(),
    };
    assert_ne!(changed.to_files().unwrap().digest(), one.digest());
}

#[test]
fn empty_tables_come_back() {
    let dataset = LatencyDataset {
        settings: None,
        samples: Vec::new(),
        cells: Vec::new(),
    };
    assert_eq!(back(&dataset), dataset);
    let mut result = SearchResult::sample();
    result.trace.clear();
    result.alphas.clear();
    assert_eq!(back(&result), result);
}

#[test]
fn a_number_that_is_none_is_refused_by_name() {
    let mut evaluation = Evaluation::sample();
    evaluation.test_loss = f64::NAN;
    assert_eq!(
        message(&evaluation),
        "evaluation.json: test_loss is NaN or infinite; such a result is not stored"
    );
    let mut evaluation = Evaluation::sample();
    evaluation.latency.p90_millis = f64::INFINITY;
    assert_eq!(
        message(&evaluation),
        "latency.json: p90_millis is NaN or infinite; such a result is not stored"
    );
    let mut evaluation = Evaluation::sample();
    evaluation.epochs[1].train_loss = f64::NEG_INFINITY;
    assert_eq!(
        message(&evaluation),
        "epochs.parquet: train_loss in row 1 is NaN or infinite; such a result is not stored"
    );
    let mut evaluation = Evaluation::sample();
    evaluation
        .weights
        .get_mut("classifier.bias")
        .unwrap()
        .values[9] = f32::NAN;
    assert_eq!(
        message(&evaluation),
        "weights.safetensors: tensor classifier.bias is NaN or infinite; such a result is not stored"
    );
    // JSON would have null here, which reads as no number.
    let mut model = LatencyModelArtifact::sample();
    model.validation.noise_floor_mape = Some(f64::NAN);
    assert_eq!(
        message(&model),
        "validation.json: an optional number is NaN or infinite; such a result is not stored"
    );
    let mut dataset = LatencyDataset::sample();
    dataset.samples[0].repeat_median_millis = Some(f64::NAN);
    assert_eq!(
        message(&dataset),
        "samples.parquet: latency_repeat_median_millis in row 0 is NaN or infinite; \
         such a result is not stored"
    );
}

#[test]
fn networks_come_back() {
    for spec in [NetworkSpec::cifar10(), NetworkSpec::imagenet()] {
        let record = NetworkRecord::from(&spec);
        assert_eq!(NetworkSpec::try_from(&record).unwrap(), spec);
        let json = serde_json::to_value(&record).unwrap();
        assert_eq!(json["stem"], spec.stem.name());
        assert_eq!(
            serde_json::from_value::<NetworkRecord>(json).unwrap(),
            record
        );
    }
    let flat = NetworkSpec {
        n_layers: 0,
        ..NetworkSpec::cifar10()
    };
    let error = NetworkSpec::try_from(&NetworkRecord::from(&flat)).unwrap_err();
    assert_eq!(error.exit_code(), ExitCode::Usage);
}

/// Any finite number, subnormal ones and both zeros among them.
fn finite() -> impl Strategy<Value = f64> {
    any::<f64>().prop_filter("finite", |value| value.is_finite())
}

fn positive() -> impl Strategy<Value = f64> {
    finite()
        .prop_map(f64::abs)
        .prop_filter("above 0", |value| *value > 0.0)
}

prop_compose! {
    fn samples()(
        seed in any::<u64>(),
        median_millis in positive(),
        numbers in [finite(), finite(), finite()],
        n_repeats in any::<u32>(),
        [disturbed, chosen] in any::<[bool; 2]>(),
        repeat_median_millis in proptest::option::of(finite()),
    ) -> LatencySample {
        let [p10_millis, p90_millis, anchor_ratio] = numbers;
        LatencySample {
            genotype: SearchSpace::darts().sample(&mut ChaCha8Rng::seed_from_u64(seed)),
            median_millis, p10_millis, p90_millis, n_repeats, anchor_ratio, disturbed, chosen,
            repeat_median_millis,
            peak_memory_bytes: None,
            energy_joules: None,
            graph_median_millis: None,
            gpu: None,
        }
    }
}

proptest! {
    #[test]
    fn any_data_set_comes_back(samples in proptest::collection::vec(samples(), 0..20)) {
        let dataset = LatencyDataset { settings: None, samples, cells: Vec::new() };
        prop_assert_eq!(back(&dataset), dataset);
    }

    #[test]
    fn any_number_comes_back_from_json(loss in finite(), accuracy in finite(), seed in any::<u64>()) {
        let evaluation = Evaluation {
            test_loss: loss, test_accuracy: accuracy, seed, ..Evaluation::sample()
        };
        let read = back(&evaluation);
        prop_assert_eq!(read.test_loss.to_bits(), loss.to_bits());
        prop_assert_eq!(read.test_accuracy.to_bits(), accuracy.to_bits());
        prop_assert_eq!(read.seed, seed);
    }

    #[test]
    fn any_tensor_comes_back(
        names in proptest::collection::btree_set("[a-z./]{1,12}", 0..5),
        bits in proptest::collection::vec(any::<u32>(), 24),
    ) {
        let values: Vec<f32> = bits
            .into_iter()
            .map(f32::from_bits)
            .map(|value| if value.is_finite() { value } else { -0.0 })
            .collect();
        let tensor = FloatTensor::new([2, 3, 4], values);
        let mut model = LatencyModelArtifact::sample();
        model.tensors = names.into_iter().map(|name| (name, tensor.clone())).collect();
        let read = back(&model);
        let bits = |tensor: &FloatTensor| -> Vec<u32> {
            tensor.values.iter().map(|value| value.to_bits()).collect()
        };
        prop_assert_eq!(&read.tensors, &model.tensors);
        for (name, read) in &read.tensors {
            prop_assert_eq!(bits(read), bits(&model.tensors[name]));
        }
    }
}
