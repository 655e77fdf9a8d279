//! The files between the stages, tested through the public interface.

mod checkpoint;
mod config;
mod damage;
mod execute;
mod formats;
mod genotype;
mod round_trip;
mod samples;
mod store;
