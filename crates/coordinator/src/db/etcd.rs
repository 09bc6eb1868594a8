//! State in etcd, written by the leader alone: each write is a transaction that is guarded by the key of the leadership.
//!
//! Below the prefix: `record/JOB`, `progress/JOB`, `event/JOB/SEQ`, and one overwritten `head/JOB/TASK` with the newest
//! records. Nothing bulky: see [`Ring`].

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use etcd_client::{DeleteOptions, GetOptions, KeyValue};
use pleach_base::{Result, ResultExt, TaskName, code};
use pleach_proto::v1::{CommitRecord, TaskHead, WatchJobResponse};
use pleach_sched::{Head, JobKey, KEPT};
use prost::Message;
use tokio::runtime::Handle;

use super::ring::Ring;
use super::{
    Backend, Changes, Progress, Stored, decode_progress, decode_record, decode_update, encode_progress, encode_record,
    is_event,
};
use crate::lead::{Leadership, Op};
use crate::view;

/// Keys of a transaction; etcd takes 128 by default.
const MOST_KEYS: usize = 120;
/// Bytes of a transaction; etcd takes 1.5 MiB by default.
const MOST_BYTES: usize = 1 << 20;

/// Bytes of a head, which is written with every flush.
const LARGEST_HEAD: usize = 32 << 10;

/// The state of one leader.
pub(crate) struct Etcd {
    leadership: Arc<Leadership>,
    runtime: Handle,
    kept_rows: usize,
    rings: Mutex<BTreeMap<JobKey, Ring>>,
}

impl Etcd {
    pub(crate) fn new(leadership: Arc<Leadership>, runtime: Handle, kept_rows: u64) -> Self {
        let kept_rows = usize::try_from(kept_rows).unwrap_or(usize::MAX);
        Self { leadership, runtime, kept_rows, rings: Mutex::default() }
    }

    fn rings(&self) -> MutexGuard<'_, BTreeMap<JobKey, Ring>> {
        self.rings.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn key(&self, rest: &str) -> String {
        self.leadership.link.key(rest)
    }

    /// All keys below `part`, without that part of their names.
    fn scan(&self, part: &str, values: bool) -> Result<Vec<(String, KeyValue)>> {
        let prefix = self.key(part);
        let all = self.runtime.block_on(self.leadership.scan(&prefix, values))?;
        let name = |kv: &KeyValue| String::from_utf8_lossy(kv.key()).get(prefix.len()..).unwrap_or_default().to_owned();
        Ok(all.into_iter().map(|kv| (name(&kv), kv)).collect())
    }

    fn heads(&self) -> Result<BTreeMap<JobKey, Vec<TaskHead>>> {
        let mut heads: BTreeMap<JobKey, Vec<TaskHead>> = BTreeMap::new();
        for (name, kv) in self.scan("head/", true)? {
            let unreadable = || format!("{name}: its head cannot be read");
            let head = TaskHead::decode(kv.value()).or_code(code::STATE_CORRUPT, unreadable)?;
            heads.entry(job_of(&name)?).or_default().push(head);
        }
        Ok(heads)
    }

    /// Numbers of the stored events.
    fn numbers(&self) -> Result<BTreeMap<JobKey, VecDeque<u64>>> {
        let mut numbers: BTreeMap<JobKey, VecDeque<u64>> = BTreeMap::new();
        for (name, _) in self.scan("event/", false)? {
            numbers.entry(job_of(&name)?).or_default().push_back(seq_of(&name)?);
        }
        Ok(numbers)
    }

    /// What a batch writes to etcd; the rest goes to the rings.
    fn operations(&self, changes: &mut Changes) -> Result<Vec<Op>> {
        let mut ops = Vec::new();
        for (key, record) in std::mem::take(&mut changes.jobs) {
            let bytes = encode_record(&key, record)?;
            ops.push(Op::put(self.key(&format!("record/{key}")), bytes));
        }
        for (key, progress) in std::mem::take(&mut changes.progress) {
            ops.push(Op::put(self.key(&format!("progress/{key}")), encode_progress(progress)));
        }
        for (key, seq, update) in changes.updates.iter().filter(|(.., update)| is_event(update)) {
            ops.push(Op::put(self.key(&event_name(key, *seq)), update.encode_to_vec()));
        }
        for (key, before) in &changes.event_trims {
            ops.push(self.delete_range(&event_name(key, 0), &event_name(key, *before)));
        }
        for key in &changes.forgotten {
            for name in [format!("record/{key}"), format!("progress/{key}")] {
                ops.push(Op::delete(self.key(&name), None));
            }
            for name in [format!("head/{key}/"), format!("event/{key}/")] {
                ops.push(Op::delete(self.key(&name), Some(DeleteOptions::new().with_prefix())));
            }
        }
        Ok(ops)
    }

    fn delete_range(&self, from: &str, to: &str) -> Op {
        Op::delete(self.key(from), Some(DeleteOptions::new().with_range(self.key(to))))
    }

    /// Takes recorded steps into the rings and returns the heads to write.
    fn record(&self, commits: Vec<(JobKey, CommitRecord)>) -> Vec<Op> {
        let mut rings = self.rings();
        let mut tasks = BTreeSet::new();
        for (key, record) in commits {
            tasks.insert((key.clone(), record.task.clone()));
            rings.entry(key).or_default().commit(record);
        }
        let head = |(key, task): (JobKey, String)| {
            let recent = rings.get(&key).map_or_else(Vec::new, |ring| ring.newest(&task, KEPT));
            let bytes = encode_head(&task, recent);
            Op::put(self.key(&format!("head/{key}/{task}")), bytes)
        };
        tasks.into_iter().map(head).collect()
    }
}

impl Backend for Etcd {
    fn confirm(&self) -> Result<()> {
        if self.leadership.is_fresh() { Ok(()) } else { self.runtime.block_on(self.leadership.write(Vec::new())) }
    }

    fn load(&self) -> Result<Vec<Stored>> {
        let mut heads = self.heads()?;
        let mut numbers = self.numbers()?;
        let mut progress = BTreeMap::new();
        for (name, kv) in self.scan("progress/", true)? {
            progress.insert(job_of(&name)?, decode_progress(&name, kv.value())?);
        }
        let mut all = Vec::new();
        for (name, kv) in self.scan("record/", true)? {
            let (key, mut record) = decode_record(&name, kv.value())?;
            let progress = progress.remove(&key).unwrap_or(Progress { tasks: Vec::new(), reserved: 0 });
            let events = numbers.remove(&key).unwrap_or_default();
            let mut ring = Ring::after_events(events.back().copied().unwrap_or_default());
            let mut oldest = BTreeMap::new();
            for TaskHead { task, recent } in heads.remove(&key).unwrap_or_default() {
                let task = TaskName::from(task);
                oldest.extend(recent.first().map(|first| (task.clone(), first.step)));
                record.sched.heads.insert(task, Head { recent: recent.iter().map(view::recorded).collect() });
                recent.into_iter().for_each(|record| ring.commit(record));
            }
            let last_seq = ring.older.max(progress.reserved);
            self.rings().insert(key.clone(), ring);
            all.push(Stored {
                key,
                record,
                tasks: progress.tasks,
                first_seq: last_seq + 1,
                last_seq,
                reserved: progress.reserved,
                events,
                oldest,
            });
        }
        Ok(all)
    }

    fn write(&self, mut changes: Changes) -> Result<()> {
        let mut ops = self.operations(&mut changes)?;
        let forgotten: BTreeSet<_> = changes.forgotten.into_iter().collect();
        changes.commits.retain(|(key, _)| !forgotten.contains(key));
        ops.extend(self.record(changes.commits));
        for part in parts(ops) {
            self.runtime.block_on(self.leadership.write(part))?;
        }
        let mut rings = self.rings();
        for (key, _, update) in changes.updates {
            rings.entry(key).or_default().push(update, self.kept_rows);
        }
        rings.retain(|key, _| !forgotten.contains(key));
        Ok(())
    }

    fn updates(&self, key: &JobKey, after: u64, most: usize) -> Result<Vec<WatchJobResponse>> {
        let older = self.rings().get(key).map_or(0, |ring| ring.older);
        if after < older {
            let (from, to) = (self.key(&event_name(key, after + 1)), self.key(&event_name(key, older + 1)));
            let options = GetOptions::new().with_range(to).with_limit(i64::try_from(most).unwrap_or(i64::MAX));
            let found = self.runtime.block_on(self.leadership.get(&from, options))?;
            if !found.is_empty() {
                let name = |kv: &KeyValue| String::from_utf8_lossy(kv.key()).into_owned();
                return found.iter().map(|kv| decode_update(key, seq_of(&name(kv))?, kv.value())).collect();
            }
        }
        Ok(self.rings().get(key).map_or_else(Vec::new, |ring| ring.after(after, most)))
    }

    fn commits(&self, key: &JobKey, task: &str) -> Result<Vec<CommitRecord>> {
        Ok(self.rings().get(key).map_or_else(Vec::new, |ring| ring.commits(task)))
    }

    /// The next leader need not wait for the lease to expire.
    fn close(&self) -> Result<()> {
        self.runtime.block_on(self.leadership.resign());
        Ok(())
    }
}

fn encode_head(task: &str, recent: Vec<CommitRecord>) -> Vec<u8> {
    let mut head = TaskHead { task: task.to_owned(), recent };
    if head.encoded_len() > LARGEST_HEAD {
        // Digests of many lanes are the bulk of a record; the digest of the whole step stays.
        head.recent.iter_mut().for_each(|record| record.lane_digests.clear());
    }
    head.encode_to_vec()
}

fn event_name(key: &JobKey, seq: u64) -> String {
    format!("event/{key}/{seq:020}")
}

/// `tenant/job` of `tenant/job/...`.
fn job_of(name: &str) -> Result<JobKey> {
    let mut parts = name.splitn(3, '/');
    match (parts.next(), parts.next()) {
        (Some(tenant), Some(job)) => Ok(JobKey::new(tenant, job)),
        _ => Err(code::STATE_CORRUPT.error(format!("etcd: `{name}` is no job's key"))),
    }
}

fn seq_of(name: &str) -> Result<u64> {
    let digits = name.rsplit('/').next().unwrap_or_default();
    digits.parse().or_code(code::STATE_CORRUPT, || format!("etcd: `{name}` is no event's key"))
}

/// One transaction in most cases; a flush that is too large for one becomes several, each with the guard.
fn parts(ops: Vec<Op>) -> Vec<Vec<Op>> {
    let mut parts: Vec<Vec<Op>> = Vec::new();
    let mut bytes = 0;
    for op in ops {
        let size = op.bytes;
        match parts.last_mut().filter(|part| part.len() < MOST_KEYS && bytes + size <= MOST_BYTES) {
            Some(part) => part.push(op),
            None => {
                parts.push(vec![op]);
                bytes = 0;
            }
        }
        bytes += size;
    }
    parts
}
