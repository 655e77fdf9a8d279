//! Planes against the naive operations on `n c h w`.

use super::stencil::{Held, Onto, TapSums};
use super::*;
use crate::product::LINE;
use crate::simd::Ahead;
use crate::{Conv2dGeometry, Window, avg_pool2d, conv2d, depthwise_conv2d, max_pool2d};

/// Numbers without a pattern.
fn numbers(len: usize, seed: usize) -> Vec<f64> {
    (0..len)
        .map(|i| ((i * 7919 + seed * 104_729) % 2003) as f64 / 1001.0 - 1.0)
        .collect()
}

/// `n c h w` to `c h w n`.
fn to_planes(x: &[f64], [n, c, len]: [usize; 3]) -> Vec<f64> {
    let at = |index: usize| {
        let (image, rest) = (index % n, index / n);
        (image * c + rest / len) * len + rest % len
    };
    (0..n * c * len).map(|index| x[at(index)]).collect()
}

fn planes(x: &[f64], c: usize) -> Vec<&[f64]> {
    x.chunks(x.len() / c).collect()
}

fn planes_mut(x: &mut [f64], c: usize) -> Vec<&mut [f64]> {
    let len = x.len() / c;
    x.chunks_mut(len).collect()
}

#[track_caller]
fn assert_close(found: &[f64], expected: &[f64]) {
    assert_eq!(found.len(), expected.len());
    for (found, expected) in found.iter().zip(expected) {
        assert!(
            (found - expected).abs() < 1e-10,
            "{found} is not {expected}"
        );
    }
}

/// Windows of the search space, on even, odd and tiny planes, and two that are wider than sums fit the registers.
fn windows() -> Vec<Window> {
    let wide = [(1, 1), (2, 3)].map(|(stride, dilation)| {
        let geometry = Conv2dGeometry {
            padding: 3,
            stride,
            dilation,
        };
        Window::new("test", [7, 14], [2, 7 - stride + 1], geometry).unwrap()
    });
    let mut windows = Vec::from(wide);
    for input in [[8, 8], [7, 9], [30, 4], [4, 4], [2, 3], [1, 1]] {
        for (kernel, dilation) in [(3, 1), (5, 1), (3, 2), (5, 2)] {
            for stride in [1, 2] {
                let geometry = Conv2dGeometry {
                    padding: dilation * (kernel - 1) / 2,
                    stride,
                    dilation,
                };
                windows.push(Window::new("test", input, [kernel; 2], geometry).unwrap());
            }
        }
    }
    windows
}

#[test]
fn a_depthwise_convolution_and_its_gradients_are_the_naive_ones() {
    for window in windows() {
        for n in [1, 3, 16, 37] {
            let c = 2;
            let shape = depthwise_conv2d::Shape { n, c, window };
            let [in_len, out_len] = [window.input_len(), window.output_len()];
            let (x, w) = (
                numbers(n * c * in_len, 1),
                numbers(c * window.kernel_len(), 2),
            );
            let grad = numbers(n * c * out_len, 3);
            let stencil = Stencil::new(window, n);
            let (x_planes, grad_planes) = (
                to_planes(&x, [n, c, in_len]),
                to_planes(&grad, [n, c, out_len]),
            );

            let mut y = vec![0.0; n * c * out_len];
            let mut grad_x = vec![f64::NAN; n * c * in_len];
            let mut grad_w = Vec::new();
            let n_taps = window.kernel_len();
            for channel in 0..c {
                let w = &w[channel * n_taps..][..n_taps];
                let x = planes(&x_planes, c)[channel];
                let grad = planes(&grad_planes, c)[channel];
                let [x, grad] = [(x, window.input[0]), (grad, window.output()[0])]
                    .map(|(rows, n)| Held::new(rows, n));
                let (y, ahead) = (planes_mut(&mut y, c).remove(channel), &mut Ahead::none());
                stencil.forward_rows::<_, false>(x, w, 0, y, ahead);
                let grad_x = planes_mut(&mut grad_x, c).remove(channel);
                // What is there is replaced, then added to.
                for adds in [false, true] {
                    let onto = Onto::new(&mut *grad_x).adding(adds);
                    stencil.backward_rows(grad, w, 0, onto, ahead);
                }
                let mut sums = vec![0.0; n_taps];
                let rows = 0..window.output()[0];
                let own = TapSums {
                    partial: &mut vec![f64::NAN; n_taps * LINE],
                    is_first: true,
                    total: &mut sums,
                    is_last: true,
                };
                stencil.add_tap_products::<_, false>(x, grad, rows, own, ahead);
                grad_w.extend(sums);
            }
            let expected = depthwise_conv2d::naive::forward(&x, &w, &shape);
            assert_close(&y, &to_planes(&expected, [n, c, out_len]));
            let expected = depthwise_conv2d::naive::grad_x(&grad, &w, &shape);
            let expected: Vec<f64> = to_planes(&expected, [n, c, in_len])
                .iter()
                .map(|grad| 2.0 * grad)
                .collect();
            assert_close(&grad_x, &expected);
            assert_close(&grad_w, &depthwise_conv2d::naive::grad_w(&grad, &x, &shape));
        }
    }
}

#[test]
fn a_unit_normalises_what_it_reads_and_gives_the_gradient_behind_that() {
    // With many images, sums end several times.
    let cases = windows()
        .into_iter()
        .flat_map(|window| [(window, 3), (window, 80)]);
    for (window, n) in cases {
        let (c, c_out) = (2, 5);
        let [in_len, out_len] = [window.input_len(), window.output_len()].map(|len| len * n);
        let raw = numbers(c * in_len, 1);
        let raw = planes(&raw, c);
        let affine = [(0.3, 1.5), (-0.2, -1.5)].map(|(mean, factor)| Affine {
            mean,
            factor,
            bias: 0.1,
        });
        let mut x = vec![0.0; c * in_len];
        normalise(planes_mut(&mut x, c), &raw, &affine);
        let z: Vec<f64> = x.iter().map(|x| x.max(0.0)).collect();
        let (x, z) = (planes(&x, c), planes(&z, c));
        let sources = [Source::new(&x), Source::raw(&raw, &affine)];
        let depthwise = numbers(c * window.kernel_len(), 2);
        let pointwise = numbers(c_out * c, 3);
        let grad = numbers(c_out * out_len, 4);
        let unit = Unit::new(Stencil::new(window, n));

        // What is behind the ReLU already stays as it is.
        let [expected, found, again] = [sources[0], sources[1], Source::new(&z)].map(|source| {
            let mut y = vec![f64::NAN; c_out * out_len];
            let rows = planes_mut(&mut y, c_out);
            let found = unit.forward(source, &depthwise, &pointwise, rows);
            for (found, expected) in found.iter().zip(moments(&planes(&y, c_out))) {
                assert_close(&[found.mean, found.var], &[expected.mean, expected.var]);
            }
            y
        });
        assert_close(&found, &expected);
        assert_close(&again, &expected);

        let [(expected, of_normalised), (found, of_raw)] = sources.map(|source| {
            let mut grad_z = vec![f64::NAN; c * in_len];
            let target = Target::new(planes_mut(&mut grad_z, c));
            let grad_y = given(planes(&grad, c_out));
            let wants = UnitWants {
                weights: true,
                sums: true,
            };
            let grads = unit.backward(source, &depthwise, &pointwise, &grad_y, target, wants);
            (grad_z, grads)
        });
        assert_close(&found, &expected);
        // Added to what is there, the gradient is there twice.
        let doubled: Vec<f64> = expected.iter().map(|grad| 2.0 * grad).collect();
        for source in sources {
            let mut twice = expected.clone();
            let target = Target {
                planes: planes_mut(&mut twice, c),
                adds: true,
            };
            let grad_y = given(planes(&grad, c_out));
            let wants = UnitWants {
                weights: false,
                sums: false,
            };
            let grads = unit.backward(source, &depthwise, &pointwise, &grad_y, target, wants);
            assert_eq!(grads, UnitGrads::default());
            assert_close(&twice, &doubled);
        }
        // And it is that of the convolutions one by one, where the ReLU lets it through.
        let mut between = vec![0.0; c * out_len];
        for (channel, between) in planes_mut(&mut between, c).into_iter().enumerate() {
            for (o, grad) in planes(&grad, c_out).into_iter().enumerate() {
                let sums = between.iter_mut().zip(grad);
                sums.for_each(|(sum, grad)| *sum += pointwise[o * c + channel] * grad);
            }
        }
        for channel in 0..c {
            let w = &depthwise[channel * window.kernel_len()..][..window.kernel_len()];
            let between = Held::new(planes(&between, c)[channel], window.output()[0]);
            let mut grad_z = vec![0.0; in_len];
            let (onto, ahead) = (Onto::new(&mut grad_z), &mut Ahead::none());
            unit.stencil().backward_rows(between, w, 0, onto, ahead);
            let off = grad_z
                .iter_mut()
                .zip(z[channel])
                .filter(|(_, z)| **z <= 0.0);
            off.for_each(|(grad, _)| *grad = 0.0);
            assert_close(planes(&expected, c)[channel], &grad_z);
            // So are the gradients of the weights.
            let n_taps = window.kernel_len();
            let z = Held::new(z[channel], window.input[0]);
            let (mut d, mut sums) = (vec![0.0; out_len], vec![0.0; n_taps]);
            unit.stencil()
                .forward_rows::<_, false>(z, w, 0, &mut d, ahead);
            let own = TapSums {
                partial: &mut vec![f64::NAN; n_taps * LINE],
                is_first: true,
                total: &mut sums,
                is_last: true,
            };
            let rows = 0..window.output()[0];
            unit.stencil()
                .add_tap_products::<_, false>(z, between, rows, own, ahead);
            let found = of_normalised.weights.as_ref().expect("wanted");
            assert_close(&found.depthwise[channel * n_taps..][..n_taps], &sums);
            for (o, grad) in planes(&grad, c_out).into_iter().enumerate() {
                let sum = grad.iter().zip(&d).map(|(grad, d)| grad * d).sum();
                assert_close(&[found.pointwise[o * c + channel]], &[sum]);
            }
        }
        let [expected_weights, weights] =
            [of_normalised.weights, of_raw.weights].map(|weights| weights.expect("wanted"));
        assert_close(&weights.depthwise, &expected_weights.depthwise);
        assert_close(&weights.pointwise, &expected_weights.pointwise);
        let sources: Vec<Vec<&[f64]>> = raw.iter().map(|plane| vec![*plane]).collect();
        let sums = dots(&planes(&expected, c), &sources);
        for ([sum, product], (expected_sum, products)) in of_raw.sums.into_iter().zip(sums) {
            assert_close(&[sum, product], &[expected_sum, products[0]]);
        }
    }
}

#[test]
fn a_unit_gives_the_same_numbers_whoever_helps_with_its_rows() {
    // Of the last one the padding is less than what keeps the size: rows may need none but earlier ones.
    let windows = [
        (3, 1, 1),
        (5, 1, 2),
        (5, 2, 1),
        (5, 2, 2),
        (2, 2, 3),
        (3, 1, 3),
    ];
    // Groups of four rows, of one and of three; so few rows that all are one group; and so few in spans of one that an input row
    // needs an output row that none before it needs.
    let sizes = [
        (150, 80, 4),
        (20, 1000, 8),
        (21, 1000, 2),
        (4, 3, 4),
        (5, 1000, 8),
    ];
    let cases = windows
        .into_iter()
        .flat_map(|window| sizes.map(|size| (window, size)));
    for ((kernel, stride, dilation), (h, n, c)) in cases {
        let geometry = Conv2dGeometry {
            padding: if dilation == 3 && kernel == 3 {
                2
            } else {
                dilation * kernel / 2
            },
            stride,
            dilation,
        };
        let window = Window::new("test", [h, 5], [kernel; 2], geometry).unwrap();
        let [in_len, out_len] = [window.input_len(), window.output_len()].map(|len| len * n);
        let (raw, grad) = (numbers(c * in_len, 1), numbers(c * out_len, 4));
        let affine: Vec<Affine<f64>> = (0..c)
            .map(|channel| Affine {
                mean: 0.1 * channel as f64,
                factor: 1.5,
                bias: 0.1,
            })
            .collect();
        let depthwise = numbers(c * window.kernel_len(), 2);
        let pointwise = numbers(c * c, 3);
        let unit = Unit::new(Stencil::new(window, n));
        let run = |is_raw: bool| {
            let planes_of_raw = planes(&raw, c);
            let source = match is_raw {
                true => Source::raw(&planes_of_raw, &affine),
                false => Source::new(&planes_of_raw),
            };
            let (mut y, mut grad_z) = (vec![f64::NAN; c * out_len], vec![f64::NAN; c * in_len]);
            let moments = unit.forward(source, &depthwise, &pointwise, planes_mut(&mut y, c));
            let target = Target::new(planes_mut(&mut grad_z, c));
            let grad_y = given(planes(&grad, c));
            let mut wants = UnitWants {
                weights: true,
                sums: is_raw,
            };
            let grads = unit.backward(source, &depthwise, &pointwise, &grad_y, target, wants);
            let mut sum = grad_z.clone();
            let target = Target {
                planes: planes_mut(&mut sum, c),
                adds: true,
            };
            (wants.weights, wants.sums) = (false, false);
            unit.backward(source, &depthwise, &pointwise, &grad_y, target, wants);
            let doubled = grad_z.iter().map(|grad| 2.0 * grad);
            assert!(sum.iter().copied().eq(doubled));
            // Nor does it depend on what else is wanted.
            let target = Target::new(planes_mut(&mut sum, c));
            wants.sums = is_raw;
            let without = unit.backward(source, &depthwise, &pointwise, &grad_y, target, wants);
            assert!(sum == grad_z && without.sums == grads.sums);
            (y, moments, grad_z, grads)
        };
        let on_threads = |n_threads: usize, is_raw: bool| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(n_threads);
            pool.build().expect("threads").install(|| run(is_raw))
        };
        for is_raw in [false, true] {
            let expected = on_threads(1, is_raw);
            for n_threads in [2, 3, 5] {
                assert!(on_threads(n_threads, is_raw) == expected);
            }
            // As if somebody took every span, or so many at a time.
            for n_spans in 1..=3 {
                stretches::APART.set(n_spans);
                assert!(run(is_raw) == expected);
            }
            stretches::APART.set(0);
        }
    }
}

#[test]
fn a_dense_convolution_and_the_gradient_of_its_kernel_are_the_naive_ones() {
    for window in windows().into_iter().filter(|window| window.dilation == 1) {
        for n in [1, 3, 17] {
            let (c_in, c_out) = (2, 5);
            let shape = conv2d::Shape {
                n,
                i: c_in,
                o: c_out,
                window,
            };
            let [in_len, out_len] = [window.input_len(), window.output_len()];
            let x = numbers(n * c_in * in_len, 1);
            let w = numbers(c_out * c_in * window.kernel_len(), 2);
            let grad = numbers(n * c_out * out_len, 3);
            let x_planes = to_planes(&x, [n, c_in, in_len]);
            let grad_planes = to_planes(&grad, [n, c_out, out_len]);

            let dense = Dense::new(window, n);
            let mut y = vec![f64::NAN; n * c_out * out_len];
            let found = dense.forward(&planes(&x_planes, c_in), &w, planes_mut(&mut y, c_out));
            let expected = conv2d::naive::forward(&x, &w, &shape);
            assert_close(&y, &to_planes(&expected, [n, c_out, out_len]));
            for (found, expected) in found.iter().zip(moments(&planes(&y, c_out))) {
                assert_close(&[found.mean, found.var], &[expected.mean, expected.var]);
            }
            let grad_y = given(planes(&grad_planes, c_out));
            let found = dense.backward(&planes(&x_planes, c_in), &grad_y);
            assert_close(&found, &conv2d::naive::grad_w(&grad, &x, &shape));
        }
    }
}

/// On planes of one piece, of several, and of several spans.
#[test]
fn a_pointwise_convolution_and_its_gradients_are_the_plain_loops() {
    for ([n_in, n_out], len) in [([3, 2], 7), ([40, 5], 1000), ([40, 33], 9001)] {
        let (raw, w) = (numbers(n_in * len, 1), numbers(n_out * n_in, 2));
        let (grad, before) = (numbers(n_out * len, 3), numbers(n_in * len, 4));
        let raw = planes(&raw, n_in);
        // What is read raw is normalised to the same.
        let affine: Vec<Affine<f64>> = (0..n_in)
            .map(|channel| Affine {
                mean: 0.1 * channel as f64,
                factor: [0.5, -2.0][channel % 2],
                bias: 0.25,
            })
            .collect();
        let mut x = vec![0.0; n_in * len];
        normalise(planes_mut(&mut x, n_in), &raw, &affine);
        let z: Vec<f64> = x.iter().map(|x| x.max(0.0)).collect();
        for (adds, is_raw) in [(true, false), (false, false), (true, true), (false, true)] {
            let x_planes = planes(&x, n_in);
            let source = match is_raw {
                false => Source::new(&x_planes),
                true => Source::raw(&raw, &affine),
            };
            let mut y = vec![f64::NAN; n_out * len];
            let found = pointwise_forward(source, &w, planes_mut(&mut y, n_out));
            let mut expected = vec![0.0; n_out * len];
            let mut expected_x = vec![0.0; n_in * len];
            let mut expected_w = vec![0.0; n_out * n_in];
            for o in 0..n_out {
                for c in 0..n_in {
                    for at in 0..len {
                        let (y, x) = (o * len + at, c * len + at);
                        expected[y] += w[o * n_in + c] * z[x];
                        expected_x[x] += w[o * n_in + c] * grad[y];
                        expected_w[o * n_in + c] += grad[y] * z[x];
                    }
                }
            }
            assert_close(&y, &expected);
            for (found, expected) in found.iter().zip(moments(&planes(&y, n_out))) {
                assert_close(&[found.mean, found.var], &[expected.mean, expected.var]);
            }
            for (own, (x, before)) in expected_x.iter_mut().zip(x.iter().zip(&before)) {
                if *x <= 0.0 {
                    *own = 0.0;
                }
                *own += if adds { *before } else { 0.0 };
            }
            let mut grad_x = before.clone();
            let target = Target {
                planes: planes_mut(&mut grad_x, n_in),
                adds,
            };
            let wanted = PointwiseGrads {
                x: Some(target),
                w: true,
            };
            // The channels of two readers, one below the other.
            let grads = planes(&grad, n_out);
            let (first, second) = grads.split_at(n_out / 2);
            let grad_y = given(first.to_vec()).and(given(second.to_vec()));
            let found = pointwise_backward(source, &w, &grad_y, wanted);
            assert_close(&grad_x, &expected_x);
            assert_close(&found.unwrap(), &expected_w);
            // Without the gradient of the weights that of the input is the same.
            let mut again = before.clone();
            let target = Target {
                planes: planes_mut(&mut again, n_in),
                adds,
            };
            let alone = PointwiseGrads {
                x: Some(target),
                w: false,
            };
            assert_eq!(pointwise_backward(source, &w, &grad_y, alone), None);
            assert_eq!(again, grad_x);
            let none = PointwiseGrads { x: None, w: false };
            assert_eq!(pointwise_backward(source, &w, &grad_y, none), None);
        }
    }
}

/// A gradient that no normalisation changes.
fn given(grads: Vec<&[f64]>) -> NormGrad<'_, f64> {
    let still = Moments {
        mean: 0.0,
        var: 1.0,
    };
    let n = grads.len();
    NormGrad::new(
        grads.clone(),
        grads,
        &vec![still; n],
        0.0,
        &vec![[0.0; 2]; n],
        &vec![1.0; n],
    )
}

#[test]
fn poolings_and_their_gradients_are_the_naive_ones() {
    for window in windows()
        .into_iter()
        .filter(|w| w.dilation == 1 && w.kernel[0] == 3)
    {
        for n in [1, 5, 70] {
            let c = 3;
            let [in_len, out_len] = [window.input_len(), window.output_len()];
            // Few different values: many ties.
            let x: Vec<f64> = numbers(n * c * in_len, 4)
                .iter()
                .map(|x| (3.0 * x).round())
                .collect();
            let grad = numbers(n * c * out_len, 5);
            let (x_planes, grad_planes) = (
                to_planes(&x, [n, c, in_len]),
                to_planes(&grad, [n, c, out_len]),
            );
            let (mut y, mut grad_x) = (vec![0.0; n * c * out_len], vec![0.0; n * c * in_len]);

            let shape = max_pool2d::Shape { n, c, window };
            let pool = MaxPool::new(window, n);
            pool.forward(&planes(&x_planes, c), planes_mut(&mut y, c));
            assert_close(
                &y,
                &to_planes(&max_pool2d::naive::forward(&x, &shape), [n, c, out_len]),
            );
            pool.add_backward(
                &planes(&x_planes, c),
                &planes(&y, c),
                &planes(&grad_planes, c),
                planes_mut(&mut grad_x, c),
            );
            let expected = max_pool2d::naive::grad_x(&grad, &x, &shape);
            assert_close(&grad_x, &to_planes(&expected, [n, c, in_len]));

            let shape = avg_pool2d::Shape { n, c, window };
            let stencil = Stencil::new(window, n);
            average(&stencil, &planes(&x_planes, c), planes_mut(&mut y, c));
            assert_close(
                &y,
                &to_planes(&avg_pool2d::naive::forward(&x, &shape), [n, c, out_len]),
            );
            grad_x.fill(0.0);
            let grad_y = planes(&grad_planes, c);
            average_backward(&stencil, &grad_y, planes_mut(&mut grad_x, c));
            let expected = avg_pool2d::naive::grad_x(&grad, &shape);
            assert_close(&grad_x, &to_planes(&expected, [n, c, in_len]));
        }
    }
}

#[test]
fn sums_products_and_moments_are_those_of_plain_loops() {
    let len = 2 * PIECE + 77;
    let (a, b) = (numbers(len, 6), numbers(len, 7));
    let mut y = vec![2.0; len];
    let term = |factor, bias, plane| Term {
        affine: Affine {
            mean: 0.5,
            factor,
            bias,
        },
        plane,
        image_factors: None,
    };
    combine(
        vec![&mut y],
        &[vec![term(0.5, 0.25, &a[..]), term(-3.0, 1.0, &b[..])]],
    );
    let expected: Vec<f64> = a
        .iter()
        .zip(&b)
        .map(|(a, b)| 1.25 + 0.5 * (a - 0.5) - 3.0 * (b - 0.5))
        .collect();
    assert_close(&y, &expected);

    let sum: f64 = a.iter().sum();
    let product = |other: &[f64]| a.iter().zip(other).map(|(x, y)| x * y).sum::<f64>();
    let sources = [&a[..], &b[..], &y[..]];
    for n in 0..=3 {
        let (found, products) = dots(&[&a], &[sources[..n].to_vec()]).remove(0);
        let expected = sources[..n].iter().map(|source| product(source));
        assert_close(&[found], &[sum]);
        assert_close(&products, &expected.collect::<Vec<f64>>());
    }

    let mut y = b.clone();
    accumulate(vec![&mut y], &[&a]);
    let expected: Vec<f64> = b.iter().zip(&a).map(|(x, y)| x + y).collect();
    assert_close(&y, &expected);

    let found = moments(&[&a])[0];
    let mean = sum / len as f64;
    let var = a.iter().map(|a| (a - mean).powi(2)).sum::<f64>() / len as f64;
    assert_close(&[found.mean, found.var], &[mean, var]);
}

/// Numbers of images that pieces and vectors are a multiple of, or not, one among them, and more than a piece holds.
#[test]
fn images_are_dropped_where_they_are_read() {
    for n_images in [64, 7, 1, PIECE + 3] {
        let len = n_images * (2 * PIECE).div_ceil(n_images) + n_images;
        let factors = numbers(n_images, 3);
        let (a, b) = (numbers(len, 6), numbers(len, 7));
        let dropped: Vec<f64> = a
            .iter()
            .enumerate()
            .map(|(at, a)| factors[at % n_images] * a)
            .collect();
        let affine = Affine {
            mean: 0.5,
            factor: -3.0,
            bias: 0.25,
        };
        let mut y = vec![f64::NAN; len];
        let term = Term {
            affine,
            plane: &a,
            image_factors: Some(&factors),
        };
        assert!(term.unchanged().is_none());
        let whole = Term::new(2.0, &b[..]);
        combine(vec![&mut y], &[vec![term, whole, term]]);
        let of_images = (0..len).map(|at| factors[at % n_images]);
        let expected = of_images
            .zip(a.iter().zip(&b))
            .map(|(factor, (a, b))| 2.0 * factor * (0.25 - 3.0 * (a - 0.5)) + 2.0 * b);
        assert_close(&y, &expected.collect::<Vec<f64>>());

        let found = dropped_dots(&[&a], &[&b], &factors)[0];
        let (sum, products) = dots(&[&dropped], &[vec![&b]]).remove(0);
        assert_close(&found, &[sum, products[0]]);

        // A gradient of which a part is wanted, behind one of which nothing is dropped.
        let moments = [Moments {
            mean: 0.1,
            var: 0.9,
        }];
        let grad_of = |grad| NormGrad::new(vec![grad], vec![&b], &moments, 0.0, &[found], &[1.5]);
        let both = grad_of(&b).and(grad_of(&a).dropped(Some(&factors)));
        let (start, part) = (PIECE / 2 + 5, 3000);
        let [mut rows, mut expected] = [(); 2].map(|()| vec![f64::NAN; 2 * part]);
        both.fill(start, part, &mut rows, part);
        let of_dropped = grad_of(&b).and(grad_of(&dropped));
        of_dropped.fill(start, part, &mut expected, part);
        assert_close(&rows, &expected);
        let second = both.channels(1..2);
        second.write_to(vec![&mut y]);
        assert_close(&y[start..start + part], &expected[part..]);
    }
}

#[test]
fn of_halved_planes_every_second_pixel_is_read_and_has_a_gradient() {
    let grid = Grid { h: 3, w: 4, n: 2 };
    let x: Vec<f64> = (0..grid.len()).map(|i| i as f64).collect();
    let negative: Vec<f64> = x.iter().map(|x| -x).collect();
    let x_planes = [&x[..], &negative];
    // Row 1, columns 1 and 3; row 3 is beyond the plane.
    let odd = Source::new(&x_planes).halved(grid, 1);
    assert_eq!(odd.plane_len(), 8);
    let mut y = vec![9.0; 8];
    // What is negative does not pass the ReLU.
    pointwise_forward(odd, &[1.0, 5.0], vec![&mut y]);
    assert_eq!(y, [10.0, 11.0, 14.0, 15.0, 0.0, 0.0, 0.0, 0.0]);
    // Within pixels, and normalised: what lies beyond stays zero.
    let affine = [1.0, -1.0].map(|factor| Affine {
        mean: 0.0,
        factor,
        bias: 1.0,
    });
    let even = Source::raw(&x_planes, &affine).halved(grid, 0);
    let mut rows = vec![9.0; 10];
    even.fill(1, 5, &mut rows, 5);
    assert_eq!(rows, [2.0, 5.0, 6.0, 17.0, 18.0].repeat(2));
    let odd = Source::raw(&x_planes, &affine).halved(grid, 1);
    odd.fill(3, 5, &mut rows, 5);
    assert_eq!(rows, [16.0, 0.0, 0.0, 0.0, 0.0].repeat(2));
    // A gradient passes where something is read.
    let grad = [1.0; 8];
    let mut grad_x = vec![9.0; 8];
    let target = PointwiseGrads {
        x: Some(Target::new(vec![&mut grad_x])),
        w: true,
    };
    let x_planes = [&x[..]];
    let even = Source::new(&x_planes).halved(grid, 0);
    let grad_w = pointwise_backward(even, &[3.0], &given(vec![&grad]), target);
    assert_eq!(
        grad_w,
        Some(vec![0.0 + 1.0 + 4.0 + 5.0 + 16.0 + 17.0 + 20.0 + 21.0])
    );
    assert_eq!(grad_x, [0.0, 3.0, 3.0, 3.0, 3.0, 3.0, 3.0, 3.0]);
    // So it does behind a normalisation, 2 - x here, and at an odd width: of row 1, column 1; the next is beyond the plane.
    let grid = Grid { h: 2, w: 3, n: 2 };
    let x = [8.0, 8.0, 8.0, 8.0, 8.0, 8.0, 8.0, 8.0, 1.0, -9.0, 8.0, 8.0];
    let turn = [Affine {
        mean: 2.0,
        factor: -1.0,
        bias: 0.0,
    }];
    let x_planes = [&x[..]];
    let odd = Source::raw(&x_planes, &turn).halved(grid, 1);
    let mut grad_x = vec![9.0; 4];
    for expected in [[3.0, 3.0, 0.0, 0.0], [6.0, 6.0, 0.0, 0.0]] {
        let target = PointwiseGrads {
            x: Some(Target {
                planes: vec![&mut grad_x],
                adds: expected[0] > 3.0,
            }),
            w: true,
        };
        let grad_w = pointwise_backward(odd, &[3.0], &given(vec![&[1.0; 4]]), target);
        assert_eq!(grad_w, Some(vec![1.0 + 11.0]));
        assert_eq!(grad_x, expected);
    }
    let grid = Grid { h: 3, w: 4, n: 2 };
    let grads: [&[&[f64]]; 2] = [&[&[2.0; 8]], &[&[1.0; 8]]];
    let mut grad_x = vec![7.0; grid.len()];
    halved_backward(grid, grads, vec![&mut grad_x], false);
    let picked = |x: &[f64], grad| -> Vec<usize> {
        (0..grid.len()).filter(|&index| x[index] == grad).collect()
    };
    assert_eq!(picked(&grad_x, 1.0), [10, 11, 14, 15]);
    assert_eq!(picked(&grad_x, 2.0), [0, 1, 4, 5, 16, 17, 20, 21]);
    assert_eq!(picked(&grad_x, 0.0).len(), grid.len() - 12);
    halved_backward(grid, grads, vec![&mut grad_x], true);
    assert_eq!(picked(&grad_x, 4.0).len(), 8);
}

#[test]
fn what_is_no_number_goes_on_to_the_loss() {
    let x = [1.0, f64::NAN, 3.0, -1.0];
    let geometry = Conv2dGeometry {
        padding: 0,
        stride: 1,
        dilation: 1,
    };
    let window = Window::new("test", [2, 2], [1; 2], geometry).unwrap();
    for source in [
        Source::new(&[&x]),
        Source::raw(&[&x], &[Affine::identity()]),
    ] {
        let mut y = [0.0; 4];
        let unit = Unit::new(Stencil::new(window, 1));
        unit.forward(source, &[1.0], &[1.0], vec![&mut y]);
        assert_eq!([y[0], y[2], y[3]], [1.0, 3.0, 0.0]);
        assert!(y[1].is_nan());
    }
    let mut y = [0.0; 4];
    pointwise_forward(Source::new(&[&x]), &[1.0], vec![&mut y]);
    assert!(y[1].is_nan() && y[2] == 3.0);
    let mut y = [0.0];
    let pool = MaxPool::halving(Grid { h: 2, w: 2, n: 1 });
    pool.forward(&[&x], vec![&mut y]);
    assert!(y[0].is_nan());
}
