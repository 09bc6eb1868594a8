//! How a running job is asked to stop: at the next step boundary (yield, drain), or at once (abort).

use std::fmt;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use pleach_base::{Result, code};
use pleach_comm::Abort;

/// 0 is running; a stronger request is a larger number.
const YIELDING: u8 = 1;
const DRAINING: u8 = 2;
const ABORTED: u8 = 3;

/// What a rank wants at the end of a step. The strongest wish of any rank is done by all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Wish {
    /// The next step.
    #[default]
    GoOn,
    /// An end with all state kept in memory and nothing written: another gang goes on at once.
    Yield,
    /// An end with a checkpoint.
    Drain,
}

/// A request to stop that any thread can make and the training thread sees. Cheap to clone.
#[derive(Clone, Default)]
pub struct StopSignal(Arc<Inner>);

#[derive(Default)]
struct Inner {
    state: AtomicU8,
    detail: Mutex<Detail>,
}

#[derive(Default)]
struct Detail {
    reason: Option<String>,
    /// Ends the collective that the training thread may be waiting in.
    abort: Option<Arc<dyn Abort>>,
}

impl fmt::Debug for StopSignal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StopSignal").field("state", &self.0.state.load(Ordering::SeqCst)).finish_non_exhaustive()
    }
}

impl StopSignal {
    /// Asks for an end at the next step boundary that keeps the state in memory and writes nothing: another gang takes
    /// over at once. The ranks agree on the step.
    pub fn yield_now(&self, reason: impl Into<String>) {
        self.raise(YIELDING, reason.into());
    }

    /// Asks for an end at the next step boundary, with a checkpoint. The ranks agree on the step: one that asks is
    /// enough, and none stops alone.
    pub fn drain(&self, reason: impl Into<String>) {
        self.raise(DRAINING, reason.into());
    }

    /// Ends at once: a pending collective fails, nothing more is written.
    pub fn abort(&self, reason: impl Into<String>) {
        self.raise(ABORTED, reason.into());
        if let Some(abort) = &self.detail().abort {
            abort.abort();
        }
    }

    /// Lets [`StopSignal::abort`] end the group's pending collective, or ends it now if that was asked before.
    pub fn attach(&self, abort: Arc<dyn Abort>) {
        self.detail().abort = Some(Arc::clone(&abort));
        if self.is_aborted() {
            abort.abort();
        }
    }

    /// What to ask the other ranks for at the end of a step.
    #[must_use]
    pub fn wish(&self) -> Wish {
        match self.0.state.load(Ordering::SeqCst) {
            0 => Wish::GoOn,
            YIELDING => Wish::Yield,
            _ => Wish::Drain,
        }
    }

    /// Whether a yield was asked for, and nothing stronger.
    #[must_use]
    pub fn is_yielding(&self) -> bool {
        self.wish() == Wish::Yield
    }

    /// Whether a drain was asked for.
    #[must_use]
    pub fn is_draining(&self) -> bool {
        self.0.state.load(Ordering::SeqCst) >= DRAINING
    }

    /// Whether an abort was asked for.
    #[must_use]
    pub fn is_aborted(&self) -> bool {
        self.0.state.load(Ordering::SeqCst) == ABORTED
    }

    /// Why, once somebody asked.
    #[must_use]
    pub fn reason(&self) -> Option<String> {
        self.detail().reason.clone()
    }

    /// # Errors
    /// `CANCELLED` with the reason once an abort was asked for.
    pub fn check(&self) -> Result<()> {
        if !self.is_aborted() {
            return Ok(());
        }
        Err(code::CANCELLED.error(format!("aborted: {}", self.reason().unwrap_or_default())))
    }

    /// The stronger request wins; the first reason of that strength is kept.
    fn raise(&self, to: u8, reason: String) {
        let mut detail = self.detail();
        if self.0.state.fetch_max(to, Ordering::SeqCst) < to {
            detail.reason = Some(reason);
        }
    }

    fn detail(&self) -> std::sync::MutexGuard<'_, Detail> {
        self.0.detail.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicBool;

    #[derive(Default)]
    struct Handle(AtomicBool);

    impl Abort for Handle {
        fn abort(&self) {
            self.0.store(true, Ordering::SeqCst);
        }
        fn is_aborted(&self) -> bool {
            self.0.load(Ordering::SeqCst)
        }
    }

    #[test]
    fn an_abort_overrules_a_drain_that_overrules_a_yield_and_reaches_the_group_whenever_it_is_attached() {
        let (signal, before, after) = (StopSignal::default(), Arc::new(Handle::default()), Arc::new(Handle::default()));
        signal.attach(Arc::<Handle>::clone(&before));
        assert_eq!(signal.wish(), Wish::GoOn);
        signal.yield_now("somebody joins");
        assert!(signal.is_yielding() && !signal.is_draining());
        signal.drain("SIGTERM");
        signal.yield_now("somebody else joins");
        assert_eq!((signal.wish(), signal.reason().as_deref()), (Wish::Drain, Some("SIGTERM")));
        assert!(signal.is_draining() && !signal.is_aborted() && signal.check().is_ok());
        assert!(!before.is_aborted());
        signal.abort("fenced");
        signal.drain("again");
        assert_eq!(signal.reason().as_deref(), Some("fenced"));
        assert_eq!(signal.check().unwrap_err().code(), code::CANCELLED);
        assert!(before.is_aborted());
        signal.attach(Arc::<Handle>::clone(&after));
        assert!(after.is_aborted());
    }
}
