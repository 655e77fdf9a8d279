//! The additive control: one number per edge and primitive.
//!
//! The sum of a latency per gene is nearly exact for kernels that run one after another, so every other
//! model has to beat this one.

use crate::linalg::{Cholesky, dot};
use crate::model::{FitError, LatencyModel, LeftOut, State, StateError, StateTensor, check_data};

/// latency = intercept + weights · code, the weights of least squares with a penalty on their squares.
///
/// With codes c and latencies y, both centred, the weights minimise Σ (y - c · w)² + l2 · |w|². The
/// intercept follows from the means and is not penalised. Where a code chooses one of several, as an
/// edge chooses a primitive, only differences between weights show in the data; the penalty makes the
/// weights of one choice sum to about 0, and so a choice that was never seen, whose weight is 0, counts
/// as the mean of its alternatives.
#[derive(Clone, Debug, PartialEq)]
pub struct Ridge {
    weights: Vec<f32>,
    intercept: f32,
    l2: f32,
}

impl Ridge {
    /// Penalties from almost none to almost nothing but the mean, for [`fit_cv`](Self::fit_cv) on codes of
    /// zeros and ones, or of small counts.
    pub const L2_GRID: [f64; 15] = [
        0.01, 0.03, 0.1, 0.3, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0,
    ];

    /// Fits codes to what the architectures took, in milliseconds, with one penalty.
    ///
    /// # Errors
    /// If the data cannot be fitted, or if the penalty is not positive.
    pub fn fit(codes: &[Vec<f32>], millis: &[f64], l2: f64) -> Result<Self, FitError> {
        let normal = NormalEquations::new(codes, millis)?;
        Ok(normal.solve(l2)?.0)
    }

    /// Fits with the penalty of the grid that has the smallest squared error on left-out architectures.
    ///
    /// Each architecture is left out once, without a fit for each: its error is its residual over one
    /// minus its leverage (Allen's PRESS statistic). Of equals, the first penalty wins.
    ///
    /// # Errors
    /// If the data cannot be fitted, if the grid is empty, or if a penalty is not positive.
    pub fn fit_cv(codes: &[Vec<f32>], millis: &[f64], grid: &[f64]) -> Result<Self, FitError> {
        Ok(Self::fit_left_out(codes, millis, grid)?.0)
    }

    /// As [`fit_cv`](Self::fit_cv), and tells what the model says of each architecture when that one is left
    /// out.
    ///
    /// # Errors
    /// As [`fit_cv`](Self::fit_cv).
    pub fn fit_left_out(
        codes: &[Vec<f32>],
        millis: &[f64],
        grid: &[f64],
    ) -> Result<(Self, LeftOut), FitError> {
        let normal = NormalEquations::new(codes, millis)?;
        let mut best: Option<(f64, Self, Vec<f64>)> = None;
        for &l2 in grid {
            let (ridge, factor) = normal.solve(l2)?;
            let errors = normal.left_out_errors(&ridge, &factor);
            let error = errors.iter().map(|error| error * error).sum();
            if best.as_ref().is_none_or(|(least, ..)| error < *least) {
                best = Some((error, ridge, errors));
            }
        }
        let (_, ridge, errors) = best.ok_or(FitError::Setting {
            name: "the number of penalties",
            value: 0.0,
            expected: "at least 1",
        })?;
        let left_out = LeftOut {
            predicted: millis.iter().zip(&errors).map(|(y, e)| y - e).collect(),
            spread: vec![1.0; millis.len()],
        };
        Ok((ridge, left_out))
    }

    /// The penalty of the fit.
    pub fn l2(&self) -> f32 {
        self.l2
    }

    /// The milliseconds of each number of the code.
    pub fn weights(&self) -> &[f32] {
        &self.weights
    }

    /// The same function of a shorter code: the numbers behind `classes.len()` were `factor` times the sums
    /// of the others over their classes.
    pub(crate) fn fold_inputs(mut self, classes: &[usize], factor: f32) -> Self {
        let sums = self.weights.split_off(classes.len());
        for (weight, &class) in self.weights.iter_mut().zip(classes) {
            *weight += factor * sums[class];
        }
        self
    }

    /// The numbers of the model: `weights` (code length), `intercept` and `l2`.
    pub fn state(&self) -> State {
        State::from([
            (
                "weights".to_owned(),
                StateTensor::vector(self.weights.clone()),
            ),
            ("intercept".to_owned(), StateTensor::scalar(self.intercept)),
            ("l2".to_owned(), StateTensor::scalar(self.l2)),
        ])
    }

    /// The model of a state.
    ///
    /// # Errors
    /// If a tensor is missing, has a wrong shape, or holds a number that is not finite.
    pub fn from_state(state: &State) -> Result<Self, StateError> {
        let weights = StateTensor::find(state, "weights")?;
        Ok(Self {
            weights: weights.expect_axes("weights", &[None])?.to_vec(),
            intercept: StateTensor::find_scalar(state, "intercept")?,
            l2: StateTensor::find_scalar(state, "l2")?,
        })
    }
}

impl LatencyModel for Ridge {
    fn code_len(&self) -> usize {
        self.weights.len()
    }

    fn predict_millis(&self, code: &[f32]) -> f64 {
        assert_eq!(code.len(), self.weights.len(), "length of the code");
        let products = self
            .weights
            .iter()
            .zip(code)
            .map(|(&w, &c)| f64::from(w) * f64::from(c));
        f64::from(self.intercept) + products.sum::<f64>()
    }

    fn gradient(&self, code: &[f32]) -> (f64, Vec<f32>) {
        (self.predict_millis(code), self.weights.clone())
    }
}

/// What the fits of all penalties share.
struct NormalEquations {
    /// The centred codes, `n p`, and their means, `p`.
    centred: Vec<f64>,
    means: Vec<f64>,
    /// The centred latencies, `n`, and their mean.
    targets: Vec<f64>,
    mean_millis: f64,
    /// centredᵀ centred, `p p`, the lower triangle, and centredᵀ targets, `p`.
    gram: Vec<f64>,
    moments: Vec<f64>,
}

impl NormalEquations {
    fn new(codes: &[Vec<f32>], millis: &[f64]) -> Result<Self, FitError> {
        let code_len = check_data(codes, millis, 2)?;
        let n = codes.len() as f64;

        let mut means = vec![0.0; code_len];
        for code in codes {
            means
                .iter_mut()
                .zip(code)
                .for_each(|(mean, &c)| *mean += f64::from(c) / n);
        }
        let centred: Vec<f64> = codes
            .iter()
            .flat_map(|code| {
                code.iter()
                    .zip(&means)
                    .map(|(&c, mean)| f64::from(c) - mean)
            })
            .collect();
        let mean_millis = millis.iter().sum::<f64>() / n;
        let targets: Vec<f64> = millis.iter().map(|y| y - mean_millis).collect();

        let mut gram = vec![0.0; code_len * code_len];
        let mut moments = vec![0.0; code_len];
        for (row, &target) in centred.chunks_exact(code_len).zip(&targets) {
            for (i, &c) in row.iter().enumerate() {
                moments[i] += c * target;
                let products = gram[i * code_len..].iter_mut().zip(&row[..=i]);
                products.for_each(|(sum, other)| *sum += c * other);
            }
        }
        Ok(Self {
            centred,
            means,
            targets,
            mean_millis,
            gram,
            moments,
        })
    }

    fn solve(&self, l2: f64) -> Result<(Ridge, Cholesky), FitError> {
        if !(l2 > 0.0 && l2.is_finite()) {
            return Err(FitError::Setting {
                name: "l2",
                value: l2,
                expected: "positive",
            });
        }
        let code_len = self.means.len();
        let mut matrix = self.gram.clone();
        matrix
            .iter_mut()
            .step_by(code_len + 1)
            .for_each(|diagonal| *diagonal += l2);
        let factor = Cholesky::new(matrix, code_len).ok_or(FitError::Setting {
            name: "l2",
            value: l2,
            expected: "larger, for codes that depend on each other this much",
        })?;
        let mut weights = self.moments.clone();
        factor.solve(&mut weights);
        let ridge = Ridge {
            intercept: (self.mean_millis - dot(&weights, &self.means)) as f32,
            weights: weights.iter().map(|&w| w as f32).collect(),
            l2: l2 as f32,
        };
        Ok((ridge, factor))
    }

    /// residual / (1 - leverage) of each architecture; the leverage of c is 1/n + cᵀ (gram + l2)⁻¹ c.
    fn left_out_errors(&self, ridge: &Ridge, factor: &Cholesky) -> Vec<f64> {
        let weights: Vec<f64> = ridge.weights.iter().map(|&w| f64::from(w)).collect();
        let n = self.targets.len() as f64;
        let mut whitened = vec![0.0; weights.len()];
        let rows = self.centred.chunks_exact(weights.len());
        rows.zip(&self.targets)
            .map(|(row, target)| {
                whitened.copy_from_slice(row);
                factor.solve_lower(&mut whitened);
                let leverage = 1.0 / n + dot(&whitened, &whitened);
                (target - dot(&weights, row)) / (1.0 - leverage)
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use rand::{RngExt, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    use super::*;

    /// Codes that choose one of three, twice, and an additive latency with some noise.
    fn data(n: usize, noise: f64) -> (Vec<Vec<f32>>, Vec<f64>) {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        (0..n)
            .map(|_| {
                let (a, b) = (rng.random_range(0..3), rng.random_range(0..3));
                let mut code = vec![0.0; 6];
                code[a] = 1.0;
                code[3 + b] = 1.0;
                let noise = noise * (rng.random::<f64>() - 0.5);
                (code, 100.0 + a as f64 + 10.0 * b as f64 + noise)
            })
            .unzip()
    }

    #[test]
    fn an_additive_latency_is_recovered() {
        let (codes, millis) = data(40, 0.0);
        let ridge = Ridge::fit(&codes, &millis, 1e-6).unwrap();
        for (code, millis) in codes.iter().zip(&millis) {
            assert!((ridge.predict_millis(code) - millis).abs() < 1e-4);
        }
        // Only differences show in the data; the penalty makes each choice sum to 0.
        let expected = [-1.0, 0.0, 1.0, -10.0, 0.0, 10.0];
        for (weight, expected) in ridge.weights().iter().zip(expected) {
            assert!((weight - expected).abs() < 1e-4, "{:?}", ridge.weights());
        }
    }

    #[test]
    fn the_intercept_is_not_penalised() {
        let (codes, millis) = data(30, 2.0);
        let far: Vec<f64> = millis.iter().map(|y| y + 1000.0).collect();
        let (near, far) = (
            Ridge::fit(&codes, &millis, 50.0),
            Ridge::fit(&codes, &far, 50.0),
        );
        let (near, far) = (near.unwrap(), far.unwrap());
        for code in &codes {
            assert!((far.predict_millis(code) - near.predict_millis(code) - 1000.0).abs() < 1e-3);
        }
    }

    #[test]
    fn a_choice_never_seen_counts_as_the_mean_of_its_alternatives() {
        let (codes, millis) = data(40, 0.0);
        let codes: Vec<Vec<f32>> = codes
            .iter()
            .map(|code| [&code[..], &[0.0]].concat())
            .collect();
        let ridge = Ridge::fit(&codes, &millis, 1e-6).unwrap();
        assert_eq!(ridge.weights()[6], 0.0);
        let unseen = [0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0];
        assert!((ridge.predict_millis(&unseen) - 111.0).abs() < 1e-4);
    }

    #[test]
    fn leaving_out_by_leverage_is_leaving_out_for_real() {
        let (codes, millis) = data(15, 8.0);
        let normal = NormalEquations::new(&codes, &millis).unwrap();
        for l2 in [0.1, 1.0, 30.0] {
            let (ridge, factor) = normal.solve(l2).unwrap();
            let short = normal.left_out_errors(&ridge, &factor);
            let short: f64 = short.iter().map(|error| error * error).sum();
            let long: f64 = (0..codes.len())
                .map(|left_out| {
                    let (mut codes, mut millis) = (codes.clone(), millis.clone());
                    let (code, y) = (codes.remove(left_out), millis.remove(left_out));
                    (y - Ridge::fit(&codes, &millis, l2)
                        .unwrap()
                        .predict_millis(&code))
                    .powi(2)
                })
                .sum();
            assert!(
                (short - long).abs() < 1e-5 * long,
                "l2 {l2}: {short} against {long}"
            );
        }
    }

    #[test]
    fn the_penalty_grows_with_the_noise() {
        let chosen = |noise| {
            let (codes, millis) = data(40, noise);
            Ridge::fit_cv(&codes, &millis, &Ridge::L2_GRID)
                .unwrap()
                .l2()
        };
        assert_eq!(chosen(0.0), 0.01);
        assert!(chosen(150.0) > 4.0);
    }

    #[test]
    fn the_gradient_is_the_weights() {
        let (codes, millis) = data(30, 1.0);
        let ridge = Ridge::fit(&codes, &millis, 1.0).unwrap();
        let (millis, grad_code) = ridge.gradient(&codes[3]);
        assert_eq!(millis, ridge.predict_millis(&codes[3]));
        assert_eq!(grad_code, ridge.weights());
    }

    #[test]
    fn a_state_makes_the_same_model() {
        let (codes, millis) = data(30, 1.0);
        let ridge = Ridge::fit_cv(&codes, &millis, &[0.3, 3.0]).unwrap();
        assert_eq!(Ridge::from_state(&ridge.state()), Ok(ridge));
    }

    #[test]
    fn a_broken_state_is_named() {
        let (codes, millis) = data(30, 1.0);
        let good = Ridge::fit(&codes, &millis, 1.0).unwrap().state();
        let message = |change: &dyn Fn(&mut State)| {
            let mut state = good.clone();
            change(&mut state);
            Ridge::from_state(&state).unwrap_err().to_string()
        };
        assert_eq!(
            message(&|state| drop(state.remove("l2"))),
            "the state has no tensor `l2`"
        );
        assert_eq!(
            message(&|state| state.get_mut("weights").unwrap().shape = vec![2, 3]),
            "tensor `weights` has shape [2, 3], expected [any]"
        );
        assert_eq!(
            message(&|state| state.get_mut("intercept").unwrap().values[0] = f32::NAN),
            "tensor `intercept` holds a number that is not finite"
        );
    }

    #[test]
    fn what_cannot_be_fitted_is_refused() {
        let (codes, millis) = data(10, 1.0);
        let refused = |codes: &[Vec<f32>], millis: &[f64], l2| {
            Ridge::fit(codes, millis, l2).unwrap_err().to_string()
        };
        assert_eq!(
            refused(&codes, &millis[1..], 1.0),
            "there are 10 codes for 9 latencies"
        );
        assert_eq!(
            refused(&codes[..1], &millis[..1], 1.0),
            "the fit needs at least 2 architectures, there are 1; profile more"
        );
        assert_eq!(
            refused(&codes, &millis, 0.0),
            "l2 is 0; it must be positive"
        );
        assert_eq!(
            refused(&codes, &millis, f64::NAN),
            "l2 is NaN; it must be positive"
        );

        let mut short = codes.clone();
        short[4].pop();
        assert_eq!(
            refused(&short, &millis, 1.0),
            "code 4 holds 5 numbers, expected 6"
        );
        let mut infinite = codes.clone();
        infinite[2][0] = f32::INFINITY;
        assert_eq!(
            refused(&infinite, &millis, 1.0),
            "code 2 holds a number that is not finite"
        );
        let mut negative = millis.clone();
        negative[3] = -1.0;
        assert_eq!(
            refused(&codes, &negative, 1.0),
            "the latency of architecture 3 is -1 ms; it must be positive and finite"
        );
        assert!(Ridge::fit_cv(&codes, &millis, &[]).is_err());
    }
}
