//! Windows as contiguous runs: how the fast paths get long vector loops out of small planes.
//!
//! A plane is copied into a padded scratch plane once. Under one tap, the pixels of *all* windows then lie
//! at a fixed distance from the windows' own index, so a tap is a single shifted run over the whole plane
//! instead of a loop over short rows. Three things make that work:
//!
//! * Rows of the scratch overlap where they can: the padding right of a row is the padding left of the next.
//! * A run goes on through the pixels between two rows of windows. What is computed there is never read;
//!   where the run is an input, zeros stand there.
//! * A stride splits the plane into phases, one scratch plane for each remainder of (row, column), in
//!   which neighbouring windows are neighbours again.

use std::ops::Range;

use multiversion::multiversion;

use crate::{Element, Window};

/// Runs are worked on in blocks of this many elements.
const BLOCK: usize = 32;

/// The layout of scratch planes and runs for one window.
#[derive(Debug)]
pub(crate) struct Runs {
    window: Window,
    /// Distance between two rows of a run, and of a scratch plane.
    pitch: usize,
    /// Length of a run, in whole blocks.
    len: usize,
    taps: Vec<Tap>,
    phases: Vec<Phase>,
    /// The input pixels of every phase and their places in the scratch.
    input_rows: Vec<Rows>,
    /// The output pixels and their places in a run.
    output_rows: Rows,
    padded_len: usize,
    /// Zeros before and behind a run that is read by [`Phase::taps`].
    lead: usize,
}

/// A tap as a shift: the element at `index + offset` of one buffer meets the element at `index` of another.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Tap {
    /// Which tap of the window, in row-major order.
    pub(crate) index: usize,
    /// The shift.
    pub(crate) offset: usize,
}

/// A scratch plane of input pixels that share the remainder of their row and column by the stride.
#[derive(Debug)]
pub(crate) struct Phase {
    /// The part of the scratch that holds all its input pixels, in whole blocks.
    pub(crate) range: Range<usize>,
    /// From a place in `range` to the windows that read it, in a run with a lead.
    pub(crate) taps: Vec<Tap>,
}

/// Rows that a plane and a scratch have in common.
#[derive(Debug)]
struct Rows {
    /// Where they start in the plane and in the scratch.
    starts: Vec<[usize; 2]>,
    /// Pixels of a row: neighbours in the scratch, `step` apart in the plane.
    len: usize,
    step: usize,
}

/// The rows or columns of one phase.
#[derive(Debug, Clone, Copy)]
struct Axis {
    /// Number of them that windows reach.
    len: usize,
    /// Those of them that are input rather than padding.
    start: usize,
    end: usize,
    /// The input row or column at `start`.
    first: usize,
}

impl Axis {
    /// The rows (`axis` 0) or columns (1) with the given remainder, if any tap falls on them.
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
        let axis = |axis| (0..stride).map(move |remainder| Axis::new(&window, axis, remainder));
        // Rows may overlap as long as what is input in one is padding in the next.
        let pitch = axis(1)
            .flatten()
            .map(|cols| cols.end.max(cols.len - cols.start))
            .fold(out_w, usize::max);
        let len = ((out_h - 1) * pitch + out_w).next_multiple_of(BLOCK);
        let all_taps = || {
            (0..n_u)
                .flat_map(|u| (0..n_v).map(move |v| [u * dilation, v * dilation]))
                .enumerate()
        };
        let lead = all_taps()
            .map(|(_, [row, col])| row / stride * pitch + col / stride)
            .fold(0, usize::max);

        let mut runs = Self {
            window,
            pitch,
            len,
            taps: vec![],
            phases: vec![],
            input_rows: vec![],
            output_rows: Rows {
                starts: (0..out_h).map(|row| [row * out_w, row * pitch]).collect(),
                len: out_w,
                step: 1,
            },
            padded_len: 0,
            lead,
        };
        for (phase_row, rows) in axis(0).enumerate() {
            for (phase_col, cols) in axis(1).enumerate() {
                if let (Some(rows), Some(cols)) = (rows, cols) {
                    let taps: Vec<Tap> = all_taps()
                        .filter(|&(_, [row, col])| {
                            [row % stride, col % stride] == [phase_row, phase_col]
                        })
                        .map(|(index, [row, col])| Tap {
                            index,
                            offset: row / stride * pitch + col / stride,
                        })
                        .collect();
                    runs.push_phase(rows, cols, taps);
                }
            }
        }
        runs.taps.sort_by_key(|tap| tap.index);
        runs
    }

    /// Appends a phase, `taps` being the shifts from a window to its pixels within the phase.
    fn push_phase(&mut self, rows: Axis, cols: Axis, taps: Vec<Tap>) {
        let Self {
            window,
            pitch,
            len,
            lead,
            ..
        } = *self;
        let [out_h, out_w] = window.output();
        let start = self.padded_len;
        // The run of the last tap starts this many rows and columns in.
        self.padded_len += (rows.len - out_h) * pitch + (cols.len - out_w) + len;
        if rows.start < rows.end && cols.start < cols.end {
            let starts = (rows.start..rows.end).enumerate().map(|(index, row)| {
                let y = rows.first + index * window.stride;
                [
                    y * window.input[1] + cols.first,
                    start + row * pitch + cols.start,
                ]
            });
            let (starts, len) = (starts.collect(), cols.end - cols.start);
            self.input_rows.push(Rows {
                starts,
                len,
                step: window.stride,
            });
            let first = rows.start * pitch + cols.start;
            let n_elements = (rows.end - rows.start - 1) * pitch + (cols.end - cols.start);
            let range = start + first..start + first + n_elements.next_multiple_of(BLOCK);
            self.padded_len = self.padded_len.max(range.end);
            let back = |tap: &Tap| Tap {
                offset: lead + first - tap.offset,
                ..*tap
            };
            self.phases.push(Phase {
                range,
                taps: taps.iter().map(back).collect(),
            });
        }
        self.taps.extend(taps.iter().map(|tap| Tap {
            offset: start + tap.offset,
            ..*tap
        }));
    }

    /// The window.
    pub(crate) fn window(&self) -> &Window {
        &self.window
    }

    /// From a window to its pixels in the scratch, for every tap.
    pub(crate) fn taps(&self) -> &[Tap] {
        &self.taps
    }

    /// The phases that hold input pixels.
    pub(crate) fn phases(&self) -> &[Phase] {
        &self.phases
    }

    /// A scratch for input planes, all padding.
    pub(crate) fn padded<T: Element>(&self, padding: T) -> Vec<T> {
        vec![padding; self.padded_len]
    }

    /// A run, all `value`.
    pub(crate) fn run<T: Element>(&self, value: T) -> Vec<T> {
        vec![value; self.len]
    }

    /// A run with a lead, all `value`.
    pub(crate) fn run_with_lead<T: Element>(&self, value: T) -> Vec<T> {
        let reached = self
            .phases
            .iter()
            .flat_map(|phase| phase.taps.iter().map(|tap| tap.offset + phase.range.len()));
        vec![value; reached.fold(self.lead + self.len, usize::max)]
    }

    /// The run behind a lead.
    pub(crate) fn behind_lead<'a, T>(&self, run: &'a mut [T]) -> &'a mut [T] {
        &mut run[self.lead..][..self.len]
    }

    /// Copies an input plane into the scratch.
    pub(crate) fn load<T: Element>(&self, plane: &[T], padded: &mut [T]) {
        self.input_rows
            .iter()
            .for_each(|rows| rows.copy_in(plane, padded));
    }

    /// Copies the scratch back into an input plane; pixels that no window reaches stay as they are.
    pub(crate) fn store<T: Element>(&self, padded: &[T], plane: &mut [T]) {
        self.input_rows
            .iter()
            .for_each(|rows| rows.copy_out(padded, plane));
    }

    /// Copies an output plane into a run; the elements between its rows stay as they are.
    pub(crate) fn spread<T: Element>(&self, plane: &[T], run: &mut [T]) {
        self.output_rows.copy_in(plane, run);
    }

    /// Copies a run into an output plane.
    pub(crate) fn collect<T: Element>(&self, run: &[T], plane: &mut [T]) {
        self.output_rows.copy_out(run, plane);
    }

    /// Adds an output plane to a run.
    pub(crate) fn spread_add<T: Element>(&self, plane: &[T], run: &mut [T]) {
        for &[from, to] in &self.output_rows.starts {
            let row = &plane[from..][..self.output_rows.len];
            run[to..].iter_mut().zip(row).for_each(|(t, &x)| *t += x);
        }
    }
}

impl Rows {
    /// From a plane into a scratch.
    fn copy_in<T: Element>(&self, plane: &[T], scratch: &mut [T]) {
        if self.step == 1 {
            return copy_rows(plane, scratch, self.starts.iter().copied(), self.len);
        }
        for &[from, to] in &self.starts {
            let source = plane[from..].iter().step_by(self.step);
            scratch[to..][..self.len]
                .iter_mut()
                .zip(source)
                .for_each(|(t, &s)| *t = s);
        }
    }

    /// From a scratch into a plane.
    fn copy_out<T: Element>(&self, scratch: &[T], plane: &mut [T]) {
        if self.step == 1 {
            return copy_rows(
                scratch,
                plane,
                self.starts.iter().map(|&[to, from]| [from, to]),
                self.len,
            );
        }
        for &[to, from] in &self.starts {
            let target = plane[to..].iter_mut().step_by(self.step);
            target
                .zip(&scratch[from..][..self.len])
                .for_each(|(t, &s)| *t = s);
        }
    }
}

/// Copies rows of `len` elements from and to the given places.
#[multiversion(targets = "simd")]
fn copy_rows<T: Element>(
    from: &[T],
    to: &mut [T],
    starts: impl Iterator<Item = [usize; 2]>,
    len: usize,
) {
    for [source, target] in starts {
        copy(&from[source..][..len], &mut to[target..][..len]);
    }
}

/// `copy_from_slice` for short rows, for which a call of `memcpy` costs more than the copy.
#[inline(always)]
fn copy<T: Element>(source: &[T], target: &mut [T]) {
    match target.len() {
        4..8 => copy_ends::<T, 4>(source, target),
        8..16 => copy_ends::<T, 8>(source, target),
        16..=32 => copy_ends::<T, 16>(source, target),
        _ => target.copy_from_slice(source),
    }
}

/// Copies the first `N` and the last `N` elements.
#[inline(always)]
fn copy_ends<T: Element, const N: usize>(source: &[T], target: &mut [T]) {
    if let (Some(source), Some(target)) = (source.first_chunk::<N>(), target.first_chunk_mut()) {
        *target = *source;
    }
    if let (Some(source), Some(target)) = (source.last_chunk::<N>(), target.last_chunk_mut()) {
        *target = *source;
    }
}

/// `run = sum over taps of w[tap] * source[offset..]`: a convolution of a scratch plane, or of a run with a lead.
#[multiversion(targets = "simd")]
pub(crate) fn weigh<T: Element>(source: &[T], taps: &[Tap], w: &[T], run: &mut [T]) {
    let mut at = 0;
    let mut blocks = run.chunks_exact_mut(2 * BLOCK);
    for block in &mut blocks {
        weigh_block::<T, { 2 * BLOCK }>(&source[at..], taps, w, block);
        at += 2 * BLOCK;
    }
    for block in blocks.into_remainder().chunks_exact_mut(BLOCK) {
        weigh_block::<T, BLOCK>(&source[at..], taps, w, block);
        at += BLOCK;
    }
}

/// [`weigh`] for `N` elements, with the sums in registers.
#[inline(always)]
fn weigh_block<T: Element, const N: usize>(source: &[T], taps: &[Tap], w: &[T], block: &mut [T]) {
    let mut sums = [T::zero(); N];
    for tap in taps {
        let (w, source) = (w[tap.index], &source[tap.offset..][..N]);
        for (sum, &x) in sums.iter_mut().zip(source) {
            *sum += w * x;
        }
    }
    block.copy_from_slice(&sums);
}
