//! Times and limits of the scheduler.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Times and limits. All can be changed between two starts of a coordinator.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// A worker that was not heard of for so long is lost.
    pub lease_ttl: Duration,
    /// A worker that is heard of, but whose training thread made no progress for so long, is lost.
    pub stall_grace: Duration,
    /// A gang that is silent as a whole, or whose leader went away, is left alone for so long; workers stop by themselves
    /// after it. Long enough for an outage of a minute and the way back.
    pub grace: Duration,
    /// After a worker joins, so long is waited for more before a job starts with fewer than its maximum.
    pub settle: Duration,
    /// A worker that was asked to get ready and does not answer for so long is free again.
    pub prepare_timeout: Duration,
    /// After a generation failed without anybody to blame, so long is waited before the next one; doubled with each
    /// failure in a row, up to [`Settings::retry_max`].
    pub retry: Duration,
    /// Longest wait between two generations.
    pub retry_max: Duration,
    /// A running job is not re-formed with more workers more often than this.
    pub grow_every: Duration,
    /// Once a worker could join a running job, so long is waited for others that could too.
    pub gather: Duration,
    /// A gang that was asked to drain and did not within this time is aborted.
    pub drain_timeout: Duration,
    /// The same for a gang that is to go on with other members.
    pub yield_timeout: Duration,
    /// After the first word of trouble in a gang, so long is waited for the words of others.
    pub window: Duration,
    /// In trouble, a member that was not heard of for so long (or half a lease, if that is longer) counts as suspected by
    /// everybody.
    pub silence: Duration,
    /// A rank's word that it stalls is forgotten after this time unless it is repeated.
    pub doubt_ttl: Duration,
    /// A gang of which all ranks stall though all answer each other forms again after this time.
    pub deadlock: Duration,
    /// A worker that a gang had to go on without waits so long before it gets work; doubled each time.
    pub bar: Duration,
    /// Longest such wait.
    pub bar_max: Duration,
    /// After so long without trouble the waits begin anew.
    pub forgive: Duration,
    /// A worker that takes more than twice the median for so long is told of, and replaced if a spare is ready.
    pub slow_after: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            lease_ttl: Duration::from_secs(5),
            stall_grace: Duration::from_secs(180),
            grace: Duration::from_secs(75),
            settle: Duration::from_secs(2),
            prepare_timeout: Duration::from_secs(600),
            retry: Duration::from_millis(500),
            retry_max: Duration::from_secs(30),
            grow_every: Duration::from_secs(1),
            gather: Duration::from_millis(250),
            drain_timeout: Duration::from_secs(300),
            yield_timeout: Duration::from_secs(60),
            window: Duration::from_millis(250),
            silence: Duration::from_secs(1),
            doubt_ttl: Duration::from_secs(5),
            deadlock: Duration::from_secs(10),
            bar: Duration::from_millis(500),
            bar_max: Duration::from_secs(60),
            forgive: Duration::from_secs(300),
            slow_after: Duration::from_secs(15),
        }
    }
}

impl Settings {
    /// The wait before the generation that follows `failures` failures in a row (1 or more).
    pub(crate) fn backoff(&self, failures: u32) -> Duration {
        doubled(self.retry, failures).min(self.retry_max)
    }

    /// How long a worker waits after it was dropped for the `times`th time in a row.
    pub(crate) fn bar(&self, times: u32) -> Duration {
        doubled(self.bar, times).min(self.bar_max)
    }

    /// How long a member may be silent while its gang is in trouble. Workers speak every third of a lease.
    pub(crate) fn silent_after(&self) -> Duration {
        self.silence.max(self.lease_ttl / 2)
    }
}

fn doubled(first: Duration, times: u32) -> Duration {
    first.saturating_mul(1u32 << times.saturating_sub(1).min(16))
}
