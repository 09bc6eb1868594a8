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
        self.take_in(&mut turn, event);
        self.pass(&mut turn);
        turn.finish()
    }

    /// As [`State::apply`], without the look at everything else, which takes as long as there are workers and jobs. Says
    /// whether somebody should be looked at soon for it: then [`Event::Tick`] is due once what came together with this event
    /// was heard. Otherwise the next one that comes by itself is soon enough.
    ///
    /// What lies between is never seen: the caller stores and tells nothing before that.
    pub fn hear(&mut self, now: Duration, event: Event) -> (Vec<Effect>, bool) {
        let mut turn = Turn::new(now);
        let routine = event.is_routine();
        self.take_in(&mut turn, event);
        let effects = turn.finish();
        // A note, an order, a refusal: more happened than that somebody lives and gets on.
        let expected = |effect: &Effect| matches!(effect, Effect::Changed { .. } | Effect::Committed { .. });
        let soon = !(routine && effects.iter().all(expected));
        (effects, soon)
    }

    fn take_in(&mut self, turn: &mut Turn, event: Event) {
        self.begin(turn.now);
        match event {
            Event::Submitted { job, needs } => self.submitted(turn, job, needs),
            Event::CancelAsked { job, reason } => self.cancel_asked(turn, &job, &reason),
            Event::Deleted { job } => self.deleted(turn, job),
            Event::Registered { worker, host, rendezvous_port, pulse_port } => {
                self.registered(turn, worker, host, (rendezvous_port, pulse_port));
            }
            Event::Connected { worker } => self.connected(turn, &worker),
            Event::Disconnected { worker } => self.disconnected(turn, &worker),
            Event::Heartbeat { worker, progress, idle, draining, part, compute_us } => {
                self.heartbeat(turn, &worker, progress, (idle, draining), part);
                self.paced(turn, &worker, compute_us);
            }
            Event::Reported { worker, part, report } => self.reported(turn, &worker, &part, report),
            Event::Tick => {}
        }
    }

    /// Lets time pass.
    fn pass(&mut self, turn: &mut Turn) {
        self.expire_leases(turn);
        self.expire_preparations(turn);
        self.judge(turn);
        self.abort_overdue(turn);
        self.schedule(turn);
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
