//! The models that a latency is tried with, and which of them is chosen.

use std::time::Instant;

use artifact::{FloatTensor, FloatTensors};
use latency::{
    Conformal, FitError, LatencyModel, LeftOut, Mlp, MlpConfig, Ridge, State, StateTensor,
    Structured, mape,
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

/// Fits the structured model, the regressor and the additive ridge, in this order, or the only one that is asked for.
pub(crate) fn fit_all(
    asked: Model,
    topology: &Topology,
    mlp: &MlpConfig,
    l2: &[f64],
    codes: &[Vec<f32>],
    millis: &[f64],
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
                || Structured::fit_left_out(topology, codes, millis),
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

/// The candidate with the smallest error on architectures left out, or the one that was asked for; and why.
pub(crate) fn choose(candidates: &[Candidate], asked: Model) -> (&Candidate, String) {
    if let Some(candidate) = candidates.iter().find(|c| c.kind == asked) {
        return (candidate, format!("{asked} is what the config asks for"));
    }
    let mut ranked: Vec<&Candidate> = candidates.iter().collect();
    ranked.sort_by(|a, b| a.left_out_mape.total_cmp(&b.left_out_mape));
    let errors: Vec<String> = ranked
        .iter()
        .map(|c| format!("{} {:.2} %", c.kind, 100.0 * c.left_out_mape))
        .collect();
    let reason = format!(
        "smallest mean error on training architectures left out: {}",
        errors.join(", ")
    );
    (ranked[0], reason)
}
