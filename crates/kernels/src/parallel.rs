//! Work spread over the current rayon pool, so that no result depends on the number of threads.

use std::mem::MaybeUninit;
use std::ops::Range;

use rayon::prelude::*;

use crate::Element;

/// Work that is not worth splitting, in units of one arithmetic operation per element (some 10 µs).
const GRAIN: usize = 1 << 16;

/// Elements that an elementwise operation works on at a time: they fit the first-level cache.
const ELEMENTS: usize = 4096;

/// Builds a vector of `len` elements with an elementwise operation: `fill` gets a range of elements and their place.
pub(crate) fn map<T: Element>(
    len: usize,
    fill: impl Fn(Range<usize>, &mut [T]) + Send + Sync,
) -> Vec<T> {
    build(
        len,
        ELEMENTS,
        1,
        || (),
        |(), index, chunk| {
            let start = index * ELEMENTS;
            fill(start..start + chunk.len(), chunk);
        },
    )
}

/// The sum of `term` over ranges that make up `0..len`; ranges, and their order in the sum, are fixed.
pub(crate) fn sum(len: usize, term: impl Fn(Range<usize>) -> f64 + Send + Sync) -> f64 {
    let terms: Vec<f64> = build(
        len.div_ceil(ELEMENTS),
        1,
        ELEMENTS,
        || (),
        |(), index, chunk| {
            chunk[0] = term(index * ELEMENTS..len.min((index + 1) * ELEMENTS));
        },
    );
    terms.into_iter().sum()
}

/// Builds a vector of `len` elements in chunks of `chunk` (the last may be shorter). `fill` gets a scratch value
/// made by `scratch`, of which nothing may show in the result, the index of a chunk, and the chunk itself, filled
/// with zeros. `cost` is a rough number of operations per element.
pub(crate) fn build<T: Element, S>(
    len: usize,
    chunk: usize,
    cost: usize,
    scratch: impl Fn() -> S + Send + Sync,
    fill: impl Fn(&mut S, usize, &mut [T]) + Send + Sync,
) -> Vec<T> {
    let mut elements = Vec::with_capacity(len);
    let spare = &mut elements.spare_capacity_mut()[..len];
    let chunk = chunk.max(1);
    // Zeros are written chunk by chunk, into the cache that `fill` then works in.
    let fill = |scratch: &mut S, (index, chunk): (usize, &mut [MaybeUninit<T>])| {
        chunk.fill(MaybeUninit::new(T::zero()));
        // SAFETY: every element of the chunk was just initialised.
        fill(scratch, index, unsafe {
            &mut *(chunk as *mut [MaybeUninit<T>] as *mut [T])
        });
    };
    if len * cost < 2 * GRAIN || rayon::current_num_threads() == 1 {
        let mut scratch = scratch();
        spare
            .chunks_mut(chunk)
            .enumerate()
            .for_each(|item| fill(&mut scratch, item));
    } else {
        let chunks = spare.par_chunks_mut(chunk).enumerate();
        chunks
            .with_min_len((GRAIN / (chunk * cost).max(1)).max(1))
            .for_each_init(scratch, fill);
    }
    // SAFETY: the chunks cover the `len` elements, and each was initialised.
    unsafe { elements.set_len(len) };
    elements
}

/// Partial sums of a reduction over images, whatever the number of threads.
const N_PARTIALS: usize = 8;

/// Sums `n_rows * row_len` numbers over `n` images. `add` adds the terms of some images to a row of partial sums,
/// which starts as zeros; it gets a scratch value, the images, the index of the row and the row. The partial sums,
/// each over a fixed range of images, are added in order in `f64`.
pub(crate) fn sum_over_images<T: Element, P: Element, S>(
    n: usize,
    [n_rows, row_len]: [usize; 2],
    cost_per_image: usize,
    scratch: impl Fn() -> S + Send + Sync,
    add: impl Fn(&mut S, Range<usize>, usize, &mut [P]) + Send + Sync,
) -> Vec<T> {
    let n_images = n.div_ceil(N_PARTIALS).max(1);
    let len = n_rows * row_len;
    let partials: Vec<P> = build(
        n.div_ceil(n_images) * len,
        row_len,
        n_images * cost_per_image,
        scratch,
        |scratch, index, partial| {
            let start = index / n_rows * n_images;
            add(
                scratch,
                start..n.min(start + n_images),
                index % n_rows,
                partial,
            );
        },
    );
    let mut sums = vec![0.0; len];
    for partial in partials.chunks_exact(len.max(1)) {
        sums.iter_mut()
            .zip(partial)
            .for_each(|(sum, term)| *sum += term.to_f64());
    }
    sums.into_iter().map(T::from_f64).collect()
}
