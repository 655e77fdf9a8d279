//! 3x3 poolings with padding 1.

use multiversion::multiversion;

use super::Maps;

/// The largest number of each window; padding counts as nothing. What is no number goes on.
pub fn max_pool(x: &Maps, stride: usize) -> Maps {
    pool(x, stride, f32::NEG_INFINITY, max_rows, |y, line, _| {
        max_columns(y, line, stride);
    })
}

/// The mean of each window, without the padding.
pub fn average_pool(x: &Maps, stride: usize) -> Maps {
    let width = x.w;
    let inside = |at: usize, size: usize| (at + 2).min(size) - at.saturating_sub(1);
    let factors: Vec<f32> = (0..width.div_ceil(stride))
        .map(|column| 1.0 / inside(column * stride, width) as f32)
        .collect();
    pool(x, stride, 0.0, add_rows, |y, line, n_rows| {
        mean_columns(y, line, stride, &factors, 1.0 / n_rows as f32);
    })
}

/// Pools first over the rows of a window, into a line with `padding` at both ends, then over its columns.
fn pool(
    x: &Maps,
    stride: usize,
    padding: f32,
    over_rows: impl Fn(&mut [f32], &[f32]),
    over_columns: impl Fn(&mut [f32], &[f32], usize),
) -> Maps {
    let (h, w) = (x.h, x.w);
    let mut y = Maps::any(x.c, h.div_ceil(stride), w.div_ceil(stride));
    let width = y.w;
    let mut line = vec![padding; w + 2];
    for (y, x) in y.planes_mut(0..x.c).zip(x.planes()) {
        for (row, y) in y.chunks_mut(width.max(1)).enumerate() {
            let row = row * stride;
            let rows = row.saturating_sub(1)..h.min(row + 2);
            let inner = &mut line[1..=w];
            inner.copy_from_slice(&x[rows.start * w..][..w]);
            for row in rows.clone().skip(1) {
                over_rows(inner, &x[row * w..][..w]);
            }
            over_columns(y, &line, rows.len());
        }
    }
    y
}

#[inline]
fn larger(a: f32, b: f32) -> f32 {
    if b > a || b.is_nan() { b } else { a }
}

#[multiversion(targets = "simd")]
fn max_rows(line: &mut [f32], row: &[f32]) {
    for (max, &x) in line.iter_mut().zip(row) {
        *max = larger(*max, x);
    }
}

#[multiversion(targets = "simd")]
fn add_rows(line: &mut [f32], row: &[f32]) {
    for (sum, &x) in line.iter_mut().zip(row) {
        *sum += x;
    }
}

#[multiversion(targets = "simd")]
fn max_columns(y: &mut [f32], line: &[f32], stride: usize) {
    if stride == 1 {
        let n = y.len();
        let (a, b, c) = (&line[..n], &line[1..][..n], &line[2..][..n]);
        for k in 0..n {
            y[k] = larger(larger(a[k], b[k]), c[k]);
        }
    } else {
        for (y, window) in y.iter_mut().zip(line.windows(3).step_by(stride)) {
            *y = larger(larger(window[0], window[1]), window[2]);
        }
    }
}

#[multiversion(targets = "simd")]
fn mean_columns(y: &mut [f32], line: &[f32], stride: usize, factors: &[f32], factor: f32) {
    if stride == 1 {
        let n = y.len();
        let (a, b, c) = (&line[..n], &line[1..][..n], &line[2..][..n]);
        let factors = &factors[..n];
        for k in 0..n {
            y[k] = (a[k] + b[k] + c[k]) * (factors[k] * factor);
        }
    } else {
        let windows = line.windows(3).step_by(stride);
        for ((y, window), factors) in y.iter_mut().zip(windows).zip(factors) {
            *y = (window[0] + window[1] + window[2]) * (factors * factor);
        }
    }
}
