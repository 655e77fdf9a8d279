//! The repository's own commands. `cargo xtask --help` lists them.
//!
//! xtask starts the stage binaries and reads the files they leave; it links none of them.

mod bench;
mod ci;
mod compare;
mod cuda;
mod doctor;
mod evaluate;
mod gpu_check;
mod layers;
mod new_preset;
mod pipeline;
mod plan;
mod preset;
mod publish;
mod stage;
mod summary;
mod sweep;
mod why;

use std::path::PathBuf;
use std::process::ExitCode;

use artifact::StageError as _;
use clap::{Parser, Subcommand};

use crate::preset::PipelineArgs;

/// A command whose output nobody reads any more (`| head`) ends, as others do, instead of panicking.
fn end_with_the_reader() {
    // SAFETY: no other thread runs yet, and the default action is no handler of ours.
    #[cfg(unix)]
    unsafe {
        libc::signal(libc::SIGPIPE, libc::SIG_DFL);
    }
}

#[derive(Parser)]
#[command(name = "cargo xtask", about = "The repository's own commands", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run every stage: profile, predictor, search (twice), evaluate (twice), report; cached stages are skipped
    Pipeline {
        #[command(flatten)]
        args: PipelineArgs,
        /// How often the latency-aware search may run: again where the network, timed before it is trained, misses its
        /// target; the predictor learns from that measurement before
        #[arg(long, value_name = "N", default_value_t = 2)]
        attempts: u32,
        /// Print the result as one JSON object on stdout
        #[arg(long)]
        json: bool,
    },
    /// Train, test, time and export a genotype that is there, by the same recipe as found ones
    Evaluate {
        /// The name of a published genotype, its text, or a file with the text or JSON
        genotype: String,
        #[command(flatten)]
        args: PipelineArgs,
        /// Print the result as one JSON object on stdout
        #[arg(long)]
        json: bool,
    },
    /// Search and evaluate with several seeds: lambda = 0, latency-aware, and random search at the same latency;
    /// differences with 95 % intervals
    Compare {
        #[command(flatten)]
        args: PipelineArgs,
        #[command(flatten)]
        compare: compare::CompareArgs,
    },
    /// Search with several targets or lambdas, and train or only time what is found: a front of networks, and how well
    /// targets are kept
    Sweep {
        #[command(flatten)]
        args: PipelineArgs,
        #[command(flatten)]
        sweep: sweep::SweepArgs,
    },
    /// Show what is cached, what will run, and why
    Plan {
        #[command(flatten)]
        args: PipelineArgs,
    },
    /// Write a preset for your own images: a copy of another one, with their folder, size and classes
    Preset(new_preset::NewPresetArgs),
    /// Run one stage on cached inputs
    Run {
        /// profile, predictor, search, evaluate or report
        stage: String,
        #[command(flatten)]
        args: PipelineArgs,
    },
    /// Say which part of a stage's key differs from what the store holds
    Why {
        /// profile, predictor, search, evaluate or report
        stage: String,
        #[command(flatten)]
        args: PipelineArgs,
    },
    /// Compare the networks with a folder of reference vectors
    Reference {
        /// A folder of .safetensors files as `docs/reference.md` describes them
        dir: PathBuf,
    },
    /// Time training steps and inferences, and set them beside PyTorch and ONNX Runtime
    Bench {
        #[command(subcommand)]
        command: bench::BenchCommand,
    },
    /// What this machine has, what will work, what will not and why
    Doctor,
    /// Lint the CUDA code with a stand-in for nvcc, and compile every kernel with NVRTC: no GPU needed
    Cuda {
        /// Link the stages with CUDA as well, and start each here, where there must be no GPU
        #[arg(long)]
        start: bool,
    },
    /// On a machine with a GPU: the kernel suite, reference vectors, profiles, and steps beside PyTorch's; writes
    /// target/gpu-check/gpu-check.json
    GpuCheck(gpu_check::GpuCheckArgs),
    /// Check that every crate uses only what ARCHITECTURE.md lets it use
    Layers,
    /// Everything that must hold before a change lands: format, layers, clippy, tests, docs
    Ci,
}

fn main() -> ExitCode {
    end_with_the_reader();
    let outcome = match Cli::parse().command {
        Command::Pipeline {
            args,
            attempts,
            json,
        } => pipeline::run(&args, attempts, json),
        Command::Evaluate {
            genotype,
            args,
            json,
        } => evaluate::run(&genotype, &args, json),
        Command::Compare { args, compare } => compare::run(&args, &compare),
        Command::Sweep { args, sweep } => sweep::run(&args, &sweep),
        Command::Plan { args } => plan::run(&args),
        Command::Preset(args) => new_preset::run(&args),
        Command::Run { stage, args } => pipeline::run_stage(&stage, &args),
        Command::Why { stage, args } => why::run(&stage, &args),
        Command::Reference { dir } => ci::reference(&dir),
        Command::Bench { command } => bench::run(&command),
        Command::Doctor => doctor::run(),
        Command::Cuda { start } => cuda::check()
            .and_then(|()| cuda::compile_kernels())
            .and_then(|()| if start { cuda::start() } else { Ok(()) }),
        Command::GpuCheck(args) => gpu_check::run(&args),
        Command::Layers => layers::run(),
        Command::Ci => ci::run(),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // A stage that failed has said why on stderr; its exit code is handed on.
            if let Some(failed) = error.downcast_ref::<stage::Failed>() {
                eprintln!("{failed}");
                return ExitCode::from(failed.code());
            }
            eprintln!("error: {error:#}");
            let refusal = error.downcast_ref::<artifact::Refusal>();
            let refusal = refusal.map(|refusal| refusal.exit_code());
            let of_files = error.downcast_ref::<artifact::Error>();
            let code = refusal.or_else(|| of_files.map(|error| error.exit_code()));
            code.unwrap_or(artifact::ExitCode::Bug).into()
        }
    }
}
