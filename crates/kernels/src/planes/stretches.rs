//! Work whose parts leave something for the next one, on as many threads as have nothing else to do.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

/// Items, each with its number.
type Numbered<I> = VecDeque<(usize, I)>;

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
        if items.len() < 2 || rayon::current_num_threads() == 1 {
            let mut state = (self.begin)();
            items.for_each(|(index, item)| (self.go_on)(&mut state, index, item));
            (self.end)(state);
        } else {
            self.stretch(items.collect());
        }
    }

    fn stretch(&self, items: Numbered<I>) {
        let mut state = (self.begin)();
        self.share(&mut state, items);
        (self.end)(state);
    }

    /// Goes on with a stretch, whose rear is to be had.
    fn share(&self, state: &mut S, items: Numbered<I>) {
        let left = Mutex::new((items, false));
        let lock = || left.lock().unwrap_or_else(PoisonError::into_inner);
        let front = || {
            loop {
                let mut guard = lock();
                let (items, is_taken) = &mut *guard;
                if *is_taken && items.len() > 1 {
                    // So is the rear of these.
                    let items = std::mem::take(items);
                    drop(guard);
                    return self.share(state, items);
                }
                let next = items.pop_front();
                drop(guard);
                let Some((index, item)) = next else {
                    return;
                };
                (self.go_on)(state, index, item);
            }
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
                self.stretch(rear);
            }
        };
        rayon::join(front, rear);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    use super::*;

    /// What each item was worked on behind, and how many stretches there were, with so many threads.
    fn run(n_threads: usize, n_items: usize) -> (Vec<Option<usize>>, usize) {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(n_threads);
        let pool = pool.build().expect("threads");
        let (n_begun, n_ended) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let mut behind = vec![None; n_items];
        let stretches = Stretches {
            begin: &|| {
                n_begun.fetch_add(1, Ordering::Relaxed);
                None
            },
            go_on: &|last: &mut Option<usize>, index, behind: &mut Option<usize>| {
                std::thread::sleep(Duration::from_micros(100));
                assert!(behind.is_none(), "worked on once");
                *behind = Some(last.replace(index).map_or(usize::MAX, |last| last));
            },
            end: &|last| {
                n_ended.fetch_add(usize::from(last.is_some()), Ordering::Relaxed);
            },
            border: n_items % 2,
        };
        pool.install(|| stretches.run(behind.iter_mut().collect()));
        let n_begun = n_begun.into_inner();
        assert_eq!(n_begun, n_ended.into_inner().max(usize::from(n_items == 0)));
        (behind, n_begun)
    }

    #[test]
    fn every_item_follows_the_one_before_it_or_begins_a_stretch() {
        for n_threads in [1, 2, 5] {
            for n_items in [0, 1, 2, 3, 40] {
                let (behind, n_stretches) = run(n_threads, n_items);
                let mut n_first = 0;
                for (index, last) in behind.into_iter().enumerate() {
                    match last {
                        Some(usize::MAX) => n_first += 1,
                        last => assert_eq!(last, index.checked_sub(1)),
                    }
                }
                assert_eq!(n_first, n_stretches.min(n_items));
                if n_threads == 1 || n_items < 2 {
                    assert_eq!(n_stretches, 1);
                } else if n_items == 40 {
                    assert!(n_stretches > 1, "nobody helped");
                }
            }
        }
    }
}
