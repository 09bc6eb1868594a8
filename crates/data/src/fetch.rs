//! Remote sources, by a client that somebody lends.

use std::fmt::Debug;
use std::path::{Path, PathBuf};

use pleach_base::{Result, code};

/// Where copies of remote sources are kept: [`crate::OpenOptions::cache`] of whoever runs this.
///
/// # Errors
/// `DATA_SOURCE` when the environment names no place.
pub fn copies_folder() -> Result<PathBuf> {
    pleach_base::cache_folder("data").ok_or_else(|| {
        code::DATA_SOURCE
            .error("there is no folder for copies of remote data: neither XDG_CACHE_HOME nor HOME is set")
            .hint("set XDG_CACHE_HOME, as an absolute path")
    })
}

/// One object of a remote source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RemoteFile {
    /// Full URL, `s3://bucket/key`.
    pub url: String,
    /// Size in bytes.
    pub bytes: u64,
    /// What changes when the content does: an ETag, a version.
    pub version: String,
}

/// Lists and downloads remote files. The trainer lends one over the object store client; both calls may block.
pub trait Fetch: Debug + Send + Sync {
    /// The object of this URL and the objects below it as a folder, at any depth; of objects below one that exists
    /// itself, either may be left out.
    ///
    /// # Errors
    /// When the remote end cannot be reached or refuses.
    fn list(&self, url: &str) -> Result<Vec<RemoteFile>>;

    /// Writes the object to `to`, a new file in an existing folder.
    ///
    /// # Errors
    /// When the remote end cannot be reached, refuses, or the disk does.
    fn fetch(&self, file: &RemoteFile, to: &Path) -> Result<()>;
}
