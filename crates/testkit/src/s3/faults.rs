//! Trouble that comes and goes while the server runs.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use pleach_base::rng::Key;

/// What a server suffers from now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Trouble {
    /// Nothing.
    #[default]
    None,
    /// So many percent of the requests fail with this status; every second PUT of those has been carried out all the same.
    Errors {
        /// Of 100 requests.
        percent: u64,
        /// 500 or 503.
        status: u16,
    },
    /// Each request waits so long.
    Slow(Duration),
    /// A connection breaks once it has taken so many bytes: in the middle of an upload.
    Cut {
        /// Bytes.
        after: u64,
    },
}

/// What happens to one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    Fine,
    Late(Duration),
    Fails { status: u16, applied: bool },
}

/// The switch. Which requests are hit follows from their number, so that a run can be had again.
#[derive(Debug, Default)]
pub struct Faults {
    trouble: Mutex<Trouble>,
    requests: AtomicU64,
    hit: AtomicU64,
}

impl Faults {
    /// From now on this is the trouble.
    pub fn set(&self, trouble: Trouble) {
        *self.trouble.lock().unwrap_or_else(PoisonError::into_inner) = trouble;
    }

    /// Requests that were hit so far.
    #[must_use]
    pub fn hit(&self) -> u64 {
        self.hit.load(Ordering::Relaxed)
    }

    /// Whether a connection that has taken so many bytes breaks.
    pub(super) fn breaks(&self, taken: u64) -> bool {
        let trouble = *self.trouble.lock().unwrap_or_else(PoisonError::into_inner);
        let breaks = matches!(trouble, Trouble::Cut { after } if taken > after);
        self.hit.fetch_add(u64::from(breaks), Ordering::Relaxed);
        breaks
    }

    pub(super) fn fate(&self, is_put: bool) -> Fate {
        let trouble = *self.trouble.lock().unwrap_or_else(PoisonError::into_inner);
        let mut rng = Key::seed(self.requests.fetch_add(1, Ordering::Relaxed)).rng();
        let mut falls = |percent: u64| rng.below(100) < percent;
        let fate = match trouble {
            Trouble::Slow(by) => Fate::Late(by),
            Trouble::Errors { percent, status } if falls(percent) => {
                Fate::Fails { status, applied: is_put && falls(50) }
            }
            _ => Fate::Fine,
        };
        if fate != Fate::Fine {
            self.hit.fetch_add(1, Ordering::Relaxed);
        }
        fate
    }
}
