//! The lock that makes conditional PUTs atomic, and the faults.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::TryStreamExt;
use s3s::dto::*;
use s3s::{Body, S3, S3Error, S3ErrorCode, S3Request, S3Response, S3Result, s3_error};
use s3s_fs::FileSystem;
use tokio::sync::{Mutex, MutexGuard};

use super::faults::{Fate, Faults};
use super::{PutFault, S3Options};

/// Keys share locks; two keys on one lock only wait for each other.
const LOCKS: usize = 256;

#[derive(Clone, Debug)]
pub(super) struct Guard(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    files: FileSystem,
    root: PathBuf,
    locks: Vec<Mutex<()>>,
    puts: AtomicU64,
    receiving: AtomicU64,
    cut: AtomicU64,
    ignore_conditions: bool,
    put_fault: Option<PutFault>,
    delay: Duration,
    faults: Arc<Faults>,
}

impl Guard {
    pub(super) fn new(files: FileSystem, root: &Path, options: &S3Options) -> Self {
        Self(Arc::new(Inner {
            files,
            root: root.to_path_buf(),
            locks: (0..LOCKS).map(|_| Mutex::new(())).collect(),
            puts: AtomicU64::new(0),
            receiving: AtomicU64::new(0),
            cut: AtomicU64::new(0),
            ignore_conditions: options.ignore_conditions,
            put_fault: options.put_fault,
            delay: options.delay,
            faults: Arc::default(),
        }))
    }

    pub(super) fn puts(&self) -> u64 {
        self.0.puts.load(Ordering::SeqCst)
    }

    /// Bodies of PUTs that are arriving now, and those that broke off.
    pub(super) fn bodies(&self) -> (u64, u64) {
        (self.0.receiving.load(Ordering::SeqCst), self.0.cut.load(Ordering::SeqCst))
    }

    async fn lock(&self, bucket: &str, key: &str) -> MutexGuard<'_, ()> {
        let mut hasher = DefaultHasher::new();
        (bucket, key).hash(&mut hasher);
        self.0.locks[(hasher.finish() % LOCKS as u64) as usize].lock().await
    }

    pub(super) fn faults(&self) -> Arc<Faults> {
        Arc::clone(&self.0.faults)
    }

    /// Waits as the server is told to, and fails a request that is not a PUT as it is told to.
    async fn pause(&self) -> S3Result<()> {
        match self.wait(false).await {
            Fate::Fails { status, .. } => Err(failure(status)),
            _ => Ok(()),
        }
    }

    async fn wait(&self, is_put: bool) -> Fate {
        let fate = self.0.faults.fate(is_put);
        let late = if let Fate::Late(by) = fate { by } else { Duration::ZERO };
        if !(self.0.delay + late).is_zero() {
            tokio::time::sleep(self.0.delay + late).await;
        }
        fate
    }

    fn fault(&self) -> Option<PutFault> {
        let nth = self.0.puts.fetch_add(1, Ordering::SeqCst) + 1;
        self.0.put_fault.filter(|fault| (fault.nth..fault.nth + fault.times).contains(&nth))
    }

    async fn put_or_fail(&self, req: S3Request<PutObjectInput>) -> S3Result<S3Response<PutObjectOutput>> {
        match self.wait(true).await {
            Fate::Fails { status, applied } => {
                if applied {
                    self.put(req).await?;
                }
                return Err(failure(status));
            }
            Fate::Fine | Fate::Late(_) => {}
        }
        let Some(fault) = self.fault() else { return self.put(req).await };
        if fault.applied {
            self.put(req).await?;
        }
        Err(failure(fault.status))
    }

    /// The put under its key's lock. The body is read before: a slow client must not hold the lock, and a body that
    /// breaks off must not leave a condition half decided.
    async fn put(&self, mut req: S3Request<PutObjectInput>) -> S3Result<S3Response<PutObjectOutput>> {
        if let Some(body) = req.input.body.take() {
            let mut arriving = Arriving::new(&self.0);
            let chunks: Vec<Bytes> =
                body.try_collect().await.map_err(|e| s3_error!(IncompleteBody, "the body broke off: {e}"))?;
            arriving.whole = true;
            drop(arriving);
            req.input.body = Some(Body::from(chunks.concat()).into());
        }
        if self.0.ignore_conditions {
            req.input.if_none_match = None;
            req.input.if_match = None;
        }
        // The file server would make the bucket; S3 does not.
        if !self.0.root.join(&req.input.bucket).is_dir() {
            return Err(s3_error!(NoSuchBucket));
        }
        let _held = self.lock(&req.input.bucket, &req.input.key).await;
        self.0.files.put_object(req).await
    }
}

/// Counts a body while it arrives. One that breaks off ends in an error, or in this future being dropped.
struct Arriving<'a> {
    counters: &'a Inner,
    whole: bool,
}

impl<'a> Arriving<'a> {
    fn new(counters: &'a Inner) -> Self {
        counters.receiving.fetch_add(1, Ordering::SeqCst);
        Self { counters, whole: false }
    }
}

impl Drop for Arriving<'_> {
    fn drop(&mut self) {
        self.counters.receiving.fetch_sub(1, Ordering::SeqCst);
        if !self.whole {
            self.counters.cut.fetch_add(1, Ordering::SeqCst);
        }
    }
}

fn failure(status: u16) -> S3Error {
    let code = if status == 503 { S3ErrorCode::ServiceUnavailable } else { S3ErrorCode::InternalError };
    S3Error::with_message(code, "injected by the test")
}

/// Implements [`S3`] by handing operations on; `locked` ones change `req.input.key` and hold its lock. (The whole
/// `impl` is in the macro because `async_trait` must see the functions.)
macro_rules! hand_on {
    (
        free { $($free:ident: $free_in:ident => $free_out:ident;)* }
        locked { $($locked:ident: $locked_in:ident => $locked_out:ident;)* }
    ) => {
        #[async_trait::async_trait]
        impl S3 for Guard {
            async fn put_object(&self, req: S3Request<PutObjectInput>) -> S3Result<S3Response<PutObjectOutput>> {
                self.put_or_fail(req).await
            }
            $(async fn $free(&self, req: S3Request<$free_in>) -> S3Result<S3Response<$free_out>> {
                self.pause().await?;
                self.0.files.$free(req).await
            })*
            $(async fn $locked(&self, req: S3Request<$locked_in>) -> S3Result<S3Response<$locked_out>> {
                self.pause().await?;
                let _held = self.lock(&req.input.bucket, &req.input.key).await;
                self.0.files.$locked(req).await
            })*
        }
    };
}

hand_on! {
    free {
        create_bucket: CreateBucketInput => CreateBucketOutput;
        delete_bucket: DeleteBucketInput => DeleteBucketOutput;
        get_bucket_location: GetBucketLocationInput => GetBucketLocationOutput;
        get_object: GetObjectInput => GetObjectOutput;
        head_bucket: HeadBucketInput => HeadBucketOutput;
        head_object: HeadObjectInput => HeadObjectOutput;
        list_buckets: ListBucketsInput => ListBucketsOutput;
        list_objects: ListObjectsInput => ListObjectsOutput;
        list_objects_v2: ListObjectsV2Input => ListObjectsV2Output;
        create_multipart_upload: CreateMultipartUploadInput => CreateMultipartUploadOutput;
        upload_part: UploadPartInput => UploadPartOutput;
        upload_part_copy: UploadPartCopyInput => UploadPartCopyOutput;
        list_parts: ListPartsInput => ListPartsOutput;
        abort_multipart_upload: AbortMultipartUploadInput => AbortMultipartUploadOutput;
        delete_objects: DeleteObjectsInput => DeleteObjectsOutput;
    }
    locked {
        copy_object: CopyObjectInput => CopyObjectOutput;
        delete_object: DeleteObjectInput => DeleteObjectOutput;
        complete_multipart_upload: CompleteMultipartUploadInput => CompleteMultipartUploadOutput;
    }
}
