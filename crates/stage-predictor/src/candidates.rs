//! The models that a latency is tried with, and which of them is chosen.

use std::time::Instant;

use artifact::{FloatTensor, FloatTensors};
use latency::{
    Conformal, FitError, LatencyModel, LeftOut, Mlp, MlpConfig, Ridge, State, StateTensor,
    Structured, TimedCell, mape,
};
use space::Topology;

use crate::config::Model;

/// A fitted model, and what it says of the architectures that it was fitted on when they are left out.
pub(crate) struct Candidate {
    pub(crate) kind: Model,
    pub(crate) model: Box<dyn LatencyModel>,
    pub(crate) state: State,
    pub(crate) left_out: LeftOut,
    pub(crate) left_out_mape: f64,
    pub(crate) fit_secs: f64,
}

impl Candidate {
    fn fit<M: LatencyModel + 'static>(
        kind: Model,
        millis: &[f64],
        fit: impl FnOnce() -> Result<(M, LeftOut), FitError>,
        state: impl Fn(&M) -> State,
    ) -> Result<Self, FitError> {
        let started = Instant::now();
        let (model, left_out) = fit()?;
        Ok(Self {
            kind,
            state: state(&model),
            model: Box::new(model),
            left_out_mape: mape(&left_out.predicted, millis),
            left_out,
            fit_secs: started.elapsed().as_secs_f64(),
        })
    }

    /// Bounds calibrated on the architectures that the model was fitted on; `None` if it says of some
    /// that they take no time.
    pub(crate) fn conformal(&self, millis: &[f64]) -> Option<Conformal> {
        Conformal::fit(&self.left_out.predicted, &self.left_out.spread, millis).ok()
    }
}

/// The share of architectures, given their codes, that lie in their 90 % intervals.
pub(crate) fn coverage_90(
    model: &dyn LatencyModel,
    conformal: &Conformal,
    codes: &[Vec<f32>],
    measured: &[f64],
) -> f64 {
    let n_covered = codes
        .iter()
        .zip(measured)
        .filter(|(code, measured)| {
            let (predicted, spread) = (model.predict_millis(code), model.spread(code));
            let (low, high) = conformal.interval(predicted, spread, 0.9);
            (low..=high).contains(*measured)
        })
        .count();
    n_covered as f64 / measured.len() as f64
}

/// Fits the structured model, the regressor and the additive ridge, in this order, or the only one that is asked for. The
/// structured model makes use of timed cells, too.
#[expect(
    clippy::too_many_arguments,
    reason = "what each of three models is fitted to"
)]
pub(crate) fn fit_all(
    asked: Model,
    topology: &Topology,
    mlp: &MlpConfig,
    l2: &[f64],
    codes: &[Vec<f32>],
    millis: &[f64],
    cells: &[TimedCell],
    mut fitted: impl FnMut(),
) -> Result<Vec<Candidate>, FitError> {
    let mut candidates = Vec::new();
    for kind in [Model::Structured, Model::Mlp, Model::Ridge] {
        if asked != Model::Auto && asked != kind {
            continue;
        }
        candidates.push(match kind {
            Model::Structured => Candidate::fit(
                kind,
                millis,
                || Structured::fit_with_cells(topology, codes, millis, cells),
                Structured::state,
            )?,
            Model::Mlp => Candidate::fit(
                kind,
                millis,
                || Mlp::fit_left_out(mlp, &topology.cost_classes(), codes, millis),
                Mlp::state,
            )?,
            Model::Ridge | Model::Auto => Candidate::fit(
                kind,
                millis,
                || Ridge::fit_left_out(codes, millis, l2),
                Ridge::state,
            )?,
        });
        fitted();
    }
    Ok(candidates)
}

/// The tensors of a model under names such as `mlp/…`.
pub(crate) fn named(model: &str, state: State) -> impl Iterator<Item = (String, FloatTensor)> {
    state.into_iter().map(move |(name, tensor)| {
        (
            format!("{model}/{name}"),
            FloatTensor::new(tensor.shape, tensor.values),
        )
    })
}

/// The state of a model, from tensors under such names.
pub(crate) fn state_of(tensors: &FloatTensors, model: &str) -> State {
    let tensors = tensors.iter().filter_map(|(name, tensor)| {
        let name = name.strip_prefix(model)?.strip_prefix('/')?;
        let tensor = StateTensor::new(tensor.shape.clone(), tensor.values.clone());
        Some((name.to_owned(), tensor))
    });
    tensors.collect()
}

/// How many standard errors a control must be better than the structured model to be preferred.
const SURE: f64 = 3.0;

/// The candidate with the smallest error on architectures left out, or the one that was asked for; and why.
///
/// The structured model gives way only to one that is better by three standard errors: it learns most from further architectures, and is left out by
/// fits that have fewer.
pub(crate) fn choose<'a>(
    candidates: &'a [Candidate],
    asked: Model,
    millis: &[f64],
) -> (&'a Candidate, String) {
    if let Some(candidate) = candidates.iter().find(|c| c.kind == asked) {
        return (candidate, format!("{asked} is what the config asks for"));
    }
    let mut ranked: Vec<&Candidate> = candidates.iter().collect();
    // What is not a number, of either sign, comes last.
    let error = |candidate: &Candidate| match candidate.left_out_mape {
        error if error.is_nan() => f64::INFINITY,
        error => error,
    };
    ranked.sort_by(|a, b| error(a).total_cmp(&error(b)));
    let errors: Vec<String> = ranked
        .iter()
        .map(|c| format!("{} {:.2} %", c.kind, 100.0 * c.left_out_mape))
        .collect();
    let errors = errors.join(", ");
    let best = ranked[0];
    let stays = ranked.iter().find(|candidate| {
        candidate.kind == Model::Structured
            && candidate.kind != best.kind
            && !is_surely_better(best, candidate, millis)
    });
    match stays {
        Some(structured) => (
            structured,
            format!("no other is better beyond doubt on training architectures left out: {errors}"),
        ),
        None => (
            best,
            format!("smallest mean error on training architectures left out: {errors}"),
        ),
    }
}

/// Whether the relative errors on architectures left out are smaller by more than chance, pair by pair.
fn is_surely_better(one: &Candidate, other: &Candidate, millis: &[f64]) -> bool {
    let errors = |candidate: &Candidate| -> Vec<f64> {
        let pairs = candidate.left_out.predicted.iter().zip(millis);
        pairs.map(|(said, y)| (said - y).abs() / y).collect()
    };
    let pairs = errors(other).into_iter().zip(errors(one));
    let gains: Vec<f64> = pairs.map(|(other, one)| other - one).collect();
    let n = gains.len() as f64;
    let mean = gains.iter().sum::<f64>() / n;
    let variance = gains.iter().map(|gain| (gain - mean).powi(2)).sum::<f64>() / (n - 1.0);
    mean > SURE * (variance / n).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A model that is off by these ratios on architectures left out that take 1 ms.
    fn candidate(kind: Model, errors: &[f64]) -> Candidate {
        let millis = vec![1.0; errors.len()];
        let predicted: Vec<f64> = errors.iter().map(|error| 1.0 + error).collect();
        Candidate {
            kind,
            model: Box::new(Ridge::fit(&[vec![0.0], vec![1.0]], &[1.0, 1.0], 1.0).unwrap()),
            state: State::new(),
            left_out_mape: mape(&predicted, &millis),
            left_out: LeftOut {
                spread: millis,
                predicted,
            },
            fit_secs: 0.0,
        }
    }

    #[test]
    fn the_structured_model_gives_way_to_what_is_better_beyond_doubt() {
        let structured = || candidate(Model::Structured, &[0.02, 0.04, 0.03, 0.03]);
        let chosen = |mlp: &[f64]| {
            let candidates = [structured(), candidate(Model::Mlp, mlp)];
            let (chosen, reason) = choose(&candidates, Model::Auto, &[1.0; 4]);
            (chosen.kind, reason)
        };
        let (kind, reason) = chosen(&[0.04, 0.01, 0.05, 0.01]);
        assert_eq!(kind, Model::Structured);
        assert_eq!(
            reason,
            "no other is better beyond doubt on training architectures left out: mlp 2.75 %, structured 3.00 %"
        );
        let (kind, reason) = chosen(&[0.01, 0.02, 0.01, 0.02]);
        assert_eq!(kind, Model::Mlp);
        assert!(reason.starts_with("smallest mean error"), "{reason}");
        assert_eq!(chosen(&[0.05; 4]).0, Model::Structured);
    }
}
