//! The schedule of faults: drawn from the seed before anything runs, so that a run can be had again.
//!
//! Kinds come from a shuffled bag that is refilled when it is empty: every kind has its turn, in no order that a fault could rely
//! on. Most faults stand alone, so that the time to recover can be told; about one in six follows its predecessor at once.

use std::fmt;
use std::time::Duration;

use pleach_base::rng::{CounterRng, Key};

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    Kill,
    PhaseKill,
    PhasePause,
    Pause,
    Terminate,
    Partition,
    Isolate,
    Loss,
    Delay,
    SlowLink,
    LeaderKill,
    LeaderPause,
    LeaderCut,
    EtcdKill,
    S3Errors,
    S3Slow,
    S3Cut,
    DiskFull,
}

/// All of them, with the name that the report uses.
pub(crate) const KINDS: &[(Kind, &str)] = &[
    (Kind::Kill, "kill-9"),
    (Kind::PhaseKill, "kill-9-at-phase"),
    (Kind::PhasePause, "stop-at-phase"),
    (Kind::Pause, "stop-and-continue"),
    (Kind::Terminate, "terminate"),
    (Kind::Partition, "partition"),
    (Kind::Isolate, "isolate-worker"),
    (Kind::Loss, "packet-loss"),
    (Kind::Delay, "delay"),
    (Kind::SlowLink, "slow-link"),
    (Kind::LeaderKill, "leader-kill"),
    (Kind::LeaderPause, "leader-stop"),
    (Kind::LeaderCut, "leader-cut-off"),
    (Kind::EtcdKill, "etcd-kill"),
    (Kind::S3Errors, "s3-5xx"),
    (Kind::S3Slow, "s3-slow"),
    (Kind::S3Cut, "s3-cut-uploads"),
    (Kind::DiskFull, "disk-full"),
];

/// Places in a step at which a worker can be told to send itself a signal.
pub(crate) const PHASES: &[&str] =
    &["before_forward", "after_backward", "during_reduce", "before_commit", "after_commit", "during_upload"];

impl Kind {
    pub(crate) fn name(self) -> &'static str {
        KINDS.iter().find(|(kind, _)| *kind == self).map_or("?", |(_, name)| name)
    }

    /// How long it lasts: nothing for what is done at once.
    fn lasts(self, rng: &mut CounterRng) -> Duration {
        let (least, most) = match self {
            Self::Kill | Self::PhaseKill | Self::Terminate | Self::LeaderKill | Self::EtcdKill => {
                return Duration::ZERO;
            }
            Self::Pause | Self::PhasePause | Self::LeaderPause => (1.0, 8.0),
            Self::Partition | Self::Isolate | Self::LeaderCut => (2.0, 5.0),
            Self::Loss | Self::Delay | Self::SlowLink => (1.5, 3.0),
            Self::S3Errors | Self::S3Slow | Self::S3Cut => (2.0, 6.0),
            Self::DiskFull => (2.0, 4.0),
        };
        Duration::from_secs_f32(rng.uniform_in(least, most))
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// One fault to come. Whom it hits is decided by the draws, among those who can be hit then.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Planned {
    /// After the first step.
    pub(crate) at: Duration,
    pub(crate) kind: Kind,
    pub(crate) lasts: Duration,
    pub(crate) draws: [u64; 4],
}

/// The mean distance of two faults, less than which one would not know which fault cost what.
const LEAST_GAP: f32 = 6.5;
const MOST_GAP: f32 = 9.5;
/// The first fault finds a gang at work.
const FIRST: Duration = Duration::from_secs(3);

/// The faults of a run that lasts `length`. The last of them leaves time to recover.
pub(crate) fn draw(seed: u64, length: Duration, kinds: &[Kind]) -> Vec<Planned> {
    let mut rng = Key::seed(seed).named("chaos").rng();
    let mut bag: Vec<Kind> = Vec::new();
    let mut plan = Vec::new();
    let mut at = FIRST;
    while at + Duration::from_secs(8) < length && !kinds.is_empty() {
        if bag.is_empty() {
            bag = kinds.to_vec();
            for end in (1..bag.len()).rev() {
                bag.swap(end, rng.below(end as u64 + 1) as usize);
            }
        }
        let Some(kind) = bag.pop() else { break };
        let draws = std::array::from_fn(|_| rng.next_u64());
        plan.push(Planned { at, kind, lasts: kind.lasts(&mut rng), draws });
        let gap = if rng.below(6) == 0 { rng.uniform_in(0.2, 1.5) } else { rng.uniform_in(LEAST_GAP, MOST_GAP) };
        at += Duration::from_secs_f32(gap);
    }
    plan
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn all() -> Vec<Kind> {
        KINDS.iter().map(|(kind, _)| *kind).collect()
    }

    #[test]
    fn ten_minutes_have_sixty_faults_of_every_kind_whatever_the_seed() {
        for seed in 1..20 {
            let plan = draw(seed, Duration::from_secs(600), &all());
            assert!(plan.len() >= 60, "{}", plan.len());
            let mut by_kind: BTreeMap<Kind, usize> = BTreeMap::new();
            plan.iter().for_each(|planned| *by_kind.entry(planned.kind).or_default() += 1);
            assert_eq!(by_kind.len(), KINDS.len());
            assert!(plan.is_sorted_by_key(|planned| planned.at));
            assert!(plan.last().unwrap().at < Duration::from_secs(592));
        }
    }

    #[test]
    fn a_seed_is_a_schedule() {
        let minute = Duration::from_secs(60);
        assert_eq!(draw(3, minute, &all()), draw(3, minute, &all()));
        assert_ne!(draw(3, minute, &all()), draw(4, minute, &all()));
        assert!(draw(3, minute, &[]).is_empty());
        assert!(draw(3, minute, &[Kind::Pause]).iter().all(|planned| planned.kind == Kind::Pause));
    }
}
