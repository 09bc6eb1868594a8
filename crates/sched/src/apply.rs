//! From events to transitions.

mod commits;
mod ending;
mod leases;
mod pace;
mod prepare;
mod reattach;
mod reports;
mod trouble;

pub(crate) use reports::count;

use std::time::Duration;

use crate::effect::Effect;
use crate::event::Event;
use crate::job::{Job, JobKey, JobState, Needs};
use crate::state::{State, Turn};

impl State {
    /// Takes in one event at time `now` (monotonic; an earlier time than before is harmless) and says what to do.
    ///
    /// Every event also lets time pass: expired leases, troubled gangs, overdue drains and waiting jobs are looked at
    /// each time.
    pub fn apply(&mut self, now: Duration, event: Event) -> Vec<Effect> {
        let mut turn = Turn::new(now);
        self.begin(now);
        match event {
            Event::Submitted { job, needs } => self.submitted(&mut turn, job, needs),
            Event::CancelAsked { job, reason } => self.cancel_asked(&mut turn, &job, &reason),
            Event::Deleted { job } => self.deleted(&mut turn, job),
            Event::Registered { worker, host, rendezvous_port, pulse_port } => {
                self.registered(&mut turn, worker, host, (rendezvous_port, pulse_port));
            }
            Event::Connected { worker } => self.connected(&mut turn, &worker),
            Event::Disconnected { worker } => self.disconnected(&mut turn, &worker),
            Event::Heartbeat { worker, progress, idle, draining, part, compute_us } => {
                self.heartbeat(&mut turn, &worker, progress, (idle, draining), part);
                self.paced(&mut turn, &worker, compute_us);
            }
            Event::Reported { worker, part, report } => self.reported(&mut turn, &worker, &part, report),
            Event::Tick => {}
        }
        self.expire_leases(&mut turn);
        self.expire_preparations(&mut turn);
        self.judge(&mut turn);
        self.abort_overdue(&mut turn);
        self.schedule(&mut turn);
        turn.finish()
    }

    fn submitted(&mut self, turn: &mut Turn, key: JobKey, needs: Needs) {
        if self.jobs.contains_key(&key) {
            return;
        }
        let job = Job::new(self.next_order, needs);
        self.next_order += 1;
        turn.note(Some(&key), "Submitted", None, format!("{key} was submitted"));
        turn.changed(&key);
        self.jobs.insert(key, job);
    }

    fn deleted(&mut self, turn: &mut Turn, key: JobKey) {
        if self.jobs.get(&key).is_some_and(|job| job.state.is_terminal()) {
            self.jobs.remove(&key);
            turn.push(Effect::Forgotten { job: key });
        }
    }

    pub(crate) fn set_state(&mut self, turn: &mut Turn, key: &JobKey, state: JobState, reason: impl Into<String>) {
        let reason = reason.into();
        let Some(job) = self.jobs.get_mut(key) else { return };
        if job.state == state && job.reason == reason {
            return;
        }
        job.state = state;
        job.reason = reason;
        turn.changed(key);
    }
}
