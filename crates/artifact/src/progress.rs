//! How far a run is, on standard error: bars on a terminal, plain lines elsewhere.

use std::io::{self, IsTerminal, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

/// Plain lines of one bar are at least this far apart.
const INTERVAL: Duration = Duration::from_secs(5);

/// Where a run tells how far it is. Cheap to clone.
#[derive(Clone)]
pub struct Progress {
    sink: Sink,
}

#[derive(Clone)]
enum Sink {
    Terminal(MultiProgress),
    Lines(Arc<Mutex<dyn Write + Send>>),
    Hidden,
}

impl Progress {
    /// Bars if standard error is a terminal, else plain lines on it, at most one every few seconds.
    pub fn stderr() -> Self {
        if io::stderr().is_terminal() {
            Self {
                sink: Sink::Terminal(MultiProgress::new()),
            }
        } else {
            Self::lines(io::stderr())
        }
    }

    /// Plain lines, to a writer.
    pub fn lines(writer: impl Write + Send + 'static) -> Self {
        Self {
            sink: Sink::Lines(Arc::new(Mutex::new(writer))),
        }
    }

    /// Nothing.
    pub fn hidden() -> Self {
        Self { sink: Sink::Hidden }
    }

    /// Starts a bar of `total` units (epochs, samples).
    pub fn bar(&self, label: &str, total: u64) -> Bar {
        let terminal = match &self.sink {
            Sink::Terminal(bars) => Some(bars.add(styled_bar(label, total))),
            Sink::Lines(_) | Sink::Hidden => None,
        };
        let state = BarState {
            label: label.to_owned(),
            message: String::new(),
            total,
            n_done: 0,
            n_skipped: 0,
            started: Instant::now(),
            n_intervals: 0,
        };
        Bar {
            progress: self.clone(),
            terminal,
            state: Mutex::new(state),
        }
    }

    /// Prints one line, above the bars.
    pub fn line(&self, text: &str) {
        // Whether anybody reads it must not decide whether a run goes on.
        match &self.sink {
            Sink::Terminal(bars) => drop(bars.println(text)),
            Sink::Lines(writer) => drop(writeln!(locked(writer), "{text}")),
            Sink::Hidden => {}
        }
    }
}

/// One bar; [`finish`](Self::finish) it, or it is cleared away when dropped.
pub struct Bar {
    progress: Progress,
    terminal: Option<ProgressBar>,
    state: Mutex<BarState>,
}

struct BarState {
    label: String,
    message: String,
    total: u64,
    n_done: u64,
    /// What was done before this run, and says nothing of its rate.
    n_skipped: u64,
    started: Instant,
    /// How many [`INTERVAL`]s had passed at the last plain line.
    n_intervals: u64,
}

impl Bar {
    /// `n` more units are done.
    pub fn inc(&self, n: u64) {
        let mut state = locked(&self.state);
        let elapsed = state.started.elapsed();
        let line = state.advance(n, elapsed);
        match (&self.terminal, line) {
            (Some(bar), _) => bar.inc(n),
            (None, Some(line)) => self.progress.line(&line),
            (None, None) => {}
        }
    }

    /// `n` units were done by an earlier run that this one goes on from.
    pub fn skip(&self, n: u64) {
        let mut state = locked(&self.state);
        state.n_done += n;
        state.n_skipped += n;
        if let Some(bar) = &self.terminal {
            bar.inc(n);
            bar.reset_eta();
        }
    }

    /// Shows a short text beside the numbers, such as the present loss.
    pub fn message(&self, text: impl Into<String>) {
        let text = text.into();
        if let Some(bar) = &self.terminal {
            bar.set_message(text.clone());
        }
        locked(&self.state).message = text;
    }

    /// Ends the bar; it stays on the screen.
    pub fn finish(self) {
        match &self.terminal {
            Some(bar) => bar.finish(),
            None => {
                let state = locked(&self.state);
                self.progress.line(&state.line(state.started.elapsed()));
            }
        }
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        if let Some(bar) = self.terminal.as_ref().filter(|bar| !bar.is_finished()) {
            bar.finish_and_clear();
        }
    }
}

impl BarState {
    /// `n` more units are done at that time since the start; the plain line, if one is due.
    fn advance(&mut self, n: u64, elapsed: Duration) -> Option<String> {
        self.n_done += n;
        let n_intervals = elapsed.as_secs() / INTERVAL.as_secs();
        // The last unit's line is that of `finish`.
        (n_intervals > self.n_intervals && self.n_done < self.total).then(|| {
            self.n_intervals = n_intervals;
            self.line(elapsed)
        })
    }

    /// The plain line at that time since the start.
    fn line(&self, elapsed: Duration) -> String {
        let Self {
            label,
            message,
            total,
            n_done,
            n_skipped,
            ..
        } = self;
        let mut line = format!("{label}: {n_done}/{total}");
        let n_here = n_done - n_skipped;
        let secs = elapsed.as_secs_f64();
        if n_here > 0 && secs > 0.0 {
            let rate = n_here as f64 / secs;
            line += &if rate >= 1.0 {
                format!(", {rate:.1}/s")
            } else {
                format!(", {:.1} s each", 1.0 / rate)
            };
            line += &match total.saturating_sub(*n_done) {
                0 => format!(", took {}", clock(elapsed)),
                n_left => {
                    let left = Duration::try_from_secs_f64(n_left as f64 / rate);
                    format!(", {} left", clock(left.unwrap_or(Duration::MAX)))
                }
            };
        }
        if !message.is_empty() {
            line += &format!(", {message}");
        }
        line
    }
}

/// `0:42`, `1:02:03`.
fn clock(duration: Duration) -> String {
    let secs = duration.as_secs_f64().round() as u64;
    let (hours, minutes, secs) = (secs / 3600, secs / 60 % 60, secs % 60);
    if hours > 0 {
        format!("{hours}:{minutes:02}:{secs:02}")
    } else {
        format!("{minutes}:{secs:02}")
    }
}

fn styled_bar(label: &str, total: u64) -> ProgressBar {
    let style = "{prefix} {bar:32} {pos}/{len} {per_sec} {eta} left {msg}";
    let style =
        ProgressStyle::with_template(style).unwrap_or_else(|_| ProgressStyle::default_bar());
    let bar = ProgressBar::new(total)
        .with_style(style)
        .with_prefix(label.to_owned());
    bar.enable_steady_tick(Duration::from_millis(250));
    bar
}

/// The lock, whatever happened to a thread that held it: nothing here can be left half-done.
fn locked<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A writer that remembers.
    #[derive(Clone, Default)]
    struct Screen(Arc<Mutex<Vec<u8>>>);

    impl Write for Screen {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            locked(&self.0).write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl Screen {
        fn text(&self) -> String {
            String::from_utf8(locked(&self.0).clone()).unwrap()
        }
    }

    fn state(total: u64) -> BarState {
        BarState {
            label: "samples".to_owned(),
            message: String::new(),
            total,
            n_done: 0,
            n_skipped: 0,
            started: Instant::now(),
            n_intervals: 0,
        }
    }

    fn secs(secs: u64) -> Duration {
        Duration::from_secs(secs)
    }

    #[test]
    fn plain_lines_are_an_interval_apart() {
        let mut state = state(100);
        assert_eq!(state.advance(1, secs(0)), None);
        assert_eq!(state.advance(1, secs(4)), None);
        let line = state.advance(8, secs(5)).unwrap();
        assert_eq!(line, "samples: 10/100, 2.0/s, 0:45 left");
        assert_eq!(state.advance(1, secs(9)), None);
        assert!(state.advance(1, secs(23)).is_some());
        assert_eq!(state.advance(1, secs(24)), None);
        // The last one is told by `finish`.
        assert_eq!(state.advance(87, secs(60)), None);
        assert_eq!(state.line(secs(60)), "samples: 100/100, 1.7/s, took 1:00");
    }

    #[test]
    fn what_an_earlier_run_did_does_not_count_for_the_rate() {
        let mut state = state(100);
        state.n_done = 90;
        state.n_skipped = 90;
        assert_eq!(state.line(secs(7)), "samples: 90/100");
        state.message = "loss 0.5".to_owned();
        let line = state.advance(2, secs(20)).unwrap();
        assert_eq!(line, "samples: 92/100, 10.0 s each, 1:20 left, loss 0.5");
    }

    #[test]
    fn more_than_announced_is_no_panic() {
        let mut state = state(0);
        assert_eq!(state.advance(3, secs(10)), None);
        assert_eq!(state.line(secs(10)), "samples: 3/0, 3.3 s each, took 0:10");
    }

    #[test]
    fn hours_are_written_where_there_are_some() {
        assert_eq!(clock(secs(0)), "0:00");
        assert_eq!(clock(secs(3599)), "59:59");
        assert_eq!(clock(secs(3600 + 2 * 60 + 3)), "1:02:03");
    }

    #[test]
    fn where_there_is_no_terminal_plain_lines_are_written() {
        let screen = Screen::default();
        let progress = Progress::lines(screen.clone());
        let bar = progress.bar("epochs", 2);
        bar.inc(1);
        progress.line("a line");
        bar.message("accuracy 0.9");
        bar.inc(1);
        bar.finish();
        let text = screen.text();
        let lines: Vec<&str> = text.lines().collect();
        let [line, last] = lines.as_slice() else {
            panic!("two lines, not {lines:?}")
        };
        assert_eq!(*line, "a line");
        assert!(last.starts_with("epochs: 2/2, "), "{last}");
        assert!(last.ends_with(", took 0:00, accuracy 0.9"), "{last}");
    }
}
