//! The numerical operations of the search space, with their gradients, as candle custom ops.
//!
//! Every operation has a folder of its own: `mod.rs` holds the contract (formula, shapes, errors) and
//! the public function, `naive.rs` the oracle (plain loops that read like the formula), `cpu.rs` the
//! fast path. The public functions check their arguments, make them contiguous and record themselves
//! for `backward`; a gradient is computed only for arguments that lead to a variable.
//!
//! Tensors are `f32` or `f64`, laid out `n c h w`; kernels are `o i u v`. (What grouped cells are made of, [`mix`],
//! [`channel_norm`], [`activated_depthwise`], [`halves`], [`pieces`] and [`pointwise_conv2d::GroupedPointwise`], is laid
//! out `c n h w`, records nothing for `backward`, and on the CPU is its oracle: it is for CUDA.) Work is spread over the
//! *current* rayon pool, so `pool.install(..)` decides how many threads an operation gets. No result
//! depends on that number: each output is computed by one task and every reduction has a fixed order.
//!
//! ```
//! use candle_core::{Device, Result, Tensor, Var};
//! use kernels::Conv2dGeometry;
//!
//! # fn main() -> Result<()> {
//! let x = Tensor::ones((2, 4, 8, 8), candle_core::DType::F32, &Device::Cpu)?;
//! let w = Var::ones((4, 1, 3, 3), candle_core::DType::F32, &Device::Cpu)?;
//! let y = kernels::depthwise_conv2d(&x, &w, Conv2dGeometry { padding: 1, stride: 2, dilation: 1 })?;
//! assert_eq!(y.dims(), [2, 4, 4, 4]);
//! let grads = y.sum_all()?.backward()?;
//! assert_eq!(grads.get(&w).unwrap().dims(), [4, 1, 3, 3]);
//! assert!(grads.get(&x).is_none());
//! # Ok(())
//! # }
//! ```

// In the crate `kernels-shim` the launches take the place of the CPU's paths.
#![cfg_attr(shim, allow(dead_code, unused_imports, unused_macros))]

mod convolution;
mod device;
mod element;
mod error;
mod gemm;
mod geometry;
#[cfg_attr(
    not(any(feature = "cuda", shim)),
    expect(unused_macros, unused_imports, dead_code)
)]
mod gpu;
mod parallel;
mod precision;
mod product;
mod runs;
mod transfer;

pub mod activated_depthwise;
pub mod avg_pool2d;
pub mod batch_norm;
pub mod channel_norm;
pub mod conv2d;
pub mod depthwise_conv2d;
pub mod halves;
pub mod image;
pub mod max_pool2d;
pub mod mix;
pub mod pieces;
pub mod planes;
pub mod pointwise_conv2d;
pub mod relu;
pub mod scale;
pub mod simd;
pub mod weighted_add;

pub use avg_pool2d::avg_pool2d;
pub use batch_norm::{
    BatchStatistics, DeviceStatistics, batch_norm_eval, batch_norm_train, batch_norm_train_share,
};
pub use conv2d::conv2d;
pub use depthwise_conv2d::depthwise_conv2d;
pub use device::cuda_device;
pub use element::Element;
pub use error::Error;
pub use geometry::{Conv2dGeometry, Pool2dGeometry, Window};
pub use gpu::n_launches;
pub use max_pool2d::max_pool2d;
pub use pointwise_conv2d::{pointwise_conv2d, pointwise_conv2d_in};
pub use precision::Precision;
pub use relu::relu;
pub use scale::scale;
pub use transfer::{Readback, Upload, Uploads, one_ahead};
pub use weighted_add::weighted_add;
