//! The multi-layer regressor of LA-DARTS (arXiv 2001.06392).
//!
//! With a few hundred architectures a plain regressor on 224 inputs loses to a sum over edges. So this
//! one starts from the sum: it predicts `ridge(code) + gamma * mean of f_k(code)`, where the networks f_k
//! learn what the additive model leaves over. Each f_k is fitted without one fold of the architectures,
//! and gamma, between 0 and 1, is the factor that fits the folds left out best: where interactions
//! cannot be learnt, the regressor falls back to the sum.

use rand::RngExt;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;

use crate::Ridge;
use crate::model::{FitError, LatencyModel, State, StateError, StateTensor, check_data};

/// How a regressor is built and fitted.
#[derive(Clone, Debug, PartialEq)]
pub struct MlpConfig {
    /// The widths of the hidden layers.
    pub hidden: Vec<usize>,
    /// Passes over the architectures.
    pub n_epochs: usize,
    /// Architectures of one step.
    pub batch_size: usize,
    /// The learning rate of Adam at first; it falls to 0 along a cosine.
    pub learning_rate: f64,
    /// The decoupled weight decay, per unit of learning rate.
    pub weight_decay: f64,
    /// Regressors whose predictions are averaged, each fitted without one fold; at least 2.
    pub n_members: usize,
    /// The seed of folds, initial weights and data order.
    pub seed: u64,
}

impl Default for MlpConfig {
    fn default() -> Self {
        Self {
            hidden: vec![64],
            n_epochs: 200,
            batch_size: 32,
            learning_rate: 2e-3,
            weight_decay: 0.3,
            n_members: 5,
            seed: 0,
        }
    }
}

impl MlpConfig {
    fn check(&self) -> Result<(), FitError> {
        let wrong = |name, value, expected| {
            Err(FitError::Setting {
                name,
                value,
                expected,
            })
        };
        if let Some(width) = self.hidden.iter().find(|width| **width == 0) {
            return wrong("hidden", *width as f64, "at least 1 in every layer");
        }
        if self.hidden.is_empty() {
            return wrong("hidden", 0.0, "at least one layer");
        }
        if self.batch_size == 0 {
            return wrong("batch_size", 0.0, "at least 1");
        }
        if self.n_members < 2 {
            return wrong("n_members", self.n_members as f64, "at least 2");
        }
        if !(self.learning_rate > 0.0 && self.learning_rate.is_finite()) {
            return wrong("learning_rate", self.learning_rate, "positive and finite");
        }
        if !(self.weight_decay >= 0.0 && self.weight_decay.is_finite()) {
            return wrong("weight_decay", self.weight_decay, "at least 0 and finite");
        }
        Ok(())
    }
}

/// A fitted regressor.
#[derive(Clone, Debug, PartialEq)]
pub struct Mlp {
    base: Ridge,
    members: Vec<Network>,
    /// What the mean of the members is multiplied by: gamma and the scale of what they learnt, in ms.
    factor: f64,
}

impl Mlp {
    /// Fits a regressor on codes and what the architectures took, in milliseconds.
    ///
    /// The same arguments give the same bits, whatever else the process does.
    ///
    /// # Errors
    /// If the data or the configuration cannot be fitted, or if the fit diverges.
    pub fn fit(config: &MlpConfig, codes: &[Vec<f32>], millis: &[f64]) -> Result<Self, FitError> {
        config.check()?;
        let code_len = check_data(codes, millis, 2 * config.n_members)?;
        let base = Ridge::fit_cv(codes, millis, &Ridge::L2_GRID)?;
        let residuals = |ridge: &Ridge, indices: &[usize]| -> Vec<f64> {
            let residual = |&i: &usize| millis[i] - ridge.predict_millis(&codes[i]);
            indices.iter().map(residual).collect()
        };
        let all: Vec<usize> = (0..codes.len()).collect();
        let rest = residuals(&base, &all);
        let scale = (rest.iter().map(|r| r * r).sum::<f64>() / rest.len() as f64).sqrt();
        if scale <= 1e-12 * millis[0].abs() {
            // The sum explains everything.
            return Ok(Self {
                base,
                members: Vec::new(),
                factor: 0.0,
            });
        }

        let mut order = all;
        order.shuffle(&mut stream(config.seed, 0));
        let mut members = Vec::with_capacity(config.n_members);
        let (mut agreement, mut energy) = (0.0, 0.0);
        for fold in 0..config.n_members {
            let part = |inside: bool| -> Vec<usize> {
                let own = order.iter().enumerate();
                own.filter(|(i, _)| (i % config.n_members == fold) == inside)
                    .map(|(_, &index)| index)
                    .collect()
            };
            let (held_out, train) = (part(true), part(false));
            let gather = |indices: &[usize]| -> (Vec<Vec<f32>>, Vec<f64>) {
                indices
                    .iter()
                    .map(|&i| (codes[i].clone(), millis[i]))
                    .unzip()
            };
            let (train_codes, train_millis) = gather(&train);
            let ridge = Ridge::fit_cv(&train_codes, &train_millis, &Ridge::L2_GRID)?;
            let targets: Vec<f32> = residuals(&ridge, &train)
                .iter()
                .map(|r| (r / scale) as f32)
                .collect();
            let mut rng = stream(config.seed, 1 + fold as u64);
            let mut network = Network::new(code_len, &config.hidden, &mut rng);
            network.train(config, &train_codes, &targets, &mut rng)?;
            for (index, left) in held_out.iter().zip(residuals(&ridge, &held_out)) {
                let said = f64::from(network.forward(&codes[*index]).output()) * scale;
                agreement += said * left;
                energy += said * said;
            }
            members.push(network);
        }
        let gamma = if energy > 0.0 {
            (agreement / energy).clamp(0.0, 1.0)
        } else {
            0.0
        };
        Ok(Self {
            base,
            members,
            factor: gamma * scale,
        })
    }

    /// The numbers of the model.
    pub fn state(&self) -> State {
        let mut state: State = self
            .base
            .state()
            .into_iter()
            .map(|(name, tensor)| (format!("base.{name}"), tensor))
            .collect();
        state.insert("factor".to_owned(), StateTensor::scalar(self.factor as f32));
        for (k, member) in self.members.iter().enumerate() {
            for (l, layer) in member.layers.iter().enumerate() {
                let weight = StateTensor::new(vec![layer.n_out, layer.n_in], layer.weight.clone());
                state.insert(format!("member.{k}.{l}.weight"), weight);
                state.insert(
                    format!("member.{k}.{l}.bias"),
                    StateTensor::vector(layer.bias.clone()),
                );
            }
        }
        state
    }

    /// The model of a state.
    ///
    /// # Errors
    /// If a tensor is missing or does not fit the others.
    pub fn from_state(state: &State) -> Result<Self, StateError> {
        let base: State = state
            .iter()
            .filter_map(|(name, tensor)| {
                Some((name.strip_prefix("base.")?.to_owned(), tensor.clone()))
            })
            .collect();
        let base = Ridge::from_state(&base)?;
        let factor = f64::from(StateTensor::find_scalar(state, "factor")?);
        let mut members = Vec::new();
        while state.contains_key(&format!("member.{}.0.weight", members.len())) {
            let mut layers: Vec<Layer> = Vec::new();
            let mut n_in = base.code_len();
            loop {
                let name = format!("member.{}.{}", members.len(), layers.len());
                let weight_name = format!("{name}.weight");
                let Some(weight) = state.get(&weight_name) else {
                    break;
                };
                let values = weight
                    .expect_axes(&weight_name, &[None, Some(n_in)])?
                    .to_vec();
                let n_out = weight.shape[0];
                let bias_name = format!("{name}.bias");
                let bias = StateTensor::find(state, &bias_name)?
                    .expect_axes(&bias_name, &[Some(n_out)])?
                    .to_vec();
                layers.push(Layer {
                    n_in,
                    n_out,
                    weight: values,
                    bias,
                });
                n_in = n_out;
            }
            if n_in != 1 {
                let name = format!("member.{}.{}.weight", members.len(), layers.len());
                return Err(StateError::Missing { name });
            }
            members.push(Network { layers });
        }
        Ok(Self {
            base,
            members,
            factor,
        })
    }
}

impl LatencyModel for Mlp {
    fn code_len(&self) -> usize {
        self.base.code_len()
    }

    fn predict_millis(&self, code: &[f32]) -> f64 {
        let sum: f64 = self
            .members
            .iter()
            .map(|m| f64::from(m.forward(code).output()))
            .sum();
        self.base.predict_millis(code) + f64::from(self.factor as f32) * sum / self.n_members()
    }

    fn gradient(&self, code: &[f32]) -> (f64, Vec<f32>) {
        let (_, mut gradient) = self.base.gradient(code);
        let factor = (f64::from(self.factor as f32) / self.n_members()) as f32;
        for member in &self.members {
            let passed = member.forward(code);
            for (sum, g) in gradient
                .iter_mut()
                .zip(member.backward(code, &passed, None))
            {
                *sum += factor * g;
            }
        }
        (self.predict_millis(code), gradient)
    }
}

impl Mlp {
    fn n_members(&self) -> f64 {
        self.members.len().max(1) as f64
    }
}

fn stream(seed: u64, stream: u64) -> ChaCha8Rng {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(stream);
    rng
}

/// tanh between the layers: smooth, so that gradients mean something between architectures, and bounded,
/// so that the network cannot run away there.
#[derive(Clone, Debug, PartialEq)]
struct Network {
    layers: Vec<Layer>,
}

#[derive(Clone, Debug, PartialEq)]
struct Layer {
    n_in: usize,
    n_out: usize,
    /// `[n_out, n_in]`, row-major.
    weight: Vec<f32>,
    bias: Vec<f32>,
}

/// The activations behind each layer.
struct Passed(Vec<Vec<f32>>);

impl Passed {
    fn output(&self) -> f32 {
        self.0[self.0.len() - 1][0]
    }
}

impl Network {
    /// Glorot-uniform weights; the last layer starts at zero, so that the network does.
    fn new(code_len: usize, hidden: &[usize], rng: &mut ChaCha8Rng) -> Self {
        let mut layers = Vec::new();
        let mut n_in = code_len;
        for &n_out in hidden {
            // A code has 16 ones, not n_in: the bound that keeps the sums of the first layer near 1.
            let fan_in = if layers.is_empty() { 16.0 } else { n_in as f32 };
            let bound = (3.0 / fan_in).sqrt();
            let weight = (0..n_in * n_out)
                .map(|_| rng.random_range(-bound..bound))
                .collect();
            layers.push(Layer {
                n_in,
                n_out,
                weight,
                bias: vec![0.0; n_out],
            });
            n_in = n_out;
        }
        layers.push(Layer {
            n_in,
            n_out: 1,
            weight: vec![0.0; n_in],
            bias: vec![0.0],
        });
        Self { layers }
    }

    fn forward(&self, code: &[f32]) -> Passed {
        let mut passed: Vec<Vec<f32>> = Vec::with_capacity(self.layers.len());
        for (index, layer) in self.layers.iter().enumerate() {
            let input = passed.last().map_or(code, Vec::as_slice);
            let last = index + 1 == self.layers.len();
            let rows = layer.weight.chunks_exact(layer.n_in).zip(&layer.bias);
            passed.push(
                rows.map(|(row, bias)| {
                    let sum = row.iter().zip(input).map(|(w, x)| w * x).sum::<f32>() + bias;
                    if last { sum } else { sum.tanh() }
                })
                .collect(),
            );
        }
        Passed(passed)
    }

    /// d output / d code; with `into`, adds `factor` * d output / d weights to the gradients given.
    fn backward(
        &self,
        code: &[f32],
        passed: &Passed,
        mut into: Option<(f32, &mut [Layer])>,
    ) -> Vec<f32> {
        let mut grad = vec![1.0f32];
        for (index, layer) in self.layers.iter().enumerate().rev() {
            let input = if index == 0 {
                code
            } else {
                &passed.0[index - 1]
            };
            if let Some((factor, gradients)) = &mut into {
                let own = &mut gradients[index];
                for (o, g) in grad.iter().enumerate() {
                    let g = *factor * g;
                    own.bias[o] += g;
                    let row = &mut own.weight[o * layer.n_in..][..layer.n_in];
                    row.iter_mut().zip(input).for_each(|(w, x)| *w += g * x);
                }
                if index == 0 {
                    return Vec::new();
                }
            }
            let mut below = vec![0.0f32; layer.n_in];
            for (row, g) in layer.weight.chunks_exact(layer.n_in).zip(&grad) {
                below.iter_mut().zip(row).for_each(|(b, w)| *b += g * w);
            }
            if index > 0 {
                below
                    .iter_mut()
                    .zip(input)
                    .for_each(|(b, y)| *b *= 1.0 - y * y);
            }
            grad = below;
        }
        grad
    }

    /// Adam with decoupled decay on the mean squared error.
    fn train(
        &mut self,
        config: &MlpConfig,
        codes: &[Vec<f32>],
        targets: &[f32],
        rng: &mut ChaCha8Rng,
    ) -> Result<(), FitError> {
        let zeros = || -> Vec<Layer> {
            let zero = |l: &Layer| Layer {
                weight: vec![0.0; l.weight.len()],
                bias: vec![0.0; l.bias.len()],
                ..*l
            };
            self.layers.iter().map(zero).collect()
        };
        let (mut means, mut squares) = (zeros(), zeros());
        let n_batches = codes.len().div_ceil(config.batch_size);
        let n_steps = (n_batches * config.n_epochs).max(1);
        let mut order: Vec<usize> = (0..codes.len()).collect();
        let mut step = 0;
        for epoch in 0..config.n_epochs {
            order.shuffle(rng);
            for batch in order.chunks(config.batch_size) {
                let mut gradients: Vec<Layer> = means
                    .iter()
                    .map(|l| Layer {
                        weight: vec![0.0; l.weight.len()],
                        bias: vec![0.0; l.bias.len()],
                        ..*l
                    })
                    .collect();
                for &index in batch {
                    let passed = self.forward(&codes[index]);
                    let error = 2.0 * (passed.output() - targets[index]) / batch.len() as f32;
                    self.backward(&codes[index], &passed, Some((error, &mut gradients)));
                }
                let progress = step as f64 / n_steps as f64;
                let rate =
                    config.learning_rate * 0.5 * (1.0 + (std::f64::consts::PI * progress).cos());
                step += 1;
                let adam = AdamStep::new(rate, config.weight_decay, step);
                for (((layer, gradient), mean), square) in self
                    .layers
                    .iter_mut()
                    .zip(&gradients)
                    .zip(&mut means)
                    .zip(&mut squares)
                {
                    adam.apply(
                        &mut layer.weight,
                        &gradient.weight,
                        &mut mean.weight,
                        &mut square.weight,
                    );
                    adam.apply(
                        &mut layer.bias,
                        &gradient.bias,
                        &mut mean.bias,
                        &mut square.bias,
                    );
                }
            }
            let finite = |l: &Layer| l.weight.iter().chain(&l.bias).all(|w| w.is_finite());
            if !self.layers.iter().all(finite) {
                return Err(FitError::NonFinite {
                    what: "a weight",
                    epoch: epoch + 1,
                });
            }
        }
        Ok(())
    }
}

/// One step of Adam (Kingma & Ba 2015) with decoupled weight decay.
struct AdamStep {
    rate: f32,
    keep: f32,
    correction: f32,
}

impl AdamStep {
    const BETAS: [f32; 2] = [0.9, 0.999];

    fn new(rate: f64, weight_decay: f64, step: usize) -> Self {
        let [b1, b2] = Self::BETAS.map(f64::from);
        let power = step as f64;
        let correction = (1.0 - b2.powf(power)).sqrt() / (1.0 - b1.powf(power));
        Self {
            rate: rate as f32,
            keep: (1.0 - rate * weight_decay) as f32,
            correction: correction as f32,
        }
    }

    fn apply(
        &self,
        weights: &mut [f32],
        gradients: &[f32],
        means: &mut [f32],
        squares: &mut [f32],
    ) {
        let [b1, b2] = Self::BETAS;
        let rate = self.rate * self.correction;
        for (((w, g), m), s) in weights.iter_mut().zip(gradients).zip(means).zip(squares) {
            *m = b1 * *m + (1.0 - b1) * g;
            *s = b2 * *s + (1.0 - b2) * g * g;
            *w = self.keep * *w - rate * *m / (s.sqrt() + 1e-8);
        }
    }
}
