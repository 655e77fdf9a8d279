//! The weights after the warm-up, kept for the next search.
//!
//! While alpha stands still, nothing that is said of latency, target or guards touches the weights: searches that differ in
//! nothing else have their warm-up in common, to the bit. The first of them leaves it in the store, and the others
//! begin behind it. Searches by several ranks and with a warm start, of which hardly two have the same, take no part; of a
//! progressive search the first stage does.

use std::path::PathBuf;

use artifact::checkpoint::Checkpoint;
use artifact::stage::SEARCH;
use artifact::{KeyParts, RunContext, TraceRow};
use serde_json::{Value, json};

use crate::config::Config;
use crate::error::Error;
use crate::resume::{NETWORK, SGD, part, raw_tensors};
use crate::search::{Performance, Search};

/// What of the config has no say in the warm-up.
const WITHOUT_A_SAY: [&str; 8] = [
    "order",
    "objective",
    "lambda",
    "bridge",
    "n_bridge_samples",
    "target",
    "architecture",
    "selection",
];

/// Keeps the weights of a search that is just behind its warm-up, unless it went on on another number of threads than it
/// began on.
pub(crate) fn save(
    search: &Search<'_>,
    config: &Config,
    trace: &[TraceRow],
    context: &RunContext,
) -> Result<(), Error> {
    if search.n_threads.len() > 1 {
        return Ok(());
    }
    let epochs: Vec<Performance> = trace
        .iter()
        .map(|row| Performance {
            train_loss: row.train_loss,
            train_accuracy: row.train_accuracy,
            valid_loss: row.valid_loss,
            valid_accuracy: row.valid_accuracy,
        })
        .collect();
    let tensors = raw_tensors([
        (NETWORK, search.network.parameters().state()?),
        (SGD, search.sgd.state()?),
    ])?;
    let meta = json!({ "epochs": epochs });
    Ok(Checkpoint { meta, tensors }.save(&path(config, context)?)?)
}

/// Puts a new search behind its warm-up if another left the weights; returns the trace of that, else nothing.
pub(crate) fn load(
    search: &mut Search<'_>,
    config: &Config,
    context: &RunContext,
) -> Result<Vec<TraceRow>, Error> {
    let path = path(config, context)?;
    let Some(Checkpoint { mut meta, tensors }) = Checkpoint::load(&path)? else {
        return Ok(Vec::new());
    };
    let misfit = |what: String| Error::Checkpoint {
        path: path.clone(),
        what,
    };
    let epochs: Vec<Performance> =
        serde_json::from_value(meta["epochs"].take()).map_err(|error| misfit(error.to_string()))?;
    let device = search.device.clone();
    let network = part(&tensors, NETWORK, &path, &device)?;
    let load = search.network.parameters().load(&network);
    load.map_err(|error| misfit(error.to_string()))?;
    search.sgd.load(&part(&tensors, SGD, &path, &device)?)?;
    let rows = epochs.into_iter().enumerate().map(|(epoch, own)| {
        let result = search.recall(epoch, own)?;
        crate::trace_row(epoch, &result, search)
    });
    rows.collect()
}

/// Where searches with this warm-up keep it: named by all that has a say in its bytes, the number of threads included.
fn path(config: &Config, context: &RunContext) -> Result<PathBuf, Error> {
    let mut parts = KeyParts {
        inputs: context.parts.inputs.clone(),
        machine: context.parts.machine.clone(),
        ..KeyParts::new(&SEARCH, config)?
    };
    for input in ["latency-model", "surrogate"] {
        parts.inputs.remove(input);
    }
    if let Value::Object(config) = &mut parts.config {
        config.retain(|key, _| !WITHOUT_A_SAY.contains(&key.as_str()));
        if let Some(Value::Object(guards)) = config.get_mut("guards") {
            guards.retain(|key, _| key == "auxiliary_skip");
        }
    }
    let key = parts.threads(context.n_threads).key();
    // The number is that of this file's form.
    let name = format!("warm-up-v1-{}.ckpt", key.folder());
    Ok(context.shared_dir.join(name))
}
