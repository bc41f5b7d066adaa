//! What the guest uses.

use std::fs;

use api::guest::v1::GetStatsResponse;

/// Reads /proc. What cannot be read counts as zero: these figures are for show.
pub fn read() -> GetStatsResponse {
    let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let total = meminfo_bytes(&meminfo, "MemTotal").unwrap_or_default();
    let available = meminfo_bytes(&meminfo, "MemAvailable").unwrap_or_default();
    let processes = fs::read_dir("/proc").map_or(0, |entries| {
        entries
            .flatten()
            .filter(|entry| entry.file_name().as_encoded_bytes().iter().all(u8::is_ascii_digit))
            .count()
    });
    GetStatsResponse {
        memory_used_bytes: total.saturating_sub(available),
        processes: u32::try_from(processes).unwrap_or(u32::MAX),
    }
}

/// One value of /proc/meminfo, in bytes.
pub fn meminfo_bytes(meminfo: &str, name: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    line.split_ascii_whitespace().next()?.parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_of_meminfo() {
        let text = "MemTotal:         496432 kB\nMemFree:  1 kB\nHugePages_Total:       0\n";
        for (name, expected) in [("MemTotal", Some(496_432 * 1024)), ("MemFree", Some(1024)), ("Mem", None)] {
            assert_eq!(meminfo_bytes(text, name), expected, "{name}");
        }
    }

    #[test]
    fn this_machine_uses_something() {
        let stats = read();
        assert!(stats.memory_used_bytes > 0 && stats.processes > 0);
    }
}
