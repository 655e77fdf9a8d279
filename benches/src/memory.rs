//! What a training step will keep in memory, however its cells run.

use anyhow::{Context, Result};
use candle_core::{DType, Device};
use clap::Args;
use nn::memory::{Path, StepMemory};
use nn::parameters::Builder;
use nn::{ChannelRatio, DerivedNet, Rng, Supernet};
use rand_chacha::rand_core::SeedableRng;
use serde_json::json;
use space::{Genotype, NetworkSpec, SearchSpace, Stem};

use crate::Size;

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
}

/// Counts and prints one JSON object: bytes by part and way.
pub(crate) fn run(args: &MemoryArgs) -> Result<()> {
    let spec = NetworkSpec {
        stem: Stem::from_name(&args.stem).context("no such stem")?,
        n_classes: args.classes,
        ..args.size.spec()?
    };
    spec.validate()?;
    let mut rng = Rng::seed_from_u64(0);
    let builder = Builder::new(&Device::Cpu, DType::F32, &mut rng);
    let memory_of: Box<dyn Fn(Path) -> StepMemory> = match args.supernet {
        Some(k) => {
            let ratio = ChannelRatio::new(k).context("K is 0")?;
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
    let row = |path| {
        let parts = memory_of(path).parts();
        let total: u64 = parts.iter().map(|(_, bytes)| bytes).sum();
        let parts: serde_json::Map<String, serde_json::Value> = parts
            .into_iter()
            .map(|(what, bytes)| (what.to_owned(), bytes.into()))
            .collect();
        json!({"bytes": parts, "total_gib": total as f64 / (1u64 << 30) as f64})
    };
    println!(
        "{}",
        json!({
            "fused": row(Path::Fused),
            "grouped": row(Path::Grouped),
            "by_operation": row(Path::Operations),
        })
    );
    Ok(())
}
