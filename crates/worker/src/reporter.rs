//! Reports that must not be lost: sent one by one, in order, again and again until the coordinator has taken them or
//! says that this worker's part is over.

use std::time::Duration;

use pleach_base::{Fence, JobId, Kind, Tenant};
use pleach_proto::status::from_status;
use pleach_proto::v1::ReportRequest;
use pleach_proto::v1::report_request::Report;
use tokio::sync::{mpsc, watch};

use crate::client::Client;
use crate::identity::Identity;

const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// A coordinator that does not know this worker yet (it was restarted) answers as to a stale one; the session registers
/// again meanwhile.
const FENCED_TRIES: u32 = 5;
const LONGEST_PAUSE: Duration = Duration::from_secs(3);

/// Which part of which job something belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Part {
    pub(crate) tenant: Tenant,
    pub(crate) job: JobId,
    pub(crate) fence: Fence,
}

/// Takes reports from any thread.
#[derive(Clone)]
pub(crate) struct Reporter {
    queue: mpsc::UnboundedSender<(Part, Report)>,
    /// Reports handed in, and a view of how many are settled.
    handed_in: watch::Sender<u64>,
    settled: watch::Receiver<u64>,
}

impl Reporter {
    /// Starts the task that sends. `fenced` hears of parts that the coordinator no longer takes reports of.
    pub(crate) fn start(client: Client, identity: Identity, fenced: mpsc::UnboundedSender<Part>) -> Self {
        let (queue, reports) = mpsc::unbounded_channel();
        let (settle, settled) = watch::channel(0);
        tokio::spawn(send_all(client, identity, reports, settle, fenced));
        Self { queue, handed_in: watch::channel(0).0, settled }
    }

    /// Hands in a report; returns at once.
    pub(crate) fn send(&self, part: &Part, report: Report) {
        self.handed_in.send_modify(|count| *count += 1);
        // The receiver lives as long as the runtime; after that nobody is there to tell.
        let _ = self.queue.send((part.clone(), report));
    }

    /// Waits until everything handed in so far is settled, at most `limit`; false when that passed first.
    pub(crate) async fn flush(&self, limit: Duration) -> bool {
        let goal = *self.handed_in.borrow();
        let mut settled = self.settled.clone();
        tokio::time::timeout(limit, settled.wait_for(|count| *count >= goal)).await.is_ok_and(|seen| seen.is_ok())
    }
}

async fn send_all(
    mut client: Client,
    identity: Identity,
    mut reports: mpsc::UnboundedReceiver<(Part, Report)>,
    settle: watch::Sender<u64>,
    fenced: mpsc::UnboundedSender<Part>,
) {
    let mut seq = 0;
    while let Some((part, report)) = reports.recv().await {
        seq += 1;
        let request = ReportRequest {
            worker: identity.id.name.clone(),
            incarnation: identity.id.incarnation,
            report_seq: seq,
            tenant: part.tenant.to_string(),
            job: part.job.to_string(),
            term: part.fence.term.0,
            generation: part.fence.generation.0,
            report: Some(report),
        };
        if !deliver(&mut client, request).await {
            let _ = fenced.send(part);
        }
        settle.send_modify(|count| *count += 1);
    }
}

/// Whether the coordinator still takes reports of this part.
async fn deliver(client: &mut Client, request: ReportRequest) -> bool {
    let (mut pause, mut fenced) = (FIRST_PAUSE, 0);
    loop {
        let Err(status) = client.report(request.clone()).await else { return true };
        let error = from_status(&status);
        fenced += u32::from(error.kind() == Kind::Fenced);
        match error.kind() {
            Kind::Fenced if fenced >= FENCED_TRIES => return false,
            Kind::Fenced | Kind::Unavailable | Kind::Cancelled | Kind::Exhausted => {
                tracing::debug!(seq = request.report_seq, error = %error.chain(), "report not taken, trying again");
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
            _ => {
                tracing::warn!(seq = request.report_seq, error = %error.chain(), "the coordinator refuses a report");
                return true;
            }
        }
    }
}
