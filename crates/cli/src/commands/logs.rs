//! `pleach logs`.

use std::cell::{Cell, RefCell};
use std::time::Duration;

use pleach_base::{Result, SystemClock};
use pleach_proto::v1::WatchJobResponse;
use pleach_proto::v1::watch_job_response::Update;

use crate::args::{Global, Logs};
use crate::client::Flow;
use crate::{follow, out};

/// The stream of a running job has no mark between what was and what is: a pause of this length is one.
const PAUSE: Duration = Duration::from_millis(500);

pub(super) async fn run(global: &Global, args: &Logs) -> Result<()> {
    let mut client = super::connect(global).await?;
    let clock = SystemClock::shared();
    let begun = i64::try_from(clock.now().0).unwrap_or(i64::MAX);
    let newest = Cell::new(clock.elapsed());
    let failed = RefCell::new(None);
    let watched = client.watch(&args.job, |update| {
        newest.set(clock.elapsed());
        if let Some(Err(error)) = line(&update).map(|line| out::data(&line)) {
            failed.replace(Some(error));
            return Flow::Stop;
        }
        // A busy job never pauses; what happened after the command began is not asked for.
        if !args.follow && time(&update).is_some_and(|at| at > begun) { Flow::Stop } else { Flow::More }
    });
    let paused = async {
        while args.follow || clock.elapsed().saturating_sub(newest.get()) < PAUSE {
            tokio::time::sleep(PAUSE / 5).await;
        }
    };
    tokio::select! {
        watched = watched => watched?,
        () = paused => {}
    }
    failed.into_inner().map_or(Ok(()), Err)
}

fn line(update: &WatchJobResponse) -> Option<String> {
    match update.update.as_ref()? {
        Update::Log(line) => Some(follow::log_line(line)),
        Update::Event(event) => Some(follow::event_line(event)),
        _ => None,
    }
}

fn time(update: &WatchJobResponse) -> Option<i64> {
    match update.update.as_ref()? {
        Update::Log(line) => Some(line.unix_ms),
        Update::Event(event) => Some(event.unix_ms),
        Update::Step(row) => Some(row.unix_ms),
        _ => None,
    }
}
