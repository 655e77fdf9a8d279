//! Grouped cells on the first CUDA device. It takes one: `cargo xtask gpu-check` runs it.

mod networks;

networks::on_device!(nn::cuda_device(0)?, false);
