//! Grouped cells against the same cells operation by operation, on any device. A test file per device calls
//! [`on_device!`]; `quick` is for devices on which every launch takes long.

use std::collections::BTreeMap;

use candle_core::{DType, Device, Result, Tensor, Var};
use nn::loss::cross_entropy;
use nn::optimizer::Gradients;
use nn::parameters::Builder;
use nn::{
    Architecture, Candidates, ChannelRatio, DerivedNet, Parameters, Pass, Rng, StandaloneCell,
    Supernet,
};
use rand_chacha::rand_core::SeedableRng;
use space::{CellKind, Genotype, NetworkSpec, SearchSpace, Stem};

fn spec(image_size: usize, n_layers: usize) -> NetworkSpec {
    NetworkSpec {
        stem: Stem::Conv3x3,
        n_layers,
        init_channels: 8,
        in_channels: 2,
        n_classes: 3,
        image_size,
    }
}

fn batch(n: usize, size: usize, device: &Device) -> Result<(Var, Tensor)> {
    let len = n * 2 * size * size;
    let x: Vec<f64> = (0..len).map(|i| (i as f64 * 0.7391).sin()).collect();
    let y: Vec<u32> = (0..n as u32).map(|i| i % 3).collect();
    Ok((
        Var::from_tensor(&Tensor::from_vec(x, (n, 2, size, size), device)?)?,
        Tensor::from_vec(y, n, device)?,
    ))
}

type Outcome = BTreeMap<String, Vec<f64>>;

/// Loss, gradients of the input and of parameters, and the buffers afterwards.
fn outcome(loss: &Tensor, x: &Var, parameters: &[&Parameters]) -> Result<Outcome> {
    let mut grads = loss.backward()?;
    let values = |tensor: &Tensor| tensor.flatten_all()?.to_vec1::<f64>();
    let mut outcome = BTreeMap::from([("loss".to_owned(), vec![loss.to_scalar::<f64>()?])]);
    if let Some(grad) = grads.get(x) {
        outcome.insert("input".to_owned(), values(grad)?);
    }
    for parameters in parameters {
        let gradients = Gradients::collect(parameters, &mut grads);
        for (name, var) in parameters.weights() {
            // A tensor without a gradient has none either way.
            if let Some(grad) = gradients.get(name) {
                assert_eq!(grad.dims(), var.dims(), "{name}");
                outcome.insert(format!("grad {name}"), values(grad)?);
            }
        }
        for (name, var) in parameters.buffers() {
            outcome.insert(name.clone(), values(&var.as_detached_tensor())?);
        }
    }
    Ok(outcome)
}

#[track_caller]
fn assert_same(grouped: &Outcome, plain: &Outcome) {
    let names = |map: &Outcome| map.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(grouped), names(plain));
    for (name, expected) in plain {
        let size = expected.iter().fold(1e-3, |max: f64, x| max.max(x.abs()));
        for (found, expected) in grouped[name].iter().zip(expected) {
            let error = (found - expected).abs() / size;
            assert!(error < 1e-8, "{name}: {found} is not {expected}");
        }
    }
}

/// The outcome of a step of a supernet.
fn supernet(
    k: usize,
    n_primitives: usize,
    size: usize,
    n: usize,
    tracks_input: bool,
    pass: &Pass<'_>,
    device: &Device,
) -> Result<Outcome> {
    let space = SearchSpace::darts();
    let mut rng = Rng::seed_from_u64(11);
    let ratio = ChannelRatio::new(k).expect("K is not 0");
    let mut candidates = Candidates::all(space);
    if n_primitives < space.n_primitives() {
        // Not the same on all edges.
        let [normal, reduction] = [0.7f32, 1.3].map(|by| {
            let n = space.n_edges() * space.n_primitives();
            (0..n).map(|i| (i as f32 * by).sin()).collect::<Vec<f32>>()
        });
        candidates.keep_largest([&normal, &reduction], n_primitives);
    }
    let architecture = Architecture::new(space, k > 1, device, DType::F64, &mut rng)?
        .with_candidates(&candidates)?;
    let builder = Builder::new(device, DType::F64, &mut rng);
    let network = Supernet::with_candidates(&builder, space, &spec(size, 3), ratio, &candidates)?;
    let (x, y) = batch(n, size, device)?;
    let [normal, reduction] = CellKind::ALL.map(|kind| architecture.mixing(kind, true));
    let input = match tracks_input {
        true => x.as_tensor().clone(),
        false => x.as_detached_tensor(),
    };
    let logits = network.forward(&input, &[normal?, reduction?], pass)?;
    let loss = cross_entropy(&logits, &y, 0.0)?;
    let parameters = [network.parameters(), architecture.parameters()];
    outcome(&loss, &x, &parameters)
}

pub(crate) fn a_grouped_supernet_is_the_supernet(device: &Device, quick: bool) -> Result<()> {
    // With all primitives, and with some on each edge.
    let cases = [(4, 8, 8, 3), (2, 8, 7, 2), (1, 8, 6, 2), (1, 3, 8, 2)];
    let quick_cases = [(4, 8, 4, 2), (1, 3, 5, 1)];
    for &(k, n_primitives, size, n) in if quick { &quick_cases[..] } else { &cases } {
        for steps in [Pass::training, Pass::architecture_step] {
            // As in a search, where nothing leads from the images to a variable, too.
            for tracks_input in if quick { &[true][..] } else { &[true, false] } {
                let tracks_input = *tracks_input;
                let grouped = supernet(
                    k,
                    n_primitives,
                    size,
                    n,
                    tracks_input,
                    &steps().grouped(),
                    device,
                )?;
                let plain = supernet(
                    k,
                    n_primitives,
                    size,
                    n,
                    tracks_input,
                    &steps().unfused(),
                    device,
                )?;
                assert!(grouped.contains_key("grad alphas_normal"));
                assert_eq!(grouped.contains_key("input"), tracks_input);
                assert_same(&grouped, &plain);
            }
        }
    }
    Ok(())
}

/// A network of the genotype, with factors and shifts that show.
fn derived(
    genotype: &Genotype,
    spec: &NetworkSpec,
    auxiliary: bool,
    device: &Device,
) -> Result<DerivedNet> {
    let mut rng = Rng::seed_from_u64(12);
    let builder = Builder::new(device, DType::F64, &mut rng);
    let network = DerivedNet::new(&builder, spec, genotype, auxiliary)?;
    for (index, (name, var)) in network.parameters().weights().iter().enumerate() {
        if var.rank() == 1 && !name.starts_with("classifier") {
            let n = var.elem_count();
            let values: Vec<f64> = (0..n)
                .map(|i| 0.8 + ((7 * i + index) % 5) as f64 / 9.0)
                .collect();
            var.set(&Tensor::from_vec(values, n, device)?)?;
        }
    }
    Ok(network)
}

fn genotypes(n_random: usize) -> Vec<Genotype> {
    let mut rng = Rng::seed_from_u64(3);
    let named = ["DARTS_V2", "PC_DARTS_cifar", "PDARTS"];
    let named = named.map(|name| Genotype::named(name).expect("a published name"));
    let random = (0..n_random).map(|_| SearchSpace::darts().sample(&mut rng));
    named.into_iter().chain(random).collect()
}

pub(crate) fn a_grouped_derived_network_is_the_derived_network(
    device: &Device,
    quick: bool,
) -> Result<()> {
    let n_genotypes = if quick { 2 } else { 7 };
    for (index, genotype) in genotypes(4)[..n_genotypes].iter().enumerate() {
        let (size, n) = match (quick, index % 2) {
            (true, _) => (5, 1),
            (false, 0) => (8, 2),
            (false, _) => (7, 3),
        };
        let run = |pass: &Pass<'_>| -> Result<_> {
            let network = derived(genotype, &spec(size, 4), false, device)?;
            let (x, y) = batch(n, size, device)?;
            let loss = cross_entropy(&network.forward(&x, pass)?.main, &y, 0.0)?;
            outcome(&loss, &x, &[network.parameters()])
        };
        assert_same(
            &run(&Pass::training().grouped())?,
            &run(&Pass::training().unfused())?,
        );
        let drop = |groups: bool| {
            let mut rng = Rng::seed_from_u64(5);
            let pass = Pass::training_with_drop_path(0.4, &mut rng);
            run(&if groups {
                pass.grouped()
            } else {
                pass.unfused()
            })
        };
        let dropped = drop(true)?;
        assert_ne!(dropped["loss"], run(&Pass::training())?["loss"]);
        assert_same(&dropped, &drop(false)?);
    }
    Ok(())
}

pub(crate) fn an_auxiliary_head_sees_what_grouped_cells_give(
    device: &Device,
    quick: bool,
) -> Result<()> {
    let genotype = Genotype::named("PC_DARTS_cifar").expect("a published name");
    for &n_layers in if quick { &[3][..] } else { &[3, 6] } {
        let run = |pass: &Pass<'_>| -> Result<_> {
            let network = derived(&genotype, &spec(32, n_layers), true, device)?;
            let (x, y) = batch(if quick { 1 } else { 2 }, 32, device)?;
            let logits = network.forward(&x, pass)?;
            let auxiliary = logits.auxiliary.expect("in training there is one");
            let auxiliary = (cross_entropy(&auxiliary, &y, 0.0)? * 0.4)?;
            let loss = (cross_entropy(&logits.main, &y, 0.0)? + auxiliary)?;
            outcome(&loss, &x, &[network.parameters()])
        };
        assert_same(
            &run(&Pass::training().grouped())?,
            &run(&Pass::training().unfused())?,
        );
    }
    Ok(())
}

/// By running statistics, after a step that moved them.
pub(crate) fn grouped_cells_know_evaluation(device: &Device, quick: bool) -> Result<()> {
    let values = |logits: &Tensor| logits.flatten_all()?.to_vec1::<f64>();
    let assert_close = |grouped: Vec<f64>, plain: Vec<f64>| {
        for (grouped, plain) in grouped.iter().zip(&plain) {
            assert!((grouped - plain).abs() < 1e-9, "{grouped} is not {plain}");
        }
    };
    let (n, size) = if quick { (1, 5) } else { (3, 8) };
    let (x, _) = batch(n, size, device)?;
    let x = x.as_detached_tensor();
    for genotype in &genotypes(1)[..if quick { 1 } else { 4 }] {
        let network = derived(genotype, &spec(size, 4), false, device)?;
        network.forward(&x, &Pass::training().unfused())?;
        let run = |pass: &Pass<'_>| values(&network.forward(&x, pass)?.main);
        assert_close(
            run(&Pass::inference().grouped())?,
            run(&Pass::inference().unfused())?,
        );
        for spec in &spec(size, 4).cells() {
            let mut rng = Rng::seed_from_u64(14);
            let builder = Builder::new(device, DType::F64, &mut rng);
            let cell = StandaloneCell::new(&builder, spec, genotype.cell(spec.kind))?;
            let [s0, s1] = cell.input_shapes(n).map(|[n, c, h, w]| {
                let values = (0..n * c * h * w).map(|i| (i as f64 * 0.7391).sin());
                Tensor::from_vec(values.collect::<Vec<f64>>(), (n, c, h, w), device)
            });
            let (s0, s1) = (s0?, s1?);
            let run = |pass: &Pass<'_>| values(&cell.forward(&s0, &s1, pass)?);
            assert_close(
                run(&Pass::inference().grouped())?,
                run(&Pass::inference().unfused())?,
            );
        }
    }
    for &k in if quick { &[4][..] } else { &[1, 4] } {
        let space = SearchSpace::darts();
        let mut rng = Rng::seed_from_u64(11);
        let ratio = ChannelRatio::new(k).expect("K is not 0");
        let builder = Builder::new(device, DType::F64, &mut rng);
        let network = Supernet::new(&builder, space, &spec(size, 3), ratio)?;
        let architecture = Architecture::new(space, k > 1, device, DType::F64, &mut rng)?;
        let mixing = |tracked| -> Result<_> {
            let [normal, reduction] = CellKind::ALL.map(|kind| architecture.mixing(kind, tracked));
            Ok([normal?, reduction?])
        };
        network.forward(&x, &mixing(false)?, &Pass::training().unfused())?;
        let run = |pass: &Pass<'_>| values(&network.forward(&x, &mixing(false)?, pass)?);
        assert_close(
            run(&Pass::inference().grouped())?,
            run(&Pass::inference().unfused())?,
        );
        // What has a gradient keeps it.
        let logits = network.forward(&x, &mixing(true)?, &Pass::inference().grouped())?;
        let grads = logits.sqr()?.sum_all()?.backward()?;
        let alphas = architecture.parameters().weights();
        assert!(alphas.values().any(|alpha| grads.get(alpha).is_some()));
    }
    Ok(())
}

/// Declares every test for one device.
macro_rules! on_device {
    ($device:expr, $quick:literal) => {
        $crate::networks::on_device!($device, $quick =>
            a_grouped_supernet_is_the_supernet,
            a_grouped_derived_network_is_the_derived_network,
            an_auxiliary_head_sees_what_grouped_cells_give,
            grouped_cells_know_evaluation,
        );
    };
    ($device:expr, $quick:literal => $($test:ident),+ $(,)?) => {
        $(#[test]
        fn $test() -> candle_core::Result<()> {
            $crate::networks::$test(&$device, $quick)
        })+
    };
}
pub(crate) use on_device;
