//! Timing on a CUDA stream.

use std::sync::Arc;

use cudarc::driver::sys::CUevent_flags;
use cudarc::driver::{CudaStream, DriverError};

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
    stream.synchronize()?;
    let mut events = Vec::new();
    for _ in 0..protocol.n_repeats.max(1) {
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
