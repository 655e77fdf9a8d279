//! What a cell computes, and where its parameters lie.

use std::ops::Range;

use candle_core::{Result, Var};
use kernels::planes::{Grid, Stencil};
use kernels::{Conv2dGeometry, Element, Pool2dGeometry, Precision, Window};

use crate::candidate::{Candidate, PoolKind, pool_geometry};
use crate::layers::{BatchNorm, FactorizedReduce, ReluConvBn};

/// What a cell computes. Ranges and offsets are places among its parameters.
pub(crate) struct Plan {
    pub(crate) n_nodes: usize,
    /// Channels of a node, and one in how many of them passes through the operations.
    pub(crate) channels: usize,
    pub(crate) ratio: usize,
    pub(crate) is_reduction: bool,
    pub(crate) inputs: [InputPlan; 2],
    pub(crate) edges: Vec<EdgePlan>,
    /// Numbers of all parameters.
    pub(super) n_weights: usize,
    pub(super) n_norms: usize,
    /// Operations that can stand on an edge; 0 where nothing is weighted.
    pub(crate) n_primitives: usize,
    /// Of the products, where cells run grouped.
    pub(super) precision: Precision,
}

/// What brings an input to the cell's width and resolution.
pub(crate) struct InputPlan {
    /// The kernel, or those of the even and the odd pixels.
    pub(crate) kernels: Vec<Range<usize>>,
    pub(crate) norm: Norm,
}

pub(crate) struct EdgePlan {
    pub(crate) source: usize,
    pub(crate) node: usize,
    /// The row of its weights.
    pub(super) row: usize,
    pub(crate) operations: Vec<OperationPlan>,
}

pub(crate) struct OperationPlan {
    /// The column of its weight.
    pub(crate) column: usize,
    pub(crate) kind: OperationKind,
}

pub(crate) enum OperationKind {
    Pool {
        kind: PoolKind,
        norm: Option<Norm>,
    },
    Identity,
    Halve {
        kernels: [Range<usize>; 2],
        norm: Norm,
    },
    Conv(Vec<UnitPlan>),
}

impl OperationKind {
    /// Whether a state is read through a ReLU.
    pub(crate) fn rectifies(&self) -> bool {
        matches!(self, Self::Halve { .. } | Self::Conv(_))
    }
}

pub(crate) struct UnitPlan {
    pub(crate) depthwise: Range<usize>,
    pub(crate) pointwise: Range<usize>,
    pub(crate) geometry: Conv2dGeometry,
    pub(crate) kernel: usize,
    pub(crate) norm: Norm,
}

/// A batch normalisation: its number, and the places of its factor and shift if it has them.
#[derive(Clone)]
pub(crate) struct Norm {
    pub(crate) index: usize,
    pub(super) affine: Option<[Range<usize>; 2]>,
}

/// One edge of a cell that is to be fused.
pub(crate) struct EdgeParts<'a> {
    pub(crate) source: usize,
    pub(crate) node: usize,
    pub(crate) row: usize,
    /// The operations, with the columns of their weights.
    pub(crate) operations: Vec<(usize, &'a Candidate)>,
}

/// The preprocessing of an input that is to be fused.
pub(crate) enum InputParts<'a> {
    Same(&'a ReluConvBn),
    Halve(&'a FactorizedReduce),
}

/// The sizes of a cell that is to be fused.
pub(crate) struct CellParts {
    pub(crate) n_nodes: usize,
    pub(crate) channels: usize,
    pub(crate) ratio: usize,
    pub(crate) is_reduction: bool,
    pub(crate) n_primitives: usize,
}

/// Collects the parameters of a cell.
#[derive(Default)]
pub(super) struct Collector {
    pub(super) weights: Vec<Var>,
    pub(super) norms: Vec<BatchNorm>,
    pub(super) len: usize,
}

impl Collector {
    pub(super) fn weight(&mut self, var: &Var) -> Range<usize> {
        let start = self.len;
        self.len += var.elem_count();
        self.weights.push(var.clone());
        start..self.len
    }

    pub(super) fn norm(&mut self, norm: &BatchNorm) -> Norm {
        let affine = norm
            .affine()
            .map(|(weight, bias)| [self.weight(weight), self.weight(bias)]);
        self.norms.push(norm.clone());
        Norm {
            index: self.norms.len() - 1,
            affine,
        }
    }

    pub(super) fn input(&mut self, parts: &InputParts<'_>) -> InputPlan {
        match parts {
            InputParts::Same(block) => InputPlan {
                kernels: vec![self.weight(block.weight())],
                norm: self.norm(block.norm()),
            },
            InputParts::Halve(block) => InputPlan {
                kernels: block.kernels().map(|var| self.weight(var)).into(),
                norm: self.norm(block.norm()),
            },
        }
    }

    /// The plan of an operation; `None` of zeros.
    pub(super) fn operation(
        &mut self,
        column: usize,
        candidate: &Candidate,
    ) -> Option<OperationPlan> {
        let kind = match candidate {
            Candidate::None { .. } => return None,
            Candidate::Identity => OperationKind::Identity,
            Candidate::Pool { kind, norm, .. } => OperationKind::Pool {
                kind: *kind,
                norm: norm.as_ref().map(|norm| self.norm(norm)),
            },
            Candidate::Reduce(block) => OperationKind::Halve {
                kernels: block.kernels().map(|var| self.weight(var)),
                norm: self.norm(block.norm()),
            },
            Candidate::Conv(units) => {
                let plan = |unit: &crate::candidate::ConvUnit| UnitPlan {
                    depthwise: self.weight(unit.depthwise()),
                    pointwise: self.weight(unit.pointwise()),
                    geometry: unit.geometry(),
                    kernel: unit.kernel(),
                    norm: self.norm(unit.norm()),
                };
                OperationKind::Conv(units.iter().map(plan).collect())
            }
        };
        Some(OperationPlan { column, kind })
    }
}

/// The sizes of a run.
pub(super) struct Sizes {
    /// Of the inputs as they come.
    pub(super) raw: [Grid; 2],
    /// Of the preprocessed inputs.
    pub(super) input: Grid,
    /// Of the nodes.
    pub(crate) node: Grid,
}

impl Plan {
    pub(crate) fn n_partial(&self) -> usize {
        self.channels / self.ratio
    }

    pub(crate) fn n_states(&self) -> usize {
        2 + self.n_nodes
    }

    /// Whether the backward pass finds what the first unit of a separable convolution gave. Of partial channels that is
    /// computed again, which takes no longer than reading it from memory: they are chosen to save that.
    pub(crate) fn keeps_hidden(&self) -> bool {
        self.ratio == 1
    }

    pub(crate) fn stride(&self, state: usize) -> usize {
        if self.is_reduction && state < 2 { 2 } else { 1 }
    }

    /// The plane of a node to which an operation's channel goes: the first group of the shuffle.
    pub(super) fn operation_plane(&self, channel: usize) -> usize {
        channel * self.ratio
    }

    /// The plane of a node to which a bypassing channel goes, counted from 0 behind the partial ones.
    pub(super) fn bypass_plane(&self, channel: usize) -> usize {
        let n_partial = self.n_partial();
        channel % n_partial * self.ratio + channel / n_partial + 1
    }

    pub(super) fn sizes(&self, raw: [Grid; 2]) -> Result<Sizes> {
        let input = raw[1];
        let node = if self.is_reduction {
            input.halved()
        } else {
            input
        };
        let first = match self.inputs[0].kernels.len() {
            2 => raw[0].halved(),
            _ => raw[0],
        };
        if first != input {
            candle_core::bail!(
                "fused cell: inputs of {:?} and {:?} do not meet",
                raw[0],
                raw[1]
            );
        }
        Ok(Sizes { raw, input, node })
    }

    /// The weight of an operation; 1 where nothing is weighted. `mixing`: the weights of the operations, `e p`, and
    /// behind them of the edges, `e`.
    pub(super) fn weight<T: Element>(&self, mixing: &[T], edge: &EdgePlan, column: usize) -> f64 {
        match self.n_primitives {
            0 => 1.0,
            n => mixing[edge.row * n + column].to_f64(),
        }
    }

    /// Where the weights of edges start.
    pub(super) fn edge_weights(&self) -> usize {
        self.edges.len() * self.n_primitives
    }

    pub(super) fn stencil(&self, geometry: Conv2dGeometry, kernel: usize, grid: Grid) -> Stencil {
        let Conv2dGeometry {
            padding,
            stride,
            dilation,
        } = geometry;
        let window = Window {
            input: [grid.h, grid.w],
            kernel: [kernel; 2],
            padding,
            stride,
            dilation,
        };
        Stencil::new(window, grid.n)
    }

    pub(super) fn pool_window(&self, stride: usize, grid: Grid) -> Window {
        let Pool2dGeometry {
            kernel,
            padding,
            stride,
        } = pool_geometry(stride);
        Window {
            input: [grid.h, grid.w],
            kernel: [kernel; 2],
            padding,
            stride,
            dilation: 1,
        }
    }

    /// Whether an input is stored before its batch normalisation alone. Whoever reads it normalises as it reads: convolutions
    /// and sums can, and an average is the same of what is normalised behind it.
    pub(crate) fn is_raw(&self, input: usize) -> bool {
        let needs_normalised = |kind: &OperationKind| match kind {
            OperationKind::Pool { kind, norm } => *kind == PoolKind::Max || norm.is_some(),
            OperationKind::Halve { .. } | OperationKind::Conv(_) | OperationKind::Identity => false,
        };
        let has_factors = self.inputs[input].norm.affine.is_some();
        has_factors && self.ratio == 1 && !self.reads(input, needs_normalised)
    }

    /// Whether any edge that leaves a state has such an operation.
    pub(crate) fn reads(&self, state: usize, is_such: impl Fn(&OperationKind) -> bool) -> bool {
        self.edges
            .iter()
            .filter(|edge| edge.source == state)
            .flat_map(|edge| &edge.operations)
            .any(|operation| is_such(&operation.kind))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn norm(has_factors: bool) -> Norm {
        Norm {
            index: 0,
            affine: has_factors.then_some([0..4, 4..8]),
        }
    }

    /// A cell of one node, to which an operation leads from the first input.
    fn plan(kind: OperationKind, ratio: usize, has_factors: bool) -> Plan {
        let input = || InputPlan {
            kernels: Vec::new(),
            norm: norm(has_factors),
        };
        Plan {
            n_nodes: 1,
            channels: 4,
            ratio,
            is_reduction: false,
            inputs: [input(), input()],
            edges: vec![EdgePlan {
                source: 0,
                node: 2,
                row: 0,
                operations: vec![OperationPlan { column: 0, kind }],
            }],
            n_weights: 0,
            n_norms: 0,
            n_primitives: 0,
            precision: Precision::F32,
        }
    }

    #[test]
    fn inputs_are_stored_raw_where_all_that_read_them_can_normalise() {
        let pool = |kind, normalises: bool| OperationKind::Pool {
            kind,
            norm: normalises.then(|| norm(false)),
        };
        let halve = OperationKind::Halve {
            kernels: [0..1, 1..2],
            norm: norm(true),
        };
        for kind in [
            OperationKind::Identity,
            OperationKind::Conv(Vec::new()),
            halve,
            pool(PoolKind::Average, false),
        ] {
            let plan = plan(kind, 1, true);
            assert!(plan.is_raw(0) && plan.is_raw(1));
        }
        for kind in [pool(PoolKind::Max, false), pool(PoolKind::Average, true)] {
            let plan = plan(kind, 1, true);
            // Nobody reads the other one.
            assert!(!plan.is_raw(0) && plan.is_raw(1));
        }
        // Partial channels go by all operations; without factors it is normalised in place.
        assert!(!plan(OperationKind::Identity, 2, true).is_raw(0));
        assert!(!plan(OperationKind::Identity, 1, false).is_raw(0));
    }
}
