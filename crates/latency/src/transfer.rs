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

use std::sync::Arc;

use space::Topology;

use crate::linalg::{Matrix, Precision, dot, product};
use crate::model::{
    FitError, LatencyModel, LeftOut, State, StateError, StateTensor, check_data, positive,
};
use crate::sampling::most_telling;
use crate::structured::Structured;

/// The prior variances of the slope along the sources' mean, along each source, and along the code, and that of
/// the noise.
const MEAN: f64 = 1.0;
const EACH: f64 = 0.3;
const CODE: f64 = 0.01;
const NOISE: f64 = 0.05;

/// The fewest measurements that make a model.
const MIN_ARCHITECTURES: usize = 3;

/// Models of devices that were measured well, over a pool of architectures.
pub struct Transfer {
    sources: Arc<Vec<Structured>>,
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
    pub fn new(sources: Arc<Vec<Structured>>, pool: &[Vec<f32>]) -> Result<Self, FitError> {
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
        let scales: Vec<(f64, f64)> = sources
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
        transfer.round();
        transfer.pool = pool
            .iter()
            .flat_map(|code| transfer.features(code))
            .collect();
        Ok(transfer)
    }

    /// Keeps of the scales what a state holds of them.
    fn round(&mut self) {
        let round = |x: &mut f64| *x = f64::from(*x as f32);
        self.scales.iter_mut().for_each(|(mean, deviation)| {
            round(mean);
            round(deviation);
        });
        self.code_means.iter_mut().for_each(round);
        round(&mut self.code_scale);
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
        most_telling(covariance, &vec![1.0; n_pool], &vec![NOISE; n_pool], n)
    }

    /// The model of the new device, from what some architectures took on it, in milliseconds; and what it says
    /// of each of them when that one is left out.
    ///
    /// # Errors
    /// If there are fewer than 3 measurements, or if they cannot be fitted.
    pub fn fit(
        self: &Arc<Self>,
        codes: &[Vec<f32>],
        millis: &[f64],
    ) -> Result<(Transferred, LeftOut), FitError> {
        check_data(codes, millis, MIN_ARCHITECTURES)?;
        let n = codes.len();
        let millis: Vec<f64> = millis.iter().map(|&y| f64::from(y as f32)).collect();
        let rows: Vec<f64> = codes.iter().flat_map(|code| self.features(code)).collect();
        let matrix = Matrix::new(&rows, n, self.n_features());
        let mut covariance = product(matrix, matrix.transposed());
        covariance
            .iter_mut()
            .step_by(n + 1)
            .for_each(|c| *c += NOISE);
        let precision = Precision::new(covariance, n).ok_or(FitError::Singular)?;
        let (mean, alphas) = precision.apply(&millis);
        let along: f64 = millis
            .iter()
            .zip(&alphas)
            .map(|(y, a)| (y - mean) * a)
            .sum();
        let variance = (along / (n as f64 - 1.0)).max(f64::MIN_POSITIVE);
        let floor = millis.iter().copied().fold(f64::INFINITY, f64::min) / 2.0;
        let (predicted, spread) = (0..n)
            .map(|i| {
                let precision = precision.centred(i, i);
                let predicted = positive(millis[i] - alphas[i] / precision, floor).0;
                (predicted, relative(variance / precision, predicted))
            })
            .unzip();
        let slopes = product(Matrix::new(&alphas, 1, n), matrix);
        let model = Transferred {
            transfer: self.clone(),
            codes: codes.to_vec(),
            millis,
            mean,
            slopes,
            variance,
            rows,
            precision,
            floor,
        };
        Ok((model, LeftOut { predicted, spread }))
    }
}

/// A variance as a relative error of a prediction.
fn relative(variance: f64, predicted: f64) -> f64 {
    (variance.max(0.0).sqrt() / predicted).max(1e-6)
}

/// The model of a new device.
pub struct Transferred {
    transfer: Arc<Transfer>,
    codes: Vec<Vec<f32>>,
    millis: Vec<f64>,
    mean: f64,
    /// Of each feature.
    slopes: Vec<f64>,
    /// What a prior variance of 1 stands for, in square milliseconds.
    variance: f64,
    /// The features of what was timed, `n d`.
    rows: Vec<f64>,
    /// The inverse covariance of what was timed.
    precision: Precision,
    floor: f64,
}

impl Transferred {
    /// The numbers of the model: the state of each source under `source_0/…`, the `scales` of the sources, the
    /// `code_means` and `code_scale` of the pool, the `codes` that were timed and what they took, `millis`.
    pub fn state(&self) -> State {
        let transfer = &self.transfer;
        let mut state = State::new();
        for (index, source) in transfer.sources.iter().enumerate() {
            let tensors = source.state().into_iter();
            state.extend(tensors.map(|(name, tensor)| (format!("source_{index}/{name}"), tensor)));
        }
        let numbers = |values: &[f64]| values.iter().map(|&x| x as f32).collect::<Vec<f32>>();
        let scales = transfer.scales.iter();
        let scales = scales.flat_map(|&(mean, deviation)| [mean as f32, deviation as f32]);
        let (n, code_len) = (self.codes.len(), self.code_len());
        state.extend(
            [
                (
                    "scales",
                    StateTensor::new(vec![transfer.sources.len(), 2], scales.collect()),
                ),
                (
                    "code_means",
                    StateTensor::vector(numbers(&transfer.code_means)),
                ),
                (
                    "code_scale",
                    StateTensor::scalar(transfer.code_scale as f32),
                ),
                (
                    "codes",
                    StateTensor::new(vec![n, code_len], self.codes.concat()),
                ),
                ("millis", StateTensor::vector(numbers(&self.millis))),
            ]
            .map(|(name, tensor)| (name.to_owned(), tensor)),
        );
        state
    }

    /// The model of a state, for codes of the space that it was fitted in.
    ///
    /// # Errors
    /// If a tensor is missing, does not fit the others or the space, or holds a number that is not finite or not positive
    /// where it must be.
    pub fn from_state(topology: &Topology, state: &State) -> Result<Self, StateError> {
        let find = |name: &str, axes: &[Option<usize>]| {
            StateTensor::find(state, name)?.expect_axes(name, axes)
        };
        let n_sources = StateTensor::find(state, "scales")?
            .shape
            .first()
            .copied()
            .unwrap_or(0);
        let sources = (0..n_sources)
            .map(|index| {
                let prefix = format!("source_{index}/");
                let tensors = state.iter().filter_map(|(name, tensor)| {
                    Some((name.strip_prefix(&prefix)?.to_owned(), tensor.clone()))
                });
                Structured::from_state(topology, &tensors.collect())
            })
            .collect::<Result<Vec<_>, _>>()?;
        let code_len = topology.code_len();
        let scales = find("scales", &[None, Some(2)])?.chunks_exact(2);
        let code_means = find("code_means", &[Some(code_len)])?.iter();
        let code_scale = StateTensor::find_scalar(state, "code_scale")?;
        let codes = find("codes", &[None, Some(code_len)])?;
        let codes: Vec<Vec<f32>> = codes.chunks_exact(code_len).map(<[f32]>::to_vec).collect();
        let millis = find("millis", &[Some(codes.len())])?.iter();
        let millis: Vec<f64> = millis.map(|&y| f64::from(y)).collect();
        let transfer = Transfer {
            sources: Arc::new(sources),
            scales: scales
                .map(|pair| (f64::from(pair[0]), f64::from(pair[1])))
                .collect(),
            code_means: code_means.map(|&mean| f64::from(mean)).collect(),
            code_scale: f64::from(code_scale),
            pool: vec![],
        };
        let fitted = Arc::new(transfer).fit(&codes, &millis);
        let (model, _) = fitted.map_err(|error| StateError::Unfit {
            reason: error.to_string(),
        })?;
        Ok(model)
    }
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
        let mut millis = self.mean;
        let mut grad_code: Vec<f64> = vec![0.0; code.len()];
        for (index, source) in transfer.sources.iter().enumerate() {
            let along_mean = MEAN.sqrt() * self.slopes[0] / n as f64;
            let along_each = (EACH / n as f64).sqrt() * self.slopes[1 + index];
            let (mean, deviation) = transfer.scales[index];
            let factor = (along_mean + along_each) / deviation;
            let (said, grad) = source.gradient(code);
            millis += factor * (said - mean);
            let pairs = grad_code.iter_mut().zip(&grad);
            pairs.for_each(|(sum, &g)| *sum += factor * f64::from(g));
        }
        let scale = CODE.sqrt() / transfer.code_scale;
        let of_code = self.slopes[1 + n..].iter().zip(&transfer.code_means);
        for (((slope, mean), &c), grad) in of_code.zip(code).zip(&mut grad_code) {
            millis += scale * slope * (f64::from(c) - mean);
            *grad += scale * slope;
        }
        let (millis, slope) = positive(millis, self.floor);
        let grad_code = grad_code.iter().map(|g| (slope * g) as f32).collect();
        (millis, grad_code)
    }

    /// The doubt of the process, over the prediction.
    fn spread(&self, code: &[f32]) -> f64 {
        let features = self.transfer.features(code);
        let n = self.millis.len();
        let rows = Matrix::new(&self.rows, n, features.len());
        let shared = product(rows, Matrix::new(&features, features.len(), 1));
        let weights = self.precision.times(&shared);
        // The mean latency is not known either.
        let unknown = 1.0 - dot(&self.precision.mean().sums, &shared);
        let variance = dot(&features, &features) - dot(&shared, &weights)
            + unknown * unknown / self.precision.mean().total
            + NOISE;
        let millis = self.mean + dot(&self.slopes, &features);
        relative(self.variance * variance, positive(millis, self.floor).0)
    }
}

#[cfg(test)]
mod tests {
    use rand::{RngExt, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    use super::*;

    /// Architectures of NAS-Bench-201.
    fn codes(n: usize) -> Vec<Vec<f32>> {
        let mut rng = ChaCha8Rng::seed_from_u64(3);
        (0..n)
            .map(|_| {
                let mut code = vec![0.0; 30];
                for edge in 0..6 {
                    code[5 * edge + rng.random_range(0..5)] = 1.0;
                }
                code
            })
            .collect()
    }

    fn cost(code: &[f32], of_edges: [f64; 3]) -> f64 {
        let numbers = code.iter().enumerate();
        let cost =
            |(index, &c): (usize, &f32)| f64::from(c) * of_edges[index / 10] * (index % 5) as f64;
        3.0 + numbers.map(cost).sum::<f64>()
    }

    /// Two devices of different tastes; the new one is slower by far, and between them.
    fn transfer() -> (Arc<Transfer>, Vec<Vec<f32>>, Vec<f64>) {
        let codes = codes(100);
        let source = |of_edges| {
            let millis: Vec<f64> = codes.iter().map(|code| cost(code, of_edges)).collect();
            Structured::fit(&Topology::nas_bench_201(), &codes[..40], &millis[..40]).unwrap()
        };
        let sources = vec![source([1.0, 0.2, 0.3]), source([0.3, 1.0, 0.5])];
        let millis = codes.iter().map(|code| 20.0 * cost(code, [0.7, 0.6, 0.4]));
        let millis = millis.collect();
        (
            Arc::new(Transfer::new(Arc::new(sources), &codes).unwrap()),
            codes,
            millis,
        )
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
        let (transfer, codes, millis) = transfer();
        let (whole, left_out) = transfer.fit(&codes[..8], &millis[..8]).unwrap();
        for out in 0..8 {
            let (mut codes, mut millis) = (codes[..8].to_vec(), millis[..8].to_vec());
            let code = codes.remove(out);
            millis.remove(out);
            let (model, _) = transfer.fit(&codes, &millis).unwrap();
            let (long, short) = (model.predict_millis(&code), left_out.predicted[out]);
            assert!((long - short).abs() < 1e-6 * long, "{long} {short}");
            // In units of each fit's own scale.
            let long = model.spread(&code) / model.variance.sqrt();
            let short = left_out.spread[out] / whole.variance.sqrt();
            assert!((long - short).abs() < 1e-6 * long, "{long} {short}");
        }
    }

    #[test]
    fn the_gradient_is_that_of_finite_differences() {
        let (transfer, codes, millis) = transfer();
        let (model, _) = transfer.fit(&codes[..10], &millis[..10]).unwrap();
        let code: Vec<f32> = codes[50].iter().map(|c| 0.2 + 0.5 * c).collect();
        let (value, grad) = model.gradient(&code);
        let again = model.predict_millis(&code);
        assert!((value - again).abs() < 1e-9 * value);
        for index in 0..30 {
            let [low, high] = [-1.0, 1.0].map(|sign| {
                let mut code = code.clone();
                code[index] += sign / 128.0;
                model.predict_millis(&code)
            });
            let slope = (high - low) * 64.0;
            let grad = f64::from(grad[index]);
            assert!(
                (slope - grad).abs() < 5e-3 * (1.0 + slope.abs()),
                "{slope} {grad}"
            );
        }
    }

    #[test]
    fn a_state_makes_the_same_model() {
        let (transfer, codes, millis) = transfer();
        let (model, _) = transfer.fit(&codes[..10], &millis[..10]).unwrap();
        let topology = Topology::nas_bench_201();
        let again = Transferred::from_state(&topology, &model.state()).unwrap();
        for code in &codes[..20] {
            assert_eq!(model.gradient(code), again.gradient(code));
            assert_eq!(model.spread(code), again.spread(code));
        }
        let mut broken = model.state();
        broken.get_mut("millis").unwrap().values[0] = -1.0;
        assert_eq!(
            Transferred::from_state(&topology, &broken)
                .err()
                .unwrap()
                .to_string(),
            "the numbers make no model: the latency of architecture 0 is -1 ms; it must be positive and finite"
        );
        broken.remove("source_1/codes");
        assert_eq!(
            Transferred::from_state(&topology, &broken)
                .err()
                .unwrap()
                .to_string(),
            "the state has no tensor `codes`"
        );
    }

    #[test]
    fn what_cannot_be_transferred_is_refused() {
        let refusal = Transfer::new(Arc::default(), &codes(5))
            .err()
            .unwrap()
            .to_string();
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
