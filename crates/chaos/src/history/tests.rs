//! Invented logs, right and wrong.

use super::*;
use crate::feed::{Fed, Lane, Resume};

/// Ten rows, four a step on two lanes: three steps an epoch (4, 4, 2), two epochs.
const SHAPE: Shape = Shape { rows: 10, batch: 4, lanes: 2, steps: 6 };

/// The rows of a lane of a step, in an order of the test's own.
fn rows(step: u64, lane: u32) -> Vec<u64> {
    let first = (step - 1) % 3 * 4;
    let all: Vec<u64> = (first..(first + 4).min(10)).map(|at| (at * 7 + step / 4) % 10).collect();
    let half = all.len() / 2;
    if lane == 0 { all[..half].to_vec() } else { all[half..].to_vec() }
}

fn fed(fence: Fence, step: u64, rank: u32, lanes: &[u32]) -> Line {
    let lanes = lanes.iter().map(|lane| Lane { lane: *lane, samples: rows(step, *lane) }).collect();
    Line::Fed(Fed { task: "t".into(), step, term: fence.0, generation: fence.1, rank, lanes })
}

fn resume(fence: Fence, step: u64) -> Line {
    Line::Resume(Resume { task: "t".into(), step, term: fence.0, generation: fence.1, source: "memory".into() })
}

/// A generation of two ranks that goes on from `from` and feeds up to `to`.
fn two(fence: Fence, from: u64, to: u64) -> Vec<Line> {
    let steps = (from + 1..=to).flat_map(|step| [fed(fence, step, 0, &[0]), fed(fence, step, 1, &[1])]);
    [resume(fence, from), resume(fence, from)].into_iter().chain(steps).collect()
}

/// A generation of one rank.
fn one(fence: Fence, from: u64, to: u64) -> Vec<Line> {
    std::iter::once(resume(fence, from)).chain((from + 1..=to).map(|step| fed(fence, step, 0, &[0, 1]))).collect()
}

fn account(lines: &[Vec<Line>]) -> Account {
    let mut history = History::default();
    lines.iter().flatten().for_each(|line| history.add(line));
    history.account(SHAPE)
}

#[test]
fn a_run_without_faults_and_one_with_many_have_the_same_account() {
    let calm = account(&[two((1, 1), 0, 6)]);
    assert!(calm.holds(SHAPE), "{calm:?}");
    assert_eq!((calm.steps, calm.samples_redone), (6, 0));
    // Step 3 was fed by the first generation and is made again by the second; the third goes back to 4; the fourth, of a new
    // term, goes on from what the third had not yet recorded.
    let wild = account(&[two((1, 1), 0, 3), one((1, 2), 2, 5), two((1, 3), 4, 5), one((2, 4), 5, 6)]);
    assert!(wild.holds(SHAPE), "{wild:?}");
    assert_eq!(wild.digests, calm.digests);
    assert_eq!((wild.generations, wild.samples_redone), (4, 2 + 4));
    assert_eq!(wild.made_by.values().copied().collect::<Vec<_>>(), [(1, 1), (1, 1), (1, 2), (1, 2), (1, 3), (2, 4)]);
}

#[test]
fn a_generation_that_went_back_twice_gives_up_what_lies_beyond() {
    // The second fed 4 and 5, then a third went back to 1: only step 1 of the first generation counts.
    let account = account(&[two((1, 1), 0, 3), one((1, 2), 3, 5), two((1, 3), 1, 6)]);
    assert!(account.holds(SHAPE), "{account:?}");
    assert_eq!(account.samples_redone, 4 + 2 + 4 + 4);
}

#[test]
fn a_lost_step_is_seen() {
    // The second generation claims to go on from 3 although nobody fed 3.
    let account = account(&[two((1, 1), 0, 2), two((1, 2), 3, 6)]);
    assert_eq!((account.samples_lost, account.samples_repeated, account.steps), (2, 0, 5));
    assert!(!account.holds(SHAPE));
}

#[test]
fn a_lane_that_two_ranks_feed_is_seen() {
    let mut lines = two((1, 1), 0, 6);
    lines.push(fed((1, 1), 4, 1, &[0]));
    let account = account(&[lines]);
    assert_eq!((account.samples_lost, account.samples_repeated, account.steps_misshapen), (0, 2, 1));
    assert!(!account.holds(SHAPE));
}

#[test]
fn a_lane_that_nobody_feeds_is_seen() {
    let mut lines = two((1, 1), 0, 6);
    lines.retain(|line| !matches!(line, Line::Fed(fed) if fed.step == 5 && fed.rank == 1));
    let account = account(&[lines]);
    assert_eq!((account.samples_lost, account.steps_misshapen), (2, 1));
    assert!(!account.holds(SHAPE));
}

#[test]
fn rows_of_another_step_are_repeated_and_their_own_are_lost() {
    let mut lines = two((1, 1), 0, 6);
    for line in &mut lines {
        if let Line::Fed(fed) = line
            && fed.step == 2
            && fed.rank == 0
        {
            fed.lanes[0].samples = rows(1, 0);
        }
    }
    let account = account(&[lines]);
    assert_eq!((account.samples_lost, account.samples_repeated, account.samples_unknown), (2, 2, 0));
}

#[test]
fn rows_that_do_not_exist_and_ranks_that_disagree_are_seen() {
    let mut lines = two((1, 1), 0, 6);
    if let Line::Fed(fed) = &mut lines[2] {
        fed.lanes[0].samples[0] = 10;
    }
    lines.push(resume((1, 1), 1));
    let account = account(&[lines]);
    assert_eq!((account.samples_unknown, account.samples_lost, account.resumes_that_differ), (1, 1, 1));
}

#[test]
fn the_digest_is_the_one_of_the_commit_record() {
    let account = account(&[two((1, 1), 0, 6)]);
    let lane = |rows: &[u64]| Sha256::digest(rows.iter().flat_map(|row| row.to_le_bytes()).collect::<Vec<u8>>());
    let mut whole = Sha256::new();
    whole.update(lane(&rows(3, 0)));
    whole.update(lane(&rows(3, 1)));
    assert_eq!(account.digests[&3], hex::encode(whole.finalize()));
}
