//! The frozen latency model, and how far it may be trusted.

use artifact::{FloatTensors, LatencyModelArtifact, Metric, Opened};
use latency::{
    Conformal, FitError, LatencyModel, Mlp, Ridge, State, StateTensor, Structured, Transferred,
};
use space::{Genotype, SearchSpace};

use crate::error::Error;

/// The probability with which a latency lies in the interval of a search result.
const INTERVAL_PROBABILITY: f64 = 0.9;

/// What the search knows of latencies, or of what else the model is of: then what is said of ms here and in the search is meant of the
/// unit of that metric.
pub(crate) struct Predictor {
    /// What the model is of.
    pub(crate) metric: Metric,
    model: Box<dyn LatencyModel>,
    /// The model's errors on architectures that it was not fitted on, or why there are none.
    errors: Result<Conformal, FitError>,
    /// The latency that counts as 1 in a penalty, in ms.
    pub(crate) reference_millis: f64,
}

impl Predictor {
    /// The model that the predictor stage chose.
    pub(crate) fn new(opened: &Opened<LatencyModelArtifact>) -> Result<Self, Error> {
        let LatencyModelArtifact {
            card,
            tensors,
            validation,
        } = &opened.value;
        let path = opened.dir.display().to_string();
        let (mut predicted, mut spread, mut measured) = (Vec::new(), Vec::new(), Vec::new());
        for one in &validation.held_out {
            let Some(&own) = one.predicted_millis.get(&card.chosen) else {
                continue;
            };
            predicted.push(own);
            // A model that says nothing of its own doubt has the same everywhere.
            spread.push(one.spread.get(&card.chosen).copied().unwrap_or(1.0));
            measured.push(one.measured_millis);
        }
        let errors = Conformal::fit(&predicted, &spread, &measured);
        Ok(Self {
            metric: card.metric,
            model: model(tensors, &card.chosen, path)?,
            errors,
            reference_millis: card.reference_millis,
        })
    }

    /// The latency of a code in ms, and its derivative with respect to each number of the code.
    pub(crate) fn gradient(&self, code: &[f32]) -> (f64, Vec<f32>) {
        self.model.gradient(code)
    }

    /// The latency of a code, in ms.
    pub(crate) fn predict_code(&self, code: &[f32]) -> f64 {
        self.model.predict_millis(code)
    }

    /// The latency of a genotype, in ms.
    pub(crate) fn predict(&self, genotype: &Genotype) -> f64 {
        self.predict_code(&SearchSpace::darts().encode(genotype))
    }

    /// The latency that a genotype does not exceed with that probability, in ms; `None` where there are too
    /// few held-out architectures to tell, or where the prediction is no latency: a linear model may fall below 0.
    pub(crate) fn upper(&self, genotype: &Genotype, probability: f64) -> Option<f64> {
        let errors = self.errors.as_ref().ok()?;
        let code = SearchSpace::darts().encode(genotype);
        let (predicted, spread) = (self.predict_code(&code), self.model.spread(&code));
        let upper = errors.upper(predicted, spread, probability);
        (predicted > 0.0 && upper.is_finite()).then_some(upper)
    }

    /// Within which the latency of a genotype lies with a probability of 0.9, in ms; `None` as for
    /// [`upper`](Self::upper).
    pub(crate) fn interval(&self, genotype: &Genotype) -> Option<[f64; 2]> {
        let errors = self.errors.as_ref().ok()?;
        let code = SearchSpace::darts().encode(genotype);
        let (predicted, spread) = (self.predict_code(&code), self.model.spread(&code));
        let (low, high) = errors.interval(predicted, spread, INTERVAL_PROBABILITY);
        (predicted > 0.0 && high.is_finite()).then_some([low, high])
    }

    /// Why nothing is promised with that probability.
    pub(crate) fn why_no_promise(&self, probability: f64) -> String {
        match &self.errors {
            Ok(errors) if errors.most() >= probability => {
                "predicts latencies that are not above 0".to_owned()
            }
            Ok(errors) => format!(
                "has too few held-out architectures for more than {:.2}",
                // Down.
                (100.0 * errors.most()).floor() / 100.0
            ),
            Err(error) => format!("does not tell how far it errs: {error}"),
        }
    }
}

fn model(
    tensors: &FloatTensors,
    chosen: &str,
    path: String,
) -> Result<Box<dyn LatencyModel>, Error> {
    let state = state_of(tensors, chosen);
    let model: Result<Box<dyn LatencyModel>, latency::StateError> = match chosen {
        "structured" => Structured::from_state(&space::Topology::darts(), &state)
            .map(|model| Box::new(model) as _),
        "transfer" => Transferred::from_state(&space::Topology::darts(), &state)
            .map(|model| Box::new(model) as _),
        "mlp" => Mlp::from_state(&state).map(|model| Box::new(model) as _),
        "ridge" => Ridge::from_state(&state).map(|model| Box::new(model) as _),
        other => {
            return Err(Error::UnknownModel {
                path,
                chosen: other.to_owned(),
            });
        }
    };
    let model = model.map_err(|source| Error::LatencyModel {
        path: path.clone(),
        source,
    })?;
    let (expected, found) = (SearchSpace::darts().code_len(), model.code_len());
    if found != expected {
        return Err(Error::CodeLength {
            path,
            expected,
            found,
        });
    }
    Ok(model)
}

/// The tensors under `<model>/`, as the model knows them.
fn state_of(tensors: &FloatTensors, model: &str) -> State {
    tensors
        .iter()
        .filter_map(|(name, tensor)| {
            let name = name.strip_prefix(model)?.strip_prefix('/')?;
            let tensor = StateTensor::new(tensor.shape.clone(), tensor.values.clone());
            Some((name.to_owned(), tensor))
        })
        .collect()
}
