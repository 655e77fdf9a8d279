//! Memory that is used again: the steps of a training need the same buffers over and over.

use std::any::Any;
use std::collections::BTreeMap;
use std::ops::{Deref, DerefMut};
use std::sync::{Mutex, PoisonError};

use crate::Element;
use crate::product::LINE;

/// Numbers of a region from which buffers are cut: they lie side by side, so that none of the large pages of the
/// system is touched for half of what it holds. No more than that: all of a region is touched where the allocator had its memory before.
const REGION: usize = 1 << 22;

/// What a buffer is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Purpose {
    /// What is worked on again and again at one size: the room that was worked in last is still in the caches.
    Scratch,
    /// What goes through memory. A last batch of half as many images or more goes where whole ones were.
    Storage,
}

/// What nobody uses.
struct Pool<T: 'static> {
    /// Rooms by purpose and length.
    rooms: BTreeMap<(Purpose, usize), Vec<&'static mut [T]>>,
    /// What is left of the last region.
    region: &'static mut [T],
    /// All regions.
    regions: Vec<*mut [T]>,
    /// Buffers that are in use.
    n_used: usize,
}

// SAFETY: a pool owns its regions, and whoever has one of its buffers is alone in having it.
unsafe impl<T: Element> Send for Pool<T> {}

impl<T: Element> Default for Pool<T> {
    fn default() -> Self {
        Self {
            rooms: BTreeMap::new(),
            region: &mut [],
            regions: Vec::new(),
            n_used: 0,
        }
    }
}

impl<T: Element> Pool<T> {
    /// Room for so many numbers; in storage for up to twice as many. Of storage there are never more rooms of a length than
    /// buffers of that length, or of at least half of it, were in use at once.
    fn take(&mut self, purpose: Purpose, len: usize) -> &'static mut [T] {
        self.n_used += 1;
        let most = match purpose {
            Purpose::Scratch => len,
            Purpose::Storage => 2 * len,
        };
        let mut fitting = self.rooms.range_mut((purpose, len)..=(purpose, most));
        if let Some(room) = fitting.find_map(|(_, rooms)| rooms.pop()) {
            return room;
        }
        // From line to line of the cache.
        let padded = len.next_multiple_of(LINE);
        if self.region.len() < padded {
            let region = Box::into_raw(vec![T::zero(); padded.max(REGION)].into_boxed_slice());
            self.regions.push(region);
            // SAFETY: the region is there until `free`, before which every part of it comes back.
            self.region = unsafe { &mut *region };
        }
        let (buffer, rest) = std::mem::take(&mut self.region).split_at_mut(padded);
        self.region = rest;
        &mut buffer[..len]
    }
}

/// A pool of whatever elements.
trait AnyPool: Any + Send {
    /// Gives all regions back to the system, unless a buffer is in use.
    fn free(&mut self);
}

impl<T: Element> AnyPool for Pool<T> {
    fn free(&mut self) {
        if self.n_used > 0 {
            return;
        }
        self.rooms.clear();
        self.region = &mut [];
        for region in self.regions.drain(..) {
            // SAFETY: it came from a box, and nothing refers to it: its rooms are gone, and so is the rest of it.
            drop(unsafe { Box::from_raw(region) });
        }
    }
}

/// The pools of all element types: two or three, so that looking at each is soonest done.
static POOLS: Mutex<Vec<Box<dyn AnyPool>>> = Mutex::new(Vec::new());

/// Gives the buffers that nobody uses back to the system, for a network whose buffers are of other sizes; of an element type of which
/// any is in use, none.
pub fn free_buffers() {
    let mut pools = POOLS.lock().unwrap_or_else(PoisonError::into_inner);
    pools.iter_mut().for_each(|pool| pool.free());
}

fn with_pool<T: Element, A>(work: impl FnOnce(&mut Pool<T>) -> A) -> A {
    let mut pools = POOLS.lock().unwrap_or_else(PoisonError::into_inner);
    let is_own = |pool: &dyn AnyPool| (pool as &dyn Any).is::<Pool<T>>();
    let index = pools.iter().position(|pool| is_own(&**pool));
    let index = index.unwrap_or_else(|| {
        pools.push(Box::new(Pool::<T>::default()));
        pools.len() - 1
    });
    let pool: &mut dyn Any = &mut *pools[index];
    work(pool.downcast_mut().expect("a pool of its type"))
}

/// A buffer that goes back to a pool when it is dropped, instead of to the system, which would have to
/// clear its pages again for the next step.
#[derive(Debug)]
pub struct Buffer<T: Element> {
    room: &'static mut [T],
    len: usize,
    purpose: Purpose,
}

impl<T: Element> Buffer<T> {
    /// A buffer whose elements are of no account: those of whoever used it last.
    pub fn any(len: usize) -> Self {
        Self::new(Purpose::Storage, len)
    }

    /// The same at exactly this size, for work in the caches.
    pub fn scratch(len: usize) -> Self {
        let buffer = Self::new(Purpose::Scratch, len);
        // What is there may happen to be right.
        #[cfg(test)]
        buffer.room.fill(T::from_f64(f64::NAN));
        buffer
    }

    fn new(purpose: Purpose, len: usize) -> Self {
        let room = match len {
            0 => &mut [],
            _ => with_pool(|pool| pool.take(purpose, len)),
        };
        Self { room, len, purpose }
    }
}

impl<T: Element> Default for Buffer<T> {
    fn default() -> Self {
        Self::any(0)
    }
}

impl<T: Element> Drop for Buffer<T> {
    fn drop(&mut self) {
        let room = std::mem::take(&mut self.room);
        if !room.is_empty() {
            let key = (self.purpose, room.len());
            with_pool::<T, _>(|pool| {
                pool.n_used -= 1;
                pool.rooms.entry(key).or_default().push(room);
            });
        }
    }
}

impl<T: Element> Deref for Buffer<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        &self.room[..self.len]
    }
}

impl<T: Element> DerefMut for Buffer<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        &mut self.room[..self.len]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_is_used_again() {
        // No other test stores buffers of between half and twice this length.
        const LEN: usize = 1_000_003;
        let mut buffer = Buffer::<f32>::any(LEN);
        buffer.fill(7.0);
        let place = buffer.as_ptr();
        drop(buffer);
        let again = Buffer::<f32>::any(LEN);
        assert_eq!(again.as_ptr(), place);
        drop(again);
        let smaller = Buffer::<f32>::any(LEN.div_ceil(2));
        assert_eq!(smaller.as_ptr(), place);
        assert_eq!(smaller.len(), LEN.div_ceil(2));
        drop(smaller);
        assert_ne!(Buffer::<f32>::any(LEN / 2).as_ptr(), place);
        assert_ne!(Buffer::<f32>::scratch(LEN).as_ptr(), place);
        assert_eq!(Buffer::<f32>::any(LEN).as_ptr(), place);
        assert!(Buffer::<f64>::any(0).is_empty());
    }

    #[test]
    fn a_pool_frees_its_regions_when_nothing_is_in_use() {
        let mut pool = Pool::<f32>::default();
        let [room, other] = [3, REGION + 1].map(|len| pool.take(Purpose::Storage, len));
        assert_eq!(pool.regions.len(), 2);
        pool.free();
        assert_eq!(pool.regions.len(), 2);
        room.fill(1.0);
        other.fill(2.0);
        for room in [room, other] {
            pool.n_used -= 1;
            let key = (Purpose::Storage, room.len());
            pool.rooms.entry(key).or_default().push(room);
        }
        pool.free();
        assert!(pool.regions.is_empty() && pool.rooms.is_empty() && pool.region.is_empty());
        assert_eq!(pool.take(Purpose::Storage, 3), [0.0; 3]);
    }
}
