//! All genotypes: edges, codes, sampling, derivation.

use std::array;
use std::ops::Range;

use rand::{Rng, RngExt};
use thiserror::Error;

use crate::genotype::{CellGenotype, CellKind, Gene, Genotype, GenotypeError};
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
        let pair = |kind, node| {
            let ones: Vec<Gene> = EDGES[self.edges_into(node)]
                .iter()
                .flat_map(|edge| Primitive::ALL.map(|primitive| (edge, primitive)))
                .filter(|&(edge, primitive)| {
                    code[self.code_index(kind, edge.index, primitive)] == 1.0
                })
                .map(|(edge, primitive)| Gene {
                    primitive,
                    source: edge.source,
                })
                .collect();
            ones.as_slice().try_into().map_err(|_| DecodeError::Count {
                kind,
                node,
                found: ones.len(),
            })
        };
        let cell = |kind| {
            let nodes = [
                pair(kind, 2)?,
                pair(kind, 3)?,
                pair(kind, 4)?,
                pair(kind, 5)?,
            ];
            Ok::<_, DecodeError>(CellGenotype { nodes })
        };
        Ok(Genotype::new(
            cell(CellKind::Normal)?,
            cell(CellKind::Reduction)?,
        )?)
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
                    let primitive = Primitive::KEPT[rng.random_range(0..Primitive::KEPT.len())];
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
        let n_kept = Primitive::KEPT.len() as u128;
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
    Primitive::KEPT
        .into_iter()
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
    /// A node does not have two genes.
    #[error("{kind} cell: the code gives node {node} {found} genes; a genotype's has two")]
    Count {
        /// The cell.
        kind: CellKind,
        /// The node, 2..=5.
        node: usize,
        /// How many ones its edges hold.
        found: usize,
    },
    /// The genes make no genotype.
    #[error(transparent)]
    Genotype(#[from] GenotypeError),
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;

    use super::*;
    use crate::genotype::CellError;
    use crate::genotype::tests::genotypes;

    const SPACE: SearchSpace = SearchSpace::darts();

    #[test]
    fn edges_stand_by_node_then_by_source() {
        let pairs: Vec<_> = SPACE
            .edges()
            .iter()
            .map(|edge| (edge.node, edge.source))
            .collect();
        assert_eq!(
            pairs,
            [
                (2, 0),
                (2, 1),
                (3, 0),
                (3, 1),
                (3, 2),
                (4, 0),
                (4, 1),
                (4, 2),
                (4, 3),
                (5, 0),
                (5, 1),
                (5, 2),
                (5, 3),
                (5, 4),
            ]
        );
        for edge in SPACE.edges() {
            assert_eq!(SPACE.edge_index(edge.node, edge.source), edge.index);
            assert!(SPACE.edges_into(edge.node).contains(&edge.index));
        }
        assert_eq!(
            [2, 3, 4, 5].map(|node| SPACE.edges_into(node)),
            [0..2, 2..5, 5..9, 9..14]
        );
    }

    #[test]
    fn code_indices_are_row_major_and_cover_the_code() {
        let mut indices = Vec::new();
        for kind in CellKind::ALL {
            for edge in SPACE.edges() {
                for primitive in Primitive::ALL {
                    indices.push(SPACE.code_index(kind, edge.index, primitive));
                }
            }
        }
        assert_eq!(indices, (0..224).collect::<Vec<_>>());
        assert_eq!(SPACE.code_len(), 224);
    }

    #[test]
    fn the_space_is_as_large_as_published() {
        let n_cells = 180 * 7_u128.pow(8);
        assert_eq!(n_cells, 1_037_664_180);
        assert_eq!(SPACE.n_genotypes(), n_cells * n_cells);
    }

    #[test]
    fn a_code_has_its_ones_at_the_genes() {
        let code = SPACE.encode(&Genotype::named("DARTS_V2").unwrap());
        let ones: Vec<_> = (0..224).filter(|&index| code[index] == 1.0).collect();
        assert_eq!(
            ones,
            [
                // Normal: edge * 8 + primitive.
                4,
                8 + 4,
                2 * 8 + 4,
                3 * 8 + 4,
                5 * 8 + 3,
                6 * 8 + 4,
                9 * 8 + 3,
                11 * 8 + 6,
                // Reduction.
                112 + 1,
                112 + 8 + 1,
                112 + 3 * 8 + 1,
                112 + 4 * 8 + 3,
                112 + 5 * 8 + 1,
                112 + 7 * 8 + 3,
                112 + 10 * 8 + 1,
                112 + 11 * 8 + 3,
            ]
        );
        assert!(code.iter().all(|&value| value == 0.0 || value == 1.0));
    }

    #[test]
    fn decode_refuses_what_is_no_code() {
        let code = SPACE.encode(&Genotype::named("PDARTS").unwrap());
        let refusal = |change: &dyn Fn(&mut Vec<f32>)| {
            let mut code = code.clone();
            change(&mut code);
            SPACE.decode(&code).unwrap_err()
        };
        assert_eq!(
            refusal(&|code| code.truncate(112)),
            DecodeError::Length { found: 112 }
        );
        assert_eq!(
            refusal(&|code| code[7] = 0.5),
            DecodeError::Value {
                index: 7,
                value: 0.5
            }
        );
        assert!(matches!(
            refusal(&|code| code[7] = f32::NAN),
            DecodeError::Value { index: 7, .. }
        ));
        // Node 2 of PDARTS' reduction cell: avg_pool_3x3 of 0 and sep_conv_5x5 of 1.
        let kind = CellKind::Reduction;
        let at = |source, primitive| SPACE.code_index(kind, SPACE.edge_index(2, source), primitive);
        let count = |found| DecodeError::Count {
            kind,
            node: 2,
            found,
        };
        assert_eq!(
            refusal(&|code| code[at(0, Primitive::AvgPool3x3)] = 0.0),
            count(1)
        );
        assert_eq!(
            refusal(&|code| code[at(0, Primitive::MaxPool3x3)] = 1.0),
            count(3)
        );
        assert_eq!(
            refusal(&|code| {
                code[at(0, Primitive::AvgPool3x3)] = 0.0;
                code[at(1, Primitive::MaxPool3x3)] = 1.0;
            }),
            GenotypeError {
                kind,
                error: CellError::RepeatedSource { node: 2, state: 1 }
            }
            .into()
        );
        assert_eq!(
            refusal(&|code| {
                code[at(0, Primitive::AvgPool3x3)] = 0.0;
                code[at(0, Primitive::None)] = 1.0;
            }),
            GenotypeError {
                kind,
                error: CellError::NoneKept { node: 2 }
            }
            .into()
        );
    }

    /// The bytes that stored samples stand on: a change here is a change of what a seed means.
    #[test]
    fn a_seed_draws_what_it_always_drew() {
        let genotype = SPACE.sample(&mut ChaCha8Rng::seed_from_u64(0));
        assert_eq!(
            genotype.to_string(),
            "Genotype(normal=[('dil_conv_3x3', 0), ('sep_conv_3x3', 1), ('sep_conv_3x3', 1), \
             ('max_pool_3x3', 2), ('sep_conv_5x5', 0), ('sep_conv_3x3', 3), ('dil_conv_3x3', 2), \
             ('dil_conv_5x5', 4)], normal_concat=range(2, 6), reduce=[('dil_conv_5x5', 0), \
             ('avg_pool_3x3', 1), ('dil_conv_5x5', 1), ('dil_conv_3x3', 2), ('sep_conv_5x5', 1), \
             ('skip_connect', 2), ('sep_conv_5x5', 0), ('sep_conv_5x5', 4)], \
             reduce_concat=range(2, 6))"
        );
    }

    #[test]
    fn sampling_is_uniform() {
        const N: usize = 21_000;
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let mut pairs: BTreeMap<(CellKind, usize, usize, usize), usize> = BTreeMap::new();
        let mut genes: BTreeMap<(CellKind, usize, usize, Primitive), usize> = BTreeMap::new();
        for _ in 0..N {
            let genotype = SPACE.sample(&mut rng);
            for kind in CellKind::ALL {
                for (node, [first, second]) in (2..).zip(genotype.cell(kind).nodes) {
                    *pairs
                        .entry((kind, node, first.source, second.source))
                        .or_default() += 1;
                    *genes.entry((kind, node, 0, first.primitive)).or_default() += 1;
                    *genes.entry((kind, node, 1, second.primitive)).or_default() += 1;
                }
            }
        }
        // Every pair of every node, 1 + 3 + 6 + 10 in each cell, and seven primitives in every place.
        assert_eq!(pairs.len(), 2 * 20);
        assert_eq!(genes.len(), 2 * 8 * 7);
        // Five standard deviations of a binomial count.
        let near = |count: usize, share: f64| {
            let expected = N as f64 * share;
            (count as f64 - expected).abs() <= 5.0 * (expected * (1.0 - share)).sqrt()
        };
        for ((_, node, ..), count) in pairs {
            assert!(
                near(count, 2.0 / (node * (node - 1)) as f64),
                "node {node}: {count} of {N}"
            );
        }
        for (place, count) in genes {
            assert!(near(count, 1.0 / 7.0), "{place:?}: {count} of {N}");
        }
    }

    /// Weights of one cell: the given (node, source, primitive, weight), 0 elsewhere.
    fn weights(given: &[(usize, usize, Primitive, f32)]) -> Vec<f32> {
        let mut weights = vec![0.0; 112];
        for &(node, source, primitive, weight) in given {
            let edge = SPACE.edge_index(node, source);
            weights[SPACE.code_index(CellKind::Normal, edge, primitive)] = weight;
        }
        weights
    }

    fn derived(weights: &[f32]) -> CellGenotype {
        let genotype = SPACE.derive([weights, weights]);
        assert_eq!(genotype.normal, genotype.reduction);
        genotype.normal
    }

    fn gene(primitive: Primitive, source: usize) -> Gene {
        Gene { primitive, source }
    }

    #[test]
    fn derive_keeps_the_two_strongest_edges_the_stronger_first() {
        use Primitive::{AvgPool3x3, DilConv5x5, None, SepConv3x3, SkipConnect};
        let cell = derived(&weights(&[
            (2, 0, SkipConnect, 0.2),
            (2, 1, SepConv3x3, 0.3),
            // `none` leads on every edge of node 3, and counts on none.
            (3, 0, None, 0.9),
            (3, 0, AvgPool3x3, 0.1),
            (3, 1, None, 0.8),
            (3, 2, None, 0.7),
            (3, 2, DilConv5x5, 0.2),
            (3, 2, SepConv3x3, 0.15),
            // One edge's second best is no edge.
            (5, 4, SkipConnect, 0.5),
            (5, 4, SepConv3x3, 0.4),
            (5, 1, AvgPool3x3, 0.3),
        ]));
        assert_eq!(cell.nodes[0], [gene(SepConv3x3, 1), gene(SkipConnect, 0)]);
        assert_eq!(cell.nodes[1], [gene(DilConv5x5, 2), gene(AvgPool3x3, 0)]);
        assert_eq!(cell.nodes[3], [gene(SkipConnect, 4), gene(AvgPool3x3, 1)]);
    }

    #[test]
    fn derive_breaks_ties_by_the_lower_edge_and_the_earlier_primitive() {
        use Primitive::{DilConv3x3, MaxPool3x3, SepConv5x5};
        let cell = derived(&[0.125; 112]);
        assert_eq!(cell.nodes, [[gene(MaxPool3x3, 0), gene(MaxPool3x3, 1)]; 4]);

        let cell = derived(&weights(&[
            (4, 1, DilConv3x3, 0.25),
            (4, 2, SepConv5x5, 0.25),
            (4, 3, DilConv3x3, 0.25),
            (5, 3, SepConv5x5, 0.25),
            (5, 3, DilConv3x3, 0.25),
        ]));
        assert_eq!(cell.nodes[2], [gene(DilConv3x3, 1), gene(SepConv5x5, 2)]);
        assert_eq!(cell.nodes[3], [gene(SepConv5x5, 3), gene(MaxPool3x3, 0)]);
    }

    /// A stored predictor carries this digest; a change here makes every one of them unreadable, as it
    /// should if and only if codes have changed.
    #[test]
    fn the_fingerprint_stays() {
        assert_eq!(
            SPACE.fingerprint(),
            "a250c8cd2fc1388dc174e07490ed81914192967947547814032f10d1014d9abe"
        );
    }

    proptest! {
        #[test]
        fn decode_undoes_encode(genotype in genotypes()) {
            let code = SPACE.encode(&genotype);
            prop_assert_eq!(code.iter().sum::<f32>(), 16.0);
            prop_assert_eq!(code[..112].iter().sum::<f32>(), 8.0);
            prop_assert_eq!(SPACE.decode(&code), Ok(genotype));
        }

        #[test]
        fn deriving_from_a_code_leads_back(genotype in genotypes()) {
            let code = SPACE.encode(&genotype);
            let (normal, reduction) = code.split_at(112);
            prop_assert_eq!(SPACE.derive([normal, reduction]), genotype);
        }

        #[test]
        fn samples_are_valid(genotype in genotypes()) {
            prop_assert!(Genotype::new(genotype.normal, genotype.reduction).is_ok());
        }
    }
}
