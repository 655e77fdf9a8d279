//! Batch normalisation in vectors: one pass for statistics or sums, one for the result.

use multiversion::multiversion;

use super::{BatchStatistics, Channel, Given, Shape, Sums};
use crate::Element;
use crate::parallel::build;

/// Partial sums of a reduction.
const LANES: usize = 32;

/// Sums of about this many elements are taken in the element type, sums of those in `f64`.
const BLOCK: usize = 2048;

/// See [`naive::statistics`](super::naive::statistics).
pub(super) fn statistics<T: Element>(x: &[T], shape: &Shape) -> BatchStatistics {
    let &Shape { n, c, len } = shape;
    let moments: Vec<f64> = build(
        2 * c,
        2,
        n * len,
        || (),
        |(), channel, moments| {
            // Chan, Golub, LeVeque 1983: the moments of the union of two sets from those of either.
            let (mut count, mut mean, mut squares) = (0.0, 0.0, 0.0);
            for planes in blocks(channel, shape) {
                let size = (planes.n_planes * len) as f64;
                let (block_mean, block_squares) = block_moments(x, planes, len);
                let delta = block_mean - mean;
                squares += block_squares + delta * delta * count * size / (count + size);
                count += size;
                mean += delta * size / count;
            }
            moments.copy_from_slice(&[mean, squares / count]);
        },
    );
    let column = |index| moments.iter().copied().skip(index).step_by(2).collect();
    BatchStatistics {
        mean: column(0),
        var: column(1),
        count: n * len,
    }
}

/// See [`naive::forward`](super::naive::forward).
pub(super) fn forward<T: Element>(x: &[T], channels: &[Channel], shape: &Shape) -> Vec<T> {
    let lines: Vec<[T; 3]> = channels
        .iter()
        .map(|channel| {
            [channel.mean, channel.weight * channel.inv_std, channel.bias].map(T::from_f64)
        })
        .collect();
    let chunk = shape.len * (BLOCK / shape.len.max(1)).max(1);
    build(
        x.len(),
        chunk,
        2,
        || (),
        |(), index, y| {
            let start = index * chunk;
            normalize(
                &x[start..][..y.len()],
                start / shape.len % shape.c,
                &lines,
                shape.len,
                y,
            );
        },
    )
}

/// See [`naive::sums`](super::naive::sums).
pub(super) fn sums<T: Element>(
    grad: &[T],
    x: &[T],
    channels: &[Channel],
    shape: &Shape,
) -> Vec<Sums> {
    let sums: Vec<f64> = build(
        2 * shape.c,
        2,
        shape.n * shape.len,
        || (),
        |(), channel, sums| {
            let Channel { mean, inv_std, .. } = channels[channel];
            for planes in blocks(channel, shape) {
                let [sum, product] = block_sums(grad, x, T::from_f64(mean), planes, shape.len);
                sums[0] += sum;
                sums[1] += product * inv_std;
            }
        },
    );
    sums.chunks_exact(2)
        .map(|sums| Sums {
            grad: sums[0],
            grad_normalized: sums[1],
        })
        .collect()
}

/// See [`naive::grad_x`](super::naive::grad_x).
pub(super) fn grad_x<T: Element>(
    grad: &[T],
    x: &[T],
    channels: &[Channel],
    sums: &[Sums],
    &Given { shape, count, .. }: &Given,
) -> Vec<T> {
    let count = count as f64;
    let line = |(channel, sums): (&Channel, &Sums)| {
        let slope = channel.inv_std * sums.grad_normalized / count;
        let factor = channel.weight * channel.inv_std;
        [channel.mean, factor, sums.grad / count, slope].map(T::from_f64)
    };
    let lines: Vec<[T; 4]> = channels.iter().zip(sums).map(line).collect();
    let chunk = shape.len * (BLOCK / shape.len.max(1)).max(1);
    build(
        x.len(),
        chunk,
        4,
        || (),
        |(), index, grad_x| {
            let start = index * chunk;
            let (grad, x) = (&grad[start..][..grad_x.len()], &x[start..][..grad_x.len()]);
            center(
                grad,
                x,
                start / shape.len % shape.c,
                &lines,
                shape.len,
                grad_x,
            );
        },
    )
}

/// Some planes of one channel: every `step`-th plane from `first` on.
#[derive(Clone, Copy)]
struct Planes {
    first: usize,
    n_planes: usize,
    step: usize,
}

impl Planes {
    /// Their elements, where a plane has `len` of them.
    fn of<'a, T>(&self, x: &'a [T], len: usize) -> impl Iterator<Item = &'a [T]> + use<'a, T> {
        let Self {
            first,
            n_planes,
            step,
        } = *self;
        (0..n_planes).map(move |index| &x[(first + index * step) * len..][..len])
    }
}

/// The planes of one channel in groups of about [`BLOCK`] elements.
fn blocks(channel: usize, shape: &Shape) -> impl Iterator<Item = Planes> + use<> {
    let Shape { n, c, len } = *shape;
    let most = (BLOCK / len.max(1)).max(1);
    (0..n).step_by(most).map(move |image| Planes {
        first: image * c + channel,
        n_planes: most.min(n - image),
        step: c,
    })
}

/// Mean, and sum of squares about it, of some planes.
#[multiversion(targets = "simd")]
fn block_moments<T: Element>(x: &[T], planes: Planes, len: usize) -> (f64, f64) {
    let size = (planes.n_planes * len) as f64;
    let mut lanes = [T::zero(); LANES];
    for plane in planes.of(x, len) {
        reduce(plane, plane, &mut lanes, |lane, x, _| *lane += x);
    }
    let rough = total(&lanes) / size;
    // About a rough mean first: the small rest corrects both moments.
    let center = T::from_f64(rough);
    let (mut rests, mut squares) = ([T::zero(); LANES], [T::zero(); LANES]);
    for plane in planes.of(x, len) {
        reduce(plane, plane, &mut rests, |lane, x, _| *lane += x - center);
        reduce(plane, plane, &mut squares, |lane, x, _| {
            *lane += (x - center) * (x - center)
        });
    }
    let rest = total(&rests);
    (
        center.to_f64() + rest / size,
        total(&squares) - rest * rest / size,
    )
}

/// The sums of the gradient and of the gradient times the distance of `x` from the mean, over some planes.
#[multiversion(targets = "simd")]
fn block_sums<T: Element>(grad: &[T], x: &[T], mean: T, planes: Planes, len: usize) -> [f64; 2] {
    let (mut sums, mut products) = ([T::zero(); LANES], [T::zero(); LANES]);
    for (grad, x) in planes.of(grad, len).zip(planes.of(x, len)) {
        reduce(grad, x, &mut sums, |lane, grad, _| *lane += grad);
        reduce(grad, x, &mut products, |lane, grad, x| {
            *lane += grad * (x - mean)
        });
    }
    [total(&sums), total(&products)]
}

#[inline(always)]
fn reduce<T: Element>(a: &[T], b: &[T], lanes: &mut [T; LANES], add: impl Fn(&mut T, T, T)) {
    let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<LANES>(), b.as_chunks::<LANES>());
    for (a, b) in a.iter().zip(b) {
        for ((lane, &a), &b) in lanes.iter_mut().zip(a).zip(b) {
            add(lane, a, b);
        }
    }
    for ((lane, &a), &b) in lanes.iter_mut().zip(a_rest).zip(b_rest) {
        add(lane, a, b);
    }
}

#[inline(always)]
fn total<T: Element>(lanes: &[T; LANES]) -> f64 {
    lanes.iter().map(|lane| lane.to_f64()).sum()
}

/// `y = (x - mean) * slope + bias` for planes from channel `first` on.
#[multiversion(targets = "simd")]
fn normalize<T: Element>(x: &[T], first: usize, lines: &[[T; 3]], len: usize, y: &mut [T]) {
    let lines = lines.iter().cycle().skip(first);
    for ((y, x), &[mean, slope, bias]) in
        y.chunks_exact_mut(len).zip(x.chunks_exact(len)).zip(lines)
    {
        for (y, &x) in y.iter_mut().zip(x) {
            *y = (x - mean) * slope + bias;
        }
    }
}

/// `grad_x = weight * (grad - offset - (x - mean) * slope)` for planes from channel `first` on.
#[multiversion(targets = "simd")]
fn center<T: Element>(
    grad: &[T],
    x: &[T],
    first: usize,
    lines: &[[T; 4]],
    len: usize,
    grad_x: &mut [T],
) {
    let lines = lines.iter().cycle().skip(first);
    let planes = grad_x
        .chunks_exact_mut(len)
        .zip(grad.chunks_exact(len))
        .zip(x.chunks_exact(len));
    for (((grad_x, grad), x), &[mean, weight, offset, slope]) in planes.zip(lines) {
        for ((grad_x, &grad), &x) in grad_x.iter_mut().zip(grad).zip(x) {
            *grad_x = weight * (grad - offset - (x - mean) * slope);
        }
    }
}
