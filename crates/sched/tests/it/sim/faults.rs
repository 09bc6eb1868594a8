//! What goes wrong, and what users ask.

use std::time::Duration;

use pleach_base::Term;
use pleach_base::rng::Key;
use pleach_sched::{Event, JobKey, Needs, State};

use super::Sim;
use super::worker::SimWorker;

#[derive(Clone, Debug)]
pub(crate) enum Fault {
    Submit,
    Cancel,
    Kill(u64),
    Pause(u64, Duration),
    /// A worker and the coordinator do not reach each other.
    Cut(u64, Duration),
    /// Two workers do not reach each other.
    Part(u64, u64, Duration),
    BreakSession(u64),
    Leave(u64),
    SlowPrepare(u64),
    RestartCoordinator,
}

/// The faults of a seed.
pub(crate) fn draw(seed: u64) -> Vec<(Duration, Fault)> {
    let mut rng = Key::seed(seed).named("sched-faults").rng();
    let (mut at, mut faults) = (Duration::ZERO, Vec::new());
    for _ in 0..rng.below(16) {
        at += Duration::from_millis(200 + rng.below(2_000));
        let victim = rng.below(100);
        let span = Duration::from_millis(200 + rng.below(12_000));
        faults.push((
            at,
            match rng.below(20) {
                0 | 1 => Fault::Submit,
                2 => Fault::Cancel,
                3..=7 => Fault::Kill(victim),
                8..=10 => Fault::Pause(victim, span),
                11 | 12 => Fault::Cut(victim, span),
                13 | 14 => Fault::Part(victim, rng.below(100), span),
                15 => Fault::BreakSession(victim),
                16 => Fault::Leave(victim),
                17 => Fault::SlowPrepare(victim),
                _ => Fault::RestartCoordinator,
            },
        ));
    }
    faults
}

impl Sim {
    pub(super) fn fault(&mut self, fault: &Fault) {
        let count = self.workers.len() as u64;
        let index = |victim: &u64| (*victim % count) as usize;
        match fault {
            Fault::Submit => self.submit(1),
            Fault::Cancel => self.cancel(),
            Fault::Kill(victim) => self.kill(index(victim)),
            Fault::Pause(victim, span) => self.workers[index(victim)].paused_until = self.now + *span,
            Fault::Cut(victim, span) => {
                self.workers[index(victim)].cut_until = self.now + *span;
                self.break_session(index(victim));
            }
            Fault::Part(one, other, span) => {
                let (one, other) = (index(one), index(other));
                if one != other {
                    self.apart.insert((one.min(other), one.max(other)), self.now + *span);
                }
            }
            Fault::BreakSession(victim) => self.break_session(index(victim)),
            Fault::Leave(victim) => self.workers[index(victim)].draining = true,
            Fault::SlowPrepare(victim) => self.workers[index(victim)].slow = Duration::from_secs(8),
            Fault::RestartCoordinator => self.restart(),
        }
    }

    pub(super) fn submit(&mut self, priority: i32) {
        self.submitted += 1;
        let max_workers = 1 + self.rng.below(self.workers.len() as u64) as u32;
        let min_workers = 1 + self.rng.below(u64::from(max_workers)) as u32;
        let restarts = if self.chance(20) { 0 } else { 10_000 };
        let lanes = max_workers + self.rng.below(3) as u32;
        let needs = Needs { min_workers, max_workers, lanes, restarts, priority: priority * self.rng.below(2) as i32 };
        self.apply(Event::Submitted { job: JobKey::new("default", format!("j{}", self.submitted)), needs });
    }

    fn cancel(&mut self) {
        let job = JobKey::new("default", format!("j{}", 1 + self.rng.below(self.submitted)));
        self.cancelled.insert(job.clone());
        self.apply(Event::CancelAsked { job, reason: "a user asked".into() });
    }

    pub(super) fn kill(&mut self, index: usize) {
        let back = self.now + self.delay(6000);
        self.break_session(index);
        let worker = &mut self.workers[index];
        worker.alive = false;
        worker.work = None;
        worker.held.clear();
        worker.respawn_at = Some(back);
    }

    pub(super) fn respawn(&mut self, index: usize) {
        self.incarnations += 1;
        let skew = self.rng.below(50);
        let before = std::mem::replace(&mut self.workers[index], SimWorker::new(index as u64, self.incarnations, skew));
        self.workers[index].cut_until = before.cut_until;
        self.workers[index].contact = self.now;
    }

    /// The coordinator dies; the next one knows only what was stored: the jobs.
    fn restart(&mut self) {
        let stored = serde_json::to_string(&self.state.jobs).expect("jobs can be written");
        let jobs: std::collections::BTreeMap<JobKey, pleach_sched::Job> =
            serde_json::from_str(&stored).expect("and read");
        self.state = State::recover(Term(self.state.term.0 + 1), self.state.settings.clone(), jobs);
        self.sessions.clear();
        for worker in &mut self.workers {
            worker.session = None;
        }
        let cancelled: Vec<_> = self.state.jobs.keys().cloned().collect();
        for key in cancelled {
            self.ended(&key);
        }
    }

    /// No more faults; everybody comes back.
    pub(super) fn peace(&mut self) {
        self.say(|| "peace".into());
        self.apart.clear();
        for worker in &mut self.workers {
            worker.paused_until = self.now;
            worker.cut_until = self.now;
            worker.slow = Duration::ZERO;
            worker.respawn_at = worker.respawn_at.map(|_| self.now);
        }
    }
}
