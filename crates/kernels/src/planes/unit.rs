//! The unit of every convolution of the search space: depthwise, pointwise, and the statistics of the batch
//! normalisation behind them, without ever storing what lies between.
//!
//! Both passes go through the planes once, a few rows of all channels at a time: the gradients between the two convolutions,
//! which these leave for the next ones, are held in a ring of rows that stays in the second-level cache.

use std::collections::VecDeque;
use std::ops::Range;

use super::combine::{MomentSums, PartMoments, sum_and_dots};
use super::pointwise::{NormGrad, Target, merge};
use super::source::Source;
use super::stencil::{Held, Onto, Stencil, TapSums};
use super::stretches::Stretches;
use super::{Buffer, Moments, PIECE, pieces_mut};
use crate::Element;
use crate::product::{LINE, OuterSums, Panels, Rows, row_stride};
use crate::simd::Ahead;

/// Numbers that are worked on at a time, all channels together.
const GROUP: usize = 1 << 15;

/// The most rows of a group: so many rows of a plane stay in the nearest cache.
const GROUP_ROWS: usize = 4;

/// A depthwise convolution followed by a pointwise one, from as many channels to as many.
#[derive(Debug, Clone)]
pub struct Unit {
    stencil: Stencil,
}

/// What [`Unit::backward`] is to find, besides the gradient of its input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UnitWants {
    /// The gradients of the weights.
    pub weights: bool,
    /// What the gradient of the batch normalisation in front of a raw source follows from.
    pub sums: bool,
}

/// The gradients that [`Unit::backward`] finds, besides that of its input.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct UnitGrads {
    /// Those of the weights, if they are wanted.
    pub weights: Option<WeightGrads>,
    /// Per channel, if they are wanted: the sum of the gradient in front of the ReLU, and its scalar product with the source.
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

    /// Output rows over which sums are taken at a time: whole groups, so many that the ends of sums take no time, and no more
    /// than half of all need, so that there is work for two threads.
    fn span(&self, group: usize) -> usize {
        let output = self.stencil.output();
        let rows = (PIECE / output.row_len().max(1)).max(1);
        rows.min(output.h.div_ceil(2))
            .max(1)
            .next_multiple_of(group)
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
        let (h, row_len) = (self.stencil.output().h, self.stencil.output().row_len());
        let group = self.group(n_channels);
        let span = self.span(group);
        let stride = row_stride(group * row_len);
        let weight = |o: usize, c: usize| pointwise[o * n_channels + c];
        let panels = Panels::new([n_out, n_channels], weight, |_| T::zero());
        let spans = pieces_mut(y, (span * row_len).max(1));
        let mut moments: Vec<Vec<PartMoments>> = vec![Vec::new(); spans.len()];
        let stretches = Stretches {
            begin: &|| {
                let scratch = Buffer::<T>::scratch(n_channels * stride);
                let sums = vec![MomentSums::default(); n_out];
                (Reader::new(&self.stencil, z), scratch, sums)
            },
            go_on: &|(reader, scratch, sums),
                     index,
                     (mut y, moments): (Vec<&mut [T]>, &mut Vec<_>)| {
                let span = index * span..h.min((index + 1) * span);
                for first in span.clone().step_by(group) {
                    let rows = first..span.end.min(first + group);
                    let d = self.depthwise_rows(reader, depthwise, rows.clone(), scratch, stride);
                    let mut ahead = reader.ahead(self.behind(&rows));
                    let place = (first - span.start) * row_len;
                    for part in chunks(rows.len() * row_len, n_channels.max(n_out)) {
                        let own = place + part.start..place + part.end;
                        panels.product_at(d.columns(part), &mut y, own.start, &mut ahead);
                        for (sums, y) in sums.iter_mut().zip(&y) {
                            sums.add(&y[own.clone()]);
                        }
                    }
                }
                let ends = sums.iter_mut().map(std::mem::take);
                *moments = ends.map(|sums| sums.end()).collect();
            },
            end: &|_| (),
            border: 0,
        };
        stretches.run(spans.into_iter().zip(&mut moments).collect());
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

    /// Output rows from the first that an input row needs to the last that it waits for: itself, behind another, or because its
    /// span begins with that one; at least 1.
    fn reach(&self) -> usize {
        let (h, stride) = (self.stencil.output().h, self.stencil.stride());
        let mut end = 0;
        let inputs = 0..self.stencil.input().h;
        let reach = inputs.map(|row| {
            let targets = self.stencil.targets(row);
            end = end.max(targets.end).max((row / stride + 1).min(h));
            if targets.is_empty() {
                0
            } else {
                end - targets.start
            }
        });
        reach.fold(1, usize::max)
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
        let unasked = reader.advance_to(self.sources(rows.clone()));
        let columns = unasked.start * reader.row_len..unasked.end * reader.row_len;
        let mut ahead = Ahead::new(reader.source.planes.get(1..).unwrap_or_default(), columns);
        let len = rows.len() * self.stencil.output().row_len();
        let n_channels = reader.source.planes.len();
        for (channel, part) in scratch.chunks_mut(stride).enumerate().take(n_channels) {
            let part = &mut part[..len];
            self.depthwise_channel(reader, depthwise, channel, rows.start, part, &mut ahead);
        }
        Rows::new(scratch, stride, n_channels, len)
    }

    /// The same of one channel, from output row `first` on.
    fn depthwise_channel<T: Element>(
        &self,
        reader: &Reader<'_, T>,
        depthwise: &[T],
        channel: usize,
        first: usize,
        part: &mut [T],
        ahead: &mut Ahead<'_, T>,
    ) {
        let n_taps = self.stencil.kernel_len();
        let (z, w) = (
            reader.plane(channel),
            &depthwise[channel * n_taps..][..n_taps],
        );
        self.stencil
            .forward_rows::<T, true>(z, w, first, part, ahead);
    }

    /// Writes the gradient of what the ReLU in front reads to `grad_z`, of a raw source behind its batch normalisation, or
    /// adds it to what is there.
    ///
    /// # Panics
    /// If there are not as many planes of `grad_z` as of `z`, or sums are wanted of a gradient that is added to another.
    pub fn backward<T: Element>(
        &self,
        z: Source<'_, T>,
        depthwise: &[T],
        pointwise: &[T],
        grad_y: &NormGrad<'_, T>,
        grad_z: Target<'_, T>,
        wants: UnitWants,
    ) -> UnitGrads {
        assert!(
            !(wants.sums && grad_z.adds),
            "sums are taken of the whole gradient"
        );
        assert_eq!(grad_z.planes.len(), z.planes.len());
        let group = self.group(z.planes.len());
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
            wants,
            group,
            span: self.span(group),
            reach: self.reach(),
        };
        let n_weights = match wants.weights {
            true => [depthwise.len(), pointwise.len()],
            false => [0; 2],
        };
        let n_sums = if wants.sums { 2 * z.planes.len() } else { 0 };
        let none = SpanGrads::new(n_weights, n_sums);
        let mut found = vec![none.clone(); self.stencil.output().h.div_ceil(backward.span)];
        let stretches = Stretches {
            begin: &|| Stretch::new(&backward),
            go_on: &|stretch, _, span| backward.go_on(stretch, span),
            end: &|stretch| backward.end(stretch),
            border: backward.border(),
        };
        stretches.run(backward.spans(grad_z.planes, &mut found));
        let SpanGrads {
            depthwise,
            pointwise,
            sums,
        } = found.into_iter().fold(none, SpanGrads::plus);
        UnitGrads {
            weights: wants.weights.then_some(WeightGrads {
                depthwise,
                pointwise,
            }),
            sums: sums.as_chunks().0.to_vec(),
        }
    }
}

/// The rows of a source as windows read them.
struct Reader<'a, T: Element> {
    source: Source<'a, T>,
    row_len: usize,
    /// Rows of a plane.
    height: usize,
    /// The first row that has not been read.
    next: usize,
    /// The first row that has been in no [`ahead`](Self::ahead), which may not have come to its end.
    asked: usize,
}

impl<'a, T: Element> Reader<'a, T> {
    fn new(stencil: &Stencil, source: Source<'a, T>) -> Self {
        assert_eq!(
            source.in_order().len(),
            source.n_planes(),
            "windows read all pixels"
        );
        Self {
            source,
            row_len: stencil.input().row_len(),
            height: stencil.input().h,
            next: 0,
            asked: 0,
        }
    }

    /// Moves on to these rows, and says which of them are still to come from memory. They only move on.
    fn advance_to(&mut self, rows: Range<usize>) -> Range<usize> {
        let new = self.next.max(rows.start)..self.next.max(rows.end);
        self.next = new.end;
        new.start.max(self.asked)..new.end.max(self.asked)
    }

    /// What is to come of these rows, of all channels, while other work goes on.
    fn ahead(&mut self, rows: Range<usize>) -> Ahead<'a, T> {
        let first = self.next.max(self.asked);
        let columns = first.max(rows.start) * self.row_len..first.max(rows.end) * self.row_len;
        self.asked = self.asked.max(rows.end);
        Ahead::new(self.source.planes, columns)
    }

    fn plane(&self, channel: usize) -> Held<'a, T> {
        let rows = Held::new(self.source.planes[channel], self.height);
        match self.source.affine {
            None => rows,
            Some(affine) => rows.behind(affine[channel].folded()),
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

/// What a span of the rows gives of the gradients that are sums.
#[derive(Clone)]
struct SpanGrads {
    depthwise: Vec<f64>,
    pointwise: Vec<f64>,
    sums: Vec<f64>,
}

impl SpanGrads {
    fn new([n_depthwise, n_pointwise]: [usize; 2], n_sums: usize) -> Self {
        Self {
            depthwise: vec![0.0; n_depthwise],
            pointwise: vec![0.0; n_pointwise],
            sums: vec![0.0; n_sums],
        }
    }

    fn plus(mut self, more: Self) -> Self {
        let add = |sums: &mut [f64], more: &[f64]| {
            sums.iter_mut().zip(more).for_each(|(sum, own)| *sum += own);
        };
        add(&mut self.depthwise, &more.depthwise);
        add(&mut self.pointwise, &more.pointwise);
        add(&mut self.sums, &more.sums);
        self
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
    wants: UnitWants,
    group: usize,
    span: usize,
    reach: usize,
}

/// A span of the rows.
struct Span<'a, T> {
    /// The output rows.
    outputs: Range<usize>,
    /// The input rows whose gradient belongs to the span and is still to be written.
    inputs: Range<usize>,
    /// That gradient, channel by channel, from the row `origin` on.
    grad_z: Vec<&'a mut [T]>,
    origin: usize,
    found: &'a mut SpanGrads,
}

/// Output rows that are worked on at a time.
struct Group {
    rows: Range<usize>,
    /// Whether the gradients of the weights are summed over them.
    is_summed: bool,
    /// Whether these sums end with them; of account only if it `is_summed`.
    is_last: bool,
}

/// Spans that follow each other, and what a thread needs for them.
struct Stretch<'a, 'b, T: Element> {
    /// Those some of whose gradient is still to be written, and the newest.
    spans: VecDeque<Span<'b, T>>,
    /// The first output row of which nothing is known yet.
    next: usize,
    reader: Reader<'a, T>,
    /// Of all channels: a chunk of the gradient of `y`, and output rows of what lies between the convolutions.
    y: Buffer<T>,
    d: Buffer<T>,
    /// Which rows `d` was filled with ahead, if any, and how far apart its channels are.
    d_rows: Range<usize>,
    stride: usize,
    /// Sums of their products.
    products: OuterSums<T>,
    /// Partial sums of the products of the taps of all channels, and whether they have begun.
    taps: Buffer<T>,
    taps_begun: bool,
    /// Output rows of the gradient of what lies between the convolutions, channel by channel.
    between: Buffer<T>,
    /// Rows of each channel that it holds.
    n_held: usize,
}

impl<'a, T: Element> Stretch<'a, '_, T> {
    fn new(backward: &Backward<'a, T>) -> Self {
        let (stencil, group) = (&backward.unit.stencil, backward.group);
        let n_channels = backward.z.planes.len();
        let row_len = stencil.output().row_len();
        let stride = row_stride(group * row_len);
        // A row is held until all input rows that its windows reach have their gradient; a group lies in one piece.
        let n_held = (backward.reach + group - 1).next_multiple_of(group);
        Self {
            spans: VecDeque::new(),
            next: 0,
            reader: Reader::new(stencil, backward.z),
            y: Buffer::scratch(backward.grad_y.len() * stride),
            d: Buffer::scratch(n_channels * stride),
            d_rows: 0..0,
            stride,
            products: OuterSums::default(),
            taps: Buffer::scratch(n_channels * stencil.kernel_len() * LINE),
            taps_begun: false,
            between: Buffer::scratch(n_channels * n_held * row_len),
            n_held,
        }
    }
}

impl<'a, T: Element> Backward<'a, T> {
    /// The spans of the rows: with output rows go the input rows in the same place, as many to each row as the stride tells.
    fn spans<'b>(&self, grad_z: Vec<&'b mut [T]>, found: &'b mut [SpanGrads]) -> Vec<Span<'b, T>> {
        let (input, output) = (self.unit.stencil.input(), self.unit.stencil.output());
        let n_spans = found.len();
        let per_span = self.span * self.unit.stencil.stride();
        let mut spans: Vec<Span<'_, T>> = found
            .iter_mut()
            .enumerate()
            .map(|(index, found)| {
                let origin = input.h.min(index * per_span);
                let end = match index + 1 == n_spans {
                    true => input.h,
                    false => input.h.min(origin + per_span),
                };
                Span {
                    outputs: index * self.span..output.h.min((index + 1) * self.span),
                    inputs: origin..end,
                    grad_z: Vec::with_capacity(grad_z.len()),
                    origin,
                    found,
                }
            })
            .collect();
        for mut plane in grad_z {
            for span in &mut spans {
                let (rows, behind) = plane.split_at_mut(span.inputs.len() * input.row_len());
                span.grad_z.push(rows);
                plane = behind;
            }
        }
        spans
    }

    /// What a stretch takes besides its spans, in the time of a span: of the output rows behind either end, which the windows
    /// at the border reach, a third of what is computed of its own.
    fn border(&self) -> usize {
        (self.reach - 1) / (3 * self.span)
    }

    /// What comes from the output rows of the next span, and the gradients of the input rows that no further ones reach.
    fn go_on<'b>(&self, stretch: &mut Stretch<'a, 'b, T>, span: Span<'b, T>) {
        let own = span.outputs.clone();
        if stretch.spans.is_empty() {
            // Where taps lie in the padding, an input row further on may need an earlier output row.
            let targets = self.targets(span.inputs.start..self.unit.stencil.input().h);
            let first = all([targets, own.clone()].into_iter()).start;
            stretch.next = first / self.group * self.group;
        }
        stretch.spans.push_back(span);
        self.advance(stretch, own.start, false);
        self.advance(stretch, own.end, true);
    }

    /// The gradients of the input rows that what lies behind the stretch reaches.
    fn end(&self, mut stretch: Stretch<'a, '_, T>) {
        let inputs = stretch.spans.iter().map(|span| span.inputs.clone());
        let end = self.targets(all(inputs)).end;
        self.advance(&mut stretch, end, false);
    }

    /// The output rows whose windows reach some input rows.
    fn targets(&self, inputs: Range<usize>) -> Range<usize> {
        all(inputs.map(|row| self.unit.stencil.targets(row)))
    }

    /// Output rows up to `end`, group by group, and all that follows from them; `is_own`: they belong to the newest span.
    fn advance(&self, stretch: &mut Stretch<'a, '_, T>, end: usize, is_own: bool) {
        let stencil = &self.unit.stencil;
        while stretch.next < end {
            let rows = stretch.next..stencil.output().h.min(stretch.next + self.group);
            stretch.next = rows.end;
            let is_ready = |&row: &usize| stencil.targets(row).end <= rows.end;
            let take_ready = |span: &mut Span<'_, T>| {
                let n_ready = span.inputs.clone().take_while(is_ready).count();
                let ready = span.inputs.start..span.inputs.start + n_ready;
                span.inputs.start = ready.end;
                ready
            };
            let ready: Vec<Range<usize>> = stretch.spans.iter_mut().map(take_ready).collect();
            let group = Group {
                is_summed: is_own && self.wants.weights,
                is_last: rows.end == end,
                rows,
            };
            self.between_rows(stretch, &group);
            self.behind_between(stretch, &group, &ready);
            while stretch.spans.len() > 1 && stretch.spans[0].inputs.is_empty() {
                stretch.spans.pop_front();
            }
        }
    }

    /// The gradient of what lies between the convolutions in a group of rows, and their part of the gradient of the pointwise
    /// weights.
    fn between_rows(&self, stretch: &mut Stretch<'a, '_, T>, group: &Group) {
        let (unit, rows) = (self.unit, &group.rows);
        let (row_len, n_channels) = (unit.stencil.output().row_len(), self.z.planes.len());
        let len = rows.len() * row_len;
        let Stretch {
            spans,
            reader,
            y,
            d,
            d_rows,
            stride,
            products,
            between,
            n_held,
            ..
        } = stretch;
        let (place, held_len) = (rows.start % *n_held * row_len, (*n_held * row_len).max(1));
        let planes = between.chunks_mut(held_len);
        let mut parts: Vec<&mut [T]> = planes.map(|plane| &mut plane[place..][..len]).collect();
        let newest = spans.back_mut();
        let mut wanted = newest.filter(|_| group.is_summed).map(|span| {
            let d = if d_rows == rows {
                Rows::new(d, *stride, n_channels, len)
            } else {
                unit.depthwise_rows(reader, self.depthwise, rows.clone(), d, *stride)
            };
            (&mut span.found.pointwise, d)
        });
        let n_out = self.grad_y.len();
        let sources = self.grad_y.sources();
        for part in chunks(len, n_out.max(n_channels)) {
            let y_stride = row_stride(part.len());
            let start = rows.start * row_len + part.start;
            self.grad_y.fill(start, part.len(), y, y_stride);
            let y = Rows::new(y, y_stride, n_out, part.len());
            let end = start + part.len();
            let mut ahead = Ahead::new(&sources, end..end + part.len());
            self.transposed
                .product_at(y, &mut parts, part.start, &mut ahead);
            if let Some((found, d)) = &mut wanted {
                let ends = group.is_last && part.end == len;
                let d = d.columns(part);
                products.add(found, y, d, ends, &mut ahead);
            }
        }
    }

    /// What follows from a group's rows of `between`, channel by channel, so that a channel's rows stay in the nearest cache: their
    /// part of the gradients of the taps, and the gradients of the input rows of each span that are ready. Where a group is summed
    /// and rows follow, what lies between the convolutions in these is computed there, too: once in vain at the end of a stretch
    /// whose rear somebody took.
    fn behind_between(
        &self,
        stretch: &mut Stretch<'a, '_, T>,
        group: &Group,
        ready: &[Range<usize>],
    ) {
        let (unit, stencil, rows) = (self.unit, &self.unit.stencil, &group.rows);
        let Stretch {
            spans,
            reader,
            d,
            d_rows,
            stride,
            taps,
            taps_begun,
            between,
            n_held,
            ..
        } = stretch;
        let (h, row_len) = (stencil.output().h, stencil.output().row_len());
        let prepares_next = group.is_summed && rows.end < h;
        *d_rows = match prepares_next {
            true => rows.end..h.min(rows.end + self.group),
            false => 0..0,
        };
        let mut ahead = reader.ahead(unit.sources(d_rows.clone()));
        let is_first = group.is_summed && !std::mem::replace(taps_begun, !group.is_last);
        let n_taps = stencil.kernel_len().max(1);
        let held = between.chunks((*n_held * row_len).max(1));
        let channels = held
            .zip(taps.chunks_mut(n_taps * LINE))
            .zip(d.chunks_mut(*stride));
        for (channel, ((held, partial), d)) in channels.enumerate() {
            let held = Held::new(held, *n_held);
            if let Some(newest) = spans.back_mut().filter(|_| group.is_summed) {
                let sums = TapSums {
                    partial,
                    is_first,
                    total: &mut newest.found.depthwise[channel * n_taps..][..n_taps],
                    is_last: group.is_last,
                };
                let z = reader.plane(channel);
                stencil.add_tap_products::<T, true>(z, held, rows.clone(), sums, &mut ahead);
            }
            for (span, ready) in spans.iter_mut().zip(ready) {
                self.input_rows(channel, held, ready.clone(), span);
            }
            if prepares_next {
                let d = &mut d[..d_rows.len() * row_len];
                unit.depthwise_channel(
                    reader,
                    self.depthwise,
                    channel,
                    d_rows.start,
                    d,
                    &mut ahead,
                );
            }
        }
    }

    /// The gradients of some input rows of a span, from the rows at hand of what lies between, of one channel.
    fn input_rows(
        &self,
        channel: usize,
        between: Held<'_, T>,
        rows: Range<usize>,
        span: &mut Span<'_, T>,
    ) {
        let stencil = &self.unit.stencil;
        let (len, n_taps) = (stencil.input().row_len(), stencil.kernel_len());
        let own = (rows.start - span.origin) * len..(rows.end - span.origin) * len;
        let (before, behind) = span.grad_z.split_at_mut(channel + 1);
        let next: Option<&[T]> = behind.first().map(|next| &next[..]);
        let mut ahead = Ahead::new(next.as_slice(), own.clone());
        let grad_z = &mut before[channel][own];
        let w = &self.depthwise[channel * n_taps..][..n_taps];
        for (row, grad_z) in rows.zip(grad_z.chunks_mut(len.max(1))) {
            let z = &self.z.planes[channel][row * len..][..len];
            let affine = self.z.affine.map(|affine| affine[channel].folded());
            let onto = Onto::new(grad_z).adding(self.adds).behind_relu(z, affine);
            stencil.backward_rows(between, w, row, onto, &mut ahead);
            if self.wants.sums {
                let (sum, [product]) = sum_and_dots(grad_z, [z]);
                span.found.sums[2 * channel] += sum;
                span.found.sums[2 * channel + 1] += product;
            }
        }
    }
}
