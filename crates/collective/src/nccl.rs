//! Sums between CUDA devices, one to a rank, through NCCL.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use candle_core::backend::BackendStorage;
use candle_core::cuda_backend::{CudaDevice, CudaStorageSlice};
use candle_core::{CpuStorage, CudaStorage, CustomOp1, Layout, Result, Shape, Tensor};
use cudarc::nccl::{Comm, Id, ReduceOp, sys};

use crate::{Collective, Error};

/// Ranks whose sums run on their devices' streams; bytes take the way of other ranks, which also tells the ranks
/// who NCCL's are.
pub struct Nccl {
    ranks: Arc<dyn Collective>,
    comm: Arc<Mutex<Channel>>,
}

/// NCCL's communicator.
struct Channel(Comm);

// SAFETY: NCCL's communicators may be used from any thread, one call at a time, which the lock around it sees to; the
// stream orders what is on the device.
unsafe impl Send for Channel {}

impl fmt::Debug for Nccl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NCCL over {:?}", self.ranks)
    }
}

impl Nccl {
    /// Joins the devices of all ranks.
    ///
    /// # Errors
    /// If NCCL's library is not there, or does not start.
    pub fn new(
        ranks: Arc<dyn Collective>,
        device: &CudaDevice,
    ) -> std::result::Result<Self, Error> {
        let failed = |reason: String| Error::Device {
            device: "CUDA".to_owned(),
            reason,
        };
        // SAFETY: looks for the library, and does nothing else.
        #[cfg(feature = "dynamic-loading")]
        if !unsafe { sys::is_culib_present() } {
            return Err(failed(
                "NCCL's library (libnccl.so.2) does not load".to_owned(),
            ));
        }
        // Rank 0's identity is everyone's.
        let own: Vec<u8> = if ranks.rank() == 0 {
            let id = Id::new().map_err(|error| failed(format!("NCCL answers {error:?}")))?;
            id.internal().iter().map(|&byte| byte as u8).collect()
        } else {
            Vec::new()
        };
        let first = ranks.gather(&own)?.swap_remove(0);
        let id = <[u8; 128]>::try_from(first)
            .map_err(|bytes| failed(format!("an identity of {} bytes", bytes.len())))?;
        let id = Id::uninit(id.map(|byte| byte as std::ffi::c_char));
        let comm = Comm::from_rank(device.cuda_stream(), ranks.rank(), ranks.n_ranks(), id)
            .map_err(|error| failed(format!("NCCL answers {error:?}")))?;
        Ok(Self {
            ranks,
            comm: Arc::new(Mutex::new(Channel(comm))),
        })
    }
}

impl Collective for Nccl {
    fn rank(&self) -> usize {
        self.ranks.rank()
    }

    fn n_ranks(&self) -> usize {
        self.ranks.n_ranks()
    }

    fn gather(&self, own: &[u8]) -> std::result::Result<Vec<Vec<u8>>, Error> {
        self.ranks.gather(own)
    }

    fn sum(&self, x: &Tensor) -> Result<Tensor> {
        x.contiguous()?
            .apply_op1_no_bwd(&AllReduce(Arc::clone(&self.comm)))
    }
}

struct AllReduce(Arc<Mutex<Channel>>);

impl CustomOp1 for AllReduce {
    fn name(&self) -> &'static str {
        "all-reduce"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        candle_core::bail!("NCCL sums on CUDA devices alone")
    }

    fn cuda_fwd(&self, x: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        let Some((start, end)) = layout.contiguous_offsets() else {
            candle_core::bail!("all-reduce: tensors must be contiguous");
        };
        let device = BackendStorage::device(x);
        macro_rules! reduce {
            ($float:ty, $x:expr) => {{
                // SAFETY: NCCL writes all of it.
                let mut sum = unsafe { device.alloc::<$float>(end - start)? };
                let failed = |error| candle_core::Error::msg(format!("NCCL answers {error:?}"));
                let channel = self.0.lock().unwrap_or_else(PoisonError::into_inner);
                channel
                    .0
                    .all_reduce(&$x.slice(start..end), &mut sum, &ReduceOp::Sum)
                    .map_err(failed)?;
                CudaStorage::wrap_cuda_slice(sum, device.clone())
            }};
        }
        let sum = match &x.slice {
            CudaStorageSlice::F32(x) => reduce!(f32, x),
            CudaStorageSlice::F64(x) => reduce!(f64, x),
            _ => candle_core::bail!("ranks sum f32 and f64"),
        };
        Ok((sum, layout.shape().clone()))
    }
}
