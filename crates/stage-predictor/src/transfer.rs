//! The latency model of a new device, from models of others and a few architectures timed on it.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use artifact::stage::RunContext;
use artifact::{
    Digest, FiguresRecord, HeldOut, LatencyModelArtifact, ModelCard, Opened, Validation,
};
use latency::{Figures, Structured, Transfer, noise_floor_mape};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use space::{Genotype, SearchSpace, Topology};

use crate::{Config, Error, Inputs, candidates, median, record, table, timed_twice};

/// The name of the model in files and figures.
const TRANSFER: &str = "transfer";
/// The fewest undisturbed architectures timed on the new device.
const MIN_TIMED: usize = 5;
/// As many architectures, drawn with the seed, stand for the space, and may be chosen.
const POOL: usize = 400;

/// Latency models of other devices.
pub struct SourceModels {
    opened: Vec<Opened<LatencyModelArtifact>>,
}

impl SourceModels {
    /// The models that the stage predictor left in folders.
    ///
    /// # Errors
    /// As [`artifact::open`].
    pub fn open(dirs: &[PathBuf]) -> Result<Self, Error> {
        let opened = dirs
            .iter()
            .map(|dir| Ok(artifact::open::<LatencyModelArtifact>(dir)?))
            .collect::<Result<Vec<_>, Error>>()?;
        Ok(Self { opened })
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.opened.is_empty()
    }

    /// What stands for each in a key.
    pub fn digests(&self) -> impl Iterator<Item = Digest> {
        self.opened.iter().map(Opened::digest)
    }

    fn transfer(&self, pool: &[Vec<f32>]) -> Result<Transfer, Error> {
        let models = self.opened.iter().map(|opened| {
            let state = candidates::state_of(&opened.value.tensors, "structured");
            Structured::from_state(&Topology::darts(), &state).map_err(|error| Error::Source {
                path: opened.dir.display().to_string(),
                reason: format!("holds no structured model to start from: {error}"),
            })
        });
        let models = models.collect::<Result<Vec<_>, _>>()?;
        Ok(Transfer::new(Arc::new(models), pool)?)
    }
}

/// Architectures that stand for the space.
fn pool(seed: u64) -> (Vec<Genotype>, Vec<Vec<f32>>) {
    let space = SearchSpace::darts();
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let genotypes: Vec<Genotype> = (0..POOL).map(|_| space.sample(&mut rng)).collect();
    let codes = genotypes.iter().map(|g| space.encode(g)).collect();
    (genotypes, codes)
}

/// The architectures whose timing on a new device would tell most, of 400 that are drawn with the seed.
///
/// # Errors
/// If a source holds no structured model.
pub fn choose(sources: SourceModels, n: usize, seed: u64) -> Result<Vec<Genotype>, Error> {
    let (genotypes, codes) = pool(seed);
    let chosen = sources.transfer(&codes)?.choose(n).into_iter();
    Ok(chosen.map(|index| genotypes[index].clone()).collect())
}

/// Fits what was timed on the new device to what the sources say, and judges the model by the same
/// architectures, each left out: there are too few to hold some out.
///
/// # Errors
/// If fewer than 5 architectures are undisturbed, if a source holds no structured model, or if the fit fails.
pub fn run_transfer(
    config: &Config,
    inputs: Inputs,
    sources: SourceModels,
    context: &RunContext,
) -> Result<LatencyModelArtifact, Error> {
    let settings = inputs.dataset.settings.clone();
    if let Some(other) = sources
        .opened
        .iter()
        .find(|s| s.value.card.metric != config.metric)
    {
        return Err(Error::Source {
            path: other.dir.display().to_string(),
            reason: format!(
                "is of {}, the config asks for {}",
                other.value.card.metric, config.metric
            ),
        });
    }
    let (samples, n_disturbed) = inputs.undisturbed(config.metric, MIN_TIMED)?;
    let space = SearchSpace::darts();
    let (codes, millis): (Vec<Vec<f32>>, Vec<f64>) = samples
        .iter()
        .map(|a| (space.encode(&a.sample.genotype), a.cost))
        .unzip();
    let transfer = Arc::new(sources.transfer(&pool(config.seed).1)?);
    let (model, left_out) = transfer.fit(&codes, &millis)?;
    // What a profile in rounds chose is fitted, and judges nothing.
    let drawn: Vec<usize> = (0..samples.len())
        .filter(|&index| !samples[index].sample.chosen)
        .collect();
    if drawn.is_empty() {
        return Err(Error::NoneDrawn);
    }
    let of_drawn = |of: &[f64]| -> Vec<f64> { drawn.iter().map(|&index| of[index]).collect() };
    let [predicted, spread, measured] =
        [&left_out.predicted, &left_out.spread, &millis].map(|own| of_drawn(own));
    let figures = Figures::compute(&predicted, &measured);
    let pairs = timed_twice(config.metric, &samples);
    let name = || TRANSFER.to_owned();
    let held_out = measured.iter().zip(&predicted).zip(&spread);
    let validation = Validation {
        models: BTreeMap::from([(
            name(),
            FiguresRecord {
                left_out_mape: Some(figures.mape),
                ..record(figures)
            },
        )]),
        noise_floor_mape: (!pairs.is_empty()).then(|| noise_floor_mape(&pairs)),
        held_out: held_out
            .map(|((&measured_millis, &predicted), &spread)| HeldOut {
                measured_millis,
                predicted_millis: BTreeMap::from([(name(), predicted)]),
                spread: BTreeMap::from([(name(), spread)]),
            })
            .collect(),
    };
    let card = ModelCard {
        settings,
        metric: config.metric,
        chosen: name(),
        reason: format!(
            "made from models of {} other devices; judged by the architectures that it was fitted on, each left out",
            sources.opened.len()
        ),
        reference_millis: median(&millis),
        n_train: samples.len(),
        n_test: drawn.len(),
    };
    let model = LatencyModelArtifact {
        card,
        tensors: candidates::named(TRANSFER, model.state()).collect(),
        validation,
    };
    Ok(table::tell(context, model, n_disturbed, pairs.len()))
}
