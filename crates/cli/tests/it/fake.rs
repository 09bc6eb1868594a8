//! A coordinator of a few lines behind real gRPC: it plays scripted updates, and can break the stream in between.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use pleach_base::code;
use pleach_proto::status::to_status;
use pleach_proto::v1::job_service_server::{JobService, JobServiceServer};
use pleach_proto::v1::watch_job_response::Update;
use pleach_proto::v1::*;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status};

/// What the coordinator knows and was told.
#[derive(Clone, Default)]
pub(crate) struct Fake(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    job: Job,
    updates: Vec<WatchJobResponse>,
    /// The first stream breaks after this many updates.
    break_after: Option<usize>,
    calls: Vec<String>,
    commits: Vec<CommitRecord>,
    profile: GetProfileResponse,
}

impl Fake {
    /// Serves on a free port until the process ends; the runtime is the caller's.
    pub(crate) async fn serve(job: Job, updates: Vec<Update>, break_after: Option<usize>) -> (Self, SocketAddr) {
        let updates = (1..).zip(updates).map(|(seq, update)| WatchJobResponse { seq, update: Some(update) }).collect();
        let fake = Self(Arc::new(Mutex::new(State { job, updates, break_after, ..State::default() })));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let service = JobServiceServer::new(fake.clone());
        tokio::spawn(
            tonic::transport::Server::builder()
                .add_service(service)
                .serve_with_incoming(TcpListenerStream::new(listener)),
        );
        (fake, address)
    }

    /// What is recorded.
    pub(crate) fn record(&self, commits: Vec<CommitRecord>) {
        self.0.lock().expect("no panic").commits = commits;
    }

    /// Where the time went.
    pub(crate) fn took(&self, profile: GetProfileResponse) {
        self.0.lock().expect("no panic").profile = profile;
    }

    /// The calls so far, as `tenant|bearer|what`.
    pub(crate) fn calls(&self) -> Vec<String> {
        self.0.lock().expect("no panic").calls.clone()
    }

    fn note<T>(&self, request: &Request<T>, what: String) {
        let text = |key| request.metadata().get(key).and_then(|v| v.to_str().ok()).unwrap_or("-").to_owned();
        let line = format!("{}|{}|{what}", text("pleach-tenant"), text("authorization"));
        self.0.lock().expect("no panic").calls.push(line);
    }

    fn found(&self, id: &str) -> Result<Job, Status> {
        let job = self.0.lock().expect("no panic").job.clone();
        if job.id == id {
            return Ok(job);
        }
        let error = code::JOB_NOT_FOUND.error(format!("no job `{id}`")).hint(format!("did you mean `{}`?", job.id));
        Err(to_status(&error))
    }
}

#[tonic::async_trait]
impl JobService for Fake {
    type WatchJobStream = tokio_stream::Iter<std::vec::IntoIter<Result<WatchJobResponse, Status>>>;

    async fn submit_job(&self, request: Request<SubmitJobRequest>) -> Result<Response<SubmitJobResponse>, Status> {
        let asked = request.get_ref().clone();
        self.note(&request, format!("submit {}", asked.id));
        if asked.spec.contains("TARGET") {
            return Err(to_status(
                &code::TARGET_NOTHING.error("spec.tasks[0].adapter.target_modules: nothing matches"),
            ));
        }
        let mut state = self.0.lock().expect("no panic");
        state.job.id = asked.id;
        state.job.spec_json = asked.spec;
        Ok(Response::new(SubmitJobResponse { job: Some(state.job.clone()), created: true }))
    }

    async fn get_job(&self, request: Request<GetJobRequest>) -> Result<Response<GetJobResponse>, Status> {
        self.note(&request, "get".into());
        Ok(Response::new(GetJobResponse { job: Some(self.found(&request.get_ref().id)?) }))
    }

    async fn list_jobs(&self, request: Request<ListJobsRequest>) -> Result<Response<ListJobsResponse>, Status> {
        self.note(&request, "list".into());
        Ok(Response::new(ListJobsResponse { jobs: vec![self.0.lock().expect("no panic").job.clone()] }))
    }

    async fn watch_job(&self, request: Request<WatchJobRequest>) -> Result<Response<Self::WatchJobStream>, Status> {
        let asked = request.get_ref().clone();
        self.note(&request, format!("watch {} after {}", asked.id, asked.after_seq));
        self.found(&asked.id)?;
        let mut state = self.0.lock().expect("no panic");
        let mut updates: Vec<_> =
            state.updates.iter().filter(|update| update.seq > asked.after_seq).cloned().map(Ok).collect();
        if let Some(count) = state.break_after.take() {
            updates.truncate(count);
            updates.push(Err(Status::unavailable("the coordinator goes down")));
        }
        Ok(Response::new(tokio_stream::iter(updates)))
    }

    async fn cancel_job(&self, request: Request<CancelJobRequest>) -> Result<Response<CancelJobResponse>, Status> {
        self.note(&request, format!("cancel {}", request.get_ref().reason));
        Ok(Response::new(CancelJobResponse { job: Some(self.found(&request.get_ref().id)?) }))
    }

    async fn list_commits(
        &self,
        request: Request<ListCommitsRequest>,
    ) -> Result<Response<ListCommitsResponse>, Status> {
        self.note(&request, "commits".into());
        self.found(&request.get_ref().id)?;
        let commits = self.0.lock().expect("no panic").commits.clone();
        Ok(Response::new(ListCommitsResponse { commits }))
    }

    async fn get_profile(&self, request: Request<GetProfileRequest>) -> Result<Response<GetProfileResponse>, Status> {
        self.note(&request, "profile".into());
        self.found(&request.get_ref().id)?;
        Ok(Response::new(self.0.lock().expect("no panic").profile.clone()))
    }

    async fn delete_job(&self, request: Request<DeleteJobRequest>) -> Result<Response<DeleteJobResponse>, Status> {
        self.note(&request, "delete".into());
        self.found(&request.get_ref().id)?;
        Ok(Response::new(DeleteJobResponse {}))
    }
}
