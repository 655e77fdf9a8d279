//! What is said about arguments that do not fit.

use candle_core::{DType, Device, Result, Tensor};
use kernels::{Conv2dGeometry, Pool2dGeometry};

pub(crate) fn name_the_operation_and_the_shapes(device: &Device) -> Result<()> {
    let zeros = |shape: &[usize]| Tensor::zeros(shape, DType::F32, device);
    let (x, flat, double) = (
        zeros(&[2, 3, 4, 4])?,
        zeros(&[2, 3])?,
        Tensor::zeros(3, DType::F64, device)?,
    );
    let same = Conv2dGeometry {
        padding: 1,
        stride: 1,
        dilation: 1,
    };
    let pool = Pool2dGeometry {
        kernel: 3,
        padding: 1,
        stride: 1,
    };
    let channels = zeros(&[3])?;
    let messages = [
        (
            kernels::depthwise_conv2d(&flat, &zeros(&[3, 1, 3, 3])?, same),
            "depthwise_conv2d: expected x of shape n c h w, got [2, 3]",
        ),
        (
            kernels::depthwise_conv2d(&x, &zeros(&[3, 2, 3, 3])?, same),
            "depthwise_conv2d: expected w of shape [3, 1, 3, 3], got [3, 2, 3, 3]",
        ),
        (
            kernels::depthwise_conv2d(
                &x,
                &zeros(&[3, 1, 3, 3])?,
                Conv2dGeometry {
                    padding: 0,
                    stride: 1,
                    dilation: 2,
                },
            ),
            "depthwise_conv2d: a window of [3, 3] with padding 0, stride 1, dilation 2 does not fit an input of [4, 4]",
        ),
        (
            kernels::depthwise_conv2d(
                &x,
                &zeros(&[3, 1, 3, 3])?,
                Conv2dGeometry { stride: 0, ..same },
            ),
            "depthwise_conv2d: a window of [3, 3] with padding 1, stride 0, dilation 1 does not fit an input of [4, 4]",
        ),
        (
            kernels::pointwise_conv2d(&x, &zeros(&[5, 4, 1, 1])?),
            "pointwise_conv2d: expected w of shape [5, 3, 1, 1], got [5, 4, 1, 1]",
        ),
        (
            kernels::conv2d(&x, &zeros(&[5, 4, 3, 3])?, same),
            "conv2d: expected w of shape [5, 3, 3, 3], got [5, 4, 3, 3]",
        ),
        (
            kernels::conv2d(&x, &zeros(&[5, 3, 0, 3])?, same),
            "conv2d: a window of [0, 3] with padding 1, stride 1, dilation 1 does not fit an input of [4, 4]",
        ),
        (
            kernels::max_pool2d(&flat, pool),
            "max_pool2d: expected x of shape n c h w, got [2, 3]",
        ),
        (
            kernels::max_pool2d(&x, Pool2dGeometry { padding: 2, ..pool }),
            "max_pool2d: padding 2 is more than half of the kernel 3",
        ),
        (
            kernels::avg_pool2d(&x, Pool2dGeometry { kernel: 7, ..pool }),
            "avg_pool2d: a window of [7, 7] with padding 1, stride 1, dilation 1 does not fit an input of [4, 4]",
        ),
        (
            kernels::batch_norm_train(&x, Some((&flat, &channels)), 1e-5).map(|(y, _)| y),
            "batch_norm_train: expected weight of shape [3], got [2, 3]",
        ),
        (
            kernels::batch_norm_train(&zeros(&[0, 3, 4, 4])?, None, 1e-5).map(|(y, _)| y),
            "batch_norm_train: no values per channel in an input of shape [0, 3, 4, 4]",
        ),
        (
            kernels::batch_norm_eval(&x, &channels, &double, None, 1e-5),
            "batch_norm_eval: expected var of type F32 as the other arguments, got F64",
        ),
        (
            kernels::weighted_add(&x, &flat, &channels),
            "weighted_add: expected x of shape [2, 3, 4, 4], got [2, 3]",
        ),
        (
            kernels::weighted_add(&x, &x, &channels),
            "weighted_add: expected weight of shape [] or [1], got [3]",
        ),
        (
            kernels::scale(&x, &channels),
            "scale: expected weight of shape [] or [1], got [3]",
        ),
        (
            kernels::max_pool2d(&zeros(&[2, 3, 0, 4])?, pool),
            "max_pool2d: a window of [3, 3] with padding 1, stride 1, dilation 1 does not fit an input of [0, 4]",
        ),
        (
            kernels::relu(&x.to_dtype(DType::U8)?),
            "unsupported dtype U8 for op relu",
        ),
    ];
    for (result, expected) in messages {
        let message = result.expect_err(expected).to_string();
        assert_eq!(message.lines().next(), Some(expected));
    }
    Ok(())
}
