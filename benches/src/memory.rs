//! What a training step will keep in memory, however its cells run.

use anyhow::{Context, Result};
use candle_core::{DType, Device};
use clap::Args;
use nn::memory::{Path, StepMemory};
use nn::parameters::Builder;
use nn::{DerivedNet, Rng, Supernet};
use rand_chacha::rand_core::SeedableRng;
use serde_json::json;
use space::{Genotype, NetworkSpec, SearchSpace, Stem};

use crate::{Size, usage};

/// Command line of `memory`.
#[derive(Args)]
pub(crate) struct MemoryArgs {
    /// K of a supernet, 1 = all channels; without it, the network of PC_DARTS_cifar
    #[arg(long, value_name = "K")]
    supernet: Option<usize>,
    /// conv3x3, conv3x3-stride2 or imagenet
    #[arg(long, default_value = "conv3x3")]
    stem: String,
    /// Classes
    #[arg(long, default_value_t = 10)]
    classes: usize,
    /// Whether a derived network has an auxiliary head
    #[arg(long)]
    auxiliary: bool,
    #[command(flatten)]
    size: Size,
    /// Print one JSON object on standard output
    #[arg(long)]
    json: bool,
}

/// Counts and prints a table, MiB by part and way, or one JSON object, bytes by part and way.
pub(crate) fn run(args: &MemoryArgs) -> Result<()> {
    let spec = NetworkSpec {
        stem: Stem::from_name(&args.stem)
            .ok_or_else(|| usage("--stem: expected conv3x3, conv3x3-stride2 or imagenet"))?,
        n_classes: args.classes,
        ..args.size.spec()?
    };
    spec.validate().map_err(usage)?;
    let mut rng = Rng::seed_from_u64(0);
    let builder = Builder::new(&Device::Cpu, DType::F32, &mut rng);
    let memory_of: Box<dyn Fn(Path) -> StepMemory> = match args.supernet {
        Some(k) => {
            let ratio = args.size.ratio(k)?;
            let network = Supernet::new(&builder, SearchSpace::darts(), &spec, ratio)?;
            let n = args.size.batch;
            Box::new(move |path| network.step_memory(&spec, n, path))
        }
        None => {
            let genotype = Genotype::named("PC_DARTS_cifar").context("a published genotype")?;
            let network = DerivedNet::new(&builder, &spec, &genotype, args.auxiliary)?;
            let n = args.size.batch;
            Box::new(move |path| network.step_memory(&spec, n, path))
        }
    };
    let ways = [
        ("fused", Path::Fused),
        ("grouped", Path::Grouped),
        ("by_operation", Path::Operations),
    ]
    .map(|(name, path)| (name, memory_of(path)));
    if args.json {
        let rows = ways.map(|(name, memory)| {
            let parts = memory.parts().into_iter();
            let parts = parts.map(|(what, bytes)| (what.to_owned(), bytes.into()));
            let parts: serde_json::Map<String, serde_json::Value> = parts.collect();
            let total_gib = memory.total_bytes() as f64 / (1u64 << 30) as f64;
            (
                name.to_owned(),
                json!({"bytes": parts, "total_gib": total_gib}),
            )
        });
        let rows: serde_json::Map<String, serde_json::Value> = rows.into_iter().collect();
        println!("{}", serde_json::Value::from(rows));
        return Ok(());
    }
    for (name, memory) in ways {
        println!(
            "{}: {} MiB",
            name.replace('_', " "),
            memory.total_bytes() >> 20
        );
        for (what, bytes) in memory.parts() {
            println!("  {what:<28} {:>8} MiB", bytes >> 20);
        }
    }
    Ok(())
}
