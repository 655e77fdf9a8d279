//! Whole networks whose cells run on the CUDA kernels, launch by launch as on CUDA.

extern crate nn_shim as nn;

#[path = "../../nn/tests/networks/mod.rs"]
mod networks;

networks::on_device!(candle_core::Device::Cpu, true);
