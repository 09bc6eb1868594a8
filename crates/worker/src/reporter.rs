//! Reports that must not be lost: sent one at a time, in order, again and again until the coordinator has taken them or
//! says that this worker's part is over. Records of steps that have gathered meanwhile go in one report.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use pleach_base::{Fence, JobId, Kind, SharedClock, Tenant, code};
use pleach_proto::status::from_status;
use pleach_proto::v1::report_request::Report;
use pleach_proto::v1::{CommitRecord, Commits, ReportRequest};
use tokio::sync::{mpsc, watch};

use crate::coordinators::Coordinators;
use crate::identity::Identity;

const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// How long one answer may take. A report may be sent again: it is known by its number.
const ANSWER: Duration = Duration::from_secs(5);
/// So often a coordinator that holds this worker's session has to say that a part is over. One that does not hold it may
/// only not know this worker yet.
const FENCED_TRIES: u32 = 3;
/// Most records in one report.
const BATCH: usize = 512;
/// A stall that was seen longer ago is no news: it was told again since, or is over.
const STALE: Duration = Duration::from_secs(2);

/// Which part of which job something belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Part {
    pub(crate) tenant: Tenant,
    pub(crate) job: JobId,
    pub(crate) fence: Fence,
}

/// Called once the coordinator has taken a record.
pub(crate) type Taken = Box<dyn FnOnce() + Send + Sync>;

enum Said {
    Report(Box<Report>),
    Commit(Box<CommitRecord>, Taken),
}

struct Item {
    part: Part,
    said: Said,
    /// When it was handed in, by the worker's clock.
    at: Duration,
}

impl Item {
    fn is_stale(&self, now: Duration) -> bool {
        let stalled = matches!(&self.said, Said::Report(report) if matches!(**report, Report::Stalled(_)));
        stalled && now.saturating_sub(self.at) > STALE
    }
}

/// Takes reports from any thread.
#[derive(Clone)]
pub(crate) struct Reporter {
    queue: mpsc::UnboundedSender<Item>,
    clock: SharedClock,
    /// Reports handed in, and a view of how many are settled.
    handed_in: watch::Sender<u64>,
    settled: watch::Receiver<u64>,
}

impl Reporter {
    /// Starts the task that sends. `fenced` hears of parts that the coordinator no longer takes reports of.
    pub(crate) fn start(
        coordinators: Coordinators,
        identity: Identity,
        clock: SharedClock,
        fenced: mpsc::UnboundedSender<Part>,
    ) -> Self {
        let (queue, items) = mpsc::unbounded_channel();
        let (settle, settled) = watch::channel(0);
        let sender = Sender {
            coordinators,
            identity,
            clock: Arc::clone(&clock),
            items,
            waiting: VecDeque::new(),
            settle,
            fenced,
            over: None,
            seq: 0,
        };
        tokio::spawn(sender.send_all());
        Self { queue, clock, handed_in: watch::channel(0).0, settled }
    }

    /// Hands in a report; returns at once.
    pub(crate) fn send(&self, part: &Part, report: Report) {
        self.hand_in(part, Said::Report(Box::new(report)));
    }

    /// Hands in the record of a step; `taken` is called when it is safe with the coordinator.
    pub(crate) fn commit(&self, part: &Part, record: CommitRecord, taken: Taken) {
        self.hand_in(part, Said::Commit(Box::new(record), taken));
    }

    fn hand_in(&self, part: &Part, said: Said) {
        self.handed_in.send_modify(|count| *count += 1);
        // The receiver lives as long as the runtime; after that nobody is there to tell.
        let _ = self.queue.send(Item { part: part.clone(), said, at: self.clock.elapsed() });
    }

    /// Waits until everything handed in so far is settled, at most `limit`; false when that passed first.
    pub(crate) async fn flush(&self, limit: Duration) -> bool {
        let goal = *self.handed_in.borrow();
        let mut settled = self.settled.clone();
        tokio::time::timeout(limit, settled.wait_for(|count| *count >= goal)).await.is_ok_and(|seen| seen.is_ok())
    }
}

/// What becomes of a report.
#[derive(Debug, PartialEq, Eq)]
enum Fate {
    Taken,
    /// The coordinator will never take it.
    Refused,
    /// It takes no report of this part any more.
    Fenced,
}

struct Sender {
    coordinators: Coordinators,
    identity: Identity,
    clock: SharedClock,
    items: mpsc::UnboundedReceiver<Item>,
    waiting: VecDeque<Item>,
    settle: watch::Sender<u64>,
    fenced: mpsc::UnboundedSender<Part>,
    /// The part that was fenced last: what else it says is not worth sending.
    over: Option<Part>,
    seq: u64,
}

impl Sender {
    async fn send_all(mut self) {
        while let Some(item) = self.items.recv().await {
            self.waiting.push_back(item);
            loop {
                while let Ok(item) = self.items.try_recv() {
                    self.waiting.push_back(item);
                }
                let stale = self.waiting.front().is_some_and(|item| item.is_stale(self.clock.elapsed()));
                let Some((part, report, taken)) = next(&mut self.waiting) else { break };
                let count = taken.len().max(1) as u64;
                if (self.over.as_ref() != Some(&part) || answers_prepare(&report)) && !stale {
                    self.send(part, report, taken).await;
                }
                self.settle.send_modify(|settled| *settled += count);
            }
        }
    }

    async fn send(&mut self, part: Part, report: Report, taken: Vec<Taken>) {
        self.seq += 1;
        let request = ReportRequest {
            worker: self.identity.id.name.clone(),
            incarnation: self.identity.id.incarnation,
            report_seq: self.seq,
            tenant: part.tenant.to_string(),
            job: part.job.to_string(),
            term: part.fence.term.0,
            generation: part.fence.generation.0,
            report: Some(report),
        };
        match self.deliver(request).await {
            Fate::Taken => taken.into_iter().for_each(|tell| tell()),
            Fate::Refused => {}
            Fate::Fenced => {
                self.over = Some(part.clone());
                let _ = self.fenced.send(part);
            }
        }
    }

    async fn deliver(&self, request: ReportRequest) -> Fate {
        let (mut pause, mut fenced) = (FIRST_PAUSE, 0);
        loop {
            let attached = self.coordinators.is_attached();
            let mut client = self.coordinators.current().client;
            let error = match tokio::time::timeout(ANSWER, client.report(request.clone())).await {
                Ok(Ok(_)) => return Fate::Taken,
                Ok(Err(status)) => from_status(&status),
                Err(_) => code::UNREACHABLE.error(format!("no answer within {} s", ANSWER.as_secs())),
            };
            fenced += u32::from(error.kind() == Kind::Fenced && attached);
            match error.kind() {
                Kind::Fenced if fenced >= FENCED_TRIES => return Fate::Fenced,
                Kind::Fenced | Kind::Unavailable | Kind::Cancelled | Kind::Exhausted => {
                    tracing::debug!(seq = request.report_seq, error = %error.chain(), "report not taken, trying again");
                    tokio::select! {
                        () = tokio::time::sleep(pause) => pause = (pause * 2).min(LONGEST_PAUSE),
                        () = self.coordinators.changed() => pause = FIRST_PAUSE,
                    }
                }
                _ => {
                    tracing::warn!(seq = request.report_seq, error = %error.chain(), "the coordinator refuses a report");
                    return Fate::Refused;
                }
            }
        }
    }
}

/// Whether a report answers a request to get ready. Such a request carries the fence of a generation that may be over.
fn answers_prepare(report: &Report) -> bool {
    matches!(report, Report::Prepared(_)) || matches!(report, Report::Failed(failed) if failed.preparing)
}

/// What goes out next: one report, or the records of one part that wait one after another.
fn next(waiting: &mut VecDeque<Item>) -> Option<(Part, Report, Vec<Taken>)> {
    let Item { part, said, .. } = waiting.pop_front()?;
    let (record, taken) = match said {
        Said::Report(report) => return Some((part, *report, Vec::new())),
        Said::Commit(record, taken) => (record, taken),
    };
    let (mut records, mut all) = (vec![*record], vec![taken]);
    while records.len() < BATCH {
        match waiting.pop_front() {
            Some(Item { part: other, said: Said::Commit(record, taken), .. }) if other == part => {
                records.push(*record);
                all.push(taken);
            }
            Some(other) => {
                waiting.push_front(other);
                break;
            }
            None => break,
        }
    }
    Some((part, Report::Commits(Commits { records }), all))
}

#[cfg(test)]
mod tests {
    use pleach_base::{Generation, Term};
    use pleach_proto::v1::{Ready, Stalled};

    use super::*;

    #[test]
    fn records_that_wait_go_together_and_nothing_overtakes() {
        let part = |generation| Part {
            tenant: "t".into(),
            job: "j".into(),
            fence: Fence { term: Term(1), generation: Generation(generation) },
        };
        let commit = |generation, step| Item {
            part: part(generation),
            said: Said::Commit(Box::new(CommitRecord { step, ..CommitRecord::default() }), Box::new(|| {})),
            at: Duration::ZERO,
        };
        let report = |generation, report| Item {
            part: part(generation),
            said: Said::Report(Box::new(report)),
            at: Duration::ZERO,
        };
        let mut waiting: VecDeque<_> =
            [commit(1, 1), commit(1, 2), report(1, Report::Ready(Ready {})), commit(1, 3), commit(2, 4), commit(2, 5)]
                .into();
        let mut sent = Vec::new();
        while let Some((part, report, taken)) = next(&mut waiting) {
            let steps = match report {
                Report::Commits(commits) => commits.records.iter().map(|record| record.step).collect(),
                _ => Vec::new(),
            };
            assert_eq!(steps.len(), taken.len());
            sent.push((part.fence.generation.0, steps));
        }
        let stalled = report(1, Report::Stalled(Stalled::default()));
        assert!(!stalled.is_stale(STALE) && stalled.is_stale(STALE * 2));
        assert!(!report(1, Report::Ready(Ready {})).is_stale(STALE * 2), "only a stall grows old");
        assert_eq!(sent, [(1, vec![1, 2]), (1, vec![]), (1, vec![3]), (2, vec![4, 5])]);
    }
}
