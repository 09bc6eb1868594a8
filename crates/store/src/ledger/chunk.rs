//! Chunks: how rows lie in the store, and which of them count.

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use object_store::ObjectStoreExt;
use serde::{Deserialize, Serialize};

use pleach_base::{Fence, Result, Step, code};

use super::{Ledger, LedgerRow, decode_ledger, encode_ledger};
use crate::create::{Created, create};
use crate::keys::chunk_name;
use crate::record::{self, EntryKind, LogEntry};
use crate::task::{TaskStore, check_bytes};

/// Requests under way at once.
const PARALLEL: usize = 8;
/// Chunks of the same steps and generation that other writers may have begun.
const ATTEMPTS: u32 = 100;

/// A chunk of ledger rows, as a log entry names it. All rows are of one epoch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LedgerChunk {
    /// Below the task's folder, such as `ledger/000002/00000101-00000200-g0007.parquet`.
    pub path: String,
    /// sha256 of its bytes in hex.
    pub sha256: String,
    /// Its length.
    pub bytes: u64,
    /// The epoch, from 0.
    pub epoch: u64,
    /// Its first step.
    pub from: Step,
    /// Its last step.
    pub to: Step,
}

impl TaskStore {
    /// The ledger as far as the newest durable step: every chunk that an entry names, verified and merged.
    ///
    /// # Errors
    /// `STORE_CORRUPT` for a chunk that is missing or is not what the log says, or for two rows of one step and fence
    /// that differ; as [`TaskStore::entries`].
    pub async fn ledger(&self) -> Result<Ledger> {
        self.merged(&self.entries().await?, |_| true).await
    }

    /// The part of the ledger that is of one epoch, by a log read before: no other chunk is read.
    ///
    /// # Errors
    /// As [`TaskStore::ledger`].
    pub async fn ledger_of(&self, log: &[LogEntry], epoch: u64) -> Result<Ledger> {
        self.merged(log, |chunk| chunk.epoch == epoch).await
    }

    async fn merged(&self, log: &[LogEntry], wanted: impl Fn(&LedgerChunk) -> bool) -> Result<Ledger> {
        let mut ledger = Ledger::default();
        for entry in log.iter().filter(|entry| entry.kind == EntryKind::Step) {
            let named: Vec<_> = entry.ledger.iter().filter(|chunk| wanted(chunk)).collect();
            let read = futures::stream::iter(named).map(|chunk| self.chunk(chunk)).buffered(PARALLEL);
            for row in read.try_collect::<Vec<_>>().await?.into_iter().flatten() {
                ledger.take(row)?;
            }
            ledger.ends_at(entry.step.unwrap_or_default());
        }
        Ok(ledger)
    }

    async fn chunk(&self, chunk: &LedgerChunk) -> Result<Vec<LedgerRow>> {
        let key = self.keys.folder(&chunk.path);
        let found = self.objects().get(&key).await.map_err(|e| self.sort("cannot read", &key, e))?;
        crate::task::check_length(&key, found.meta.size, chunk.bytes)?;
        let bytes = found.bytes().await.map_err(|e| self.sort("cannot read", &key, e))?;
        check_bytes(&key, &bytes, chunk.bytes, &chunk.sha256)?;
        let rows = decode_ledger(key.as_ref(), &bytes)?;
        if rows.iter().any(|row| row.epoch != chunk.epoch || !(chunk.from..=chunk.to).contains(&row.step)) {
            return Err(code::STORE_CORRUPT.error(format!("{key}: it has rows of other steps than its name says")));
        }
        Ok(rows)
    }

    /// Writes `rows`, split by epoch. What another writer left under a name is used when it is the same: nobody removes
    /// chunks.
    pub(crate) async fn put_ledger(&self, rows: &[LedgerRow], fence: Fence) -> Result<Vec<LedgerChunk>> {
        let mut chunks = Vec::new();
        for part in rows.chunk_by(|a, b| a.epoch == b.epoch) {
            let (Some(first), Some(last)) = (part.first(), part.last()) else { continue };
            let bytes = encode_ledger(part)?;
            chunks.push(LedgerChunk {
                path: self.put_chunk(first, last, fence, &bytes).await?,
                sha256: record::sha256(&bytes),
                bytes: bytes.len() as u64,
                epoch: first.epoch,
                from: first.step,
                to: last.step,
            });
        }
        Ok(chunks)
    }

    async fn put_chunk(&self, first: &LedgerRow, last: &LedgerRow, fence: Fence, bytes: &Bytes) -> Result<String> {
        for attempt in 1..=ATTEMPTS {
            let name = chunk_name(first.epoch, first.step, last.step, fence, attempt);
            let key = self.keys.folder(&name);
            let created = create(self.objects(), &key, bytes).await.map_err(|e| self.sort("cannot write", &key, e))?;
            if matches!(created, Created::Fresh | Created::Same) {
                return Ok(name);
            }
        }
        Err(code::INTERNAL.error(format!("ledger of step {}: no free name in `{}`", last.step, self.url())))
    }
}
