//! Cells as they run on CUDA, on the CPU.

mod networks;

networks::on_device!(candle_core::Device::Cpu, false);
