//! A store in which this process stops itself (SIGSTOP) just before a chosen write: between any two PUTs.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use futures::stream::{BoxStream, StreamExt};
use nix::sys::signal::{Signal, raise};
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, PutMultipartOptions,
    PutOptions, PutPayload, PutResult, Result,
};

/// Counts writes and deletes; before the one with number `stop_before` (from 1) the process stops. Whoever started it
/// sees the line `@ gate` and then kills it, or lets it go on much later.
#[derive(Debug)]
pub(crate) struct Gate {
    inner: Arc<dyn ObjectStore>,
    seen: Arc<AtomicU64>,
    stop_before: u64,
}

impl Gate {
    pub(crate) fn before(inner: Arc<dyn ObjectStore>, stop_before: u64) -> Arc<Self> {
        Arc::new(Self { inner, seen: Arc::default(), stop_before })
    }
}

fn pass(seen: &AtomicU64, stop_before: u64, what: &dyn fmt::Display) {
    if seen.fetch_add(1, Ordering::SeqCst) + 1 == stop_before {
        println!("@ gate {stop_before} {what}");
        raise(Signal::SIGSTOP).unwrap();
    }
}

impl fmt::Display for Gate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Gate({})", self.inner)
    }
}

#[async_trait]
impl ObjectStore for Gate {
    async fn put_opts(&self, location: &Path, payload: PutPayload, opts: PutOptions) -> Result<PutResult> {
        pass(&self.seen, self.stop_before, location);
        self.inner.put_opts(location, payload, opts).await
    }

    async fn put_multipart_opts(&self, location: &Path, o: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        pass(&self.seen, self.stop_before, location);
        self.inner.put_multipart_opts(location, o).await
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        self.inner.get_opts(location, options).await
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        let (seen, stop_before) = (Arc::clone(&self.seen), self.stop_before);
        let gated = locations.inspect(move |location| {
            pass(&seen, stop_before, &format!("delete {}", location.as_ref().map_or("", Path::as_ref)));
        });
        self.inner.delete_stream(gated.boxed())
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.inner.list(prefix)
    }

    fn list_with_offset(&self, prefix: Option<&Path>, offset: &Path) -> BoxStream<'static, Result<ObjectMeta>> {
        self.inner.list_with_offset(prefix, offset)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.inner.copy_opts(from, to, options).await
    }
}
