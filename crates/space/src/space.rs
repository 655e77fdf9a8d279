//! All genotypes: edges, codes, sampling, derivation.

use std::array;
use std::ops::Range;

use rand::{Rng, RngExt};
use thiserror::Error;

use crate::genotype::{CellGenotype, CellKind, Gene, Genotype};
use crate::primitive::Primitive;

/// Intermediate nodes of a cell.
const N_NODES: usize = 4;
/// Edges of a cell: node `n` reads every state before it.
const N_EDGES: usize = 14;
const N_PRIMITIVES: usize = Primitive::ALL.len();
/// Numbers of a code that belong to one cell.
const CELL_LEN: usize = N_EDGES * N_PRIMITIVES;
const CODE_LEN: usize = CellKind::ALL.len() * CELL_LEN;

const EDGES: [Edge; N_EDGES] = {
    let mut edges = [Edge {
        index: 0,
        node: 2,
        source: 0,
    }; N_EDGES];
    let mut index = 1;
    while index < N_EDGES {
        let Edge { node, source, .. } = edges[index - 1];
        edges[index] = if source + 1 < node {
            Edge {
                index,
                node,
                source: source + 1,
            }
        } else {
            Edge {
                index,
                node: node + 1,
                source: 0,
            }
        };
        index += 1;
    }
    edges
};

/// A possible connection within a cell.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Edge {
    /// The position among the edges of the cell: by node, then by source.
    pub index: usize,
    /// The intermediate node that it feeds, 2..=5.
    pub node: usize,
    /// The state that it reads, 0..node.
    pub source: usize,
}

/// The DARTS cell space: two cells of 14 edges, 8 primitives on each (DARTS, section 2.1).
///
/// A *code* is a vector of 224 numbers, one per (cell kind, edge, primitive) in row-major order. The
/// code of a genotype holds a 1 for each gene and 0 elsewhere, eight ones per cell; a search puts
/// weights between 0 and 1 there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SearchSpace(());

impl SearchSpace {
    /// The space of DARTS, PC-DARTS and P-DARTS.
    pub const fn darts() -> Self {
        Self(())
    }

    /// Edges of a cell.
    pub const fn n_edges(&self) -> usize {
        N_EDGES
    }

    /// Primitives of an edge, [`Primitive::None`] included.
    pub const fn n_primitives(&self) -> usize {
        N_PRIMITIVES
    }

    /// Intermediate nodes of a cell.
    pub const fn n_nodes(&self) -> usize {
        N_NODES
    }

    /// The edges of a cell, by node, then by source.
    pub const fn edges(&self) -> &'static [Edge] {
        &EDGES
    }

    /// The indices of the edges that feed the node.
    ///
    /// # Panics
    /// If the node is not in 2..=5.
    pub fn edges_into(&self, node: usize) -> Range<usize> {
        assert!(
            (2..2 + N_NODES).contains(&node),
            "node {node} is not an intermediate node"
        );
        let first = node * (node - 1) / 2 - 1;
        first..first + node
    }

    /// The index of the edge from `source` to `node`.
    ///
    /// # Panics
    /// If there is no such edge.
    pub fn edge_index(&self, node: usize, source: usize) -> usize {
        assert!(
            source < node,
            "no edge leads from state {source} to node {node}"
        );
        self.edges_into(node).start + source
    }

    /// The length of a code.
    pub const fn code_len(&self) -> usize {
        CODE_LEN
    }

    /// Where a code holds the weight of a primitive on an edge.
    ///
    /// # Panics
    /// If the edge is not below [`n_edges`](Self::n_edges).
    pub fn code_index(&self, kind: CellKind, edge: usize, primitive: Primitive) -> usize {
        assert!(edge < N_EDGES, "edge {edge} is not one of {N_EDGES}");
        kind.index() * CELL_LEN + edge * N_PRIMITIVES + primitive.index()
    }

    /// The code of a genotype: 1 at each gene, 0 elsewhere.
    ///
    /// # Panics
    /// If the genotype was put together by hand and [`Genotype::new`] would refuse its sources.
    pub fn encode(&self, genotype: &Genotype) -> Vec<f32> {
        let mut code = vec![0.0; CODE_LEN];
        for kind in CellKind::ALL {
            for (node, gene) in genotype.cell(kind).genes() {
                let edge = self.edge_index(node, gene.source);
                code[self.code_index(kind, edge, gene.primitive)] = 1.0;
            }
        }
        code
    }

    /// The genotype of a code of zeros and ones, the genes of each node listed by source.
    ///
    /// # Errors
    /// If the code is not the code of a genotype.
    pub fn decode(&self, code: &[f32]) -> Result<Genotype, DecodeError> {
        if code.len() != CODE_LEN {
            return Err(DecodeError::Length { found: code.len() });
        }
        if let Some(index) = code.iter().position(|&value| value != 0.0 && value != 1.0) {
            return Err(DecodeError::Value {
                index,
                value: code[index],
            });
        }
        let cell = |kind| {
            let mut nodes = [[Gene {
                primitive: Primitive::None,
                source: 0,
            }; 2]; N_NODES];
            for (node, genes) in (2..).zip(&mut nodes) {
                let found: Vec<Gene> = EDGES[self.edges_into(node)]
                    .iter()
                    .flat_map(|edge| {
                        Primitive::kept()
                            .filter(|&kept| code[self.code_index(kind, edge.index, kept)] == 1.0)
                            .map(|primitive| Gene {
                                primitive,
                                source: edge.source,
                            })
                    })
                    .collect();
                *genes = <[Gene; 2]>::try_from(found.as_slice())
                    .ok()
                    .filter(|[first, second]| first.source != second.source)
                    .ok_or(DecodeError::Node { kind, node })?;
            }
            Ok(CellGenotype { nodes })
        };
        Ok(Genotype {
            normal: cell(CellKind::Normal)?,
            reduction: cell(CellKind::Reduction)?,
        })
    }

    /// Draws a genotype, each of the [`n_genotypes`](Self::n_genotypes) with the same probability.
    ///
    /// Each node reads one of its pairs of states, each gene is one of the seven primitives that a
    /// genotype may keep, all independent and uniform. The genes of a node are listed by source.
    ///
    /// ```
    /// use rand_chacha::ChaCha8Rng;
    /// use rand_chacha::rand_core::SeedableRng;
    /// use space::SearchSpace;
    ///
    /// let space = SearchSpace::darts();
    /// let mut rng = ChaCha8Rng::seed_from_u64(0);
    /// let genotype = space.sample(&mut rng);
    /// assert_eq!(space.decode(&space.encode(&genotype)), Ok(genotype));
    /// ```
    pub fn sample(&self, rng: &mut impl Rng) -> Genotype {
        let mut cell = || CellGenotype {
            nodes: array::from_fn(|index| {
                // An ordered pair of distinct states; both orders make the same unordered pair.
                let n_states = index + 2;
                let first = rng.random_range(0..n_states);
                let other = rng.random_range(0..n_states - 1);
                let second = if other < first { other } else { other + 1 };
                [first.min(second), first.max(second)].map(|source| {
                    let primitive = Primitive::ALL[rng.random_range(1..N_PRIMITIVES)];
                    Gene { primitive, source }
                })
            }),
        };
        Genotype {
            normal: cell(),
            reduction: cell(),
        }
    }

    /// The number of genotypes, those that differ only in the order of a node's genes counted once:
    /// (180 · 7⁸)², about 1.08e18.
    pub fn n_genotypes(&self) -> u128 {
        let n_kept = N_PRIMITIVES as u128 - 1;
        let n_cells: u128 = (2..2 + N_NODES as u128)
            .map(|n_states| n_states * (n_states - 1) / 2 * n_kept.pow(2))
            .product();
        n_cells.pow(CellKind::ALL.len() as u32)
    }

    /// The genotype that continuous weights stand for (DARTS, section 2.4; PC-DARTS, section 3.3).
    ///
    /// `weights[kind]` is 14 x 8, edges by primitives, row-major: the softmax of alpha, for PC-DARTS
    /// times the softmax of beta. Each node keeps the two incoming edges whose best weight is
    /// largest, [`Primitive::None`] left out, and on each the primitive of that weight. Ties keep
    /// the lower edge index and the earlier primitive. The stronger edge is listed first, as the
    /// original code does.
    ///
    /// # Panics
    /// If a slice is not 112 long, or if a weight that is compared is NaN.
    pub fn derive(&self, weights: [&[f32]; 2]) -> Genotype {
        let [normal, reduction] = weights.map(|weights| {
            assert_eq!(
                weights.len(),
                CELL_LEN,
                "weights of a cell are {N_EDGES} x {N_PRIMITIVES}"
            );
            CellGenotype {
                nodes: array::from_fn(|index| {
                    let mut ranked: Vec<(f32, Gene)> = EDGES[self.edges_into(index + 2)]
                        .iter()
                        .map(|edge| {
                            let row = &weights[edge.index * N_PRIMITIVES..][..N_PRIMITIVES];
                            let (weight, primitive) = best_kept(row);
                            (
                                weight,
                                Gene {
                                    primitive,
                                    source: edge.source,
                                },
                            )
                        })
                        .collect();
                    // The sort is stable: of equal edges the lower index stays in front.
                    ranked.sort_by(|(a, _), (b, _)| compare(b, a));
                    [ranked[0].1, ranked[1].1]
                }),
            }
        });
        Genotype { normal, reduction }
    }

    /// A digest of everything that gives a code its meaning: 64 hexadecimal digits.
    ///
    /// Numbers learnt for the codes of one space are nonsense in another and still look plausible;
    /// whoever stores such numbers stores this beside them, and compares.
    pub fn fingerprint(&self) -> String {
        let mut hasher = blake3::Hasher::new();
        let mut line = |words: &str| {
            hasher.update(words.as_bytes());
            hasher.update(b"\n");
        };
        line("code 1: cell kind, edge, primitive");
        CellKind::ALL.iter().for_each(|kind| line(kind.name()));
        EDGES
            .iter()
            .for_each(|Edge { node, source, .. }| line(&format!("{source} to {node}")));
        Primitive::ALL
            .iter()
            .for_each(|primitive| line(primitive.name()));
        hasher.finalize().to_hex().to_string()
    }
}

/// The largest weight of an edge, `None` left out, and its primitive; of equals the first.
fn best_kept(row: &[f32]) -> (f32, Primitive) {
    Primitive::kept()
        .map(|primitive| (row[primitive.index()], primitive))
        .reduce(|best, next| {
            if compare(&next.0, &best.0).is_gt() {
                next
            } else {
                best
            }
        })
        .expect("a genotype may keep some primitive")
}

fn compare(a: &f32, b: &f32) -> std::cmp::Ordering {
    a.partial_cmp(b)
        .expect("weights to derive from must not be NaN")
}

/// Why a vector is not the code of a genotype.
#[derive(Clone, Copy, Debug, PartialEq, Error)]
pub enum DecodeError {
    /// The vector is not as long as a code.
    #[error("a code holds {CODE_LEN} numbers, this one {found}")]
    Length {
        /// Its length.
        found: usize,
    },
    /// A number is neither 0 nor 1.
    #[error("a genotype's code holds zeros and ones, this one {value} at index {index}")]
    Value {
        /// Where.
        index: usize,
        /// What stands there.
        value: f32,
    },
    /// The ones of a node do not name two edges with one primitive each.
    #[error("{kind} cell: the code does not give node {node} one primitive on each of two edges")]
    Node {
        /// The cell.
        kind: CellKind,
        /// The node, 2..=5.
        node: usize,
    },
}
