//! Rows of `train` as messages.

use pleach_base::{Clock, Fence};
use pleach_proto::v1;
use pleach_train::{DurableRow, EvalRow, Level, StepRow, TaskStatus};

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
        ..v1::StepRow::default()
    }
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

fn unix_ms(clock: &dyn Clock) -> i64 {
    i64::try_from(clock.now().0).unwrap_or(i64::MAX)
}
