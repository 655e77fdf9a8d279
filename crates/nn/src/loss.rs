//! Losses and accuracy.

use candle_core::{D, DType, Result, Tensor};

/// The mean cross entropy of logits `[n, k]` against classes `[n]` (u32 or i64), a scalar in nats.
///
/// With smoothing s the target puts 1 - s on the true class and spreads s evenly over all k classes.
pub fn cross_entropy(logits: &Tensor, targets: &Tensor, label_smoothing: f64) -> Result<Tensor> {
    let log_p = candle_nn::ops::log_softmax(logits, D::Minus1)?;
    let hit = log_p.gather(&targets.unsqueeze(1)?, 1)?.mean_all()?.neg()?;
    if label_smoothing == 0.0 {
        return Ok(hit);
    }
    let spread = log_p.mean_all()?.neg()?;
    (hit * (1.0 - label_smoothing))? + (spread * label_smoothing)?
}

/// How many of the logits `[n, k]` have their largest entry at the target `[n]`.
pub fn n_correct(logits: &Tensor, targets: &Tensor) -> Result<usize> {
    let hits = logits
        .argmax(D::Minus1)?
        .to_dtype(DType::I64)?
        .eq(&targets.to_dtype(DType::I64)?)?;
    Ok(hits.to_dtype(DType::F32)?.sum_all()?.to_scalar::<f32>()? as usize)
}

/// The value of a scalar tensor.
pub fn scalar(loss: &Tensor) -> Result<f64> {
    loss.to_dtype(DType::F64)?.to_scalar()
}
