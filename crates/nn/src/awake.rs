//! Threads that wait for work without going to sleep.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

thread_local! {
    /// Whether this thread does work that others are kept awake for.
    static RUNS: Cell<bool> = const { Cell::new(false) };
}

/// How long work waits for the other threads to wake up.
const WAKING: Duration = Duration::from_micros(200);

/// Keeps the other threads of the pool awake while it lives.
///
/// What is done in parts of some ten microseconds waits as long for a thread that has gone to sleep in between.
pub(crate) struct Awake {
    state: Arc<AwakeState>,
    ran_before: bool,
}

#[derive(Default)]
struct AwakeState {
    n_awake: AtomicUsize,
    /// There is work: a thread that was busy until now stays out. It might be in the middle of that very work, waiting for a
    /// part of it, and would wait for the whole. What a thread that is kept awake had begun before, the work does not wait for.
    has_begun: AtomicBool,
    is_over: AtomicBool,
}

impl Awake {
    /// From here on; `None` if there are no others.
    pub(crate) fn others() -> Option<Self> {
        let n_others = rayon::current_num_threads() - 1;
        if n_others == 0 {
            return None;
        }
        let state = Arc::new(AwakeState::default());
        let ran_before = RUNS.replace(true);
        let seen = Arc::clone(&state);
        rayon::spawn_broadcast(move |_| {
            // A thread that has such work itself must get on with it.
            if RUNS.get() || seen.has_begun.load(Ordering::SeqCst) {
                return;
            }
            seen.n_awake.fetch_add(1, Ordering::SeqCst);
            while !seen.is_over.load(Ordering::Relaxed) {
                if rayon::yield_now() != Some(rayon::Yield::Executed) {
                    // Who else has something to do on this core goes first.
                    std::thread::yield_now();
                }
            }
        });
        let start = Instant::now();
        while state.n_awake.load(Ordering::SeqCst) < n_others && start.elapsed() < WAKING {
            std::hint::spin_loop();
        }
        state.has_begun.store(true, Ordering::SeqCst);
        Some(Self { state, ran_before })
    }
}

impl Drop for Awake {
    fn drop(&mut self) {
        self.state.is_over.store(true, Ordering::Relaxed);
        RUNS.set(self.ran_before);
    }
}
