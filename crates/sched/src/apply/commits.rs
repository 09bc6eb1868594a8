//! Records of steps: one line per task, of which nothing but a newer generation may rewrite the end.

use std::collections::BTreeMap;

use pleach_base::WorkerId;

use crate::commit::{Commit, Head};
use crate::effect::Effect;
use crate::event::Part;
use crate::job::JobKey;
use crate::state::{State, Turn};

/// What a record is, next to those that are kept.
enum Verdict {
    /// It comes next, or takes the place of what an older generation did.
    New,
    /// It is there already.
    Known,
    /// It cannot be.
    Refused(String),
    /// Ranks of one generation made different things of one step.
    Differs(String),
}

impl State {
    /// All records of a report are taken, or none.
    pub(super) fn committed(&mut self, turn: &mut Turn, part: &Part, id: &WorkerId, commits: Vec<Commit>) {
        let Some(job) = self.jobs.get(&part.job) else { return };
        let mut heads: BTreeMap<_, Head> = BTreeMap::new();
        let mut taken = Vec::new();
        for commit in commits {
            let known = || job.heads.get(&commit.task).cloned().unwrap_or_default();
            let head = heads.entry(commit.task.clone()).or_insert_with(known);
            match judge(head, &commit, part) {
                Verdict::New => {
                    head.record(commit.clone());
                    taken.push(commit);
                }
                Verdict::Known => {}
                Verdict::Refused(reason) => return turn.push(Effect::Refused { reason }),
                Verdict::Differs(reason) => {
                    turn.push(Effect::Refused { reason: reason.clone() });
                    turn.note(Some(&part.job), "DigestMismatch", Some(id), reason.clone());
                    return self.fail_generation(turn, &part.job, &reason);
                }
            }
        }
        if !taken.is_empty() {
            self.take(turn, &part.job, heads, taken);
        }
    }

    fn take(
        &mut self,
        turn: &mut Turn,
        key: &JobKey,
        heads: BTreeMap<pleach_base::TaskName, Head>,
        taken: Vec<Commit>,
    ) {
        let Some(job) = self.jobs.get_mut(key) else { return };
        job.heads.extend(heads);
        job.failures_in_a_row = 0;
        if let Some(gang) = &mut job.gang {
            (gang.settled, gang.advanced) = (true, true);
        }
        turn.push(Effect::Committed { job: key.clone(), commits: taken });
    }
}

fn judge(head: &Head, commit: &Commit, part: &Part) -> Verdict {
    let Commit { task, step, fence, digest } = commit;
    if *fence != part.fence {
        return Verdict::Refused(format!("step {step} of {task} is of {fence}, the report of {}", part.fence));
    }
    let Some(newest) = head.recent.back() else { return Verdict::New };
    if *fence < newest.fence {
        return Verdict::Refused(format!("step {step} of {task} is of {fence}, {} is recorded", newest.fence));
    }
    if let Some(same) = head.recent.iter().find(|record| record.step == *step && record.fence == *fence) {
        return if same.digest == *digest {
            Verdict::Known
        } else {
            let (one, other) = (short(&same.digest), short(digest));
            Verdict::Differs(format!("step {step} of {task} came out as {one} and as {other} in {fence}"))
        };
    }
    // A newer generation may begin anywhere: before the newest record, if nobody held what it says, or after it, if ranks
    // held steps that were never told. Within a generation each step follows the one before.
    if *fence == newest.fence && step.0 != newest.step.0 + 1 {
        return Verdict::Refused(format!("step {step} of {task} does not follow step {} of {fence}", newest.step));
    }
    Verdict::New
}

fn short(digest: &str) -> &str {
    digest.get(..12).unwrap_or(digest)
}
