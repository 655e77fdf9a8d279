//! A training that is interrupted, against one that is not.

use std::path::Path;

use artifact::{Artifact, Evaluation, Export, RunContext};
use candle_core::Device;
use images::{Augmentation, Normalization};

use crate::data::Data;
use crate::training::Training;
use crate::{Config, Error, Inputs};

#[path = "../tests/fixture/mod.rs"]
mod fixture;

/// A config and its inputs in a folder.
fn prepare(dir: &Path) -> (Config, Inputs) {
    let data = dir.join("data");
    fixture::write_images(&data);
    let file = dir.join("evaluate.toml");
    std::fs::write(&file, fixture::config_text(&data)).unwrap();
    let config = artifact::config::load(&file, &[]).unwrap();
    (
        config,
        Inputs::open(&fixture::search_result(
            &dir.join("artifacts"),
            Some(fixture::settings()),
        ))
        .unwrap(),
    )
}

fn run(config: &Config, inputs: &Inputs, work_dir: &Path) -> Evaluation {
    std::fs::create_dir_all(work_dir).unwrap();
    crate::run(config, inputs, &RunContext::for_tests(work_dir)).unwrap()
}

/// The bytes of all files but the latency's.
fn bytes(evaluation: &Evaluation) -> Vec<(String, Vec<u8>)> {
    let files = evaluation.to_files().unwrap();
    let files = files
        .iter()
        .filter(|(name, _)| !["latency.json", "verdict.json"].contains(name));
    files
        .map(|(name, bytes)| (name.to_owned(), bytes.to_vec()))
        .collect()
}

#[test]
fn a_training_taken_up_after_any_epoch_ends_with_the_same_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let (config, inputs) = prepare(dir.path());
    let undisturbed = run(&config, &inputs, &dir.path().join("undisturbed"));
    assert_eq!(undisturbed.epochs.len(), 3);

    let data = Data::load(&config).unwrap();
    for n_epochs in 1..=3 {
        let work_dir = dir.path().join(format!("stopped after {n_epochs}"));
        std::fs::create_dir_all(&work_dir).unwrap();
        let genotype = &inputs.search_result.value.genotype;
        let mut training =
            Training::open(&config, genotype, &data, &Device::Cpu, &work_dir, None).unwrap();
        for _ in 0..n_epochs {
            training.advance(|_| ()).unwrap();
        }
        drop(training);
        let continued = run(&config, &inputs, &work_dir);
        assert!(
            bytes(&continued) == bytes(&undisturbed),
            "stopped after {n_epochs} epochs"
        );
    }
}

#[test]
fn another_seed_gives_other_weights() {
    let dir = tempfile::tempdir().unwrap();
    let (config, inputs) = prepare(dir.path());
    let config = Config {
        n_epochs: 1,
        ..config
    };
    let config = Config {
        weights: crate::WeightsConfig {
            n_warmup_epochs: 0,
            ..config.weights.clone()
        },
        ..config
    };
    let first = run(&config, &inputs, &dir.path().join("first"));
    let other = run(
        &Config { seed: 4, ..config },
        &inputs,
        &dir.path().join("other"),
    );
    assert_ne!(first.weights, other.weights);
}

#[test]
fn the_evaluation_holds_the_whole_network_without_the_auxiliary_head() {
    let dir = tempfile::tempdir().unwrap();
    let (config, inputs) = prepare(dir.path());
    let evaluation = run(&config, &inputs, &dir.path().join("work"));
    assert!(evaluation.weights.contains_key("classifier.weight"));
    assert!(
        !evaluation
            .weights
            .keys()
            .any(|name| name.starts_with("auxiliary_head."))
    );
    // Buffers are no parameters.
    let n_params: usize = evaluation
        .weights
        .iter()
        .filter(|(name, _)| !name.contains("running_"))
        .map(|(_, tensor)| tensor.values.len())
        .sum();
    assert_eq!(evaluation.n_params, n_params as u64);
    assert_eq!(evaluation.settings, fixture::settings());
}

#[test]
fn the_onnx_model_comes_to_the_same_test_on_images_as_they_are() {
    let dir = tempfile::tempdir().unwrap();
    let (config, inputs) = prepare(dir.path());
    let evaluation = run(&config, &inputs, &dir.path().join("work"));
    let Export { images, onnx } = evaluation.export.unwrap();

    let test = Data::load(&config).unwrap().test;
    assert_eq!(images.class_names, test.class_names());
    let all: Vec<usize> = (0..test.len()).collect();
    let unchanged = Normalization {
        mean: vec![0.0; test.n_channels()],
        std: vec![1.0; test.n_channels()],
    };
    let mut rng = crate::rng(0, 0);
    let batch = images::batch(&test, &all, &unchanged, &Augmentation::none(), &mut rng).unwrap();
    let shape = [batch.n, test.n_channels(), test.height(), test.width()];
    let logits = tract_oracle::answer(&onnx, shape, &batch.images);
    let rows = logits.chunks_exact(test.n_classes()).zip(&batch.labels);
    let (mut loss, mut n_right) = (0.0, 0);
    for (row, &label) in rows {
        let of_label = f64::from(row[label as usize]);
        let others = row.iter().map(|&logit| (f64::from(logit) - of_label).exp());
        loss += others.sum::<f64>().ln() / batch.n as f64;
        n_right += usize::from(row.iter().all(|&logit| f64::from(logit) <= of_label));
    }
    let accuracy = n_right as f64 / batch.n as f64;
    assert_eq!(accuracy, evaluation.test_accuracy);
    let error = (loss - evaluation.test_loss).abs();
    assert!(error < 1e-4, "{loss} for {}", evaluation.test_loss);
}

#[test]
fn a_checkpoint_of_another_network_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (config, _) = prepare(dir.path());
    let data = Data::load(&config).unwrap();
    let open = |config: &Config, name: &str| {
        let genotype = space::Genotype::named(name).unwrap();
        Training::open(config, &genotype, &data, &Device::Cpu, dir.path(), None)
            .and_then(|mut training| training.advance(|_| ()))
    };
    open(&config, "DARTS_V2").unwrap();
    assert!(matches!(
        open(&config, "PDARTS"),
        Err(Error::Checkpoint { .. })
    ));
}

#[test]
fn the_training_learns() {
    let dir = tempfile::tempdir().unwrap();
    let (config, inputs) = prepare(dir.path());
    let config = Config {
        n_epochs: 12,
        drop_path: 0.0,
        batch_size: 8,
        ..config
    };
    let evaluation = run(&config, &inputs, &dir.path().join("work"));
    assert!(
        evaluation.test_accuracy > 0.9,
        "{}",
        evaluation.test_accuracy
    );
    let losses: Vec<f64> = evaluation.epochs.iter().map(|row| row.train_loss).collect();
    assert!(losses[11] < 0.7 * losses[0], "{losses:?}");
}
