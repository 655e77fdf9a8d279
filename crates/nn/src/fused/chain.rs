//! Fused cells one behind the other, as one operation of candle's.

use std::ops::Range;
use std::sync::{Arc, Mutex};

use candle_core::{CpuStorage, CustomOp3, DType, Layout, Result, Shape, Storage, Tensor};
use kernels::planes::{Buffer, Grid, Outputs, Term, combine};
use kernels::{BatchStatistics, Element};

use super::backward::Backward;
use super::forward::{Saved, Statistics};
use super::plan::{Plan, Sizes};
use super::{CellOp, CellRun, FusedCell, Masks, Wants, cast, slice};
use crate::Pass;
use crate::layers::{Stem, to_planes};

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

impl Ends {
    /// What a stem gives of images `n c h w`.
    pub(crate) fn of_images(stem: &Stem, x: &Tensor, pass: &Pass<'_>) -> Result<Self> {
        if let Some(y) = stem.planes(x, pass)? {
            return Ok(Self {
                s0: y.clone(),
                s1: y,
            });
        }
        let (s0, s1) = stem.forward(x, pass)?;
        let planes = to_planes(&s1)?;
        Ok(Self {
            s0: if s0.id() == s1.id() {
                planes.clone()
            } else {
                to_planes(&s0)?
            },
            s1: planes,
        })
    }
}

impl Chain<'_> {
    /// The output of the last cell, `c h w n`.
    pub(crate) fn last(&self, ends: &Ends, pass: &Pass<'_>) -> Result<Tensor> {
        if self.cells.is_empty() {
            return Ok(ends.s1.clone());
        }
        let (y, [_, shape]) = self.run(ends, pass, false)?;
        y.reshape(shape)
    }

    /// The outputs of the last two cells.
    pub(crate) fn ends(&self, ends: Ends, pass: &Pass<'_>) -> Result<Ends> {
        match self.cells.len() {
            0 => Ok(ends),
            1 => Ok(Ends {
                s1: self.last(&ends, pass)?,
                s0: ends.s1,
            }),
            _ => {
                let (y, [shape0, shape1]) = self.run(&ends, pass, true)?;
                let len = shape0.elem_count();
                Ok(Ends {
                    s0: y.narrow(0, 0, len)?.reshape(shape0)?,
                    s1: y.narrow(0, len, shape1.elem_count())?.reshape(shape1)?,
                })
            }
        }
    }

    /// The numbers of the last output, or of the last two, and the shapes of these two.
    fn run(&self, ends: &Ends, pass: &Pass<'_>, gives_both: bool) -> Result<(Tensor, [Shape; 2])> {
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
        let parameters = Tensor::cat(&parameters, 0)?;
        let (s0, s1) = (ends.s0.contiguous()?, ends.s1.contiguous()?);
        let wants = Wants {
            inputs: [s0.track_op(), s1.track_op()],
            weights: pass.tracks_weights(),
            mixing: wants_mixing,
        };
        let n_images = ends.s1.dim(3)?;
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
            cells: cells.collect::<Result<_>>()?,
            wants,
            gives_both,
        });
        match s0.dtype() {
            DType::F64 => self.apply::<f64>(&s0, &s1, &parameters, op),
            _ => self.apply::<f32>(&s0, &s1, &parameters, op),
        }
    }

    fn apply<T: Element>(
        &self,
        s0: &Tensor,
        s1: &Tensor,
        parameters: &Tensor,
        chain: Arc<ChainCells>,
    ) -> Result<(Tensor, [Shape; 2])> {
        let saved = Arc::new(Mutex::new(Vec::new()));
        let op = ChainOp::<T> {
            chain,
            saved: saved.clone(),
        };
        let y = s0.apply_op3(s1, parameters, op)?;
        let saved = saved.lock().expect("no thread panicked with it");
        let norms = self.cells.iter().flat_map(|cell| &cell.norms);
        let cells = saved
            .iter()
            .filter_map(|cell: &SavedCell<T>| cell.saved.as_ref());
        let statistics = cells.flat_map(|saved| &saved.statistics);
        for (norm, Statistics { moments, count }) in norms.zip(statistics) {
            norm.observe(&BatchStatistics {
                mean: moments.iter().map(|m| m.mean).collect(),
                var: moments.iter().map(|m| m.var).collect(),
                count: *count,
            })?;
        }
        let shape =
            |cell: Option<&SavedCell<T>>| cell.map_or(Shape::from(0), |cell| cell.shape.clone());
        let before = saved
            .len()
            .checked_sub(2)
            .and_then(|index| saved.get(index));
        Ok((y, [shape(before), shape(saved.last())]))
    }
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
    cells: Vec<ChainCell>,
    wants: Wants,
    gives_both: bool,
}

impl ChainCells {
    fn op(&self, index: usize) -> CellOp<'_> {
        let wants = self.wants;
        let any = wants.weights || wants.mixing || wants.inputs[0] || wants.inputs[1];
        let inputs = match index {
            0 => wants.inputs,
            1 => [wants.inputs[1], any],
            _ => [any; 2],
        };
        let cell = &self.cells[index];
        CellOp {
            plan: &cell.plan,
            wants: Wants { inputs, ..wants },
            running: cell.running.as_deref(),
            masks: cell.masks.as_ref(),
        }
    }
}

/// A cell that has run, with what its backward pass needs.
struct SavedCell<T: Element> {
    sizes: Sizes,
    shape: Shape,
    nodes: Buffer<T>,
    /// Nothing outside training.
    saved: Option<Saved<T>>,
}

/// One run of a chain.
struct ChainOp<T: Element> {
    chain: Arc<ChainCells>,
    saved: Arc<Mutex<Vec<SavedCell<T>>>>,
}

/// What the cell at `index` reads: outputs of cells, or what the chain starts from.
fn sources<'a, T: Element>(
    saved: &'a [SavedCell<T>],
    s: [&'a [T]; 2],
    index: usize,
) -> [&'a [T]; 2] {
    [0, 1].map(|input| match (index + input).checked_sub(2) {
        Some(cell) => &saved[cell].nodes[..],
        None => s[index + input],
    })
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
        let s = [slice::<T>(s0, l0)?, slice::<T>(s1, l1)?];
        let parameters = slice::<T>(parameters, l2)?;
        let mut grids = [grid(l0.shape())?, grid(l1.shape())?];
        let mut saved: Vec<SavedCell<T>> = Vec::with_capacity(self.chain.cells.len());
        for (index, cell) in self.chain.cells.iter().enumerate() {
            let sizes = cell.plan.sizes(grids)?;
            let (nodes, own) = self.chain.op(index).forward(
                sources(&saved, s, index),
                &sizes,
                &parameters[cell.parameters.clone()],
                &parameters[cell.mixing.clone()],
            );
            grids = [grids[1], sizes.node];
            let Grid { h, w, n } = sizes.node;
            let shape = Shape::from((cell.plan.n_nodes * cell.plan.channels, h, w, n));
            saved.push(SavedCell {
                sizes,
                shape,
                nodes,
                saved: cell.running.is_none().then_some(own),
            });
        }
        let n_given = if self.chain.gives_both { 2 } else { 1 };
        let given = &saved[saved.len() - n_given.min(saved.len())..];
        let y: Vec<T> = given
            .iter()
            .flat_map(|cell| cell.nodes.iter().copied())
            .collect();
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
        let saved = std::mem::take(&mut *self.saved.lock().expect("no thread panicked with it"));
        if saved.iter().all(|cell| cell.saved.is_none()) {
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
            let starts_alike = s0.id() == s1.id();
            self.backward(
                saved,
                [slices[0], slices[1]],
                slices[2],
                slices[3],
                starts_alike,
            )
        };
        let tensor = |grad: Option<Vec<T>>, like: &Tensor| {
            grad.map(|grad| Tensor::from_vec(grad, like.shape(), like.device()))
                .transpose()
        };
        let [grad0, grad1] = grads.inputs;
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
struct ChainGrads<T> {
    inputs: [Option<Vec<T>>; 2],
    parameters: Vec<f64>,
}

impl<T: Element> ChainOp<T> {
    /// From the last cell to the first; what a cell saved is given back once it is done. Where a chain starts from one
    /// tensor twice, the first gradient is that of both.
    fn backward(
        &self,
        mut saved: Vec<SavedCell<T>>,
        s: [&[T]; 2],
        parameters: &[T],
        grad_out: &[T],
        starts_alike: bool,
    ) -> ChainGrads<T> {
        let mut grad_parameters = vec![0.0; parameters.len()];
        // What is known so far of the gradients of what the chain starts from and of each output.
        let mut pending: Vec<Option<Buffer<T>>> = Vec::new();
        pending.resize_with(saved.len() + 2, || None);
        let n = saved.len();
        let given_len = |index: usize| match n - index {
            1 => saved[index].nodes.len(),
            2 if self.chain.gives_both => saved[index].nodes.len(),
            _ => 0,
        };
        let mut given_ends = grad_out.len();
        let given: Vec<&[T]> = (0..n)
            .rev()
            .map(|index| {
                let end = given_ends;
                given_ends -= given_len(index);
                &grad_out[given_ends..end]
            })
            .collect();
        for (index, given) in (0..n).rev().zip(given) {
            let own = pending.pop().flatten();
            let cell = &self.chain.cells[index];
            let (before, last) = saved.split_at(index);
            let SavedCell {
                sizes,
                nodes,
                saved: Some(own_saved),
                ..
            } = &last[0]
            else {
                unreachable!("a chain has saved what all its cells need, or nothing");
            };
            let run = CellRun {
                op: self.chain.op(index),
                sizes,
                parameters: &parameters[cell.parameters.clone()],
                mixing: &parameters[cell.mixing.clone()],
                s: sources(before, s, index),
                nodes,
                saved: own_saved,
            };
            let given = [given]
                .into_iter()
                .filter(|given| !given.is_empty())
                .chain(own.iter().map(|grad| &grad[..]))
                .collect();
            let of_inputs = [index, index + 1].map(|output| pending[output].take());
            let grads = Backward::new(run, given, of_inputs).run();
            for (range, own) in [
                (&cell.parameters, &grads.parameters),
                (&cell.mixing, &grads.mixing),
            ] {
                let sums = grad_parameters[range.clone()].iter_mut();
                sums.zip(own).for_each(|(sum, own)| *sum += own);
            }
            for (input, grad) in grads.inputs.into_iter().enumerate() {
                pending[index + input] = grad;
            }
            saved.truncate(index);
        }
        let mut pending = pending.into_iter().map(Option::into_iter);
        let [mut first, mut second] = std::array::from_fn(|_| -> Vec<Buffer<T>> {
            pending.next().into_iter().flatten().collect()
        });
        if starts_alike {
            first.append(&mut second);
        }
        let inputs = [first, second].map(|grads| {
            let len = grads.first()?.len();
            let mut sum = vec![T::zero(); len];
            let terms = grads.iter().map(|grad| Term::new(T::one(), &grad[..]));
            let outputs = Outputs::new(vec![&mut sum]);
            combine(outputs, &[terms.collect()], &[T::zero()]);
            Some(sum)
        });
        ChainGrads {
            inputs,
            parameters: grad_parameters,
        }
    }
}
