//! The machine of the timings, and a fingerprint of what stays the same on it.

use std::fs;
use std::thread;

use crate::memory::kibibytes;

/// What is known of the machine that this process runs on.
///
/// Linux tells everything (`/proc`, `/sys`); what another system does not tell is `None`.
#[derive(Clone, Debug, PartialEq)]
pub struct Machine {
    /// The processor's name with family, model and stepping, or the board's name.
    pub cpu_model: Option<String>,
    /// Logical processors of the machine, whether or not this process may use them all.
    pub n_logical_cpus: usize,
    /// The vector instructions that numerical code can choose from, in a fixed order.
    pub cpu_features: Vec<&'static str>,
    /// The memory that the system manages, in bytes.
    pub memory_bytes: Option<u64>,
    /// The operating system: `linux`, `macos`, `windows`, ….
    pub os: &'static str,
    /// The instruction set: `x86_64`, `aarch64`, ….
    pub arch: &'static str,
    /// How the clock of the first processor is governed: `performance`, `powersave`, ….
    pub governor: Option<String>,
    /// The clock of the first processor at this moment, in MHz.
    pub clock_mhz: Option<f64>,
}

impl Machine {
    /// Asks the system.
    pub fn detect() -> Self {
        let cpuinfo = read("/proc/cpuinfo").unwrap_or_default();
        let cpufreq = |file: &str| read(&format!("/sys/devices/system/cpu/cpu0/cpufreq/{file}"));
        Self {
            cpu_model: cpu_model(&cpuinfo).or_else(|| read("/proc/device-tree/model")),
            n_logical_cpus: match values(&cpuinfo, "processor").count() {
                0 => thread::available_parallelism().map_or(1, usize::from),
                n => n,
            },
            cpu_features: cpu_features(),
            memory_bytes: read("/proc/meminfo").and_then(|text| kibibytes(&text, "MemTotal")),
            os: std::env::consts::OS,
            arch: std::env::consts::ARCH,
            governor: cpufreq("scaling_governor"),
            clock_mhz: cpufreq("scaling_cur_freq")
                .and_then(|khz| khz.parse().ok())
                .map(|khz: f64| khz / 1e3)
                .or_else(|| values(&cpuinfo, "cpu MHz").next()?.parse().ok()),
        }
    }

    /// A digest of what stays the same on this machine: 64 hexadecimal digits.
    ///
    /// Processor, their number, vector instructions, size of memory, system and instruction set count;
    /// clock and governor of the moment do not. The size of memory is rounded up to 1, 1.5, 2, 3, 4,
    /// 6, 8 … units, because a new kernel may keep a little more or less for itself.
    pub fn fingerprint(&self) -> String {
        let mut hasher = blake3::Hasher::new();
        let mut line = |key: &str, value: &str| {
            for part in [key, "=", value, "\n"] {
                hasher.update(part.as_bytes());
            }
        };
        line("machine", "1");
        line("cpu", self.cpu_model.as_deref().unwrap_or("unknown"));
        line("logical cpus", &self.n_logical_cpus.to_string());
        line("features", &self.cpu_features.join(" "));
        line(
            "memory",
            &self.memory_bytes.map_or(0, memory_class_bytes).to_string(),
        );
        line("os", self.os);
        line("arch", self.arch);
        hasher.finalize().to_hex().to_string()
    }

    /// All that is known, for people and manifests: names and values, units in the names, without
    /// what the system did not tell. The fingerprint is the last.
    pub fn fields(&self) -> Vec<(&'static str, String)> {
        let known = [
            ("cpu_model", self.cpu_model.clone()),
            ("n_logical_cpus", Some(self.n_logical_cpus.to_string())),
            ("cpu_features", Some(self.cpu_features.join(" "))),
            (
                "memory_bytes",
                self.memory_bytes.map(|bytes| bytes.to_string()),
            ),
            ("os", Some(self.os.to_owned())),
            ("arch", Some(self.arch.to_owned())),
            ("governor", self.governor.clone()),
            ("clock_mhz", self.clock_mhz.map(|mhz| format!("{mhz:.0}"))),
            ("fingerprint", Some(self.fingerprint())),
        ];
        known
            .into_iter()
            .filter_map(|(name, value)| Some((name, value?)))
            .collect()
    }
}

/// A small text file without the white space and zero bytes at its ends; `None` if there is none.
fn read(path: &str) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    let text = text.trim_matches(|c: char| c.is_whitespace() || c == '\0');
    (!text.is_empty()).then(|| text.to_owned())
}

/// The values of the lines `key : value` of `/proc/cpuinfo`.
fn values<'a>(cpuinfo: &'a str, key: &str) -> impl Iterator<Item = &'a str> {
    cpuinfo.lines().filter_map(move |line| {
        let (name, value) = line.split_once(':')?;
        (name.trim_end() == key).then_some(value.trim())
    })
}

/// A name such as `AMD EPYC (family 25, model 17, stepping 1)`; on ARM, where there is no name, the
/// board's, or the codes of the core.
fn cpu_model(cpuinfo: &str) -> Option<String> {
    let first = |key| {
        values(cpuinfo, key)
            .next()
            .filter(|value| !value.is_empty())
    };
    if let Some(name) = first("model name") {
        let numbers: Vec<String> = ["cpu family", "model", "stepping"]
            .into_iter()
            .filter_map(|key| {
                Some(format!(
                    "{} {}",
                    key.trim_start_matches("cpu "),
                    first(key)?
                ))
            })
            .collect();
        return Some(match numbers.is_empty() {
            true => name.to_owned(),
            false => format!("{name} ({})", numbers.join(", ")),
        });
    }
    let core = || {
        Some(format!(
            "implementer {} part {}",
            first("CPU implementer")?,
            first("CPU part")?
        ))
    };
    first("Model")
        .or_else(|| first("Hardware"))
        .map(str::to_owned)
        .or_else(core)
}

/// The smallest of 2^k and 1.5 · 2^k that is not below.
fn memory_class_bytes(bytes: u64) -> u64 {
    let power = bytes.next_power_of_two();
    match power / 4 * 3 {
        between if between >= bytes => between,
        _ => power,
    }
}

#[cfg(target_arch = "x86_64")]
fn cpu_features() -> Vec<&'static str> {
    macro_rules! detected {
        ($($name:tt)*) => {
            [$(($name, std::arch::is_x86_feature_detected!($name))),*]
        };
    }
    let all = detected!(
        "sse4.2" "avx" "avx2" "fma" "f16c" "avx512f" "avx512bw" "avx512dq" "avx512vl" "avx512vnni"
        "avx512bf16"
    );
    all.into_iter()
        .filter_map(|(name, present)| present.then_some(name))
        .collect()
}

#[cfg(target_arch = "aarch64")]
fn cpu_features() -> Vec<&'static str> {
    macro_rules! detected {
        ($($name:tt)*) => {
            [$(($name, std::arch::is_aarch64_feature_detected!($name))),*]
        };
    }
    let all = detected!("neon" "fp16" "dotprod" "bf16" "i8mm" "sve" "sve2");
    all.into_iter()
        .filter_map(|(name, present)| present.then_some(name))
        .collect()
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn cpu_features() -> Vec<&'static str> {
    Vec::new()
}

#[cfg(test)]
mod tests {
    use super::*;

    const X86: &str = "processor\t: 0\nvendor_id\t: AuthenticAMD\ncpu family\t: 25\nmodel\t\t: 17\n\
        model name\t: AMD EPYC\nstepping\t: 1\ncpu MHz\t\t: 2596.142\n\n\
        processor\t: 1\nmodel name\t: AMD EPYC\n";
    const PI: &str = "processor\t: 0\nCPU implementer\t: 0x41\nCPU part\t: 0xd08\n\n\
        Hardware\t: BCM2835\nModel\t\t: Raspberry Pi 4 Model B Rev 1.4\n";
    const SERVER: &str = "processor\t: 0\nCPU implementer\t: 0x41\nCPU part\t: 0xd0c\n";

    fn machine() -> Machine {
        Machine {
            cpu_model: cpu_model(X86),
            n_logical_cpus: 2,
            cpu_features: vec!["avx", "avx2"],
            memory_bytes: Some(24_684_084 << 10),
            os: "linux",
            arch: "x86_64",
            governor: None,
            clock_mhz: Some(2596.142),
        }
    }

    #[test]
    fn names_the_processor_on_intel_and_on_arm() {
        assert_eq!(
            cpu_model(X86).as_deref(),
            Some("AMD EPYC (family 25, model 17, stepping 1)")
        );
        assert_eq!(
            cpu_model(PI).as_deref(),
            Some("Raspberry Pi 4 Model B Rev 1.4")
        );
        assert_eq!(
            cpu_model(SERVER).as_deref(),
            Some("implementer 0x41 part 0xd0c")
        );
        assert_eq!(cpu_model(""), None);
        assert_eq!(values(X86, "processor").count(), 2);
    }

    #[test]
    fn memory_falls_into_the_class_that_it_was_sold_as() {
        let gib = |n: f64| (n * f64::from(1 << 30)) as u64;
        for (found, class) in [
            (23.54, 24.0),
            (15.6, 16.0),
            (7.7, 8.0),
            (62.7, 64.0),
            (24.0, 24.0),
        ] {
            assert_eq!(memory_class_bytes(gib(found)), gib(class), "{found} GiB");
        }
    }

    #[test]
    fn the_fingerprint_keeps_with_the_moment_and_changes_with_the_machine() {
        let here = machine();
        let later = Machine {
            governor: Some("powersave".to_owned()),
            clock_mhz: Some(800.0),
            memory_bytes: Some(24_600_000 << 10),
            ..machine()
        };
        assert_eq!(later.fingerprint(), here.fingerprint());

        let others = [
            Machine {
                cpu_model: None,
                ..machine()
            },
            Machine {
                n_logical_cpus: 4,
                ..machine()
            },
            Machine {
                cpu_features: vec!["avx"],
                ..machine()
            },
            Machine {
                memory_bytes: Some(32 << 30),
                ..machine()
            },
            Machine {
                os: "macos",
                ..machine()
            },
            Machine {
                arch: "aarch64",
                ..machine()
            },
        ];
        for other in others {
            assert_ne!(other.fingerprint(), here.fingerprint(), "{other:?}");
        }
    }

    #[test]
    fn fields_leave_out_what_is_unknown() {
        let here = machine();
        let fields = here.fields();
        assert!(fields.contains(&("clock_mhz", "2596".to_owned())));
        assert!(fields.contains(&("cpu_features", "avx avx2".to_owned())));
        assert!(!fields.iter().any(|(name, _)| *name == "governor"));
        assert_eq!(fields.last(), Some(&("fingerprint", here.fingerprint())));
    }

    #[test]
    fn two_looks_at_this_machine_agree() {
        let machine = Machine::detect();
        assert!(machine.n_logical_cpus >= 1);
        assert_eq!(machine.fingerprint(), Machine::detect().fingerprint());
        if cfg!(target_os = "linux") {
            assert!(machine.memory_bytes.unwrap() > 1 << 24);
        }
    }
}
