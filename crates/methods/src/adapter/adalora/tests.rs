use super::allocate::Phase;
use super::*;

/// The numbers are those of PEFT's scheduler.
#[test]
fn the_budget_falls_with_the_cube_of_what_is_left() {
    let config = Config { tinit: 2, tfinal: 3, deltaT: 2, ..Config::default() };
    let phase = |step| config.phase(step, 12, 84, 42);
    let measure = |budget| Phase::Measure { budget };
    let found: Vec<_> = (0..6).map(phase).collect();
    let expected = [None, None, None, None, Some(57), None].map(measure);
    assert_eq!(found, expected);
    assert_eq!([phase(8), phase(9), phase(10)], [measure(Some(42)), Phase::Settle { budget: 42 }, Phase::Keep]);
}

#[test]
fn a_trained_file_says_which_ranks_are_left() {
    let pattern = IndexMap::from([("a.q.lora_E".to_owned(), vec![true, false, true])]);
    let config = Config { rank_pattern: Some(pattern), init_r: 3, ..Config::default() };
    assert_eq!((config.rank("a.q"), config.rank("a.v")), (2, 3));
}
