//! The planes of one image.

use multiversion::multiversion;
use pulp::{Simd, WithSimd};

use crate::planes::Buffer;
use crate::product::{LINE, Rows, row_stride};
use crate::simd::{Vectorised, dispatch_rows};

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
            numbers: Buffer::scratch(c * row_stride(h * w)),
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
        add(&mut self.numbers, &other.numbers);
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

#[multiversion(targets = "simd")]
fn add(a: &mut [f32], b: &[f32]) {
    for (a, b) in a.iter_mut().zip(b) {
        *a += b;
    }
}

/// `max(x, 0)`; what is no number goes on.
#[inline]
fn relu(x: f32) -> f32 {
    if x <= 0.0 { 0.0 } else { x }
}

#[multiversion(targets = "simd")]
fn rectify(y: &mut [f32], x: &[f32]) {
    for (y, &x) in y.iter_mut().zip(x) {
        *y = relu(x);
    }
}

/// Planes behind their ReLU, with zeros about them, as depthwise convolutions of one stride read them.
///
/// For a stride of 1 the zeros to the right of a row are those to the left of the next one. For one of 2 the even columns
/// of a row come first, then the odd ones, so that what windows side by side read lies side by side.
#[derive(Debug)]
pub struct PaddedMaps {
    numbers: Buffer<f32>,
    pub(super) h: usize,
    pub(super) w: usize,
    pub(super) pad: usize,
    /// Of the convolutions.
    pub(super) stride: usize,
    plane_stride: usize,
}

/// Numbers behind a plane that vectors may read.
const SLACK: usize = 64;

impl PaddedMaps {
    /// The ReLU of planes for convolutions of that stride, with `pad` rows and columns of zeros on each side.
    ///
    /// # Panics
    /// If the stride is not 1 or 2.
    pub fn rectified(x: &Maps, pad: usize, stride: usize) -> Self {
        let mut padded = Self::any(x, pad, stride);
        if stride == 1 {
            dispatch_rows(padded.pitch(), Rectify(x, &mut padded));
        } else {
            padded.write_halves(x);
        }
        padded
    }

    /// Room for them.
    fn any(x: &Maps, pad: usize, stride: usize) -> Self {
        assert!(matches!(stride, 1 | 2), "padded maps: stride {stride}");
        let mut padded = Self {
            numbers: Buffer::default(),
            h: x.h,
            w: x.w,
            pad,
            stride,
            plane_stride: 0,
        };
        padded.plane_stride = row_stride((x.h + 2 * pad) * padded.pitch() + pad + SLACK);
        padded.numbers = Buffer::scratch(x.c * padded.plane_stride);
        padded
    }

    /// From one row to the next.
    pub(super) fn pitch(&self) -> usize {
        match self.stride {
            1 => self.w + self.pad,
            _ => 2 * self.half(),
        }
    }

    /// Even columns of a row, or odd ones.
    fn half(&self) -> usize {
        (self.w + 2 * self.pad).div_ceil(2)
    }

    /// Where a column of zeros and numbers lies in its row.
    pub(super) fn column(&self, column: usize) -> usize {
        match self.stride {
            1 => column,
            _ => column % 2 * self.half() + column / 2,
        }
    }

    /// A plane with its zeros.
    pub(super) fn plane(&self, index: usize) -> &[f32] {
        &self.numbers[index * self.plane_stride..][..self.plane_stride]
    }

    fn write_halves(&mut self, x: &Maps) {
        let (pitch, half, pad) = (self.pitch(), self.half(), self.pad);
        let planes = self.numbers.chunks_mut(self.plane_stride);
        for (padded, x) in planes.zip(x.planes()) {
            padded.fill(0.0);
            let rows = padded[pad * pitch..].chunks_mut(pitch.max(1));
            for (row, x) in rows.zip(x.chunks(self.w.max(1))) {
                let (first, second) = row.split_at_mut(half);
                // Behind an odd number of zeros even columns come among the odd ones.
                if pad.is_multiple_of(2) {
                    rectify_halves(&mut first[pad / 2..], &mut second[pad / 2..], x);
                } else {
                    rectify_halves(&mut second[pad / 2..], &mut first[pad / 2 + 1..], x);
                }
            }
        }
    }
}

/// The ReLU of every second number, and of the others.
#[multiversion(targets = "simd")]
fn rectify_halves(even: &mut [f32], odd: &mut [f32], x: &[f32]) {
    let (pairs, rest) = x.as_chunks::<2>();
    let (even_pairs, even_rest) = even.split_at_mut(pairs.len());
    for ((even, odd), &[a, b]) in even_pairs.iter_mut().zip(odd).zip(pairs) {
        (*even, *odd) = (relu(a), relu(b));
    }
    if let [a] = *rest {
        even_rest[0] = relu(a);
    }
}

/// Writes the ReLU of planes, and the zeros about them.
struct Rectify<'a>(&'a Maps, &'a mut PaddedMaps);

impl WithSimd for Rectify<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        const INDEX: [f32; LINE] = {
            let mut index = [0.0; LINE];
            let mut at = 1;
            while at < LINE {
                index[at] = index[at - 1] + 1.0;
                at += 1;
            }
            index
        };
        let Self(x, padded) = self;
        let (h, w, pad, pitch) = (padded.h, padded.w, padded.pad, padded.pitch());
        let (lanes, zeros) = (S::F32_LANES, simd.splat_f32s(0.0));
        let index = f32::load(simd, &INDEX[..lanes]);
        let below = |end: usize| simd.less_than_f32s(index, simd.splat_f32s(end as f32));
        let relu = |x| simd.select_f32s(simd.less_than_or_equal_f32s(x, zeros), zeros, x);
        // A run of zeros; vectors write more.
        let clear = |y: &mut [f32], n: usize| {
            for at in (0..n).step_by(lanes) {
                f32::store(simd, &mut y[at..][..lanes], zeros);
            }
        };
        // What vectors write behind a row and its zeros the next one overwrites; behind the last is room for it.
        let first = pad * pitch + pad;
        let (whole, rest) = (w - w % lanes, below(w % lanes));
        let planes = padded.numbers.chunks_mut(padded.plane_stride);
        for (padded, x) in planes.zip(x.planes()) {
            clear(padded, first);
            for row in 0..h {
                let y = &mut padded[first + row * pitch..];
                let x = &x[row * w..];
                for at in (0..whole).step_by(lanes) {
                    let x = f32::load(simd, &x[at..][..lanes]);
                    f32::store(simd, &mut y[at..][..lanes], relu(x));
                }
                let x = match x.get(whole..whole + lanes) {
                    Some(x) => f32::load(simd, x),
                    None => f32::load(simd, &x[whole..]),
                };
                let x = simd.select_f32s(rest, relu(x), zeros);
                f32::store(simd, &mut y[whole..][..lanes], x);
                if whole + lanes < pitch {
                    clear(&mut y[whole + lanes..], pitch - whole - lanes);
                }
            }
            clear(&mut padded[first + h * pitch..], pad * pitch);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::tests::{OnPath, agrees_on_every_path};

    /// Two planes, and the zeros about them.
    struct Case {
        size: [usize; 2],
        pad: usize,
        stride: usize,
    }

    impl Case {
        fn numbers(&self) -> Vec<f32> {
            let [h, w] = self.size;
            (0..2 * h * w).map(|i| (i as f32).cos()).collect()
        }

        /// Every number of both planes and every zero about them, row by row.
        fn read(&self, padded: &PaddedMaps) -> Vec<f32> {
            let [rows, columns] = self.size.map(|size| size + 2 * self.pad);
            let places = (0..2 * rows * columns).map(|i| {
                let (plane, row) = (i / (rows * columns), i / columns % rows);
                let at = row * padded.pitch() + padded.column(i % columns);
                padded.plane(plane)[at]
            });
            places.collect()
        }

        fn expected(&self) -> Vec<f32> {
            let ([h, w], pad) = (self.size, self.pad);
            let numbers = self.numbers();
            let mut all = Vec::new();
            for plane in numbers.chunks(h * w) {
                for row in 0..h + 2 * pad {
                    for column in 0..w + 2 * pad {
                        let own = row.checked_sub(pad).zip(column.checked_sub(pad));
                        let own = own.filter(|&(row, column)| row < h && column < w);
                        all.push(own.map_or(0.0, |(row, column)| plane[row * w + column].max(0.0)));
                    }
                }
            }
            all
        }
    }

    impl OnPath for Case {
        fn run<S: Simd>(&self, simd: S) -> Vec<f64> {
            let [h, w] = self.size;
            let x = Maps::from_slice(2, h, w, &self.numbers());
            let mut padded = PaddedMaps::any(&x, self.pad, self.stride);
            padded.numbers.fill(9.0);
            simd.vectorize(Rectify(&x, &mut padded));
            self.read(&padded).into_iter().map(f64::from).collect()
        }
    }

    #[test]
    fn zeros_lie_about_what_the_relu_leaves() {
        for [h, w, pad, stride] in [
            [1, 1, 1, 1],
            [3, 7, 2, 1],
            [3, 8, 0, 1],
            [5, 15, 4, 1],
            [3, 16, 2, 1],
            [3, 16, 0, 1],
            [2, 32, 1, 1],
            [2, 33, 1, 1],
            [4, 5, 1, 2],
            [3, 6, 0, 2],
            [3, 6, 2, 2],
            [7, 17, 3, 2],
        ] {
            let case = Case {
                size: [h, w],
                pad,
                stride,
            };
            let x = Maps::from_slice(2, h, w, &case.numbers());
            let found = case.read(&PaddedMaps::rectified(&x, pad, stride));
            assert_eq!(
                found,
                case.expected(),
                "{h}x{w}, {pad} zeros, stride {stride}"
            );
            if stride == 1 {
                agrees_on_every_path(&case, 0.0);
            }
        }
    }

    #[test]
    fn what_is_no_number_goes_on() {
        for stride in [1, 2] {
            let x = Maps::from_slice(1, 1, 3, &[-1.0, f32::NAN, 2.0]);
            let padded = PaddedMaps::rectified(&x, 1, stride);
            let found = [0, 1, 2, 3, 4]
                .map(|column| padded.plane(0)[padded.pitch() + padded.column(column)]);
            assert!(found[2].is_nan());
            assert_eq!(
                [found[0], found[1], found[3], found[4]],
                [0.0, 0.0, 2.0, 0.0]
            );
        }
    }
}
