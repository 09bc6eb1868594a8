//! Data in object storage: the client lent to the reader of data.

use std::future::Future;
use std::path::Path;
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use pleach_base::Result;
use pleach_data::{Fetch, RemoteFile};
use pleach_spec::job::CheckpointSpec;
use pleach_store::{Source, SourceObject, StoreOptions};
use tokio::runtime::Handle;

use super::ready::Preparation;
use crate::observer::Observer;
use crate::stop::StopSignal;

/// How often a wait for the server looks whether it is still wanted.
const LOOK: Duration = Duration::from_millis(500);

/// Lists and downloads for the reader of data. Endpoint and region are those of `spec.checkpoint` where it names them,
/// else the environment's.
pub(super) struct Remote {
    options: StoreOptions,
    runtime: Handle,
    observer: Arc<dyn Observer>,
    stop: StopSignal,
    /// The bucket that was read last: the files of a source are in one.
    source: Mutex<Option<Source>>,
}

impl std::fmt::Debug for Remote {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Remote").field("options", &self.options).finish_non_exhaustive()
    }
}

impl Remote {
    pub(super) fn of(cx: &Preparation) -> Self {
        let CheckpointSpec { endpoint, region, .. } = &cx.job.spec.checkpoint;
        Self {
            options: StoreOptions { endpoint: endpoint.clone(), region: region.clone(), ..StoreOptions::default() },
            runtime: cx.runtime.clone(),
            observer: Arc::clone(&cx.observer),
            stop: cx.stop.clone(),
            source: Mutex::default(),
        }
    }

    fn source(&self, url: &str) -> Result<Source> {
        let mut kept = self.source.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(source) = kept.as_ref().filter(|source| source.holds(url)) {
            return Ok(source.clone());
        }
        let source = Source::open(url, &self.options)?;
        Ok(kept.insert(source).clone())
    }

    /// Waits for the server, which the store does not do for ever; an abort ends it sooner.
    fn wait<T>(&self, work: impl Future<Output = Result<T>>) -> Result<T> {
        self.runtime.block_on(async {
            let mut work = pin!(work);
            loop {
                if let Ok(done) = tokio::time::timeout(LOOK, &mut work).await {
                    return done;
                }
                self.stop.check()?;
                self.observer.progress();
            }
        })
    }
}

impl Fetch for Remote {
    fn list(&self, url: &str) -> Result<Vec<RemoteFile>> {
        let source = self.source(url)?;
        let found = self.wait(source.list(url))?;
        let remote =
            |object: SourceObject| RemoteFile { url: object.url, bytes: object.bytes, version: object.version };
        Ok(found.into_iter().map(remote).collect())
    }

    fn fetch(&self, file: &RemoteFile, to: &Path) -> Result<()> {
        let object = SourceObject { url: file.url.clone(), bytes: file.bytes, version: file.version.clone() };
        let source = self.source(&file.url)?;
        self.wait(source.fetch(&object, to))
    }
}
