//! [`Source`]: objects that others wrote, listed and downloaded. Training data is read through it.
//!
//! Not here: writing, patterns (the reader of data has them), where copies are kept, and folders, which need no copies.

use std::future::Future;
use std::path::Path as LocalPath;
use std::sync::Arc;
use std::time::Duration;

use futures::TryStreamExt;
use object_store::path::Path;
use object_store::{Error as StoreError, GetOptions, GetRange, ObjectMeta, ObjectStore, ObjectStoreExt};
use tokio::fs::File;
use tokio::io::AsyncWriteExt;

use pleach_base::{Error, Result, ResultExt, code};

use crate::pull::{Parts, cannot_write};
use crate::store::StoreOptions;
use crate::{address, fault};

/// Bytes of one request: few enough for its time limit on a slow line.
const PIECE: u64 = 64 << 20;
/// No answer, or no further byte of one, for so long: the server is gone.
const SILENCE: Duration = Duration::from_secs(45);
/// Before the ETag in a version.
const ETAG: &str = "etag ";

/// A bucket to read from. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Source {
    objects: Arc<dyn ObjectStore>,
    /// `s3://bucket`.
    bucket: String,
}

/// An object of a bucket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceObject {
    /// `s3://bucket/key`, the key as it is: nothing is percent-encoded.
    pub url: String,
    /// Its length.
    pub bytes: u64,
    /// Changes when the content does. Opaque: the ETag, or the time of the last change where the server tells none.
    pub version: String,
}

impl Source {
    /// Opens the bucket of `s3://bucket/...`. Nothing is read yet. Of `options` endpoint, region and environment count.
    ///
    /// # Errors
    /// `STORE_URL` when the address cannot be one, `STORE_DENIED` when keys for the endpoint are missing.
    pub fn open(url: &str, options: &StoreOptions) -> Result<Self> {
        let Some((scheme @ ("s3" | "s3a"), rest)) = url.split_once("://") else {
            // The whole text is not repeated: it may hold a secret.
            let scheme = url.split_once("://").map_or("no scheme", |(scheme, _)| scheme);
            return Err(code::STORE_URL.error(format!("`{scheme}`: only `s3://bucket/key` is read from afar")));
        };
        // The key stays out of the URL parser, which would take a `#` or `%` of its own for something else.
        let bucket = format!("{scheme}://{}", rest.split_once('/').map_or(rest, |(bucket, _)| bucket));
        let (endpoint, region) = (options.endpoint.as_deref(), options.region.as_deref());
        let opened = address::open(&bucket, endpoint, region, &options.environment())?;
        Ok(Self { objects: opened.objects, bucket })
    }

    /// Whether `url` is in this bucket.
    #[must_use]
    pub fn holds(&self, url: &str) -> bool {
        url.strip_prefix(&self.bucket).is_some_and(|key| key.is_empty() || key.starts_with('/'))
    }

    /// The objects below `url` as a folder, at any depth; where there are none, the object of this very URL, if it
    /// exists.
    ///
    /// # Errors
    /// `STORE_URL` (no such bucket, not a usable name), `STORE_DENIED`, `STORE_UNREACHABLE`.
    pub async fn list(&self, url: &str) -> Result<Vec<SourceObject>> {
        let key = self.key(url)?;
        let below = (!key.as_ref().is_empty()).then_some(&key);
        let mut listed = self.objects.list(below);
        let mut found = Vec::new();
        while let Some(meta) = self.answer("cannot list", &key, listed.try_next()).await? {
            // Some clients mark a folder by an empty object of its name.
            if meta.location != key {
                found.push(self.object(meta));
            }
        }
        if found.is_empty() && below.is_some() {
            let head = async {
                match self.objects.head(&key).await {
                    Err(StoreError::NotFound { .. }) => Ok(None),
                    other => other.map(Some),
                }
            };
            found.extend(self.answer("cannot read", &key, head).await?.map(|meta| self.object(meta)));
        }
        Ok(found)
    }

    /// Downloads an object to the file `to` of an existing folder: whole, or not at all.
    ///
    /// # Errors
    /// `STORE_CORRUPT` when it is no longer what was listed, `STORE_DENIED`, `STORE_UNREACHABLE`; `IO` names the local
    /// file that cannot be written.
    pub async fn fetch(&self, object: &SourceObject, to: &LocalPath) -> Result<()> {
        let key = self.key(&object.url)?;
        let mut parts = Parts::default();
        let name = to.file_name().unwrap_or_default().to_string_lossy();
        let part = parts.add(to.parent().unwrap_or(LocalPath::new("")), &name);
        let mut out = File::create(&part).await.or_code(code::IO, || cannot_write(&part))?;
        let mut etag = object.version.strip_prefix(ETAG).map(str::to_owned);
        for start in (0..object.bytes).step_by(PIECE as usize) {
            let wanted = start..object.bytes.min(start + PIECE);
            let length = wanted.end - wanted.start;
            let options = GetOptions {
                // A weak tag never matches.
                if_match: etag.clone().filter(|etag| !etag.starts_with("W/")),
                range: Some(GetRange::Bounded(wanted)),
                ..GetOptions::default()
            };
            let found = self.answer("cannot read", &key, self.objects.get_opts(&key, options)).await?;
            let same_tag = etag.is_none() || found.meta.e_tag.is_none() || etag == found.meta.e_tag;
            if found.meta.size != object.bytes || !same_tag {
                return Err(changed(&object.url));
            }
            etag = etag.or_else(|| found.meta.e_tag.clone());
            let mut stream = found.into_stream();
            let mut got = 0;
            while let Some(chunk) = self.answer("cannot read", &key, stream.try_next()).await? {
                got += chunk.len() as u64;
                out.write_all(&chunk).await.or_code(code::IO, || cannot_write(&part))?;
            }
            if got != length {
                return Err(self.cut_short(&key, start + got, object.bytes));
            }
        }
        // Unlike a checkpoint's, this file is looked at again before it is used: flushing it to the disk is not worth it.
        out.flush().await.or_code(code::IO, || cannot_write(&part))?;
        tokio::fs::rename(&part, to).await.or_code(code::IO, || cannot_write(to))
    }

    fn key(&self, url: &str) -> Result<Path> {
        let unusable = || format!("`{url}`: not a usable name in `{}`", self.bucket);
        if !self.holds(url) {
            return Err(code::STORE_URL.error(unusable()));
        }
        Path::parse(url[self.bucket.len()..].trim_end_matches('/')).or_code(code::STORE_URL, unusable)
    }

    fn object(&self, meta: ObjectMeta) -> SourceObject {
        let version = match meta.e_tag {
            Some(etag) => format!("{ETAG}{etag}"),
            None => format!("changed {}", meta.last_modified.timestamp_micros()),
        };
        SourceObject { url: format!("{}/{}", self.bucket, meta.location), bytes: meta.size, version }
    }

    /// Waits for an answer about `key`, not for ever.
    async fn answer<T>(
        &self,
        doing: &str,
        key: &Path,
        asked: impl Future<Output = object_store::Result<T>>,
    ) -> Result<T> {
        match tokio::time::timeout(SILENCE, asked).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error @ (StoreError::NotFound { .. } | StoreError::Precondition { .. })))
                if doing == "cannot read" =>
            {
                Err(changed(&format!("{}/{key}", self.bucket)).caused_by(error))
            }
            Ok(Err(error)) => Err(fault::sort(&self.bucket, doing, key.as_ref(), error)),
            Err(_) => Err(code::STORE_UNREACHABLE
                .error(format!("store `{}`: {doing} `{key}`: no answer in {} s", self.bucket, SILENCE.as_secs()))
                .hint("check the endpoint and the network")),
        }
    }

    fn cut_short(&self, key: &Path, got: u64, bytes: u64) -> Error {
        code::STORE_UNREACHABLE
            .error(format!(
                "store `{}`: cannot read `{key}`: the answer ended after {got} of {bytes} bytes",
                self.bucket
            ))
            .hint("check the network and the server's log")
    }
}

fn changed(url: &str) -> Error {
    code::STORE_CORRUPT
        .error(format!("{url}: it was changed or removed after it was listed"))
        .hint("start the job anew; data must not change while a job reads it")
}
