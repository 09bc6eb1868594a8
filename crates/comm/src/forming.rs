//! A group that is being formed: what has come of it so far, and how it is given up from another thread.
//!
//! c10d's own setup cannot be interrupted, and waits as long as it was told to. So it runs on a thread of its own, and the
//! caller waits for that thread only as long as it wants to: until the group stands, somebody gives up, or the time
//! for the present phase is over. A thread that was left behind ends by itself and throws away what it made.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::Duration;

use pleach_base::{Error, Result, ResultExt as _, SharedClock, SystemClock, code};

use crate::{Abort, Collective, GroupOptions};

/// How often a waiting caller looks whether it should still wait.
const LOOK: Duration = Duration::from_millis(5);
/// A phase keeps its own time; so much later it is taken to be stuck in a call that does not.
const OVERDUE: Duration = Duration::from_millis(250);

/// A view of a group while it is formed, and the handle that ends the attempt. Made by whoever forms the group and put
/// into [`GroupOptions::forming`]; serves for one attempt.
#[derive(Debug)]
pub struct Forming {
    aborted: AtomicBool,
    clock: SharedClock,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// What is being waited for, and until when.
    phase: &'static str,
    deadline: Duration,
    /// Ranks that had not come at the last look.
    missing: Vec<usize>,
    /// Somebody knows that these will not come.
    gone: Vec<usize>,
}

impl Default for Forming {
    fn default() -> Self {
        Self { aborted: AtomicBool::new(false), clock: SystemClock::shared(), state: Mutex::default() }
    }
}

impl Forming {
    /// Ranks that have not come yet; after a failure, those that did not come in time. Empty while none is waited for,
    /// and when it cannot be told.
    #[must_use]
    pub fn missing(&self) -> Vec<usize> {
        let state = self.state();
        if state.gone.is_empty() { state.missing.clone() } else { state.gone.clone() }
    }

    /// Ends the attempt because these ranks are known to be gone. The error is then `COMM_SETUP` and names them.
    pub fn give_up(&self, ranks: &[usize]) {
        self.state().gone = ranks.to_vec();
    }

    /// # Errors
    /// `COMM_ABORTED` after an abort, `COMM_SETUP` when ranks are known to be gone.
    pub(crate) fn check(&self, options: &GroupOptions) -> Result<()> {
        if self.is_aborted() {
            return Err(code::COMM_ABORTED.error(format!("{}: forming the group was aborted", options.prefix)));
        }
        let gone = self.state().gone.clone();
        if gone.is_empty() {
            return Ok(());
        }
        Err(refused(options, format!("rank {} does not answer", listed(&gone))))
    }

    /// Says what is waited for from now on, and how long.
    pub(crate) fn enter(&self, phase: &'static str, limit: Duration) {
        let mut state = self.state();
        state.phase = phase;
        state.deadline = self.clock.elapsed() + limit;
    }

    /// Time that is left for the present phase.
    pub(crate) fn left(&self) -> Duration {
        self.state().deadline.saturating_sub(self.clock.elapsed())
    }

    pub(crate) fn note_missing(&self, ranks: Vec<usize>) {
        self.state().missing = ranks;
    }

    /// The phase took too long.
    pub(crate) fn late(&self, options: &GroupOptions) -> Error {
        let state = self.state();
        let what = match state.missing[..] {
            [] => format!("{} takes too long", state.phase),
            ref missing => format!("rank {} did not come in time", listed(missing)),
        };
        drop(state);
        refused(options, what)
    }

    fn is_overdue(&self) -> bool {
        let state = self.state();
        !state.phase.is_empty() && self.clock.elapsed() > state.deadline + OVERDUE
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Abort for Forming {
    fn abort(&self) {
        self.aborted.store(true, Ordering::SeqCst);
    }

    fn is_aborted(&self) -> bool {
        self.aborted.load(Ordering::SeqCst)
    }
}

/// Runs `build` on a thread of its own and waits for it while that is wanted.
pub(crate) fn run(
    options: &GroupOptions,
    build: impl FnOnce(&GroupOptions) -> Result<Box<dyn Collective>> + Send + 'static,
) -> Result<Box<dyn Collective>> {
    let forming = Arc::clone(&options.forming);
    forming.check(options)?;
    let (send, built) = mpsc::channel();
    let theirs = options.clone();
    std::thread::Builder::new()
        .name("forming".to_owned())
        // When nobody waits any more, what was made is dropped here: its peers see that at once.
        .spawn(move || drop(send.send(build(&theirs))))
        .or_code(code::IO, || "cannot start a thread to form the group".to_owned())?;
    loop {
        match built.recv_timeout(LOOK) {
            Ok(group) => return forming.check(options).and(group),
            Err(mpsc::RecvTimeoutError::Timeout) => {}
            Err(mpsc::RecvTimeoutError::Disconnected) => {
                return Err(code::INTERNAL.error("the thread that forms the group panicked"));
            }
        }
        forming.check(options)?;
        if forming.is_overdue() {
            return Err(forming.late(options));
        }
    }
}

/// `COMM_SETUP` of this attempt.
pub(crate) fn refused(options: &GroupOptions, why: impl std::fmt::Display) -> Error {
    let GroupOptions { rank, world, prefix, .. } = options;
    code::COMM_SETUP
        .error(format!("rank {rank} of {world} cannot join group {prefix}: {why}"))
        .hint("every rank must join with the same prefix and world within the setup timeout")
}

fn listed(ranks: &[usize]) -> String {
    ranks.iter().map(usize::to_string).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::StoreAddr;

    fn options() -> GroupOptions {
        GroupOptions::new(0, 2, "job/g0001", StoreAddr::new("127.0.0.1", 1))
    }

    #[test]
    fn a_call_that_never_returns_is_left_behind() {
        let options = options();
        let stuck = |options: &GroupOptions| {
            options.forming.enter("connecting", Duration::from_millis(20));
            std::thread::sleep(Duration::from_secs(30));
            Ok(crate::local(tch::Device::Cpu))
        };
        let Err(error) = run(&options, stuck) else { panic!("was formed") };
        assert_eq!(error.code(), code::COMM_SETUP);
        assert!(error.message().contains("connecting takes too long"), "{error:?}");
        assert!(options.forming.clock.elapsed() < Duration::from_secs(20));
    }

    #[test]
    fn an_attempt_ends_from_another_thread_and_says_why() {
        for (aborts, expected) in [(true, code::COMM_ABORTED), (false, code::COMM_SETUP)] {
            let options = options();
            let forming = Arc::clone(&options.forming);
            let ender = std::thread::spawn(move || {
                std::thread::sleep(Duration::from_millis(30));
                if aborts { forming.abort() } else { forming.give_up(&[1]) }
            });
            let waits = |options: &GroupOptions| {
                options.forming.enter("connecting", Duration::from_secs(60));
                std::thread::sleep(Duration::from_secs(30));
                Ok(crate::local(tch::Device::Cpu))
            };
            let Err(error) = run(&options, waits) else { panic!("was formed") };
            ender.join().unwrap();
            assert_eq!(error.code(), expected, "{error:?}");
            assert!(options.forming.clock.elapsed() < Duration::from_secs(20), "it waited for the call to return");
            assert_eq!(options.forming.missing(), if aborts { vec![] } else { vec![1] });
        }
    }
}
