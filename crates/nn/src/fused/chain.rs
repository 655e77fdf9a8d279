//! Fused cells one behind the other.

use std::any::Any;
use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{Result, Tensor};
use kernels::Element;
use kernels::planes::Buffer;

use super::{FusedCell, Inboxes, Mixing};
use crate::Pass;
use crate::layers::to_planes;

/// The last two outputs of a row of cells, `c h w n`.
///
/// A cell's output is read by the next cell and by the one behind that. The gradient from the latter comes first in
/// the backward pass, and is left in an inbox of the cell that made the output, which adds it to the others as it
/// reads them: candle would store the sum of the two first.
pub(crate) struct Chain {
    last: [State; 2],
}

struct State {
    tensor: Tensor,
    /// Where its gradient may be left, if a cell of this chain made it.
    inbox: Option<Inbox>,
}

impl Chain {
    /// A chain that starts from the two outputs of a stem, `n c h w`, which may be one.
    pub(crate) fn from_images(s0: &Tensor, s1: &Tensor) -> Result<Self> {
        let planes1 = to_planes(s1)?;
        let planes0 = if s0.id() == s1.id() {
            planes1.clone()
        } else {
            to_planes(s0)?
        };
        let last = [planes0, planes1].map(|tensor| State {
            tensor,
            inbox: None,
        });
        Ok(Self { last })
    }

    /// Runs the next cell.
    pub(crate) fn push(
        &mut self,
        cell: &FusedCell,
        mixing: Mixing<'_>,
        pass: &Pass<'_>,
    ) -> Result<()> {
        let [s0, s1] = &mut self.last;
        let out = Inbox::default();
        let inboxes = Inboxes {
            s0: s0.inbox.take(),
            out: out.clone(),
        };
        let tensor = cell.forward([&s0.tensor, &s1.tensor], mixing, pass, inboxes)?;
        self.last.swap(0, 1);
        self.last[1] = State {
            tensor,
            inbox: Some(out),
        };
        Ok(())
    }

    /// The output of the last cell.
    pub(crate) fn last(&self) -> &Tensor {
        &self.last[1].tensor
    }
}

/// A gradient that was left, a [`Buffer`].
#[derive(Clone, Default)]
pub(super) struct Inbox(Arc<Mutex<Option<Box<dyn Any + Send>>>>);

impl Inbox {
    pub(super) fn leave<T: Element>(&self, grad: Option<Buffer<T>>) {
        let grad = grad.map(|grad| Box::new(grad) as Box<dyn Any + Send>);
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = grad;
    }

    pub(super) fn take<T: Element>(&self) -> Option<Buffer<T>> {
        let grad = self
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take()?;
        Some(*grad.downcast().expect("a chain has one element type"))
    }
}
