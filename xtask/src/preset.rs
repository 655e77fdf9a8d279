//! What the pipeline commands share: preset, store, device, overrides, and the steps that follow.

use std::path::{Path, PathBuf};

use anyhow::Result;
use artifact::stage::{EVALUATE, PREDICTOR, PROFILE, SEARCH};
use artifact::{
    Comparison, DeviceSpec, ExitCode, Front, LatencyDataset, Metric, NetworkRecord, PIPELINE,
    Refusal, StageSpec,
};
use serde::Deserialize;

/// The command line or a preset is wrong.
pub(crate) fn usage(message: String) -> anyhow::Error {
    Refusal::usage(message).into()
}

/// An artifact is missing.
pub(crate) fn missing(message: String) -> anyhow::Error {
    Refusal::new(ExitCode::Input, message).into()
}

/// There is no such device.
pub(crate) fn no_device(device: DeviceSpec, reason: &dyn std::fmt::Display) -> anyhow::Error {
    let message = format!("no device {device}: {reason}; use --device cpu, or see docs/gpu.md");
    Refusal::new(ExitCode::Device, message).into()
}

/// Arguments of every pipeline command.
#[derive(clap::Args, Clone)]
pub(crate) struct PipelineArgs {
    /// A preset of `configs/`, or a folder with one TOML file per stage
    #[arg(long, value_name = "NAME|DIR", default_value = "quick")]
    pub(crate) preset: String,
    /// Where artifacts are kept
    #[arg(long, value_name = "DIR", default_value = "data/artifacts")]
    pub(crate) store: PathBuf,
    /// cpu, cuda or cuda:N
    #[arg(long, default_value = "cpu")]
    pub(crate) device: String,
    /// The seed of search and evaluate (their own seed otherwise)
    #[arg(long)]
    pub(crate) seed: Option<u64>,
    /// The number of threads that search and evaluate train on; all cores by default
    #[arg(long, value_name = "N")]
    pub(crate) threads: Option<usize>,
    /// The latency that the latency-aware search must keep to: 0.4ms, or 0.6x the predicted latency of the lambda = 0
    /// network
    #[arg(long, value_name = "LATENCY", allow_hyphen_values = true)]
    pub(crate) target: Option<String>,
    /// Measured networks that the predictor learns from as well: a folder that `evaluate time` left (may be repeated)
    #[arg(long, value_name = "DIR")]
    pub(crate) more: Vec<PathBuf>,
    /// The folder of a front that `sweep` left: the report shows it
    #[arg(long, value_name = "DIR")]
    pub(crate) front: Option<PathBuf>,
    /// The folder of a comparison that `compare` left: the report shows it
    #[arg(long, value_name = "DIR")]
    pub(crate) comparison: Option<PathBuf>,
    /// Override a value of a stage's config, e.g. search.lambda=0.5
    #[arg(long = "set", value_name = "STAGE.KEY=VALUE")]
    pub(crate) overrides: Vec<String>,
}

/// One run of one stage in the pipeline.
pub(crate) struct Step {
    /// The stage.
    pub(crate) stage: &'static StageSpec,
    /// What tells this run from others of the same stage.
    pub(crate) variant: Option<&'static str>,
    /// The steps whose artifacts it reads, by name.
    pub(crate) inputs: &'static [&'static str],
    /// Config values that make the variant.
    pub(crate) overrides: Vec<String>,
    /// The step whose network a target's ratio is of.
    pub(crate) reference: Option<&'static str>,
    /// The search whose alpha this one begins with.
    pub(crate) warm_start: Option<&'static str>,
    /// The genotype that is taken instead of a search.
    pub(crate) genotype: Option<String>,
}

impl Step {
    /// The steps that must have run before.
    pub(crate) fn needs(&self) -> impl Iterator<Item = &'static str> {
        let others = self.reference.into_iter().chain(self.warm_start);
        self.inputs.iter().copied().chain(others)
    }

    /// `search (baseline)`.
    pub(crate) fn name(&self) -> String {
        step_name(self.stage, self.variant)
    }
}

/// The name of a stage's step.
pub(crate) fn step_name(stage: &StageSpec, variant: Option<&str>) -> String {
    match variant {
        Some(variant) => format!("{} ({variant})", stage.name),
        None => stage.name.to_owned(),
    }
}

/// The search without latency in its loss.
pub(crate) const BASELINE: &str = "baseline";
/// Its step.
pub(crate) const BASELINE_SEARCH: &str = "search (baseline)";
/// The search with it.
pub(crate) const LATENCY_AWARE: &str = "latency-aware";
/// A search of a sweep.
pub(crate) const POINT: &str = "point";
/// The step that a point's search begins with.
pub(crate) const NEIGHBOUR: &str = "search (neighbour)";
/// The best of some genotypes drawn at random, or one, of the latency of the latency-aware one.
pub(crate) const RANDOM: &str = "random";

/// A genotype that no search found.
pub(crate) const GIVEN: &str = "given";

/// A row of [`STEPS`]: stage, variant, the steps it reads, overrides.
type StepRow = (
    &'static str,
    Option<&'static str>,
    &'static [&'static str],
    &'static [&'static str],
);

/// The pipeline in the order in which it runs. The baseline's loss has no latency, whatever the bridge and whatever is said of targets
/// but for the probability, with which its trace tells bounds: one serves all.
#[rustfmt::skip]
const STEPS: [StepRow; 7] = [
    ("profile",   None,                &[],                           &[]),
    ("predictor", None,                &["profile"],                  &[]),
    ("search",    Some(BASELINE),      &["predictor"],                &["objective=penalty", "lambda=0.0", "target.latency=none", "target.of=PDARTS", "target.slack=0.0", "target.multiplier_rate=1.0", "bridge=soft", "n_bridge_samples=1"]),
    ("search",    Some(LATENCY_AWARE), &["predictor"],                &[]),
    ("evaluate",  Some(BASELINE),      &["search (baseline)"],        &[]),
    ("evaluate",  Some(LATENCY_AWARE), &["search (latency-aware)"],   &[]),
    ("report",    None,                &["profile", "predictor", "search (baseline)", "search (latency-aware)", "evaluate (baseline)", "evaluate (latency-aware)"], &[]),
];

/// What `compare` runs besides: a random search within 2 % of a prediction, in the unit of its metric, and its evaluation.
/// Each `seed` draws another.
pub(crate) fn random_steps(predicted: f64, metric: Metric, seed: u64) -> [Step; 2] {
    let draw = [
        format!("seed={seed}"),
        "method=random".to_owned(),
        "objective=penalty".to_owned(),
        // Half of the networks of a predicted latency take less, half more.
        "target.probability=0.5".to_owned(),
        format!("target.latency={:.6}{}", 1.02 * predicted, metric.unit()),
        "target.slack=0.04".to_owned(),
    ];
    let step = |stage, inputs, overrides| Step {
        stage,
        variant: Some(RANDOM),
        inputs,
        overrides,
        reference: None,
        warm_start: None,
        genotype: None,
    };
    [
        step(&SEARCH, &["predictor"], draw.to_vec()),
        step(&EVALUATE, &["search (random)"], Vec::new()),
    ]
}

/// A point of `sweep`: its search, which may begin with the alpha of the point before and may have a target that is
/// a ratio of the baseline, and its evaluation.
pub(crate) fn point_steps(
    overrides: Vec<String>,
    has_neighbour: bool,
    is_ratio: bool,
) -> [Step; 2] {
    let step = |stage, inputs, overrides| Step {
        stage,
        variant: Some(POINT),
        inputs,
        overrides,
        reference: None,
        warm_start: None,
        genotype: None,
    };
    [
        Step {
            reference: is_ratio.then_some(BASELINE_SEARCH),
            warm_start: has_neighbour.then_some(NEIGHBOUR),
            ..step(&SEARCH, &["predictor"], overrides)
        },
        step(&EVALUATE, &["search (point)"], Vec::new()),
    ]
}

/// The steps, each with its stage from [`PIPELINE`].
///
/// # Errors
/// If there is no such preset, or if its `search.toml` cannot be read.
pub(crate) fn steps(args: &PipelineArgs) -> Result<Vec<Step>> {
    if let Some(target) = &args.target {
        args.leaves("search", &["objective", "target.latency"], "--target")?;
        parse_target(target, "--target")?;
    }
    if args.seed.is_some() {
        for stage in ["search", "evaluate"] {
            args.leaves(stage, &["seed"], "--seed or --seeds")?;
        }
    }
    let has_ratio = is_ratio(&args.target_latency()?);
    Ok(STEPS
        .iter()
        .map(|&(stage, variant, inputs, overrides)| Step {
            stage: PIPELINE
                .iter()
                .find(|spec| spec.name == stage)
                .expect("a stage of PIPELINE"),
            variant,
            inputs,
            overrides: overrides.iter().map(|&text| text.to_owned()).collect(),
            reference: (stage == "search" && variant == Some(LATENCY_AWARE) && has_ratio)
                .then_some(BASELINE_SEARCH),
            warm_start: None,
            genotype: None,
        })
        .collect())
}

/// What `evaluate` runs: a genotype that is there is taken instead of a search, and evaluated.
pub(crate) fn given_steps(genotype: &str, target: Option<&str>) -> [Step; 2] {
    let step = |stage, inputs| Step {
        stage,
        variant: Some(GIVEN),
        inputs,
        overrides: Vec::new(),
        reference: None,
        warm_start: None,
        genotype: None,
    };
    [
        Step {
            overrides: vec![
                // What asks for no target.
                "objective=penalty".to_owned(),
                format!("target.latency={}", target.unwrap_or("none")),
            ],
            genotype: Some(genotype.to_owned()),
            ..step(&SEARCH, &["predictor"])
        },
        step(&EVALUATE, &["search (given)"]),
    ]
}

/// The number of a target such as `0.4ms` or `0.6x`, which `option` gave.
pub(crate) fn parse_target(text: &str, option: &str) -> Result<f64> {
    let units = Metric::ALL.map(Metric::unit).into_iter().chain(["x"]);
    let mut numbers = units.filter_map(|unit| text.trim().strip_suffix(unit));
    let number = numbers.find_map(|number| number.parse::<f64>().ok());
    match number {
        Some(number) if number > 0.0 && number.is_finite() => Ok(number),
        _ => Err(usage(format!(
            "{option} {text}: expected a positive latency such as 0.4ms, or a ratio such as 0.6x"
        ))),
    }
}

/// Whether a target is a ratio of another network's latency: in the pipeline, of the baseline's.
pub(crate) fn is_ratio(latency: &str) -> bool {
    latency.trim_end().ends_with('x')
}

/// What the pipeline must know of a `search.toml`; the stage checks the rest.
#[derive(Deserialize)]
struct SearchConfig {
    target: TargetConfig,
    selection: Option<serde::de::IgnoredAny>,
}

#[derive(Deserialize)]
struct TargetConfig {
    latency: serde_json::Value,
    probability: f64,
}

/// What it must know of a `profile.toml`.
#[derive(Deserialize)]
struct ProfileConfig {
    n_architectures: usize,
    #[serde(default)]
    metrics: Vec<Metric>,
    network: NetworkRecord,
}

/// What it must know of a `predictor.toml`.
#[derive(Deserialize)]
struct PredictorConfig {
    held_out: f64,
    #[serde(default)]
    metric: Metric,
}

/// What it must know of an `evaluate.toml`.
#[derive(Deserialize)]
struct NetworkConfig {
    network: NetworkRecord,
}

/// The folder of a preset's configs.
pub(crate) fn preset_dir(preset: &str) -> Result<PathBuf> {
    let named = Path::new("configs").join(preset);
    let given = PathBuf::from(preset);
    for dir in [named, given] {
        if dir.is_dir() {
            return Ok(dir);
        }
    }
    let mut names: Vec<String> = std::fs::read_dir("configs")
        .map(|entries| {
            entries
                .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
                .collect()
        })
        .unwrap_or_default();
    if names.is_empty() {
        return Err(usage(format!(
            "no preset `{preset}`: there is no folder configs here; run from the root of the repository, or give a folder"
        )));
    }
    names.sort();
    Err(usage(format!(
        "no preset `{preset}`: neither a folder nor one of {}",
        names.join(", ")
    )))
}

impl PipelineArgs {
    /// Nothing but a preset.
    pub(crate) fn of_preset(preset: String) -> Self {
        Self {
            preset,
            store: PathBuf::new(),
            device: DeviceSpec::Cpu.to_string(),
            seed: None,
            threads: None,
            target: None,
            more: Vec::new(),
            front: None,
            comparison: None,
            overrides: Vec::new(),
        }
    }

    /// The target of the latency-aware search: of the command line, or else of the preset.
    fn target_latency(&self) -> Result<String> {
        if let Some(target) = &self.target {
            return Ok(target.clone());
        }
        Ok(match self.search_config()?.target.latency {
            serde_json::Value::String(target) => target,
            // For the stage to refuse.
            other => other.to_string(),
        })
    }

    /// Whether searches train candidates and take the best.
    pub(crate) fn chooses_between_candidates(&self) -> Result<bool> {
        Ok(self.search_config()?.selection.is_some())
    }

    fn search_config(&self) -> Result<SearchConfig> {
        self.config(&SEARCH)
    }

    fn config<C: serde::de::DeserializeOwned>(&self, stage: &StageSpec) -> Result<C> {
        let file = self.preset_dir()?.join(format!("{}.toml", stage.name));
        artifact::config::load(&file, &self.overrides_of(stage.name)?)
            .map_err(|error| usage(error.to_string()))
    }

    /// An error if what is given beside the configs is not there, if what is modelled is not measured, or if the network that is profiled
    /// and the one that is trained are not alike, so that their latencies could not be compared.
    pub(crate) fn go_together(&self) -> Result<()> {
        for dir in &self.more {
            artifact::open::<LatencyDataset>(dir)?;
        }
        if let Some(dir) = &self.front {
            artifact::open::<Front>(dir)?;
        }
        if let Some(dir) = &self.comparison {
            artifact::open::<Comparison>(dir)?;
        }
        let profile: ProfileConfig = self.config(&PROFILE)?;
        let predictor: PredictorConfig = self.config(&PREDICTOR)?;
        let evaluate: NetworkConfig = self.config(&EVALUATE)?;
        let metric = predictor.metric;
        if metric != Metric::Latency && !profile.metrics.contains(&metric) {
            return Err(usage(format!(
                "metric = \"{metric}\" in predictor.toml, which metrics in profile.toml does not hold: --set 'profile.metrics=[\"{metric}\"]'"
            )));
        }
        if profile.network == evaluate.network {
            return Ok(());
        }
        let describe = |network| serde_json::to_string(network).unwrap_or_default();
        Err(usage(format!(
            "[network] in profile.toml is {}, in evaluate.toml {}: make them the same",
            describe(&profile.network),
            describe(&evaluate.network)
        )))
    }

    /// What the predictor models.
    pub(crate) fn metric(&self) -> Result<Metric> {
        Ok(self.config::<PredictorConfig>(&PREDICTOR)?.metric)
    }

    /// An error if the target of a search, if it has one, is of something else than the predictor models, or asks for more certainty
    /// than the held-out architectures will give.
    pub(crate) fn promises(&self, step: &Step) -> Result<()> {
        let given = |key: &str| {
            let own = step.overrides.iter().rev();
            let mut values = own.filter_map(|own| own.strip_prefix(key)?.strip_prefix('='));
            values.next().map(str::to_owned)
        };
        let target = match (given("target.latency"), step.variant) {
            (Some(target), _) => target,
            (None, Some(LATENCY_AWARE)) => self.target_latency()?,
            _ => return Ok(()),
        };
        if target.trim() == "none" {
            return Ok(());
        }
        let predictor: PredictorConfig = self.config(&PREDICTOR)?;
        let metric = predictor.metric;
        if !is_ratio(&target) && !target.trim().ends_with(metric.unit()) {
            return Err(usage(format!(
                "the target {target} is not of the {metric} that predictor.toml models: expected a number of {}, or a ratio such as 0.6x",
                metric.unit()
            )));
        }
        let probability = given("target.probability").and_then(|text| text.parse().ok());
        let probability = match probability {
            Some(probability) => probability,
            None => self.search_config()?.target.probability,
        };
        let n_architectures = self.config::<ProfileConfig>(&PROFILE)?.n_architectures;
        let n_held_out = (n_architectures as f64 * predictor.held_out).ceil();
        // Of n errors the ⌈p (n + 1)⌉-th is the bound.
        if (probability * (n_held_out + 1.0) - 1e-9).ceil() <= n_held_out {
            return Ok(());
        }
        Err(usage(format!(
            "target.probability = {probability} in search.toml takes the errors of {:.0} held-out architectures, held_out = {} of \
             n_architectures = {n_architectures} are {n_held_out:.0}: raise one of these, or lower target.probability",
            (probability / (1.0 - probability) - 1e-9).ceil(),
            predictor.held_out
        )))
    }

    /// An error if a command that makes no report is given what a report would show.
    pub(crate) fn shows_nothing_more(&self) -> Result<()> {
        let given = [("--front", &self.front), ("--comparison", &self.comparison)];
        match given.iter().find(|(_, dir)| dir.is_some()) {
            Some((option, _)) => Err(usage(format!(
                "{option}: this command makes no report that would show it"
            ))),
            None => Ok(()),
        }
    }

    /// An error if a `--set` names a key of a stage that another option sets.
    pub(crate) fn leaves(&self, stage: &str, keys: &[&str], option: &str) -> Result<()> {
        for own in self.overrides_of(stage)? {
            let key = own.split('=').next().unwrap_or_default().trim();
            if keys.contains(&key) {
                return Err(usage(format!(
                    "--set {stage}.{own}: {option} sets {key}; leave out one of them"
                )));
            }
        }
        Ok(())
    }

    /// The folder of the preset's configs.
    pub(crate) fn preset_dir(&self) -> Result<PathBuf> {
        preset_dir(&self.preset)
    }

    /// The `--set` values that belong to a stage, without its name; checks that every one names a stage.
    pub(crate) fn overrides_of(&self, stage: &str) -> Result<Vec<String>> {
        let mut own = Vec::new();
        for item in &self.overrides {
            let (name, rest) = item.split_once('.').unwrap_or((item, ""));
            if !PIPELINE.iter().any(|spec| spec.name == name) || !rest.contains('=') {
                let names: Vec<&str> = PIPELINE.iter().map(|spec| spec.name).collect();
                return Err(usage(format!(
                    "--set {item}: expected STAGE.KEY=VALUE with a stage of {}",
                    names.join(", ")
                )));
            }
            if name == stage {
                own.push(rest.to_owned());
            }
        }
        Ok(own)
    }
}
