//! Training steps.

use std::time::Instant;

use anyhow::{Context, Result};
use artifact::{DeviceSpec, Precision};
use candle_core::{DType, Device, Tensor};
use clap::{Args, ValueEnum};
use nn::loss::{cross_entropy, scalar};
use nn::optimizer::{Adam, Gradients, Sgd};
use nn::parameters::Builder;
use nn::{Architecture, DerivedNet, Pass, Rng, Supernet};
use rand_chacha::rand_core::SeedableRng;
use serde_json::json;
use space::{CellKind, Genotype, SearchSpace};

use crate::{Size, median_secs, usage};

/// Command line of `step`.
#[derive(Args)]
pub(crate) struct StepArgs {
    /// What is trained
    #[arg(long, value_enum)]
    network: Network,
    #[command(flatten)]
    size: Size,
    /// Steps that do not count
    #[arg(long, default_value_t = 1)]
    warmup: usize,
    /// Steps that count
    #[arg(long, default_value_t = 5)]
    steps: usize,
    /// cpu, cuda or cuda:N
    #[arg(long, default_value = "cpu")]
    device: DeviceSpec,
    /// Probability of dropping a path, for --network derived: at least 0 and below 1
    #[arg(long, default_value_t = 0.0)]
    drop_path: f64,
    /// Of the pointwise convolutions, on CUDA
    #[arg(long, value_enum, default_value_t = Precision::F32)]
    precision: Precision,
    /// Print one JSON object on standard output
    #[arg(long)]
    json: bool,
}

impl StepArgs {
    fn device(&self) -> Result<Device> {
        self.device.find()?;
        Ok(match self.device {
            DeviceSpec::Cpu => Device::Cpu,
            DeviceSpec::Cuda(index) => nn::cuda_device(index)?,
        })
    }

    fn builder<'r>(&self, device: &Device, rng: &'r mut Rng) -> Builder<'r> {
        Builder::new(device, DType::F32, rng).with_precision(match self.precision {
            Precision::F32 => nn::Precision::F32,
            Precision::Tf32 => nn::Precision::Tf32,
            Precision::Bf16 => nn::Precision::Bf16,
        })
    }
}

/// What is trained.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Network {
    /// The supernet with partial channels, K = 4
    PcDarts,
    /// The supernet of all channels
    Darts,
    /// The network of PC_DARTS_cifar; it has no alpha step
    Derived,
}

/// Runs the steps and prints what they took.
pub(crate) fn run(args: &StepArgs) -> Result<()> {
    if args.precision != Precision::F32 && args.device == DeviceSpec::Cpu {
        return Err(usage("--precision other than f32 is for --device cuda"));
    }
    if args.drop_path != 0.0 && args.network != Network::Derived {
        return Err(usage("--drop-path is for --network derived"));
    }
    if !(0.0..1.0).contains(&args.drop_path) {
        return Err(usage("--drop-path: expected at least 0 and below 1"));
    }
    artifact::stage::configure_threads(args.size.threads.max(1))?;
    // On a thread of the pool: every hand-over from another one costs.
    let Times { alpha, weight } = rayon::scope(|_| match args.network {
        Network::Derived => derived(args),
        Network::PcDarts => supernet(args, 4),
        Network::Darts => supernet(args, 1),
    })?;
    let peak_rss_bytes = measure::peak_rss_bytes();
    let (alpha_secs, weight_secs) = (median_secs(&alpha), median_secs(&weight));
    if args.json {
        let answer = json!({
            "alpha_step_secs": alpha_secs,
            "weight_step_secs": weight_secs,
            "peak_rss_bytes": peak_rss_bytes,
            "n_steps": args.steps,
            "raw": {"alpha_step_secs": alpha, "weight_step_secs": weight},
        });
        println!("{answer}");
    } else {
        if !alpha.is_empty() {
            println!("alpha step   {alpha_secs:.4} s");
        }
        println!("weight step  {weight_secs:.4} s");
        if let Some(bytes) = peak_rss_bytes {
            println!("peak memory  {} MiB", bytes >> 20);
        }
    }
    Ok(())
}

/// What the steps that count took, in seconds.
#[derive(Default)]
struct Times {
    alpha: Vec<f64>,
    weight: Vec<f64>,
}

/// Random images `[n, 3, s, s]` and labels.
fn batch(size: &Size, device: &Device, rng: &mut Rng) -> Result<(Tensor, Tensor)> {
    use rand_chacha::rand_core::Rng as _;
    let shape = (size.batch, 3, size.image_size, size.image_size);
    let n = size.batch * 3 * size.image_size * size.image_size;
    let x: Vec<f32> = (0..n)
        .map(|_| 4.0 * (rng.next_u32() as f32 / u32::MAX as f32) - 2.0)
        .collect();
    let y: Vec<u32> = (0..size.batch).map(|_| rng.next_u32() % 10).collect();
    Ok((
        Tensor::from_vec(x, shape, device)?,
        Tensor::from_vec(y, size.batch, device)?,
    ))
}

fn secs_of(step: impl FnOnce() -> Result<()>) -> Result<f64> {
    let start = Instant::now();
    step()?;
    Ok(start.elapsed().as_secs_f64())
}

fn supernet(args: &StepArgs, k: usize) -> Result<Times> {
    let (space, ratio) = (SearchSpace::darts(), args.size.ratio(k)?);
    let device = args.device()?;
    let mut rng = Rng::seed_from_u64(0);
    let (x, y) = batch(&args.size, &device, &mut rng)?;
    let network = Supernet::new(
        &args.builder(&device, &mut rng),
        space,
        &args.size.spec()?,
        ratio,
    )?;
    let architecture = Architecture::new(space, ratio.is_partial(), &device, DType::F32, &mut rng)?;
    let mut sgd = Sgd::new(0.9, 3e-4);
    let mut adam = Adam::new(3e-4, (0.5, 0.999), 1e-3);
    let mixing = |tracked| -> Result<_> {
        let [normal, reduction] = CellKind::ALL.map(|kind| architecture.mixing(kind, tracked));
        Ok([normal?, reduction?])
    };
    let mut alpha_step = || {
        let logits = network.forward(&x, &mixing(true)?, &Pass::architecture_step())?;
        let loss = cross_entropy(&logits, &y, 0.0)?;
        let gradients = Gradients::collect(architecture.parameters(), &mut loss.backward()?);
        adam.step(architecture.parameters(), &gradients, 1.0)?;
        scalar(&loss)?;
        Ok(())
    };
    let mut weight_step = || {
        let logits = network.forward(&x, &mixing(false)?, &Pass::training())?;
        let loss = cross_entropy(&logits, &y, 0.0)?;
        let gradients = Gradients::collect(network.parameters(), &mut loss.backward()?);
        let (gradients, factor) = gradients.clip(5.0)?;
        sgd.step(network.parameters(), &gradients, 0.025, factor)?;
        scalar(&loss)?;
        Ok(())
    };
    let mut times = Times::default();
    for index in 0..args.warmup + args.steps {
        let (alpha, weight) = (secs_of(&mut alpha_step)?, secs_of(&mut weight_step)?);
        if index >= args.warmup {
            times.alpha.push(alpha);
            times.weight.push(weight);
        }
    }
    Ok(times)
}

fn derived(args: &StepArgs) -> Result<Times> {
    let genotype = Genotype::named("PC_DARTS_cifar").context("a published genotype")?;
    let device = args.device()?;
    let mut rng = Rng::seed_from_u64(0);
    let (x, y) = batch(&args.size, &device, &mut rng)?;
    let builder = args.builder(&device, &mut rng);
    let network = DerivedNet::new(&builder, &args.size.spec()?, &genotype, false)?;
    let mut sgd = Sgd::new(0.9, 3e-4);
    let mut drops = Rng::seed_from_u64(1);
    let mut step = || {
        let pass = Pass::training_with_drop_path(args.drop_path, &mut drops);
        let loss = cross_entropy(&network.forward(&x, &pass)?.main, &y, 0.0)?;
        let gradients = Gradients::collect(network.parameters(), &mut loss.backward()?);
        let (gradients, factor) = gradients.clip(5.0)?;
        sgd.step(network.parameters(), &gradients, 0.025, factor)?;
        scalar(&loss)?;
        Ok(())
    };
    let mut times = Times::default();
    for index in 0..args.warmup + args.steps {
        let secs = secs_of(&mut step)?;
        if index >= args.warmup {
            times.weight.push(secs);
        }
    }
    Ok(times)
}
