//! Jobs of a lower priority make room: they stop at a step boundary with a checkpoint and wait for their turn.

use crate::effect::StopMode;
use crate::gang::{EndingWhy, MemberState};
use crate::job::{JobKey, JobState};
use crate::state::{State, Turn};

impl State {
    /// Asks jobs of a lower priority to stop when that gives `key` its fewest workers; says whom it waits for.
    pub(super) fn make_room(&mut self, turn: &mut Turn, key: &JobKey, have: usize, least: usize) -> Option<String> {
        if have >= least {
            return None;
        }
        let priority = self.jobs.get(key)?.needs.priority;
        let mut lower = self.in_order(|job| job.needs.priority < priority && job.gang.is_some());
        // The least important and youngest stops first; those that stop already come before all others.
        lower.reverse();
        lower.sort_by_key(|other| !self.stops_already(other));
        let (mut sum, mut victims) = (have, Vec::new());
        for other in lower {
            if sum >= least {
                break;
            }
            sum += self.gives(&other);
            victims.push(other);
        }
        if sum < least {
            return None;
        }
        let mut names = Vec::new();
        for other in victims {
            let theirs = self.jobs.get(&other).map_or(0, |job| job.needs.priority);
            let reason = format!("makes room for {key}, whose priority is {priority}, its own {theirs}");
            self.drain(turn, &other, EndingWhy::Reform, StopMode::Drain, reason);
            names.push(other.to_string());
        }
        Some(format!("waits for {} to make room at its next checkpoint", names.join(", ")))
    }

    fn stops_already(&self, key: &JobKey) -> bool {
        self.jobs.get(key).and_then(|job| job.gang.as_ref()).is_some_and(|gang| gang.ending.is_some())
    }

    /// Workers that a job would free.
    fn gives(&self, key: &JobKey) -> usize {
        let Some(job) = self.jobs.get(key).filter(|job| job.state != JobState::Queued) else { return 0 };
        let members = job.gang.iter().flat_map(|gang| &gang.members);
        let present = members.filter(|member| member.state != MemberState::Gone);
        present.filter(|member| self.worker(&member.worker).is_some_and(|worker| worker.counts())).count()
    }
}
