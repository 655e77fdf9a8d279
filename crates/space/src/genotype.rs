//! The discrete architecture.

mod text;

pub use text::ParseGenotypeError;

use std::fmt;

use thiserror::Error;

use crate::primitive::Primitive;

/// Which of the two cells of a genotype.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum CellKind {
    /// Keeps width and resolution.
    Normal,
    /// Halves the resolution; the network doubles the width here.
    Reduction,
}

impl CellKind {
    /// Both kinds, in the order of the codes.
    pub const ALL: [Self; 2] = [Self::Normal, Self::Reduction];

    /// The position in [`CellKind::ALL`].
    pub const fn index(self) -> usize {
        self as usize
    }

    /// The original code's word: `normal` or `reduce`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Normal => "normal",
            Self::Reduction => "reduce",
        }
    }

    /// The kind of that [`name`](Self::name).
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }
}

impl fmt::Display for CellKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// One kept edge: what it computes and which state it reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Gene {
    /// The operation.
    pub primitive: Primitive,
    /// The state it reads: 0 and 1 are the two preceding cells, 2..=4 intermediate nodes.
    pub source: usize,
}

/// The genes of one cell.
///
/// The fields are plain data; [`CellGenotype::new`] and [`Genotype::new`] check them.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CellGenotype {
    /// The two genes of the intermediate nodes 2, 3, 4, 5.
    pub nodes: [[Gene; 2]; 4],
}

impl CellGenotype {
    /// The cell of these genes, two for each of the nodes 2, 3, 4, 5.
    ///
    /// # Errors
    /// If a gene reads a state that does not precede its node, if a node reads one state twice, or if
    /// a gene keeps [`Primitive::None`].
    pub fn new(nodes: [[Gene; 2]; 4]) -> Result<Self, CellError> {
        let cell = Self { nodes };
        for (node, Gene { primitive, source }) in cell.genes() {
            if source >= node {
                return Err(CellError::UnknownSource {
                    node,
                    state: source,
                });
            }
            if primitive == Primitive::None {
                return Err(CellError::NoneKept { node });
            }
        }
        for (node, [first, second]) in (2..).zip(nodes) {
            if first.source == second.source {
                return Err(CellError::RepeatedSource {
                    node,
                    state: first.source,
                });
            }
        }
        Ok(cell)
    }

    /// The eight genes with the node (2..=5) that each feeds, in order.
    pub fn genes(&self) -> impl Iterator<Item = (usize, Gene)> {
        (2..)
            .zip(self.nodes)
            .flat_map(|(node, genes)| genes.map(|gene| (node, gene)))
    }

    /// The canonical form; see [`Genotype::canonical`].
    fn canonical(&self) -> Self {
        permutations()
            .filter_map(|places| self.relabelled(places))
            .min_by_key(Self::key)
            .expect("the identity relabels any checked cell")
    }

    /// The same graph with intermediate node `i + 2` moved to `places[i]` and the genes of each node
    /// sorted; none if a gene would then read a state that comes after it.
    fn relabelled(&self, places: [usize; 4]) -> Option<Self> {
        let mut nodes = self.nodes;
        for (place, genes) in places.into_iter().zip(self.nodes) {
            let mut genes = genes.map(|gene| Gene {
                source: if gene.source < 2 {
                    gene.source
                } else {
                    places[gene.source - 2]
                },
                ..gene
            });
            if genes.iter().any(|gene| gene.source >= place) {
                return None;
            }
            genes.sort_by_key(|gene| gene.source);
            nodes[place - 2] = genes;
        }
        Some(Self { nodes })
    }

    /// Orders cells by what they read first, then by what they compute.
    fn key(&self) -> [[(usize, Primitive); 2]; 4] {
        self.nodes
            .map(|genes| genes.map(|gene| (gene.source, gene.primitive)))
    }
}

/// The 24 permutations of the intermediate nodes.
fn permutations() -> impl Iterator<Item = [usize; 4]> {
    let words = (0..256).map(|word| [0, 2, 4, 6].map(|shift| 2 + (word >> shift & 3)));
    words.filter(|places| (2..6).all(|node| places.contains(&node)))
}

/// The discrete architecture: one cell of each kind, repeated through the network.
///
/// Reads and writes the tuple form of the original DARTS code, so that genotypes from papers can be
/// pasted ([`FromStr`](std::str::FromStr), [`Display`](fmt::Display)):
///
/// ```
/// use space::Genotype;
///
/// let genotype: Genotype = "
///     PC_DARTS_cifar = Genotype(
///         normal=[('sep_conv_3x3', 1), ('skip_connect', 0), ('sep_conv_3x3', 0), ('dil_conv_3x3', 1),
///                 ('sep_conv_5x5', 0), ('sep_conv_3x3', 1), ('avg_pool_3x3', 0), ('dil_conv_3x3', 1)],
///         normal_concat=range(2, 6),
///         reduce=[('sep_conv_5x5', 1), ('max_pool_3x3', 0), ('sep_conv_5x5', 1), ('sep_conv_5x5', 2),
///                 ('sep_conv_3x3', 0), ('sep_conv_3x3', 3), ('sep_conv_3x3', 1), ('sep_conv_3x3', 2)],
///         reduce_concat=range(2, 6))"
///     .parse()?;
/// assert_eq!(genotype.to_string().parse::<Genotype>()?, genotype);
/// assert_eq!(Genotype::named("PC_DARTS_cifar"), Some(genotype));
/// # Ok::<(), space::ParseGenotypeError>(())
/// ```
///
/// `==` compares the genes as they are listed; compare [`canonical`](Self::canonical) forms to ask
/// whether two genotypes are one graph.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Genotype {
    /// The normal cell.
    pub normal: CellGenotype,
    /// The reduction cell.
    pub reduction: CellGenotype,
}

/// The published genotypes, each a file in the tuple form.
const PUBLISHED: [(&str, &str); 5] = [
    ("DARTS_V1", include_str!("../genotypes/DARTS_V1.txt")),
    ("DARTS_V2", include_str!("../genotypes/DARTS_V2.txt")),
    ("PDARTS", include_str!("../genotypes/PDARTS.txt")),
    (
        "PC_DARTS_cifar",
        include_str!("../genotypes/PC_DARTS_cifar.txt"),
    ),
    (
        "PC_DARTS_image",
        include_str!("../genotypes/PC_DARTS_image.txt"),
    ),
];

const PUBLISHED_NAMES: [&str; PUBLISHED.len()] = {
    let mut names = [""; PUBLISHED.len()];
    let mut index = 0;
    while index < names.len() {
        names[index] = PUBLISHED[index].0;
        index += 1;
    }
    names
};

impl Genotype {
    /// The genotype of these two cells.
    ///
    /// # Errors
    /// If a cell is not valid, as in [`CellGenotype::new`].
    pub fn new(normal: CellGenotype, reduction: CellGenotype) -> Result<Self, GenotypeError> {
        let checked = |kind, cell: CellGenotype| {
            CellGenotype::new(cell.nodes).map_err(|error| GenotypeError { kind, error })
        };
        Ok(Self {
            normal: checked(CellKind::Normal, normal)?,
            reduction: checked(CellKind::Reduction, reduction)?,
        })
    }

    /// The published genotype of that name (one of [`Genotype::names`]).
    pub fn named(name: &str) -> Option<Self> {
        let (name, text) = PUBLISHED
            .into_iter()
            .find(|(published, _)| *published == name)?;
        match text.parse() {
            Ok(genotype) => Some(genotype),
            Err(error) => unreachable!("genotypes/{name}.txt is tested to parse: {error}"),
        }
    }

    /// The names of the published genotypes.
    pub fn names() -> &'static [&'static str] {
        &PUBLISHED_NAMES
    }

    /// The cell of that kind.
    pub fn cell(&self, kind: CellKind) -> &CellGenotype {
        match kind {
            CellKind::Normal => &self.normal,
            CellKind::Reduction => &self.reduction,
        }
    }

    /// The one representative of all genotypes that are the same graph.
    ///
    /// A graph may be listed in many ways: the two genes of a node in either order, and the
    /// intermediate nodes in any order in which each comes after what it reads. The networks of such
    /// genotypes differ by a permutation of channels alone. The canonical form lists the genes of
    /// a node by source and, of all relabellings of the nodes, takes the one that comes first when
    /// (source, primitive) pairs are compared in order.
    ///
    /// # Panics
    /// If the genotype was put together by hand and [`Genotype::new`] would refuse it.
    pub fn canonical(&self) -> Self {
        Self {
            normal: self.normal.canonical(),
            reduction: self.reduction.canonical(),
        }
    }

    /// How many genes of the cell are skip connections.
    pub fn n_skips(&self, kind: CellKind) -> usize {
        self.cell(kind)
            .genes()
            .filter(|(_, gene)| gene.primitive == Primitive::SkipConnect)
            .count()
    }

    /// Convolutions of a cell, separable and dilated.
    pub fn n_convolutions(&self, kind: CellKind) -> usize {
        let genes = self.cell(kind).genes();
        genes
            .filter(|(_, gene)| gene.primitive.has_parameters())
            .count()
    }
}

/// Why eight genes are not a cell.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum CellError {
    /// A gene reads a state that does not precede its node.
    #[error("node {node} reads state {state}, but only states before {node} exist there")]
    UnknownSource {
        /// The node, 2..=5.
        node: usize,
        /// The state it claims to read.
        state: usize,
    },
    /// Both genes of a node read the same state.
    #[error("node {node} reads state {state} twice; its two genes must read two states")]
    RepeatedSource {
        /// The node, 2..=5.
        node: usize,
        /// The state it reads twice.
        state: usize,
    },
    /// A gene keeps the primitive `none`.
    #[error("node {node} keeps the primitive `none`, which only the search knows")]
    NoneKept {
        /// The node, 2..=5.
        node: usize,
    },
}

/// Why two cells are not a genotype.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("{kind} cell: {error}")]
pub struct GenotypeError {
    /// The cell at fault.
    pub kind: CellKind,
    /// What is wrong with it.
    pub error: CellError,
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;

    use super::*;
    use crate::space::SearchSpace;

    /// Genotypes drawn uniformly, the genes of each node listed by source.
    pub(crate) fn genotypes() -> impl Strategy<Value = Genotype> {
        let sample = |seed| SearchSpace::darts().sample(&mut ChaCha8Rng::seed_from_u64(seed));
        any::<u64>().prop_map(sample)
    }

    /// A cell of `(primitive, source)` pairs.
    fn cell(genes: [(Primitive, usize); 8]) -> CellGenotype {
        let [a, b, c, d, e, f, g, h] = genes.map(|(primitive, source)| Gene { primitive, source });
        CellGenotype {
            nodes: [[a, b], [c, d], [e, f], [g, h]],
        }
    }

    /// What each node computes, as an expression over the states 0 and 1: how a graph looks from its
    /// outputs, whatever its nodes are called.
    fn expressions(cell: &CellGenotype) -> Vec<String> {
        let mut states = vec!["0".to_owned(), "1".to_owned()];
        for genes in &cell.nodes {
            let mut terms =
                genes.map(|gene| format!("{}({})", gene.primitive, states[gene.source]));
            terms.sort();
            states.push(terms.join("+"));
        }
        let mut expressions = states.split_off(2);
        expressions.sort();
        expressions
    }

    #[test]
    fn published_genotypes_parse_and_are_valid() {
        assert_eq!(
            Genotype::names(),
            [
                "DARTS_V1",
                "DARTS_V2",
                "PDARTS",
                "PC_DARTS_cifar",
                "PC_DARTS_image"
            ]
        );
        for ((name, text), listed) in PUBLISHED.into_iter().zip(Genotype::names()) {
            assert_eq!(name, *listed);
            assert!(text.contains(&format!("\n{name} = Genotype(")), "{name}");
            let genotype: Genotype = text.parse().unwrap();
            assert_eq!(Genotype::named(name), Some(genotype));
        }
        assert_eq!(Genotype::named("AmoebaNet"), None);
    }

    #[test]
    fn published_genotypes_skip_as_often_as_published() {
        let n_skips = |name| CellKind::ALL.map(|kind| Genotype::named(name).unwrap().n_skips(kind));
        assert_eq!(n_skips("DARTS_V1"), [3, 3]);
        assert_eq!(n_skips("DARTS_V2"), [2, 3]);
        assert_eq!(n_skips("PDARTS"), [2, 0]);
        assert_eq!(n_skips("PC_DARTS_cifar"), [1, 0]);
        assert_eq!(n_skips("PC_DARTS_image"), [2, 1]);
    }

    #[test]
    fn genes_come_with_their_nodes_in_order() {
        let genotype = Genotype::named("DARTS_V1").unwrap();
        let genes: Vec<_> = genotype
            .cell(CellKind::Reduction)
            .genes()
            .map(|(node, gene)| (node, gene.primitive.name(), gene.source))
            .collect();
        assert_eq!(
            genes[..3],
            [
                (2, "max_pool_3x3", 0),
                (2, "max_pool_3x3", 1),
                (3, "skip_connect", 2)
            ]
        );
        assert_eq!(genes[7], (5, "avg_pool_3x3", 0));
    }

    #[test]
    fn a_genotype_that_is_none_is_refused_with_its_place() {
        let good = Genotype::named("DARTS_V1").unwrap();
        let refusal = |change: &dyn Fn(&mut CellGenotype)| {
            let mut reduction = good.reduction.clone();
            change(&mut reduction);
            Genotype::new(good.normal.clone(), reduction)
                .unwrap_err()
                .to_string()
        };
        assert_eq!(
            refusal(&|cell| cell.nodes[1][1].source = 3),
            "reduce cell: node 3 reads state 3, but only states before 3 exist there"
        );
        assert_eq!(
            refusal(&|cell| cell.nodes[3][0].source = 0),
            "reduce cell: node 5 reads state 0 twice; its two genes must read two states"
        );
        assert_eq!(
            refusal(&|cell| cell.nodes[0][0].primitive = Primitive::None),
            "reduce cell: node 2 keeps the primitive `none`, which only the search knows"
        );
    }

    #[test]
    fn there_are_24_permutations() {
        let mut all: Vec<_> = permutations().collect();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), 24);
    }

    #[test]
    fn one_graph_has_one_canonical_form() {
        use Primitive::{AvgPool3x3, DilConv3x3, SepConv3x3, SepConv5x5, SkipConnect};
        // Nodes 2 and 3 read the inputs alone; node 4 reads node 2; node 5 reads nodes 3 and 4.
        let first = cell([
            (SepConv3x3, 0),
            (SkipConnect, 1),
            (AvgPool3x3, 0),
            (SepConv5x5, 1),
            (SkipConnect, 2),
            (DilConv3x3, 0),
            (SepConv3x3, 3),
            (SepConv3x3, 4),
        ]);
        // The same with nodes 2 and 3 exchanged, and genes turned round.
        let second = cell([
            (SepConv5x5, 1),
            (AvgPool3x3, 0),
            (SepConv3x3, 0),
            (SkipConnect, 1),
            (DilConv3x3, 0),
            (SkipConnect, 3),
            (SepConv3x3, 4),
            (SepConv3x3, 2),
        ]);
        // The same with node 4 before node 3: 3 now reads 2, and 4 the inputs.
        let third = cell([
            (SepConv3x3, 0),
            (SkipConnect, 1),
            (SkipConnect, 2),
            (DilConv3x3, 0),
            (AvgPool3x3, 0),
            (SepConv5x5, 1),
            (SepConv3x3, 4),
            (SepConv3x3, 3),
        ]);
        // Another graph: node 4 reads the other node.
        let other = cell([
            (SepConv3x3, 0),
            (SkipConnect, 1),
            (AvgPool3x3, 0),
            (SepConv5x5, 1),
            (SkipConnect, 3),
            (DilConv3x3, 0),
            (SepConv3x3, 3),
            (SepConv3x3, 4),
        ]);
        assert_eq!(first.canonical(), second.canonical());
        assert_eq!(first.canonical(), third.canonical());
        assert_ne!(first.canonical(), other.canonical());
    }

    proptest! {
        #[test]
        fn canonical_forms_ignore_gene_order_and_node_names(
            genotype in genotypes(),
            turned in any::<[bool; 4]>(),
            permutation in 0..24_usize,
        ) {
            let cell = &genotype.normal;
            let places = permutations().nth(permutation).unwrap();
            // Not every permutation keeps each node behind what it reads.
            if let Some(mut same) = cell.relabelled(places) {
                for (genes, turned) in same.nodes.iter_mut().zip(turned) {
                    if turned {
                        genes.reverse();
                    }
                }
                prop_assert!(CellGenotype::new(same.nodes).is_ok());
                prop_assert_eq!(expressions(&same), expressions(cell));
                prop_assert_eq!(same.canonical(), cell.canonical());
            }
        }

        #[test]
        fn canonical_forms_are_the_same_graph_and_stay(genotype in genotypes()) {
            let canonical = genotype.canonical();
            prop_assert!(Genotype::new(canonical.normal.clone(), canonical.reduction.clone()).is_ok());
            for kind in CellKind::ALL {
                prop_assert_eq!(
                    expressions(canonical.cell(kind)),
                    expressions(genotype.cell(kind))
                );
            }
            prop_assert_eq!(canonical.canonical(), canonical);
        }
    }
}
