//! The multi-layer regressor of LA-DARTS (arXiv 2001.06392), made to do with a few hundred architectures.
//!
//! The paper fits a plain regressor on 80,000 architectures. On some hundred it learns the noise and loses
//! to the additive [`Ridge`], so this one is built to start from the ridge and to leave it only for what
//! the data support:
//!
//! * A linear path runs beside the hidden layers, latency = linear(code) + hidden(code). It is a ridge,
//!   solved exactly; the hidden layers learn what it leaves.
//! * An operation costs about the same wherever it stands. Both paths also read the sum of the code over
//!   each class of numbers that are expected to cost alike, such as one primitive on all edges of a cell
//!   kind. Being linear in the code, the sums are folded into the weights after the fit: they are a prior,
//!   not a part of the model.
//! * Several members each leave out one fold of the architectures. On these, honestly, it shows how much
//!   of what the hidden layers say is so, the *share*; they are scaled by it and averaged. Where latency is
//!   additive the share is near 0, and the regressor is a ridge.
//!
//! The activation, x · sigmoid(x), is smooth, so the gradient is continuous everywhere, also between the
//! zeros and ones of architectures.

use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use space::Topology;

use crate::adam::Adam;
use crate::model::{FitError, LatencyModel, LeftOut, State, StateError, StateTensor, check_data};
use crate::network::{Network, Trace};
use crate::ridge::Ridge;

/// How strongly numbers of one class are expected to cost alike: the weight of a class's sum beside the
/// numbers themselves. A sum of weight s has a prior variance s² times that of a single number.
const SHARING: f32 = 8.0;

/// How a regressor is built and fitted. [`Default`] holds what did best for 100 to 1,000 architectures.
#[derive(Clone, Debug, PartialEq)]
pub struct MlpConfig {
    /// The widths of the hidden layers, at least one.
    pub hidden: Vec<usize>,
    /// Passes over the architectures.
    pub n_epochs: usize,
    /// Architectures of one step.
    pub batch_size: usize,
    /// The learning rate of Adam at first; it falls to 0 along a cosine.
    pub learning_rate: f64,
    /// The part of itself that a weight loses in a step, per unit of learning rate (decoupled, as in
    /// AdamW).
    pub weight_decay: f64,
    /// Members of the ensemble, at least 2. Each leaves out another fold of the architectures.
    pub n_members: usize,
    /// The seed of folds, initial weights and data order.
    pub seed: u64,
}

impl Default for MlpConfig {
    fn default() -> Self {
        Self {
            hidden: vec![48, 48],
            n_epochs: 100,
            batch_size: 32,
            learning_rate: 3e-3,
            weight_decay: 0.3,
            n_members: 4,
            seed: 0,
        }
    }
}

impl MlpConfig {
    fn check(&self) -> Result<(), FitError> {
        let checks = [
            (
                "the number of hidden layers",
                self.hidden.len() as f64,
                self.hidden.is_empty(),
            ),
            ("the width of a hidden layer", 0.0, self.hidden.contains(&0)),
            ("n_epochs", 0.0, self.n_epochs == 0),
            ("batch_size", 0.0, self.batch_size == 0),
        ];
        for (name, value, wrong) in checks {
            if wrong {
                return Err(FitError::Setting {
                    name,
                    value,
                    expected: "at least 1",
                });
            }
        }
        if self.n_members < 2 {
            let value = self.n_members as f64;
            return Err(FitError::Setting {
                name: "n_members",
                value,
                expected: "at least 2",
            });
        }
        let rates = [
            ("learning_rate", self.learning_rate),
            ("weight_decay", self.weight_decay),
        ];
        for (name, value) in rates {
            if !(value >= 0.0 && value.is_finite()) {
                return Err(FitError::Setting {
                    name,
                    value,
                    expected: "0 or more",
                });
            }
        }
        Ok(())
    }
}

/// A fitted regressor.
#[derive(Clone, Debug, PartialEq)]
pub struct Mlp {
    linear: Ridge,
    /// Their outputs are summed: scale, share and number of members are in the weights of the last layers.
    members: Vec<Network>,
    share: f32,
}

impl Mlp {
    /// Fits codes of [`Topology::darts`] to what the architectures took, in milliseconds.
    ///
    /// Primitives share their cost as [`Topology::cost_classes`] says. The same arguments give the same bits,
    /// whatever else the process does.
    ///
    /// # Errors
    /// If the data or the configuration cannot be fitted, or if the fit diverges.
    pub fn fit(config: &MlpConfig, codes: &[Vec<f32>], millis: &[f64]) -> Result<Self, FitError> {
        Self::fit_classes(config, &Topology::darts().cost_classes(), codes, millis)
    }

    /// Fits codes of any layout. Numbers of a code whose entries in `classes` are equal are expected to
    /// cost alike; the entries count from 0.
    ///
    /// # Errors
    /// As [`fit`](Self::fit), or if a code is not as long as `classes`.
    pub fn fit_classes(
        config: &MlpConfig,
        classes: &[usize],
        codes: &[Vec<f32>],
        millis: &[f64],
    ) -> Result<Self, FitError> {
        Ok(Self::fit_left_out(config, classes, codes, millis)?.0)
    }

    /// As [`fit_classes`](Self::fit_classes), and tells what the member and the linear path that have not
    /// seen an architecture say of it.
    ///
    /// # Errors
    /// As [`fit_classes`](Self::fit_classes).
    pub fn fit_left_out(
        config: &MlpConfig,
        classes: &[usize],
        codes: &[Vec<f32>],
        millis: &[f64],
    ) -> Result<(Self, LeftOut), FitError> {
        config.check()?;
        let code_len = check_data(codes, millis, 2 * config.n_members)?;
        if code_len != classes.len() {
            let expected = classes.len();
            return Err(FitError::CodeLength {
                index: 0,
                expected,
                found: code_len,
            });
        }

        let codes: Vec<Vec<f32>> = codes.iter().map(|code| widen(code, classes)).collect();
        let linear = Ridge::fit_cv(&codes, millis, &Ridge::L2_GRID)?;
        let scale = standard_deviation(millis);

        let mut folds: Vec<usize> = (0..codes.len())
            .map(|index| index % config.n_members)
            .collect();
        folds.shuffle(&mut ChaCha8Rng::seed_from_u64(config.seed));

        // What the hidden layers say about architectures that they have not seen, against the residual
        // of a linear path that has not seen them either: the share is the slope between the two.
        let (mut products, mut squares) = (0.0, 0.0);
        let mut members = Vec::with_capacity(config.n_members);
        let mut left_out = vec![(0.0, 0.0); codes.len()];
        for member in 0..config.n_members {
            let seen = |&index: &usize| folds[index] != member;
            let train: Vec<usize> = (0..codes.len()).filter(seen).collect();
            let train_codes: Vec<Vec<f32>> = train.iter().map(|&i| codes[i].clone()).collect();
            let train_millis: Vec<f64> = train.iter().map(|&i| millis[i]).collect();
            let linear = Ridge::fit(&train_codes, &train_millis, f64::from(linear.l2()))?;
            let residual = |index: usize| millis[index] - linear.predict_millis(&codes[index]);

            let targets: Vec<f32> = train
                .iter()
                .map(|&i| (residual(i) / scale) as f32)
                .collect();
            let network = train_network(config, member, &train_codes, &targets)?;

            let mut trace = Trace::default();
            for index in (0..codes.len()).filter(|index| !seen(index)) {
                let said = scale * f64::from(network.forward(&codes[index], &mut trace));
                products += said * residual(index);
                left_out[index] = (millis[index] - residual(index), said);
                squares += said * said;
            }
            members.push(network);
        }
        let share = if squares > 0.0 {
            (products / squares).clamp(0.0, 1.0)
        } else {
            0.0
        };

        for network in &mut members {
            network.scale_output((share * scale / config.n_members as f64) as f32);
            network.fold_inputs(classes, SHARING);
        }
        let left_out = LeftOut {
            predicted: left_out.iter().map(|(l, said)| l + share * said).collect(),
            spread: vec![1.0; codes.len()],
        };
        let mlp = Self {
            linear: linear.fold_inputs(classes, SHARING),
            members,
            share: share as f32,
        };
        Ok((mlp, left_out))
    }

    /// How much of what the hidden layers learnt proved true of architectures that were left out, a
    /// ratio from 0 to 1.
    pub fn share(&self) -> f32 {
        self.share
    }

    /// The numbers of the model: those of its linear path under `linear.`, `share`, and the layers of each
    /// member, `members.M.layers.L.weights` (inputs by outputs) and `.biases`.
    pub fn state(&self) -> State {
        let linear = self.linear.state().into_iter();
        let mut state: State = linear
            .map(|(name, tensor)| (format!("linear.{name}"), tensor))
            .collect();
        state.insert("share".to_owned(), StateTensor::scalar(self.share));
        for (member, network) in self.members.iter().enumerate() {
            network.save(&format!("members.{member}"), &mut state);
        }
        state
    }

    /// The model of a state.
    ///
    /// # Errors
    /// If a tensor is missing, does not fit the others, or holds a number that is not finite.
    pub fn from_state(state: &State) -> Result<Self, StateError> {
        let linear: State = state
            .iter()
            .filter_map(|(name, tensor)| {
                Some((name.strip_prefix("linear.")?.to_owned(), tensor.clone()))
            })
            .collect();
        let linear = Ridge::from_state(&linear)?;
        let mut members = Vec::new();
        loop {
            let prefix = format!("members.{}", members.len());
            // The first member has to be there.
            let there = state
                .keys()
                .any(|name| name.starts_with(&format!("{prefix}.")));
            if !there && !members.is_empty() {
                break;
            }
            members.push(Network::load(&prefix, linear.code_len(), state)?);
        }
        Ok(Self {
            linear,
            members,
            share: StateTensor::find_scalar(state, "share")?,
        })
    }
}

impl LatencyModel for Mlp {
    fn code_len(&self) -> usize {
        self.linear.code_len()
    }

    fn predict_millis(&self, code: &[f32]) -> f64 {
        let mut trace = Trace::default();
        let hidden = self
            .members
            .iter()
            .map(|network| f64::from(network.forward(code, &mut trace)));
        self.linear.predict_millis(code) + hidden.sum::<f64>()
    }

    fn gradient(&self, code: &[f32]) -> (f64, Vec<f32>) {
        let (mut millis, mut grad_code) = self.linear.gradient(code);
        let mut trace = Trace::default();
        for network in &self.members {
            millis += f64::from(network.forward(code, &mut trace));
            network.backward(1.0, &mut trace);
            network.add_grad_input(&trace, &mut grad_code);
        }
        (millis, grad_code)
    }
}

/// The code, then its weighted sum over each class.
fn widen(code: &[f32], classes: &[usize]) -> Vec<f32> {
    let n_classes = classes.iter().max().map_or(0, |last| last + 1);
    let mut wide = code.to_vec();
    wide.resize(code.len() + n_classes, 0.0);
    for (&value, class) in code.iter().zip(classes) {
        wide[code.len() + class] += SHARING * value;
    }
    wide
}

/// Fits a network to targets in units of the latencies' standard deviation, by their mean squared error.
fn train_network(
    config: &MlpConfig,
    member: usize,
    codes: &[Vec<f32>],
    targets: &[f32],
) -> Result<Network, FitError> {
    let mut rng = ChaCha8Rng::seed_from_u64(config.seed);
    rng.set_stream(1 + member as u64);
    let n = codes.len();
    let mean_square = codes
        .iter()
        .flatten()
        .map(|&c| f64::from(c).powi(2))
        .sum::<f64>()
        / n as f64;
    let mut network = Network::new(codes[0].len(), &config.hidden, mean_square, &mut rng);

    let n_steps = n.div_ceil(config.batch_size) * config.n_epochs;
    let mut adam = Adam::new(network.values().len(), config.weight_decay);
    let mut order: Vec<usize> = (0..n).collect();
    let mut grads = vec![0.0; network.values().len()];
    let mut trace = Trace::default();
    let mut step = 0;
    for epoch in 1..=config.n_epochs {
        order.shuffle(&mut rng);
        for batch in order.chunks(config.batch_size) {
            grads.fill(0.0);
            for &index in batch {
                let error = network.forward(&codes[index], &mut trace) - targets[index];
                network.backward(2.0 * error / batch.len() as f32, &mut trace);
                network.add_grads(&codes[index], &trace, &mut grads);
            }
            let phase = std::f64::consts::PI * f64::from(step) / n_steps as f64;
            adam.step(
                config.learning_rate * (1.0 + phase.cos()) / 2.0,
                &grads,
                network.values_mut(),
            );
            step += 1;
        }
        if !network.values().iter().all(|value| value.is_finite()) {
            return Err(FitError::NonFinite { epoch });
        }
    }
    Ok(network)
}

/// The population's; 1 where all values are equal.
fn standard_deviation(values: &[f64]) -> f64 {
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    let deviation = (values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / n).sqrt();
    if deviation > 0.0 { deviation } else { 1.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Codes that choose one of four, three times. Latency is no sum: two choices of 3 cost extra.
    const CLASSES: [usize; 12] = [0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3];

    fn data() -> (Vec<Vec<f32>>, Vec<f64>) {
        (0..64)
            .map(|index| {
                let choices = [index % 4, index / 4 % 4, index / 16];
                let mut code = vec![0.0; 12];
                for (slot, choice) in choices.into_iter().enumerate() {
                    code[4 * slot + choice] = 1.0;
                }
                let n_threes = choices.iter().filter(|&&choice| choice == 3).count();
                let extra = if n_threes >= 2 { 4.0 } else { 0.0 };
                (code, 10.0 + choices.iter().sum::<usize>() as f64 + extra)
            })
            .unzip()
    }

    fn config() -> MlpConfig {
        MlpConfig {
            hidden: vec![12, 8],
            batch_size: 8,
            ..MlpConfig::default()
        }
    }

    fn fitted() -> Mlp {
        let (codes, millis) = data();
        Mlp::fit_classes(&config(), &CLASSES, &codes, &millis).unwrap()
    }

    fn refusal(config: &MlpConfig, n: usize) -> String {
        let (codes, millis) = data();
        Mlp::fit_classes(config, &CLASSES, &codes[..n], &millis[..n])
            .unwrap_err()
            .to_string()
    }

    #[test]
    fn what_is_not_additive_is_learnt_and_shows_on_left_out_folds() {
        let (codes, millis) = data();
        let mean_error = |model: &dyn LatencyModel| {
            let errors = codes
                .iter()
                .zip(&millis)
                .map(|(c, y)| (model.predict_millis(c) - y).abs());
            errors.sum::<f64>() / 64.0
        };
        let mlp = fitted();
        let ridge = Ridge::fit_cv(&codes, &millis, &Ridge::L2_GRID).unwrap();
        assert!(mlp.share() > 0.7, "{}", mlp.share());
        assert!(mean_error(&mlp) < 0.4 * mean_error(&ridge));
    }

    #[test]
    fn the_same_arguments_give_the_same_bits_on_any_thread() {
        let here = fitted();
        let there = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..2).map(|_| scope.spawn(fitted)).collect();
            threads
                .into_iter()
                .map(|thread| thread.join().unwrap())
                .collect::<Vec<_>>()
        });
        assert_eq!(there, [here.clone(), here.clone()]);

        let (codes, millis) = data();
        let other = MlpConfig {
            seed: 1,
            ..config()
        };
        assert_ne!(
            Mlp::fit_classes(&other, &CLASSES, &codes, &millis),
            Ok(here)
        );
    }

    #[test]
    fn the_gradient_is_that_of_finite_differences() {
        let mlp = fitted();
        // Neither a corner nor the middle.
        let code: Vec<f32> = (0..12)
            .map(|index| [0.1, 0.6, 0.0, 0.3, 0.25][index % 5])
            .collect();
        let (millis, grad_code) = mlp.gradient(&code);
        assert_eq!(millis, mlp.predict_millis(&code));
        for (index, grad) in grad_code.into_iter().enumerate() {
            let step = 0.02;
            let at = |step: f32| {
                let mut code = code.clone();
                code[index] += step;
                mlp.predict_millis(&code)
            };
            let expected = (at(step) - at(-step)) / (2.0 * f64::from(step));
            assert!(
                (f64::from(grad) - expected).abs() < 2e-3,
                "{index}: {grad}, {expected}"
            );
        }
    }

    #[test]
    fn a_state_makes_the_same_model() {
        let mlp = fitted();
        let state = mlp.state();
        assert_eq!(Mlp::from_state(&state), Ok(mlp));
        assert_eq!(state["members.3.layers.1.weights"].shape, [12, 8]);
        assert_eq!(state["members.0.layers.2.biases"].shape, [1]);
    }

    #[test]
    fn a_broken_state_is_named() {
        let good = fitted().state();
        let message = |change: &dyn Fn(&mut State)| {
            let mut state = good.clone();
            change(&mut state);
            Mlp::from_state(&state).unwrap_err().to_string()
        };
        assert_eq!(
            message(&|state| state.retain(|name, _| !name.starts_with("members."))),
            "the state has no tensor `members.0.layers.0.weights`"
        );
        assert_eq!(
            message(&|state| drop(state.remove("members.2.layers.1.biases"))),
            "the state has no tensor `members.2.layers.1.biases`"
        );
        assert_eq!(
            message(&|state| drop(state.remove("members.1.layers.2.weights"))),
            "tensor `members.1.layers.1.weights` has shape [12, 8], expected [12, 1]"
        );
        assert_eq!(
            message(&|state| drop(state.remove("linear.weights"))),
            "the state has no tensor `weights`"
        );
    }

    #[test]
    fn what_cannot_be_fitted_is_refused() {
        assert_eq!(
            refusal(&config(), 7),
            "the fit needs at least 8 architectures, there are 7; profile more"
        );
        assert_eq!(
            refusal(
                &MlpConfig {
                    hidden: vec![],
                    ..config()
                },
                64
            ),
            "the number of hidden layers is 0; it must be at least 1"
        );
        assert_eq!(
            refusal(
                &MlpConfig {
                    hidden: vec![8, 0],
                    ..config()
                },
                64
            ),
            "the width of a hidden layer is 0; it must be at least 1"
        );
        assert_eq!(
            refusal(
                &MlpConfig {
                    n_members: 1,
                    ..config()
                },
                64
            ),
            "n_members is 1; it must be at least 2"
        );
        assert_eq!(
            refusal(
                &MlpConfig {
                    learning_rate: -1.0,
                    ..config()
                },
                64
            ),
            "learning_rate is -1; it must be 0 or more"
        );
        assert_eq!(
            refusal(
                &MlpConfig {
                    learning_rate: 1e30,
                    ..config()
                },
                64
            ),
            "a weight is not finite after epoch 1; lower the learning rate"
        );
        let (codes, millis) = data();
        assert_eq!(
            Mlp::fit(&config(), &codes, &millis)
                .unwrap_err()
                .to_string(),
            "code 0 holds 12 numbers, expected 224"
        );
    }

    #[test]
    fn latencies_that_are_all_the_same_are_a_model_too() {
        let (codes, _) = data();
        let mlp = Mlp::fit_classes(&config(), &CLASSES, &codes, &[7.0; 64]).unwrap();
        assert!((mlp.predict_millis(&codes[5]) - 7.0).abs() < 1e-6);
    }
}
