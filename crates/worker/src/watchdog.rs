//! Looks from outside whether the training thread waits in vain: while a group is formed, and in every collective. A peer
//! that died closes its connections and is found by the collective itself; a peer that is stopped, or cut off, is only
//! silent, and this is what finds it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use pleach_base::{Result, ResultExt as _, code};
use pleach_comm::Forming;
use pleach_proto::v1::report_request::Report;
use pleach_proto::v1::{Member, Stalled};

use crate::heart::Heart;
use crate::pulse;
use crate::reporter::{Part, Reporter};
use crate::watched::Gauge;

/// How often it looks.
const LOOK: Duration = Duration::from_millis(100);
/// While a stall lasts, it asks and tells again so often.
const AGAIN: Duration = Duration::from_secs(1);
/// A rank that is waited for while the group forms is asked from then on: it may have to end something else first.
const LATE: Duration = Duration::from_millis(300);
/// So many times in a row a rank must not answer until the group forms without it.
const TIMES: u32 = 2;

/// What a watchdog watches.
pub(crate) struct Watch {
    pub(crate) part: Part,
    pub(crate) rank: u32,
    pub(crate) members: Vec<Member>,
    pub(crate) gauge: Arc<Gauge>,
    pub(crate) forming: Arc<Forming>,
    pub(crate) heart: Arc<Heart>,
    pub(crate) reporter: Reporter,
}

/// Ends the watchdog when it goes.
pub(crate) struct Leash(Arc<AtomicBool>);

impl Drop for Leash {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// Starts a watchdog.
///
/// # Errors
/// `IO` when the system gives no thread.
pub(crate) fn start(watch: Watch) -> Result<Leash> {
    let over = Arc::new(AtomicBool::new(false));
    let leash = Leash(Arc::clone(&over));
    std::thread::Builder::new()
        .name("watchdog".to_owned())
        .spawn(move || watch.keep(&over))
        .or_code(code::IO, || "cannot start the watchdog".to_owned())?;
    Ok(leash)
}

impl Watch {
    fn keep(&self, over: &AtomicBool) {
        let mut asked = Duration::ZERO;
        let mut in_vain = 0;
        while !over.load(Ordering::SeqCst) {
            std::thread::sleep(LOOK);
            let Some(waiting) = self.gauge.waiting() else {
                (asked, in_vain) = (Duration::ZERO, 0);
                continue;
            };
            // Waiting is no fault of this rank: its lease goes on, and what it waits for is found here.
            self.heart.progresses();
            let missing: Vec<u32> = self.forming.missing().into_iter().map(|rank| rank as u32).collect();
            if missing.is_empty() {
                if waiting >= self.gauge.patience() && waiting >= asked + AGAIN {
                    asked = waiting;
                    self.stalls(waiting, over);
                }
            } else if waiting >= LATE && waiting >= asked + LATE {
                asked = waiting;
                let silent = self.silent(|member| missing.contains(&member.rank));
                in_vain = if silent.is_empty() { 0 } else { in_vain + 1 };
                if in_vain >= TIMES {
                    self.forming.give_up(&silent.into_iter().map(|rank| rank as usize).collect::<Vec<_>>());
                }
            }
        }
    }

    fn stalls(&self, waiting: Duration, over: &AtomicBool) {
        let suspects = self.silent(|_| true);
        // The answers take a while; the wait may have ended meanwhile.
        let still = self.gauge.waiting().is_some_and(|now| now >= waiting);
        if still && !over.load(Ordering::SeqCst) {
            let seconds = waiting.as_secs_f64();
            tracing::warn!(job = %self.part.job, ?suspects, "no progress for {seconds:.1} s");
            self.reporter.send(&self.part, Report::Stalled(Stalled { suspects, seconds }));
        }
    }

    fn silent(&self, which: impl Fn(&Member) -> bool) -> Vec<u32> {
        let asked: Vec<Member> = self.members.iter().filter(|member| which(member)).cloned().collect();
        pulse::silent(&asked, Some(self.rank))
    }
}
