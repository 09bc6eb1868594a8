//! A job as the scheduler knows it.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use pleach_base::{Fence, Generation, JobId, Step, TaskName, Tenant, Term, WorkerId};
use serde::{Deserialize, Serialize};

use crate::commit::Head;
use crate::gang::Gang;

/// Members of older gangs that are remembered.
const HOLDERS: usize = 32;

/// A job's full name; `tenant/job` as text, which is also how it is stored.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct JobKey {
    /// Who owns it.
    pub tenant: Tenant,
    /// Its id within the tenant.
    pub job: JobId,
}

impl JobKey {
    /// The job `job` of `tenant`.
    #[must_use]
    pub fn new(tenant: impl Into<Tenant>, job: impl Into<JobId>) -> Self {
        Self { tenant: tenant.into(), job: job.into() }
    }
}

impl From<JobKey> for String {
    fn from(key: JobKey) -> Self {
        key.to_string()
    }
}

impl TryFrom<String> for JobKey {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let (tenant, job) = text.split_once('/').ok_or_else(|| format!("`{text}` is not tenant/job"))?;
        Ok(Self::new(tenant, job))
    }
}

impl fmt::Display for JobKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.tenant, self.job)
    }
}

/// What a job asks of the scheduler.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Needs {
    /// It runs with this many workers or more.
    pub min_workers: u32,
    /// It uses at most this many.
    pub max_workers: u32,
    /// Lanes of a step; workers beyond them would have nothing to do.
    pub lanes: u32,
    /// How many generations in a row may fail without recording a step before the job does.
    pub restarts: u32,
    /// Jobs of a higher priority go first, and take workers from those of a lower one. Usually 0.
    #[serde(default)]
    pub priority: i32,
}

impl Needs {
    /// Most workers that are of use.
    #[must_use]
    pub fn most(&self) -> usize {
        self.max_workers.min(self.lanes).max(1) as usize
    }

    /// Fewest workers that a gang is formed with.
    #[must_use]
    pub fn least(&self) -> usize {
        (self.min_workers.max(1) as usize).min(self.most())
    }
}

/// Where a job is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum JobState {
    /// Waits for workers.
    Queued,
    /// A gang was formed; its ranks load.
    Starting,
    /// All ranks train.
    Running,
    /// Asked to stop; finishes the step and the checkpoint.
    Stopping,
    /// All tasks are done.
    Succeeded,
    /// Cannot go on.
    Failed,
    /// Stopped by request.
    Cancelled,
}

impl JobState {
    /// Whether nothing follows.
    #[must_use]
    pub fn is_terminal(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed | Self::Cancelled)
    }

    /// Every state.
    pub const ALL: [Self; 7] =
        [Self::Queued, Self::Starting, Self::Running, Self::Stopping, Self::Succeeded, Self::Failed, Self::Cancelled];

    /// The state in lower case.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Stopping => "stopping",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }
}

/// Why a job failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// `PLnnnn`.
    pub code: String,
    /// What happened.
    pub message: String,
    /// What to do about it.
    pub hint: String,
}

/// A job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Job {
    /// Position in the queue: smaller goes first.
    pub order: u64,
    /// What it asks for.
    pub needs: Needs,
    /// Where it is in its life.
    pub state: JobState,
    /// Why it is there, in a sentence.
    pub reason: String,
    /// Generations formed so far.
    pub generation: Generation,
    /// The leader that formed the newest generation.
    pub term: Term,
    /// The current gang.
    pub gang: Option<Gang>,
    /// Generations that failed.
    pub restarts: u32,
    /// Generations that failed since a step was recorded or a checkpoint became durable.
    pub failures_in_a_row: u32,
    /// What is recorded of every task.
    #[serde(default)]
    pub heads: BTreeMap<TaskName, Head>,
    /// The newest durable step of any task.
    pub durable: Step,
    /// What ended it, when it failed.
    pub failure: Option<Failure>,
    /// No gang is formed before this time.
    #[serde(skip)]
    pub hold_until: Duration,
    /// The next gang is formed as soon as there are enough workers, from the survivors of the last.
    #[serde(skip)]
    pub hurry: bool,
    /// Members of gangs that held state, newest gang first, by rank: they may hold what nobody else has.
    #[serde(default)]
    pub holders: Vec<WorkerId>,
    /// What [`Job::holders`] was when the current gang was formed.
    #[serde(skip)]
    pub formed_from: Vec<WorkerId>,
    /// Until then the holders are kept for this job.
    #[serde(skip)]
    pub keep_until: Duration,
    /// Since when there are enough workers to start, while it is queued.
    #[serde(skip)]
    pub enough_since: Option<Duration>,
    /// A reason of the user's to stop, kept over a restart of the coordinator.
    pub cancel: Option<String>,
}

impl Job {
    pub(crate) fn new(order: u64, needs: Needs) -> Self {
        Self {
            order,
            needs,
            state: JobState::Queued,
            reason: "submitted; waits for workers".into(),
            generation: Generation(0),
            term: Term(0),
            gang: None,
            restarts: 0,
            failures_in_a_row: 0,
            heads: BTreeMap::new(),
            durable: Step(0),
            failure: None,
            hold_until: Duration::ZERO,
            hurry: false,
            holders: Vec::new(),
            formed_from: Vec::new(),
            keep_until: Duration::ZERO,
            enough_since: None,
            cancel: None,
        }
    }

    /// A job as it is before the scheduler has heard of it.
    #[must_use]
    pub fn placeholder(needs: Needs) -> Self {
        Self::new(0, needs)
    }

    /// Its gang ends: notes who may hold state. Members of a gang that was not seen to settle come last.
    pub(crate) fn remember(&mut self, gang: &Gang) {
        let members: Vec<_> = gang.members.iter().map(|member| member.worker.clone()).collect();
        let older = std::mem::take(&mut self.holders);
        let (mut first, then) = if gang.settled { (members, older) } else { (older, members) };
        first.extend(then.into_iter().filter(|id| !first.contains(id)).collect::<Vec<_>>());
        first.truncate(gang.members.len() + HOLDERS);
        self.holders = first;
    }

    /// The order in which jobs are served: by priority, then by age.
    pub(crate) fn place(&self) -> (std::cmp::Reverse<i32>, u64) {
        (std::cmp::Reverse(self.needs.priority), self.order)
    }

    /// The fence of the newest generation.
    #[must_use]
    pub fn fence(&self) -> Fence {
        Fence { term: self.term, generation: self.generation }
    }
}
