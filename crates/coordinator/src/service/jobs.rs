//! `JobService`.

use pleach_base::code;
use pleach_proto::v1::job_service_server::JobService;
use pleach_proto::v1::{
    CancelJobRequest, CancelJobResponse, DeleteJobRequest, DeleteJobResponse, GetJobRequest, GetJobResponse,
    GetProfileRequest, GetProfileResponse, ListCommitsRequest, ListCommitsResponse, ListJobsRequest, ListJobsResponse,
    SubmitJobRequest, SubmitJobResponse, WatchJobRequest, WatchJobResponse,
};
use pleach_sched::JobKey;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::metadata::MetadataMap;
use tonic::{Request, Response, Status};

use super::{Shared, status};
use crate::admit::admit;
use crate::caller;
use crate::watch::follow;

/// Updates on their way to one watcher; more are read when it has taken these.
const ON_THE_WAY: usize = 64;

pub(crate) struct Jobs {
    shared: Shared,
    /// Workers run on this machine.
    local: bool,
}

impl Jobs {
    pub(crate) fn new(shared: Shared, local: bool) -> Self {
        Self { shared, local }
    }
}

fn key(metadata: &MetadataMap, id: &str) -> Result<JobKey, Status> {
    if id.is_empty() || id.contains('/') {
        return Err(status(code::BAD_VALUE.error(format!("id: `{id}` is not the id of a job"))));
    }
    Ok(JobKey::new(caller::tenant(metadata).map_err(status)?, id))
}

#[tonic::async_trait]
impl JobService for Jobs {
    async fn list_commits(
        &self,
        request: Request<ListCommitsRequest>,
    ) -> Result<Response<ListCommitsResponse>, Status> {
        let key = key(request.metadata(), &request.get_ref().id)?;
        let task = request.into_inner().task;
        let wanted = key.clone();
        let records = self.shared.actor.ask(move |actor| actor.records(&wanted)).await.map_err(status)?;
        let read = tokio::task::spawn_blocking(move || records.commits(&key, &task)).await;
        let read = read.map_err(|error| status(code::INTERNAL.error("reading records panicked").caused_by(error)))?;
        let commits = read.map_err(status)?;
        Ok(Response::new(ListCommitsResponse { commits }))
    }

    async fn submit_job(&self, request: Request<SubmitJobRequest>) -> Result<Response<SubmitJobResponse>, Status> {
        let tenant = caller::named_tenant(request.metadata()).map_err(status)?;
        let (request, local) = (request.into_inner(), self.local);
        // Reads the model folder.
        let checked = tokio::task::spawn_blocking(move || admit(&request, tenant.as_ref(), local)).await;
        let admitted = checked
            .map_err(|error| status(code::INTERNAL.error("checking the job panicked").caused_by(error)))?
            .map_err(status)?;
        let (job, created) = self.shared.actor.ask(|actor| actor.submit(admitted)).await.map_err(status)?;
        Ok(Response::new(SubmitJobResponse { job: Some(job), created }))
    }

    async fn get_job(&self, request: Request<GetJobRequest>) -> Result<Response<GetJobResponse>, Status> {
        let key = key(request.metadata(), &request.get_ref().id)?;
        let job = self.shared.actor.ask(move |actor| actor.job(&key)).await.map_err(status)?;
        Ok(Response::new(GetJobResponse { job: Some(job) }))
    }

    async fn get_profile(&self, request: Request<GetProfileRequest>) -> Result<Response<GetProfileResponse>, Status> {
        let key = key(request.metadata(), &request.get_ref().id)?;
        self.shared.actor.ask(move |actor| actor.profile(&key)).await.map(Response::new).map_err(status)
    }

    async fn list_jobs(&self, request: Request<ListJobsRequest>) -> Result<Response<ListJobsResponse>, Status> {
        let tenant = caller::tenant(request.metadata()).map_err(status)?;
        let wanted = request.into_inner().states;
        let mut jobs = self.shared.actor.ask(move |actor| Ok(actor.list(&tenant))).await.map_err(status)?;
        jobs.retain(|job| wanted.is_empty() || wanted.contains(&job.state));
        Ok(Response::new(ListJobsResponse { jobs }))
    }

    type WatchJobStream = ReceiverStream<Result<WatchJobResponse, Status>>;

    async fn watch_job(&self, request: Request<WatchJobRequest>) -> Result<Response<Self::WatchJobStream>, Status> {
        let key = key(request.metadata(), &request.get_ref().id)?;
        let after = request.get_ref().after_seq;
        let watched = self.shared.actor.ask(move |actor| actor.watch(key)).await.map_err(status)?;
        let (send, updates) = mpsc::channel(ON_THE_WAY);
        self.shared.tasks.spawn(follow(watched, after, send));
        Ok(Response::new(ReceiverStream::new(updates)))
    }

    async fn cancel_job(&self, request: Request<CancelJobRequest>) -> Result<Response<CancelJobResponse>, Status> {
        let key = key(request.metadata(), &request.get_ref().id)?;
        let reason = request.into_inner().reason;
        let job = self.shared.actor.ask(move |actor| actor.cancel(&key, reason)).await.map_err(status)?;
        Ok(Response::new(CancelJobResponse { job: Some(job) }))
    }

    async fn delete_job(&self, request: Request<DeleteJobRequest>) -> Result<Response<DeleteJobResponse>, Status> {
        let key = key(request.metadata(), &request.get_ref().id)?;
        self.shared.actor.ask(move |actor| actor.delete(&key)).await.map_err(status)?;
        Ok(Response::new(DeleteJobResponse {}))
    }
}
