//! Several ranks from one command line.

use std::process::{Child, Command};
use std::sync::{Arc, Mutex, PoisonError};

use crate::{Collective, Error, Rendezvous, Sockets};

/// The arguments of a stage that several processes can run together.
#[derive(Clone, Debug, clap::Args)]
pub struct RankArgs {
    /// Processes that train together, each with a part of every batch; on CUDA each with a device of its own, from
    /// the one of --device on
    #[arg(long, value_name = "N", default_value_t = 1,
        value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(1..=1024))]
    pub ranks: usize,
    /// Which of them this is; without it, this is rank 0 and starts the others on this machine
    #[arg(long, value_name = "I", requires = "rendezvous")]
    pub rank: Option<usize>,
    /// Where the ranks meet: rank 0 waits there
    #[arg(long, value_name = "HOST:PORT", requires = "rank")]
    pub rendezvous: Option<String>,
    /// Devices behind that of --device; said to the ranks that rank 0 starts
    #[arg(long, hide = true, default_value_t = 0)]
    device_offset: usize,
    /// The ranks are those that mpirun started
    #[cfg(feature = "mpi")]
    #[arg(long, conflicts_with_all = ["ranks", "rank", "rendezvous"])]
    pub mpi: bool,
}

/// The ranks of this run, and those of them that this process started: they end with it.
#[derive(Debug)]
pub struct Team {
    collective: Arc<dyn Collective>,
    _children: Children,
}

impl Team {
    /// The ranks.
    pub fn collective(&self) -> Arc<dyn Collective> {
        Arc::clone(&self.collective)
    }
}

impl RankArgs {
    /// The ranks as the command line names them; under `--mpi` this starts MPI.
    ///
    /// # Errors
    /// If the arguments contradict each other, or MPI does not start.
    pub fn open(self) -> Result<Party, Error> {
        #[cfg(feature = "mpi")]
        if self.mpi {
            let mpi = crate::Mpi::world()?;
            return Ok(Party {
                n_ranks: mpi.n_ranks(),
                rank: mpi.rank(),
                device_offset: mpi.rank(),
                way: Way::Mpi(Arc::new(mpi)),
            });
        }
        let rank = self.rank.unwrap_or(0);
        if rank >= self.ranks {
            return Err(Error::Usage {
                what: format!(
                    "--rank {rank} is none of --ranks {}: ranks count from 0",
                    self.ranks
                ),
            });
        }
        Ok(Party {
            n_ranks: self.ranks,
            rank,
            device_offset: self.device_offset,
            way: match self.rendezvous {
                Some(at) => Way::At(at),
                None => Way::Start,
            },
        })
    }
}

/// The ranks of a command line, before they meet.
#[derive(Debug)]
pub struct Party {
    n_ranks: usize,
    rank: usize,
    device_offset: usize,
    way: Way,
}

/// How they meet.
#[derive(Debug)]
enum Way {
    /// Rank 0 starts the others.
    Start,
    /// All come to this place.
    At(String),
    /// They have met.
    #[cfg(feature = "mpi")]
    Mpi(Arc<crate::Mpi>),
}

impl Party {
    /// How many there are.
    pub fn n_ranks(&self) -> usize {
        self.n_ranks
    }

    /// Which of them this is.
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// How many devices behind the one of the command line this rank's is.
    pub fn device_offset(&self) -> usize {
        self.device_offset
    }

    /// Brings the ranks together: `None` where there is but one. Without a meeting place, rank 0 starts the
    /// others: its own command once more for each, with a number.
    ///
    /// `purpose` says what is being made, such as a key; ranks that make something else are turned away.
    ///
    /// # Errors
    /// If a rank does not come, or makes something else.
    pub fn meet(&self, purpose: &str) -> Result<Option<Team>, Error> {
        let n_ranks = self.n_ranks;
        if n_ranks == 1 {
            return Ok(None);
        }
        let mut children = Children::default();
        let collective: Arc<dyn Collective> = match &self.way {
            Way::At(at) if self.rank == 0 => {
                Arc::new(Rendezvous::open(at)?.wait(n_ranks, purpose, || Ok(()))?)
            }
            Way::At(at) => Arc::new(Sockets::join(at, self.rank, n_ranks, purpose)?),
            Way::Start => {
                let rendezvous = Rendezvous::open("127.0.0.1:0")?;
                let at = rendezvous.address()?.to_string();
                for rank in 1..n_ranks {
                    children.start(rank, &at)?;
                }
                Arc::new(rendezvous.wait(n_ranks, purpose, || children.look())?)
            }
            #[cfg(feature = "mpi")]
            Way::Mpi(mpi) => {
                crate::agree(&**mpi, "what is to be made", purpose)?;
                Arc::clone(mpi) as _
            }
        };
        Ok(Some(Team {
            collective,
            _children: children,
        }))
    }
}

/// Ranks that this process started.
#[derive(Debug, Default)]
struct Children(Mutex<Vec<(usize, Child)>>);

impl Children {
    fn start(&mut self, rank: usize, at: &str) -> Result<(), Error> {
        let failed = |error: std::io::Error| Error::Lost {
            rank,
            reason: format!("it does not start ({error})"),
        };
        let child = Command::new(std::env::current_exe().map_err(failed)?)
            .args(std::env::args_os().skip(1))
            .args(["--rank", &rank.to_string(), "--rendezvous", at])
            .args(["--device-offset", &rank.to_string()])
            .stdin(std::process::Stdio::null())
            .stdout(std::process::Stdio::null())
            .spawn()
            .map_err(failed)?;
        self.0
            .get_mut()
            .unwrap_or_else(PoisonError::into_inner)
            .push((rank, child));
        Ok(())
    }

    /// An error if one of them has ended.
    fn look(&self) -> Result<(), Error> {
        for (rank, child) in self
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .iter_mut()
        {
            if let Ok(Some(status)) = child.try_wait() {
                return Err(Error::Lost {
                    rank: *rank,
                    reason: format!("it ended before it came, {status}"),
                });
            }
        }
        Ok(())
    }
}

impl Drop for Children {
    /// Waits for them: their connections are closed by now, so they end.
    fn drop(&mut self) {
        for (_, child) in self.0.get_mut().unwrap_or_else(PoisonError::into_inner) {
            let _ = child.wait();
        }
    }
}
