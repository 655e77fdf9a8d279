//! Adam with decoupled weight decay (Kingma and Ba 2015; Loshchilov and Hutter 2019).

const BETAS: [f32; 2] = [0.9, 0.999];
const EPS: f32 = 1e-8;

/// The moments of all parameters.
pub(crate) struct Adam {
    first: Vec<f32>,
    second: Vec<f32>,
    n_steps: i32,
    weight_decay: f32,
}

impl Adam {
    pub(crate) fn new(n_parameters: usize, weight_decay: f64) -> Self {
        Self {
            first: vec![0.0; n_parameters],
            second: vec![0.0; n_parameters],
            n_steps: 0,
            weight_decay: weight_decay as f32,
        }
    }

    pub(crate) fn step(&mut self, learning_rate: f64, grads: &[f32], parameters: &mut [f32]) {
        self.n_steps = self.n_steps.saturating_add(1);
        let [beta1, beta2] = BETAS;
        let unbias = BETAS.map(|beta| 1.0 / (1.0 - beta.powi(self.n_steps)));
        let rate = learning_rate as f32;
        let keep = 1.0 - rate * self.weight_decay;
        let moments = self.first.iter_mut().zip(&mut self.second);
        for ((p, &g), (first, second)) in parameters.iter_mut().zip(grads).zip(moments) {
            *first = beta1 * *first + (1.0 - beta1) * g;
            *second = beta2 * *second + (1.0 - beta2) * g * g;
            *p = keep * *p - rate * (*first * unbias[0]) / ((*second * unbias[1]).sqrt() + EPS);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_step_has_the_length_of_the_learning_rate() {
        let mut parameters = [1.0, 1.0, 1.0];
        Adam::new(3, 0.0).step(0.1, &[5.0, -0.01, 0.0], &mut parameters);
        assert_eq!(
            parameters.map(|p| (p * 1e4).round()),
            [9000.0, 11000.0, 10000.0]
        );
    }

    #[test]
    fn decay_does_not_pass_through_the_moments() {
        let mut parameters = [2.0];
        let mut adam = Adam::new(1, 0.5);
        adam.step(0.1, &[0.0], &mut parameters);
        adam.step(0.1, &[0.0], &mut parameters);
        assert!((parameters[0] - 2.0 * 0.95f32.powi(2)).abs() < 1e-6);
    }
}
