//! Elementwise work on planes: weighted sums, scalar products, normalisation, moments; and images that are dropped.

use std::ops::Range;

use multiversion::multiversion;

use super::source::Affine;
use super::{Buffer, Moments, PIECE, for_each, parts_mut};
use crate::Element;

/// Numbers that are worked on at a time, in registers.
const BLOCK: usize = 32;

/// Partial sums of a scalar product.
const LANES: usize = 64;

/// A summand of a weighted sum: `factor * (plane - mean) + bias`, times what its image is multiplied by. Subtracted first, a
/// mean costs no digits.
#[derive(Debug, Clone, Copy)]
pub struct Term<'a, T> {
    /// What is done to the plane.
    pub affine: Affine<T>,
    /// The plane.
    pub plane: &'a [T],
    /// By what each image is multiplied, as drop path does; `None`: by 1.
    pub image_factors: Option<&'a [T]>,
}

impl<'a, T: Element> Term<'a, T> {
    /// A plane as it is, times a factor.
    pub fn new(factor: T, plane: &'a [T]) -> Self {
        Self {
            affine: Affine {
                mean: T::zero(),
                factor,
                bias: T::zero(),
            },
            plane,
            image_factors: None,
        }
    }

    /// The plane, if it is what is added.
    pub fn unchanged(&self) -> Option<&'a [T]> {
        let Affine { mean, factor, bias } = self.affine;
        let is_unchanged = factor == T::one() && mean == T::zero() && bias == T::zero();
        (is_unchanged && self.image_factors.is_none()).then_some(self.plane)
    }
}

/// Calls `write` for each piece of each plane, with its channel and the place of its first number.
fn for_each_piece<T: Element>(
    planes: Vec<&mut [T]>,
    write: impl Fn(usize, usize, &mut [T]) + Sync + Send,
) {
    for_each(
        parts_mut(planes, PIECE),
        || (),
        |(), _, (channel, start, part)| write(channel, start, part),
    );
}

/// Each of some planes becomes the sum of its terms, in one pass.
pub fn combine<T: Element>(planes: Vec<&mut [T]>, terms: &[Vec<Term<'_, T>>]) {
    assert_eq!(terms.len(), planes.len());
    let whole: Vec<Vec<Term<'_, T>>> = terms
        .iter()
        .map(|terms| {
            let whole = terms.iter().filter(|term| term.image_factors.is_none());
            whole.copied().collect()
        })
        .collect();
    for_each_piece(planes, |channel, start, part| {
        weighted_sum(part, &whole[channel], start);
        for term in &terms[channel] {
            if let Some(factors) = term.image_factors {
                let x = &term.plane[start..start + part.len()];
                add_dropped(part, x, term.affine, factors, start);
            }
        }
    });
}

/// Places of a part that begins at number `start` of its plane, pixel by pixel, and the images of each that they are of.
#[inline(always)]
pub(super) fn pixels(
    start: usize,
    len: usize,
    n_images: usize,
) -> impl Iterator<Item = (Range<usize>, Range<usize>)> {
    let n = n_images.max(1);
    let (first, end) = (start % n, start % n + len);
    (0..end).step_by(n).map(move |pixel| {
        let (from, to) = (pixel.max(first), end.min(pixel + n));
        (from - first..to - first, from - pixel..to - pixel)
    })
}

/// `y += image_factors * affine(x)`, from number `start` of a plane on.
#[multiversion(targets = "simd")]
fn add_dropped<T: Element>(
    y: &mut [T],
    x: &[T],
    affine: Affine<T>,
    image_factors: &[T],
    start: usize,
) {
    for (own, images) in pixels(start, y.len(), image_factors.len()) {
        let numbers = y[own.clone()].iter_mut().zip(&x[own]);
        for ((y, &x), &factor) in numbers.zip(&image_factors[images]) {
            *y += factor * affine.of(x);
        }
    }
}

/// `y = image_factors * x`, from number `start` of a plane on.
#[multiversion(targets = "simd")]
fn drop_images<T: Element>(y: &mut [T], x: &[T], image_factors: &[T], start: usize) {
    for (own, images) in pixels(start, y.len(), image_factors.len()) {
        let numbers = y[own.clone()].iter_mut().zip(&x[own]);
        for ((y, &x), &factor) in numbers.zip(&image_factors[images]) {
            *y = factor * x;
        }
    }
}

#[multiversion(targets = "simd")]
fn weighted_sum<T: Element>(y: &mut [T], terms: &[Term<'_, T>], start: usize) {
    let len = y.len();
    let bias = terms
        .iter()
        .fold(T::zero(), |sum, term| sum + term.affine.bias);
    let (blocks, rest) = y.as_chunks_mut::<BLOCK>();
    for (index, block) in blocks.iter_mut().enumerate() {
        let at = start + index * BLOCK;
        let mut sums = [bias; BLOCK];
        for term in terms {
            let Affine { mean, factor, .. } = term.affine;
            let source: &[T; BLOCK] = term.plane[at..at + BLOCK].try_into().expect("a block");
            for (sum, &x) in sums.iter_mut().zip(source) {
                *sum += factor * (x - mean);
            }
        }
        *block = sums;
    }
    let at = start + len - rest.len();
    for (index, y) in rest.iter_mut().enumerate() {
        let mut sum = bias;
        for term in terms {
            sum += term.affine.factor * (term.plane[at + index] - term.affine.mean);
        }
        *y = sum;
    }
}

/// A sum of a plane, and its scalar products with some others.
type Dots = (f64, Vec<f64>);

/// For each plane of `grads`, its sum and its scalar product with each of its `sources`.
pub fn dots<T: Element>(grads: &[&[T]], sources: &[Vec<&[T]>]) -> Vec<Dots> {
    assert_eq!(grads.len(), sources.len());
    let len = grads.first().map_or(0, |grad| grad.len());
    let mut answers = vec![vec![Dots::default(); len.div_ceil(PIECE)]; grads.len()];
    let answers_of = answers.iter_mut().zip(grads).zip(sources);
    let items = answers_of
        .flat_map(|((parts, grad), sources)| {
            let pieces = grad.chunks(PIECE).enumerate().zip(parts);
            pieces.map(move |((index, grad), part)| (index * PIECE, grad, sources, part))
        })
        .collect();
    for_each(
        items,
        || (),
        |(), _, (start, grad, sources, part)| {
            *part = dots_of(grad, sources, start);
        },
    );
    add_dots(answers, sources)
}

/// For each plane of `grads`, each image of it multiplied by its factor, the sum and the scalar product with its `source`.
pub fn dropped_dots<T: Element>(
    grads: &[&[T]],
    sources: &[&[T]],
    image_factors: &[T],
) -> Vec<[f64; 2]> {
    assert_eq!(grads.len(), sources.len());
    let len = grads.first().map_or(0, |grad| grad.len());
    let mut answers = vec![vec![[0.0; 2]; len.div_ceil(PIECE)]; grads.len()];
    let answers_of = answers.iter_mut().zip(grads).zip(sources);
    let items = answers_of
        .flat_map(|((parts, grad), source)| {
            let pieces = grad.chunks(PIECE).zip(source.chunks(PIECE)).enumerate();
            pieces.zip(parts)
        })
        .collect();
    for_each(
        items,
        || Buffer::<T>::scratch(PIECE),
        |scratch, _, ((index, (grad, source)), part)| {
            let dropped = &mut scratch[..grad.len()];
            drop_images(dropped, grad, image_factors, index * PIECE);
            let (sum, [product]) = sum_and_dots(dropped, [source]);
            *part = [sum, product];
        },
    );
    let total = |parts: Vec<[f64; 2]>| {
        let add = |sums: [f64; 2], part: [f64; 2]| [0, 1].map(|index| sums[index] + part[index]);
        parts.into_iter().fold([0.0; 2], add)
    };
    answers.into_iter().map(total).collect()
}

fn dots_of<'a, T: Element>(grad: &[T], sources: &[&'a [T]], start: usize) -> Dots {
    let part = |source: &'a [T]| &source[start..][..grad.len()];
    let (mut sum, mut products) = (None, Vec::with_capacity(sources.len()));
    let (pairs, last) = sources.as_chunks::<2>();
    for &pair in pairs {
        let (own, of) = sum_and_dots(grad, pair.map(part));
        sum = Some(own);
        products.extend(of);
    }
    if let &[last] = last {
        let (own, of) = sum_and_dots(grad, [part(last)]);
        sum = Some(own);
        products.extend(of);
    }
    (sum.unwrap_or_else(|| sum_of(grad)), products)
}

/// The sums over all pieces, in their order.
fn add_dots<T>(answers: Vec<Vec<Dots>>, sources: &[Vec<&[T]>]) -> Vec<Dots> {
    answers
        .into_iter()
        .zip(sources)
        .map(|(parts, sources)| {
            let mut products = vec![0.0; sources.len()];
            let mut sum = 0.0;
            for (part_sum, part_products) in parts {
                sum += part_sum;
                for (product, part) in products.iter_mut().zip(part_products) {
                    *product += part;
                }
            }
            (sum, products)
        })
        .collect()
}

/// The sum of `a`, and its scalar products with some others: all are read side by side.
#[multiversion(targets = "simd")]
#[expect(
    clippy::needless_range_loop,
    reason = "iterators over arrays of sums keep these in memory"
)]
pub(super) fn sum_and_dots<T: Element, const N: usize>(
    a: &[T],
    others: [&[T]; N],
) -> (f64, [f64; N]) {
    let (a_blocks, a_rest) = a.as_chunks::<LANES>();
    let others = others.map(|other| other.as_chunks::<LANES>());
    let (mut sums, mut products) = ([T::zero(); LANES], [[T::zero(); LANES]; N]);
    for block in 0..a_blocks.len() {
        let a = &a_blocks[block];
        for lane in 0..LANES {
            sums[lane] += a[lane];
        }
        for number in 0..N {
            let other = &others[number].0[block];
            for lane in 0..LANES {
                products[number][lane] += a[lane] * other[lane];
            }
        }
    }
    let sum = total(sums) + a_rest.iter().map(|x| x.to_f64()).sum::<f64>();
    let product = |number: usize| {
        let rest = a_rest.iter().zip(others[number].1);
        total(products[number]) + rest.map(|(&a, &b)| (a * b).to_f64()).sum::<f64>()
    };
    (sum, std::array::from_fn(product))
}

#[multiversion(targets = "simd")]
fn sum_of<T: Element>(a: &[T]) -> f64 {
    let (blocks, rest) = a.as_chunks::<LANES>();
    let mut lanes = [T::zero(); LANES];
    for block in blocks {
        for (lane, &x) in lanes.iter_mut().zip(block) {
            *lane += x;
        }
    }
    total(lanes) + rest.iter().map(|x| x.to_f64()).sum::<f64>()
}

/// The sum of partial sums, as a tree.
#[inline(always)]
fn total<T: Element>(mut lanes: [T; LANES]) -> f64 {
    let mut width = LANES;
    while width > 16 {
        width /= 2;
        for lane in 0..width {
            let other = lanes[lane + width];
            lanes[lane] += other;
        }
    }
    lanes[..width].iter().map(|lane| lane.to_f64()).sum()
}

/// `y = factor * (x - mean) + bias` per plane: batch normalisation.
pub fn normalise<T: Element>(y: Vec<&mut [T]>, x: &[&[T]], affine: &[Affine<T>]) {
    assert_eq!([x.len(), affine.len()], [y.len(); 2]);
    for_each_piece(y, |channel, start, y| {
        let x = &x[channel][start..start + y.len()];
        normalise_part(y, x, affine[channel]);
    });
}

/// [`normalise`] in place.
pub fn normalise_in_place<T: Element>(planes: Vec<&mut [T]>, affine: &[Affine<T>]) {
    assert_eq!(affine.len(), planes.len());
    for_each_piece(planes, |channel, _, y| normalise_own(y, affine[channel]));
}

/// [`normalise`] of a part of a plane.
#[multiversion(targets = "simd")]
fn normalise_part<T: Element>(y: &mut [T], x: &[T], affine: Affine<T>) {
    for (y, &x) in y.iter_mut().zip(x) {
        *y = affine.of(x);
    }
}

#[multiversion(targets = "simd")]
fn normalise_own<T: Element>(y: &mut [T], affine: Affine<T>) {
    for y in y {
        *y = affine.of(*y);
    }
}

/// `y += grad`.
pub fn accumulate<T: Element>(y: Vec<&mut [T]>, grads: &[&[T]]) {
    assert_eq!(grads.len(), y.len());
    for_each_piece(y, |channel, start, y| {
        add(y, &grads[channel][start..start + y.len()]);
    });
}

/// `y += grad`.
#[multiversion(targets = "simd")]
pub(super) fn add<T: Element>(y: &mut [T], grad: &[T]) {
    for (y, &grad) in y.iter_mut().zip(grad) {
        *y += grad;
    }
}

/// Mean and variance of each plane.
pub fn moments<T: Element>(planes: &[&[T]]) -> Vec<Moments> {
    let mut parts: Vec<Vec<PartMoments>> = planes
        .iter()
        .map(|plane| vec![PartMoments::default(); plane.len().div_ceil(PIECE)])
        .collect();
    let items = planes
        .iter()
        .zip(&mut parts)
        .flat_map(|(plane, parts)| plane.chunks(PIECE).zip(parts))
        .collect();
    for_each(
        items,
        || (),
        |(), _, (part, moments)| *moments = PartMoments::of(part),
    );
    parts
        .into_iter()
        .map(|parts| PartMoments::merge(&parts))
        .collect()
}

/// Number, mean and sum of squared deviations of some numbers.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct PartMoments {
    n: f64,
    mean: f64,
    squares: f64,
}

impl PartMoments {
    /// Of some numbers.
    pub(super) fn of<T: Element>(part: &[T]) -> Self {
        let mut sums = MomentSums::default();
        sums.add(part);
        sums.end()
    }

    /// Of all pieces together (Chan et al.), in their order.
    pub(super) fn merge(parts: &[Self]) -> Moments {
        let mut all = Self::default();
        for part in parts.iter().filter(|part| part.n > 0.0) {
            let n = all.n + part.n;
            let delta = part.mean - all.mean;
            all.mean += delta * part.n / n;
            all.squares += part.squares + delta * delta * all.n * part.n / n;
            all.n = n;
        }
        Moments {
            mean: all.mean,
            var: all.squares / all.n.max(1.0),
        }
    }
}

/// The moments of numbers that come part by part: sums of what they differ from one that is near their mean.
#[derive(Debug, Clone, Copy)]
pub(super) struct MomentSums<T> {
    n: usize,
    pivot: T,
    sums: [T; LANES],
    squares: [T; LANES],
}

impl<T: Element> Default for MomentSums<T> {
    fn default() -> Self {
        Self {
            n: 0,
            pivot: T::zero(),
            sums: [T::zero(); LANES],
            squares: [T::zero(); LANES],
        }
    }
}

impl<T: Element> MomentSums<T> {
    /// Takes some more numbers.
    pub(super) fn add(&mut self, part: &[T]) {
        if self.n == 0 {
            let first = &part[..part.len().min(LANES)];
            self.pivot = T::from_f64(sum_of(first) / first.len().max(1) as f64);
        }
        self.n += part.len();
        add_differences(part, self.pivot, &mut self.sums, &mut self.squares);
    }

    /// The moments of all.
    pub(super) fn end(&self) -> PartMoments {
        let (n, sum, squares) = (self.n as f64, total(self.sums), total(self.squares));
        PartMoments {
            n,
            mean: self.pivot.to_f64() + sum / n.max(1.0),
            squares: (squares - sum * sum / n.max(1.0)).max(0.0),
        }
    }
}

/// Adds `x - pivot` and its square.
#[multiversion(targets = "simd")]
fn add_differences<T: Element>(
    part: &[T],
    pivot: T,
    sums: &mut [T; LANES],
    squares: &mut [T; LANES],
) {
    let (mut own_sums, mut own_squares) = (*sums, *squares);
    let (blocks, rest) = part.as_chunks::<LANES>();
    for block in blocks {
        for lane in 0..LANES {
            let difference = block[lane] - pivot;
            own_sums[lane] += difference;
            own_squares[lane] += difference * difference;
        }
    }
    for (lane, &x) in rest.iter().enumerate() {
        let difference = x - pivot;
        own_sums[lane] += difference;
        own_squares[lane] += difference * difference;
    }
    (*sums, *squares) = (own_sums, own_squares);
}
