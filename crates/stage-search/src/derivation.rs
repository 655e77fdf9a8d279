//! The genotype that alpha stands for, within limits: a latency, a number of skips, of convolutions.
//!
//! Without limits it is that of [`SearchSpace::derive`], which of all genotypes has the largest *score*:
//! the sum over its genes of ln(weight), the weight being softmax(alpha), times softmax(beta) where there
//! is one. Within limits it is the genotype of largest score that keeps to them: the cheapest change.
//!
//! The nodes of both cells choose independently of each other but for the latency. It is taken as the
//! latency of a genotype that is nearly right plus what each node's other choices add to it, which makes
//! a knapsack with one item per node, solved by dynamic programming; then the model is asked about the
//! outcome, and its answer moves the next round.

use nn::Rng;
use rand::RngExt as _;
use space::{CellGenotype, CellKind, Gene, Genotype, Primitive, SearchSpace};

use crate::config::{GuardsConfig, Policy};

/// What the genotype must keep to.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Limits {
    /// What genes may be.
    pub(crate) genes: GeneLimits,
    /// The latency, in ms; `None` = any.
    pub(crate) band: Option<Band>,
}

/// How often primitives may come out.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct GeneLimits {
    /// Skip connections of the normal cell, at most.
    pub(crate) max_skips_normal: usize,
    /// Convolutions of each cell, at least.
    pub(crate) min_convolutions: usize,
}

impl GeneLimits {
    /// Everything may be.
    pub(crate) const NONE: Self = Self {
        max_skips_normal: N_GENES,
        min_convolutions: 0,
    };

    /// Those of guards, unless they are off.
    pub(crate) fn of(guards: &GuardsConfig) -> Self {
        match guards.policy {
            Policy::Off => Self::NONE,
            _ => Self {
                max_skips_normal: guards.max_skips,
                min_convolutions: guards.min_convolutions,
            },
        }
    }

    /// By how many genes a genotype misses them.
    pub(crate) fn excess(self, genotype: &Genotype) -> usize {
        let n_skips = genotype.n_skips(CellKind::Normal);
        let missing = CellKind::ALL.map(|kind| {
            let n_convolutions = genotype.n_convolutions(kind);
            self.min_convolutions.saturating_sub(n_convolutions)
        });
        n_skips.saturating_sub(self.max_skips_normal) + missing.iter().sum::<usize>()
    }

    /// Wider by `n` genes: convolutions give way first, so that no skip is there that the target does not force.
    pub(crate) fn wider(self, n: usize) -> Self {
        let min_convolutions = self.min_convolutions.min(N_GENES);
        let n_skips = n.saturating_sub(min_convolutions);
        Self {
            max_skips_normal: self
                .max_skips_normal
                .min(N_GENES)
                .saturating_add(n_skips)
                .min(N_GENES),
            min_convolutions: min_convolutions.saturating_sub(n),
        }
    }

    /// The most skips and the most genes that are no convolutions, of the normal cell and of the reduction cell.
    fn most(self) -> [Counts; 2] {
        let others = N_GENES - self.min_convolutions.min(N_GENES);
        [self.max_skips_normal.min(N_GENES), N_GENES].map(|skips| Counts { skips, others })
    }
}

/// Genes of one cell.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Counts {
    skips: usize,
    /// That are no convolutions, skips among them.
    others: usize,
}

/// A range of latencies, in ms.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Band {
    /// Below is needless sacrifice.
    pub(crate) low_millis: f64,
    /// Above is not allowed.
    pub(crate) high_millis: f64,
}

impl Band {
    /// Whether a latency is neither below nor above.
    pub(crate) fn contains(&self, millis: f64) -> bool {
        (self.low_millis..=self.high_millis).contains(&millis)
    }

    /// How far a latency is off.
    fn gap_millis(&self, millis: f64) -> f64 {
        if self.contains(millis) {
            0.0
        } else {
            (millis - self.high_millis).max(self.low_millis - millis)
        }
    }
}

/// A genotype within limits, or as near to them as there is.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Derivation {
    /// The genotype.
    pub(crate) genotype: Genotype,
    /// What the weights stand for, without limits; of a draw the draw itself.
    pub(crate) free: Genotype,
    /// Genes in which both differ.
    pub(crate) n_changed_genes: usize,
    /// Whether its latency is not above the band.
    pub(crate) is_met: bool,
    /// Genes by which the limits of the genes gave way.
    pub(crate) n_given_way: usize,
}

impl Derivation {
    /// Of a genotype that keeps to all limits as it is, but for so many genes.
    pub(crate) fn unchanged(genotype: Genotype, n_given_way: usize) -> Self {
        Self {
            free: genotype.clone(),
            genotype,
            n_changed_genes: 0,
            is_met: true,
            n_given_way,
        }
    }
}

/// Nodes that a draw exchanges at most to come within limits.
const MAX_EXCHANGES: usize = 2_000;

/// A genotype within limits, made of draws of `draw`; `None` if it did not come to any.
///
/// It is brought there by other draws: one node after the other is taken from another, where that leads no further
/// away from the limits. Draws that keep to them as they are would take a thousand questions to the latency model each.
pub(crate) fn draw_within(
    limits: Limits,
    upper_millis: impl Fn(&Genotype) -> f64,
    draw: impl Fn(&mut Rng) -> Genotype,
    rng: &mut Rng,
) -> Option<Genotype> {
    let excess = |genotype: &Genotype| {
        let gap = |band: Band| band.gap_millis(upper_millis(genotype));
        (limits.genes.excess(genotype), limits.band.map_or(0.0, gap))
    };
    let mut genotype = draw(rng);
    let mut own = excess(&genotype);
    for _ in 0..MAX_EXCHANGES {
        if own == (0, 0.0) {
            return Some(genotype);
        }
        let other = draw(rng);
        let other = with_node(&genotype, &other, rng.random_range(0..N_NODES));
        let theirs = excess(&other);
        if theirs <= own {
            (genotype, own) = (other, theirs);
        }
    }
    None
}

/// A genotype with one node of another, counted over both cells.
fn with_node(genotype: &Genotype, other: &Genotype, node: usize) -> Genotype {
    let [normal, reduction] = CellKind::ALL.map(|kind| {
        let own = [genotype, other].map(|genotype| genotype.cell(kind).genes());
        let [own, other] = own.map(|genes| genes.map(|(_, gene)| gene).collect::<Vec<_>>());
        let nodes = std::array::from_fn(|index| {
            let is_it = kind.index() * N_NODES / 2 + index == node;
            let genes = if is_it { &other } else { &own };
            [genes[2 * index], genes[2 * index + 1]]
        });
        CellGenotype::new(nodes).expect("both are cells")
    });
    Genotype::new(normal, reduction).expect("both are cells of one search space")
}

/// Nodes of both cells.
const N_NODES: usize = 8;
/// Genes of a cell.
const N_GENES: usize = 8;
/// Steps into which the range of latencies is cut.
const N_BINS: usize = 1500;
/// Rounds of the knapsack.
const N_ROUNDS: usize = 12;

/// What a node may keep.
#[derive(Clone, Copy)]
struct Choice {
    genes: [Gene; 2],
    score: f64,
    counts: Counts,
}

/// The choice of each node, an index into its list: the normal cell's nodes first.
type Picks = [usize; N_NODES];

/// Derives within limits. `upper_millis` is what the latency limit compares.
///
/// If no genotype keeps to all limits, those of the genes give way, gene by gene; if none is fast enough
/// then, the fastest that was found comes out, not met.
pub(crate) fn derive(
    ranks: [&[f32]; 2],
    limits: Limits,
    upper_millis: impl Fn(&Genotype) -> f64,
) -> Derivation {
    let free = SearchSpace::darts().derive(ranks);
    let search = Knapsack {
        choices: choices(ranks),
        upper_millis,
    };
    let mut fallback = None;
    for n in 0..=2 * N_GENES {
        let genes = limits.genes.wider(n);
        if n > 0 && genes == limits.genes.wider(n - 1) {
            break;
        }
        let (picks, is_met) = search.solve(&free, limits.band, genes);
        let derivation = Derivation {
            n_given_way: n,
            ..search.derivation(&picks, is_met, &free)
        };
        if is_met {
            return derivation;
        }
        fallback = Some(derivation);
    }
    fallback.expect("the limits as they are were tried")
}

/// The genotype with the lowest latency that steepest descents over the nodes find, and its latency; or the first on their
/// way that takes no longer than `enough_millis`.
pub(crate) fn fastest(
    upper_millis: impl Fn(&Genotype) -> f64,
    enough_millis: f64,
) -> (Genotype, f64) {
    let uniform = vec![1.0; 112];
    let ranks: [&[f32]; 2] = [&uniform, &uniform];
    let search = Knapsack {
        choices: choices(ranks),
        upper_millis,
    };
    let picks = search.fastest(GeneLimits::NONE, enough_millis);
    let genotype = search.genotype(&picks);
    let millis = (search.upper_millis)(&genotype);
    (genotype, millis)
}

/// All that each node may keep.
fn choices(ranks: [&[f32]; 2]) -> [Vec<Choice>; N_NODES] {
    let space = SearchSpace::darts();
    std::array::from_fn(|index| {
        let (cell, node) = (index / space.n_nodes(), 2 + index % space.n_nodes());
        let weight = |source, primitive: Primitive| {
            let edge = space.edge_index(node, source);
            f64::from(ranks[cell][edge * space.n_primitives() + primitive.index()])
        };
        let mut choices = Vec::new();
        for second in 1..node {
            for first in 0..second {
                for primitive in Primitive::KEPT {
                    for other in Primitive::KEPT {
                        let (a, b) = (weight(first, primitive), weight(second, other));
                        let mut genes = [(primitive, first), (other, second)]
                            .map(|(primitive, source)| Gene { primitive, source });
                        if b > a {
                            genes.swap(0, 1);
                        }
                        let score = [a, b].map(|w| w.max(f64::MIN_POSITIVE).ln()).iter().sum();
                        let count = |is_such: fn(&Gene) -> bool| {
                            genes.iter().filter(|gene| is_such(gene)).count()
                        };
                        choices.push(Choice {
                            genes,
                            score,
                            counts: Counts {
                                skips: count(|gene| gene.primitive == Primitive::SkipConnect),
                                others: count(|gene| !gene.primitive.has_parameters()),
                            },
                        });
                    }
                }
            }
        }
        choices
    })
}

struct Knapsack<F> {
    choices: [Vec<Choice>; N_NODES],
    upper_millis: F,
}

impl<F: Fn(&Genotype) -> f64> Knapsack<F> {
    fn genotype(&self, picks: &Picks) -> Genotype {
        let genes = |index: usize| self.choices[index][picks[index]].genes;
        let cell = |first: usize| space::CellGenotype {
            nodes: std::array::from_fn(|node| genes(first + node)),
        };
        Genotype {
            normal: cell(0),
            reduction: cell(N_NODES / 2),
        }
    }

    fn millis(&self, picks: &Picks) -> f64 {
        (self.upper_millis)(&self.genotype(picks))
    }

    fn score(&self, picks: &Picks) -> f64 {
        let of = |index: usize| self.choices[index][picks[index]].score;
        (0..N_NODES).map(of).sum()
    }

    /// By how many genes the picks are beyond limits.
    fn excess(&self, picks: &Picks, limits: GeneLimits) -> usize {
        let mut excess = 0;
        for (cell, most) in limits.most().into_iter().enumerate() {
            let nodes = cell * N_NODES / 2..(cell + 1) * N_NODES / 2;
            let counts = nodes.map(|node| self.choices[node][picks[node]].counts);
            let sum = counts.fold(Counts::default(), |sum, own| Counts {
                skips: sum.skips + own.skips,
                others: sum.others + own.others,
            });
            excess += sum.skips.saturating_sub(most.skips);
            excess += sum.others.saturating_sub(most.others);
        }
        excess
    }

    /// The picks that make this genotype.
    fn picks(&self, genotype: &Genotype) -> Picks {
        let nodes = CellKind::ALL.map(|kind| genotype.cell(kind).nodes);
        std::array::from_fn(|index| {
            let [a, b] = nodes[index / 4][index % 4];
            let same = |choice: &Choice| choice.genes == [a, b] || choice.genes == [b, a];
            let found = self.choices[index].iter().position(same);
            found.expect("every genotype's genes are among the choices")
        })
    }

    fn derivation(&self, picks: &Picks, is_met: bool, free: &Genotype) -> Derivation {
        // Where nothing changed the genotype is listed as derivation lists it.
        let genotype = if *picks == self.picks(free) {
            free.clone()
        } else {
            self.genotype(picks)
        };
        Derivation {
            n_changed_genes: n_different_genes(&genotype, free),
            free: free.clone(),
            genotype,
            is_met,
            n_given_way: 0,
        }
    }

    /// The best picks, and whether they keep below the band's top.
    fn solve(&self, free: &Genotype, band: Option<Band>, limits: GeneLimits) -> (Picks, bool) {
        let free = self.picks(free);
        let Some(band) = band else {
            let picks = if self.excess(&free, limits) == 0 {
                free
            } else {
                let nothing = [(); N_NODES].map(|()| 0.0);
                let flat = self.choices.each_ref().map(|list| vec![0.0; list.len()]);
                let any = Band {
                    low_millis: f64::NEG_INFINITY,
                    high_millis: f64::INFINITY,
                };
                self.knapsack(nothing.iter().sum(), &flat, any, limits)
                    .expect(
                        "without a latency limit there is always a choice of convolutions alone",
                    )
            };
            return (picks, true);
        };
        let is_in = |millis: f64| (band.low_millis..=band.high_millis).contains(&millis);
        if is_in(self.millis(&free)) && self.excess(&free, limits) == 0 {
            return (free, true);
        }
        let mut best: Option<(bool, f64, Picks)> = None;
        let mut base = free;
        let mut aim = band;
        for _ in 0..N_ROUNDS {
            let base_millis = self.millis(&base);
            let deltas = self.deltas(&base, base_millis);
            let Some(picks) = self.knapsack(base_millis, &deltas, aim, limits) else {
                break;
            };
            let millis = self.millis(&picks);
            if millis <= band.high_millis {
                let candidate = (is_in(millis), self.score(&picks), picks);
                if best.is_none_or(|best| (best.0, best.1) < (candidate.0, candidate.1)) {
                    best = Some(candidate);
                }
                if is_in(millis) || picks == base {
                    break;
                }
            } else {
                // The sum was too hopeful by so much: leave room for it.
                aim.high_millis -= (millis - band.high_millis).max(1e-3 * band.high_millis);
                aim.low_millis = aim.low_millis.min(aim.high_millis);
            }
            base = picks;
        }
        match best {
            Some((_, _, picks)) => (self.polish(picks, band, limits), true),
            None => {
                let picks = self.fastest(limits, f64::NEG_INFINITY);
                let is_met =
                    self.millis(&picks) <= band.high_millis && self.excess(&picks, limits) == 0;
                let picks = if is_met {
                    self.polish(picks, band, limits)
                } else {
                    picks
                };
                (picks, is_met)
            }
        }
    }

    /// What each choice adds to the latency, all other nodes as they are.
    fn deltas(&self, base: &Picks, base_millis: f64) -> [Vec<f64>; N_NODES] {
        std::array::from_fn(|node| {
            let delta = |pick| {
                let mut picks = *base;
                picks[node] = pick;
                self.millis(&picks) - base_millis
            };
            (0..self.choices[node].len()).map(delta).collect()
        })
    }

    /// The picks of largest score whose sum of latencies lies in the band, or else below it; `None` if
    /// there are none.
    fn knapsack(
        &self,
        base_millis: f64,
        deltas: &[Vec<f64>; N_NODES],
        band: Band,
        limits: GeneLimits,
    ) -> Option<Picks> {
        let least = deltas
            .each_ref()
            .map(|deltas| deltas.iter().copied().fold(f64::INFINITY, f64::min));
        let lowest = base_millis + least.iter().sum::<f64>();
        if lowest > band.high_millis {
            return None;
        }
        let range = band.high_millis - lowest;
        // Without a limit every choice falls into the first bin.
        let width = range / N_BINS as f64;
        let bin = |delta: f64, least: f64| {
            if width.is_finite() && width > 0.0 {
                ((delta - least) / width).ceil() as usize
            } else {
                usize::from(width == 0.0 && delta > least) * (N_BINS + 1)
            }
        };
        // Nothing is counted that cannot be too many: the numbers of a state are its bin and, of the cell at hand, its counts.
        let most = limits.most().map(|most| Counts {
            skips: if most.skips < N_GENES { most.skips } else { 0 },
            others: if most.others < N_GENES {
                most.others
            } else {
                0
            },
        });
        let counted = |cell: usize, own: Counts| Counts {
            skips: own.skips * usize::from(limits.most()[cell].skips < N_GENES),
            others: own.others * usize::from(limits.most()[cell].others < N_GENES),
        };
        let n_skips = most.map(|most| most.skips).into_iter().max().unwrap_or(0) + 1;
        let n_others = most.map(|most| most.others).into_iter().max().unwrap_or(0) + 1;
        let state =
            |bin: usize, counts: Counts| (bin * n_skips + counts.skips) * n_others + counts.others;
        let n_states = state(N_BINS + 1, Counts::default());
        let mut scores = vec![f64::NEG_INFINITY; n_states];
        scores[0] = 0.0;
        let mut picked: Vec<Vec<u16>> = Vec::with_capacity(N_NODES);
        let bins: [Vec<usize>; N_NODES] = std::array::from_fn(|node| {
            deltas[node]
                .iter()
                .map(|&delta| bin(delta, least[node]))
                .collect()
        });
        // The best state of the normal cell for each bin, where the counts begin anew.
        let mut between = vec![0; N_BINS + 1];
        for (node, (choices, bins)) in self.choices.iter().zip(&bins).enumerate() {
            let cell = node * 2 / N_NODES;
            if node == N_NODES / 2 {
                let mut next = vec![f64::NEG_INFINITY; n_states];
                for (bin, between) in between.iter_mut().enumerate() {
                    let (first, end) = (
                        state(bin, Counts::default()),
                        state(bin + 1, Counts::default()),
                    );
                    let best =
                        (first..end).reduce(|a, b| if scores[b] > scores[a] { b } else { a });
                    *between = best.expect("a bin has states");
                    next[first] = scores[*between];
                }
                scores = next;
            }
            let mut next = vec![f64::NEG_INFINITY; n_states];
            let mut from = vec![0; n_states];
            for (pick, (choice, &bin)) in choices.iter().zip(bins).enumerate() {
                let own = counted(cell, choice.counts);
                if bin > N_BINS || own.skips > most[cell].skips || own.others > most[cell].others {
                    continue;
                }
                for before in 0..=N_BINS - bin {
                    for skips in 0..=most[cell].skips - own.skips {
                        for others in 0..=most[cell].others - own.others {
                            let at = state(before, Counts { skips, others });
                            let score = scores[at] + choice.score;
                            let to = at + state(bin, own);
                            if score > next[to] {
                                next[to] = score;
                                from[to] = pick as u16;
                            }
                        }
                    }
                }
            }
            scores = next;
            picked.push(from);
        }
        let low_bin = if width.is_finite() && width > 0.0 {
            (((band.low_millis - lowest) / width).ceil().max(0.0) as usize).min(N_BINS)
        } else {
            0
        };
        let best = |first: usize| {
            (state(first, Counts::default())..n_states)
                .filter(|&index| scores[index].is_finite())
                .reduce(|a, b| if scores[b] > scores[a] { b } else { a })
        };
        let mut at = best(low_bin).or_else(|| best(0))?;
        let mut picks = [0; N_NODES];
        for node in (0..N_NODES).rev() {
            let pick = usize::from(picked[node][at]);
            picks[node] = pick;
            let own = counted(node * 2 / N_NODES, self.choices[node][pick].counts);
            at -= state(bins[node][pick], own);
            if node == N_NODES / 2 {
                at = between[at / state(1, Counts::default())];
            }
        }
        Some(picks)
    }

    /// Changes one node at a time while the score grows within the limits.
    fn polish(&self, mut picks: Picks, band: Band, limits: GeneLimits) -> Picks {
        let low = band.low_millis.min(self.millis(&picks));
        loop {
            let mut best = (self.score(&picks), picks);
            for node in 0..N_NODES {
                for pick in 0..self.choices[node].len() {
                    let mut other = picks;
                    other[node] = pick;
                    if self.score(&other) > best.0
                        && self.excess(&other, limits) == 0
                        && (low..=band.high_millis).contains(&self.millis(&other))
                    {
                        best = (self.score(&other), other);
                    }
                }
            }
            if best.1 == picks {
                return picks;
            }
            picks = best.1;
        }
    }

    /// The fastest picks of descents from cells of one primitive each: what several edges share is paid
    /// once, so that a single descent may end where no node alone can leave. What takes no longer than `enough_millis` and
    /// keeps to the limits ends them.
    fn fastest(&self, limits: GeneLimits, enough_millis: f64) -> Picks {
        let mut best: Option<(usize, f64, Picks)> = None;
        for primitive in Primitive::KEPT {
            let is_uniform =
                |choice: &Choice| choice.genes.iter().all(|gene| gene.primitive == primitive);
            let uniform = self.choices.each_ref().map(|choices| {
                let found = choices.iter().position(is_uniform);
                found.expect("every pair of primitives is a choice")
            });
            let (millis, picks) = self.descend(uniform, limits, enough_millis);
            let excess = self.excess(&picks, limits);
            if best.is_none_or(|best| (excess, millis) < (best.0, best.1)) {
                best = Some((excess, millis, picks));
            }
            if excess == 0 && millis <= enough_millis {
                break;
            }
        }
        best.expect("there are primitives").2
    }

    /// Changes one node at a time while the latency falls and the limits are kept better or as well, until all is enough;
    /// the latency in front.
    fn descend(&self, mut picks: Picks, limits: GeneLimits, enough_millis: f64) -> (f64, Picks) {
        loop {
            let mut best = (self.millis(&picks), picks);
            let excess = self.excess(&picks, limits);
            if best.0 <= enough_millis && excess == 0 {
                return best;
            }
            for node in 0..N_NODES {
                for pick in 0..self.choices[node].len() {
                    let mut other = picks;
                    other[node] = pick;
                    if self.excess(&other, limits) > excess {
                        continue;
                    }
                    let millis = self.millis(&other);
                    if millis < best.0 {
                        best = (millis, other);
                    }
                }
            }
            if best.1 == picks {
                return best;
            }
            picks = best.1;
        }
    }
}

/// Genes of `a` that are not in `b`, in the same node of the same cell.
fn n_different_genes(a: &Genotype, b: &Genotype) -> usize {
    CellKind::ALL
        .into_iter()
        .flat_map(|kind| a.cell(kind).nodes.into_iter().zip(b.cell(kind).nodes))
        .map(|(a, b)| a.iter().filter(|gene| !b.contains(gene)).count())
        .sum()
}

#[cfg(test)]
mod tests {
    use std::collections::{BinaryHeap, HashSet};

    use nn::Rng;
    use rand::RngExt;
    use rand_chacha::rand_core::SeedableRng;

    use super::*;
    use crate::bridge;

    #[test]
    fn draws_keep_to_the_limits() {
        let ranks = ranks(3);
        let ranks = [&ranks[0][..], &ranks[1]];
        // The number of convolutions, and a little for where each gene reads.
        let upper = |genotype: &Genotype| {
            let cells = CellKind::ALL.map(|kind| {
                let genes = genotype.cell(kind).genes();
                let reads: usize = genes.map(|(_, gene)| gene.source).sum();
                genotype.n_convolutions(kind) as f64 + 0.01 * reads as f64
            });
            cells.iter().sum()
        };
        let limits = Limits {
            genes: GeneLimits {
                max_skips_normal: 1,
                min_convolutions: 2,
            },
            band: Some(Band {
                low_millis: 5.1,
                high_millis: 5.2,
            }),
        };
        let mut rng = Rng::seed_from_u64(1);
        let mut draws = |limits| -> Vec<Genotype> {
            let draw = |rng: &mut Rng| bridge::draw(ranks, rng);
            let within = |_| draw_within(limits, upper, draw, &mut rng);
            (0..50).filter_map(within).collect()
        };
        let drawn = draws(limits);
        assert!(drawn.len() > 40, "{}", drawn.len());
        for genotype in &drawn {
            assert!((5.1..=5.2).contains(&upper(genotype)), "{genotype}");
            assert!(genotype.n_skips(CellKind::Normal) <= 1);
            let is_enough = |kind| genotype.n_convolutions(kind) >= 2;
            assert!(CellKind::ALL.into_iter().all(is_enough), "{genotype}");
        }
        let different: HashSet<String> = drawn.iter().map(Genotype::to_string).collect();
        assert!(different.len() > 40, "{}", different.len());
        let impossible = Band {
            low_millis: 90.0,
            high_millis: 91.0,
        };
        let band = Some(impossible);
        assert!(draws(Limits { band, ..limits }).is_empty());
    }

    #[test]
    fn a_draw_without_limits_is_as_alpha_draws_it() {
        let ranks = ranks(4);
        let ranks = [&ranks[0][..], &ranks[1]];
        let limits = Limits {
            genes: GeneLimits::NONE,
            band: None,
        };
        let [mut rng, mut same] = [7, 7].map(Rng::seed_from_u64);
        let draw = |rng: &mut Rng| bridge::draw(ranks, rng);
        let drawn = draw_within(limits, |_| f64::INFINITY, draw, &mut rng);
        assert_eq!(drawn, Some(bridge::draw(ranks, &mut same)));
    }

    #[test]
    fn one_node_is_taken_over() {
        let [a, b] = ["PDARTS", "DARTS_V2"].map(|name| Genotype::named(name).unwrap());
        let all = (0..N_NODES).fold(a.clone(), |genotype, node| with_node(&genotype, &b, node));
        assert_eq!(all, b);
        let one = with_node(&a, &b, 5);
        assert_eq!(one.cell(CellKind::Normal), a.cell(CellKind::Normal));
        let genes = |genotype: &Genotype| -> Vec<Gene> {
            let genes = genotype.cell(CellKind::Reduction).genes();
            genes.map(|(_, gene)| gene).collect()
        };
        let (one, a, b) = (genes(&one), genes(&a), genes(&b));
        assert_eq!(
            [&one[..2], &one[2..4], &one[4..]],
            [&a[..2], &b[2..4], &a[4..]]
        );
    }

    fn ranks(seed: u64) -> [Vec<f32>; 2] {
        let mut rng = Rng::seed_from_u64(seed);
        [(); 2].map(|()| (0..112).map(|_| rng.random_range(0.01..1.0)).collect())
    }

    /// A law with interactions: primitives cost, and a state that two edges pool is pooled once.
    fn law(genotype: &Genotype) -> f64 {
        let cost = |primitive| match primitive {
            Primitive::None | Primitive::SkipConnect => 0.1,
            Primitive::MaxPool3x3 | Primitive::AvgPool3x3 => 1.0,
            Primitive::DilConv3x3 => 2.0,
            Primitive::DilConv5x5 => 3.0,
            Primitive::SepConv3x3 => 4.0,
            Primitive::SepConv5x5 => 6.0,
        };
        let mut sum = 5.0;
        for kind in CellKind::ALL {
            let mut pooled = HashSet::new();
            for (_, gene) in genotype.cell(kind).genes() {
                let is_pool = matches!(
                    gene.primitive,
                    Primitive::MaxPool3x3 | Primitive::AvgPool3x3
                );
                if !is_pool || pooled.insert((gene.primitive, gene.source)) {
                    sum += cost(gene.primitive);
                }
            }
        }
        sum
    }

    fn band(low_millis: f64, high_millis: f64) -> Option<Band> {
        Some(Band {
            low_millis,
            high_millis,
        })
    }

    fn score(ranks: &[Vec<f32>; 2], genotype: &Genotype) -> f64 {
        let space = SearchSpace::darts();
        let mut sum = 0.0;
        for kind in CellKind::ALL {
            for (node, gene) in genotype.cell(kind).genes() {
                let edge = space.edge_index(node, gene.source);
                let rank = ranks[kind.index()][edge * 8 + gene.primitive.index()];
                sum += f64::from(rank).ln();
            }
        }
        sum
    }

    /// All genotypes in the order of their scores, until one keeps to the limits.
    fn by_enumeration(ranks: &[Vec<f32>; 2], holds: impl Fn(&Genotype) -> bool) -> f64 {
        #[derive(PartialEq)]
        struct Entry(f64, Picks);
        impl Eq for Entry {}
        impl PartialOrd for Entry {
            fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
                Some(self.cmp(other))
            }
        }
        impl Ord for Entry {
            fn cmp(&self, other: &Self) -> std::cmp::Ordering {
                self.0.total_cmp(&other.0)
            }
        }
        let mut lists = choices([&ranks[0], &ranks[1]]);
        for list in &mut lists {
            list.sort_by(|a, b| b.score.total_cmp(&a.score));
        }
        let knapsack = Knapsack {
            choices: lists,
            upper_millis: law,
        };
        let mut seen = HashSet::from([[0; N_NODES]]);
        let mut heap = BinaryHeap::from([Entry(knapsack.score(&[0; N_NODES]), [0; N_NODES])]);
        while let Some(Entry(score, picks)) = heap.pop() {
            if holds(&knapsack.genotype(&picks)) {
                return score;
            }
            for node in 0..N_NODES {
                let mut next = picks;
                next[node] += 1;
                if next[node] < knapsack.choices[node].len() && seen.insert(next) {
                    heap.push(Entry(knapsack.score(&next), next));
                }
            }
        }
        panic!("nothing holds");
    }

    #[test]
    fn without_limits_it_is_what_derivation_says() {
        for seed in 0..5 {
            let ranks = ranks(seed);
            let slices = [&ranks[0][..], &ranks[1][..]];
            let free = SearchSpace::darts().derive(slices);
            for limit in [None, band(0.0, 1e9)] {
                let limits = Limits {
                    genes: GeneLimits::NONE,
                    band: limit,
                };
                let found = derive(slices, limits, law);
                assert_eq!(found.genotype, free);
                assert_eq!((found.is_met, found.n_changed_genes), (true, 0));
                assert_eq!(found.free, free);
            }
        }
    }

    /// Against enumeration, which is exact: the score of the repaired cell is the best that there is, but for
    /// the width of a bin.
    #[test]
    fn a_repair_is_the_cheapest_that_there_is() {
        for seed in 0..6 {
            let ranks = ranks(seed);
            let slices = [&ranks[0][..], &ranks[1][..]];
            let free = SearchSpace::darts().derive(slices);
            let high = 0.85 * law(&free);
            let max_skips = free.n_skips(CellKind::Normal).min(1);
            let min_convolutions = seed as usize % 4;
            let limits = Limits {
                genes: GeneLimits {
                    max_skips_normal: max_skips,
                    min_convolutions,
                },
                band: band(0.0, high),
            };
            let found = derive(slices, limits, law);
            assert!(found.is_met && law(&found.genotype) <= high);
            let keeps = |genotype: &Genotype| {
                let mut cells = CellKind::ALL.into_iter();
                genotype.n_skips(CellKind::Normal) <= max_skips
                    && cells.all(|kind| genotype.n_convolutions(kind) >= min_convolutions)
            };
            assert!(keeps(&found.genotype));
            let best = by_enumeration(&ranks, |genotype| law(genotype) <= high && keeps(genotype));
            let own = score(&ranks, &found.genotype);
            assert!(best - own < 0.02, "seed {seed}: {own}, best {best}");
            assert!(Genotype::new(found.genotype.normal, found.genotype.reduction).is_ok());
        }
    }

    #[test]
    fn slack_is_spent_where_it_costs_least() {
        for seed in 0..4 {
            let ranks = ranks(seed);
            let slices = [&ranks[0][..], &ranks[1][..]];
            let free = SearchSpace::darts().derive(slices);
            let (low, high) = (1.15 * law(&free), 1.2 * law(&free));
            let limits = Limits {
                genes: GeneLimits::NONE,
                band: band(low, high),
            };
            let found = derive(slices, limits, law);
            let millis = law(&found.genotype);
            assert!(found.is_met && (low..=high).contains(&millis), "{millis}");
            let best = by_enumeration(&ranks, |genotype| (low..=high).contains(&law(genotype)));
            assert!(best - score(&ranks, &found.genotype) < 0.05);
        }
    }

    #[test]
    fn skips_give_way_to_the_target_and_the_target_to_what_is_possible() {
        let ranks = ranks(7);
        let slices = [&ranks[0][..], &ranks[1][..]];
        // 16 genes at 0.1 and 5 for the rest is the least.
        let (found, millis) = fastest(law, 12.0);
        assert!(millis <= 12.0 && millis == law(&found));
        let (fastest, least) = fastest(law, f64::NEG_INFINITY);
        assert!((least - 6.6).abs() < 1e-9);
        assert_eq!(fastest.n_skips(CellKind::Normal), 8);
        let limits = |high| Limits {
            genes: GeneLimits {
                max_skips_normal: 2,
                min_convolutions: 3,
            },
            band: band(0.0, high),
        };
        let forced = derive(slices, limits(7.0), law);
        assert!(forced.is_met && law(&forced.genotype) <= 7.0);
        assert!(forced.genotype.n_skips(CellKind::Normal) > 2);
        let impossible = derive(slices, limits(6.5), law);
        assert!(!impossible.is_met);
        assert!((law(&impossible.genotype) - least).abs() < 1e-9);
    }
}
