//! Small results worked out by hand.

use candle_core::{DType, Device, Result, Tensor, Var};
use kernels::{Conv2dGeometry, Pool2dGeometry, Precision};

use super::cases::{self, assert_close, values};

const POOL: Pool2dGeometry = Pool2dGeometry {
    kernel: 3,
    padding: 1,
    stride: 1,
};

pub(crate) fn relu_is_flat_at_zero(device: &Device) -> Result<()> {
    let x = Var::new(&[-1.0f32, -0.0, 0.0, 2.0, f32::NAN], device)?;
    let y = kernels::relu(&x)?;
    assert_eq!(&values(&y)?[..4], [0.0, 0.0, 0.0, 2.0]);
    assert!(values(&y)?[4].is_nan());
    let grads = y.backward()?;
    assert_eq!(
        values(grads.get(&x).expect("a gradient"))?,
        [0.0, 0.0, 0.0, 1.0, 1.0]
    );
    Ok(())
}

pub(crate) fn max_pool_prefers_the_first_maximum(device: &Device) -> Result<()> {
    // All nine windows of the zeros tie: each gives its gradient to its upper left pixel that is not padding.
    let x = Var::zeros((1, 1, 3, 3), DType::F32, device)?;
    let grads = kernels::max_pool2d(&x, POOL)?.backward()?;
    assert_eq!(
        values(grads.get(&x).expect("a gradient"))?,
        [4.0, 2.0, 0.0, 2.0, 1.0, 0.0, 0.0, 0.0, 0.0]
    );
    // Negative numbers win over the padding.
    let x = Var::new(&[[[[-4.0f32, -3.0], [-2.0, -5.0]]]], device)?;
    let y = kernels::max_pool2d(&x, Pool2dGeometry { stride: 2, ..POOL })?;
    assert_eq!(values(&y)?, [-2.0]);
    let grads = y.backward()?;
    assert_eq!(
        values(grads.get(&x).expect("a gradient"))?,
        [0.0, 0.0, 1.0, 0.0]
    );
    // So does negative infinity, to which the gradient must find its way.
    let x = Var::new(&[[[[f32::NEG_INFINITY; 2]; 2]]], device)?;
    let y = kernels::max_pool2d(&x, POOL)?;
    assert_eq!(values(&y)?, [f64::NEG_INFINITY; 4]);
    let grads = y.backward()?;
    assert_eq!(
        values(grads.get(&x).expect("a gradient"))?,
        [4.0, 0.0, 0.0, 0.0]
    );
    Ok(())
}

pub(crate) fn max_pool_hands_on_nan(device: &Device) -> Result<()> {
    let nan = f32::NAN;
    let x = Var::new(
        &[[[[5.0f32, nan, 7.0], [1.0, nan, 9.0], [0.0, 0.0, 0.0]]]],
        device,
    )?;
    let y = kernels::max_pool2d(&x, Pool2dGeometry { padding: 0, ..POOL })?;
    assert!(values(&y)?[0].is_nan());
    let grads = y.backward()?;
    let last_nan = [0.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0];
    assert_eq!(values(grads.get(&x).expect("a gradient"))?, last_nan);
    Ok(())
}

pub(crate) fn average_leaves_the_padding_out(device: &Device) -> Result<()> {
    let x = Var::new(
        &[[[[1.0f32, 2.0, 3.0], [4.0, 5.0, 6.0], [7.0, 8.0, 9.0]]]],
        device,
    )?;
    let y = kernels::avg_pool2d(&x, POOL)?;
    assert_close(
        "average",
        &values(&y)?,
        &[3.0, 3.5, 4.0, 4.5, 5.0, 5.5, 6.0, 6.5, 7.0],
        1e-6,
    );
    let grads = kernels::avg_pool2d(&x, Pool2dGeometry { stride: 2, ..POOL })?.backward()?;
    // Four corner windows of four pixels each.
    let expected = [0.25, 0.5, 0.25, 0.5, 1.0, 0.5, 0.25, 0.5, 0.25];
    assert_close(
        "average",
        &values(grads.get(&x).expect("a gradient"))?,
        &expected,
        1e-6,
    );
    Ok(())
}

pub(crate) fn batch_norm_normalises_each_channel(device: &Device) -> Result<()> {
    let x = Tensor::new(
        &[
            [[[1.0f32, 3.0]], [[10.0, 10.0]]],
            [[[1.0, 3.0]], [[10.0, 10.0]]],
        ],
        device,
    )?;
    let (y, statistics) = kernels::batch_norm_train(&x, None, 0.0)?;
    let statistics = statistics.read()?;
    assert_eq!(statistics.mean, [2.0, 10.0]);
    assert_eq!(statistics.var, [1.0, 0.0]);
    assert_eq!(statistics.count, 4);
    assert_eq!(&values(&y)?[..2], [-1.0, 1.0]);
    // A constant channel is 0, not NaN, as soon as eps is not.
    let (y, _) = kernels::batch_norm_train(&x, None, 1e-5)?;
    assert_eq!(&values(&y)?[2..4], [0.0, 0.0]);
    let (weight, bias) = (
        Tensor::new(&[2.0f32, 3.0], device)?,
        Tensor::new(&[0.5f32, -1.0], device)?,
    );
    let (mean, var) = (
        Tensor::new(&[1.0f32, 8.0], device)?,
        Tensor::new(&[4.0f32, 1.0], device)?,
    );
    let y = kernels::batch_norm_eval(&x, &mean, &var, Some((&weight, &bias)), 0.0)?;
    assert_eq!(&values(&y)?[..4], [0.5, 2.5, 5.0, 5.0]);
    Ok(())
}

/// Mean 4096 and deviation 1: a variance from sums of squares in `f32` would have no digit left.
pub(crate) fn batch_norm_is_exact_far_from_zero(device: &Device) -> Result<()> {
    let x: Vec<f32> = (0..64 * 49)
        .map(|i| 4096.0 + if i % 2 == 0 { 1.0 } else { -1.0 })
        .collect();
    let (_, statistics) =
        kernels::batch_norm_train(&Tensor::from_vec(x, (64, 1, 7, 7), device)?, None, 0.0)?;
    let statistics = statistics.read()?;
    assert_close("mean", &statistics.mean, &[4096.0], 1e-12);
    assert_close("variance", &statistics.var, &[1.0], 1e-6);
    Ok(())
}

pub(crate) fn batch_norm_of_one_value_is_its_bias(device: &Device) -> Result<()> {
    let x = Tensor::new(&[[[[3.0f32]], [[-7.0]]]], device)?;
    let (weight, bias) = (
        Tensor::new(&[2.0f32, 3.0], device)?,
        Tensor::new(&[0.5f32, -1.0], device)?,
    );
    let (y, statistics) = kernels::batch_norm_train(&x, Some((&weight, &bias)), 1e-5)?;
    let statistics = statistics.read()?;
    assert_eq!(values(&y)?, [0.5, -1.0]);
    assert_eq!(
        (statistics.var.as_slice(), statistics.count),
        ([0.0, 0.0].as_slice(), 1)
    );
    Ok(())
}

pub(crate) fn out_sizes_are_those_of_the_search_space(_device: &Device) -> Result<()> {
    for (kernel, dilation) in [(3, 1), (5, 1), (3, 2), (5, 2)] {
        let padding = dilation * (kernel - 1) / 2;
        for size in 1..40usize {
            for stride in [1, 2] {
                let geometry = Conv2dGeometry {
                    padding,
                    stride,
                    dilation,
                };
                assert_eq!(
                    geometry.out_size(size, kernel),
                    size.div_ceil(stride),
                    "{geometry:?} on {size}"
                );
            }
        }
    }
    assert_eq!(
        Pool2dGeometry {
            kernel: 5,
            padding: 0,
            stride: 3
        }
        .out_size(8),
        2
    );
    assert_eq!(
        Pool2dGeometry {
            kernel: 5,
            padding: 0,
            stride: 2
        }
        .out_size(7),
        2
    );
    assert_eq!(
        Conv2dGeometry {
            padding: 0,
            stride: 1,
            dilation: 2
        }
        .out_size(4, 3),
        0
    );
    Ok(())
}

/// Forward and backward, against the oracle on rounded factors; tensors that are `f64` have no other precision.
pub(crate) fn bf16_products_round_their_factors(device: &Device) -> Result<()> {
    use kernels::pointwise_conv2d::{Shape, naive};

    let rounded = |values: &[f64]| -> Result<Vec<f64>> {
        let tensor = Tensor::from_slice(values, values.len(), &Device::Cpu)?;
        cases::values(&tensor.to_dtype(DType::F32)?.to_dtype(DType::BF16)?)
    };
    for (n, i, o, plane) in [(2, 4, 6, [5, 7]), (3, 17, 1, [1, 2]), (1, 16, 33, [8, 8])] {
        let shape = Shape { n, i, o, plane };
        let [x_shape, w_shape] = [[n, i, plane[0], plane[1]], [o, i, 1, 1]];
        let mut rng = cases::rng("bf16");
        let [x, w] =
            [x_shape, w_shape].map(|shape| cases::uniform(&mut rng, shape.iter().product()));
        let grad = cases::uniform(&mut rng, n * o * plane[0] * plane[1]);
        let of =
            |values: &[f64], shape: &[usize], dtype| cases::tensor(values, shape, dtype, device);

        let variables = [
            Var::from_tensor(&of(&x, &x_shape, DType::F32)?)?,
            Var::from_tensor(&of(&w, &w_shape, DType::F32)?)?,
        ];
        let [x_var, w_var] = &variables;
        let y = kernels::pointwise_conv2d_in(x_var, w_var, Precision::Bf16)?;
        assert_eq!(y.dtype(), DType::F32);
        let grads = (&y * of(&grad, y.dims(), DType::F32)?)?
            .sum_all()?
            .backward()?;
        let (x16, w16, grad16) = (rounded(&x)?, rounded(&w)?, rounded(&grad)?);
        let close = |what: &str, actual: &Tensor, expected: &[f64]| -> Result<()> {
            cases::assert_close(
                what,
                &cases::values(actual)?,
                expected,
                cases::TOLERANCES.f32,
            );
            Ok(())
        };
        close("y", &y, &naive::forward(&x16, &w16, &shape))?;
        let grad_of = |var: &Var| grads.get(var).expect("a gradient").clone();
        close(
            "grad_x",
            &grad_of(x_var),
            &naive::grad_x(&grad16, &w16, &shape),
        )?;
        close(
            "grad_w",
            &grad_of(w_var),
            &naive::grad_w(&grad16, &x16, &shape),
        )?;
        // The rounding is seen: bf16 has 7 bits behind the point.
        let exact = naive::forward(&x, &w, &shape);
        let off = cases::values(&y)?
            .iter()
            .zip(&exact)
            .map(|(a, e)| (a - e).abs())
            .fold(0.0, f64::max);
        assert!(off > 1e-4, "{off}");

        let doubles = [of(&x, &x_shape, DType::F64)?, of(&w, &w_shape, DType::F64)?];
        let refused = kernels::pointwise_conv2d_in(&doubles[0], &doubles[1], Precision::Bf16);
        assert!(
            refused
                .unwrap_err()
                .to_string()
                .contains("no other precision")
        );
    }
    Ok(())
}
