//! Following a job. Updates are read from the database, so a slow watcher holds nobody up and costs no memory: the
//! channel says only that there is more.

use std::sync::Arc;

use pleach_base::{Result, code};
use pleach_proto::status::to_status;
use pleach_proto::v1::watch_job_response::Update;
use pleach_proto::v1::{self, WatchJobResponse};
use pleach_sched::JobKey;
use tokio::sync::{mpsc, watch};
use tonic::Status;

use crate::db::Backend;

/// Updates read at a time.
const PAGE: usize = 256;

/// The newest state of a job.
#[derive(Clone, Debug)]
pub(crate) struct View {
    pub(crate) job: v1::Job,
    pub(crate) ended: bool,
}

/// What a watcher follows.
pub(crate) struct Watched {
    pub(crate) key: JobKey,
    pub(crate) db: Arc<dyn Backend>,
    pub(crate) views: watch::Receiver<Arc<View>>,
}

type Sender = mpsc::Sender<std::result::Result<WatchJobResponse, Status>>;

/// Sends what happens to a job until it has ended or the watcher goes.
pub(crate) async fn follow(mut watched: Watched, after: u64, to: Sender) {
    if let Err(status) = follow_until_end(&mut watched, after, &to).await {
        // The watcher may be gone; then nobody is there to tell.
        let _ = to.send(Err(status)).await;
    }
}

async fn follow_until_end(watched: &mut Watched, mut cursor: u64, to: &Sender) -> std::result::Result<(), Status> {
    let mut shown: Option<v1::Job> = None;
    loop {
        let view = Arc::clone(&watched.views.borrow_and_update());
        if shown.is_none() && !send(to, 0, Update::Job(view.job.clone())).await {
            return Ok(());
        }
        while cursor < view.job.last_seq {
            let page = page(watched, cursor).await.map_err(|error| to_status(&error))?;
            let Some(last) = page.last().map(|update| update.seq) else { break };
            cursor = last;
            for update in page {
                if to.send(Ok(update)).await.is_err() {
                    return Ok(());
                }
            }
        }
        let news = shown.as_ref().is_some_and(|shown| differs(shown, &view.job));
        if (news || view.ended) && !send(to, 0, Update::Job(view.job.clone())).await {
            return Ok(());
        }
        if view.ended {
            return Ok(());
        }
        shown = Some(view.job.clone());
        tokio::select! {
            () = to.closed() => return Ok(()),
            changed = watched.views.changed() => changed.map_err(|_| going())?,
        }
    }
}

/// Whether a person would see a difference that no update tells.
fn differs(shown: &v1::Job, now: &v1::Job) -> bool {
    (shown.state, &shown.reason, shown.generation, &shown.members)
        != (now.state, &now.reason, now.generation, &now.members)
}

async fn send(to: &Sender, seq: u64, update: Update) -> bool {
    to.send(Ok(WatchJobResponse { seq, update: Some(update) })).await.is_ok()
}

async fn page(watched: &Watched, after: u64) -> Result<Vec<WatchJobResponse>> {
    let (db, key) = (Arc::clone(&watched.db), watched.key.clone());
    let read = tokio::task::spawn_blocking(move || db.updates(&key, after, PAGE));
    read.await.map_err(|error| code::INTERNAL.error("reading updates panicked").caused_by(error))?
}

fn going() -> Status {
    Status::unavailable("the job was deleted or the coordinator is going down")
}
