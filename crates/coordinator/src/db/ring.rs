//! What a leader on etcd keeps in memory alone: rows of the step log, lines of logs, and records older than the heads.

use std::collections::{BTreeMap, VecDeque};

use pleach_proto::v1::{CommitRecord, WatchJobResponse};

use super::is_event;

/// Records that are kept per task.
const KEPT_COMMITS: usize = 4096;
/// Events that are kept.
const KEPT_EVENTS: usize = 2_000;

/// The newest of one job.
#[derive(Default)]
pub(super) struct Ring {
    rows: VecDeque<WatchJobResponse>,
    events: VecDeque<WatchJobResponse>,
    commits: BTreeMap<String, VecDeque<CommitRecord>>,
    /// Events up to this number were stored by leaders before: they are read from etcd.
    pub(super) older: u64,
}

impl Ring {
    pub(super) fn after_events(older: u64) -> Self {
        Self { older, ..Self::default() }
    }

    pub(super) fn push(&mut self, update: WatchJobResponse, kept_rows: usize) {
        let (list, kept) =
            if is_event(&update) { (&mut self.events, KEPT_EVENTS) } else { (&mut self.rows, kept_rows) };
        list.push_back(update);
        while list.len() > kept {
            list.pop_front();
        }
    }

    /// Up to `most` updates after the one with number `after`.
    pub(super) fn after(&self, after: u64, most: usize) -> Vec<WatchJobResponse> {
        let newer = |list: &VecDeque<WatchJobResponse>| {
            let from = list.partition_point(|update| update.seq <= after);
            list.range(from..).take(most).cloned().collect::<Vec<_>>()
        };
        super::merged(newer(&self.rows), newer(&self.events), most)
    }

    /// A record takes the place of those of the same and later steps.
    pub(super) fn commit(&mut self, record: CommitRecord) {
        let list = self.commits.entry(record.task.clone()).or_default();
        while list.back().is_some_and(|last| last.step >= record.step) {
            list.pop_back();
        }
        list.push_back(record);
        if list.len() > KEPT_COMMITS {
            list.pop_front();
        }
    }

    pub(super) fn commits(&self, task: &str) -> Vec<CommitRecord> {
        let wanted = self.commits.iter().filter(|(name, _)| task.is_empty() || name.as_str() == task);
        wanted.flat_map(|(_, list)| list.iter().cloned()).collect()
    }

    /// The newest records of a task, oldest first.
    pub(super) fn newest(&self, task: &str, most: usize) -> Vec<CommitRecord> {
        let list = self.commits.get(task);
        list.map_or_else(Vec::new, |list| list.range(list.len().saturating_sub(most)..).cloned().collect())
    }
}
