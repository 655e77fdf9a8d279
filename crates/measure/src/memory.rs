//! The largest memory that the process has held.

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
    use super::*;

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
