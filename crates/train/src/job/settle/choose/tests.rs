use pleach_base::{Generation, Term};
use proptest::prelude::*;

use super::*;

fn fence(generation: u64) -> Fence {
    Fence { term: Term(1), generation: Generation(generation) }
}

fn digest(step: u64, made_by: u64) -> [u8; 32] {
    std::array::from_fn(|at| if at == 0 { step as u8 } else { made_by as u8 })
}

fn claim(rank: usize, step: u64, generation: u64) -> Claim {
    Claim {
        rank,
        slot: 0,
        step,
        fence: fence(generation),
        digest: digest(step, generation),
        agreed: true,
        rounded_off: true,
    }
}

fn record(step: u64, generation: u64) -> Record {
    Record { step, fence: fence(generation), digest: hex::encode(digest(step, generation)) }
}

fn chosen(claims: &[Claim], records: &[Record]) -> Option<(usize, u64, u64)> {
    choose(claims, records).map(|claim| (claim.rank, claim.step, claim.fence.generation.0))
}

#[test]
fn a_step_that_was_agreed_and_not_recorded_is_kept() {
    let claims = [claim(0, 5, 1), claim(1, 6, 1)];
    assert_eq!(chosen(&claims, &[record(4, 1), record(5, 1)]), Some((1, 6, 1)));
    assert_eq!(chosen(&claims, &[]), Some((1, 6, 1)), "nothing is recorded yet");
}

#[test]
fn a_step_on_which_nobody_agreed_counts_only_when_it_is_recorded() {
    let half = Claim { agreed: false, ..claim(0, 6, 1) };
    assert_eq!(chosen(&[half, claim(1, 5, 1)], &[record(5, 1)]), Some((1, 5, 1)));
    assert_eq!(chosen(&[half, claim(1, 5, 1)], &[record(5, 1), record(6, 1)]), Some((0, 6, 1)));
    assert_eq!(chosen(&[half], &[]), None);
}

#[test]
fn a_generation_that_was_overtaken_has_no_say_beyond_the_record() {
    // Generation 1 went on to 9, unheard; generation 2 made 6 and 7 anew, and they are recorded.
    let records = [record(5, 1), record(6, 2), record(7, 2)];
    assert_eq!(chosen(&[claim(0, 9, 1), claim(1, 7, 2)], &records), Some((1, 7, 2)));
    assert_eq!(chosen(&[claim(0, 9, 1), claim(1, 5, 1)], &records), Some((1, 5, 1)));
    assert_eq!(chosen(&[claim(0, 9, 1), claim(0, 6, 1)], &records), None, "step 6 of 1 is not what is recorded");
    assert_eq!(chosen(&[claim(0, 9, 1), claim(1, 8, 3)], &records), Some((1, 8, 3)), "a later one may go on");
}

#[test]
fn up_to_the_record_the_digest_decides_and_not_who_made_it() {
    let same = Claim { fence: fence(1), ..claim(0, 6, 2) };
    assert_eq!(chosen(&[same], &[record(6, 2)]), Some((0, 6, 1)));
    let conflicting = Claim { digest: digest(6, 9), ..claim(1, 6, 2) };
    assert_eq!(chosen(&[conflicting, same], &[record(6, 2)]), Some((0, 6, 1)));
}

#[test]
fn a_record_that_is_no_longer_kept_cannot_vouch_for_a_state() {
    let records: Vec<_> = (50..=65).map(|step| record(step, 2)).collect();
    assert_eq!(chosen(&[claim(0, 49, 2)], &records), None);
    assert_eq!(chosen(&[claim(0, 50, 2)], &records), Some((0, 50, 2)));
}

#[test]
fn of_equal_states_the_lowest_rank_gives_its_own() {
    assert_eq!(chosen(&[claim(2, 5, 1), claim(1, 5, 1), claim(3, 4, 1)], &[record(5, 1)]), Some((1, 5, 1)));
    assert_eq!(chosen(&[claim(0, 6, 1), claim(1, 6, 2)], &[record(5, 1)]), Some((1, 6, 2)), "the later generation");
}

#[test]
fn the_store_is_asked_when_memory_does_not_reach_the_record() {
    let five = claim(0, 5, 1);
    assert!(store_may_have_more(None, &[]));
    assert!(store_may_have_more(Some(&five), &[record(6, 1)]));
    assert!(!store_may_have_more(Some(&five), &[record(5, 1)]));
    assert!(!store_may_have_more(Some(&five), &[]));
}

/// Few steps, generations and digests, so that everything meets everything.
fn any_claim() -> impl Strategy<Value = Claim> {
    (0usize..4, 0usize..3, 0u64..8, 1u64..4, 1u64..4, any::<bool>()).prop_map(
        |(rank, slot, step, made_by, bits, agreed)| Claim {
            slot,
            digest: digest(step, bits),
            agreed,
            ..claim(rank, step, made_by)
        },
    )
}

fn any_records() -> impl Strategy<Value = Vec<Record>> {
    (1u64..6, prop::collection::vec((1u64..4, 1u64..4), 0..4)).prop_map(|(first, rest)| {
        let mut newest = 0;
        let steps = (first..).zip(rest);
        steps
            .map(|(step, (generation, bits))| {
                newest = generation.max(newest);
                Record { step, fence: fence(newest), digest: hex::encode(digest(step, bits)) }
            })
            .collect()
    })
}

proptest! {
    #[test]
    fn the_choice_is_valid_newest_and_the_same_however_the_table_lies(
        claims in prop::collection::vec(any_claim(), 0..8),
        records in any_records(),
        turn in 0usize..8,
    ) {
        let chosen = choose(&claims, &records);
        let valid: Vec<_> = claims.iter().filter(|claim| is_valid(claim, &records)).collect();
        prop_assert_eq!(chosen.is_none(), valid.is_empty());
        if let Some(chosen) = chosen {
            prop_assert!(is_valid(chosen, &records));
            for other in valid {
                prop_assert!(other.step <= chosen.step);
                prop_assert!(other.step < chosen.step || other.fence <= chosen.fence);
            }
            let mut turned = claims.clone();
            turned.rotate_left(turn % claims.len());
            let again = choose(&turned, &records).unwrap();
            prop_assert_eq!((again.step, again.fence, again.rank), (chosen.step, chosen.fence, chosen.rank));
        }
    }

    /// What is recorded is never contradicted, and what a recorded generation has followed never returns.
    #[test]
    fn no_choice_goes_against_the_record(
        claims in prop::collection::vec(any_claim(), 1..8),
        records in any_records(),
    ) {
        if let (Some(chosen), Some(head)) = (choose(&claims, &records), records.last()) {
            match records.iter().find(|record| record.step == chosen.step) {
                Some(record) => prop_assert_eq!(&record.digest, &hex::encode(chosen.digest)),
                None => prop_assert!(chosen.step > head.step && chosen.agreed && chosen.fence >= head.fence),
            }
        }
    }
}
