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

/// A new leader is chosen within this time, unless something is wrong with more than a coordinator.
const ELECTION_LIMIT: Duration = Duration::from_secs(15);
const ASK_AGAIN: Duration = Duration::from_millis(200);

/// A connection to the coordinator that leads. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Client {
    global: Global,
    /// Where the connection goes.
    address: String,
    identity: Identity,
    jobs: JobServiceClient<InterceptedService<Channel, Identity>>,
    checkpoints: CheckpointServiceClient<InterceptedService<Channel, Identity>>,
}

/// Makes a call, with whichever coordinator leads. All calls may be made twice: they are idempotent.
macro_rules! call {
    ($client:ident.$service:ident.$method:ident($request:expr)) => {{
        let (request, mut waited) = ($request, Duration::ZERO);
        loop {
            match $client.$service.$method(request.clone()).await {
                Ok(answer) => break answer.into_inner(),
                Err(status) => $client.turn(&status, &mut waited).await?,
            }
        }
    }};
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
    /// Connects on behalf of `tenant`: to the first of the addresses where something answers. If another coordinator
    /// leads, the first call finds out.
    ///
    /// # Errors
    /// `UNREACHABLE` when nothing answers at any address, `BAD_VALUE` for an address that cannot be one.
    pub(crate) async fn connect(global: &Global, tenant: &str) -> Result<Self> {
        let text = |what: &str, value: String| {
            value.parse().map_err(|_| code::BAD_VALUE.error(format!("{what}: it has characters that cannot be sent")))
        };
        let bearer = match &global.token {
            Some(token) => Some(text("--token", format!("Bearer {token}"))?),
            None => None,
        };
        let identity = Identity { tenant: text("--tenant", tenant.to_owned())?, bearer };
        let mut last = None;
        for address in addresses(global) {
            match open(global, address).await {
                Ok(channel) => return Ok(Self::over(channel, global.clone(), address.to_owned(), identity)),
                Err(error) if error.code() == code::UNREACHABLE => last = Some(error),
                Err(error) => return Err(error),
            }
        }
        Err(last.unwrap_or_else(|| code::BAD_VALUE.error("--address: it is empty")))
    }

    fn over(channel: Channel, global: Global, address: String, identity: Identity) -> Self {
        Self {
            jobs: JobServiceClient::with_interceptor(channel.clone(), identity.clone())
                .max_decoding_message_size(MAX_MESSAGE_BYTES),
            checkpoints: CheckpointServiceClient::with_interceptor(channel, identity.clone())
                .max_decoding_message_size(MAX_MESSAGE_BYTES),
            global,
            address,
            identity,
        }
    }

    /// Turns to another coordinator after a refusal: to the one that leads if the refusal names it, else to the next one.
    ///
    /// # Errors
    /// The refusal, when no other coordinator can help or `waited` is too long.
    async fn turn(&mut self, status: &Status, waited: &mut Duration) -> Result<()> {
        let error = self.sort(status);
        let several = addresses(&self.global).count() > 1;
        let elsewhere = error.code() == code::NOT_LEADER || (several && error.code() == code::UNREACHABLE);
        if !elsewhere || *waited >= ELECTION_LIMIT {
            return Err(error);
        }
        *waited += ASK_AGAIN;
        let named = status::leader(status).filter(|leader| *leader != self.address).map(str::to_owned);
        if let Some(leader) = named
            && let Ok(channel) = open(&self.global, &leader).await
        {
            *self = Self::over(channel, self.global.clone(), leader, self.identity.clone());
            return Ok(());
        }
        // Nobody leads yet, or the one that did is gone and nobody has noticed.
        tokio::time::sleep(ASK_AGAIN).await;
        let known: Vec<_> = addresses(&self.global).map(str::to_owned).collect();
        let after = known.iter().position(|known| *known == self.address).map_or(0, |at| at + 1);
        for address in known.iter().cycle().skip(after).take(known.len()).cloned() {
            if let Ok(channel) = open(&self.global, &address).await {
                *self = Self::over(channel, self.global.clone(), address, self.identity.clone());
                break;
            }
        }
        Ok(())
    }

    /// Stores a job; false when the same one had been submitted before.
    pub(crate) async fn submit(&mut self, spec: String, id: &str) -> Result<(v1::Job, bool)> {
        let request = v1::SubmitJobRequest { spec, id: id.to_owned() };
        let answer = call!(self.jobs.submit_job(request));
        Ok((whole(answer.job)?, answer.created))
    }

    pub(crate) async fn get(&mut self, id: &str) -> Result<v1::Job> {
        let request = v1::GetJobRequest { id: id.to_owned() };
        whole(call!(self.jobs.get_job(request)).job)
    }

    pub(crate) async fn list(&mut self) -> Result<Vec<v1::Job>> {
        let request = v1::ListJobsRequest { states: Vec::new() };
        Ok(call!(self.jobs.list_jobs(request)).jobs)
    }

    pub(crate) async fn cancel(&mut self, id: &str, reason: &str) -> Result<v1::Job> {
        let request = v1::CancelJobRequest { id: id.to_owned(), reason: reason.to_owned() };
        whole(call!(self.jobs.cancel_job(request)).job)
    }

    pub(crate) async fn delete(&mut self, id: &str) -> Result<()> {
        let request = v1::DeleteJobRequest { id: id.to_owned() };
        call!(self.jobs.delete_job(request));
        Ok(())
    }

    /// The newest recorded steps of all tasks.
    pub(crate) async fn commits(&mut self, id: &str) -> Result<Vec<v1::CommitRecord>> {
        let request = v1::ListCommitsRequest { id: id.to_owned(), task: String::new() };
        Ok(call!(self.jobs.list_commits(request)).commits)
    }

    /// Where the time of the newest steps went.
    pub(crate) async fn profile(&mut self, id: &str) -> Result<v1::GetProfileResponse> {
        let request = v1::GetProfileRequest { id: id.to_owned() };
        Ok(call!(self.jobs.get_profile(request)))
    }

    pub(crate) async fn checkpoints(&mut self, job: &str) -> Result<Vec<v1::Checkpoint>> {
        let request = v1::ListCheckpointsRequest { job: job.to_owned(), task: String::new() };
        Ok(call!(self.checkpoints.list_checkpoints(request)).checkpoints)
    }

    pub(crate) async fn checkpoint(&mut self, job: &str, task: &str, step: Option<u64>) -> Result<v1::Checkpoint> {
        let request = v1::DescribeCheckpointRequest { job: job.to_owned(), task: task.to_owned(), step };
        let answer = call!(self.checkpoints.describe_checkpoint(request));
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
                Err(error) if [code::UNREACHABLE, code::NOT_LEADER].contains(&error.code()) => error,
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
        let mut updates = call!(self.jobs.watch_job(request));
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

fn addresses(global: &Global) -> impl Iterator<Item = &str> {
    global.address.split(',').map(str::trim).filter(|address| !address.is_empty())
}

async fn open(global: &Global, address: &str) -> Result<Channel> {
    endpoint(global, address)?.connect().await.map_err(|error| unreachable(&global.address).caused_by(error))
}

fn endpoint(global: &Global, address: &str) -> Result<Endpoint> {
    let bad = || format!("--address {address}: not an http:// or https:// address");
    let mut endpoint = Endpoint::from_shared(address.to_owned())
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
