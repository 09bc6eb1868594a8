//! The whole state, and how it begins.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use pleach_base::{Fence, Term, WorkerId};
use serde::{Deserialize, Serialize};

use crate::effect::{Assignment, Effect, StopMode};
use crate::gang::{Gang, MemberState};
use crate::job::{Job, JobKey, JobState};
use crate::settings::Settings;
use crate::worker::Worker;

/// Version of the stored form of [`State`] and [`Job`].
pub const FORMAT_VERSION: u32 = 1;

/// Superseded incarnations that are remembered per worker name.
const REMEMBERED: usize = 16;

/// Everything the scheduler knows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// [`FORMAT_VERSION`] when it was made.
    pub format_version: u32,
    /// The leader that owns it.
    pub term: Term,
    /// Times and limits.
    pub settings: Settings,
    /// Workers that hold a lease, by name.
    pub workers: BTreeMap<String, Worker>,
    /// Jobs that were not deleted.
    pub jobs: BTreeMap<JobKey, Job>,
    /// Incarnations that another one of the same name has replaced.
    pub superseded: BTreeMap<String, Vec<u64>>,
    /// `order` of the next job.
    pub next_order: u64,
    /// When this leader took in its first event.
    #[serde(skip)]
    pub started_at: Option<Duration>,
}

impl State {
    /// Nothing yet.
    #[must_use]
    pub fn new(term: Term, settings: Settings) -> Self {
        Self {
            format_version: FORMAT_VERSION,
            term,
            settings,
            workers: BTreeMap::new(),
            jobs: BTreeMap::new(),
            superseded: BTreeMap::new(),
            next_order: 1,
            started_at: None,
        }
    }

    /// The state of a new leader that knows only the stored jobs. Gangs of the leader before may train on: they are kept
    /// as they are, and their members come back one by one.
    #[must_use]
    pub fn recover(term: Term, settings: Settings, jobs: impl IntoIterator<Item = (JobKey, Job)>) -> Self {
        let mut state = Self::new(term, settings);
        for (key, mut job) in jobs {
            // A gang that had begun to end can only end: its ranks are stopped when they come back.
            let ended = |gang: &Gang| gang.members.iter().any(|member| member.state == MemberState::Gone);
            let cancelled = job.cancel.is_some();
            if let Some(gang) = job.gang.take_if(|gang| gang.is_gone() || ended(gang) && !cancelled) {
                job.remember(&gang);
                job.hurry = true;
            }
            let members = job.gang.iter().flat_map(|gang| &gang.members);
            for member in members.filter(|member| member.state != MemberState::Gone) {
                state.workers.insert(member.worker.name.clone(), Worker::stored(member, &key));
            }
            if job.gang.is_some() {
                if job.state == JobState::Running {
                    job.reason =
                        format!("generation {} goes on under a new leader; its members come back", job.generation);
                }
            } else if !job.state.is_terminal() {
                (job.state, job.reason) = match &job.cancel {
                    Some(reason) => (JobState::Cancelled, format!("{reason}; the coordinator restarted meanwhile")),
                    None if job.state == JobState::Queued => (JobState::Queued, job.reason),
                    None => (JobState::Queued, "the coordinator restarted; waits for workers to come back".into()),
                };
            }
            state.next_order = state.next_order.max(job.order + 1);
            state.jobs.insert(key, job);
        }
        state
    }

    /// The worker with this name and incarnation, if it holds a lease.
    #[must_use]
    pub fn worker(&self, id: &WorkerId) -> Option<&Worker> {
        self.workers.get(&id.name).filter(|worker| &worker.id == id)
    }

    pub(crate) fn worker_mut(&mut self, id: &WorkerId) -> Option<&mut Worker> {
        self.workers.get_mut(&id.name).filter(|worker| &worker.id == id)
    }

    /// The part that a worker has in the current gang of its job.
    #[must_use]
    pub fn assignment(&self, id: &WorkerId) -> Option<Assignment> {
        let key = self.worker(id)?.job.as_ref()?;
        let job = self.jobs.get(key)?;
        let gang = job.gang.as_ref()?;
        let first = gang.members.first()?;
        Some(Assignment {
            job: key.clone(),
            fence: job.fence(),
            rank: gang.rank_of(id)?,
            rendezvous_host: first.host.clone(),
            rendezvous_port: first.rendezvous_port,
            members: gang.members.clone(),
            heads: job.heads.clone(),
        })
    }

    /// Job and fence of that part.
    pub(crate) fn place_of(&self, id: &WorkerId) -> Option<(JobKey, Fence)> {
        let key = self.worker(id)?.job.as_ref()?;
        let job = self.jobs.get(key)?;
        job.gang.as_ref()?.rank_of(id)?;
        Some((key.clone(), job.fence()))
    }

    pub(crate) fn supersede(&mut self, id: &WorkerId) {
        let known = self.superseded.entry(id.name.clone()).or_default();
        known.push(id.incarnation);
        if known.len() > REMEMBERED {
            known.remove(0);
        }
    }

    /// Whether a later process of the same name is known: what an earlier one says came late.
    pub(crate) fn is_superseded(&self, id: &WorkerId) -> bool {
        self.superseded.get(&id.name).is_some_and(|known| known.contains(&id.incarnation))
            || self.workers.get(&id.name).is_some_and(|now| now.id.incarnation > id.incarnation)
    }
}

/// What one event leads to, while it is worked out.
pub(crate) struct Turn {
    pub(crate) now: Duration,
    changed: BTreeSet<JobKey>,
    effects: Vec<Effect>,
}

impl Turn {
    pub(crate) fn new(now: Duration) -> Self {
        Self { now, changed: BTreeSet::new(), effects: Vec::new() }
    }

    pub(crate) fn changed(&mut self, job: &JobKey) {
        self.changed.insert(job.clone());
    }

    pub(crate) fn push(&mut self, effect: Effect) {
        self.effects.push(effect);
    }

    pub(crate) fn note(
        &mut self,
        job: Option<&JobKey>,
        kind: &'static str,
        worker: Option<&WorkerId>,
        message: String,
    ) {
        self.push(Effect::Note { job: job.cloned(), kind, message, worker: worker.cloned() });
    }

    pub(crate) fn stop(
        &mut self,
        worker: &WorkerId,
        part: Option<(&JobKey, Fence)>,
        mode: StopMode,
        reason: impl Into<String>,
    ) {
        let part = part.map(|(job, fence)| (job.clone(), fence));
        self.push(Effect::Stop { worker: worker.clone(), part, mode, reason: reason.into() });
    }

    /// The effects in the order in which they are to be carried out: changes first.
    pub(crate) fn finish(self) -> Vec<Effect> {
        let mut all: Vec<_> = self.changed.into_iter().map(|job| Effect::Changed { job }).collect();
        all.extend(self.effects);
        all
    }
}
