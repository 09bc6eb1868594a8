//! [`Store`]: an opened address.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use object_store::ObjectStore;
use object_store::path::Path;

use pleach_base::{IdSource, JobId, Result, SharedClock, SystemClock, TaskName, Tenant, UlidSource};

use crate::address::{self, Opened};
use crate::keys::Keys;
use crate::probe;
use crate::task::TaskStore;

/// How to open a store. Credentials come from the environment only (`AWS_ACCESS_KEY_ID`, ...).
#[derive(Clone, Default)]
pub struct StoreOptions {
    /// Endpoint of an S3-compatible server; else `AWS_ENDPOINT_URL_S3`, `AWS_ENDPOINT_URL`, Amazon's own.
    pub endpoint: Option<String>,
    /// Region; else `AWS_REGION`, `AWS_DEFAULT_REGION`, `us-east-1`.
    pub region: Option<String>,
    /// Stamps log entries; the machine's clock when absent.
    pub clock: Option<SharedClock>,
    /// Names writers; drawn from the clock and the operating system when absent. Two writers must never draw the
    /// same name.
    pub ids: Option<Arc<dyn IdSource>>,
    /// Stands in for the environment of the process, where `AWS_...` variables are looked up.
    pub env: Option<BTreeMap<String, String>>,
}

impl StoreOptions {
    /// Where `AWS_...` variables are looked up.
    pub(crate) fn environment(&self) -> BTreeMap<String, String> {
        match &self.env {
            Some(env) => env.clone(),
            None => std::env::vars_os()
                .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
                .collect(),
        }
    }
}

impl fmt::Debug for StoreOptions {
    /// Without `env`, which holds secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StoreOptions")
            .field("endpoint", &self.endpoint)
            .field("region", &self.region)
            .finish_non_exhaustive()
    }
}

/// An opened store. Cheap to clone.
#[derive(Clone)]
pub struct Store(Arc<Inner>);

pub(crate) struct Inner {
    pub(crate) objects: Arc<dyn ObjectStore>,
    pub(crate) root: Path,
    pub(crate) url: String,
    /// Whether folders exist by themselves and have to be removed.
    pub(crate) is_local: bool,
    pub(crate) clock: SharedClock,
    pub(crate) ids: Arc<dyn IdSource>,
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Store").field(&self.0.url).finish()
    }
}

impl Store {
    /// Opens `s3://bucket/prefix`, `file:///folder` or a folder. Nothing is read or written: call
    /// [`Store::probe`] before relying on it.
    ///
    /// # Errors
    /// `STORE_URL` when the address cannot be one, `STORE_DENIED` when keys for an S3 endpoint are missing.
    pub fn open(url: &str, options: &StoreOptions) -> Result<Self> {
        let (endpoint, region) = (options.endpoint.as_deref(), options.region.as_deref());
        let opened = address::open(url, endpoint, region, &options.environment())?;
        Ok(Self::build(opened, options))
    }

    /// A store over any [`ObjectStore`], everything below `root`, shown as `url`. For decorators and tests.
    pub fn over(objects: Arc<dyn ObjectStore>, root: Path, url: impl Into<String>, options: &StoreOptions) -> Self {
        Self::build(Opened { objects, root, url: url.into(), is_local: false }, options)
    }

    /// The same store, with every operation going through what `decorate` makes of it. For faults and for counting.
    #[must_use]
    pub fn decorated(&self, decorate: impl FnOnce(Arc<dyn ObjectStore>) -> Arc<dyn ObjectStore>) -> Self {
        let Inner { objects, root, url, is_local, clock, ids } = &*self.0;
        Self(Arc::new(Inner {
            objects: decorate(Arc::clone(objects)),
            root: root.clone(),
            url: url.clone(),
            is_local: *is_local,
            clock: SharedClock::clone(clock),
            ids: Arc::clone(ids),
        }))
    }

    fn build(opened: Opened, options: &StoreOptions) -> Self {
        let Opened { objects, root, url, is_local } = opened;
        let clock = options.clock.clone().unwrap_or_else(SystemClock::shared);
        let ids = options.ids.clone().unwrap_or_else(|| Arc::new(UlidSource::new(SharedClock::clone(&clock))));
        Self(Arc::new(Inner { objects, root, url, is_local, clock, ids }))
    }

    /// Checks what everything else relies on: the store answers, lets us write, read and delete, and refuses to
    /// create what exists. Leaves nothing behind. Takes a few seconds at most.
    ///
    /// # Errors
    /// `STORE_UNREACHABLE`, `STORE_DENIED`, `STORE_URL` (no such bucket) or `STORE_NO_CREATE_ONLY`.
    pub async fn probe(&self) -> Result<()> {
        probe::probe(&self.0).await
    }

    /// The address without credentials.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.0.url
    }

    /// The part of the store that holds one task.
    #[must_use]
    pub fn task(&self, tenant: &Tenant, job: &JobId, task: &TaskName) -> TaskStore {
        TaskStore::new(Arc::clone(&self.0), Keys::new(&self.0.root, tenant, job, task))
    }
}
