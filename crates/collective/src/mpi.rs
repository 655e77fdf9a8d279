//! Ranks that `mpirun` starts.

use std::sync::Mutex;

use mpi::Threading;
use mpi::datatype::PartitionMut;
use mpi::topology::SimpleCommunicator;
use mpi::traits::{Communicator, CommunicatorCollectives};

use crate::{Collective, Error};

/// The ranks of MPI's world.
pub struct Mpi {
    world: Mutex<World>,
    rank: usize,
    n_ranks: usize,
}

/// MPI, which ends when this does, and its communicator.
struct World {
    communicator: SimpleCommunicator,
    _universe: mpi::environment::Universe,
}

// SAFETY: MPI is initialised for calls from any thread, one at a time, and every call holds the lock.
unsafe impl Send for Mpi {}
// SAFETY: as above.
unsafe impl Sync for Mpi {}

impl std::fmt::Debug for Mpi {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "rank {} of {} of MPI", self.rank, self.n_ranks)
    }
}

impl Mpi {
    /// Starts MPI; once in a process.
    ///
    /// # Errors
    /// If it runs already, or may not be called from several threads.
    pub fn world() -> Result<Self, Error> {
        let failed = |reason: &str| Error::Usage {
            what: format!("MPI does not start: {reason}; start the ranks with mpirun"),
        };
        let (universe, threading) = mpi::initialize_with_threading(Threading::Serialized)
            .ok_or_else(|| failed("it runs already"))?;
        if threading < Threading::Serialized {
            return Err(failed("it allows calls from one thread alone"));
        }
        let communicator = universe.world();
        let (rank, n_ranks) = (communicator.rank() as usize, communicator.size() as usize);
        Ok(Self {
            world: Mutex::new(World {
                communicator,
                _universe: universe,
            }),
            rank,
            n_ranks,
        })
    }
}

impl Collective for Mpi {
    fn rank(&self) -> usize {
        self.rank
    }

    fn n_ranks(&self) -> usize {
        self.n_ranks
    }

    /// A rank that is lost ends all others: that is how MPI's worlds end.
    fn gather(&self, own: &[u8]) -> Result<Vec<Vec<u8>>, Error> {
        let guard = self.world.lock();
        let world = &guard
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .communicator;
        let count = |len: usize| {
            i32::try_from(len).map_err(|_| Error::Lost {
                rank: self.rank,
                reason: format!("MPI takes no message of {len} bytes"),
            })
        };
        let mut lens = vec![0i32; self.n_ranks];
        world.all_gather_into(&count(own.len())?, &mut lens[..]);
        let starts: Vec<i32> = lens
            .iter()
            .scan(0i32, |at, len| {
                let start = *at;
                *at = at.saturating_add(*len);
                Some(start)
            })
            .collect();
        let total: usize = lens.iter().map(|&len| len as usize).sum();
        count(total)?;
        let mut all = vec![0u8; total];
        world.all_gather_varcount_into(
            own,
            &mut PartitionMut::new(&mut all[..], &lens[..], &starts[..]),
        );
        let part = |(&start, &len): (&i32, &i32)| all[start as usize..][..len as usize].to_vec();
        Ok(starts.iter().zip(&lens).map(part).collect())
    }
}
