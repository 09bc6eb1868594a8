//! [`TaskStore`]: reading one task. Nothing read is believed before its length and sha256 are checked.

use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use object_store::path::Path;
use object_store::{Error as StoreError, GetResult, ObjectStore, ObjectStoreExt};

use pleach_base::{Error, Fence, Result, Step, code};

use crate::fault;
use crate::keys::{self, Keys};
use crate::line::Line;
use crate::record::{self, EntryKind, LogEntry, MANIFEST, Manifest, ManifestFile, Snapshot, SnapshotFile};
use crate::store::Inner;
use crate::writer::Writer;

/// Log entries and manifests above these sizes are not ours.
const ENTRY_LIMIT: u64 = 16 << 20;
const MANIFEST_LIMIT: u64 = 64 << 20;
/// Requests under way at once when many small objects are read.
const PARALLEL: usize = 16;
/// Entries that are looked at one by one for a step to publish, before everything that counts is read.
const LOOK_BACK: usize = 2 * PARALLEL;

/// The folders, log and checkpoints of one task. Cheap to clone.
#[derive(Clone)]
pub struct TaskStore {
    pub(crate) store: Arc<Inner>,
    pub(crate) keys: Keys,
}

impl std::fmt::Debug for TaskStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("TaskStore").field(&self.url()).finish()
    }
}

impl TaskStore {
    pub(crate) fn new(store: Arc<Inner>, keys: Keys) -> Self {
        Self { store, keys }
    }

    /// Where the task's folder is, without credentials.
    #[must_use]
    pub fn url(&self) -> String {
        let below = self.keys.root().as_ref().strip_prefix(self.store.root.as_ref()).unwrap_or_default();
        format!("{}/{}", self.store.url.trim_end_matches('/'), below.trim_start_matches('/'))
    }

    /// Takes the task over: creates the next log entry as a fence, after which no writer before it can commit.
    /// The same fence may be taken again (a process that starts anew); the earlier holder is then fenced.
    ///
    /// # Errors
    /// `STORE_FENCED` when the log holds a newer fence; store errors.
    pub async fn fence(&self, fence: Fence) -> Result<Writer> {
        Writer::open(self.clone(), fence).await
    }

    /// The whole log in order.
    ///
    /// # Errors
    /// `STORE_CORRUPT` when an entry is missing or unreadable, `STORE_FORMAT`, store errors.
    pub async fn entries(&self) -> Result<Vec<LogEntry>> {
        self.read_entries(1..=self.last_seq().await?).await
    }

    /// These entries, in the order in which they are named.
    async fn read_entries(&self, seqs: impl IntoIterator<Item = u64>) -> Result<Vec<LogEntry>> {
        let seqs: Vec<u64> = seqs.into_iter().collect();
        futures::stream::iter(seqs).map(|seq| self.entry(seq)).buffered(PARALLEL).try_collect().await
    }

    /// The last entry of the log.
    ///
    /// # Errors
    /// As [`TaskStore::entries`].
    pub async fn last_entry(&self) -> Result<Option<LogEntry>> {
        match self.last_seq().await? {
            0 => Ok(None),
            seq => self.entry(seq).await.map(Some),
        }
    }

    /// The newest step, whatever its gate said: where a job resumes.
    ///
    /// # Errors
    /// As [`TaskStore::entries`].
    pub async fn newest(&self) -> Result<Option<LogEntry>> {
        for seq in (1..=self.last_seq().await?).rev() {
            let entry = self.entry(seq).await?;
            if entry.kind == EntryKind::Step {
                return Ok(Some(entry));
            }
        }
        Ok(None)
    }

    /// The steps that the log still reaches, oldest first: without those that a later generation went back behind
    /// and those that retention gave up.
    ///
    /// # Errors
    /// As [`TaskStore::entries`].
    pub async fn steps(&self) -> Result<Vec<LogEntry>> {
        Ok(self.line(self.last_seq().await?).await?.reached)
    }

    /// What the log names as far as its entry `last`: read back to the newest entry that sums up what is before it.
    pub(crate) async fn line(&self, last: u64) -> Result<Line> {
        let (mut newer, mut line) = (Vec::new(), Line::default());
        let mut next = last;
        while next > 0 && newer.last().is_none_or(|entry: &LogEntry| entry.kept.is_none()) {
            let from = next.saturating_sub(PARALLEL as u64 - 1).max(1);
            let mut chunk = self.read_entries((from..=next).rev()).await?;
            let sum = chunk.iter().position(|entry| entry.kept.is_some());
            chunk.truncate(sum.map_or(chunk.len(), |at| at + 1));
            newer.append(&mut chunk);
            next = from - 1;
        }
        if let Some(kept) = newer.last().and_then(|entry| entry.kept.clone()) {
            line = Line::summed_up(&kept, self.read_entries(kept.all()).await?);
        }
        newer.into_iter().rev().for_each(|entry| line.add(entry));
        Ok(line)
    }

    /// The newest step whose gate passed: what `pull` and `export` take.
    ///
    /// # Errors
    /// As [`TaskStore::entries`].
    pub async fn newest_publishable(&self) -> Result<Option<LogEntry>> {
        // Back from the newest: an entry counts when its step is before all steps of later entries and none gave it up.
        let (mut next, mut removed) = (None, BTreeSet::new());
        let last = self.last_seq().await?;
        for seq in (1..=last).rev().take(LOOK_BACK) {
            let entry = self.entry(seq).await?;
            let is_reached = entry.kind == EntryKind::Step && next.is_none_or(|next| entry.step < next);
            if is_reached {
                next = Some(entry.step);
                if entry.publishable && entry.folder.as_ref().is_some_and(|folder| !removed.contains(folder)) {
                    return Ok(Some(entry));
                }
            }
            removed.extend(entry.removed);
        }
        Ok(self.line(last).await?.reached.into_iter().rev().find(|entry| entry.publishable))
    }

    /// The entry of this step.
    ///
    /// # Errors
    /// `CHECKPOINT_NONE` when the log does not reach it; as [`TaskStore::entries`].
    pub async fn find(&self, step: Step) -> Result<LogEntry> {
        let steps = self.steps().await?;
        let known = match (steps.first().and_then(|e| e.step), steps.last().and_then(|e| e.step)) {
            (Some(first), Some(last)) => format!("{} steps are kept, from {first} to {last}", steps.len()),
            _ => "no step is durable yet".to_owned(),
        };
        steps.into_iter().find(|entry| entry.step == Some(step)).ok_or_else(|| {
            code::CHECKPOINT_NONE.error(format!("store `{}`: no checkpoint of step {step}", self.url())).hint(known)
        })
    }

    /// The manifest of a step, checked against its log entry.
    ///
    /// # Errors
    /// `CHECKPOINT_NONE` when retention removed the step meanwhile, `STORE_CORRUPT`, `STORE_FORMAT`, store errors.
    pub async fn manifest(&self, entry: &LogEntry) -> Result<Manifest> {
        let bytes = self.manifest_bytes(entry).await?;
        let key = self.keys.file(folder_of(entry)?, MANIFEST);
        let manifest: Manifest = record::parse(key.as_ref(), &bytes)?;
        let corrupt = |why: &str| code::STORE_CORRUPT.error(format!("{key}: {why}"));
        record::check_names(&manifest.files).map_err(|why| corrupt(&why))?;
        if Some(manifest.step) != entry.step {
            return Err(corrupt("it is of another step than its log entry"));
        }
        Ok(manifest)
    }

    /// The whole step, every file checked.
    ///
    /// # Errors
    /// As [`TaskStore::manifest`]; `STORE_CORRUPT` names the object that is missing, too long, too short or changed.
    pub async fn read(&self, entry: &LogEntry) -> Result<Snapshot> {
        let manifest = self.manifest(entry).await?;
        let mut files = Vec::with_capacity(manifest.files.len());
        for file in &manifest.files {
            files.push(SnapshotFile::new(file.name.as_str(), self.file(entry, file).await?));
        }
        Ok(Snapshot { step: manifest.step, files, gate: manifest.gate, meta: manifest.meta, ledger: Vec::new() })
    }

    async fn file(&self, entry: &LogEntry, file: &ManifestFile) -> Result<Bytes> {
        let key = self.keys.file(folder_of(entry)?, &file.name);
        let found = self.open_object(entry, &key).await?;
        check_length(&key, found.meta.size, file.bytes)?;
        let bytes = found.bytes().await.map_err(|e| self.sort("cannot read", &key, e))?;
        check_bytes(&key, &bytes, file.bytes, &file.sha256)?;
        Ok(bytes)
    }

    /// The manifest's bytes, checked against the sha256 in the log entry.
    pub(crate) async fn manifest_bytes(&self, entry: &LogEntry) -> Result<Bytes> {
        let key = self.keys.file(folder_of(entry)?, MANIFEST);
        let found = self.open_object(entry, &key).await?;
        let bytes = self.small(&key, found, MANIFEST_LIMIT).await?;
        let expected = entry.manifest_sha256.as_deref().unwrap_or_default();
        check_bytes(&key, &bytes, bytes.len() as u64, expected)?;
        Ok(bytes)
    }

    /// Opens an object of a step. If it is missing, the log tells whether it may be.
    pub(crate) async fn open_object(&self, entry: &LogEntry, key: &Path) -> Result<GetResult> {
        let error = match self.store.objects.get(key).await {
            Ok(found) => return Ok(found),
            Err(error) => error,
        };
        if matches!(error, StoreError::NotFound { .. }) && self.is_given_up(entry).await? {
            let step = entry.step.unwrap_or_default();
            return Err(code::CHECKPOINT_NONE
                .error(format!("store `{}`: step {step} was removed by retention", self.url()))
                .hint("take a newer step"));
        }
        Err(self.sort("cannot read", key, error))
    }

    async fn is_given_up(&self, entry: &LogEntry) -> Result<bool> {
        let Some(folder) = &entry.folder else { return Ok(false) };
        for seq in (entry.seq + 1..=self.last_seq().await?).rev() {
            let later = self.entry(seq).await?;
            if later.kind == EntryKind::Retain && later.removed.contains(folder) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// The number of the log's last entry; 0 when there is none. Listed from the entry that `latest.json` copies, if it
    /// is there: the copy saves listing what is before it, and decides nothing.
    pub(crate) async fn last_seq(&self) -> Result<u64> {
        let log = self.keys.log();
        let known = self.latest_seq().await;
        let listed = match known {
            Some(seq) => self.objects().list_with_offset(Some(&log), &self.keys.entry(seq)),
            None => self.objects().list(Some(&log)),
        };
        let seqs = listed
            .try_filter_map(|meta| async move { Ok(keys::entry_seq(meta.location.filename().unwrap_or_default())) })
            .try_fold(known.unwrap_or(0), |last, seq| async move { Ok(last.max(seq)) });
        seqs.await.map_err(|e: StoreError| self.sort("cannot list", &log, e))
    }

    async fn latest_seq(&self) -> Option<u64> {
        let key = self.keys.latest();
        let found = self.objects().get(&key).await.ok()?;
        let entry: LogEntry = record::parse(key.as_ref(), &self.small(&key, found, ENTRY_LIMIT).await.ok()?).ok()?;
        self.objects().head(&self.keys.entry(entry.seq)).await.ok()?;
        Some(entry.seq)
    }

    pub(crate) async fn entry(&self, seq: u64) -> Result<LogEntry> {
        let key = self.keys.entry(seq);
        let found = self.store.objects.get(&key).await.map_err(|e| self.sort("cannot read", &key, e))?;
        let bytes = self.small(&key, found, ENTRY_LIMIT).await?;
        parse_entry(&key, seq, &bytes)
    }

    async fn small(&self, key: &Path, found: GetResult, limit: u64) -> Result<Bytes> {
        if found.meta.size > limit {
            return Err(code::STORE_CORRUPT.error(format!("{key}: {} bytes are too many", found.meta.size)));
        }
        found.bytes().await.map_err(|e| self.sort("cannot read", key, e))
    }

    pub(crate) fn sort(&self, doing: &str, key: &Path, error: StoreError) -> Error {
        fault::sort(&self.store.url, doing, key.as_ref(), error)
    }

    pub(crate) fn objects(&self) -> &dyn ObjectStore {
        self.store.objects.as_ref()
    }
}

/// Reads a log entry and checks that it is the one that belongs there.
pub(crate) fn parse_entry(key: &Path, seq: u64, bytes: &[u8]) -> Result<LogEntry> {
    let entry: LogEntry = record::parse(key.as_ref(), bytes)?;
    let whole = entry.kind != EntryKind::Step
        || (entry.step.is_some() && entry.folder.is_some() && entry.manifest_sha256.is_some());
    if entry.seq != seq || !whole {
        return Err(code::STORE_CORRUPT.error(format!("{key}: it is not the entry that belongs there")));
    }
    Ok(entry)
}

/// The folder of a step entry.
pub(crate) fn folder_of(entry: &LogEntry) -> Result<&str> {
    entry.folder.as_deref().ok_or_else(|| {
        code::CHECKPOINT_NONE.error(format!("log entry {} is of kind {:?}, not a step", entry.seq, entry.kind))
    })
}

pub(crate) fn check_length(key: &Path, found: u64, expected: u64) -> Result<()> {
    if found == expected {
        return Ok(());
    }
    Err(code::STORE_CORRUPT.error(format!("{key}: {found} bytes, the manifest says {expected}")))
}

pub(crate) fn check_bytes(key: &Path, bytes: &[u8], length: u64, sha256: &str) -> Result<()> {
    check_length(key, bytes.len() as u64, length)?;
    check_sha(key, &record::sha256(bytes), sha256)
}

pub(crate) fn check_sha(key: &Path, found: &str, expected: &str) -> Result<()> {
    if found.eq_ignore_ascii_case(expected) {
        return Ok(());
    }
    Err(code::STORE_CORRUPT
        .error(format!("{key}: sha256 is {found}, expected {expected}"))
        .hint("use another step; the object was changed after it was written"))
}
