//! What grouped cells are made of, against the single operations: results, and gradients as autograd finds them.

use candle_core::{DType, Device, Result, Tensor, Var};
use kernels::activated_depthwise::ActivatedDepthwise;
use kernels::channel_norm::{self, GroupGrad, batch_table, given_table};
use kernels::halves::{halves, halves_gradient};
use kernels::mix::{Shuffle, Term, dots, mix, weight_gradients};
use kernels::pieces;
use kernels::pointwise_conv2d::GroupedPointwise;
use kernels::{Conv2dGeometry, Precision};

use super::cases::{TOLERANCES, assert_close, rng, tensor, uniform, values};
use super::kernels;

const EPS: f64 = 1e-5;

/// A tensor of numbers drawn by a label.
fn drawn(label: &str, shape: &[usize], dtype: DType, device: &Device) -> Result<Tensor> {
    let values = uniform(&mut rng(label), shape.iter().product());
    tensor(&values, shape, dtype, device)
}

fn tolerance(dtype: DType) -> f64 {
    match dtype {
        DType::F64 => TOLERANCES.f64,
        _ => TOLERANCES.f32,
    }
}

fn assert_same(label: &str, actual: &Tensor, expected: &Tensor) -> Result<()> {
    assert_eq!(actual.dims(), expected.dims(), "{label}");
    let tolerance = tolerance(actual.dtype());
    assert_close(label, &values(actual)?, &values(expected)?, tolerance);
    Ok(())
}

/// The gradients of variables in `sum(y * grad)`.
fn gradients(y: &Tensor, grad: &Tensor, of: &[&Var]) -> Result<Vec<Tensor>> {
    let grads = (y * grad)?.sum_all()?.backward()?;
    let grad = |var: &&Var| grads.get(var).expect("a gradient").contiguous();
    of.iter().map(grad).collect()
}

/// Images and channels change places.
fn swapped(x: &Tensor) -> Result<Tensor> {
    x.transpose(0, 1)?.contiguous()
}

/// What a normalisation of given statistics gives, in the layout `c n h w`.
fn normed(x: &Tensor, moments: &Tensor, affine: Option<(&Tensor, &Tensor)>) -> Result<Tensor> {
    let [mean, var] = [0, 1].map(|row| moments.get(row)?.to_dtype(x.dtype()));
    swapped(&kernels::batch_norm_eval(
        &swapped(x)?,
        &mean?,
        &var?,
        affine,
        EPS,
    )?)
}

/// Means and variances of `c` channels.
fn moments(c: usize, device: &Device) -> Result<Tensor> {
    let mean = (0..c).map(|c| 0.25 * c as f64 - 0.5);
    let var = (0..c).map(|c| 0.5 + 0.25 * c as f64);
    tensor(
        &mean.chain(var).collect::<Vec<_>>(),
        &[2, c],
        DType::F64,
        device,
    )
}

fn for_both_types(check: impl Fn(DType) -> Result<()>) -> Result<()> {
    check(DType::F32)?;
    check(DType::F64)
}

pub(crate) fn activated_depthwise_is_relu_and_depthwise(device: &Device) -> Result<()> {
    for_both_types(|dtype| {
        for plane in [[1, 1], [2, 3], [5, 9], [8, 8], [17, 33]] {
            for (kernel, stride, dilation) in [
                (3, 1, 1),
                (5, 2, 1),
                (3, 2, 2),
                (5, 1, 2),
                (1, 2, 1),
                (2, 1, 1),
            ] {
                let geometry = Conv2dGeometry {
                    padding: dilation * (kernel - 1) / 2,
                    stride,
                    dilation,
                };
                for (e, c, n, is_shared, normalises) in [
                    (1, 1, 1, true, false),
                    (3, 2, 5, true, false),
                    (2, 3, 2, false, true),
                    (1, 2, 19, true, true),
                ] {
                    if geometry.out_size(plane[0], kernel) == 0
                        || geometry.out_size(plane[1], kernel) == 0
                    {
                        continue;
                    }
                    let label = format!(
                        "activated_depthwise {plane:?} {kernel} {geometry:?} {e} {c} {n} {is_shared} {normalises}"
                    );
                    let channels = if is_shared { c } else { e * c };
                    let x = Var::from_tensor(&drawn(
                        &label,
                        &[channels, n, plane[0], plane[1]],
                        dtype,
                        device,
                    )?)?;
                    let w = Var::from_tensor(&drawn("w", &[e, c, kernel, kernel], dtype, device)?)?;
                    let moments = moments(channels, device)?;
                    let table = given_table(&moments, None, EPS)?;
                    let op = ActivatedDepthwise::new(
                        x.as_tensor(),
                        normalises.then_some(&table),
                        w.as_tensor(),
                        geometry,
                    )?;
                    let y = op.forward()?;

                    let z = if normalises {
                        normed(&x, &moments, None)?
                    } else {
                        x.as_tensor().clone()
                    };
                    // A variable of its own, so that its gradient can be asked for.
                    let z = Var::from_tensor(&z.detach())?;
                    let activated = kernels::relu(&z)?;
                    let all = if is_shared {
                        Tensor::cat(&vec![&activated; e], 0)?
                    } else {
                        activated
                    };
                    let kernels = w.reshape((e * c, 1, kernel, kernel))?;
                    let expected = swapped(&kernels::depthwise_conv2d(
                        &swapped(&all)?,
                        &kernels,
                        geometry,
                    )?)?;
                    assert_same(&label, &y, &expected)?;

                    let grad = drawn("grad", y.dims(), dtype, device)?;
                    let expected = gradients(&expected, &grad, &[&z, &w])?;
                    assert_same(&label, &op.grad_z(&grad)?, &expected[0])?;
                    assert_same(&label, &op.grad_w(&grad)?, &expected[1])?;
                }
            }
        }
        Ok(())
    })
}

pub(crate) fn a_channel_norm_is_a_batch_norm(device: &Device) -> Result<()> {
    for_both_types(|dtype| {
        for (n, c, plane) in [
            (1, 1, [1, 2]),
            (3, 4, [7, 7]),
            (19, 2, [4, 4]),
            (2, 5, [33, 31]),
            (5, 1, [40, 40]),
        ] {
            for is_affine in [false, true] {
                let label = format!("channel_norm {n} {c} {plane:?} affine {is_affine}");
                let x =
                    Var::from_tensor(&drawn(&label, &[c, n, plane[0], plane[1]], dtype, device)?)?;
                let weight = Var::from_tensor(&drawn("weight", &[c], dtype, device)?)?;
                let bias = Var::from_tensor(&drawn("bias", &[c], dtype, device)?)?;
                let both = is_affine.then_some([weight.as_tensor(), bias.as_tensor()]);
                let table = batch_table(&x.as_detached_tensor(), both, EPS)?;
                let in_order = Shuffle {
                    n_groups: 1,
                    period: 1,
                };
                let shape = [c, n, plane[0], plane[1]];
                let term = Term {
                    norm: Some(table.clone()),
                    ..Term::new(&x.as_detached_tensor(), 0)?
                };
                let y = mix(&[term], &x, shape, in_order, false, false)?;

                let affine = is_affine.then_some((weight.as_tensor(), bias.as_tensor()));
                let (expected, seen) = kernels::batch_norm_train(&swapped(&x)?, affine, EPS)?;
                let expected = swapped(&expected)?;
                assert_same(&label, &y, &expected)?;
                // The batch norm of the CPU sums in `f32` where `x` is.
                let moments = Tensor::stack(&[&seen.mean, &seen.var], 0)?;
                let given = given_table(&moments, both, EPS)?;
                for (found, expected) in [
                    (table.narrow(1, 0, 2)?.t()?, moments),
                    (given, table.clone()),
                ] {
                    assert_close(
                        &label,
                        &values(&found)?,
                        &values(&expected)?,
                        tolerance(dtype),
                    );
                }

                let grad = drawn("grad", x.dims(), dtype, device)?;
                let raw = Term::new(&x.as_detached_tensor(), 0)?;
                let sums = dots(&[raw], &grad, in_order, false)?.squeeze(0)?;
                let group = GroupGrad {
                    grad: grad.clone(),
                    weight: None,
                    mask: None,
                    sums: sums.clone(),
                };
                let count = n * plane[0] * plane[1];
                let found = channel_norm::gradient(
                    &[group],
                    1,
                    &x.as_detached_tensor(),
                    &table,
                    count,
                    EPS,
                )?;
                let mut of = vec![&x];
                if is_affine {
                    of.extend([&weight, &bias]);
                }
                let expected = gradients(&expected, &grad, &of)?;
                assert_same(&label, &found, &expected[0])?;
                if is_affine {
                    let found = channel_norm::affine_gradients(&sums, &table, dtype, EPS)?;
                    assert_same(&label, &found, &Tensor::stack(&expected[1..], 0)?)?;
                }
            }
        }
        Ok(())
    })
}

/// Channel shuffle with groups, as the published code has it: `n c h w`.
fn shuffled(x: &Tensor, n_groups: usize) -> Result<Tensor> {
    let (n, c, h, w) = x.dims4()?;
    let x = x.reshape((n, n_groups, c / n_groups, h * w))?;
    x.transpose(1, 2)?.reshape((n, c, h, w))
}

/// A node of a cell: weighted, normalised and masked operations, and weighted bypasses, concatenated and shuffled.
pub(crate) fn a_node_is_a_mix(device: &Device) -> Result<()> {
    for_both_types(|dtype| {
        for (ratio, c, n, plane, n_terms) in [
            (1, 1, 1, [1, 1], 1),
            (4, 2, 3, [7, 5], 3),
            (2, 3, 2, [33, 31], 2),
            (1, 4, 5, [8, 8], 5),
            (4, 1, 1, [3, 3], 70),
        ] {
            let label = format!("node {ratio} {c} {n} {plane:?} {n_terms}");
            let shuffle = Shuffle {
                n_groups: ratio,
                period: c,
            };
            let all = ratio * c;
            let shape = |c: usize| [c, n, plane[0], plane[1]];
            let draw = |what: &str, shape: &[usize]| {
                Var::from_tensor(&drawn(&format!("{label} {what}"), shape, dtype, device)?)
            };
            let weights = draw("weights", &[n_terms])?;
            let edges = draw("edges", &[n_terms])?;
            let table = given_table(&moments(c, device)?, None, EPS)?;
            let (mut terms, mut bypasses) = (Vec::new(), Vec::new());
            let (mut xs, mut passing) = (Vec::new(), Vec::new());
            let mut sum: Option<(Tensor, Option<Tensor>)> = None;
            for t in 0..n_terms {
                let x = draw(&format!("x{t}"), &shape(c))?;
                let mask = drawn(&format!("mask {t}"), &[n], dtype, device)?;
                let (norm, mask) = (t % 2 == 0, (t % 3 == 0).then_some(mask));
                terms.push(Term {
                    norm: norm.then(|| table.clone()),
                    weight: Some(weights.as_detached_tensor().narrow(0, t, 1)?),
                    mask: mask.clone(),
                    ..Term::new(&x.as_detached_tensor(), 0)?
                });
                let mut y = if norm {
                    normed(&x, &moments(c, device)?, None)?
                } else {
                    x.as_tensor().clone()
                };
                if let Some(mask) = &mask {
                    y = y.broadcast_mul(&mask.reshape((1, n, 1, 1))?)?;
                }
                let y =
                    swapped(&y.broadcast_mul(&weights.narrow(0, t, 1)?.reshape((1, 1, 1, 1))?)?)?;
                xs.push(x);
                let bypass = if ratio > 1 {
                    let b = draw(&format!("b{t}"), &shape(all - c))?;
                    bypasses.push(Term {
                        weight: Some(edges.as_detached_tensor().narrow(0, t, 1)?),
                        ..Term::new(&b.as_detached_tensor(), c)?
                    });
                    let y = b.broadcast_mul(&edges.narrow(0, t, 1)?.reshape((1, 1, 1, 1))?)?;
                    passing.push(b);
                    Some(swapped(&y)?)
                } else {
                    None
                };
                sum = Some(match sum {
                    None => (y, bypass),
                    Some((sum, passed)) => (
                        (sum + y)?,
                        passed.zip(bypass).map(|(a, b)| a + b).transpose()?,
                    ),
                });
            }
            let expected = match sum.expect("a term") {
                (sum, None) => swapped(&sum)?,
                (sum, Some(passed)) => {
                    swapped(&shuffled(&Tensor::cat(&[sum, passed], 1)?, ratio)?)?
                }
            };
            let both: Vec<Term> = terms.iter().chain(&bypasses).cloned().collect();
            let y = mix(&both, &weights, shape(all), shuffle, true, false)?;
            assert_same(&label, &y, &expected)?;
            let activated = mix(&both, &weights, shape(all), shuffle, true, true)?;
            assert_same(&label, &activated, &kernels::relu(&y)?)?;
            if n_terms > 64 {
                continue;
            }

            let grad = drawn("grad", y.dims(), dtype, device)?;
            let mut of: Vec<&Var> = xs.iter().chain(&passing).collect();
            of.push(&weights);
            if ratio > 1 {
                of.push(&edges);
            }
            let expected = gradients(&expected, &grad, &of)?;
            // The gradients of weights.
            let sums = dots(&terms, &grad, shuffle, true)?;
            let places: Vec<usize> = (0..n_terms).collect();
            let found = weight_gradients(&terms, &sums, &places, n_terms)?;
            assert_same(&label, &found, &expected[xs.len() + passing.len()])?;
            if ratio > 1 {
                let sums = dots(&bypasses, &grad, shuffle, true)?;
                let found = weight_gradients(&bypasses, &sums, &places, n_terms)?;
                assert_same(&label, &found, &expected[xs.len() + passing.len() + 1])?;
            }
            // The gradient of each term: a sum that reads the shuffled one.
            for (t, x) in xs.iter().enumerate() {
                let term = Term {
                    n_channels: c,
                    shuffled_from: Some(0),
                    weight: terms[t].weight.clone(),
                    mask: terms[t].mask.clone(),
                    ..Term::new(&grad, 0)?
                };
                let mut found = mix(&[term], x, shape(c), shuffle, false, false)?;
                if terms[t].norm.is_some() {
                    let factor = table
                        .narrow(1, 2, 1)?
                        .to_dtype(dtype)?
                        .reshape((c, 1, 1, 1))?;
                    found = found.broadcast_mul(&factor)?;
                }
                assert_same(&label, &found, &expected[t])?;
            }
            for (t, b) in passing.iter().enumerate() {
                let term = Term {
                    first: 0,
                    n_channels: all - c,
                    shuffled_from: Some(c),
                    weight: bypasses[t].weight.clone(),
                    ..Term::new(&grad, 0)?
                };
                let found = mix(&[term], b, shape(all - c), shuffle, false, false)?;
                assert_same(&label, &found, &expected[xs.len() + t])?;
            }
        }
        Ok(())
    })
}

/// Several operations of one kind, each on an edge to a node of its own: what comes back through their normalisations.
pub(crate) fn gradients_of_groups_come_from_their_nodes(device: &Device) -> Result<()> {
    for_both_types(|dtype| {
        let (e, c, ratio, n, plane) = (3, 2, 4, 3, [5, 7]);
        let shape = [e * c, n, plane[0], plane[1]];
        let raw = Var::from_tensor(&drawn("raw", &shape, dtype, device)?)?;
        let table = batch_table(&raw.as_detached_tensor(), None, EPS)?;
        let shuffle = Shuffle {
            n_groups: ratio,
            period: c,
        };
        let normalised = swapped(&kernels::batch_norm_train(&swapped(&raw)?, None, EPS)?.0)?;
        let mut loss = Tensor::zeros((), dtype, device)?;
        let mut groups = Vec::new();
        for index in 0..e {
            let grad = drawn(
                &format!("grad {index}"),
                &[ratio * c, n, plane[0], plane[1]],
                dtype,
                device,
            )?;
            let weight = drawn(&format!("weight {index}"), &[1], dtype, device)?;
            let mask = drawn(&format!("mask {index}"), &[n], dtype, device)?;
            let own = raw.as_detached_tensor().narrow(0, index * c, c)?;
            let term = Term {
                mask: Some(mask.clone()),
                ..Term::new(&own, 0)?
            };
            let sums = dots(&[term], &grad, shuffle, true)?.squeeze(0)?;
            groups.push(GroupGrad {
                grad: grad.clone(),
                weight: Some(weight.clone()),
                mask: Some(mask.clone()),
                sums,
            });
            // The channels of the node that are the group's.
            let own = (0..c)
                .map(|k| grad.narrow(0, shuffle.place(k), 1))
                .collect::<Result<Vec<_>>>()?;
            let own = Tensor::cat(&own, 0)?.broadcast_mul(&mask.reshape((1, n, 1, 1))?)?;
            let y = normalised
                .narrow(0, index * c, c)?
                .broadcast_mul(&weight.reshape((1, 1, 1, 1))?)?;
            loss = (loss + (y * own)?.sum_all()?)?;
        }
        let count = n * plane[0] * plane[1];
        let found = channel_norm::gradient(
            &groups,
            ratio,
            &raw.as_detached_tensor(),
            &table,
            count,
            EPS,
        )?;
        let grads = loss.backward()?;
        assert_same("groups", &found, grads.get(&raw).expect("a gradient"))
    })
}

/// Where a gate is shut, and where the channels lie in another order.
pub(crate) fn a_gate_stops_what_a_relu_stops(device: &Device) -> Result<()> {
    for_both_types(|dtype| {
        let shape = [3, 2, 9, 5];
        let grad = drawn("grad", &shape, dtype, device)?;
        let x = Var::from_tensor(&drawn("x", &shape, dtype, device)?)?;
        let in_order = Shuffle {
            n_groups: 1,
            period: 1,
        };
        let term = Term {
            gate: Some(x.as_detached_tensor()),
            ..Term::new(&grad, 0)?
        };
        let found = mix(
            std::slice::from_ref(&term),
            &x,
            shape,
            in_order,
            false,
            false,
        )?;
        assert_same(
            "gate",
            &found,
            &gradients(&kernels::relu(&x)?, &grad, &[&x])?[0],
        )?;
        // What is not covered is 0.
        let wide = mix(
            &[Term { first: 1, ..term }],
            &x,
            [5, 2, 9, 5],
            in_order,
            false,
            false,
        )?;
        let zeros = Tensor::zeros((1, 2, 9, 5), dtype, device)?;
        assert_same("zeros", &wide, &Tensor::cat(&[&zeros, &found, &zeros], 0)?)
    })
}

pub(crate) fn halves_are_every_second_pixel(device: &Device) -> Result<()> {
    for_both_types(|dtype| {
        for plane in [[1, 1], [2, 2], [4, 6], [7, 5], [16, 33]] {
            let [h, w] = plane;
            let x = Var::from_tensor(&drawn("x", &[3, 2, h, w], dtype, device)?)?;
            let padded = x.pad_with_zeros(2, 0, h % 2)?.pad_with_zeros(3, 0, w % 2)?;
            let [half_h, half_w] = plane.map(|size| size.div_ceil(2));
            let pixels = padded.reshape((3, 2, half_h, 2, half_w, 2))?;
            let half = |at: usize| {
                pixels
                    .narrow(3, at, 1)?
                    .narrow(5, at, 1)?
                    .reshape((3, 2, half_h, half_w))
            };
            let expected = Tensor::cat(&[half(0)?, half(1)?], 0)?;
            let y = halves(&x.as_detached_tensor(), false)?;
            assert_same("halves", &y, &expected)?;
            assert_same(
                "halves",
                &halves(&x.as_detached_tensor(), true)?,
                &kernels::relu(&expected)?,
            )?;
            let grad = drawn("grad", y.dims(), dtype, device)?;
            let expected = gradients(&expected, &grad, &[&x])?;
            assert_same("halves", &halves_gradient(&grad, plane)?, &expected[0])?;
        }
        Ok(())
    })
}

pub(crate) fn grouped_products_are_pointwise_convolutions(device: &Device) -> Result<()> {
    let precisions = |dtype| match dtype {
        DType::F32 => &[Precision::F32, Precision::Bf16][..],
        _ => &[Precision::F32],
    };
    for_both_types(|dtype| {
        let sizes = [
            (1, 1, 1, 1, [1, 1]),
            (3, 4, 6, 3, [5, 7]),
            (2, 17, 5, 6, [3, 2]),
            (1, 16, 16, 24, [16, 16]),
        ];
        let cases = precisions(dtype).iter();
        for (precision, (e, i, o, n, plane)) in cases.flat_map(|p| sizes.map(|size| (*p, size))) {
            let label = format!("grouped {precision:?} {e} {i} {o} {n} {plane:?}");
            let x = Var::from_tensor(&drawn(
                &label,
                &[e * i, n, plane[0], plane[1]],
                dtype,
                device,
            )?)?;
            let w = Var::from_tensor(&drawn("w", &[e, o, i], dtype, device)?)?;
            let op = GroupedPointwise::new(&x, &w, precision)?;
            let y = op.forward()?;
            let of = |group: usize| {
                let x = swapped(&x.narrow(0, group * i, i)?)?;
                let w = w.get(group)?.reshape((o, i, 1, 1))?;
                swapped(&kernels::pointwise_conv2d_in(&x, &w, precision)?)
            };
            let expected = Tensor::cat(&(0..e).map(of).collect::<Result<Vec<_>>>()?, 0)?;
            assert_same(&label, &y, &expected)?;
            let grad = drawn("grad", y.dims(), dtype, device)?;
            let expected = gradients(&expected, &grad, &[&x, &w])?;
            assert_same(&label, &op.grad_x(&grad)?, &expected[0])?;
            assert_same(&label, &Tensor::stack(&op.grad_w(&grad)?, 0)?, &expected[1])?;
        }
        Ok(())
    })
}

pub(crate) fn pieces_change_all_tensors_alike(device: &Device) -> Result<()> {
    for_both_types(|dtype| {
        // More than one launch takes, and one that is longer than a block.
        let shapes: Vec<Vec<usize>> = (0..150)
            .map(|i| vec![1 + i % 7, 1 + i % 3])
            .chain([vec![5000]])
            .collect();
        let draw = |what: &str| -> Result<Vec<Tensor>> {
            let of = |(i, shape): (usize, &Vec<usize>)| {
                drawn(&format!("{what} {i}"), shape, dtype, device)
            };
            shapes.iter().enumerate().map(of).collect()
        };
        let (weights, buffers, grads) = (draw("weight")?, draw("buffer")?, draw("grad")?);
        let flat = |tensors: &[Tensor]| {
            Tensor::cat(
                &tensors
                    .iter()
                    .map(Tensor::flatten_all)
                    .collect::<Result<Vec<_>>>()?,
                0,
            )
        };
        let all: Vec<&Tensor> = grads.iter().collect();
        let factor = tensor(&[0.25], &[1], dtype, device)?;
        assert_same("pack", &pieces::pack(&all, None)?, &flat(&grads)?)?;
        assert_same(
            "pack",
            &pieces::pack(&all, Some(&factor))?,
            &(flat(&grads)? * 0.25)?,
        )?;
        let squares = flat(&grads)?
            .to_dtype(DType::F64)?
            .sqr()?
            .sum_all()?
            .reshape(1)?;
        assert_same("squares", &pieces::sum_of_squares(&all)?, &squares)?;

        let vars = |tensors: &[Tensor]| {
            tensors
                .iter()
                .map(Var::from_tensor)
                .collect::<Result<Vec<_>>>()
        };
        let (weight_vars, buffer_vars) = (vars(&weights)?, vars(&buffers)?);
        let of: Vec<pieces::SgdPiece<'_>> = weight_vars
            .iter()
            .zip(&buffer_vars)
            .zip(&grads)
            .map(|((weight, buffer), grad)| pieces::SgdPiece {
                weight,
                buffer,
                grad,
            })
            .collect();
        let step = pieces::SgdStep {
            momentum: 0.9,
            weight_decay: 0.125,
            learning_rate: 0.5,
            gradient_scale: 0.75,
        };
        pieces::sgd(&of, step)?;
        let detached = |vars: &[Var]| vars.iter().map(Var::as_detached_tensor).collect::<Vec<_>>();
        let decayed = ((flat(&grads)? * 0.75)? + (flat(&weights)? * 0.125)?)?;
        let buffer = ((flat(&buffers)? * 0.9)? + decayed)?;
        assert_same("buffers", &flat(&detached(&buffer_vars))?, &buffer)?;
        let moved = (flat(&weights)? - (&buffer * 0.5)?)?;
        assert_same("weights", &flat(&detached(&weight_vars))?, &moved)?;

        // Running statistics, of a table that is a view.
        let c = 5;
        let table = given_table(&moments(3 * c, device)?, None, EPS)?;
        let running: Vec<[Var; 2]> = (0..3)
            .map(|i| {
                Ok([0, 1]
                    .map(|k| {
                        Var::from_tensor(&drawn(&format!("running {i} {k}"), &[c], dtype, device)?)
                    })
                    .map(|v| v.expect("a variable")))
            })
            .collect::<Result<_>>()?;
        let before: Vec<[Tensor; 2]> = running
            .iter()
            .map(|pair| Ok([pair[0].copy()?, pair[1].copy()?]))
            .collect::<Result<_>>()?;
        let count = 8;
        let following = running
            .iter()
            .enumerate()
            .map(|(i, [mean, var])| {
                Ok(pieces::Following {
                    mean,
                    var,
                    table: table.narrow(0, i * c, c)?,
                    count,
                })
            })
            .collect::<Result<Vec<_>>>()?;
        pieces::follow(&following, 0.1)?;
        for (i, ([mean, var], [mean_before, var_before])) in running.iter().zip(&before).enumerate()
        {
            let rows = table.narrow(0, i * c, c)?;
            let batch = |column: usize, by: f64| {
                (rows.narrow(1, column, 1)?.flatten_all()? * by)?.to_dtype(dtype)
            };
            assert_same(
                "mean",
                &mean.as_detached_tensor(),
                &((mean_before * 0.9)? + batch(0, 0.1)?)?,
            )?;
            assert_same(
                "var",
                &var.as_detached_tensor(),
                &((var_before * 0.9)? + batch(1, 0.1 * 8.0 / 7.0)?)?,
            )?;
        }
        Ok(())
    })
}
