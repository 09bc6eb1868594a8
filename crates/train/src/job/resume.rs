//! Where a task goes on when no memory reaches it: rank 0 takes the task over in the store, reads the newest durable step,
//! and gives it to all.
//!
//! One reader instead of all of them: the ranks cannot pick different steps, and only rank 0 needs the store.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::pin;
use std::time::Duration;

use bytes::Bytes;
use pleach_base::{Fence, Kind, Result, ResultExt as _, TaskName, code};
use pleach_comm::Collective;
use pleach_methods::files::Recorded;
use pleach_store::{Snapshot, SnapshotFile, Store, Writer};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::checkpoint::{self, BASE_FINGERPRINT, METRICS};
use super::task::Ground;
use super::{JobContext, broadcast};
use crate::observer::Level;

/// How often a wait for the store looks whether it is still wanted.
const LOOK: Duration = Duration::from_millis(500);
/// How long the store may take when there is a state in memory to go on from.
const PATIENCE: Duration = Duration::from_secs(5);

/// A durable step as every rank gets it.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Resumed {
    pub(super) files: BTreeMap<String, Bytes>,
    pub(super) meta: Map<String, Value>,
    /// The generation that wrote it.
    pub(super) made_by: Fence,
}

/// What goes in front of the files: everything that is not bulk.
#[derive(Debug, Serialize, Deserialize)]
struct Header {
    /// Names and lengths, in the order in which the bytes follow.
    files: Vec<(String, usize)>,
    meta: Map<String, Value>,
    made_by: Fence,
}

/// The newest durable step, if it is newer than `known`, on every rank. Rank 0 fences first and reads then: nothing older
/// can become durable behind the step that it finds. `writer` is then what it may write with. A collective call.
///
/// # Errors
/// On rank 0 those of the store when nothing is known without it; `STORE_FENCED` always.
pub(super) fn newest(
    ground: &Ground<'_>,
    task: &TaskName,
    known: Option<u64>,
    writer: &mut Option<Writer>,
) -> Result<Option<Resumed>> {
    let cx = ground.cx;
    let found = match &ground.store {
        Some(store) => match wait(cx, known.map(|_| PATIENCE), look(cx, store, task, known, writer)) {
            Err(error) if known.is_some() && error.kind() != Kind::Fenced && !cx.stop.is_aborted() => {
                let line = format!("task {task}: going on from memory without the store: {}", error.chain());
                cx.observer.log(Level::Warn, &line);
                None
            }
            other => other?,
        },
        None => None,
    };
    share(cx.group, found)
}

async fn look(
    cx: &JobContext<'_>,
    store: &Store,
    task: &TaskName,
    known: Option<u64>,
    writer: &mut Option<Writer>,
) -> Result<Option<(Snapshot, Fence)>> {
    if known.is_none() {
        store.probe().await?;
    }
    let place = store.task(&cx.tenant, &cx.id, task);
    *writer = Some(place.fence(cx.fence).await?);
    let Some(entry) = place.newest().await? else { return Ok(None) };
    if entry.step.is_some_and(|step| known.is_some_and(|known| step.0 <= known)) {
        return Ok(None);
    }
    let found = place.read(&entry).await?;
    let below_root = checkpoint::below_root(store, &place);
    cx.observer.durable(&checkpoint::durable_row(task, &below_root, &entry));
    Ok(Some((found, entry.fence)))
}

/// Waits for the store, at most `patience`; an abort ends it sooner.
fn wait<T>(cx: &JobContext<'_>, patience: Option<Duration>, work: impl Future<Output = Result<T>>) -> Result<T> {
    let until = patience.map(|patience| cx.clock.elapsed() + patience);
    cx.runtime.block_on(async {
        let mut work = pin!(work);
        loop {
            if let Ok(done) = tokio::time::timeout(LOOK, &mut work).await {
                return done;
            }
            cx.stop.check()?;
            cx.observer.progress();
            if until.is_some_and(|until| cx.clock.elapsed() >= until) {
                return Err(code::STORE_UNREACHABLE.error("the store does not answer"));
            }
        }
    })
}

/// The snapshot that rank 0 found, on every rank; `None` when there is none. A collective call.
///
/// # Errors
/// Those of [`Collective`].
fn share(group: &dyn Collective, found: Option<(Snapshot, Fence)>) -> Result<Option<Resumed>> {
    let message = found.as_ref().map(pack).transpose()?.unwrap_or_default();
    let message = Bytes::from(broadcast::bytes(group, 0, message)?);
    if message.is_empty() { Ok(None) } else { unpack(&message).map(Some) }
}

fn pack((snapshot, made_by): &(Snapshot, Fence)) -> Result<Vec<u8>> {
    let files = snapshot.files.iter().map(|file| (file.name.clone(), file.bytes.len())).collect();
    let header = serde_json::to_vec(&Header { files, meta: snapshot.meta.clone(), made_by: *made_by })
        .or_code(code::INTERNAL, || "cannot pack a snapshot".to_owned())?;
    let mut message = (header.len() as u64).to_le_bytes().to_vec();
    message.extend(header);
    for SnapshotFile { bytes, .. } in &snapshot.files {
        message.extend_from_slice(bytes);
    }
    Ok(message)
}

fn unpack(message: &Bytes) -> Result<Resumed> {
    let broken = || code::INTERNAL.error("a broadcast snapshot is cut short");
    let prefix: [u8; 8] = message.get(..8).and_then(|bytes| bytes.try_into().ok()).ok_or_else(broken)?;
    let mut at = 8 + u64::from_le_bytes(prefix) as usize;
    let header: Header = serde_json::from_slice(message.get(8..at).ok_or_else(broken)?)
        .or_code(code::INTERNAL, || "cannot unpack a broadcast snapshot".to_owned())?;
    let mut files = BTreeMap::new();
    for (name, length) in header.files {
        if at + length > message.len() {
            return Err(broken());
        }
        files.insert(name, message.slice(at..at + length));
        at += length;
    }
    Ok(Resumed { files, meta: header.meta, made_by: header.made_by })
}

impl Resumed {
    /// The metrics of its manifest.
    pub(super) fn metrics(&self) -> Map<String, Value> {
        self.meta.get(METRICS).and_then(Value::as_object).cloned().unwrap_or_default()
    }

    /// # Errors
    /// `ADAPTER_BASE` when it was trained on another base model.
    pub(super) fn check_base(&self, task: &TaskName, fingerprint: &str) -> Result<()> {
        let recorded = self.meta.get(BASE_FINGERPRINT).and_then(Value::as_str).map(str::to_owned);
        let recorded = Recorded { base_fingerprint: recorded, ..Recorded::default() };
        recorded.check_base(&format!("task {task}: its newest checkpoint"), fingerprint)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pleach_base::{Generation, Step, Term};
    use pleach_store::Gate;
    use serde_json::json;

    fn snapshot() -> (Snapshot, Fence) {
        let meta = json!({"base_fingerprint": "aaaa", "metrics": {"eval/mrr": 0.5}});
        let snapshot = Snapshot {
            step: Step(3),
            files: vec![SnapshotFile::new("b", vec![1u8, 2, 3]), SnapshotFile::new("a", Vec::new())],
            gate: Gate::passed(),
            meta: meta.as_object().unwrap().clone(),
            ledger: Vec::new(),
        };
        (snapshot, Fence { term: Term(2), generation: Generation(5) })
    }

    #[test]
    fn a_snapshot_survives_the_broadcast_and_a_cut_one_is_seen() {
        let group = pleach_comm::local(tch::Device::Cpu);
        let resumed = share(group.as_ref(), Some(snapshot())).unwrap().unwrap();
        assert_eq!(resumed.files["b"], vec![1u8, 2, 3]);
        assert_eq!(resumed.files["a"].len(), 0);
        assert_eq!(resumed.metrics()["eval/mrr"], 0.5);
        assert_eq!(resumed.made_by.generation, Generation(5));
        assert_eq!(share(group.as_ref(), None).unwrap(), None);
        let whole = pack(&snapshot()).unwrap();
        for cut in [4, 12, whole.len() - 1] {
            assert!(unpack(&Bytes::copy_from_slice(&whole[..cut])).is_err(), "cut at {cut}");
        }
    }

    #[test]
    fn another_base_is_refused() {
        let resumed = unpack(&Bytes::from(pack(&snapshot()).unwrap())).unwrap();
        assert!(resumed.check_base(&"t".into(), "aaaa").is_ok());
        assert_eq!(resumed.check_base(&"t".into(), "bbbb").unwrap_err().code(), code::ADAPTER_BASE);
    }
}
