//! What is read off a code before latency is modelled: sums and products of its numbers that mean something
//! on a device.
//!
//! Every feature is computed by a small circuit of gates over the numbers of a code, exact for
//! architectures and smooth between them, and led back through the circuit by the chain rule.
//!
//! | group | one feature per | what |
//! |---|---|---|
//! | `Edges` | number of the code | the number |
//! | `Counts` | group of edges and primitive | how many edges of the group keep it |
//! | `Shared` | state and work that its readers share | whether any reads it so |
//! | `Reaching` | edge and primitive | kept, and its result reaches the output: what a compiler leaves that drops dead code |
//! | `Effective` | edge and primitive | kept, reaches the output, and is reached from an input: what is left if zeros are propagated, too |
//! | `Nodes` | intermediate state | whether it lies between input and output |
//! | `Paths` | path and primitive | whether the path is whole, and how often it then has the primitive |
//!
//! Where no architecture can have an operation without effect, the last four say nothing new and are
//! left out.

use std::collections::BTreeSet;

use space::Topology;

/// An operation on the values of earlier gates.
enum Gate {
    /// A number of the code.
    Input(usize),
    Sum(Vec<usize>),
    Product(Vec<usize>),
    /// Whether any is: 1 - Π (1 - min(x, 1)).
    Any(Vec<usize>),
}

/// Features that belong together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Group {
    Edges,
    Counts,
    Shared,
    Reaching,
    ReachingCounts,
    Effective,
    EffectiveCounts,
    Nodes,
    Paths,
}

/// The circuit of a space.
pub(crate) struct Features {
    code_len: usize,
    gates: Vec<Gate>,
    groups: Vec<(Group, Vec<usize>)>,
}

impl Features {
    pub(crate) fn new(topology: &Topology) -> Self {
        let mut features = Self {
            code_len: topology.code_len(),
            gates: (0..topology.code_len()).map(Gate::Input).collect(),
            groups: Vec::new(),
        };
        let edges: Vec<usize> = (0..topology.code_len()).collect();
        features.counts(topology, Group::Counts, &edges);
        features.groups.push((Group::Edges, edges));
        features.shared(topology);
        if topology.keeps_none {
            features.effects(topology);
        }
        features
    }

    pub(crate) fn code_len(&self) -> usize {
        self.code_len
    }

    /// The gates of a group; none if it says nothing in this space.
    pub(crate) fn group(&self, group: Group) -> &[usize] {
        let found = self.groups.iter().find(|(name, _)| *name == group);
        found.map_or(&[], |(_, gates)| gates)
    }

    /// Whether a gate looks at that cell and at no other.
    pub(crate) fn is_of_cell(&self, topology: &Topology, gate: usize, cell: usize) -> bool {
        let mut cells = BTreeSet::new();
        let mut open = vec![gate];
        while let Some(gate) = open.pop() {
            match &self.gates[gate] {
                Gate::Input(index) => {
                    cells.insert(index / (self.code_len / topology.n_cells));
                }
                Gate::Sum(of) | Gate::Product(of) | Gate::Any(of) => open.extend(of),
            }
        }
        cells.iter().eq([&cell])
    }

    fn gate(&mut self, gate: Gate) -> usize {
        self.gates.push(gate);
        self.gates.len() - 1
    }

    /// Sums over the classes of the code, of gates that stand for its numbers.
    fn counts(&mut self, topology: &Topology, group: Group, gates: &[usize]) {
        let classes = topology.cost_classes();
        let sums = (0..topology.n_groups() * topology.n_primitives())
            .map(|class| {
                let members = gates.iter().zip(&classes).filter(|(_, c)| **c == class);
                Gate::Sum(members.map(|(gate, _)| *gate).collect())
            })
            .collect::<Vec<_>>();
        let sums = sums.into_iter().map(|gate| self.gate(gate)).collect();
        self.groups.push((group, sums));
    }

    fn shared(&mut self, topology: &Topology) {
        let n_works = topology.shared_work.iter().flatten().max();
        let mut gates = Vec::new();
        for cell in 0..topology.n_cells {
            for state in 0..topology.n_states {
                for work in 0..n_works.map_or(0, |last| last + 1) {
                    let mut readers = Vec::new();
                    for (index, edge) in topology.edges.iter().enumerate() {
                        for (primitive, shared) in topology.shared_work.iter().enumerate() {
                            if edge.source == state && *shared == Some(work) {
                                readers.push(topology.code_index(cell, index, primitive));
                            }
                        }
                    }
                    if readers.len() > 1 {
                        gates.push(self.gate(Gate::Any(readers)));
                    }
                }
            }
        }
        self.groups.push((Group::Shared, gates));
    }

    fn effects(&mut self, topology: &Topology) {
        let n_primitives = topology.n_primitives();
        let (mut reaching, mut effective) = (Vec::new(), Vec::new());
        let (mut nodes, mut paths) = (Vec::new(), Vec::new());
        for cell in 0..topology.n_cells {
            let place = |edge, primitive| topology.code_index(cell, edge, primitive);
            let kept = |edge| {
                (0..n_primitives)
                    .filter(|&primitive| primitive != topology.none)
                    .map(|primitive| place(edge, primitive))
                    .collect::<Vec<_>>()
            };
            let one = self.gate(Gate::Product(vec![]));
            let live: Vec<usize> = (0..topology.edges.len())
                .map(|edge| self.gate(Gate::Sum(kept(edge))))
                .collect();

            let mut reached = vec![one; topology.n_states];
            for state in topology.n_inputs..topology.n_states {
                reached[state] = self.ways(topology, &live, |edge| {
                    (edge.target == state).then(|| reached[edge.source])
                });
            }
            let mut reaches = vec![one; topology.n_states];
            for state in (0..topology.n_states).rev() {
                if !topology.outputs.contains(&state) {
                    reaches[state] = self.ways(topology, &live, |edge| {
                        (edge.source == state).then(|| reaches[edge.target])
                    });
                }
            }
            for state in topology.n_inputs..topology.n_states {
                nodes.push(self.gate(Gate::Product(vec![reached[state], reaches[state]])));
            }
            for (index, edge) in topology.edges.iter().enumerate() {
                for primitive in 0..n_primitives {
                    let code = place(index, primitive);
                    let reaching_gate = self.gate(Gate::Product(vec![code, reaches[edge.target]]));
                    reaching.push(reaching_gate);
                    effective
                        .push(self.gate(Gate::Product(vec![reaching_gate, reached[edge.source]])));
                }
            }
            for path in topology.paths() {
                let whole = self.gate(Gate::Product(path.iter().map(|&e| live[e]).collect()));
                paths.push(whole);
                for primitive in (0..n_primitives).filter(|&p| p != topology.none) {
                    let of_path = path.iter().map(|&edge| place(edge, primitive)).collect();
                    let count = self.gate(Gate::Sum(of_path));
                    paths.push(self.gate(Gate::Product(vec![whole, count])));
                }
            }
        }
        self.counts(topology, Group::ReachingCounts, &reaching);
        self.counts(topology, Group::EffectiveCounts, &effective);
        self.groups.extend([
            (Group::Reaching, reaching),
            (Group::Effective, effective),
            (Group::Nodes, nodes),
            (Group::Paths, paths),
        ]);
    }

    /// Whether any edge is alive that leads where `beyond` says, and what lies beyond is, too.
    fn ways(
        &mut self,
        topology: &Topology,
        live: &[usize],
        beyond: impl Fn(&space::Connection) -> Option<usize>,
    ) -> usize {
        let mut ways = Vec::new();
        for (edge, &live) in topology.edges.iter().zip(live) {
            if let Some(beyond) = beyond(edge) {
                ways.push(self.gate(Gate::Product(vec![live, beyond])));
            }
        }
        self.gate(Gate::Any(ways))
    }

    /// The value of every gate.
    ///
    /// # Panics
    /// If the code does not have the length that the space's codes have.
    pub(crate) fn values(&self, code: &[f32]) -> Vec<f64> {
        assert_eq!(code.len(), self.code_len, "length of the code");
        let mut values: Vec<f64> = Vec::with_capacity(self.gates.len());
        for gate in &self.gates {
            let value = match gate {
                Gate::Input(index) => f64::from(code[*index]),
                Gate::Sum(of) => of.iter().map(|&gate| values[gate]).sum(),
                Gate::Product(of) => of.iter().map(|&gate| values[gate]).product(),
                Gate::Any(of) => {
                    1.0 - of
                        .iter()
                        .map(|&gate| 1.0 - values[gate].min(1.0))
                        .product::<f64>()
                }
            };
            values.push(value);
        }
        values
    }

    /// The gradient with respect to the code, from that with respect to every gate.
    pub(crate) fn pull_back(&self, values: &[f64], mut grads: Vec<f64>) -> Vec<f32> {
        for (index, gate) in self.gates.iter().enumerate().rev() {
            let grad = grads[index];
            if grad == 0.0 {
                continue;
            }
            match gate {
                Gate::Input(_) => {}
                Gate::Sum(of) => of.iter().for_each(|&gate| grads[gate] += grad),
                Gate::Product(of) => {
                    for (place, &gate) in of.iter().enumerate() {
                        grads[gate] += grad * others(of, place, |gate| values[gate]);
                    }
                }
                Gate::Any(of) => {
                    for (place, &gate) in of.iter().enumerate() {
                        if values[gate] <= 1.0 {
                            grads[gate] +=
                                grad * others(of, place, |gate| 1.0 - values[gate].min(1.0));
                        }
                    }
                }
            }
        }
        grads[..self.code_len].iter().map(|&g| g as f32).collect()
    }
}

/// The product of all factors but one.
fn others(gates: &[usize], place: usize, factor: impl Fn(usize) -> f64) -> f64 {
    let but_one = gates
        .iter()
        .enumerate()
        .filter(|(other, _)| *other != place);
    but_one.map(|(_, &gate)| factor(gate)).product()
}

#[cfg(test)]
mod tests {
    use rand::{RngExt, SeedableRng};
    use rand_chacha::ChaCha8Rng;
    use space::nas_bench_201;

    use super::*;

    fn of(features: &Features, group: Group, code: &[f32]) -> Vec<f64> {
        let values = features.values(code);
        let gates = features.group(group).iter();
        gates.map(|&gate| values[gate]).collect()
    }

    #[test]
    fn dead_ends_and_what_zeros_feed_are_told_apart() {
        let features = Features::new(&Topology::nas_bench_201());
        // Node 1 is fed and read by nobody; node 2 is fed by nobody and read.
        let code = nas_bench_201::encode(
            "|nor_conv_3x3~0|+|none~0|none~1|+|skip_connect~0|none~1|nor_conv_1x1~2|",
        )
        .unwrap();
        let counts = |group| of(&features, group, &code);
        assert_eq!(counts(Group::Counts), [3.0, 1.0, 1.0, 1.0, 0.0]);
        // The convolution into node 1 does not reach the output.
        assert_eq!(counts(Group::ReachingCounts)[1..], [1.0, 1.0, 0.0, 0.0]);
        // The one behind node 2 works on zeros.
        assert_eq!(counts(Group::EffectiveCounts)[1..], [1.0, 0.0, 0.0, 0.0]);
        assert_eq!(counts(Group::Nodes), [0.0, 0.0, 1.0]);
        // Paths 0-1-2-3, 0-1-3, 0-2-3, 0-3; the last one is whole, with one skip.
        assert_eq!(counts(Group::Paths)[..15], [0.0; 15]);
        assert_eq!(counts(Group::Paths)[15..], [1.0, 1.0, 0.0, 0.0, 0.0]);
    }

    #[test]
    fn darts_shares_work_and_has_no_dead_ends() {
        let topology = Topology::darts();
        let features = Features::new(&topology);
        let space = space::SearchSpace::darts();
        let code = space.encode(&space::Genotype::named("DARTS_V2").unwrap());
        let shared: f64 = of(&features, Group::Shared, &code).iter().sum();
        // Normal: convolutions read 0, 1 and 2 (skips share nothing). Reduction: max poolings read 0 and 1.
        let cell = &space::Genotype::named("DARTS_V2").unwrap();
        let mut works = std::collections::BTreeSet::new();
        for kind in space::CellKind::ALL {
            for (_, gene) in cell.cell(kind).genes() {
                if let Some(work) = topology.shared_work[gene.primitive.index()] {
                    works.insert((kind, gene.source, work));
                }
            }
        }
        assert_eq!(shared, works.len() as f64);
        assert!(features.group(Group::Reaching).is_empty());
        assert_eq!(features.group(Group::Counts).len(), 24);
    }

    #[test]
    fn gradients_are_those_of_finite_differences() {
        let mut rng = ChaCha8Rng::seed_from_u64(5);
        for topology in [Topology::darts(), Topology::nas_bench_201()] {
            let features = Features::new(&topology);
            let code: Vec<f32> = (0..features.code_len())
                .map(|_| rng.random_range(0.05..0.3))
                .collect();
            let values = features.values(&code);
            let weights: Vec<f64> = values.iter().map(|_| rng.random_range(-1.0..1.0)).collect();
            let sum = |code: &[f32]| -> f64 {
                let values = features.values(code);
                values.iter().zip(&weights).map(|(v, w)| v * w).sum()
            };
            let grad = features.pull_back(&values, weights.clone());
            for index in 0..code.len() {
                let step = 1.0 / 256.0;
                let [low, high] = [-step, step].map(|step| {
                    let mut code = code.clone();
                    code[index] += step;
                    (sum(&code), f64::from(code[index]))
                });
                let slope = (high.0 - low.0) / (high.1 - low.1);
                let grad = f64::from(grad[index]);
                assert!(
                    (slope - grad).abs() < 1e-3 * (1.0 + grad.abs()),
                    "{slope} {grad}"
                );
            }
        }
    }
}
