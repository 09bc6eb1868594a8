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

/// Gives large blocks back to the system when they are freed. Left alone, the C library's allocator learns from the first
/// large tensors that are freed to keep the next ones, and the holes between them cost as much as the tensors: seen 1,110
/// MB for 660 MB that were in use. Called once, at the start of a process that trains.
pub fn return_large_blocks() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        const M_MMAP_THRESHOLD: std::ffi::c_int = -3;
        unsafe extern "C" {
            fn mallopt(parameter: std::ffi::c_int, value: std::ffi::c_int) -> std::ffi::c_int;
        }
        // SAFETY: a function of the C library that sets one number under the allocator's own lock and touches no memory of
        // ours; a refusal changes nothing, and is what we had before.
        let _ = unsafe { mallopt(M_MMAP_THRESHOLD, 128 * 1024) };
    }
}
