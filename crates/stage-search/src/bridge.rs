//! From alpha to an input of the latency model, which was fitted on the codes of genotypes.

use nn::Rng;
use rand::RngExt;
use serde::{Deserialize, Serialize};
use space::{Genotype, SearchSpace};

use crate::predictor::Predictor;

/// Where the model is asked. Whatever the answer's gradient in the code, it goes on to alpha through the
/// soft code (straight through).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Bridge {
    /// At the mass-matched soft code.
    Soft,
    /// At the derived genotype.
    Hard,
    /// At genotypes drawn by alpha and beta, and averaged: on each edge a primitive with the probability of
    /// its weight, of the edges of a node two without replacement (Gumbel's top 2).
    Sampled,
}

impl Bridge {
    /// As in the config file.
    pub fn name(self) -> &'static str {
        match self {
            Self::Soft => "soft",
            Self::Hard => "hard",
            Self::Sampled => "sampled",
        }
    }

    /// The latency in ms, and its derivative with respect to the soft code. `ranks` is what derivation
    /// compares, per cell kind; random numbers are drawn for [`Bridge::Sampled`] alone.
    pub(crate) fn latency(
        self,
        predictor: &Predictor,
        soft: &[f32],
        ranks: [&[f32]; 2],
        n_samples: usize,
        rng: &mut Rng,
    ) -> (f64, Vec<f32>) {
        let space = SearchSpace::darts();
        match self {
            Self::Soft => predictor.gradient(soft),
            Self::Hard => predictor.gradient(&space.encode(&space.derive(ranks))),
            Self::Sampled => {
                let mut millis = 0.0;
                let mut gradient = vec![0.0; soft.len()];
                for _ in 0..n_samples {
                    let code = space.encode(&draw(ranks, rng));
                    let (own, slope) = predictor.gradient(&code);
                    millis += own / n_samples as f64;
                    for (sum, slope) in gradient.iter_mut().zip(slope) {
                        *sum += slope / n_samples as f32;
                    }
                }
                (millis, gradient)
            }
        }
    }
}

/// A genotype drawn by the weights.
pub(crate) fn draw(ranks: [&[f32]; 2], rng: &mut Rng) -> Genotype {
    let [normal, reduction] = noisy(ranks, rng);
    SearchSpace::darts().derive([&normal, &reduction])
}

/// Weights from which derivation draws a genotype.
///
/// With a Gumbel noise on each log weight, the largest of an edge is drawn by softmax, and the largest of
/// all edges are drawn by the sum of their weights: derivation from noisy weights draws both at once.
pub(crate) fn noisy(ranks: [&[f32]; 2], rng: &mut Rng) -> [Vec<f32>; 2] {
    ranks.map(|ranks| {
        let noisy = ranks.iter().map(|&rank| {
            // Away from 0 and 1, where the logarithms end.
            let uniform: f64 = rng.random_range(1e-12..1.0 - 1e-12);
            // rank exp(gumbel)
            (f64::from(rank) / -uniform.ln()) as f32
        });
        noisy.collect()
    })
}

#[cfg(test)]
mod tests {
    use rand_chacha::rand_core::SeedableRng;
    use space::{CellKind, Primitive};

    use super::*;

    #[test]
    fn genotypes_are_drawn_by_their_weights() {
        let mut ranks = vec![0.0; 112];
        // Node 2 reads both states always: sep_conv_3x3 three times as often as a skip on the first.
        ranks[Primitive::SepConv3x3.index()] = 0.6;
        ranks[Primitive::SkipConnect.index()] = 0.2;
        for edge in 1..14 {
            ranks[edge * 8 + Primitive::MaxPool3x3.index()] = if edge == 4 { 4.0 } else { 1.0 };
        }
        let mut rng = Rng::seed_from_u64(1);
        let (mut n_conv, mut n_edge4) = (0, 0);
        const N: usize = 4000;
        for _ in 0..N {
            let genotype = draw([&ranks, &ranks], &mut rng);
            let cell = genotype.cell(CellKind::Normal);
            n_conv += usize::from(
                cell.nodes[0]
                    .iter()
                    .any(|gene| gene.primitive == Primitive::SepConv3x3),
            );
            n_edge4 += usize::from(cell.nodes[1].iter().any(|gene| gene.source == 2));
        }
        let share = |n: usize| n as f64 / N as f64;
        assert!((share(n_conv) - 0.75).abs() < 0.02, "{}", share(n_conv));
        // Edges of weights 1, 1, 4: the third is among two without replacement with
        // 4/6 + 2 * 1/6 * 4/5 = 14/15.
        assert!(
            (share(n_edge4) - 14.0 / 15.0).abs() < 0.015,
            "{}",
            share(n_edge4)
        );
    }
}
