//! Jobs as people and scripts read them: states as words, records as JSON.

use std::collections::BTreeMap;
use std::time::Duration;

use pleach_base::{Timestamp, human};
use pleach_proto::v1::{self, JobState};
use serde_json::{Map, Value, json};

/// A state as one word.
pub(crate) fn state(job: &v1::Job) -> &'static str {
    match job.state() {
        JobState::Unspecified => "unknown",
        JobState::Queued => "queued",
        JobState::Starting => "starting",
        JobState::Running => "running",
        JobState::Stopping => "stopping",
        JobState::Succeeded => "succeeded",
        JobState::Failed => "failed",
        JobState::Cancelled => "cancelled",
    }
}

/// Whether nothing more happens to the job.
pub(crate) fn ended(job: &v1::Job) -> bool {
    matches!(job.state(), JobState::Succeeded | JobState::Failed | JobState::Cancelled)
}

/// `3m 05s` since `unix_ms`.
pub(crate) fn age(now: Timestamp, unix_ms: i64) -> String {
    let then = u64::try_from(unix_ms).unwrap_or_default();
    human::duration(Duration::from_millis(now.0.saturating_sub(then)))
}

/// `12:03:44` UTC.
pub(crate) fn time_of_day(unix_ms: i64) -> String {
    let seconds = unix_ms.div_euclid(1000).rem_euclid(86_400);
    format!("{:02}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60)
}

/// A job as JSON; its spec is an object.
pub(crate) fn job(job: &v1::Job) -> Value {
    json!({
        "id": job.id,
        "tenant": job.tenant,
        "state": state(job),
        "reason": job.reason,
        "error_code": if job.error_code.is_empty() { Value::Null } else { job.error_code.clone().into() },
        "created_unix_ms": job.created_unix_ms,
        "updated_unix_ms": job.updated_unix_ms,
        "generation": job.generation,
        "restarts": job.restarts,
        "tasks": job.tasks.iter().map(task).collect::<Vec<_>>(),
        "members": job.members.iter().map(member).collect::<Vec<_>>(),
        "spec": serde_json::from_str(&job.spec_json).unwrap_or(Value::Null),
    })
}

fn task(task: &v1::TaskStatus) -> Value {
    json!({
        "name": task.name,
        "method": task.method,
        "step": task.step,
        "total_steps": task.total_steps,
        "epoch": task.epoch,
        "loss": task.loss,
        "learning_rate": task.learning_rate,
        "tokens_per_second": task.tokens_per_second,
        "trainable_params": task.trainable_params,
        "all_params": task.all_params,
        "durable_step": task.durable_step,
        "recorded_step": task.recorded_step,
        "durable_folder": task.durable_folder,
        "done": task.done,
        "bad_rows": task.bad_rows,
        "passes": task.passes,
        "failure": task.failure,
        "metrics": task.metrics.iter().collect::<BTreeMap<_, _>>(),
        "evals": task.evals.iter().map(eval).collect::<Vec<_>>(),
    })
}

/// A step as JSON.
pub(crate) fn step(row: &v1::StepRow) -> Value {
    json!({
        "task": row.task,
        "step": row.step,
        "total_steps": row.total_steps,
        "generation": row.generation,
        "world": row.world,
        "loss": row.loss,
        "grad_norm": row.grad_norm,
        "learning_rate": row.learning_rate,
        "tokens": row.tokens,
        "seconds": row.step_seconds,
        "unix_ms": row.unix_ms,
        "rss_bytes": row.rss_bytes,
        "skipped": row.skipped,
    })
}

fn eval(row: &v1::EvalRow) -> Value {
    let metrics: Map<_, _> = sorted(row).into_iter().map(|(name, value)| (name.to_owned(), json!(value))).collect();
    json!({"step": row.step, "samples": row.samples, "seconds": row.seconds, "metrics": metrics})
}

fn member(member: &v1::Member) -> Value {
    json!({"rank": member.rank, "worker": member.worker, "incarnation": member.incarnation, "host": member.host,
        "lanes": member.lanes})
}

/// A checkpoint as JSON.
pub(crate) fn checkpoint(found: &v1::Checkpoint) -> Value {
    json!({
        "task": found.task,
        "step": found.step,
        "term": found.term,
        "generation": found.generation,
        "store": found.store,
        "folder": found.folder,
        "manifest_sha256": found.manifest_sha256,
        "bytes": found.bytes,
        "publishable": found.publishable,
        "log_seq": found.log_seq,
    })
}

/// The metrics of an evaluation by name: the wire's map has no order.
pub(crate) fn sorted(row: &v1::EvalRow) -> Vec<(&str, f64)> {
    let mut metrics: Vec<_> = row.metrics.iter().map(|(name, value)| (name.as_str(), *value)).collect();
    metrics.sort_by(|a, b| a.0.cmp(b.0));
    metrics
}

/// `loss 0.1234  recall@1 0.5000`.
pub(crate) fn metrics(row: &v1::EvalRow) -> String {
    sorted(row).iter().map(|(name, value)| format!("{name} {value:.4}")).collect::<Vec<_>>().join("  ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_and_metrics_read_well() {
        assert_eq!(time_of_day(86_400_000 + 3_723_999), "01:02:03");
        assert_eq!(age(Timestamp(65_000), 5_000), "60.0 s");
        assert_eq!(age(Timestamp(0), 5_000), "0 ms", "a clock behind the coordinator's is no age below zero");
        let row = v1::EvalRow { metrics: [("mrr".into(), 0.5), ("loss".into(), 0.25)].into(), ..Default::default() };
        assert_eq!(metrics(&row), "loss 0.2500  mrr 0.5000");
    }
}
