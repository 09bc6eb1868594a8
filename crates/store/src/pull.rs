//! Bringing a step to a local folder: each file under another name until all are checked, then renamed.

use std::path::{Path as LocalPath, PathBuf};

use futures::TryStreamExt;
use sha2::{Digest, Sha256};
use tokio::io::AsyncWriteExt;

use pleach_base::{Error, Result, ResultExt, code};

use crate::record::{LogEntry, MANIFEST, ManifestFile};
use crate::task::{TaskStore, check_length, check_sha, folder_of};

/// A file that was pulled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PulledFile {
    /// Its name in the step's folder.
    pub name: String,
    /// Where it is now.
    pub path: PathBuf,
    /// Its length.
    pub bytes: u64,
    /// Its sha256 in hex, as checked.
    pub sha256: String,
}

/// Retention may take a step away while it is pulled; there is a newer one then.
const TRIES: u32 = 5;

impl TaskStore {
    /// Writes the files of a step, `manifest.json` included, into the folder `to`, which is created if need be. Files
    /// of the same names are replaced, others stay. A reader of the folder sees each file whole or not at all; after
    /// an error nothing was replaced.
    ///
    /// # Errors
    /// As [`TaskStore::read`]; `IO` names the local file that cannot be written.
    pub async fn pull(&self, entry: &LogEntry, to: &LocalPath) -> Result<Vec<PulledFile>> {
        let manifest = self.manifest(entry).await?;
        let manifest_bytes = self.manifest_bytes(entry).await?;
        tokio::fs::create_dir_all(to).await.or_code(code::IO, || format!("cannot create {}", to.display()))?;
        let mut parts = Parts::default();
        for file in &manifest.files {
            let part = parts.add(to, &file.name);
            self.download(entry, file, &part).await?;
        }
        let part = parts.add(to, MANIFEST);
        tokio::fs::write(&part, &manifest_bytes).await.or_code(code::IO, || cannot_write(&part))?;
        let own = ManifestFile {
            name: MANIFEST.to_owned(),
            bytes: manifest_bytes.len() as u64,
            sha256: entry.manifest_sha256.clone().unwrap_or_default(),
        };
        let mut pulled = Vec::new();
        for (file, part) in manifest.files.into_iter().chain([own]).zip(&parts.0) {
            let path = to.join(&file.name);
            tokio::fs::rename(part, &path).await.or_code(code::IO, || cannot_write(&path))?;
            pulled.push(PulledFile { name: file.name, path, bytes: file.bytes, sha256: file.sha256 });
        }
        Ok(pulled)
    }

    /// Pulls the newest step whose gate passed. When retention takes it away meanwhile, the one that is newest then.
    ///
    /// # Errors
    /// `CHECKPOINT_NONE` when there is none; as [`TaskStore::pull`].
    pub async fn pull_newest(&self, to: &LocalPath) -> Result<(LogEntry, Vec<PulledFile>)> {
        let mut last: Option<Error> = None;
        for _ in 0..TRIES {
            let Some(entry) = self.newest_publishable().await? else { break };
            match self.pull(&entry, to).await {
                Ok(files) => return Ok((entry, files)),
                Err(error) if error.code() == code::CHECKPOINT_NONE => last = Some(error),
                Err(error) => return Err(error),
            }
        }
        Err(last.unwrap_or_else(|| {
            code::CHECKPOINT_NONE.error(format!("store `{}`: no step has passed its gate yet", self.url()))
        }))
    }

    async fn download(&self, entry: &LogEntry, file: &ManifestFile, part: &LocalPath) -> Result<()> {
        let key = self.keys.file(folder_of(entry)?, &file.name);
        let found = self.open_object(entry, &key).await?;
        check_length(&key, found.meta.size, file.bytes)?;
        let mut out = tokio::fs::File::create(part).await.or_code(code::IO, || cannot_write(part))?;
        let mut hash = Sha256::new();
        let mut length = 0;
        let mut stream = found.into_stream();
        while let Some(chunk) = stream.try_next().await.map_err(|e| self.sort("cannot read", &key, e))? {
            hash.update(&chunk);
            length += chunk.len() as u64;
            out.write_all(&chunk).await.or_code(code::IO, || cannot_write(part))?;
        }
        check_length(&key, length, file.bytes)?;
        check_sha(&key, &hex::encode(hash.finalize()), &file.sha256)?;
        out.sync_all().await.or_code(code::IO, || cannot_write(part))
    }
}

pub(crate) fn cannot_write(path: &LocalPath) -> String {
    format!("cannot write {}", path.display())
}

/// Files under temporary names, removed when the pull ends early.
#[derive(Default)]
pub(crate) struct Parts(Vec<PathBuf>);

impl Parts {
    pub(crate) fn add(&mut self, folder: &LocalPath, name: &str) -> PathBuf {
        let part = folder.join(format!(".{name}.part-{}", std::process::id()));
        self.0.push(part.clone());
        part
    }
}

impl Drop for Parts {
    fn drop(&mut self) {
        for part in &self.0 {
            let _ = std::fs::remove_file(part);
        }
    }
}
