//! Work spread over the current rayon pool, so that no result depends on the number of threads.

use std::mem::MaybeUninit;

use rayon::prelude::*;

use crate::Element;

/// Work that is not worth splitting, in units of one arithmetic operation per element (some 10 µs).
const GRAIN: usize = 1 << 16;

/// Builds a vector of `len` elements in chunks of `chunk` (the last may be shorter). `fill` gets the index of
/// a chunk and the chunk itself, filled with zeros; `cost` is a rough number of operations per element.
pub(crate) fn build<T: Element>(
    len: usize,
    chunk: usize,
    cost: usize,
    fill: impl Fn(usize, &mut [T]) + Send + Sync,
) -> Vec<T> {
    build_with(
        len,
        chunk,
        cost,
        || (),
        |(), index, chunk| fill(index, chunk),
    )
}

/// [`build`] with a scratch value for every thread, made by `scratch`. What `fill` leaves in it must not show
/// in the result.
pub(crate) fn build_with<T: Element, S>(
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
