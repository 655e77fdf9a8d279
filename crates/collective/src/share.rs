//! The part of a batch that a rank holds.

use std::ops::Range;
use std::sync::Arc;

use candle_core::{Result, Tensor};

use crate::{Collective, sum_all};

/// The images of a batch that fall to this rank: consecutive ones, as many as to every other rank, and one more
/// for the first ranks where the number does not divide.
#[derive(Clone, Debug)]
pub struct Share {
    collective: Arc<dyn Collective>,
    n_images: usize,
}

impl Share {
    /// This rank's part of a batch of `n_images`.
    pub fn of(collective: &Arc<dyn Collective>, n_images: usize) -> Self {
        Self {
            collective: Arc::clone(collective),
            n_images,
        }
    }

    /// The ranks.
    pub fn collective(&self) -> &dyn Collective {
        &*self.collective
    }

    /// The images of the whole batch.
    pub fn n_images(&self) -> usize {
        self.n_images
    }

    /// This rank's images.
    pub fn range(&self) -> Range<usize> {
        self.range_of(self.collective.rank())
    }

    fn range_of(&self, rank: usize) -> Range<usize> {
        let n_ranks = self.collective.n_ranks();
        let (each, rest) = (self.n_images / n_ranks, self.n_images % n_ranks);
        let first = |rank: usize| rank * each + rank.min(rest);
        first(rank)..first(rank + 1)
    }

    /// This rank's part of the batch, a ratio: what a mean over its images counts for in the mean over all.
    pub fn weight(&self) -> f64 {
        self.range().len() as f64 / self.n_images as f64
    }

    /// The values of all ranks as rows of a table, on the device of `row`.
    ///
    /// # Shapes
    /// `row`: `[k]`; the result: `[n_ranks, k]`.
    ///
    /// # Errors
    /// As [`Collective::sum`].
    pub fn rows(&self, row: &Tensor) -> Result<Tensor> {
        // Every rank adds its row to zeros, which is exact.
        let (rank, n_ranks) = (self.collective.rank(), self.collective.n_ranks());
        let row = row.unsqueeze(0)?;
        self.collective
            .sum(&row.pad_with_zeros(0, rank, n_ranks - rank - 1)?)
    }

    /// The number of images of every rank.
    pub fn counts(&self) -> Vec<usize> {
        (0..self.collective.n_ranks())
            .map(|rank| self.range_of(rank).len())
            .collect()
    }

    /// As [`sum_all`].
    ///
    /// # Errors
    /// As [`Collective::sum`].
    pub fn sum_all(&self, tensors: &[Tensor]) -> Result<Vec<Tensor>> {
        sum_all(&*self.collective, tensors)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Error;

    #[derive(Debug)]
    struct Alone(usize, usize);

    impl Collective for Alone {
        fn rank(&self) -> usize {
            self.0
        }

        fn n_ranks(&self) -> usize {
            self.1
        }

        fn gather(&self, own: &[u8]) -> std::result::Result<Vec<Vec<u8>>, Error> {
            Ok(vec![own.to_vec()])
        }
    }

    #[test]
    fn shares_cover_a_batch_without_overlap() {
        for (n_images, n_ranks) in [(8, 2), (7, 3), (3, 3), (2, 3), (0, 2), (256, 8)] {
            let mut end = 0;
            let mut weight = 0.0;
            for rank in 0..n_ranks {
                let ranks: Arc<dyn Collective> = Arc::new(Alone(rank, n_ranks));
                let share = Share::of(&ranks, n_images);
                assert_eq!(share.range().start, end);
                end = share.range().end;
                assert_eq!(share.counts()[rank], share.range().len());
                assert!(share.range().len() <= n_images.div_ceil(n_ranks));
                weight += if n_images > 0 { share.weight() } else { 1.0 };
            }
            assert_eq!(end, n_images);
            assert!(n_images == 0 || (weight - 1.0f64).abs() < 1e-12);
        }
    }
}
