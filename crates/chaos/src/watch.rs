//! What the coordinators say, asked again and again from outside: the job's state, who leads, and the recorded steps.
//!
//! None of it counts samples; recorded steps are held against what the feed logs and the arm without faults say.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use pleach_base::SharedClock;
use pleach_proto::v1::job_service_client::JobServiceClient;
use pleach_proto::v1::{CommitRecord, GetJobRequest, Job, JobState, ListCommitsRequest, SubmitJobRequest};
use tokio::runtime::Handle;
use tokio::task::JoinHandle;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status};

use crate::cluster::TOKEN;
use crate::feed::Fence;

const EVERY: Duration = Duration::from_millis(150);
/// A coordinator that does not answer in this time is asked again later.
const PATIENCE: Duration = Duration::from_millis(600);

/// A recorded step as it was seen first.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) at: Duration,
    pub(crate) record: CommitRecord,
}

/// All that was heard.
#[derive(Debug, Default)]
pub(crate) struct Heard {
    pub(crate) job: Option<Job>,
    /// Number of the endpoint that answered last.
    pub(crate) leader: Option<usize>,
    /// Since when the leader answers without a break.
    pub(crate) answers: Vec<Duration>,
    /// Records by step, in the order in which they were seen; more than one where a later fence superseded.
    pub(crate) records: BTreeMap<u64, Vec<Seen>>,
    /// Steps in the order in which they were first seen.
    pub(crate) order: Vec<(Fence, u64)>,
}

impl Heard {
    pub(crate) fn state(&self) -> JobState {
        self.job.as_ref().map_or(JobState::Unspecified, Job::state)
    }

    fn take(&mut self, now: Duration, leader: usize, job: Job, commits: Vec<CommitRecord>) {
        self.leader = Some(leader);
        self.answers.push(now);
        self.job = Some(job);
        for record in commits {
            let seen = self.records.entry(record.step).or_default();
            let same = |seen: &Seen| seen.record.digest == record.digest && fence(&seen.record) == fence(&record);
            if !seen.iter().any(same) {
                self.order.push((fence(&record), record.step));
                seen.push(Seen { at: now, record });
            }
        }
    }
}

pub(crate) fn fence(record: &CommitRecord) -> Fence {
    (record.term, record.generation)
}

/// Asks on, in the background, until dropped.
pub(crate) struct Watch {
    heard: Arc<Mutex<Heard>>,
    asking: JoinHandle<()>,
}

impl Watch {
    /// Follows a job at the coordinators of these addresses.
    pub(crate) fn start(runtime: &Handle, clock: SharedClock, endpoints: &[String], job: &str) -> Result<Self> {
        let heard = Arc::new(Mutex::new(Heard::default()));
        let clients = clients(runtime, endpoints)?;
        let asking = runtime.spawn(ask(clients, job.to_owned(), Arc::clone(&heard), clock));
        Ok(Self { heard, asking })
    }

    pub(crate) fn heard(&self) -> MutexGuard<'_, Heard> {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.asking.abort();
    }
}

pub(crate) type Client = JobServiceClient<Channel>;

/// A client for each address; connects when it is first used.
pub(crate) fn clients(runtime: &Handle, endpoints: &[String]) -> Result<Vec<Client>> {
    let _inside = runtime.enter();
    let client = |address: &String| {
        let endpoint = Endpoint::from_shared(address.clone()).with_context(|| address.clone())?;
        Ok(JobServiceClient::new(endpoint.connect_timeout(PATIENCE).timeout(PATIENCE).connect_lazy()))
    };
    endpoints.iter().map(client).collect()
}

/// With the metadata that the coordinators of a run ask for.
pub(crate) fn request<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    if let (Ok(tenant), Ok(bearer)) = ("default".parse(), format!("Bearer {TOKEN}").parse()) {
        request.metadata_mut().insert(pleach_proto::TENANT_KEY, tenant);
        request.metadata_mut().insert("authorization", bearer);
    }
    request
}

async fn ask(mut clients: Vec<Client>, job: String, heard: Arc<Mutex<Heard>>, clock: SharedClock) {
    let mut leader = 0;
    loop {
        match once(&mut clients[leader], &job).await {
            Ok((status, commits)) => {
                let mut heard = heard.lock().unwrap_or_else(PoisonError::into_inner);
                heard.take(clock.elapsed(), leader, status, commits);
            }
            Err(_) => leader = (leader + 1) % clients.len(),
        }
        tokio::time::sleep(EVERY).await;
    }
}

async fn once(client: &mut Client, job: &str) -> Result<(Job, Vec<CommitRecord>), Status> {
    let status = client.get_job(request(GetJobRequest { id: job.to_owned() })).await?.into_inner().job;
    let asked = ListCommitsRequest { id: job.to_owned(), task: String::new() };
    let commits = client.list_commits(request(asked)).await?.into_inner().commits;
    Ok((status.ok_or_else(|| Status::internal("no job"))?, commits))
}

/// Hands a job in, to whichever coordinator takes it.
pub(crate) async fn submit(endpoints: &[String], spec: &str, id: &str, clock: &SharedClock) -> Result<()> {
    let until = clock.elapsed() + Duration::from_secs(30);
    loop {
        let mut last = String::new();
        for address in endpoints {
            let endpoint = Endpoint::from_shared(address.clone())?.connect_timeout(PATIENCE);
            let channel = endpoint.timeout(Duration::from_secs(10)).connect_lazy();
            let asked = SubmitJobRequest { spec: spec.to_owned(), id: id.to_owned() };
            match JobServiceClient::new(channel).submit_job(request(asked)).await {
                Ok(_) => return Ok(()),
                Err(status) => last = format!("{address}: {}", status.message()),
            }
        }
        if clock.elapsed() > until {
            anyhow::bail!("no coordinator takes the job: {last}");
        }
        tokio::time::sleep(EVERY).await;
    }
}

/// What is wrong with the records as they were seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub(crate) struct Verdict {
    /// Steps of which a record was seen.
    pub(crate) recorded_steps_seen: u64,
    /// Records that a later fence replaced by others.
    pub(crate) superseded: u64,
    /// A step was recorded after a later one of the same or a newer fence.
    pub(crate) out_of_order: u64,
    /// One fence recorded two results of one step.
    pub(crate) made_twice: u64,
}

pub(crate) fn judge(heard: &Heard) -> Verdict {
    let mut verdict = Verdict { recorded_steps_seen: heard.records.len() as u64, ..Verdict::default() };
    for seen in heard.records.values() {
        let fences: Vec<Fence> = seen.iter().map(|seen| fence(&seen.record)).collect();
        verdict.superseded += fences.len() as u64 - 1;
        let twice = fences.iter().enumerate().filter(|(at, fence)| fences[..*at].contains(fence)).count();
        verdict.made_twice += twice as u64;
        verdict.out_of_order += fences.windows(2).filter(|pair| pair[1] < pair[0]).count() as u64;
    }
    let mut newest: BTreeMap<Fence, u64> = BTreeMap::new();
    for (fence, step) in &heard.order {
        let before = newest.entry(*fence).or_default();
        verdict.out_of_order += u64::from(*step < *before);
        *before = (*before).max(*step);
    }
    verdict
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(step: u64, generation: u64, digest: &str) -> CommitRecord {
        CommitRecord { step, term: 1, generation, digest: digest.to_owned(), ..CommitRecord::default() }
    }

    fn heard(polls: &[&[CommitRecord]]) -> Heard {
        let mut heard = Heard::default();
        for poll in polls {
            heard.take(Duration::ZERO, 0, Job::default(), poll.to_vec());
        }
        heard
    }

    #[test]
    fn records_seen_again_are_no_news_and_a_later_fence_may_supersede() {
        let polls = [
            &[record(1, 1, "a"), record(2, 1, "b")][..],
            &[record(2, 1, "b"), record(3, 1, "c")],
            &[record(3, 2, "d")],
        ];
        let expected = Verdict { recorded_steps_seen: 3, superseded: 1, ..Verdict::default() };
        assert_eq!(judge(&heard(&polls)), expected);
    }

    #[test]
    fn a_step_after_its_successor_and_a_step_made_twice_are_seen() {
        assert_eq!(judge(&heard(&[&[record(2, 1, "b")], &[record(1, 1, "a")]])).out_of_order, 1);
        assert_eq!(judge(&heard(&[&[record(2, 1, "b")], &[record(2, 1, "x")]])).made_twice, 1);
        assert_eq!(judge(&heard(&[&[record(2, 2, "b")], &[record(2, 1, "b")]])).out_of_order, 1);
    }
}
