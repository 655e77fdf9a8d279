//! What convolutions read: planes, with a batch normalisation that is still to come, or every second pixel of them.

use multiversion::multiversion;

use super::combine::{add, pixels};
use super::{Grid, for_each, parts_mut};
use crate::Element;

/// What a batch normalisation does to a plane: `factor * (x - mean) + bias`.
#[derive(Debug, Clone, Copy)]
pub struct Affine<T> {
    /// What is subtracted.
    pub mean: T,
    /// What that is multiplied by.
    pub factor: T,
    /// What is added.
    pub bias: T,
}

impl<T: Element> Affine<T> {
    #[inline(always)]
    pub(super) fn of(&self, x: T) -> T {
        self.factor * (x - self.mean) + self.bias
    }

    /// Factor and shift that make the same of a number, but for what is lost where the mean is much larger than what numbers
    /// differ by. Within a rounding of zero the sign depends on how: what reads by them and what masks its gradient must multiply
    /// and add alike.
    pub(super) fn folded(&self) -> [T; 2] {
        [self.factor, self.bias - self.factor * self.mean]
    }
}

impl Affine<f64> {
    /// Nothing is done.
    pub const fn identity() -> Self {
        Self {
            mean: 0.0,
            factor: 1.0,
            bias: 0.0,
        }
    }

    /// The same in another precision.
    pub fn cast<T: Element>(&self) -> Affine<T> {
        Affine {
            mean: T::from_f64(self.mean),
            factor: T::from_f64(self.factor),
            bias: T::from_f64(self.bias),
        }
    }
}

/// What a convolution reads through a ReLU.
#[derive(Debug, Clone, Copy)]
pub struct Source<'a, T> {
    pub(super) planes: &'a [&'a [T]],
    pub(super) affine: Option<&'a [Affine<T>]>,
    /// If every second pixel is read alone: the size of the planes, and the first row and column that is read.
    halved: Option<(Grid, usize)>,
}

impl<'a, T> Source<'a, T> {
    /// Planes as they are: `relu(x)` is what is read.
    pub fn new(planes: &'a [&'a [T]]) -> Self {
        Self {
            planes,
            affine: None,
            halved: None,
        }
    }

    /// Planes whose batch normalisation is still to come: `relu(factor * (x - mean) + bias)` is what is read.
    pub fn raw(planes: &'a [&'a [T]], affine: &'a [Affine<T>]) -> Self {
        assert_eq!(planes.len(), affine.len());
        Self {
            affine: Some(affine),
            ..Self::new(planes)
        }
    }

    /// Of planes of this size every second pixel in both directions, from row and column `offset` (0 or 1) on; what is read of
    /// pixels beyond an odd size is zero.
    pub fn halved(self, grid: Grid, offset: usize) -> Self {
        assert!(offset < 2 && self.planes.iter().all(|plane| plane.len() == grid.len()));
        Self {
            halved: Some((grid, offset)),
            ..self
        }
    }

    /// Number of planes.
    pub fn n_planes(&self) -> usize {
        self.planes.len()
    }

    /// Numbers that are read of a plane.
    pub fn plane_len(&self) -> usize {
        match self.halved {
            Some((grid, _)) => grid.halved().len(),
            None => self.planes.first().map_or(0, |plane| plane.len()),
        }
    }

    /// The planes, if a ReLU reads them as they are.
    pub(super) fn as_they_are(&self) -> Option<&'a [&'a [T]]> {
        (self.affine.is_none() && self.halved.is_none()).then_some(self.planes)
    }

    /// The planes, if all of them is read, one number after the other.
    pub(super) fn in_order(&self) -> &'a [&'a [T]] {
        match self.halved {
            Some(_) => &[],
            None => self.planes,
        }
    }
}

impl<T: Element> Source<'_, T> {
    /// What is read of all planes from `start` on, in rows of `len` numbers, `stride` apart.
    pub(super) fn fill(&self, start: usize, len: usize, rows: &mut [T], stride: usize) {
        for (channel, (row, x)) in rows.chunks_mut(stride).zip(self.planes).enumerate() {
            let row = &mut row[..len];
            let affine = self.affine.map(|affine| affine[channel]);
            match self.halved {
                Some(halved) => rectify_halved(row, x, affine, halved, start),
                None => rectify(row, &x[start..start + len], affine),
            }
        }
    }
}

/// `z = max(affine(x), 0)`; what is no number goes on.
#[multiversion(targets = "simd")]
fn rectify<T: Element>(z: &mut [T], x: &[T], affine: Option<Affine<T>>) {
    rectified(z, x, affine);
}

#[inline(always)]
fn rectified<T: Element>(z: &mut [T], x: &[T], affine: Option<Affine<T>>) {
    let relu = |x| if x <= T::zero() { T::zero() } else { x };
    match affine {
        None => z.iter_mut().zip(x).for_each(|(z, &x)| *z = relu(x)),
        Some(affine) => {
            let numbers = z.iter_mut().zip(x);
            numbers.for_each(|(z, &x)| *z = relu(affine.of(x)));
        }
    }
}

/// [`rectify`] of every second pixel of a plane, from row and column `offset` on; `z` begins at number `start` of these.
#[multiversion(targets = "simd")]
fn rectify_halved<T: Element>(
    z: &mut [T],
    x: &[T],
    affine: Option<Affine<T>>,
    (grid, offset): (Grid, usize),
    start: usize,
) {
    let (Grid { h, w, n }, width) = (grid, grid.halved().w);
    for (own, images) in pixels(start, z.len(), n) {
        let pixel = (start + own.start) / n;
        let [row, column] = [pixel / width, pixel % width].map(|place| 2 * place + offset);
        let z = &mut z[own];
        if row < h && column < w {
            rectified(z, &x[(row * w + column) * n..][images], affine);
        } else {
            z.fill(T::zero());
        }
    }
}

/// Adds the gradients of what is read of [every second pixel](Source::halved), from row and column 0 and from 1 on, to
/// that of all pixels, or takes its place.
pub fn halved_backward<T: Element>(
    grid: Grid,
    grads: [&[&[T]]; 2],
    grad_x: Vec<&mut [T]>,
    adds: bool,
) {
    let (n, row_len) = (grid.n, grid.row_len());
    for_each(
        parts_mut(grad_x, row_len),
        || (),
        |(), _, (channel, start, grad_x)| {
            let row = start / row_len;
            // Even rows have even pixels that were kept, odd rows odd ones.
            let offset = row % 2;
            let out_len = grid.halved().row_len();
            let grad_y = &grads[offset][channel][row / 2 * out_len..][..out_len];
            for (column, grad_x) in grad_x.chunks_exact_mut(n.max(1)).enumerate() {
                let grad_y = &grad_y[column / 2 * n..][..n];
                match (column % 2 == offset, adds) {
                    (true, true) => add(grad_x, grad_y),
                    (true, false) => grad_x.copy_from_slice(grad_y),
                    (false, true) => {}
                    (false, false) => grad_x.fill(T::zero()),
                }
            }
        },
    );
}
