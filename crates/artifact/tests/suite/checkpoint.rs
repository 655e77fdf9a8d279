//! Checkpoints: the last whole one, or none.

use std::fs;

use artifact::{Checkpoint, ExitCode, RawTensor, StageError};
use serde_json::json;

fn checkpoint(epoch: u32) -> Checkpoint {
    Checkpoint {
        meta: json!({"epoch": epoch, "seed": u64::MAX, "best_loss": 0.1 + 0.2, "rows": [1, null]}),
        tensors: [
            (
                "alphas",
                RawTensor::new([2, 2], &[1.0_f32, f32::NAN, -0.0, 1e-40]),
            ),
            ("statistics", RawTensor::new([1], &[std::f64::consts::PI])),
            ("order", RawTensor::new([3], &[2_u32, 0, 1])),
            ("random", RawTensor::new([2], &[u64::MAX, 1])),
            ("empty", RawTensor::new::<i64>([0], &[])),
        ]
        .map(|(name, tensor)| (name.to_owned(), tensor))
        .into(),
    }
}

#[test]
fn a_checkpoint_comes_back() {
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().join("deep/work/checkpoint.safetensors");
    assert_eq!(Checkpoint::load(&path).unwrap(), None);
    for epoch in [1, 2] {
        checkpoint(epoch).save(&path).unwrap();
        let loaded = Checkpoint::load(&path).unwrap().unwrap();
        assert_eq!(loaded, checkpoint(epoch));
    }
    let loaded = Checkpoint::load(&path).unwrap().unwrap();
    let alphas: Vec<f32> = loaded.tensors["alphas"].values().unwrap();
    let bits = |values: &[f32]| {
        values
            .iter()
            .map(|value| value.to_bits())
            .collect::<Vec<_>>()
    };
    assert_eq!(bits(&alphas), bits(&[1.0, f32::NAN, -0.0, 1e-40]));
    assert_eq!(loaded.tensors["order"].values::<u32>(), Some(vec![2, 0, 1]));
    assert_eq!(loaded.tensors["order"].values::<f32>(), None);
    // Saving leaves nothing but the one file.
    let n_files = fs::read_dir(path.parent().unwrap()).unwrap().count();
    assert_eq!(n_files, 1);
}

#[test]
fn a_save_that_was_cut_off_does_not_touch_the_last_one() {
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().join("checkpoint.safetensors");
    checkpoint(1).save(&path).unwrap();
    // What a process that is killed while it saves leaves behind.
    fs::write(scratch.path().join(".killed.part"), b"half a checkpoint").unwrap();
    assert_eq!(Checkpoint::load(&path).unwrap(), Some(checkpoint(1)));
    checkpoint(2).save(&path).unwrap();
    assert_eq!(Checkpoint::load(&path).unwrap(), Some(checkpoint(2)));
}

#[test]
fn a_truncated_checkpoint_is_ignored() {
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().join("checkpoint.safetensors");
    checkpoint(1).save(&path).unwrap();
    let whole = fs::read(&path).unwrap();
    for n_left in 0..whole.len() {
        fs::write(&path, &whole[..n_left]).unwrap();
        assert_eq!(Checkpoint::load(&path).unwrap(), None, "{n_left} bytes");
    }
    checkpoint(2).save(&path).unwrap();
    assert_eq!(Checkpoint::load(&path).unwrap(), Some(checkpoint(2)));
}

#[test]
fn a_flipped_bit_is_noticed() {
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().join("checkpoint.safetensors");
    checkpoint(1).save(&path).unwrap();
    let whole = fs::read(&path).unwrap();
    for index in 0..whole.len() {
        let mut flipped = whole.clone();
        flipped[index] ^= 1 << (index % 8);
        fs::write(&path, flipped).unwrap();
        // Padding and white space of the header mean nothing: the checkpoint may still be the right one.
        if let Some(loaded) = Checkpoint::load(&path).unwrap() {
            assert_eq!(loaded, checkpoint(1), "byte {index}");
        }
    }
    let mut flipped = whole;
    *flipped.last_mut().unwrap() ^= 1;
    fs::write(&path, flipped).unwrap();
    assert_eq!(Checkpoint::load(&path).unwrap(), None);
}

#[test]
fn a_place_that_cannot_be_written_to_is_named() {
    let scratch = tempfile::tempdir().unwrap();
    let file = scratch.path().join("file");
    fs::write(&file, "").unwrap();
    let path = file.join("checkpoint.safetensors");
    let error = checkpoint(1).save(&path).unwrap_err();
    assert_eq!(error.exit_code(), ExitCode::Usage);
    assert!(
        error.to_string().contains(path.to_str().unwrap()),
        "{error}"
    );
}

#[test]
#[should_panic(expected = "values of shape [2, 2]")]
fn a_shape_must_fit() {
    RawTensor::new([2, 2], &[1_u8]);
}
