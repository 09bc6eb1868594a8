//! The coordinator as the commands see it: typed errors instead of statuses, tenant and token on every call.

use std::time::Duration;

use pleach_base::{Error, Result, ResultExt, code};
use pleach_proto::v1::checkpoint_service_client::CheckpointServiceClient;
use pleach_proto::v1::job_service_client::JobServiceClient;
use pleach_proto::v1::{self, WatchJobResponse};
use pleach_proto::{MAX_MESSAGE_BYTES, TENANT_KEY, status};
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint};
use tonic::{Request, Status};

use crate::args::Global;
use crate::out;

/// A coordinator that does not answer in this time is not there.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);
/// A job followed by a person outlives a restart of its coordinator of this length.
const OUTAGE_LIMIT: Duration = Duration::from_secs(120);
const RETRY_EVERY: Duration = Duration::from_secs(1);

/// A connection to a coordinator. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Client {
    address: String,
    jobs: JobServiceClient<InterceptedService<Channel, Identity>>,
    checkpoints: CheckpointServiceClient<InterceptedService<Channel, Identity>>,
}

/// Who calls.
#[derive(Clone)]
struct Identity {
    tenant: MetadataValue<Ascii>,
    bearer: Option<MetadataValue<Ascii>>,
}

impl Interceptor for Identity {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        request.metadata_mut().insert(TENANT_KEY, self.tenant.clone());
        if let Some(bearer) = &self.bearer {
            request.metadata_mut().insert("authorization", bearer.clone());
        }
        Ok(request)
    }
}

impl Client {
    /// Connects on behalf of `tenant`.
    ///
    /// # Errors
    /// `UNREACHABLE` when nothing answers at the address, `BAD_VALUE` for an address that cannot be one.
    pub(crate) async fn connect(global: &Global, tenant: &str) -> Result<Self> {
        let endpoint = endpoint(global)?;
        let channel = endpoint.connect().await.map_err(|error| unreachable(&global.address).caused_by(error))?;
        let text = |what: &str, value: String| {
            value.parse().map_err(|_| code::BAD_VALUE.error(format!("{what}: it has characters that cannot be sent")))
        };
        let bearer = match &global.token {
            Some(token) => Some(text("--token", format!("Bearer {token}"))?),
            None => None,
        };
        let identity = Identity { tenant: text("--tenant", tenant.to_owned())?, bearer };
        Ok(Self {
            address: global.address.clone(),
            jobs: JobServiceClient::with_interceptor(channel.clone(), identity.clone())
                .max_decoding_message_size(MAX_MESSAGE_BYTES),
            checkpoints: CheckpointServiceClient::with_interceptor(channel, identity)
                .max_decoding_message_size(MAX_MESSAGE_BYTES),
        })
    }

    /// Stores a job; false when the same one had been submitted before.
    pub(crate) async fn submit(&mut self, spec: String, id: &str) -> Result<(v1::Job, bool)> {
        let request = v1::SubmitJobRequest { spec, id: id.to_owned() };
        let answer = self.jobs.submit_job(request).await.map_err(|e| self.sort(&e))?.into_inner();
        Ok((whole(answer.job)?, answer.created))
    }

    pub(crate) async fn get(&mut self, id: &str) -> Result<v1::Job> {
        let request = v1::GetJobRequest { id: id.to_owned() };
        whole(self.jobs.get_job(request).await.map_err(|e| self.sort(&e))?.into_inner().job)
    }

    pub(crate) async fn list(&mut self) -> Result<Vec<v1::Job>> {
        let request = v1::ListJobsRequest { states: Vec::new() };
        Ok(self.jobs.list_jobs(request).await.map_err(|e| self.sort(&e))?.into_inner().jobs)
    }

    pub(crate) async fn cancel(&mut self, id: &str, reason: &str) -> Result<v1::Job> {
        let request = v1::CancelJobRequest { id: id.to_owned(), reason: reason.to_owned() };
        whole(self.jobs.cancel_job(request).await.map_err(|e| self.sort(&e))?.into_inner().job)
    }

    pub(crate) async fn delete(&mut self, id: &str) -> Result<()> {
        let request = v1::DeleteJobRequest { id: id.to_owned() };
        self.jobs.delete_job(request).await.map_err(|e| self.sort(&e))?;
        Ok(())
    }

    /// The newest recorded steps of all tasks.
    pub(crate) async fn commits(&mut self, id: &str) -> Result<Vec<v1::CommitRecord>> {
        let request = v1::ListCommitsRequest { id: id.to_owned(), task: String::new() };
        Ok(self.jobs.list_commits(request).await.map_err(|e| self.sort(&e))?.into_inner().commits)
    }

    pub(crate) async fn checkpoints(&mut self, job: &str) -> Result<Vec<v1::Checkpoint>> {
        let request = v1::ListCheckpointsRequest { job: job.to_owned(), task: String::new() };
        Ok(self.checkpoints.list_checkpoints(request).await.map_err(|e| self.sort(&e))?.into_inner().checkpoints)
    }

    pub(crate) async fn checkpoint(&mut self, job: &str, task: &str, step: Option<u64>) -> Result<v1::Checkpoint> {
        let request = v1::DescribeCheckpointRequest { job: job.to_owned(), task: task.to_owned(), step };
        let answer = self.checkpoints.describe_checkpoint(request).await.map_err(|e| self.sort(&e))?.into_inner();
        answer.checkpoint.ok_or_else(|| code::INTERNAL.error("the coordinator answered without a checkpoint"))
    }

    /// Hands every update of a job after number `seen` (0: from the beginning) to `on` until the job ends or `on` says so; an outage of the coordinator is waited
    /// out, and no update is seen twice.
    pub(crate) async fn watch(
        &mut self,
        id: &str,
        mut seen: u64,
        mut on: impl FnMut(WatchJobResponse) -> Flow,
    ) -> Result<()> {
        let mut lost = Duration::ZERO;
        loop {
            let error = match self.watch_once(id, &mut seen, &mut lost, &mut on).await {
                Ok(()) => return Ok(()),
                Err(error) if error.code() == code::UNREACHABLE => error,
                Err(error) => return Err(error),
            };
            if lost >= OUTAGE_LIMIT {
                return Err(error);
            }
            if lost.is_zero() {
                let limit = OUTAGE_LIMIT.as_secs();
                out::note(format!("waiting up to {limit} s for the coordinator at {} to come back", self.address));
            }
            tokio::time::sleep(RETRY_EVERY).await;
            lost += RETRY_EVERY;
        }
    }

    async fn watch_once(
        &mut self,
        id: &str,
        seen: &mut u64,
        lost: &mut Duration,
        on: &mut impl FnMut(WatchJobResponse) -> Flow,
    ) -> Result<()> {
        let request = v1::WatchJobRequest { id: id.to_owned(), after_seq: *seen };
        let mut updates = self.jobs.watch_job(request).await.map_err(|e| self.sort(&e))?.into_inner();
        while let Some(update) = updates.message().await.map_err(|e| self.sort(&e))? {
            *lost = Duration::ZERO;
            *seen = update.seq.max(*seen);
            if on(update) == Flow::Stop {
                return Ok(());
            }
        }
        Ok(())
    }

    fn sort(&self, status: &Status) -> Error {
        let error = status::from_status(status);
        if error.code() == code::UNREACHABLE { unreachable(&self.address).caused_by(error) } else { error }
    }
}

/// Whether a watcher wants more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Flow {
    /// The next update, please.
    More,
    /// Enough.
    Stop,
}

fn endpoint(global: &Global) -> Result<Endpoint> {
    let bad = || format!("--address {}: not an http:// or https:// address", global.address);
    let mut endpoint = Endpoint::from_shared(global.address.clone())
        .or_code(code::BAD_VALUE, bad)?
        .connect_timeout(CONNECT_LIMIT)
        .http2_keep_alive_interval(Duration::from_secs(20))
        .keep_alive_while_idle(true);
    match endpoint.uri().scheme_str() {
        Some("https") => {
            let mut tls = ClientTlsConfig::new();
            if let Some(path) = &global.ca {
                let pem = std::fs::read(path)
                    .or_code(code::IO, || format!("--ca {}: cannot read the certificate", path.display()))?;
                tls = tls.ca_certificate(Certificate::from_pem(pem));
            }
            endpoint = endpoint.tls_config(tls).or_code(code::BAD_VALUE, || "--ca: not a PEM certificate".into())?;
        }
        Some("http") => {}
        _ => return Err(code::BAD_VALUE.error(bad()).hint("for example http://127.0.0.1:7700")),
    }
    Ok(endpoint)
}

fn unreachable(address: &str) -> Error {
    code::UNREACHABLE
        .error(format!("no coordinator answers at {address}"))
        .hint("start one with `pleach coordinator`, or name another with --address or PLEACH_ADDRESS")
}

fn whole(job: Option<v1::Job>) -> Result<v1::Job> {
    job.ok_or_else(|| code::INTERNAL.error("the coordinator answered without a job"))
}
