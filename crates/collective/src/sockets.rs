//! Ranks that exchange bytes over TCP. Rank 0 stands in the middle: it takes from all and sends to all.
//!
//! A message is its length (u64, little endian) and its bytes. Nobody waits for a clock: a rank that ends closes
//! its connection, and the others learn it at the next exchange.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::{Collective, Error};

/// Where rank 0 waits for the others.
#[derive(Debug)]
pub struct Rendezvous {
    listener: TcpListener,
    at: String,
}

impl Rendezvous {
    /// Opens the place; port 0 is any free one.
    ///
    /// # Errors
    /// If the address is not of this machine, or the port is taken.
    pub fn open(at: &str) -> Result<Self, Error> {
        let failed = |error: io::Error| Error::Rendezvous {
            at: at.to_owned(),
            reason: error.to_string(),
        };
        let listener = TcpListener::bind(at).map_err(failed)?;
        Ok(Self {
            at: at.to_owned(),
            listener,
        })
    }

    /// Its address, with the port.
    ///
    /// # Errors
    /// If the system does not tell.
    pub fn address(&self) -> Result<SocketAddr, Error> {
        self.listener
            .local_addr()
            .map_err(|error| self.failed(&error))
    }

    fn failed(&self, error: &io::Error) -> Error {
        Error::Rendezvous {
            at: self.at.clone(),
            reason: error.to_string(),
        }
    }

    /// Rank 0 of `n_ranks`, once all others have come. `purpose` is the same text on all ranks, such as the key
    /// of what they make. `watch` is asked again and again meanwhile, and its error ends the waiting.
    ///
    /// # Errors
    /// If a rank comes with another purpose or number, or as `watch`.
    pub fn wait(
        self,
        n_ranks: usize,
        purpose: &str,
        mut watch: impl FnMut() -> Result<(), Error>,
    ) -> Result<Sockets, Error> {
        let failed = |error: io::Error| self.failed(&error);
        self.listener.set_nonblocking(true).map_err(failed)?;
        let mut streams: Vec<Option<TcpStream>> = (1..n_ranks).map(|_| None).collect();
        while streams.iter().any(Option::is_none) {
            let mut stream = match self.listener.accept() {
                Ok((stream, _)) => stream,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    watch()?;
                    std::thread::sleep(std::time::Duration::from_millis(2));
                    continue;
                }
                Err(error) => return Err(self.failed(&error)),
            };
            stream.set_nonblocking(false).map_err(failed)?;
            stream.set_nodelay(true).map_err(failed)?;
            // Whoever is no rank is not heard.
            let Ok(hello) =
                read(&mut stream).map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            else {
                continue;
            };
            let Some((rank, purpose_of)) = hello
                .strip_prefix(HELLO)
                .and_then(|rest| rest.split_once(' '))
                .and_then(|(rank, purpose)| Some((rank.parse::<usize>().ok()?, purpose)))
            else {
                continue;
            };
            let stranger = |what: String| Err(Error::Stranger { rank, what });
            if purpose_of != purpose {
                return stranger(format!("makes {purpose_of}, rank 0 makes {purpose}"));
            }
            match streams.get_mut(rank.wrapping_sub(1)) {
                None => return stranger(format!("is none of {n_ranks} ranks")),
                Some(Some(_)) => return stranger("came twice".to_owned()),
                Some(place) => *place = Some(stream),
            }
        }
        Ok(Sockets {
            rank: 0,
            n_ranks,
            streams: Mutex::new(streams.into_iter().flatten().collect()),
        })
    }
}

const HELLO: &str = "rank ";

/// Ranks connected by TCP.
#[derive(Debug)]
pub struct Sockets {
    rank: usize,
    n_ranks: usize,
    /// Of rank 0: to every other rank. Of another: to rank 0.
    streams: Mutex<Vec<TcpStream>>,
}

impl Sockets {
    /// Joins rank 0 as `rank` of `n_ranks`.
    ///
    /// # Errors
    /// If rank 0 is not there.
    pub fn join(at: &str, rank: usize, n_ranks: usize, purpose: &str) -> Result<Self, Error> {
        let connect = || {
            let mut stream = TcpStream::connect(at)?;
            stream.set_nodelay(true)?;
            write(&mut stream, format!("{HELLO}{rank} {purpose}").as_bytes())?;
            Ok(stream)
        };
        let stream = connect().map_err(|error: io::Error| Error::Rendezvous {
            at: at.to_owned(),
            reason: error.to_string(),
        })?;
        Ok(Self {
            rank,
            n_ranks,
            streams: Mutex::new(vec![stream]),
        })
    }

    fn streams(&self) -> MutexGuard<'_, Vec<TcpStream>> {
        self.streams.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Collective for Sockets {
    fn rank(&self) -> usize {
        self.rank
    }

    fn n_ranks(&self) -> usize {
        self.n_ranks
    }

    fn gather(&self, own: &[u8]) -> Result<Vec<Vec<u8>>, Error> {
        let lost = |rank: usize| {
            move |error: io::Error| Error::Lost {
                rank,
                reason: error.to_string(),
            }
        };
        let mut streams = self.streams();
        if self.rank > 0 {
            let to_first = &mut streams[0];
            write(to_first, own).map_err(lost(0))?;
            return (0..self.n_ranks)
                .map(|_| read(to_first).map_err(lost(0)))
                .collect();
        }
        let mut all = vec![own.to_vec()];
        for (index, stream) in streams.iter_mut().enumerate() {
            all.push(read(stream).map_err(lost(index + 1))?);
        }
        for (index, stream) in streams.iter_mut().enumerate() {
            for part in &all {
                write(stream, part).map_err(lost(index + 1))?;
            }
        }
        Ok(all)
    }
}

fn write(stream: &mut TcpStream, bytes: &[u8]) -> io::Result<()> {
    let mut message = Vec::with_capacity(8 + bytes.len());
    message.extend((bytes.len() as u64).to_le_bytes());
    message.extend(bytes);
    stream.write_all(&message)
}

fn read(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut len = [0; 8];
    stream.read_exact(&mut len)?;
    let len = u64::from_le_bytes(len);
    let mut bytes = Vec::new();
    // Not allocated at once: a stranger's length may be anything.
    stream.take(len).read_to_end(&mut bytes)?;
    if bytes.len() as u64 != len {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(bytes)
}
