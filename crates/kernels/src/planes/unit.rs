//! The unit of every convolution of the search space: depthwise, pointwise, and the statistics of the batch
//! normalisation behind them, without ever storing what lies between.
//!
//! Both passes go through the planes once, a few rows of all channels at a time: what these leave for the next ones
//! (normalised rows, gradients between the two convolutions) is held in rings of rows, most of which stay in the second-level
//! cache.

use std::ops::Range;

use super::combine::{Affine, MomentSums, PartMoments, mask_and_dot, normalise_part};
use super::pointwise::{NormGrad, Target, merge, sum};
use super::stencil::{Held, Onto, Stencil, TapSums};
use super::{Buffer, Moments, PIECE, for_each, pieces_mut};
use crate::Element;
use crate::product::{LINE, OuterSums, Panels, Rows, row_stride};
use crate::simd::{Ahead, prefetch};

/// Numbers that are worked on at a time, all channels together.
const GROUP: usize = 1 << 16;

/// The most rows of a group: so many rows of a plane stay in the nearest cache.
const GROUP_ROWS: usize = 4;

/// A depthwise convolution followed by a pointwise one, from as many channels to as many.
#[derive(Debug, Clone)]
pub struct Unit {
    stencil: Stencil,
}

/// What a unit reads.
#[derive(Debug, Clone, Copy)]
pub struct Source<'a, T> {
    planes: &'a [&'a [T]],
    affine: Option<&'a [Affine<T>]>,
}

impl<'a, T> Source<'a, T> {
    /// Planes as they are: `relu(x)` is what is read.
    pub fn new(planes: &'a [&'a [T]]) -> Self {
        Self {
            planes,
            affine: None,
        }
    }

    /// Planes whose batch normalisation is still to come: `relu(factor * (x - mean) + bias)` is what is read.
    pub fn raw(planes: &'a [&'a [T]], affine: &'a [Affine<T>]) -> Self {
        assert_eq!(planes.len(), affine.len());
        Self {
            planes,
            affine: Some(affine),
        }
    }
}

/// The gradients that [`Unit::backward`] finds, besides that of its input.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct UnitGrads {
    /// Those of the weights, if they are wanted.
    pub weights: Option<WeightGrads>,
    /// Of a raw source, per channel: the sum of the gradient behind the batch normalisation, and its scalar product with the
    /// source.
    pub sums: Vec<[f64; 2]>,
}

/// The gradients of the weights of a [`Unit`].
#[derive(Debug, Clone, PartialEq)]
pub struct WeightGrads {
    /// Of the depthwise convolution, `c u v`.
    pub depthwise: Vec<f64>,
    /// Of the pointwise convolution, `o c`.
    pub pointwise: Vec<f64>,
}

impl Unit {
    /// A unit whose depthwise convolution has this window.
    pub fn new(stencil: Stencil) -> Self {
        Self { stencil }
    }

    /// The window.
    pub fn stencil(&self) -> &Stencil {
        &self.stencil
    }

    /// Output rows that are worked on at a time.
    fn group(&self, n_channels: usize) -> usize {
        let row_len = self.stencil.output().row_len();
        (GROUP / (n_channels * row_len).max(1)).clamp(1, GROUP_ROWS)
    }

    /// Where the second half of the output rows begins: at a group.
    fn half(&self, group: usize) -> usize {
        (self.stencil.output().h.div_ceil(2)).next_multiple_of(group)
    }

    /// Whether sums that are taken up to a row are added up there: at the last row, at the half, and after so many groups.
    fn ends_sums(&self, row: usize, last: usize, group: usize) -> bool {
        let span = (PIECE / self.stencil.output().row_len().max(1)).max(1);
        [last, self.half(group)].contains(&row) || row.is_multiple_of(span.next_multiple_of(group))
    }

    /// `y[o] = Σ pointwise[o, c] (depthwise[c] * relu(z[c]))`, and the moments of each `y`.
    pub fn forward<T: Element>(
        &self,
        z: Source<'_, T>,
        depthwise: &[T],
        pointwise: &[T],
        y: Vec<&mut [T]>,
    ) -> Vec<Moments> {
        let (n_channels, n_out) = (z.planes.len(), y.len());
        let row_len = self.stencil.output().row_len();
        let group = self.group(n_channels);
        let (half, len) = (self.half(group), group * row_len);
        let height = self.stencil.output().h;
        let stride = row_stride(len);
        let weight = |o: usize, c: usize| pointwise[o * n_channels + c];
        let panels = Panels::new([n_out, n_channels], weight, |_| T::zero());
        let n_groups = self.stencil.output().h.div_ceil(group);
        let mut moments = vec![vec![PartMoments::default(); n_out]; n_groups];
        let pieces = pieces_mut(y, (half * row_len).max(1));
        let slots = moments.chunks_mut((half / group).max(1));
        let items = pieces.into_iter().zip(slots).collect();
        for_each(
            items,
            || {
                let scratch = Buffer::<T>::any(n_channels * stride);
                let sums = vec![MomentSums::default(); n_out];
                (Reader::new(&self.stencil, z, group), scratch, sums)
            },
            |(reader, scratch, sums), index, (y, moments): (_, &mut [_])| {
                reader.restart();
                let groups = pieces_mut(y, len.max(1)).into_iter().enumerate();
                for (number, mut y) in groups {
                    let first = index * half + number * group;
                    let rows = first..self.stencil.output().h.min(first + group);
                    let d = self.depthwise_rows(reader, depthwise, rows.clone(), scratch, stride);
                    let mut ahead = reader.ahead(self.behind(&rows));
                    for part in chunks(y.first().map_or(0, |y| y.len()), n_channels.max(n_out)) {
                        panels.product_at(d.columns(part.clone()), &mut y, part.start, &mut ahead);
                        for (sums, y) in sums.iter_mut().zip(&y) {
                            sums.add(&y[part.clone()]);
                        }
                    }
                    if self.ends_sums(rows.end, height, group) {
                        let ends = sums.iter_mut().map(std::mem::take);
                        moments[number] = ends.map(|sums| sums.end()).collect();
                    }
                }
            },
        );
        merge(&moments, n_out)
    }

    /// The input rows that the windows of some output rows reach.
    fn sources(&self, rows: Range<usize>) -> Range<usize> {
        all(rows.map(|row| self.stencil.sources(row)))
    }

    /// Those that the windows of as many output rows behind these reach.
    fn behind(&self, rows: &Range<usize>) -> Range<usize> {
        self.sources(rows.end..self.stencil.output().h.min(rows.end + rows.len()))
    }

    /// What lies between the two convolutions in some output rows, in rows of `scratch`, one per channel.
    fn depthwise_rows<'a, T: Element>(
        &self,
        reader: &mut Reader<'_, T>,
        depthwise: &[T],
        rows: Range<usize>,
        scratch: &'a mut [T],
        stride: usize,
    ) -> Rows<'a, T> {
        let unasked = reader.provide(self.sources(rows.clone()));
        let columns = unasked.start * reader.row_len..unasked.end * reader.row_len;
        let mut ahead = Ahead::new(reader.source.planes.get(1..).unwrap_or_default(), columns);
        let n_taps = self.stencil.kernel_len();
        let len = rows.len() * self.stencil.output().row_len();
        let n_channels = reader.source.planes.len();
        for (channel, part) in scratch.chunks_mut(stride).enumerate().take(n_channels) {
            let w = &depthwise[channel * n_taps..][..n_taps];
            let z = reader.plane(channel);
            self.stencil
                .forward_rows::<T, true>(z, w, rows.start, &mut part[..len], &mut ahead);
        }
        Rows::new(scratch, stride, n_channels, len)
    }

    /// Writes the gradient of what the ReLU in front reads to `grad_z`, of a raw source behind its batch normalisation; the
    /// gradients of the weights are returned if they are wanted.
    pub fn backward<T: Element>(
        &self,
        z: Source<'_, T>,
        depthwise: &[T],
        pointwise: &[T],
        grad_y: &NormGrad<'_, T>,
        grad_z: Target<'_, T>,
        wants_weights: bool,
    ) -> UnitGrads {
        let backward = Backward {
            unit: self,
            z,
            depthwise,
            transposed: Panels::new(
                [z.planes.len(), grad_y.len()],
                |c, o| pointwise[o * z.planes.len() + c],
                |_| T::zero(),
            ),
            grad_y,
            adds: grad_z.adds,
            group: self.group(z.planes.len()),
        };
        assert!(
            z.affine.is_none() || !grad_z.adds,
            "of the gradient of a raw source sums are taken as a whole"
        );
        // What comes from each half of the rows is summed for itself, so that two threads can share the work; on one thread
        // both halves are one piece, for at their border two pieces compute some rows twice.
        let (input, output) = (self.stencil.input(), self.stencil.output());
        let half = self.half(backward.group);
        let halves = [0..half.min(output.h), half.min(output.h)..output.h];
        let rows = match rayon::current_num_threads() {
            1 => input.h,
            _ => input.h.div_ceil(2),
        };
        let pieces = pieces_mut(grad_z.planes, (rows * input.row_len()).max(1));
        let mut found: [PieceGrads; 2] = std::array::from_fn(|_| {
            let n_depthwise = if wants_weights { depthwise.len() } else { 0 };
            PieceGrads::new(z, n_depthwise, pointwise.len())
        });
        if pieces.len() < 2 {
            for mut grad_z in pieces {
                let outputs = if wants_weights { 0..output.h } else { 0..0 };
                let mut scratch = Scratch::new(&backward);
                let found = found.each_mut();
                backward.piece(&mut scratch, 0..input.h, outputs, &mut grad_z, found);
            }
        } else {
            let items = pieces
                .into_iter()
                .zip(found.each_mut())
                .zip(halves)
                .collect();
            for_each(
                items,
                || Scratch::new(&backward),
                |scratch, index, ((mut grad_z, found), half)| {
                    let inputs = index * rows..input.h.min((index + 1) * rows);
                    let outputs = if wants_weights { half } else { 0..0 };
                    let mut none = PieceGrads::new(z, 0, 0);
                    let found = match index {
                        0 => [found, &mut none],
                        _ => [&mut none, found],
                    };
                    backward.piece(scratch, inputs, outputs, &mut grad_z, found);
                },
            );
        }
        let total = |of: fn(&PieceGrads) -> &Vec<f64>, len| {
            let parts: Vec<Vec<f64>> = found.iter().map(|found| of(found).clone()).collect();
            sum(&parts, len)
        };
        let n_sums = z.affine.map_or(0, |affine| 2 * affine.len());
        UnitGrads {
            weights: wants_weights.then(|| WeightGrads {
                depthwise: total(|found| &found.depthwise, depthwise.len()),
                pointwise: total(|found| &found.pointwise, pointwise.len()),
            }),
            sums: total(|found| &found.sums, n_sums).as_chunks().0.to_vec(),
        }
    }
}

/// The rows of a source as windows read them.
struct Reader<'a, T: Element> {
    source: Source<'a, T>,
    row_len: usize,
    /// Rows of a plane that are held.
    n_held: usize,
    /// Of a raw source: rows before their ReLU, channel by channel.
    ring: Buffer<T>,
    /// The first row that has not been provided.
    next: usize,
    /// The first row that has been in no [`ahead`](Self::ahead), which may not have come to its end.
    asked: usize,
}

impl<'a, T: Element> Reader<'a, T> {
    fn new(stencil: &Stencil, source: Source<'a, T>, group: usize) -> Self {
        let row_len = stencil.input().row_len();
        let n_held = match source.affine {
            None => stencil.input().h,
            Some(_) => {
                let rows = 0..stencil.output().h;
                let groups = rows.step_by(group).map(|first| {
                    let rows = first..stencil.output().h.min(first + group);
                    all(rows.map(|row| stencil.sources(row)))
                });
                groups.map(|rows| rows.len()).max().unwrap_or(0)
            }
        };
        let n_ring = match source.affine {
            None => 0,
            Some(affine) => affine.len() * n_held * row_len,
        };
        Self {
            source,
            row_len,
            n_held: n_held.max(1),
            ring: Buffer::any(n_ring),
            next: 0,
            asked: 0,
        }
    }

    /// Begins again with any row.
    fn restart(&mut self) {
        (self.next, self.asked) = (0, 0);
    }

    /// Sees to it that these rows are there, and says which of them are still to come from memory. They only move on.
    fn provide(&mut self, rows: Range<usize>) -> Range<usize> {
        let new = self.next.max(rows.start)..self.next.max(rows.end);
        self.next = new.end;
        let (Some(affine), sources) = (self.source.affine, self.source.planes) else {
            return new.start.max(self.asked)..new.end.max(self.asked);
        };
        for row in new.clone() {
            let range = row * self.row_len..(row + 1) * self.row_len;
            let planes = self.ring.chunks_mut((self.n_held * self.row_len).max(1));
            for (channel, ((ring, plane), &affine)) in planes.zip(sources).zip(affine).enumerate() {
                if row >= self.asked
                    && let Some(next) = sources.get(channel + 1)
                {
                    prefetch(&next[range.clone()]);
                }
                let held = &mut ring[row % self.n_held * self.row_len..][..self.row_len];
                normalise_part(held, &plane[range.clone()], affine);
            }
        }
        0..0
    }

    /// What is to come of these rows, of all channels, while other work goes on.
    fn ahead(&mut self, rows: Range<usize>) -> Ahead<'a, T> {
        let first = self.next.max(self.asked);
        let columns = first.max(rows.start) * self.row_len..first.max(rows.end) * self.row_len;
        self.asked = self.asked.max(rows.end);
        Ahead::new(self.source.planes, columns)
    }

    fn plane(&self, channel: usize) -> Held<'_, T> {
        match self.source.affine {
            None => Held::new(self.source.planes[channel], self.n_held),
            Some(_) => {
                let len = self.n_held * self.row_len;
                Held::new(&self.ring[channel * len..][..len], self.n_held)
            }
        }
    }
}

/// Parts of `len` numbers in each of `n` channels: so short that they stay in the nearest cache, but where channels are
/// many long enough for what is summed over them.
fn chunks(len: usize, n: usize) -> impl Iterator<Item = Range<usize>> {
    let chunk = (32 * n).max(512);
    let starts = (0..len).step_by(chunk);
    starts.map(move |start| start..len.min(start + chunk))
}

/// From the first to the last of some ranges.
fn all(ranges: impl Iterator<Item = Range<usize>>) -> Range<usize> {
    let ranges = ranges.filter(|range| !range.is_empty());
    let joined = ranges.reduce(|all, range| all.start.min(range.start)..all.end.max(range.end));
    joined.unwrap_or(0..0)
}

/// What a piece of the backward pass finds.
struct PieceGrads {
    depthwise: Vec<f64>,
    pointwise: Vec<f64>,
    sums: Vec<f64>,
}

impl PieceGrads {
    fn new<T>(z: Source<'_, T>, n_depthwise: usize, n_pointwise: usize) -> Self {
        Self {
            depthwise: vec![0.0; n_depthwise],
            pointwise: vec![0.0; if n_depthwise > 0 { n_pointwise } else { 0 }],
            sums: vec![0.0; z.affine.map_or(0, |affine| 2 * affine.len())],
        }
    }
}

/// The backward pass of a unit.
struct Backward<'a, T: Element> {
    unit: &'a Unit,
    z: Source<'a, T>,
    depthwise: &'a [T],
    transposed: Panels<T>,
    grad_y: &'a NormGrad<'a, T>,
    adds: bool,
    group: usize,
}

/// What a thread needs for it.
struct Scratch<'a, T: Element> {
    reader: Reader<'a, T>,
    /// Of all channels: a chunk of the gradient of `y`, and output rows of what lies between the convolutions.
    y: Buffer<T>,
    d: Buffer<T>,
    stride: usize,
    /// Sums of their products.
    products: OuterSums<T>,
    /// Partial sums of the products of the taps of all channels, and whether they have begun.
    taps: Buffer<T>,
    taps_begun: bool,
    /// Output rows of the gradient of what lies between the convolutions, channel by channel.
    between: Buffer<T>,
    n_held: usize,
}

impl<'a, T: Element> Scratch<'a, T> {
    fn new(backward: &Backward<'a, T>) -> Self {
        let (stencil, group) = (&backward.unit.stencil, backward.group);
        let n_channels = backward.z.planes.len();
        let row_len = stencil.output().row_len();
        let stride = row_stride(group * row_len);
        // A row is held until all input rows that its windows reach have their gradient; a group lies in one stretch.
        let inputs = 0..stencil.input().h;
        let widest = inputs.map(|row| stencil.targets(row).len()).max();
        let n_held = (widest.unwrap_or(0) + group - 1).next_multiple_of(group);
        Self {
            reader: Reader::new(stencil, backward.z, group),
            y: Buffer::any(backward.grad_y.len() * stride),
            d: Buffer::any(n_channels * stride),
            stride,
            products: OuterSums::default(),
            taps: Buffer::any(n_channels * stencil.kernel_len() * LINE),
            taps_begun: false,
            between: Buffer::any(n_channels * n_held * row_len),
            n_held,
        }
    }
}

impl<T: Element> Backward<'_, T> {
    /// The gradients of some input rows and, of the weights, what comes from some output rows; `found` by halves.
    fn piece(
        &self,
        scratch: &mut Scratch<'_, T>,
        inputs: Range<usize>,
        own: Range<usize>,
        grad_z: &mut [&mut [T]],
        mut found: [&mut PieceGrads; 2],
    ) {
        let (stencil, group) = (&self.unit.stencil, self.group);
        let half = self.unit.half(group);
        scratch.reader.restart();
        let targets = inputs.clone().map(|row| stencil.targets(row));
        let outputs = all(targets.chain([own.clone()]));
        let mut next = inputs.start;
        let first = outputs.start / group * group;
        for first in (first..outputs.end).step_by(group) {
            let rows = first..stencil.output().h.min(first + group);
            let is_second = usize::from(first >= half);
            let wanted = own.contains(&first).then_some(&mut *found[is_second]);
            let is_end = self.unit.ends_sums(rows.end, own.end, group);
            self.between_rows(scratch, rows.clone(), wanted, is_end);
            let ready = (next..inputs.end).take_while(|&row| stencil.targets(row).end <= rows.end);
            let ready = next..next + ready.count();
            next = ready.end;
            self.input_rows(scratch, ready, inputs.start, grad_z, &mut found);
        }
        self.input_rows(scratch, next..inputs.end, inputs.start, grad_z, &mut found);
    }

    /// Output rows of the gradient of what lies between the convolutions; and if the gradients of the weights are wanted, their
    /// sums over these rows, too, which are added up where they are to end.
    fn between_rows(
        &self,
        scratch: &mut Scratch<'_, T>,
        rows: Range<usize>,
        wanted: Option<&mut PieceGrads>,
        is_end: bool,
    ) {
        let (unit, stencil) = (self.unit, &self.unit.stencil);
        let row_len = stencil.output().row_len();
        let len = rows.len() * row_len;
        let Scratch {
            reader,
            y,
            d,
            stride,
            products,
            taps,
            taps_begun,
            between,
            n_held,
        } = scratch;
        let (place, held_len) = (rows.start % *n_held * row_len, (*n_held * row_len).max(1));
        let planes = between.chunks_mut(held_len);
        let mut parts: Vec<&mut [T]> = planes.map(|plane| &mut plane[place..][..len]).collect();
        let mut wanted = wanted.map(|found| {
            let d = unit.depthwise_rows(reader, self.depthwise, rows.clone(), d, *stride);
            (found, d)
        });
        let n_out = self.grad_y.len();
        let sources = self.grad_y.sources();
        for part in chunks(len, n_out.max(self.z.planes.len())) {
            let y_stride = row_stride(part.len());
            let start = rows.start * row_len + part.start;
            self.grad_y.fill(start, part.len(), y, y_stride);
            let y = Rows::new(y, y_stride, n_out, part.len());
            let end = start + part.len();
            let mut ahead = Ahead::new(&sources, end..end + part.len());
            self.transposed
                .product_at(y, &mut parts, part.start, &mut ahead);
            if let Some((found, d)) = &mut wanted {
                let is_last = is_end && part.end == len;
                products.add(
                    &mut found.pointwise,
                    y,
                    d.columns(part),
                    is_last,
                    &mut ahead,
                );
            }
        }
        let Some((found, ..)) = wanted else {
            return;
        };
        let is_first = !std::mem::replace(taps_begun, !is_end);
        let mut ahead = reader.ahead(unit.behind(&rows));
        let n_taps = stencil.kernel_len().max(1);
        let totals = found.depthwise.chunks_mut(n_taps);
        let sums = totals.zip(taps.chunks_mut(n_taps * LINE));
        for (channel, ((total, partial), between)) in sums.zip(between.chunks(held_len)).enumerate()
        {
            let sums = TapSums {
                partial,
                is_first,
                total,
                is_last: is_end,
            };
            let (z, between) = (reader.plane(channel), Held::new(between, *n_held));
            stencil.add_tap_products::<T, true>(z, between, rows.clone(), sums, &mut ahead);
        }
    }

    /// The gradients of some input rows; `grad_z` begins with the row `origin`.
    fn input_rows(
        &self,
        scratch: &mut Scratch<'_, T>,
        rows: Range<usize>,
        origin: usize,
        grad_z: &mut [&mut [T]],
        found: &mut [&mut PieceGrads; 2],
    ) {
        let stencil = &self.unit.stencil;
        let (len, n_taps) = (stencil.input().row_len(), stencil.kernel_len());
        let held_len = scratch.n_held * stencil.output().row_len();
        let half = stencil.input().h.div_ceil(2);
        for channel in 0..grad_z.len() {
            let own = (rows.start - origin) * len..(rows.end - origin) * len;
            let (before, behind) = grad_z.split_at_mut(channel + 1);
            let next: Option<&[T]> = behind.first().map(|next| &next[..]);
            let mut ahead = Ahead::new(next.as_slice(), own.clone());
            let grad_z = &mut before[channel][own];
            let w = &self.depthwise[channel * n_taps..][..n_taps];
            let between = &scratch.between[channel * held_len..][..held_len];
            let between = Held::new(between, scratch.n_held.max(1));
            for (row, grad_z) in rows.clone().zip(grad_z.chunks_mut(len.max(1))) {
                let raw = &self.z.planes[channel][row * len..][..len];
                let Some(affine) = self.z.affine else {
                    let onto = Onto::new(grad_z).adding(self.adds).behind_relu(raw);
                    stencil.backward_rows(between, w, row, onto, &mut ahead);
                    continue;
                };
                let onto = Onto::new(grad_z);
                stencil.backward_rows(between, w, row, onto, &mut ahead);
                let found = &mut found[usize::from(row >= half)].sums;
                for (sum, own) in found[2 * channel..][..2].iter_mut().zip(mask_and_dot(
                    grad_z,
                    raw,
                    affine[channel],
                )) {
                    *sum += own;
                }
            }
        }
    }
}
