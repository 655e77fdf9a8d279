//! Which images go where, and in which order.

use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

/// Draws disjoint parts of a labelled set so that every part has the class proportions of the whole.
///
/// Part `k` gets the fraction `fractions[k]` of every class, up to rounding; fractions that add up to less than 1 leave the
/// rest out (PC-DARTS on ImageNet searches on 0.1 and 0.025). The indices of each part come in random order.
///
/// # Panics
///
/// If a fraction is negative or not a number, or if they add up to more than 1.
pub fn stratified_split(
    labels: &[u32],
    fractions: &[f64],
    rng: &mut ChaCha8Rng,
) -> Vec<Vec<usize>> {
    let sum: f64 = fractions.iter().sum();
    assert!(
        fractions.iter().all(|&f| f >= 0.0) && sum <= 1.0 + 1e-9,
        "fractions of a split must be at least 0 and add up to at most 1, not {fractions:?}"
    );
    let n_classes = labels.iter().max().map_or(0, |&max| max as usize + 1);
    let mut classes = vec![Vec::new(); n_classes];
    for (index, &label) in labels.iter().enumerate() {
        classes[label as usize].push(index);
    }

    let mut parts = vec![Vec::new(); fractions.len()];
    for class in &mut classes {
        class.shuffle(rng);
        let mut taken = 0;
        let mut bound = 0.0;
        for (part, fraction) in parts.iter_mut().zip(fractions) {
            // The bounds are rounded, not the sizes, so that 0.5 + 0.5 takes every image.
            bound += fraction;
            let end = ((bound * class.len() as f64).round() as usize).min(class.len());
            part.extend_from_slice(&class[taken..end]);
            taken = end;
        }
    }
    for part in &mut parts {
        part.shuffle(rng);
    }
    parts
}

/// The order of one epoch: the same indices, shuffled.
pub fn epoch_order(indices: &[usize], rng: &mut ChaCha8Rng) -> Vec<usize> {
    let mut order = indices.to_vec();
    order.shuffle(rng);
    order
}

/// The first `limit` images, as evenly over the classes as the set allows: first images of every class before any second one.
/// The answer is in ascending order.
pub(crate) fn balanced(labels: &[u32], n_classes: usize, limit: Option<usize>) -> Vec<usize> {
    let limit = limit.unwrap_or(usize::MAX);
    if limit >= labels.len() {
        return (0..labels.len()).collect();
    }
    let mut n_seen = vec![0; n_classes];
    let mut ranked: Vec<(usize, usize)> = labels
        .iter()
        .enumerate()
        .map(|(index, &label)| {
            let rank = &mut n_seen[label as usize];
            *rank += 1;
            (*rank, index)
        })
        .collect();
    ranked.sort_unstable();
    let mut chosen: Vec<usize> = ranked[..limit].iter().map(|&(_, index)| index).collect();
    chosen.sort_unstable();
    chosen
}
