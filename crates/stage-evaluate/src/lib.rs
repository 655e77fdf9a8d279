//! Stage `evaluate`: trains the network of a found genotype from scratch, tests it and times it.
//!
//! The network is trained on the training split of the data set and tested once, after the last epoch, on
//! the test split; nothing is chosen by the test images. Its latency is taken under the protocol of the
//! search result (batch, threads, warm-up, repeats), in rounds between timings of the anchor network that
//! also stood between the profiled architectures, so that measured and predicted latencies are of the same
//! thing. Where the search kept another metric low, that is measured as well.
//!
//! After every epoch the whole state is on the disk; killed and started again, an evaluation ends with the
//! same bytes, `latency.json` excepted.
//!
//! [`time`] does the timing alone, of many found networks: their measured latencies are a latency data
//! set, from which the predictor can learn where it was wrong.

mod checkpoint;
mod config;
mod count;
mod data;
mod error;
mod survey;
#[cfg(test)]
mod tests;
mod timing;
mod training;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use artifact::stage::EVALUATE;
use artifact::{
    DeviceSpec, Evaluation, KeyParts, LatencyDataset, LatencySample, MeasurementSettings,
    MemoryPlan, Opened, Precision, RunContext, SearchResult, SearchSummary, TimingRecord,
    TimingResult, Verdict,
};
use candle_core::Device;
use collective::Collective;
use images::Split;
use measure::Machine;
use rand_chacha::rand_core::SeedableRng;
use runtime::{On, Prepared};
use space::{Counts, NetworkSpec, count_derived};

pub use crate::config::{Config, DataConfig, ScheduleKind, TimingConfig, WeightsConfig};
pub use crate::count::CountArgs;
pub use crate::error::Error;
pub use crate::survey::ImagesArgs;

use crate::data::Data;
use crate::training::{Trained, Training};

/// What the stage reads, besides the images that its config names.
pub struct Inputs {
    /// The architecture and where it comes from.
    pub search_result: Opened<SearchResult>,
}

impl Inputs {
    /// Opens the search result of a folder.
    ///
    /// # Errors
    /// As [`artifact::open`].
    pub fn open(search_result: &Path) -> Result<Self, Error> {
        Ok(Self {
            search_result: artifact::open(search_result)?,
        })
    }

    /// What decides the result: the config, the search result, and the files of both splits.
    ///
    /// # Errors
    /// If the config is not right, or if there are no such images.
    pub fn key(&self, config: &Config) -> Result<KeyParts, Error> {
        config.check()?;
        let mut files = images::files(&config.data.dir, Split::Train)?;
        files.extend(images::files(&config.data.dir, Split::Test)?);
        Ok(KeyParts::new(&EVALUATE, config)?
            .input("search-result", self.search_result.digest())
            .input("images", artifact::digest_files(&files)?))
    }
}

/// Trains, tests, times and counts the network of the search result.
///
/// # Errors
/// If config, search result and images do not go together, if a loss is NaN or infinite, or if the
/// working folder cannot be written to.
pub fn run(config: &Config, inputs: &Inputs, context: &RunContext) -> Result<Evaluation, Error> {
    run_together(config, inputs, context, None)
}

/// Trains as [`run_together`] does on rank 0, and leaves the rest to that rank.
///
/// # Errors
/// As [`run_together`].
pub fn follow(
    config: &Config,
    inputs: &Inputs,
    context: &RunContext,
    ranks: Arc<dyn Collective>,
) -> Result<(), Error> {
    config.check()?;
    config.precision.check(context.device)?;
    let device = open_device(context.device)?;
    let _computing = context.machine_use.compute()?;
    let data = Data::load(config)?;
    let search = &inputs.search_result.value;
    let mut training = open_training(config, search, &data, &device, context, Some(ranks))?;
    while training.epochs().len() < config.n_epochs {
        training.advance(|_| ())?;
    }
    Ok(())
}

fn open_training<'a>(
    config: &'a Config,
    search: &SearchResult,
    data: &'a Data,
    device: &Device,
    context: &RunContext,
    ranks: Option<Arc<dyn Collective>>,
) -> Result<Training<'a>, Error> {
    let ranks = ranks
        .map(|ranks| collective::on_device(ranks, device))
        .transpose()?;
    let n_ranks = ranks.as_ref().map_or(1, |ranks| ranks.n_ranks());
    let (genotype, work_dir) = (&search.genotype, &context.work_dir);
    let training = Training::open(config, genotype, data, device, work_dir, ranks)?;
    training
        .memory(context.device, n_ranks)?
        .check(context.device)?;
    Ok(training)
}

/// Whether a training could begin with a config: whether the network can be built, the images are there and go into it. One
/// image of each split is looked at.
///
/// # Errors
/// If not.
pub fn check(config: &Config) -> Result<(), Error> {
    config.check()?;
    data::glance(config)
}

/// What the training by each of so many ranks will keep in memory at its peak; nothing runs.
///
/// # Errors
/// If the config or an input is wrong.
pub fn memory(
    config: &Config,
    inputs: &Inputs,
    device: DeviceSpec,
    n_ranks: usize,
) -> Result<MemoryPlan, Error> {
    config.check()?;
    config.precision.check(device)?;
    let data = Data::load(config)?;
    let genotype = &inputs.search_result.value.genotype;
    let on = open_device(device)?;
    // Nothing is written.
    let work_dir = Path::new("");
    Training::new(config, genotype, &data, &on, work_dir, None)?.memory(device, n_ranks)
}

/// [`run`] on rank 0 of processes that train together, each with a part of every batch; the others [`follow`].
/// Without ranks this process is alone.
///
/// # Errors
/// As [`run`], and if a rank is lost or comes to something else.
pub fn run_together(
    config: &Config,
    inputs: &Inputs,
    context: &RunContext,
    ranks: Option<Arc<dyn Collective>>,
) -> Result<Evaluation, Error> {
    config.check()?;
    config.precision.check(context.device)?;
    let search = &inputs.search_result.value;
    let network = NetworkSpec::try_from(&config.network)?;
    let machine = context
        .device
        .fingerprint(Machine::detect().fingerprint())?;
    let progress = &context.progress;
    let settings = settings(config, search, context, &machine)?;

    let device = open_device(context.device)?;
    let meters = timing::meters(|metric| metric == search.metric, &device)?;
    // Others may compute while this trains, but not while it times.
    let trained = {
        let _computing = context.machine_use.compute()?;
        let data = Data::load(config)?;
        let training = open_training(config, search, &data, &device, context, ranks)?;
        train(training, config, context)?
    };
    progress.line(&format!("test loss {:.4}", trained.test_loss));
    let weights = trained.weights()?;
    let export = trained.export(&network, &search.genotype)?;
    let latency = {
        let _timing = context.machine_use.time()?;
        let record = &settings.timing;
        let on = on(device, record);
        let network = if record.precision == config.precision {
            Prepared::trained(trained.network, &network, record.batch_size, &on.device)?
        } else {
            // Timed as it was profiled; latency does not depend on the weights.
            Prepared::network(&network, &search.genotype, record.batch_size, &on)?
        };
        let latency = timing::time(&network, &on, &settings, &config.timing, progress)?;
        let costs = timing::costs(&meters, &search.genotype, &settings, &on)?;
        TimingResult {
            peak_memory_bytes: costs.peak_memory_bytes.map(|bytes| bytes as f64),
            energy_joules: costs.energy_joules,
            ..latency
        }
    };

    let Counts {
        n_params,
        n_macs,
        n_multi_adds,
    } = count_derived(&search.genotype, &network);
    Ok(Evaluation {
        genotype: search.genotype.clone(),
        network: config.network.clone(),
        settings,
        search: SearchSummary::from(search),
        seed: config.seed,
        test_accuracy: trained.test_accuracy,
        n_test: Some(trained.n_test as u64),
        test_loss: trained.test_loss,
        latency,
        n_params,
        n_macs,
        n_multi_adds,
        epochs: trained.epochs,
        weights,
        export: Some(export),
    })
}

/// What [`time`] reads: found architectures, all of one latency model.
pub struct Found(Vec<Opened<SearchResult>>);

impl Found {
    /// Opens the search results of these folders.
    ///
    /// # Errors
    /// As [`artifact::open`]; and if their latencies are not of one network under one protocol.
    pub fn open(dirs: &[PathBuf]) -> Result<Self, Error> {
        let found = dirs
            .iter()
            .map(artifact::open::<SearchResult>)
            .collect::<Result<Vec<_>, _>>()?;
        let other = found
            .iter()
            .find(|one| one.value.settings != found[0].value.settings);
        match other {
            Some(other) => Err(Error::OtherSettings {
                dir: other.dir.clone(),
                first: found[0].dir.clone(),
            }),
            None => Ok(Self(found)),
        }
    }

    /// What decides the result: the network and the timing of the config, the architectures, the machine.
    ///
    /// # Errors
    /// If the config is not right.
    pub fn key(&self, config: &Config) -> Result<KeyParts, Error> {
        config.check()?;
        let asked = serde_json::json!({ "network": config.network, "timing": config.timing });
        let parts = KeyParts::new(&EVALUATE, &asked)?.machine(Machine::detect().fingerprint());
        let found = self.0.iter().enumerate();
        Ok(found.fold(parts, |parts, (index, one)| {
            parts.input(&format!("search-result-{index:03}"), one.digest())
        }))
    }

    /// What the timings of [`time`] say of each network, in a line that begins with its folder.
    pub fn verdicts(&self, timed: &LatencyDataset) -> Vec<String> {
        let Some(settings) = &timed.settings else {
            return Vec::new();
        };
        let lines = self.0.iter().zip(&timed.samples).filter_map(|(one, row)| {
            let search = SearchSummary::from(&one.value);
            let measured = search.metric.of(row)?;
            let verdict = Verdict::new(&search, measured, settings);
            let slowdown = settings.slowdown(row.anchor_ratio).map(|ratio| {
                format!("; the machine took {ratio:.2} times as long as when it was profiled, which is divided out")
            });
            let slowdown = slowdown.unwrap_or_default();
            let doubt = match row.disturbed {
                true => "; it was restless, and the latency is uncertain",
                false => "",
            };
            Some(format!("{}: {verdict}{slowdown}{doubt}", one.dir.display()))
        });
        lines.collect()
    }
}

/// Times the networks of found architectures, untrained (latency does not depend on the weights), as
/// [`run`] times a trained one: a latency data set with a row for each, in their order.
///
/// # Errors
/// If config and search results do not go together, or if a network cannot be timed.
pub fn time(config: &Config, found: &Found, context: &RunContext) -> Result<LatencyDataset, Error> {
    config.check()?;
    let Some(first) = found.0.first() else {
        return Ok(LatencyDataset {
            settings: None,
            samples: Vec::new(),
            cells: Vec::new(),
        });
    };
    let network = NetworkSpec::try_from(&config.network)?;
    let machine = context
        .device
        .fingerprint(Machine::detect().fingerprint())?;
    let settings = settings(config, &first.value, context, &machine)?;
    let device = open_device(context.device)?;
    let _timing = context.machine_use.time()?;
    let on = on(device, &settings.timing);
    // What any of the searches kept low is measured of all networks.
    let asked = |metric| found.0.iter().any(|one| one.value.metric == metric);
    let meters = timing::meters(asked, &on.device)?;
    let mut samples = Vec::with_capacity(found.0.len());
    for one in &found.0 {
        let genotype = &one.value.genotype;
        let batch_size = settings.timing.batch_size;
        let network = Prepared::network(&network, genotype, batch_size, &on)?;
        let latency = timing::time(&network, &on, &settings, &config.timing, &context.progress)?;
        let costs = timing::costs(&meters, genotype, &settings, &on)?;
        samples.push(LatencySample {
            genotype: genotype.clone(),
            median_millis: latency.median_millis,
            p10_millis: latency.p10_millis,
            p90_millis: latency.p90_millis,
            n_repeats: latency.n_repeats,
            anchor_ratio: latency.anchor_ratio,
            disturbed: latency.disturbed,
            chosen: false,
            repeat_median_millis: None,
            peak_memory_bytes: costs.peak_memory_bytes.map(|bytes| bytes as f64),
            energy_joules: costs.energy_joules,
            graph_median_millis: None,
            gpu: None,
        });
    }
    Ok(LatencyDataset {
        settings: Some(settings),
        samples,
        cells: Vec::new(),
    })
}

/// The precision of a config or protocol, as networks take it.
fn precision(record: Precision) -> nn::Precision {
    match record {
        Precision::F32 => nn::Precision::F32,
        Precision::Tf32 => nn::Precision::Tf32,
        Precision::Bf16 => nn::Precision::Bf16,
    }
}

/// Where networks are timed, as the protocol has it.
fn on(device: Device, timing: &TimingRecord) -> On {
    On {
        device,
        precision: precision(timing.precision),
    }
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

/// What the latency of this evaluation is of: the network of the config under the protocol of the search
/// result. A search result that does not tell its protocol (its predictor was fitted on foreign data)
/// gets one image on one thread. An anchor is there only if this program took it on this
/// machine, for latencies are corrected to it.
fn settings(
    config: &Config,
    search: &SearchResult,
    context: &RunContext,
    machine: &str,
) -> Result<MeasurementSettings, Error> {
    let (device, progress) = (context.device, &context.progress);
    let network = &config.network;
    let timing = match &search.settings {
        Some(profiled) if profiled.network != *network => {
            let describe = |record| serde_json::to_string(record).unwrap_or_default();
            return Err(Error::OtherNetwork {
                configured: describe(network),
                profiled: describe(&profiled.network),
            });
        }
        Some(profiled) => profiled.timing.clone(),
        None => TimingRecord {
            batch_size: 1,
            n_threads: 1,
            n_warmup: 3,
            n_repeats: 20,
            precision: Precision::F32,
            flush_l2: false,
        },
    };
    timing.check(device)?;
    let profiled = search.settings.as_ref();
    let anchor = profiled.and_then(|profiled| profiled.anchor.clone());
    if profiled.is_none() {
        progress.line("the search result does not say how its latencies were taken: timing one image on one thread");
    }
    let doubt = match &anchor {
        Some(anchor) if anchor.is_of(machine) => None,
        Some(anchor) if anchor.machine == machine => {
            Some("by the code of this program (profile, fit and search again to have one that is)")
        }
        _ => Some("of this machine and device"),
    };
    if let Some(doubt) = doubt {
        progress.line(&format!(
            "the predicted latency is not known to be {doubt}, the measured latency is: they are not held against each other"
        ));
    }
    Ok(MeasurementSettings {
        network: network.clone(),
        timing,
        device: device.to_string(),
        runtime: match device {
            DeviceSpec::Cpu => runtime::NATIVE_CPU,
            DeviceSpec::Cuda(_) => runtime::CANDLE_CUDA,
        }
        .to_owned(),
        anchor: anchor.filter(|_| doubt.is_none()),
    })
}

/// Trains the epochs that are left, and tests; a bar for each epoch.
fn train(
    mut training: Training<'_>,
    config: &Config,
    context: &RunContext,
) -> Result<Trained, Error> {
    let progress = &context.progress;
    let n_done = training.epochs().len();
    if n_done > 0 {
        progress.line(&format!(
            "going on after {n_done} of {} epochs",
            config.n_epochs
        ));
    }
    for epoch in n_done..config.n_epochs {
        let label = format!("epoch {}/{}", epoch + 1, config.n_epochs);
        let bar = progress.bar(&label, training.n_steps() as u64);
        training.advance(|loss| {
            bar.message(format!("loss {loss:.3}"));
            bar.inc(1);
        })?;
        if let Some(row) = training.epochs().last() {
            let accuracy = 100.0 * row.train_accuracy;
            bar.message(format!(
                "loss {:.4}, accuracy {accuracy:.2} %",
                row.train_loss
            ));
        }
        bar.finish();
    }
    let bar = progress.bar("test", training.n_test_batches() as u64);
    let trained = training.finish(|| bar.inc(1))?;
    bar.finish();
    Ok(trained)
}

/// The generator of one purpose: streams of one seed are independent.
fn rng(seed: u64, stream: u64) -> nn::Rng {
    let mut rng = nn::Rng::seed_from_u64(seed);
    rng.set_stream(stream);
    rng
}
