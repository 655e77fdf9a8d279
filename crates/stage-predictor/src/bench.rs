//! Models judged on tables of measured costs, whoever measured them.

use std::fmt;
use std::ops::Range;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use artifact::{CellSample, CostTable, LatencyDataset};
use latency::{Conformal, Figures, LatencyModel, MlpConfig, Ridge, Structured, Transfer};
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use serde::Serialize;
use space::{CellKind, Genotype, SearchSpace, Topology};

use crate::Error;
use crate::candidates::{self, Candidate};
use crate::cells::Cells;
use crate::config::Model;

/// What a model is to be fitted on, and judged by.
#[derive(Clone, Debug)]
pub struct BenchConfig<'a> {
    /// The table, Parquet or CSV.
    pub data: &'a Path,
    /// The space of its architectures.
    pub topology: &'a Topology,
    /// The cells of its architectures, timed on their own: the `cells.parquet` of a latency data set.
    pub cells: Option<&'a Path>,
    /// The column of the cost.
    pub target: &'a str,
    /// How many architectures to fit, drawn with the seed; all if `None`.
    pub n_train: Option<usize>,
    /// The seed of the draw and of the regressor.
    pub seed: u64,
    /// Whether the first rows are taken, instead of drawing some.
    pub in_order: bool,
    /// Rows that cost less do not count.
    pub min_value: Option<f64>,
    /// The model, or `auto`.
    pub model: Model,
    /// Whether only some rows are drawn, and the others chosen in rounds as `profile --until-mape` does.
    pub rounds: bool,
}

/// How a source device's latency is brought to a new device, and judged there.
#[derive(Clone, Debug)]
pub struct TransferConfig<'a> {
    /// The table, Parquet or CSV.
    pub data: &'a Path,
    /// The space of its architectures.
    pub topology: &'a Topology,
    /// The column of the new device.
    pub target: &'a str,
    /// The columns of the devices that are known.
    pub sources: &'a [String],
    /// How many architectures are timed on the new device.
    pub n_train: usize,
    /// The seed of the draw of architectures that may be timed, and that the sources are fitted on.
    pub seed: u64,
    /// How often is drawn, with this seed and the next ones; the sources stay the same.
    pub n_draws: u64,
    /// Rows whose target costs less do not count.
    pub min_value: Option<f64>,
    /// The rows of the file that may be timed and that the sources are fitted on; all if `None`.
    pub pool: Option<Range<usize>>,
    /// The rows of the file to judge by; all that are not timed if `None`.
    pub test: Option<Range<usize>>,
    /// The middle part of pool and test by cost that counts, a ratio; 1 for all.
    pub middle: f64,
}

/// Rows of the first round and of a later one, and how many are looked at for the latter.
const FIRST_ROUND: usize = 40;
const ROUND: usize = 20;
const ROUND_CANDIDATES: usize = 300;
/// As many architectures, drawn with the seed, are considered for being timed on the new device.
pub(crate) const CANDIDATES: usize = 400;
/// As many rows, drawn with the seed, each source is fitted on.
const SOURCE_ARCHITECTURES: usize = 300;

/// Fits the sources, and then once per draw chooses architectures, fits what they cost on the new device, and judges
/// on others.
///
/// # Errors
/// If the table cannot be read or holds too few architectures, or if a fit fails.
pub fn transfer(config: &TransferConfig<'_>) -> Result<Vec<BenchResult>, Error> {
    let table = CostTable::read(config.data, config.topology)?;
    let costs = table.costs(config.target)?;
    let counts = |row: usize| {
        costs[row].is_some_and(|cost| config.min_value.is_none_or(|least| cost >= least))
    };
    let cost_of = |row: usize| costs[row].unwrap_or_default();
    let middle = |range: &Option<Range<usize>>| {
        let all = 0..costs.len();
        let range = range.clone().unwrap_or(all.clone());
        let mut rows: Vec<usize> = all
            .filter(|row| range.contains(row) && counts(*row))
            .collect();
        rows.sort_by(|&a, &b| cost_of(a).total_cmp(&cost_of(b)));
        let cut = (rows.len() as f64 * (1.0 - config.middle) / 2.0).round() as usize;
        let mut rows = rows[cut..rows.len() - cut].to_vec();
        rows.sort_unstable();
        rows
    };
    let pool = middle(&config.pool);
    let test = middle(&config.test);
    if config.n_train < 3 || config.n_train > pool.len().min(CANDIDATES) {
        return Err(Error::Pool {
            n_train: config.n_train,
            found: pool.len(),
        });
    }
    let codes_of = |rows: &[usize]| -> Vec<Vec<f32>> {
        rows.iter().map(|&row| table.codes()[row].clone()).collect()
    };

    let mut sources = Vec::new();
    for name in config.sources {
        let costs = table.costs(name)?;
        let mut known: Vec<(usize, f64)> = (0..costs.len())
            .filter(|row| config.pool.as_ref().is_none_or(|pool| pool.contains(row)))
            .filter_map(|row| Some((row, costs[row]?)))
            .collect();
        known.shuffle(&mut ChaCha8Rng::seed_from_u64(config.seed));
        known.truncate(SOURCE_ARCHITECTURES);
        let (rows, costs): (Vec<usize>, Vec<f64>) = known.into_iter().unzip();
        sources.push(Structured::fit(config.topology, &codes_of(&rows), &costs)?);
    }
    let sources = Arc::new(sources);

    let seeds = config.seed..config.seed + config.n_draws;
    let draw = |seed| {
        let started = Instant::now();
        let mut candidates = pool.clone();
        candidates.shuffle(&mut ChaCha8Rng::seed_from_u64(seed));
        candidates.truncate(CANDIDATES);
        let transfer = Transfer::new(sources.clone(), &codes_of(&candidates))?;
        let chosen = transfer.choose(config.n_train).into_iter();
        let timed: Vec<usize> = chosen.map(|index| candidates[index]).collect();
        let timed_costs: Vec<f64> = timed.iter().map(|&row| cost_of(row)).collect();
        let (model, left_out) = Arc::new(transfer).fit(&codes_of(&timed), &timed_costs)?;
        let fit_secs = started.elapsed().as_secs_f64();

        let test: Vec<usize> = test
            .iter()
            .copied()
            .filter(|row| !timed.contains(row))
            .collect();
        if test.is_empty() {
            return Err(Error::NothingToJudge);
        }
        let measured: Vec<f64> = test.iter().map(|&row| cost_of(row)).collect();
        let codes = codes_of(&test);
        let predicted: Vec<f64> = codes.iter().map(|c| model.predict_millis(c)).collect();
        let conformal = Conformal::fit(&left_out.predicted, &left_out.spread, &timed_costs)?;
        let coverage = candidates::coverage_90(&model, &conformal, &codes, &measured);
        let result = BenchResult::new(
            "transfer",
            format!("from {}", config.sources.join(", ")),
            config.n_train,
            Figures::compute(&predicted, &measured),
            Some(coverage),
            fit_secs,
        );
        Ok(BenchResult {
            gradient_millis: Some(gradient_millis(&model, &codes)),
            ..result
        })
    };
    seeds.map(draw).collect()
}

/// How a model does on architectures that it was not fitted on. Ratios, from 0 to 1.
#[derive(Clone, Debug, Serialize)]
pub struct BenchResult {
    /// The model that was chosen.
    pub model: String,
    /// Why that one.
    pub reason: String,
    /// Architectures that it was fitted on.
    pub n_train: usize,
    /// Architectures that the figures are of.
    pub n_test: usize,
    /// Mean of |predicted - measured| / measured.
    pub mape: f64,
    /// Its median.
    pub median_ape: f64,
    /// The share that is predicted to within 5 %.
    pub within_5_percent: f64,
    /// The share that is predicted to within 10 %.
    pub within_10_percent: f64,
    /// Spearman's rank correlation.
    pub spearman: f64,
    /// Kendall's rank correlation, tau-b.
    pub kendall: f64,
    /// How much more the architecture costs that is predicted to be the cheapest than the truly cheapest, over
    /// the latter.
    pub regret: f64,
    /// The share that lies in its 90 % interval; `null` if there is none.
    pub coverage_90: Option<f64>,
    /// Seconds that the fit of the chosen model took.
    pub fit_secs: f64,
    /// Milliseconds of one gradient, the median of some; `null` where none was asked for.
    pub gradient_millis: Option<f64>,
}

impl fmt::Display for BenchResult {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let percent = |ratio: f64| format!("{:.2} %", 100.0 * ratio);
        writeln!(f, "{} ({})", self.model, self.reason)?;
        writeln!(
            f,
            "{} architectures fitted in {:.2} s, {} predicted",
            self.n_train, self.fit_secs, self.n_test
        )?;
        writeln!(
            f,
            "MAPE {}, median {}, within 5 % {}, within 10 % {}",
            percent(self.mape),
            percent(self.median_ape),
            percent(self.within_5_percent),
            percent(self.within_10_percent)
        )?;
        write!(
            f,
            "Spearman {:.4}, Kendall {:.4}, regret {}",
            self.spearman,
            self.kendall,
            percent(self.regret)
        )?;
        match self.coverage_90 {
            Some(coverage) => write!(f, ", in the 90 % interval {}", percent(coverage)),
            None => Ok(()),
        }
    }
}

impl BenchResult {
    pub(crate) fn new(
        model: &str,
        reason: String,
        n_train: usize,
        figures: Figures,
        coverage_90: Option<f64>,
        fit_secs: f64,
    ) -> Self {
        let Figures {
            n,
            mape,
            median_ape,
            within_5_percent,
            within_10_percent,
            spearman,
            kendall,
            regret,
            ..
        } = figures;
        Self {
            model: model.to_owned(),
            reason,
            n_train,
            n_test: n,
            mape,
            median_ape,
            within_5_percent,
            within_10_percent,
            spearman,
            kendall,
            regret,
            coverage_90,
            fit_secs,
            gradient_millis: None,
        }
    }
}

/// Fits on some rows of a table and judges on all others.
///
/// # Errors
/// If the table cannot be read or holds too few architectures, or if a fit fails.
pub fn bench(config: &BenchConfig<'_>) -> Result<BenchResult, Error> {
    let rows = Rows::read(config)?;
    let n_train = config.n_train.unwrap_or(rows.codes.len() * 4 / 5);
    if n_train < crate::MIN_BENCH_ARCHITECTURES || n_train >= rows.codes.len() {
        return Err(Error::Train {
            n_train,
            found: rows.codes.len(),
        });
    }
    let (train, test) = if config.rounds {
        rows.choose(n_train, config)?
    } else {
        rows.draw(n_train, config)
    };
    let (candidates, chosen, reason) = fit_on(config, &train)?;
    let chosen = &candidates[chosen];
    let predicted: Vec<f64> = test
        .codes
        .iter()
        .map(|code| chosen.model.predict_millis(code))
        .collect();
    let coverage = chosen.conformal(&train.costs).map(|conformal| {
        candidates::coverage_90(chosen.model.as_ref(), &conformal, &test.codes, &test.costs)
    });
    let result = BenchResult::new(
        chosen.kind.name(),
        reason,
        n_train,
        Figures::compute(&predicted, &test.costs),
        coverage,
        chosen.fit_secs,
    );
    Ok(BenchResult {
        gradient_millis: Some(gradient_millis(chosen.model.as_ref(), &test.codes)),
        ..result
    })
}

/// Fits on rows of a table, all of them if not told how many, and judges by the same rows, each left out.
///
/// # Errors
/// As [`bench()`].
pub fn fit(config: &BenchConfig<'_>) -> Result<BenchResult, Error> {
    let rows = Rows::read(config)?;
    let n_train = config.n_train.unwrap_or(rows.codes.len());
    if n_train < crate::MIN_BENCH_ARCHITECTURES || n_train > rows.codes.len() {
        return Err(Error::Train {
            n_train,
            found: rows.codes.len(),
        });
    }
    let (train, _) = rows.draw(n_train, config);
    let (candidates, chosen, reason) = fit_on(config, &train)?;
    let chosen = &candidates[chosen];
    Ok(BenchResult::new(
        chosen.kind.name(),
        reason,
        n_train,
        Figures::compute(&chosen.left_out.predicted, &train.costs),
        None,
        chosen.fit_secs,
    ))
}

/// The median time of one gradient.
fn gradient_millis(model: &dyn LatencyModel, codes: &[Vec<f32>]) -> f64 {
    let mut times: Vec<f64> = codes
        .iter()
        .take(21)
        .map(|code| {
            let started = Instant::now();
            std::hint::black_box(model.gradient(code));
            1e3 * started.elapsed().as_secs_f64()
        })
        .collect();
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

fn fit_on(
    config: &BenchConfig<'_>,
    train: &Rows,
) -> Result<(Vec<Candidate>, usize, String), Error> {
    let mlp = MlpConfig {
        seed: config.seed,
        ..MlpConfig::default()
    };
    let candidates = candidates::fit_all(
        config.model,
        config.topology,
        &mlp,
        &Ridge::L2_GRID,
        &train.codes,
        &train.costs,
        &train.cells.of(train.rows.iter().copied()),
        || {},
    )?;
    let (chosen, reason) = candidates::choose(&candidates, config.model, &train.costs);
    let kind = chosen.kind;
    let chosen = candidates.iter().position(|c| c.kind == kind);
    Ok((candidates, chosen.expect("one of them"), reason))
}

/// The timed cells of a file, each of the architecture of DARTS whose code stands in its row.
fn read_cells(file: &Path, codes: &[Vec<f32>]) -> Result<Vec<CellSample>, Error> {
    let space = SearchSpace::darts();
    let cells = LatencyDataset::read_cells(file)?;
    let stranger = cells.iter().find(|sample| {
        let [normal, reduction] = [sample.cell.clone(), sample.cell.clone()];
        let code = space.encode(&Genotype { normal, reduction });
        let half = code.len() / CellKind::ALL.len();
        let half = sample.kind.index() * half..(sample.kind.index() + 1) * half;
        let row = codes.get(sample.sample_index as usize);
        row.and_then(|row| row.get(half.clone())) != Some(&code[half])
    });
    match stranger {
        Some(sample) => Err(Error::OtherCells {
            file: file.to_owned(),
            row: sample.sample_index,
        }),
        None => Ok(cells),
    }
}

/// Architectures and what they cost.
pub(crate) struct Rows {
    pub(crate) codes: Vec<Vec<f32>>,
    pub(crate) costs: Vec<f64>,
    /// Their rows in the table.
    rows: Vec<usize>,
    cells: Rc<Cells>,
}

impl Rows {
    /// The rows of a table that have a cost, in order.
    fn read(config: &BenchConfig<'_>) -> Result<Self, Error> {
        let table = CostTable::read(config.data, config.topology)?;
        let costs = table.costs(config.target)?;
        let cells = match config.cells {
            Some(file) => Cells::new(&read_cells(file, table.codes())?),
            None => Cells::default(),
        };
        let (rows, costs): (Vec<usize>, Vec<f64>) = costs
            .into_iter()
            .enumerate()
            .filter_map(|(row, cost)| Some((row, cost?)))
            .filter(|(_, cost)| config.min_value.is_none_or(|least| *cost >= least))
            .unzip();
        Ok(Self {
            codes: rows.iter().map(|&row| table.codes()[row].clone()).collect(),
            costs,
            rows,
            cells: Rc::new(cells),
        })
    }

    /// `n` rows drawn with the seed, or the first ones, and the others.
    fn draw(&self, n: usize, config: &BenchConfig<'_>) -> (Self, Self) {
        let order = self.order(config);
        (self.part(&order[..n]), self.part(&order[n..]))
    }

    fn order(&self, config: &BenchConfig<'_>) -> Vec<usize> {
        let mut order: Vec<usize> = (0..self.codes.len()).collect();
        if !config.in_order {
            order.shuffle(&mut ChaCha8Rng::seed_from_u64(config.seed));
        }
        order
    }

    fn part(&self, indices: &[usize]) -> Self {
        Self {
            codes: indices.iter().map(|&i| self.codes[i].clone()).collect(),
            costs: indices.iter().map(|&i| self.costs[i]).collect(),
            rows: indices.iter().map(|&i| self.rows[i]).collect(),
            cells: self.cells.clone(),
        }
    }

    /// `n` rows, chosen in rounds: the first drawn with the seed, later ones half drawn, half those whose
    /// measurement tells the structured model of the rows before most; and the others.
    fn choose(&self, n: usize, config: &BenchConfig<'_>) -> Result<(Self, Self), Error> {
        let mut rest = self.order(config);
        let mut chosen: Vec<usize> = rest.drain(..n.min(FIRST_ROUND)).collect();
        while chosen.len() < n {
            let Self { codes, costs, .. } = self.part(&chosen);
            let model = Structured::fit(config.topology, &codes, &costs)?;
            let n_drawn = (ROUND / 2).min(n - chosen.len());
            chosen.extend(rest.drain(..n_drawn));
            let candidates = &rest[..rest.len().min(ROUND_CANDIDATES)];
            let codes = self.part(candidates).codes;
            let n_telling = (ROUND / 2).min(n - chosen.len());
            let mut telling = model.choose(&codes, n_telling)?;
            telling.sort_unstable();
            for place in telling.into_iter().rev() {
                chosen.push(rest.remove(place));
            }
        }
        Ok((self.part(&chosen), self.part(&rest)))
    }
}
