//! Stage `report`: one HTML page that shows what a run of the pipeline found.
//!
//! The page is complete in itself: no script, no font, no image from elsewhere. It can be opened without a
//! network, sent by mail and printed, and looks right on a light and a dark screen.

mod config;
mod page;
mod svg;

use std::path::{Path, PathBuf};

use artifact::stage::REPORT;
use artifact::{
    Artifact, Comparison, Evaluation, ExitCode, Front, KeyParts, Kind, LatencyDataset,
    LatencyModelArtifact, Opened, Report, SearchResult, StageError,
};

pub use crate::config::Config;

/// What the stage reads.
pub struct Inputs {
    /// Random architectures, timed.
    pub latency_dataset: Opened<LatencyDataset>,
    /// The predictor that the searches used.
    pub latency_model: Opened<LatencyModelArtifact>,
    /// The search for accuracy alone, and the one with latency in mind.
    pub searches: [Opened<SearchResult>; 2],
    /// The networks that they found.
    pub evaluations: [Opened<Evaluation>; 2],
    /// Networks of several targets.
    pub front: Option<Opened<Front>>,
    /// Networks of several seeds.
    pub comparison: Option<Opened<Comparison>>,
}

impl Inputs {
    /// Opens artifacts in their folders; search results and evaluations are the baseline's and the latency-aware one's, the
    /// front is what a sweep left, the comparison what `compare` left.
    ///
    /// # Errors
    /// As [`artifact::open`]; if there are not two search results and two evaluations; if an evaluation is not of its search
    /// result, the latency-aware search not of the latency model or that not of the data set; if the baseline does not come first; and if the two
    /// networks were timed under different settings, so that their latencies cannot be compared.
    pub fn open(
        latency_dataset: &Path,
        latency_model: &Path,
        search_results: &[PathBuf],
        evaluations: &[PathBuf],
        front: Option<&Path>,
        comparison: Option<&Path>,
    ) -> Result<Self, Error> {
        let searches = two::<SearchResult>(search_results)?;
        let evaluations = two::<Evaluation>(evaluations)?;
        for (search, evaluation) in searches.iter().zip(&evaluations) {
            let inputs = &evaluation.manifest.key_parts.inputs;
            if inputs.get(Kind::SearchResult.name()) != Some(&search.digest()) {
                return Err(Error::NotItsSearch {
                    evaluation: evaluation.dir.clone(),
                    search_result: search.dir.clone(),
                });
            }
        }
        let [baseline, aware] = evaluations;
        if baseline.value.settings != aware.value.settings {
            let (baseline, aware) = (baseline.dir, aware.dir);
            return Err(Error::Incomparable { baseline, aware });
        }
        if baseline.value.search.metric != aware.value.search.metric {
            return Err(Error::Metrics {
                metrics: [&baseline, &aware].map(|one| one.value.search.metric),
                baseline: baseline.dir,
                aware: aware.dir,
            });
        }
        let [first, second] = &searches;
        let minds_latency = |search: &SearchResult| search.target.is_some() || search.lambda > 0.0;
        if minds_latency(&first.value) && !minds_latency(&second.value) {
            let first = first.dir.clone();
            return Err(Error::Swapped { first });
        }
        let latency_dataset = artifact::open::<LatencyDataset>(latency_dataset)?;
        let latency_model = artifact::open::<LatencyModelArtifact>(latency_model)?;
        made_from(&latency_model, &latency_dataset)?;
        made_from(second, &latency_model)?;
        Ok(Self {
            latency_dataset,
            latency_model,
            searches,
            evaluations: [baseline, aware],
            front: front.map(artifact::open).transpose()?,
            comparison: comparison.map(artifact::open).transpose()?,
        })
    }

    /// What decides the page: the config and all inputs.
    ///
    /// # Errors
    /// If the config cannot be written as JSON.
    pub fn key(&self, config: &Config) -> Result<KeyParts, Error> {
        let [baseline_search, aware_search] = &self.searches;
        let [baseline, aware] = &self.evaluations;
        let parts = KeyParts::new(&REPORT, config)?
            .input("latency-dataset", self.latency_dataset.digest())
            .input("latency-model", self.latency_model.digest())
            .input("search-result (baseline)", baseline_search.digest())
            .input("search-result (latency-aware)", aware_search.digest())
            .input("evaluation (baseline)", baseline.digest())
            .input("evaluation (latency-aware)", aware.digest());
        let parts = match &self.front {
            Some(front) => parts.input("front", front.digest()),
            None => parts,
        };
        Ok(match &self.comparison {
            Some(comparison) => parts.input("comparison", comparison.digest()),
            None => parts,
        })
    }
}

/// Sees that one artifact was made from another.
fn made_from<A: Artifact, B: Artifact>(of: &Opened<A>, from: &Opened<B>) -> Result<(), Error> {
    let inputs = &of.manifest.key_parts.inputs;
    match inputs.get(B::KIND.name()) {
        Some(digest) if *digest == from.digest() => Ok(()),
        _ => Err(Error::NotMadeFrom {
            of: of.dir.clone(),
            from: from.dir.clone(),
            kind: B::KIND,
        }),
    }
}

/// The artifacts of the baseline and of the latency-aware network.
fn two<A: Artifact>(dirs: &[PathBuf]) -> Result<[Opened<A>; 2], Error> {
    let [baseline, aware] = dirs else {
        return Err(Error::NotTwo {
            kind: A::KIND,
            n_given: dirs.len(),
        });
    };
    Ok([artifact::open(baseline)?, artifact::open(aware)?])
}

/// Makes the page: the same bytes for the same artifacts.
///
/// # Errors
/// If the template fails, which is a bug.
pub fn run(config: &Config, inputs: &Inputs) -> Result<Report, Error> {
    Ok(Report {
        html: page::render(config, inputs)?,
    })
}

/// Why there is no page.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The files between the stages.
    #[error(transparent)]
    Artifact(#[from] artifact::Error),
    /// Another number of artifacts than two.
    #[error(
        "--{kind} was given {n_given} times, expected twice: --{kind} BASELINE --{kind} LATENCY_AWARE"
    )]
    NotTwo {
        /// Of what.
        kind: Kind,
        /// How many were given.
        n_given: usize,
    },
    /// An evaluation of another network.
    #[error(
        "the evaluation {evaluation} was not made from the search result {search_result}; give search results in the order \
         of their evaluations, the baseline's first"
    )]
    NotItsSearch {
        /// The folder of the evaluation.
        evaluation: PathBuf,
        /// The folder of the search result that should be its own.
        search_result: PathBuf,
    },
    /// An artifact of another run.
    #[error("{of} was not made from {from}; give --{kind} of the run that it is of")]
    NotMadeFrom {
        /// The folder of what should have been made.
        of: PathBuf,
        /// The folder of what it should have been made from.
        from: PathBuf,
        /// What that is.
        kind: Kind,
    },
    /// The latency-aware search comes first.
    #[error(
        "{first} is the search with latency in mind, the other one the baseline: give the baseline's --search-result and --evaluation first"
    )]
    Swapped {
        /// The folder of the first search.
        first: PathBuf,
    },
    /// The two evaluations are not of one experiment.
    #[error(
        "the networks of {baseline} and {aware} were timed under different settings, so that their latencies \
         cannot be compared; give two evaluations that were made from one latency data set"
    )]
    Incomparable {
        /// The folder of the first.
        baseline: PathBuf,
        /// The folder of the second.
        aware: PathBuf,
    },
    /// The two searches did not keep the same low.
    #[error(
        "the search of {baseline} kept {} low, that of {aware} {}; give two evaluations that were made from one \
         latency model", metrics[0], metrics[1]
    )]
    Metrics {
        /// What each kept low.
        metrics: [artifact::Metric; 2],
        /// The folder of the first evaluation.
        baseline: PathBuf,
        /// The folder of the second.
        aware: PathBuf,
    },
    /// The template failed.
    #[error("the page cannot be made")]
    Template(#[from] minijinja::Error),
}

impl StageError for Error {
    fn exit_code(&self) -> ExitCode {
        match self {
            Self::Artifact(error) => error.exit_code(),
            Self::NotTwo { .. } | Self::Swapped { .. } => ExitCode::Usage,
            Self::NotMadeFrom { .. }
            | Self::NotItsSearch { .. }
            | Self::Incomparable { .. }
            | Self::Metrics { .. } => ExitCode::Input,
            Self::Template(_) => ExitCode::Bug,
        }
    }
}
