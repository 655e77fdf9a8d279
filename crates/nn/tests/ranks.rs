//! Two ranks with half of a batch each take the step of one rank with the whole batch.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::thread;

use candle_core::{DType, Device, Result, Tensor};
use collective::{Collective, Rendezvous, Share, Sockets};
use nn::bilevel::{dominant_eigenvalue, unrolled_gradient};
use nn::loss::cross_entropy;
use nn::optimizer::{Gradients, Sgd};
use nn::parameters::Builder;
use nn::{Architecture, ChannelRatio, DerivedNet, Parameters, Pass, Rng, Supernet};
use rand_chacha::rand_core::SeedableRng;
use space::{CellKind, Genotype, NetworkSpec, SearchSpace, Stem};

/// Sums over images in another order: in `f64` some 1e-13 of the largest value, which two steps through batch
/// normalisations make more of.
const TOLERANCE: f64 = 1e-9;

const SPEC: NetworkSpec = NetworkSpec {
    stem: Stem::Conv3x3,
    n_layers: 3,
    init_channels: 4,
    in_channels: 2,
    n_classes: 3,
    image_size: 8,
};

type State = BTreeMap<String, Vec<f64>>;

/// What `work` leaves on one rank, alone (`None`), and on each of `n_ranks`.
fn alone_and_together(
    n_ranks: usize,
    work: impl Fn(Option<Arc<dyn Collective>>) -> Result<State> + Sync,
) -> (State, Vec<State>) {
    let alone = work(None).unwrap();
    let rendezvous = Rendezvous::open("127.0.0.1:0").unwrap();
    let at = rendezvous.address().unwrap().to_string();
    let together = thread::scope(|scope| {
        let (at, work) = (&at, &work);
        let first = scope.spawn(move || {
            let first = rendezvous.wait(n_ranks, "steps", || Ok(())).unwrap();
            work(Some(Arc::new(first))).unwrap()
        });
        let others: Vec<_> = (1..n_ranks)
            .map(|rank| {
                scope.spawn(move || {
                    let rank = Sockets::join(at, rank, n_ranks, "steps").unwrap();
                    work(Some(Arc::new(rank))).unwrap()
                })
            })
            .collect();
        let mut all = vec![first.join().unwrap()];
        all.extend(others.into_iter().map(|rank| rank.join().unwrap()));
        all
    });
    (alone, together)
}

#[track_caller]
fn assert_same_steps((alone, together): (State, Vec<State>)) {
    for (rank, found) in together.iter().enumerate() {
        // All ranks have the very same bytes.
        assert_eq!(found, &together[0], "rank {rank}");
    }
    for (name, expected) in &alone {
        let size = expected.iter().fold(1e-3, |max: f64, x| max.max(x.abs()));
        for (found, expected) in together[0][name].iter().zip(expected) {
            let error = (found - expected).abs() / size;
            assert!(error < TOLERANCE, "{name}: {found} is not {expected}");
        }
    }
}

/// This rank's part of `n` images that are nothing alike.
fn batch(n: usize, offset: usize, share: Option<&Share>) -> Result<(Tensor, Tensor)> {
    let part = share.map_or(0..n, Share::range);
    let len = 2 * 8 * 8;
    let x: Vec<f64> = (part.start * len..part.end * len)
        .map(|i| ((i + offset) as f64 * 0.7391).sin() * (1.0 + (i / len) as f64))
        .collect();
    let y: Vec<u32> = part.clone().map(|i| ((i + offset) % 3) as u32).collect();
    Ok((
        Tensor::from_vec(x, (part.len(), 2, 8, 8), &Device::Cpu)?,
        Tensor::from_vec(y, part.len(), &Device::Cpu)?,
    ))
}

fn weighted(loss: Tensor, share: Option<&Share>) -> Result<Tensor> {
    loss * share.map_or(1.0, Share::weight)
}

fn state(prefix: &str, parameters: &Parameters) -> Result<State> {
    let state = parameters.state()?.into_iter();
    state
        .map(|(name, tensor)| Ok((format!("{prefix}/{name}"), tensor.flatten_all()?.to_vec1()?)))
        .collect()
}

fn as_asked(pass: Pass<'_>, groups: bool) -> Pass<'_> {
    if groups { pass.grouped() } else { pass }
}

fn search_steps(ranks: Option<Arc<dyn Collective>>, n: usize, unrolled: bool) -> Result<State> {
    search_steps_of(ranks, n, unrolled, false)
}

/// The same with cells operation by operation, or grouped as on CUDA.
fn search_steps_of(
    ranks: Option<Arc<dyn Collective>>,
    n: usize,
    unrolled: bool,
    groups: bool,
) -> Result<State> {
    let share = ranks.as_ref().map(|ranks| Share::of(ranks, n));
    let share = share.as_ref();
    let space = SearchSpace::darts();
    let mut rng = Rng::seed_from_u64(11);
    let ratio = ChannelRatio::new(2).expect("K is not 0");
    let architecture = Architecture::new(space, true, &Device::Cpu, DType::F64, &mut rng)?;
    let builder = Builder::new(&Device::Cpu, DType::F64, &mut rng);
    let network = Supernet::new(&builder, space, &SPEC, ratio)?;
    let (train, valid) = (batch(n, 0, share)?, batch(n, 1000, share)?);
    let loss = |(x, y): &(Tensor, Tensor), pass: Pass<'_>, tracked: bool| {
        let [normal, reduction] = CellKind::ALL.map(|kind| architecture.mixing(kind, tracked));
        let logits = network.forward(x, &[normal?, reduction?], &pass)?;
        weighted(cross_entropy(&logits, y, 0.0)?, share)
    };

    let mut sgd = Sgd::new(0.9, 3e-4);
    let (weights, alphas) = (network.parameters(), architecture.parameters());
    let mut outcome = State::new();
    for round in 0..2 {
        // Alpha, on the whole validation batch.
        let gradients = if unrolled {
            let train = || loss(&train, as_asked(Pass::training(), groups).over(share), true);
            let valid = || loss(&valid, as_asked(Pass::training(), groups).over(share), true);
            unrolled_gradient(weights, alphas, &sgd, 0.05, share, train, valid)?.1
        } else {
            let loss = loss(
                &valid,
                as_asked(Pass::architecture_step(), groups).over(share),
                true,
            )?;
            Gradients::collect(alphas, &mut loss.backward()?).summed(share)?
        };
        for name in alphas.weights().keys() {
            if let Some(gradient) = gradients.get(name) {
                let values = gradient.flatten_all()?.to_vec1()?;
                outcome.insert(format!("{round} gradient {name}"), values);
            }
        }
        Sgd::new(0.0, 0.0).step(alphas, &gradients, 10.0, 1.0)?;
        // The weights, on the training batch.
        let loss = loss(
            &train,
            as_asked(Pass::training(), groups).over(share),
            false,
        )?;
        let gradients = Gradients::collect(weights, &mut loss.backward()?).summed(share)?;
        let (gradients, factor) = gradients.clip(5.0)?;
        sgd.step(weights, &gradients, 0.05, factor)?;
    }
    let sharpness = dominant_eigenvalue(alphas, 2, share, || {
        loss(
            &valid,
            as_asked(Pass::architecture_step(), groups).over(share),
            true,
        )
    })?;
    outcome.insert("eigenvalue".to_owned(), vec![sharpness]);
    outcome.extend(state("network", weights)?);
    outcome.extend(state("architecture", alphas)?);
    Ok(outcome)
}

#[test]
fn two_ranks_search_as_one() {
    assert_same_steps(alone_and_together(2, |ranks| search_steps(ranks, 6, false)));
}

#[test]
fn two_ranks_unroll_as_one() {
    assert_same_steps(alone_and_together(2, |ranks| search_steps(ranks, 6, true)));
}

#[test]
fn shares_need_not_be_equal() {
    assert_same_steps(alone_and_together(3, |ranks| search_steps(ranks, 7, false)));
}

/// Cells as they run on CUDA.
#[test]
fn two_ranks_search_as_one_in_groups() {
    assert_same_steps(alone_and_together(2, |ranks| {
        search_steps_of(ranks, 5, false, true)
    }));
    assert_same_steps(alone_and_together(2, |ranks| {
        search_steps_of(ranks, 4, true, true)
    }));
}

/// Affine normalisations, the auxiliary head, and drop path, which draws for the whole batch.
#[test]
fn two_ranks_train_a_derived_network_as_one() {
    for groups in [false, true] {
        assert_ranks_train_as_one(groups);
    }
}

fn assert_ranks_train_as_one(groups: bool) {
    let n = 5;
    let genotype = Genotype::named("PC_DARTS_cifar").expect("a published name");
    let spec = NetworkSpec {
        image_size: 32,
        ..SPEC
    };
    assert_same_steps(alone_and_together(2, |ranks| {
        let share = ranks.as_ref().map(|ranks| Share::of(ranks, n));
        let share = share.as_ref();
        let mut rng = Rng::seed_from_u64(12);
        let builder = Builder::new(&Device::Cpu, DType::F64, &mut rng);
        let network = DerivedNet::new(&builder, &spec, &genotype, true)?;
        let part = share.map_or(0..n, Share::range);
        let len = 2 * 32 * 32;
        let x: Vec<f64> = (part.start * len..part.end * len)
            .map(|i| (i as f64 * 0.7391).sin())
            .collect();
        let y: Vec<u32> = part.clone().map(|i| (i % 3) as u32).collect();
        let x = Tensor::from_vec(x, (part.len(), 2, 32, 32), &Device::Cpu)?;
        let y = Tensor::from_vec(y, part.len(), &Device::Cpu)?;
        let mut sgd = Sgd::new(0.9, 3e-4);
        let mut drop_path_rng = Rng::seed_from_u64(13);
        for _ in 0..2 {
            let pass = Pass::training_with_drop_path(0.3, &mut drop_path_rng).over(share);
            let pass = as_asked(pass, groups);
            let logits = network.forward(&x, &pass)?;
            let auxiliary = logits.auxiliary.expect("a head was asked for");
            let loss = (cross_entropy(&logits.main, &y, 0.1)?
                + (cross_entropy(&auxiliary, &y, 0.1)? * 0.4)?)?;
            let loss = weighted(loss, share)?;
            let gradients = Gradients::collect(network.parameters(), &mut loss.backward()?);
            let (gradients, factor) = gradients.summed(share)?.clip(5.0)?;
            sgd.step(network.parameters(), &gradients, 0.05, factor)?;
        }
        state("network", network.parameters())
    }));
}
