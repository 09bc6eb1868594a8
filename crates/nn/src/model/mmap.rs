//! The one place that speaks to the system about memory: maps files, and sets how the allocator returns blocks.
#![allow(unsafe_code)]

use std::fs::File;
use std::path::Path;

use memmap2::{Mmap, MmapMut};
use pleach_base::{Result, ResultExt, code};

/// A file as bytes, read when touched.
///
/// # Errors
/// `MODEL_MISSING` when there is no such file, `IO` when it cannot be mapped.
pub(super) fn map(path: &Path) -> Result<Mmap> {
    let file = File::open(path).map_err(|error| {
        let code = if error.kind() == std::io::ErrorKind::NotFound { code::MODEL_MISSING } else { code::IO };
        code.error(format!("{}: cannot be opened", path.display())).caused_by(error)
    })?;
    // SAFETY: the mapping is read-only and private. Whoever truncates a model file while it is in use ends the process
    // with a bus error, as with every mapped program file; bytes that change under us are plain data, checked against
    // the header when the file was opened and against the fingerprint by whoever needs to know.
    unsafe { Mmap::map(&file) }.or_code(code::IO, || format!("{}: cannot be mapped", path.display()))
}

/// A copy of bytes in a mapping of its own.
///
/// # Errors
/// `IO` when there is no memory.
pub(super) fn copied(bytes: &[u8]) -> Result<Mmap> {
    let no_memory = || format!("{} bytes of memory cannot be had", bytes.len());
    let mut map = MmapMut::map_anon(bytes.len()).or_code(code::IO, no_memory)?;
    map.copy_from_slice(bytes);
    map.make_read_only().or_code(code::IO, no_memory)
}

/// Keeps what the C library's allocator is given back, in one heap, so that a step takes its memory from what the step before
/// left. A block that is mapped anew for every tensor is cleared by the system page by page: seen on a 60 M Llama in float32,
/// 2.66 s of one core a step with blocks from 128 KiB on mapped, 1.70 s with none (0.97 and 1.24 GB at the peak, since a heap
/// has holes). Called once, at the start of a process that trains; [`release_memory`] when it has trained.
pub fn keep_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        // SAFETY: a function of the C library that sets one number under the allocator's own lock and touches no memory of
        // ours; a refusal changes nothing, and is what we had before.
        let set = |parameter, value| unsafe { glibc::mallopt(parameter, value) } == 1;
        let _ = set(glibc::ARENA_MAX, 1);
        let _ = set(glibc::TRIM_THRESHOLD, std::ffi::c_int::MAX);
        // Older releases refuse more than half of what a thread's heap may have.
        let _ = set(glibc::MMAP_THRESHOLD, 1 << 30) || set(glibc::MMAP_THRESHOLD, 32 << 20);
    }
}

/// Gives the system what no one uses.
pub fn release_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        // SAFETY: a function of the C library that gives free pages back under the allocator's own lock.
        let _ = unsafe { glibc::malloc_trim(0) };
    }
}

#[cfg(all(target_os = "linux", target_env = "gnu"))]
mod glibc {
    use std::ffi::c_int;

    pub(super) const TRIM_THRESHOLD: c_int = -1;
    pub(super) const MMAP_THRESHOLD: c_int = -3;
    pub(super) const ARENA_MAX: c_int = -8;

    unsafe extern "C" {
        pub(super) fn mallopt(parameter: c_int, value: c_int) -> c_int;
        pub(super) fn malloc_trim(pad: usize) -> c_int;
    }
}
