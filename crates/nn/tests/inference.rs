//! Deployed networks against the same networks operation by operation.

use candle_core::{DType, Device, Tensor};
use nn::parameters::Builder;
use nn::{DerivedNet, Pass, Rng};
use rand_chacha::rand_core::{Rng as _, SeedableRng};
use space::{Genotype, NetworkSpec, Stem};

fn spec(stem: Stem, image_size: usize) -> NetworkSpec {
    NetworkSpec {
        stem,
        n_layers: 5,
        init_channels: 6,
        in_channels: 3,
        n_classes: 10,
        image_size,
    }
}

fn images(n: usize, size: usize) -> Vec<f32> {
    let mut rng = Rng::seed_from_u64(1);
    let len = n * 3 * size * size;
    (0..len)
        .map(|_| 2.0 * (rng.next_u32() as f32 / u32::MAX as f32) - 1.0)
        .collect()
}

/// A network whose running statistics and affine parameters are of some batch, not the initial ones.
fn network(spec: &NetworkSpec, genotype: &Genotype) -> DerivedNet {
    let mut rng = Rng::seed_from_u64(0);
    let network = {
        let builder = Builder::new(&Device::Cpu, DType::F32, &mut rng);
        DerivedNet::new(&builder, spec, genotype, false).unwrap()
    };
    let shape = (4, 3, spec.image_size, spec.image_size);
    let x = Tensor::from_vec(images(4, spec.image_size), shape, &Device::Cpu).unwrap();
    network.forward(&x, &Pass::training()).unwrap();
    for (name, var) in network.parameters().weights() {
        if var.dims().len() == 1 {
            let shift = if name.ends_with("bias") { 0.1 } else { 0.0 };
            var.set(&((var.as_tensor() * 0.9).unwrap() + shift).unwrap())
                .unwrap();
        }
    }
    network
}

#[test]
fn a_deployed_network_answers_what_the_network_answers() {
    for (stem, size) in [
        (Stem::Conv3x3, 32),
        (Stem::Conv3x3, 9),
        (Stem::Conv3x3Stride2, 28),
        (Stem::Imagenet, 64),
        (Stem::Imagenet, 37),
    ] {
        for name in [
            "DARTS_V1",
            "DARTS_V2",
            "PDARTS",
            "PC_DARTS_cifar",
            "PC_DARTS_image",
        ] {
            let (spec, n) = (spec(stem, size), 3);
            let genotype = Genotype::named(name).unwrap();
            let network = network(&spec, &genotype);
            let images = images(n, size);
            let x = Tensor::from_vec(images.clone(), (n, 3, size, size), &Device::Cpu).unwrap();
            let expected: Vec<f32> = network
                .forward(&x, &Pass::inference())
                .unwrap()
                .main
                .flatten_all()
                .unwrap()
                .to_vec1()
                .unwrap();
            let deployed = network.for_inference().unwrap().run(&images, n, [size; 2]);
            let scale = expected.iter().fold(0.0, |max: f32, x| max.max(x.abs()));
            assert!(scale > 0.0);
            for (a, b) in deployed.iter().zip(&expected) {
                assert!(
                    (a - b).abs() <= 2e-5 * scale,
                    "{name} {stem:?} {size}: {a} instead of {b}"
                );
            }
            assert_eq!(deployed.len(), expected.len());
        }
    }
}

#[test]
fn a_number_that_is_none_shows_in_the_answer() {
    let spec = spec(Stem::Conv3x3, 8);
    let network = network(&spec, &Genotype::named("DARTS_V1").unwrap());
    let mut images = images(1, 8);
    images[70] = f32::NAN;
    let logits = network.for_inference().unwrap().run(&images, 1, [8; 2]);
    assert!(logits.iter().any(|x| x.is_nan()));
}

/// Images that are run one by one, many at once, on the threads of one pool and each on a pool of its own: none waits for
/// another for ever, and all answer as on one thread.
#[test]
fn single_images_run_beside_each_other() {
    let spec = spec(Stem::Conv3x3Stride2, 16);
    let genotype = Genotype::named("PC_DARTS_cifar").unwrap();
    let network = network(&spec, &genotype).for_inference().unwrap();
    let image = images(1, spec.image_size);
    let size = [spec.image_size; 2];
    let expected = pool(1).install(|| network.run(&image, 1, size));
    let shared = pool(3);
    std::thread::scope(|scope| {
        for n_threads in [None, None, None, Some(2), Some(4)] {
            let (network, image, expected, shared) = (&network, &image, &expected, &shared);
            scope.spawn(move || {
                let own = n_threads.map(pool);
                let pool = own.as_ref().unwrap_or(shared);
                for _ in 0..100 {
                    let answer = pool.install(|| network.run(image, 1, size));
                    assert_eq!(&answer, expected);
                }
            });
        }
    });
}

fn pool(n_threads: usize) -> rayon::ThreadPool {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(n_threads);
    pool.build().expect("threads")
}
