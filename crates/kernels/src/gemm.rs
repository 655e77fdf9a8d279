//! Matrix products on slices.

use gemm::Parallelism;

use crate::Element;

/// A dense matrix in row-major order, or the transpose of one.
#[derive(Clone, Copy)]
pub(crate) struct Matrix<'a, T> {
    elements: &'a [T],
    n_rows: usize,
    n_cols: usize,
    row_stride: usize,
    col_stride: usize,
}

impl<'a, T> Matrix<'a, T> {
    /// The matrix with the given rows, one after the other.
    pub(crate) fn new(elements: &'a [T], n_rows: usize, n_cols: usize) -> Self {
        assert_eq!(elements.len(), n_rows * n_cols);
        Self {
            elements,
            n_rows,
            n_cols,
            row_stride: n_cols,
            col_stride: 1,
        }
    }

    /// Its transpose.
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

/// `c += a * b`, with the rows of `c` one after the other, on this thread.
pub(crate) fn add_product<T: Element>(a: Matrix<'_, T>, b: Matrix<'_, T>, c: &mut [T]) {
    assert_eq!((a.n_cols, a.n_rows * b.n_cols), (b.n_rows, c.len()));
    // SAFETY: by the assertions here and in `Matrix::new`, all rows and columns lie within the slices, and `c` is
    // borrowed exclusively.
    unsafe {
        gemm::gemm(
            a.n_rows,
            b.n_cols,
            a.n_cols,
            c.as_mut_ptr(),
            1,
            b.n_cols as isize,
            true,
            a.elements.as_ptr(),
            a.col_stride as isize,
            a.row_stride as isize,
            b.elements.as_ptr(),
            b.col_stride as isize,
            b.row_stride as isize,
            T::one(),
            T::one(),
            false,
            false,
            false,
            Parallelism::None,
        );
    }
}
