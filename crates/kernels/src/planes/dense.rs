//! Dense convolutions of a few channels, as stems use them: products with what lies under each tap.

use super::combine::PartMoments;
use super::pointwise::{NormGrad, merge, sum};
use super::{Buffer, Grid, Moments, for_each, pieces_mut};
use crate::product::{Panels, Rows, add_outer, row_stride};
use crate::{Element, Window};

/// A convolution of all channels with all.
#[derive(Debug, Clone)]
pub struct Dense {
    window: Window,
    n: usize,
}

impl Dense {
    /// Prepares a window for planes of `n` images.
    pub fn new(window: Window, n: usize) -> Self {
        Self { window, n }
    }

    /// The size of an input plane.
    pub fn input(&self) -> Grid {
        let [h, w] = self.window.input;
        Grid { h, w, n: self.n }
    }

    /// The size of an output plane.
    pub fn output(&self) -> Grid {
        let [h, w] = self.window.output();
        Grid { h, w, n: self.n }
    }

    /// `y[o] = Σ w[o, c, u, v] x[c, …]`, and the moments of each `y`.
    pub fn forward<T: Element>(&self, x: &[&[T]], w: &[T], y: Vec<&mut [T]>) -> Vec<Moments> {
        let (n_out, n_taps) = (y.len(), x.len() * self.window.kernel_len());
        assert_eq!(w.len(), n_out * n_taps);
        let row_len = self.output().row_len();
        let stride = row_stride(row_len);
        let panels = Panels::new([n_out, n_taps], |o, tap| w[o * n_taps + tap], |_| T::zero());
        let rows = pieces_mut(y, row_len.max(1));
        let mut moments = vec![vec![PartMoments::default(); n_out]; rows.len()];
        let items = rows.into_iter().zip(&mut moments).collect();
        for_each(
            items,
            || Buffer::<T>::scratch(n_taps * stride),
            |scratch, row, (mut y, moments)| {
                panels.product(self.taps(x, row, scratch, stride), &mut y);
                for (moments, y) in moments.iter_mut().zip(&y) {
                    *moments = PartMoments::of(y);
                }
            },
        );
        merge(&moments, n_out)
    }

    /// The gradient of `w`, `o c u v`.
    pub fn backward<T: Element>(&self, x: &[&[T]], grad_y: &NormGrad<'_, T>) -> Vec<f64> {
        let (n_out, n_taps) = (grad_y.len(), x.len() * self.window.kernel_len());
        let Grid { h, .. } = self.output();
        let row_len = self.output().row_len();
        let stride = row_stride(row_len);
        let mut parts = vec![vec![0.0; n_out * n_taps]; h];
        for_each(
            parts.iter_mut().collect(),
            || {
                let rows = |n: usize| Buffer::<T>::scratch(n * stride);
                (rows(n_out), rows(n_taps))
            },
            |(y, taps), row, grad_w: &mut Vec<f64>| {
                grad_y.fill(row * row_len, row_len, y, stride);
                let y = Rows::new(y, stride, n_out, row_len);
                add_outer(grad_w, y, self.taps(x, row, taps, stride));
            },
        );
        sum(&parts, n_out * n_taps)
    }

    /// What each tap of an output row reads, `c u v`, in rows of `scratch`; zeros in the padding.
    fn taps<'a, T: Element>(
        &self,
        x: &[&[T]],
        row: usize,
        scratch: &'a mut [T],
        stride: usize,
    ) -> Rows<'a, T> {
        let (input, output, n) = (self.input(), self.output(), self.n);
        let Window {
            kernel: [_, n_v],
            padding,
            stride: step,
            dilation,
            ..
        } = self.window;
        let n_taps = self.window.kernel_len();
        // What lies before the input wraps around to beyond it.
        let at = |out: usize, tap: usize| (out * step + tap * dilation).wrapping_sub(padding);
        for (index, taps) in scratch
            .chunks_mut(stride)
            .enumerate()
            .take(x.len() * n_taps)
        {
            let (channel, tap) = (index / n_taps, index % n_taps);
            let source_row = at(row, tap / n_v);
            let source = (source_row < input.h)
                .then(|| &x[channel][source_row * input.row_len()..][..input.row_len()]);
            for (column, pixel) in taps[..output.row_len()].chunks_mut(n.max(1)).enumerate() {
                let column = at(column, tap % n_v);
                match source.filter(|_| column < input.w) {
                    Some(source) => pixel.copy_from_slice(&source[column * n..][..n]),
                    None => pixel.fill(T::zero()),
                }
            }
        }
        Rows::new(scratch, stride, x.len() * n_taps, output.row_len())
    }
}
