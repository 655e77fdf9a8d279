//! Which architectures the models are fitted on, and which they are judged by.

use std::collections::HashMap;

use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use space::Genotype;

/// Indices of architectures, each list in ascending order.
#[derive(Debug, PartialEq)]
pub(crate) struct Split {
    pub(crate) train: Vec<usize>,
    pub(crate) held_out: Vec<usize>,
}

/// Draws at least `ratio` of the architectures to hold out, as far as they may judge. Genotypes that are one graph stay together: a
/// model must not be judged by what it was fitted on under another name.
pub(crate) fn split(
    genotypes: &[&Genotype],
    may_judge: impl Fn(usize) -> bool,
    ratio: f64,
    seed: u64,
) -> Split {
    let mut graphs: Vec<Vec<usize>> = Vec::new();
    let mut graph_of = HashMap::new();
    for (index, genotype) in genotypes.iter().enumerate() {
        let graph = *graph_of.entry(genotype.canonical()).or_insert(graphs.len());
        match graphs.get_mut(graph) {
            Some(members) => members.push(index),
            None => graphs.push(vec![index]),
        }
    }
    graphs.shuffle(&mut ChaCha8Rng::seed_from_u64(seed));

    let n_held_out = (genotypes.len() as f64 * ratio).ceil() as usize;
    let mut split = Split {
        train: Vec::new(),
        held_out: Vec::new(),
    };
    for graph in graphs {
        if split.held_out.len() < n_held_out && graph.iter().all(|&index| may_judge(index)) {
            split.held_out.extend(graph);
        } else {
            split.train.extend(graph);
        }
    }
    split.train.sort_unstable();
    split.held_out.sort_unstable();
    split
}

#[cfg(test)]
mod tests {
    use space::SearchSpace;

    use super::*;

    fn genotypes(n: usize) -> Vec<Genotype> {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        (0..n)
            .map(|_| SearchSpace::darts().sample(&mut rng))
            .collect()
    }

    #[test]
    fn every_architecture_is_on_one_side_and_the_seed_decides_which() {
        let genotypes = genotypes(50);
        let genotypes: Vec<&Genotype> = genotypes.iter().collect();
        let drawn = split(&genotypes, |_| true, 0.2, 3);
        assert_eq!(drawn.held_out.len(), 10);
        let mut all = [drawn.train.clone(), drawn.held_out.clone()].concat();
        all.sort_unstable();
        assert_eq!(all, (0..50).collect::<Vec<_>>());
        assert_eq!(split(&genotypes, |_| true, 0.2, 3), drawn);
        assert_ne!(split(&genotypes, |_| true, 0.2, 4), drawn);
    }

    #[test]
    fn what_was_chosen_does_not_judge() {
        let genotypes = genotypes(50);
        let genotypes: Vec<&Genotype> = genotypes.iter().collect();
        let drawn = split(&genotypes, |index| index >= 30, 0.2, 3);
        assert_eq!((drawn.train.len(), drawn.held_out.len()), (40, 10));
        assert!(drawn.held_out.iter().all(|&index| index >= 30));
        let few = split(&genotypes, |index| index >= 45, 0.2, 3);
        assert_eq!(few.held_out, [45, 46, 47, 48, 49]);
    }

    #[test]
    fn one_graph_does_not_stand_on_both_sides() {
        let once = genotypes(20);
        let mirrored: Vec<Genotype> = once
            .iter()
            .cloned()
            .map(|mut genotype| {
                genotype
                    .normal
                    .nodes
                    .iter_mut()
                    .for_each(|genes| genes.reverse());
                genotype
            })
            .collect();
        let all: Vec<&Genotype> = once.iter().chain(&mirrored).collect();
        for seed in 0..20 {
            let drawn = split(&all, |_| true, 0.25, seed);
            assert_eq!(drawn.held_out.len(), 10);
            for index in &drawn.held_out {
                assert!(drawn.held_out.contains(&((index + 20) % 40)), "seed {seed}");
            }
        }
    }
}
