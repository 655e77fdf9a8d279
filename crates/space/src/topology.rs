//! What a model of a whole space has to know of it: which edge reads what, which operations a node's
//! output depends on, and which numbers of a code are expected to cost alike.
//!
//! A [`Topology`] is data. [`Topology::darts`] belongs to the codes of
//! [`SearchSpace`]; [`Topology::nas_bench_201`] to those of
//! [`nas_bench_201`](crate::nas_bench_201).

use std::ops::Range;

use crate::genotype::CellKind;
use crate::primitive::Primitive;
use crate::space::SearchSpace;

/// A connection: from a state to a state that comes later.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Connection {
    /// The state that is read.
    pub source: usize,
    /// The state that the operation is added to.
    pub target: usize,
}

/// The cells of a search space and the layout of its codes: one number per (cell, edge, primitive), in
/// row-major order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Topology {
    /// The name of the space, as on command lines.
    pub name: &'static str,
    /// Cells that a code describes.
    pub n_cells: usize,
    /// States of a cell, inputs first.
    pub n_states: usize,
    /// The states that are inputs of a cell: the first ones.
    pub n_inputs: usize,
    /// The states that the output of a cell is made of.
    pub outputs: Range<usize>,
    /// The edges of a cell, in the order of the code.
    pub edges: Vec<Connection>,
    /// The names of the primitives, in the order of the code.
    pub primitives: Vec<&'static str>,
    /// The primitive that computes nothing and yields zeros.
    pub none: usize,
    /// Whether an architecture may keep [`none`](Self::none): only then may operations be without effect.
    pub keeps_none: bool,
    /// The group of each (cell, edge), row-major: on edges of one group a primitive is expected to cost
    /// the same.
    pub groups: Vec<usize>,
    /// Of each primitive the work that all edges that read one state share, if it begins with such: equal
    /// numbers are the same work, such as the ReLU in front of several convolutions.
    pub shared_work: Vec<Option<usize>>,
}

impl Topology {
    /// The space of [`SearchSpace::darts`].
    ///
    /// A primitive costs alike on all edges of normal cells, on the edges of reduction cells that have
    /// stride 2, and on their other edges. Poolings of one state, and the ReLU that all
    /// convolutions begin with, are computed once.
    pub fn darts() -> Self {
        let space = SearchSpace::darts();
        let groups = CellKind::ALL
            .into_iter()
            .flat_map(|kind| {
                space.edges().iter().map(move |edge| match kind {
                    CellKind::Normal => 0,
                    CellKind::Reduction if edge.source < 2 => 1,
                    CellKind::Reduction => 2,
                })
            })
            .collect();
        let shared_work = Primitive::ALL
            .into_iter()
            .map(|primitive| match primitive {
                Primitive::None | Primitive::SkipConnect => None,
                Primitive::MaxPool3x3 => Some(0),
                Primitive::AvgPool3x3 => Some(1),
                _ => Some(2),
            })
            .collect();
        Self {
            name: "darts",
            n_cells: CellKind::ALL.len(),
            n_states: 2 + space.n_nodes(),
            n_inputs: 2,
            outputs: 2..2 + space.n_nodes(),
            edges: space
                .edges()
                .iter()
                .map(|edge| Connection {
                    source: edge.source,
                    target: edge.node,
                })
                .collect(),
            primitives: Primitive::ALL.map(Primitive::name).to_vec(),
            none: Primitive::None.index(),
            keeps_none: false,
            groups,
            shared_work,
        }
    }

    /// The space of NAS-Bench-201 (Dong and Yang 2020): one cell of 4 states, all 6 edges kept, 5
    /// primitives.
    pub fn nas_bench_201() -> Self {
        let edges: Vec<Connection> = (1..4)
            .flat_map(|target| (0..target).map(move |source| Connection { source, target }))
            .collect();
        Self {
            name: "nas-bench-201",
            n_cells: 1,
            n_states: 4,
            n_inputs: 1,
            outputs: 3..4,
            groups: vec![0; edges.len()],
            edges,
            primitives: crate::nas_bench_201::PRIMITIVES.to_vec(),
            none: 0,
            keeps_none: true,
            shared_work: vec![None; crate::nas_bench_201::PRIMITIVES.len()],
        }
    }

    /// The space of that [`name`](Self::name).
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::darts(), Self::nas_bench_201()]
            .into_iter()
            .find(|topology| topology.name == name)
    }

    /// The names of all spaces.
    pub const NAMES: [&'static str; 2] = ["darts", "nas-bench-201"];

    /// Primitives of an edge.
    pub fn n_primitives(&self) -> usize {
        self.primitives.len()
    }

    /// The length of a code.
    pub fn code_len(&self) -> usize {
        self.n_cells * self.edges.len() * self.n_primitives()
    }

    /// Where a code holds the weight of a primitive on an edge.
    pub fn code_index(&self, cell: usize, edge: usize, primitive: usize) -> usize {
        (cell * self.edges.len() + edge) * self.n_primitives() + primitive
    }

    /// How many groups of edges there are.
    pub fn n_groups(&self) -> usize {
        self.groups.iter().max().map_or(0, |last| last + 1)
    }

    /// The class of each number of a code: one per group of edges and primitive.
    pub fn cost_classes(&self) -> Vec<usize> {
        let n = self.n_primitives();
        self.groups
            .iter()
            .flat_map(|group| (0..n).map(move |primitive| group * n + primitive))
            .collect()
    }

    /// All ways from an input of a cell to its output, each a list of edges.
    pub fn paths(&self) -> Vec<Vec<usize>> {
        let mut paths = Vec::new();
        let mut open: Vec<(usize, Vec<usize>)> =
            (0..self.n_inputs).map(|input| (input, vec![])).collect();
        while let Some((state, path)) = open.pop() {
            if self.outputs.contains(&state) && !path.is_empty() {
                paths.push(path.clone());
            }
            for (index, edge) in self.edges.iter().enumerate() {
                if edge.source == state {
                    open.push((edge.target, [&path[..], &[index]].concat()));
                }
            }
        }
        paths.sort();
        paths
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_of_darts_are_those_of_the_search_space() {
        let (space, topology) = (SearchSpace::darts(), Topology::darts());
        assert_eq!(topology.code_len(), space.code_len());
        for kind in CellKind::ALL {
            for edge in space.edges() {
                for primitive in Primitive::ALL {
                    assert_eq!(
                        topology.code_index(kind.index(), edge.index, primitive.index()),
                        space.code_index(kind, edge.index, primitive)
                    );
                }
            }
        }
    }

    #[test]
    fn classes_follow_primitive_cell_kind_and_stride() {
        let space = SearchSpace::darts();
        let classes = Topology::darts().cost_classes();
        let class = |kind, node, source, primitive| {
            classes[space.code_index(kind, space.edge_index(node, source), primitive)]
        };
        let (normal, reduction) = (CellKind::Normal, CellKind::Reduction);
        let conv = Primitive::SepConv3x3;
        assert_eq!(class(normal, 2, 0, conv), class(normal, 5, 4, conv));
        assert_eq!(class(reduction, 2, 0, conv), class(reduction, 5, 1, conv));
        assert_eq!(class(reduction, 3, 2, conv), class(reduction, 5, 4, conv));
        assert_ne!(class(reduction, 5, 1, conv), class(reduction, 5, 2, conv));
        assert_ne!(class(normal, 5, 1, conv), class(reduction, 5, 1, conv));
        assert_ne!(
            class(normal, 2, 0, conv),
            class(normal, 2, 0, Primitive::SepConv5x5)
        );
        assert_eq!(classes.len(), space.code_len());
        assert_eq!(classes.iter().max(), Some(&23));
    }

    #[test]
    fn four_paths_lead_through_a_cell_of_nas_bench_201() {
        let topology = Topology::nas_bench_201();
        assert_eq!(topology.code_len(), 30);
        assert_eq!(
            topology.paths(),
            [vec![0, 2, 5], vec![0, 4], vec![1, 5], vec![3]]
        );
    }

    #[test]
    fn names_lead_back() {
        for name in Topology::NAMES {
            assert_eq!(Topology::from_name(name).unwrap().name, name);
        }
        assert_eq!(Topology::from_name("nas-bench-301"), None);
    }
}
