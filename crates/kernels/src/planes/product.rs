//! Small matrix products on pieces of planes: `y[o] = Σ w[o, c] x[c]`, and the gradients of `w` and `x`.

use multiversion::multiversion;

use crate::Element;

/// Rows of a result that are worked on at a time, in registers.
const ROWS: usize = 4;

/// Numbers of a vector, or of a few where vectors are short.
const LANES: usize = 16;

/// `y[o] = Σ_c w[o * w_rows + c * w_cols] * x[c]`, on pieces of equal length.
pub(super) fn product<T: Element>(
    y: &mut [&mut [T]],
    x: &[&[T]],
    w: &[T],
    [w_rows, w_cols]: [usize; 2],
) {
    for (row, rows) in y.chunks_mut(ROWS).enumerate() {
        for (column, columns) in x.chunks(ROWS).enumerate() {
            let w =
                |r: usize, c: usize| w[(row * ROWS + r) * w_rows + (column * ROWS + c) * w_cols];
            match (&mut *rows, columns) {
                ([a, b, c, d], &[e, f, g, h]) => {
                    let w = std::array::from_fn(|r| std::array::from_fn(|c| w(r, c)));
                    if column == 0 {
                        product_4x4::<T, false>(a, b, c, d, [e, f, g, h], w);
                    } else {
                        product_4x4::<T, true>(a, b, c, d, [e, f, g, h], w);
                    }
                }
                (rows, columns) => {
                    for (r, row) in rows.iter_mut().enumerate() {
                        for (c, x) in columns.iter().enumerate() {
                            if column + c == 0 {
                                row.fill(T::zero());
                            }
                            add_scaled(row, x, w(r, c));
                        }
                    }
                }
            }
        }
    }
}

/// Four rows from four: `y[r] (+)= Σ w[r][c] x[c]`. One plain loop, which compilers turn into vectors.
#[multiversion(targets = "simd")]
fn product_4x4<T: Element, const ADD: bool>(
    y0: &mut [T],
    y1: &mut [T],
    y2: &mut [T],
    y3: &mut [T],
    x: [&[T]; 4],
    w: [[T; 4]; 4],
) {
    let len = y0.len();
    let [x0, x1, x2, x3] = x.map(|x| &x[..len]);
    let (y1, y2, y3) = (&mut y1[..len], &mut y2[..len], &mut y3[..len]);
    for k in 0..len {
        let (a, b, c, d) = (x0[k], x1[k], x2[k], x3[k]);
        let sum = |w: [T; 4]| (w[0] * a + w[1] * b) + (w[2] * c + w[3] * d);
        let sums = w.map(sum);
        if ADD {
            y0[k] += sums[0];
            y1[k] += sums[1];
            y2[k] += sums[2];
            y3[k] += sums[3];
        } else {
            y0[k] = sums[0];
            y1[k] = sums[1];
            y2[k] = sums[2];
            y3[k] = sums[3];
        }
    }
}

#[multiversion(targets = "simd")]
fn add_scaled<T: Element>(y: &mut [T], x: &[T], w: T) {
    for (y, &x) in y.iter_mut().zip(x) {
        *y += w * x;
    }
}

/// `grad_w[o * C + c] += Σ grad_y[o] * x[c]`, on pieces of equal length.
pub(super) fn add_outer<T: Element>(grad_w: &mut [f64], grad_y: &[&[T]], x: &[&[T]]) {
    let n_columns = x.len();
    for (row, rows) in grad_y.chunks(ROWS).enumerate() {
        for (column, columns) in x.chunks(ROWS).enumerate() {
            let mut add = |r: usize, c: usize, sum: f64| {
                grad_w[(row * ROWS + r) * n_columns + column * ROWS + c] += sum;
            };
            match (rows, columns) {
                (&[a, b, c, d], &[e, f, g, h]) => {
                    outer([a, b, c, d], [e, f, g, h], &mut add);
                }
                (&[a, b], &[c, d]) => outer([a, b], [c, d], &mut add),
                (rows, columns) => {
                    for (r, row) in rows.iter().enumerate() {
                        for (c, column) in columns.iter().enumerate() {
                            outer([row], [column], &mut |_, _, sum| add(r, c, sum));
                        }
                    }
                }
            }
        }
    }
}

/// The scalar product of every row with every column.
fn outer<T: Element, const R: usize, const C: usize>(
    rows: [&[T]; R],
    columns: [&[T]; C],
    add: &mut impl FnMut(usize, usize, f64),
) {
    let row_blocks = rows.map(|row| row.as_chunks::<LANES>());
    let column_blocks = columns.map(|column| column.as_chunks::<LANES>());
    let lanes = outer_lanes(
        row_blocks.map(|(blocks, _)| blocks),
        column_blocks.map(|(blocks, _)| blocks),
    );
    for (r, (_, row)) in row_blocks.into_iter().enumerate() {
        for (c, (_, column)) in column_blocks.into_iter().enumerate() {
            let rest: f64 = row
                .iter()
                .zip(column)
                .map(|(&row, &column)| (row * column).to_f64())
                .sum();
            let sum: f64 = lanes[r][c].iter().map(|lane| lane.to_f64()).sum();
            add(r, c, sum + rest);
        }
    }
}

#[multiversion(targets = "simd")]
fn outer_lanes<T: Element, const R: usize, const C: usize>(
    rows: [&[[T; LANES]]; R],
    columns: [&[[T; LANES]]; C],
) -> [[[T; LANES]; C]; R] {
    let mut sums = [[[T::zero(); LANES]; C]; R];
    let n = rows[0].len();
    let rows = rows.map(|row| &row[..n]);
    let columns = columns.map(|column| &column[..n]);
    for index in 0..n {
        for c in 0..C {
            let x = columns[c][index];
            for r in 0..R {
                let g = rows[r][index];
                for lane in 0..LANES {
                    sums[r][c][lane] += g[lane] * x[lane];
                }
            }
        }
    }
    sums
}
