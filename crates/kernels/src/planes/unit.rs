//! The unit of every convolution of the search space: depthwise, pointwise, and the statistics of the batch
//! normalisation behind them, without ever storing what lies between.

use super::combine::PartMoments;
use super::pointwise::{NormGrad, Target, merge, sum};
use super::stencil::{LANES, Stencil};
use super::{Buffer, Moments, for_each, parts_mut, pieces_mut};
use crate::Element;
use crate::product::{Panels, Rows, add_outer, row_stride};

/// Numbers that a piece of work keeps between its two convolutions.
const TILE: usize = 1 << 15;

/// A depthwise convolution followed by a pointwise one, from as many channels to as many.
#[derive(Debug, Clone)]
pub struct Unit {
    stencil: Stencil,
}

/// The gradients of the weights of a [`Unit`].
#[derive(Debug, Clone, PartialEq)]
pub struct UnitGrads {
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

    /// Rows of the output that are worked on at a time.
    fn tile_rows(&self, n_channels: usize) -> usize {
        let row_len = self.stencil.output().row_len();
        (TILE / (n_channels * row_len).max(1)).clamp(1, self.stencil.output().h.max(1))
    }

    /// `y[o] = Σ pointwise[o, c] (depthwise[c] * z[c])`, and the moments of each `y`.
    pub fn forward<T: Element>(
        &self,
        z: &[&[T]],
        depthwise: &[T],
        pointwise: &[T],
        y: Vec<&mut [T]>,
    ) -> Vec<Moments> {
        let n_out = y.len();
        let n_tiles = self.stencil.output().h.div_ceil(self.tile_rows(z.len()));
        let mut moments = vec![vec![PartMoments::default(); n_out]; n_tiles];
        let slots = moments.iter_mut().map(Some);
        self.run(z, depthwise, pointwise, y, slots);
        merge(&moments, n_out)
    }

    /// The `y` of [`forward`](Self::forward) alone.
    pub fn outputs<T: Element>(
        &self,
        z: &[&[T]],
        depthwise: &[T],
        pointwise: &[T],
        y: Vec<&mut [T]>,
    ) {
        self.run(z, depthwise, pointwise, y, std::iter::repeat_with(|| None));
    }

    /// Writes `y` tile by tile, and the moments of each tile where there is a slot for them.
    fn run<'a, T: Element>(
        &self,
        z: &[&[T]],
        depthwise: &[T],
        pointwise: &[T],
        y: Vec<&mut [T]>,
        slots: impl Iterator<Item = Option<&'a mut Vec<PartMoments>>>,
    ) {
        let (n_channels, n_out) = (z.len(), y.len());
        let rows = self.tile_rows(n_channels);
        let tile_len = rows * self.stencil.output().row_len();
        let stride = row_stride(tile_len);
        let weight = |o: usize, c: usize| pointwise[o * n_channels + c];
        let panels = Panels::new([n_out, n_channels], weight, |_| T::zero());
        let items = pieces_mut(y, tile_len).into_iter().zip(slots).collect();
        for_each(
            items,
            || Buffer::<T>::any(n_channels * stride),
            |scratch, index, (mut y, slot)| {
                let len = y.first().map_or(0, |y| y.len());
                let d = self.depthwise_tile(z, depthwise, index * rows, len, (scratch, stride));
                panels.product(d, &mut y);
                for (moments, y) in slot.into_iter().flatten().zip(&y) {
                    *moments = PartMoments::of(y);
                }
            },
        );
    }

    /// What lies between the two convolutions, from output row `first` on, in rows of `scratch`.
    fn depthwise_tile<'a, T: Element>(
        &self,
        z: &[&[T]],
        depthwise: &[T],
        first: usize,
        len: usize,
        (scratch, stride): (&'a mut [T], usize),
    ) -> Rows<'a, T> {
        let n_taps = self.stencil.kernel_len();
        let parts = scratch.chunks_mut(stride).zip(z);
        for ((part, z), w) in parts.zip(depthwise.chunks_exact(n_taps)) {
            self.stencil.forward_rows(z, w, first, &mut part[..len]);
        }
        Rows::new(scratch, stride, z.len(), len)
    }

    /// Writes the gradient of `z` to `grad_z`; the gradients of the weights are returned if they are wanted.
    pub fn backward<T: Element>(
        &self,
        z: &[&[T]],
        depthwise: &[T],
        pointwise: &[T],
        grad_y: &NormGrad<'_, T>,
        grad_z: Target<'_, T>,
        wants_weights: bool,
    ) -> Option<UnitGrads> {
        let (n_channels, n_out, n_taps) = (z.len(), grad_y.len(), self.stencil.kernel_len());
        let (input, output) = (self.stencil.input(), self.stencil.output());
        let rows = self.tile_rows(n_channels);
        let tile_len = rows * output.row_len();
        let stride = row_stride(tile_len);
        let weight = |c: usize, o: usize| pointwise[o * n_channels + c];
        let transposed = Panels::new([n_channels, n_out], weight, |_| T::zero());

        // The gradient of what lies between the convolutions.
        let mut between = Buffer::<T>::any(n_channels * output.len());
        let tiles = pieces_mut(between.chunks_mut(output.len().max(1)).collect(), tile_len);
        let n_pointwise = if wants_weights { pointwise.len() } else { 0 };
        let mut grad_pointwise = vec![vec![0.0; n_pointwise]; tiles.len()];
        let items = tiles.into_iter().zip(&mut grad_pointwise).collect();
        for_each(
            items,
            || {
                (
                    Buffer::<T>::any(n_out * stride),
                    Buffer::<T>::any(n_channels * stride),
                )
            },
            |(y, d), index, (mut between, grad_pointwise)| {
                let len = between.first().map_or(0, |part| part.len());
                grad_y.fill(index * tile_len, len, y, stride);
                let y = Rows::new(y, stride, n_out, len);
                if wants_weights {
                    let d = self.depthwise_tile(z, depthwise, index * rows, len, (d, stride));
                    add_outer(grad_pointwise, y, d);
                }
                transposed.product(y, &mut between);
            },
        );
        let between: Vec<&[T]> = between.chunks(output.len().max(1)).collect();

        // A few rows of one channel at a time.
        let in_rows = (super::PIECE * 2 / input.row_len().max(1)).max(1);
        for_each(
            parts_mut(grad_z.planes, in_rows * input.row_len()),
            || (),
            |(), _, (channel, start, part)| {
                let w = &depthwise[channel * n_taps..][..n_taps];
                let first = start / input.row_len();
                let part = (part, grad_z.adds);
                self.stencil.backward_rows(between[channel], w, first, part);
            },
        );
        wants_weights.then(|| {
            let out_rows = (super::PIECE * 4 / output.row_len().max(1)).max(1);
            let n_tiles = output.h.div_ceil(out_rows);
            let mut parts = vec![0.0; n_channels * n_tiles * n_taps];
            let items = parts.chunks_mut(n_taps).collect();
            for_each(
                items,
                || vec![[T::zero(); LANES]; n_taps],
                |lanes, index, part: &mut [f64]| {
                    let (channel, tile) = (index / n_tiles, index % n_tiles);
                    let rows = tile * out_rows..output.h.min((tile + 1) * out_rows);
                    lanes.fill([T::zero(); LANES]);
                    self.stencil
                        .add_tap_products(z[channel], between[channel], rows, lanes);
                    for (part, lanes) in part.iter_mut().zip(&*lanes) {
                        *part = lanes.iter().map(|lane| lane.to_f64()).sum();
                    }
                },
            );
            let depthwise = parts
                .chunks(n_tiles * n_taps)
                .flat_map(|channel| {
                    let tiles: Vec<Vec<f64>> =
                        channel.chunks(n_taps).map(<[f64]>::to_vec).collect();
                    sum(&tiles, n_taps)
                })
                .collect();
            UnitGrads {
                depthwise,
                pointwise: sum(&grad_pointwise, pointwise.len()),
            }
        })
    }
}
