//! Where a task goes on: rank 0 takes the task over in the store, reads the newest durable step, and gives it to all.
//!
//! One reader instead of all of them: the ranks cannot pick different steps, and only rank 0 needs the store.

use std::collections::BTreeMap;

use bytes::Bytes;
use pleach_base::{Result, ResultExt as _, TaskName, code};
use pleach_comm::Collective;
use pleach_methods::files::Recorded;
use pleach_store::{Snapshot, SnapshotFile, Store};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::broadcast;
use super::checkpoint::{self, BASE_FINGERPRINT, Checkpoints, METRICS};
use super::task::{Ground, JobTask};
use crate::engine::Engine;
use crate::feed::ResumedFrom;

/// A durable step as every rank gets it.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Resumed {
    pub(super) files: BTreeMap<String, Bytes>,
    pub(super) meta: Map<String, Value>,
}

/// What goes in front of the files: everything that is not bulk.
#[derive(Debug, Serialize, Deserialize)]
struct Header {
    /// Names and lengths, in the order in which the bytes follow.
    files: Vec<(String, usize)>,
    meta: Map<String, Value>,
}

/// Takes the task over in the store on rank 0, and puts it where the newest durable step left it. Rank 0 fences first and
/// reads then: nothing older can become durable behind the step that it finds. A collective call.
pub(super) fn resume(
    ground: &Ground<'_>,
    engine: &mut Engine<'_>,
    task: &mut JobTask,
    store: Option<&Store>,
) -> Result<(Option<Checkpoints>, ResumedFrom)> {
    let cx = ground.cx;
    let (mut found, mut checkpoints) = (None, None);
    if let Some(store) = store {
        let place = store.task(&cx.tenant, &cx.id, &task.name);
        let writer = cx.runtime.block_on(place.fence(cx.fence))?;
        if let Some(entry) = cx.runtime.block_on(place.newest())? {
            found = Some(cx.runtime.block_on(place.read(&entry))?);
            let below_root = checkpoint::below_root(store, &place);
            cx.observer.durable(&checkpoint::durable_row(&task.name, &below_root, &entry));
        }
        let spec = &cx.job.spec.checkpoint;
        checkpoints = Some(Checkpoints::start(&task.name, store, writer, spec, &cx.runtime, &cx.observer, &cx.stop));
    }
    let Some(resumed) = share(cx.group, found)? else {
        engine.restore(&task.name, &task.untrained)?;
        (task.metrics, task.saved_step) = (Map::new(), None);
        return Ok((checkpoints, ResumedFrom::Fresh));
    };
    resumed.check_base(&task.name, &ground.model.fingerprint)?;
    engine.load(&task.name, &resumed.files)?;
    task.metrics = resumed.metrics();
    task.saved_step = Some(engine.step(&task.name)?);
    Ok((checkpoints, ResumedFrom::Store))
}

/// The snapshot that rank 0 found, on every rank; `None` when there is none. A collective call.
///
/// # Errors
/// Those of [`Collective`].
pub(super) fn share(group: &dyn Collective, found: Option<Snapshot>) -> Result<Option<Resumed>> {
    let message = found.as_ref().map(pack).transpose()?.unwrap_or_default();
    let message = Bytes::from(broadcast::bytes(group, message)?);
    if message.is_empty() { Ok(None) } else { unpack(&message).map(Some) }
}

fn pack(snapshot: &Snapshot) -> Result<Vec<u8>> {
    let files = snapshot.files.iter().map(|file| (file.name.clone(), file.bytes.len())).collect();
    let header = serde_json::to_vec(&Header { files, meta: snapshot.meta.clone() })
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
    Ok(Resumed { files, meta: header.meta })
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
    use pleach_base::Step;
    use pleach_store::Gate;
    use serde_json::json;

    fn snapshot() -> Snapshot {
        let meta = json!({"base_fingerprint": "aaaa", "metrics": {"eval/mrr": 0.5}});
        Snapshot {
            step: Step(3),
            files: vec![SnapshotFile::new("b", vec![1u8, 2, 3]), SnapshotFile::new("a", Vec::new())],
            gate: Gate::passed(),
            meta: meta.as_object().unwrap().clone(),
            ledger: Vec::new(),
        }
    }

    #[test]
    fn a_snapshot_survives_the_broadcast_and_a_cut_one_is_seen() {
        let group = pleach_comm::local(tch::Device::Cpu);
        let resumed = share(group.as_ref(), Some(snapshot())).unwrap().unwrap();
        assert_eq!(resumed.files["b"], vec![1u8, 2, 3]);
        assert_eq!(resumed.files["a"].len(), 0);
        assert_eq!(resumed.metrics()["eval/mrr"], 0.5);
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
