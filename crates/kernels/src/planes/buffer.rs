//! Memory that is used again: the steps of a training need the same buffers over and over.

use std::any::Any;
use std::collections::BTreeMap;
use std::ops::{Deref, DerefMut};
use std::sync::{Mutex, PoisonError};

use crate::Element;
use crate::product::LINE;

/// Numbers of a region from which buffers are cut: they lie side by side, so that none of the large pages of the
/// system is touched for half of what it holds.
const REGION: usize = 1 << 24;

/// What nobody uses.
struct Pool<T: 'static> {
    /// Buffers, by length.
    buffers: BTreeMap<usize, Vec<&'static mut [T]>>,
    /// What is left of the last region.
    region: &'static mut [T],
}

impl<T: Element> Default for Pool<T> {
    fn default() -> Self {
        Self {
            buffers: BTreeMap::new(),
            region: &mut [],
        }
    }
}

impl<T: Element> Pool<T> {
    fn take(&mut self, len: usize) -> &'static mut [T] {
        if let Some(buffer) = self.buffers.get_mut(&len).and_then(Vec::pop) {
            return buffer;
        }
        // From line to line of the cache.
        let padded = len.next_multiple_of(LINE);
        if self.region.len() < padded {
            self.region = Vec::leak(vec![T::zero(); padded.max(REGION)]);
        }
        let (buffer, rest) = std::mem::take(&mut self.region).split_at_mut(padded);
        self.region = rest;
        &mut buffer[..len]
    }
}

/// The pools of all element types: two or three, so that looking at each is soonest done.
static POOLS: Mutex<Vec<Box<dyn Any + Send>>> = Mutex::new(Vec::new());

fn with_pool<T: Element, A>(work: impl FnOnce(&mut Pool<T>) -> A) -> A {
    let mut pools = POOLS.lock().unwrap_or_else(PoisonError::into_inner);
    let index = pools.iter().position(|pool| pool.is::<Pool<T>>());
    let index = index.unwrap_or_else(|| {
        pools.push(Box::new(Pool::<T>::default()));
        pools.len() - 1
    });
    let pool = pools[index].downcast_mut();
    work(pool.expect("a pool of its type"))
}

/// A buffer that goes back to a pool when it is dropped, instead of to the system, which would have to
/// clear its pages again for the next step.
#[derive(Debug)]
pub struct Buffer<T: Element>(&'static mut [T]);

impl<T: Element> Buffer<T> {
    /// A buffer whose elements are of no account: those of whoever used it last.
    pub fn any(len: usize) -> Self {
        if len == 0 {
            return Self::default();
        }
        Self(with_pool(|pool| pool.take(len)))
    }

    /// A buffer of zeros.
    pub fn zeros(len: usize) -> Self {
        let mut buffer = Self::any(len);
        buffer.fill(T::zero());
        buffer
    }
}

impl<T: Element> Default for Buffer<T> {
    fn default() -> Self {
        Self(&mut [])
    }
}

impl<T: Element> Drop for Buffer<T> {
    fn drop(&mut self) {
        let elements = std::mem::take(&mut self.0);
        if !elements.is_empty() {
            with_pool::<T, _>(|pool| {
                pool.buffers
                    .entry(elements.len())
                    .or_default()
                    .push(elements)
            });
        }
    }
}

impl<T: Element> Deref for Buffer<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        self.0
    }
}

impl<T: Element> DerefMut for Buffer<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_is_used_again_and_zeros_are_zeros() {
        // A length that no other test uses.
        const LEN: usize = 1_000_003;
        let mut buffer = Buffer::<f32>::any(LEN);
        buffer.fill(7.0);
        let place = buffer.as_ptr();
        drop(buffer);
        let again = Buffer::<f32>::any(LEN);
        assert_eq!(again.as_ptr(), place);
        drop(again);
        assert!(Buffer::<f32>::zeros(LEN).iter().all(|&x| x == 0.0));
        assert!(Buffer::<f64>::any(0).is_empty());
    }
}
