//! The kernels compiled for the processor: see the crate `kernels-shim`.

use std::ffi::{CString, c_char, c_int, c_void};

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, DType, Layout, Result, Storage};

use super::{Arg, Gemm, Gpu, Source, alloc_uninit};
use crate::{Element, Precision};

unsafe extern "C" {
    /// Runs a kernel; not 0 if there is none of that name.
    fn shim_launch(
        op: *const c_char,
        kernel: *const c_char,
        is_double: c_int,
        n_blocks: c_int,
        args: *const *const c_void,
        n_args: c_int,
    ) -> c_int;
}

impl Gpu for CpuStorage {
    fn of(storage: &Storage) -> Option<&Self> {
        match storage {
            Storage::Cpu(storage) => Some(storage),
            _ => None,
        }
    }

    fn address(&self) -> Result<u64> {
        Ok(match self {
            Self::F32(values) => values.as_ptr() as u64,
            Self::F64(values) => values.as_ptr() as u64,
            _ => candle_core::bail!("kernels know f32 and f64"),
        })
    }

    fn alloc(&self, n: usize, dtype: DType) -> Result<Self> {
        let mut storage: Self = alloc_uninit(BackendStorage::device(self), n, dtype)?;
        // What a kernel forgets to write shows.
        match &mut storage {
            Self::F32(values) => values.fill(f32::NAN),
            Self::F64(values) => values.fill(f64::NAN),
            _ => candle_core::bail!("kernels know f32 and f64"),
        }
        Ok(storage)
    }

    fn launch(
        &self,
        source: &Source,
        kernel: &str,
        dtype: DType,
        n_blocks: usize,
        args: &[Arg<'_>],
    ) -> Result<()> {
        super::count_launch();
        let name = |text: &str| CString::new(text).expect("names hold no zero");
        let (op, kernel) = (name(source.op), name(kernel));
        let pointers: Vec<*const c_void> = args.iter().map(Arg::address).collect();
        // SAFETY: the arguments are those of the kernel (it checks their number), and what they point to lives.
        let code = unsafe {
            shim_launch(
                op.as_ptr(),
                kernel.as_ptr(),
                c_int::from(dtype == DType::F64),
                n_blocks as c_int,
                pointers.as_ptr(),
                args.len() as c_int,
            )
        };
        match code {
            0 => Ok(()),
            _ => candle_core::bail!(
                "no kernel {kernel:?} of {op:?} with {} arguments",
                args.len()
            ),
        }
    }

    fn gemm(a: &Self, b: &Self, gemm: &Gemm, dtype: DType, _: Precision) -> Result<Self> {
        super::count_launch();
        // Bf16 values are f32 values, and the products of two of them are exact.
        let [a, b] = [a, b].map(|storage| storage.to_dtype(&all_of(storage), dtype));
        Ok(match (a?, b?) {
            (Self::F32(a), Self::F32(b)) => Self::F32(blas(&a, &b, gemm)),
            (Self::F64(a), Self::F64(b)) => Self::F64(blas(&a, &b, gemm)),
            _ => candle_core::bail!("kernels know f32 and f64"),
        })
    }
}

fn all_of(storage: &CpuStorage) -> Layout {
    let n = match storage {
        CpuStorage::F32(values) => values.len(),
        CpuStorage::F64(values) => values.len(),
        CpuStorage::BF16(values) => values.len(),
        _ => 0,
    };
    Layout::contiguous(n)
}

/// What BLAS makes of these numbers.
fn blas<T: Element>(a: &[T], b: &[T], gemm: &Gemm) -> Vec<T> {
    let &Gemm { batch, m, n, k, .. } = gemm;
    let at = |factor: usize, matrix: usize, row: usize, column: usize| {
        let (row, column) = if gemm.transposed[factor] {
            (column, row)
        } else {
            (row, column)
        };
        let rows = [[m, k], [k, n]][factor][usize::from(gemm.transposed[factor])];
        assert!(gemm.leading[factor] >= rows, "columns overlap: {gemm:?}");
        gemm.starts[factor] + matrix * gemm.strides[factor] + column * gemm.leading[factor] + row
    };
    let mut c = Vec::with_capacity(batch * m * n);
    for matrix in 0..batch {
        for column in 0..n {
            for row in 0..m {
                let terms = (0..k).map(|i| {
                    a[at(0, matrix, row, i)].to_f64() * b[at(1, matrix, i, column)].to_f64()
                });
                c.push(T::from_f64(terms.sum()));
            }
        }
    }
    c
}
