//! Data in object storage, for the audit: it reads copies in the user's cache, as workers do.

use std::path::Path;

use pleach_base::Result;
use pleach_data::{Fetch, RemoteFile};
use pleach_store::{Source, SourceObject};
use tokio::runtime::Handle;

/// Lists and downloads for the reader of data, on a thread that may wait. The files of a source are in one bucket.
#[derive(Debug)]
pub(super) struct Remote {
    pub(super) source: Source,
    pub(super) runtime: Handle,
}

impl Fetch for Remote {
    fn list(&self, url: &str) -> Result<Vec<RemoteFile>> {
        let found = self.runtime.block_on(self.source.list(url))?;
        let remote =
            |object: SourceObject| RemoteFile { url: object.url, bytes: object.bytes, version: object.version };
        Ok(found.into_iter().map(remote).collect())
    }

    fn fetch(&self, file: &RemoteFile, to: &Path) -> Result<()> {
        let object = SourceObject { url: file.url.clone(), bytes: file.bytes, version: file.version.clone() };
        self.runtime.block_on(self.source.fetch(&object, to))
    }
}
