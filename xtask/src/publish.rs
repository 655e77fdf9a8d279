//! What several runs of the pipeline come to, as an artifact of its own.

use std::time::{Instant, SystemTime};

use anyhow::Result;
use artifact::manifest::{Build, Origin};
use artifact::{Artifact, Digest, KeyParts, Kind, Opened, StageSpec, Store};
use serde_json::Value;

use crate::preset::{PipelineArgs, usage};

/// What the key says of who wrote it.
const fn written_by(name: &'static str, inputs: &'static [Kind], output: Kind) -> StageSpec {
    StageSpec {
        name,
        package: "xtask",
        revision: 1,
        inputs,
        output,
        uses_device: false,
    }
}

/// Writes a front.
pub(crate) const SWEEP: StageSpec = written_by("sweep", &[Kind::Evaluation], Kind::Front);

/// Writes a comparison.
pub(crate) const COMPARE: StageSpec = written_by(
    "compare",
    &[Kind::Evaluation, Kind::LatencyDataset],
    Kind::Comparison,
);

/// When a command began.
pub(crate) struct Begun {
    at: SystemTime,
    clock: Instant,
}

impl Begun {
    /// Now.
    pub(crate) fn now() -> Self {
        Self {
            at: SystemTime::now(),
            clock: Instant::now(),
        }
    }

    /// Stores what came out; `inputs` are what it was made of, `asked` what else decides it.
    pub(crate) fn publish<A: Artifact>(
        &self,
        by: &StageSpec,
        args: &PipelineArgs,
        asked: &Value,
        inputs: impl IntoIterator<Item = (String, Digest)>,
        value: A,
    ) -> Result<Opened<A>> {
        let parts = inputs
            .into_iter()
            .fold(KeyParts::new(by, asked)?, |parts, (name, digest)| {
                parts.input(&name, digest)
            });
        let since_1970 = self.at.duration_since(SystemTime::UNIX_EPOCH);
        let origin = Origin {
            device: args.device.clone(),
            n_threads: args.threads.unwrap_or(0),
            machine: Value::Null,
            build: Build::current(),
            started_unix_secs: since_1970.map_or(0, |since| since.as_secs()),
            elapsed_secs: self.clock.elapsed().as_secs_f64(),
        };
        Ok(Store::open(&args.store)?.publish(parts, origin, value)?)
    }
}

/// The seeds of a command that takes several.
pub(crate) fn seeds(
    args: &PipelineArgs,
    n_seeds: u64,
) -> Result<impl Iterator<Item = u32> + Clone + use<>> {
    if n_seeds == 0 {
        return Err(usage("--seeds 0: expected at least 1".to_owned()));
    }
    let first = args.seed.unwrap_or(0);
    let last = first.saturating_add(n_seeds - 1);
    match (u32::try_from(first), u32::try_from(last)) {
        (Ok(first), Ok(last)) => Ok(first..=last),
        _ => Err(usage(format!(
            "seed {last}: where several runs are stored together, expected seeds up to {}",
            u32::MAX
        ))),
    }
}
