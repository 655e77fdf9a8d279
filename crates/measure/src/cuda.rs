//! Timing on a CUDA stream.

use std::sync::Arc;

use cudarc::driver::sys::{
    CUdevice_attribute, CUevent_flags, CUgraphInstantiate_flags, CUstreamCaptureMode,
};
use cudarc::driver::{CudaSlice, CudaStream, DriverError};

use crate::timing::{Protocol, Timing};

/// Times work that a closure puts on a stream: the warm-up calls, then the repeats, each between two events on
/// that stream. Nothing waits for the device before the last repeat is on its way, so a repeat shows what a
/// deployment sees that launches operation by operation: the work, and the gaps where the launches are late.
///
/// # Errors
/// The first error of the closure or of the driver.
pub fn time<E: From<DriverError>>(
    stream: &Arc<CudaStream>,
    protocol: &Protocol,
    mut run: impl FnMut() -> Result<(), E>,
) -> Result<Timing, E> {
    // Without this flag an event keeps its time.
    let record = || stream.record_event(Some(CUevent_flags::CU_EVENT_DEFAULT));
    for _ in 0..protocol.n_warmup {
        run()?;
    }
    let mut flush = protocol.flush_l2.then(|| Flush::new(stream)).transpose()?;
    stream.synchronize()?;
    let mut events = Vec::new();
    for _ in 0..protocol.n_repeats.max(1) {
        if let Some(flush) = &mut flush {
            flush.run()?;
        }
        let before = record()?;
        run()?;
        events.push((before, record()?));
    }
    stream.synchronize()?;
    let nanos = events
        .iter()
        .map(|(before, after)| Ok((f64::from(before.elapsed_ms(after)?) * 1e6).round() as u64))
        .collect::<Result<_, DriverError>>()?;
    Ok(Timing::from_nanos(nanos))
}

/// [`time`], with the launches of one call captured in a graph, which then is what is run: what a deployment sees
/// that launches whole networks.
///
/// The closure must have run before (whatever it loads or compiles cannot be captured), free what it allocates, copy
/// nothing from or to the host and wait for nothing.
///
/// # Errors
/// As [`time`]; the outer one is why the call could not be captured, behind which the stream is as before.
pub fn time_captured<E: From<DriverError>>(
    stream: &Arc<CudaStream>,
    protocol: &Protocol,
    run: impl FnOnce() -> Result<(), E>,
) -> Result<Result<Timing, E>, E> {
    stream.synchronize()?;
    stream.begin_capture(CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL)?;
    let ran = run();
    // A capture has to be ended, whatever came of it.
    let graph = stream
        .end_capture(CUgraphInstantiate_flags::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH);
    let graph = match (ran, graph) {
        (Ok(()), Ok(Some(graph))) => graph,
        (ran, graph) => {
            // What was freed in a capture that came to nothing has left an error for the next call to find.
            let left = stream.context().check_err();
            ran?;
            graph?;
            left?;
            return Err(DriverError(
                cudarc::driver::sys::cudaError_enum::CUDA_ERROR_STREAM_CAPTURE_INVALIDATED,
            )
            .into());
        }
    };
    Ok(time(stream, protocol, || Ok(graph.launch()?)))
}

/// Overwrites the L2 cache.
struct Flush<'a> {
    stream: &'a Arc<CudaStream>,
    buffer: CudaSlice<u8>,
}

impl<'a> Flush<'a> {
    fn new(stream: &'a Arc<CudaStream>) -> Result<Self, DriverError> {
        let n_bytes = stream
            .context()
            .attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE)?;
        // Twice its size, because lines need not be replaced in order.
        let buffer = stream.alloc_zeros(2 * usize::try_from(n_bytes).unwrap_or(0).max(1))?;
        Ok(Self { stream, buffer })
    }

    fn run(&mut self) -> Result<(), DriverError> {
        self.stream.memset_zeros(&mut self.buffer)
    }
}
