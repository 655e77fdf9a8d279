//! The way from the number of a CUDA device to a [`Device`].

use candle_core::{Device, Result};

/// The CUDA device of an index, with a stream of its own, on which all work is done in order.
///
/// Memory that is freed stays with the process: later steps take what earlier ones gave back.
///
/// # Errors
/// If this was built without the feature `cuda`, if a library of CUDA is missing, or if the device does not
/// start. (Whether driver and device are there, `measure::gpu` tells beforehand.)
pub fn cuda_device(index: usize) -> Result<Device> {
    #[cfg(not(feature = "cuda"))]
    candle_core::bail!(
        "no device cuda:{index}: this program was built without CUDA (the feature `cuda`)"
    );
    #[cfg(feature = "cuda")]
    {
        libraries()?;
        let device = Device::new_cuda_with_stream(index)?;
        // SAFETY: one stream does all work, in order. Events that make streams wait for each other would cost two
        // calls for each tensor, and no launch that waits for an earlier event can be captured in a graph.
        unsafe { device.as_cuda_device()?.disable_event_tracking() };
        keep_memory(device.as_cuda_device()?)?;
        Ok(device)
    }
}

/// An error that names the libraries of CUDA that cannot be loaded. Where they are linked, the program would not
/// have started without them.
#[cfg(feature = "cuda")]
fn libraries() -> Result<()> {
    #[cfg(feature = "dynamic-loading")]
    {
        // SAFETY: loading a library of CUDA runs nothing of ours.
        let found = unsafe {
            [
                (
                    "the driver, libcuda",
                    cudarc::driver::sys::is_culib_present(),
                ),
                ("libnvrtc", cudarc::nvrtc::sys::is_culib_present()),
                ("libcublas", cudarc::cublas::sys::is_culib_present()),
                ("libcurand", cudarc::curand::sys::is_culib_present()),
            ]
        };
        let missing: Vec<&str> = found
            .into_iter()
            .filter(|(_, is_present)| !is_present)
            .map(|(name, _)| name)
            .collect();
        if !missing.is_empty() {
            candle_core::bail!(
                "the loader does not find {} (install the CUDA toolkit, or put the folder of its libraries \
                 on LD_LIBRARY_PATH)",
                missing.join(", ")
            );
        }
    }
    Ok(())
}

#[cfg(feature = "cuda")]
fn keep_memory(device: &candle_core::CudaDevice) -> Result<()> {
    use candle_core::cuda_backend::WrapErr;
    use cudarc::driver::sys;

    let stream = device.cuda_stream();
    let context = stream.context();
    context.bind_to_thread().w()?;
    let mut pool = std::ptr::null_mut();
    let mut threshold = u64::MAX;
    // SAFETY: the context is bound, the pointers point to live values, and the attribute is a 64-bit number.
    unsafe {
        let handle = cudarc::driver::result::device::get(context.ordinal() as i32).w()?;
        sys::cuDeviceGetDefaultMemPool(&mut pool, handle)
            .result()
            .w()?;
        sys::cuMemPoolSetAttribute(
            pool,
            sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD,
            std::ptr::from_mut(&mut threshold).cast(),
        )
        .result()
        .w()
    }
}

#[cfg(all(test, not(feature = "cuda")))]
mod tests {
    #[test]
    fn a_build_without_cuda_says_so() {
        let error = super::cuda_device(1).unwrap_err().to_string();
        assert!(
            error.contains("cuda:1") && error.contains("feature"),
            "{error}"
        );
    }
}
