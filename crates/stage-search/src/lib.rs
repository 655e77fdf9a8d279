//! Stage `search`: latency-aware differentiable architecture search.
//!
//! Trains the weights of a supernet and its architecture parameters by turns, first order: alpha on
//! validation batches with the loss `cross entropy + lambda * model(code) / reference`, weights on
//! training batches with the cross entropy alone. The model is the frozen latency model, the code is the
//! mass-matched soft code of alpha and beta, the reference the median latency that the model was
//! trained on. Alpha stands still in the warm-up epochs.
//!
//! Every epoch leaves a row in the trace and a checkpoint; a search that is killed goes on after the last
//! finished epoch and ends with the same bytes, on the same number of threads.

mod config;
mod error;
mod resume;
mod search;

use std::path::Path;

use artifact::stage::SEARCH;
use artifact::{
    DeviceSpec, FloatTensors, KeyParts, LatencyModelArtifact, Opened, RunContext, SearchResult,
    TraceRow,
};
use candle_core::Device;
use images::{ImageSet, LoadOptions, Split};
use latency::{LatencyModel, Mlp, Ridge, State, StateTensor, Structured};
use space::CellKind;

pub use crate::config::{
    ArchitectureConfig, Config, DataConfig, Method, NetworkConfig, WeightsConfig,
};
pub use crate::error::Error;
use crate::search::{Data, EpochResult, Objective, Search, predict};

/// What the stage reads.
pub struct Inputs {
    /// The frozen latency model.
    pub latency_model: Opened<LatencyModelArtifact>,
}

impl Inputs {
    /// Opens the latency model of a folder.
    ///
    /// # Errors
    /// As [`artifact::open`].
    pub fn open(latency_model: &Path) -> Result<Self, Error> {
        Ok(Self {
            latency_model: artifact::open(latency_model)?,
        })
    }

    /// What decides the result: the config, the latency model, and the files of the training split.
    ///
    /// # Errors
    /// If the config is not right, or if there are no such images.
    pub fn key(&self, config: &Config) -> Result<KeyParts, Error> {
        config.check()?;
        let files = images::files(&config.data.dir, Split::Train)?;
        Ok(KeyParts::new(&SEARCH, config)?
            .input("latency-model", self.latency_model.digest())
            .input("images", artifact::digest_files(&files)?))
    }
}

/// Searches and returns the genotype with everything that led to it.
///
/// # Errors
/// [`Error`] if the config or an input is wrong, or if a loss is no longer finite.
pub fn run(config: &Config, inputs: &Inputs, context: &RunContext) -> Result<SearchResult, Error> {
    run_until(config, inputs, context, config.n_epochs)?.ok_or(Error::Unfinished {
        n_epochs: config.n_epochs,
    })
}

/// Like [`run`], but stops after `last_epoch` epochs have been finished in all: `None` if that is before
/// the end. What a kill does, without a kill.
///
/// # Errors
/// As [`run`].
pub fn run_until(
    config: &Config,
    inputs: &Inputs,
    context: &RunContext,
    last_epoch: usize,
) -> Result<Option<SearchResult>, Error> {
    config.check()?;
    let _guard = context.machine_use.compute()?;
    let card = &inputs.latency_model.value.card;
    let model = latency_model(&inputs.latency_model)?;
    let objective = Objective {
        lambda: config.lambda,
        reference_millis: card.reference_millis,
        model: model.as_ref(),
    };
    let set = load_images(config)?;
    let data = Data::new(&set, config)?;
    let mut search = Search::new(config, &set, &open_device(context.device)?)?;
    let mut trace = resume::load(&mut search, &context.work_dir)?;
    if !trace.is_empty() {
        context.progress.line(&format!(
            "going on after epoch {}/{}",
            trace.len(),
            config.n_epochs
        ));
    }
    for epoch in trace.len()..config.n_epochs.min(last_epoch) {
        let label = format!("epoch {}/{}", epoch + 1, config.n_epochs);
        let bar = context.progress.bar(&label, search.n_steps(&data) as u64);
        let result = search.epoch(epoch, &data, &objective, |loss| {
            bar.message(format!("loss {loss:.3}"));
            bar.inc(1);
        })?;
        bar.finish();
        let row = trace_row(epoch, &result, &search, &objective)?;
        trace.push(row);
        resume::save(&search, &trace, &context.work_dir)?;
        context.progress.line(&format!(
            "{label}: train {:.3} ({:.1} %), valid {:.3} ({:.1} %), derived {:.3} ms",
            result.train_loss,
            100.0 * result.train_accuracy,
            result.valid_loss,
            100.0 * result.valid_accuracy,
            result.derived_latency_millis,
        ));
    }
    if trace.len() < config.n_epochs {
        return Ok(None);
    }
    let genotype = search.architecture.derive()?;
    Ok(Some(SearchResult {
        predicted_latency_millis: predict(model.as_ref(), &genotype),
        genotype,
        method: config.method.name().to_owned(),
        seed: config.seed,
        lambda: config.lambda,
        settings: card.settings.clone(),
        reference_millis: card.reference_millis,
        alphas: resume::float_tensors(&search.architecture.parameters().state()?)?,
        trace,
    }))
}

fn open_device(spec: DeviceSpec) -> Result<Device, Error> {
    match spec {
        DeviceSpec::Cpu => Ok(Device::Cpu),
        DeviceSpec::Cuda(index) => nn::cuda_device(index).map_err(|error| {
            let reason = error.to_string();
            artifact::Error::Device {
                device: spec,
                reason,
            }
            .into()
        }),
    }
}

fn load_images(config: &Config) -> Result<ImageSet, Error> {
    let resize = (config.data.resize > 0).then_some(config.data.resize);
    let options = LoadOptions {
        resize,
        ..LoadOptions::default()
    };
    let set = images::load(&config.data.dir, Split::Train, &options)?;
    if set.height() != set.width() {
        return Err(Error::NotSquare {
            dir: config.data.dir.clone(),
            height: set.height(),
            width: set.width(),
        });
    }
    Ok(set)
}

/// The model that the predictor chose.
fn latency_model(opened: &Opened<LatencyModelArtifact>) -> Result<Box<dyn LatencyModel>, Error> {
    let LatencyModelArtifact { card, tensors, .. } = &opened.value;
    let path = opened.dir.display().to_string();
    let state = state_of(tensors, &card.chosen);
    let model: Result<Box<dyn LatencyModel>, latency::StateError> = match card.chosen.as_str() {
        "structured" => Structured::from_state(&space::Topology::darts(), &state)
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
    let (expected, found) = (space::SearchSpace::darts().code_len(), model.code_len());
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

fn trace_row(
    epoch: usize,
    result: &EpochResult,
    search: &Search,
    objective: &Objective<'_>,
) -> Result<TraceRow, Error> {
    let [normal, reduction] = CellKind::ALL;
    let n_skips = |kind| result.genotype.n_skips(kind) as u32;
    Ok(TraceRow {
        epoch: epoch as u32,
        train_loss: result.train_loss,
        train_accuracy: result.train_accuracy,
        valid_loss: result.valid_loss,
        valid_accuracy: result.valid_accuracy,
        latency_loss: objective.lambda * result.soft_latency_millis / objective.reference_millis,
        soft_latency_millis: result.soft_latency_millis,
        derived_latency_millis: result.derived_latency_millis,
        entropy_normal: search.architecture.entropy(normal)?,
        entropy_reduce: search.architecture.entropy(reduction)?,
        n_skips_normal: n_skips(normal),
        n_skips_reduce: n_skips(reduction),
        learning_rate: result.learning_rate,
        genotype: result.genotype.to_string(),
    })
}
