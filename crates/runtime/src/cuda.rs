//! Inferences on CUDA: timed launch by launch and as one graph, and what they take up.

use std::time::{Duration, Instant};

use candle_core::{CudaDevice, Error, Result};
use cudarc::driver::DriverError;
use measure::energy::joules_above_rest;
use measure::watch::{Watch, undisturbed};
use measure::{Protocol, Timing};

use crate::{Executor, Prepared, Timed};

/// How often a timing is taken that clocks under throttling disturbed.
const N_TRIES: usize = 5;

/// How long energy is counted: the counter moves some ten times a second.
const ENERGY_WINDOW: Duration = Duration::from_secs(2);

pub(crate) fn time(
    prepared: &Prepared,
    device: &CudaDevice,
    executor: &Executor,
    protocol: &Protocol,
) -> Result<Timed> {
    let stream = device.cuda_stream();
    let watch = watch(device)?;
    let look = || watch.state().map_err(Error::msg);
    let sample = || {
        let run = || prepared.run().map(drop).map_err(Failure);
        executor
            .install(|| measure::cuda::time(&stream, protocol, run))
            .map_err(|Failure(error)| error)
    };
    let (timing, state) = undisturbed(N_TRIES, look, sample)?.map_err(Error::msg)?;
    let gpu = Some(state);
    Ok(Timed { timing, gpu })
}

pub(crate) fn time_captured(
    prepared: &Prepared,
    device: &CudaDevice,
    executor: &Executor,
    protocol: &Protocol,
) -> std::result::Result<Result<Timing>, String> {
    let stream = device.cuda_stream();
    let run = || prepared.run().map(drop).map_err(Failure);
    let timed = executor.install(|| {
        // candle uploads sizes and strides in front of some launches. A capture cannot; but what has been uploaded once
        // under this guard, on this thread, is not uploaded again.
        let _uploads = device.enable_cuda_graph_htod_cache();
        run()?;
        measure::cuda::time_captured(&stream, protocol, run)
    });
    match timed {
        Ok(timed) => Ok(timed.map_err(|Failure(error)| error)),
        Err(Failure(error)) => Err(error.to_string()),
    }
}

pub(crate) fn rest_watts(device: &CudaDevice) -> Result<f64> {
    let watch = watch(device)?;
    device.cuda_stream().synchronize().map_err(Error::wrap)?;
    let joules = || watch.joules().map_err(Error::msg);
    let (started, before) = (Instant::now(), joules()?);
    std::thread::sleep(ENERGY_WINDOW);
    Ok((joules()? - before) / started.elapsed().as_secs_f64())
}

pub(crate) fn joules(
    prepared: &Prepared,
    device: &CudaDevice,
    executor: &Executor,
    rest_watts: f64,
) -> Result<f64> {
    let stream = device.cuda_stream();
    let watch = watch(device)?;
    let started = Instant::now();
    let settle = || {
        stream.synchronize().map_err(Error::wrap)?;
        Ok(started.elapsed().as_secs_f64())
    };
    let counter = || watch.joules().map_err(Error::msg);
    let work = || prepared.run().map(drop);
    executor.install(|| joules_above_rest(rest_watts, ENERGY_WINDOW, settle, counter, work))
}

fn watch(device: &CudaDevice) -> Result<Watch> {
    Watch::open(device.cuda_stream().context().ordinal()).map_err(Error::msg)
}

/// The driver's errors as candle carries them.
struct Failure(Error);

impl From<DriverError> for Failure {
    fn from(error: DriverError) -> Self {
        Self(Error::wrap(error))
    }
}
