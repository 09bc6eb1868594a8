//! Workers come, say that they live, and go.

use std::collections::BTreeSet;

use pleach_base::WorkerId;

use crate::effect::{Effect, StopMode};
use crate::event::Part;
use crate::gang::{EndingWhy, MemberState};
use crate::job::{JobKey, JobState};
use crate::state::{State, Turn};
use crate::worker::{Pace, Record, Worker};

impl State {
    pub(super) fn registered(&mut self, turn: &mut Turn, id: WorkerId, host: String, ports: (u16, u16)) {
        let (rendezvous_port, pulse_port) = ports;
        if self.is_superseded(&id) {
            let reason = format!("{id} was replaced by a newer process of the same name");
            return turn.push(Effect::Refused { reason });
        }
        if let Some(worker) = self.worker_mut(&id) {
            // After a new leader began, this is how it learns the ports.
            (worker.heard_at, worker.host) = (turn.now, host);
            (worker.rendezvous_port, worker.pulse_port) = ports;
            return;
        }
        if let Some(old) = self.workers.get(&id.name).map(|worker| worker.id.clone()) {
            self.supersede(&old);
            self.lose(turn, &old, "a new process of the same name registered");
        }
        turn.note(None, "WorkerJoined", Some(&id), format!("{id} joined from {host}"));
        let worker = Worker {
            id: id.clone(),
            host,
            rendezvous_port,
            pulse_port,
            joined_at: turn.now,
            heard_at: turn.now,
            progress: 0,
            progress_at: turn.now,
            connected: false,
            draining: false,
            suspected: false,
            job: None,
            warm: None,
            confirmed: true,
            record: Record::default(),
            pace: Pace::default(),
        };
        self.workers.insert(id.name, worker);
    }

    pub(super) fn connected(&mut self, turn: &mut Turn, id: &WorkerId) {
        let Some(worker) = self.worker_mut(id) else {
            return turn.push(Effect::Refused { reason: format!("{id} holds no lease") });
        };
        worker.connected = true;
        // Of progress made meanwhile it has not had the time to tell.
        (worker.heard_at, worker.progress_at) = (turn.now, turn.now);
        // A worker that is free has nothing to be recognised by.
        worker.confirmed |= worker.job.is_none();
        // What was sent into the session before may be lost.
        self.repeat_orders(turn, id);
        self.send_prepare(turn, id);
    }

    pub(super) fn disconnected(&mut self, turn: &mut Turn, id: &WorkerId) {
        let Some(worker) = self.worker_mut(id) else { return };
        worker.connected = false;
        let (suspected, leaves) = (worker.suspected, worker.draining);
        if suspected && worker.job.is_none() {
            self.lose(turn, id, "its session broke and peers waited for it in vain");
        } else if leaves && !self.works(id) {
            self.lose(turn, id, "it left as asked");
        }
    }

    pub(super) fn heartbeat(
        &mut self,
        turn: &mut Turn,
        id: &WorkerId,
        progress: u64,
        (idle, draining): (bool, bool),
        part: Option<Part>,
    ) {
        let works = self.works(id);
        let Some(worker) = self.worker_mut(id) else {
            return turn.push(Effect::Refused { reason: format!("{id} holds no lease") });
        };
        worker.heard_at = turn.now;
        if progress > worker.progress || !works {
            worker.progress_at = turn.now;
        }
        let moves = progress > worker.progress;
        if moves || idle {
            worker.suspected = false;
        }
        worker.progress = worker.progress.max(progress);
        let leaves = draining && !worker.draining;
        worker.draining |= draining;
        if moves {
            self.doubt_ends(id);
        }
        if leaves {
            self.leaves(turn, id);
        }
        self.compare(turn, id, idle, part);
    }

    /// A worker asked to go: its gang goes on without it from the next step boundary.
    fn leaves(&mut self, turn: &mut Turn, id: &WorkerId) {
        turn.note(None, "WorkerDraining", Some(id), format!("{id} wants no more work"));
        let Some(key) = self.worker(id).and_then(|worker| worker.job.clone()) else { return };
        let members = self.jobs.get(&key).and_then(|job| job.gang.as_ref()).map(|gang| &gang.members);
        let stays = |other: &WorkerId| self.worker(other).is_some_and(Worker::counts);
        // What nobody keeps in memory goes to the store.
        let kept = members.is_some_and(|members| members.iter().any(|member| stays(&member.worker)));
        let mode = if kept { StopMode::Yield } else { StopMode::Drain };
        self.drain(turn, &key, EndingWhy::Reform, mode, format!("{id} leaves"));
    }

    /// Compares what a worker says that it does with what it should do.
    fn compare(&mut self, turn: &mut Turn, id: &WorkerId, idle: bool, part: Option<Part>) {
        let current = self.place_of(id);
        match (part, current) {
            (Some(part), _) if self.succeeded_with(&part) => {}
            (Some(part), Some((key, fence))) if part.job == key && part.fence == fence => {
                self.reattached(turn, id, &part);
            }
            // A Prepare makes a worker busy, and it may say what for.
            (Some(part), None) if self.prepares(id, &part.job, part.fence) => {}
            (None, None) if self.worker(id).is_some_and(|worker| worker.warm.is_some()) => {}
            (Some(part), _) => {
                turn.stop(id, Some((&part.job, part.fence)), StopMode::Abort, "this generation has ended");
            }
            (None, None) if !idle => turn.stop(id, None, StopMode::Abort, "it has no part in any job"),
            (None, Some((key, _))) if idle => {
                let patience = self.settings.lease_ttl / 3;
                let formed = self.jobs.get(&key).and_then(|job| job.gang.as_ref()).map(|gang| gang.formed_at);
                if formed.is_some_and(|formed| turn.now >= formed + patience) {
                    self.repeat_orders(turn, id);
                }
            }
            _ => {}
        }
    }

    /// Whether a job is done with this generation: ranks beside the first may still be tidying up.
    fn succeeded_with(&self, part: &Part) -> bool {
        let job = self.jobs.get(&part.job);
        job.is_some_and(|job| job.state == JobState::Succeeded && job.fence() == part.fence)
    }

    /// Sends a worker its assignment again, and the request to drain if there was one.
    fn repeat_orders(&self, turn: &mut Turn, id: &WorkerId) {
        if !self.works(id) {
            return;
        }
        let Some(assignment) = self.assignment(id) else { return };
        let (key, fence) = (assignment.job.clone(), assignment.fence);
        turn.push(Effect::Assign { worker: id.clone(), assignment });
        let ending = self.jobs.get(&key).and_then(|job| job.gang.as_ref()).and_then(|gang| gang.ending.as_ref());
        if let Some(ending) = ending {
            turn.stop(id, Some((&key, fence)), ending.mode, ending.reason.clone());
        }
    }

    /// Whether a worker has a part in a gang that it has not left.
    fn works(&self, id: &WorkerId) -> bool {
        let member = || {
            let gang = self.jobs.get(self.worker(id)?.job.as_ref()?)?.gang.as_ref()?;
            gang.members.get(gang.rank_of(id)?)
        };
        member().is_some_and(|member| member.state != MemberState::Gone)
    }

    pub(super) fn expire_leases(&mut self, turn: &mut Turn) {
        let quiet = self.silent_gangs(turn);
        let expired: Vec<_> = self
            .workers
            .values()
            .filter(|worker| turn.now >= worker.lease_deadline(&self.settings))
            .filter(|worker| worker.job.as_ref().is_none_or(|key| !quiet.contains(key)))
            .map(|worker| {
                let silent = turn.now >= worker.heard_at + self.settings.lease_ttl;
                (worker.id.clone(), silent)
            })
            .collect();
        for (id, silent) in expired {
            let why = if silent {
                format!("nothing was heard of it for {} s", self.settings.lease_ttl.as_secs_f64())
            } else {
                format!("its training thread made no progress for {} s", self.settings.stall_grace.as_secs_f64())
            };
            self.lose(turn, &id, &why);
        }
    }

    /// Gangs of which nobody was heard for a lease. They may train on behind a broken network, and are left alone for the
    /// time of grace; after it they are lost as a whole.
    fn silent_gangs(&mut self, turn: &mut Turn) -> BTreeSet<JobKey> {
        let (ttl, grace) = (self.settings.lease_ttl, self.settings.grace.max(self.settings.lease_ttl));
        let mut quiet = BTreeSet::new();
        let mut told = Vec::new();
        for (key, job) in &self.jobs {
            let Some(gang) = &job.gang else { continue };
            let members = gang.members.iter().filter(|member| member.state != MemberState::Gone);
            let heard = members.filter_map(|member| Some(self.worker(&member.worker)?.heard_at)).max();
            if heard.is_some_and(|heard| turn.now >= heard + ttl && turn.now < heard + grace) {
                quiet.insert(key.clone());
                if job.state == JobState::Running {
                    let seconds = grace.as_secs_f64();
                    let what =
                        format!("nothing is heard of generation {}; it is left alone for {seconds} s", job.generation);
                    told.push((key.clone(), what));
                }
            }
        }
        for (key, what) in told {
            // Whoever comes back is greeted as after a change of leaders.
            for worker in self.workers.values_mut().filter(|worker| worker.job.as_ref() == Some(&key)) {
                worker.confirmed = false;
            }
            self.set_state(turn, &key, JobState::Running, what);
        }
        quiet
    }

    /// Ends a worker's lease, and with it the generation that it works in.
    pub(super) fn lose(&mut self, turn: &mut Turn, id: &WorkerId, why: &str) {
        let works = self.works(id);
        let Some(worker) = self.worker(id).cloned() else { return };
        self.workers.remove(&id.name);
        let kind = if worker.draining && !works { "WorkerLeft" } else { "WorkerLost" };
        turn.note(worker.job.as_ref(), kind, Some(id), format!("{id} is gone: {why}"));
        turn.push(Effect::Released { worker: id.clone() });
        if let Some(key) = worker.job.filter(|_| works) {
            self.member_lost(turn, &key, id, why);
        }
    }
}
