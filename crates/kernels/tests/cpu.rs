//! The suite on the CPU.

mod suite;

suite::on_device!(candle_core::Device::Cpu);
