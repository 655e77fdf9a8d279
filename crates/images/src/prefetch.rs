//! Batches made ahead of who takes them.

use std::sync::mpsc::sync_channel;

/// Makes the items of an iterator on a thread of its own, one after the other and up to two ahead, while `work`
/// takes them. When `work` ends early, the thread ends with the item that it is at.
///
/// ```
/// let squares = (0..5).map(|i| i * i);
/// let sum: i32 = images::prefetched(squares, |squares| squares.sum());
/// assert_eq!(sum, 30);
/// ```
///
/// # Panics
///
/// If the iterator does.
pub fn prefetched<I, R>(items: I, work: impl FnOnce(&mut dyn Iterator<Item = I::Item>) -> R) -> R
where
    I: Iterator + Send,
    I::Item: Send,
{
    std::thread::scope(|scope| {
        // One waits in the channel, one in the hands of the thread.
        let (sender, receiver) = sync_channel(1);
        scope.spawn(move || {
            for item in items {
                if sender.send(item).is_err() {
                    break;
                }
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
