//! An epoch that holds, and each way in which one may not.

use std::collections::BTreeSet;

use pleach_base::{Generation, Step, Term};
use rstest::rstest;

use super::*;

/// Seven rows in reverse order, two a step, a row a lane; the last step is short.
struct Small;

impl Cut for Small {
    fn lanes(&self) -> u32 {
        2
    }

    fn steps(&self, epoch: u64) -> EpochSteps {
        EpochSteps { first: epoch * 4, end: epoch * 4 + 4, whole: 4 }
    }

    fn members(&self, _epoch: u64) -> Box<dyn Iterator<Item = u64> + '_> {
        Box::new(0..7)
    }

    fn lane(&self, step: u64, lane: u32) -> Vec<u64> {
        let position = (step - 1) % 4 * 2 + u64::from(lane);
        (position < 7).then(|| 6 - position).into_iter().collect()
    }
}

/// One row is in two lanes, and another in none; the records agree with that.
struct Overlapping;

impl Cut for Overlapping {
    fn lanes(&self) -> u32 {
        2
    }

    fn steps(&self, epoch: u64) -> EpochSteps {
        EpochSteps { first: epoch * 4, end: epoch * 4 + 4, whole: 4 }
    }

    fn members(&self, _epoch: u64) -> Box<dyn Iterator<Item = u64> + '_> {
        Box::new(0..7)
    }

    fn lane(&self, step: u64, lane: u32) -> Vec<u64> {
        Small.lane(step, lane).into_iter().map(|row| if row == 2 { 5 } else { row }).collect()
    }
}

fn row(cut: &dyn Cut, step: u64, generation: u64) -> LedgerRow {
    let lanes: Vec<Vec<u64>> = (0..cut.lanes()).map(|lane| cut.lane(step, lane)).collect();
    let digests: Vec<[u8; 32]> = lanes.iter().map(|rows| digest(rows)).collect();
    LedgerRow {
        task: "t".into(),
        step: Step(step),
        fence: Fence { term: Term(1), generation: Generation(generation) },
        epoch: (step - 1) / 4,
        samples: lanes.iter().map(|rows| rows.len() as u64).sum(),
        digest: format!("{step}-{generation}"),
        sample_digest: hex::encode(Sha256::digest(digests.concat())),
        lane_digests: digests.iter().map(hex::encode).collect(),
        skipped: false,
        tokens: None,
        world: 1,
        unix_ms: 0,
    }
}

fn check(cut: &dyn Cut, last: u64, rows: impl IntoIterator<Item = LedgerRow>) -> (Epoch, Vec<Fed>) {
    let mut ledger = Ledger::default();
    rows.into_iter().try_for_each(|row| ledger.take(row)).unwrap();
    let mut fed = Vec::new();
    let found = epoch(cut, 0, last, &ledger, &mut None, &mut |row| {
        fed.push(row);
        Ok(())
    });
    (found.unwrap(), fed)
}

fn epoch_of(cut: &dyn Cut, number: u64, last: u64, ledger: &Ledger) -> Epoch {
    epoch(cut, number, last, ledger, &mut None, &mut |_| Ok(())).unwrap()
}

fn whole(generation: u64) -> Vec<LedgerRow> {
    (1..=4).map(|step| row(&Small, step, generation)).collect()
}

#[test]
fn a_whole_epoch_holds_and_tells_who_trained_each_row() {
    let (found, fed) = check(&Small, 4, whole(3));
    assert!(found.holds && found.finished, "{found:?}");
    assert_eq!((found.rows, found.steps, found.unproven), (7, 4, 0));
    assert_eq!(fed.iter().map(|fed| fed.sample).collect::<BTreeSet<_>>(), (0..7).collect());
    assert_eq!((fed[3].sample, fed[3].step, fed[3].lane, fed[3].fence.generation), (3, 2, 1, Generation(3)));
}

#[test]
fn an_unfinished_epoch_holds_as_far_as_it_goes() {
    let (found, _) = check(&Small, 2, whole(1).into_iter().take(2));
    assert!(found.holds && !found.finished, "{found:?}");
    assert_eq!((found.rows, found.unproven), (4, 0));
}

#[rstest]
#[case::lanes_swapped(|rows: &mut Vec<LedgerRow>| rows[1].lane_digests.swap(0, 1), Some(2), Some(0))]
#[case::a_digest_of_other_rows(|rows: &mut Vec<LedgerRow>| rows[2].lane_digests[1] = hex::encode(digest(&[1, 1])), Some(3), Some(1))]
#[case::a_step_without_a_record(|rows: &mut Vec<LedgerRow>| drop(rows.remove(2)), Some(3), None)]
#[case::the_last_step_without_a_record(|rows: &mut Vec<LedgerRow>| drop(rows.pop()), Some(4), None)]
#[case::a_lane_missing(|rows: &mut Vec<LedgerRow>| drop(rows[0].lane_digests.pop()), Some(1), None)]
#[case::a_wrong_sum(|rows: &mut Vec<LedgerRow>| rows[0].sample_digest = "00".repeat(32), Some(1), None)]
#[case::a_wrong_count(|rows: &mut Vec<LedgerRow>| rows[3].samples = 2, Some(4), None)]
#[case::an_older_generation_after_a_newer(|rows: &mut Vec<LedgerRow>| rows[1].fence.generation = Generation(9), Some(3), None)]
#[case::a_step_of_another_epoch(|rows: &mut Vec<LedgerRow>| rows.push(row(&Small, 6, 1)), Some(6), None)]
fn what_does_not_hold_is_named(
    #[case] change: fn(&mut Vec<LedgerRow>),
    #[case] step: Option<u64>,
    #[case] lane: Option<u32>,
) {
    let mut rows = whole(1);
    change(&mut rows);
    let (found, _) = check(&Small, 4, rows);
    assert!(!found.holds, "{found:?}");
    assert_eq!((found.findings[0].step, found.findings[0].lane), (step, lane), "{:?}", found.findings);
}

#[test]
fn swapped_lanes_are_recognised_and_their_rows_are_not_proven() {
    let mut rows = whole(1);
    rows[1].lane_digests.swap(0, 1);
    let (found, fed) = check(&Small, 4, rows);
    assert_eq!(found.findings[0].what, "it was fed what lane 1 should have been fed");
    assert_eq!((found.rows, found.unproven, fed.len()), (5, 2, 5));
    assert_eq!(found.unproven_rows, [3, 4]);
}

/// The set of rows is checked for itself: records that agree with a cut that uses a row twice prove nothing.
#[test]
fn a_row_that_two_lanes_hold_is_found_though_all_digests_are_right() {
    let rows: Vec<_> = (1..=4).map(|step| row(&Overlapping, step, 1)).collect();
    let (found, _) = check(&Overlapping, 4, rows);
    assert!(!found.holds);
    assert_eq!(found.findings.len(), 1, "{:?}", found.findings);
    assert_eq!((found.findings[0].step, found.findings[0].lane), (Some(3), Some(0)));
    assert_eq!((found.unproven, found.unproven_rows.as_slice()), (1, &[2][..]));
}

#[test]
fn a_superseded_record_does_not_count_and_is_listed() {
    let mut rows = whole(1);
    // What the earlier generation claims of step 4 is wrong; the later one made the step again.
    rows[3].lane_digests.swap(0, 1);
    rows.push(row(&Small, 4, 2));
    let (found, fed) = check(&Small, 4, rows);
    assert!(found.holds, "{:?}", found.findings);
    assert_eq!(found.superseded.iter().map(|row| (row.step, row.fence.generation.0)).collect::<Vec<_>>(), [(4, 1)]);
    assert_eq!(
        found.made_by.iter().map(|made| (made.fence.generation.0, made.from, made.to)).collect::<Vec<_>>(),
        [(1, 1, 3), (2, 4, 4)]
    );
    assert_eq!(fed.last().map(|fed| fed.fence.generation), Some(Generation(2)));
}

#[test]
fn steps_that_were_not_finite_are_listed_and_count_as_fed() {
    let mut rows = whole(1);
    rows[2].skipped = true;
    let (found, fed) = check(&Small, 4, rows);
    assert!(found.holds);
    assert_eq!((found.not_finite, fed.len()), (vec![3], 7));
}

/// Rows of two tasks, one after the other: the first, of rows 1, 3 and 5, ends within its second epoch.
#[test]
fn an_epoch_that_the_next_task_cuts_off_is_unfinished_and_holds() {
    let text = "global_batch: 2\nmax_steps: 6\noptimizer: {lr: 1e-3}\n";
    let train: pleach_spec::job::TrainSpec = serde_saphyr::from_str(text).unwrap();
    let plan = pleach_data::Plan::in_parts(&train, &[3, 4], 2).unwrap();
    let data = serde_saphyr::from_str("{source: x, task: sequence_classification}").unwrap();
    let order = Order::new(plan, 1, &"t".into(), &data).over(vec![1, 3, 5, 0, 2, 4, 6]);
    let records = |epoch, steps: std::ops::RangeInclusive<u64>| {
        let mut ledger = Ledger::default();
        steps.for_each(|step| ledger.take(LedgerRow { epoch, ..row(&order, step, 1) }).unwrap());
        epoch_of(&order, epoch, 6, &ledger)
    };
    let first = records(0, 1..=2);
    assert!(first.holds && first.finished && first.rows == 3, "{first:?}");
    let cut = records(1, 3..=3);
    assert!(cut.holds && !cut.finished && (cut.rows, cut.steps, cut.of_steps) == (2, 1, 2), "{cut:?}");
    let second = records(2, 4..=5);
    assert!(second.holds && second.finished && second.rows == 4, "{second:?}");
    // A step of the next task does not belong to the epoch that was cut off.
    let strayed = records(1, 3..=4);
    assert_eq!((strayed.holds, strayed.findings[0].step), (false, Some(4)), "{strayed:?}");
}

#[test]
fn much_that_is_wrong_is_counted_rather_than_kept() {
    let mut found = check(&Small, 4, whole(1)).0;
    (0..150).for_each(|step| found.find(Finding::at(step, "x")));
    assert_eq!((found.findings.len(), found.more_findings, found.holds), (100, 50, false));
}
