//! How fast a training step could be at best on this machine.

use std::hint::black_box;
use std::time::Instant;

use anyhow::{Context, Result};
use clap::Args;
use kernels::image::{Maps, Pointwise};
use serde_json::json;
use space::{Genotype, TrainingCounts, count_derived_training, count_supernet_training};

use crate::step::Network;
use crate::{Size, median_secs};

/// Command line of `floor`.
#[derive(Args)]
pub(crate) struct FloorArgs {
    /// What is trained
    #[arg(long, value_enum)]
    network: Network,
    #[command(flatten)]
    size: Size,
    /// Print one JSON object on standard output
    #[arg(long)]
    json: bool,
}

/// Measures the machine and prints what a step takes at best.
pub(crate) fn run(args: &FloorArgs) -> Result<()> {
    let n_threads = args.size.threads.max(1);
    artifact::stage::configure_threads(n_threads)?;
    let spec = args.size.spec()?;
    let TrainingCounts {
        n_macs,
        n_normalised,
    } = match args.network {
        Network::PcDarts => count_supernet_training(&spec, 4),
        Network::Darts => count_supernet_training(&spec, 1),
        Network::Derived => {
            let genotype = Genotype::named("PC_DARTS_cifar").context("a published genotype")?;
            count_derived_training(&genotype, &spec)
        }
    };
    let (flops_per_sec, bytes_per_sec) = (flops_per_sec(n_threads), bytes_per_sec(n_threads));
    let n_images = args.size.batch as u64;
    let (forward, bytes) = (2 * n_macs * n_images, 4 * n_normalised * n_images);
    // Forward, the gradient of what is read, and in a weight step that of the weights. A number in front of a
    // batch normalisation is written once, read once in the forward and once in the backward pass.
    let step = |n_products: u64| {
        let (n_flops, n_bytes) = (n_products * forward, 3 * bytes);
        let secs = [
            n_flops as f64 / flops_per_sec,
            n_bytes as f64 / bytes_per_sec,
        ];
        (n_flops, n_bytes, secs)
    };
    let is_search = !matches!(args.network, Network::Derived);
    let steps = [("alpha_step", 2, is_search), ("weight_step", 3, true)];
    let mut answer = json!({
        "flops_per_sec": flops_per_sec,
        "bytes_per_sec": bytes_per_sec,
        "n_threads": n_threads,
    });
    for (name, n_products, _) in steps.into_iter().filter(|(_, _, is_there)| *is_there) {
        let (n_flops, n_bytes, [flops_secs, bytes_secs]) = step(n_products);
        answer[name] = json!({
            "n_flops": n_flops,
            "n_bytes": n_bytes,
            "flops_secs": flops_secs,
            "bytes_secs": bytes_secs,
        });
        if !args.json {
            println!(
                "{name}: {:.1} G floating-point operations take {flops_secs:.3} s at {:.0} G/s; {:.2} GB of memory \
                 traffic take {bytes_secs:.3} s at {:.1} GB/s",
                n_flops as f64 / 1e9,
                flops_per_sec / 1e9,
                n_bytes as f64 / 1e9,
                bytes_per_sec / 1e9,
            );
        }
    }
    if args.json {
        println!("{answer}");
    }
    Ok(())
}

/// The median of some timings of `work` on several threads at once, in seconds.
fn secs(n_threads: usize, work: impl Fn() + Sync) -> f64 {
    let times: Vec<f64> = (0..9)
        .map(|_| {
            let start = Instant::now();
            std::thread::scope(|scope| {
                for _ in 0..n_threads {
                    scope.spawn(&work);
                }
            });
            start.elapsed().as_secs_f64()
        })
        .collect();
    median_secs(&times)
}

/// Floating-point operations per second: a matrix product that lies in the nearest caches and is too small to be
/// spread over threads.
fn flops_per_sec(n_threads: usize) -> f64 {
    const SIDE: usize = 48;
    const PIXELS: usize = 16;
    const REPEATS: usize = 2000;
    let weight = vec![0.5; SIDE * SIDE];
    let mix = Pointwise::new(&weight, &[0.0; SIDE]);
    let secs = secs(n_threads, || {
        let x = Maps::from_slice(SIDE, PIXELS, PIXELS, &[1.0; SIDE * PIXELS * PIXELS]);
        let mut y = Maps::any(SIDE, PIXELS, PIXELS);
        for _ in 0..REPEATS {
            mix.forward(black_box(&x), &mut y, 0);
        }
        black_box(&y);
    });
    (2 * SIDE * SIDE * PIXELS * PIXELS * REPEATS * n_threads) as f64 / secs
}

/// Bytes per second of memory: a copy, what is read and what is written.
fn bytes_per_sec(n_threads: usize) -> f64 {
    const LEN: usize = 1 << 24;
    let source = vec![1.0_f32; LEN];
    let start = std::sync::Mutex::new(Vec::new());
    for _ in 0..n_threads {
        start
            .lock()
            .expect("nobody panicked")
            .push(vec![0.0_f32; LEN]);
    }
    let secs = secs(n_threads, || {
        let mut target = start
            .lock()
            .expect("nobody panicked")
            .pop()
            .expect("one for each thread");
        target.copy_from_slice(black_box(&source));
        black_box(&target);
        start.lock().expect("nobody panicked").push(target);
    });
    (2 * 4 * LEN * n_threads) as f64 / secs
}
