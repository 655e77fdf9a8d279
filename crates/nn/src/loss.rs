//! Losses and accuracy.

use candle_core::{D, DType, Device, Result, Tensor};
use collective::Share;

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

/// How many of the logits `[n, k]` have their largest entry at the target `[n]`: a scalar, where they are.
pub fn hits(logits: &Tensor, targets: &Tensor) -> Result<Tensor> {
    let hits = logits
        .argmax(D::Minus1)?
        .to_dtype(DType::I64)?
        .eq(&targets.to_dtype(DType::I64)?)?;
    hits.to_dtype(DType::F32)?.sum_all()
}

/// [`hits`], read back.
pub fn n_correct(logits: &Tensor, targets: &Tensor) -> Result<usize> {
    Ok(hits(logits, targets)?.to_scalar::<f32>()? as usize)
}

/// The value of a scalar tensor.
pub fn scalar(loss: &Tensor) -> Result<f64> {
    loss.to_dtype(DType::F64)?.to_scalar()
}

/// What the steps of a training tell: `N` numbers each, read back together once in so many steps, because every
/// reading waits for the device.
pub struct Tally<const N: usize> {
    interval: usize,
    rows: Vec<Tensor>,
}

impl<const N: usize> Tally<N> {
    /// Of steps on a device: read after each on the CPU, where nothing waits, and after 20 elsewhere.
    pub fn new(device: &Device) -> Self {
        Self {
            interval: if device.is_cpu() { 1 } else { 20 },
            rows: Vec::new(),
        }
    }

    /// The numbers (scalars) of one more step, summed over the ranks: those of this and of the steps before
    /// that nobody has read yet, or nothing if it is not time.
    ///
    /// # Errors
    /// If the tensor library fails, or a rank cannot be reached.
    pub fn add(&mut self, numbers: [&Tensor; N], share: Option<&Share>) -> Result<Vec<[f64; N]>> {
        let numbers = numbers.map(|number| number.detach().to_dtype(DType::F64)?.reshape(1));
        let numbers: Vec<Tensor> = numbers.into_iter().collect::<Result<_>>()?;
        self.rows.push(Tensor::cat(&numbers, 0)?);
        if self.rows.len() < self.interval {
            return Ok(Vec::new());
        }
        self.read(share)
    }

    /// The numbers that are left, at the end.
    ///
    /// # Errors
    /// As [`add`](Self::add).
    pub fn read(&mut self, share: Option<&Share>) -> Result<Vec<[f64; N]>> {
        if self.rows.is_empty() {
            return Ok(Vec::new());
        }
        let mut table = Tensor::cat(&std::mem::take(&mut self.rows), 0)?;
        if let Some(share) = share {
            table = share.collective().sum(&table)?;
        }
        let values: Vec<f64> = table.to_vec1()?;
        Ok(values.as_chunks().0.to_vec())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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

    #[test]
    fn a_tally_gives_every_step_once() {
        let mut tally = Tally {
            interval: 3,
            rows: Vec::new(),
        };
        let mut rows = Vec::new();
        for step in 0..5 {
            let number = |x: f64| Tensor::new(x, &Device::Cpu).unwrap();
            let (a, b) = (number(f64::from(step)), number(0.5));
            let read = tally.add([&a, &b], None).unwrap();
            assert_eq!(read.len(), if step == 2 { 3 } else { 0 });
            rows.extend(read);
        }
        rows.extend(tally.read(None).unwrap());
        assert!(tally.read(None).unwrap().is_empty());
        assert_eq!(rows, [0.0, 1.0, 2.0, 3.0, 4.0].map(|step| [step, 0.5]));
    }
}
