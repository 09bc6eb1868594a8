//! A store that stops at a chosen write, as a process does that is killed there.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};

/// Lets `left` writes and deletes through; then everything fails. The last one may be carried out without an answer.
#[derive(Debug)]
pub(crate) struct Failing {
    inner: Arc<dyn ObjectStore>,
    left: Arc<AtomicI64>,
    last_is_applied: bool,
}

impl Failing {
    pub(crate) fn after(inner: Arc<dyn ObjectStore>, writes: i64, last_is_applied: bool) -> Arc<Self> {
        Arc::new(Self { inner, left: Arc::new(AtomicI64::new(writes)), last_is_applied })
    }

    pub(crate) fn is_dead(&self) -> bool {
        self.left.load(Ordering::SeqCst) < 0
    }

    fn alive(&self) -> Result<()> {
        if self.is_dead() { Err(dead()) } else { Ok(()) }
    }

    /// Whether this write is carried out, and whether it is answered.
    fn write(&self) -> (bool, bool) {
        match self.left.fetch_sub(1, Ordering::SeqCst) {
            1.. => (true, true),
            0 => (self.last_is_applied, false),
            _ => (false, false),
        }
    }
}

/// Not `Generic`, which would be tried again: a dead process tries nothing.
fn dead() -> Error {
    Error::PermissionDenied { path: String::new(), source: "the process is dead".into() }
}

impl fmt::Display for Failing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Failing({})", self.inner)
    }
}

#[async_trait]
impl ObjectStore for Failing {
    async fn put_opts(&self, location: &Path, payload: PutPayload, opts: PutOptions) -> Result<PutResult> {
        let (applied, answered) = self.write();
        let result = if applied { self.inner.put_opts(location, payload, opts).await } else { Err(dead()) };
        if answered { result } else { Err(dead()) }
    }

    async fn put_multipart_opts(&self, _: &Path, _: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        Err(dead())
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        self.alive()?;
        self.inner.get_opts(location, options).await
    }

    async fn get_ranges(&self, location: &Path, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        self.alive()?;
        self.inner.get_ranges(location, ranges).await
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        match self.write() {
            (true, true) => self.inner.delete_stream(locations),
            _ => Box::pin(futures::stream::once(async { Err(dead()) })),
        }
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.inner.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, _: &Path, _: &Path, _: CopyOptions) -> Result<()> {
        Err(dead())
    }
}

/// Carries one write of a key out and loses its answer in a way that nobody tries again.
#[derive(Debug)]
pub(crate) struct LosesOne {
    inner: Arc<dyn ObjectStore>,
    suffix: &'static str,
    lost: AtomicI64,
}

impl LosesOne {
    pub(crate) fn at(inner: Arc<dyn ObjectStore>, suffix: &'static str) -> Self {
        Self { inner, suffix, lost: AtomicI64::new(0) }
    }
}

impl fmt::Display for LosesOne {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LosesOne({})", self.inner)
    }
}

#[async_trait]
impl ObjectStore for LosesOne {
    async fn put_opts(&self, location: &Path, payload: PutPayload, opts: PutOptions) -> Result<PutResult> {
        let result = self.inner.put_opts(location, payload, opts).await;
        if location.as_ref().ends_with(self.suffix) && self.lost.fetch_add(1, Ordering::SeqCst) == 0 {
            return Err(dead());
        }
        result
    }

    async fn put_multipart_opts(&self, _: &Path, _: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        Err(dead())
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        self.inner.get_opts(location, options).await
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        self.inner.delete_stream(locations)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.inner.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, _: &Path, _: &Path, _: CopyOptions) -> Result<()> {
        Err(dead())
    }
}
