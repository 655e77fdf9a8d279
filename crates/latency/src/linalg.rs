//! Dense matrices of doubles, row-major: products, Cholesky factors, inverses.

use gemm::Parallelism;

/// A matrix in row-major order, or the transpose of one.
#[derive(Clone, Copy)]
pub(crate) struct Matrix<'a> {
    values: &'a [f64],
    n_rows: usize,
    n_cols: usize,
    row_stride: usize,
    col_stride: usize,
}

impl<'a> Matrix<'a> {
    pub(crate) fn new(values: &'a [f64], n_rows: usize, n_cols: usize) -> Self {
        Self::strided(values, n_rows, n_cols, n_cols)
    }

    /// A part of a wider matrix, whose rows are `stride` apart.
    fn strided(values: &'a [f64], n_rows: usize, n_cols: usize, stride: usize) -> Self {
        assert!(n_cols <= stride);
        assert!(n_rows == 0 || n_cols == 0 || (n_rows - 1) * stride + n_cols <= values.len());
        Self {
            values,
            n_rows,
            n_cols,
            row_stride: stride,
            col_stride: 1,
        }
    }

    pub(crate) fn transposed(self) -> Self {
        Self {
            n_rows: self.n_cols,
            n_cols: self.n_rows,
            row_stride: self.col_stride,
            col_stride: self.row_stride,
            ..self
        }
    }
}

/// `out = keep · out + scale · a · b`, the rows of `out` `stride` apart, on this thread.
fn product_into(
    out: &mut [f64],
    stride: usize,
    keep: bool,
    scale: f64,
    a: Matrix<'_>,
    b: Matrix<'_>,
) {
    let (m, n, k) = (a.n_rows, b.n_cols, a.n_cols);
    assert_eq!(k, b.n_rows);
    if m == 0 || n == 0 {
        return;
    }
    assert!(n <= stride && (m - 1) * stride + n <= out.len());
    // SAFETY: by the assertions here and in `Matrix::strided`, all rows and columns lie within the slices,
    // and `out` is borrowed exclusively.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            out.as_mut_ptr(),
            1,
            stride as isize,
            keep,
            a.values.as_ptr(),
            a.col_stride as isize,
            a.row_stride as isize,
            b.values.as_ptr(),
            b.col_stride as isize,
            b.row_stride as isize,
            1.0,
            scale,
            false,
            false,
            false,
            Parallelism::None,
        );
    }
}

/// a · b.
pub(crate) fn product(a: Matrix<'_>, b: Matrix<'_>) -> Vec<f64> {
    let mut out = vec![0.0; a.n_rows * b.n_cols];
    product_into(&mut out, b.n_cols, false, 1.0, a, b);
    out
}

/// The width of the blocks that large matrices are factored in.
const BLOCK: usize = 48;

/// The lower triangle L of a positive definite matrix L Lᵀ.
pub(crate) struct Cholesky {
    lower: Vec<f64>,
    n: usize,
}

impl Cholesky {
    /// Factors a matrix in place, of which only the lower triangle is read; `None` if it is not
    /// positive definite to working precision.
    pub(crate) fn new(mut matrix: Vec<f64>, n: usize) -> Option<Self> {
        let diagonal: Vec<f64> = matrix.iter().step_by(n + 1).copied().collect();
        for first in (0..n).step_by(BLOCK) {
            let end = (first + BLOCK).min(n);
            // What the columns before the block explain has been taken off; what is left is factored
            // row by row within the block's columns.
            for i in first..n {
                let (above, row) = matrix.split_at_mut(i * n);
                for j in first..end.min(i) {
                    let other = &above[j * n..][..=j];
                    row[j] = (row[j] - dot(&row[first..j], &other[first..j])) / other[j];
                }
                if i < end {
                    let pivot = row[i] - dot(&row[first..i], &row[first..i]);
                    if pivot.is_nan() || pivot <= diagonal[i] * f64::EPSILON {
                        return None;
                    }
                    row[i] = pivot.sqrt();
                }
            }
            // The same is taken off the columns after it, by stripes, to keep to the lower triangle.
            for stripe in (end..n).step_by(BLOCK) {
                let width = BLOCK.min(n - stripe);
                let rows: Vec<f64> = (stripe..n)
                    .flat_map(|i| matrix[i * n + first..i * n + end].iter().copied())
                    .collect();
                let rows = Matrix::new(&rows, n - stripe, end - first);
                let top = Matrix {
                    n_rows: width,
                    ..rows
                };
                let out = &mut matrix[stripe * n + stripe..];
                product_into(out, n, true, -1.0, rows, top.transposed());
            }
        }
        Some(Self { lower: matrix, n })
    }

    /// Solves L x = b, in place.
    pub(crate) fn solve_lower(&self, x: &mut [f64]) {
        for i in 0..self.n {
            let row = &self.lower[i * self.n..][..=i];
            x[i] = (x[i] - dot(&row[..i], &x[..i])) / row[i];
        }
    }

    /// Solves L Lᵀ x = b, in place.
    pub(crate) fn solve(&self, x: &mut [f64]) {
        self.solve_lower(x);
        for i in (0..self.n).rev() {
            let row = &self.lower[i * self.n..][..=i];
            let solved = x[i] / row[i];
            x[i] = solved;
            x.iter_mut()
                .zip(&row[..i])
                .for_each(|(x, l)| *x -= solved * l);
        }
    }

    /// The inverse of the matrix, all of it.
    pub(crate) fn inverse(&self) -> Vec<f64> {
        let n = self.n;
        // L⁻¹ by blocks of rows: its row i is -L(i,i)⁻¹ · L(i, before i) · L⁻¹(before i).
        let mut inverse = vec![0.0; n * n];
        for first in (0..n).step_by(BLOCK) {
            let width = BLOCK.min(n - first);
            let (done, rest) = inverse.split_at_mut(first * n);
            let left = Matrix::strided(&self.lower[first * n..], width, first, n);
            let mut before = product(left, Matrix::strided(done, first, first, n));
            let mut corner = vec![0.0; width * width];
            for column in 0..width {
                corner[column * width + column] = 1.0;
            }
            for i in 0..width {
                for j in 0..i {
                    let l = self.lower[(first + i) * n + first + j];
                    let (above, row) = before.split_at_mut(i * first);
                    row[..first]
                        .iter_mut()
                        .zip(&above[j * first..][..first])
                        .for_each(|(x, y)| *x -= l * y);
                    let (above, row) = corner.split_at_mut(i * width);
                    row[..width]
                        .iter_mut()
                        .zip(&above[j * width..][..width])
                        .for_each(|(x, y)| *x -= l * y);
                }
                let pivot = 1.0 / self.lower[(first + i) * n + first + i];
                before[i * first..][..first]
                    .iter_mut()
                    .chain(&mut corner[i * width..][..width])
                    .for_each(|x| *x *= pivot);
                let row = &mut rest[i * n..];
                row[..first]
                    .iter_mut()
                    .zip(&before[i * first..])
                    .for_each(|(x, y)| *x = -y);
                row[first..first + width].copy_from_slice(&corner[i * width..][..width]);
            }
        }
        // The inverse is L⁻ᵀ L⁻¹: its lower triangle by blocks of rows, from the rows below, then the other half.
        let mut whole = vec![0.0; n * n];
        for first in (0..n).step_by(BLOCK) {
            let width = BLOCK.min(n - first);
            let below = &inverse[first * n..];
            let left = Matrix::strided(&below[first..], n - first, width, n);
            let right = Matrix::strided(below, n - first, first + width, n);
            let out = &mut whole[first * n..];
            product_into(out, n, false, 1.0, left.transposed(), right);
        }
        for i in 0..n {
            for j in 0..i {
                whole[j * n + i] = whole[i * n + j];
            }
        }
        whole
    }
}

/// The inverse of a covariance, and what it takes to allow for means that are not known.
///
/// What was measured falls into groups, each with a mean of its own. The indicators of the groups are made orthogonal under the
/// precision, one after the other, so that each mean is taken out by itself.
pub(crate) struct Precision {
    values: Vec<f64>,
    groups: Vec<usize>,
    means: Vec<Mean>,
}

/// A mean that is not known.
pub(crate) struct Mean {
    /// The precision times the group's indicator, made orthogonal to those before; of the first group the sums of its rows.
    pub(crate) sums: Vec<f64>,
    /// The sum of those of the group's own; of a single group, of all.
    pub(crate) total: f64,
    /// Of each group, how much of its indicator is in this one.
    parts: Vec<f64>,
}

impl Precision {
    /// Of a covariance of which the lower triangle is there, all with one mean; `None` if it is not positive definite.
    pub(crate) fn new(covariance: Vec<f64>, n: usize) -> Option<Self> {
        Self::grouped(covariance, vec![0; n])
    }

    /// The same where each row belongs to a group. A group may be empty.
    pub(crate) fn grouped(covariance: Vec<f64>, groups: Vec<usize>) -> Option<Self> {
        let n = groups.len();
        let n_groups = groups.iter().max().map_or(0, |last| last + 1);
        let values = Cholesky::new(covariance, n)?.inverse();
        let mut means: Vec<Mean> = Vec::new();
        for group in 0..n_groups {
            let of_group = |row: &[f64]| -> f64 {
                let members = row.iter().zip(&groups).filter(|(_, g)| **g == group);
                members.map(|(x, _)| x).sum()
            };
            if !groups.contains(&group) {
                continue;
            }
            let mut sums: Vec<f64> = values.chunks_exact(n).map(of_group).collect();
            let mut parts = vec![0.0; n_groups];
            parts[group] = 1.0;
            for before in &means {
                let share = of_group(&before.sums) / before.total;
                let subtract = |values: &mut [f64], of: &[f64]| {
                    let pairs = values.iter_mut().zip(of);
                    pairs.for_each(|(x, b)| *x -= share * b);
                };
                subtract(&mut sums, &before.sums);
                subtract(&mut parts, &before.parts);
            }
            let total = of_group(&sums);
            means.push(Mean { sums, total, parts });
        }
        Some(Self {
            values,
            groups,
            means,
        })
    }

    /// What takes the mean of a single group out.
    pub(crate) fn mean(&self) -> &Mean {
        &self.means[0]
    }

    pub(crate) fn times(&self, x: &[f64]) -> Vec<f64> {
        let n = self.groups.len();
        product(Matrix::new(&self.values, n, n), Matrix::new(x, n, 1))
    }

    /// The mean of what was measured in the first group, and the coefficients of what is left when each mean is taken out.
    pub(crate) fn apply(&self, measured: &[f64]) -> (f64, Vec<f64>) {
        let n_groups = self.means.first().map_or(0, |mean| mean.parts.len());
        let mut means = vec![0.0; n_groups];
        for mean in &self.means {
            let amount = dot(&mean.sums, measured) / mean.total;
            let pairs = means.iter_mut().zip(&mean.parts);
            pairs.for_each(|(m, part)| *m += amount * part);
        }
        let rest = measured.iter().zip(&self.groups);
        let rest: Vec<f64> = rest.map(|(y, &group)| y - means[group]).collect();
        (means[0], self.times(&rest))
    }

    /// An element of the precision, the means taken out.
    pub(crate) fn centred(&self, i: usize, j: usize) -> f64 {
        let mut value = self.values[i * self.groups.len() + j];
        for mean in &self.means {
            value -= mean.sums[i] * mean.sums[j] / mean.total;
        }
        value
    }
}

/// A dot product in four partial sums, which the compiler can keep in vector registers.
pub(crate) fn dot(a: &[f64], b: &[f64]) -> f64 {
    let (a_chunks, a_rest) = a.as_chunks::<4>();
    let (b_chunks, b_rest) = b.as_chunks::<4>();
    let mut sums = [0.0; 4];
    for (a, b) in a_chunks.iter().zip(b_chunks) {
        for lane in 0..4 {
            sums[lane] += a[lane] * b[lane];
        }
    }
    let rest: f64 = a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum();
    sums.iter().sum::<f64>() + rest
}

#[cfg(test)]
mod tests {
    use rand::{RngExt, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    use super::*;

    /// A · Aᵀ + n · 1.
    fn positive_definite(n: usize) -> Vec<f64> {
        let mut rng = ChaCha8Rng::seed_from_u64(n as u64);
        let a: Vec<f64> = (0..n * n).map(|_| rng.random_range(-1.0..1.0)).collect();
        let a = Matrix::new(&a, n, n);
        let mut matrix = product(a, a.transposed());
        matrix
            .iter_mut()
            .step_by(n + 1)
            .for_each(|x| *x += n as f64 / 10.0);
        matrix
    }

    /// Sizes below, at and above one block, and of several.
    const SIZES: [usize; 7] = [1, 2, 47, 48, 49, 96, 150];

    #[test]
    fn the_factor_makes_the_matrix() {
        for n in SIZES {
            let matrix = positive_definite(n);
            let factor = Cholesky::new(matrix.clone(), n).unwrap();
            for i in 0..n {
                for j in 0..=i {
                    let sum: f64 = (0..=j)
                        .map(|k| factor.lower[i * n + k] * factor.lower[j * n + k])
                        .sum();
                    assert!((sum - matrix[i * n + j]).abs() < 1e-10, "{n}: {i} {j}");
                }
            }
        }
    }

    #[test]
    fn the_inverse_undoes_the_matrix() {
        for n in SIZES {
            let matrix = positive_definite(n);
            let inverse = Cholesky::new(matrix.clone(), n).unwrap().inverse();
            let one = product(Matrix::new(&matrix, n, n), Matrix::new(&inverse, n, n));
            for (index, value) in one.iter().enumerate() {
                let expected = f64::from(u8::from(index % (n + 1) == 0));
                assert!((value - expected).abs() < 1e-9, "{n}: {index} {value}");
            }
        }
    }

    #[test]
    fn a_system_is_solved() {
        for n in SIZES {
            let matrix = positive_definite(n);
            let x: Vec<f64> = (0..n).map(|i| i as f64 - 3.0).collect();
            let mut b = product(Matrix::new(&matrix, n, n), Matrix::new(&x, n, 1));
            Cholesky::new(matrix, n).unwrap().solve(&mut b);
            assert!(x.iter().zip(&b).all(|(x, b)| (x - b).abs() < 1e-8), "{n}");
        }
    }

    #[test]
    fn the_means_of_groups_are_taken_out() {
        let (n, groups) = (9, vec![0, 0, 2, 0, 3, 2, 3, 0, 2]);
        let precision = Precision::grouped(positive_definite(n), groups.clone()).unwrap();
        // Nothing is left of what is the same within each group.
        let level = [4.0, 0.0, -1.0, 0.5];
        let measured: Vec<f64> = groups.iter().map(|&group| level[group]).collect();
        let (mean, alphas) = precision.apply(&measured);
        assert!((mean - 4.0).abs() < 1e-10, "{mean}");
        assert!(alphas.iter().all(|a| a.abs() < 1e-9), "{alphas:?}");
        // The centred precision does the same at once, and leaves no sum over a group.
        let measured: Vec<f64> = (0..n).map(|i| (i * i) as f64).collect();
        let (_, alphas) = precision.apply(&measured);
        for (i, alpha) in alphas.iter().enumerate() {
            let row: Vec<f64> = (0..n).map(|j| precision.centred(i, j)).collect();
            assert!((dot(&row, &measured) - alpha).abs() < 1e-9);
        }
        for group in [0, 2, 3] {
            let members = alphas.iter().zip(&groups).filter(|(_, g)| **g == group);
            assert!(members.map(|(a, _)| a).sum::<f64>().abs() < 1e-9);
        }
    }

    #[test]
    fn what_is_not_positive_definite_has_no_factor() {
        for n in [2, 60, 130] {
            let mut matrix = positive_definite(n);
            matrix[n * n - 1] = -1.0;
            assert!(Cholesky::new(matrix, n).is_none());
            assert!(Cholesky::new(vec![1.0; n * n], n).is_none());
        }
    }
}
