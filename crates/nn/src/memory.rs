//! What a training step will keep in memory, counted from the plan of a network before anything runs.
//!
//! Counted is what is alive when the forward pass ends: that is the peak, but for the gradients that the backward pass
//! has under way, which are those of one cell. The paths keep different things: fused cells (on the CPU) and grouped ones
//! (on CUDA) only what the backward pass reads; the network operation by operation (on the CPU, where several ranks train
//! together) the result of every operation, as the tensor library's graph does.

use space::CellSpec;

use crate::Parameters;
use crate::candidate::PoolKind;
use crate::fused::{OperationKind, Plan};

/// How a network runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Path {
    /// Cells as one operation.
    Fused,
    /// Cells as one operation, on CUDA.
    Grouped,
    /// Operation by operation.
    Operations,
}

impl Path {
    /// That of a training on a device, by several ranks or one.
    pub fn of(device: &candle_core::Device, n_ranks: usize) -> Self {
        if !device.is_cpu() {
            Self::Grouped
        } else if n_ranks == 1 {
            Self::Fused
        } else {
            Self::Operations
        }
    }

    /// What a step takes beyond what is counted, as a ratio of it: measured, not derived, where cells are fused, for the other
    /// ways a guess that is meant to be safe.
    fn overhead(self) -> f64 {
        match self {
            Self::Fused => 0.12,
            Self::Grouped | Self::Operations => 0.25,
        }
    }

    /// How often a step holds as many numbers as there are weights: these, their gradients and their momentum; where cells are
    /// fused eight times, by measurement: also the weights side by side, the sums of their gradients in `f64`, these side by side
    /// and one by one, and what the allocator holds back of it all.
    fn n_copies(self) -> usize {
        match self {
            Self::Fused => 8,
            Self::Grouped | Self::Operations => 3,
        }
    }
}

/// Gives the buffers of fused cells that nobody uses back to the system: a network behind another has buffers of other sizes, and
/// would come on top of that one.
pub fn free_buffers() {
    kernels::planes::free_buffers();
}

/// What a program takes besides, with its latency model, what is worked in on every thread and what the allocator holds back:
/// measured, on the CPU, on one thread and two.
pub const PROGRAM_BYTES: u64 = 92 << 20;

/// Bytes of an `f32`.
const F32: u64 = 4;

/// What a step keeps, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StepMemory {
    /// Results of operations, for the backward pass.
    pub activations_bytes: u64,
    /// Gradients under way.
    pub gradients_bytes: u64,
    /// What is not counted: copies in passing, the gradients of the stem, gaps between buffers.
    pub copies_bytes: u64,
    /// Weights and buffers, an optimiser's momentum, and all copies of the weights' gradients.
    pub parameters_bytes: u64,
    /// Of these what stays between two steps: no gradients.
    pub lasting_bytes: u64,
}

impl StepMemory {
    /// Each with its name.
    pub fn parts(&self) -> [(&'static str, u64); 4] {
        [
            ("activations", self.activations_bytes),
            ("gradients under way", self.gradients_bytes),
            ("copies and gaps", self.copies_bytes),
            ("weights and optimiser", self.parameters_bytes),
        ]
    }

    /// The sum of the [`parts`](Self::parts).
    pub fn total_bytes(&self) -> u64 {
        self.parts().iter().map(|(_, bytes)| bytes).sum()
    }
}

/// What a step of a network of these cells keeps with `n_images` in a batch; `stem` counts the numbers that the stem keeps of
/// an image.
pub(crate) fn step<'a>(
    cells: impl Iterator<Item = (&'a CellSpec, &'a Plan)>,
    stem: u64,
    parameters: &Parameters,
    n_images: usize,
    path: Path,
) -> StepMemory {
    let (mut kept, mut under_way) = (stem, 0u64);
    for (spec, plan) in cells {
        let cell = Cell::of(spec, plan);
        match path {
            // From the last cell to the first, each gives back what it kept before the next begins.
            Path::Fused | Path::Grouped => {
                let (saved, gradients) = match path {
                    Path::Grouped => cell.grouped(),
                    _ => cell.fused(),
                };
                kept += saved;
                under_way = gradients.max(under_way.saturating_sub(saved));
            }
            // The graph keeps all until the step is over.
            Path::Operations => {
                let (saved, gradients) = cell.operations();
                kept += saved;
                under_way = gradients.max(under_way);
            }
        }
    }
    let n_images = n_images as u64;
    let (activations_bytes, gradients_bytes) = (F32 * n_images * kept, F32 * n_images * under_way);
    let counted = (activations_bytes + gradients_bytes) as f64;
    let n_buffers: usize = parameters.buffers().values().map(|b| b.elem_count()).sum();
    StepMemory {
        activations_bytes,
        gradients_bytes,
        copies_bytes: (path.overhead() * counted) as u64,
        parameters_bytes: F32 * (path.n_copies() * parameters.n_weights() + n_buffers) as u64,
        lasting_bytes: F32 * (2 * parameters.n_weights() + n_buffers) as u64,
    }
}

/// The sizes of a cell, for one image.
struct Cell<'a> {
    plan: &'a Plan,
    /// Channels of the inputs as they come, and pixels of their planes.
    inputs: [(u64, u64); 2],
    channels: u64,
    partial: u64,
    /// Pixels of a preprocessed input and of a node.
    input_len: u64,
    node_len: u64,
}

impl<'a> Cell<'a> {
    fn of(spec: &CellSpec, plan: &'a Plan) -> Self {
        let square = |size: usize| (size * size) as u64;
        let input_len = square(spec.size_prev);
        Self {
            plan,
            inputs: [
                (spec.channels_prev_prev as u64, square(spec.size_prev_prev)),
                (spec.channels_prev as u64, input_len),
            ],
            channels: plan.channels as u64,
            partial: plan.n_partial() as u64,
            input_len,
            node_len: if plan.is_reduction {
                square(spec.size_prev.div_ceil(2))
            } else {
                input_len
            },
        }
    }

    fn len(&self, state: usize) -> u64 {
        if state < 2 {
            self.input_len
        } else {
            self.node_len
        }
    }

    /// Whether operations are weighed and summed, as in a supernet.
    fn weighs(&self) -> bool {
        self.plan.n_primitives > 0
    }

    /// The numbers that a fused cell keeps, and those of its gradients.
    fn fused(&self) -> (u64, u64) {
        let out = self.plan.n_nodes as u64 * self.channels * self.node_len;
        let mut kept = out;
        for index in 0..self.inputs.len() {
            // Normalisations of a supernet have no factors, so that what they give tells what they were given.
            let of_input = if self.weighs() || self.plan.is_raw(index) {
                1
            } else {
                2
            };
            kept += of_input * self.channels * self.input_len;
        }
        for state in 0..self.plan.n_states() {
            for pool in [PoolKind::Max, PoolKind::Average] {
                let is_this = |kind: &OperationKind| matches!(kind, OperationKind::Pool { kind, .. } if *kind == pool);
                if self.plan.reads(state, is_this) {
                    kept += self.partial * self.node_len;
                }
            }
            if self.plan.stride(state) == 2 {
                kept += (self.channels - self.partial) * self.node_len;
            }
        }
        for operation in self.plan.edges.iter().flat_map(|edge| &edge.operations) {
            kept += self.partial
                * self.node_len
                * match &operation.kind {
                    OperationKind::Pool { .. } | OperationKind::Identity => 0,
                    OperationKind::Conv(units) if self.plan.keeps_hidden() => units.len() as u64,
                    // Of a convolution the last unit's.
                    OperationKind::Halve { .. } | OperationKind::Conv(_) => 1,
                };
        }
        // The gradients of the result, of all states, and of the inputs as they come.
        let states = 2 * self.channels * self.input_len;
        let inputs: u64 = self
            .inputs
            .iter()
            .map(|(channels, len)| channels * len)
            .sum();
        (kept, 2 * out + states + inputs)
    }

    /// The numbers that a grouped cell keeps, and those of its gradients.
    fn grouped(&self) -> (u64, u64) {
        let plan = self.plan;
        let out = plan.n_nodes as u64 * self.channels * self.node_len;
        let mut kept = out;
        for (index, (input, (channels, len))) in plan.inputs.iter().zip(self.inputs).enumerate() {
            // Behind its ReLU an output is kept once for both cells that read it.
            kept += if index == 1 { channels * len } else { 0 };
            if input.kernels.len() == 2 {
                kept += channels * len / 2;
            }
            kept += 2 * self.channels * self.input_len;
        }
        let mut widest = 0;
        for state in 0..plan.n_states() {
            let edges = || plan.edges.iter().filter(|edge| edge.source == state);
            if edges().next().is_none() {
                continue;
            }
            for pool in [PoolKind::Max, PoolKind::Average] {
                let is_this = |kind: &OperationKind| matches!(kind, OperationKind::Pool { kind, .. } if *kind == pool);
                if plan.reads(state, is_this) {
                    kept += self.partial * self.node_len;
                }
            }
            if plan.stride(state) == 2 {
                kept += (self.channels - self.partial) * self.node_len;
                if plan.reads(state, |kind| matches!(kind, OperationKind::Halve { .. })) {
                    kept += self.partial * self.len(state) / 2;
                }
            }
            for operation in edges().flat_map(|edge| &edge.operations) {
                kept += self.partial
                    * self.node_len
                    * match &operation.kind {
                        OperationKind::Pool { .. } | OperationKind::Identity => 0,
                        OperationKind::Halve { .. } => 1,
                        // Behind each convolution of a unit.
                        OperationKind::Conv(units) => 2 * units.len() as u64,
                    };
            }
            widest = widest.max(edges().count() as u64 * self.partial * self.node_len);
        }
        // The gradients of all states, and what is sent to both inputs, theirs and that of the cell behind; of a group what
        // came through its normalisation, through each of its convolutions, and of a state one tensor per kind of operation.
        let states = out + 2 * self.channels * self.input_len;
        let inputs: u64 = self
            .inputs
            .iter()
            .map(|(channels, len)| channels * len)
            .sum();
        (
            kept,
            states + 2 * inputs + 3 * widest + 8 * self.partial * self.input_len,
        )
    }

    /// The numbers that the operations of a cell make, all of which the graph keeps, and those of its gradients.
    fn operations(&self) -> (u64, u64) {
        let bypass = self.channels - self.partial;
        // The nodes side by side.
        let out = self.plan.n_nodes as u64 * self.channels * self.node_len;
        let mut kept = out;
        for (input, (channels, len)) in self.plan.inputs.iter().zip(self.inputs) {
            // ReLU; the halves and both convolutions; the convolution (or both side by side), the normalisation.
            kept += channels * len;
            if input.kernels.len() == 2 {
                kept += channels * len / 2 + self.channels * self.input_len;
            }
            kept += 2 * self.channels * self.input_len;
        }
        for state in 0..self.plan.n_states() {
            let len = self.len(state);
            if self.plan.edges.iter().all(|edge| edge.source != state) {
                continue;
            }
            if self.plan.ratio > 1 {
                // The partial channels, and the bypass where it is pooled (with the copy that is pooled).
                kept += self.partial * len;
                if self.plan.stride(state) == 2 {
                    kept += bypass * (len + self.node_len);
                }
            }
            if self.plan.reads(state, OperationKind::rectifies) {
                kept += self.partial * len;
            }
            for pool in [PoolKind::Max, PoolKind::Average] {
                let of = |normalises: bool| move |kind: &OperationKind| matches!(kind, OperationKind::Pool { kind, norm } if *kind == pool && norm.is_some() == normalises);
                if self.plan.reads(state, of(true)) {
                    kept += 2 * self.partial * self.node_len;
                } else if self.plan.reads(state, of(false)) {
                    kept += self.partial * self.node_len;
                }
            }
        }
        for edge in &self.plan.edges {
            for operation in &edge.operations {
                kept += self.partial
                    * self.node_len
                    * match &operation.kind {
                        OperationKind::Pool { .. } | OperationKind::Identity => 0,
                        // The halves, the convolutions, both side by side, the normalisation.
                        OperationKind::Halve { .. } => 5,
                        // Depthwise, pointwise, normalisation; a ReLU between two of them.
                        OperationKind::Conv(units) => 4 * units.len() as u64 - 1,
                    };
                if self.weighs() {
                    // Each is added to the sum so far, which makes a new one.
                    kept += self.partial * self.node_len;
                }
            }
            if self.plan.ratio > 1 {
                // So is each bypass; one that is not pooled is copied first.
                let copies = if self.plan.stride(edge.source) == 2 {
                    1
                } else {
                    2
                };
                kept += copies * bypass * self.node_len;
            }
        }
        let node = self.channels * self.node_len;
        if !self.weighs() {
            // The sum of two operations.
            kept += self.plan.n_nodes as u64 * node;
        }
        if self.plan.ratio > 1 {
            // Operations beside bypasses, and both shuffled.
            kept += self.plan.n_nodes as u64 * 2 * node;
        }
        let n_operations: usize = self
            .plan
            .edges
            .iter()
            .map(|edge| edge.operations.len())
            .sum();
        // The gradients of the result, of the states, and of what was added up.
        (
            kept,
            3 * out + n_operations as u64 * self.partial * self.node_len,
        )
    }
}

/// The numbers that a stem keeps of an image: per convolution its result and the normalisation (of a single one in front of
/// fused cells the result alone, which these normalise as they read), a ReLU between two of them, the image itself; and of
/// ImageNet's the two states in the layout of fused cells, to which a single one leads by itself.
pub(crate) fn of_stem(spec: &space::NetworkSpec, path: Path) -> u64 {
    let size = spec.image_size;
    let square = |size: usize| (size * size) as u64;
    let image = spec.in_channels as u64 * square(size);
    let c = spec.init_channels as u64;
    let layouts = match path {
        Path::Fused | Path::Grouped => 1,
        Path::Operations => 0,
    };
    // The second of two cells halves the stem, which is stored for that.
    let n_kept = match path {
        Path::Fused if spec.n_layers > 2 => 1,
        Path::Fused | Path::Grouped | Path::Operations => 2,
    };
    let single = |size: usize| n_kept * 3 * c * square(size);
    image
        + match spec.stem {
            space::Stem::Conv3x3 => single(size),
            space::Stem::Conv3x3Stride2 => single(size.div_ceil(2)),
            space::Stem::Imagenet => {
                let half = size.div_ceil(2);
                let quarter = half.div_ceil(2);
                let eighth = quarter.div_ceil(2);
                3 * c / 2 * square(half)
                    + (3 + layouts) * c * square(quarter)
                    + (2 + layouts) * c * square(eighth)
            }
        }
}
