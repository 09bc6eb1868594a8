//! Ranks that die, stop, come late or stray.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use rstest::rstest;

use crate::ranks::Gang;

/// The code, the milliseconds and the lost ranks of `ended CODE MILLIS LOST text`.
fn ended(answer: &str) -> (String, u64, String) {
    let words: Vec<&str> = answer.split_whitespace().collect();
    assert_eq!(words[0], "ended", "{answer}");
    (words[1].to_owned(), words[2].parse().unwrap(), words[3].to_owned())
}

#[allow(clippy::disallowed_methods)]
fn now() -> Instant {
    Instant::now()
}

#[rstest]
#[case::two(2)]
#[case::three(3)]
#[case::four(4)]
fn a_dead_rank_is_noticed_at_once_and_the_rest_form_a_new_group(#[case] world: usize) {
    let mut gang = Gang::start(world);
    gang.form(world, "fast", 20_000);
    for rank in &mut gang.ranks {
        rank.tell("reduce 100000000");
    }
    assert!(gang.ranks[0].is_silent_for(Duration::from_millis(200)));
    let killed = now();
    gang.ranks[world - 1].signal(Signal::SIGKILL);
    for rank in &gang.ranks[..world - 1] {
        let answer = rank.answer();
        let (code, _, lost) = ended(&answer);
        assert_eq!(code, "PL0501", "{answer}");
        assert!(!lost.is_empty() && lost != "-", "{answer}");
    }
    assert!(killed.elapsed() < Duration::from_secs(2), "took {:?}", killed.elapsed());
    // The old group stays closed, a new one of the survivors works.
    for answer in gang.ask(world - 1, "reduce 1") {
        assert_eq!(ended(&answer).0, "PL0503", "{answer}");
    }
    gang.form(world - 1, "fast", 20_000);
    assert_eq!(gang.ask(world - 1, "reduce 10"), vec!["done"; world - 1]);
}

#[rstest]
#[case::two(2)]
#[case::three(3)]
fn abort_ends_the_wait_for_a_stopped_rank(#[case] world: usize) {
    let mut gang = Gang::start(world);
    gang.form(world, "fast", 20_000);
    assert_eq!(gang.ask(world, "reduce 3"), vec!["done"; world]);
    gang.ranks[world - 1].signal(Signal::SIGSTOP);
    for rank in &mut gang.ranks {
        rank.tell("reduce 100000000");
    }
    assert!(gang.ranks[0].is_silent_for(Duration::from_millis(500)), "a stopped rank is only silent");
    let aborted = now();
    gang.ranks[0].tell("abort");
    let answer = gang.ranks[0].answer();
    assert!(aborted.elapsed() < Duration::from_secs(1), "took {:?}", aborted.elapsed());
    assert_eq!(ended(&answer).0, "PL0503", "{answer}");
    for rank in &gang.ranks[1..world - 1] {
        let answer = rank.answer();
        assert_eq!(ended(&answer).0, "PL0501", "the others see the aborting rank as gone: {answer}");
    }
    // Refused at once from now on.
    gang.ranks[0].tell("reduce 1");
    let (code, millis, _) = ended(&gang.ranks[0].answer());
    assert_eq!((code.as_str(), millis < 100), ("PL0503", true));
    // Whoever wakes up finds the group closed.
    gang.ranks[world - 1].signal(Signal::SIGCONT);
    assert_eq!(ended(&gang.ranks[world - 1].answer()).0, "PL0501");
}

#[test]
fn a_late_rank_is_waited_for() {
    let mut gang = Gang::start(3);
    gang.form(3, "fast", 10_000);
    gang.ranks[1].tell("sleep 700");
    for rank in &mut gang.ranks {
        rank.tell("reduce 1");
    }
    assert_eq!(gang.ranks[1].answer(), "slept");
    for rank in &gang.ranks {
        assert_eq!(rank.answer(), "done");
    }
}

#[test]
fn a_rank_that_does_not_come_in_time_ends_the_wait() {
    let mut gang = Gang::start(3);
    gang.form(3, "fast", 600);
    gang.ranks[2].signal(Signal::SIGSTOP);
    let asked = now();
    let answers = gang.ask(2, "reduce 1");
    let codes: Vec<_> = answers.iter().map(|answer| ended(answer).0).collect();
    // The first one to give up closes its connections, so the other may see it go.
    assert!(codes.contains(&"PL0502".to_owned()), "{answers:?}");
    assert!(codes.iter().all(|code| code == "PL0502" || code == "PL0501"), "{answers:?}");
    let took = asked.elapsed();
    assert!(took > Duration::from_millis(500) && took < Duration::from_secs(3), "took {took:?}");
}

#[test]
fn a_rank_that_leaves_the_plan_is_refused_and_the_others_do_not_wait() {
    let mut gang = Gang::start(3);
    gang.form(3, "fast", 20_000);
    let answers = gang.ask(3, "deviate");
    assert_eq!(ended(&answers[0]).0, "PL0504", "{answers:?}");
    assert!(answers[0].contains("[512]") && answers[0].contains("[1024]"), "{answers:?}");
    for answer in &answers[1..] {
        assert_eq!(ended(answer).0, "PL0501", "{answers:?}");
    }
    // With an exchange before every call all of them are refused alike, and the group goes on.
    gang.form(3, "checked", 20_000);
    for answer in gang.ask(3, "deviate") {
        assert_eq!(ended(&answer).0, "PL0504", "{answer}");
    }
}

#[test]
fn a_rank_that_drops_its_group_is_noticed_even_if_its_abort_handle_lives_on() {
    let mut gang = Gang::start(2);
    gang.form(2, "fast", 20_000);
    gang.ranks[1].tell("leave");
    assert_eq!(gang.ranks[1].answer(), "left");
    let (code, millis, lost) = ended(&gang.ask(1, "reduce 1")[0]);
    assert_eq!((code.as_str(), lost.as_str()), ("PL0501", "1"));
    assert!(millis < 1000, "took {millis} ms");
}

#[test]
fn a_rank_that_waits_for_another_one_sees_that_a_third_has_left() {
    let mut gang = Gang::start(3);
    gang.form(3, "fast", 20_000);
    for rank in &mut gang.ranks {
        rank.tell("absent");
    }
    assert_eq!(gang.ranks[2].answer(), "done");
    assert!(gang.ranks[1].is_silent_for(Duration::from_millis(300)), "ranks 0 and 1 wait for rank 2");
    let aborted = now();
    gang.ranks[0].tell("abort");
    assert_eq!(ended(&gang.ranks[0].answer()).0, "PL0503");
    let (code, _, lost) = ended(&gang.ranks[1].answer());
    assert_eq!((code.as_str(), lost.as_str()), ("PL0501", "0"));
    assert!(aborted.elapsed() < Duration::from_millis(1500), "took {:?}", aborted.elapsed());
}
