//! Sums over the processes that train one network together: the *ranks*.
//!
//! Each rank holds the whole network and a part of every batch. What depends on the whole batch is summed over the
//! ranks: gradients, the statistics of batch normalisations, the sums of their gradients, and what a trace tells.
//! Sums are added in the order of the ranks, and every rank gets the same bytes, so that all ranks take the same
//! steps; [`agree`] makes sure that they did.
//!
//! | module | what |
//! |---|---|
//! | `sockets` | ranks that exchange bytes over TCP: any machine, no library |
//! | `mpi` | ranks that `mpirun` starts (feature `mpi`) |
//! | `nccl` | sums between CUDA devices (feature `nccl`) |
//! | `ranks` | the command line: `--ranks`, and how the other ranks are started |

#[cfg(feature = "mpi")]
mod mpi;
#[cfg(feature = "nccl")]
mod nccl;
mod ranks;
mod share;
mod sockets;

use std::fmt::Debug;

use candle_core::{DType, Device, Tensor};

#[cfg(feature = "mpi")]
pub use crate::mpi::Mpi;
#[cfg(feature = "nccl")]
pub use crate::nccl::Nccl;
pub use crate::ranks::{Party, RankArgs, Team};
pub use crate::share::Share;
pub use crate::sockets::{Rendezvous, Sockets};

/// What ranks can do together. Every rank makes the same calls in the same order.
pub trait Collective: Debug + Send + Sync {
    /// The number of this rank, from 0.
    fn rank(&self) -> usize;

    /// How many ranks there are.
    fn n_ranks(&self) -> usize;

    /// What every rank brought, in the order of the ranks.
    ///
    /// # Errors
    /// If a rank cannot be reached.
    fn gather(&self, own: &[u8]) -> Result<Vec<Vec<u8>>, Error>;

    /// The sum over the ranks of tensors of one shape and type (`f32` or `f64`), on the device of `x`. The same
    /// bytes on every rank.
    ///
    /// # Errors
    /// If a rank cannot be reached, or brought another number of values.
    fn sum(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        macro_rules! sum {
            ($float:ty) => {{
                let values: Vec<$float> = x.flatten_all()?.to_vec1()?;
                let own: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
                let all = self.gather(&own)?;
                let mut sum = vec![0.0; values.len()];
                for (rank, bytes) in all.iter().enumerate() {
                    let (values, rest) = bytes.as_chunks();
                    if values.len() != sum.len() || !rest.is_empty() {
                        let (own, other) = (own.len(), bytes.len());
                        return Err(Error::OutOfStep { rank, own, other }.into());
                    }
                    for (sum, bytes) in sum.iter_mut().zip(values) {
                        *sum += <$float>::from_le_bytes(*bytes);
                    }
                }
                Tensor::from_vec(sum, x.shape(), x.device())
            }};
        }
        match x.dtype() {
            DType::F32 => sum!(f32),
            DType::F64 => sum!(f64),
            other => candle_core::bail!("ranks sum f32 and f64, not {other:?}"),
        }
    }
}

/// Makes sure that all ranks came to the same text, such as a genotype.
///
/// # Errors
/// [`Error::Disagreement`] names the first rank that came to another than rank 0; on every rank.
pub fn agree(collective: &dyn Collective, what: &'static str, own: &str) -> Result<(), Error> {
    let all = collective.gather(own.as_bytes())?;
    let text = |rank: usize| String::from_utf8_lossy(&all[rank]).into_owned();
    match (1..all.len()).find(|&rank| all[rank] != all[0]) {
        None => Ok(()),
        Some(rank) => Err(Error::Disagreement {
            what,
            rank,
            first: text(0),
            other: text(rank),
        }),
    }
}

/// Sums tensors that lie on one device in one go, so that many small ones cost one exchange; returns them in their order.
///
/// # Errors
/// As [`Collective::sum`].
pub fn sum_all(
    collective: &dyn Collective,
    tensors: &[Tensor],
) -> candle_core::Result<Vec<Tensor>> {
    let Some(first) = tensors.first() else {
        return Ok(Vec::new());
    };
    let flat: Vec<Tensor> = tensors
        .iter()
        .map(Tensor::flatten_all)
        .collect::<Result<_, _>>()?;
    if let Some(odd) = tensors.iter().find(|t| t.dtype() != first.dtype()) {
        candle_core::bail!("one sum over {:?} and {:?}", first.dtype(), odd.dtype());
    }
    let sum = collective.sum(&Tensor::cat(&flat, 0)?)?;
    let mut at = 0;
    tensors
        .iter()
        .map(|tensor| {
            let n = tensor.elem_count();
            let part = sum.narrow(0, at, n)?.reshape(tensor.shape());
            at += n;
            part
        })
        .collect()
}

/// Why ranks do not come together.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The command line does not say who and where.
    #[error("{what}")]
    Usage {
        /// What is wrong, and what to give.
        what: String,
    },
    /// The meeting place cannot be opened or reached.
    #[error(
        "ranks cannot meet at {at}: {reason}; is rank 0 running there, and the port free and open?"
    )]
    Rendezvous {
        /// Host and port.
        at: String,
        /// The system's answer.
        reason: String,
    },
    /// Another rank was started with another command.
    #[error("rank {rank} {what}: start all ranks with the same program, config and inputs")]
    Stranger {
        /// Its number.
        rank: usize,
        /// What is different.
        what: String,
    },
    /// A rank ended.
    #[error("rank {rank} does not answer: {reason}; its own message says why")]
    Lost {
        /// Its number.
        rank: usize,
        /// The system's answer.
        reason: String,
    },
    /// Ranks do not do the same.
    #[error(
        "rank {rank} is at another step: it brought {other} bytes where this rank brought {own}; this is a bug"
    )]
    OutOfStep {
        /// Its number.
        rank: usize,
        /// Bytes of this rank.
        own: usize,
        /// Bytes of that rank.
        other: usize,
    },
    /// Ranks came to different results.
    #[error(
        "the ranks disagree on {what}: rank 0 has {first}, rank {rank} has {other}; \
         their machines compute differently: use the same program on the same kind of processor or GPU"
    )]
    Disagreement {
        /// On what.
        what: &'static str,
        /// The first rank that has another.
        rank: usize,
        /// What rank 0 has.
        first: String,
        /// What that rank has.
        other: String,
    },
    /// Ranks are to meet on this device, and this program cannot.
    #[error("several ranks cannot compute on {device}: {reason}")]
    Device {
        /// The device.
        device: String,
        /// What is missing.
        reason: String,
    },
}

impl Error {
    /// Whether the command line is at fault, the device, or what happened.
    pub fn class(&self) -> Class {
        match self {
            Self::Usage { .. } | Self::Rendezvous { .. } | Self::Stranger { .. } => Class::Usage,
            Self::Device { .. } => Class::Device,
            Self::Disagreement { .. } => Class::Numbers,
            Self::Lost { .. } => Class::Input,
            Self::OutOfStep { .. } => Class::Bug,
        }
    }
}

/// What an [`Error`] is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// The command line.
    Usage,
    /// Something that had to be there is not.
    Input,
    /// The device.
    Device,
    /// Numbers.
    Numbers,
    /// This program.
    Bug,
}

impl Error {
    /// The error of this crate that a tensor library's error came from, if one did.
    pub fn of(error: &candle_core::Error) -> Option<&Self> {
        match error {
            candle_core::Error::Cuda(inner) => inner.downcast_ref(),
            candle_core::Error::WithBacktrace { inner, .. }
            | candle_core::Error::Context { inner, .. }
            | candle_core::Error::WithPath { inner, .. } => Self::of(inner),
            _ => None,
        }
    }
}

impl From<Error> for candle_core::Error {
    fn from(error: Error) -> Self {
        // Of candle's variants the one that keeps a foreign error as it is; the name is of its usual origin.
        Self::Cuda(Box::new(error))
    }
}

/// Sums on the device of the work: where that is CUDA and there are several ranks, through NCCL.
///
/// # Errors
/// If the device is CUDA and this program, or this machine, has no NCCL.
pub fn on_device(
    ranks: std::sync::Arc<dyn Collective>,
    device: &Device,
) -> Result<std::sync::Arc<dyn Collective>, Error> {
    match device {
        Device::Cpu => Ok(ranks),
        #[cfg(feature = "nccl")]
        Device::Cuda(cuda) => Ok(std::sync::Arc::new(Nccl::new(ranks, cuda)?)),
        #[cfg(not(feature = "nccl"))]
        Device::Cuda(_) => Err(Error::Device {
            device: "CUDA".to_owned(),
            reason: "this program was built without NCCL (the feature `nccl`)".to_owned(),
        }),
        Device::Metal(_) => Err(Error::Device {
            device: "Metal".to_owned(),
            reason: "there is no such path".to_owned(),
        }),
    }
}
