//! Random access to the bytes of rows.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Up to this many files of a source stay open.
pub(crate) const KEPT_OPEN: usize = 128;

/// Where a row's JSON lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RowRef {
    pub(crate) offset: u64,
    pub(crate) length: u32,
    pub(crate) line: u32,
}

/// A file that rows are read from.
#[derive(Debug)]
pub(crate) enum Handle {
    /// Shared by all Parquet files of a source, whose rows lie in one spool.
    Open(Arc<File>),
    /// Opened anew for each row.
    Closed(PathBuf),
}

impl Handle {
    pub(crate) fn of(path: &Path, index: usize) -> io::Result<Self> {
        if index < KEPT_OPEN { Ok(Self::Open(Arc::new(File::open(path)?))) } else { Ok(Self::Closed(path.to_owned())) }
    }

    pub(crate) fn read(&self, row: RowRef) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; row.length as usize];
        match self {
            Self::Open(file) => file.read_exact_at(&mut bytes, row.offset)?,
            Self::Closed(path) => File::open(path)?.read_exact_at(&mut bytes, row.offset)?,
        }
        Ok(bytes)
    }
}
