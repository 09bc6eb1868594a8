//! `pleach train`: coordinator, state and worker processes on this machine, for one job.
//!
//! The state stays in a file, so that the same command goes on where an interrupted one stopped.

use std::cell::RefCell;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use pleach_base::shutdown::Shutdown;
use pleach_base::{Result, ResultExt, code};
use pleach_coordinator::{Config, StateStore, serve};
use pleach_proto::v1::{self, JobState};
use pleach_spec::{Job, Loaded};
use tokio::sync::mpsc::unbounded_channel;

use super::profile;
use super::submit::{absolute_paths, load};
use super::watch::adapters;
use crate::args::{Global, Train};
use crate::client::Client;
use crate::follow::{self, Follower, Shown, Stream};
use crate::local::{Crew, Orders, Recruit, Signals};
use crate::{handover, out, view};

pub(super) async fn run(global: &Global, args: Train) -> Result<ExitCode> {
    let Loaded { mut job, places } = load(global, &args.job)?;
    absolute_paths(&mut job);
    let count = workers(&job, args.workers).map_err(|error| places.locate(error))?;
    let binary = handover::binary()?;
    let state = state_file(&args.state, &job)?;
    let steps = args.steps.as_deref().map(steps_file).transpose()?;

    let running = serve(Config::embedded(StateStore::File(state)), Shutdown::default()).await?;
    let address = running.url();
    let here = Global { address: address.clone(), token: None, ca: None, ..global.clone() };
    let mut client = Client::connect(&here, &job.metadata.tenant).await?;
    let entered = enter(&mut client, &job).await.map_err(|error| places.locate(error));
    let mut trained = match entered {
        Ok(stored) if view::ended(&stored) => {
            out::note(format!("{} is done already: another metadata.name trains anew", stored.id));
            Ok(Some(stored))
        }
        Ok(stored) => {
            let threads = threads(&job, count);
            let recruit = Recruit { binary, address, threads, device: args.device, verbose: global.verbose > 0 };
            let follower = Follower::new(Stream::Err, Shown { events: true, all_logs: false }).writing_steps(steps);
            train(&mut client, &job, stored.last_seq, recruit, count, follower).await
        }
        Err(error) => Err(error),
    };
    if let (Some(file), Ok(_)) = (&args.trace, &trained) {
        let traced = trace(&mut client, &job.metadata.name, file).await;
        trained = traced.and(trained);
    }
    // However it went: the state file is closed in order.
    running.stop("the command is over").await?;
    let ended = trained?;
    match ended {
        Some(job) => {
            let code = follow::conclude(&job, "`-v` shows what the workers write");
            out::emit(args.output.output, &view::job(&job), || adapters(&job))?;
            Ok(code)
        }
        None => {
            out::note("interrupted; the same command goes on from the newest checkpoint");
            Ok(ExitCode::from(crate::fail::FAILED))
        }
    }
}

/// Follows the job from update `seen` on while its workers are kept alive; none when it was interrupted before its end.
async fn train(
    client: &mut Client,
    job: &Job,
    seen: u64,
    recruit: Recruit,
    count: u32,
    follower: Follower,
) -> Result<Option<v1::Job>> {
    let mut signals = Signals::listen()?;
    let orders = Orders::default();
    let (say, mut said) = unbounded_channel();
    let mut crew = std::pin::pin!(Crew::new(recruit, job.spec.workers.restarts, orders.clone(), say).run(count));
    let id = job.metadata.name.clone();
    let follower = RefCell::new(follower);
    follower.borrow().say(&format!("starting {count} workers on this machine"));

    let mut watcher = client.clone();
    let mut watch = std::pin::pin!(watcher.watch(&id, seen, |update| follower.borrow_mut().update(update)));
    let mut interrupted = false;
    let watched = loop {
        tokio::select! {
            watched = &mut watch => break watched,
            Some(line) = said.recv() => follower.borrow().say(&line),
            gone = &mut crew => {
                // All have drained, or one has died once too often.
                follower.borrow_mut().clear();
                gone?;
                return Ok(last(client, &id).await);
            }
            () = signals.next() => {
                if interrupted {
                    follower.borrow_mut().clear();
                    return Err(code::CANCELLED.error("aborted: the workers were killed").hint("the same command goes on from the newest checkpoint"));
                }
                interrupted = true;
                follower.borrow().say("draining: waiting for the workers to finish their step and write a checkpoint (again to abort)");
                orders.drain.cancel();
            }
        }
    };
    follower.borrow_mut().clear();
    watched?;
    orders.drain.cancel();
    crew.await?;
    Ok(last(client, &id).await)
}

/// Shows where the time went, on standard error, and writes it to `file`.
async fn trace(client: &mut Client, id: &str, file: &Path) -> Result<()> {
    let profile = client.profile(id).await?;
    out::note(profile::page(&profile).trim_end());
    profile::write_trace(file, &profile)
}

/// The job, if it has ended.
async fn last(client: &mut Client, id: &str) -> Option<v1::Job> {
    client.get(id).await.ok().filter(view::ended)
}

/// Submits the job. One that was cancelled or failed is begun again and goes on from its checkpoints, unless it was
/// another job then and has some: those are not this job's.
async fn enter(client: &mut Client, job: &Job) -> Result<v1::Job> {
    let id = &job.metadata.name;
    match client.get(id).await {
        Ok(before) => {
            let same = before.spec_json == job.clone().resolve().canonical_json();
            let has_steps = before.tasks.iter().any(|task| task.durable_step > 0);
            if matches!(before.state(), JobState::Failed | JobState::Cancelled) && (same || !has_steps) {
                out::note(format!("{id} was {} before ({}): beginning again", view::state(&before), before.reason));
                client.delete(id).await?;
            }
        }
        Err(error) if error.code() == code::JOB_NOT_FOUND => {}
        Err(error) => return Err(error),
    }
    let submitted = client.submit(job.canonical_json(), id).await;
    let (stored, _) = submitted.map_err(|error| {
        if error.code() == code::JOB_EXISTS {
            error.hint("train the changed job under another name: --set metadata.name=NAME")
        } else {
            error
        }
    })?;
    Ok(stored)
}

fn workers(job: &Job, asked: Option<u32>) -> Result<u32> {
    let spec = &job.spec.workers;
    let count = asked.unwrap_or(spec.max);
    if count < spec.min {
        return Err(code::BAD_VALUE
            .error(format!("spec.workers.min: the job needs {}, and --workers is {count}", spec.min))
            .hint("lower one or raise the other"));
    }
    Ok(count)
}

/// The cores of this machine, shared.
fn threads(job: &Job, count: u32) -> u32 {
    let cores = std::thread::available_parallelism().map_or(1, |cores| u32::try_from(cores.get()).unwrap_or(1));
    job.spec.workers.threads.unwrap_or_else(|| (cores / count).max(1))
}

fn steps_file(path: &Path) -> Result<std::fs::File> {
    std::fs::File::create(path).or_code(code::IO, || format!("--steps {}: cannot be created", path.display()))
}

/// One file a job: several can be trained side by side.
fn state_file(folder: &Path, job: &Job) -> Result<PathBuf> {
    let folder = folder.join(&job.metadata.tenant);
    std::fs::create_dir_all(&folder)
        .or_code(code::IO, || format!("--state {}: cannot be created", folder.display()))?;
    Ok(folder.join(format!("{}.redb", job.metadata.name)))
}
