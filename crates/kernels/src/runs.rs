//! Windows as contiguous runs: how the fast paths get long vector loops out of small planes.
//!
//! A plane is copied into a padded scratch plane once. Under one tap, the pixels of *all* windows then lie at a
//! fixed distance from the windows' own index, so a tap is a single shifted run over the whole plane, not a loop over
//! short rows. Three tricks:
//!
//! * Rows of the scratch plane overlap where they can: the padding right of a row is the padding left of the next.
//! * Runs go on through the pixels between two rows of windows. What is computed there is never read (and
//!   where a run is an input, zeros stand there).
//! * A stride splits the plane into phases, one scratch plane for each remainder of (row, column), in
//!   which neighbouring windows are neighbours again.

use crate::{Element, Window};

/// Runs are padded to whole blocks of this many elements.
pub(crate) const BLOCK: usize = 32;

/// The layout of scratch planes and runs for one window.
#[derive(Debug)]
pub(crate) struct Runs {
    window: Window,
    /// Distance between two rows of a run, and of a scratch plane.
    pitch: usize,
    /// Length of a run, in whole blocks.
    len: usize,
    /// For every tap, where its run starts in the scratch.
    offsets: Vec<usize>,
    /// The pixels of the input and their places in the scratch.
    segments: Vec<Segment>,
    padded_len: usize,
}

/// Pixels of one input row that belong to one phase.
#[derive(Debug)]
struct Segment {
    /// The first pixel in the plane; the next are a stride apart.
    plane: usize,
    /// The first pixel in the scratch; the next are its neighbours.
    padded: usize,
    len: usize,
}

/// The pixels of an axis that belong to one phase: taps whose distance leaves the same remainder.
struct Phase {
    /// Number of scratch pixels that windows reach.
    len: usize,
    /// Range of those that are input rather than padding.
    start: usize,
    end: usize,
    /// The input pixel at `start`.
    first: usize,
}

impl Phase {
    fn new(window: &Window, axis: usize, remainder: usize) -> Option<Self> {
        let Window {
            padding,
            stride,
            dilation,
            ..
        } = *window;
        let reach = (0..window.kernel[axis])
            .map(|tap| tap * dilation)
            .filter(|at| at % stride == remainder)
            .max()?;
        let len = window.output()[axis] + reach / stride;
        let start = padding.saturating_sub(remainder).div_ceil(stride).min(len);
        let end = (window.input[axis] + padding)
            .saturating_sub(remainder)
            .div_ceil(stride)
            .clamp(start, len);
        let first = (start * stride + remainder).saturating_sub(padding);
        Some(Self {
            len,
            start,
            end,
            first,
        })
    }
}

impl Runs {
    pub(crate) fn new(window: Window) -> Self {
        let Window {
            kernel: [n_u, n_v],
            stride,
            dilation,
            ..
        } = window;
        let [out_h, out_w] = window.output();
        let phases = |axis| (0..stride).map(move |remainder| Phase::new(&window, axis, remainder));
        // Rows may overlap as long as no input of one lies on anything but padding of the next.
        let pitch = phases(1)
            .flatten()
            .map(|cols| cols.end.max(cols.len - cols.start))
            .fold(out_w, usize::max);
        let len = ((out_h - 1) * pitch + out_w).next_multiple_of(BLOCK);
        let mut starts = vec![0; stride * stride];
        let mut segments = Vec::new();
        let mut padded_len = 0;
        for (phase_row, rows) in phases(0).enumerate() {
            for (phase_col, cols) in phases(1).enumerate() {
                let (Some(rows), Some(cols)) = (&rows, &cols) else {
                    continue;
                };
                starts[phase_row * stride + phase_col] = padded_len;
                segments.extend(
                    (rows.start..rows.end)
                        .enumerate()
                        .map(|(index, row)| Segment {
                            plane: (rows.first + index * stride) * window.input[1] + cols.first,
                            padded: padded_len + row * pitch + cols.start,
                            len: cols.end - cols.start,
                        }),
                );
                // The last run of the phase starts `reach` rows and columns in, and ends with a whole block.
                padded_len += (rows.len - out_h) * pitch + (cols.len - out_w) + len;
            }
        }
        segments.retain(|segment| segment.len > 0);
        let offset = |(u, v): (usize, usize)| {
            let (row, col) = (u * dilation, v * dilation);
            starts[row % stride * stride + col % stride] + row / stride * pitch + col / stride
        };
        let offsets = (0..n_u)
            .flat_map(|u| (0..n_v).map(move |v| (u, v)))
            .map(offset)
            .collect();
        Self {
            window,
            pitch,
            len,
            offsets,
            segments,
            padded_len,
        }
    }

    /// For every tap, where its run starts in the scratch.
    pub(crate) fn offsets(&self) -> &[usize] {
        &self.offsets
    }

    /// A scratch for input planes, all padding.
    pub(crate) fn padded<T: Element>(&self, padding: T) -> Vec<T> {
        vec![padding; self.padded_len]
    }

    /// A run of zeros.
    pub(crate) fn run<T: Element>(&self) -> Vec<T> {
        vec![T::zero(); self.len]
    }

    /// Copies an input plane into the scratch.
    pub(crate) fn load<T: Element>(&self, plane: &[T], padded: &mut [T]) {
        for segment in &self.segments {
            let target = &mut padded[segment.padded..][..segment.len];
            let source = &plane[segment.plane..];
            match self.window.stride {
                1 => target.copy_from_slice(&source[..segment.len]),
                stride => target
                    .iter_mut()
                    .zip(source.iter().step_by(stride))
                    .for_each(|(t, &s)| *t = s),
            }
        }
    }

    /// Copies the scratch back into an input plane; pixels that no window reaches stay as they are.
    pub(crate) fn store<T: Element>(&self, padded: &[T], plane: &mut [T]) {
        for segment in &self.segments {
            let source = &padded[segment.padded..][..segment.len];
            let target = &mut plane[segment.plane..];
            match self.window.stride {
                1 => target[..segment.len].copy_from_slice(source),
                stride => target
                    .iter_mut()
                    .step_by(stride)
                    .zip(source)
                    .for_each(|(t, &s)| *t = s),
            }
        }
    }

    /// Copies an output plane into a run; the elements between its rows stay as they are.
    pub(crate) fn spread<T: Element>(&self, plane: &[T], run: &mut [T]) {
        let [_, out_w] = self.window.output();
        for (row, target) in plane.chunks_exact(out_w).zip(run.chunks_mut(self.pitch)) {
            target[..out_w].copy_from_slice(row);
        }
    }

    /// Copies a run into an output plane.
    pub(crate) fn collect<T: Element>(&self, run: &[T], plane: &mut [T]) {
        let [_, out_w] = self.window.output();
        for (row, source) in plane.chunks_exact_mut(out_w).zip(run.chunks(self.pitch)) {
            row.copy_from_slice(&source[..out_w]);
        }
    }
}
