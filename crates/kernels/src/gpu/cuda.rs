//! Launches on CUDA devices. Kernels are compiled by NVRTC when they are first used, for the architecture of the
//! device, and kept on the disk under the digest of all that decides what comes out.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use candle_core::backend::BackendStorage;
use candle_core::cuda_backend::{CudaDevice, CudaStorageSlice, WrapErr};
use candle_core::{CudaStorage, DType, Result, Storage};
use cudarc::driver::{DevicePtr, LaunchConfig, PushKernelArg};
use cudarc::nvrtc::{CompileError, CompileOptions, compile_ptx_with_opts};

use super::{Arg, Gemm, Gpu, Source, THREADS, alloc_uninit};
use crate::Precision;

/// Where compiled kernels lie below the user's cache folder.
const CACHE_FOLDER: &str = "latency-aware-architecture-search/kernels";

impl Gpu for CudaStorage {
    fn of(storage: &Storage) -> Option<&Self> {
        match storage {
            Storage::Cuda(storage) => Some(storage),
            _ => None,
        }
    }

    fn address(&self) -> Result<u64> {
        let stream = BackendStorage::device(self).cuda_stream();
        // All work is on one stream, so there is nothing to wait for.
        Ok(match &self.slice {
            CudaStorageSlice::F32(slice) => slice.device_ptr(&stream).0,
            CudaStorageSlice::F64(slice) => slice.device_ptr(&stream).0,
            CudaStorageSlice::BF16(slice) => slice.device_ptr(&stream).0,
            _ => candle_core::bail!("kernels know f32 and f64"),
        })
    }

    fn alloc(&self, n: usize, dtype: DType) -> Result<Self> {
        alloc_uninit(BackendStorage::device(self), n, dtype)
    }

    fn launch(
        &self,
        source: &Source,
        kernel: &str,
        dtype: DType,
        n_blocks: usize,
        args: &[Arg<'_>],
    ) -> Result<()> {
        if n_blocks == 0 {
            return Ok(());
        }
        super::count_launch();
        let device = BackendStorage::device(self);
        let real = match dtype {
            DType::F64 => "double",
            _ => "float",
        };
        let module = format!("{}-{real}", source.op);
        let ptx = compiled(source, real, device)?;
        let function = device.get_or_load_custom_func(kernel, &module, &ptx)?;
        let mut builder = function.builder();
        for arg in args {
            match arg {
                Arg::Pointer(pointer) => builder.arg(pointer),
                Arg::Int(int) => builder.arg(int),
                Arg::Double(double) => builder.arg(double),
                Arg::Window(window) => builder.arg(WindowArg::new(window)),
                Arg::Entries(entries) => builder.arg(*entries),
            };
        }
        let Ok(n_blocks) = u32::try_from(n_blocks) else {
            candle_core::bail!("{n_blocks} blocks are too many for one launch on CUDA");
        };
        let config = LaunchConfig {
            grid_dim: (n_blocks, 1, 1),
            block_dim: (THREADS as u32, 1, 1),
            shared_mem_bytes: 0,
        };
        // SAFETY: the arguments are those of the kernel in number and type: the crate `kernels-shim` runs every
        // launch with the same kernels. The memory that they point to lives until the stream has passed.
        unsafe { builder.launch(config) }.w()?;
        Ok(())
    }

    fn gemm(a: &Self, b: &Self, gemm: &Gemm, dtype: DType, precision: Precision) -> Result<Self> {
        use cudarc::cublas::result::gemm_strided_batched_ex;
        use cudarc::cublas::sys::{
            cublasComputeType_t as Compute, cublasGemmAlgo_t as Algorithm,
            cublasOperation_t as Operation, cudaDataType as Type,
        };

        super::count_launch();
        let device = BackendStorage::device(a);
        let (alpha, beta) = ((1f32, 1f64), (0f32, 0f64));
        let of_f32 = (
            std::ptr::from_ref(&alpha.0).cast(),
            std::ptr::from_ref(&beta.0).cast(),
        );
        let of_f64 = (
            std::ptr::from_ref(&alpha.1).cast(),
            std::ptr::from_ref(&beta.1).cast(),
        );
        let (of_inputs, of_output, compute, (alpha, beta)) = match (dtype, precision) {
            (DType::F64, _) => (
                Type::CUDA_R_64F,
                Type::CUDA_R_64F,
                Compute::CUBLAS_COMPUTE_64F,
                of_f64,
            ),
            (_, Precision::F32) => (
                Type::CUDA_R_32F,
                Type::CUDA_R_32F,
                Compute::CUBLAS_COMPUTE_32F,
                of_f32,
            ),
            (_, Precision::Tf32) => (
                Type::CUDA_R_32F,
                Type::CUDA_R_32F,
                Compute::CUBLAS_COMPUTE_32F_FAST_TF32,
                of_f32,
            ),
            (_, Precision::Bf16) => (
                Type::CUDA_R_16BF,
                Type::CUDA_R_32F,
                Compute::CUBLAS_COMPUTE_32F,
                of_f32,
            ),
        };
        let &Gemm {
            batch,
            m,
            n,
            k,
            transposed,
            leading,
            strides,
            starts,
        } = gemm;
        let c: Self = alloc_uninit(device, batch * m * n, dtype)?;
        let int = |size: usize| match i32::try_from(size) {
            Ok(size) => Ok(size),
            Err(_) => candle_core::bail!("{size} is too large for a product on CUDA"),
        };
        let operation = |is_transposed| {
            if is_transposed {
                Operation::CUBLAS_OP_T
            } else {
                Operation::CUBLAS_OP_N
            }
        };
        let first = |storage: &Self, start: usize| {
            let offset = start * storage.dtype().size_in_bytes();
            Ok::<_, candle_core::Error>(storage.address()? + offset as u64)
        };
        // SAFETY: the matrices are as large as sizes and strides say (the crate `kernels-shim` runs every product by
        // the same numbers), and live until the stream has passed.
        unsafe {
            gemm_strided_batched_ex(
                *device.cublas_handle().handle(),
                operation(transposed[0]),
                operation(transposed[1]),
                int(m)?,
                int(n)?,
                int(k)?,
                alpha,
                first(a, starts[0])? as *const _,
                of_inputs,
                int(leading[0])?,
                strides[0] as i64,
                first(b, starts[1])? as *const _,
                of_inputs,
                int(leading[1])?,
                strides[1] as i64,
                beta,
                c.address()? as *mut _,
                of_output,
                int(m)?,
                (m * n) as i64,
                int(batch)?,
                compute,
                Algorithm::CUBLAS_GEMM_DEFAULT_TENSOR_OP,
            )
        }
        .w()?;
        Ok(c)
    }
}

/// `Window` of the prelude.
#[repr(transparent)]
struct WindowArg([i32; 9]);

impl WindowArg {
    fn new(window: &[i32; 9]) -> &Self {
        // SAFETY: the struct is transparent.
        unsafe { &*std::ptr::from_ref(window).cast() }
    }
}

// SAFETY: nine ints in a row, as the prelude has it.
unsafe impl cudarc::driver::DeviceRepr for WindowArg {}

// SAFETY: a struct of numbers alone, laid out as the prelude has it.
unsafe impl cudarc::driver::DeviceRepr for super::Entries {}

/// What one process has compiled or read: PTX by operation, element type and architecture.
type Compiled = HashMap<(&'static str, &'static str, i32), Arc<str>>;

static COMPILED: Mutex<Option<Compiled>> = Mutex::new(None);

/// The PTX of an operation for a device: of this process, of the disk, or compiled now.
fn compiled(source: &Source, real: &'static str, device: &CudaDevice) -> Result<Arc<str>> {
    let (major, minor) = device.cuda_stream().context().compute_capability().w()?;
    let arch = 10 * major + minor;
    let mut guard = COMPILED
        .lock()
        .expect("nobody panics while compiling kernels");
    let known = guard.get_or_insert_default();
    if let Some(ptx) = known.get(&(source.op, real, arch)) {
        return Ok(ptx.clone());
    }
    let options = vec![
        format!("--gpu-architecture=compute_{arch}"),
        format!("-DREAL={real}"),
    ];
    let file = cache_folder().map(|dir| dir.join(file_name(source, &options)));
    let cached = file
        .as_ref()
        .and_then(|file| std::fs::read_to_string(file).ok());
    let ptx = match cached {
        Some(ptx) => ptx,
        None => {
            let ptx = compile(source, options)?;
            if let Some(file) = file {
                // A cache that cannot be written to costs the next process some seconds, nothing else.
                let _ = write_whole(&file, &ptx);
            }
            ptx
        }
    };
    let ptx: Arc<str> = ptx.into();
    known.insert((source.op, real, arch), ptx.clone());
    Ok(ptx)
}

fn compile(source: &Source, options: Vec<String>) -> Result<String> {
    let options = CompileOptions {
        options,
        ..CompileOptions::default()
    };
    match compile_ptx_with_opts(source.text, options) {
        Ok(ptx) => Ok(ptx.to_src()),
        Err(CompileError::CompileError { log, options, .. }) => candle_core::bail!(
            "NVRTC does not compile the kernels of {} with {options:?}: {}",
            source.op,
            log.to_string_lossy()
        ),
        Err(error) => candle_core::bail!("NVRTC fails on the kernels of {}: {error}", source.op),
    }
}

/// The digest of text, options (architecture and element type) and compiler.
fn file_name(source: &Source, options: &[String]) -> String {
    let (mut major, mut minor) = (0, 0);
    // SAFETY: both pointers point to live numbers.
    let _ = unsafe { cudarc::nvrtc::sys::nvrtcVersion(&mut major, &mut minor) };
    let mut hasher = blake3::Hasher::new();
    for part in [source.text, &options.join(" "), &format!("{major}.{minor}")] {
        hasher.update(&(part.len() as u64).to_le_bytes());
        hasher.update(part.as_bytes());
    }
    format!("{}-{}.ptx", source.op, &hasher.finalize().to_hex()[..32])
}

/// The user's cache folder, where there is one.
fn cache_folder() -> Option<PathBuf> {
    let base = std::env::var_os("XDG_CACHE_HOME")
        .filter(|dir| !dir.is_empty())
        .map(PathBuf::from)
        .or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache")))?;
    Some(base.join(CACHE_FOLDER))
}

/// Writes a file aside and renames it, so that nobody reads half of it.
fn write_whole(file: &Path, text: &str) -> std::io::Result<()> {
    let dir = file.parent().unwrap_or(Path::new("."));
    std::fs::create_dir_all(dir)?;
    let aside = file.with_extension(format!("{}.new", std::process::id()));
    std::fs::write(&aside, text)?;
    std::fs::rename(&aside, file)
}
