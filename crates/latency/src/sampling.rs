//! Which architectures are worth timing next: those that tell most about the others.

/// Of things whose covariance is known, those to measure, one after the other: each time the one that takes most off the
/// weighted sum of all variances. `noises` are the variances of a measurement of each.
///
/// The covariance is whole, row-major.
pub(crate) fn most_telling(
    mut covariance: Vec<f64>,
    weights: &[f64],
    noises: &[f64],
    n: usize,
) -> Vec<usize> {
    let n_all = weights.len();
    let mut chosen = Vec::new();
    while chosen.len() < n.min(n_all) {
        let gain = |index: usize| {
            let row = &covariance[index * n_all..][..n_all];
            let squares = row.iter().zip(weights).map(|(c, weight)| weight * c * c);
            squares.sum::<f64>() / (row[index] + noises[index])
        };
        let best = (0..n_all)
            .filter(|index| !chosen.contains(index))
            .map(|index| (gain(index), index))
            .reduce(|best, next| if next.0 > best.0 { next } else { best });
        let Some((_, best)) = best else { break };
        chosen.push(best);
        let row = covariance[best * n_all..][..n_all].to_vec();
        let scale = 1.0 / (row[best] + noises[best]);
        for (of_row, c) in covariance.chunks_exact_mut(n_all).zip(&row) {
            let factor = scale * c;
            of_row
                .iter_mut()
                .zip(&row)
                .for_each(|(c, r)| *c -= factor * r);
        }
    }
    chosen
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_of_a_kind_tells_of_the_others() {
        // Two that are nearly the same, and one by itself that varies more than either, but less than both.
        let covariance = vec![1.0, 0.9, 0.0, 0.9, 1.0, 0.0, 0.0, 0.0, 1.5];
        let choose = |weights, noises| most_telling(covariance.clone(), weights, noises, 9);
        assert_eq!(choose(&[1.0; 3], &[0.1; 3]), [0, 2, 1]);
        // Where what it says is noise, or where it does not count, another comes first.
        assert_eq!(choose(&[1.0; 3], &[9.0, 0.1, 0.1])[0], 1);
        assert_eq!(choose(&[0.1, 0.1, 1.0], &[0.1; 3])[0], 2);
    }
}
