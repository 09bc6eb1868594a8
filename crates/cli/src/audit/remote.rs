//! Data in object storage, for the audit: it reads copies in the user's cache, as workers do.

use std::path::{Path, PathBuf};

use pleach_base::{Result, code};
use pleach_data::{Fetch, RemoteFile};
use pleach_store::{Source, SourceObject, StoreOptions};
use tokio::runtime::Handle;

/// Whether a source is not a file of this machine.
pub(super) fn is_remote(source: &str) -> bool {
    source.contains("://") && !source.starts_with("file://")
}

/// Where copies are kept.
///
/// # Errors
/// `DATA_SOURCE` when the environment names no place.
pub(super) fn cache_folder() -> Result<PathBuf> {
    pleach_base::cache_folder("data").ok_or_else(|| {
        code::DATA_SOURCE
            .error("there is no folder for copies of remote data: neither XDG_CACHE_HOME nor HOME is set")
            .hint("set XDG_CACHE_HOME, as an absolute path")
    })
}

/// Lists and downloads for the reader of data, on a thread that may wait.
#[derive(Debug)]
pub(super) struct Remote {
    pub(super) options: StoreOptions,
    pub(super) runtime: Handle,
}

impl Fetch for Remote {
    fn list(&self, url: &str) -> Result<Vec<RemoteFile>> {
        let found = self.runtime.block_on(Source::open(url, &self.options)?.list(url))?;
        let remote =
            |object: SourceObject| RemoteFile { url: object.url, bytes: object.bytes, version: object.version };
        Ok(found.into_iter().map(remote).collect())
    }

    fn fetch(&self, file: &RemoteFile, to: &Path) -> Result<()> {
        let object = SourceObject { url: file.url.clone(), bytes: file.bytes, version: file.version.clone() };
        self.runtime.block_on(Source::open(&file.url, &self.options)?.fetch(&object, to))
    }
}
