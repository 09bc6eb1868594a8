//! What survives: jobs, their progress, their recorded steps and their history. Two ways to keep it: a redb file
//! ([`file`]) and etcd ([`etcd`]).
//!
//! Progress and updates are kept in their wire form (protobuf keeps what older versions wrote readable, and NaN whole);
//! jobs as JSON, so that a person can look.

mod etcd;
mod file;
mod ring;

use std::collections::{BTreeMap, VecDeque};

use pleach_base::{Result, ResultExt, TaskName, code};
use pleach_proto::v1::watch_job_response::Update;
use pleach_proto::v1::{self, WatchJobResponse};
use pleach_sched::{Job, JobKey};
use prost::Message;
use serde::{Deserialize, Serialize};

pub(crate) use etcd::Etcd;
pub(crate) use file::File;

/// A job as it is stored. What is recorded of its tasks is stored apart: it changes with every step.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct JobRecord {
    pub(crate) format_version: u32,
    /// The resolved job file, canonical JSON.
    pub(crate) spec: String,
    pub(crate) created_ms: u64,
    pub(crate) updated_ms: u64,
    /// What the scheduler knows of it.
    pub(crate) sched: Job,
}

/// A stored job with its progress and the range of its kept updates.
pub(crate) struct Stored {
    pub(crate) key: JobKey,
    pub(crate) record: JobRecord,
    pub(crate) tasks: Vec<v1::TaskStatus>,
    pub(crate) first_seq: u64,
    pub(crate) last_seq: u64,
    /// Numbers up to this one may have been given to updates that are gone.
    pub(crate) reserved: u64,
    /// Numbers of the kept events.
    pub(crate) events: VecDeque<u64>,
    /// The oldest kept record of each task.
    pub(crate) oldest: BTreeMap<TaskName, u64>,
}

/// What one transaction changes.
#[derive(Default)]
pub(crate) struct Changes {
    pub(crate) jobs: Vec<(JobKey, JobRecord)>,
    pub(crate) progress: Vec<(JobKey, Progress)>,
    pub(crate) updates: Vec<(JobKey, u64, WatchJobResponse)>,
    /// Steps recorded, in order; a record takes the place of those of the same and later steps.
    pub(crate) commits: Vec<(JobKey, v1::CommitRecord)>,
    /// Forget updates other than events before this number.
    pub(crate) trims: Vec<(JobKey, u64)>,
    /// Forget events before this number.
    pub(crate) event_trims: Vec<(JobKey, u64)>,
    /// Forget records of a task before this step.
    pub(crate) commit_trims: Vec<(JobKey, TaskName, u64)>,
    pub(crate) forgotten: Vec<JobKey>,
    /// Whether it must be on disk before anybody hears of it.
    pub(crate) durable: bool,
}

/// What is overwritten while a job runs.
pub(crate) struct Progress {
    pub(crate) tasks: Vec<v1::TaskStatus>,
    pub(crate) reserved: u64,
}

/// Where what must survive is kept. Called from threads that may wait.
pub(crate) trait Backend: Send + Sync {
    /// Whether this process may still speak for the state: nothing is said to anybody before this is known.
    ///
    /// # Errors
    /// `NOT_LEADER` when another one leads.
    fn confirm(&self) -> Result<()>;

    /// All jobs.
    fn load(&self) -> Result<Vec<Stored>>;

    /// Applies changes, all or none.
    ///
    /// # Errors
    /// `NOT_LEADER` when another one leads: nothing was written.
    fn write(&self, changes: Changes) -> Result<()>;

    /// Up to `most` kept updates of a job after the one with number `after`, in order.
    fn updates(&self, key: &JobKey, after: u64, most: usize) -> Result<Vec<WatchJobResponse>>;

    /// The kept records of a job's tasks, oldest first; of one task when `task` names it.
    fn commits(&self, key: &JobKey, task: &str) -> Result<Vec<v1::CommitRecord>>;

    /// Leaves the state in order.
    fn close(&self) -> Result<()>;
}

fn is_event(update: &WatchJobResponse) -> bool {
    matches!(update.update, Some(Update::Event(_)))
}

fn encode_record(key: &JobKey, mut record: JobRecord) -> Result<Vec<u8>> {
    record.sched.heads.clear();
    serde_json::to_vec(&record).or_code(code::INTERNAL, || format!("job {key}: cannot be written"))
}

fn decode_record(name: &str, bytes: &[u8]) -> Result<(JobKey, JobRecord)> {
    let unreadable = || format!("job {name}: its record cannot be read");
    let key = JobKey::try_from(name.to_owned()).or_code(code::STATE_CORRUPT, unreadable)?;
    Ok((key, serde_json::from_slice(bytes).or_code(code::STATE_CORRUPT, unreadable)?))
}

fn encode_progress(progress: Progress) -> Vec<u8> {
    v1::Job { tasks: progress.tasks, last_seq: progress.reserved, ..v1::Job::default() }.encode_to_vec()
}

fn decode_progress(name: &str, bytes: &[u8]) -> Result<Progress> {
    let job =
        v1::Job::decode(bytes).or_code(code::STATE_CORRUPT, || format!("job {name}: its progress cannot be read"))?;
    Ok(Progress { tasks: job.tasks, reserved: job.last_seq })
}

fn decode_update(key: &JobKey, seq: u64, bytes: &[u8]) -> Result<WatchJobResponse> {
    let mut update = WatchJobResponse::decode(bytes)
        .or_code(code::STATE_CORRUPT, || format!("job {key}: update {seq} cannot be read"))?;
    update.seq = seq;
    Ok(update)
}

/// Two lists of updates as one, by number, and no longer than `most`.
fn merged(a: Vec<WatchJobResponse>, b: Vec<WatchJobResponse>, most: usize) -> Vec<WatchJobResponse> {
    let mut all = a;
    all.extend(b);
    all.sort_by_key(|update| update.seq);
    all.truncate(most);
    all
}
