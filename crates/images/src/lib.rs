//! Image data sets to batches: readers, splits, augmentation.
//!
//! [`load`] reads a split of a data set in any of four layouts, told apart by the names of the files:
//!
//! | layout | training split | test split |
//! |---|---|---|
//! | Hugging Face Parquet | `train-00000-of-000NN.parquet` | `test-…`, `validation-…`, `valid-…` or `val-…` |
//! | CIFAR-10, CIFAR-100 binary | `data_batch_{1..5}.bin`, `train.bin` | `test_batch.bin`, `test.bin` |
//! | IDX (MNIST family), plain or gzip | `train-images-idx3-ubyte`, `train-labels-idx1-ubyte` | `t10k-…` |
//! | class folders of PNG and JPEG | `train/CLASS/*.png` | `test/…`, `validation/…`, `valid/…` or `val/…` |
//!
//! [`stratified_split`] and [`epoch_order`] say which image comes when, and [`batch`] makes batches. All randomness comes from
//! the `ChaCha8Rng` that the caller hands in, and no result depends on the number of threads.

mod batch;
mod color;
mod decode;
mod error;
mod prefetch;
mod read;
mod resample;
mod set;
mod split;

pub use batch::{Augmentation, Batch, batch, batch_part};
pub use error::{Error, ImageFormat, Place, Spot};
pub use prefetch::prefetched;
pub use read::{LoadOptions, Split, files, labels, load};
pub use set::{ImageSet, Normalization};
pub use split::{epoch_order, stratified_split};
