//! `pleach describe`.

use std::fmt::Write;

use pleach_base::{Result, SystemClock, Timestamp, human};
use pleach_proto::v1;

use crate::args::{Describe, Global};
use crate::{out, view};

/// Checkpoints shown for people; JSON has all.
const NEWEST: usize = 10;

pub(super) async fn run(global: &Global, args: &Describe) -> Result<()> {
    let mut client = super::connect(global).await?;
    let job = client.get(&args.job).await?;
    let checkpoints = client.checkpoints(&args.job).await?;
    let mut value = view::job(&job);
    value["checkpoints"] = checkpoints.iter().map(view::checkpoint).collect();
    out::emit(args.output.output, &value, || page(&job, &checkpoints, SystemClock::shared().now()))
}

fn page(job: &v1::Job, checkpoints: &[v1::Checkpoint], now: Timestamp) -> String {
    let mut text = String::new();
    let mut row = |name: &str, value: &str| {
        let _ = writeln!(text, "{name:12} {value}");
    };
    row("Name:", &job.id);
    row("Tenant:", &job.tenant);
    row("State:", view::state(job));
    row("Reason:", &job.reason);
    if !job.error_code.is_empty() {
        row("Error:", &format!("{0} (pleach explain {0})", job.error_code));
    }
    row("Created:", &format!("{} ago", view::age(now, job.created_unix_ms)));
    row("Generation:", &format!("{} ({} restarts)", job.generation, job.restarts));
    for section in
        [tasks(job), failures(job), passes(job), evals(job), workers(job), stored(checkpoints)].into_iter().flatten()
    {
        let _ = write!(text, "\n{section}");
    }
    text
}

fn tasks(job: &v1::Job) -> Option<String> {
    let rows = job.tasks.iter().map(|task| {
        let share = 100.0 * task.trainable_params as f64 / task.all_params.max(1) as f64;
        [
            task.name.clone(),
            task.method.clone(),
            format!("{}/{}", task.step, task.total_steps),
            format!("{:.2}", task.epoch),
            format!("{:.4}", task.loss),
            format!("{:.2e}", task.learning_rate),
            human::count(task.tokens_per_second.max(0.0) as u64),
            format!("{} ({share:.4} %)", human::count(task.trainable_params)),
            task.recorded_step.to_string(),
            format!("{} ({} behind)", task.durable_step, task.recorded_step.saturating_sub(task.durable_step)),
        ]
    });
    let heads = ["TASK", "METHOD", "STEP", "EPOCH", "LOSS", "LR", "TOKENS/S", "TRAINABLE", "RECORDED", "DURABLE"];
    (!job.tasks.is_empty()).then(|| out::table(heads, rows))
}

fn failures(job: &v1::Job) -> Option<String> {
    let failed = || job.tasks.iter().filter(|task| !task.failure.is_empty());
    let rows = failed().map(|task| [task.name.clone(), task.failure.clone()]);
    failed().next().map(|_| out::table(["FAILED", "WHY"], rows))
}

fn passes(job: &v1::Job) -> Option<String> {
    let said = || job.tasks.iter().filter(|task| !task.passes.is_empty());
    let rows = said().map(|task| [task.name.clone(), task.passes.clone()]);
    said().next().map(|_| out::table(["TASK", "PASSES THROUGH THE MODEL"], rows))
}

fn evals(job: &v1::Job) -> Option<String> {
    let rows: Vec<_> = job
        .tasks
        .iter()
        .flat_map(|task| task.evals.iter().map(|row| [task.name.clone(), row.step.to_string(), view::metrics(row)]))
        .collect();
    (!rows.is_empty()).then(|| out::table(["EVALUATED", "STEP", "METRICS"], rows))
}

fn workers(job: &v1::Job) -> Option<String> {
    let rows = job.members.iter().map(|member| {
        let lanes: Vec<_> = member.lanes.iter().map(u32::to_string).collect();
        [member.rank.to_string(), member.worker.clone(), member.host.clone(), lanes.join(",")]
    });
    (!job.members.is_empty()).then(|| out::table(["RANK", "WORKER", "HOST", "LANES"], rows))
}

fn stored(checkpoints: &[v1::Checkpoint]) -> Option<String> {
    let rows = checkpoints.iter().take(NEWEST).map(|found| {
        [
            found.task.clone(),
            found.step.to_string(),
            if found.publishable { "yes" } else { "no" }.into(),
            human::bytes(found.bytes),
            format!("{}/{}", found.store.trim_end_matches('/'), found.folder),
        ]
    });
    (!checkpoints.is_empty()).then(|| out::table(["CHECKPOINT", "STEP", "PUBLISHABLE", "SIZE", "FOLDER"], rows))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_shows_what_a_job_does_and_why() {
        let task = v1::TaskStatus {
            name: "search".into(),
            method: "lora".into(),
            step: 3,
            recorded_step: 3,
            durable_step: 2,
            total_steps: 9,
            loss: 0.5,
            learning_rate: 1e-3,
            tokens_per_second: 1234.0,
            trainable_params: 100,
            all_params: 10_000,
            passes: "shared with answers".into(),
            evals: vec![v1::EvalRow { step: 0, metrics: [("mrr".into(), 0.25)].into(), ..Default::default() }],
            ..Default::default()
        };
        let other = v1::TaskStatus {
            name: "answers".into(),
            method: "ia3".into(),
            step: 1,
            total_steps: 9,
            passes: "shared with search".into(),
            failure: "task answers: loss or gradient of step 2 is not finite".into(),
            ..Default::default()
        };
        let job = v1::Job {
            id: "demo".into(),
            tenant: "default".into(),
            state: v1::JobState::Running.into(),
            reason: "2 of 2 workers train".into(),
            generation: 2,
            restarts: 1,
            tasks: vec![task, other],
            members: vec![v1::Member {
                worker: "w0".into(),
                host: "h".into(),
                lanes: vec![0, 1],
                ..Default::default()
            }],
            ..Default::default()
        };
        let found = v1::Checkpoint {
            task: "search".into(),
            step: 3,
            store: "s3://b/p/".into(),
            folder: "default/demo/search/steps/00000003-g0002".into(),
            bytes: 2_048,
            publishable: true,
            ..Default::default()
        };
        insta::assert_snapshot!(page(&job, &[found], Timestamp(5_000)));
    }
}
