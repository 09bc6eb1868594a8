//! Rows of `train` as messages.

use std::time::Duration;

use pleach_base::{Clock, Fence, Generation, Term};
use pleach_proto::v1;
use pleach_train::{CommitRow, DurableRow, EvalRow, Heads, Level, Record, Stage, StepRow, StepTimes, TaskStatus};

pub(crate) fn step(row: &StepRow, fence: Fence, clock: &dyn Clock) -> v1::StepRow {
    v1::StepRow {
        task: row.task.to_string(),
        step: row.step,
        total_steps: row.total_steps,
        epoch: row.epoch,
        loss: row.loss,
        grad_norm: row.grad_norm,
        learning_rate: row.learning_rate,
        tokens: row.tokens,
        step_seconds: row.seconds,
        generation: fence.generation.0,
        world: row.world,
        digest: row.digest.clone(),
        skipped: row.skipped,
        unix_ms: unix_ms(clock),
        rss_bytes: row.rss_bytes,
        metrics: row.metrics.clone().into_iter().collect(),
        ..v1::StepRow::default()
    }
}

pub(crate) fn commit(row: &CommitRow) -> v1::CommitRecord {
    v1::CommitRecord {
        task: row.task.to_string(),
        step: row.step.0,
        term: row.fence.term.0,
        generation: row.fence.generation.0,
        digest: row.digest.clone(),
        sample_digest: row.sample_digest.clone(),
        samples: row.samples,
        epoch: row.epoch,
        skipped: row.skipped,
        unix_ms: row.unix_ms,
        lane_digests: row.lane_digests.clone(),
        world: row.world,
    }
}

/// What is recorded, as `train` takes it.
pub(crate) fn heads(heads: &[v1::TaskHead]) -> Heads {
    let record = |record: &v1::CommitRecord| Record {
        step: record.step,
        fence: Fence { term: Term(record.term), generation: Generation(record.generation) },
        digest: record.digest.clone(),
    };
    heads.iter().map(|head| (head.task.as_str().into(), head.recent.iter().map(record).collect())).collect()
}

pub(crate) fn eval(row: &EvalRow) -> v1::EvalRow {
    v1::EvalRow {
        task: row.task.to_string(),
        step: row.step,
        metrics: row.metrics.clone().into_iter().collect(),
        samples: row.samples,
        seconds: row.time.as_secs_f64(),
    }
}

pub(crate) fn durable(row: &DurableRow) -> v1::Durable {
    v1::Durable {
        task: row.task.to_string(),
        step: row.step.0,
        folder: row.folder.clone(),
        manifest_sha256: row.manifest_sha256.clone(),
        log_seq: row.log_seq,
        publishable: row.publishable,
    }
}

pub(crate) fn task(status: &TaskStatus) -> v1::TaskStatus {
    v1::TaskStatus {
        name: status.task.to_string(),
        method: status.method.clone(),
        step: status.step,
        total_steps: status.total_steps,
        trainable_params: status.trainable_params,
        all_params: status.all_params,
        bad_rows: status.bad_rows,
        done: status.done,
        passes: status.passes.clone(),
        failure: status.failure.clone(),
        ..v1::TaskStatus::default()
    }
}

pub(crate) fn log(level: Level, text: &str, worker: &str, clock: &dyn Clock) -> v1::LogLine {
    let level = match level {
        Level::Info => "info",
        Level::Warn => "warn",
    };
    v1::LogLine { unix_ms: unix_ms(clock), worker: worker.to_owned(), level: level.to_owned(), text: text.to_owned() }
}

pub(crate) fn times(times: &StepTimes) -> v1::StepTimes {
    let micros = |time: Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
    let stage = |(of, time): &(Stage, Duration)| v1::StageTime { stage: stage(*of).into(), micros: micros(*time) };
    v1::StepTimes {
        tasks: times.tasks.iter().map(ToString::to_string).collect(),
        step: times.step,
        begun_unix_us: micros(times.begun),
        stages: times.stages.iter().map(stage).collect(),
    }
}

fn stage(stage: Stage) -> v1::Stage {
    match stage {
        Stage::Data => v1::Stage::Data,
        Stage::Wait => v1::Stage::Wait,
        Stage::Forward => v1::Stage::Forward,
        Stage::Backward => v1::Stage::Backward,
        Stage::Reduce => v1::Stage::Reduce,
        Stage::Optimiser => v1::Stage::Optimiser,
        Stage::Commit => v1::Stage::Commit,
        Stage::Evaluate => v1::Stage::Evaluate,
        Stage::Checkpoint => v1::Stage::Checkpoint,
    }
}

fn unix_ms(clock: &dyn Clock) -> i64 {
    i64::try_from(clock.now().0).unwrap_or(i64::MAX)
}
