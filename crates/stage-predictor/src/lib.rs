//! Stage `predictor`: fits the latency model.
//!
//! Reads a latency data set, holds a part of its architectures out, fits the structured model, the
//! multi-layer regressor and the additive ridge on the rest, chooses the one with the smallest error on
//! training architectures left out, and judges all by the part held out, beside
//! the noise floor: the error that a perfect model would still have, from architectures that were timed
//! twice. The models that are stored are the models that were judged; they are not fitted again on all
//! architectures, so that the figures are theirs. Architectures whose timing was disturbed take no
//! part. Where cells were timed on their own, the structured model is fitted to those of the training architectures as well. Found networks whose latency was measured (`--more`) are fitted with the rest. The same data set, config and seed give the same bytes.

mod bench;
mod candidates;
mod cells;
mod config;
mod split;
mod table;
mod transfer;

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use artifact::stage::{ExitCode, RunContext, StageError};
use artifact::{
    Digest, FiguresRecord, HeldOut, LatencyDataset, LatencyModelArtifact, LatencySample, Metric,
    ModelCard, Validation,
};
use latency::{Figures, FitError, noise_floor_mape};
use space::{Genotype, SearchSpace, Topology};

pub use crate::bench::{BenchConfig, BenchResult, TransferConfig, bench, fit, transfer};
use crate::candidates::Candidate;
use crate::cells::Cells;
pub use crate::config::{Config, MlpSettings, Model, RidgeSettings};
use crate::split::{Split, split};
pub use crate::transfer::{SourceModels, choose, run_transfer};

/// The fewest undisturbed architectures that the stage makes a model of.
pub const MIN_ARCHITECTURES: usize = 20;
/// The fewest rows of a table that a model is fitted on.
pub const MIN_BENCH_ARCHITECTURES: usize = 10;

/// What the stage reads.
pub struct Inputs {
    /// The timed architectures.
    pub dataset: LatencyDataset,
    /// What stands for them in the key.
    pub digest: Digest,
    /// Architectures that are fitted besides and judge nothing: they were not drawn at random, but found.
    pub more: Vec<LatencySample>,
}

impl Inputs {
    /// The data set that the stage profile left in a folder.
    ///
    /// # Errors
    /// As [`artifact::open`].
    pub fn open(dir: &Path) -> Result<Self, Error> {
        let opened = artifact::open::<LatencyDataset>(dir)?;
        let digest = opened.digest();
        Ok(Self {
            dataset: opened.value,
            digest,
            more: Vec::new(),
        })
    }

    /// A data set of another origin.
    ///
    /// # Errors
    /// As [`LatencyDataset::read`].
    pub fn read(file: &Path) -> Result<Self, Error> {
        Ok(Self {
            dataset: LatencyDataset::read(file)?,
            digest: artifact::digest_files(&[file.to_owned()])?,
            more: Vec::new(),
        })
    }

    /// Adds the architectures of another data set, and returns what stands for it in the key.
    ///
    /// # Errors
    /// As [`artifact::open`]; and if its latencies are of another network, protocol or state of the machine.
    pub fn add(&mut self, dir: &Path) -> Result<Digest, Error> {
        let opened = artifact::open::<LatencyDataset>(dir)?;
        if opened.value.settings != self.dataset.settings {
            return Err(Error::OtherSettings {
                dir: dir.to_owned(),
            });
        }
        let digest = opened.digest();
        self.more.extend(opened.value.samples);
        Ok(digest)
    }
}

impl Inputs {
    /// The undisturbed architectures with what they cost and their row, and how many are left out.
    fn undisturbed(
        self,
        metric: Metric,
        needed: usize,
    ) -> Result<(Vec<Architecture>, usize), Error> {
        let n_all = self.dataset.samples.len();
        let samples = self.dataset.samples.into_iter().enumerate();
        let samples: Vec<(usize, LatencySample)> =
            samples.filter(|(_, sample)| !sample.disturbed).collect();
        let n_disturbed = n_all - samples.len();
        let samples = samples.into_iter();
        let samples: Vec<Architecture> = samples
            .filter_map(|(row, sample)| {
                let cost = metric.of(&sample)?;
                Some(Architecture { row, sample, cost })
            })
            .collect();
        if samples.is_empty() && n_all > n_disturbed {
            return Err(Error::NotMeasured { metric });
        }
        if samples.len() < needed {
            return Err(Error::TooFew {
                found: samples.len(),
                n_disturbed,
                needed,
            });
        }
        Ok((samples, n_disturbed))
    }
}

/// An architecture that takes part.
struct Architecture {
    /// Its row in the data set.
    row: usize,
    sample: LatencySample,
    cost: f64,
}

/// Fits all models, chooses one, and judges them.
///
/// # Errors
/// If the data set is too small or holds impossible numbers, if a setting is out of its range, or if a
/// fit diverges.
pub fn run(
    config: &Config,
    mut inputs: Inputs,
    context: &RunContext,
) -> Result<LatencyModelArtifact, Error> {
    config.check()?;
    let settings = inputs.dataset.settings.clone();
    let more = std::mem::take(&mut inputs.more);
    let cells = match config.metric {
        Metric::Latency => Cells::new(&inputs.dataset.cells),
        _ => Cells::default(),
    };
    let (samples, n_disturbed) = inputs.undisturbed(config.metric, MIN_ARCHITECTURES)?;

    let genotypes: Vec<&Genotype> = samples.iter().map(|a| &a.sample.genotype).collect();
    let is_drawn = |index: usize| !samples[index].sample.chosen;
    let Split { train, held_out } = split(&genotypes, is_drawn, config.held_out, config.seed);
    let n_wanted = (genotypes.len() as f64 * config.held_out).ceil() as usize;
    match held_out.len() {
        0 => return Err(Error::NoneDrawn),
        n if n < n_wanted => context.progress.line(&format!(
            "held out are all {n} architectures that were drawn at random; held_out = {} would be {n_wanted} (the others were chosen by the profile)",
            config.held_out
        )),
        _ => {}
    }
    if train.is_empty() {
        return Err(Error::NothingToFit {
            held_out: config.held_out,
        });
    }
    let space = SearchSpace::darts();
    let part = |indices: &[usize]| -> (Vec<Vec<f32>>, Vec<f64>) {
        let samples = indices.iter().map(|&index| &samples[index]);
        samples
            .map(|a| (space.encode(&a.sample.genotype), a.cost))
            .unzip()
    };
    let (mut train_codes, mut train_millis) = part(&train);
    // What judges the models must not be fitted under another name.
    let judges: HashSet<_> = held_out
        .iter()
        .map(|&index| genotypes[index].canonical())
        .collect();
    let is_fitted =
        |own: &&LatencySample| !own.disturbed && !judges.contains(&own.genotype.canonical());
    for sample in more.iter().filter(is_fitted) {
        if let Some(cost) = config.metric.of(sample) {
            train_codes.push(space.encode(&sample.genotype));
            train_millis.push(cost);
        }
    }
    let (held_out_codes, measured) = part(&held_out);
    let train_cells = cells.of(train.iter().map(|&index| samples[index].row));

    let bar = context.progress.bar("fitting models", 3);
    let candidates = candidates::fit_all(
        Model::Auto,
        &Topology::darts(),
        &config.mlp(),
        &config.ridge.l2,
        &train_codes,
        &train_millis,
        &train_cells,
        || bar.inc(1),
    )?;
    bar.finish();
    let (chosen, reason) = candidates::choose(&candidates, config.model, &train_millis);

    let judged: Vec<Judged<'_>> = candidates
        .iter()
        .map(|candidate| Judged {
            candidate,
            predicted: held_out_codes
                .iter()
                .map(|code| candidate.model.predict_millis(code))
                .collect(),
            spread: held_out_codes
                .iter()
                .map(|code| candidate.model.spread(code))
                .collect(),
        })
        .collect();
    let pairs = timed_twice(config.metric, &samples);
    let validation = Validation {
        models: judged
            .iter()
            .map(|judged| {
                let coverage = judged.candidate.conformal(&train_millis).map(|conformal| {
                    let model = judged.candidate.model.as_ref();
                    candidates::coverage_90(model, &conformal, &held_out_codes, &measured)
                });
                let figures = FiguresRecord {
                    left_out_mape: Some(judged.candidate.left_out_mape),
                    coverage_90: coverage,
                    ..record(Figures::compute(&judged.predicted, &measured))
                };
                (judged.name(), figures)
            })
            .collect(),
        noise_floor_mape: (!pairs.is_empty()).then(|| noise_floor_mape(&pairs)),
        held_out: measured
            .iter()
            .enumerate()
            .map(|(row, &measured_millis)| HeldOut {
                measured_millis,
                predicted_millis: judged
                    .iter()
                    .map(|judged| (judged.name(), judged.predicted[row]))
                    .collect(),
                spread: judged
                    .iter()
                    .map(|judged| (judged.name(), judged.spread[row]))
                    .collect(),
            })
            .collect(),
    };
    let card = ModelCard {
        settings,
        metric: config.metric,
        chosen: chosen.kind.name().to_owned(),
        reason,
        reference_millis: median(&train_millis),
        n_train: train_codes.len(),
        n_test: held_out.len(),
    };
    let tensors = candidates
        .into_iter()
        .flat_map(|candidate| candidates::named(candidate.kind.name(), candidate.state))
        .collect();
    let model = LatencyModelArtifact {
        card,
        tensors,
        validation,
    };
    Ok(table::tell(context, model, n_disturbed, pairs.len()))
}

/// What architectures cost that were measured twice: of other metrics than latency, none.
fn timed_twice(metric: Metric, samples: &[Architecture]) -> Vec<(f64, f64)> {
    if metric != Metric::Latency {
        return Vec::new();
    }
    let pairs = samples.iter();
    let pairs = pairs.filter_map(|a| Some((a.cost, a.sample.repeat_median_millis?)));
    pairs.collect()
}

/// What a candidate says of the architectures held out.
struct Judged<'a> {
    candidate: &'a Candidate,
    predicted: Vec<f64>,
    spread: Vec<f64>,
}

impl Judged<'_> {
    fn name(&self) -> String {
        self.candidate.kind.name().to_owned()
    }
}

fn record(figures: Figures) -> FiguresRecord {
    let Figures {
        n,
        mae_millis,
        rmse_millis,
        mape,
        median_ape,
        within_5_percent,
        within_10_percent,
        spearman,
        kendall,
        regret,
    } = figures;
    FiguresRecord {
        n,
        mae_millis,
        rmse_millis,
        mape,
        median_ape,
        within_5_percent,
        within_10_percent,
        spearman,
        kendall,
        regret: Some(regret),
        left_out_mape: None,
        coverage_90: None,
    }
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let n = sorted.len();
    (sorted[(n - 1) / 2] + sorted[n / 2]) / 2.0
}

/// Why there is no latency model.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file, the store or the config file.
    #[error(transparent)]
    Artifact(#[from] artifact::Error),
    /// The ratio to hold out is none.
    #[error("held_out is {held_out} in the config, expected a ratio between 0 and 1, such as 0.2")]
    HeldOut {
        /// The ratio.
        held_out: f64,
    },
    /// So much is held out that nothing is left.
    #[error("held_out is {held_out} in the config, which leaves no architecture to fit; lower it")]
    NothingToFit {
        /// The ratio.
        held_out: f64,
    },
    /// All were chosen.
    #[error(
        "every undisturbed architecture of the data set was chosen for what it tells (the column chosen), none drawn at random that could judge the models: \
         profile more"
    )]
    NoneDrawn,
    /// A further data set that cannot be compared with the first.
    #[error(
        "the latencies of {dir} are of another network, protocol, revision of profile or state of the machine than those \
         of the first data set; give one that `evaluate time` made from search results of this profile, on this machine, by a \
         program of the same version"
    )]
    OtherSettings {
        /// Its folder.
        dir: PathBuf,
    },
    /// A data set that takes part already.
    #[error("{dir} was given twice, as --latency-dataset or --more; leave out one of them")]
    Twice {
        /// Its folder.
        dir: PathBuf,
    },
    /// The data set is too small.
    #[error(
        "the data set holds {found} undisturbed architectures ({n_disturbed} disturbed ones left out), \
         a latency model needs at least {needed}: profile more (n_architectures in \
         profile.toml), on a quieter machine if many were disturbed"
    )]
    TooFew {
        /// Undisturbed architectures.
        found: usize,
        /// Disturbed ones.
        n_disturbed: usize,
        /// How many it takes.
        needed: usize,
    },
    /// A table does not hold the rows that were asked for.
    #[error(
        "{n_train} architectures to fit of {found} that have a cost; a fit needs at least \
         {MIN_BENCH_ARCHITECTURES}, a bench also some to judge by: change --train"
    )]
    Train {
        /// Rows to fit.
        n_train: usize,
        /// Rows with a cost.
        found: usize,
    },
    /// A transfer has too few or too many rows to time.
    #[error(
        "{n_train} architectures to time of {found} that have a cost and may be timed; a transfer times at least 3, at most {}: change \
         --train, --pool, --middle or --min-value",
        bench::CANDIDATES
    )]
    Pool {
        /// Rows to time.
        n_train: usize,
        /// Rows with a cost.
        found: usize,
    },
    /// A transfer has no rows to judge by.
    #[error("no rows are left to judge by: change --test, --middle or --min-value")]
    NothingToJudge,
    /// Timed cells are not those of the architectures of a table.
    #[error(
        "{file} holds a cell of the architecture in row {row} which is none of the table's in that row; give the cells.parquet \
         beside the table"
    )]
    OtherCells {
        /// The file of the cells.
        file: PathBuf,
        /// The row of the table.
        row: u32,
    },
    /// The data set does not hold what is to be modelled.
    #[error(
        "the data set holds no {metric}; profile with metrics = [\"{metric}\"] in profile.toml, or model another metric"
    )]
    NotMeasured {
        /// The metric.
        metric: Metric,
    },
    /// Models of other devices cannot be used together, or with the data set.
    #[error("the latency model in {path} {reason}")]
    Source {
        /// The artifact's folder.
        path: String,
        /// What is wrong with it, in words.
        reason: String,
    },
    /// A model could not be fitted.
    #[error("cannot fit a latency model")]
    Fit(#[from] FitError),
}

impl StageError for Error {
    fn exit_code(&self) -> ExitCode {
        match self {
            Self::Artifact(error) => error.exit_code(),
            Self::HeldOut { .. }
            | Self::NothingToFit { .. }
            | Self::Train { .. }
            | Self::Pool { .. }
            | Self::NothingToJudge => ExitCode::Usage,
            Self::TooFew { .. }
            | Self::NoneDrawn
            | Self::Source { .. }
            | Self::NotMeasured { .. }
            | Self::OtherCells { .. }
            | Self::OtherSettings { .. } => ExitCode::Input,
            Self::Twice { .. } => ExitCode::Usage,
            Self::Fit(error) => match error {
                FitError::Setting { .. } => ExitCode::Usage,
                FitError::NonFinite { .. } | FitError::Singular => ExitCode::Numbers,
                FitError::TooFew { .. }
                | FitError::Unpaired { .. }
                | FitError::CodeLength { .. }
                | FitError::Code { .. }
                | FitError::Latency { .. }
                | FitError::Cell { .. } => ExitCode::Input,
            },
        }
    }
}
