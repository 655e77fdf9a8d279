//! Fused cells one behind the other, as one operation of candle's.

use std::ops::Range;
use std::sync::{Arc, Mutex};

use candle_core::{CpuStorage, CustomOp3, DType, Layout, Result, Shape, Storage, Tensor};
use kernels::Element;
use kernels::planes::{
    Affine, Buffer, Grid, NormGrad, PointwiseGrads, Source, Target, accumulate, pointwise_backward,
};
use rayon::prelude::*;

use super::backward::{Backward, Halves, InputGrad, NormedGrad};
use super::forward::{Preprocessed, Saved, Statistics, preprocess, source};
use super::plan::{Plan, Sizes};
use super::stem::{SavedStem, StemPlan, StemRun};
use super::{CellOp, CellRun, FusedCell, Masks, Wants, cast, planes, planes_mut, slice};
use crate::Pass;
use crate::awake::Awake;
use crate::layers::{BatchNorm, Stem, planes_average_pool, to_planes};

/// Cells in a row, each of which reads the outputs of the two before it.
///
/// What goes from cell to cell, activations and their gradients, is not stored in tensors: candle would clear a
/// gradient and add to it for each of its readers, and give the memory of all back to the system.
pub(crate) struct Chain<'a> {
    pub(crate) cells: Vec<&'a FusedCell>,
    pub(crate) mixing: Option<ChainMixing<'a>>,
}

/// The weights of operations and edges in a row of cells.
pub(crate) struct ChainMixing<'a> {
    /// Of each cell kind, those of the operations, `e p`, and of the edges, `e`.
    pub(crate) of_kinds: [(Tensor, Option<&'a Tensor>); 2],
    /// The kind of each cell.
    pub(crate) kinds: Vec<usize>,
}

/// The last two outputs of a row of cells, `c h w n`.
pub(crate) struct Ends {
    pub(crate) s0: Tensor,
    pub(crate) s1: Tensor,
}

/// What a row of cells begins with.
pub(crate) enum Start<'a> {
    /// What others gave.
    Ends(Ends),
    /// Images, and the stem in front of the cells.
    Images(StemRun<'a>),
}

impl<'a> Start<'a> {
    /// Of images `n c h w`.
    pub(crate) fn of_images(stem: &'a Stem, x: &Tensor, pass: &Pass<'_>) -> Result<Self> {
        if let Some(run) = stem.run(x, pass)? {
            return Ok(Self::Images(run));
        }
        let (s0, s1) = stem.forward(x, pass)?;
        let planes = to_planes(&s1)?;
        Ok(Self::Ends(Ends {
            s0: if s0.id() == s1.id() {
                planes.clone()
            } else {
                to_planes(&s0)?
            },
            s1: planes,
        }))
    }
}

/// What a chain gives.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Gives {
    /// The mean over all pixels of the last output, `c n`.
    Mean,
    /// The last two outputs; the stem's is one, too.
    Ends,
}

impl Chain<'_> {
    /// The mean over all pixels of the last cell's output, `[n, c]`.
    pub(crate) fn pooled(&self, start: &Start<'_>, pass: &Pass<'_>) -> Result<Tensor> {
        match start {
            Start::Ends(ends) if self.cells.is_empty() => planes_average_pool(&ends.s1),
            _ => {
                let (y, [_, shape]) = self.run(start, pass, Gives::Mean)?;
                y.reshape(shape)?.t()
            }
        }
    }

    /// The outputs of the last two cells, or of the last one and what came before.
    pub(crate) fn ends(&self, start: Start<'_>, pass: &Pass<'_>) -> Result<Ends> {
        match start {
            Start::Ends(ends) if self.cells.is_empty() => Ok(ends),
            start => {
                let (y, [shape0, shape1]) = self.run(&start, pass, Gives::Ends)?;
                let len = shape0.elem_count();
                let s1 = y.narrow(0, len, shape1.elem_count())?.reshape(shape1)?;
                let s0 = match start {
                    Start::Ends(ends) if self.cells.len() == 1 => ends.s1,
                    _ => y.narrow(0, 0, len)?.reshape(shape0)?,
                };
                Ok(Ends { s0, s1 })
            }
        }
    }

    /// The numbers that are given, and the shapes of the last two outputs as they are given.
    fn run(
        &self,
        start: &Start<'_>,
        pass: &Pass<'_>,
        gives: Gives,
    ) -> Result<(Tensor, [Shape; 2])> {
        let weights = self.cells.iter().flat_map(|cell| &cell.weights);
        let mut parameters = weights
            .map(|var| pass.weight(var).flatten_all())
            .collect::<Result<Vec<_>>>()?;
        let mut wants_mixing = false;
        let mut mixing = [0..0, 0..0];
        let mut len = self.cells.iter().map(|cell| cell.plan.n_weights).sum();
        for (range, (operations, edges)) in mixing
            .iter_mut()
            .zip(self.mixing.iter().flat_map(|mixing| &mixing.of_kinds))
        {
            let start = len;
            for tensor in [Some(operations), *edges].into_iter().flatten() {
                wants_mixing |= tensor.track_op();
                len += tensor.elem_count();
                parameters.push(tensor.flatten_all()?);
            }
            *range = start..len;
        }
        let (s, wants_inputs, stem) = match start {
            Start::Ends(Ends { s0, s1 }) => {
                let wants = [s0.track_op(), s1.track_op()];
                ([s0.contiguous()?, s1.contiguous()?], wants, None)
            }
            Start::Images(stem) => {
                for tensor in &stem.parameters {
                    parameters.push(tensor.flatten_all()?);
                }
                let wants = [pass.tracks_weights(); 2];
                ([stem.x.clone(), stem.x.clone()], wants, Some(stem))
            }
        };
        let parameters = Tensor::cat(&parameters, 0)?;
        let wants = Wants {
            inputs: wants_inputs,
            weights: pass.tracks_weights(),
            mixing: wants_mixing,
        };
        let n_images = s[1].dim(3)?;
        let kind_of = |index| self.mixing.as_ref().map_or(0, |mixing| mixing.kinds[index]);
        let mut first = 0;
        let cells = self.cells.iter().enumerate().map(|(index, cell)| {
            let own = first..first + cell.plan.n_weights;
            first = own.end;
            Ok(ChainCell {
                plan: cell.plan.clone(),
                parameters: own,
                mixing: mixing[kind_of(index)].clone(),
                running: match pass.is_training() {
                    true => None,
                    false => Some(cell.running()?),
                },
                masks: cell.masks(n_images, pass),
            })
        });
        let op = Arc::new(ChainCells {
            stem: stem.map(|stem| stem.plan(len)),
            cells: cells.collect::<Result<_>>()?,
            starts_alike: s[0].id() == s[1].id(),
            wants,
            gives,
        });
        let norm = stem.map(|stem| stem.norm);
        match s[0].dtype() {
            DType::F64 => self.apply::<f64>(&s, &parameters, op, norm),
            _ => self.apply::<f32>(&s, &parameters, op, norm),
        }
    }

    fn apply<T: Element>(
        &self,
        [s0, s1]: &[Tensor; 2],
        parameters: &Tensor,
        chain: Arc<ChainCells>,
        stem: Option<&BatchNorm>,
    ) -> Result<(Tensor, [Shape; 2])> {
        let saved = Arc::new(Mutex::new(SavedChain::default()));
        let op = ChainOp::<T> {
            chain: chain.clone(),
            saved: saved.clone(),
        };
        let y = s0.apply_op3(s1, parameters, op)?;
        let saved = saved.lock().expect("no thread panicked with it");
        if let (Some(norm), Some(stem), true) = (stem, &saved.stem, saved.is_of_training()) {
            norm.observe(&stem.statistics.of_batch())?;
        }
        let norms = self.cells.iter().flat_map(|cell| &cell.norms);
        let cells = saved.cells.iter().filter_map(|cell| cell.saved.as_ref());
        let statistics = cells.flat_map(|saved| &saved.statistics);
        for (norm, statistics) in norms.zip(statistics) {
            norm.observe(&statistics.of_batch())?;
        }
        let mut shapes: Vec<Shape> = chain.stem.iter().map(stem_shape).collect();
        shapes.extend(saved.cells.iter().map(SavedCell::shape));
        let last = match (chain.gives, saved.cells.last()) {
            (Gives::Mean, Some(cell)) => Shape::from((cell.n_planes, cell.sizes.node.n)),
            _ => shapes[shapes.len() - 1].clone(),
        };
        let before = shapes.len().checked_sub(2).map(|at| shapes[at].clone());
        Ok((y, [before.unwrap_or(Shape::from(0)), last]))
    }
}

fn stem_shape(stem: &StemPlan) -> Shape {
    let Grid { h, w, n } = stem.grid();
    Shape::from((stem.n_out(), h, w, n))
}

/// A cell of a chain: the places of its parameters and of the weights that mix it.
struct ChainCell {
    plan: Arc<Plan>,
    parameters: Range<usize>,
    mixing: Range<usize>,
    /// What its batch normalisations go by outside training.
    running: Option<Vec<Statistics>>,
    masks: Option<Masks>,
}

/// What a chain computes.
struct ChainCells {
    /// What makes of images what the first cell reads.
    stem: Option<StemPlan>,
    cells: Vec<ChainCell>,
    /// Whether both starts are one.
    starts_alike: bool,
    wants: Wants,
    gives: Gives,
}

/// An input of a cell that a kernel reads as large as it is.
struct Reader {
    cell: usize,
    input: usize,
    /// The place of the kernel among the parameters of the chain.
    kernel: Range<usize>,
}

impl ChainCells {
    fn op(&self, index: usize) -> CellOp<'_> {
        let wants = self.wants;
        let inputs = [0, 1].map(|input| self.wants_grad(self.read_by(index, input)));
        let cell = &self.cells[index];
        CellOp {
            plan: &cell.plan,
            wants: Wants { inputs, ..wants },
            running: cell.running.as_deref(),
            masks: cell.masks.as_ref(),
        }
    }

    /// What a cell reads, by number: the two starts, of which the second stands for both where they are one, and then the
    /// outputs of the cells.
    fn read_by(&self, cell: usize, input: usize) -> usize {
        match cell + input {
            0 if self.starts_alike => 1,
            number => number,
        }
    }

    /// Whether the gradient of a start or of an output leads to a variable.
    fn wants_grad(&self, number: usize) -> bool {
        let Wants {
            inputs,
            weights,
            mixing,
        } = self.wants;
        match inputs.get(number) {
            Some(&input) => input,
            None => weights || mixing || inputs[0] || inputs[1],
        }
    }

    /// Who reads a start or an output as large as it is.
    fn readers(&self, number: usize) -> Vec<Reader> {
        let cells = number.saturating_sub(2)..self.cells.len().min(number + 1);
        let inputs = cells.flat_map(|cell| [0, 1].map(|input| (cell, input)));
        inputs
            .filter(|&(cell, input)| self.read_by(cell, input) == number)
            .filter_map(|(cell, input)| self.reader(cell, input))
            .collect()
    }

    fn reader(&self, cell: usize, input: usize) -> Option<Reader> {
        let ChainCell {
            plan, parameters, ..
        } = &self.cells[cell];
        match &plan.inputs[input].kernels[..] {
            [kernel] => Some(Reader {
                cell,
                input,
                kernel: parameters.start + kernel.start..parameters.start + kernel.end,
            }),
            _ => None,
        }
    }

    /// Whether what a stem gives has to be stored: where it is given, or halved. Kernels normalise it as they read.
    fn stores_stem(&self) -> bool {
        let n_given = match self.gives {
            Gives::Mean => 1,
            Gives::Ends => 2,
        };
        let mut inputs = (0..self.cells.len()).flat_map(|cell| [(cell, 0), (cell, 1)]);
        // The stem stands for both starts, of which the second is read.
        let is_halved = inputs.any(|(cell, input)| {
            self.read_by(cell, input) == 1 && self.reader(cell, input).is_none()
        });
        is_halved || self.cells.len() < n_given
    }

    /// What all that read a start or an output make of it.
    fn preprocess<T: Element>(
        &self,
        number: usize,
        s: Source<'_, T>,
        grid: Grid,
        parameters: &[T],
        made: &mut [[Option<Preprocessed<T>>; 2]],
    ) {
        let readers = self.readers(number);
        if readers.is_empty() {
            return;
        }
        let kernels = readers
            .iter()
            .map(|reader| &parameters[reader.kernel.clone()]);
        let kernels: Vec<&[T]> = kernels.collect();
        for (reader, own) in readers.iter().zip(preprocess(s, grid, &kernels)) {
            made[reader.cell][reader.input] = Some(own);
        }
    }
}

/// A cell that has run, with what its backward pass needs.
struct SavedCell<T: Element> {
    sizes: Sizes,
    n_planes: usize,
    nodes: Buffer<T>,
    /// Nothing outside training.
    saved: Option<Saved<T>>,
}

impl<T: Element> SavedCell<T> {
    fn shape(&self) -> Shape {
        let Grid { h, w, n } = self.sizes.node;
        Shape::from((self.n_planes, h, w, n))
    }
}

/// A chain that has run.
struct SavedChain<T: Element> {
    stem: Option<SavedStem<T>>,
    cells: Vec<SavedCell<T>>,
}

impl<T: Element> Default for SavedChain<T> {
    fn default() -> Self {
        Self {
            stem: None,
            cells: Vec::new(),
        }
    }
}

impl<T: Element> SavedChain<T> {
    fn is_of_training(&self) -> bool {
        self.cells.iter().any(|cell| cell.saved.is_some())
    }

    /// The outputs of stem and cells, in order; nothing of a stem whose output is not stored.
    fn outputs(&self) -> Vec<&[T]> {
        let stem = self.stem.iter().map(SavedStem::output);
        stem.chain(self.cells.iter().map(|cell| &cell.nodes[..]))
            .collect()
    }

    /// What the cell at `index` reads: outputs of cells, of the stem (nothing, if that is not stored), or else what the chain
    /// starts from.
    fn sources<'a>(&'a self, s: [&'a [T]; 2], index: usize) -> [&'a [T]; 2] {
        [0, 1].map(|input| match (index + input).checked_sub(2) {
            Some(cell) => &self.cells[cell].nodes[..],
            None => match &self.stem {
                Some(stem) => stem.output(),
                None => s[index + input],
            },
        })
    }

    /// The planes of a start, with the normalisation that is still to come if one is.
    fn start<'a>(
        &'a self,
        s: [&'a [T]; 2],
        number: usize,
        grid: Grid,
    ) -> (Vec<&'a [T]>, Option<&'a [Affine<T>]>) {
        match &self.stem {
            Some(stem) if stem.y.is_none() => {
                let (planes, affine) = stem.raw(grid.len());
                (planes, Some(affine))
            }
            _ => (planes(self.sources(s, 0)[number], grid.len()), None),
        }
    }
}

/// One run of a chain.
struct ChainOp<T: Element> {
    chain: Arc<ChainCells>,
    saved: Arc<Mutex<SavedChain<T>>>,
}

fn grid(shape: &Shape) -> Result<Grid> {
    let (_, h, w, n) = shape.dims4()?;
    Ok(Grid { h, w, n })
}

impl<T: Element> CustomOp3 for ChainOp<T> {
    fn name(&self) -> &'static str {
        "fused_cells"
    }

    fn cpu_fwd(
        &self,
        s0: &CpuStorage,
        l0: &Layout,
        s1: &CpuStorage,
        l1: &Layout,
        parameters: &CpuStorage,
        l2: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let _awake = Awake::others();
        let chain = &*self.chain;
        let s = [slice::<T>(s0, l0)?, slice::<T>(s1, l1)?];
        let parameters = slice::<T>(parameters, l2)?;
        let mut grids = [grid(l0.shape())?, grid(l1.shape())?];
        let mut saved = SavedChain::default();
        if let Some(stem) = &chain.stem {
            saved.stem = Some(stem.forward(s[0], parameters, chain.stores_stem()));
            grids = [stem.grid(); 2];
        }
        let mut made: Vec<[Option<Preprocessed<T>>; 2]> = Vec::new();
        made.resize_with(chain.cells.len(), Default::default);
        for (number, grid) in grids.into_iter().enumerate() {
            let (planes, affine) = saved.start(s, number, grid);
            let start = source(&planes, affine);
            chain.preprocess(number, start, grid, parameters, &mut made);
        }
        for (index, cell) in chain.cells.iter().enumerate() {
            let sizes = cell.plan.sizes(grids)?;
            let (nodes, own) = chain.op(index).forward(
                saved.sources(s, index),
                std::mem::take(&mut made[index]),
                &sizes,
                &parameters[cell.parameters.clone()],
                &parameters[cell.mixing.clone()],
            );
            grids = [grids[1], sizes.node];
            let output = planes(&nodes, sizes.node.len());
            let output = Source::new(&output);
            chain.preprocess(index + 2, output, sizes.node, parameters, &mut made);
            saved.cells.push(SavedCell {
                sizes,
                n_planes: cell.plan.n_nodes * cell.plan.channels,
                nodes,
                saved: cell.running.is_none().then_some(own),
            });
            if cell.running.is_some()
                && let Some(unread) = index.checked_sub(2)
            {
                saved.cells[unread].nodes = Buffer::default();
            }
        }
        let outputs = saved.outputs();
        let y: Vec<T> = match (chain.gives, outputs.last()) {
            (Gives::Mean, Some(last)) => pixel_means(&planes(last, grids[1].len()), grids[1]),
            _ => outputs[outputs.len().saturating_sub(2)..].concat(),
        };
        let shape = Shape::from(y.len());
        *self.saved.lock().expect("no thread panicked with it") = saved;
        Ok((T::to_cpu_storage_owned(y), shape))
    }

    fn bwd(
        &self,
        s0: &Tensor,
        s1: &Tensor,
        parameters: &Tensor,
        _: &Tensor,
        grad_out: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let _awake = Awake::others();
        let saved = std::mem::take(&mut *self.saved.lock().expect("no thread panicked with it"));
        if !saved.is_of_training() {
            candle_core::bail!(
                "fused cells: the backward pass runs once for each forward pass in training"
            );
        }
        let grad_out = grad_out.contiguous()?;
        let grads = {
            let tensors = [s0, s1, parameters, &grad_out].map(Tensor::storage_and_layout);
            let mut slices = Vec::with_capacity(tensors.len());
            for (storage, layout) in &tensors {
                let Storage::Cpu(storage) = &**storage else {
                    candle_core::bail!("fused cells: run on the CPU alone");
                };
                slices.push(slice::<T>(storage, layout)?);
            }
            self.backward(saved, [slices[0], slices[1]], slices[2], slices[3])
        };
        let tensor = |grad: Option<Vec<T>>, like: &Tensor| {
            grad.map(|grad| Tensor::from_vec(grad, like.shape(), like.device()))
                .transpose()
        };
        let [grad0, grad1] = grads.inputs.map(|grad| grad.map(|grad| grad.to_vec()));
        let wants = self.chain.wants;
        let grad_parameters = (wants.weights || wants.mixing).then(|| cast::<T>(&grads.parameters));
        Ok((
            tensor(grad0, s0)?,
            tensor(grad1, s1)?,
            tensor(grad_parameters, parameters)?,
        ))
    }
}

/// The gradients of a chain.
struct ChainGrads<T: Element> {
    /// Of what it starts from, unless that is images.
    inputs: [Option<Buffer<T>>; 2],
    parameters: Vec<f64>,
}

/// What is known of the gradient of a start or of an output.
struct Pending<T: Element> {
    /// What the one of its readers has found that halves it, if one does.
    halves: Option<Halves<T>>,
    /// What the others have found: the kernel of each, the gradient of what that made, and what tells of this.
    found: Vec<(Range<usize>, NormedGrad<T>, Buffer<T>)>,
}

impl<T: Element> Default for Pending<T> {
    fn default() -> Self {
        Self {
            halves: None,
            found: Vec::new(),
        }
    }
}

impl<T: Element> ChainOp<T> {
    /// From the last cell to the first; what a cell saved is given back once it is done. Where a chain starts from one
    /// tensor twice, the first gradient is that of both.
    fn backward(
        &self,
        mut saved: SavedChain<T>,
        s: [&[T]; 2],
        parameters: &[T],
        grad_out: &[T],
    ) -> ChainGrads<T> {
        let chain = &*self.chain;
        let mut grad_parameters = vec![0.0; parameters.len()];
        let n = saved.cells.len();
        let start_grids = saved.cells[0].sizes.raw;
        // What is known so far of the gradients of what the chain starts from and of each output.
        let mut pending: Vec<Pending<T>> = Vec::new();
        pending.resize_with(n + 2, Pending::default);
        let spread = match chain.gives {
            Gives::Mean => saved
                .cells
                .last()
                .map(|cell| of_pixels(grad_out, cell.n_planes, cell.sizes.node)),
            Gives::Ends => None,
        };
        // What is given of the gradients of the last outputs, from behind.
        let mut given: Vec<&[T]> = match &spread {
            Some(spread) => vec![spread],
            None => {
                let mut end = grad_out.len();
                let lens = saved.outputs().into_iter().rev().take(2).map(<[T]>::len);
                lens.map(|len| {
                    end -= len;
                    &grad_out[end..end + len]
                })
                .collect()
            }
        };
        given.reverse();
        for index in (0..n).rev() {
            let cell = &chain.cells[index];
            let SavedCell {
                sizes,
                nodes,
                saved: Some(own_saved),
                ..
            } = &saved.cells[index]
            else {
                unreachable!("a chain has saved what all its cells need, or nothing");
            };
            let own = std::mem::take(&mut pending[index + 2]);
            let own = self.gather(
                own,
                index + 2,
                sizes.node,
                Source::new(&planes(nodes, sizes.node.len())),
                parameters,
                &mut grad_parameters,
            );
            let run = CellRun {
                op: chain.op(index),
                sizes,
                parameters: &parameters[cell.parameters.clone()],
                mixing: &parameters[cell.mixing.clone()],
                s: saved.sources(s, index),
                nodes,
                saved: own_saved,
            };
            let given = given
                .pop()
                .into_iter()
                .chain(own.iter().map(|grad| &grad[..]))
                .collect();
            let grads = Backward::new(run, given).run();
            for (range, own) in [
                (&cell.parameters, &grads.parameters),
                (&cell.mixing, &grads.mixing),
            ] {
                let sums = grad_parameters[range.clone()].iter_mut();
                sums.zip(own).for_each(|(sum, own)| *sum += own);
            }
            let done = saved.cells.pop().and_then(|cell| cell.saved);
            let inputs = done.into_iter().flat_map(|saved| saved.inputs);
            for (input, (grad, saved)) in grads.inputs.into_iter().zip(inputs).enumerate() {
                let pending = &mut pending[chain.read_by(index, input)];
                match (grad, chain.reader(index, input)) {
                    (Some(InputGrad::Preprocessed(grad)), Some(reader)) => {
                        pending.found.push((reader.kernel, grad, saved.into_seen()));
                    }
                    (Some(InputGrad::Halved(grads)), _) => pending.halves = Some(grads),
                    _ => {}
                }
            }
        }
        let mut inputs = [0, 1].map(|number| {
            let own = std::mem::take(&mut pending[number]);
            let grid = start_grids[number];
            let (planes, affine) = saved.start(s, number, grid);
            let start = source(&planes, affine);
            self.gather(own, number, grid, start, parameters, &mut grad_parameters)
        });
        if chain.starts_alike {
            inputs.swap(0, 1);
        }
        if let (Some(stem), Some(saved)) = (&chain.stem, &saved.stem)
            && let [Some(mut grad), _] = std::mem::take(&mut inputs)
        {
            if let Some(given) = given.pop() {
                accumulate(vec![&mut grad], &[given]);
            }
            stem.backward(s[0], parameters, saved, &grad, &mut grad_parameters);
        }
        ChainGrads {
            inputs,
            parameters: grad_parameters,
        }
    }

    /// The gradient of a start or of an output `s`, if anything reads it and it is wanted, once all that read it are done; and
    /// those of the kernels that do, added to what is there.
    fn gather(
        &self,
        Pending { halves, found }: Pending<T>,
        number: usize,
        grid: Grid,
        s: Source<'_, T>,
        parameters: &[T],
        grad_parameters: &mut [f64],
    ) -> Option<Buffer<T>> {
        let len = grid.len();
        let is_read = !found.is_empty() || halves.is_some();
        let mut grad_s =
            (is_read && self.chain.wants_grad(number)).then(|| Buffer::any(s.n_planes() * len));
        let grads = found.iter().map(|(_, grad, seen)| grad.of(seen, len));
        if let Some(grads) = grads.reduce(NormGrad::and) {
            let kernels: Vec<&[T]> = found
                .iter()
                .map(|(kernel, ..)| &parameters[kernel.clone()])
                .collect();
            let wanted = PointwiseGrads {
                x: grad_s
                    .as_deref_mut()
                    .map(|grad_s| Target::new(planes_mut(grad_s, len))),
                w: self.chain.wants.weights,
            };
            let of_kernels = pointwise_backward(s, &kernels.concat(), &grads, wanted);
            let mut of_kernels = of_kernels.into_iter().flatten();
            for (kernel, ..) in &found {
                let sums = grad_parameters[kernel.clone()].iter_mut();
                sums.zip(of_kernels.by_ref())
                    .for_each(|(sum, grad)| *sum += grad);
            }
        }
        if let (Some(grad_s), Some(halves)) = (&mut grad_s, halves) {
            halves.add_to(grid, grad_s, !found.is_empty());
        }
        grad_s
    }
}

/// The mean over all pixels of each plane and image, `c n`.
fn pixel_means<T: Element>(planes: &[&[T]], grid: Grid) -> Vec<T> {
    let scale = T::from_f64(1.0 / (grid.h * grid.w) as f64);
    let mut means = vec![T::zero(); planes.len() * grid.n];
    let of_planes = means.par_chunks_exact_mut(grid.n.max(1)).zip(planes);
    of_planes.for_each(|(means, plane)| {
        for pixel in plane.chunks_exact(grid.n.max(1)) {
            for (mean, &x) in means.iter_mut().zip(pixel) {
                *mean += x;
            }
        }
        for mean in means {
            *mean *= scale;
        }
    });
    means
}

/// The gradient of all pixels from that of their means, `c n`.
fn of_pixels<T: Element>(grad: &[T], n_planes: usize, grid: Grid) -> Buffer<T> {
    let scale = T::from_f64(1.0 / (grid.h * grid.w) as f64);
    let mut all = Buffer::any(n_planes * grid.len());
    let planes = all.par_chunks_exact_mut(grid.len().max(1));
    planes
        .zip(grad.par_chunks_exact(grid.n.max(1)))
        .for_each(|(plane, grad)| {
            for pixel in plane.chunks_exact_mut(grid.n.max(1)) {
                for (all, &grad) in pixel.iter_mut().zip(grad) {
                    *all = grad * scale;
                }
            }
        });
    all
}
