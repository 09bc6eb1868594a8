//! Resident memory of this process.

/// Bytes that are resident now; 0 where the system does not tell.
#[must_use]
pub fn resident_bytes() -> u64 {
    status("VmRSS:")
}

/// The most bytes that were ever resident; 0 where the system does not tell.
#[must_use]
pub fn peak_bytes() -> u64 {
    status("VmHWM:")
}

fn status(field: &str) -> u64 {
    let Ok(text) = std::fs::read_to_string("/proc/self/status") else { return 0 };
    text.lines()
        .find_map(|line| line.strip_prefix(field))
        .and_then(|rest| rest.trim().trim_end_matches("kB").trim().parse::<u64>().ok())
        .map_or(0, |kib| kib * 1024)
}
