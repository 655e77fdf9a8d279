//! Gradients against finite differences in f64, and laws of the architecture parameters.

use candle_core::{DType, Device, Tensor};
use nn::loss::{cross_entropy, scalar};
use nn::optimizer::Gradients;
use nn::parameters::Builder;
use nn::{Architecture, ChannelRatio, Pass, Rng, Supernet};
use rand_chacha::rand_core::SeedableRng;
use space::{CellKind, NetworkSpec, Primitive, SearchSpace};

const DEVICE: Device = Device::Cpu;

struct Setup {
    network: Supernet,
    architecture: Architecture,
    x: Tensor,
    y: Tensor,
}

impl Setup {
    fn new(ratio: usize) -> Self {
        let spec = NetworkSpec {
            n_layers: 3,
            init_channels: 4,
            image_size: 8,
            ..NetworkSpec::cifar10()
        };
        let ratio = ChannelRatio::new(ratio).unwrap();
        let space = SearchSpace::darts();
        let mut rng = Rng::seed_from_u64(3);
        let network = {
            let builder = Builder::new(&DEVICE, DType::F64, &mut rng);
            Supernet::new(&builder, space, &spec, ratio).unwrap()
        };
        let architecture =
            Architecture::new(space, ratio.is_partial(), &DEVICE, DType::F64, &mut rng).unwrap();
        // Away from the uniform start, where many derivatives are equal.
        for var in architecture.parameters().weights().values() {
            var.set(&(var.as_detached_tensor() * 700.0).unwrap())
                .unwrap();
        }
        let values: Vec<f64> = (0..2 * 3 * 8 * 8)
            .map(|i| (f64::from(i) * 1.7).sin())
            .collect();
        let x = Tensor::from_vec(values, (2, 3, 8, 8), &DEVICE).unwrap();
        let y = Tensor::new(&[1u32, 7], &DEVICE).unwrap();
        Self {
            network,
            architecture,
            x,
            y,
        }
    }

    fn loss(&self, tracked: bool) -> Tensor {
        let mixing = CellKind::ALL.map(|kind| self.architecture.mixing(kind, tracked).unwrap());
        let logits = self
            .network
            .forward(&self.x, &mixing, &Pass::architecture_step())
            .unwrap();
        cross_entropy(&logits, &self.y, 0.1).unwrap()
    }
}

#[test]
fn gradients_of_alpha_and_beta_agree_with_finite_differences() {
    for ratio in [1, 2] {
        let setup = Setup::new(ratio);
        let parameters = setup.architecture.parameters();
        let mut store = setup.loss(true).backward().unwrap();
        let gradients = Gradients::collect(parameters, &mut store);
        for (name, var) in parameters.weights() {
            let gradient: Vec<f64> = gradients
                .get(name)
                .unwrap()
                .flatten_all()
                .unwrap()
                .to_vec1()
                .unwrap();
            let start: Vec<f64> = var.flatten_all().unwrap().to_vec1().unwrap();
            for index in (0..start.len()).step_by(9) {
                let at = |delta: f64| {
                    let mut values = start.clone();
                    values[index] += delta;
                    var.set(&Tensor::from_vec(values, var.shape(), &DEVICE).unwrap())
                        .unwrap();
                    scalar(&setup.loss(false)).unwrap()
                };
                // Small enough not to cross a ReLU or pooling kink, large enough for f64.
                let h = 1e-6;
                let numeric = (at(h) - at(-h)) / (2.0 * h);
                at(0.0);
                let error = (numeric - gradient[index]).abs();
                assert!(
                    error < 1e-6 + 1e-4 * numeric.abs(),
                    "K = {ratio}, {name}[{index}]: {numeric} by differences, {}",
                    gradient[index]
                );
            }
        }
    }
}

#[test]
fn an_alpha_step_gives_the_weights_no_gradient_and_a_weight_step_alpha_none() {
    let setup = Setup::new(2);
    let weights = setup.network.parameters();
    let mut store = setup.loss(true).backward().unwrap();
    let gradients = Gradients::collect(weights, &mut store);
    assert!(
        weights
            .weights()
            .keys()
            .all(|name| gradients.get(name).is_none())
    );

    let mixing = CellKind::ALL.map(|kind| setup.architecture.mixing(kind, false).unwrap());
    let logits = setup
        .network
        .forward(&setup.x, &mixing, &Pass::training())
        .unwrap();
    let mut store = cross_entropy(&logits, &setup.y, 0.0)
        .unwrap()
        .backward()
        .unwrap();
    let arch = setup.architecture.parameters();
    let gradients = Gradients::collect(arch, &mut store);
    assert!(
        arch.weights()
            .keys()
            .all(|name| gradients.get(name).is_none())
    );
    let gradients = Gradients::collect(weights, &mut store);
    assert!(
        weights
            .weights()
            .keys()
            .any(|name| gradients.get(name).is_some())
    );
}

#[test]
fn the_soft_code_has_a_genotypes_mass_less_the_share_of_none() {
    let space = SearchSpace::darts();
    for ratio in [1, 2] {
        let setup = Setup::new(ratio);
        let code: Vec<f64> = setup.architecture.soft_code().unwrap().to_vec1().unwrap();
        assert_eq!(code.len(), space.code_len());
        for kind in CellKind::ALL {
            let mixing = setup.architecture.mixing(kind, false).unwrap();
            let shares: Vec<f64> = match &mixing.edges {
                Some(edges) => edges.to_vec1().unwrap(),
                None => (2..6)
                    .flat_map(|node| vec![1.0 / node as f64; node])
                    .collect(),
            };
            let none: f64 = mixing
                .operations
                .to_vec2::<f64>()
                .unwrap()
                .iter()
                .zip(&shares)
                .map(|(row, share)| 2.0 * share * row[Primitive::None.index()])
                .sum();
            let first = space.code_index(kind, 0, Primitive::None);
            let mass: f64 = code[first..first + 112].iter().sum();
            assert!((mass - (8.0 - none)).abs() < 1e-12);
            assert!((0..14).all(|e| code[space.code_index(kind, e, Primitive::None)] == 0.0));
        }
    }
}

#[test]
fn sharp_parameters_make_the_soft_code_the_code_of_the_derived_genotype() {
    let setup = Setup::new(2);
    let space = SearchSpace::darts();
    let genotype = space::Genotype::named("PC_DARTS_cifar").unwrap();
    let code = space.encode(&genotype);
    for kind in CellKind::ALL {
        let rows = &code[space.code_index(kind, 0, Primitive::None)..][..112];
        // A kept edge and primitive far above the rest; both kept edges of a node alike.
        let alpha: Vec<f64> = rows.iter().map(|c| 60.0 * f64::from(*c)).collect();
        let beta: Vec<f64> = rows
            .chunks(8)
            .map(|row| 60.0 * f64::from(row.iter().sum::<f32>()))
            .collect();
        let parameters = setup.architecture.parameters().weights();
        let set = |name: String, values: Vec<f64>| {
            let var = &parameters[&name];
            var.set(&Tensor::from_vec(values, var.shape(), &DEVICE).unwrap())
                .unwrap();
        };
        set(format!("alphas_{}", kind.name()), alpha);
        set(format!("betas_{}", kind.name()), beta);
    }
    let derived = setup.architecture.derive().unwrap();
    assert_eq!(derived.canonical(), genotype.canonical());
    let soft: Vec<f64> = setup.architecture.soft_code().unwrap().to_vec1().unwrap();
    for (soft, hard) in soft.iter().zip(&code) {
        assert!((soft - f64::from(*hard)).abs() < 1e-12);
    }
}

#[test]
fn entropy_starts_near_that_of_eight_equal_shares() {
    let architecture = Architecture::new(
        SearchSpace::darts(),
        true,
        &DEVICE,
        DType::F32,
        &mut Rng::seed_from_u64(0),
    )
    .unwrap();
    for kind in CellKind::ALL {
        assert!((architecture.entropy(kind).unwrap() - 8f64.ln()).abs() < 1e-4);
    }
}
