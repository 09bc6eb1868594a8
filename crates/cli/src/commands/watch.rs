//! `pleach watch`, and the following that `submit` and `train` share.

use std::process::ExitCode;

use pleach_base::{Result, code};
use pleach_proto::v1;

use crate::args::{Global, JobName};
use crate::client::Client;
use crate::follow::{self, Follower, Shown, Stream};
use crate::out;

pub(super) async fn run(global: &Global, args: &JobName) -> Result<ExitCode> {
    let mut client = super::connect(global).await?;
    let follower = Follower::new(Stream::Out, shown(global));
    let job = client.get(&args.job).await?;
    follow_until_ctrl_c(&mut client, &job, follower).await
}

/// Events always, log lines of all levels with `-v`.
pub(super) fn shown(global: &Global) -> Shown {
    Shown { events: true, all_logs: global.verbose > 0 }
}

/// Follows a job from where it is to its end. Ctrl-C leaves the job alone: it says how to come back and how to stop the job.
pub(super) async fn follow_until_ctrl_c(
    client: &mut Client,
    job: &v1::Job,
    mut follower: Follower,
) -> Result<ExitCode> {
    let id = job.id.as_str();
    let watched = tokio::select! {
        watched = client.watch(id, job.last_seq, |update| follower.update(update)) => Some(watched),
        _ = tokio::signal::ctrl_c() => None,
    };
    follower.clear();
    match watched {
        Some(watched) => watched?,
        None => {
            out::note(format!("no longer following; {id} goes on: `pleach watch {id}`, `pleach cancel {id}`"));
            return Ok(ExitCode::SUCCESS);
        }
    }
    let ended = ended(follower, client, id).await?;
    Ok(follow::conclude(&ended, &format!("`pleach logs {id}` shows what came before")))
}

/// The job as it ended. The stream may have closed without the last word.
pub(super) async fn ended(follower: Follower, client: &mut Client, id: &str) -> Result<v1::Job> {
    if let Some(job) = follower.last().filter(|job| crate::view::ended(job)) {
        return Ok(job.clone());
    }
    let job = client.get(id).await?;
    if crate::view::ended(&job) {
        Ok(job)
    } else {
        Err(code::UNREACHABLE.error(format!("{id}: the watch ended before the job did")))
    }
}

/// Where the adapters of a job are: the data that `submit` and `train` end with.
pub(super) fn adapters(job: &v1::Job) -> String {
    let spec: serde_json::Value = serde_json::from_str(&job.spec_json).unwrap_or_default();
    let store = spec["spec"]["checkpoint"]["store"].as_str().unwrap_or_default().trim_end_matches('/').to_owned();
    let rows = job.tasks.iter().map(|task| {
        let folder =
            if task.durable_folder.is_empty() { "-".into() } else { format!("{store}/{}", task.durable_folder) };
        [task.name.clone(), task.durable_step.to_string(), format!("{:.4}", task.loss), folder]
    });
    out::table(["TASK", "STEP", "LOSS", "ADAPTER"], rows)
}
