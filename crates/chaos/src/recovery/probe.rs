//! What the coordinators say, as soon as they say it: the stream of a job, and its recorded step asked for all the time.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::Result;
use pleach_base::SharedClock;
use pleach_proto::v1::watch_job_response::Update;
use pleach_proto::v1::{GetJobRequest, Job, WatchJobRequest};
use tokio::runtime::Handle;
use tokio::task::JoinHandle;

use crate::watch::{Client, clients, request};

const ASK_EVERY: Duration = Duration::from_millis(8);

/// A word of the stream.
#[derive(Clone, Debug)]
pub(super) enum Word {
    Event {
        kind: String,
        worker: String,
    },
    /// The job's generation, whenever the job is told anew.
    Generation(u64),
}

/// A recorded step, when the answer first showed it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Recorded {
    pub(super) at: Duration,
    /// Which endpoint said so.
    pub(super) leader: usize,
    pub(super) generation: u64,
    pub(super) step: u64,
}

#[derive(Debug, Default)]
pub(super) struct Log {
    pub(super) words: Vec<(Duration, Word)>,
    pub(super) recorded: Vec<Recorded>,
    /// State and reason as last told.
    pub(super) state: String,
}

pub(super) struct Probe {
    log: Arc<Mutex<Log>>,
    tasks: [JoinHandle<()>; 2],
}

impl Probe {
    pub(super) fn start(runtime: &Handle, clock: &SharedClock, endpoints: &[String], job: &str) -> Result<Self> {
        let log = Arc::new(Mutex::new(Log::default()));
        let followed =
            follow(clients(runtime, endpoints)?, job.to_owned(), Arc::clone(&log), SharedClock::clone(clock));
        let asked = ask(clients(runtime, endpoints)?, job.to_owned(), Arc::clone(&log), SharedClock::clone(clock));
        Ok(Self { log, tasks: [runtime.spawn(followed), runtime.spawn(asked)] })
    }

    pub(super) fn log(&self) -> MutexGuard<'_, Log> {
        lock(&self.log)
    }
}

impl Drop for Probe {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

fn lock(log: &Mutex<Log>) -> MutexGuard<'_, Log> {
    log.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Follows the stream at whichever coordinator gives one.
async fn follow(mut clients: Vec<Client>, job: String, log: Arc<Mutex<Log>>, clock: SharedClock) {
    let mut after_seq = 0;
    for at in (0..clients.len()).cycle() {
        let asked = request(WatchJobRequest { id: job.clone(), after_seq });
        // The clients' limit is for whole calls; a stream has none.
        if let Ok(stream) = clients[at].watch_job(asked).await {
            let mut stream = stream.into_inner();
            while let Ok(Some(told)) = stream.message().await {
                after_seq = after_seq.max(told.seq);
                let Some(word) = told.update.and_then(word) else { continue };
                lock(&log).words.push((clock.elapsed(), word));
            }
        }
        tokio::time::sleep(ASK_EVERY).await;
    }
}

fn word(update: Update) -> Option<Word> {
    match update {
        Update::Event(event) => Some(Word::Event { kind: event.kind, worker: event.worker }),
        Update::Job(job) => Some(Word::Generation(job.generation)),
        _ => None,
    }
}

/// Asks for the job; an endpoint that does not lead or does not answer is left for the next one.
async fn ask(mut clients: Vec<Client>, job: String, log: Arc<Mutex<Log>>, clock: SharedClock) {
    let mut leader = 0;
    loop {
        match clients[leader].get_job(request(GetJobRequest { id: job.clone() })).await {
            Ok(answer) => {
                if let Some(job) = answer.into_inner().job {
                    lock(&log).take(clock.elapsed(), leader, &job);
                }
            }
            Err(_) => leader = (leader + 1) % clients.len(),
        }
        tokio::time::sleep(ASK_EVERY).await;
    }
}

impl Log {
    fn take(&mut self, at: Duration, leader: usize, job: &Job) {
        self.state = format!("{:?}: {}", job.state(), job.reason);
        let step = job.tasks.iter().map(|task| task.recorded_step).max().unwrap_or_default();
        let seen = Recorded { at, leader, generation: job.generation, step };
        let is_news = self
            .recorded
            .last()
            .is_none_or(|last| (last.leader, last.generation, last.step) != (seen.leader, seen.generation, seen.step));
        if is_news {
            self.recorded.push(seen);
        }
    }

    /// The newest recorded step.
    pub(super) fn step(&self) -> u64 {
        self.recorded.iter().map(|seen| seen.step).max().unwrap_or_default()
    }

    /// The first word after `from` that `wanted` takes.
    pub(super) fn word_after(&self, from: Duration, wanted: impl Fn(&Word) -> bool) -> Option<Duration> {
        // The newest stand at the end.
        let after = self.words.iter().rev().take_while(|(at, _)| *at > from);
        after.filter(|(_, word)| wanted(word)).map(|(at, _)| *at).min()
    }

    /// The first answer after `from` that `wanted` takes.
    pub(super) fn recorded_after(&self, from: Duration, wanted: impl Fn(&Recorded) -> bool) -> Option<Recorded> {
        let after = self.recorded.iter().rev().take_while(|seen| seen.at > from);
        after.filter(|seen| wanted(seen)).min_by_key(|seen| seen.at).copied()
    }
}
