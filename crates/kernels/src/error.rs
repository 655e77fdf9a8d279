//! What can be wrong with the arguments of an operation.

use candle_core::{DType, Tensor};

use crate::Window;

/// An argument that an operation cannot work with. The public functions return it inside
/// [`candle_core::Error`], so that they compose with candle's own.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A tensor does not have the shape that the operation or its other arguments ask for.
    #[error("{op}: expected {argument} of shape {expected}, got {actual:?}")]
    Shape {
        /// The operation.
        op: &'static str,
        /// The argument at fault.
        argument: &'static str,
        /// The shape asked for, in axis letters and numbers.
        expected: String,
        /// The shape it has.
        actual: Vec<usize>,
    },
    /// Two arguments differ in their element type.
    #[error(
        "{op}: expected {argument} of type {expected:?} as the other arguments, got {actual:?}"
    )]
    DType {
        /// The operation.
        op: &'static str,
        /// The argument at fault.
        argument: &'static str,
        /// The type of the first argument.
        expected: DType,
        /// The type it has.
        actual: DType,
    },
    /// The window, spread by its dilation, is larger than the padded input, or a size, stride or dilation is zero.
    #[error(
        "{op}: a window of {kernel:?} with padding {padding}, stride {stride}, dilation {dilation} does not fit an input of {input:?}",
        kernel = window.kernel, padding = window.padding, stride = window.stride, dilation = window.dilation, input = window.input
    )]
    Window {
        /// The operation.
        op: &'static str,
        /// The window and the input.
        window: Window,
    },
    /// A pooling window could lie in the padding alone.
    #[error("{op}: padding {padding} is more than half of the kernel {kernel}")]
    Padding {
        /// The operation.
        op: &'static str,
        /// The padding asked for.
        padding: usize,
        /// The size of the window.
        kernel: usize,
    },
    /// There is nothing to take statistics of.
    #[error("{op}: no values per channel in an input of shape {shape:?}")]
    Empty {
        /// The operation.
        op: &'static str,
        /// The shape of the input.
        shape: Vec<usize>,
    },
}

impl From<Error> for candle_core::Error {
    fn from(error: Error) -> Self {
        Self::Wrapped(Box::new(error))
    }
}

/// The four dimensions of `tensor`, or an error that names `argument` and the `letters` of its axes.
pub(crate) fn dims4(
    op: &'static str,
    argument: &'static str,
    letters: &str,
    tensor: &Tensor,
) -> Result<[usize; 4], Error> {
    tensor.dims().try_into().map_err(|_| Error::Shape {
        op,
        argument,
        expected: letters.to_owned(),
        actual: tensor.dims().to_vec(),
    })
}

/// An error unless `tensor` has the shape `expected` and the type of `like`.
pub(crate) fn check(
    op: &'static str,
    argument: &'static str,
    tensor: &Tensor,
    expected: &[usize],
    like: &Tensor,
) -> Result<(), Error> {
    if tensor.dims() != expected {
        return Err(Error::Shape {
            op,
            argument,
            expected: format!("{expected:?}"),
            actual: tensor.dims().to_vec(),
        });
    }
    if tensor.dtype() != like.dtype() {
        return Err(Error::DType {
            op,
            argument,
            expected: like.dtype(),
            actual: tensor.dtype(),
        });
    }
    Ok(())
}
