//! Every operation at the sizes of the search space: batch 64, channels and planes of the search networks.
//!
//! `backward` is a forward pass with the gradients of all arguments, through candle's `backward`. Run with
//! `RAYON_NUM_THREADS=1 CANDLE_NUM_THREADS=1` for times per thread.

use std::time::Duration;

use candle_core::{DType, Device, Result, Tensor, Var};
use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use kernels::image::{self, Maps, PaddedMaps};
use kernels::planes::{Buffer, NormGrad, Source, Stencil, Target, Unit, UnitWants, dots};
use kernels::{Conv2dGeometry, Pool2dGeometry, Window};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const BATCH: usize = 64;

/// Channels and side of a plane: the first, middle and last cells of an 8-layer network of 16 channels, whole and
/// with a quarter of the channels (PC-DARTS), on images of 32 and of 28 pixels.
const PLANES: [(usize, usize); 6] = [(4, 32), (16, 32), (8, 14), (32, 14), (64, 8), (64, 7)];

/// Kernel, stride and dilation of the depthwise convolutions among the primitives.
const DEPTHWISE: [[usize; 3]; 6] = [
    [3, 1, 1],
    [5, 1, 1],
    [3, 1, 2],
    [5, 1, 2],
    [3, 2, 1],
    [5, 2, 2],
];

fn bench(
    criterion: &mut Criterion,
    op: &str,
    size: &str,
    arguments: &[Tensor],
    run: impl Fn(&[Tensor]) -> Result<Tensor>,
) {
    let mut group = criterion.benchmark_group(op);
    group.bench_function(BenchmarkId::new("forward", size), |bencher| {
        bencher.iter(|| run(arguments).expect("a result"))
    });
    let variables: Vec<Var> = arguments
        .iter()
        .map(|a| Var::from_tensor(a).expect("a variable"))
        .collect();
    let tracked: Vec<Tensor> = variables.iter().map(|v| v.as_tensor().clone()).collect();
    let backward = || run(&tracked)?.backward();
    group.bench_function(BenchmarkId::new("backward", size), |bencher| {
        bencher.iter(|| backward().expect("gradients"))
    });
}

fn random(shape: &[usize]) -> Tensor {
    Tensor::randn(0f32, 1f32, shape, &Device::Cpu).expect("random numbers")
}

fn same(kernel: usize, stride: usize, dilation: usize) -> Conv2dGeometry {
    Conv2dGeometry {
        padding: dilation * (kernel - 1) / 2,
        stride,
        dilation,
    }
}

fn all(criterion: &mut Criterion) {
    for (c, size) in PLANES {
        let x = random(&[BATCH, c, size, size]);
        let label = format!("c{c} {size}x{size}");
        for [kernel, stride, dilation] in DEPTHWISE {
            let w = random(&[c, 1, kernel, kernel]);
            let label = format!("{label} k{kernel} s{stride} d{dilation}");
            bench(
                criterion,
                "depthwise_conv2d",
                &label,
                &[x.clone(), w],
                |a| kernels::depthwise_conv2d(&a[0], &a[1], same(kernel, stride, dilation)),
            );
        }
        bench(
            criterion,
            "pointwise_conv2d",
            &label,
            &[x.clone(), random(&[c, c, 1, 1])],
            |a| kernels::pointwise_conv2d(&a[0], &a[1]),
        );
        for stride in [1, 2] {
            let pool = Pool2dGeometry {
                kernel: 3,
                padding: 1,
                stride,
            };
            let label = format!("{label} s{stride}");
            bench(
                criterion,
                "max_pool2d",
                &label,
                std::slice::from_ref(&x),
                |a| kernels::max_pool2d(&a[0], pool),
            );
            bench(
                criterion,
                "avg_pool2d",
                &label,
                std::slice::from_ref(&x),
                |a| kernels::avg_pool2d(&a[0], pool),
            );
        }
        bench(
            criterion,
            "batch_norm_train",
            &label,
            std::slice::from_ref(&x),
            |a| Ok(kernels::batch_norm_train(&a[0], None, 1e-5)?.0),
        );
        let channel = Tensor::ones(c, DType::F32, &Device::Cpu).expect("ones");
        bench(
            criterion,
            "batch_norm_eval",
            &label,
            std::slice::from_ref(&x),
            |a| {
                kernels::batch_norm_eval(
                    &a[0],
                    &channel,
                    &channel,
                    Some((&channel, &channel)),
                    1e-5,
                )
            },
        );
        bench(criterion, "relu", &label, std::slice::from_ref(&x), |a| {
            kernels::relu(&a[0])
        });
        bench(
            criterion,
            "scale",
            &label,
            &[x.clone(), random(&[1])],
            |a| kernels::scale(&a[0], &a[1]),
        );
        bench(
            criterion,
            "weighted_add",
            &label,
            &[x.clone(), x.clone(), random(&[1])],
            |a| kernels::weighted_add(&a[0], &a[1], &a[2]),
        );
        // ReLU, depthwise, pointwise, batch normalisation: half a separable convolution.
        for kernel in [3, 5] {
            let arguments = [
                x.clone(),
                random(&[c, 1, kernel, kernel]),
                random(&[c, c, 1, 1]),
            ];
            bench(
                criterion,
                "unit",
                &format!("{label} k{kernel}"),
                &arguments,
                |a| {
                    let x = kernels::depthwise_conv2d(
                        &kernels::relu(&a[0])?,
                        &a[1],
                        same(kernel, 1, 1),
                    )?;
                    Ok(kernels::batch_norm_train(
                        &kernels::pointwise_conv2d(&x, &a[2])?,
                        None,
                        1e-5,
                    )?
                    .0)
                },
            );
            fused_unit(criterion, c, size, kernel);
        }
    }
    for (c, size, kernel) in [(36, 32, 3), (36, 32, 5), (144, 8, 5)] {
        image_unit(criterion, c, size, kernel);
    }
    // The stem and the last convolution of the auxiliary head.
    for (i, o, size, kernel, geometry) in [
        (3, 48, 32, 3, same(3, 1, 1)),
        (
            128,
            768,
            2,
            2,
            Conv2dGeometry {
                padding: 0,
                stride: 1,
                dilation: 1,
            },
        ),
    ] {
        let arguments = [
            random(&[BATCH, i, size, size]),
            random(&[o, i, kernel, kernel]),
        ];
        bench(
            criterion,
            "conv2d",
            &format!("{i} to {o} {size}x{size} k{kernel}"),
            &arguments,
            |a| kernels::conv2d(&a[0], &a[1], geometry),
        );
    }
}

/// The same unit on planes, its batch normalisation left to whoever reads it.
fn fused_unit(criterion: &mut Criterion, c: usize, size: usize, kernel: usize) {
    let Conv2dGeometry {
        padding,
        stride,
        dilation,
    } = same(kernel, 1, 1);
    let window = Window {
        input: [size; 2],
        kernel: [kernel; 2],
        padding,
        stride,
        dilation,
    };
    let unit = Unit::new(Stencil::new(window, BATCH));
    let len = unit.stencil().output().len();
    let numbers = |n: usize| -> Vec<f32> { (0..n).map(|i| (i as f32 * 0.37).sin()).collect() };
    let (z, grad) = (numbers(c * len), numbers(c * len));
    let (depthwise, pointwise) = (numbers(c * kernel * kernel), numbers(c * c));
    let (z, grad): (Vec<&[f32]>, Vec<&[f32]>) =
        (z.chunks(len).collect(), grad.chunks(len).collect());
    let forward = |y: &mut [f32]| {
        unit.forward(
            Source::new(&z),
            &depthwise,
            &pointwise,
            y.chunks_mut(len).collect(),
        )
    };
    let mut group = criterion.benchmark_group("fused_unit");
    let label = format!("c{c} {size}x{size} k{kernel}");
    group.bench_function(BenchmarkId::new("forward", &label), |bencher| {
        bencher.iter(|| forward(&mut Buffer::any(c * len)))
    });
    group.bench_function(BenchmarkId::new("backward", &label), |bencher| {
        bencher.iter(|| {
            let mut y = Buffer::any(c * len);
            let moments = forward(&mut y);
            let y: Vec<&[f32]> = y.chunks(len).collect();
            let sums: Vec<[f64; 2]> = dots(&grad, &y.iter().map(|y| vec![*y]).collect::<Vec<_>>())
                .into_iter()
                .map(|(sum, products)| [sum, products[0]])
                .collect();
            let chain = NormGrad::new(grad.clone(), y, &moments, 1e-5, &sums, &vec![1.0; c]);
            let mut grad_z = Buffer::any(c * len);
            let target = Target::new(grad_z.chunks_mut(len).collect());
            unit.backward(
                Source::new(&z),
                &depthwise,
                &pointwise,
                &chain,
                target,
                UnitWants {
                    weights: true,
                    sums: false,
                },
            )
        })
    });
}

/// The unit and the pointwise convolution of a deployed network, on one image.
fn image_unit(criterion: &mut Criterion, c: usize, size: usize, kernel: usize) {
    let numbers = |n: usize| -> Vec<f32> { (0..n).map(|i| (i as f32 * 0.37).sin()).collect() };
    let x = Maps::from_slice(c, size, size, &numbers(c * size * size));
    let (weight, bias) = (numbers(c * c), numbers(c));
    let mut group = criterion.benchmark_group("image");
    let geometry = same(kernel, 1, 1);
    let depthwise = numbers(c * kernel * kernel);
    let unit = image::Unit::new(&depthwise, kernel, geometry, &weight, &bias);
    let padded = PaddedMaps::rectified(&x, geometry.padding, geometry.stride);
    let label = format!("c{c} {size}x{size} k{kernel}");
    group.bench_function(BenchmarkId::new("unit", &label), |bencher| {
        bencher.iter(|| unit.forward(&padded))
    });
    let pointwise = image::Pointwise::new(&weight, &bias);
    let mut y = Maps::any(c, size, size);
    let label = format!("c{c} {size}x{size}");
    group.bench_function(BenchmarkId::new("pointwise", &label), |bencher| {
        bencher.iter(|| pointwise.forward(&x, &mut y, 0))
    });
}

fn quick() -> Criterion {
    Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(100))
        .measurement_time(Duration::from_millis(400))
}

criterion_group! { name = ops; config = quick(); targets = all }
criterion_main!(ops);
