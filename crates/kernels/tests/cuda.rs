//! The suite on the first CUDA device. It takes one: `cargo xtask gpu-check` runs it.

mod suite;

suite::on_device!(kernels::cuda_device(0)?);
