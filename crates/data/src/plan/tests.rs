use pleach_base::Code;
use proptest::prelude::*;

use super::*;

fn train() -> TrainSpec {
    serde_json::from_value(serde_json::json!({"global_batch": 1})).unwrap()
}

fn order(plan: Plan, shuffle: bool) -> Order {
    Order { plan, key: Key::seed(11).named("task"), shuffle, rows: None }
}

proptest! {
    /// sample-once-per-epoch: whatever the batch and the lanes, an epoch's lanes hold each row exactly once.
    #[test]
    fn an_epoch_holds_every_row_exactly_once(
        rows in 1u64..2_000, batch in 1u32..70, lanes in 1u32..70, epochs in 1u32..4, shuffle in any::<bool>(),
    ) {
        let batch = batch.min(rows as u32);
        let plan = Plan::new(rows, batch, lanes.min(batch), Some(epochs), None).unwrap();
        let order = order(plan.clone(), shuffle);
        let mut seen = vec![vec![0u32; rows as usize]; epochs as usize];
        for step in 0..plan.total_steps() {
            for lane in 0..plan.lanes() {
                let work = order.lane_rows(step, lane);
                for row in work.rows {
                    seen[work.at.epoch as usize][row as usize] += 1;
                }
            }
        }
        prop_assert!(seen.iter().flatten().all(|count| *count == 1));
    }

    #[test]
    fn lanes_are_contiguous_balanced_and_together_the_step(
        rows in 1u64..5_000, batch in 1u32..90, lanes in 1u32..90, step in 0u64..500,
    ) {
        let batch = batch.min(rows as u32);
        let plan = Plan::new(rows, batch, lanes.min(batch), None, Some(500)).unwrap();
        let (epoch, all) = plan.step(step);
        let slices: Vec<_> = (0..plan.lanes()).map(|lane| plan.lane(step, lane)).collect();
        prop_assert!(slices.iter().all(|slice| slice.epoch == epoch && slice.step == step));
        prop_assert!(slices.windows(2).all(|pair| pair[0].positions.end == pair[1].positions.start));
        prop_assert_eq!(slices[0].positions.start..slices[slices.len() - 1].positions.end, all.clone());
        let sizes: Vec<u64> = slices.iter().map(|slice| slice.positions.end - slice.positions.start).collect();
        prop_assert!(sizes.iter().max().unwrap() - sizes.iter().min().unwrap() <= 1);
        prop_assert!(!all.is_empty() && all.end - all.start <= u64::from(batch));
    }

    /// What a step contains does not depend on the number of lanes it is cut into.
    #[test]
    fn lanes_do_not_change_a_step(rows in 20u64..500, step in 0u64..60, lanes in 1u32..20) {
        let rows_of = |lanes| {
            let order = order(Plan::new(rows, 20, lanes, None, Some(60)).unwrap(), true);
            (0..lanes).flat_map(|lane| order.lane_rows(step, lane).rows).collect::<Vec<_>>()
        };
        prop_assert_eq!(rows_of(lanes), rows_of(1));
    }

    #[test]
    fn resuming_at_any_step_gives_the_rest(rows in 5u64..60, batch in 1u32..5, at in 0u64..40) {
        let order = order(Plan::new(rows, batch, 1, Some(2), None).unwrap(), true);
        let whole: Vec<_> = Cursor::default().work(order.clone(), 0..1).collect();
        let at = at.min(order.plan().total_steps());
        let rest: Vec<_> = Cursor { step: at }.work(order, 0..1).collect();
        prop_assert_eq!(&whole[at as usize..], &rest[..]);
    }
}

#[test]
fn the_last_step_of_an_epoch_is_short_and_epochs_are_ordered_anew() {
    let plan = Plan::new(10, 4, 2, Some(2), None).unwrap();
    assert_eq!((plan.steps_per_epoch(), plan.total_steps()), (3, 6));
    assert_eq!(plan.step(2), (0, 8..10));
    assert_eq!(plan.step(3), (1, 0..4));
    assert_eq!(plan.lane(2, 1).positions, 9..10);
    let order = order(plan, true);
    let rows_of = |epoch| (0..10).map(|position| order.epoch(epoch).row(position)).collect::<Vec<_>>();
    assert_ne!(rows_of(0), rows_of(1));
}

#[test]
fn epochs_and_max_steps_take_the_smaller() {
    let total = |epochs, max_steps| Plan::new(10, 4, 1, epochs, max_steps).unwrap().total_steps();
    assert_eq!(total(Some(3), None), 9);
    assert_eq!(total(Some(3), Some(4)), 4);
    assert_eq!(total(None, Some(100)), 100);
}

#[test]
fn impossible_plans_are_refused_with_their_codes() {
    let code_of = |rows, batch, lanes| -> Code { Plan::new(rows, batch, lanes, Some(1), None).unwrap_err().code() };
    assert_eq!(code_of(0, 1, 1), code::DATA_EMPTY);
    assert_eq!(code_of(7, 8, 1), code::DATA_TOO_SMALL);
    assert_eq!(code_of(8, 4, 5), code::BAD_VALUE);
    assert_eq!(code_of(8, 0, 1), code::BAD_VALUE);
}

#[test]
fn a_lane_names_the_shards_it_reads() {
    let plan = Plan::new(5_000, 100, 2, Some(1), None).unwrap();
    assert_eq!(order(plan.clone(), false).shards(1, 0..21), BTreeSet::from([0, 1, 2]));
    assert_eq!(order(plan, true).shards(0, 0..50), (0..5).collect());
}

#[test]
fn a_cursor_survives_json() {
    let cursor = Cursor { step: 41 }.next();
    assert_eq!(serde_json::to_string(&cursor).unwrap(), r#"{"step":42}"#);
    assert_eq!(serde_json::from_str::<Cursor>(r#"{"step":42}"#).unwrap(), cursor);
}

/// Parts of 5 and 4 rows, two epochs of each in steps of 2.
#[test]
fn parts_follow_one_another_each_over_its_own_rows() {
    let train = TrainSpec { global_batch: 2, epochs: Some(2), ..train() };
    let plan = Plan::in_parts(&train, &[5, 4], 2).unwrap();
    assert_eq!((plan.total_steps(), plan.phases(), plan.rows()), (10, vec![6, 4], 9));
    let all: Vec<_> = (0..10).map(|step| plan.step(step)).collect();
    let (first, second) = (vec![0..2, 2..4, 4..5], vec![5..7, 7..9]);
    let of =
        |epoch: u64, ranges: &[std::ops::Range<u64>]| ranges.iter().map(move |range| (epoch, range.clone())).collect();
    let expected: Vec<Vec<_>> = vec![of(0, &first), of(1, &first), of(2, &second), of(3, &second)];
    assert_eq!(all, expected.concat());
    assert_eq!([3, 6, 8].map(|steps| plan.epochs_done(steps)), [1.0, 2.0, 3.0]);
    let spec = serde_json::from_value(serde_json::json!({"source": "x", "task": "sequence_classification"})).unwrap();
    let rows = vec![10, 11, 12, 13, 14, 3, 2, 1, 0];
    let order = Order::new(plan, 7, &"t".into(), &spec).over(rows.clone());
    for (steps, of) in [(0..3, &rows[..5]), (3..6, &rows[..5]), (6..8, &rows[5..]), (8..10, &rows[5..])] {
        let mut seen: Vec<u64> =
            steps.flat_map(|step| [0, 1].map(|lane| order.lane_rows(step, lane).rows)).flatten().collect();
        let mut all = of.to_vec();
        seen.sort_unstable();
        all.sort_unstable();
        assert_eq!(seen, all, "every row of the part is in one step of an epoch");
    }
    let again: Vec<_> = Cursor { step: 6 }.work(order.clone(), 0..2).map(|work| work.at.step).collect();
    assert_eq!(again, [6, 6, 7, 7, 8, 8, 9, 9]);
}

#[test]
fn steps_are_shared_out_over_parts() {
    let train = TrainSpec { global_batch: 2, epochs: None, max_steps: Some(7), ..train() };
    assert_eq!(Plan::in_parts(&train, &[5, 4], 1).unwrap().phases(), [3, 4]);
    let error = Plan::in_parts(&train, &[5, 1], 1).unwrap_err();
    assert_eq!(error.code(), pleach_base::code::DATA_TOO_SMALL);
}

#[test]
fn the_steps_of_an_epoch_are_those_of_its_number_and_hold_its_members() {
    let parts = |epochs, max_steps| {
        let train = TrainSpec { global_batch: 2, epochs, max_steps, ..train() };
        order(Plan::in_parts(&train, &[5, 4], 2).unwrap(), true).over(vec![1, 3, 5, 7, 9, 0, 2, 4, 6])
    };
    let single = order(Plan::new(7, 3, 1, Some(2), None).unwrap(), true);
    for order in [parts(Some(2), None), parts(None, Some(8)), single] {
        let (plan, total) = (order.plan(), order.plan().total_steps());
        let mut next = 0;
        for epoch in (0..).take_while(|epoch| plan.epoch_steps(*epoch).first < total) {
            let EpochSteps { first, end, whole } = plan.epoch_steps(epoch);
            assert_eq!(first, next, "epoch {epoch} of {plan:?}");
            next = end;
            let steps = first..end.min(total);
            assert!(steps.clone().all(|step| plan.step(step).0 == epoch), "epoch {epoch} of {plan:?}");
            let done = steps.end - steps.start == whole;
            let mut fed: Vec<u64> = Vec::new();
            for step in steps {
                fed.extend((0..plan.lanes()).flat_map(|lane| order.lane_rows(step, lane).rows));
            }
            let mut members: Vec<u64> = order.members(epoch).collect();
            members.sort_unstable();
            fed.sort_unstable();
            assert!(fed.iter().all(|row| members.contains(row)), "epoch {epoch} of {plan:?}");
            assert_eq!(fed == members, done, "epoch {epoch} of {plan:?}");
        }
        assert!(next >= total);
    }
}
