//! The operations at many sizes, each with its oracle, and the tools to run and compare them.

use candle_core::{DType, Device, Result, Tensor, Var};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::kernels::{self, Conv2dGeometry, Pool2dGeometry, Window};

/// How far a result may be off: the largest difference, relative to the largest absolute value of the
/// reference tensor, or to 1, the size of the arguments, where that is more (gradients may cancel to nothing).
pub(crate) struct Tolerances {
    /// `f32` against the `f64` oracle. Sums of a few hundred terms in another order: some ten roundings of 6e-8.
    pub(crate) f32: f64,
    /// `f64` against the oracle: the same sums with roundings of 1e-16.
    pub(crate) f64: f64,
    /// Central differences in `f64` with step 1e-5: the truncation is of order 1e-10 and the cancellation
    /// of order 1e-16 / 1e-5 times the terms of the loss.
    pub(crate) finite_differences: f64,
    /// An inner product in `f64`, computed in two orders.
    pub(crate) adjoint: f64,
}

/// The one table of tolerances.
pub(crate) const TOLERANCES: Tolerances = Tolerances {
    f32: 2e-6,
    f64: 1e-12,
    finite_differences: 1e-7,
    adjoint: 1e-12,
};

type Forward = Box<dyn Fn(&[Tensor]) -> Result<Tensor> + Send + Sync>;
type Oracle = Box<dyn Fn(&[Vec<f64>], &[f64]) -> Outcome + Send + Sync>;

/// One operation at one size.
pub(crate) struct Case {
    /// The operation and its sizes.
    pub(crate) label: String,
    /// Shapes of the arguments.
    pub(crate) shapes: Vec<Vec<usize>>,
    /// The operation.
    pub(crate) forward: Forward,
    /// What it must give, from the arguments and the gradient of the result.
    pub(crate) oracle: Oracle,
    /// Whether the result is linear in the first argument.
    pub(crate) is_linear: bool,
}

/// A result and the gradients of all arguments.
#[derive(Debug, PartialEq)]
pub(crate) struct Outcome {
    pub(crate) y: Vec<f64>,
    pub(crate) grads: Vec<Vec<f64>>,
}

impl Case {
    /// Arguments drawn from the label, the same for every type: numbers that `f32` holds exactly.
    pub(crate) fn arguments(&self) -> Vec<Vec<f64>> {
        let mut rng = rng(&self.label);
        self.shapes
            .iter()
            .map(|shape| uniform(&mut rng, shape.iter().product()))
            .collect()
    }

    /// The gradient of the result to start from.
    pub(crate) fn grad_y(&self, n: usize) -> Vec<f64> {
        uniform(&mut rng(&format!("grad {}", self.label)), n)
    }

    /// Runs the operation forward and backward.
    pub(crate) fn run(&self, arguments: &[Tensor]) -> Result<Outcome> {
        let variables: Vec<Var> = arguments
            .iter()
            .map(Var::from_tensor)
            .collect::<Result<_>>()?;
        let tensors: Vec<Tensor> = variables.iter().map(|v| v.as_tensor().clone()).collect();
        let y = (self.forward)(&tensors)?;
        let grad_y = tensor(
            &self.grad_y(y.elem_count()),
            y.dims(),
            y.dtype(),
            y.device(),
        )?;
        let grads = (&y * grad_y)?.sum_all()?.backward()?;
        let grads = variables
            .iter()
            .map(|v| values(grads.get(v).expect("a gradient for every variable")))
            .collect::<Result<_>>()?;
        Ok(Outcome {
            y: values(&y)?,
            grads,
        })
    }
}

/// A generator of its own for every label.
pub(crate) fn rng(label: &str) -> ChaCha8Rng {
    ChaCha8Rng::seed_from_u64(
        label
            .bytes()
            .fold(17, |seed, byte| seed * 31 + u64::from(byte)),
    )
}

/// Numbers in -1..1 that are exact in `f32`.
pub(crate) fn uniform(rng: &mut ChaCha8Rng, n: usize) -> Vec<f64> {
    (0..n)
        .map(|_| f64::from(rng.random_range(-1.0f32..1.0)))
        .collect()
}

/// A tensor of the given values.
pub(crate) fn tensor(
    values: &[f64],
    shape: &[usize],
    dtype: DType,
    device: &Device,
) -> Result<Tensor> {
    Tensor::from_slice(values, shape, device)?.to_dtype(dtype)
}

/// The elements of a tensor in order.
pub(crate) fn values(tensor: &Tensor) -> Result<Vec<f64>> {
    tensor.to_dtype(DType::F64)?.flatten_all()?.to_vec1()
}

/// Panics where `actual` is further from `expected` than `tolerance`.
pub(crate) fn assert_close(label: &str, actual: &[f64], expected: &[f64], tolerance: f64) {
    assert_eq!(actual.len(), expected.len(), "{label}: number of elements");
    let largest = expected.iter().fold(0.0, |max: f64, e| max.max(e.abs()));
    let scale = largest.max(1.0);
    for (index, (a, e)) in actual.iter().zip(expected).enumerate() {
        let error = (a - e).abs() / scale;
        assert!(
            error <= tolerance,
            "{label}: element {index} is {a}, expected {e}: off by {error:.1e}"
        );
    }
}

/// Every operation at every size.
pub(crate) fn all() -> Vec<Case> {
    let mut cases = Vec::new();
    for shape in [vec![1], vec![3, 5], vec![2, 3, 7, 5], vec![9, 8, 31, 33]] {
        cases.push(relu(&shape));
        cases.push(scale(&shape));
        cases.push(weighted_add(&shape));
    }
    let planes = [
        [1, 1],
        [2, 3],
        [4, 4],
        [5, 9],
        [7, 7],
        [8, 8],
        [14, 14],
        [17, 33],
    ];
    for plane in planes {
        for kernel in [3, 5] {
            for (stride, dilation) in [(1, 1), (2, 1), (1, 2), (2, 2)] {
                let padding = dilation * (kernel - 1) / 2;
                let geometry = Conv2dGeometry {
                    padding,
                    stride,
                    dilation,
                };
                cases.push(depthwise_conv2d(3, 4, plane, [kernel; 2], geometry));
            }
        }
    }
    for plane in planes {
        for stride in [1, 2] {
            let pool = Pool2dGeometry {
                kernel: 3,
                padding: 1,
                stride,
            };
            cases.push(max_pool2d(2, 3, plane, pool));
            cases.push(avg_pool2d(2, 3, plane, pool));
        }
    }
    // Away from the search space: no padding, too much of it, long strides, kernels that are even, oblong or large.
    for (plane, kernel, padding, stride, dilation) in [
        ([5, 6], [3, 3], 0, 1, 1),
        ([6, 5], [3, 3], 3, 1, 1),
        ([9, 11], [3, 3], 1, 3, 1),
        ([9, 11], [3, 3], 1, 3, 2),
        ([13, 10], [5, 5], 4, 3, 4),
        ([6, 7], [2, 2], 1, 1, 1),
        ([6, 7], [1, 3], 1, 2, 1),
        ([10, 9], [7, 7], 3, 1, 1),
        ([4, 4], [1, 1], 0, 1, 1),
        ([4, 5], [1, 1], 0, 2, 1),
    ] {
        let geometry = Conv2dGeometry {
            padding,
            stride,
            dilation,
        };
        cases.push(depthwise_conv2d(2, 1, plane, kernel, geometry));
        cases.push(conv2d(2, [3, 2], plane, kernel, geometry));
    }
    for (plane, kernel, padding, stride) in [
        ([8, 8], 2, 0, 2),
        ([8, 8], 5, 0, 3),
        ([7, 7], 5, 0, 2),
        ([5, 6], 2, 1, 1),
        ([3, 4], 1, 0, 1),
        ([9, 7], 3, 0, 3),
    ] {
        let pool = Pool2dGeometry {
            kernel,
            padding,
            stride,
        };
        cases.push(max_pool2d(3, 1, plane, pool));
        cases.push(avg_pool2d(3, 1, plane, pool));
    }
    // More images than a weight gradient has partial sums, and numbers of them that do not divide.
    let same = Conv2dGeometry {
        padding: 1,
        stride: 1,
        dilation: 1,
    };
    cases.push(depthwise_conv2d(19, 2, [5, 5], [3, 3], same));
    cases.push(conv2d(19, [2, 3], [5, 5], [3, 3], same));
    cases.push(conv2d(1, [1, 1], [1, 1], [3, 3], same));
    cases.push(conv2d(
        2,
        [3, 24],
        [12, 12],
        [3, 3],
        Conv2dGeometry { stride: 2, ..same },
    ));
    cases.push(conv2d(
        2,
        [16, 20],
        [2, 2],
        [2, 2],
        Conv2dGeometry { padding: 0, ..same },
    ));
    for plane in planes {
        cases.push(pointwise_conv2d(3, [4, 6], plane));
    }
    for channels in [
        [1, 1],
        [2, 2],
        [1, 9],
        [9, 1],
        [16, 16],
        [17, 35],
        [64, 48],
        [130, 70],
    ] {
        cases.push(pointwise_conv2d(2, channels, [5, 7]));
        cases.push(pointwise_conv2d(19, channels, [2, 3]));
    }
    for (n, c, plane) in [
        (1, 1, [1, 2]),
        (2, 3, [1, 1]),
        (3, 4, [7, 7]),
        (19, 2, [4, 4]),
        (2, 5, [33, 31]),
        (5, 1, [40, 40]),
    ] {
        for is_affine in [false, true] {
            cases.push(batch_norm(n, c, plane, is_affine, true));
            cases.push(batch_norm(n, c, plane, is_affine, false));
        }
    }
    cases
}

fn relu(shape: &[usize]) -> Case {
    Case {
        label: format!("relu {shape:?}"),
        shapes: vec![shape.to_vec()],
        forward: Box::new(|a| kernels::relu(&a[0])),
        oracle: Box::new(|a, grad| {
            let y = kernels::relu::naive::forward(&a[0]);
            Outcome {
                grads: vec![kernels::relu::naive::grad_x(grad, &y)],
                y,
            }
        }),
        is_linear: false,
    }
}

fn scale(shape: &[usize]) -> Case {
    use kernels::scale::naive;
    Case {
        label: format!("scale {shape:?}"),
        shapes: vec![shape.to_vec(), vec![]],
        forward: Box::new(|a| kernels::scale(&a[0], &a[1])),
        oracle: Box::new(|a, grad| Outcome {
            y: naive::forward(&a[0], a[1][0]),
            grads: vec![naive::forward(grad, a[1][0]), vec![naive::dot(grad, &a[0])]],
        }),
        is_linear: true,
    }
}

fn weighted_add(shape: &[usize]) -> Case {
    use kernels::scale::naive::{dot, forward as scale};
    Case {
        label: format!("weighted_add {shape:?}"),
        shapes: vec![shape.to_vec(), shape.to_vec(), vec![1]],
        forward: Box::new(|a| kernels::weighted_add(&a[0], &a[1], &a[2])),
        oracle: Box::new(|a, grad| Outcome {
            y: kernels::weighted_add::naive::forward(&a[0], &a[1], a[2][0]),
            grads: vec![grad.to_vec(), scale(grad, a[2][0]), vec![dot(grad, &a[1])]],
        }),
        is_linear: false,
    }
}

fn depthwise_conv2d(
    n: usize,
    c: usize,
    plane: [usize; 2],
    kernel: [usize; 2],
    geometry: Conv2dGeometry,
) -> Case {
    use kernels::depthwise_conv2d::{Shape, naive};
    let shape = Shape {
        n,
        c,
        window: window(plane, kernel, geometry),
    };
    Case {
        label: format!("depthwise_conv2d {shape:?}"),
        shapes: vec![
            vec![n, c, plane[0], plane[1]],
            vec![c, 1, kernel[0], kernel[1]],
        ],
        forward: Box::new(move |a| kernels::depthwise_conv2d(&a[0], &a[1], geometry)),
        oracle: Box::new(move |a, grad| Outcome {
            y: naive::forward(&a[0], &a[1], &shape),
            grads: vec![
                naive::grad_x(grad, &a[1], &shape),
                naive::grad_w(grad, &a[0], &shape),
            ],
        }),
        is_linear: true,
    }
}

fn conv2d(
    n: usize,
    [i, o]: [usize; 2],
    plane: [usize; 2],
    kernel: [usize; 2],
    geometry: Conv2dGeometry,
) -> Case {
    use kernels::conv2d::{Shape, naive};
    let shape = Shape {
        n,
        i,
        o,
        window: window(plane, kernel, geometry),
    };
    Case {
        label: format!("conv2d {shape:?}"),
        shapes: vec![
            vec![n, i, plane[0], plane[1]],
            vec![o, i, kernel[0], kernel[1]],
        ],
        forward: Box::new(move |a| kernels::conv2d(&a[0], &a[1], geometry)),
        oracle: Box::new(move |a, grad| Outcome {
            y: naive::forward(&a[0], &a[1], &shape),
            grads: vec![
                naive::grad_x(grad, &a[1], &shape),
                naive::grad_w(grad, &a[0], &shape),
            ],
        }),
        is_linear: true,
    }
}

fn pointwise_conv2d(n: usize, [i, o]: [usize; 2], plane: [usize; 2]) -> Case {
    use kernels::pointwise_conv2d::{Shape, naive};
    let shape = Shape { n, i, o, plane };
    Case {
        label: format!("pointwise_conv2d {shape:?}"),
        shapes: vec![vec![n, i, plane[0], plane[1]], vec![o, i, 1, 1]],
        forward: Box::new(|a| kernels::pointwise_conv2d(&a[0], &a[1])),
        oracle: Box::new(move |a, grad| Outcome {
            y: naive::forward(&a[0], &a[1], &shape),
            grads: vec![
                naive::grad_x(grad, &a[1], &shape),
                naive::grad_w(grad, &a[0], &shape),
            ],
        }),
        is_linear: true,
    }
}

fn max_pool2d(n: usize, c: usize, plane: [usize; 2], pool: Pool2dGeometry) -> Case {
    use kernels::max_pool2d::{Shape, naive};
    let shape = Shape {
        n,
        c,
        window: pool_window(plane, pool),
    };
    Case {
        label: format!("max_pool2d {shape:?}"),
        shapes: vec![vec![n, c, plane[0], plane[1]]],
        forward: Box::new(move |a| kernels::max_pool2d(&a[0], pool)),
        oracle: Box::new(move |a, grad| Outcome {
            y: naive::forward(&a[0], &shape),
            grads: vec![naive::grad_x(grad, &a[0], &shape)],
        }),
        is_linear: false,
    }
}

fn avg_pool2d(n: usize, c: usize, plane: [usize; 2], pool: Pool2dGeometry) -> Case {
    use kernels::avg_pool2d::{Shape, naive};
    let shape = Shape {
        n,
        c,
        window: pool_window(plane, pool),
    };
    Case {
        label: format!("avg_pool2d {shape:?}"),
        shapes: vec![vec![n, c, plane[0], plane[1]]],
        forward: Box::new(move |a| kernels::avg_pool2d(&a[0], pool)),
        oracle: Box::new(move |a, grad| Outcome {
            y: naive::forward(&a[0], &shape),
            grads: vec![naive::grad_x(grad, &shape)],
        }),
        is_linear: true,
    }
}

/// Batch normalisation, in evaluation with fixed statistics.
fn batch_norm(n: usize, c: usize, plane: [usize; 2], is_affine: bool, is_train: bool) -> Case {
    use kernels::batch_norm::{BatchStatistics, Channel, Shape, Sums, naive};
    const EPS: f64 = 1e-5;
    let shape = Shape {
        n,
        c,
        len: plane[0] * plane[1],
    };
    let given = |c: usize| -> [Vec<f64>; 2] {
        [
            (0..c).map(|c| 0.25 * c as f64 - 0.5).collect(),
            (0..c).map(|c| 0.5 + 0.25 * c as f64).collect(),
        ]
    };
    let mut shapes = vec![vec![n, c, plane[0], plane[1]]];
    shapes.extend(if is_affine {
        vec![vec![c], vec![c]]
    } else {
        vec![]
    });
    Case {
        label: format!("batch_norm {shape:?} affine {is_affine} train {is_train}"),
        shapes,
        forward: Box::new(move |a| {
            let affine = is_affine.then(|| (&a[1], &a[2]));
            if is_train {
                return Ok(kernels::batch_norm_train(&a[0], affine, EPS)?.0);
            }
            let [mean, var] = given(c).map(|v| tensor(&v, &[c], a[0].dtype(), a[0].device()));
            kernels::batch_norm_eval(&a[0], &mean?, &var?, affine, EPS)
        }),
        oracle: Box::new(move |a, grad| {
            let [mean, var] = if is_train {
                let BatchStatistics { mean, var, .. } = naive::statistics(&a[0], &shape);
                [mean, var]
            } else {
                given(c)
            };
            let channels: Vec<Channel> = (0..c)
                .map(|c| Channel {
                    mean: mean[c],
                    inv_std: 1.0 / (var[c] + EPS).sqrt(),
                    weight: if is_affine { a[1][c] } else { 1.0 },
                    bias: if is_affine { a[2][c] } else { 0.0 },
                })
                .collect();
            let sums = naive::sums(grad, &a[0], &channels, &shape);
            let through = if is_train {
                sums.clone()
            } else {
                vec![Sums::default(); c]
            };
            let mut grads = vec![naive::grad_x(grad, &a[0], &channels, &through, &shape)];
            if is_affine {
                grads.push(sums.iter().map(|sums| sums.grad_normalized).collect());
                grads.push(sums.iter().map(|sums| sums.grad).collect());
            }
            Outcome {
                y: naive::forward(&a[0], &channels, &shape),
                grads,
            }
        }),
        is_linear: false,
    }
}

fn window(input: [usize; 2], kernel: [usize; 2], geometry: Conv2dGeometry) -> Window {
    let Conv2dGeometry {
        padding,
        stride,
        dilation,
    } = geometry;
    Window {
        input,
        kernel,
        padding,
        stride,
        dilation,
    }
}

fn pool_window(input: [usize; 2], pool: Pool2dGeometry) -> Window {
    Window {
        input,
        kernel: [pool.kernel; 2],
        padding: pool.padding,
        stride: pool.stride,
        dilation: 1,
    }
}
