//! Operations on whole planes of a batch: the building blocks of fused units.
//!
//! Activations are laid out `c h w n`: a *plane* holds one channel of all images, the images of one pixel
//! side by side. Whatever the number of channels, every loop runs over long contiguous stretches: a tap of
//! a window is a row shifted by a multiple of `n`, a pointwise convolution one product over `h w n`, a
//! channel split, shuffle or concatenation nothing but a choice of planes. So operations here take
//! lists of planes, not tensors, and leave recording to whoever fuses them.
//!
//! Everything is spread over the current rayon pool in pieces that do not depend on its size; sums over a
//! plane are taken piece by piece and added in order, in `f64`. The operations of the crate's root, on
//! tensors laid out `n c h w`, are the oracle.

mod buffer;
mod combine;
mod dense;
mod pointwise;
mod pool;
mod source;
mod stencil;
mod stretches;
mod unit;

pub use buffer::{Buffer, free_buffers};
pub use combine::{
    Term, accumulate, combine, dots, dropped_dots, moments, normalise, normalise_in_place,
};
pub use dense::Dense;
pub use pointwise::{NormGrad, PointwiseGrads, Target, pointwise_backward, pointwise_forward};
pub use pool::{MaxPool, average, average_backward};
pub use source::{Affine, Source, halved_backward};
pub use stencil::Stencil;
use stretches::Stretches;
pub use unit::{Unit, UnitGrads, UnitWants, WeightGrads};

/// The size of a plane.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Grid {
    /// Rows.
    pub h: usize,
    /// Columns.
    pub w: usize,
    /// Images.
    pub n: usize,
}

impl Grid {
    /// Numbers of a row.
    pub fn row_len(&self) -> usize {
        self.w * self.n
    }

    /// Numbers of a plane.
    pub fn len(&self) -> usize {
        self.h * self.row_len()
    }

    /// Whether a plane holds nothing.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The size behind a stride-2 operation.
    pub fn halved(&self) -> Self {
        Self {
            h: self.h.div_ceil(2),
            w: self.w.div_ceil(2),
            n: self.n,
        }
    }
}

/// Mean and biased variance of each channel over a batch, and what normalises by them.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Moments {
    /// Mean.
    pub mean: f64,
    /// Biased variance.
    pub var: f64,
}

impl Moments {
    /// 1 / sqrt(var + eps).
    pub fn inv_std(&self, eps: f64) -> f64 {
        1.0 / (self.var + eps).sqrt()
    }
}

/// The numbers that a piece of work touches per plane, so that it stays in the nearest caches.
const PIECE: usize = 4096;

/// Splits planes into pieces of `piece` numbers: for each piece, its part of every plane.
pub(crate) fn pieces_mut<'a, T>(planes: Vec<&'a mut [T]>, piece: usize) -> Vec<Vec<&'a mut [T]>> {
    let n_pieces = planes
        .first()
        .map_or(0, |plane| plane.len().div_ceil(piece));
    let mut pieces: Vec<Vec<&'a mut [T]>> = (0..n_pieces)
        .map(|_| Vec::with_capacity(planes.len()))
        .collect();
    for plane in planes {
        for (part, pieces) in plane.chunks_mut(piece).zip(&mut pieces) {
            pieces.push(part);
        }
    }
    pieces
}

/// Splits planes into pieces of `piece` numbers, each by itself: channel, place of its first number, piece.
fn parts_mut<T>(planes: Vec<&mut [T]>, piece: usize) -> Vec<(usize, usize, &mut [T])> {
    let parts = planes.into_iter().enumerate().flat_map(|(channel, plane)| {
        let parts = plane.chunks_mut(piece.max(1)).enumerate();
        parts.map(move |(index, part)| (channel, index * piece, part))
    });
    parts.collect()
}

/// Calls `work` for each item, on all threads that have nothing else to do.
pub(crate) fn for_each<I: Send, S: Send>(
    items: Vec<I>,
    scratch: impl Fn() -> S + Sync,
    work: impl Fn(&mut S, usize, I) + Sync,
) {
    let stretches = Stretches {
        begin: &scratch,
        go_on: &work,
        end: &drop,
        border: 0,
    };
    stretches.run(items);
}

#[cfg(test)]
mod tests;
