//! Memory that is used again: the steps of a training need the same buffers over and over.

use std::any::{Any, TypeId};
use std::collections::HashMap;
use std::ops::{Deref, DerefMut};
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};

use crate::Element;

/// Buffers that nobody uses, by element type and length.
type Pool = HashMap<(TypeId, usize), Vec<Box<dyn Any + Send>>>;

static POOL: LazyLock<Mutex<Pool>> = LazyLock::new(Mutex::default);

fn pool() -> MutexGuard<'static, Pool> {
    POOL.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A buffer that goes back to a pool when it is dropped, instead of to the system, which would have to
/// clear its pages again for the next step.
#[derive(Debug)]
pub struct Buffer<T: Element>(Vec<T>);

impl<T: Element> Buffer<T> {
    /// A buffer whose elements are of no account: those of whoever used it last.
    pub fn any(len: usize) -> Self {
        let used = pool().get_mut(&(TypeId::of::<T>(), len)).and_then(Vec::pop);
        match used.and_then(|used| used.downcast::<Vec<T>>().ok()) {
            Some(elements) => Self(*elements),
            None => Self(vec![T::zero(); len]),
        }
    }

    /// A buffer of zeros.
    pub fn zeros(len: usize) -> Self {
        let mut buffer = Self::any(len);
        buffer.0.fill(T::zero());
        buffer
    }

    /// A copy of some elements.
    pub fn copy_of(elements: &[T]) -> Self {
        let mut buffer = Self::any(elements.len());
        buffer.0.copy_from_slice(elements);
        buffer
    }

    /// The elements, which do not go back to the pool.
    pub fn into_vec(mut self) -> Vec<T> {
        std::mem::take(&mut self.0)
    }
}

impl<T: Element> Default for Buffer<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<T: Element> Drop for Buffer<T> {
    fn drop(&mut self) {
        let elements = std::mem::take(&mut self.0);
        if !elements.is_empty() {
            pool()
                .entry((TypeId::of::<T>(), elements.len()))
                .or_default()
                .push(Box::new(elements));
        }
    }
}

impl<T: Element> Deref for Buffer<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        &self.0
    }
}

impl<T: Element> DerefMut for Buffer<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        &mut self.0
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
        assert_eq!(Buffer::copy_of(&[1.0_f32, 2.0]).into_vec(), [1.0, 2.0]);
    }
}
