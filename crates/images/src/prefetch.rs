//! Batches made ahead of who takes them.

use std::sync::mpsc::sync_channel;

/// Makes the items of an iterator on threads of its own, one after the other and up to two ahead, while `work`
/// takes them. When `work` ends early, the threads end with the item that they are at.
///
/// There are as many threads as in rayon's current pool. They are not those, because `work` may run there: a pool of one
/// thread would wait for itself.
///
/// ```
/// let squares = (0..5).map(|i| i * i);
/// let sum: i32 = images::prefetched(squares, |squares| squares.sum());
/// assert_eq!(sum, 30);
/// ```
///
/// # Panics
///
/// If the iterator does, or the system gives no threads.
pub fn prefetched<I, R>(items: I, work: impl FnOnce(&mut dyn Iterator<Item = I::Item>) -> R) -> R
where
    I: Iterator + Send,
    I::Item: Send,
{
    std::thread::scope(|scope| {
        // One waits in the channel, one in the hands of the thread.
        let (sender, receiver) = sync_channel(1);
        let n_threads = rayon::current_num_threads();
        scope.spawn(move || {
            let make = move || {
                for item in items {
                    if sender.send(item).is_err() {
                        break;
                    }
                }
            };
            match rayon::ThreadPoolBuilder::new()
                .num_threads(n_threads)
                .build()
            {
                Ok(pool) => pool.install(make),
                Err(error) => panic!("no threads to make batches on: {error}"),
            }
        });
        work(&mut receiver.into_iter())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[test]
    fn items_come_in_order() {
        let all: Vec<usize> = prefetched(0..100, |items| items.collect());
        assert_eq!(all, (0..100).collect::<Vec<_>>());
    }

    #[test]
    fn a_pool_of_one_thread_does_not_wait_for_itself() {
        use rayon::prelude::*;
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(1)
            .build()
            .unwrap();
        let items = (0..4u32).map(|i| (0..i).into_par_iter().sum::<u32>());
        let sums: Vec<u32> = pool.install(|| prefetched(items, |items| items.collect()));
        assert_eq!(sums, [0, 0, 1, 3]);
    }

    #[test]
    fn who_stops_early_stops_the_thread() {
        let n_made = AtomicUsize::new(0);
        let items = (0..1_000_000).inspect(|_| {
            n_made.fetch_add(1, Ordering::Relaxed);
        });
        let first: Vec<usize> = prefetched(items, |items| items.take(3).collect());
        assert_eq!(first, [0, 1, 2]);
        // Three taken, one in the channel, one refused.
        assert!(n_made.into_inner() <= 5);
    }
}
