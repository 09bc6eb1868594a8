//! A worker as the scheduler knows it.

use std::time::Duration;

use pleach_base::WorkerId;
use serde::{Deserialize, Serialize};

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
    /// A peer waited for it in vain, and nothing was heard of it since.
    pub suspected: bool,
    /// The job whose gang it is in.
    pub job: Option<JobKey>,
}

impl Worker {
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
    pub fn available(&self) -> bool {
        self.job.is_none() && self.usable()
    }

    /// Whether it could be given work if it had none.
    pub(crate) fn usable(&self) -> bool {
        self.connected && !self.draining && !self.suspected
    }

    pub(crate) fn give(&mut self, job: &JobKey, now: Duration) {
        self.job = Some(job.clone());
        self.progress_at = now;
    }
}
