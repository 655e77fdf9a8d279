//! How many kernels a step launches on CUDA: cells grouped, and operation by operation. Counted are the kernels of
//! `kernels` and products; not those of the tensor library's own operations, of which there are more the more its graph
//! has to do.
//!
//! ```text
//! cargo test --release --workspace --test launches -- --nocapture
//! ```

use candle_core::{DType, Device, Result, Tensor};
use nn::loss::cross_entropy;
use nn::optimizer::Gradients;
use nn::parameters::Builder;
use nn::{Architecture, ChannelRatio, DerivedNet, Pass, Rng, Supernet};
use nn_shim as nn;
use rand_chacha::rand_core::SeedableRng;
use space::{CellKind, Genotype, NetworkSpec, SearchSpace, Stem};

/// Images so small that a step is quick: launches are as many whatever the sizes.
fn spec(n_layers: usize) -> NetworkSpec {
    NetworkSpec {
        stem: Stem::Conv3x3,
        n_layers,
        init_channels: 4,
        in_channels: 3,
        n_classes: 10,
        image_size: 4,
    }
}

fn batch() -> Result<(Tensor, Tensor)> {
    let x: Vec<f32> = (0..3 * 16).map(|i| (i as f32 * 0.7391).sin()).collect();
    Ok((
        Tensor::from_vec(x, (1, 3, 4, 4), &Device::Cpu)?,
        Tensor::new(&[3u32], &Device::Cpu)?,
    ))
}

/// The launches of `work`.
fn launches_of(work: impl FnOnce() -> Result<()>) -> Result<u64> {
    let before = kernels::n_launches();
    work()?;
    Ok(kernels::n_launches() - before)
}

fn as_asked(pass: Pass<'_>, groups: bool) -> Pass<'_> {
    if groups {
        pass.grouped()
    } else {
        pass.unfused()
    }
}

/// Of a step of alpha, and of one of the weights, of a supernet.
fn of_supernet(k: usize, n_layers: usize, groups: bool) -> Result<[u64; 2]> {
    let space = SearchSpace::darts();
    let mut rng = Rng::seed_from_u64(0);
    let ratio = ChannelRatio::new(k).expect("K is not 0");
    let network = Supernet::new(
        &Builder::new(&Device::Cpu, DType::F32, &mut rng),
        space,
        &spec(n_layers),
        ratio,
    )?;
    let architecture = Architecture::new(space, k > 1, &Device::Cpu, DType::F32, &mut rng)?;
    let (x, y) = batch()?;
    let step = |tracked: bool, pass: Pass<'_>| {
        launches_of(|| {
            let [normal, reduction] = CellKind::ALL.map(|kind| architecture.mixing(kind, tracked));
            let logits = network.forward(&x, &[normal?, reduction?], &pass)?;
            let mut grads = cross_entropy(&logits, &y, 0.0)?.backward()?;
            let of = if tracked {
                architecture.parameters()
            } else {
                network.parameters()
            };
            let gradients = Gradients::collect(of, &mut grads);
            assert!(
                of.weights()
                    .keys()
                    .filter(|name| gradients.get(name).is_some())
                    .count()
                    > 1
            );
            Ok(())
        })
    };
    Ok([
        step(true, as_asked(Pass::architecture_step(), groups))?,
        step(false, as_asked(Pass::training(), groups))?,
    ])
}

/// Of a training step, and of an inference, of a derived network.
fn of_derived(n_layers: usize, groups: bool) -> Result<[u64; 2]> {
    let genotype = Genotype::named("PC_DARTS_cifar").expect("a published name");
    let mut rng = Rng::seed_from_u64(0);
    let builder = Builder::new(&Device::Cpu, DType::F32, &mut rng);
    let network = DerivedNet::new(&builder, &spec(n_layers), &genotype, false)?;
    let (x, y) = batch()?;
    let step = launches_of(|| {
        let logits = network
            .forward(&x, &as_asked(Pass::training(), groups))?
            .main;
        let mut grads = cross_entropy(&logits, &y, 0.0)?.backward()?;
        Gradients::collect(network.parameters(), &mut grads);
        Ok(())
    })?;
    let inference = launches_of(|| {
        network
            .forward(&x, &as_asked(Pass::inference(), groups))
            .map(|_| ())
    })?;
    Ok([step, inference])
}

/// One test, because the count is that of the process.
#[test]
fn grouped_cells_launch_less() -> Result<()> {
    let rows = [
        (
            "PC-DARTS supernet, K = 4, 8 cells: alpha, weights",
            of_supernet(4, 8, true)?,
            of_supernet(4, 8, false)?,
        ),
        (
            "PC_DARTS_cifar, 20 cells: training, inference",
            of_derived(20, true)?,
            of_derived(20, false)?,
        ),
        (
            "PC_DARTS_cifar, 14 cells: training, inference",
            of_derived(14, true)?,
            of_derived(14, false)?,
        ),
    ];
    for (what, grouped, unfused) in rows {
        println!("{what}: grouped {grouped:?}, operation by operation {unfused:?}");
        for (grouped, unfused) in grouped.into_iter().zip(unfused) {
            assert!(grouped > 0 && grouped < unfused, "{what}");
        }
    }
    Ok(())
}
