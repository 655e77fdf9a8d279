//! What the operations' `cuda.rs` files are written on: memory and launches of a device that runs CUDA C.
//!
//! Two storages are such a device: candle's CUDA storage ([`cuda`], feature `cuda`), and, in the test crate
//! `kernels-shim` alone, the CPU storage with the kernels compiled for the processor (`shim`). So the tests there
//! run the same launches with the same kernels.

use candle_core::backend::{BackendDevice, BackendStorage};
use candle_core::{DType, Layout, Result, Storage, Tensor};

use crate::{Precision, Window};

#[cfg(feature = "cuda")]
mod cuda;
#[cfg(shim)]
mod shim;

/// Threads of a block, in every launch; `THREADS` of the prelude.
const THREADS: usize = 256;

/// Blocks that keep a large device busy: how far reductions are split.
pub(crate) const BLOCKS_OF_A_REDUCTION: usize = 2048;

/// The kernels of an operation: a `.cu` file, compiled behind the prelude.
pub(crate) struct Source {
    /// The operation.
    pub(crate) op: &'static str,
    /// The text.
    #[cfg_attr(not(feature = "cuda"), expect(dead_code))]
    pub(crate) text: &'static str,
}

/// The `.cu` file of the operation whose folder this is in.
macro_rules! source {
    ($op:literal) => {
        $crate::gpu::Source {
            op: $op,
            text: concat!(
                include_str!("../gpu/prelude.cuh"),
                include_str!(concat!($op, ".cu"))
            ),
        }
    };
}
pub(crate) use source;

/// Tensors that one launch takes at most by an [`Entries`]; `MAX_ENTRIES` of the prelude.
pub(crate) const MAX_ENTRIES: usize = 64;

/// What a kernel is to know of one of its tensors: `Entry` of the prelude.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub(crate) struct Entry {
    pub(crate) pointers: [u64; 5],
    pub(crate) ints: [i32; 4],
}

/// As many tensors as an operation has, handed over by value: `Entries` of the prelude.
#[repr(C)]
pub(crate) struct Entries([Entry; MAX_ENTRIES]);

impl Entries {
    /// At most [`MAX_ENTRIES`] of them.
    pub(crate) fn new(entries: impl IntoIterator<Item = Result<Entry>>) -> Result<Box<Self>> {
        let mut all = Box::new(Self([Entry::default(); MAX_ENTRIES]));
        let mut places = all.0.iter_mut();
        for entry in entries {
            match places.next() {
                Some(place) => *place = entry?,
                None => candle_core::bail!("one launch takes {MAX_ENTRIES} tensors at most"),
            }
        }
        Ok(all)
    }
}

/// An argument of a kernel, as it lies in memory.
#[derive(Clone, Copy)]
pub(crate) enum Arg<'a> {
    /// `T *`.
    Pointer(u64),
    /// `int`.
    Int(i32),
    /// `double`, whatever the element type.
    Double(f64),
    /// `Window`.
    Window([i32; 9]),
    /// `Entries`.
    Entries(&'a Entries),
}

impl Arg<'_> {
    /// A number of things; an error if an `int` does not hold it.
    pub(crate) fn count(n: usize) -> Result<Self> {
        match i32::try_from(n) {
            Ok(n) => Ok(Self::Int(n)),
            Err(_) => candle_core::bail!("{n} elements are too many for one launch on CUDA"),
        }
    }

    /// The windows of an operation.
    pub(crate) fn window(window: &Window) -> Self {
        let ([h, w], [n_u, n_v], [out_h, out_w]) = (window.input, window.kernel, window.output());
        let sizes = [
            h,
            w,
            n_u,
            n_v,
            window.padding,
            window.stride,
            window.dilation,
            out_h,
            out_w,
        ];
        Self::Window(sizes.map(|size| size as i32))
    }

    /// Where the value lies.
    #[cfg(shim)]
    fn address(&self) -> *const std::ffi::c_void {
        match self {
            Self::Pointer(pointer) => std::ptr::from_ref(pointer).cast(),
            Self::Int(int) => std::ptr::from_ref(int).cast(),
            Self::Double(double) => std::ptr::from_ref(double).cast(),
            Self::Window(window) => std::ptr::from_ref(window).cast(),
            Self::Entries(entries) => std::ptr::from_ref(*entries).cast(),
        }
    }
}

/// A storage whose device runs CUDA C.
pub(crate) trait Gpu: BackendStorage {
    /// The storage of a tensor, if it is of this kind.
    fn of(storage: &Storage) -> Option<&Self>;

    /// The address of the first element.
    fn address(&self) -> Result<u64>;

    /// Memory for `n` elements on the device of `self`, whatever they are.
    fn alloc(&self, n: usize, dtype: DType) -> Result<Self>;

    /// Runs a kernel, compiled for elements of `dtype`, on `n_blocks` blocks, in order with everything else
    /// that the device is asked.
    fn launch(
        &self,
        source: &Source,
        kernel: &str,
        dtype: DType,
        n_blocks: usize,
        args: &[Arg<'_>],
    ) -> Result<()>;

    /// `c = a b` as [`Gemm`] says, in new memory of type `dtype`; `a` and `b` are of that type, or both bf16 where it is
    /// `f32`. `precision` is that of `f32` products.
    fn gemm(a: &Self, b: &Self, gemm: &Gemm, dtype: DType, precision: Precision) -> Result<Self>;
}

/// A batch of matrix products in BLAS's terms: columns are contiguous.
///
/// `c[z] = op(a[z]) op(b[z])`, `m x k` times `k x n`, for `z` below `batch`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Gemm {
    pub(crate) batch: usize,
    pub(crate) m: usize,
    pub(crate) n: usize,
    pub(crate) k: usize,
    /// Whether `a` and `b` are stored transposed.
    pub(crate) transposed: [bool; 2],
    /// Elements between two columns of `a` and `b`; those of `c` lie side by side.
    pub(crate) leading: [usize; 2],
    /// Elements between two matrices of `a` and `b`; 0 = the same one for the whole batch.
    pub(crate) strides: [usize; 2],
    /// Elements in front of the first matrix of `a` and `b`.
    pub(crate) starts: [usize; 2],
}

/// A factor of a product: matrices whose rows are contiguous, side by side.
pub(crate) struct Factor<'a, 'b, S> {
    pub(crate) of: &'b In<'a, S>,
    /// Whether it is the matrix's transpose that lies there.
    pub(crate) is_transposed: bool,
    /// Whether there is one matrix for the whole batch.
    pub(crate) is_shared: bool,
}

/// `left[z] right[z]`, `rows x inner` times `inner x columns`, for `z` below `batch`, side by side.
pub(crate) fn product<S: Gpu>(
    batch: usize,
    [rows, columns, inner]: [usize; 3],
    left: &Factor<'_, '_, S>,
    right: &Factor<'_, '_, S>,
    precision: Precision,
    op: &'static str,
) -> Result<S> {
    let dtype = left.of.dtype(op)?;
    if batch == 0 {
        return left.of.storage.alloc(0, dtype);
    }
    // What is contiguous by rows is the transpose of what is contiguous by columns: (l r)^T = r^T l^T.
    let leading = |factor: &Factor<'_, '_, S>, row_len, column_len| {
        if factor.is_transposed {
            column_len
        } else {
            row_len
        }
    };
    let stride = |factor: &Factor<'_, '_, S>, len| if factor.is_shared { 0 } else { len };
    let mut gemm = Gemm {
        batch,
        m: columns,
        n: rows,
        k: inner,
        transposed: [right.is_transposed, left.is_transposed],
        leading: [leading(right, columns, inner), leading(left, inner, rows)],
        strides: [stride(right, inner * columns), stride(left, rows * inner)],
        starts: [right, left].map(|factor| factor.of.layout.start_offset()),
    };
    if precision == Precision::Bf16 {
        let rounded = |factor: &Factor<'_, '_, S>| {
            let In { storage, layout } = factor.of;
            storage.to_dtype(layout, DType::BF16)
        };
        gemm.starts = [0, 0];
        return S::gemm(&rounded(right)?, &rounded(left)?, &gemm, dtype, precision);
    }
    S::gemm(right.of.storage, left.of.storage, &gemm, dtype, precision)
}

/// An input of an operation.
pub(crate) struct In<'a, S> {
    pub(crate) storage: &'a S,
    pub(crate) layout: &'a Layout,
}

impl<S: Gpu> In<'_, S> {
    /// The element type, if there are kernels for it.
    pub(crate) fn dtype(&self, op: &'static str) -> Result<DType> {
        match self.storage.dtype() {
            dtype @ (DType::F32 | DType::F64) => Ok(dtype),
            other => Err(candle_core::Error::UnsupportedDTypeForOp(other, op).bt()),
        }
    }

    /// The number of elements.
    pub(crate) fn len(&self) -> usize {
        self.layout.shape().elem_count()
    }

    /// The pointer to the first element.
    pub(crate) fn arg(&self) -> Result<Arg<'static>> {
        pointer(self.storage, self.layout)
    }
}

/// The pointer to the first element of a contiguous tensor that an operation holds itself.
pub(crate) fn held<S: Gpu>(tensor: &Tensor) -> Result<Arg<'static>> {
    let (storage, layout) = tensor.storage_and_layout();
    match S::of(&storage) {
        Some(storage) => pointer(storage, layout),
        None => candle_core::bail!("the tensors of an operation lie on several devices"),
    }
}

/// The pointer to all of a storage.
pub(crate) fn whole<S: Gpu>(storage: &S) -> Result<Arg<'static>> {
    Ok(Arg::Pointer(storage.address()?))
}

fn pointer<S: Gpu>(storage: &S, layout: &Layout) -> Result<Arg<'static>> {
    Ok(Arg::Pointer(address_in(storage, layout)?))
}

/// The address of the first element of a contiguous tensor; 0 of none.
pub(crate) fn address_of<S: Gpu>(tensor: Option<&Tensor>) -> Result<u64> {
    match tensor.map(held::<S>).transpose()? {
        Some(Arg::Pointer(address)) => Ok(address),
        _ => Ok(0),
    }
}

fn address_in<S: Gpu>(storage: &S, layout: &Layout) -> Result<u64> {
    let Some((start, _)) = layout.contiguous_offsets() else {
        candle_core::bail!(
            "expected a contiguous tensor, got strides {:?}",
            layout.stride()
        );
    };
    let offset = start * storage.dtype().size_in_bytes();
    Ok(storage.address()? + offset as u64)
}

/// The blocks that give each of `n` elements a thread.
pub(crate) fn blocks_over(n: usize) -> usize {
    n.div_ceil(THREADS)
}

/// How many parts a reduction over `n` things is split into, if each part takes `n_blocks` blocks: a
/// function of the sizes alone, so that the order of the sum is always the same.
pub(crate) fn n_parts(n: usize, n_blocks: usize) -> usize {
    (BLOCKS_OF_A_REDUCTION / n_blocks.max(1)).clamp(1, n.max(1))
}

/// `out[i] = sum_p parts[p i]` by the kernel `sum_parts` of `source`, for `n` results of type `dtype`.
pub(crate) fn sum_parts<S: Gpu>(
    source: &Source,
    parts: &S,
    n_parts: usize,
    n: usize,
    kernels: DType,
    dtype: DType,
) -> Result<S> {
    let out = parts.alloc(n, dtype)?;
    let args = [
        whole(parts)?,
        whole(&out)?,
        Arg::count(n_parts)?,
        Arg::count(n)?,
    ];
    parts.launch(source, "sum_parts", kernels, blocks_over(n), &args)?;
    Ok(out)
}

/// Memory on a device that is not set to anything.
fn alloc_uninit<S: BackendStorage>(device: &S::Device, n: usize, dtype: DType) -> Result<S>
where
    S::Device: BackendDevice<Storage = S>,
{
    // SAFETY: every caller hands the memory to a kernel that writes all of it before anything reads.
    unsafe { device.alloc_uninit(&n.into(), dtype) }
}

/// An operation on tensors that it holds itself, of which there may be any number: it makes one new tensor, is not
/// recorded, and on the CPU is its oracle.
pub(crate) trait OnHeld: Sized {
    /// The name in messages.
    const OP: &'static str;

    /// Shape and type of the result.
    fn result(&self) -> (candle_core::Shape, DType);

    /// The launches; `on` is any tensor's storage on the device.
    #[cfg(any(feature = "cuda", shim))]
    fn launch<S: Gpu>(&self, on: &S) -> Result<S>;

    /// The elements of the result by plain loops.
    fn oracle(&self) -> Result<Vec<f64>>;

    /// Runs it on the device of `on`.
    fn run(&self, on: &Tensor) -> Result<Tensor> {
        on.apply_op1_no_bwd(&Run(self))
    }
}

struct Run<'a, O>(&'a O);

impl<O: OnHeld> candle_core::CustomOp1 for Run<'_, O> {
    fn name(&self) -> &'static str {
        O::OP
    }

    #[cfg(not(shim))]
    fn cpu_fwd(
        &self,
        _: &candle_core::CpuStorage,
        _: &Layout,
    ) -> Result<(candle_core::CpuStorage, candle_core::Shape)> {
        use candle_core::CpuStorage;
        let values = self.0.oracle()?;
        let (shape, dtype) = self.0.result();
        let storage = match dtype {
            DType::F64 => CpuStorage::F64(values),
            _ => CpuStorage::F32(values.into_iter().map(|value| value as f32).collect()),
        };
        Ok((storage, shape))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        on: &candle_core::CudaStorage,
        _: &Layout,
    ) -> Result<(candle_core::CudaStorage, candle_core::Shape)> {
        Ok((self.0.launch(on)?, self.0.result().0))
    }

    #[cfg(shim)]
    fn cpu_fwd(
        &self,
        on: &candle_core::CpuStorage,
        _: &Layout,
    ) -> Result<(candle_core::CpuStorage, candle_core::Shape)> {
        Ok((self.0.launch(on)?, self.0.result().0))
    }
}

/// The elements of a tensor, as `f64`.
pub(crate) fn read(tensor: &Tensor) -> Result<Vec<f64>> {
    tensor.to_dtype(DType::F64)?.flatten_all()?.to_vec1()
}

static N_LAUNCHES: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);

/// Counts a launch of a kernel, or a product.
fn count_launch() {
    N_LAUNCHES.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
}

/// How many kernels the operations of this crate have launched in this process, products among them; those of the
/// tensor library's own operations are not counted. Always 0 on the CPU.
pub fn n_launches() -> u64 {
    N_LAUNCHES.load(std::sync::atomic::Ordering::Relaxed)
}

/// The GPU's side of a custom op: its `cuda_fwd`; in the crate `kernels-shim` its `cpu_fwd`, in whose place the
/// CPU's stands elsewhere. The arguments become [`In`]s; the body gives storage and shape.
macro_rules! on_gpu {
    ($self:ident, $x:ident => $body:expr) => {
        $crate::gpu::on_gpu!(@fwd $self, [$x: s0 l0] => $body);
    };
    ($self:ident, $x:ident, $y:ident => $body:expr) => {
        $crate::gpu::on_gpu!(@fwd $self, [$x: s0 l0, $y: s1 l1] => $body);
    };
    ($self:ident, $x:ident, $y:ident, $z:ident => $body:expr) => {
        $crate::gpu::on_gpu!(@fwd $self, [$x: s0 l0, $y: s1 l1, $z: s2 l2] => $body);
    };
    (@fwd $self:ident, [$($x:ident: $storage:ident $layout:ident),+] => $body:expr) => {
        #[cfg(feature = "cuda")]
        fn cuda_fwd(
            &$self,
            $($storage: &candle_core::CudaStorage, $layout: &Layout),+
        ) -> Result<(candle_core::CudaStorage, candle_core::Shape)> {
            $(let $x = $crate::gpu::In { storage: $storage, layout: $layout };)+
            $body
        }

        #[cfg(shim)]
        fn cpu_fwd(
            &$self,
            $($storage: &CpuStorage, $layout: &Layout),+
        ) -> Result<(CpuStorage, candle_core::Shape)> {
            $(let $x = $crate::gpu::In { storage: $storage, layout: $layout };)+
            $body
        }
    };
}
pub(crate) use on_gpu;
