//! What the ranks of a gang do together: settle, compute, agree.

use std::collections::BTreeMap;

use pleach_base::Fence;
use pleach_sched::{Head, JobKey, Part, Report, StopMode};

use super::choice::{Held, choose};
use super::history::digest;
use super::worker::Work;
use super::{STEPS, Sim, TASK, TICK};

impl Sim {
    pub(super) fn gangs_act(&mut self) {
        self.apart.retain(|_, until| *until > self.now);
        let mut gangs: BTreeMap<(JobKey, Fence), Vec<usize>> = BTreeMap::new();
        for (index, worker) in self.workers.iter().enumerate() {
            if let Some(work) = worker.work.as_ref().filter(|_| worker.acts(self.now)) {
                gangs.entry((work.assignment.job.clone(), work.assignment.fence)).or_default().push(index);
            }
        }
        for ((job, fence), mut ranks) in gangs {
            ranks.sort_by_key(|index| self.workers[*index].work.as_ref().map(|work| work.assignment.rank));
            let part = Part { job, fence };
            let world = self.work(ranks[0]).map_or(0, |work| work.assignment.members.len());
            let apart = ranks.iter().any(|one| ranks.iter().any(|other| self.are_apart(*one, *other)));
            if ranks.len() == world && !apart {
                self.together(&part, &ranks);
            } else {
                self.troubled(&part, &ranks);
            }
        }
    }

    fn work(&self, index: usize) -> Option<&Work> {
        self.workers[index].work.as_ref()
    }

    fn are_apart(&self, one: usize, other: usize) -> bool {
        self.apart.contains_key(&(one.min(other), one.max(other)))
    }

    fn together(&mut self, part: &Part, ranks: &[usize]) {
        for index in ranks {
            self.workers[*index].progress += 1;
            if let Some(work) = &mut self.workers[*index].work {
                work.stalled = std::time::Duration::ZERO;
                work.next_stall = std::time::Duration::from_secs(1);
            }
        }
        let Some(first) = self.work(ranks[0]) else { return };
        let (settled, computed, step) = (first.settled, first.computed, first.step);
        if !settled {
            self.settle(part, ranks);
        } else if computed {
            self.agree(part, ranks);
        } else if !self.at_boundary(part, ranks, step) {
            self.compute(part, ranks, step + 1);
        }
    }

    fn settle(&mut self, part: &Part, ranks: &[usize]) {
        let Some(work) = self.work(ranks[0]) else { return };
        let head: Head = work.assignment.heads.get(&TASK.into()).cloned().unwrap_or_default();
        let newest = head.step().0;
        let all = ranks.iter().flat_map(|index| self.workers[*index].held.get(&part.job)).flatten();
        let stored = self.store.get(&part.job).copied().unwrap_or_default();
        let (chosen, memory) = choose(&head, all, stored);
        self.summary.resumed[if memory { 0 } else { usize::from(chosen.step == 0) + 1 }] += 1;
        if chosen.step < newest {
            self.summary.remade += 1;
        }
        self.say(|| format!("  {} {} settles on step {} ({newest} is recorded)", part.job, part.fence, chosen.step));
        self.history.resume(&part.job, part.fence, chosen.step, chosen.fence);
        let unrecorded = (chosen.step > newest).then(|| self.commit(part, &chosen));
        for index in ranks {
            self.workers[*index].held.insert(part.job.clone(), vec![chosen.clone()]);
            if let Some(work) = &mut self.workers[*index].work {
                (work.settled, work.step, work.acked) = (true, chosen.step, chosen.step.min(newest));
            }
            self.report(*index, part.clone(), Report::Ready);
        }
        if let Some(work) = &mut self.workers[ranks[0]].work {
            work.unsent.extend(unrecorded);
        }
    }

    fn compute(&mut self, part: &Part, ranks: &[usize], step: u64) {
        for index in ranks {
            let Some(work) = &mut self.workers[*index].work else { continue };
            work.computed = true;
            work.step = step;
            let lanes = work.assignment.members[work.assignment.rank].lanes.clone();
            self.history.feed(&part.job, part.fence, step, &lanes);
            let held = self.workers[*index].held.entry(part.job.clone()).or_default();
            let before = held.last().map_or(0, |held| held.digest);
            let digest = digest(before, step, part.fence);
            held.push(Held { step, digest, fence: part.fence, agreed: false });
        }
    }

    /// All ranks learn that all have made the step; sometimes only some do before the gang breaks.
    fn agree(&mut self, part: &Part, ranks: &[usize]) {
        let breaks = self.chance(2);
        let acked = self.work(ranks[0]).map_or(0, |work| work.acked);
        let mut digests = Vec::new();
        for index in ranks {
            let agrees = !breaks || self.chance(50);
            let held = self.workers[*index].held.entry(part.job.clone()).or_default();
            if let Some(current) = held.last_mut().filter(|_| agrees) {
                current.agreed = true;
            }
            digests.extend(held.last().map(|held| held.digest));
            held.retain(|held| held.step >= acked);
            if let Some(work) = &mut self.workers[*index].work {
                work.computed = false;
                work.acked = work.acked.max(acked);
            }
        }
        digests.dedup();
        assert_eq!(digests.len(), 1, "ranks-agree-on-digest: {part:?}");
        let last = self.workers[ranks[0]].held.get(&part.job).and_then(|held| held.last()).filter(|held| held.agreed);
        let commit = last.map(|held| self.commit(part, held));
        if let Some(work) = &mut self.workers[ranks[0]].work {
            work.unsent.extend(commit);
        }
        if breaks {
            ranks.iter().for_each(|index| self.give_up(*index, "the collective broke", Vec::new()));
        }
    }

    /// What happens between two steps; whether no step follows now.
    fn at_boundary(&mut self, part: &Part, ranks: &[usize], step: u64) -> bool {
        if !self.lead(ranks[0]) {
            return true;
        }
        let ends: Vec<_> = ranks.iter().filter_map(|index| self.work(*index)?.ends).collect();
        let stored = self.store.get(&part.job).map_or(0, |stored| stored.step);
        let safe = stored == step;
        if step >= STEPS && safe {
            return self.leave(part, ranks, &Report::Finished);
        }
        if ends.contains(&StopMode::Drain) {
            if let Some(work) = &mut self.workers[ranks[0]].work {
                work.ends = Some(StopMode::Drain);
            }
            return !safe || self.leave(part, ranks, &Report::Drained);
        }
        if ends.contains(&StopMode::Yield) {
            return self.leave(part, ranks, &Report::Drained);
        }
        step >= STEPS
    }

    fn leave(&mut self, part: &Part, ranks: &[usize], last: &Report) -> bool {
        for index in ranks {
            self.workers[*index].work = None;
            self.report(*index, part.clone(), last.clone());
        }
        true
    }

    /// Peers that died or went on elsewhere have closed their connections; those that hang or are cut off have not.
    fn troubled(&mut self, part: &Part, ranks: &[usize]) {
        for index in ranks {
            let Some(work) = self.work(*index) else { continue };
            let (own, members) = (work.assignment.rank, work.assignment.members.clone());
            let (mut closed, mut silent) = (Vec::new(), Vec::new());
            for (rank, member) in members.iter().enumerate().filter(|(rank, _)| *rank != own) {
                let at = self.workers.iter().position(|worker| worker.id == member.worker && worker.alive);
                let Some(peer) = at else {
                    closed.push(rank as u32);
                    continue;
                };
                let worker = &self.workers[peer];
                let gone = worker.work.as_ref().is_none_or(|work| work.part() != *part);
                if gone && worker.seen.contains(&(part.job.clone(), part.fence)) {
                    closed.push(rank as u32);
                } else if !worker.acts(self.now) || self.are_apart(*index, peer) {
                    silent.push(rank as u32);
                }
            }
            if closed.is_empty() {
                self.stall(*index, part, silent);
            } else {
                let named = if self.chance(70) { closed } else { Vec::new() };
                self.give_up(*index, "a peer closed its connection", named);
            }
        }
    }

    fn stall(&mut self, index: usize, part: &Part, suspects: Vec<u32>) {
        let Some(work) = &mut self.workers[index].work else { return };
        work.stalled += TICK;
        if work.stalled >= work.next_stall {
            work.next_stall += std::time::Duration::from_secs(1);
            self.report(index, part.clone(), Report::Stalled { suspects });
        }
    }
}
