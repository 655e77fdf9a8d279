//! The planes of one image.

use crate::planes::Buffer;
use crate::product::{Rows, row_stride};

/// Planes of `h` by `w` numbers, row-major.
#[derive(Debug)]
pub struct Maps {
    numbers: Buffer<f32>,
    /// Planes.
    pub c: usize,
    /// Rows.
    pub h: usize,
    /// Columns.
    pub w: usize,
}

impl Maps {
    /// Planes whose numbers are of no account.
    pub fn any(c: usize, h: usize, w: usize) -> Self {
        Self {
            numbers: Buffer::any(c * row_stride(h * w)),
            c,
            h,
            w,
        }
    }

    /// Planes from numbers laid out `c h w`.
    pub fn from_slice(c: usize, h: usize, w: usize, numbers: &[f32]) -> Self {
        let mut maps = Self::any(c, h, w);
        assert_eq!(numbers.len(), c * h * w);
        for (plane, numbers) in maps.planes_mut(0..c).zip(numbers.chunks(h * w)) {
            plane.copy_from_slice(numbers);
        }
        maps
    }

    /// The numbers laid out `c h w`.
    pub fn to_vec(&self) -> Vec<f32> {
        self.planes().flatten().copied().collect()
    }

    /// Numbers of a plane.
    pub fn plane_len(&self) -> usize {
        self.h * self.w
    }

    fn stride(&self) -> usize {
        row_stride(self.plane_len())
    }

    /// `len` pixels of every plane, from pixel `start` on.
    pub(super) fn rows(&self, start: usize, len: usize) -> Rows<'_, f32> {
        let numbers = &self.numbers[start.min(self.numbers.len())..];
        Rows::new(numbers, self.stride(), self.c, len)
    }

    /// One plane.
    pub fn plane(&self, index: usize) -> &[f32] {
        &self.numbers[index * self.stride()..][..self.plane_len()]
    }

    /// All planes.
    pub fn planes(&self) -> impl Iterator<Item = &[f32]> {
        let len = self.plane_len();
        self.numbers
            .chunks(self.stride())
            .map(move |plane| &plane[..len])
    }

    /// Some planes.
    pub fn planes_mut(
        &mut self,
        range: std::ops::Range<usize>,
    ) -> impl Iterator<Item = &mut [f32]> {
        let (len, stride) = (self.plane_len(), self.stride());
        self.numbers[range.start * stride..range.end * stride]
            .chunks_mut(stride)
            .map(move |plane| &mut plane[..len])
    }

    /// Adds other planes of this size.
    pub fn add(&mut self, other: &Self) {
        for (a, b) in self.numbers.iter_mut().zip(&*other.numbers) {
            *a += b;
        }
    }

    /// `y = max(x, 0)`, written to planes `first..` of `y`; what is no number goes on.
    pub fn rectify_into(&self, y: &mut Self, first: usize) {
        for (y, x) in y.planes_mut(first..first + self.c).zip(self.planes()) {
            rectify(y, x);
        }
    }

    /// Every second pixel in both directions, from row and column `offset` (0 or 1) on; pixels beyond an odd size
    /// are zeros.
    pub fn subsample(&self, offset: usize) -> Self {
        let mut half = Self::any(self.c, self.h.div_ceil(2), self.w.div_ceil(2));
        let width = half.w;
        for (half, plane) in half.planes_mut(0..self.c).zip(self.planes()) {
            for (row, half) in half.chunks_mut(width).enumerate() {
                half.fill(0.0);
                let row = 2 * row + offset;
                if row < self.h {
                    let source = &plane[row * self.w..][..self.w];
                    for (half, &x) in half
                        .iter_mut()
                        .zip(source[offset.min(self.w)..].iter().step_by(2))
                    {
                        *half = x;
                    }
                }
            }
        }
        half
    }
}

/// `max(x, 0)`; what is no number goes on.
fn rectify(y: &mut [f32], x: &[f32]) {
    for (y, &x) in y.iter_mut().zip(x) {
        *y = if x <= 0.0 { 0.0 } else { x };
    }
}

/// Planes behind their ReLU, with zeros about them. The zeros to the right of a row are those to the left of the
/// next one, so that a plane is one line of numbers under every tap of a window.
#[derive(Debug)]
pub struct PaddedMaps {
    numbers: Buffer<f32>,
    pub(super) h: usize,
    pub(super) w: usize,
    pub(super) pad: usize,
    stride: usize,
}

/// Numbers behind a plane that vectors may read.
const SLACK: usize = 64;

impl PaddedMaps {
    /// The ReLU of planes, with `pad` rows and columns of zeros on each side.
    pub fn rectified(x: &Maps, pad: usize) -> Self {
        let (h, w) = (x.h, x.w);
        let width = w + pad;
        let stride = row_stride((h + 2 * pad) * width + pad + SLACK);
        let mut numbers = Buffer::any(x.c * stride);
        for (padded, plane) in numbers.chunks_mut(stride).zip(x.planes()) {
            let (top, rest) = padded.split_at_mut(pad * width + pad);
            top.fill(0.0);
            let (rows, bottom) = rest.split_at_mut(h * width);
            for (row, x) in rows.chunks_mut(width).zip(plane.chunks(w.max(1))) {
                let (row, zeros) = row.split_at_mut(w);
                rectify(row, x);
                zeros.fill(0.0);
            }
            bottom.fill(0.0);
        }
        Self {
            numbers,
            h,
            w,
            pad,
            stride,
        }
    }

    /// From one row to the next.
    pub(super) fn width(&self) -> usize {
        self.w + self.pad
    }

    /// A plane with its zeros.
    pub(super) fn plane(&self, index: usize) -> &[f32] {
        &self.numbers[index * self.stride..][..self.stride]
    }
}
