//! Stage `search`: latency-aware differentiable architecture search.
//!
//! Trains the weights of a supernet and its architecture parameters by turns: alpha on validation batches
//! with the loss `cross entropy + objective(model(code))`, weights on training batches with the cross
//! entropy alone. The model is the frozen latency model; how alpha becomes a code is the bridge. Alpha stands
//! still in the warm-up epochs. P-DARTS does so in stages, in a deeper supernet and with fewer primitives each time. At the end the genotype of alpha is derived, and changed where it is
//! cheapest if it does not keep to the target or has too many skips.
//!
//! | module | what |
//! |---|---|
//! | `search` | the steps and epochs |
//! | `objective` | what the loss adds for the latency: penalty, hinge, target |
//! | `bridge` | from alpha to an input of the model: soft, hard, sampled |
//! | `predictor` | the model, and how far it may be trusted |
//! | `derivation` | the genotype of alpha within limits |
//! | `outcome` | what a search ends with |
//! | `guard` | signs of collapse, and what is done about them |
//! | `random` | no search: genotypes drawn within the limits |
//! | `given` | no search: a genotype that is there |
//! | `selection` | several genotypes trained for a short while, of which the best comes out |
//! | `surrogate` | what is expected of genotypes that nobody has trained |
//! | `hindsight` | what whole trainings came to, and how much of it could be known before |
//! | `resume` | checkpoints |
//! | `warm_up` | the weights after the warm-up, for the next search with the same |
//!
//! Every epoch leaves a row in the trace and a checkpoint; a search that is killed goes on after the last
//! finished epoch and ends with the same bytes, on the same number of threads.

mod bridge;
mod config;
mod derivation;
mod error;
mod given;
mod guard;
mod hindsight;
mod objective;
mod outcome;
mod predictor;
mod random;
mod resume;
mod search;
mod selection;
mod surrogate;
mod warm_up;

use std::path::Path;
use std::sync::Arc;

use artifact::stage::Progress;
use artifact::stage::SEARCH;
use artifact::{
    DeviceSpec, KeyParts, LatencyModelArtifact, MemoryPlan, NetworkRecord, Opened, Precision,
    RunContext, SearchResult, TraceRow,
};
use candle_core::Device;
use collective::Collective;
use images::{ImageSet, LoadOptions, Split};
use nn::memory::StepMemory;
use space::{CellKind, Genotype};

pub use crate::config::{
    ArchitectureConfig, Bridge, Config, DataConfig, GuardsConfig, Method, NetworkConfig,
    ObjectiveKind, Order, Policy, ProgressiveConfig, SelectionConfig, TargetConfig, TargetLatency,
    WeightsConfig,
};
pub use crate::error::Error;
pub use crate::given::take;
pub use crate::hindsight::{Estimate, Hindsight};
use crate::outcome::Found;
use crate::predictor::Predictor;
use crate::search::{Data, EpochResult, Search};
use crate::selection::ShortTraining;
pub use crate::surrogate::{Learned, Surrogate};

/// What the stage reads.
pub struct Inputs {
    /// The frozen latency model.
    pub latency_model: Opened<LatencyModelArtifact>,
    /// The search whose alpha this one begins with; `None` = drawn at random.
    pub warm_start: Option<Opened<SearchResult>>,
}

impl Inputs {
    /// Opens the latency model of a folder, and the search result of another.
    ///
    /// # Errors
    /// As [`artifact::open`].
    pub fn open(latency_model: &Path, warm_start: Option<&Path>) -> Result<Self, Error> {
        Ok(Self {
            latency_model: artifact::open(latency_model)?,
            warm_start: warm_start.map(artifact::open).transpose()?,
        })
    }

    /// What decides the result: the config, the latency model, the files of the training split, and the surrogate if one is asked.
    ///
    /// # Errors
    /// If the config is not right, or if there are no such images.
    pub fn key(&self, config: &Config) -> Result<KeyParts, Error> {
        config.check()?;
        let files = images::files(&config.data.dir, Split::Train)?;
        let parts = KeyParts::new(&SEARCH, config)?
            .input("latency-model", self.latency_model.digest())
            .input("images", artifact::digest_files(&files)?);
        let parts = match &self.warm_start {
            Some(neighbour) => parts.input("warm-start", neighbour.digest()),
            None => parts,
        };
        Ok(match config.surrogate() {
            Some(surrogate) => parts.input("surrogate", surrogate.digest()),
            None => parts,
        })
    }
}

/// Searches and returns the genotype with everything that led to it.
///
/// # Errors
/// [`Error`] if the config or an input is wrong, if no network meets the target, or if a loss is no longer
/// finite.
pub fn run(config: &Config, inputs: &Inputs, context: &RunContext) -> Result<SearchResult, Error> {
    run_together(config, inputs, context, None)
}

/// [`run`] together with other processes, each with a part of every batch: all call this with the same config and
/// inputs, and all get the same result. Without ranks this process is alone.
///
/// # Errors
/// As [`run`], and if a rank is lost or comes to something else.
pub fn run_together(
    config: &Config,
    inputs: &Inputs,
    context: &RunContext,
    ranks: Option<Arc<dyn Collective>>,
) -> Result<SearchResult, Error> {
    config.check()?;
    config.precision.check(context.device)?;
    config.check_ranks(ranks.as_ref().map_or(1, |ranks| ranks.n_ranks()))?;
    let _guard = context.machine_use.compute()?;
    let predictor = Predictor::new(&inputs.latency_model)?;
    let target_millis = target_millis(config, inputs, &predictor)?;
    if let Some(millis) = target_millis {
        is_in_reach(config, &predictor, millis, &context.progress)?;
    }
    let record = |found| outcome::result(config, inputs, &predictor, target_millis, found);
    let method = config.method.name();
    let drawn = match config.method {
        Method::Random => random::draw(config, &predictor, target_millis, &context.progress)?,
        _ => Vec::new(),
    };
    if let [genotype] = &drawn[..] {
        let genotype = genotype.clone();
        return Ok(record(Found::without_alpha(method, genotype, Vec::new())));
    }
    let set = load_images(config, None)?;
    let profiled = inputs.latency_model.value.card.settings.as_ref();
    let network = profiled.map(|profiled| &profiled.network);
    if let Some(line) = network.and_then(|network| of_other_images(network, &set, &config.data.dir))
    {
        context.progress.line(&line);
    }
    let data = Data::new(&set, config)?;
    let device = open_device(context.device)?;
    let ranks = ranks
        .map(|ranks| collective::on_device(ranks, &device))
        .transpose()?;
    let short_training = ShortTraining {
        config,
        data: &data,
        spec: &selection::network_spec(config, &set)?,
        device: &device,
        ranks: ranks.as_ref(),
    };
    if !drawn.is_empty() {
        plan(&short_training, None, context.device)?.check(context.device)?;
        let candidates = short_training.choose(&drawn, &predictor, context)?;
        let genotype = candidates[0].genotype.clone();
        return Ok(record(Found::without_alpha(method, genotype, candidates)));
    }
    let objective = objective::new(config, predictor.reference_millis, target_millis);
    let mut search = Search::new(config, &set, &predictor, objective, &device, ranks.clone())?;
    plan(&short_training, Some(&search), context.device)?.check(context.device)?;
    search.n_threads.insert(context.n_threads);
    if let Some(neighbour) = &inputs.warm_start {
        let alphas = resume::tensors(&neighbour.value.alphas, &search.device)?;
        search.warm_start(&alphas)?;
    }
    let shares_warm_up = search.is_alone() && inputs.warm_start.is_none();
    let trace = run_epochs(&mut search, config, &data, context, shares_warm_up)?;
    let derived = outcome::derivations(config, &search, target_millis, &context.progress)?;
    let genotypes = derived.candidates.iter().map(|own| own.genotype.clone());
    let genotypes: Vec<Genotype> = genotypes.collect();
    let names: Vec<String> = genotypes.iter().map(Genotype::to_string).collect();
    search.agree("the candidates", &names.join("\n"))?;
    nn::memory::free_buffers();
    let candidates = short_training.choose(&genotypes, &predictor, context)?;
    let best = candidates.first().map_or(0, |best| {
        let found = genotypes.iter().position(|own| *own == best.genotype);
        found.expect("it is one of them")
    });
    let best = (best, &derived);
    let found = outcome::found(config, &search, target_millis, best, trace, candidates)?;
    search.agree("the found genotype", &found.genotype.to_string())?;
    for event in found
        .trace
        .last()
        .iter()
        .filter_map(|row| row.event.as_ref())
    {
        context.progress.line(event);
    }
    Ok(record(found))
}

/// The epochs that are left to do; the trace of all.
fn run_epochs(
    search: &mut Search<'_>,
    config: &Config,
    data: &Data<'_>,
    context: &RunContext,
    shares_warm_up: bool,
) -> Result<Vec<TraceRow>, Error> {
    let n_epochs = config.n_epochs_in_all();
    let mut trace = resume::load(search, &context.work_dir)?;
    let mut from = "";
    if trace.is_empty() && shares_warm_up {
        trace = warm_up::load(search, config, context)?;
        from = ", from a search with the same warm-up";
    }
    search.agree("the epochs that are done", &trace.len().to_string())?;
    if !trace.is_empty() {
        let n_done = trace.len();
        let line = format!("going on after epoch {n_done}/{n_epochs}{from}");
        context.progress.line(&line);
    }
    for epoch in trace.len()..n_epochs {
        if search.memory.has_stopped {
            break;
        }
        search.enter(epoch)?;
        let label = format!("epoch {}/{n_epochs}", epoch + 1);
        let bar = context.progress.bar(&label, search.n_steps(data) as u64);
        let result = search.epoch(epoch, data, |loss| {
            bar.message(format!("loss {loss:.3}"));
            bar.inc(1);
        })?;
        bar.finish();
        let mut row = trace_row(epoch, &result, search)?;
        if !search.is_warm_up(epoch) {
            row.event = search.guard(&result.panel)?;
        }
        context.progress.line(&format!(
            "{label}: train {:.3} ({:.1} %), valid {:.3} ({:.1} %), derived {:.3} {}{}",
            result.performance.train_loss,
            100.0 * result.performance.train_accuracy,
            result.performance.valid_loss,
            100.0 * result.performance.valid_accuracy,
            result.derived_latency_millis,
            search.predictor.metric.unit(),
            row.event
                .iter()
                .map(|event| format!("; {event}"))
                .collect::<String>(),
        ));
        trace.push(row);
        search.agree("the derived genotype", &result.genotype.to_string())?;
        if search.is_first() {
            if trace.len() == config.n_warmup_epochs && shares_warm_up {
                warm_up::save(search, config, &trace, context)?;
            }
            resume::save(search, &trace, &context.work_dir)?;
        }
    }
    Ok(trace)
}

/// Whether a search could begin with a config: whether its images are there, enough for its batches, and such as its network
/// takes. Labels are looked at, and one image.
///
/// # Errors
/// If they are not.
pub fn check(config: &Config) -> Result<(), Error> {
    let (labels, _) = images::labels(&config.data.dir, Split::Train)?;
    if config.trains() {
        search::split(&labels, config)?;
        let set = load_images(config, Some(1))?;
        // One that is to be resized is not decoded before it is asked for.
        set.image(0)?;
        selection::network_spec(config, &set)?;
        search::fits_images(config, &set)?;
    }
    Ok(())
}

/// What a search by each of so many ranks will keep in memory at its peak; nothing runs. A search that draws one
/// genotype keeps next to nothing.
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
    if !config.trains() {
        return Ok(MemoryPlan::on(device));
    }
    let predictor = Predictor::new(&inputs.latency_model)?;
    let objective = objective::new(config, predictor.reference_millis, None);
    let set = load_images(config, None)?;
    let candle_device = open_device(device)?;
    let short_training = ShortTraining {
        config,
        data: &Data::new(&set, config)?,
        spec: &selection::network_spec(config, &set)?,
        device: &candle_device,
        ranks: None,
    };
    let search = match config.method {
        Method::Random => None,
        _ => Some(Search::new(
            config,
            &set,
            &predictor,
            objective,
            &candle_device,
            None,
        )?),
    };
    plan_for(&short_training, search.as_ref(), device, n_ranks)
}

/// [`plan_for`] the ranks that there are.
fn plan(
    short_training: &ShortTraining<'_>,
    search: Option<&Search<'_>>,
    device: DeviceSpec,
) -> Result<MemoryPlan, Error> {
    let n_ranks = short_training.ranks.map_or(1, |ranks| ranks.n_ranks());
    plan_for(short_training, search, device, n_ranks)
}

/// What a run will keep in memory: in the steps of a search, if there is one, or of candidates, beside which the supernet lies.
fn plan_for(
    short_training: &ShortTraining<'_>,
    search: Option<&Search<'_>>,
    spec: DeviceSpec,
    n_ranks: usize,
) -> Result<MemoryPlan, Error> {
    let ShortTraining {
        config,
        data,
        device,
        ..
    } = short_training;
    let n_images = config.batch_size.div_ceil(n_ranks);
    let path = nn::memory::Path::of(device, n_ranks);
    let supernet = search
        .map(|search| search.memory(n_images, path))
        .transpose()?;
    let mut candidate = None;
    if config.n_candidates() > 1 {
        let mut own = short_training.memory(n_images, path)?;
        own.parameters_bytes += supernet.map_or(0, |supernet| supernet.lasting_bytes);
        candidate = Some(own);
    }
    let steps = supernet.into_iter().chain(candidate);
    let most = steps.max_by_key(StepMemory::total_bytes);
    let parts = most.iter().flat_map(StepMemory::parts);
    let mut plan = parts.fold(MemoryPlan::on(spec), |plan, (what, bytes)| {
        plan.with(what, bytes)
    });
    if !device.is_cpu() {
        return Ok(plan);
    }
    if candidate.is_some() && search.is_some() {
        plan = plan.with("derivation", outcome::DERIVATION_BYTES);
    }
    Ok(plan
        .with("images", data.n_bytes(n_images))
        .with("program", nn::memory::PROGRAM_BYTES))
}

/// The target in ms; an error if the model cannot tell whether it is kept.
fn target_millis(
    config: &Config,
    inputs: &Inputs,
    predictor: &Predictor,
) -> Result<Option<f64>, Error> {
    let target = &config.target;
    let millis = match target.latency {
        TargetLatency::None => return Ok(None),
        TargetLatency::Cost(cost, metric) if metric == predictor.metric => cost,
        TargetLatency::Cost(_, asked) => {
            return Err(Error::Metric {
                path: inputs.latency_model.dir.display().to_string(),
                metric: predictor.metric,
                asked,
            });
        }
        TargetLatency::Ratio(ratio) => {
            let of = config::genotype_of(&target.of).ok_or_else(|| Error::Setting {
                key: "target.of",
                expected: "the name of a published genotype, or one in the tuple form".to_owned(),
            })?;
            ratio * predictor.predict(&of)
        }
    };
    let probability = target.probability;
    let upper = |genotype: &Genotype| predictor.upper(genotype, probability);
    if upper(&Genotype::named("PDARTS").expect("a published genotype")).is_none() {
        return Err(Error::NoPromise {
            path: inputs.latency_model.dir.display().to_string(),
            why: predictor.why_no_promise(probability),
            probability,
        });
    }
    Ok(Some(millis))
}

/// An error if nothing is as fast as the target.
fn is_in_reach(
    config: &Config,
    predictor: &Predictor,
    target_millis: f64,
    progress: &Progress,
) -> Result<(), Error> {
    // Any genotype that is fast enough will do. If there is none, that takes half a minute.
    progress.line("looking for a genotype that is fast enough");
    let upper = |genotype: &Genotype| predictor.upper(genotype, config.target.probability);
    let bound = |genotype: &Genotype| upper(genotype).unwrap_or(f64::INFINITY);
    let (_, fastest_millis) = derivation::fastest(bound, target_millis);
    if fastest_millis > target_millis {
        return Err(Error::Unreachable {
            unit: predictor.metric.unit(),
            target_millis,
            fastest_millis,
        });
    }
    Ok(())
}

/// The precision of the config, as the network takes it.
fn precision(record: Precision) -> nn::Precision {
    match record {
        Precision::F32 => nn::Precision::F32,
        Precision::Tf32 => nn::Precision::Tf32,
        Precision::Bf16 => nn::Precision::Bf16,
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

/// The images of the training split, or so many of them.
fn load_images(config: &Config, limit: Option<usize>) -> Result<ImageSet, Error> {
    let resize = (config.data.resize > 0).then_some(config.data.resize);
    let options = LoadOptions {
        resize,
        limit,
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

/// What to say where latencies are of a network for other images than those of the search. That is no mistake: cells found on
/// small images are put into networks for larger ones. But no network for these images can be held against the prediction.
fn of_other_images(profiled: &NetworkRecord, set: &ImageSet, dir: &Path) -> Option<String> {
    let describe = |[channels, side, n_classes]: [usize; 3]| {
        format!("{channels}x{side}x{side} (channels, height, width) of {n_classes} classes")
    };
    let there = [
        profiled.in_channels,
        profiled.image_size,
        profiled.n_classes,
    ];
    let here = [set.n_channels(), set.height(), set.n_classes()];
    (here != there).then(|| {
        format!(
            "the latency model is of networks for images {}, those in {} are {}: predicted latencies and the target are of the former, \
             and evaluate takes no others",
            describe(there),
            dir.display(),
            describe(here)
        )
    })
}

fn trace_row(epoch: usize, result: &EpochResult, search: &Search<'_>) -> Result<TraceRow, Error> {
    let n_skips = |kind| result.genotype.n_skips(kind) as u32;
    let [normal, reduction] = CellKind::ALL;
    Ok(TraceRow {
        epoch: epoch as u32,
        train_loss: result.performance.train_loss,
        train_accuracy: result.performance.train_accuracy,
        valid_loss: result.performance.valid_loss,
        valid_accuracy: result.performance.valid_accuracy,
        latency_loss: result.latency_loss,
        soft_latency_millis: result.soft_latency_millis,
        derived_latency_millis: result.derived_latency_millis,
        entropy_normal: result.panel.entropy_normal,
        entropy_reduce: search.architecture.entropy(reduction)?,
        n_skips_normal: n_skips(normal),
        n_skips_reduce: n_skips(reduction),
        learning_rate: result.learning_rate,
        genotype: result.genotype.to_string(),
        latency_weight: Some(search.objective.weight()),
        bridge_latency_millis: result.bridge_latency_millis,
        discretisation_gap: Some(result.discretisation_gap),
        upper_latency_millis: search.upper_millis(&result.genotype),
        parameter_free_normal: Some(result.panel.parameter_free_normal),
        eigenvalue: result.panel.eigenvalue,
        event: None,
    })
}
