//! Fused cells against the same cells operation by operation.

use std::collections::BTreeMap;

use candle_core::{DType, Device, Result, Tensor, Var};
use nn::loss::cross_entropy;
use nn::parameters::Builder;
use nn::{Architecture, Candidates, ChannelRatio, DerivedNet, Parameters, Pass, Rng, Supernet};
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

fn batch(n: usize, size: usize) -> Result<(Var, Tensor)> {
    let len = n * 2 * size * size;
    let x: Vec<f64> = (0..len).map(|i| (i as f64 * 0.7391).sin()).collect();
    let y: Vec<u32> = (0..n as u32).map(|i| i % 3).collect();
    Ok((
        Var::from_tensor(&Tensor::from_vec(x, (n, 2, size, size), &Device::Cpu)?)?,
        Tensor::from_vec(y, n, &Device::Cpu)?,
    ))
}

/// The images, with a gradient or without.
fn images(x: &Var, tracked: bool) -> Tensor {
    match tracked {
        true => x.as_tensor().clone(),
        false => x.as_detached_tensor(),
    }
}

/// Loss, gradients of the input and of parameters, and the buffers afterwards.
fn outcome(
    loss: &Tensor,
    x: &Var,
    parameters: &[&Parameters],
) -> Result<BTreeMap<String, Vec<f64>>> {
    let grads = loss.backward()?;
    let values = |tensor: &Tensor| tensor.flatten_all()?.to_vec1::<f64>();
    let mut outcome = BTreeMap::from([("loss".to_owned(), vec![loss.to_scalar::<f64>()?])]);
    if let Some(grad) = grads.get(x) {
        outcome.insert("input".to_owned(), values(grad)?);
    }
    for parameters in parameters {
        for (name, var) in parameters.weights() {
            // A tensor without a gradient has none either way.
            if let Some(grad) = grads.get(var) {
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
fn assert_same(fused: &BTreeMap<String, Vec<f64>>, plain: &BTreeMap<String, Vec<f64>>) {
    let names = |map: &BTreeMap<String, Vec<f64>>| map.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(fused), names(plain));
    for (name, expected) in plain {
        let size = expected.iter().fold(1e-3, |max: f64, x| max.max(x.abs()));
        for (found, expected) in fused[name].iter().zip(expected) {
            let error = (found - expected).abs() / size;
            assert!(error < 1e-8, "{name}: {found} is not {expected}");
        }
    }
}

fn supernet(
    k: usize,
    n_primitives: usize,
    size: usize,
    n: usize,
    tracks_input: bool,
    pass: &Pass<'_>,
) -> Result<BTreeMap<String, Vec<f64>>> {
    let space = SearchSpace::darts();
    let mut rng = Rng::seed_from_u64(11);
    let ratio = ChannelRatio::new(k).expect("K is not 0");
    let architecture = Architecture::new(
        space,
        ratio.is_partial(),
        &Device::Cpu,
        DType::F64,
        &mut rng,
    )?;
    // Far from uniform weights.
    for var in architecture.parameters().weights().values() {
        var.set(&(var.as_detached_tensor() * 900.0)?)?;
    }
    let weights = CellKind::ALL.map(|kind| architecture.operation_weights(kind));
    let [normal, reduction] = weights;
    let mut candidates = Candidates::all(space);
    candidates.keep_largest([&normal?, &reduction?], n_primitives);
    let architecture = architecture.with_candidates(&candidates)?;
    let network = Supernet::with_candidates(
        &Builder::new(&Device::Cpu, DType::F64, &mut rng),
        space,
        &spec(size, 3),
        ratio,
        &candidates,
    )?;
    let (x, y) = batch(n, size)?;
    let [normal, reduction] = CellKind::ALL.map(|kind| architecture.mixing(kind, true));
    let input = images(&x, tracks_input);
    let logits = network.forward(&input, &[normal?, reduction?], pass)?;
    let loss = cross_entropy(&logits, &y, 0.0)?;
    outcome(
        &loss,
        &x,
        &[network.parameters(), architecture.parameters()],
    )
}

#[test]
fn a_fused_supernet_is_the_supernet() -> Result<()> {
    // With all primitives, and with some on each edge.
    for (k, n_primitives, size, n) in [(4, 8, 8, 3), (2, 8, 7, 17), (1, 8, 6, 5), (1, 3, 8, 4)] {
        for steps in [Pass::training, Pass::architecture_step] {
            // As in a search, where nothing leads from the images to a variable, too.
            for tracks_input in [true, false] {
                let fused = supernet(k, n_primitives, size, n, tracks_input, &steps())?;
                let plain = supernet(k, n_primitives, size, n, tracks_input, &steps().unfused())?;
                assert!(fused.contains_key("grad alphas_normal"));
                assert_eq!(fused.contains_key("input"), tracks_input);
                assert_same(&fused, &plain);
            }
        }
    }
    Ok(())
}

#[test]
fn a_step_gives_the_same_numbers_on_any_number_of_threads() -> Result<()> {
    // Planes of one group of rows and of several, of an even and of an odd number.
    for (k, size) in [(4, 8), (1, 13), (2, 32)] {
        let run = |n_threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(n_threads);
            let pool = pool.build().expect("threads");
            pool.install(|| supernet(k, 8, size, 3, true, &Pass::training()))
        };
        assert_eq!(run(1)?, run(3)?);
    }
    Ok(())
}

/// A network of the genotype, with factors and shifts that show.
fn derived(genotype: &Genotype, spec: &NetworkSpec, auxiliary: bool) -> Result<DerivedNet> {
    let mut rng = Rng::seed_from_u64(12);
    let builder = Builder::new(&Device::Cpu, DType::F64, &mut rng);
    let network = DerivedNet::new(&builder, spec, genotype, auxiliary)?;
    for (index, (name, var)) in network.parameters().weights().iter().enumerate() {
        if var.rank() == 1 && !name.starts_with("classifier") {
            let n = var.elem_count();
            let values: Vec<f64> = (0..n)
                .map(|i| (0.8 + ((7 * i + index) % 5) as f64 / 9.0) * [1.0, 1.0, -1.0][i % 3])
                .collect();
            var.set(&Tensor::from_vec(values, n, &Device::Cpu)?)?;
        }
    }
    Ok(network)
}

fn genotypes(n_random: usize) -> Vec<Genotype> {
    let mut rng = Rng::seed_from_u64(3);
    let named = ["DARTS_V2", "PC_DARTS_cifar", "PDARTS"];
    let named = named.map(|name| Genotype::named(name).expect("a published name"));
    let random = (0..n_random).map(|_| SearchSpace::darts().sample(&mut rng));
    let all = named.into_iter().chain([without_maxima()]);
    all.chain(random).collect()
}

/// Inputs of its cells are read by all that reads them before their normalisation, skips that halve them among it.
fn without_maxima() -> Genotype {
    let cell = "[('skip_connect', 0), ('skip_connect', 1), ('avg_pool_3x3', 1), ('sep_conv_3x3', 0), \
        ('dil_conv_5x5', 1), ('skip_connect', 0), ('sep_conv_5x5', 1), ('avg_pool_3x3', 2)]";
    let all = "range(2, 6)";
    let text =
        format!("Genotype(normal={cell}, normal_concat={all}, reduce={cell}, reduce_concat={all})");
    text.parse().expect("a genotype")
}

#[test]
fn a_fused_derived_network_is_the_derived_network() -> Result<()> {
    for (index, genotype) in genotypes(6).iter().enumerate() {
        let (size, n) = if index % 2 == 0 { (8, 4) } else { (7, 16) };
        // Images have a gradient every other time.
        let tracks_input = index % 4 < 2;
        let run = |pass: &Pass<'_>| -> Result<_> {
            let network = derived(genotype, &spec(size, 4), false)?;
            let (x, y) = batch(n, size)?;
            let input = images(&x, tracks_input);
            let loss = cross_entropy(&network.forward(&input, pass)?.main, &y, 0.0)?;
            outcome(&loss, &x, &[network.parameters()])
        };
        assert_same(&run(&Pass::training())?, &run(&Pass::training().unfused())?);
        let drop = |fuses: bool| {
            let mut rng = Rng::seed_from_u64(5);
            let pass = Pass::training_with_drop_path(0.4, &mut rng);
            run(&if fuses { pass } else { pass.unfused() })
        };
        let dropped = drop(true)?;
        assert_ne!(dropped["loss"], run(&Pass::training())?["loss"]);
        assert_same(&dropped, &drop(false)?);
    }
    Ok(())
}

/// Networks of few cells, of which the second may halve the stem; one image; and stems of one and of three convolutions.
#[test]
fn small_fused_networks_are_the_same() -> Result<()> {
    for (stem, n_layers, size, n) in [
        (Stem::Conv3x3, 1, 8, 1),
        (Stem::Conv3x3, 2, 8, 1),
        (Stem::Conv3x3, 3, 7, 1),
        (Stem::Conv3x3Stride2, 2, 15, 2),
        (Stem::Imagenet, 3, 64, 1),
        (Stem::Imagenet, 2, 64, 2),
    ] {
        let spec = NetworkSpec {
            stem,
            ..spec(size, n_layers)
        };
        for genotype in [without_maxima(), genotypes(0).remove(0)] {
            let run = |pass: &Pass<'_>| -> Result<_> {
                let network = derived(&genotype, &spec, false)?;
                let (x, y) = batch(n, size)?;
                let logits = network.forward(&images(&x, false), pass)?.main;
                outcome(
                    &cross_entropy(&logits, &y, 0.0)?,
                    &x,
                    &[network.parameters()],
                )
            };
            assert_same(&run(&Pass::training())?, &run(&Pass::training().unfused())?);
        }
    }
    Ok(())
}

#[test]
fn an_auxiliary_head_sees_what_fused_cells_give() -> Result<()> {
    let genotype = Genotype::named("PC_DARTS_cifar").expect("a published name");
    // The head wants 8 pixels. In front of it lie one, two or more cells; behind it none or several.
    for (n_layers, size, tracked) in [
        (1, 16, false),
        (1, 16, true),
        (2, 32, false),
        (3, 32, true),
        (6, 32, false),
    ] {
        let run = |pass: &Pass<'_>| -> Result<_> {
            let network = derived(&genotype, &spec(size, n_layers), true)?;
            let (x, y) = batch(3, size)?;
            let logits = network.forward(&images(&x, tracked), pass)?;
            let auxiliary = logits.auxiliary.expect("in training there is one");
            let auxiliary = (cross_entropy(&auxiliary, &y, 0.0)? * 0.4)?;
            let loss = (cross_entropy(&logits.main, &y, 0.0)? + auxiliary)?;
            outcome(&loss, &x, &[network.parameters()])
        };
        assert_same(&run(&Pass::training())?, &run(&Pass::training().unfused())?);
    }
    Ok(())
}

/// By running statistics, after a step that moved them.
#[test]
fn fused_cells_know_evaluation() -> Result<()> {
    let values = |logits: &Tensor| logits.flatten_all()?.to_vec1::<f64>();
    let assert_close = |fused: Vec<f64>, plain: Vec<f64>| {
        for (fused, plain) in fused.iter().zip(&plain) {
            assert!((fused - plain).abs() < 1e-9, "{fused} is not {plain}");
        }
    };
    let (x, _) = batch(5, 8)?;
    let x = x.as_detached_tensor();
    for genotype in genotypes(1) {
        let network = derived(&genotype, &spec(8, 4), false)?;
        network.forward(&x, &Pass::training())?;
        let run = |pass: &Pass<'_>| values(&network.forward(&x, pass)?.main);
        assert_close(run(&Pass::inference())?, run(&Pass::inference().unfused())?);
    }
    for k in [1, 4] {
        let space = SearchSpace::darts();
        let mut rng = Rng::seed_from_u64(11);
        let ratio = ChannelRatio::new(k).expect("K is not 0");
        let builder = Builder::new(&Device::Cpu, DType::F64, &mut rng);
        let network = Supernet::new(&builder, space, &spec(8, 3), ratio)?;
        let architecture = Architecture::new(space, k > 1, &Device::Cpu, DType::F64, &mut rng)?;
        let mixing = |tracked| -> Result<_> {
            let [normal, reduction] = CellKind::ALL.map(|kind| architecture.mixing(kind, tracked));
            Ok([normal?, reduction?])
        };
        network.forward(&x, &mixing(false)?, &Pass::training())?;
        let run = |pass: &Pass<'_>| values(&network.forward(&x, &mixing(false)?, pass)?);
        assert_close(run(&Pass::inference())?, run(&Pass::inference().unfused())?);
        // What has a gradient keeps it.
        let logits = network.forward(&x, &mixing(true)?, &Pass::inference())?;
        let grads = logits.sqr()?.sum_all()?.backward()?;
        let alphas = architecture.parameters().weights();
        assert!(alphas.values().any(|alpha| grads.get(alpha).is_some()));
    }
    Ok(())
}
