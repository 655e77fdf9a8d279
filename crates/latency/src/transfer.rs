//! The model of a new device from models of others and a handful of measurements.
//!
//! Devices differ, but most of what is slow on one is slow on another. A new device's latency is taken as a Gaussian
//! process that is linear in what the models of the *source* devices say of an architecture, each in units of
//! its own spread over a pool of architectures: mostly in their mean, less in each on its own, and a
//! little in the code itself, for what no source has. With ten measurements the variances of these parts cannot be
//! learnt, so they are fixed, in units of the new device's own spread.
//!
//! The process also tells which architectures are worth timing before any is: [`Transfer::choose`] takes, one
//! after the other, the one whose measurement takes most off the doubt about the whole pool. Random ones tell less.

use crate::linalg::{Cholesky, Matrix, dot, product};
use crate::model::{FitError, LatencyModel, LeftOut, check_data, positive};

/// The prior variances of the slope along the sources' mean, along each source, and along the code, and that of
/// the noise.
const MEAN: f64 = 1.0;
const EACH: f64 = 0.3;
const CODE: f64 = 0.01;
const NOISE: f64 = 0.05;

/// Models of devices that were measured well, over a pool of architectures.
pub struct Transfer {
    sources: Vec<Box<dyn LatencyModel>>,
    /// The mean and the standard deviation of each source over the pool.
    scales: Vec<(f64, f64)>,
    code_means: Vec<f64>,
    code_scale: f64,
    /// The features of the pool, `n d`.
    pool: Vec<f64>,
}

impl Transfer {
    /// Puts sources together. The pool stands for the architectures that the new model will be asked about.
    ///
    /// # Errors
    /// If there is no source, or if the pool holds fewer than 2 architectures.
    ///
    /// # Panics
    /// If the codes do not have the length that the sources know.
    pub fn new(sources: Vec<Box<dyn LatencyModel>>, pool: &[Vec<f32>]) -> Result<Self, FitError> {
        if sources.is_empty() {
            return Err(FitError::Setting {
                name: "the number of source devices",
                value: 0.0,
                expected: "at least 1",
            });
        }
        if pool.len() < 2 {
            return Err(FitError::TooFew {
                needed: 2,
                found: pool.len(),
            });
        }
        let n = pool.len() as f64;
        let scales = sources
            .iter()
            .map(|source| {
                let said: Vec<f64> = pool
                    .iter()
                    .map(|code| source.predict_millis(code))
                    .collect();
                let mean = said.iter().sum::<f64>() / n;
                let variance = said.iter().map(|y| (y - mean).powi(2)).sum::<f64>() / n;
                (mean, variance.sqrt().max(1e-9 * mean))
            })
            .collect();
        let code_len = pool[0].len();
        let code_means: Vec<f64> = (0..code_len)
            .map(|index| pool.iter().map(|code| f64::from(code[index])).sum::<f64>() / n)
            .collect();
        let square: f64 = pool
            .iter()
            .flat_map(|code| code.iter().zip(&code_means))
            .map(|(&c, mean)| (f64::from(c) - mean).powi(2))
            .sum();
        let mut transfer = Self {
            sources,
            scales,
            code_means,
            code_scale: (square / n).sqrt().max(1e-9),
            pool: vec![],
        };
        transfer.pool = pool
            .iter()
            .flat_map(|code| transfer.features(code))
            .collect();
        Ok(transfer)
    }

    fn n_features(&self) -> usize {
        1 + self.sources.len() + self.code_means.len()
    }

    /// What the new latency is linear in, every slope with a prior variance of 1.
    fn features(&self, code: &[f32]) -> Vec<f64> {
        let n = self.sources.len() as f64;
        let said: Vec<f64> = self
            .sources
            .iter()
            .zip(&self.scales)
            .map(|(source, (mean, deviation))| (source.predict_millis(code) - mean) / deviation)
            .collect();
        let mean = said.iter().sum::<f64>() / n;
        let of_code = code.iter().zip(&self.code_means);
        std::iter::once(MEAN.sqrt() * mean)
            .chain(said.iter().map(|z| (EACH / n).sqrt() * z))
            .chain(of_code.map(|(&c, mean)| CODE.sqrt() * (f64::from(c) - mean) / self.code_scale))
            .collect()
    }

    /// The architectures of the pool to time, as indices, in the order of what they tell.
    pub fn choose(&self, n: usize) -> Vec<usize> {
        let (n_pool, d) = (self.pool.len() / self.n_features(), self.n_features());
        let rows = Matrix::new(&self.pool, n_pool, d);
        let mut covariance = product(rows, rows.transposed());
        // The mean latency is not known either.
        covariance.iter_mut().for_each(|c| *c += 1.0);
        let mut chosen = Vec::new();
        while chosen.len() < n.min(n_pool) {
            let gain = |index: usize| {
                let row = &covariance[index * n_pool..][..n_pool];
                dot(row, row) / (row[index] + NOISE)
            };
            let best = (0..n_pool)
                .filter(|index| !chosen.contains(index))
                .map(|index| (gain(index), index))
                .reduce(|best, next| if next.0 > best.0 { next } else { best });
            let Some((_, best)) = best else { break };
            chosen.push(best);
            let row = covariance[best * n_pool..][..n_pool].to_vec();
            let scale = 1.0 / (row[best] + NOISE);
            for (i, of_row) in covariance.chunks_exact_mut(n_pool).enumerate() {
                let factor = scale * row[i];
                of_row
                    .iter_mut()
                    .zip(&row)
                    .for_each(|(c, r)| *c -= factor * r);
            }
        }
        chosen
    }

    /// The model of the new device, from what some architectures took on it, in milliseconds; and what it says
    /// of each of them when that one is left out.
    ///
    /// # Errors
    /// If there are fewer than 3 measurements, or if they cannot be fitted.
    pub fn fit(
        self,
        codes: &[Vec<f32>],
        millis: &[f64],
    ) -> Result<(Transferred, LeftOut), FitError> {
        check_data(codes, millis, 3)?;
        let n = codes.len();
        let features: Vec<f64> = codes.iter().flat_map(|code| self.features(code)).collect();
        let rows = Matrix::new(&features, n, self.n_features());
        let mut covariance = product(rows, rows.transposed());
        covariance
            .iter_mut()
            .step_by(n + 1)
            .for_each(|c| *c += NOISE);
        let precision = Cholesky::new(covariance, n)
            .ok_or(FitError::Singular)?
            .inverse();
        let sums: Vec<f64> = precision
            .chunks_exact(n)
            .map(|row| row.iter().sum())
            .collect();
        let total: f64 = sums.iter().sum();
        let mean = dot(&sums, millis) / total;
        let centred: Vec<f64> = millis.iter().map(|y| y - mean).collect();
        let alphas = product(Matrix::new(&precision, n, n), Matrix::new(&centred, n, 1));
        let floor = millis.iter().copied().fold(f64::INFINITY, f64::min) / 2.0;
        let left_out = (0..n).map(|i| {
            let precision = precision[i * n + i] - sums[i] * sums[i] / total;
            positive(millis[i] - alphas[i] / precision, floor).0
        });
        let left_out = LeftOut {
            predicted: left_out.collect(),
            spread: vec![1.0; n],
        };
        let slopes = product(Matrix::new(&alphas, 1, n), rows);
        let model = Transferred {
            transfer: self,
            mean,
            slopes,
            floor,
        };
        Ok((model, left_out))
    }
}

/// The model of a new device.
pub struct Transferred {
    transfer: Transfer,
    mean: f64,
    /// Of each feature.
    slopes: Vec<f64>,
    floor: f64,
}

impl LatencyModel for Transferred {
    fn code_len(&self) -> usize {
        self.transfer.code_means.len()
    }

    fn predict_millis(&self, code: &[f32]) -> f64 {
        let millis = self.mean + dot(&self.slopes, &self.transfer.features(code));
        positive(millis, self.floor).0
    }

    fn gradient(&self, code: &[f32]) -> (f64, Vec<f32>) {
        let transfer = &self.transfer;
        let n = transfer.sources.len();
        let millis = self.mean + dot(&self.slopes, &transfer.features(code));
        let (millis, slope) = positive(millis, self.floor);
        let scale = slope * CODE.sqrt() / transfer.code_scale;
        let mut grad_code: Vec<f32> = self.slopes[1 + n..]
            .iter()
            .map(|s| (scale * s) as f32)
            .collect();
        let along_mean = MEAN.sqrt() * self.slopes[0] / n as f64;
        for (index, source) in transfer.sources.iter().enumerate() {
            let along_each = (EACH / n as f64).sqrt() * self.slopes[1 + index];
            let factor = slope * (along_mean + along_each) / transfer.scales[index].1;
            let (_, grad) = source.gradient(code);
            grad_code
                .iter_mut()
                .zip(&grad)
                .for_each(|(sum, g)| *sum += factor as f32 * g);
        }
        (millis, grad_code)
    }
}

#[cfg(test)]
mod tests {
    use rand::{RngExt, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    use super::*;
    use crate::ridge::Ridge;

    /// 12 numbers that choose one of four, three times.
    fn codes(n: usize) -> Vec<Vec<f32>> {
        let mut rng = ChaCha8Rng::seed_from_u64(3);
        (0..n)
            .map(|_| {
                let mut code = vec![0.0; 12];
                for slot in 0..3 {
                    code[4 * slot + rng.random_range(0..4)] = 1.0;
                }
                code
            })
            .collect()
    }

    fn cost(code: &[f32], of_slot: [f64; 3]) -> f64 {
        let numbers = code.iter().enumerate();
        let cost =
            |(index, &c): (usize, &f32)| f64::from(c) * of_slot[index / 4] * (index % 4) as f64;
        3.0 + numbers.map(cost).sum::<f64>()
    }

    /// Two devices of different tastes; the new one is slower by far, and between them.
    fn transfer() -> (Transfer, Vec<Vec<f32>>, Vec<f64>) {
        let codes = codes(200);
        let source = |of_slot| {
            let millis: Vec<f64> = codes.iter().map(|code| cost(code, of_slot)).collect();
            Box::new(Ridge::fit(&codes, &millis, 1e-3).unwrap()) as Box<dyn LatencyModel>
        };
        let sources = vec![source([1.0, 0.2, 0.3]), source([0.3, 1.0, 0.5])];
        let millis = codes.iter().map(|code| 20.0 * cost(code, [0.7, 0.6, 0.4]));
        let millis = millis.collect();
        (Transfer::new(sources, &codes).unwrap(), codes, millis)
    }

    #[test]
    fn ten_measurements_make_a_model_of_a_new_device() {
        let (transfer, codes, millis) = transfer();
        let chosen = transfer.choose(10);
        let mut distinct = chosen.clone();
        distinct.sort_unstable();
        distinct.dedup();
        assert_eq!(distinct.len(), 10);
        let part: Vec<Vec<f32>> = chosen.iter().map(|&i| codes[i].clone()).collect();
        let timed: Vec<f64> = chosen.iter().map(|&i| millis[i]).collect();
        let (model, left_out) = transfer.fit(&part, &timed).unwrap();
        let predicted: Vec<f64> = codes
            .iter()
            .map(|code| model.predict_millis(code))
            .collect();
        let figures = crate::Figures::compute(&predicted, &millis);
        assert!(
            figures.spearman > 0.98 && figures.mape < 0.03,
            "{figures:?}"
        );
        assert!(crate::mape(&left_out.predicted, &timed) < 0.1);
    }

    #[test]
    fn left_out_is_left_out_for_real() {
        let (whole, codes, millis) = transfer();
        let (_, left_out) = whole.fit(&codes[..8], &millis[..8]).unwrap();
        for out in 0..8 {
            let (mut codes, mut millis) = (codes[..8].to_vec(), millis[..8].to_vec());
            let code = codes.remove(out);
            millis.remove(out);
            let (model, _) = transfer().0.fit(&codes, &millis).unwrap();
            let (long, short) = (model.predict_millis(&code), left_out.predicted[out]);
            assert!((long - short).abs() < 1e-6 * long, "{long} {short}");
        }
    }

    #[test]
    fn the_gradient_is_that_of_finite_differences() {
        let (transfer, codes, millis) = transfer();
        let (model, _) = transfer.fit(&codes[..10], &millis[..10]).unwrap();
        let (value, grad) = model.gradient(&codes[50]);
        assert_eq!(value, model.predict_millis(&codes[50]));
        for index in 0..12 {
            let [low, high] = [-0.125, 0.125].map(|step| {
                let mut code = codes[50].clone();
                code[index] += step;
                model.predict_millis(&code)
            });
            let slope = (high - low) / 0.25;
            assert!((slope - f64::from(grad[index])).abs() < 1e-3 * (1.0 + slope.abs()));
        }
    }

    #[test]
    fn what_cannot_be_transferred_is_refused() {
        let refusal = Transfer::new(vec![], &codes(5)).err().unwrap().to_string();
        assert_eq!(
            refusal,
            "the number of source devices is 0; it must be at least 1"
        );
        let (transfer, codes, millis) = transfer();
        let refusal = transfer.fit(&codes[..2], &millis[..2]).err().unwrap();
        assert_eq!(
            refusal.to_string(),
            "the fit needs at least 3 architectures, there are 2; profile more"
        );
    }
}
