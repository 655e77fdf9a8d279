//! Runs a derived network, or one of its cells, the way it will be deployed.
//!
//! Today there is one runtime, candle, on the CPU or on a CUDA device: f32, running statistics in batch
//! normalisation, no gradients, a fixed number of threads. A network is prepared once (weights and input in
//! place) and run many times; what a stage times is [`Prepared::time`].

use candle_core::{DType, Device, Result, Tensor};
use measure::{Protocol, Timing};
use nn::parameters::Builder;
use nn::{DerivedNet, Pass, StandaloneCell};
use space::{CellGenotype, CellSpec, Genotype, NetworkSpec};

/// The name of the CPU runtime in data sets and manifests.
pub const CANDLE_CPU: &str = "candle-cpu";

/// The name of the CUDA runtime there.
pub const CANDLE_CUDA: &str = "candle-cuda";

/// The threads on which networks run: a pool of its own, so that what is timed does not depend on how
/// many threads the rest of the process uses.
pub struct Executor {
    pool: rayon::ThreadPool,
}

impl Executor {
    /// Starts `n_threads` (at least one).
    ///
    /// # Errors
    /// If the system refuses to start them.
    pub fn new(n_threads: usize) -> std::result::Result<Self, rayon::ThreadPoolBuildError> {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(n_threads.max(1))
            .build()?;
        Ok(Self { pool })
    }

    /// Calls `work` on the pool. Time whole loops inside, not single calls: entering the pool costs
    /// some microseconds.
    pub fn install<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R {
        self.pool.install(work)
    }
}

/// A network or cell with its input in place.
pub struct Prepared {
    module: Module,
    inputs: Vec<Tensor>,
}

enum Module {
    Network(Box<DerivedNet>),
    Cell(Box<StandaloneCell>),
}

impl Prepared {
    /// The network of a genotype with initial weights drawn from a fixed seed: latency does not depend
    /// on their values. Input `[batch_size, in_channels, image_size, image_size]`.
    pub fn network(
        spec: &NetworkSpec,
        genotype: &Genotype,
        batch_size: usize,
        device: &Device,
    ) -> Result<Self> {
        let mut rng = fixed_rng();
        let builder = Builder::new(device, DType::F32, &mut rng);
        let network = DerivedNet::new(&builder, spec, genotype, false)?;
        Self::trained(network, spec, batch_size, device)
    }

    /// A network that exists already, with its weights.
    pub fn trained(
        network: DerivedNet,
        spec: &NetworkSpec,
        batch_size: usize,
        device: &Device,
    ) -> Result<Self> {
        let shape = [
            batch_size,
            spec.in_channels,
            spec.image_size,
            spec.image_size,
        ];
        let inputs = vec![input(shape, device)?];
        Ok(Self {
            module: Module::Network(Box::new(network)),
            inputs,
        })
    }

    /// One cell at one position of a network.
    pub fn cell(
        spec: &CellSpec,
        genotype: &CellGenotype,
        batch_size: usize,
        device: &Device,
    ) -> Result<Self> {
        let mut rng = fixed_rng();
        let builder = Builder::new(device, DType::F32, &mut rng);
        let cell = StandaloneCell::new(&builder, spec, genotype)?;
        let inputs = cell
            .input_shapes(batch_size)
            .into_iter()
            .map(|shape| input(shape, device))
            .collect::<Result<_>>()?;
        Ok(Self {
            module: Module::Cell(Box::new(cell)),
            inputs,
        })
    }

    /// Times inferences: on the CPU by the clock, on CUDA by events on the stream of the work.
    ///
    /// # Errors
    /// If an inference fails.
    pub fn time(&self, executor: &Executor, protocol: &Protocol) -> Result<Timing> {
        #[cfg(feature = "cuda")]
        if let Device::Cuda(device) = self.inputs[0].device() {
            let stream = device.cuda_stream();
            let run = || self.run().map(drop).map_err(Failure);
            return executor
                .install(|| measure::cuda::time(&stream, protocol, run))
                .map_err(|Failure(error)| error);
        }
        executor.install(|| measure::time(protocol, || self.run().map(drop)))
    }

    /// One inference; the output stays on the device.
    pub fn run(&self) -> Result<Tensor> {
        let pass = Pass::inference();
        match (&self.module, self.inputs.as_slice()) {
            (Module::Network(network), [x]) => Ok(network.forward(x, &pass)?.main),
            (Module::Cell(cell), [s0, s1]) => cell.forward(s0, s1, &pass),
            _ => unreachable!("a network has one input, a cell two"),
        }
    }
}

/// The driver's errors as candle carries them.
#[cfg(feature = "cuda")]
struct Failure(candle_core::Error);

#[cfg(feature = "cuda")]
impl From<cudarc::driver::DriverError> for Failure {
    fn from(error: cudarc::driver::DriverError) -> Self {
        Self(candle_core::Error::wrap(error))
    }
}

fn fixed_rng() -> nn::Rng {
    use rand_chacha::rand_core::SeedableRng;
    nn::Rng::seed_from_u64(0)
}

/// A fixed input of values between -1 and 1 with no pattern that an operation could profit from.
fn input(shape: [usize; 4], device: &Device) -> Result<Tensor> {
    let n: usize = shape.iter().product();
    let values: Vec<f32> = (0..n).map(|i| (i as f32 * 12.9898).sin()).collect();
    Tensor::from_vec(values, &shape, device)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec() -> NetworkSpec {
        NetworkSpec {
            stem: space::Stem::Conv3x3,
            n_layers: 3,
            init_channels: 4,
            in_channels: 3,
            n_classes: 10,
            image_size: 8,
        }
    }

    #[test]
    fn a_network_answers_one_row_of_logits_per_image() {
        let genotype = Genotype::named("DARTS_V2").expect("a published genotype");
        let prepared = Prepared::network(&spec(), &genotype, 2, &Device::Cpu).unwrap();
        assert_eq!(prepared.run().unwrap().dims(), [2, 10]);
    }

    #[test]
    fn every_cell_runs_by_itself_at_every_position() {
        let genotype = Genotype::named("PC_DARTS_cifar").expect("a published genotype");
        for cell in spec().cells() {
            let prepared =
                Prepared::cell(&cell, genotype.cell(cell.kind), 2, &Device::Cpu).unwrap();
            let halves = if cell.kind == space::CellKind::Reduction {
                2
            } else {
                1
            };
            let size = cell.size_prev / halves;
            assert_eq!(
                prepared.run().unwrap().dims(),
                [2, 4 * cell.channels, size, size]
            );
        }
    }

    #[test]
    fn the_answer_does_not_depend_on_the_number_of_threads() {
        let genotype = Genotype::named("PDARTS").expect("a published genotype");
        let prepared = Prepared::network(&spec(), &genotype, 1, &Device::Cpu).unwrap();
        let logits = |n_threads| -> Vec<f32> {
            let executor = Executor::new(n_threads).unwrap();
            executor
                .install(|| prepared.run())
                .unwrap()
                .flatten_all()
                .unwrap()
                .to_vec1()
                .unwrap()
        };
        assert_eq!(logits(1), logits(3));
    }
}
