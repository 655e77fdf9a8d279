//! The even and the odd pixels of a plane side by side: what a factorised reduction reads.
//!
//! `y[h c n r s] = x[c n (2 r + h) (2 s + h)]`, 0 behind the edge of an odd size. Nothing here is recorded for
//! `backward`.

use candle_core::{DType, Result, Shape, Tensor};

use crate::error::{check, dims4};
use crate::gpu::{OnHeld, read};

#[cfg(any(feature = "cuda", shim))]
mod cuda;

/// The halves of `x`, with a ReLU if `activates`.
///
/// # Shapes
/// `x`: `c n h w`; result: `(2 c) n ceil(h/2) ceil(w/2)`.
///
/// # Errors
/// If `x` has not four axes.
pub fn halves(x: &Tensor, activates: bool) -> Result<Tensor> {
    let [c, n, h, w] = dims4("halves", "x", "c n h w", x)?;
    let op = Halves {
        from: x,
        c,
        n,
        whole: [h, w],
        activates,
        is_gradient: false,
    };
    op.run(x)
}

/// The gradient of `x` from that of its halves; what a ReLU would stop is not.
///
/// # Shapes
/// `grad`: as the result of [`halves`]; result: `c n h w` for `plane` = `[h, w]`.
///
/// # Errors
/// If the shapes do not agree.
pub fn halves_gradient(grad: &Tensor, plane: [usize; 2]) -> Result<Tensor> {
    let [c, n, ..] = dims4("halves_gradient", "grad", "c n h w", grad)?;
    let [h, w] = plane.map(|size| size.div_ceil(2));
    check("halves_gradient", "grad", grad, &[c / 2 * 2, n, h, w], grad)?;
    let op = Halves {
        from: grad,
        c: c / 2,
        n,
        whole: plane,
        activates: false,
        is_gradient: true,
    };
    op.run(grad)
}

struct Halves<'a> {
    from: &'a Tensor,
    c: usize,
    n: usize,
    whole: [usize; 2],
    activates: bool,
    is_gradient: bool,
}

impl OnHeld for Halves<'_> {
    const OP: &'static str = "halves";

    fn result(&self) -> (Shape, DType) {
        let [h, w] = self.whole;
        let shape = if self.is_gradient {
            (self.c, self.n, h, w)
        } else {
            (2 * self.c, self.n, h.div_ceil(2), w.div_ceil(2))
        };
        (shape.into(), self.from.dtype())
    }

    #[cfg(any(feature = "cuda", shim))]
    fn launch<S: crate::gpu::Gpu>(&self, on: &S) -> Result<S> {
        cuda::halves(self, on)
    }

    fn oracle(&self) -> Result<Vec<f64>> {
        let from = read(self.from)?;
        let [h, w] = self.whole;
        let [half_h, half_w] = [h.div_ceil(2), w.div_ceil(2)];
        let n_planes = self.c * self.n;
        let mut out = vec![0.0; self.result().0.elem_count()];
        for (half, plane) in (0..2).flat_map(|half| (0..n_planes).map(move |plane| (half, plane))) {
            for (r, s) in (0..half_h).flat_map(|r| (0..half_w).map(move |s| (r, s))) {
                let (y, x) = (2 * r + half, 2 * s + half);
                if y >= h || x >= w {
                    continue;
                }
                let in_half = ((half * n_planes + plane) * half_h + r) * half_w + s;
                let in_whole = (plane * h + y) * w + x;
                if self.is_gradient {
                    out[in_whole] = from[in_half];
                } else {
                    let x = from[in_whole];
                    out[in_half] = if self.activates { x.max(0.0) } else { x };
                }
            }
        }
        Ok(out)
    }
}
