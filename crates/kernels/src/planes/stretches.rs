//! Work whose parts leave something for the next one, on as many threads as have nothing else to do.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

/// Items, each with its number.
type Numbered<I> = VecDeque<(usize, I)>;

#[cfg(test)]
thread_local! {
    /// If not 0, so many items are a stretch, in what this thread runs.
    pub(super) static APART: std::cell::Cell<usize> = const { std::cell::Cell::new(0) };
}

/// What is done to items stretch by stretch: items that follow each other, on one thread.
pub(super) struct Stretches<'a, I, S> {
    /// Begins a stretch.
    pub(super) begin: &'a (dyn Fn() -> S + Sync),
    /// Works on the next item of a stretch, of this number.
    pub(super) go_on: &'a (dyn Fn(&mut S, usize, I) + Sync),
    /// Ends a stretch.
    pub(super) end: &'a (dyn Fn(S) + Sync),
    /// What a stretch takes besides its items, in the time of an item.
    pub(super) border: usize,
}

impl<I: Send, S: Send> Stretches<'_, I, S> {
    /// Works on all items: in one stretch, until a thread that has nothing else to do begins one with the rear half of what
    /// is left. So none waits for a slower one, and what has to be done twice at a border is done where there must be one.
    pub(super) fn run(&self, items: Vec<I>) {
        let items = items.into_iter().enumerate();
        #[cfg(test)]
        if APART.get() > 0 {
            let mut items = items.peekable();
            while items.peek().is_some() {
                let mut state = (self.begin)();
                for (index, item) in items.by_ref().take(APART.get()) {
                    (self.go_on)(&mut state, index, item);
                }
                (self.end)(state);
            }
            return;
        }
        if rayon::current_num_threads() == 1 {
            let mut state = (self.begin)();
            items.for_each(|(index, item)| (self.go_on)(&mut state, index, item));
            (self.end)(state);
        } else {
            self.share((self.begin)(), items.collect());
        }
    }

    /// Goes on with a stretch to its end; its rear is to be had.
    fn share(&self, mut state: S, mut items: Numbered<I>) {
        let Some(first) = items.pop_front() else {
            return (self.end)(state);
        };
        if items.len() <= self.border {
            let items = std::iter::once(first).chain(items);
            items.for_each(|(index, item)| (self.go_on)(&mut state, index, item));
            return (self.end)(state);
        }
        let left = Mutex::new((items, false));
        let lock = || left.lock().unwrap_or_else(PoisonError::into_inner);
        let front = || {
            let mut next = Some(first);
            while let Some((index, item)) = next {
                (self.go_on)(&mut state, index, item);
                let mut guard = lock();
                let (items, is_taken) = &mut *guard;
                if *is_taken && items.len() > 1 {
                    // The rear of these is to be had, too.
                    let items = std::mem::take(items);
                    drop(guard);
                    return self.share(state, items);
                }
                next = items.pop_front();
            }
            (self.end)(state);
        };
        let rear = || {
            let mut guard = lock();
            let (items, is_taken) = &mut *guard;
            *is_taken = true;
            // One more is being worked on.
            let n_rear = (items.len() + 1).saturating_sub(self.border) / 2;
            let rear = items.split_off(items.len() - n_rear);
            drop(guard);
            if !rear.is_empty() {
                self.share((self.begin)(), rear);
            }
        };
        rayon::join(front, rear);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::{Duration, Instant};

    use super::*;

    /// What each item was worked on behind, and how many stretches there were, with so many threads. Where `is_helped` the first
    /// item waits until somebody helps.
    fn run(
        n_threads: usize,
        n_items: usize,
        border: usize,
        is_helped: bool,
    ) -> (Vec<Option<usize>>, usize) {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(n_threads);
        let pool = pool.build().expect("threads");
        let (n_begun, n_ended) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let mut behind = vec![None; n_items];
        let stretches = Stretches {
            begin: &|| {
                n_begun.fetch_add(1, Ordering::SeqCst);
                None
            },
            go_on: &|last: &mut Option<usize>, index, behind: &mut Option<usize>| {
                let start = Instant::now();
                while is_helped && index == 0 && n_begun.load(Ordering::SeqCst) == 1 {
                    assert!(start.elapsed() < Duration::from_secs(60), "nobody helps");
                    std::thread::yield_now();
                }
                assert!(behind.is_none(), "worked on once");
                *behind = Some(last.replace(index).map_or(usize::MAX, |last| last));
            },
            end: &|_| {
                n_ended.fetch_add(1, Ordering::SeqCst);
            },
            border,
        };
        pool.install(|| stretches.run(behind.iter_mut().collect()));
        let n_begun = n_begun.into_inner();
        assert_eq!(n_begun, n_ended.into_inner());
        (behind, n_begun)
    }

    #[test]
    fn every_item_follows_the_one_before_it_or_begins_a_stretch() {
        for n_threads in [1, 2, 5] {
            for (n_items, border) in [(0, 0), (1, 0), (2, 0), (2, 1), (3, 2), (40, 0), (40, 5)] {
                let is_helped = n_threads > 1 && n_items > 1 && (n_items > 3 || border == 0);
                let (behind, n_stretches) = run(n_threads, n_items, border, is_helped);
                let mut n_first = 0;
                for (index, last) in behind.into_iter().enumerate() {
                    match last {
                        Some(usize::MAX) => n_first += 1,
                        last => assert_eq!(last, index.checked_sub(1)),
                    }
                }
                assert_eq!(n_first, n_stretches.min(n_items));
                assert_eq!(n_stretches > 1, is_helped);
            }
        }
    }
}
