//! The kernels compiled for the processor: see the crate `kernels-shim`.

use std::ffi::{CString, c_char, c_int, c_void};

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, DType, Result, Storage};

use super::{Arg, Gpu, Source, alloc_uninit};

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
        args: &[Arg],
    ) -> Result<()> {
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
}
