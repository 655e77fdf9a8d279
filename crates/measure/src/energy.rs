//! The energy that the processor takes up, as Linux tells it (`powercap`, Intel and AMD RAPL).
//!
//! The counters are those of whole packages: all cores, whatever else runs on them. Where a machine has none, or
//! does not let them be read, there is no energy: nothing here estimates. A GPU's counter is NVML's (`watch`); it is
//! the board's, so what the board takes up at rest is subtracted ([`joules_above_rest`]).

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Where Linux shows the counters.
pub const POWERCAP: &str = "/sys/class/powercap";

/// The counters are read this far apart or further; they move about once a millisecond.
const SPAN: Duration = Duration::from_millis(200);

/// The counters of all packages.
pub struct EnergyMeter {
    packages: Vec<Package>,
}

struct Package {
    counter: PathBuf,
    /// Where the counter begins anew.
    range_micros: u64,
}

/// Why there is no energy to be had.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NoEnergy(String);

impl std::fmt::Display for NoEnergy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for NoEnergy {}

impl EnergyMeter {
    /// Finds the counters below a folder, [`POWERCAP`] but in tests.
    ///
    /// # Errors
    /// If there are none, or if they cannot be read.
    pub fn open(powercap: &Path) -> Result<Self, NoEnergy> {
        let none = || {
            NoEnergy(format!(
                "this machine shows no energy counters (no intel-rapl:N in {})",
                powercap.display()
            ))
        };
        let mut packages = Vec::new();
        for entry in std::fs::read_dir(powercap).map_err(|_| none())? {
            let Ok(entry) = entry else { continue };
            let name = entry.file_name().to_string_lossy().into_owned();
            // `intel-rapl:0` is a package, `intel-rapl:0:1` a part of it.
            let index = name.strip_prefix("intel-rapl:");
            if index.is_some_and(|index| index.parse::<u32>().is_ok()) {
                let counter = entry.path().join("energy_uj");
                let range_micros = read(&entry.path().join("max_energy_range_uj"))?;
                read(&counter)?;
                packages.push(Package {
                    counter,
                    range_micros,
                });
            }
        }
        packages.sort_by(|a, b| a.counter.cmp(&b.counter));
        if packages.is_empty() {
            return Err(none());
        }
        Ok(Self { packages })
    }

    /// The joules of one call, the mean of as many as fit into a fifth of a second, one at least.
    ///
    /// # Errors
    /// What the work returns, or why a counter cannot be read.
    pub fn joules<E: From<NoEnergy>>(
        &self,
        mut work: impl FnMut() -> Result<(), E>,
    ) -> Result<f64, E> {
        let before = self.micros()?;
        let started = Instant::now();
        let mut n_calls = 0u32;
        while n_calls == 0 || started.elapsed() < SPAN {
            work()?;
            n_calls += 1;
        }
        let after = self.micros()?;
        let spent = self.packages.iter().zip(before).zip(after);
        let micros: u64 = spent
            .map(|((package, before), after)| {
                if after >= before {
                    after - before
                } else {
                    package.range_micros - before + after
                }
            })
            .sum();
        Ok(micros as f64 / 1e6 / f64::from(n_calls))
    }

    fn micros(&self) -> Result<Vec<u64>, NoEnergy> {
        let counters = self.packages.iter();
        counters.map(|package| read(&package.counter)).collect()
    }
}

/// The joules of one call above what the device takes up at rest, the mean of as many as fit into a window.
///
/// `settle` waits for the work of the calls and tells the seconds since some moment; `counter` tells the joules since
/// some moment; `work` may return before its work is done. Every `CALLS` calls the work is waited for.
///
/// # Errors
/// The first error of a closure.
pub fn joules_above_rest<E>(
    rest_watts: f64,
    window: Duration,
    mut settle: impl FnMut() -> Result<f64, E>,
    mut counter: impl FnMut() -> Result<f64, E>,
    mut work: impl FnMut() -> Result<(), E>,
) -> Result<f64, E> {
    let (started, before) = (settle()?, counter()?);
    let mut n_calls = 0u32;
    loop {
        for _ in 0..CALLS {
            work()?;
        }
        n_calls += CALLS;
        let secs = settle()? - started;
        if secs >= window.as_secs_f64() {
            let spent = counter()? - before;
            return Ok((spent - rest_watts * secs) / f64::from(n_calls));
        }
    }
}

/// Calls under way at once while energy is measured: more would wait, fewer leave gaps.
const CALLS: u32 = 16;

fn read(path: &Path) -> Result<u64, NoEnergy> {
    let text = std::fs::read_to_string(path).map_err(|error| {
        NoEnergy(format!(
            "cannot read the energy counter {}: {error} (many systems show it to root alone)",
            path.display()
        ))
    })?;
    text.trim().parse().map_err(|_| {
        NoEnergy(format!(
            "the energy counter {} holds no number",
            path.display()
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a counter shows at first, and where it begins anew, in microjoules.
    const FIRST: u64 = 999_999_000;
    const RANGE: u64 = 1_000_000_000;

    /// A folder as the kernel shows it, with two packages and a part of one.
    fn powercap(name: &str) -> PathBuf {
        let root = std::env::temp_dir().join(format!("powercap-{}-{name}", std::process::id()));
        for zone in ["intel-rapl:0", "intel-rapl:0:0", "intel-rapl:1"] {
            std::fs::create_dir_all(root.join(zone)).unwrap();
            std::fs::write(root.join(zone).join("energy_uj"), format!("{FIRST}\n")).unwrap();
            let range = root.join(zone).join("max_energy_range_uj");
            std::fs::write(range, format!("{RANGE}\n")).unwrap();
        }
        root
    }

    #[test]
    fn packages_are_added_up_and_a_counter_may_begin_anew() {
        let root = powercap("sum");
        let meter = EnergyMeter::open(&root).unwrap();
        let counter = |zone: &str| root.join(zone).join("energy_uj");
        // So little that no counter overflows twice, however many calls fit into the span.
        let (mut n_calls, mut micros) = (0u32, 0u64);
        let joules = meter.joules(|| {
            n_calls += 1;
            micros += 500;
            std::fs::write(counter("intel-rapl:0"), (FIRST + micros).to_string()).unwrap();
            // The second one overflows with the second call.
            let wrapped = (FIRST + micros) % RANGE;
            std::fs::write(counter("intel-rapl:1"), wrapped.to_string()).unwrap();
            Ok::<(), NoEnergy>(())
        });
        assert!(n_calls >= 2);
        let joules = joules.unwrap();
        assert!((joules - 1e-3).abs() < 1e-12, "{joules}");
        std::fs::remove_dir_all(root).unwrap();
    }

    #[test]
    fn what_a_device_takes_up_at_rest_is_not_the_work() {
        use std::cell::Cell;
        use std::convert::Infallible;

        // A call takes 10 ms and 2 J beside the 50 W that flow anyway.
        let (secs, joules, n_calls) = (Cell::new(3.0), Cell::new(1000.0), Cell::new(0));
        let Ok(each) = joules_above_rest(
            50.0,
            Duration::from_secs(1),
            || Ok::<_, Infallible>(secs.get()),
            || Ok(joules.get()),
            || {
                n_calls.set(n_calls.get() + 1);
                secs.set(secs.get() + 0.01);
                joules.set(joules.get() + 2.0 + 50.0 * 0.01);
                Ok(())
            },
        );
        assert!((each - 2.0).abs() < 1e-9, "{each}");
        // The first multiple of what runs at once that fills the window.
        assert_eq!(n_calls.get(), 112);
    }

    #[test]
    fn a_machine_without_counters_says_so() {
        let missing = EnergyMeter::open(Path::new("/nowhere")).err().unwrap();
        assert_eq!(
            missing.to_string(),
            "this machine shows no energy counters (no intel-rapl:N in /nowhere)"
        );
        let root = powercap("unreadable");
        std::fs::remove_file(root.join("intel-rapl:1/energy_uj")).unwrap();
        let unreadable = EnergyMeter::open(&root).err().unwrap().to_string();
        assert!(unreadable.contains("root alone"), "{unreadable}");
        std::fs::write(root.join("intel-rapl:1/energy_uj"), "many").unwrap();
        let odd = EnergyMeter::open(&root).err().unwrap().to_string();
        assert!(odd.ends_with("energy_uj holds no number"), "{odd}");
        std::fs::remove_dir_all(root).unwrap();
    }
}
