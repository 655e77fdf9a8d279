//! What holds for every operation at every size.

use candle_core::{DType, Device, Result, Tensor, Var};
use kernels::{Conv2dGeometry, Pool2dGeometry};

use super::cases::{Case, TOLERANCES, all, assert_close, rng, tensor, uniform, values};

fn arguments(case: &Case, dtype: DType, device: &Device) -> Result<Vec<Tensor>> {
    case.arguments()
        .iter()
        .zip(&case.shapes)
        .map(|(v, shape)| tensor(v, shape, dtype, device))
        .collect()
}

fn agrees_with_the_oracle(dtype: DType, tolerance: f64, device: &Device) -> Result<()> {
    for case in all() {
        let outcome = case.run(&arguments(&case, dtype, device)?)?;
        let expected = (case.oracle)(&case.arguments(), &case.grad_y(outcome.y.len()));
        assert_close(&case.label, &outcome.y, &expected.y, tolerance);
        for (index, (actual, expected)) in outcome.grads.iter().zip(&expected.grads).enumerate() {
            assert_close(
                &format!("{}, gradient of argument {index}", case.label),
                actual,
                expected,
                tolerance,
            );
        }
    }
    Ok(())
}

pub(crate) fn agrees_with_the_oracle_in_f32(device: &Device) -> Result<()> {
    agrees_with_the_oracle(DType::F32, TOLERANCES.f32, device)
}

pub(crate) fn agrees_with_the_oracle_in_f64(device: &Device) -> Result<()> {
    agrees_with_the_oracle(DType::F64, TOLERANCES.f64, device)
}

/// Along a random direction of each argument in turn.
pub(crate) fn gradients_are_those_of_finite_differences(device: &Device) -> Result<()> {
    const STEP: f64 = 1e-5;
    for case in all() {
        let arguments = arguments(&case, DType::F64, device)?;
        let grads = case.run(&arguments)?.grads;
        for (index, grad) in grads.iter().enumerate() {
            let direction = uniform(&mut rng(&format!("direction {}", case.label)), grad.len());
            let loss_at = |step: f64| -> Result<f64> {
                let mut moved = arguments.clone();
                let shift = tensor(&direction, &case.shapes[index], DType::F64, device)?;
                moved[index] = (&moved[index] + (shift * step)?)?;
                let y = values(&(case.forward)(&moved)?)?;
                Ok(inner(&y, &case.grad_y(y.len())))
            };
            let difference = (loss_at(STEP)? - loss_at(-STEP)?) / (2.0 * STEP);
            let (slope, size) = (
                inner(grad, &direction),
                grad.iter().map(|g| g.abs()).sum::<f64>(),
            );
            let error = (slope - difference).abs() / size.max(1.0);
            assert!(
                error <= TOLERANCES.finite_differences,
                "{}, argument {index}: slope {slope}, finite difference {difference}",
                case.label
            );
        }
    }
    Ok(())
}

/// `<A x, g> = <x, A* g>`.
pub(crate) fn linear_operations_have_adjoint_gradients(device: &Device) -> Result<()> {
    let cases = all();
    let linear: Vec<_> = cases.iter().filter(|case| case.is_linear).collect();
    assert!(!linear.is_empty());
    for case in linear {
        let outcome = case.run(&arguments(case, DType::F64, device)?)?;
        let forward = inner(&outcome.y, &case.grad_y(outcome.y.len()));
        let backward = inner(&outcome.grads[0], &case.arguments()[0]);
        let size = outcome.y.len().max(1) as f64;
        assert!(
            (forward - backward).abs() / size <= TOLERANCES.adjoint,
            "{}: {forward} and {backward}",
            case.label
        );
    }
    Ok(())
}

/// Arguments that are slices of larger tensors or transposed, and gradients that arrive transposed.
pub(crate) fn views_are_as_good_as_copies(device: &Device) -> Result<()> {
    for case in all() {
        let arguments = arguments(&case, DType::F32, device)?;
        let expected = case.run(&arguments)?;
        let variables: Vec<Var> = arguments
            .iter()
            .map(|a| Var::from_tensor(&disguised(a)?))
            .collect::<Result<_>>()?;
        let views: Vec<Tensor> = variables
            .iter()
            .zip(&arguments)
            .map(|(v, a)| revealed(v, a.dims()))
            .collect::<Result<_>>()?;
        let y = (case.forward)(&views)?;
        assert_eq!(values(&y)?, expected.y, "{}", case.label);
        let last = y.rank() - 1;
        let grad_y = tensor(&case.grad_y(y.elem_count()), y.dims(), DType::F32, device)?;
        let loss = (y.transpose(0, last)? * grad_y.transpose(0, last)?)?.sum_all()?;
        let grads = loss.backward()?;
        for (index, (variable, expected)) in variables.iter().zip(&expected.grads).enumerate() {
            let grad = revealed(
                grads.get(variable).expect("a gradient"),
                arguments[index].dims(),
            )?;
            assert_eq!(
                &values(&grad)?,
                expected,
                "{}, gradient of argument {index}",
                case.label
            );
        }
    }
    Ok(())
}

/// A tensor that holds `t` transposed, between other elements.
fn disguised(t: &Tensor) -> Result<Tensor> {
    if t.rank() == 0 {
        return t.reshape(1)?.pad_with_zeros(0, 1, 1);
    }
    t.transpose(0, t.rank() - 1)?
        .pad_with_zeros(0, 1, 2)?
        .contiguous()
}

/// The view of `disguised` that is the original.
fn revealed(disguised: &Tensor, dims: &[usize]) -> Result<Tensor> {
    match dims {
        [] => disguised.narrow(0, 1, 1)?.reshape(()),
        [.., last] => disguised.narrow(0, 1, *last)?.transpose(0, dims.len() - 1),
    }
}

pub(crate) fn untracked_arguments_get_no_gradient(device: &Device) -> Result<()> {
    for case in all() {
        let arguments = arguments(&case, DType::F32, device)?;
        let expected = case.run(&arguments)?;
        for (tracked, expected) in expected.grads.iter().enumerate() {
            let variable = Var::from_tensor(&arguments[tracked])?;
            let mut inputs = arguments.clone();
            inputs[tracked] = variable.as_tensor().clone();
            let y = (case.forward)(&inputs)?;
            let grad_y = tensor(&case.grad_y(y.elem_count()), y.dims(), DType::F32, device)?;
            let grads = (y * grad_y)?.sum_all()?.backward()?;
            for (index, input) in inputs.iter().enumerate() {
                assert_eq!(
                    grads.get(input).is_some(),
                    index == tracked,
                    "{}, argument {index}",
                    case.label
                );
            }
            assert_eq!(
                &values(grads.get(&variable).expect("a gradient"))?,
                expected,
                "{}",
                case.label
            );
        }
    }
    Ok(())
}

/// To the last bit.
pub(crate) fn results_do_not_depend_on_the_number_of_threads(device: &Device) -> Result<()> {
    let [one, three] = [1, 3].map(|n| {
        rayon::ThreadPoolBuilder::new()
            .num_threads(n)
            .build()
            .expect("a pool")
    });
    for case in all() {
        let arguments = arguments(&case, DType::F32, device)?;
        let run = |pool: &rayon::ThreadPool| pool.install(|| case.run(&arguments));
        assert_eq!(run(&one)?, run(&three)?, "{}", case.label);
    }
    Ok(())
}

/// A batch without images gives a result without images, and weights get a zero gradient.
pub(crate) fn empty_batches_pass(device: &Device) -> Result<()> {
    let x = Var::zeros((0, 4, 8, 8), DType::F32, device)?;
    let variable = |shape: &[usize]| Var::zeros(shape, DType::F32, device);
    let (depthwise, pointwise, dense) = (
        variable(&[4, 1, 3, 3])?,
        variable(&[6, 4, 1, 1])?,
        variable(&[6, 4, 3, 3])?,
    );
    let (weight, channel) = (variable(&[1])?, variable(&[4])?);
    let geometry = Conv2dGeometry {
        padding: 1,
        stride: 2,
        dilation: 1,
    };
    let pool = Pool2dGeometry {
        kernel: 3,
        padding: 1,
        stride: 2,
    };
    let results = [
        (kernels::relu(&x)?, [0, 4, 8, 8], vec![]),
        (
            kernels::depthwise_conv2d(&x, &depthwise, geometry)?,
            [0, 4, 4, 4],
            vec![&depthwise],
        ),
        (
            kernels::pointwise_conv2d(&x, &pointwise)?,
            [0, 6, 8, 8],
            vec![&pointwise],
        ),
        (
            kernels::conv2d(&x, &dense, geometry)?,
            [0, 6, 4, 4],
            vec![&dense],
        ),
        (kernels::max_pool2d(&x, pool)?, [0, 4, 4, 4], vec![]),
        (kernels::avg_pool2d(&x, pool)?, [0, 4, 4, 4], vec![]),
        (
            kernels::batch_norm_eval(
                &x,
                &channel.detach(),
                &channel.detach(),
                Some((&channel, &channel)),
                1e-5,
            )?,
            [0, 4, 8, 8],
            vec![&channel],
        ),
        (
            kernels::weighted_add(&x, &x, &weight)?,
            [0, 4, 8, 8],
            vec![&weight],
        ),
        (kernels::scale(&x, &weight)?, [0, 4, 8, 8], vec![&weight]),
    ];
    for (y, shape, weights) in results {
        assert_eq!(y.dims(), shape);
        let grads = y.sum_all()?.backward()?;
        assert_eq!(grads.get(&x).expect("a gradient of x").dims(), x.dims());
        for weight in weights {
            let grad = grads.get(weight).expect("a gradient of the weight");
            assert_eq!(grad.dims(), weight.dims());
            assert!(values(grad)?.iter().all(|&grad| grad == 0.0));
        }
    }
    Ok(())
}

fn inner(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}
