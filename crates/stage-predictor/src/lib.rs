//! Stage `predictor`: fits the latency model.
//!
//! Reads a latency data set, holds a part of its architectures out, fits the multi-layer regressor and
//! its control, the additive ridge model, on the rest, and judges both by the part held out, beside
//! the noise floor: the error that a perfect model would still have, from architectures that were timed
//! twice. The models that are stored are the models that were judged; they are not fitted again on all
//! architectures, so that the figures are theirs. Architectures whose timing was disturbed take no
//! part. The same data set, config and seed give the same bytes.

mod config;
mod split;
mod table;

use std::path::Path;

use artifact::stage::{ExitCode, RunContext, StageError};
use artifact::{
    Digest, FiguresRecord, FloatTensor, HeldOut, LatencyDataset, LatencyModelArtifact,
    LatencySample, ModelCard, Validation,
};
use latency::{Figures, FitError, LatencyModel, Mlp, Ridge, State, noise_floor_mape};
use space::{Genotype, SearchSpace};

pub use crate::config::{Config, MlpSettings, Model, RidgeSettings};
use crate::split::{Split, split};
use crate::table::Table;

/// The fewest undisturbed architectures that the stage makes a model of.
pub const MIN_ARCHITECTURES: usize = 20;

/// What the stage reads.
pub struct Inputs {
    /// The timed architectures.
    pub dataset: LatencyDataset,
    /// What stands for them in the key.
    pub digest: Digest,
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
        })
    }

    /// A data set of another origin.
    ///
    /// # Errors
    /// As [`LatencyDataset::read_parquet`].
    pub fn read_parquet(file: &Path) -> Result<Self, Error> {
        Ok(Self {
            dataset: LatencyDataset::read_parquet(file)?,
            digest: artifact::digest_files(&[file.to_owned()])?,
        })
    }
}

/// Fits both models and judges them.
///
/// # Errors
/// If the data set is too small or holds impossible numbers, if a setting is out of its range, or if a
/// fit diverges.
pub fn run(
    config: &Config,
    inputs: Inputs,
    context: &RunContext,
) -> Result<LatencyModelArtifact, Error> {
    config.check()?;
    let LatencyDataset {
        settings, samples, ..
    } = inputs.dataset;
    let n_all = samples.len();
    let samples: Vec<LatencySample> = samples
        .into_iter()
        .filter(|sample| !sample.disturbed)
        .collect();
    let n_disturbed = n_all - samples.len();
    if samples.len() < MIN_ARCHITECTURES {
        return Err(Error::TooFew {
            found: samples.len(),
            n_disturbed,
        });
    }

    let genotypes: Vec<&Genotype> = samples.iter().map(|sample| &sample.genotype).collect();
    let Split { train, held_out } = split(&genotypes, config.held_out, config.seed);
    if train.is_empty() {
        return Err(Error::NothingToFit {
            held_out: config.held_out,
        });
    }
    let space = SearchSpace::darts();
    let part = |indices: &[usize]| -> (Vec<Vec<f32>>, Vec<f64>) {
        let samples = indices.iter().map(|&index| &samples[index]);
        samples
            .map(|sample| (space.encode(&sample.genotype), sample.median_millis))
            .unzip()
    };
    let (train_codes, train_millis) = part(&train);
    let (held_out_codes, measured) = part(&held_out);

    let bar = context.progress.bar("fitting models", 2);
    let ridge = Ridge::fit_cv(&train_codes, &train_millis, &config.ridge.l2)?;
    bar.inc(1);
    let mlp = Mlp::fit(&config.mlp(), &train_codes, &train_millis)?;
    bar.inc(1);
    bar.finish();

    let predict = |model: &dyn LatencyModel| -> Vec<f64> {
        held_out_codes
            .iter()
            .map(|code| model.predict_millis(code))
            .collect()
    };
    let predictions = [(Model::Mlp, predict(&mlp)), (Model::Ridge, predict(&ridge))];
    let pairs: Vec<(f64, f64)> = samples
        .iter()
        .filter_map(|sample| Some((sample.median_millis, sample.repeat_median_millis?)))
        .collect();
    let validation = Validation {
        models: predictions
            .iter()
            .map(|(model, predicted)| {
                (
                    model.name().to_owned(),
                    record(Figures::compute(predicted, &measured)),
                )
            })
            .collect(),
        noise_floor_mape: (!pairs.is_empty()).then(|| noise_floor_mape(&pairs)),
        held_out: measured
            .iter()
            .enumerate()
            .map(|(row, &measured_millis)| HeldOut {
                measured_millis,
                predicted_millis: predictions
                    .iter()
                    .map(|(model, predicted)| (model.name().to_owned(), predicted[row]))
                    .collect(),
            })
            .collect(),
    };
    let card = ModelCard {
        settings,
        chosen: config.model.name().to_owned(),
        reference_millis: median(&train_millis),
        n_train: train.len(),
        n_test: held_out.len(),
    };
    let table = Table {
        card: &card,
        validation: &validation,
        n_disturbed,
        n_pairs: pairs.len(),
    };
    context.progress.line(&table.to_string());

    let tensors = named(Model::Mlp, mlp.state())
        .chain(named(Model::Ridge, ridge.state()))
        .collect();
    Ok(LatencyModelArtifact {
        card,
        tensors,
        validation,
    })
}

/// The tensors of a model under names such as `mlp/…`.
fn named(model: Model, state: State) -> impl Iterator<Item = (String, FloatTensor)> {
    state.into_iter().map(move |(name, tensor)| {
        (
            format!("{model}/{name}"),
            FloatTensor::new(tensor.shape, tensor.values),
        )
    })
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
    /// The data set is too small.
    #[error(
        "the data set holds {found} undisturbed architectures ({n_disturbed} disturbed ones left out), \
         a latency model needs at least {MIN_ARCHITECTURES}: profile more (n_architectures in \
         profile.toml), on a quieter machine if many were disturbed"
    )]
    TooFew {
        /// Undisturbed architectures.
        found: usize,
        /// Disturbed ones.
        n_disturbed: usize,
    },
    /// A model could not be fitted.
    #[error("cannot fit a latency model")]
    Fit(#[from] FitError),
}

impl StageError for Error {
    fn exit_code(&self) -> ExitCode {
        match self {
            Self::Artifact(error) => error.exit_code(),
            Self::HeldOut { .. } | Self::NothingToFit { .. } => ExitCode::Usage,
            Self::TooFew { .. } => ExitCode::Input,
            Self::Fit(error) => match error {
                FitError::Setting { .. } => ExitCode::Usage,
                FitError::NonFinite { .. } | FitError::Singular => ExitCode::Numbers,
                FitError::TooFew { .. }
                | FitError::Unpaired { .. }
                | FitError::CodeLength { .. }
                | FitError::Code { .. }
                | FitError::Latency { .. } => ExitCode::Input,
            },
        }
    }
}
