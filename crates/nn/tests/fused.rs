//! Fused cells against the same cells operation by operation.

use std::collections::BTreeMap;

use candle_core::{DType, Device, Result, Tensor, Var};
use nn::loss::cross_entropy;
use nn::parameters::Builder;
use nn::{Architecture, ChannelRatio, DerivedNet, Parameters, Pass, Rng, Supernet};
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
    let network = Supernet::new(
        &Builder::new(&Device::Cpu, DType::F64, &mut rng),
        space,
        &spec(size, 3),
        ratio,
    )?;
    let (x, y) = batch(n, size)?;
    let [normal, reduction] = CellKind::ALL.map(|kind| architecture.mixing(kind, true));
    let input = match tracks_input {
        true => x.as_tensor().clone(),
        false => x.as_detached_tensor(),
    };
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
    for (k, size, n) in [(4, 8, 3), (2, 7, 17), (1, 6, 5)] {
        for steps in [Pass::training, Pass::architecture_step] {
            // As in a search, where nothing leads from the images to a variable, too.
            for tracks_input in [true, false] {
                let fused = supernet(k, size, n, tracks_input, &steps())?;
                let plain = supernet(k, size, n, tracks_input, &steps().unfused())?;
                assert!(fused.contains_key("grad alphas_normal"));
                assert_eq!(fused.contains_key("input"), tracks_input);
                assert_same(&fused, &plain);
            }
        }
    }
    Ok(())
}

#[test]
fn a_fused_derived_network_is_the_derived_network() -> Result<()> {
    let mut rng = Rng::seed_from_u64(3);
    let mut genotypes: Vec<Genotype> = ["DARTS_V2", "PC_DARTS_cifar", "PDARTS"]
        .map(|name| Genotype::named(name).expect("a published name"))
        .into();
    genotypes.extend((0..6).map(|_| SearchSpace::darts().sample(&mut rng)));
    for (index, genotype) in genotypes.iter().enumerate() {
        let (size, n) = if index % 2 == 0 { (8, 4) } else { (7, 16) };
        let run = |pass: &Pass<'_>| -> Result<_> {
            let mut rng = Rng::seed_from_u64(12);
            let builder = Builder::new(&Device::Cpu, DType::F64, &mut rng);
            let network = DerivedNet::new(&builder, &spec(size, 4), genotype, false)?;
            // Factors and shifts that show.
            for (index, (name, var)) in network.parameters().weights().iter().enumerate() {
                if var.rank() == 1 && !name.starts_with("classifier") {
                    let n = var.elem_count();
                    let values: Vec<f64> = (0..n)
                        .map(|i| 0.8 + ((7 * i + index) % 5) as f64 / 9.0)
                        .collect();
                    var.set(&Tensor::from_vec(values, n, &Device::Cpu)?)?;
                }
            }
            let (x, y) = batch(n, size)?;
            let loss = cross_entropy(&network.forward(&x, pass)?.main, &y, 0.0)?;
            outcome(&loss, &x, &[network.parameters()])
        };
        assert_same(&run(&Pass::training())?, &run(&Pass::training().unfused())?);
    }
    Ok(())
}
