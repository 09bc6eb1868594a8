//! A worker as the scheduler knows it.

use std::time::Duration;

use pleach_base::{Fence, WorkerId};
use serde::{Deserialize, Serialize};

use crate::gang::Member;
use crate::job::JobKey;
use crate::settings::Settings;

/// A worker that holds a lease. Times are on the caller's monotonic clock.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Worker {
    /// Name and incarnation.
    pub id: WorkerId,
    /// Where peers reach it.
    pub host: String,
    /// Port of the key-value store that it hosts when it has rank 0.
    pub rendezvous_port: u16,
    /// Where it answers its peers; 0 when nowhere.
    pub pulse_port: u16,
    /// When this incarnation registered.
    pub joined_at: Duration,
    /// When it was last heard of.
    pub heard_at: Duration,
    /// Operations of its training thread, as last told.
    pub progress: u64,
    /// When `progress` last moved, or the worker got or lost an assignment.
    pub progress_at: Duration,
    /// Whether its session stands.
    pub connected: bool,
    /// Whether it wants no more work.
    pub draining: bool,
    /// Peers waited for it in vain, and nothing was heard of it since.
    pub suspected: bool,
    /// The job whose gang it is in.
    pub job: Option<JobKey>,
    /// The job that it has got ready for, or is getting ready for.
    pub warm: Option<Warm>,
    /// Whether this leader has heard of it itself; otherwise it is a member of a stored gang.
    pub confirmed: bool,
    /// How it behaves.
    pub record: Record,
    /// How fast it computes.
    pub pace: Pace,
}

/// What a worker has ready, or is getting ready.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Warm {
    /// For which job.
    pub job: JobKey,
    /// The job's fence when the worker was asked.
    pub fence: Fence,
    /// When it was asked.
    pub since: Duration,
    /// When it answered that it is ready.
    pub ready_at: Option<Duration>,
}

/// How often gangs had to go on without a worker that still lives.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Times in a row.
    pub dropped: u32,
    /// The last time.
    pub dropped_at: Duration,
    /// It gets no work before this.
    pub barred_until: Duration,
}

/// How fast a worker computes, next to its gang.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pace {
    /// Microseconds that it computed in its last step; 0 when unknown.
    pub compute_us: u64,
    /// Percent of the gang's median; 0 when unknown.
    pub percent: u32,
    /// Since when it takes more than twice the median.
    pub slow_since: Option<Duration>,
    /// It was told of, and replaced if there was a spare: that is done once.
    pub told: bool,
}

impl Worker {
    /// A member of a gang of the leader before, of which nothing was heard yet.
    pub(crate) fn stored(member: &Member, job: &JobKey) -> Self {
        let warm =
            Warm { job: job.clone(), fence: Fence::default(), since: Duration::ZERO, ready_at: Some(Duration::ZERO) };
        Self {
            id: member.worker.clone(),
            host: member.host.clone(),
            rendezvous_port: member.rendezvous_port,
            pulse_port: member.pulse_port,
            joined_at: Duration::ZERO,
            heard_at: Duration::ZERO,
            progress: 0,
            progress_at: Duration::ZERO,
            connected: false,
            draining: false,
            suspected: false,
            job: Some(job.clone()),
            warm: Some(warm),
            confirmed: false,
            record: Record::default(),
            pace: Pace::default(),
        }
    }

    /// When the lease ends unless something is heard before.
    #[must_use]
    pub fn lease_deadline(&self, settings: &Settings) -> Duration {
        let silent = self.heard_at + settings.lease_ttl;
        match self.job {
            Some(_) => silent.min(self.progress_at + settings.stall_grace),
            None => silent,
        }
    }

    /// Whether it can be given work now.
    #[must_use]
    pub fn available(&self, now: Duration) -> bool {
        self.job.is_none() && self.usable(now)
    }

    /// Whether it could be given work if it had none.
    pub(crate) fn usable(&self, now: Duration) -> bool {
        self.counts() && !self.suspected && now >= self.record.barred_until
    }

    /// Whether it is there at all, perhaps after a wait.
    pub(crate) fn counts(&self) -> bool {
        self.connected && !self.draining
    }

    /// Whether it is ready to take part in a job.
    #[must_use]
    pub fn is_ready_for(&self, job: &JobKey) -> bool {
        self.warm.as_ref().is_some_and(|warm| &warm.job == job && warm.ready_at.is_some())
    }

    /// Whether it is ready for a job, or getting ready.
    #[must_use]
    pub fn is_warm_for(&self, job: &JobKey) -> bool {
        self.warm.as_ref().is_some_and(|warm| &warm.job == job)
    }

    pub(crate) fn give(&mut self, job: &JobKey, now: Duration) {
        self.job = Some(job.clone());
        self.progress_at = now;
        self.pace = Pace { told: self.pace.told, ..Pace::default() };
    }

    /// A gang goes on without it. It must get ready again, and waits longer each time.
    pub(crate) fn drop_from_gang(&mut self, now: Duration, settings: &Settings) {
        self.suspected = true;
        self.warm = None;
        self.bar(now, settings);
    }

    /// It gets no work for a while; longer each time, until it has been quiet for long.
    pub(crate) fn bar(&mut self, now: Duration, settings: &Settings) {
        if now >= self.record.dropped_at + settings.forgive {
            self.record.dropped = 0;
        }
        self.record.dropped += 1;
        self.record.dropped_at = now;
        self.record.barred_until = now + settings.bar(self.record.dropped);
    }
}
