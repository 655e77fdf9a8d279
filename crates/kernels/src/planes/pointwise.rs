//! Pointwise convolutions of planes, with the batch normalisation behind them.

use multiversion::multiversion;

use super::combine::{MomentSums, PartMoments, pixels};
use super::source::Source;
use super::{Buffer, Moments, PIECE, for_each, parts_mut, pieces_mut};
use crate::Element;
use crate::product::{Masks, OuterSums, Panels, Rows, row_stride};
use crate::simd::Ahead;

/// The gradient of what a batch normalisation reads, from the gradient of what it gives: per channel
/// `factors[0] * grad + factors[1] * (raw - factors[3]) + factors[2]`. It is never stored; whoever needs it computes it.
#[derive(Debug, Clone)]
pub struct NormGrad<'a, T> {
    grads: Vec<&'a [T]>,
    raw: Vec<&'a [T]>,
    factors: Vec<[T; 4]>,
    /// By what each image of each gradient is multiplied before that.
    image_factors: Vec<Option<&'a [T]>>,
}

impl<'a, T: Element> NormGrad<'a, T> {
    /// `grads`: of `weight * normalised`; `raw`: what was normalised, by `moments` (with `eps`); `sums`: of each
    /// gradient, and its scalar product with `raw`; `weights`: by what each normalised channel was multiplied.
    pub fn new(
        grads: Vec<&'a [T]>,
        raw: Vec<&'a [T]>,
        moments: &[Moments],
        eps: f64,
        sums: &[[f64; 2]],
        weights: &[f64],
    ) -> Self {
        let factors = moments
            .iter()
            .zip(sums)
            .zip(weights)
            .zip(&raw)
            .map(|(((moments, &[sum, product]), weight), raw)| {
                let inv_std = moments.inv_std(eps);
                let n = raw.len().max(1) as f64;
                let mean_grad = sum / n;
                let mean_product = inv_std * (product - moments.mean * sum) / n;
                let outer = weight * inv_std;
                [
                    outer,
                    -outer * inv_std * mean_product,
                    -outer * mean_grad,
                    moments.mean,
                ]
                .map(T::from_f64)
            })
            .collect();
        Self {
            image_factors: vec![None; grads.len()],
            grads,
            raw,
            factors,
        }
    }

    /// The same of channels that were normalised by `moments` in place: `normalised` is what they are now, and `sums`
    /// has scalar products with it.
    pub fn of_normalised(
        grads: Vec<&'a [T]>,
        normalised: Vec<&'a [T]>,
        moments: &[Moments],
        eps: f64,
        sums: &[[f64; 2]],
    ) -> Self {
        let factors = moments
            .iter()
            .zip(sums)
            .map(|(moments, sums)| {
                let n = normalised.first().map_or(1, |plane| plane.len().max(1)) as f64;
                let inv_std = moments.inv_std(eps);
                let [mean_grad, mean_product] = sums.map(|sum| sum / n);
                [inv_std, -inv_std * mean_product, -inv_std * mean_grad, 0.0].map(T::from_f64)
            })
            .collect();
        Self {
            image_factors: vec![None; grads.len()],
            grads,
            raw: normalised,
            factors,
        }
    }

    /// The same where of each gradient each image is multiplied by its factor first, as drop path does, and `sums` are of what
    /// that gives.
    pub fn dropped(self, image_factors: Option<&'a [T]>) -> Self {
        Self {
            image_factors: vec![image_factors; self.grads.len()],
            ..self
        }
    }

    /// With the channels of another behind its own.
    pub fn and(mut self, other: Self) -> Self {
        self.grads.extend(other.grads);
        self.raw.extend(other.raw);
        self.factors.extend(other.factors);
        self.image_factors.extend(other.image_factors);
        self
    }

    /// Number of channels.
    pub(super) fn len(&self) -> usize {
        self.factors.len()
    }

    /// Some of the channels.
    pub fn channels(&self, range: std::ops::Range<usize>) -> Self {
        Self {
            grads: self.grads[range.clone()].to_vec(),
            raw: self.raw[range.clone()].to_vec(),
            factors: self.factors[range.clone()].to_vec(),
            image_factors: self.image_factors[range].to_vec(),
        }
    }

    /// What the gradient is computed from.
    pub(super) fn sources(&self) -> Vec<&'a [T]> {
        self.grads.iter().chain(&self.raw).copied().collect()
    }

    /// The gradient from `start` on, channel by channel, in rows of `len` numbers, `stride` apart.
    pub(super) fn fill(&self, start: usize, len: usize, rows: &mut [T], stride: usize) {
        for (channel, part) in rows.chunks_mut(stride).enumerate().take(self.len()) {
            self.fill_channel(channel, start, &mut part[..len]);
        }
    }

    fn fill_channel(&self, channel: usize, start: usize, part: &mut [T]) {
        let planes = [self.grads[channel], self.raw[channel]];
        let [grad, raw] = planes.map(|plane| &plane[start..][..part.len()]);
        let factors = self.factors[channel];
        match self.image_factors[channel] {
            None => affine(part, grad, raw, factors),
            Some(own) => affine_of_dropped(part, grad, raw, factors, own, start),
        }
    }

    /// Writes the gradient to planes.
    pub fn write_to(&self, planes: Vec<&mut [T]>) {
        let items = pieces_mut(planes, PIECE);
        for_each(
            items,
            || (),
            |(), index, parts| {
                for (channel, part) in parts.into_iter().enumerate() {
                    self.fill_channel(channel, index * PIECE, part);
                }
            },
        );
    }
}

/// `y = a * grad + b * (raw - mean) + c`.
#[multiversion(targets = "simd")]
fn affine<T: Element>(y: &mut [T], grad: &[T], raw: &[T], [a, b, c, mean]: [T; 4]) {
    for ((y, &grad), &raw) in y.iter_mut().zip(grad).zip(raw) {
        *y = a * grad + b * (raw - mean) + c;
    }
}

/// The same of gradients each image of which is multiplied by its factor first; the part begins at number `start` of its plane.
#[multiversion(targets = "simd")]
fn affine_of_dropped<T: Element>(
    y: &mut [T],
    grad: &[T],
    raw: &[T],
    [a, b, c, mean]: [T; 4],
    image_factors: &[T],
    start: usize,
) {
    for (own, images) in pixels(start, y.len(), image_factors.len()) {
        let numbers = y[own.clone()].iter_mut().zip(&grad[own.clone()]);
        let factors = raw[own].iter().zip(&image_factors[images]);
        for ((y, &grad), (&raw, &factor)) in numbers.zip(factors) {
            *y = a * (factor * grad) + b * (raw - mean) + c;
        }
    }
}

/// The length of pieces of `n_channels` planes that stay in the second-level cache.
fn piece_len(n_channels: usize) -> usize {
    (PIECE * 8 / n_channels.max(1)).clamp(256, PIECE)
}

/// The numbers of a plane over which sums are taken at a time, a whole number of pieces: so many that their ends take no
/// time, and so few that there is work for several threads.
fn span_len(plane_len: usize, piece: usize) -> usize {
    (plane_len / 8)
        .clamp(PIECE / 4, PIECE)
        .next_multiple_of(piece)
}

/// `y[o] = Σ w[o, c] relu(x[c])`, and the moments of each `y`.
pub fn pointwise_forward<T: Element>(x: Source<'_, T>, w: &[T], y: Vec<&mut [T]>) -> Vec<Moments> {
    let (n_in, n_out, len) = (x.n_planes(), y.len(), piece_len(x.n_planes()));
    assert_eq!(w.len(), n_in * n_out);
    let panels = Panels::new([n_out, n_in], |o, c| w[o * n_in + c], |_| T::zero());
    let stride = row_stride(len);
    let span = span_len(x.plane_len(), len);
    let spans = pieces_mut(y, span);
    let mut moments = vec![vec![PartMoments::default(); n_out]; spans.len()];
    let items = spans.into_iter().zip(&mut moments).collect();
    for_each(
        items,
        || {
            let sums = vec![MomentSums::default(); n_out];
            (Buffer::<T>::scratch(n_in * stride), sums)
        },
        |(scratch, sums), index, (y, moments)| {
            sums.fill(MomentSums::default());
            for (number, mut y) in pieces_mut(y, len).into_iter().enumerate() {
                let part = y.first().map_or(0, |y| y.len());
                let start = index * span + number * len;
                let mut ahead = Ahead::new(x.in_order(), start + part..start + part + len);
                x.fill(start, part, scratch, stride);
                let rows = Rows::new(scratch, stride, n_in, part);
                panels.product_at(rows, &mut y, 0, &mut ahead);
                for (sums, y) in sums.iter_mut().zip(&y) {
                    sums.add(y);
                }
            }
            *moments = sums.iter().map(MomentSums::end).collect();
        },
    );
    merge(&moments, n_out)
}

/// The moments of each channel from those of its pieces.
pub(super) fn merge(pieces: &[Vec<PartMoments>], n_channels: usize) -> Vec<Moments> {
    (0..n_channels)
        .map(|channel| {
            let parts: Vec<PartMoments> = pieces.iter().map(|piece| piece[channel]).collect();
            PartMoments::merge(&parts)
        })
        .collect()
}

/// Planes for a gradient.
pub struct Target<'a, T> {
    /// The planes.
    pub planes: Vec<&'a mut [T]>,
    /// Whether the gradient is added to what is there; it takes its place otherwise.
    pub adds: bool,
}

impl<'a, T> Target<'a, T> {
    /// Planes that hold nothing yet.
    pub fn new(planes: Vec<&'a mut [T]>) -> Self {
        Self {
            planes,
            adds: false,
        }
    }
}

/// What [`pointwise_backward`] is to compute.
pub struct PointwiseGrads<'a, T> {
    /// Where the input's gradient is wanted, of a raw source behind its batch normalisation.
    pub x: Option<Target<'a, T>>,
    /// Whether the gradient of the weights is wanted.
    pub w: bool,
}

/// The gradients of [`pointwise_forward`] and the batch normalisation behind it; that of `w` is returned.
pub fn pointwise_backward<T: Element>(
    x: Source<'_, T>,
    w: &[T],
    grad_y: &NormGrad<'_, T>,
    grads: PointwiseGrads<'_, T>,
) -> Option<Vec<f64>> {
    let (n_in, n_out) = (x.n_planes(), grad_y.len());
    let len = piece_len(n_in.max(n_out));
    let plane_len = x.plane_len();
    let span = span_len(plane_len, len);
    let n_spans = plane_len.div_ceil(span);
    let adds = grads.x.as_ref().is_some_and(|target| target.adds);
    let grad_x: Vec<Option<Vec<&mut [T]>>> = match grads.x {
        Some(target) => pieces_mut(target.planes, span)
            .into_iter()
            .map(Some)
            .collect(),
        None => (0..n_spans).map(|_| None).collect(),
    };
    let mut grad_w = vec![vec![0.0; if grads.w { w.len() } else { 0 }]; n_spans];
    let transposed = Panels::new([n_in, n_out], |c, o| w[o * n_in + c], |_| T::zero());
    let stride = row_stride(len);
    let mut sources = grad_y.sources();
    sources.extend(x.in_order());
    let reads = grads.w || x.as_they_are().is_none();
    let items = grad_x.into_iter().zip(&mut grad_w).collect();
    for_each(
        items,
        || {
            (
                Buffer::<T>::scratch(n_out * stride),
                Buffer::<T>::scratch(if reads { n_in * stride } else { 0 }),
            )
        },
        |(y, rows), index, (mut grad_x, grad_w)| {
            let end = plane_len.min((index + 1) * span);
            let mut sums = OuterSums::default();
            for start in (index * span..end).step_by(len) {
                let part = len.min(end - start);
                let mut ahead = Ahead::new(&sources, start + part..start + part + len);
                grad_y.fill(start, part, y, stride);
                let y = Rows::new(y, stride, n_out, part);
                if reads {
                    x.fill(start, part, rows, stride);
                }
                if !grad_w.is_empty() {
                    let rows = Rows::new(rows, stride, n_in, part);
                    sums.add(grad_w, y, rows, start + part == end, &mut ahead);
                }
                let Some(grad_x) = &mut grad_x else {
                    continue;
                };
                // What is read is zero where what the ReLU reads is zero or less.
                let read: Vec<&[T]>;
                let masks = match x.as_they_are() {
                    Some(rows) => Masks { rows, start, adds },
                    None => {
                        read = rows.chunks(stride).take(n_in).collect();
                        Masks {
                            rows: &read,
                            start: 0,
                            adds,
                        }
                    }
                };
                let own = start - index * span;
                transposed.masked_product_at(y, grad_x, own, masks, &mut ahead);
            }
        },
    );
    grads.w.then(|| sum(&grad_w, w.len()))
}

/// The sum of partial sums, in their order.
pub(super) fn sum(parts: &[Vec<f64>], len: usize) -> Vec<f64> {
    let mut total = vec![0.0; len];
    for_each(
        parts_mut(vec![&mut total[..]], PIECE),
        || (),
        |(), _, (_, start, total)| {
            for part in parts {
                for (total, part) in total.iter_mut().zip(&part[start..]) {
                    *total += part;
                }
            }
        },
    );
    total
}
