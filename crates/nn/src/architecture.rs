//! Architecture parameters: alpha, beta, and what follows from them.

use std::collections::BTreeMap;

use candle_core::{D, DType, Device, Result, Tensor, Var};
use rand_distr::{Distribution, StandardNormal};
use space::{CellKind, Genotype, Primitive, SearchSpace};

use crate::{Parameters, Rng};

/// PC-DARTS's K: one channel in K passes through the candidate operations, the rest bypass them.
///
/// K = 1 is DARTS. `Option` would do as well, but the published name is a ratio.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChannelRatio(usize);

impl ChannelRatio {
    /// All channels (DARTS).
    pub const FULL: Self = Self(1);

    /// One channel in `k`; `None` if `k` is 0.
    pub const fn new(k: usize) -> Option<Self> {
        if k == 0 { None } else { Some(Self(k)) }
    }

    /// K.
    pub const fn get(self) -> usize {
        self.0
    }

    /// Whether some channels bypass the operations.
    pub const fn is_partial(self) -> bool {
        self.0 > 1
    }
}

/// The primitives that each edge still mixes: all at first; P-DARTS drops some between its stages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidates {
    n_primitives: usize,
    /// Per cell kind, row-major `[e, p]`.
    kept: [Vec<bool>; 2],
}

impl Candidates {
    /// All primitives on every edge.
    pub fn all(space: SearchSpace) -> Self {
        let n_primitives = space.n_primitives();
        let every = vec![true; space.n_edges() * n_primitives];
        Self {
            n_primitives,
            kept: [every.clone(), every],
        }
    }

    /// What [`to_bits`](Self::to_bits) gave; `None` if it is of another size.
    pub fn from_bits(space: SearchSpace, bits: &[Vec<bool>; 2]) -> Option<Self> {
        let all = Self::all(space);
        let fits = |(own, other): (&Vec<bool>, &Vec<bool>)| own.len() == other.len();
        bits.iter().zip(&all.kept).all(fits).then(|| Self {
            kept: bits.clone(),
            ..all
        })
    }

    /// Per cell kind, row-major `[e, p]`, whether the edge has that primitive.
    pub fn to_bits(&self) -> &[Vec<bool>; 2] {
        &self.kept
    }

    /// Whether an edge has a primitive.
    pub fn has(&self, kind: CellKind, edge: usize, primitive: usize) -> bool {
        self.kept[kind.index()][edge * self.n_primitives + primitive]
    }

    /// Keeps `n` primitives on every edge (all, if it has no more): those of largest weight, of equal ones the
    /// first. `weights`: softmax(alpha) per cell kind, row-major `[e, p]`.
    pub fn keep_largest(&mut self, weights: [&[f32]; 2], n: usize) {
        for (kept, weights) in self.kept.iter_mut().zip(weights) {
            let rows = kept.chunks_mut(self.n_primitives);
            for (kept, weights) in rows.zip(weights.chunks(self.n_primitives)) {
                let mut order: Vec<usize> = (0..kept.len()).filter(|&index| kept[index]).collect();
                order.sort_by(|&a, &b| weights[b].total_cmp(&weights[a]));
                for &index in order.iter().skip(n) {
                    kept[index] = false;
                }
            }
        }
    }
}

/// What is added to the alpha of a primitive that an edge does not have: its softmax is 0 then, and so is its
/// gradient.
const DROPPED: f64 = -1e9;

/// The standard deviation of the initial architecture parameters.
const INIT_STD: f64 = 1e-3;

/// The architecture parameters of a search: alpha per cell kind, and beta where edges are normalised.
///
/// They are named as in the published code: `alphas_normal`, `alphas_reduce` (14 x 8), `betas_normal`,
/// `betas_reduce` (14).
pub struct Architecture {
    space: SearchSpace,
    alphas: [Var; 2],
    betas: Option<[Var; 2]>,
    /// What is added to each alpha, `[e, p]`, 0 or [`DROPPED`]; `None` where every edge has all primitives.
    dropped: Option<[Tensor; 2]>,
    parameters: Parameters,
}

/// The weights by which a cell mixes its operations and edges.
pub struct Mixing {
    /// softmax(alpha) per edge, `[e, p]`.
    pub operations: Tensor,
    /// softmax(beta) over the edges of each node, `[e]`; `None` where edges are summed as they are.
    pub edges: Option<Tensor>,
}

/// What the processor knows of alpha and beta at one moment.
#[derive(Debug, Clone, PartialEq)]
pub struct AlphaNumbers {
    /// [`Architecture::soft_code`].
    pub soft_code: Vec<f32>,
    /// [`Architecture::ranks`] of each cell kind.
    pub ranks: [Vec<f32>; 2],
}

impl AlphaNumbers {
    /// The numbers of [`Architecture::numbers`].
    ///
    /// # Errors
    /// If they are not as many as those of a code and its ranks.
    pub fn of(space: SearchSpace, mut numbers: Vec<f32>) -> Result<Self> {
        let n = space.n_edges() * space.n_primitives();
        if numbers.len() != 4 * n {
            candle_core::bail!(
                "{} numbers are not those of alpha, of {n} weights of each kind of cells",
                numbers.len()
            );
        }
        let reduction = numbers.split_off(3 * n);
        let normal = numbers.split_off(2 * n);
        Ok(Self {
            soft_code: numbers,
            ranks: [normal, reduction],
        })
    }

    /// The genotype that they stand for.
    pub fn derive(&self, space: SearchSpace) -> Genotype {
        space.derive([&self.ranks[0], &self.ranks[1]])
    }
}

impl Mixing {
    /// The same with an auxiliary skip on every edge (DARTS-, Chu et al. 2021): beside what alpha gives to
    /// `skip_connect`, that operation gets `weight`, so that it need not win alpha to help the training.
    ///
    /// # Errors
    /// If the tensor library fails.
    pub fn with_auxiliary_skip(self, weight: f64) -> Result<Self> {
        let skip: Vec<f64> = Primitive::ALL
            .iter()
            .map(|&primitive| f64::from(u8::from(primitive == Primitive::SkipConnect)) * weight)
            .collect();
        let operations = &self.operations;
        let skip = Tensor::new(skip, operations.device())?.to_dtype(operations.dtype())?;
        Ok(Self {
            operations: operations.broadcast_add(&skip)?,
            ..self
        })
    }

    /// By what each operation is multiplied, `[e, p]`: its own weight times that of its edge.
    pub(crate) fn of_operations(&self) -> Result<Tensor> {
        match &self.edges {
            Some(edges) => self.operations.broadcast_mul(&edges.unsqueeze(1)?),
            None => Ok(self.operations.clone()),
        }
    }
}

impl Architecture {
    /// Draws alpha (and beta, if edges are normalised, as PC-DARTS does) from 1e-3 * N(0, 1).
    pub fn new(
        space: SearchSpace,
        normalises_edges: bool,
        device: &Device,
        dtype: DType,
        rng: &mut Rng,
    ) -> Result<Self> {
        let (n_edges, n_primitives) = (space.n_edges(), space.n_primitives());
        let mut weights = BTreeMap::new();
        let mut draw = |name: &str, shape: &[usize]| {
            let n = shape.iter().product();
            let values: Vec<f64> = (0..n)
                .map(|_| {
                    let z: f64 = StandardNormal.sample(rng);
                    INIT_STD * z
                })
                .collect();
            let var = Var::from_tensor(&Tensor::from_vec(values, shape, device)?.to_dtype(dtype)?)?;
            weights.insert(name.to_owned(), var.clone());
            Ok::<_, candle_core::Error>(var)
        };
        let [normal, reduce] = CellKind::ALL.map(CellKind::name);
        let alpha_shape = [n_edges, n_primitives];
        let alphas = [
            draw(&format!("alphas_{normal}"), &alpha_shape)?,
            draw(&format!("alphas_{reduce}"), &alpha_shape)?,
        ];
        let betas = if normalises_edges {
            Some([
                draw(&format!("betas_{normal}"), &[n_edges])?,
                draw(&format!("betas_{reduce}"), &[n_edges])?,
            ])
        } else {
            None
        };
        Ok(Self {
            space,
            alphas,
            betas,
            dropped: None,
            parameters: Parameters::from_weights(weights),
        })
    }

    /// The same with some primitives dropped.
    ///
    /// # Errors
    /// If the tensor library fails.
    pub fn with_candidates(self, candidates: &Candidates) -> Result<Self> {
        let dropped = |alpha: &Var, kept: &[bool]| {
            let values: Vec<f64> = kept
                .iter()
                .map(|&kept| if kept { 0.0 } else { DROPPED })
                .collect();
            Tensor::from_vec(values, alpha.dims(), alpha.device())?.to_dtype(alpha.dtype())
        };
        let [normal, reduction] = candidates.to_bits();
        let dropped = [
            dropped(&self.alphas[0], normal)?,
            dropped(&self.alphas[1], reduction)?,
        ];
        Ok(Self {
            dropped: Some(dropped),
            ..self
        })
    }

    /// Alpha and beta by name.
    pub fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    /// The mixing weights of a cell kind. Tracked for an alpha step, constants for a weight step.
    pub fn mixing(&self, kind: CellKind, tracked: bool) -> Result<Mixing> {
        let tensor = |var: &Var| {
            if tracked {
                var.as_tensor().clone()
            } else {
                var.as_detached_tensor()
            }
        };
        let mut alpha = tensor(&self.alphas[kind.index()]);
        if let Some(dropped) = &self.dropped {
            alpha = (alpha + &dropped[kind.index()])?;
        }
        let operations = candle_nn::ops::softmax(&alpha, D::Minus1)?;
        let edges = match &self.betas {
            None => None,
            Some(betas) => {
                let beta = tensor(&betas[kind.index()]);
                let per_node = self
                    .nodes()
                    .map(|edges| {
                        candle_nn::ops::softmax(&beta.narrow(0, edges.start, edges.len())?, 0)
                    })
                    .collect::<Result<Vec<_>>>()?;
                Some(Tensor::cat(&per_node, 0)?)
            }
        };
        Ok(Mixing { operations, edges })
    }

    /// The edges into each intermediate node, in order.
    fn nodes(&self) -> impl Iterator<Item = std::ops::Range<usize>> {
        let space = self.space;
        (2..2 + space.n_nodes()).map(move |node| space.edges_into(node))
    }

    /// The mass-matched soft code, `[224]` in the layout of [`SearchSpace::code_index`], tracked.
    ///
    /// With beta: 2 * softmax(beta) * softmax(alpha). Without: softmax(alpha) * 2 / n for each of the n
    /// edges into a node. Either way a cell's mass is 8, as a genotype's code, less the share of
    /// `none`, whose entries are 0 because no genotype has any.
    pub fn soft_code(&self) -> Result<Tensor> {
        let dtype = self.alphas[0].dtype();
        let device = self.alphas[0].device();
        let is_operation: Vec<f64> = Primitive::ALL
            .iter()
            .map(|&primitive| {
                if primitive == Primitive::None {
                    0.0
                } else {
                    1.0
                }
            })
            .collect();
        let is_operation = Tensor::new(is_operation, device)?.to_dtype(dtype)?;
        let uniform: Vec<f64> = self
            .nodes()
            .flat_map(|edges| vec![1.0 / edges.len() as f64; edges.len()])
            .collect();
        let uniform = Tensor::new(uniform, device)?.to_dtype(dtype)?;
        let cells = CellKind::ALL
            .into_iter()
            .map(|kind| {
                let mixing = self.mixing(kind, true)?;
                let shares = mixing.edges.unwrap_or_else(|| uniform.clone());
                mixing
                    .operations
                    .broadcast_mul(&(shares * 2.0)?.unsqueeze(1)?)?
                    .broadcast_mul(&is_operation)?
                    .flatten_all()
            })
            .collect::<Result<Vec<_>>>()?;
        Tensor::cat(&cells, 0)
    }

    /// What derivation ranks: softmax(alpha), times softmax(beta) where there is one, row-major `[e, p]`.
    ///
    /// # Errors
    /// If the tensor library fails.
    pub fn ranks(&self, kind: CellKind) -> Result<Vec<f32>> {
        let ranks = self.ranks_there(kind)?;
        ranks.to_dtype(DType::F32)?.flatten_all()?.to_vec1()
    }

    fn ranks_there(&self, kind: CellKind) -> Result<Tensor> {
        let Mixing { operations, edges } = self.mixing(kind, false)?;
        match edges {
            Some(edges) => operations.broadcast_mul(&edges.unsqueeze(1)?),
            None => Ok(operations),
        }
    }

    /// What the processor wants to know of these parameters in a step, as one tensor of `f32` where they are:
    /// [`AlphaNumbers::of`] reads it.
    ///
    /// # Errors
    /// If the tensor library fails.
    pub fn numbers(&self) -> Result<Tensor> {
        let [normal, reduction] = CellKind::ALL.map(|kind| self.ranks_there(kind));
        let parts = [self.soft_code()?.detach(), normal?, reduction?];
        let parts = parts
            .iter()
            .map(|part| part.to_dtype(DType::F32)?.flatten_all());
        Tensor::cat(&parts.collect::<Result<Vec<_>>>()?, 0)
    }

    /// softmax(alpha), row-major `[e, p]`.
    ///
    /// # Errors
    /// If the tensor library fails.
    pub fn operation_weights(&self, kind: CellKind) -> Result<Vec<f32>> {
        let operations = self.mixing(kind, false)?.operations;
        operations.to_dtype(DType::F32)?.flatten_all()?.to_vec1()
    }

    /// The genotype that these parameters stand for now ([`SearchSpace::derive`]).
    pub fn derive(&self) -> Result<Genotype> {
        let [normal, reduction] = CellKind::ALL.map(|kind| self.ranks(kind));
        Ok(self.space.derive([&normal?, &reduction?]))
    }

    /// The share of parameter-free primitives (skip, poolings) in softmax(alpha), `none` left out, the mean
    /// over the edges; 3/7 at the start.
    pub fn parameter_free(&self, kind: CellKind) -> Result<f64> {
        let operations = self.mixing(kind, false)?.operations.to_dtype(DType::F64)?;
        let rows: Vec<Vec<f64>> = operations.to_vec2()?;
        let sum = |row: &[f64], primitives: &[Primitive]| -> f64 {
            primitives
                .iter()
                .map(|primitive| row[primitive.index()])
                .sum()
        };
        let free = [
            Primitive::MaxPool3x3,
            Primitive::AvgPool3x3,
            Primitive::SkipConnect,
        ];
        let share = |row: &Vec<f64>| sum(row, &free) / sum(row, &Primitive::KEPT);
        Ok(rows.iter().map(share).sum::<f64>() / rows.len() as f64)
    }

    /// The entropy of softmax(alpha) in nats, the mean over the edges; ln 8 = 2.08 at the start.
    pub fn entropy(&self, kind: CellKind) -> Result<f64> {
        let operations = self.mixing(kind, false)?.operations.to_dtype(DType::F64)?;
        let rows: Vec<Vec<f64>> = operations.to_vec2()?;
        let entropy = |row: &Vec<f64>| -> f64 {
            row.iter().filter(|&&p| p > 0.0).map(|&p| -p * p.ln()).sum()
        };
        Ok(rows.iter().map(entropy).sum::<f64>() / rows.len() as f64)
    }
}
