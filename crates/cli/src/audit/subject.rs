//! What is audited: the job as it was resolved, and the records that no durable step carries yet.

use pleach_base::{Fence, Generation, JobId, Result, ResultExt, Step, TaskName, Tenant, Term, code};
use pleach_proto::v1;
use pleach_spec::Job;
use pleach_store::{LedgerRow, Store, StoreOptions, TaskStore};

use crate::client::Client;
use crate::view;

/// A job and its newest records.
pub(crate) struct Subject {
    pub(crate) id: String,
    pub(super) job: Job,
    tenant: Tenant,
    /// As far as the coordinator keeps them.
    pub(super) commits: Vec<LedgerRow>,
    /// All steps were made.
    pub(super) done: bool,
}

impl Subject {
    /// The job of a coordinator.
    pub(crate) async fn of(client: &mut Client, id: &str) -> Result<Self> {
        let stored = client.get(id).await?;
        let commits = client.commits(id).await?;
        let job = serde_json::from_str(&stored.spec_json)
            .or_code(code::JOB_SYNTAX, || format!("job {id}: the resolved spec cannot be read"))?;
        let done = view::state(&stored) == "succeeded";
        let tenant = stored.tenant.as_str().into();
        Ok(Self { id: stored.id, job, tenant, commits: commits.into_iter().map(row).collect(), done })
    }

    /// A job from its file: what the store holds of it.
    pub(crate) fn offline(job: &Job, id: Option<&str>) -> Self {
        let job = job.clone().resolve();
        let id = id.unwrap_or(&job.metadata.name).to_owned();
        Self { id, tenant: job.metadata.tenant.as_str().into(), job, commits: Vec::new(), done: false }
    }

    /// How object storage is reached: as `spec.checkpoint` says, else as the environment does.
    pub(super) fn store_options(&self) -> StoreOptions {
        let at = &self.job.spec.checkpoint;
        StoreOptions { endpoint: at.endpoint.clone(), region: at.region.clone(), ..StoreOptions::default() }
    }

    pub(super) fn store(&self, task: &TaskName) -> Result<TaskStore> {
        Ok(Store::open(&self.job.spec.checkpoint.store, &self.store_options())?.task(
            &self.tenant,
            &JobId::from(self.id.as_str()),
            task,
        ))
    }
}

fn row(commit: v1::CommitRecord) -> LedgerRow {
    LedgerRow {
        task: commit.task.as_str().into(),
        step: Step(commit.step),
        fence: Fence { term: Term(commit.term), generation: Generation(commit.generation) },
        epoch: commit.epoch,
        samples: commit.samples,
        digest: commit.digest,
        sample_digest: commit.sample_digest,
        lane_digests: commit.lane_digests,
        skipped: commit.skipped,
        tokens: None,
        world: commit.world,
        unix_ms: commit.unix_ms,
    }
}
