//! No search: the record of a genotype that is there, so that it is trained, tested and timed like found ones.

use artifact::stage::SEARCH;
use artifact::{KeyParts, SearchResult};
use serde::Serialize;
use space::Genotype;

use crate::config::{Config, TargetConfig, TargetLatency};
use crate::error::Error;
use crate::outcome::{self, Found};
use crate::predictor::Predictor;
use crate::{Inputs, target_millis};

/// The name of this method.
const GIVEN: &str = "given";

/// What decides the record.
#[derive(Serialize)]
struct Given<'a> {
    seed: u64,
    method: &'static str,
    genotype: String,
    /// Without a latency to keep to, what else is said of targets does not count.
    target: Option<&'a TargetConfig>,
}

impl Inputs {
    /// What decides what [`take`] gives: the genotype, the config's seed and target, and the latency model.
    ///
    /// # Errors
    /// If the config is not right.
    pub fn key_of(&self, config: &Config, genotype: &Genotype) -> Result<KeyParts, Error> {
        config.check()?;
        let asked = Given {
            seed: config.seed,
            method: GIVEN,
            genotype: genotype.to_string(),
            target: (config.target.latency != TargetLatency::None).then_some(&config.target),
        };
        let parts = KeyParts::new(&SEARCH, &asked)?;
        Ok(parts.input("latency-model", self.latency_model.digest()))
    }
}

/// The record of a genotype that is there, as if a search had found it: so it is trained, tested and timed like found ones. Nothing
/// is searched or trained; whether the target is kept is told.
///
/// # Errors
/// If the config or the latency model is wrong.
pub fn take(config: &Config, inputs: &Inputs, genotype: Genotype) -> Result<SearchResult, Error> {
    config.check()?;
    let predictor = Predictor::new(&inputs.latency_model)?;
    let target_millis = target_millis(config, inputs, &predictor)?;
    let found = Found::without_alpha(GIVEN, genotype, Vec::new());
    Ok(outcome::result(
        config,
        inputs,
        &predictor,
        target_millis,
        found,
    ))
}
