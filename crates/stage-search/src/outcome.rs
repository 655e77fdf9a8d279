//! What a search ends with: candidates within the limits of target and guards, and the record of the one that comes out.

use std::collections::HashSet;

use artifact::stage::Progress;
use artifact::{CandidateRecord, FloatTensors, SearchResult, TargetRecord, TraceRow};
use nn::Rng;
use rand::SeedableRng as _;
use rayon::prelude::*;
use space::{CellKind, Genotype};

use crate::bridge;
use crate::config::Config;
use crate::derivation::{self, Band, Derivation, GeneLimits, Limits};
use crate::error::Error;
use crate::predictor::Predictor;
use crate::search::{STREAM_CANDIDATES, Search, rng};
use crate::{Inputs, resume};

/// What the knapsack and the latency model take on the processor while candidates are derived; measured. It is not given back
/// at once, so candidates are trained beside it.
pub(crate) const DERIVATION_BYTES: u64 = 26 << 20;
/// How often alpha draws as many genotypes as are missing: it may draw one twice, or none within the limits.
const MAX_ROUNDS: usize = 4;

/// What a search ends with.
pub(crate) struct Found {
    /// The name of the method.
    pub(crate) method: &'static str,
    /// The architecture.
    pub(crate) genotype: Genotype,
    /// What alpha stood for, without limits; where there is no alpha, the architecture itself.
    pub(crate) derived: Genotype,
    /// Genes that differ between both.
    pub(crate) n_changed_genes: usize,
    /// The weight of the latency in the loss.
    pub(crate) latency_weight: f64,
    pub(crate) alphas: FloatTensors,
    pub(crate) trace: Vec<TraceRow>,
    /// What the architecture was chosen from.
    pub(crate) candidates: Vec<CandidateRecord>,
}

impl Found {
    /// Without alpha.
    pub(crate) fn without_alpha(
        method: &'static str,
        genotype: Genotype,
        candidates: Vec<CandidateRecord>,
    ) -> Self {
        Self {
            method,
            derived: genotype.clone(),
            genotype,
            n_changed_genes: 0,
            latency_weight: 0.0,
            alphas: FloatTensors::default(),
            trace: Vec::new(),
            candidates,
        }
    }
}

/// What may come out at most and at least, by guards and target.
fn limits(config: &Config, latency_weight: f64, target_millis: Option<f64>) -> Limits {
    let band = target_millis.map(|high_millis| Band {
        // Where the latency has no weight, alpha gave up nothing for it, and there is nothing to give back.
        low_millis: if latency_weight > 0.0 {
            (1.0 - config.target.slack) * high_millis
        } else {
            0.0
        },
        high_millis,
    });
    Limits {
        genes: GeneLimits::of(&config.guards),
        band,
    }
}

/// What alpha was asked for.
pub(crate) struct Derived {
    /// What alpha stands for, and behind it draws.
    pub(crate) candidates: Vec<Derivation>,
    /// Genotypes that they were taken from.
    n_drawn: usize,
}

/// The genotype that alpha stands for, within the limits of target and guards; behind it others that alpha draws, no further
/// from the limits than that one, as many as the selection asks for, if there are so many: of more draws those that the surrogate
/// expects to train best.
pub(crate) fn derivations(
    config: &Config,
    search: &Search<'_>,
    target_millis: Option<f64>,
    progress: &Progress,
) -> Result<Derived, Error> {
    let [normal, reduction] = CellKind::ALL.map(|kind| search.architecture.ranks(kind));
    let (normal, reduction) = (normal?, reduction?);
    let ranks = [&normal[..], &reduction];
    let limits = limits(config, search.objective.weight(), target_millis);
    let (predictor, probability) = (search.predictor, config.target.probability);
    let upper = |genotype: &Genotype| {
        let upper = predictor.upper(genotype, probability);
        upper.unwrap_or(f64::INFINITY)
    };
    let first = derivation::derive(ranks, limits, upper);
    let (is_met, n_given_way) = (first.is_met, first.n_given_way);
    let n_derivations = if is_met { config.n_draws() } else { 1 };
    let limits = Limits {
        genes: limits.genes.wider(n_given_way),
        ..limits
    };
    let mut graphs = HashSet::from([first.genotype.canonical()]);
    let mut found = vec![first];
    let draw = |rng: &mut Rng| bridge::draw(ranks, rng);
    let mut rng = rng(config.seed, STREAM_CANDIDATES);
    for _ in 0..MAX_ROUNDS {
        let rngs: Vec<Rng> = (found.len()..n_derivations)
            .map(|_| Rng::from_rng(&mut rng))
            .collect();
        if rngs.is_empty() {
            break;
        }
        let bar = progress.bar("draws of alpha", rngs.len() as u64);
        // Side by side: most of the time goes into questions to the latency model.
        let drawn: Vec<Option<Genotype>> = rngs
            .into_par_iter()
            .map(|mut rng| {
                let drawn = derivation::draw_within(limits, upper, draw, &mut rng);
                bar.inc(1);
                drawn
            })
            .collect();
        bar.finish();
        let n_before = found.len();
        for genotype in drawn.into_iter().flatten() {
            if graphs.insert(genotype.canonical()) {
                found.push(Derivation::unchanged(genotype, n_given_way));
            }
        }
        if found.len() == n_before {
            break;
        }
    }
    let n_drawn = found.len();
    if let Some(surrogate) = config.surrogate() {
        let draws = found.split_off(1).into_iter();
        let mut scored: Vec<(f64, Derivation)> = draws
            .map(|own| (surrogate.score(&own.genotype), own))
            .collect();
        scored.sort_by(|a, b| a.0.total_cmp(&b.0));
        scored.truncate(config.n_candidates() - 1);
        found.extend(scored.into_iter().map(|(_, own)| own));
    }
    Ok(Derived {
        candidates: found,
        n_drawn,
    })
}

/// A search that comes to the candidate of that number; the trace's last row tells what that took.
pub(crate) fn found(
    config: &Config,
    search: &Search<'_>,
    target_millis: Option<f64>,
    (number, derived): (usize, &Derived),
    mut trace: Vec<TraceRow>,
    candidates: Vec<CandidateRecord>,
) -> Result<Found, Error> {
    let Derivation {
        genotype,
        free,
        n_changed_genes,
        ..
    } = derived.candidates[number].clone();
    let latency_weight = search.objective.weight();
    let genes = limits(config, latency_weight, target_millis).genes;
    let upper = |genotype: &Genotype| search.upper_millis(genotype).unwrap_or(f64::INFINITY);
    let mut events: Vec<String> = trace
        .last_mut()
        .and_then(|row| row.event.take())
        .into_iter()
        .collect();
    if !candidates.is_empty() {
        let which = match number {
            0 => "what alpha stands for",
            _ => "a draw of alpha",
        };
        let n = candidates.len();
        let of = match derived.n_drawn > derived.candidates.len() {
            true => format!("of {n} candidates out of {} genotypes", derived.n_drawn),
            false => format!("of {n} candidates"),
        };
        events.push(format!("{of} {which} trains best"));
    }
    if n_changed_genes > 0 {
        let bound = match target_millis {
            Some(target) => {
                let (own, before) = (upper(&genotype), upper(&free));
                let why = match before <= target && before < own {
                    true => "to use what the target allows",
                    false => "to keep to the target",
                };
                let unit = search.predictor.metric.unit();
                format!(
                    " {why}: at most {own:.4} {unit} instead of {before:.4}, target {target:.4}"
                )
            }
            None => String::new(),
        };
        events.push(format!(
            "{n_changed_genes} genes of the derived cells changed{bound}"
        ));
    }
    let n_skips = genotype.n_skips(CellKind::Normal);
    if n_skips > genes.max_skips_normal {
        events.push(format!(
            "the target forces {n_skips} skips in the normal cell"
        ));
    }
    for (kind, name) in [
        (CellKind::Normal, "normal"),
        (CellKind::Reduction, "reduction"),
    ] {
        let n = genotype.n_convolutions(kind);
        if n < genes.min_convolutions {
            events.push(format!(
                "the target leaves {n} convolutions in the {name} cell"
            ));
        }
    }
    if let Some(row) = trace.last_mut() {
        row.event = (!events.is_empty()).then(|| events.join("; "));
    }
    Ok(Found {
        method: config.method.name(),
        genotype,
        derived: free,
        n_changed_genes,
        latency_weight,
        alphas: resume::float_tensors(&search.architecture.parameters().state()?)?,
        trace,
        candidates,
    })
}

/// What is written down of it.
pub(crate) fn result(
    config: &Config,
    inputs: &Inputs,
    predictor: &Predictor,
    target_millis: Option<f64>,
    found: Found,
) -> SearchResult {
    let Found {
        method,
        genotype,
        derived,
        n_changed_genes,
        latency_weight,
        alphas,
        trace,
        candidates,
    } = found;
    let has_alpha = !alphas.is_empty();
    let name = |name: &str| if has_alpha { name } else { "none" }.to_owned();
    let probability = config.target.probability;
    let upper = predictor.upper(&genotype, probability);
    SearchResult {
        predicted_latency_millis: predictor.predict(&genotype),
        interval_millis: predictor.interval(&genotype),
        target: target_millis
            .zip(upper)
            .map(|(target_millis, upper_millis)| TargetRecord {
                target_millis,
                probability,
                upper_millis,
                is_met: upper_millis <= target_millis,
                derived,
                n_changed_genes: n_changed_genes as u32,
            }),
        genotype,
        method: method.to_owned(),
        seed: config.seed,
        objective: name(config.objective.name()),
        bridge: name(config.bridge.name()),
        lambda: latency_weight,
        metric: predictor.metric,
        settings: inputs.latency_model.value.card.settings.clone(),
        reference_millis: predictor.reference_millis,
        candidates,
        alphas,
        trace,
    }
}
