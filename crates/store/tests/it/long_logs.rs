//! What it costs to follow a log that has grown for months: what is kept, not what was.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use futures::stream::BoxStream;
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, PutMultipartOptions,
    PutOptions, PutPayload, PutResult, Result,
};
use pleach_base::{Step, Timestamp};
use pleach_store::{LogEntry, Retention, TaskStore, canonical_json};
use rstest::rstest;

use crate::backend::{Backend, Kind, fence, snapshot, task_of};

/// Counts what is asked of a store.
#[derive(Debug)]
struct Counting {
    inner: Arc<dyn ObjectStore>,
    asked: Arc<AtomicU64>,
}

impl fmt::Display for Counting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Counting({})", self.inner)
    }
}

#[async_trait]
impl ObjectStore for Counting {
    async fn put_opts(&self, location: &Path, payload: PutPayload, opts: PutOptions) -> Result<PutResult> {
        self.inner.put_opts(location, payload, opts).await
    }

    async fn put_multipart_opts(&self, location: &Path, o: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        self.inner.put_multipart_opts(location, o).await
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        self.inner.get_opts(location, options).await
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        self.inner.delete_stream(locations)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        // A whole listing of a long log is many requests; it must not happen.
        self.asked.fetch_add(1000, Ordering::SeqCst);
        self.inner.list(prefix)
    }

    fn list_with_offset(&self, prefix: Option<&Path>, offset: &Path) -> BoxStream<'static, Result<ObjectMeta>> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        self.inner.list_with_offset(prefix, offset)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.inner.copy_opts(from, to, options).await
    }
}

/// A log of `entries`: steps, and after each the end of one, as retention leaves them with `last: 2`.
fn grow(backend: &Backend, first: &LogEntry, entries: u64) {
    let log = backend.root.join("acme/desk/tone/log");
    for seq in first.seq + 1..=entries {
        let mut entry =
            LogEntry { seq, step: Some(Step(seq)), folder: Some(format!("steps/{seq:08}-g0001")), ..first.clone() };
        if seq % 2 == 1 {
            entry.kind = pleach_store::EntryKind::Retain;
            entry.removed = vec![format!("steps/{:08}-g0001", seq - 3)];
            entry.kept = Some(pleach_store::Kept { reached: vec![seq - 1], left: Vec::new() });
            (entry.step, entry.folder) = (None, None);
        }
        std::fs::write(log.join(format!("{seq:010}.json")), canonical_json(&entry).unwrap()).unwrap();
    }
}

#[rstest]
#[tokio::test]
async fn a_long_log_is_read_from_its_end(#[values(Kind::Folder, Kind::S3)] kind: Kind) {
    let entries: u64 = std::env::var("PLEACH_LOG_ENTRIES").ok().and_then(|n| n.parse().ok()).unwrap_or(1_000);
    let backend = Backend::start(kind).await;
    let first = backend.task().fence(fence(1, 1)).await.unwrap().commit(&snapshot(2, 1)).await.unwrap();
    grow(&backend, &first, entries);
    // The newest generation, and from then on everybody, knows where the end is.
    let mut writer = backend.task().fence(fence(1, 2)).await.unwrap();
    let newest = writer.commit(&snapshot(entries + 10, 2)).await.unwrap();
    let asked = Arc::<AtomicU64>::default();
    let counted = Arc::clone(&asked);
    let counting = backend.store.decorated(|inner| Arc::new(Counting { inner, asked: counted }));
    let task: TaskStore = task_of(&counting);
    let cost = |what: &str| {
        let asked = asked.swap(0, Ordering::SeqCst);
        println!("{what} of {entries} entries: {asked} requests");
        assert!(asked <= 40, "{what}: {asked} requests");
    };
    let clock = pleach_base::SystemClock::shared();
    let start = clock.elapsed();
    assert_eq!(task.newest().await.unwrap().as_ref(), Some(&newest));
    println!("newest() took {:?}", clock.elapsed() - start);
    cost("newest");
    assert_eq!(task.newest_publishable().await.unwrap().as_ref(), Some(&newest));
    cost("newest_publishable");
    assert_eq!(task.steps().await.unwrap().len(), 3, "what the last sum keeps, what came after it, and the newest");
    cost("steps");
    let mut next = task.fence(fence(1, 3)).await.unwrap();
    cost("fence");
    let policy = Retention { last: 1, best: None, min_age: Duration::ZERO };
    next.retain(&policy, Timestamp(u64::MAX)).await.unwrap();
    // Listing the folders of steps is one whole listing, of what is kept.
    asked.fetch_sub(1000, Ordering::SeqCst);
    cost("retain");
    assert_eq!(backend.task().steps().await.unwrap(), [newest]);
}

/// The copy that saves listing is never believed.
#[rstest]
#[case::of_an_entry_that_is_not_there(|text: &str| text.replace("\"seq\": 3", "\"seq\": 30"))]
#[case::old(|text: &str| text.replace("\"seq\": 3", "\"seq\": 2"))]
#[case::broken(|_: &str| "{".to_owned())]
#[case::empty(|_: &str| String::new())]
#[tokio::test]
async fn a_wrong_copy_of_the_newest_entry_changes_nothing(
    #[case] damage: fn(&str) -> String,
    #[values(Kind::Folder, Kind::S3)] kind: Kind,
) {
    let backend = Backend::start(kind).await;
    let mut writer = backend.task().fence(fence(1, 1)).await.unwrap();
    writer.commit(&snapshot(1, 1)).await.unwrap();
    let newest = writer.commit(&snapshot(2, 1)).await.unwrap();
    let latest = backend.root.join("acme/desk/tone/latest.json");
    let text = std::fs::read_to_string(&latest).unwrap();
    assert_ne!(damage(&text), text);
    std::fs::write(&latest, damage(&text)).unwrap();
    assert_eq!(backend.task().newest().await.unwrap(), Some(newest));
    assert_eq!(backend.task().steps().await.unwrap().len(), 2);
    backend.task().fence(fence(1, 2)).await.unwrap().commit(&snapshot(3, 2)).await.unwrap();
    assert_eq!(backend.task().entries().await.unwrap().len(), 5);
}
