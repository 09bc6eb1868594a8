//! [`Writer`]: the one that may commit steps of a task, until the next fence.
//!
//! Order of writes of a commit: the files, the manifest, the ledger chunks, then the log entry. Whoever stops in between leaves a folder
//! that no entry names, which nobody reads.

use bytes::Bytes;
use object_store::ObjectStoreExt;

use pleach_base::{Error, Fence, Result, Step, code};

use crate::create::{Created, create};
use crate::json::canonical;
use crate::keys::folder_name;
use crate::ledger;
use crate::line::Line;
use crate::record::{self, EntryKind, FORMAT_VERSION, LogEntry, MANIFEST, Snapshot};
use crate::task::{TaskStore, parse_entry};

/// Other writers that fence at the same moment each cost one more try.
const FENCE_TRIES: u32 = 100;
/// Folders of one step and generation that others may have begun.
const FOLDER_ATTEMPTS: u32 = 100;

/// The right to commit steps of one task. Lost, without a message, when somebody else fences: the next commit says so.
#[derive(Debug)]
pub struct Writer {
    pub(crate) task: TaskStore,
    fence: Fence,
    /// Unique to this writer: two writers of the same fence are still two.
    name: String,
    /// The number of the log entry that comes next, if nobody else fenced.
    pub(crate) next: u64,
    last: Option<LogEntry>,
    /// The folder that this writer has begun to fill.
    begun: Option<(Step, String)>,
    /// The log as far as `next`, once retention needed it.
    pub(crate) line: Option<Line>,
}

impl Writer {
    pub(crate) async fn open(task: TaskStore, fence: Fence) -> Result<Self> {
        let name = task.store.ids.next_id();
        let mut writer = Self { task, fence, name, next: 1, last: None, begun: None, line: None };
        for _ in 0..FENCE_TRIES {
            if let Some(last) = writer.task.last_entry().await? {
                if last.fence > fence {
                    return Err(writer.fenced(&last));
                }
                writer.next = last.seq + 1;
            }
            let entry = writer.blank(EntryKind::Fence);
            match writer.create_entry(&entry).await? {
                Created::Fresh | Created::Same => {
                    writer.next += 1;
                    return Ok(writer);
                }
                Created::Theirs(_) => {}
            }
        }
        Err(code::STORE_FENCED.error(format!("store `{}`: too many writers fence at once", writer.task.url())))
    }

    /// Term and generation of this writer.
    #[must_use]
    pub fn fence(&self) -> Fence {
        self.fence
    }

    /// The task that it writes.
    #[must_use]
    pub fn task(&self) -> &TaskStore {
        &self.task
    }

    /// Makes a step durable. Committing the same snapshot again gives the same entry; after an error the commit may
    /// be repeated, and finds what the first try had already written.
    ///
    /// # Errors
    /// `STORE_FENCED` when somebody else took the task over: nothing of this step counts. `INTERNAL` when the step is
    /// not after the last one of this writer. Store errors: whether the step counts is then unknown until the commit
    /// is repeated or the log read.
    pub async fn commit(&mut self, snapshot: &Snapshot) -> Result<LogEntry> {
        ledger::check(&snapshot.ledger, snapshot.step)?;
        let manifest = snapshot.manifest()?;
        let manifest_bytes = canonical(&manifest)?;
        let sha256 = record::sha256(&manifest_bytes);
        if let Some(done) = self.done(snapshot.step, &sha256)? {
            return Ok(done);
        }
        let folder = self.upload(snapshot, &manifest_bytes).await?;
        let chunks = self.task.put_ledger(&snapshot.ledger, self.fence).await?;
        let mut entry = self.blank(EntryKind::Step);
        entry.ledger = chunks;
        entry.step = Some(snapshot.step);
        entry.folder = Some(folder);
        entry.manifest_sha256 = Some(sha256);
        entry.bytes = manifest.files.iter().map(|file| file.bytes).sum();
        entry.publishable = snapshot.gate.publishable;
        entry.metrics = snapshot.metrics();
        let entry = self.append(entry).await?;
        self.begun = None;
        self.copy_to_latest(&entry).await;
        Ok(entry)
    }

    /// The entry of this very commit, if it is already in the log.
    fn done(&self, step: Step, manifest_sha256: &str) -> Result<Option<LogEntry>> {
        let Some(last) = self.last.as_ref() else { return Ok(None) };
        match last.step {
            Some(before) if before < step => Ok(None),
            Some(before) if before == step && last.manifest_sha256.as_deref() == Some(manifest_sha256) => {
                Ok(Some(last.clone()))
            }
            before => Err(code::INTERNAL.error(format!(
                "commit-monotone: writer {} committed step {} and is asked for another step {step}",
                self.fence,
                before.unwrap_or_default()
            ))),
        }
    }

    /// Puts the files into a folder of this writer's own and returns its name.
    async fn upload(&mut self, snapshot: &Snapshot, manifest: &Bytes) -> Result<String> {
        let files: Vec<_> = snapshot.files.iter().map(|file| (file.name.as_str(), &file.bytes)).collect();
        for attempt in 1..=FOLDER_ATTEMPTS {
            let folder = folder_name(snapshot.step, self.fence, attempt);
            if self.fill(snapshot.step, &folder, files.iter().copied().chain([(MANIFEST, manifest)])).await? {
                return Ok(folder);
            }
        }
        Err(code::INTERNAL.error(format!("step {}: no free folder in `{}`", snapshot.step, self.task.url())))
    }

    /// Creates the files in order; false when the folder belongs to somebody else. Whoever creates the first file
    /// owns the folder: sharing one, even with equal content, would let one writer's retention remove what another
    /// one's log entry names.
    async fn fill<'a>(
        &mut self,
        step: Step,
        folder: &str,
        files: impl Iterator<Item = (&'a str, &'a Bytes)>,
    ) -> Result<bool> {
        for (name, bytes) in files {
            let key = self.task.keys.file(folder, name);
            let ours = self.begun.as_ref().is_some_and(|(of, begun)| *of == step && begun == folder);
            let created =
                create(self.task.objects(), &key, bytes).await.map_err(|e| self.task.sort("cannot write", &key, e))?;
            match created {
                Created::Fresh => self.begun = Some((step, folder.to_owned())),
                Created::Same if ours => {}
                Created::Same | Created::Theirs(_) => return Ok(false),
            }
        }
        Ok(true)
    }

    /// Creates the next log entry; what this writer wrote without hearing the answer is recognised and counts.
    pub(crate) async fn append(&mut self, mut entry: LogEntry) -> Result<LogEntry> {
        loop {
            entry.seq = self.next;
            let found = match self.create_entry(&entry).await? {
                Created::Fresh | Created::Same => entry.clone(),
                Created::Theirs(bytes) => parse_entry(&self.task.keys.entry(self.next), self.next, &bytes)?,
            };
            if found.writer != self.name {
                return Err(self.fenced(&found));
            }
            self.next += 1;
            if let Some(line) = &mut self.line {
                line.add(found.clone());
            }
            if found.kind == EntryKind::Step {
                self.last = Some(found.clone());
            }
            let same = found == LogEntry { at_ms: found.at_ms, ..entry.clone() };
            if same {
                return Ok(found);
            }
            if let (Some(step), Some(sha256)) = (entry.step, &entry.manifest_sha256)
                && let Some(done) = self.done(step, sha256)?
            {
                return Ok(done);
            }
        }
    }

    async fn create_entry(&self, entry: &LogEntry) -> Result<Created> {
        let key = self.task.keys.entry(entry.seq);
        let bytes = canonical(entry)?;
        create(self.task.objects(), &key, &bytes).await.map_err(|e| self.task.sort("cannot write", &key, e))
    }

    /// An entry of this writer with nothing in it yet.
    pub(crate) fn blank(&self, kind: EntryKind) -> LogEntry {
        LogEntry {
            format_version: FORMAT_VERSION,
            seq: self.next,
            kind,
            fence: self.fence,
            writer: self.name.clone(),
            at_ms: self.task.store.clock.now(),
            step: None,
            folder: None,
            manifest_sha256: None,
            bytes: 0,
            publishable: false,
            metrics: Default::default(),
            ledger: Vec::new(),
            removed: Vec::new(),
            kept: None,
        }
    }

    /// The step counts already: a failure here is a note, not an error.
    async fn copy_to_latest(&self, entry: &LogEntry) {
        let key = self.task.keys.latest();
        let Ok(bytes) = canonical(entry) else { return };
        if let Err(error) = self.task.objects().put(&key, bytes.into()).await {
            tracing::warn!(%key, %error, "cannot write the copy of the newest log entry");
        }
    }

    fn fenced(&self, by: &LogEntry) -> Error {
        code::STORE_FENCED
            .error(format!(
                "store `{}`: log entry {} is of fence {}, this writer's is {}",
                self.task.url(),
                by.seq,
                by.fence,
                self.fence
            ))
            .hint("a newer generation writes this task; this one has to stop")
    }
}
