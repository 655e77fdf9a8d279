//! Synthetic laws of latency over the DARTS space: what the models must recover.

use std::array;

use latency::{Figures, LatencyModel, Mlp, MlpConfig, Ridge, noise_floor_mape};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal};
use space::{CellKind, Primitive, SearchSpace};

/// A network costs 4 ms, plus each gene, plus something for each pair of primitives in a cell; what is
/// measured differs from it by a factor.
struct Law {
    /// Milliseconds of each number of a code.
    additive: Vec<f64>,
    /// Milliseconds of each pair of primitives in one cell, the later primitive first.
    pairs: [[f64; 8]; 8],
    /// The standard deviation of the factor.
    noise: f64,
}

impl Law {
    /// Costs by primitive that vary by 15 % from edge to edge; `pairs` is the scale of the pairs' costs.
    fn new(pairs: f64, noise: f64) -> Self {
        let space = SearchSpace::darts();
        let mut rng = ChaCha8Rng::seed_from_u64(20);
        let by_primitive = [0.0, 0.5, 0.6, 0.15, 1.6, 2.4, 0.9, 1.3];
        let mut additive = vec![0.0; space.code_len()];
        for (kind, scale) in CellKind::ALL.into_iter().zip([1.0, 0.5]) {
            for edge in space.edges() {
                for primitive in Primitive::ALL {
                    additive[space.code_index(kind, edge.index, primitive)] =
                        scale * by_primitive[primitive.index()] * (1.0 + 0.15 * normal(&mut rng));
                }
            }
        }
        let pairs = array::from_fn(|_| array::from_fn(|_| pairs * normal(&mut rng)));
        Self {
            additive,
            pairs,
            noise,
        }
    }

    /// The additive part, for any code.
    fn additive_millis(&self, code: &[f32]) -> f64 {
        4.0 + code
            .iter()
            .zip(&self.additive)
            .map(|(&c, cost)| f64::from(c) * cost)
            .sum::<f64>()
    }

    /// The latency of a genotype's code.
    fn millis(&self, code: &[f32]) -> f64 {
        let mut millis = self.additive_millis(code);
        for cell in code.chunks(code.len() / 2) {
            let chosen: Vec<usize> = (0..cell.len())
                .filter(|&index| cell[index] == 1.0)
                .collect();
            for (n_before, second) in chosen.iter().enumerate() {
                for first in &chosen[..n_before] {
                    let (a, b) = (first % 8, second % 8);
                    millis += self.pairs[a.max(b)][a.min(b)];
                }
            }
        }
        millis
    }

    fn measure(&self, code: &[f32], rng: &mut ChaCha8Rng) -> f64 {
        self.millis(code) * (1.0 + self.noise * normal(rng))
    }
}

fn normal(rng: &mut ChaCha8Rng) -> f64 {
    StandardNormal.sample(rng)
}

fn sample(n: usize, seed: u64) -> Vec<Vec<f32>> {
    let space = SearchSpace::darts();
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    (0..n)
        .map(|_| space.encode(&space.sample(&mut rng)))
        .collect()
}

/// Both models, fitted on `n` measurements of the law.
fn fit(law: &Law, n: usize) -> (Ridge, Mlp) {
    let codes = sample(n, 1);
    let mut rng = ChaCha8Rng::seed_from_u64(2);
    let millis: Vec<f64> = codes
        .iter()
        .map(|code| law.measure(code, &mut rng))
        .collect();
    let ridge = Ridge::fit_cv(&codes, &millis, &Ridge::L2_GRID).unwrap();
    (
        ridge,
        Mlp::fit(&MlpConfig::default(), &codes, &millis).unwrap(),
    )
}

/// The MAPE against the law itself, without noise, on architectures that no model has seen.
fn mape(model: &impl LatencyModel, law: &Law) -> f64 {
    let codes = sample(1000, 3);
    let predicted: Vec<f64> = codes
        .iter()
        .map(|code| model.predict_millis(code))
        .collect();
    let truth: Vec<f64> = codes.iter().map(|code| law.millis(code)).collect();
    Figures::compute(&predicted, &truth).mape
}

#[test]
fn an_additive_law_is_recovered_almost_exactly() {
    let law = Law::new(0.0, 0.0);
    let (ridge, mlp) = fit(&law, 500);
    assert!(mape(&ridge, &law) < 1e-3, "{}", mape(&ridge, &law));
    assert!(mape(&mlp, &law) < 1e-3, "{}", mape(&mlp, &law));
}

/// What 3 % of noise leaves to find out, the regressor finds out with fewer architectures than the
/// ridge, which must learn each of 196 numbers on its own.
#[test]
fn an_additive_law_shows_through_noise() {
    let law = Law::new(0.0, 0.03);
    for (n, bound) in [(100, 0.035), (300, 0.025), (500, 0.02)] {
        let (ridge, mlp) = fit(&law, n);
        let (ridge, mlp) = (mape(&ridge, &law), mape(&mlp, &law));
        assert!(
            mlp < bound && mlp < ridge,
            "{n} architectures: {mlp}, ridge {ridge}"
        );
    }
}

#[test]
fn pairs_are_learnt_that_no_sum_can_express() {
    let law = Law::new(0.1, 0.01);
    let (ridge, mlp) = fit(&law, 1000);
    assert!(mlp.share() > 0.8, "{}", mlp.share());
    let (ridge, mlp) = (mape(&ridge, &law), mape(&mlp, &law));
    assert!(mlp < 0.022 && mlp < 0.6 * ridge, "{mlp}, ridge {ridge}");
}

/// A search asks about weights that no architecture has. Where the law is a sum, the answer has to be
/// the same sum.
#[test]
fn between_architectures_an_additive_law_is_interpolated() {
    let law = Law::new(0.0, 0.01);
    let (_, mlp) = fit(&law, 500);
    let codes = sample(400, 4);
    let middles = codes
        .chunks_exact(2)
        .map(|pair| mix(&pair[0], &pair[1], 0.5));
    let errors = middles.chain(soft_codes(200)).map(|code| {
        let truth = law.additive_millis(&code);
        (mlp.predict_millis(&code) - truth).abs() / truth
    });
    let worst = errors.fold(0.0, f64::max);
    assert!(worst < 0.03, "{worst}");
}

/// Where the law is no sum, nothing is known between architectures; the answer must not leave what is
/// known at the two ends by much.
#[test]
fn between_architectures_a_law_of_pairs_stays_in_reason() {
    let law = Law::new(0.1, 0.01);
    let (_, mlp) = fit(&law, 500);
    for pair in sample(200, 5).chunks_exact(2) {
        let ends = [&pair[0], &pair[1]].map(|code| mlp.predict_millis(code));
        let (low, high) = (ends[0].min(ends[1]), ends[0].max(ends[1]));
        for step in 1..8 {
            let millis = mlp.predict_millis(&mix(&pair[0], &pair[1], step as f32 / 8.0));
            assert!(
                0.9 * low < millis && millis < 1.1 * high,
                "{millis}, ends {ends:?}"
            );
        }
    }
}

/// On the way from one architecture to another the gradient says what the next step does.
#[test]
fn the_gradient_leads_to_faster_architectures() {
    let law = Law::new(0.1, 0.01);
    let (_, mlp) = fit(&law, 500);
    let space = SearchSpace::darts();
    let (mut before, mut after) = (0.0, 0.0);
    for code in soft_codes(20) {
        let (_, grad) = mlp.gradient(&code);
        let lowered: Vec<f32> = code.iter().zip(&grad).map(|(c, g)| c - g).collect();
        let derived = |code: &[f32]| {
            let (normal, reduction) = code.split_at(code.len() / 2);
            law.millis(&space.encode(&space.derive([normal, reduction])))
        };
        before += derived(&code) / 20.0;
        after += derived(&lowered) / 20.0;
    }
    assert!(after < 0.8 * before, "{before} ms, then {after} ms");
}

/// Two measurements of everything tell what a model that knows the law would score against one.
#[test]
fn the_noise_floor_is_the_error_of_the_law_itself() {
    let law = Law::new(0.1, 0.04);
    let codes = sample(4000, 6);
    let mut rng = ChaCha8Rng::seed_from_u64(7);
    let twice: Vec<(f64, f64)> = codes
        .iter()
        .map(|code| (law.measure(code, &mut rng), law.measure(code, &mut rng)))
        .collect();
    let truth: Vec<f64> = codes.iter().map(|code| law.millis(code)).collect();
    let once: Vec<f64> = twice.iter().map(|pair| pair.0).collect();
    let perfect = Figures::compute(&truth, &once).mape;
    assert!((noise_floor_mape(&twice) / perfect - 1.0).abs() < 0.05);
}

fn mix(a: &[f32], b: &[f32], t: f32) -> Vec<f32> {
    a.iter()
        .zip(b)
        .map(|(a, b)| (1.0 - t) * a + t * b)
        .collect()
}

/// Codes as a search makes them: of each node's edges and primitives a softmax, with the mass of an
/// architecture, 2 per node, and nothing on [`Primitive::None`].
fn soft_codes(n: usize) -> impl Iterator<Item = Vec<f32>> {
    let space = SearchSpace::darts();
    let mut rng = ChaCha8Rng::seed_from_u64(8);
    (0..n).map(move |_| {
        let mut code = vec![0.0; space.code_len()];
        for (kind, node) in CellKind::ALL
            .into_iter()
            .flat_map(|kind| (2..6).map(move |n| (kind, n)))
        {
            let places: Vec<usize> = space
                .edges_into(node)
                .flat_map(|edge| Primitive::ALL[1..].iter().map(move |&kept| (edge, kept)))
                .map(|(edge, kept)| space.code_index(kind, edge, kept))
                .collect();
            let weights: Vec<f64> = places.iter().map(|_| normal(&mut rng).exp()).collect();
            let total: f64 = weights.iter().sum();
            for (place, weight) in places.into_iter().zip(weights) {
                code[place] = (2.0 * weight / total) as f32;
            }
        }
        code
    })
}
