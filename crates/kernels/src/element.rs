//! The element types of the kernels, and the way from candle's storage to slices.

use crate::simd::Vectorised;
use candle_core::{CpuStorage, Layout, Result, WithDType};

/// An element type that the kernels compute with: `f32`, or `f64` for finite differences.
pub trait Element: WithDType + Vectorised {
    /// Below every number: where a maximum starts.
    const NEG_INFINITY: Self;

    /// Whether this is not a number.
    fn is_nan(self) -> bool;
}

macro_rules! impl_element {
    ($T:ident) => {
        impl Element for $T {
            const NEG_INFINITY: Self = $T::NEG_INFINITY;

            #[inline]
            fn is_nan(self) -> bool {
                $T::is_nan(self)
            }
        }
    };
}

impl_element!(f32);
impl_element!(f64);

/// The elements of a contiguous tensor.
pub(crate) fn elements<'a, T: Element>(
    storage: &'a CpuStorage,
    layout: &Layout,
) -> Result<&'a [T]> {
    let Some((start, end)) = layout.contiguous_offsets() else {
        candle_core::bail!(
            "expected a contiguous tensor, got strides {:?}",
            layout.stride()
        );
    };
    Ok(&T::cpu_storage_as_slice(storage)?[start..end])
}

/// Evaluates `$body` with `$T` naming the element type of `$storage`; an error for any type but `f32` and `f64`.
macro_rules! with_element {
    ($op:expr, $storage:expr, $T:ident => $body:expr) => {
        match $storage {
            candle_core::CpuStorage::F32(_) => {
                type $T = f32;
                $body
            }
            candle_core::CpuStorage::F64(_) => {
                type $T = f64;
                $body
            }
            other => Err(candle_core::Error::UnsupportedDTypeForOp(
                candle_core::backend::BackendStorage::dtype(other),
                $op,
            )
            .bt()),
        }
    };
}
pub(crate) use with_element;
