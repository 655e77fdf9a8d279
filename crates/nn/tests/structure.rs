//! What the networks are made of: names, shapes, counts.

use candle_core::{DType, Device, Tensor};
use nn::parameters::Builder;
use nn::{
    Architecture, Candidates, ChannelRatio, DerivedNet, Parameters, Pass, Rng, StateError, Supernet,
};
use rand_chacha::rand_core::SeedableRng;
use space::{CellKind, Genotype, NetworkSpec, SearchSpace, Stem};

fn rng() -> Rng {
    Rng::seed_from_u64(7)
}

fn spec(n_layers: usize, init_channels: usize) -> NetworkSpec {
    NetworkSpec {
        n_layers,
        init_channels,
        ..NetworkSpec::cifar10()
    }
}

fn supernet(spec: &NetworkSpec, ratio: ChannelRatio) -> Supernet {
    let mut rng = rng();
    let builder = Builder::new(&Device::Cpu, DType::F32, &mut rng);
    Supernet::new(&builder, SearchSpace::darts(), spec, ratio).unwrap()
}

fn derived(spec: &NetworkSpec, name: &str, auxiliary: bool) -> DerivedNet {
    let mut rng = rng();
    let builder = Builder::new(&Device::Cpu, DType::F32, &mut rng);
    DerivedNet::new(&builder, spec, &Genotype::named(name).unwrap(), auxiliary).unwrap()
}

fn listing(parameters: &Parameters) -> String {
    let line = |(name, var): (&String, &candle_core::Var)| format!("{name} {:?}\n", var.dims());
    let weights: String = parameters.weights().iter().map(line).collect();
    let buffers: String = parameters.buffers().iter().map(line).collect();
    format!("weights\n{weights}\nbuffers\n{buffers}")
}

#[test]
fn a_derived_network_has_the_published_names_and_shapes() {
    let network = derived(&spec(3, 4), "PC_DARTS_cifar", false);
    insta::assert_snapshot!(listing(network.parameters()));
}

#[test]
fn a_partial_channel_supernet_has_the_published_names_and_shapes() {
    let network = supernet(&spec(2, 8), ChannelRatio::new(4).unwrap());
    insta::assert_snapshot!(listing(network.parameters()));
}

#[test]
fn networks_hold_as_many_weights_as_are_counted() {
    for name in Genotype::names() {
        let genotype = Genotype::named(name).unwrap();
        for spec in [NetworkSpec::cifar10(), NetworkSpec::imagenet(), spec(5, 6)] {
            let n_weights = derived(&spec, name, false).parameters().n_weights() as u64;
            assert_eq!(
                n_weights,
                space::count_derived(&genotype, &spec).n_params,
                "{name}"
            );
        }
    }
}

#[test]
fn the_auxiliary_head_holds_as_many_weights_as_are_counted() {
    for spec in [NetworkSpec::cifar10(), NetworkSpec::imagenet()] {
        let [with, without] =
            [true, false].map(|aux| derived(&spec, "PDARTS", aux).parameters().n_weights() as u64);
        assert_eq!(with - without, space::count_auxiliary_params(&spec));
    }
}

#[test]
fn supernets_hold_as_many_weights_as_published() {
    let partial = ChannelRatio::new(4).unwrap();
    for (ratio, published) in [(ChannelRatio::FULL, 1_930_618), (partial, 299_578)] {
        assert_eq!(
            supernet(&spec(8, 16), ratio).parameters().n_weights(),
            published
        );
    }
}

#[test]
fn every_stem_and_odd_sizes_give_one_row_of_logits_per_image() {
    let sizes = [
        (Stem::Conv3x3, 9),
        (Stem::Conv3x3Stride2, 28),
        (Stem::Imagenet, 64),
    ];
    for (stem, image_size) in sizes {
        let spec = NetworkSpec {
            stem,
            image_size,
            in_channels: 1,
            ..spec(3, 8)
        };
        let x = Tensor::zeros((2, 1, image_size, image_size), DType::F32, &Device::Cpu).unwrap();
        let network = derived(&spec, "DARTS_V2", false);
        let logits = network.forward(&x, &Pass::training()).unwrap();
        assert_eq!(logits.main.dims(), [2, 10]);
        for ratio in [1, 4] {
            let ratio = ChannelRatio::new(ratio).unwrap();
            let architecture = Architecture::new(
                SearchSpace::darts(),
                ratio.is_partial(),
                &Device::Cpu,
                DType::F32,
                &mut rng(),
            )
            .unwrap();
            let mixing = CellKind::ALL.map(|kind| architecture.mixing(kind, false).unwrap());
            let logits = supernet(&spec, ratio)
                .forward(&x, &mixing, &Pass::training())
                .unwrap();
            assert_eq!(logits.dims(), [2, 10]);
        }
    }
}

#[test]
fn the_auxiliary_head_speaks_in_training_only() {
    let spec = spec(3, 4);
    let network = derived(&spec, "PDARTS", true);
    let x = Tensor::ones((2, 3, 32, 32), DType::F32, &Device::Cpu).unwrap();
    let training = network.forward(&x, &Pass::training()).unwrap();
    assert_eq!(training.auxiliary.unwrap().dims(), [2, 10]);
    assert!(
        network
            .forward(&x, &Pass::inference())
            .unwrap()
            .auxiliary
            .is_none()
    );
}

#[test]
fn a_state_goes_out_and_comes_back() {
    let spec = spec(3, 4);
    let network = derived(&spec, "PDARTS", false);
    let x = Tensor::ones((2, 3, 32, 32), DType::F32, &Device::Cpu).unwrap();
    network.forward(&x, &Pass::training()).unwrap();
    let logits = |network: &DerivedNet| -> Vec<f32> {
        let logits = network.forward(&x, &Pass::inference()).unwrap().main;
        logits.flatten_all().unwrap().to_vec1().unwrap()
    };
    let other = {
        let mut rng = Rng::seed_from_u64(8);
        let builder = Builder::new(&Device::Cpu, DType::F32, &mut rng);
        DerivedNet::new(&builder, &spec, &Genotype::named("PDARTS").unwrap(), false).unwrap()
    };
    assert_ne!(logits(&network), logits(&other));
    other
        .parameters()
        .load(&network.parameters().state().unwrap())
        .unwrap();
    assert_eq!(logits(&network), logits(&other));
}

#[test]
fn a_state_that_does_not_fit_is_refused_whole() {
    let network = derived(&spec(3, 4), "PDARTS", false);
    let parameters = network.parameters();
    let state = parameters.state().unwrap();
    let first = state.keys().next().unwrap().clone();

    let mut missing = state.clone();
    missing.remove(&first);
    assert!(
        matches!(parameters.load(&missing), Err(StateError::Missing { name }) if name == first)
    );

    let mut surplus = state.clone();
    surplus.insert("cells.9.weight".into(), state[&first].clone());
    assert!(matches!(
        parameters.load(&surplus),
        Err(StateError::Unexpected { .. })
    ));

    let mut reshaped: std::collections::BTreeMap<_, _> = state
        .iter()
        .map(|(name, t)| (name.clone(), t.zeros_like().unwrap()))
        .collect();
    let last = reshaped.keys().next_back().unwrap().clone();
    reshaped.insert(last, Tensor::zeros(1, DType::F32, &Device::Cpu).unwrap());
    assert!(matches!(
        parameters.load(&reshaped),
        Err(StateError::Shape { .. })
    ));
    let weight: Vec<f32> = parameters.weights()["stem.0.weight"]
        .flatten_all()
        .unwrap()
        .to_vec1()
        .unwrap();
    assert!(
        weight.iter().any(|w| *w != 0.0),
        "a refused state must change nothing"
    );

    let mut counted = state;
    counted.insert(
        "stem.1.num_batches_tracked".into(),
        Tensor::new(3i64, &Device::Cpu).unwrap(),
    );
    parameters.load(&counted).unwrap();
}

#[test]
fn drop_path_drops_whole_samples_and_rescales_the_rest() {
    let spec = spec(3, 4);
    let network = derived(&spec, "PDARTS", false);
    let x = Tensor::ones((4, 3, 32, 32), DType::F32, &Device::Cpu).unwrap();
    let run = |probability: f64, seed: u64| -> Vec<f32> {
        let mut rng = Rng::seed_from_u64(seed);
        let pass = Pass::training_with_drop_path(probability, &mut rng);
        network
            .forward(&x, &pass)
            .unwrap()
            .main
            .flatten_all()
            .unwrap()
            .to_vec1()
            .unwrap()
    };
    assert_eq!(
        run(0.0, 1),
        run(0.0, 2),
        "without drop path nothing is drawn"
    );
    assert_eq!(run(0.5, 1), run(0.5, 1));
    assert_ne!(run(0.5, 1), run(0.5, 2));
}

/// What P-DARTS's stages leave: the parameters of the primitives that edges still have, under their published
/// names; softmax over these alone, and no gradient elsewhere.
#[test]
fn dropped_primitives_have_no_parameters_no_weight_and_no_gradient() {
    let space = SearchSpace::darts();
    let mut rng = Rng::seed_from_u64(4);
    let architecture = Architecture::new(space, false, &Device::Cpu, DType::F64, &mut rng).unwrap();
    let weights = CellKind::ALL.map(|kind| architecture.operation_weights(kind).unwrap());
    let mut candidates = Candidates::all(space);
    candidates.keep_largest([&weights[0], &weights[1]], 3);
    for (kind, weights) in CellKind::ALL.into_iter().zip(&weights) {
        for (edge, row) in weights.chunks(8).enumerate() {
            let has = |p| candidates.has(kind, edge, p);
            assert_eq!((0..8).filter(|&p| has(p)).count(), 3);
            let least_kept = (0..8)
                .filter(|&p| has(p))
                .map(|p| row[p])
                .fold(1.0, f32::min);
            assert!((0..8).all(|p| has(p) || row[p] <= least_kept));
        }
    }
    let bits = candidates.to_bits().clone();
    assert_eq!(
        Candidates::from_bits(space, &bits),
        Some(candidates.clone())
    );
    assert_eq!(Candidates::from_bits(space, &[vec![], vec![]]), None);

    let architecture = architecture.with_candidates(&candidates).unwrap();
    let mixing = architecture.mixing(CellKind::Normal, true).unwrap();
    let rows: Vec<Vec<f64>> = mixing.operations.to_vec2().unwrap();
    for (edge, row) in rows.iter().enumerate() {
        let sum: f64 = row.iter().sum();
        assert!((sum - 1.0).abs() < 1e-12);
        for (p, weight) in row.iter().enumerate() {
            assert_eq!(*weight > 0.0, candidates.has(CellKind::Normal, edge, p));
        }
    }
    let squares = mixing.operations.sqr().unwrap().sum_all().unwrap();
    let gradients = squares.backward().unwrap();
    let alphas = &architecture.parameters().weights()["alphas_normal"];
    let gradient: Vec<Vec<f64>> = gradients.get(alphas).unwrap().to_vec2().unwrap();
    for (edge, row) in gradient.iter().enumerate() {
        for (p, slope) in row.iter().enumerate() {
            assert!(slope.is_finite());
            assert!(*slope == 0.0 || candidates.has(CellKind::Normal, edge, p));
        }
    }

    let spec = NetworkSpec {
        n_layers: 3,
        init_channels: 4,
        image_size: 8,
        ..NetworkSpec::cifar10()
    };
    let builder = Builder::new(&Device::Cpu, DType::F64, &mut rng);
    let network =
        Supernet::with_candidates(&builder, space, &spec, ChannelRatio::FULL, &candidates).unwrap();
    let all = Supernet::new(
        &Builder::new(&Device::Cpu, DType::F64, &mut rng),
        space,
        &spec,
        ChannelRatio::FULL,
    )
    .unwrap();
    let names = |network: &Supernet| -> Vec<String> {
        network.parameters().weights().keys().cloned().collect()
    };
    let (kept, every) = (names(&network), names(&all));
    assert!(kept.len() < every.len() / 2);
    assert!(kept.iter().all(|name| every.contains(name)));
}
