//! Times training steps and inferences of whole networks on random images.
//!
//! `cargo xtask bench` starts it; `cargo xtask bench peers` sets its numbers beside PyTorch's.

mod floor;
mod inference;
mod memory;
mod step;

use std::process::ExitCode;

use artifact::{Refusal, StageError};
use clap::{Args, Parser, Subcommand};
use measure::timing::quantile;
use nn::ChannelRatio;

/// Buffers of one step are those of the next, as in the stages.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[derive(Parser)]
#[command(
    name = "bench",
    version,
    about = "Times training steps and inferences of whole networks"
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Steps of a search or of a training: one alpha step and one weight step in turn
    Step(step::StepArgs),
    /// What a step takes at best on this machine: its operations at the measured peak, its bytes at the measured
    /// bandwidth
    Floor(floor::FloorArgs),
    /// Inferences of a derived network
    Inference(inference::InferenceArgs),
    /// What a step will keep in memory, counted: fused cells (CPU), grouped ones (CUDA), operation by operation
    Memory(memory::MemoryArgs),
}

/// The size of the network and of its input.
#[derive(Args)]
struct Size {
    /// Channels of the first cell
    #[arg(long, default_value_t = 16)]
    channels: usize,
    /// Cells
    #[arg(long, default_value_t = 8)]
    layers: usize,
    /// Images of one call
    #[arg(long, default_value_t = 64)]
    batch: usize,
    /// Height and width of the images, in pixels
    #[arg(long, default_value_t = 32)]
    image_size: usize,
    /// Threads of everything
    #[arg(long, default_value_t = 1)]
    threads: usize,
}

impl Size {
    /// RGB images, ten classes, CIFAR's stem.
    fn spec(&self) -> anyhow::Result<space::NetworkSpec> {
        let spec = space::NetworkSpec {
            n_layers: self.layers,
            init_channels: self.channels,
            image_size: self.image_size,
            ..space::NetworkSpec::cifar10()
        };
        spec.validate().map_err(usage)?;
        if self.batch == 0 {
            return Err(usage("--batch must be at least 1"));
        }
        Ok(spec)
    }

    /// One channel in `k` through the operations of a supernet.
    fn ratio(&self, k: usize) -> anyhow::Result<ChannelRatio> {
        let ratio = ChannelRatio::new(k).ok_or_else(|| usage("K must be at least 1"))?;
        if self.channels.is_multiple_of(k) {
            return Ok(ratio);
        }
        Err(usage(format!(
            "--channels {} must be a multiple of {k}, the K of the supernet",
            self.channels
        )))
    }
}

/// The command line is wrong.
fn usage(message: impl std::fmt::Display) -> anyhow::Error {
    Refusal::usage(message).into()
}

/// The median of times in seconds; 0 of none.
fn median_secs(secs: &[f64]) -> f64 {
    if secs.is_empty() {
        return 0.0;
    }
    let mut nanos: Vec<u64> = secs.iter().map(|secs| (secs * 1e9) as u64).collect();
    nanos.sort_unstable();
    quantile(&nanos, 0.5) as f64 / 1e9
}

fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Step(args) => step::run(&args),
        Command::Floor(args) => floor::run(&args),
        Command::Inference(args) => inference::run(&args),
        Command::Memory(args) => memory::run(&args),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            let refusal = error.downcast_ref::<Refusal>().map(Refusal::exit_code);
            let of_files = error.downcast_ref::<artifact::Error>();
            let of_files = of_files.map(artifact::Error::exit_code);
            refusal
                .or(of_files)
                .unwrap_or(artifact::ExitCode::Bug)
                .into()
        }
    }
}
