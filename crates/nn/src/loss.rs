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

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    #[test]
    fn equal_logits_cost_the_logarithm_of_the_number_of_classes() {
        let logits = Tensor::zeros((3, 10), DType::F32, &Device::Cpu).unwrap();
        let targets = Tensor::new(&[0u32, 4, 9], &Device::Cpu).unwrap();
        for smoothing in [0.0, 0.1] {
            let loss = scalar(&cross_entropy(&logits, &targets, smoothing).unwrap()).unwrap();
            assert!((loss - 10f64.ln()).abs() < 1e-6);
        }
    }

    #[test]
    fn smoothing_spreads_over_all_classes() {
        let logits = Tensor::new(&[[2.0f32, 0.0]], &Device::Cpu).unwrap();
        let targets = Tensor::new(&[0u32], &Device::Cpu).unwrap();
        let log_sum = (2f64.exp() + 1.0).ln();
        let expected = 0.95 * (log_sum - 2.0) + 0.05 * log_sum;
        let loss = scalar(&cross_entropy(&logits, &targets, 0.1).unwrap()).unwrap();
        assert!((loss - expected).abs() < 1e-6);
    }

    #[test]
    fn right_answers_are_counted() {
        let logits = Tensor::new(&[[2.0f32, 0.0], [0.0, 1.0], [3.0, 1.0]], &Device::Cpu).unwrap();
        let targets = Tensor::new(&[0u32, 1, 1], &Device::Cpu).unwrap();
        assert_eq!(n_correct(&logits, &targets).unwrap(), 2);
    }
}
