//! `pleach get`.

use pleach_base::{Result, SystemClock};
use pleach_proto::v1;
use serde_json::Value;

use crate::args::{Get, Global};
use crate::{out, view};

pub(super) async fn run(global: &Global, args: &Get) -> Result<()> {
    let mut client = super::connect(global).await?;
    match &args.job {
        Some(id) => {
            let job = client.get(id).await?;
            out::emit(args.output.output, &view::job(&job), || listing(std::slice::from_ref(&job)))
        }
        None => {
            let jobs = client.list().await?;
            let values: Value = jobs.iter().map(view::job).collect();
            out::emit(args.output.output, &values, || listing(&jobs))
        }
    }
}

fn listing(jobs: &[v1::Job]) -> String {
    if jobs.is_empty() {
        out::note("no jobs");
        return String::new();
    }
    let now = SystemClock::shared().now();
    let heads = ["NAME", "STATE", "TASKS", "STEP", "LOSS", "WORKERS", "AGE", "REASON"];
    let rows = jobs.iter().map(|job| {
        // Of several tasks the one that is least far stands for the job.
        let slowest = job.tasks.iter().max_by_key(|task| task.total_steps.saturating_sub(task.step));
        [
            job.id.clone(),
            view::state(job).into(),
            job.tasks.len().to_string(),
            slowest.map_or("-".into(), |task| format!("{}/{}", task.step, task.total_steps)),
            slowest.map_or("-".into(), |task| format!("{:.4}", task.loss)),
            job.members.len().to_string(),
            view::age(now, job.created_unix_ms),
            job.reason.clone(),
        ]
    });
    out::table(heads, rows)
}
