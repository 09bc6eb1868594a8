//! Rows to bytes and back; which row counts.

use proptest::prelude::*;

use super::*;
use pleach_base::{Generation, Term};

pub(super) fn row(step: u64, generation: u64) -> LedgerRow {
    LedgerRow {
        task: "tone".into(),
        step: Step(step),
        fence: Fence { term: Term(1), generation: Generation(generation) },
        epoch: step / 10,
        samples: 8,
        digest: format!("{:064x}", step * 100 + generation),
        sample_digest: format!("{step:064x}"),
        lane_digests: (0..step % 4).map(|lane| format!("{lane:064x}")).collect(),
        skipped: step.is_multiple_of(5),
        tokens: (!step.is_multiple_of(3)).then_some(u64::MAX - step),
        world: 3,
        unix_ms: 1_700_000_000_000 + step.cast_signed(),
    }
}

#[test]
fn rows_survive_and_equal_rows_give_equal_bytes() {
    let rows: Vec<_> = (1..40).map(|step| row(step, 7)).collect();
    let bytes = encode_ledger(&rows).unwrap();
    assert_eq!(bytes, encode_ledger(&rows.clone()).unwrap());
    assert_eq!(decode_ledger("x", &bytes).unwrap(), rows);
    assert_eq!(decode_ledger("x", &encode_ledger(&[]).unwrap()).unwrap(), []);
}

#[test]
fn json_keeps_rows_whole() {
    let one = row(4, 2);
    let text = serde_json::to_string(&one).unwrap();
    assert!(text.contains("\"term\":1") && text.contains("\"generation\":2"), "{text}");
    assert_eq!(serde_json::from_str::<LedgerRow>(&text).unwrap(), one);
}

#[test]
fn a_later_fence_supersedes_whatever_comes_first() {
    for order in [[1, 2], [2, 1]] {
        let mut ledger = Ledger::default();
        for generation in order {
            ledger.take(row(5, generation)).unwrap();
        }
        assert_eq!(ledger.rows().collect::<Vec<_>>(), [&row(5, 2)]);
        assert_eq!(ledger.superseded().collect::<Vec<_>>(), [&row(5, 1)]);
    }
}

/// Generation 2 recorded where it went on, at step 8: what generation 1 made beyond leads nowhere, also where nobody has
/// made those steps again yet.
#[test]
fn a_generation_that_goes_back_leaves_nothing_beyond() {
    let rows = [row(7, 1), row(8, 1), row(9, 1), row(10, 1), row(8, 2), row(9, 2)];
    for turn in 0..rows.len() {
        let mut ledger = Ledger::default();
        (0..rows.len()).try_for_each(|at| ledger.take(rows[(at + turn) % rows.len()].clone())).unwrap();
        let made: Vec<_> = ledger.rows().map(|row| (row.step.0, row.fence.generation.0)).collect();
        assert_eq!(made, [(7, 1), (8, 2), (9, 2)]);
        assert_eq!(ledger.superseded().map(|row| row.step.0).collect::<Vec<_>>(), [8, 9, 10]);
    }
}

#[test]
fn one_fence_tells_one_story() {
    let mut ledger = Ledger::default();
    ledger.take(row(5, 1)).unwrap();
    ledger.take(LedgerRow { unix_ms: 0, ..row(5, 1) }).expect("a clock is no story");
    let other = LedgerRow { digest: "0".repeat(64), ..row(5, 1) };
    assert_eq!(ledger.take(other).expect_err("another digest").code(), code::STORE_CORRUPT);
}

#[test]
fn a_row_without_its_lanes_is_the_same_and_gives_way_to_one_with_them() {
    let short = LedgerRow { lane_digests: Vec::new(), ..row(5, 1) };
    for order in [[short.clone(), row(5, 1)], [row(5, 1), short]] {
        let mut ledger = Ledger::default();
        order.into_iter().try_for_each(|row| ledger.take(row)).unwrap();
        assert_eq!(ledger.rows().collect::<Vec<_>>(), [&row(5, 1)]);
    }
}

#[test]
fn what_lies_beyond_a_durable_step_led_nowhere() {
    let mut ledger = Ledger::default();
    (1..=9).try_for_each(|step| ledger.take(row(step, 1))).unwrap();
    ledger.ends_at(Step(6));
    assert_eq!(ledger.last().map(|last| last.step), Some(Step(6)));
    assert_eq!(ledger.superseded().count(), 3);
}

#[test]
fn rows_out_of_order_or_beyond_the_step_are_refused() {
    check(&[row(1, 1), row(3, 1)], Step(3)).unwrap();
    check(&[], Step(0)).unwrap();
    for (rows, step) in [(vec![row(2, 1), row(1, 1)], 3), (vec![row(1, 1), row(1, 1)], 3), (vec![row(4, 1)], 3)] {
        assert_eq!(check(&rows, Step(step)).expect_err("refused").code(), code::INTERNAL);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn damaged_chunks_are_errors_and_never_panics(at in any::<prop::sample::Index>(), bit in 0u8..8, cut in any::<prop::sample::Index>()) {
        let rows: Vec<_> = (1..6).map(|step| row(step, 7)).collect();
        let whole = encode_ledger(&rows).unwrap();
        let mut flipped = whole.to_vec();
        flipped[at.index(whole.len())] ^= 1 << bit;
        let _ = decode_ledger("x", &flipped.into());
        let shorter = whole.slice(..cut.index(whole.len()));
        prop_assert_eq!(decode_ledger("x", &shorter).expect_err("cut").code(), code::STORE_CORRUPT);
    }
}
