//! A step does not get done: whom the gang goes on without.
//!
//! Ranks say whom they wait for. Their words are gathered for a moment; then the smallest set of members is dropped that
//! explains them all, and the others go on at once. Members whose sessions broke, or that were not heard of for long,
//! count as suspected by everybody.

use std::collections::BTreeSet;

use pleach_base::WorkerId;

use crate::cover;
use crate::gang::{Doubt, EndingWhy, Gang, MemberState, Trouble};
use crate::job::{JobKey, JobState};
use crate::state::{State, Turn};

/// What to do about a troubled gang.
enum Ruling {
    /// More words may come.
    Wait,
    /// It goes on without these ranks.
    Without(BTreeSet<usize>),
    /// Nobody is to blame.
    Again(String),
}

impl State {
    /// Notes what a rank says. `gave_up`: it cannot go on in this generation.
    pub(super) fn doubt(
        &mut self,
        turn: &mut Turn,
        key: &JobKey,
        id: &WorkerId,
        suspects: &[u32],
        gave_up: Option<String>,
    ) {
        let Some(gang) = self.jobs.get_mut(key).and_then(|job| job.gang.as_mut()) else { return };
        let (Some(rank), world) = (gang.rank_of(id), gang.world()) else { return };
        let suspects = suspects.iter().map(|rank| *rank as usize).filter(|other| *other != rank && *other < world);
        let doubt = Doubt { at: turn.now, suspects: suspects.collect(), gave_up };
        let trouble = gang.trouble.get_or_insert_with(|| Trouble { since: turn.now, ..Trouble::default() });
        if trouble.doubts.get(&rank).is_none_or(|before| before.gave_up.is_none()) {
            trouble.doubts.insert(rank, doubt);
        }
    }

    /// A rank that goes on has nothing to complain of any more.
    pub(super) fn doubt_ends(&mut self, id: &WorkerId) {
        let Some(key) = self.worker(id).and_then(|worker| worker.job.clone()) else { return };
        let Some(gang) = self.jobs.get_mut(&key).and_then(|job| job.gang.as_mut()) else { return };
        let Some(rank) = gang.rank_of(id) else { return };
        if let Some(trouble) = &mut gang.trouble {
            trouble.doubts.retain(|of, doubt| *of != rank || doubt.gave_up.is_some());
            if trouble.doubts.is_empty() {
                gang.trouble = None;
            }
        }
    }

    pub(super) fn judge(&mut self, turn: &mut Turn) {
        let troubled = |(key, job): (&JobKey, &crate::Job)| job.gang.as_ref()?.trouble.as_ref().map(|_| key.clone());
        let keys: Vec<_> = self.jobs.iter().filter_map(troubled).collect();
        for key in keys {
            self.forget_old_doubts(turn, &key);
            match self.rule(turn, &key) {
                Ruling::Wait => {}
                Ruling::Without(ranks) => self.go_on_without(turn, &key, &ranks),
                Ruling::Again(why) => self.fail_generation(turn, &key, &why),
            }
        }
    }

    fn forget_old_doubts(&mut self, turn: &Turn, key: &JobKey) {
        let ttl = self.settings.doubt_ttl;
        let Some(gang) = self.jobs.get_mut(key).and_then(|job| job.gang.as_mut()) else { return };
        if let Some(trouble) = &mut gang.trouble {
            trouble.doubts.retain(|_, doubt| doubt.gave_up.is_some() || turn.now < doubt.at + ttl);
            if trouble.doubts.is_empty() {
                gang.trouble = None;
            }
        }
    }

    fn rule(&self, turn: &Turn, key: &JobKey) -> Ruling {
        let Some(gang) = self.jobs.get(key).and_then(|job| job.gang.as_ref()) else { return Ruling::Wait };
        let Some(trouble) = &gang.trouble else { return Ruling::Wait };
        let silent = self.silent_members(turn, gang);
        let pairs = pairs(trouble, &silent);
        // Those who spoke live, and rank 0 more likely holds what others lack.
        let cost =
            |rank: usize| if trouble.doubts.contains_key(&rank) { 1000 } else { 0 } + (gang.world() - rank) as u64;
        let mut blamed = cover::smallest(&pairs, cost);
        // A rank that is blamed by errors alone may have a word of its own to say; what does not answer a ping has not.
        let pinged = |rank: usize| {
            let stalls = trouble.doubts.values().filter(|doubt| doubt.gave_up.is_none());
            blamed.contains(&rank) && stalls.into_iter().any(|doubt| doubt.suspects.contains(&rank))
        };
        let heard = |rank: usize| trouble.doubts.contains_key(&rank) || silent.contains(&rank) || pinged(rank);
        let complete = (0..gang.world()).all(|rank| heard(rank) || gang.members[rank].state == MemberState::Gone);
        blamed.extend(silent);
        if !complete && turn.now < trouble.since + self.settings.window {
            return Ruling::Wait;
        }
        if !blamed.is_empty() {
            return Ruling::Without(blamed);
        }
        let words: Vec<_> = trouble.doubts.values().filter_map(|doubt| doubt.gave_up.clone()).collect();
        if !words.is_empty() {
            return Ruling::Again(words.join("; "));
        }
        if complete && turn.now >= trouble.since + self.settings.deadlock {
            let limit = self.settings.deadlock.as_secs_f64();
            return Ruling::Again(format!("no rank got on for {limit} s, although all answer each other"));
        }
        Ruling::Wait
    }

    fn silent_members(&self, turn: &Turn, gang: &Gang) -> BTreeSet<usize> {
        let patience = self.settings.silent_after();
        // Whoever has not found this leader yet is not silent for that.
        let young = self.started_at.is_some_and(|began| turn.now < began + self.settings.lease_ttl);
        let silent = |id: &WorkerId| {
            self.worker(id).is_none_or(|worker| {
                let broken = !worker.connected && (worker.confirmed || !young);
                broken || turn.now > worker.heard_at + patience
            })
        };
        let members = gang.members.iter().enumerate();
        members
            .filter(|(_, member)| member.state != MemberState::Gone && silent(&member.worker))
            .map(|(n, _)| n)
            .collect()
    }

    fn go_on_without(&mut self, turn: &mut Turn, key: &JobKey, ranks: &BTreeSet<usize>) {
        let Some(gang) = self.jobs.get(key).and_then(|job| job.gang.as_ref()) else { return };
        let ids: Vec<_> = ranks.iter().filter_map(|rank| gang.members.get(*rank)).map(|m| m.worker.clone()).collect();
        let trouble = gang.trouble.clone().unwrap_or_default();
        let words: Vec<_> = trouble.doubts.values().filter_map(|doubt| doubt.gave_up.clone()).take(1).collect();
        let names = ids.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        let by = trouble.doubts.keys().filter(|rank| !ranks.contains(rank)).count();
        let mut why = format!("{names} did not answer {}", super::count(by, "rank"));
        if let Some(word) = words.first() {
            why = format!("{why} ({word})");
        }
        self.drop_members(turn, key, &ids, &why);
    }

    /// Ends a generation whose culprits are known: the others go on at once.
    pub(super) fn drop_members(&mut self, turn: &mut Turn, key: &JobKey, ids: &[WorkerId], why: &str) {
        let cancelled = self.ending_why(key) == Some(EndingWhy::Cancel);
        let settings = self.settings.clone();
        if cancelled {
            self.finish(turn, key, JobState::Cancelled, None);
        } else {
            self.end_generation(turn, key, why, true);
        }
        for id in ids {
            let Some(worker) = self.worker_mut(id) else { continue };
            if worker.connected {
                worker.drop_from_gang(turn.now, &settings);
                let until = worker.record.barred_until.saturating_sub(turn.now).as_secs_f64();
                let message = format!("{id} is left out for {until} s or longer, and gets ready anew: {why}");
                turn.note(Some(key), "WorkerDropped", Some(id), message);
            } else {
                self.lose(turn, id, "its session broke and peers waited for it in vain");
            }
        }
    }

    fn ending_why(&self, key: &JobKey) -> Option<EndingWhy> {
        Some(self.jobs.get(key)?.gang.as_ref()?.ending.as_ref()?.why)
    }
}

/// Who does not answer whom. Ranks that gave up have closed their connections, so that others may blame them for it: that
/// counts only when it is mutual. What is explained by a silent member is left out.
fn pairs(trouble: &Trouble, silent: &BTreeSet<usize>) -> BTreeSet<(usize, usize)> {
    let gave_up = |rank: &usize| trouble.doubts.get(rank).is_some_and(|doubt| doubt.gave_up.is_some());
    let blames = |a: &usize, b: &usize| trouble.doubts.get(a).is_some_and(|doubt| doubt.suspects.contains(b));
    let mut pairs = BTreeSet::new();
    for (rank, doubt) in &trouble.doubts {
        for other in &doubt.suspects {
            let echo = doubt.gave_up.is_some() && gave_up(other) && !blames(other, rank);
            if !echo && !silent.contains(rank) && !silent.contains(other) {
                pairs.insert((*rank.min(other), *rank.max(other)));
            }
        }
    }
    pairs
}
