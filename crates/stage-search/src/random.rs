//! No search at all: what a search must be better than at the same latency.

use space::{Genotype, SearchSpace};

use crate::config::Config;
use crate::derivation::Band;
use crate::error::Error;
use crate::predictor::Predictor;
use crate::search::{STREAM_GENOTYPES, rng};

/// Draws until giving up.
const MAX_DRAWS: usize = 100_000;

/// The first genotypes, drawn uniformly, whose latency keeps to the target and within its slack: as many as are to be
/// chosen from, no two alike, if there are so many.
pub(crate) fn draw(
    config: &Config,
    predictor: &Predictor,
    target_millis: Option<f64>,
) -> Result<Vec<Genotype>, Error> {
    let target_millis = target_millis.ok_or(Error::Setting {
        key: "target.latency",
        expected: "a latency such as 0.4ms or 0.6x for the method random",
    })?;
    let band = Band {
        low_millis: (1.0 - config.target.slack) * target_millis,
        high_millis: target_millis,
    };
    let mut rng = rng(config.seed, STREAM_GENOTYPES);
    let mut genotypes: Vec<Genotype> = Vec::new();
    for _ in 0..MAX_DRAWS {
        if genotypes.len() == config.n_candidates() {
            break;
        }
        let genotype = SearchSpace::darts().sample(&mut rng);
        let is_within = predictor
            .upper(&genotype, config.target.probability)
            .is_some_and(|upper| band.contains(upper));
        if is_within && !genotypes.contains(&genotype) {
            genotypes.push(genotype);
        }
    }
    if genotypes.is_empty() {
        return Err(Error::NothingDrawn {
            unit: predictor.metric.unit(),
            low_millis: band.low_millis,
            target_millis,
            n_draws: MAX_DRAWS,
        });
    }
    Ok(genotypes)
}
