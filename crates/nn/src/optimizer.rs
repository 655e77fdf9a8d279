//! SGD and Adam as the original networks were trained: with L2 regularisation in the gradient.
//!
//! Both keep their state by the parameters' names, export and import it for checkpoints, and visit the
//! parameters in the order of their names.

use std::collections::BTreeMap;

use candle_core::backprop::GradStore;
use candle_core::{CpuStorage, DType, Layout, Result, Storage, Tensor, Var};
use collective::Share;
use kernels::pieces::{SgdPiece, SgdStep, pack, sgd, sum_of_squares};

use crate::Parameters;

/// The gradients of named parameters; a parameter that the loss did not depend on has none.
pub struct Gradients {
    by_name: BTreeMap<String, Tensor>,
}

impl Gradients {
    /// Collects the gradients of all weights from a backward pass.
    pub fn collect(parameters: &Parameters, store: &mut GradStore) -> Self {
        let by_name = parameters
            .weights()
            .iter()
            .filter_map(|(name, var)| {
                // The cells' weights are not in the graph where cells run grouped.
                let gradient = store.remove(var).or_else(|| parameters.found().take(var))?;
                Some((name.clone(), gradient))
            })
            .collect();
        Self { by_name }
    }

    /// The sums over the ranks, in one exchange: the gradients of the whole batch, where each rank's loss counted for
    /// its [`Share::weight`]. `None` = the batch is all here.
    ///
    /// # Errors
    /// If a rank cannot be reached.
    pub fn summed(self, share: Option<&Share>) -> Result<Self> {
        let Some(share) = share else {
            return Ok(self);
        };
        if self.is_on_cuda() {
            return self.in_one(None, |all| share.collective().sum(all));
        }
        let (names, gradients): (Vec<String>, Vec<Tensor>) = self.by_name.into_iter().unzip();
        let by_name = names.into_iter().zip(share.sum_all(&gradients)?).collect();
        Ok(Self { by_name })
    }

    /// The gradient of a parameter.
    pub fn get(&self, name: &str) -> Option<&Tensor> {
        self.by_name.get(name)
    }

    /// The L2 norm of all gradients as one vector.
    pub fn global_norm(&self) -> Result<f64> {
        if self.is_on_cuda() {
            // Read back once, not for every gradient: each reading waits for the device.
            let norm = self.norm_in_one()?;
            return norm.map_or(Ok(0.0), |norm| norm.reshape(())?.to_scalar());
        }
        let squares = self.by_name.values().map(squared_norm);
        Ok(squares.sum::<Result<f64>>()?.sqrt())
    }

    /// The factor that brings the global norm down to `max_norm`, at most 1: PyTorch's
    /// `clip_grad_norm_`, max_norm / (norm + 1e-6). Returns (factor, norm before clipping).
    pub fn clip_factor(&self, max_norm: f64) -> Result<(f64, f64)> {
        let norm = self.global_norm()?;
        Ok(((max_norm / (norm + 1e-6)).min(1.0), norm))
    }

    /// Clips to `max_norm`, 0 = not at all: the gradients, and the factor that is still to be multiplied to them. On
    /// CUDA they are multiplied there, so that nobody waits for the norm.
    ///
    /// # Errors
    /// If the tensor library fails.
    pub fn clip(self, max_norm: f64) -> Result<(Self, f64)> {
        let Some(first) = self.by_name.values().next().filter(|_| max_norm > 0.0) else {
            return Ok((self, 1.0));
        };
        if !first.device().is_cuda() {
            let (factor, _) = self.clip_factor(max_norm)?;
            return Ok((self, factor));
        }
        let clipped = self.clipped_there(max_norm)?;
        Ok((clipped, 1.0))
    }

    /// The clipped gradients, without a number that is read back.
    fn clipped_there(&self, max_norm: f64) -> Result<Self> {
        let Some((norm, first)) = self.norm_in_one()?.zip(self.by_name.values().next()) else {
            return Ok(Self {
                by_name: BTreeMap::new(),
            });
        };
        let factor = ((norm + 1e-6)?.recip()? * max_norm)?.minimum(1.0)?;
        self.in_one(
            Some(&factor.to_dtype(first.dtype())?),
            |all| Ok(all.clone()),
        )
    }

    fn is_on_cuda(&self) -> bool {
        let first = self.by_name.values().next();
        first.is_some_and(|first| first.device().is_cuda())
    }

    /// The L2 norm, `[1]`, `f64`, of all gradients in few launches; `None` without any.
    fn norm_in_one(&self) -> Result<Option<Tensor>> {
        if self.by_name.is_empty() {
            return Ok(None);
        }
        let gradients: Vec<Tensor> = self
            .by_name
            .values()
            .map(Tensor::contiguous)
            .collect::<Result<_>>()?;
        let squares = sum_of_squares(&gradients.iter().collect::<Vec<_>>())?;
        squares.sqrt().map(Some)
    }

    /// What `work` makes of all gradients as one tensor, times `factor`.
    fn in_one(
        &self,
        factor: Option<&Tensor>,
        work: impl FnOnce(&Tensor) -> Result<Tensor>,
    ) -> Result<Self> {
        let gradients: Vec<Tensor> = self
            .by_name
            .values()
            .map(Tensor::contiguous)
            .collect::<Result<_>>()?;
        let all = work(&pack(&gradients.iter().collect::<Vec<_>>(), factor)?)?;
        let mut start = 0;
        let mut own = |(name, gradient): (&String, &Tensor)| {
            let n = gradient.elem_count();
            let own = all.narrow(0, start, n)?.reshape(gradient.shape())?;
            start += n;
            Ok((name.clone(), own))
        };
        Ok(Self {
            by_name: self.by_name.iter().map(&mut own).collect::<Result<_>>()?,
        })
    }

    /// self + factor * other; a parameter that one side has no gradient for counts as 0 there.
    pub(crate) fn plus(&self, other: &Self, factor: f64) -> Result<Self> {
        let mut by_name = self.by_name.clone();
        for (name, gradient) in &other.by_name {
            let scaled = (gradient * factor)?;
            let sum = match by_name.get(name) {
                Some(own) => (own + scaled)?,
                None => scaled,
            };
            by_name.insert(name.clone(), sum);
        }
        Ok(Self { by_name })
    }

    /// self * factor.
    pub(crate) fn times(&self, factor: f64) -> Result<Self> {
        let scaled =
            |(name, gradient): (&String, &Tensor)| Ok((name.clone(), (gradient * factor)?));
        let by_name = self.by_name.iter().map(scaled).collect::<Result<_>>()?;
        Ok(Self { by_name })
    }

    /// The inner product of both as vectors.
    pub(crate) fn dot(&self, other: &Self) -> Result<f64> {
        let product = |(name, own): (&String, &Tensor)| {
            let Some(other) = other.by_name.get(name) else {
                return Ok(0.0);
            };
            (own * other)?.to_dtype(DType::F64)?.sum_all()?.to_scalar()
        };
        self.by_name.iter().map(product).sum()
    }
}

/// The sum of the squares of all numbers of a tensor on the CPU.
fn squared_norm(x: &Tensor) -> Result<f64> {
    let x = x.contiguous()?;
    let (storage, layout) = x.storage_and_layout();
    let range = range("squared-norm", layout)?;
    match &*storage {
        Storage::Cpu(CpuStorage::F32(x)) => Ok(squares_of(&x[range])),
        Storage::Cpu(CpuStorage::F64(x)) => Ok(squares_of(&x[range])),
        _ => candle_core::bail!("squared-norm: gradients must be f32 or f64, on the CPU"),
    }
}

fn squares_of<T: Copy + Into<f64>>(x: &[T]) -> f64 {
    let (blocks, rest) = x.as_chunks::<8>();
    // So that additions need not wait for each other.
    let mut sums = [0.0; 8];
    for block in blocks {
        for (sum, &x) in sums.iter_mut().zip(block) {
            let x: f64 = x.into();
            *sum += x * x;
        }
    }
    let rest = rest.iter().map(|&x| x.into() * x.into());
    sums.iter().sum::<f64>() + rest.sum::<f64>()
}

/// Stochastic gradient descent with momentum and L2 weight decay.
///
/// buffer = momentum * buffer + gradient + weight_decay * w; w -= learning_rate * buffer, as PyTorch.
pub struct Sgd {
    momentum: f64,
    weight_decay: f64,
    buffers: BTreeMap<String, Var>,
}

impl Sgd {
    /// An optimiser without history.
    pub fn new(momentum: f64, weight_decay: f64) -> Self {
        Self {
            momentum,
            weight_decay,
            buffers: BTreeMap::new(),
        }
    }

    /// An optimiser with the history of another, to try a step with.
    pub(crate) fn of_state(other: &Self) -> Result<Self> {
        let mut trial = Self::new(other.momentum, other.weight_decay);
        trial.load(&other.state()?)?;
        Ok(trial)
    }

    /// One step with the gradients multiplied by `gradient_scale` (see [`Gradients::clip_factor`]).
    pub fn step(
        &mut self,
        parameters: &Parameters,
        gradients: &Gradients,
        learning_rate: f64,
        gradient_scale: f64,
    ) -> Result<()> {
        if parameters
            .weights()
            .values()
            .next()
            .is_some_and(|first| first.device().is_cuda())
        {
            return self.step_there(parameters, gradients, learning_rate, gradient_scale);
        }
        let update = SgdUpdate {
            momentum: self.momentum,
            weight_decay: self.weight_decay,
            gradient_scale,
        };
        for (name, var) in parameters.weights() {
            let Some(gradient) = gradients.get(name) else {
                continue;
            };
            let buffer = buffer_of(&mut self.buffers, name, var)?;
            let weight = var.as_detached_tensor();
            let gradient = gradient.contiguous()?;
            buffer.inplace_op3(&gradient, &weight, &update)?;
            weight.inplace_op2(&buffer.as_detached_tensor(), &AddScaled(-learning_rate))?;
        }
        Ok(())
    }

    /// The same step for all weights in few launches.
    fn step_there(
        &mut self,
        parameters: &Parameters,
        gradients: &Gradients,
        learning_rate: f64,
        gradient_scale: f64,
    ) -> Result<()> {
        let mut all = Vec::with_capacity(parameters.weights().len());
        for (name, var) in parameters.weights() {
            if let Some(gradient) = gradients.get(name) {
                let buffer = buffer_of(&mut self.buffers, name, var)?;
                all.push((var, buffer, gradient.contiguous()?));
            }
        }
        let pieces: Vec<SgdPiece<'_>> = all
            .iter()
            .map(|(weight, buffer, grad)| SgdPiece {
                weight,
                buffer,
                grad,
            })
            .collect();
        let step = SgdStep {
            momentum: self.momentum,
            weight_decay: self.weight_decay,
            learning_rate,
            gradient_scale,
        };
        sgd(&pieces, step)
    }

    /// The momentum buffers by parameter name.
    pub fn state(&self) -> Result<BTreeMap<String, Tensor>> {
        copies(&self.buffers)
    }

    /// Replaces the momentum buffers.
    pub fn load(&mut self, state: &BTreeMap<String, Tensor>) -> Result<()> {
        self.buffers = vars(state)?;
        Ok(())
    }
}

/// Adam with coupled L2: weight decay is added to the gradient, before the moments (Kingma & Ba 2015;
/// not AdamW).
pub struct Adam {
    learning_rate: f64,
    betas: (f64, f64),
    eps: f64,
    weight_decay: f64,
    n_steps: u64,
    means: BTreeMap<String, Var>,
    squares: BTreeMap<String, Var>,
}

impl Adam {
    /// An optimiser without history; eps = 1e-8.
    pub fn new(learning_rate: f64, betas: (f64, f64), weight_decay: f64) -> Self {
        Self {
            learning_rate,
            betas,
            eps: 1e-8,
            weight_decay,
            n_steps: 0,
            means: BTreeMap::new(),
            squares: BTreeMap::new(),
        }
    }

    /// From now on with another learning rate.
    pub fn set_learning_rate(&mut self, learning_rate: f64) {
        self.learning_rate = learning_rate;
    }

    /// One step with the gradients multiplied by `gradient_scale`.
    pub fn step(
        &mut self,
        parameters: &Parameters,
        gradients: &Gradients,
        gradient_scale: f64,
    ) -> Result<()> {
        self.n_steps += 1;
        let (b1, b2) = self.betas;
        let correction1 = 1.0 - b1.powf(self.n_steps as f64);
        let correction2 = 1.0 - b2.powf(self.n_steps as f64);
        for (name, var) in parameters.weights() {
            let Some(gradient) = gradients.get(name) else {
                continue;
            };
            let weight = var.as_detached_tensor();
            let gradient = ((gradient * gradient_scale)? + (&weight * self.weight_decay)?)?;
            let mean = buffer_of(&mut self.means, name, var)?;
            let square = buffer_of(&mut self.squares, name, var)?;
            mean.set(&((mean.as_detached_tensor() * b1)? + (&gradient * (1.0 - b1))?)?)?;
            square
                .set(&((square.as_detached_tensor() * b2)? + (gradient.sqr()? * (1.0 - b2))?)?)?;
            let root = (square.as_detached_tensor().sqrt()? / correction2.sqrt())?;
            let step = (mean.as_detached_tensor() / (root + self.eps)?)?;
            var.set(&(weight - (step * (self.learning_rate / correction1))?)?)?;
        }
        Ok(())
    }

    /// The number of steps taken, and the moments as `mean.<name>` and `square.<name>`.
    pub fn state(&self) -> Result<(u64, BTreeMap<String, Tensor>)> {
        let prefixed = |prefix: &str, vars: &BTreeMap<String, Var>| {
            copies(vars).map(|state| {
                state
                    .into_iter()
                    .map(|(name, tensor)| (format!("{prefix}.{name}"), tensor))
                    .collect::<BTreeMap<_, _>>()
            })
        };
        let mut state = prefixed("mean", &self.means)?;
        state.extend(prefixed("square", &self.squares)?);
        Ok((self.n_steps, state))
    }

    /// Restores what [`Adam::state`] gave.
    pub fn load(&mut self, n_steps: u64, state: &BTreeMap<String, Tensor>) -> Result<()> {
        let stripped = |prefix: &str| {
            let own: BTreeMap<String, Tensor> = state
                .iter()
                .filter_map(|(name, tensor)| {
                    Some((name.strip_prefix(prefix)?.to_owned(), tensor.clone()))
                })
                .collect();
            vars(&own)
        };
        self.means = stripped("mean.")?;
        self.squares = stripped("square.")?;
        self.n_steps = n_steps;
        Ok(())
    }
}

/// The state of a parameter, zeros at first.
fn buffer_of(buffers: &mut BTreeMap<String, Var>, name: &str, like: &Var) -> Result<Var> {
    if let Some(buffer) = buffers.get(name) {
        return Ok(buffer.clone());
    }
    let buffer = Var::zeros(like.shape(), like.dtype(), like.device())?;
    buffers.insert(name.to_owned(), buffer.clone());
    Ok(buffer)
}

fn copies(vars: &BTreeMap<String, Var>) -> Result<BTreeMap<String, Tensor>> {
    vars.iter()
        .map(|(name, var)| Ok((name.clone(), var.as_detached_tensor().copy()?)))
        .collect()
}

fn vars(state: &BTreeMap<String, Tensor>) -> Result<BTreeMap<String, Var>> {
    state
        .iter()
        .map(|(name, tensor)| Ok((name.clone(), Var::from_tensor(tensor)?)))
        .collect()
}

/// buffer = momentum * buffer + gradient_scale * gradient + weight_decay * weight, in place.
struct SgdUpdate {
    momentum: f64,
    weight_decay: f64,
    gradient_scale: f64,
}

impl candle_core::InplaceOp3 for SgdUpdate {
    fn name(&self) -> &'static str {
        "sgd-update"
    }

    fn cpu_fwd(
        &self,
        buffer: &mut CpuStorage,
        buffer_layout: &Layout,
        gradient: &CpuStorage,
        gradient_layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
    ) -> Result<()> {
        macro_rules! update {
            ($float:ty, $buffer:expr, $gradient:expr, $weight:expr) => {{
                let (m, d, s) = (
                    self.momentum as $float,
                    self.weight_decay as $float,
                    self.gradient_scale as $float,
                );
                let buffer = &mut $buffer[range(self.name(), buffer_layout)?];
                let gradient = &$gradient[range(self.name(), gradient_layout)?];
                let weight = &$weight[range(self.name(), weight_layout)?];
                for ((b, g), w) in buffer.iter_mut().zip(gradient).zip(weight) {
                    *b = m * *b + s * g + d * w;
                }
                Ok(())
            }};
        }
        match (buffer, gradient, weight) {
            (CpuStorage::F32(b), CpuStorage::F32(g), CpuStorage::F32(w)) => update!(f32, b, g, w),
            (CpuStorage::F64(b), CpuStorage::F64(g), CpuStorage::F64(w)) => update!(f64, b, g, w),
            _ => candle_core::bail!("sgd-update: gradients and weights must both be f32 or f64"),
        }
    }
}

/// x += factor * y, in place.
struct AddScaled(f64);

impl candle_core::InplaceOp2 for AddScaled {
    fn name(&self) -> &'static str {
        "add-scaled"
    }

    fn cpu_fwd(
        &self,
        x: &mut CpuStorage,
        x_layout: &Layout,
        y: &CpuStorage,
        y_layout: &Layout,
    ) -> Result<()> {
        macro_rules! add {
            ($float:ty, $x:expr, $y:expr) => {{
                let factor = self.0 as $float;
                let x = &mut $x[range(self.name(), x_layout)?];
                let y = &$y[range(self.name(), y_layout)?];
                for (x, y) in x.iter_mut().zip(y) {
                    *x += factor * y;
                }
                Ok(())
            }};
        }
        match (x, y) {
            (CpuStorage::F32(x), CpuStorage::F32(y)) => add!(f32, x, y),
            (CpuStorage::F64(x), CpuStorage::F64(y)) => add!(f64, x, y),
            _ => candle_core::bail!("add-scaled: both tensors must be f32 or f64"),
        }
    }
}

/// The elements of a contiguous layout in its storage.
fn range(op: &'static str, layout: &Layout) -> Result<std::ops::Range<usize>> {
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(start..end),
        None => candle_core::bail!("{op}: tensors must be contiguous"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    fn one_weight(value: f64) -> (Parameters, Var) {
        let var = Var::from_tensor(&Tensor::new(&[value], &Device::Cpu).unwrap()).unwrap();
        let weights = BTreeMap::from([("w".to_owned(), var.clone())]);
        (Parameters::from_weights(weights), var)
    }

    fn gradient(value: f64) -> Gradients {
        let gradient = Tensor::new(&[value], &Device::Cpu).unwrap();
        Gradients {
            by_name: BTreeMap::from([("w".to_owned(), gradient)]),
        }
    }

    fn value(var: &Var) -> f64 {
        var.to_vec1::<f64>().unwrap()[0]
    }

    #[test]
    fn sgd_follows_the_formula() {
        let (parameters, var) = one_weight(2.0);
        let mut sgd = Sgd::new(0.9, 0.1);
        sgd.step(&parameters, &gradient(3.0), 0.5, 0.5).unwrap();
        // buffer = 0.5 * 3 + 0.1 * 2 = 1.7
        assert!((value(&var) - (2.0 - 0.5 * 1.7)).abs() < 1e-15);
        let w = value(&var);
        sgd.step(&parameters, &gradient(-1.0), 0.5, 1.0).unwrap();
        let buffer = 0.9 * 1.7 - 1.0 + 0.1 * w;
        assert!((value(&var) - (w - 0.5 * buffer)).abs() < 1e-15);
    }

    #[test]
    fn sgd_in_few_launches_is_sgd() {
        let run = |there: bool| {
            let (parameters, var) = one_weight(2.0);
            let mut sgd = Sgd::new(0.9, 0.1);
            for value in [3.0, -1.0, 0.5] {
                let g = gradient(value);
                match there {
                    true => sgd.step_there(&parameters, &g, 0.5, 0.5).unwrap(),
                    false => sgd.step(&parameters, &g, 0.5, 0.5).unwrap(),
                }
            }
            value(&var)
        };
        assert!((run(true) - run(false)).abs() < 1e-14);
    }

    #[test]
    fn adam_adds_the_decay_to_the_gradient() {
        let (parameters, var) = one_weight(2.0);
        let mut adam = Adam::new(0.01, (0.5, 0.999), 0.1);
        adam.step(&parameters, &gradient(-0.2), 1.0).unwrap();
        // The gradient and the decay cancel: coupled Adam stands still, AdamW would shrink the weight.
        assert!((value(&var) - 2.0).abs() < 1e-12);
        adam.step(&parameters, &gradient(0.8), 1.0).unwrap();
        let (mean, square) = (0.5 * 1.0, 0.001 * 1.0);
        let step = (mean / (1.0 - 0.25)) / ((square / (1.0 - 0.999f64.powi(2))).sqrt() + 1e-8);
        assert!((value(&var) - (2.0 - 0.01 * step)).abs() < 1e-9);
    }

    #[test]
    fn a_restored_optimiser_goes_on_as_if_never_interrupted() {
        let run = |interrupt: bool| {
            let (parameters, var) = one_weight(1.0);
            let mut sgd = Sgd::new(0.9, 1e-3);
            let mut adam = Adam::new(0.1, (0.5, 0.999), 1e-3);
            for step in 0..6 {
                if interrupt && step == 3 {
                    let mut fresh = Sgd::new(0.9, 1e-3);
                    fresh.load(&sgd.state().unwrap()).unwrap();
                    sgd = fresh;
                    let mut fresh = Adam::new(0.1, (0.5, 0.999), 1e-3);
                    let (n_steps, state) = adam.state().unwrap();
                    fresh.load(n_steps, &state).unwrap();
                    adam = fresh;
                }
                let g = gradient((step as f64).sin());
                sgd.step(&parameters, &g, 0.1, 1.0).unwrap();
                adam.step(&parameters, &g, 1.0).unwrap();
            }
            value(&var)
        };
        assert_eq!(run(false), run(true));
    }

    #[test]
    fn the_norm_is_that_of_all_numbers() -> Result<()> {
        for dtype in [DType::F32, DType::F64] {
            let all = Tensor::arange(0_f32, 57.0, &Device::Cpu)?.to_dtype(dtype)?;
            let by_name = [
                ("a".to_string(), all.narrow(0, 0, 19)?),
                (
                    "b".to_string(),
                    all.narrow(0, 19, 38)?.reshape((2, 19))?.t()?,
                ),
            ];
            let gradients = Gradients {
                by_name: by_name.into(),
            };
            let expected: f64 = (0..57).map(|x| f64::from(x * x)).sum();
            assert!((gradients.global_norm()? - expected.sqrt()).abs() < 1e-9);
        }
        Ok(())
    }

    #[test]
    fn clipping_scales_to_the_norm_and_never_up() {
        let (factor, norm) = gradient(10.0).clip_factor(5.0).unwrap();
        assert_eq!(norm, 10.0);
        assert!((factor * norm - 5.0).abs() < 1e-5);
        assert_eq!(gradient(1.0).clip_factor(5.0).unwrap().0, 1.0);
    }

    #[test]
    fn clipping_where_the_gradients_are_is_clipping_by_the_factor() {
        for value in [10.0, 1.0, -7.5, 0.0] {
            let (factor, _) = gradient(value).clip_factor(5.0).unwrap();
            let clipped = gradient(value).clipped_there(5.0).unwrap();
            let clipped: Vec<f64> = clipped.get("w").unwrap().to_vec1().unwrap();
            assert!((clipped[0] - factor * value).abs() < 1e-12, "{value}");
        }
    }
}
