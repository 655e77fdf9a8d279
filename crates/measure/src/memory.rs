//! Memory: the largest that the process has held, and what a piece of work needs.

use std::alloc::{GlobalAlloc, Layout};
use std::cell::Cell;

thread_local! {
    /// What this thread holds, while it counts.
    static COUNT: Cell<Option<Count>> = const { Cell::new(None) };
}

#[derive(Clone, Copy, Default)]
struct Count {
    live_bytes: i64,
    peak_bytes: i64,
    /// Whether the allocator reports at all.
    heard: bool,
}

fn count(n_bytes: i64) {
    COUNT.with(|count| {
        if let Some(mut now) = count.get() {
            now.live_bytes += n_bytes;
            now.peak_bytes = now.peak_bytes.max(now.live_bytes);
            now.heard = true;
            count.set(Some(now));
        }
    });
}

/// An allocator that reports to [`peak_bytes`] what is asked of it. While nobody counts, that takes the look at one
/// thread-local number.
pub struct Counting<A>(pub A);

// SAFETY: every call is handed to the allocator within as it is; counting allocates nothing.
unsafe impl<A: GlobalAlloc> GlobalAlloc for Counting<A> {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as i64);
        // SAFETY: the caller's promises are those of the allocator within.
        unsafe { self.0.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as i64);
        // SAFETY: as above.
        unsafe { self.0.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        count(-(layout.size() as i64));
        // SAFETY: as above.
        unsafe { self.0.dealloc(at, layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        count(new_size as i64 - layout.size() as i64);
        // SAFETY: as above.
        unsafe { self.0.realloc(at, layout, new_size) }
    }
}

/// The most bytes that are held during `run`, what `prepare` left included: sizes as they are asked for, without what
/// the allocator adds. Counts this thread alone, so it is the same every time. `None` if the program's allocator is not
/// [`Counting`].
///
/// # Errors
/// What `prepare` or `run` returns.
pub fn peak_bytes<T, E>(
    prepare: impl FnOnce() -> Result<T, E>,
    run: impl FnOnce(&T) -> Result<(), E>,
) -> Result<Option<u64>, E> {
    /// Counts until it is dropped.
    struct Counts;
    impl Drop for Counts {
        fn drop(&mut self) {
            COUNT.with(|count| count.set(None));
        }
    }
    COUNT.with(|count| count.set(Some(Count::default())));
    let _counts = Counts;
    let prepared = prepare()?;
    COUNT.with(|count| {
        let now = count.get().unwrap_or_default();
        count.set(Some(Count {
            peak_bytes: now.live_bytes,
            ..now
        }));
    });
    run(&prepared)?;
    let count = COUNT.with(Cell::get).unwrap_or_default();
    Ok(count
        .heard
        .then(|| u64::try_from(count.peak_bytes).unwrap_or(0)))
}

/// The peak resident set of this process so far, from `/proc/self/status` (`VmHWM`); `None` where
/// the system does not tell.
pub fn peak_rss_bytes() -> Option<u64> {
    if !cfg!(target_os = "linux") {
        return None;
    }
    kibibytes(&std::fs::read_to_string("/proc/self/status").ok()?, "VmHWM")
}

/// The value in bytes of a line `key:   123 kB`, as `/proc` writes them.
pub(crate) fn kibibytes(text: &str, key: &str) -> Option<u64> {
    let value = text
        .lines()
        .find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))?;
    let kibibytes: u64 = value.trim().strip_suffix("kB")?.trim_end().parse().ok()?;
    kibibytes.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use std::alloc::System;

    use super::*;

    #[global_allocator]
    static ALLOCATOR: Counting<System> = Counting(System);

    #[test]
    fn what_is_kept_and_the_largest_of_what_is_not_are_counted() {
        let keep = || Ok::<_, ()>(drop_after(3_000_000, vec![1u8; 500_000]));
        let run = |kept: &Vec<u8>| {
            drop_after(200_000, ());
            drop_after(kept.len() / 2, ());
            let mut grown = vec![0u8; 10];
            grown.reserve_exact(90_000);
            std::hint::black_box(grown);
            Ok(())
        };
        assert_eq!(peak_bytes(keep, run), Ok(Some(750_000)));
        assert_eq!(peak_bytes(keep, run), Ok(Some(750_000)), "again");
        assert_eq!(peak_bytes(|| Err::<(), _>(3), |_| Ok(())), Err(3));
    }

    /// Holds so many bytes for a moment.
    fn drop_after<T>(n_bytes: usize, answer: T) -> T {
        std::hint::black_box(vec![1u8; n_bytes]);
        answer
    }

    #[test]
    fn reads_the_line_of_the_key() {
        let status = "VmHWMx:\t 1 kB\nVmHWM:\t    1708 kB\nVmRSS:\t 12 kB\n";
        assert_eq!(kibibytes(status, "VmHWM"), Some(1708 * 1024));
        assert_eq!(kibibytes(status, "VmRSS"), Some(12 * 1024));
        assert_eq!(kibibytes(status, "VmSwap"), None);
        assert_eq!(kibibytes("VmHWM: many kB", "VmHWM"), None);
        assert_eq!(kibibytes("VmHWM: 12 pages", "VmHWM"), None);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn the_peak_covers_what_was_touched() {
        let n_bytes = 48 << 20;
        let touched = std::hint::black_box(vec![1u8; n_bytes]);
        assert!(peak_rss_bytes().unwrap() > touched.len() as u64);
    }
}
