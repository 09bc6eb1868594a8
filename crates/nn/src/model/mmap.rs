//! The one place that maps files into memory.
#![allow(unsafe_code)]

use std::fs::File;
use std::path::Path;

use memmap2::Mmap;
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
