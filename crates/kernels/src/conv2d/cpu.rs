//! Dense convolution as a matrix product with the columns of all windows ("im2col").

use super::Shape;
use crate::Element;
use crate::gemm::{Matrix, add_product};
use crate::parallel::{build, sum_over_images};
use crate::pointwise_conv2d::cpu::{FEW_IMAGES, product};
use crate::runs::Runs;

/// See [`naive::forward`](super::naive::forward).
pub(super) fn forward<T: Element>(x: &[T], w: &[T], shape: &Shape) -> Vec<T> {
    let Shape { n, i, o, window } = *shape;
    let columns = Columns::new(shape);
    let [in_len, out_len] = [i * window.input_len(), o * window.output_len()];
    if n < FEW_IMAGES {
        // The columns of all images at once, so that the threads share the work within an image.
        let (plane_len, rows_len) = (window.input_len(), window.kernel_len() * columns.width);
        let all = build(
            n * i * rows_len,
            rows_len,
            1,
            || columns.scratch().0,
            |padded, plane, rows| {
                columns.load(&x[plane * plane_len..][..plane_len], padded, rows);
            },
        );
        return product(&all, w, n, [o, columns.height], columns.width);
    }
    build(
        n * out_len,
        out_len,
        columns.height,
        || columns.scratch(),
        |(padded, scratch), image, y| {
            columns.load(&x[image * in_len..][..in_len], padded, scratch);
            add_product(
                Matrix::new(w, o, columns.height),
                columns.matrix(scratch),
                y,
            );
        },
    )
}

/// See [`naive::grad_x`](super::naive::grad_x).
pub(super) fn grad_x<T: Element>(grad: &[T], w: &[T], shape: &Shape) -> Vec<T> {
    let Shape { n, i, o, window } = *shape;
    let columns = Columns::new(shape);
    let [in_len, out_len] = [i * window.input_len(), o * window.output_len()];
    build(
        n * in_len,
        in_len,
        o * window.kernel_len(),
        || columns.scratch(),
        |(padded, scratch), image, grad_x| {
            let grad = Matrix::new(&grad[image * out_len..][..out_len], o, columns.width);
            scratch.fill(T::zero());
            add_product(
                Matrix::new(w, o, columns.height).transposed(),
                grad,
                scratch,
            );
            columns.store(scratch, padded, grad_x);
        },
    )
}

/// See [`naive::grad_w`](super::naive::grad_w).
pub(super) fn grad_w<T: Element>(grad: &[T], x: &[T], shape: &Shape) -> Vec<T> {
    let Shape { n, i, o, window } = *shape;
    let columns = Columns::new(shape);
    let [in_len, out_len] = [i * window.input_len(), o * window.output_len()];
    sum_over_images(
        n,
        [1, o * columns.height],
        columns.width,
        || columns.scratch(),
        |(padded, scratch), images, _, partial: &mut [T]| {
            for image in images {
                columns.load(&x[image * in_len..][..in_len], padded, scratch);
                let grad = Matrix::new(&grad[image * out_len..][..out_len], o, columns.width);
                add_product(grad, columns.matrix(scratch).transposed(), partial);
            }
        },
    )
}

/// What lies under every window of an image: a row for each input channel and tap, a column for each window.
struct Columns {
    runs: Runs,
    height: usize,
    width: usize,
}

impl Columns {
    fn new(shape: &Shape) -> Self {
        let window = shape.window;
        Self {
            runs: Runs::new(window),
            height: shape.i * window.kernel_len(),
            width: window.output_len(),
        }
    }

    /// A padded plane and the columns.
    fn scratch<T: Element>(&self) -> (Vec<T>, Vec<T>) {
        (
            self.runs.padded(T::zero()),
            vec![T::zero(); self.height * self.width],
        )
    }

    fn matrix<'a, T>(&self, columns: &'a [T]) -> Matrix<'a, T> {
        Matrix::new(columns, self.height, self.width)
    }

    fn load<T: Element>(&self, image: &[T], padded: &mut [T], columns: &mut [T]) {
        let taps = self.runs.taps();
        let planes = image.chunks_exact(self.runs.window().input_len());
        for (plane, rows) in planes.zip(columns.chunks_exact_mut(taps.len() * self.width)) {
            self.runs.load(plane, padded);
            for (tap, row) in taps.iter().zip(rows.chunks_exact_mut(self.width)) {
                self.runs.collect(&padded[tap.offset..], row);
            }
        }
    }

    /// Adds up the columns where they came from.
    fn store<T: Element>(&self, columns: &[T], padded: &mut [T], image: &mut [T]) {
        let taps = self.runs.taps();
        let planes = image.chunks_exact_mut(self.runs.window().input_len());
        for (plane, rows) in planes.zip(columns.chunks_exact(taps.len() * self.width)) {
            padded.fill(T::zero());
            for (tap, row) in taps.iter().zip(rows.chunks_exact(self.width)) {
                self.runs.spread_add(row, &mut padded[tap.offset..]);
            }
            self.runs.store(padded, plane);
        }
    }
}
