//! Networks for other runtimes, to be timed there.

use std::io;
use std::path::{Path, PathBuf};

use artifact::{Progress, architectures_to_csv};
use space::NetworkSpec;

use crate::itinerary::{Architectures, sample};
use crate::{Config, Error};

/// The table of the networks, in their folder.
pub const TABLE: &str = "networks.csv";

/// Writes networks as ONNX models, `0000.onnx` and so on, and a table of them, [`TABLE`], which lacks but a column of their
/// latencies to be a latency data set. `n` are sampled as a profile of this config samples them.
///
/// # Errors
/// If there is such a table already, if a network cannot be built, or if the folder cannot be written to.
pub fn export(
    config: &Config,
    architectures: Architectures,
    n: usize,
    dir: &Path,
    progress: &Progress,
) -> Result<(), Error> {
    let network = NetworkSpec::try_from(&config.network)?;
    let architectures = match architectures {
        Architectures::Sampled => sample(config.seed, n),
        Architectures::Given(given) => given,
    };
    let failed = |path: PathBuf| move |source: io::Error| Error::Export { path, source };
    let table = dir.join(TABLE);
    if table.exists() {
        // Timings may stand in it by now.
        return Err(Error::Exported { path: table });
    }
    std::fs::create_dir_all(dir).map_err(failed(dir.to_owned()))?;
    let bar = progress.bar("writing networks", architectures.len() as u64);
    let mut rows = Vec::with_capacity(architectures.len());
    for (index, genotype) in architectures.into_iter().enumerate() {
        let name = format!("{index:04}.onnx");
        let onnx = runtime::onnx::untrained(&network, &genotype).map_err(|source| {
            let what = genotype.to_string();
            Error::Network { what, source }
        })?;
        let path = dir.join(&name);
        std::fs::write(&path, onnx).map_err(failed(path))?;
        rows.push((name, genotype));
        bar.inc(1);
    }
    bar.finish();
    std::fs::write(&table, architectures_to_csv(&rows)).map_err(failed(table))
}
