//! Inferences of a derived network.

use anyhow::Result;
use clap::Args;
use measure::Protocol;
use measure::timing::{quantile, repeats};
use runtime::{Executor, On, Prepared};
use serde_json::json;

use crate::Size;

/// Command line of `inference`.
#[derive(Args)]
pub(crate) struct InferenceArgs {
    /// A published name, the text Genotype(…), or a file
    #[arg(long, value_name = "NAME|FILE", default_value = "PC_DARTS_cifar")]
    genotype: String,
    #[command(flatten)]
    size: Size,
    /// Inferences that do not count
    #[arg(long, default_value_t = 3)]
    warmup: u32,
    /// Inferences that count
    #[arg(long, default_value_t = 20)]
    repeats: u32,
    /// Print one JSON object on standard output
    #[arg(long)]
    json: bool,
}

/// Runs the inferences and prints what they took.
pub(crate) fn run(args: &InferenceArgs) -> Result<()> {
    artifact::stage::configure_threads(args.size.threads.max(1))?;
    let genotype = artifact::genotype_from_arg(&args.genotype).map_err(artifact::Error::from)?;
    let prepared = Prepared::network(&args.size.spec()?, &genotype, args.size.batch, &On::cpu())?;
    let protocol = Protocol {
        n_warmup: args.warmup,
        n_repeats: args.repeats,
        flush_l2: false,
    };
    // Of all repeats, disturbed or not: beside other programs, which are timed alike.
    let mut nanos = Executor::new(args.size.threads)?
        .install(|| repeats(&protocol, || prepared.run().map(drop)))?;
    let millis: Vec<f64> = nanos.iter().map(|&nanos| nanos as f64 / 1e6).collect();
    nanos.sort_unstable();
    let [median, p10, p90] = [0.5, 0.1, 0.9].map(|q| quantile(&nanos, q) as f64 / 1e6);
    if args.json {
        let answer = json!({
            "median_millis": median,
            "p10_millis": p10,
            "p90_millis": p90,
            "raw": { "millis": millis },
            "peak_rss_bytes": measure::peak_rss_bytes(),
        });
        println!("{answer}");
    } else {
        println!("median {median:.3} ms, p10 {p10:.3} ms, p90 {p90:.3} ms");
    }
    Ok(())
}
