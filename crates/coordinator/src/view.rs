//! From what the coordinator knows to what callers see.

use pleach_base::{Fence, Generation, Step, TaskName, Term};
use pleach_proto::v1;
use pleach_sched::{Commit, Head, Job, JobKey, JobState, MemberState};

use crate::db::JobRecord;

pub(crate) fn state(state: JobState) -> v1::JobState {
    match state {
        JobState::Queued => v1::JobState::Queued,
        JobState::Starting => v1::JobState::Starting,
        JobState::Running => v1::JobState::Running,
        JobState::Stopping => v1::JobState::Stopping,
        JobState::Succeeded => v1::JobState::Succeeded,
        JobState::Failed => v1::JobState::Failed,
        JobState::Cancelled => v1::JobState::Cancelled,
    }
}

pub(crate) fn job(key: &JobKey, record: &JobRecord, tasks: &[v1::TaskStatus], last_seq: u64) -> v1::Job {
    let sched = &record.sched;
    v1::Job {
        id: key.job.to_string(),
        tenant: key.tenant.to_string(),
        spec_json: record.spec.clone(),
        state: state(sched.state).into(),
        reason: sched.reason.clone(),
        created_unix_ms: millis(record.created_ms),
        updated_unix_ms: millis(record.updated_ms),
        generation: sched.generation.0,
        tasks: tasks.iter().map(|task| with_record(task, sched)).collect(),
        members: members(sched),
        restarts: sched.restarts,
        error_code: sched.failure.as_ref().map(|failure| failure.code.clone()).unwrap_or_default(),
        lanes: sched.needs.lanes,
        min_workers: sched.needs.min_workers,
        max_workers: sched.needs.max_workers,
        term: sched.term.0,
        last_seq,
    }
}

fn with_record(task: &v1::TaskStatus, job: &Job) -> v1::TaskStatus {
    let head = job.heads.get(&TaskName::from(task.name.as_str()));
    v1::TaskStatus { recorded_step: head.map_or(0, |head| head.step().0), ..task.clone() }
}

fn members(job: &Job) -> Vec<v1::Member> {
    let Some(gang) = &job.gang else { return Vec::new() };
    let present = |(_, member): &(u32, &pleach_sched::Member)| member.state != MemberState::Gone;
    (0u32..).zip(&gang.members).filter(present).map(|(rank, member)| self::member(rank, member)).collect()
}

pub(crate) fn member(rank: u32, member: &pleach_sched::Member) -> v1::Member {
    v1::Member {
        worker: member.worker.name.clone(),
        incarnation: member.worker.incarnation,
        rank,
        host: member.host.clone(),
        lanes: member.lanes.clone(),
        pulse_port: u32::from(member.pulse_port),
    }
}

pub(crate) fn head(task: &TaskName, head: &Head) -> v1::TaskHead {
    v1::TaskHead { task: task.to_string(), recent: head.recent.iter().map(commit).collect() }
}

pub(crate) fn commit(commit: &Commit) -> v1::CommitRecord {
    v1::CommitRecord {
        task: commit.task.to_string(),
        step: commit.step.0,
        term: commit.fence.term.0,
        generation: commit.fence.generation.0,
        digest: commit.digest.clone(),
        ..v1::CommitRecord::default()
    }
}

/// What the scheduler needs of a record.
pub(crate) fn recorded(record: &v1::CommitRecord) -> Commit {
    Commit {
        task: record.task.as_str().into(),
        step: Step(record.step),
        fence: Fence { term: Term(record.term), generation: Generation(record.generation) },
        digest: record.digest.clone(),
    }
}

pub(crate) fn millis(ms: u64) -> i64 {
    i64::try_from(ms).unwrap_or(i64::MAX)
}
