//! Forming a gang from chosen workers.

use pleach_base::WorkerId;

use crate::apply::count;
use crate::effect::Effect;
use crate::gang::{Gang, Member, MemberState};
use crate::job::{JobKey, JobState};
use crate::lanes;
use crate::state::{State, Turn};

impl State {
    /// Ranks: members of the last gang first, so that rank 0 holds state, and ranks of one host side by side.
    pub(super) fn place(&self, key: &JobKey, workers: &[WorkerId]) -> Vec<WorkerId> {
        let holders = self.jobs.get(key).map(|job| job.holders.as_slice()).unwrap_or_default();
        let before = |id: &WorkerId| holders.iter().position(|holder| holder == id).unwrap_or(usize::MAX);
        let mut order = workers.to_vec();
        order.sort_by_key(|id| (before(id), id.clone()));
        let host = |id: &WorkerId| self.worker(id).map(|worker| worker.host.clone()).unwrap_or_default();
        let mut hosts: Vec<String> = Vec::new();
        for id in &order {
            if !hosts.contains(&host(id)) {
                hosts.push(host(id));
            }
        }
        order.sort_by_key(|id| hosts.iter().position(|other| *other == host(id)));
        order
    }

    /// Forms the next generation of a job from `workers`, which become ranks in this order.
    pub(super) fn form(&mut self, turn: &mut Turn, key: &JobKey, workers: &[WorkerId]) {
        let term = self.term;
        let Some(job) = self.jobs.get_mut(key) else { return };
        job.generation = job.generation.next();
        job.term = term;
        job.enough_since = None;
        job.hurry = false;
        let (generation, lanes) = (job.generation, job.needs.lanes);
        let maps = lanes::assign(lanes, u32::try_from(workers.len()).unwrap_or(u32::MAX));
        let mut members = Vec::with_capacity(workers.len());
        for (id, lanes) in workers.iter().zip(maps) {
            let Some(worker) = self.worker_mut(id) else { continue };
            worker.give(key, turn.now);
            members.push(Member {
                worker: id.clone(),
                host: worker.host.clone(),
                pulse_port: worker.pulse_port,
                rendezvous_port: worker.rendezvous_port,
                lanes,
                state: MemberState::Joining,
            });
        }
        let names: Vec<_> = members.iter().map(|member| member.worker.to_string()).collect();
        let gang = Gang { members, formed_at: turn.now, ending: None, trouble: None, settled: false, advanced: false };
        if let Some(job) = self.jobs.get_mut(key) {
            job.formed_from.clone_from(&job.holders);
            job.gang = Some(gang);
        }
        let who = format!(
            "generation {generation}: {} for {}",
            count(workers.len(), "worker"),
            count(lanes as usize, "lane")
        );
        turn.note(Some(key), "GangFormed", None, format!("{who} ({})", names.join(", ")));
        self.set_state(turn, key, JobState::Starting, format!("{who}; ranks settle on a state"));
        for id in workers {
            if let Some(assignment) = self.assignment(id) {
                turn.push(Effect::Assign { worker: id.clone(), assignment });
            }
        }
    }
}
