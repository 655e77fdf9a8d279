//! No search at all: what a search must be better than at the same latency.

use std::collections::HashSet;

use artifact::stage::Progress;
use nn::Rng;
use space::{Genotype, SearchSpace};

use crate::config::Config;
use crate::derivation::{Band, GeneLimits, Limits, draw_within};
use crate::error::Error;
use crate::predictor::Predictor;
use crate::search::{STREAM_GENOTYPES, rng};

/// Uniform draws until giving up on more of them.
const MAX_DRAWS: usize = 100_000;
/// Draws brought to the band, for each genotype that is to be found.
const MAX_TRIES: usize = 16;

/// Genotypes drawn uniformly that keep to the guards and whose latency keeps to the target and within its slack: as many as
/// are to be chosen from, no two alike, if there are so many. A line tells of those that are no uniform draws ([`within`]), and
/// where the target forces draws that do not keep to the guards.
pub(crate) fn draw(
    config: &Config,
    predictor: &Predictor,
    target_millis: Option<f64>,
    progress: &Progress,
) -> Result<Vec<Genotype>, Error> {
    let target_millis = target_millis.ok_or_else(|| Error::Setting {
        key: "target.latency",
        expected: "a latency such as 0.4ms or 0.6x for the method random".to_owned(),
    })?;
    let band = Band {
        low_millis: (1.0 - config.target.slack) * target_millis,
        high_millis: target_millis,
    };
    let upper = |genotype: &Genotype| {
        let upper = predictor.upper(genotype, config.target.probability);
        upper.unwrap_or(f64::INFINITY)
    };
    let n_candidates = config.n_candidates();
    let mut rng = rng(config.seed, STREAM_GENOTYPES);
    let mut draw = |genes| {
        let limits = Limits {
            genes,
            band: Some(band),
        };
        let bar = progress.bar("uniform draws", MAX_DRAWS as u64);
        let found = within(limits, n_candidates, upper, || bar.inc(1), &mut rng);
        bar.finish();
        found
    };
    let guarded = GeneLimits::of(&config.guards);
    let (mut genotypes, mut n_uniform) = draw(guarded);
    if genotypes.is_empty() && guarded != GeneLimits::NONE {
        progress.line(
            "no genotype of that latency keeps to the guards: the target forces draws without them",
        );
        (genotypes, n_uniform) = draw(GeneLimits::NONE);
    }
    if genotypes.is_empty() {
        return Err(Error::NothingDrawn {
            unit: predictor.metric.unit(),
            low_millis: band.low_millis,
            target_millis,
            n_draws: MAX_DRAWS,
        });
    }
    if n_uniform < n_candidates {
        progress.line(&format!(
            "{MAX_DRAWS} uniform draws held {n_uniform} of {n_candidates} genotypes within the target's slack; {} more are draws \
             that were brought there node by node",
            genotypes.len() - n_uniform
        ));
    }
    Ok(genotypes)
}

/// The first `n` different genotypes of uniform draws that lie within limits, and how many of them do so as they were drawn:
/// where these hold hardly any of all genotypes, those that [`MAX_DRAWS`] do not come to are draws that are brought there,
/// node by node, by other draws. `on_draw` is called for every uniform one.
fn within(
    limits: Limits,
    n: usize,
    upper_millis: impl Fn(&Genotype) -> f64,
    on_draw: impl Fn(),
    rng: &mut Rng,
) -> (Vec<Genotype>, usize) {
    let sample = |rng: &mut Rng| SearchSpace::darts().sample(rng);
    let mut genotypes: Vec<Genotype> = Vec::new();
    let mut graphs = HashSet::new();
    for _ in 0..MAX_DRAWS {
        if genotypes.len() == n {
            break;
        }
        let genotype = sample(rng);
        on_draw();
        let is_in = |band: Band| band.contains(upper_millis(&genotype));
        if limits.genes.excess(&genotype) == 0
            && limits.band.is_none_or(is_in)
            && graphs.insert(genotype.canonical())
        {
            genotypes.push(genotype);
        }
    }
    let n_uniform = genotypes.len();
    for _ in 0..MAX_TRIES * (n - n_uniform) {
        if genotypes.len() == n {
            break;
        }
        let brought = draw_within(limits, &upper_millis, sample, rng);
        genotypes.extend(brought.filter(|genotype| graphs.insert(genotype.canonical())));
    }
    (genotypes, n_uniform)
}

#[cfg(test)]
mod tests {
    use rand_chacha::rand_core::SeedableRng as _;
    use space::CellKind;

    use super::*;

    /// The number of genes that are no skips: none of a hundred thousand uniform draws has fewer than five.
    fn law(genotype: &Genotype) -> f64 {
        let n_skips = CellKind::ALL.map(|kind| genotype.n_skips(kind));
        16.0 - n_skips.iter().sum::<usize>() as f64
    }

    fn drawn(genes: GeneLimits, low_millis: f64, high_millis: f64) -> (Vec<Genotype>, usize) {
        let band = Band {
            low_millis,
            high_millis,
        };
        let limits = Limits {
            genes,
            band: Some(band),
        };
        let (genotypes, n_uniform) = within(limits, 4, law, || {}, &mut Rng::seed_from_u64(3));
        for (index, genotype) in genotypes.iter().enumerate() {
            assert!(band.contains(law(genotype)), "{genotype}");
            assert_eq!(genes.excess(genotype), 0, "{genotype}");
            let alike = |other: &Genotype| other.canonical() == genotype.canonical();
            assert!(!genotypes[..index].iter().any(alike));
        }
        (genotypes, n_uniform)
    }

    #[test]
    fn what_a_band_holds_is_drawn_uniformly() {
        let (genotypes, n_uniform) = drawn(GeneLimits::NONE, 14.0, 14.0);
        assert_eq!((genotypes.len(), n_uniform), (4, 4));
        let mut rng = Rng::seed_from_u64(3);
        let mut draws = (0..100).map(|_| SearchSpace::darts().sample(&mut rng));
        let first = draws.find(|genotype| law(genotype) == 14.0);
        assert_eq!(first.as_ref(), genotypes.first());
    }

    #[test]
    fn draws_are_brought_to_a_band_that_holds_hardly_any() {
        let (genotypes, n_uniform) = drawn(GeneLimits::NONE, 2.0, 3.0);
        assert_eq!((genotypes.len(), n_uniform), (4, 0));
        assert!(drawn(GeneLimits::NONE, -2.0, -1.0).0.is_empty());
    }

    #[test]
    fn draws_keep_to_the_guards() {
        let genes = GeneLimits {
            max_skips_normal: 0,
            min_convolutions: 4,
        };
        assert_eq!(drawn(genes, 14.0, 14.0).0.len(), 4);
        // Ten genes or more would have to be skips, of which these guards allow four.
        assert!(drawn(genes, 4.0, 6.0).0.is_empty());
    }
}
