//! Checkpoints of a search: weights, alpha, both optimisers, the multiplier, the guards' memory, the stage, the trace. What is random needs no state: an
//! epoch draws from a stream of its own.

use std::collections::BTreeMap;
use std::path::Path;

use artifact::checkpoint::{Checkpoint, RawTensor};
use artifact::{FloatTensor, FloatTensors, TraceRow};
use candle_core::{DType, Device, Tensor};
use nn::Candidates;
use serde_json::json;
use space::SearchSpace;

use crate::error::Error;
use crate::guard::Memory;
use crate::search::{Search, Snapshot};

const FILE: &str = "search.ckpt";
pub(crate) const NETWORK: &str = "network/";
const ARCHITECTURE: &str = "architecture/";
pub(crate) const SGD: &str = "sgd/";
const ADAM: &str = "adam/";
const GOOD_ARCHITECTURE: &str = "good/architecture/";
const GOOD_ADAM: &str = "good/adam/";

/// Replaces the checkpoint.
pub(crate) fn save(search: &Search<'_>, trace: &[TraceRow], dir: &Path) -> Result<(), Error> {
    let (n_adam_steps, adam) = search.adam.state()?;
    let mut parts = vec![
        (NETWORK, search.network.parameters().state()?),
        (ARCHITECTURE, search.architecture.parameters().state()?),
        (SGD, search.sgd.state()?),
        (ADAM, adam),
    ];
    let mut n_good_adam_steps = None;
    if let Some(good) = &search.good {
        parts.push((GOOD_ARCHITECTURE, good.architecture.clone()));
        parts.push((GOOD_ADAM, good.adam.clone()));
        n_good_adam_steps = Some(good.n_adam_steps);
    }
    let tensors = raw_tensors(parts)?;
    let meta = json!({
        "n_adam_steps": n_adam_steps,
        "n_good_adam_steps": n_good_adam_steps,
        "latency_weight": search.objective.weight(),
        "memory": search.memory,
        "stage": search.stage,
        "candidates": search.candidates.to_bits(),
        "n_threads": search.n_threads,
        "trace": trace,
    });
    Ok(Checkpoint { meta, tensors }.save(&dir.join(FILE))?)
}

/// Restores the last checkpoint into a new search; returns the trace so far, empty if there is none.
pub(crate) fn load(search: &mut Search<'_>, dir: &Path) -> Result<Vec<TraceRow>, Error> {
    let path = dir.join(FILE);
    let Some(Checkpoint { meta, tensors }) = Checkpoint::load(&path)? else {
        return Ok(Vec::new());
    };
    let misfit = |what: String| Error::Checkpoint {
        path: path.clone(),
        what,
    };
    let device = search.device.clone();
    let part = |prefix: &str| part(&tensors, prefix, &path, &device);
    let stage = meta["stage"].as_u64().unwrap_or(0) as usize;
    if stage > 0 {
        let bits = serde_json::from_value(meta["candidates"].clone()).ok();
        let candidates = bits.and_then(|bits| Candidates::from_bits(SearchSpace::darts(), &bits));
        let candidates = candidates
            .ok_or_else(|| misfit("it does not say which primitives are left".to_owned()))?;
        search.begin(stage, candidates)?;
    }
    let state_error = |error: nn::StateError| misfit(error.to_string());
    search
        .network
        .parameters()
        .load(&part(NETWORK)?)
        .map_err(state_error)?;
    search
        .architecture
        .parameters()
        .load(&part(ARCHITECTURE)?)
        .map_err(state_error)?;
    search.forget_alpha();
    search.sgd.load(&part(SGD)?)?;
    let n_adam_steps = meta["n_adam_steps"]
        .as_u64()
        .ok_or_else(|| misfit("it has no n_adam_steps".to_owned()))?;
    search.adam.load(n_adam_steps, &part(ADAM)?)?;
    search.good = match meta["n_good_adam_steps"].as_u64() {
        Some(n_adam_steps) => Some(Snapshot {
            architecture: part(GOOD_ARCHITECTURE)?,
            n_adam_steps,
            adam: part(GOOD_ADAM)?,
        }),
        None => None,
    };
    let weight = meta["latency_weight"]
        .as_f64()
        .ok_or_else(|| misfit("it has no latency_weight".to_owned()))?;
    search.objective.set_weight(weight);
    if let Ok(others) = serde_json::from_value::<Vec<usize>>(meta["n_threads"].clone()) {
        search.n_threads.extend(others);
    }
    search.memory = serde_json::from_value::<Memory>(meta["memory"].clone())
        .map_err(|error| misfit(error.to_string()))?;
    serde_json::from_value(meta["trace"].clone()).map_err(|error| misfit(error.to_string()))
}

/// States of networks and optimisers as a checkpoint holds them, each under its prefix.
pub(crate) fn raw_tensors(
    parts: impl IntoIterator<Item = (&'static str, BTreeMap<String, Tensor>)>,
) -> Result<BTreeMap<String, RawTensor>, Error> {
    let mut tensors = BTreeMap::new();
    for (prefix, state) in parts {
        for (name, tensor) in float_tensors(&state)? {
            tensors.insert(
                format!("{prefix}{name}"),
                RawTensor::new(tensor.shape, &tensor.values),
            );
        }
    }
    Ok(tensors)
}

/// The state under a prefix of the checkpoint in `path`.
pub(crate) fn part(
    tensors: &BTreeMap<String, RawTensor>,
    prefix: &str,
    path: &Path,
    device: &Device,
) -> Result<BTreeMap<String, Tensor>, Error> {
    let own = tensors
        .iter()
        .filter_map(|(name, raw)| Some((name.strip_prefix(prefix)?, raw)));
    own.map(|(name, raw)| {
        let values: Vec<f32> = raw.values().ok_or_else(|| Error::Checkpoint {
            path: path.to_owned(),
            what: format!("{name} is not f32"),
        })?;
        Ok((
            name.to_owned(),
            Tensor::from_vec(values, raw.shape.clone(), device)?,
        ))
    })
    .collect()
}

/// Tensors of a network as the files hold them.
pub(crate) fn float_tensors(state: &BTreeMap<String, Tensor>) -> Result<FloatTensors, Error> {
    state
        .iter()
        .map(|(name, tensor)| {
            let values = tensor.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?;
            Ok((name.clone(), FloatTensor::new(tensor.dims(), values)))
        })
        .collect()
}

/// Tensors of a file as a network takes them.
pub(crate) fn tensors(
    state: &FloatTensors,
    device: &Device,
) -> Result<BTreeMap<String, Tensor>, Error> {
    state
        .iter()
        .map(|(name, tensor)| {
            let values = tensor.values.clone();
            let tensor = Tensor::from_vec(values, tensor.shape.clone(), device)?;
            Ok((name.clone(), tensor))
        })
        .collect()
}
