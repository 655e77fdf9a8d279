//! What a bilevel search needs beyond two gradients: the second-order gradient of alpha, and how sharply
//! the loss bends in alpha.
//!
//! Both look at the losses through closures and leave every weight and buffer as it was.

use candle_core::{Result, Tensor};
use collective::Share;

use crate::Parameters;
use crate::optimizer::{Gradients, Sgd};

/// The gradient of L_val(w'(alpha), alpha) in alpha, where w' is one step of SGD on the training loss
/// away (DARTS, section 2.3):
///
/// ```text
/// w'       = w - eta (momentum * buffer + grad_w L_train + decay * w)
/// gradient = grad_alpha L_val(w') - eta (grad_alpha L_train(w+) - grad_alpha L_train(w-)) / 2 h
/// w±       = w ± h v,  v = grad_w' L_val(w'),  h = 0.01 / |v|
/// ```
///
/// Both closures must track weights and alpha; each is called anew after weights or alpha have changed.
/// Returns L_val(w') and the gradient. With a share of the batches, the losses are this rank's part of theirs (see
/// [`Gradients::summed`]), and so is the loss that comes back; the gradient is that of all ranks.
///
/// # Errors
/// If the tensor library fails, or a rank cannot be reached.
pub fn unrolled_gradient(
    network: &Parameters,
    architecture: &Parameters,
    sgd: &Sgd,
    learning_rate: f64,
    share: Option<&Share>,
    train_loss: impl Fn() -> Result<Tensor>,
    valid_loss: impl Fn() -> Result<Tensor>,
) -> Result<(Tensor, Gradients)> {
    let before = network.state()?;
    let restore = || network.restore(&before);
    let summed = |gradients: Gradients| gradients.summed(share);

    let gradients = summed(Gradients::collect(network, &mut train_loss()?.backward()?))?;
    let mut lookahead = Sgd::of_state(sgd)?;
    lookahead.step(network, &gradients, learning_rate, 1.0)?;

    let loss = valid_loss()?;
    let mut store = loss.backward()?;
    // What the loss was computed from need not wait for the two passes below.
    let loss = loss.detach();
    let direct = summed(Gradients::collect(architecture, &mut store))?;
    let direction = summed(Gradients::collect(network, &mut store))?;
    drop(store);
    restore()?;

    let norm = direction.global_norm()?;
    if norm == 0.0 {
        return Ok((loss, direct));
    }
    let h = 0.01 / norm;
    let at = |offset: f64| {
        network.shift(&direction, offset)?;
        let gradients = Gradients::collect(architecture, &mut train_loss()?.backward()?);
        restore()?;
        summed(gradients)
    };
    let (above, below) = (at(h)?, at(-h)?);
    let bend = above.plus(&below, -1.0)?;
    let gradients = direct.plus(&bend, -learning_rate / (2.0 * h))?;
    Ok((loss, gradients))
}

/// The eigenvalue of largest magnitude of the Hessian of a loss in the parameters, by power iteration;
/// the Hessian acts on a vector by central differences of the gradient.
///
/// The loss must track the parameters. It starts from the gradient, so no random numbers are drawn; a
/// loss without gradient there has the eigenvalue 0. `share` as for [`unrolled_gradient`].
///
/// # Errors
/// If the tensor library fails.
pub fn dominant_eigenvalue(
    parameters: &Parameters,
    n_iterations: usize,
    share: Option<&Share>,
    loss: impl Fn() -> Result<Tensor>,
) -> Result<f64> {
    /// The length of a step, the parameters taken as one vector: long against the noise of f32, short
    /// against the softmax.
    const STEP: f64 = 0.05;
    let gradient = || Gradients::collect(parameters, &mut loss()?.backward()?).summed(share);
    let before = parameters.state()?;
    let mut direction = gradient()?;
    let mut eigenvalue = 0.0;
    for _ in 0..n_iterations {
        let norm = direction.global_norm()?;
        if norm == 0.0 {
            return Ok(0.0);
        }
        let at = |offset: f64| {
            parameters.shift(&direction, offset / norm)?;
            let gradients = gradient()?;
            parameters.restore(&before)?;
            Ok::<_, candle_core::Error>(gradients)
        };
        let (above, below) = (at(STEP)?, at(-STEP)?);
        let product = above.plus(&below, -1.0)?.times(0.5 / STEP)?;
        // Rayleigh's quotient: the direction is a unit vector.
        eigenvalue = direction.dot(&product)? / norm;
        direction = product;
    }
    Ok(eigenvalue)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use candle_core::{DType, Device, Var};

    use super::*;

    fn parameters(name: &str, values: &[f64]) -> (Parameters, Var) {
        let var = Var::from_tensor(&Tensor::new(values, &Device::Cpu).unwrap()).unwrap();
        let weights = BTreeMap::from([(name.to_owned(), var.clone())]);
        (Parameters::from_weights(weights), var)
    }

    fn values(tensor: &Tensor) -> Vec<f64> {
        tensor.to_vec1().unwrap()
    }

    /// L_train = sum (w - alpha)² / 2 + sum w² alpha / 2, L_val = sum (w - 1)² / 2 + 0.3 sum alpha²:
    /// everything has a closed form.
    #[test]
    fn the_unrolled_gradient_of_a_small_problem_is_exact() {
        let (w0, alpha0) = ([0.7, -0.4], [0.2, 0.5]);
        let (network, w) = parameters("w", &w0);
        let (architecture, alpha) = parameters("alpha", &alpha0);
        let (eta, momentum, decay) = (0.1, 0.9, 0.01);
        let mut sgd = Sgd::new(momentum, decay);
        let buffer = [0.3, -0.2];
        let tensor = Tensor::new(&buffer, &Device::Cpu).unwrap();
        sgd.load(&BTreeMap::from([("w".to_owned(), tensor)]))
            .unwrap();
        let train = || {
            let (w, a) = (w.as_tensor(), alpha.as_tensor());
            let near = ((w - a)?.sqr()?.sum_all()? * 0.5)?;
            near + ((w.sqr()? * a)?.sum_all()? * 0.5)?
        };
        let valid = || {
            let (w, a) = (w.as_tensor(), alpha.as_tensor());
            let near = ((w - 1.0)?.sqr()?.sum_all()? * 0.5)?;
            near + (a.sqr()?.sum_all()? * 0.3)?
        };
        let (loss, gradients) =
            unrolled_gradient(&network, &architecture, &sgd, eta, None, train, valid).unwrap();

        let mut expected_loss = 0.0;
        for i in 0..2 {
            let (w, a) = (w0[i], alpha0[i]);
            let step = momentum * buffer[i] + (w - a + w * a) + decay * w;
            let ahead = w - eta * step;
            expected_loss += 0.5 * (ahead - 1.0).powi(2) + 0.3 * a * a;
            // dw'/dalpha = -eta (w - 1)
            let expected = 0.6 * a + (ahead - 1.0) * -eta * (w - 1.0);
            let found = values(gradients.get("alpha").unwrap())[i];
            assert!(
                (found - expected).abs() < 1e-9,
                "{found}, expected {expected}"
            );
            // Without the second-order term it would be wrong by far.
            assert!((found - 0.6 * a).abs() > 1e-3);
        }
        let loss = loss
            .to_dtype(DType::F64)
            .unwrap()
            .to_scalar::<f64>()
            .unwrap();
        assert!((loss - expected_loss).abs() < 1e-12);
        assert_eq!(values(w.as_tensor()), w0);
        assert_eq!(values(&sgd.state().unwrap()["w"]), buffer);
    }

    #[test]
    fn the_dominant_eigenvalue_of_a_quadratic_keeps_its_sign() {
        // [[2, 1], [1, 2]] has 3 and 1; its negative -3 and -1.
        let (parameters, x) = parameters("x", &[0.9, -0.2]);
        for sign in [1.0, -1.0] {
            let loss = || {
                let x = x.as_tensor();
                let squares = (x.sqr()?.sum_all()? * 0.5)?;
                let sum = (x.sum_all()?.sqr()? * 0.5)?;
                (squares + sum)? * sign
            };
            let found = dominant_eigenvalue(&parameters, 12, None, loss).unwrap();
            assert!((found - 3.0 * sign).abs() < 1e-6, "{found}");
        }
        assert_eq!(values(x.as_tensor()), [0.9, -0.2]);
        let flat = || x.as_tensor().sum_all()? * 0.0;
        assert_eq!(
            dominant_eigenvalue(&parameters, 5, None, flat).unwrap(),
            0.0
        );
    }
}
