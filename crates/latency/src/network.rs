//! A fully connected network with one output: forward, backward, state.

use rand::Rng;
use rand_distr::{Distribution, StandardNormal};

use crate::model::{State, StateError, StateTensor};

/// Layers z = b + x W, with x · sigmoid(x) after all but the last, whose width is 1.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Network {
    /// The number of inputs, then the widths of the layers; the last is 1.
    widths: Vec<usize>,
    /// Layer by layer: the weights W, `inputs outputs`, then the biases b, `outputs`.
    values: Vec<f32>,
}

/// What a forward pass leaves for the backward pass, and what that leaves for the gradients.
#[derive(Default)]
pub(crate) struct Trace {
    layers: Vec<LayerTrace>,
}

#[derive(Default)]
struct LayerTrace {
    /// The layer's output.
    output: Vec<f32>,
    /// The derivative of the output with respect to z.
    slope: Vec<f32>,
    /// The derivative of the network's output with respect to z, times a factor.
    grad_z: Vec<f32>,
}

impl Network {
    /// A network of which the output is 0 until it is trained. `mean_square` is the expected squared
    /// length of an input.
    pub(crate) fn new(
        n_inputs: usize,
        hidden: &[usize],
        mean_square: f64,
        rng: &mut impl Rng,
    ) -> Self {
        let widths: Vec<usize> = std::iter::once(n_inputs)
            .chain(hidden.iter().copied())
            .chain([1])
            .collect();
        let mut network = Self {
            values: vec![0.0; n_values(&widths)],
            widths,
        };
        for layer in 0..hidden.len() {
            let variance = if layer == 0 {
                mean_square
            } else {
                network.widths[layer] as f64
            };
            let scale = (1.0 / variance.max(f64::MIN_POSITIVE)).sqrt() as f32;
            let weights = network.weights(layer);
            for weight in &mut network.values[weights] {
                let normal: f32 = StandardNormal.sample(rng);
                *weight = scale * normal;
            }
        }
        network
    }

    pub(crate) fn values(&self) -> &[f32] {
        &self.values
    }

    pub(crate) fn values_mut(&mut self) -> &mut [f32] {
        &mut self.values
    }

    fn n_layers(&self) -> usize {
        self.widths.len() - 1
    }

    /// Where the weights of a layer stand.
    fn weights(&self, layer: usize) -> std::ops::Range<usize> {
        let start = n_values(&self.widths[..=layer]);
        start..start + self.widths[layer] * self.widths[layer + 1]
    }

    /// Where the biases of a layer stand.
    fn biases(&self, layer: usize) -> std::ops::Range<usize> {
        let start = self.weights(layer).end;
        start..start + self.widths[layer + 1]
    }

    /// The output for an input.
    ///
    /// # Panics
    /// If the input has another length than the network expects.
    pub(crate) fn forward(&self, input: &[f32], trace: &mut Trace) -> f32 {
        assert_eq!(input.len(), self.widths[0], "length of the code");
        trace
            .layers
            .resize_with(self.n_layers(), LayerTrace::default);
        for layer in 0..self.n_layers() {
            let (before, rest) = trace.layers.split_at_mut(layer);
            let input = before.last().map_or(input, |below| &below.output);
            let LayerTrace { output, slope, .. } = &mut rest[0];

            output.clear();
            output.extend_from_slice(&self.values[self.biases(layer)]);
            let rows = self.values[self.weights(layer)].chunks_exact(output.len());
            for (&x, row) in input.iter().zip(rows) {
                // Codes are mostly zeros.
                if x != 0.0 {
                    add_scaled(output, x, row);
                }
            }
            slope.clear();
            if layer + 1 < self.n_layers() {
                slope.extend(output.iter_mut().map(activate));
            } else {
                slope.resize(output.len(), 1.0);
            }
        }
        trace.layers[self.n_layers() - 1].output[0]
    }

    /// Prepares the gradients of `grad_output` times the output of the last forward pass.
    pub(crate) fn backward(&self, grad_output: f32, trace: &mut Trace) {
        for layer in (0..self.n_layers()).rev() {
            let (rest, above) = trace.layers.split_at_mut(layer + 1);
            let LayerTrace { slope, grad_z, .. } = &mut rest[layer];
            grad_z.clear();
            match above.first() {
                None => grad_z.push(grad_output),
                Some(above) => {
                    let rows =
                        self.values[self.weights(layer + 1)].chunks_exact(above.grad_z.len());
                    grad_z.extend(
                        rows.zip(slope)
                            .map(|(row, slope)| *slope * dot(row, &above.grad_z)),
                    );
                }
            }
        }
    }

    /// Adds the gradient of the input.
    pub(crate) fn add_grad_input(&self, trace: &Trace, grad_input: &mut [f32]) {
        let grad_z = &trace.layers[0].grad_z;
        let rows = self.values[self.weights(0)].chunks_exact(grad_z.len());
        for (grad, row) in grad_input.iter_mut().zip(rows) {
            *grad += dot(row, grad_z);
        }
    }

    /// Adds the gradients of the network's own values, laid out as [`values`](Self::values).
    pub(crate) fn add_grads(&self, input: &[f32], trace: &Trace, grads: &mut [f32]) {
        for (layer, LayerTrace { grad_z, .. }) in trace.layers.iter().enumerate() {
            let input = if layer == 0 {
                input
            } else {
                &trace.layers[layer - 1].output
            };
            let rows = grads[self.weights(layer)].chunks_exact_mut(grad_z.len());
            for (&x, row) in input.iter().zip(rows) {
                if x != 0.0 {
                    add_scaled(row, x, grad_z);
                }
            }
            add_scaled(&mut grads[self.biases(layer)], 1.0, grad_z);
        }
    }

    /// Multiplies the output by a factor from now on.
    pub(crate) fn scale_output(&mut self, factor: f32) {
        let last = self.n_layers() - 1;
        let start = self.weights(last).start;
        self.values[start..]
            .iter_mut()
            .for_each(|value| *value *= factor);
    }

    /// The same function of a shorter input: the inputs behind `classes.len()` were `factor` times the
    /// sums of the others over their classes.
    pub(crate) fn fold_inputs(&mut self, classes: &[usize], factor: f32) {
        let n_outputs = self.widths[1];
        let (mut kept, rest) = (self.values.clone(), classes.len() * n_outputs);
        let sums = kept.drain(rest..self.weights(0).end).collect::<Vec<f32>>();
        for (row, class) in kept.chunks_exact_mut(n_outputs).zip(classes) {
            add_scaled(row, factor, &sums[class * n_outputs..][..n_outputs]);
        }
        self.widths[0] = classes.len();
        self.values = kept;
    }

    pub(crate) fn save(&self, prefix: &str, state: &mut State) {
        for layer in 0..self.n_layers() {
            let name = format!("{prefix}.layers.{layer}");
            let shape = self.widths[layer..][..2].to_vec();
            let weights = StateTensor::new(shape, self.values[self.weights(layer)].to_vec());
            let biases = StateTensor::vector(self.values[self.biases(layer)].to_vec());
            state.insert(format!("{name}.weights"), weights);
            state.insert(format!("{name}.biases"), biases);
        }
    }

    /// The network that [`save`](Self::save) left.
    pub(crate) fn load(prefix: &str, n_inputs: usize, state: &State) -> Result<Self, StateError> {
        let mut widths = vec![n_inputs];
        let mut values = Vec::new();
        loop {
            let layer = widths.len() - 1;
            let name = |layer: usize, what: &str| format!("{prefix}.layers.{layer}.{what}");
            let is_last = !state.contains_key(&name(layer + 1, "weights"));

            let weights_name = name(layer, "weights");
            let weights = StateTensor::find(state, &weights_name)?;
            let axes = [Some(widths[layer]), is_last.then_some(1)];
            values.extend_from_slice(weights.expect_axes(&weights_name, &axes)?);
            let width = weights.shape[1];

            let biases_name = name(layer, "biases");
            let biases = StateTensor::find(state, &biases_name)?;
            values.extend_from_slice(biases.expect_axes(&biases_name, &[Some(width)])?);

            widths.push(width);
            if is_last {
                return Ok(Self { widths, values });
            }
        }
    }
}

/// The number of values of layers of these widths.
fn n_values(widths: &[usize]) -> usize {
    widths.windows(2).map(|pair| (pair[0] + 1) * pair[1]).sum()
}

/// x · sigmoid(x) in place; returns its derivative at x.
fn activate(x: &mut f32) -> f32 {
    let sigmoid = 1.0 / (1.0 + (-*x).exp());
    let slope = sigmoid * (1.0 + *x * (1.0 - sigmoid));
    *x *= sigmoid;
    slope
}

fn add_scaled(sum: &mut [f32], factor: f32, values: &[f32]) {
    for (sum, value) in sum.iter_mut().zip(values) {
        *sum += factor * value;
    }
}

/// A dot product in eight partial sums, which the compiler can keep in vector registers.
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let (a_chunks, a_rest) = a.as_chunks::<8>();
    let (b_chunks, b_rest) = b.as_chunks::<8>();
    let mut sums = [0.0; 8];
    for (a, b) in a_chunks.iter().zip(b_chunks) {
        for lane in 0..8 {
            sums[lane] += a[lane] * b[lane];
        }
    }
    let rest: f32 = a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum();
    sums.iter().sum::<f32>() + rest
}

#[cfg(test)]
mod tests {
    use rand::{RngExt, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    use super::*;

    const N_INPUTS: usize = 5;

    fn network(hidden: &[usize]) -> Network {
        let mut rng = ChaCha8Rng::seed_from_u64(3);
        let mut network = Network::new(N_INPUTS, hidden, 2.0, &mut rng);
        // No value may be 0, or its gradient path goes untested.
        for value in network.values_mut() {
            *value += 0.3 * (rng.random::<f32>() - 0.5);
        }
        network
    }

    const INPUT: [f32; N_INPUTS] = [0.7, 0.0, -0.4, 1.0, 0.2];

    /// Central differences of a smooth function in f32: good to some 1e-4.
    fn slope(f: impl Fn(f32) -> f32) -> f32 {
        let step = 0.02;
        let central = |step: f32| (f(step) - f(-step)) / (2.0 * step);
        // Richardson's extrapolation takes the error of the second order out.
        (4.0 * central(step) - central(2.0 * step)) / 3.0
    }

    #[test]
    fn a_new_network_says_nothing() {
        let mut rng = ChaCha8Rng::seed_from_u64(3);
        let network = Network::new(N_INPUTS, &[7, 3], 2.0, &mut rng);
        assert_eq!(network.values().len(), 6 * 7 + 8 * 3 + 4);
        assert_eq!(network.forward(&INPUT, &mut Trace::default()), 0.0);
    }

    #[test]
    fn the_output_by_hand() {
        let network = Network {
            widths: vec![1, 1, 1],
            values: vec![2.0, 1.0, 3.0, 0.5],
        };
        // z = 1 + 2 x = 3, its activation 3 / (1 + e^-3), the output 0.5 + 3 of that.
        let output = network.forward(&[1.0], &mut Trace::default());
        assert!((output - (0.5 + 9.0 / (1.0 + (-3.0f32).exp()))).abs() < 1e-6);
    }

    #[test]
    fn gradients_are_those_of_finite_differences() {
        for hidden in [&[9][..], &[11, 8], &[4, 3, 2]] {
            let network = network(hidden);
            let mut trace = Trace::default();
            network.forward(&INPUT, &mut trace);
            network.backward(2.0, &mut trace);

            let mut grad_input = vec![0.0; N_INPUTS];
            network.add_grad_input(&trace, &mut grad_input);
            for (index, grad) in grad_input.into_iter().enumerate() {
                let expected = 2.0
                    * slope(|step| {
                        let mut input = INPUT;
                        input[index] += step;
                        network.forward(&input, &mut Trace::default())
                    });
                assert!(
                    (grad - expected).abs() < 1e-3,
                    "input {index}: {grad}, {expected}"
                );
            }

            let mut grads = vec![0.0; network.values().len()];
            network.add_grads(&INPUT, &trace, &mut grads);
            for (index, grad) in grads.into_iter().enumerate() {
                let expected = 2.0
                    * slope(|step| {
                        let mut network = network.clone();
                        network.values_mut()[index] += step;
                        network.forward(&INPUT, &mut Trace::default())
                    });
                assert!(
                    (grad - expected).abs() < 1e-3,
                    "value {index}: {grad}, {expected}"
                );
            }
        }
    }

    #[test]
    fn folding_the_sums_in_changes_nothing() {
        let mut network = network(&[6, 4]);
        let (code, classes) = ([0.5, 0.25, 2.0], [0, 1, 0]);
        let wide = [0.5, 0.25, 2.0, 3.0 * 2.5, 3.0 * 0.25];
        let before = network.forward(&wide, &mut Trace::default());
        network.fold_inputs(&classes, 3.0);
        let after = network.forward(&code, &mut Trace::default());
        assert!((before - after).abs() < 1e-5, "{before}, {after}");
    }

    #[test]
    fn scaling_scales_the_output() {
        let mut network = network(&[6, 4]);
        let before = network.forward(&INPUT, &mut Trace::default());
        network.scale_output(-2.0);
        assert_eq!(
            network.forward(&INPUT, &mut Trace::default()),
            -2.0 * before
        );
    }

    #[test]
    fn a_state_makes_the_same_network() {
        for hidden in [&[9][..], &[1, 8], &[4, 3, 2]] {
            let network = network(hidden);
            let mut state = State::new();
            network.save("m", &mut state);
            assert_eq!(Network::load("m", N_INPUTS, &state), Ok(network));
        }
    }
}
