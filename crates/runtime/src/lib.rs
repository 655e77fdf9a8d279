//! Runs a derived network, or one of its cells, the way it will be deployed; [`onnx`] is for deploying it elsewhere.
//!
//! On the CPU that is our own runtime ([`nn::inference`]): f32, batch normalisation folded into the
//! convolutions, a fixed number of threads. On another device the network runs there as candle runs it. A network
//! is prepared once (weights packed, input in place) and run many times; what a stage times is
//! [`Prepared::time`].

mod costs;
#[cfg(feature = "cuda")]
mod cuda;
pub mod onnx;

use candle_core::{DType, Device, Result, Tensor};
use kernels::image::Maps;
use measure::watch::GpuState;
use measure::{Protocol, Timing};
use nn::inference::CellOutput;
use nn::parameters::Builder;
use nn::{DerivedNet, InferenceCell, InferenceNet, Pass, Precision, StandaloneCell};
use rayon::prelude::*;
use space::{CellGenotype, CellSpec, Genotype, NetworkSpec};

pub use crate::costs::{Costs, Meters, Unmeasured};

/// The name of the CPU runtime in data sets and manifests.
pub const NATIVE_CPU: &str = "native-cpu";

/// The name of the CUDA runtime there.
pub const CANDLE_CUDA: &str = "candle-cuda";

/// Where networks run, and in which precision.
#[derive(Clone, Debug)]
pub struct On {
    /// The device.
    pub device: Device,
    /// Of the pointwise convolutions; the CPU's runtime knows `F32` alone.
    pub precision: Precision,
}

impl On {
    /// The CPU.
    pub fn cpu() -> Self {
        Self {
            device: Device::Cpu,
            precision: Precision::F32,
        }
    }
}

/// A timing.
#[derive(Clone, Debug)]
pub struct Timed {
    /// What was taken.
    pub timing: Timing,
    /// The GPU right behind it; `None` on the CPU.
    pub gpu: Option<GpuState>,
}

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
    batch_size: usize,
}

enum Module {
    /// A network, and images laid out `n c h w`.
    Network {
        network: Box<InferenceNet>,
        images: Vec<f32>,
        size: [usize; 2],
    },
    /// A cell, and its two inputs behind their ReLU.
    Cell {
        cell: Box<InferenceCell>,
        inputs: [Maps; 2],
    },
    /// A network on another device than the CPU, and its images `[n, c, h, w]`.
    DeviceNetwork(Box<DerivedNet>, Tensor),
    /// A cell on another device, and its two inputs `[n, c, h, w]`.
    DeviceCell(Box<StandaloneCell>, [Tensor; 2]),
}

impl Prepared {
    /// The network of a genotype with initial weights drawn from a fixed seed: latency does not depend
    /// on their values. Input `[batch_size, in_channels, image_size, image_size]`.
    pub fn network(
        spec: &NetworkSpec,
        genotype: &Genotype,
        batch_size: usize,
        on: &On,
    ) -> Result<Self> {
        Self::trained(untrained(spec, genotype, on)?, spec, batch_size, &on.device)
    }

    /// A network that exists already, with its weights.
    pub fn trained(
        network: DerivedNet,
        spec: &NetworkSpec,
        batch_size: usize,
        device: &Device,
    ) -> Result<Self> {
        let size = [spec.image_size; 2];
        let shape = [batch_size, spec.in_channels, size[0], size[1]];
        let images = input(shape.iter().product());
        let module = if device.is_cpu() {
            Module::Network {
                network: Box::new(network.for_inference()?),
                images,
                size,
            }
        } else {
            let images = Tensor::from_vec(images, &shape, device)?;
            Module::DeviceNetwork(Box::new(network), images)
        };
        Ok(Self { module, batch_size })
    }

    /// One cell at one position of a network.
    pub fn cell(
        spec: &CellSpec,
        genotype: &CellGenotype,
        batch_size: usize,
        on: &On,
    ) -> Result<Self> {
        let device = &on.device;
        let mut rng = fixed_rng();
        let builder = Builder::new(device, DType::F32, &mut rng).with_precision(on.precision);
        let cell = StandaloneCell::new(&builder, spec, genotype)?;
        let shapes = cell.input_shapes(batch_size);
        let module = if device.is_cpu() {
            let inputs = shapes.map(|[_, c, h, w]| {
                let activated: Vec<f32> = input(c * h * w).iter().map(|x| x.max(0.0)).collect();
                Maps::from_slice(c, h, w, &activated)
            });
            Module::Cell {
                cell: Box::new(cell.for_inference()?),
                inputs,
            }
        } else {
            let [s0, s1] =
                shapes.map(|shape| Tensor::from_vec(input(shape.iter().product()), &shape, device));
            Module::DeviceCell(Box::new(cell), [s0?, s1?])
        };
        Ok(Self { module, batch_size })
    }

    /// Times inferences: on the CPU by the clock, on CUDA by events on the stream of the work. There NVML is asked before and
    /// after, and a timing under throttled clocks is taken again; without NVML there is none.
    ///
    /// # Errors
    /// If an inference fails; on CUDA, if there is no NVML or the GPU stays throttled.
    pub fn time(&self, executor: &Executor, protocol: &Protocol) -> Result<Timed> {
        #[cfg(feature = "cuda")]
        if let Some(device) = self.cuda_device() {
            return cuda::time(self, device, executor, protocol);
        }
        let timing = executor.install(|| measure::time(protocol, || self.run().map(drop)))?;
        Ok(Timed { timing, gpu: None })
    }

    /// On CUDA, times inferences that are launched as one graph, after [`time`](Self::time) has run some; `None` on the CPU.
    ///
    /// # Errors
    /// As [`time`](Self::time); the outer one is why an inference could not be captured, in a sentence.
    pub fn time_captured(
        &self,
        executor: &Executor,
        protocol: &Protocol,
    ) -> std::result::Result<Option<Result<Timing>>, String> {
        #[cfg(feature = "cuda")]
        if let Some(device) = self.cuda_device() {
            return cuda::time_captured(self, device, executor, protocol).map(Some);
        }
        let _ = (executor, protocol);
        Ok(None)
    }

    /// What one inference on CUDA takes up, above `rest_watts` ([`rest_watts`]), in joules.
    ///
    /// # Errors
    /// If an inference fails, if there is no NVML, or if the network is not on CUDA.
    pub(crate) fn joules(&self, executor: &Executor, rest_watts: f64) -> Result<f64> {
        #[cfg(feature = "cuda")]
        if let Some(device) = self.cuda_device() {
            return cuda::joules(self, device, executor, rest_watts);
        }
        let _ = (executor, rest_watts);
        candle_core::bail!("NVML tells the energy of CUDA devices alone")
    }

    #[cfg(feature = "cuda")]
    fn cuda_device(&self) -> Option<&candle_core::CudaDevice> {
        match &self.module {
            Module::DeviceNetwork(_, input) | Module::DeviceCell(_, [input, _]) => {
                input.device().as_cuda_device().ok()
            }
            _ => None,
        }
    }

    /// One inference; the output stays on the device.
    pub fn run(&self) -> Result<Output> {
        // Lets the stack go on at a line of the cache, wherever the caller's ends: what inner loops keep on it would lie across
        // two lines for one caller and not for another, and the same network take 5 % longer.
        // (A local of its own: the compiler would make a reference to a constant one to a static.)
        let line = Line([0; 64]);
        std::hint::black_box(&line);
        let pass = Pass::inference();
        match &self.module {
            Module::Network {
                network,
                images,
                size,
            } => Ok(Output::Logits(network.run(images, self.batch_size, *size))),
            Module::Cell { cell, inputs } => {
                let run = |_| cell.run(&inputs[0], &inputs[1]);
                let images = 0..self.batch_size;
                Ok(Output::States(
                    if images.len() > 1 && rayon::current_num_threads() > 1 {
                        images.into_par_iter().map(run).collect()
                    } else {
                        images.map(run).collect()
                    },
                ))
            }
            Module::DeviceNetwork(network, images) => {
                Ok(Output::Tensor(network.forward(images, &pass)?.main))
            }
            Module::DeviceCell(cell, [s0, s1]) => Ok(Output::Tensor(cell.forward(s0, s1, &pass)?)),
        }
    }
}

/// What an inference answers.
pub enum Output {
    /// A network's, laid out `n o`.
    Logits(Vec<f32>),
    /// A cell's, image by image.
    States(Vec<CellOutput>),
    /// A network's or a cell's on another device than the CPU.
    Tensor(Tensor),
}

/// What a CUDA device takes up while it has nothing to do, in watts: the mean of two seconds.
///
/// # Errors
/// If there is no NVML, or if the device is none of CUDA's.
fn rest_watts(device: &Device) -> Result<f64> {
    #[cfg(feature = "cuda")]
    if let Device::Cuda(device) = device {
        return cuda::rest_watts(device);
    }
    let _ = device;
    candle_core::bail!("NVML tells the energy of CUDA devices alone")
}

/// The network of a genotype with initial weights drawn from a fixed seed.
fn untrained(spec: &NetworkSpec, genotype: &Genotype, on: &On) -> Result<DerivedNet> {
    let mut rng = fixed_rng();
    let builder = Builder::new(&on.device, DType::F32, &mut rng).with_precision(on.precision);
    DerivedNet::new(&builder, spec, genotype, false)
}

/// A line of the cache.
#[repr(align(64))]
struct Line(#[expect(dead_code, reason = "its place is what counts")] [u8; 64]);

fn fixed_rng() -> nn::Rng {
    use rand_chacha::rand_core::SeedableRng;
    nn::Rng::seed_from_u64(0)
}

/// A fixed input of values between -1 and 1 with no pattern that an operation could profit from.
fn input(n: usize) -> Vec<f32> {
    (0..n).map(|i| (i as f32 * 12.9898).sin()).collect()
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

    fn logits(prepared: &Prepared) -> Vec<f32> {
        match prepared.run().unwrap() {
            Output::Logits(logits) => logits,
            _ => panic!("a network answers logits"),
        }
    }

    #[test]
    fn a_network_answers_one_row_of_logits_per_image() {
        let genotype = Genotype::named("DARTS_V2").expect("a published genotype");
        let prepared = Prepared::network(&spec(), &genotype, 2, &On::cpu()).unwrap();
        assert_eq!(logits(&prepared).len(), 2 * 10);
    }

    #[test]
    fn every_cell_runs_by_itself_at_every_position() {
        let genotype = Genotype::named("PC_DARTS_cifar").expect("a published genotype");
        for cell in spec().cells() {
            let prepared = Prepared::cell(&cell, genotype.cell(cell.kind), 2, &On::cpu()).unwrap();
            let halves = if cell.kind == space::CellKind::Reduction {
                2
            } else {
                1
            };
            let size = cell.size_prev / halves;
            let Output::States(states) = prepared.run().unwrap() else {
                panic!("a cell answers states");
            };
            assert_eq!(states.len(), 2);
            for state in states {
                let Maps { c, h, w, .. } = state.activated;
                assert_eq!([c, h, w], [4 * cell.channels, size, size]);
            }
        }
    }

    #[test]
    fn the_answer_does_not_depend_on_the_number_of_threads() {
        let genotype = Genotype::named("PDARTS").expect("a published genotype");
        let prepared = Prepared::network(&spec(), &genotype, 1, &On::cpu()).unwrap();
        let on = |n_threads| {
            let executor = Executor::new(n_threads).unwrap();
            executor.install(|| logits(&prepared))
        };
        assert_eq!(on(1), on(3));
    }
}
