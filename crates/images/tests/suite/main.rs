//! Data sets of every layout, written to temporary folders and read back; broken ones; batches.

mod batches;
mod broken;
mod fixtures;
mod layouts;
mod shipped;
mod splits;
