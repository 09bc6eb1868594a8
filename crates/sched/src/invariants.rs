//! Named rules that must hold at all times. The coordinator checks them in production after each batch
//! of messages, the simulation after each event.

use std::collections::BTreeMap;
use std::fmt;

use pleach_base::{Fence, TaskName, WorkerId};

use crate::commit::{Commit, Head};
use crate::effect::Effect;
use crate::gang::MemberState;
use crate::job::JobKey;
use crate::state::State;

/// A rule that was broken, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Name of the rule.
    pub rule: &'static str,
    /// What was seen.
    pub detail: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "invariant {}: {}", self.rule, self.detail)
    }
}

/// At most one worker ever is rank 0 of a fence.
pub const ONE_LEADER_PER_FENCE: &str = "one-leader-per-fence";
/// Every lane of a gang has exactly one rank.
pub const LEASE_SINGLE_OWNER: &str = "lease-single-owner";
/// A job's fence only grows.
pub const GENERATION_MONOTONE: &str = "generation-monotone";
/// A worker has a part in one gang at most, and both sides agree.
pub const WORKER_IN_ONE_GANG: &str = "worker-in-one-gang";
/// An ended job holds no worker.
pub const ENDED_JOB_IS_FREE: &str = "ended-job-is-free";
/// A gang has between the fewest and the most workers that its job wants.
pub const GANG_WITHIN_LIMITS: &str = "gang-within-limits";
/// Every job says why it is in its state.
pub const STATE_HAS_REASON: &str = "state-has-reason";

/// Records of a task grow by one step within a generation; only a newer fence goes back or skips.
pub const COMMIT_MONOTONE: &str = "commit-monotone";
/// One step of one generation has one digest.
pub const RANKS_AGREE_ON_DIGEST: &str = "ranks-agree-on-digest";
/// A recorded step does not roll back while a worker that holds it is there.
pub const NO_STEP_LOST: &str = "no-step-lost-while-one-worker-lives";

/// Watches one leader, or a chain of leaders, and remembers what a single state cannot show.
#[derive(Clone, Debug, Default)]
pub struct Auditor {
    leaders: BTreeMap<(JobKey, Fence), WorkerId>,
    newest: BTreeMap<JobKey, Fence>,
    records: BTreeMap<(JobKey, TaskName), Head>,
}

impl Auditor {
    /// Checks a state after an event, and the effects of the event.
    pub fn check(&mut self, state: &State, effects: &[Effect]) -> Vec<Violation> {
        let mut found = self.check_effects(state, effects);
        for (key, job) in &state.jobs {
            if !self.newest.contains_key(key) {
                self.newest.insert(key.clone(), Fence::default());
            }
            let Some(newest) = self.newest.get_mut(key) else { continue };
            if job.fence() < *newest || job.fence().generation < newest.generation {
                let detail = format!("{key} went from {newest} to {}", job.fence());
                found.push(Violation { rule: GENERATION_MONOTONE, detail });
            }
            // Fences before the newest can never be assigned again.
            if std::mem::replace(newest, job.fence()) != job.fence() {
                let fence = job.fence();
                self.leaders.retain(|(of, at), _| of != key || *at >= fence);
            }
        }
        found.extend(check(state));
        found
    }

    /// Checks the effects of an event that was [heard](State::hear). What only the whole state shows is left to the next
    /// [`Auditor::check`].
    pub fn check_effects(&mut self, state: &State, effects: &[Effect]) -> Vec<Violation> {
        let mut found = Vec::new();
        for effect in effects {
            match effect {
                Effect::Assign { worker, assignment } if assignment.rank == 0 => {
                    let at = (assignment.job.clone(), assignment.fence);
                    let first = self.leaders.entry(at).or_insert_with(|| worker.clone());
                    if first != worker {
                        let detail = format!("{worker} and {first} lead {} {}", assignment.job, assignment.fence);
                        found.push(Violation { rule: ONE_LEADER_PER_FENCE, detail });
                    }
                }
                Effect::Committed { job, commits } => {
                    for commit in commits {
                        found.extend(self.recorded(state, job, commit));
                    }
                }
                Effect::Forgotten { job } => {
                    self.newest.remove(job);
                    self.leaders.retain(|(key, _), _| key != job);
                    self.records.retain(|(key, _), _| key != job);
                }
                _ => {}
            }
        }
        found.extend(effects.iter().filter_map(|effect| left_out(state, effect)));
        found
    }

    fn recorded(&mut self, state: &State, job: &JobKey, commit: &Commit) -> Vec<Violation> {
        let mut found = Vec::new();
        let mut broken = |rule, what: String| {
            let Commit { task, step, fence, .. } = commit;
            found.push(Violation { rule, detail: format!("{job}: step {step} of {task} in {fence} {what}") });
        };
        if state.jobs.get(job).is_some_and(|job| job.generation.0 > 0 && commit.fence > job.fence()) {
            broken(COMMIT_MONOTONE, "is of a generation that was not formed".into());
        }
        let head = self.records.entry((job.clone(), commit.task.clone())).or_default();
        if let Some(newest) = head.recent.back() {
            let follows = commit.step.0 == newest.step.0 + 1;
            if commit.fence < newest.fence || (commit.fence == newest.fence && !follows) {
                broken(COMMIT_MONOTONE, format!("comes after step {} in {}", newest.step, newest.fence));
            }
        }
        let same = |record: &&Commit| record.step == commit.step && record.fence == commit.fence;
        if head.recent.iter().find(same).is_some_and(|record| record.digest != commit.digest) {
            broken(RANKS_AGREE_ON_DIGEST, "has two digests".into());
        }
        head.record(commit.clone());
        found
    }
}

/// A gang of strangers was formed while a member of the last gang was free and ready.
fn left_out(state: &State, effect: &Effect) -> Option<Violation> {
    let Effect::Note { job: Some(key), kind: "GangFormed", .. } = effect else { return None };
    let job = state.jobs.get(key).filter(|job| !job.heads.is_empty())?;
    let gang = job.gang.as_ref()?;
    let strangers = gang.members.iter().all(|member| !job.formed_from.contains(&member.worker));
    let ready = |id: &&WorkerId| state.worker(id).is_some_and(|w| w.job.is_none() && w.counts() && w.is_ready_for(key));
    let holder = job.formed_from.iter().filter(|_| strangers).find(ready)?;
    Some(Violation { rule: NO_STEP_LOST, detail: format!("{key}: {holder} holds the newest step and was left out") })
}

/// Checks what one state shows.
#[must_use]
pub fn check(state: &State) -> Vec<Violation> {
    let mut found = Vec::new();
    let mut held: BTreeMap<&WorkerId, &JobKey> = BTreeMap::new();
    for (key, job) in &state.jobs {
        let mut broken = |rule, detail: String| found.push(Violation { rule, detail: format!("{key}: {detail}") });
        if job.reason.is_empty() {
            broken(STATE_HAS_REASON, format!("{} without a reason", job.state.name()));
        }
        let Some(gang) = &job.gang else { continue };
        if job.state.is_terminal() {
            broken(ENDED_JOB_IS_FREE, format!("{} with a gang", job.state.name()));
        }
        if !(job.needs.least()..=job.needs.most()).contains(&gang.world()) {
            broken(GANG_WITHIN_LIMITS, format!("{} ranks", gang.world()));
        }
        let lanes: Vec<_> = gang.members.iter().flat_map(|member| member.lanes.iter().copied()).collect();
        if lanes != (0..job.needs.lanes).collect::<Vec<_>>() {
            broken(LEASE_SINGLE_OWNER, format!("lanes are mapped as {lanes:?}"));
        }
        // A rank that has gone may belong to a worker that was lost meanwhile.
        for member in gang.members.iter().filter(|member| member.state != MemberState::Gone) {
            if let Some(other) = held.insert(&member.worker, key) {
                broken(WORKER_IN_ONE_GANG, format!("{} is also in {other}", member.worker));
            }
        }
    }
    found.extend(workers_agree(state, &held));
    found
}

fn workers_agree(state: &State, held: &BTreeMap<&WorkerId, &JobKey>) -> Vec<Violation> {
    let mut found = Vec::new();
    let mut broken = |rule, detail: String| found.push(Violation { rule, detail });
    for (id, key) in held {
        match state.worker(id).map(|worker| worker.job.as_ref()) {
            None => broken(WORKER_IN_ONE_GANG, format!("{id} works in {key} without a lease")),
            Some(job) if job != Some(*key) => {
                broken(WORKER_IN_ONE_GANG, format!("{id} believes to be in {job:?}, a gang says {key}"));
            }
            Some(_) => {}
        }
    }
    for (name, worker) in &state.workers {
        // With that no two of them are the same one.
        if name != &worker.id.name {
            broken(WORKER_IN_ONE_GANG, format!("{} is known as {name}", worker.id));
        }
        let Some(key) = &worker.job else { continue };
        let job = state.jobs.get(key);
        if job.and_then(|job| job.gang.as_ref()?.rank_of(&worker.id)).is_none() {
            broken(WORKER_IN_ONE_GANG, format!("{} believes to be in {key}, which has no such rank", worker.id));
        }
        if let Some(job) = job.filter(|job| job.state.is_terminal()) {
            broken(ENDED_JOB_IS_FREE, format!("{} is held by a job that {}", worker.id, job.state.name()));
        }
    }
    found
}
