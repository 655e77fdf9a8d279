//! Which architectures are worth timing next.

use crate::model::LatencyModel;

/// The candidates of which a model is least sure, as indices, the most doubtful first: those with the largest
/// [`spread`](LatencyModel::spread), all if there are not as many as `n`.
///
/// # Panics
/// If a code does not have the length that the model knows.
pub fn most_doubtful(model: &dyn LatencyModel, candidates: &[Vec<f32>], n: usize) -> Vec<usize> {
    let mut ranked: Vec<(f64, usize)> = candidates
        .iter()
        .map(|code| model.spread(code))
        .zip(0..)
        .collect();
    ranked.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
    ranked.truncate(n);
    ranked.into_iter().map(|(_, index)| index).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As unsure as its code says.
    struct Unsure;

    impl LatencyModel for Unsure {
        fn code_len(&self) -> usize {
            1
        }

        fn predict_millis(&self, _: &[f32]) -> f64 {
            1.0
        }

        fn gradient(&self, _: &[f32]) -> (f64, Vec<f32>) {
            (1.0, vec![0.0])
        }

        fn spread(&self, code: &[f32]) -> f64 {
            f64::from(code[0])
        }
    }

    #[test]
    fn the_most_doubtful_come_first_and_the_earlier_of_equals() {
        let codes = [0.1, 0.5, 0.2, 0.5].map(|doubt| vec![doubt]);
        assert_eq!(most_doubtful(&Unsure, &codes, 3), [1, 3, 2]);
        assert_eq!(most_doubtful(&Unsure, &codes, 9), [1, 3, 2, 0]);
    }
}
