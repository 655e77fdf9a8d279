//! The structured model: knows how a cell hangs together, and learns from few architectures what of it
//! matters on a device.
//!
//! Latency is a Gaussian process (Rasmussen and Williams 2006) over the features of a code
//! (`features.rs`): a sum of independent functions, each with its own kernel. Linear ones
//! say that an operation costs the same wherever it is kept (`Counts`), or on this edge (`Edges`), or
//! where its result is used (`Reaching`, `Effective`); smooth ones say how these interact. How much each function
//! contributes is learnt: the variances are those under which the measured latencies are most likely
//! once their mean is taken out (restricted maximum likelihood), found by a multiplicative fixed point
//! (Zhou et al. 2019). So data that call for a sum of costs get one, and a function that explains nothing
//! fades out.
//!
//! * **Noise.** Taken as the same for all; or, with outliers, a latency that lies far from what the others say of it is given
//!   more (Student's t with 4 degrees of freedom, by reweighting); or, besides, noise grows with the latency.
//! * **An ensemble.** Compilers differ in what they drop, so there are several *experts*, each with other
//!   functions, each with the three kinds of noise. Their weights fall with their relative error
//!   on architectures that are left out, one at a time, which a Gaussian process tells without another fit.
//! * **Cells.** Where cells were timed on their own as well, each process is fitted to those and to networks together: a cell is what
//!   the process says of a network whose other cells are as on average, but for a constant of each kind of cell, with a noise
//!   of cells. So each half of a network is learnt by itself, and what is left of the interplay from networks. Errors on
//!   architectures left out are those without their cells.
//! * **Doubt.** How far the experts lie apart, and how noisy the data are, is the
//!   [`spread`](LatencyModel::spread) of a prediction.
//!
//! The functions are linear in what was measured, the value and its gradient take microseconds.

use space::Topology;

use crate::features::{Features, Group};
use crate::figures::mape;
use crate::linalg::{Cholesky, Matrix, Precision, dot, product};
use crate::model::{
    FitError, LatencyModel, LeftOut, State, StateError, StateTensor, check_data, positive,
};
use crate::sampling::most_telling;

/// The form of a function of features u, scaled to a mean square of 1 around their mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Shape {
    /// u · v: a weighted sum.
    Linear,
    /// (u · v)²: a weighted sum over all pairs.
    Pairs,
    /// exp(-|u - v|² / 2 l²): very smooth.
    Gauss,
    /// (1 + r) exp(-r), r = √3 |u - v| / l: with kinks almost allowed (Matérn, 3/2).
    Matern,
}

/// l, in units of the features' spread.
const LENGTH: f64 = 1.5;

impl Shape {
    /// The kernel, from |u|², |v|² and u · v.
    fn value(self, uu: f64, vv: f64, uv: f64) -> f64 {
        let square = (uu + vv - 2.0 * uv).max(0.0);
        match self {
            Self::Linear => uv,
            Self::Pairs => uv * uv,
            Self::Gauss => (-square / (2.0 * LENGTH * LENGTH)).exp(),
            Self::Matern => {
                let r = (3.0 * square).sqrt() / LENGTH;
                (1.0 + r) * (-r).exp()
            }
        }
    }

    /// The gradient of the kernel in u, as multiples of v and of u.
    fn slope(self, uu: f64, vv: f64, uv: f64) -> [f64; 2] {
        let square = (uu + vv - 2.0 * uv).max(0.0);
        let apart = |g: f64| [g, -g];
        match self {
            Self::Linear => [1.0, 0.0],
            Self::Pairs => [2.0 * uv, 0.0],
            Self::Gauss => apart(self.value(uu, vv, uv) / (LENGTH * LENGTH)),
            Self::Matern => {
                apart(3.0 / (LENGTH * LENGTH) * (-(3.0 * square).sqrt() / LENGTH).exp())
            }
        }
    }
}

/// A function that latency may contain.
type Term = (Shape, &'static [Group]);

/// All functions. New ones come last: older models know those in front.
const TERMS: [Term; 16] = [
    (Shape::Linear, &[Group::Edges]),
    (Shape::Linear, &[Group::Counts]),
    (Shape::Gauss, &[Group::Edges]),
    (Shape::Linear, &[Group::Shared]),
    (Shape::Gauss, &[Group::Counts]),
    (Shape::Linear, &[Group::Reaching]),
    (Shape::Linear, &[Group::ReachingCounts]),
    (Shape::Matern, &[Group::Reaching]),
    (Shape::Linear, &[Group::Effective]),
    (Shape::Linear, &[Group::EffectiveCounts]),
    (Shape::Linear, &[Group::Nodes]),
    (Shape::Matern, &[Group::Effective]),
    (Shape::Gauss, &[Group::EffectiveCounts, Group::Nodes]),
    (Shape::Linear, &[Group::Paths]),
    (Shape::Matern, &[Group::Paths]),
    (Shape::Pairs, &[Group::Edges]),
];

/// The terms that belong to every expert, the last one only from so many architectures on: how pairs of edges act is
/// more than fewer can tell.
const COMMON: [usize; 4] = [0, 1, 2, 15];
const PAIRS_ARCHITECTURES: usize = 300;

/// The further terms of each expert. Terms of features that a space does not have are left out,
/// and then experts that do not differ.
const EXPERTS: [&[usize]; 5] = [
    &[],
    &[3, 4],
    &[5, 6, 7],
    &[8, 9, 10, 11, 12, 13, 14],
    &[5, 6, 7, 8, 9, 10, 11, 12, 13, 14],
];

/// The fewest architectures that a fit makes sense for.
const MIN_ARCHITECTURES: usize = 8;
/// Of more architectures than this, evenly chosen ones are used: the effort grows with the cube.
pub const MAX_ARCHITECTURES: usize = 1500;
/// Timed cells are used as long as there are no more timings of architectures and cells together.
pub const MAX_TIMED: usize = 1000;
/// The variances are learnt on as many timings, those of evenly chosen architectures with their cells, for the same reason.
const VARIANCE_TIMED: usize = 300;
/// Steps of the fixed point at first, and after each reweighting.
const STEPS: [usize; 2] = [40, 10];
const REWEIGHTINGS: usize = 2;
/// Degrees of freedom of the noise of experts that treat outliers.
const FREEDOM: f64 = 4.0;
/// How fast an expert's weight falls with its error relative to the best one's.
const SELECTIVITY: f64 = 20.0;
/// Architectures are left out fold by fold, by fits that know nothing of them, up to this many; of more, one at a time
/// under the variances of all, in which a single one then hardly has a say.
const MAX_FOLDED: usize = 300;
const FOLDS: usize = 5;
/// The variances of a fold are learnt on as many timings.
const FOLD_VARIANCE_TIMED: usize = 150;

/// A cell of an architecture, timed on its own.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TimedCell {
    /// The place of its architecture among those that are fitted.
    pub architecture: usize,
    /// Which of the cells that a code describes.
    pub cell: usize,
    /// What it takes at all its positions in the network together, in milliseconds.
    pub millis: f64,
}

/// The place of a timed cell.
#[derive(Clone, Copy, Debug)]
struct Row {
    /// Its architecture, of those that the fit uses.
    architecture: usize,
    cell: usize,
}

/// A term, ready to be evaluated.
struct Function {
    shape: Shape,
    /// The gates of its features, and of each the mean and the reciprocal scale.
    gates: Vec<usize>,
    means: Vec<f64>,
    scales: Vec<f64>,
    /// The scaled features of what was timed, `n d`, and their squared lengths.
    rows: Vec<f64>,
    squares: Vec<f64>,
}

impl Function {
    /// The function of a term; `None` if the space does not have its features.
    fn new(
        topology: &Topology,
        features: &Features,
        (shape, groups): Term,
        values: &[Vec<f64>],
        cells: &[Row],
    ) -> Option<Self> {
        let n = values.len() as f64;
        let (mut gates, mut means, mut scales) = (vec![], vec![], vec![]);
        for &group in groups {
            let of_group = features.group(group);
            if of_group.is_empty() {
                return None;
            }
            let mean = |gate: usize| values.iter().map(|row| row[gate]).sum::<f64>() / n;
            let group_means: Vec<f64> = of_group.iter().map(|&gate| mean(gate)).collect();
            let square: f64 = values
                .iter()
                .flat_map(|row| {
                    let pairs = of_group.iter().zip(&group_means);
                    pairs.map(|(&gate, mean)| (row[gate] - mean).powi(2))
                })
                .sum::<f64>()
                / n;
            let scale = if square > 1e-12 {
                (square * groups.len() as f64).sqrt()
            } else {
                1.0
            };
            gates.extend(of_group);
            scales.extend(of_group.iter().map(|_| 1.0 / scale));
            means.extend(group_means);
        }
        let mut function = Self {
            shape,
            gates,
            means,
            scales,
            rows: vec![],
            squares: vec![],
        };
        for values in values {
            function.push(function.scaled(values));
        }
        let mut are_of = vec![vec![]; topology.n_cells];
        for row in cells {
            // Of a cell on its own all else is as on average, where features are 0.
            let of_cell = &mut are_of[row.cell];
            if of_cell.is_empty() {
                let gates = function.gates.iter();
                *of_cell = gates
                    .map(|&gate| features.is_of_cell(topology, gate, row.cell))
                    .collect();
            }
            let scaled = function.scaled(&values[row.architecture]).into_iter();
            let scaled = scaled.zip(of_cell);
            let scaled = scaled.map(|(u, is_of_cell)| if *is_of_cell { u } else { 0.0 });
            function.push(scaled.collect());
        }
        Some(function)
    }

    fn push(&mut self, row: Vec<f64>) {
        self.squares.push(dot(&row, &row));
        self.rows.extend(row);
    }

    fn scaled(&self, values: &[f64]) -> Vec<f64> {
        let gates = self.gates.iter().zip(&self.means).zip(&self.scales);
        gates
            .map(|((&gate, mean), scale)| (values[gate] - mean) * scale)
            .collect()
    }

    fn row(&self, index: usize) -> &[f64] {
        &self.rows[index * self.gates.len()..][..self.gates.len()]
    }

    /// The kernel between all of some scaled features, `n d`.
    fn gram(&self, rows: &[f64]) -> Vec<f64> {
        let d = self.gates.len();
        let squares: Vec<f64> = rows.chunks_exact(d).map(|row| dot(row, row)).collect();
        let n = squares.len();
        let rows = Matrix::new(rows, n, d);
        let mut gram = product(rows, rows.transposed());
        if self.shape != Shape::Linear {
            for (row, &uu) in gram.chunks_exact_mut(n).zip(&squares) {
                for (value, &vv) in row.iter_mut().zip(&squares) {
                    *value = self.shape.value(uu, vv, *value);
                }
            }
        }
        gram
    }
}

/// One Gaussian process.
#[derive(Clone, Debug)]
struct Expert {
    /// The variance of each function, 0 for those that are not its own.
    variances: Vec<f64>,
    /// The variance of the noise of an architecture that is no outlier, what of it grows with the squared latency aside.
    noise: f64,
    /// That part: its variance over the squared latency.
    relative_noise: f64,
    /// The coefficient of each architecture, and of each timed cell.
    alphas: Vec<f64>,
    mean: f64,
    /// The mean relative error on architectures left out.
    left_out_mape: f64,
    weight: f64,
}

/// A fitted structured model.
pub struct Structured {
    features: Features,
    codes: Vec<Vec<f32>>,
    cells: Vec<Row>,
    functions: Vec<Function>,
    experts: Vec<Expert>,
    /// Of each function and expert, functions outermost: a linear one's weights, or another one's
    /// coefficients.
    coefficients: Vec<Vec<Vec<f64>>>,
    /// The same, weighted over the experts.
    blend: Vec<Vec<f64>>,
    /// Half of the smallest latency seen: predictions fade out below it and stay positive.
    floor: f64,
}

impl Structured {
    /// Fits codes of a space to what the architectures took, in milliseconds.
    ///
    /// The same arguments give the same bits. Of more than [`MAX_ARCHITECTURES`] architectures evenly chosen
    /// ones are used.
    ///
    /// # Errors
    /// If there are fewer than 8 architectures, or if the data cannot be fitted.
    pub fn fit(topology: &Topology, codes: &[Vec<f32>], millis: &[f64]) -> Result<Self, FitError> {
        Ok(Self::fit_left_out(topology, codes, millis)?.0)
    }

    /// Fits, and tells what the model says of each architecture when that one is left out.
    ///
    /// Up to 300 architectures are left out by fifths, and variances, weights and functions are fitted again on the
    /// rest. Of more, each is left out on its own, by its precision, under the variances of all: one of so many hardly
    /// moves them. Architectures that the fit does not use are predicted as they are.
    ///
    /// # Errors
    /// As [`fit`](Self::fit).
    pub fn fit_left_out(
        topology: &Topology,
        codes: &[Vec<f32>],
        millis: &[f64],
    ) -> Result<(Self, LeftOut), FitError> {
        Self::fit_with_cells(topology, codes, millis, &[])
    }

    /// [`fit_left_out`](Self::fit_left_out) of architectures of which some cells were timed on their own as well.
    ///
    /// A cell is left out together with its architecture. Cells are used as long as they and the architectures make no more than
    /// [`MAX_TIMED`] timings together: beyond, evenly chosen architectures keep theirs.
    ///
    /// # Errors
    /// As [`fit`](Self::fit).
    pub fn fit_with_cells(
        topology: &Topology,
        codes: &[Vec<f32>],
        millis: &[f64],
        cells: &[TimedCell],
    ) -> Result<(Self, LeftOut), FitError> {
        let code_len = check_data(codes, millis, MIN_ARCHITECTURES)?;
        if code_len != topology.code_len() {
            return Err(FitError::CodeLength {
                index: 0,
                expected: topology.code_len(),
                found: code_len,
            });
        }
        let used = evenly(codes.len(), MAX_ARCHITECTURES);
        let all_codes = codes;
        let codes: Vec<Vec<f32>> = used.iter().map(|&index| codes[index].clone()).collect();
        let mut millis: Vec<f64> = used.iter().map(|&index| millis[index]).collect();
        let floor = floor_of(&millis);
        let (cells, of_cells) = use_cells(topology, cells, all_codes.len(), &used)?;
        millis.extend(of_cells);

        let (features, functions, views) = prepare(topology, &codes, &cells);
        let trainer = Trainer::new(&functions, codes.len(), &cells, millis);
        let (experts, mut left_out) = trainer.fit_all(&views)?;
        if codes.len() <= MAX_FOLDED {
            for fold in 0..FOLDS {
                trainer.leave_out(&views, fold, &mut left_out)?;
            }
        }
        let fitted = Self::assemble(features, codes, cells, functions, experts, floor);
        // What is stored has the precision of the state; so has this one.
        let fitted = Self::from_state(topology, &fitted.state()).expect("a state of its own");

        let mut predicted: Vec<f64> = all_codes
            .iter()
            .map(|code| fitted.predict_millis(code))
            .collect();
        let mut spread: Vec<f64> = all_codes.iter().map(|code| fitted.spread(code)).collect();
        for (&index, left_out) in used.iter().zip(left_out) {
            (predicted[index], spread[index]) = left_out;
        }
        Ok((fitted, LeftOut { predicted, spread }))
    }

    fn assemble(
        features: Features,
        codes: Vec<Vec<f32>>,
        cells: Vec<Row>,
        functions: Vec<Function>,
        experts: Vec<Expert>,
        floor: f64,
    ) -> Self {
        let coefficients: Vec<Vec<Vec<f64>>> = functions
            .iter()
            .enumerate()
            .map(|(index, function)| {
                let of_expert = |expert: &Expert| {
                    let variance = expert.variances[index];
                    let alphas: Vec<f64> = expert.alphas.iter().map(|a| variance * a).collect();
                    if function.shape == Shape::Linear {
                        let (n, d) = (alphas.len(), function.gates.len());
                        let rows = Matrix::new(&function.rows, n, d);
                        product(Matrix::new(&alphas, 1, n), rows)
                    } else {
                        alphas
                    }
                };
                experts.iter().map(of_expert).collect()
            })
            .collect();
        let blend = coefficients
            .iter()
            .map(|of_function| {
                let mut sum = vec![0.0; of_function[0].len()];
                for (coefficients, expert) in of_function.iter().zip(&experts) {
                    sum.iter_mut()
                        .zip(coefficients)
                        .for_each(|(sum, c)| *sum += expert.weight * c);
                }
                sum
            })
            .collect();
        Self {
            features,
            codes,
            cells,
            functions,
            experts,
            coefficients,
            blend,
            floor,
        }
    }

    /// The mean relative error on architectures left out, of each expert with its weight.
    pub fn experts(&self) -> impl Iterator<Item = (f64, f64)> {
        let experts = self.experts.iter();
        experts.map(|expert| (expert.left_out_mape, expert.weight))
    }

    /// The candidates whose measurement would tell most about all of them, as indices, in the order of what they tell: each
    /// takes most off the expected squared relative error that those before it leave, by the expert that counts most. What timed
    /// cells tell is not counted.
    ///
    /// # Errors
    /// If the covariance of the architectures cannot be inverted.
    ///
    /// # Panics
    /// If a code does not have the length that the model knows.
    pub fn choose(&self, candidates: &[Vec<f32>], n: usize) -> Result<Vec<usize>, FitError> {
        let experts = self.experts.iter();
        let Some(expert) = experts.max_by(|a, b| a.weight.total_cmp(&b.weight)) else {
            return Ok(vec![]);
        };
        let (n_known, n_new) = (self.codes.len(), candidates.len());
        let n_all = n_known + n_new;
        let values: Vec<Vec<f64>> = candidates.iter().map(|c| self.features.values(c)).collect();
        let mut covariance = vec![0.0; n_all * n_all];
        for (function, &variance) in self.functions.iter().zip(&expert.variances) {
            if variance > 0.0 {
                let new = values.iter().flat_map(|values| function.scaled(values));
                let known = &function.rows[..n_known * function.gates.len()];
                let rows: Vec<f64> = known.iter().copied().chain(new).collect();
                let gram = function.gram(&rows);
                let pairs = covariance.iter_mut().zip(&gram);
                pairs.for_each(|(sum, k)| *sum += variance * k);
            }
        }
        // The mean latency is not known either.
        let trace: f64 = covariance.iter().step_by(n_all + 1).sum();
        covariance
            .iter_mut()
            .for_each(|c| *c += trace / n_all as f64);

        let noise = |millis: f64| expert.noise + expert.relative_noise * millis * millis;
        let part = |first: usize, columns: std::ops::Range<usize>| {
            let rows = covariance[first * n_all..].chunks_exact(n_all);
            rows.flat_map(move |row| row[columns.clone()].iter().copied())
        };
        let mut known: Vec<f64> = part(0, 0..n_known).take(n_known * n_known).collect();
        let noises: Vec<f64> = self
            .codes
            .iter()
            .map(|code| noise(self.predict_millis(code)))
            .collect();
        add_noise(&mut known, &noises);
        let factor = Cholesky::new(known, n_known).ok_or(FitError::Singular)?;
        // What is known explains of each candidate.
        let mut told: Vec<f64> = part(n_known, 0..n_known).collect();
        told.chunks_exact_mut(n_known)
            .for_each(|row| factor.solve_lower(row));
        let told = Matrix::new(&told, n_new, n_known);
        let left = part(n_known, n_known..n_all).zip(product(told, told.transposed()));
        let left: Vec<f64> = left.map(|(all, told)| all - told).collect();
        let predicted: Vec<f64> = candidates.iter().map(|c| self.predict_millis(c)).collect();
        let weights: Vec<f64> = predicted.iter().map(|millis| millis.powi(-2)).collect();
        let noises: Vec<f64> = predicted.into_iter().map(noise).collect();
        Ok(most_telling(left, &weights, &noises, n))
    }

    /// The blend before the floor, and its gradient.
    fn blended(&self, code: &[f32], with_gradient: bool) -> (f64, Vec<f32>) {
        let values = self.features.values(code);
        let means = self
            .experts
            .iter()
            .map(|expert| expert.weight * expert.mean);
        let mut millis: f64 = means.sum();
        let mut grads = vec![0.0; if with_gradient { values.len() } else { 0 }];
        for (function, coefficients) in self.functions.iter().zip(&self.blend) {
            if coefficients.iter().all(|&c| c == 0.0) {
                continue;
            }
            let u = function.scaled(&values);
            let mut grad_u = vec![0.0; u.len()];
            if function.shape == Shape::Linear {
                millis += dot(&u, coefficients);
                grad_u.copy_from_slice(coefficients);
            } else {
                let uu = dot(&u, &u);
                let mut along_u = 0.0;
                for (index, coefficient) in coefficients.iter().enumerate() {
                    let (v, vv) = (function.row(index), function.squares[index]);
                    let uv = dot(&u, v);
                    millis += coefficient * function.shape.value(uu, vv, uv);
                    if with_gradient {
                        let slope = function.shape.slope(uu, vv, uv);
                        let [of_v, of_u] = slope.map(|slope| coefficient * slope);
                        along_u += of_u;
                        grad_u
                            .iter_mut()
                            .zip(v)
                            .for_each(|(grad, v)| *grad += of_v * v);
                    }
                }
                grad_u
                    .iter_mut()
                    .zip(&u)
                    .for_each(|(grad, u)| *grad += along_u * u);
            }
            if with_gradient {
                let gates = function.gates.iter().zip(&function.scales);
                for ((&gate, scale), grad) in gates.zip(&grad_u) {
                    grads[gate] += grad * scale;
                }
            }
        }
        let grad_code = if with_gradient {
            self.features.pull_back(&values, grads)
        } else {
            vec![]
        };
        (millis, grad_code)
    }

    /// The numbers of the model: the `codes` of its architectures, `cells` if some were timed (which architecture, which of its
    /// cells), of each expert `alphas` of both (with what 32 bits leave of them in `alphas_rest`), `means`, `variances` (experts by
    /// functions), `noises`, `relative_noises`, `weights` and `left_out_mapes`, and the `floor`.
    pub fn state(&self) -> State {
        let (n_codes, n_experts) = (self.codes.len(), self.experts.len());
        let n = n_codes + self.cells.len();
        let per_expert = |of: &dyn Fn(&Expert) -> f64| {
            StateTensor::vector(self.experts.iter().map(|e| of(e) as f32).collect())
        };
        let alphas: Vec<f64> = self.experts.iter().flat_map(|e| e.alphas.clone()).collect();
        let high: Vec<f32> = alphas.iter().map(|&a| a as f32).collect();
        let rest = alphas.iter().zip(&high);
        let rest = rest
            .map(|(a, &high)| (a - f64::from(high)) as f32)
            .collect();
        let variances = self.experts.iter().flat_map(|e| &e.variances);
        let mut state = State::from(
            [
                (
                    "codes",
                    StateTensor::new(vec![n_codes, self.features.code_len()], self.codes.concat()),
                ),
                ("alphas", StateTensor::new(vec![n_experts, n], high)),
                ("alphas_rest", StateTensor::new(vec![n_experts, n], rest)),
                (
                    "variances",
                    StateTensor::new(
                        vec![n_experts, self.functions.len()],
                        variances.map(|&v| v as f32).collect(),
                    ),
                ),
                ("means", per_expert(&|e| e.mean)),
                ("noises", per_expert(&|e| e.noise)),
                ("relative_noises", per_expert(&|e| e.relative_noise)),
                ("weights", per_expert(&|e| e.weight)),
                ("left_out_mapes", per_expert(&|e| e.left_out_mape)),
                ("floor", StateTensor::scalar(self.floor as f32)),
            ]
            .map(|(name, tensor)| (name.to_owned(), tensor)),
        );
        if !self.cells.is_empty() {
            let cells = self.cells.iter();
            let cells = cells.flat_map(|row| [row.architecture as f32, row.cell as f32]);
            let cells = StateTensor::new(vec![self.cells.len(), 2], cells.collect());
            state.insert("cells".to_owned(), cells);
        }
        state
    }

    /// The model of a state, for codes of the space that it was fitted in.
    ///
    /// # Errors
    /// If a tensor is missing, does not fit the others or the space, or holds a number that is not finite.
    pub fn from_state(topology: &Topology, state: &State) -> Result<Self, StateError> {
        let find = |name: &str, axes: &[Option<usize>]| {
            let tensor = StateTensor::find(state, name)?;
            Ok::<_, StateError>((tensor.expect_axes(name, axes)?, tensor.shape[0]))
        };
        let code_len = topology.code_len();
        let (codes, n_codes) = find("codes", &[None, Some(code_len)])?;
        let codes: Vec<Vec<f32>> = codes.chunks_exact(code_len).map(<[f32]>::to_vec).collect();
        let mut cells = Vec::new();
        if state.contains_key("cells") {
            for place in find("cells", &[None, Some(2)])?.0.chunks_exact(2) {
                let [architecture, cell] = [(place[0], n_codes), (place[1], topology.n_cells)]
                    .map(|(place, n)| (place >= 0.0 && place < n as f32).then_some(place as usize));
                let (Some(architecture), Some(cell)) = (architecture, cell) else {
                    return Err(StateError::Unfit {
                        reason: format!(
                            "there is no cell {} of architecture {}",
                            place[1], place[0]
                        ),
                    });
                };
                cells.push(Row { architecture, cell });
            }
        }
        let n = n_codes + cells.len();
        let (features, functions, _) = prepare(topology, &codes, &cells);
        let (weights, n_experts) = find("weights", &[None])?;
        let one = [Some(n_experts)];
        let (means, _) = find("means", &one)?;
        let (noises, _) = find("noises", &one)?;
        let (left_out_mapes, _) = find("left_out_mapes", &one)?;
        let (alphas, _) = find("alphas", &[Some(n_experts), Some(n)])?;
        let (rest, _) = find("alphas_rest", &[Some(n_experts), Some(n)])?;
        // Older models have one kind of noise, and fewer functions.
        let relative_noises = match state.get("relative_noises") {
            Some(tensor) => tensor.expect_axes("relative_noises", &one)?.to_vec(),
            None => vec![0.0; n_experts],
        };
        let (variances, _) = find("variances", &[Some(n_experts), None])?;
        let n_known = variances.len() / n_experts;
        if n_known > functions.len() {
            let all = [Some(n_experts), Some(functions.len())];
            find("variances", &all)?;
        }
        let floor = f64::from(StateTensor::find_scalar(state, "floor")?);
        let experts = (0..n_experts)
            .map(|expert| Expert {
                variances: variances[expert * n_known..][..n_known]
                    .iter()
                    .map(|&v| f64::from(v))
                    .chain(std::iter::repeat_n(0.0, functions.len() - n_known))
                    .collect(),
                noise: f64::from(noises[expert]),
                relative_noise: f64::from(relative_noises[expert]),
                alphas: alphas[expert * n..][..n]
                    .iter()
                    .zip(&rest[expert * n..][..n])
                    .map(|(&high, &rest)| f64::from(high) + f64::from(rest))
                    .collect(),
                mean: f64::from(means[expert]),
                left_out_mape: f64::from(left_out_mapes[expert]),
                weight: f64::from(weights[expert]),
            })
            .collect();
        Ok(Self::assemble(
            features, codes, cells, functions, experts, floor,
        ))
    }
}

impl LatencyModel for Structured {
    fn code_len(&self) -> usize {
        self.features.code_len()
    }

    fn predict_millis(&self, code: &[f32]) -> f64 {
        positive(self.blended(code, false).0, self.floor).0
    }

    fn gradient(&self, code: &[f32]) -> (f64, Vec<f32>) {
        let (millis, mut grad_code) = self.blended(code, true);
        let (millis, slope) = positive(millis, self.floor);
        grad_code.iter_mut().for_each(|g| *g *= slope as f32);
        (millis, grad_code)
    }

    /// The experts' disagreement and the noise of the data, over the prediction.
    fn spread(&self, code: &[f32]) -> f64 {
        let values = self.features.values(code);
        let mut said: Vec<f64> = self.experts.iter().map(|expert| expert.mean).collect();
        for (function, coefficients) in self.functions.iter().zip(&self.coefficients) {
            let u = function.scaled(&values);
            let kernel = if function.shape == Shape::Linear {
                u
            } else {
                let uu = dot(&u, &u);
                let rows = function.squares.iter().enumerate();
                rows.map(|(index, &vv)| {
                    let uv = dot(&u, function.row(index));
                    function.shape.value(uu, vv, uv)
                })
                .collect()
            };
            for (said, coefficients) in said.iter_mut().zip(coefficients) {
                *said += dot(&kernel, coefficients);
            }
        }
        agree(&self.experts, self.floor, &said).1
    }
}

/// `n` indices or `max`, whichever is fewer, in even steps.
fn evenly(n: usize, max: usize) -> Vec<usize> {
    let m = n.min(max);
    (0..m).map(|index| index * n / m).collect()
}

/// The cells that a fit uses, by their places among the architectures used, and what they take.
fn use_cells(
    topology: &Topology,
    cells: &[TimedCell],
    n_all: usize,
    used: &[usize],
) -> Result<(Vec<Row>, Vec<f64>), FitError> {
    let mut of_architecture = vec![vec![]; n_all];
    for &timed in cells {
        let TimedCell {
            architecture,
            cell,
            millis,
        } = timed;
        let is_there = architecture < n_all && cell < topology.n_cells;
        if !(is_there && millis > 0.0 && millis.is_finite()) {
            return Err(FitError::Cell {
                architecture,
                cell,
                millis,
            });
        }
        of_architecture[architecture].push((cell, millis));
    }
    let timed: Vec<usize> = (0..used.len())
        .filter(|&place| !of_architecture[used[place]].is_empty())
        .collect();
    let n_kept = MAX_TIMED.saturating_sub(used.len()) / topology.n_cells;
    let kept = evenly(timed.len(), n_kept).into_iter().map(|i| timed[i]);
    let rows = kept.flat_map(|architecture| {
        let of_architecture = of_architecture[used[architecture]].iter();
        of_architecture.map(move |&(cell, millis)| (Row { architecture, cell }, millis))
    });
    Ok(rows.unzip())
}

/// The features of a space, the functions that it has, and the functions of each expert.
fn prepare(
    topology: &Topology,
    codes: &[Vec<f32>],
    cells: &[Row],
) -> (Features, Vec<Function>, Vec<Vec<usize>>) {
    let features = Features::new(topology);
    let values: Vec<Vec<f64>> = codes.iter().map(|code| features.values(code)).collect();
    let mut places = [None; TERMS.len()];
    let mut functions = Vec::new();
    for (term, place) in TERMS.into_iter().zip(&mut places) {
        if let Some(function) = Function::new(topology, &features, term, &values, cells) {
            *place = Some(functions.len());
            functions.push(function);
        }
    }
    let mut views: Vec<Vec<usize>> = Vec::new();
    for terms in EXPERTS {
        let n_common = COMMON.len() - usize::from(codes.len() < PAIRS_ARCHITECTURES);
        let view: Vec<usize> = COMMON[..n_common]
            .iter()
            .chain(terms)
            .filter_map(|&term| places[term])
            .collect();
        if !views.contains(&view) {
            views.push(view);
        }
    }
    (features, functions, views)
}

/// A latency in milliseconds, and its spread.
type Said = (f64, f64);

/// Half of the smallest latency.
fn floor_of(millis: &[f64]) -> f64 {
    millis.iter().copied().fold(f64::INFINITY, f64::min) / 2.0
}

/// What the experts say together, and its spread.
fn agree(experts: &[Expert], floor: f64, said: &[f64]) -> Said {
    let weighted = |of: &dyn Fn(usize) -> f64| -> f64 {
        let experts = experts.iter().enumerate();
        experts.map(|(index, e)| e.weight * of(index)).sum()
    };
    let mean = weighted(&|index| said[index]);
    let millis = positive(mean, floor).0;
    let variance = weighted(&|index| {
        let expert = &experts[index];
        (said[index] - mean).powi(2) + expert.noise + expert.relative_noise * millis * millis
    });
    (millis, (variance.sqrt() / millis).max(1e-6))
}

/// Gives experts weights that fall with their errors and sum to 1.
fn weigh(experts: &mut [Expert]) {
    let least = experts
        .iter()
        .map(|expert| expert.left_out_mape)
        .fold(f64::INFINITY, f64::min)
        .max(1e-9);
    let mut sum = 0.0;
    for expert in &mut *experts {
        expert.weight = (-SELECTIVITY * (expert.left_out_mape / least - 1.0)).exp();
        sum += expert.weight;
    }
    experts.iter_mut().for_each(|expert| expert.weight /= sum);
}

/// What the fits of all experts to the same architectures share.
struct Trainer {
    /// What each architecture and each cell took, architectures first.
    millis: Vec<f64>,
    n_architectures: usize,
    cells: Vec<Row>,
    /// Of the latencies of architectures.
    variance: f64,
    /// The kernel of each function between all of them.
    grams: Vec<Vec<f64>>,
    /// Those that variances are learnt on.
    few: Vec<usize>,
}

/// The process given the variances.
struct Solution {
    mean: f64,
    alphas: Vec<f64>,
    /// The diagonal of the precision, the means taken out.
    precisions: Vec<f64>,
    /// The error on each architecture when it is left out with its cells.
    errors: Vec<f64>,
}

impl Trainer {
    fn new(
        functions: &[Function],
        n_architectures: usize,
        cells: &[Row],
        millis: Vec<f64>,
    ) -> Self {
        let grams = functions.iter().map(|f| f.gram(&f.rows)).collect();
        Self::of(
            grams,
            n_architectures,
            cells.to_vec(),
            millis,
            VARIANCE_TIMED,
        )
    }

    fn of(
        grams: Vec<Vec<f64>>,
        n_architectures: usize,
        cells: Vec<Row>,
        millis: Vec<f64>,
        n_few: usize,
    ) -> Self {
        let n = n_architectures as f64;
        let of_architectures = &millis[..n_architectures];
        let mean = of_architectures.iter().sum::<f64>() / n;
        let variance = of_architectures
            .iter()
            .map(|y| (y - mean).powi(2))
            .sum::<f64>()
            / n;
        let mut few = evenly(n_architectures, n_few * n_architectures / millis.len());
        let of_few = (n_architectures..).zip(&cells);
        let of_few: Vec<usize> = of_few
            .filter(|(_, row)| few.contains(&row.architecture))
            .map(|(index, _)| index)
            .collect();
        few.extend(of_few);
        Self {
            // Latencies that are all the same are a model, too.
            variance: variance.max(1e-12 * mean * mean),
            few,
            grams,
            n_architectures,
            cells,
            millis,
        }
    }

    /// What the architectures took.
    fn of_architectures(&self) -> &[f64] {
        &self.millis[..self.n_architectures]
    }

    /// The group of a timing, whose mean it shares: architectures, and then each cell.
    fn group(&self, index: usize) -> usize {
        let cell = index.checked_sub(self.n_architectures);
        cell.map_or(0, |place| 1 + self.cells[place].cell)
    }

    /// Which noise a timing has: that of architectures, or that of cells.
    fn kind(&self, index: usize) -> usize {
        usize::from(index >= self.n_architectures)
    }

    fn n_kinds(&self) -> usize {
        1 + usize::from(!self.cells.is_empty())
    }

    /// The noise of each timing, given the variances and factors.
    fn noises(&self, variances: &[f64], factors: &[f64]) -> Vec<f64> {
        let of_kinds = &variances[variances.len() - self.n_kinds()..];
        let factors = factors.iter().enumerate();
        factors
            .map(|(index, factor)| of_kinds[self.kind(index)] * factor)
            .collect()
    }

    /// All experts with their weights, and what they say together of each architecture left out.
    fn fit_all(&self, views: &[Vec<usize>]) -> Result<(Vec<Expert>, Vec<Said>), FitError> {
        let (mut experts, mut said) = (Vec::new(), Vec::new());
        for view in views {
            for (expert, left_out) in self.fit(view)? {
                experts.push(expert);
                said.push(left_out);
            }
        }
        weigh(&mut experts);
        let floor = floor_of(self.of_architectures());
        let together = (0..self.n_architectures).map(|place| {
            let said: Vec<f64> = said.iter().map(|of_expert| of_expert[place]).collect();
            agree(&experts, floor, &said)
        });
        let together = together.collect();
        Ok((experts, together))
    }

    /// Predicts the architectures of a fold, and the spread of each, by a fit to all others.
    fn leave_out(
        &self,
        views: &[Vec<usize>],
        fold: usize,
        left_out: &mut [Said],
    ) -> Result<(), FitError> {
        let n = self.millis.len();
        let architecture = |index: usize| {
            let cell = index.checked_sub(self.n_architectures);
            cell.map_or(index, |place| self.cells[place].architecture)
        };
        let (out, rest): (Vec<usize>, Vec<usize>) =
            (0..n).partition(|&index| architecture(index) % FOLDS == fold);
        let n_rest = rest.partition_point(|&index| index < self.n_architectures);
        let cells = rest[n_rest..].iter().map(|&index| {
            let row = self.cells[index - self.n_architectures];
            let architecture = rest[..n_rest].binary_search(&row.architecture);
            Row {
                architecture: architecture.expect("a cell is left out with its architecture"),
                ..row
            }
        });
        let cells = cells.collect();
        let grams = self.grams.iter().map(|gram| {
            let rows = rest.iter().map(|&i| &gram[i * n..][..n]);
            rows.flat_map(|row| rest.iter().map(|&j| row[j])).collect()
        });
        let millis = rest.iter().map(|&i| self.millis[i]).collect();
        let grams = grams.collect();
        let others = Self::of(grams, n_rest, cells, millis, FOLD_VARIANCE_TIMED);
        let (experts, _) = others.fit_all(views)?;
        for i in out.into_iter().filter(|&i| i < self.n_architectures) {
            let said = experts.iter().map(|expert| {
                let functions = self.grams.iter().zip(&expert.variances);
                let functions = functions.filter(|(_, variance)| **variance > 0.0);
                let sums = functions.map(|(gram, variance)| {
                    let row = &gram[i * n..][..n];
                    let pairs = rest.iter().zip(&expert.alphas);
                    variance * pairs.map(|(&j, alpha)| alpha * row[j]).sum::<f64>()
                });
                expert.mean + sums.sum::<f64>()
            });
            let said: Vec<f64> = said.collect();
            left_out[i] = agree(&experts, floor_of(others.of_architectures()), &said);
        }
        Ok(())
    }

    /// The experts of these functions: one that takes every latency for what it is, one that treats outliers, and one whose
    /// noise grows with the latency besides.
    fn fit(&self, view: &[usize]) -> Result<[(Expert, Vec<f64>); 3], FitError> {
        let n = self.millis.len();
        let few = Learner::new(self, view);
        let mut variances = vec![self.variance / view.len() as f64; view.len()];
        variances.resize(view.len() + self.n_kinds(), 0.1 * self.variance);
        few.learn(&mut variances, &vec![1.0; n], STEPS[0])?;
        let solution = self.solve(view, &variances, &vec![1.0; n])?;
        let reweighted =
            |unit_millis| self.reweight(&few, view, &variances, &solution, unit_millis);
        let (outliers, relative) = (reweighted(None)?, reweighted(Some(self.typical()))?);
        let plain = self.expert(view, &variances, &solution, None);
        Ok([plain, outliers, relative])
    }

    /// The geometric mean of all latencies.
    fn typical(&self) -> f64 {
        let millis = self.of_architectures();
        let logarithms = millis.iter().map(|y| y.ln()).sum::<f64>();
        (logarithms / millis.len() as f64).exp()
    }

    /// Goes on from a solution: outliers are given more noise and, where there is a unit, every latency noise in
    /// proportion to itself in that unit.
    fn reweight(
        &self,
        few: &Learner<'_>,
        view: &[usize],
        variances: &[f64],
        solution: &Solution,
        unit_millis: Option<f64>,
    ) -> Result<(Expert, Vec<f64>), FitError> {
        let mut variances = variances.to_vec();
        let mut noise_factors = vec![1.0; self.millis.len()];
        let (architectures, cells) = self.millis.split_at(self.n_architectures);
        let floors = [floor_of(architectures), floor_of(cells)];
        let mut reweighted = None;
        for _ in 0..REWEIGHTINGS {
            let Solution {
                alphas, precisions, ..
            } = reweighted.as_ref().unwrap_or(solution);
            for (index, factor) in noise_factors.iter_mut().enumerate() {
                let kind = self.kind(index);
                let noise = variances[view.len() + kind];
                let precision = precisions[index];
                let error = alphas[index] / precision;
                // What the others say of it.
                let said = (self.millis[index] - error).max(floors[kind]);
                let expected = unit_millis.map_or(1.0, |unit| (said / unit).powi(2));
                // The variance of the error if the latency were no outlier.
                let variance = (1.0 / precision - noise * *factor).max(0.0) + noise * expected;
                *factor = expected * (FREEDOM + error * error / variance) / (FREEDOM + 1.0);
            }
            few.learn(&mut variances, &noise_factors, STEPS[1])?;
            reweighted = Some(self.solve(view, &variances, &noise_factors)?);
        }
        let solution = reweighted.as_ref().unwrap_or(solution);
        Ok(self.expert(view, &variances, solution, unit_millis))
    }

    fn solve(
        &self,
        view: &[usize],
        variances: &[f64],
        noise_factors: &[f64],
    ) -> Result<Solution, FitError> {
        let n = self.millis.len();
        let mut covariance = vec![0.0; n * n];
        for (&function, &variance) in view.iter().zip(variances) {
            for (i, row) in covariance.chunks_exact_mut(n).enumerate() {
                let kernel = &self.grams[function][i * n..];
                let row = row[..=i].iter_mut().zip(kernel);
                row.for_each(|(sum, k)| *sum += variance * k);
            }
        }
        add_noise(&mut covariance, &self.noises(variances, noise_factors));
        let groups = (0..n).map(|index| self.group(index)).collect();
        let precision = Precision::grouped(covariance, groups).ok_or(FitError::Singular)?;
        let (mean, alphas) = precision.apply(&self.millis);
        let precisions: Vec<f64> = (0..n).map(|i| precision.centred(i, i)).collect();
        let errors = self.errors(&precision, &alphas, &precisions)?;
        Ok(Solution {
            mean,
            alphas,
            precisions,
            errors,
        })
    }

    /// The error on each architecture left out with its cells: of one without cells its coefficient over its precision, of
    /// others the same with a block of the precision.
    fn errors(
        &self,
        precision: &Precision,
        alphas: &[f64],
        precisions: &[f64],
    ) -> Result<Vec<f64>, FitError> {
        let mut blocks: Vec<Vec<usize>> = (0..self.n_architectures).map(|i| vec![i]).collect();
        for (index, row) in (self.n_architectures..).zip(&self.cells) {
            blocks[row.architecture].push(index);
        }
        let error = |block: &Vec<usize>| {
            let first = block[0];
            if block.len() == 1 {
                return Ok(alphas[first] / precisions[first]);
            }
            let pairs = block
                .iter()
                .flat_map(|&i| block.iter().map(move |&j| (i, j)));
            let of_block = pairs.map(|(i, j)| precision.centred(i, j)).collect();
            let factor = Cholesky::new(of_block, block.len()).ok_or(FitError::Singular)?;
            let mut errors: Vec<f64> = block.iter().map(|&i| alphas[i]).collect();
            factor.solve(&mut errors);
            Ok(errors[0])
        };
        blocks.iter().map(error).collect()
    }

    fn expert(
        &self,
        view: &[usize],
        variances: &[f64],
        solution: &Solution,
        unit_millis: Option<f64>,
    ) -> (Expert, Vec<f64>) {
        let mut all = vec![0.0; self.grams.len()];
        for (&function, &variance) in view.iter().zip(variances) {
            all[function] = variance;
        }
        let errors = solution.errors.iter().zip(&self.millis);
        let left_out: Vec<f64> = errors.map(|(error, y)| y - error).collect();
        let noise = variances[view.len()];
        let (noise, relative_noise) = match unit_millis {
            None => (noise, 0.0),
            Some(unit) => (0.0, noise / (unit * unit)),
        };
        let expert = Expert {
            variances: all,
            noise,
            relative_noise,
            alphas: solution.alphas.clone(),
            mean: solution.mean,
            left_out_mape: mape(&left_out, self.of_architectures()),
            weight: 0.0,
        };
        (expert, left_out)
    }
}

/// Finds the variances of a view.
struct Learner<'a> {
    trainer: &'a Trainer,
    millis: Vec<f64>,
    groups: Vec<usize>,
    /// The smallest variance that is told from none.
    least: f64,
    n_functions: usize,
    /// The lower triangle of each function's kernel, row by row, one function after the other.
    triangles: Vec<f64>,
}

impl<'a> Learner<'a> {
    fn new(trainer: &'a Trainer, view: &[usize]) -> Self {
        let (n, few) = (trainer.millis.len(), &trainer.few[..]);
        let mut triangles = Vec::with_capacity(view.len() * few.len() * (few.len() + 1) / 2);
        for &function in view {
            for (end, &i) in few.iter().enumerate() {
                let row = &trainer.grams[function][i * n..][..n];
                triangles.extend(few[..=end].iter().map(|&j| row[j]));
            }
        }
        Self {
            trainer,
            millis: few.iter().map(|&i| trainer.millis[i]).collect(),
            groups: few.iter().map(|&i| trainer.group(i)).collect(),
            least: 1e-9 * trainer.variance,
            n_functions: view.len(),
            triangles,
        }
    }

    /// Moves the variances, those of the noises last, towards the most likely ones. The factors are those of all
    /// timings.
    fn learn(
        &self,
        variances: &mut [f64],
        noise_factors: &[f64],
        n_steps: usize,
    ) -> Result<(), FitError> {
        let few = &self.trainer.few;
        let n = few.len();
        let n_pairs = n * (n + 1) / 2;
        let mut of_kinds = vec![vec![0.0; n]; self.trainer.n_kinds()];
        for (place, &index) in few.iter().enumerate() {
            of_kinds[self.trainer.kind(index)][place] = noise_factors[index];
        }
        let triangles = Matrix::new(&self.triangles, self.n_functions, n_pairs);
        for _ in 0..n_steps {
            let weights = Matrix::new(&variances[..self.n_functions], 1, self.n_functions);
            let sums = product(weights, triangles);
            let mut covariance = vec![0.0; n * n];
            let mut rest = &sums[..];
            for (i, row) in covariance.chunks_exact_mut(n).enumerate() {
                row[..=i].copy_from_slice(&rest[..=i]);
                rest = &rest[i + 1..];
            }
            let mut noises = vec![0.0; n];
            for (factors, variance) in of_kinds.iter().zip(&variances[self.n_functions..]) {
                let factors = noises.iter_mut().zip(factors);
                factors.for_each(|(noise, factor)| *noise += variance * factor);
            }
            add_noise(&mut covariance, &noises);
            let precision = Precision::grouped(covariance, self.groups.clone());
            let precision = precision.ok_or(FitError::Singular)?;
            let (_, alphas) = precision.apply(&self.millis);
            // Of each function αᵀ K α, the data's side, and the trace of (precision K), the model's.
            let mut sides = Vec::with_capacity(2 * n_pairs);
            for i in 0..n {
                for j in 0..=i {
                    let times = if i == j { 1.0 } else { 2.0 };
                    sides.push(times * alphas[i] * alphas[j]);
                }
            }
            for i in 0..n {
                for j in 0..=i {
                    let times = if i == j { 1.0 } else { 2.0 };
                    sides.push(times * precision.centred(i, j));
                }
            }
            let sides = product(triangles, Matrix::new(&sides, 2, n_pairs).transposed());
            let update = |variance: &mut f64, data: f64, model: f64| {
                let ratio = (data / model.max(f64::MIN_POSITIVE)).clamp(1e-4, 1e4);
                *variance = (*variance * ratio.sqrt()).max(self.least);
            };
            for (side, variance) in sides.chunks_exact(2).zip(&mut *variances) {
                update(variance, side[0], side[1]);
            }
            for (factors, variance) in of_kinds.iter().zip(&mut variances[self.n_functions..]) {
                let (mut data, mut model) = (0.0, 0.0);
                for i in 0..n {
                    data += factors[i] * alphas[i] * alphas[i];
                    model += factors[i] * precision.centred(i, i);
                }
                update(variance, data, model);
            }
        }
        Ok(())
    }
}

/// Adds the noise of each timing to a covariance, and as much as keeps its factor exact.
fn add_noise(covariance: &mut [f64], noises: &[f64]) {
    let n = noises.len();
    let trace: f64 = covariance.iter().step_by(n + 1).sum();
    let jitter = 1e-10 * trace / n as f64;
    for (c, noise) in covariance.iter_mut().step_by(n + 1).zip(noises) {
        *c += noise + jitter;
    }
}

#[cfg(test)]
mod tests {
    use rand::{RngExt, SeedableRng};
    use rand_chacha::ChaCha8Rng;
    use rand_distr::{Distribution, StandardNormal};

    use super::*;
    use crate::figures::Figures;

    /// Architectures of NAS-Bench-201.
    fn codes(n: usize, seed: u64) -> Vec<Vec<f32>> {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        (0..n)
            .map(|_| {
                let mut code = vec![0.0; 30];
                for edge in 0..6 {
                    code[5 * edge + rng.random_range(0..5)] = 1.0;
                }
                code
            })
            .collect()
    }

    /// What a device with a compiler takes: operations whose result is used, and 10 ms for the rest.
    fn compiled(code: &[f32]) -> f64 {
        let features = Features::new(&Topology::nas_bench_201());
        let values = features.values(code);
        let costs = [0.0, 0.5, 3.0, 7.0, 1.5].iter().cycle();
        let gates = features.group(Group::Reaching).iter().zip(costs);
        10.0 + gates.map(|(&gate, cost)| cost * values[gate]).sum::<f64>()
    }

    fn measure(n: usize, noise: f64) -> (Vec<Vec<f32>>, Vec<f64>) {
        let codes = codes(n, 1);
        let mut rng = ChaCha8Rng::seed_from_u64(2);
        let millis = codes
            .iter()
            .map(|code| {
                let normal: f64 = StandardNormal.sample(&mut rng);
                compiled(code) * (1.0 + noise * normal)
            })
            .collect();
        (codes, millis)
    }

    fn fit(n: usize, noise: f64) -> Structured {
        let (codes, millis) = measure(n, noise);
        Structured::fit(&Topology::nas_bench_201(), &codes, &millis).unwrap()
    }

    fn judge(model: &Structured) -> Figures {
        let codes = codes(500, 7);
        let truth: Vec<f64> = codes.iter().map(|code| compiled(code)).collect();
        let predicted: Vec<f64> = codes
            .iter()
            .map(|code| model.predict_millis(code))
            .collect();
        Figures::compute(&predicted, &truth)
    }

    #[test]
    fn dead_code_is_seen_through_with_fifty_architectures() {
        let figures = judge(&fit(50, 0.01));
        assert!(
            figures.mape < 0.02 && figures.spearman > 0.99,
            "{figures:?}"
        );
    }

    #[test]
    fn a_few_wild_latencies_do_no_harm() {
        let (codes, mut millis) = measure(100, 0.01);
        millis.iter_mut().step_by(12).for_each(|y| *y *= 2.5);
        let model = Structured::fit(&Topology::nas_bench_201(), &codes, &millis).unwrap();
        let figures = judge(&model);
        assert!(figures.mape < 0.03, "{figures:?}");
    }

    #[test]
    fn latencies_that_are_all_the_same_are_a_model_too() {
        let model = Structured::fit(&Topology::nas_bench_201(), &codes(20, 3), &[7.0; 20]);
        let said = model.unwrap().predict_millis(&codes(1, 4)[0]);
        assert!((said - 7.0).abs() < 1e-3, "{said}");
    }

    #[test]
    fn gradients_are_those_of_finite_differences() {
        // Pairs of edges take part in the second.
        for n in [60, MAX_FOLDED + 1] {
            check_gradients(&fit(n, 0.02));
        }
    }

    fn check_gradients(model: &Structured) {
        let mut rng = ChaCha8Rng::seed_from_u64(5);
        for _ in 0..5 {
            let code_len = model.code_len();
            let code: Vec<f32> = (0..code_len).map(|_| rng.random_range(0.05..0.4)).collect();
            let (value, grad) = model.gradient(&code);
            assert!((value - model.predict_millis(&code)).abs() < 1e-9 * value);
            for index in 0..code_len {
                let step = 1.0 / 128.0;
                let [low, high] = [-step, step].map(|step| {
                    let mut code = code.clone();
                    code[index] += step;
                    (model.predict_millis(&code), f64::from(code[index]))
                });
                let slope = (high.0 - low.0) / (high.1 - low.1);
                let grad = f64::from(grad[index]);
                assert!(
                    (slope - grad).abs() < 5e-3 * (1.0 + grad.abs()),
                    "{slope} {grad}"
                );
            }
        }
    }

    #[test]
    fn leaving_out_by_precision_is_leaving_out_for_real() {
        let (codes, millis) = measure(24, 0.05);
        let (_, functions, views) = prepare(&Topology::nas_bench_201(), &codes, &[]);
        let trainer = Trainer::new(&functions, 24, &[], millis);
        let view = views.last().unwrap();
        let [(expert, left_out), ..] = trainer.fit(view).unwrap();
        let mut variances: Vec<f64> = view.iter().map(|&f| expert.variances[f]).collect();
        variances.push(expert.noise);
        for out in 0..24 {
            // The same process, with so much noise on one latency that it says nothing.
            let mut factors = vec![1.0; 24];
            factors[out] = 1e9 * trainer.variance / expert.noise;
            let solution = trainer.solve(view, &variances, &factors).unwrap();
            let said = solution.mean
                + view
                    .iter()
                    .map(|&f| {
                        let row = &trainer.grams[f][out * 24..][..24];
                        expert.variances[f] * dot(row, &solution.alphas)
                    })
                    .sum::<f64>();
            assert!(
                (said - left_out[out]).abs() < 1e-4 * said,
                "{said} {}",
                left_out[out]
            );
        }
    }

    #[test]
    fn the_spread_is_wider_where_data_are_noisier_and_covers_what_it_says() {
        let (codes, millis) = measure(120, 0.05);
        let topology = Topology::nas_bench_201();
        let (noisy, left_out) = Structured::fit_left_out(&topology, &codes, &millis).unwrap();
        let (quiet, code) = (fit(120, 0.005), &super::tests::codes(1, 11)[0]);
        assert!(noisy.spread(code) > 2.0 * quiet.spread(code));
        let conformal =
            crate::Conformal::fit(&left_out.predicted, &left_out.spread, &millis).unwrap();
        let mut rng = ChaCha8Rng::seed_from_u64(12);
        let fresh = super::tests::codes(1000, 13);
        let n_covered = fresh
            .iter()
            .filter(|code| {
                let normal: f64 = StandardNormal.sample(&mut rng);
                let measured = compiled(code) * (1.0 + 0.05 * normal);
                let (predicted, spread) = (noisy.predict_millis(code), noisy.spread(code));
                let (low, high) = conformal.interval(predicted, spread, 0.9);
                (low..=high).contains(&measured)
            })
            .count();
        assert!((820..970).contains(&n_covered), "{n_covered}");
    }

    /// DARTS networks and their cells: what a cell takes grows faster than the work of its edges, and measuring adds noise.
    fn networks(n: usize) -> (Vec<Vec<f32>>, Vec<f64>, Vec<TimedCell>) {
        let mut rng = ChaCha8Rng::seed_from_u64(21);
        let space = space::SearchSpace::darts();
        let (mut codes, mut millis, mut cells) = (vec![], vec![], vec![]);
        for architecture in 0..n {
            let code = space.encode(&space.sample(&mut rng));
            let mut sum = 5.0;
            for (cell, half) in code.chunks_exact(112).enumerate() {
                let edges = half.chunks_exact(8).enumerate();
                let work: f64 = edges
                    .map(|(edge, kept)| {
                        let costs = [0.0, 0.3, 0.4, 0.1, 2.0, 3.0, 1.0, 1.6];
                        let kept = kept.iter().zip(costs).map(|(k, c)| f64::from(*k) * c);
                        (1.0 + 0.03 * edge as f64) * kept.sum::<f64>()
                    })
                    .sum();
                let took = 0.5 * work + 0.03 * work * work;
                sum += took;
                let normal: f64 = StandardNormal.sample(&mut rng);
                cells.push(TimedCell {
                    architecture,
                    cell,
                    millis: 0.9 * took + 0.5 + 0.05 * normal,
                });
            }
            let normal: f64 = StandardNormal.sample(&mut rng);
            codes.push(code);
            millis.push(sum + 0.1 * normal);
        }
        (codes, millis, cells)
    }

    #[test]
    fn timed_cells_tell_of_networks() {
        let (codes, millis, cells) = networks(240);
        let topology = Topology::darts();
        let error = |cells: &[TimedCell]| {
            let fitted =
                Structured::fit_with_cells(&topology, &codes[..40], &millis[..40], cells).unwrap();
            let said: Vec<f64> = codes[40..]
                .iter()
                .map(|code| fitted.0.predict_millis(code))
                .collect();
            let said_of_left_out = mape(&fitted.1.predicted, &millis[..40]);
            (mape(&said, &millis[40..]), said_of_left_out)
        };
        let (alone, _) = error(&[]);
        let (together, left_out) = error(&cells[..80]);
        assert!(together < 0.75 * alone, "{together} {alone}");
        // Left out with its cells, a network is as hard to predict as a new one.
        assert!(
            left_out > 0.8 * together && left_out < 2.0 * together,
            "{left_out} {together}"
        );
    }

    #[test]
    fn what_is_said_of_a_network_left_out_owes_nothing_to_its_cells() {
        let (codes, millis, mut cells) = networks(30);
        let topology = Topology::darts();
        let fit = |cells: &[TimedCell]| {
            let fitted = Structured::fit_with_cells(&topology, &codes, &millis, cells);
            fitted.unwrap().1
        };
        let before = fit(&cells);
        for timed in cells.iter_mut().filter(|timed| timed.architecture == 3) {
            timed.millis *= 3.0;
        }
        let after = fit(&cells);
        let is_same = |i: usize| {
            (before.predicted[i], before.spread[i]) == (after.predicted[i], after.spread[i])
        };
        assert!((3..30).step_by(FOLDS).all(is_same));
        assert!((0..30).any(|i| !is_same(i)));
    }

    #[test]
    fn leaving_out_a_block_of_the_precision_is_leaving_out_for_real() {
        let (codes, mut millis, timed) = networks(20);
        let topology = Topology::darts();
        // Some have both cells timed, some one, some none.
        let timed: Vec<TimedCell> = timed.into_iter().filter(|t| t.architecture < 15).collect();
        let used: Vec<usize> = (0..20).collect();
        let (cells, of_cells) = use_cells(&topology, &timed[..25], 20, &used).unwrap();
        millis.extend(of_cells);
        let (_, functions, views) = prepare(&topology, &codes, &cells);
        let trainer = Trainer::new(&functions, 20, &cells, millis);
        let view = views.last().unwrap();
        let [(expert, left_out), ..] = trainer.fit(view).unwrap();
        let mut variances: Vec<f64> = view.iter().map(|&f| expert.variances[f]).collect();
        // Any noise of cells will do.
        let noises = [expert.noise, 0.7 * expert.noise];
        variances.extend(noises);
        let whole = trainer.solve(view, &variances, &[1.0; 45]).unwrap();
        assert_eq!(left_out.len(), 20);
        for out in [2, 12, 17] {
            // The same process, with so much noise on the network and its cells that they say nothing.
            let mut factors = vec![1.0; 45];
            let own = (20..45).filter(|&i| cells[i - 20].architecture == out);
            for index in own.chain([out]) {
                factors[index] = 1e9 * trainer.variance / noises[trainer.kind(index)];
            }
            let solution = trainer.solve(view, &variances, &factors).unwrap();
            let of_function = |&f: &usize| {
                let row = &trainer.grams[f][out * 45..][..45];
                expert.variances[f] * dot(row, &solution.alphas)
            };
            let said = solution.mean + view.iter().map(of_function).sum::<f64>();
            let left_out = trainer.millis[out] - whole.errors[out];
            assert!((said - left_out).abs() < 1e-4 * said, "{said} {left_out}");
        }
    }

    #[test]
    fn cells_have_their_part_in_state_and_gradient() {
        let (codes, millis, cells) = networks(30);
        let topology = Topology::darts();
        let fitted = Structured::fit_with_cells(&topology, &codes, &millis, &cells[..50]);
        let (model, _) = fitted.unwrap();
        let state = model.state();
        assert_eq!(state["cells"].shape, [50, 2]);
        let again = Structured::from_state(&topology, &state).unwrap();
        for code in &codes[..5] {
            assert_eq!(model.gradient(code), again.gradient(code));
            assert_eq!(model.spread(code), again.spread(code));
        }
        assert_eq!(state, again.state());
        let broken = |cell: [f32; 2]| {
            let mut state = state.clone();
            state.get_mut("cells").unwrap().values[..2].copy_from_slice(&cell);
            let error = Structured::from_state(&topology, &state).err();
            error.unwrap().to_string()
        };
        for cell in [[30.0, 0.0], [0.0, 2.0], [-1.0, 0.0]] {
            let [architecture, cell] = cell;
            assert_eq!(
                broken([architecture, cell]),
                format!(
                    "the numbers make no model: there is no cell {cell} of architecture {architecture}"
                )
            );
        }
        check_gradients(&model);
        // Which networks to time next is asked of networks alone.
        assert_eq!(model.choose(&codes[..9], 3).unwrap().len(), 3);
    }

    #[test]
    fn cells_are_used_while_they_are_few() {
        let topology = Topology::darts();
        let timed = |architecture, cell| TimedCell {
            architecture,
            cell,
            millis: 1.0 + architecture as f64,
        };
        let all: Vec<TimedCell> = (0..900).flat_map(|i| [timed(i, 0), timed(i, 1)]).collect();
        let used: Vec<usize> = (0..900).collect();
        let (rows, millis) = use_cells(&topology, &all, 900, &used).unwrap();
        assert_eq!((rows.len(), millis.len()), (100, 100));
        assert!(
            rows.iter()
                .zip(&millis)
                .all(|(row, y)| 1.0 + row.architecture as f64 == *y)
        );
        // Places are among the architectures that are used.
        let (rows, millis) = use_cells(&topology, &all, 900, &[0, 4, 8]).unwrap();
        assert_eq!((rows.last().unwrap().architecture, millis[5]), (2, 9.0));
        let refused = use_cells(&topology, &[timed(3, 2)], 900, &used).unwrap_err();
        assert_eq!(
            refused.to_string(),
            "cell 2 of architecture 3 takes 4 ms; it must be a cell of an architecture that is fitted, and its latency \
             positive and finite"
        );
    }

    #[test]
    fn a_state_makes_the_same_model() {
        let model = fit(40, 0.02);
        let again = Structured::from_state(&Topology::nas_bench_201(), &model.state()).unwrap();
        for code in codes(20, 9) {
            assert_eq!(model.gradient(&code), again.gradient(&code));
            assert_eq!(model.spread(&code), again.spread(&code));
        }
        assert_eq!(model.state(), again.state());
    }

    #[test]
    fn a_state_without_the_latest_function_makes_the_model_that_it_was() {
        // With so few architectures there are no pairs.
        let model = fit(40, 0.02);
        let mut state = model.state();
        state.remove("relative_noises");
        let variances = state.get_mut("variances").unwrap();
        let n_functions = variances.shape[1];
        let known = variances.values.chunks(n_functions);
        let known = known.flat_map(|row| &row[..n_functions - 1]).copied();
        let known = StateTensor::new(vec![variances.shape[0], n_functions - 1], known.collect());
        *variances = known;
        let older = Structured::from_state(&Topology::nas_bench_201(), &state).unwrap();
        for code in codes(20, 9) {
            assert_eq!(model.gradient(&code), older.gradient(&code));
        }
    }

    #[test]
    fn noise_that_grows_with_the_latency_is_seen() {
        // From 10 to 15,000 ms.
        let (codes, millis) = measure(150, 0.1);
        let millis: Vec<f64> = millis.iter().map(|y| y * y * y / 10.0).collect();
        let topology = Topology::nas_bench_201();
        let model = Structured::fit(&topology, &codes, &millis).unwrap();
        let in_proportion: f64 = model
            .experts
            .iter()
            .filter(|expert| expert.relative_noise > 0.0)
            .map(|expert| expert.weight)
            .sum();
        assert!(in_proportion > 0.6, "{in_proportion}");
    }

    #[test]
    fn a_broken_state_is_named() {
        let topology = Topology::nas_bench_201();
        let good = fit(10, 0.02).state();
        let message = |topology: &Topology, change: &dyn Fn(&mut State)| {
            let mut state = good.clone();
            change(&mut state);
            let broken = Structured::from_state(topology, &state);
            broken.err().unwrap().to_string()
        };
        assert_eq!(
            message(&topology, &|state| drop(state.remove("alphas_rest"))),
            "the state has no tensor `alphas_rest`"
        );
        assert_eq!(
            message(&Topology::darts(), &|_| {}),
            "tensor `codes` has shape [10, 30], expected [any, 224]"
        );
        assert_eq!(
            message(&topology, &|state| {
                state.get_mut("floor").unwrap().values[0] = f32::NAN;
            }),
            "tensor `floor` holds a number that is not finite"
        );
    }

    #[test]
    fn what_cannot_be_fitted_is_refused() {
        let (codes, millis) = measure(10, 0.01);
        let refusal = |topology: &Topology, n: usize| {
            let model = Structured::fit(topology, &codes[..n], &millis[..n]);
            model.err().unwrap().to_string()
        };
        assert_eq!(
            refusal(&Topology::nas_bench_201(), 7),
            "the fit needs at least 8 architectures, there are 7; profile more"
        );
        assert_eq!(
            refusal(&Topology::darts(), 10),
            "code 0 holds 30 numbers, expected 224"
        );
    }
}
