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
    /// after it.
    pub grace: Duration,
    /// After a worker joins, so long is waited for more before a job starts with fewer than its maximum.
    pub settle: Duration,
    /// After a generation failed, so long is waited before the next one; doubled with each failure in a row, up to
    /// [`Settings::retry_max`].
    pub retry: Duration,
    /// Longest wait between two generations.
    pub retry_max: Duration,
    /// A running job is not re-formed with more workers more often than this.
    pub grow_every: Duration,
    /// A gang that was asked to drain and did not within this time is aborted.
    pub drain_timeout: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            lease_ttl: Duration::from_secs(10),
            stall_grace: Duration::from_secs(180),
            grace: Duration::from_secs(60),
            settle: Duration::from_secs(2),
            retry: Duration::from_millis(500),
            retry_max: Duration::from_secs(30),
            grow_every: Duration::from_secs(10),
            drain_timeout: Duration::from_secs(300),
        }
    }
}

impl Settings {
    /// The wait before the generation that follows `failures` failures in a row (1 or more).
    pub(crate) fn backoff(&self, failures: u32) -> Duration {
        let factor = 1u32 << failures.saturating_sub(1).min(16);
        self.retry.saturating_mul(factor).min(self.retry_max)
    }
}
