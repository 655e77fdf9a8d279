//! The first convolution of a network, with its batch normalisation, as one operation that ends in the layout of fused cells.

use std::sync::{Arc, Mutex};

use candle_core::{CpuStorage, CustomOp3, DType, Layout, Result, Shape, Storage, Tensor};
use kernels::planes::{Affine, Buffer, Dense, Moments, NormGrad, Outputs, dots, normalise};
use kernels::{BatchStatistics, Conv2dGeometry, Element, Window};

use super::forward::Statistics;
use super::{cast, planes, planes_mut, running, slice};
use crate::Pass;
use crate::layers::{BATCH_NORM_EPS, BatchNorm, to_planes};

/// A dense convolution of images and its affine batch normalisation: `[n, i, h, w]` to `[o, h', w', n]`. Images have no
/// gradient.
pub(crate) fn convolve(
    x: &Tensor,
    weight: &Tensor,
    geometry: Conv2dGeometry,
    norm: &BatchNorm,
    pass: &Pass<'_>,
) -> Result<Tensor> {
    let (factor, shift) = norm.affine().expect("stems have affine normalisations");
    let affine = Tensor::cat(&[pass.weight(factor), pass.weight(shift)], 0)?;
    let x = to_planes(x)?;
    let (_, h, w, n) = x.dims4()?;
    let window = Window {
        input: [h, w],
        kernel: [weight.dim(2)?, weight.dim(3)?],
        padding: geometry.padding,
        stride: geometry.stride,
        dilation: geometry.dilation,
    };
    let running = match pass.is_training() {
        true => None,
        false => Some(running(norm)?),
    };
    let dense = Dense::new(window, n);
    match x.dtype() {
        DType::F64 => apply::<f64>(&x, weight, &affine, dense, running, norm),
        _ => apply::<f32>(&x, weight, &affine, dense, running, norm),
    }
}

fn apply<T: Element>(
    x: &Tensor,
    weight: &Tensor,
    affine: &Tensor,
    dense: Dense,
    running: Option<Statistics>,
    norm: &BatchNorm,
) -> Result<Tensor> {
    let saved = Arc::new(Mutex::new(None));
    let op = StemOp::<T> {
        dense,
        running,
        saved: saved.clone(),
    };
    let y = x.apply_op3(weight, affine, op)?;
    let saved = saved.lock().expect("no thread panicked with it");
    if let Some(Saved { moments, raw }) = &*saved {
        norm.observe(&BatchStatistics {
            mean: moments.iter().map(|m| m.mean).collect(),
            var: moments.iter().map(|m| m.var).collect(),
            count: raw.len() / moments.len().max(1),
        })?;
    }
    Ok(y)
}

/// What the backward pass needs of the forward pass.
struct Saved<T: Element> {
    moments: Vec<Moments>,
    /// What the convolution gave.
    raw: Buffer<T>,
}

struct StemOp<T: Element> {
    dense: Dense,
    /// What the normalisation goes by outside training.
    running: Option<Statistics>,
    /// Nothing outside training.
    saved: Arc<Mutex<Option<Saved<T>>>>,
}

impl<T: Element> CustomOp3 for StemOp<T> {
    fn name(&self) -> &'static str {
        "fused_stem"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        l0: &Layout,
        weight: &CpuStorage,
        l1: &Layout,
        affine: &CpuStorage,
        l2: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (x, weight) = (slice::<T>(x, l0)?, slice::<T>(weight, l1)?);
        let affine = slice::<T>(affine, l2)?;
        let (grid, n_out) = (self.dense.output(), affine.len() / 2);
        let mut raw = Buffer::any(n_out * grid.len());
        let x = planes(x, l0.stride()[0]);
        let found = self
            .dense
            .forward(&x, weight, planes_mut(&mut raw, grid.len()));
        let moments = match &self.running {
            Some(running) => running.moments.clone(),
            None => found,
        };
        let (factors, shifts) = affine.split_at(n_out);
        let channels = moments.iter().zip(factors).zip(shifts);
        let channels: Vec<Affine<T>> = channels
            .map(|((moments, factor), shift)| {
                Affine {
                    mean: moments.mean,
                    factor: factor.to_f64() * moments.inv_std(BATCH_NORM_EPS),
                    bias: shift.to_f64(),
                }
                .cast()
            })
            .collect();
        let mut y = vec![T::zero(); raw.len()];
        normalise(
            Outputs::new(planes_mut(&mut y, grid.len())),
            &planes(&raw, grid.len()),
            &channels,
        );
        if self.running.is_none() {
            let saved = Some(Saved { moments, raw });
            *self.saved.lock().expect("no thread panicked with it") = saved;
        }
        let shape = Shape::from((n_out, grid.h, grid.w, grid.n));
        Ok((T::to_cpu_storage_owned(y), shape))
    }

    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        affine: &Tensor,
        _: &Tensor,
        grad_y: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let saved = self
            .saved
            .lock()
            .expect("no thread panicked with it")
            .take();
        let Some(Saved { moments, raw }) = saved else {
            candle_core::bail!(
                "fused stem: the backward pass runs once for each forward pass in training"
            );
        };
        let grad_y = grad_y.contiguous()?;
        let (grad_weight, grad_affine) = {
            let tensors = [x, affine, &grad_y].map(Tensor::storage_and_layout);
            let mut slices = Vec::with_capacity(tensors.len());
            for (storage, layout) in &tensors {
                let Storage::Cpu(storage) = &**storage else {
                    candle_core::bail!("fused stem: runs on the CPU alone");
                };
                slices.push(slice::<T>(storage, layout)?);
            }
            let len = self.dense.output().len();
            let (raw, grads) = (planes(&raw, len), planes(slices[2], len));
            let sources: Vec<Vec<&[T]>> = raw.iter().map(|plane| vec![*plane]).collect();
            let sums: Vec<[f64; 2]> = dots(&grads, &sources)
                .into_iter()
                .map(|(sum, products)| [sum, products[0]])
                .collect();
            let factors: Vec<f64> = slices[1][..moments.len()]
                .iter()
                .map(|factor| factor.to_f64())
                .collect();
            let of_factors = moments.iter().zip(&sums).map(|(moments, &[sum, product])| {
                (product - moments.mean * sum) * moments.inv_std(BATCH_NORM_EPS)
            });
            let grad_affine: Vec<f64> =
                of_factors.chain(sums.iter().map(|[sum, _]| *sum)).collect();
            let chain = NormGrad::new(grads, raw, &moments, BATCH_NORM_EPS, &sums, &factors);
            let x = planes(slices[0], x.stride()[0]);
            (self.dense.backward(&x, &chain), grad_affine)
        };
        let tensor = |grad: &[f64], like: &Tensor| {
            Tensor::from_vec(cast::<T>(grad), like.shape(), like.device())
        };
        Ok((
            None,
            Some(tensor(&grad_weight, weight)?),
            Some(tensor(&grad_affine, affine)?),
        ))
    }
}
