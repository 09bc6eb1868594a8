//! What goes wrong.

use std::time::Duration;

use pleach_base::Term;
use pleach_sched::{Event, JobKey, Needs, State};

use super::worker::SimWorker;
use super::{Message, Sim};

impl Sim {
    /// Perhaps one fault, perhaps one request of a user.
    pub(super) fn fault(&mut self) {
        if !self.chance(20) {
            return;
        }
        let victim = self.rng.below(self.workers.len() as u64) as usize;
        let span = Duration::from_millis(200 + self.rng.below(12_000));
        match self.rng.below(10) {
            0 | 1 => self.submit(),
            2 if self.chance(30) => self.cancel(),
            3 => self.kill(victim),
            4 => self.workers[victim].paused_until = self.now + span,
            5 => {
                self.workers[victim].cut_until = self.now + span;
                self.break_session(victim);
            }
            6 => self.break_session(victim),
            7 => self.workers[victim].draining = true,
            8 if self.chance(40) => self.restart(),
            _ => {}
        }
    }

    fn submit(&mut self) {
        self.submitted += 1;
        let max_workers = 1 + self.rng.below(self.workers.len() as u64) as u32;
        let min_workers = 1 + self.rng.below(u64::from(max_workers)) as u32;
        let restarts = if self.chance(25) { 0 } else { 10_000 };
        let lanes = max_workers + self.rng.below(3) as u32;
        let needs = Needs { min_workers, max_workers, lanes, restarts, priority: self.rng.below(3) as i32 };
        self.apply(Event::Submitted { job: JobKey::new("default", format!("j{}", self.submitted)), needs });
    }

    fn cancel(&mut self) {
        if self.submitted > 0 {
            let job = JobKey::new("default", format!("j{}", 1 + self.rng.below(self.submitted)));
            self.cancelled.insert(job.clone());
            self.apply(Event::CancelAsked { job, reason: "a user asked".into() });
        }
    }

    pub(super) fn kill(&mut self, index: usize) {
        let back = self.now + self.delay(6000);
        self.break_session(index);
        let worker = &mut self.workers[index];
        worker.alive = false;
        worker.respawn_at = Some(back);
    }

    pub(super) fn respawn(&mut self, index: usize) {
        self.incarnations += 1;
        let cut_until = self.workers[index].cut_until;
        self.workers[index] = SimWorker::new(index as u64, self.incarnations);
        self.workers[index].cut_until = cut_until;
    }

    pub(super) fn break_session(&mut self, index: usize) {
        if let Some(session) = self.workers[index].session.take() {
            let at = self.now + self.delay(800);
            self.send(at, Message::Broken { session });
        }
    }

    /// The coordinator dies; the next one knows only what was stored: the jobs.
    fn restart(&mut self) {
        let stored = serde_json::to_string(&self.state).expect("a state can be written");
        let stored: State = serde_json::from_str(&stored).expect("and read");
        self.state = State::recover(Term(self.state.term.0 + 1), stored.settings, stored.jobs);
        self.sessions.clear();
        for worker in &mut self.workers {
            worker.session = None;
        }
    }

    /// No more faults; everybody comes back.
    pub(super) fn peace(&mut self) {
        self.submit();
        for index in 0..self.workers.len() {
            let worker = &mut self.workers[index];
            worker.paused_until = self.now;
            worker.cut_until = self.now;
            worker.respawn_at = worker.respawn_at.map(|_| self.now);
        }
    }
}
