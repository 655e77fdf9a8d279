//! 3x3 poolings with padding 1.

use multiversion::multiversion;

use super::Maps;

/// The largest number of each window; padding counts as nothing. What is no number goes on.
pub fn max_pool(x: &Maps, stride: usize) -> Maps {
    pool(x, stride, f32::NEG_INFINITY, larger, largest, |_| ())
}

/// The mean of each window, without the padding.
pub fn average_pool(x: &Maps, stride: usize) -> Maps {
    let inside = |at: usize, size: usize| (at + 2).min(size) - at.saturating_sub(1);
    let factor = |at: usize, size: usize| 1.0 / inside(at, size) as f32;
    let factors: Vec<f32> = (0..x.plane_len())
        .map(|at| factor(at % x.w, x.w) * factor(at / x.w, x.h))
        .collect();
    pool(x, stride, 0.0, |a, b| a + b, sums, |y| scale(y, &factors))
}

/// Pools whole planes, first over the rows of a window, then over its columns: `three` numbers each, at the ends of rows
/// `two`. What comes out at stride 1 is finished, and every `stride`th of it kept.
fn pool(
    x: &Maps,
    stride: usize,
    padding: f32,
    two: impl Fn(f32, f32) -> f32,
    three: impl Fn(&mut [f32], [&[f32]; 3]),
    finish: impl Fn(&mut [f32]),
) -> Maps {
    let (h, w, n) = (x.h, x.w, x.plane_len());
    let mut y = Maps::any(x.c, h.div_ceil(stride), w.div_ceil(stride));
    let columns = y.w.max(1);
    let mut padded = vec![padding; n + 2 * w];
    let mut over_rows = vec![padding; n + 2];
    let mut all = vec![padding; if stride == 1 { 0 } else { n }];
    for (y, x) in y.planes_mut(0..x.c).zip(x.planes()) {
        padded[w..w + n].copy_from_slice(x);
        three(&mut over_rows[1..=n], [0, w, 2 * w].map(|at| &padded[at..]));
        let pooled = if stride == 1 { &mut *y } else { &mut all[..] };
        three(pooled, [0, 1, 2].map(|at| &over_rows[at..]));
        // At its ends one of the three is of another row.
        let rows = over_rows[1..=n].chunks(w.max(1));
        for (row, pooled) in rows.zip(pooled.chunks_mut(w.max(1))) {
            match *row {
                [only] => pooled[0] = only,
                [a, b, ..] => {
                    pooled[0] = two(a, b);
                    pooled[w - 1] = two(row[w - 2], row[w - 1]);
                }
                [] => {}
            }
        }
        finish(pooled);
        if stride > 1 {
            let rows = all.chunks(w.max(1)).step_by(stride);
            for (y, row) in y.chunks_mut(columns).zip(rows) {
                for (y, &pooled) in y.iter_mut().zip(row.iter().step_by(stride)) {
                    *y = pooled;
                }
            }
        }
    }
    y
}

#[inline]
fn larger(a: f32, b: f32) -> f32 {
    if b > a || b.is_nan() { b } else { a }
}

#[multiversion(targets = "simd")]
fn largest(y: &mut [f32], [a, b, c]: [&[f32]; 3]) {
    let n = y.len();
    let (a, b, c) = (&a[..n], &b[..n], &c[..n]);
    for k in 0..n {
        y[k] = larger(larger(a[k], b[k]), c[k]);
    }
}

#[multiversion(targets = "simd")]
fn sums(y: &mut [f32], [a, b, c]: [&[f32]; 3]) {
    let n = y.len();
    let (a, b, c) = (&a[..n], &b[..n], &c[..n]);
    for k in 0..n {
        y[k] = a[k] + b[k] + c[k];
    }
}

#[multiversion(targets = "simd")]
fn scale(y: &mut [f32], factors: &[f32]) {
    for (y, factor) in y.iter_mut().zip(factors) {
        *y *= factor;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn poolings_of_any_size_are_what_defines_them() {
        for (h, w) in [(1, 1), (1, 5), (5, 1), (2, 2), (3, 7), (7, 14), (4, 33)] {
            for stride in [1, 2] {
                let mut numbers: Vec<f32> =
                    (0..2 * h * w).map(|i| (1.3 * i as f32).sin()).collect();
                numbers[h * w / 2] = f32::NAN;
                let x = Maps::from_slice(2, h, w, &numbers);
                let (largest, means) = (max_pool(&x, stride), average_pool(&x, stride));
                let [h_out, w_out] = [h, w].map(|size| size.div_ceil(stride));
                for found in [&largest, &means] {
                    assert_eq!([found.c, found.h, found.w], [2, h_out, w_out]);
                }
                for i in 0..2 * h_out * w_out {
                    let (plane, row, column) = (i / (h_out * w_out), i / w_out % h_out, i % w_out);
                    let reach = |at: usize, size: usize| {
                        (at * stride).saturating_sub(1)..(at * stride + 2).min(size)
                    };
                    let window: Vec<f32> = reach(row, h)
                        .flat_map(|row| reach(column, w).map(move |column| row * w + column))
                        .map(|at| numbers[plane * h * w + at])
                        .collect();
                    let largest = largest.to_vec()[i];
                    let mean = means.to_vec()[i];
                    if window.iter().any(|x| x.is_nan()) {
                        assert!(
                            largest.is_nan() && mean.is_nan(),
                            "{h}x{w}, stride {stride}"
                        );
                        continue;
                    }
                    assert_eq!(largest, window.iter().copied().fold(f32::MIN, f32::max));
                    let expected = window.iter().sum::<f32>() / window.len() as f32;
                    assert!(
                        (mean - expected).abs() < 1e-6,
                        "{mean} for {expected}: {h}x{w}"
                    );
                }
            }
        }
    }
}
