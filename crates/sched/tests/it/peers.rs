//! Scenarios of torchft's lighthouse and of Psyche's and Determined's schedulers, by their names, as ours at this level.
//!
//! | theirs | here |
//! |---|---|
//! | torchft `test_quorum_join_timeout` | [`quorum_join_timeout`] |
//! | torchft `test_quorum_heartbeats` | [`quorum_heartbeats`] |
//! | torchft `test_quorum_fast_prev_quorum` | [`quorum_fast_prev_quorum`] |
//! | torchft `test_quorum_shrink_only`, `test_lighthouse_join_during_shrink` | [`quorum_shrink_only_and_join_during_shrink`] |
//! | torchft `test_quorum_split_brain` | [`quorum_split_brain`] |
//! | torchft `test_quorum_changed`, commit failures | [`quorum_changed`] |
//! | torchft `test_lighthouse_e2e`, `manager_integ` | real processes: `torchft::*` of `tests/e2e` |
//! | Psyche: join in training, replace a node, shutdown in warm-up | [`psyche_join_replace_and_shutdown_in_warmup`] |
//! | Determined: master restart while queued, stopping | [`determined_master_restart_queued_and_stopping`] |

use std::time::Duration;

use pleach_base::Term;
use pleach_sched::{Event, JobState, Report, State, StopMode};

use crate::bench::{Bench, assignments, failure, key, needs, prepares, stops, worker};
use crate::elastic::trio;

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn quorum_join_timeout() {
    let mut bench = Bench::new();
    bench.submit("j", needs(1, 2));
    bench.join("a", 1);
    assert_eq!(bench.state_of("j").0, JobState::Queued, "waits for the second for a moment");
    bench.pass(SECOND * 3, &[("a", 1)]);
    assert_eq!(bench.state_of("j").0, JobState::Starting);
}

#[test]
fn quorum_heartbeats() {
    let mut bench = Bench::new();
    bench.slow.insert("b".into());
    bench.join("a", 1);
    bench.join("b", 1);
    bench.pass(SECOND * 6, &[("a", 1)]);
    bench.submit("j", needs(2, 2));
    assert_eq!(bench.job("j").reason.split(':').next(), Some("needs 2 workers, 1 alive"), "b beats no more");
}

#[test]
fn quorum_fast_prev_quorum() {
    let mut bench = Bench::running("j", needs(1, 4));
    for name in ["a", "b"] {
        let report = Report::Failed { failure: failure("PL0501"), permanent: false, suspects: vec![] };
        bench.report(name, 1, "j", report);
    }
    let effects = bench.pass(SECOND, &[("a", 1), ("b", 1)]);
    assert_eq!(assignments(&effects).len(), 2, "the members of before settle for nothing");
}

#[test]
fn quorum_shrink_only_and_join_during_shrink() {
    let mut bench = trio();
    bench.join("d", 1);
    bench.apply(Event::Disconnected { worker: worker("c", 1) });
    let report = Report::Failed { failure: failure("PL0501"), permanent: false, suspects: vec![2] };
    bench.report("a", 1, "j", report.clone());
    let given = assignments(&bench.report("b", 1, "j", report));
    let names: Vec<_> = given.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["a", "b", "d"], "a ready spare takes the free place at once");
}

#[test]
fn quorum_split_brain() {
    let mut bench = trio();
    bench.pass(bench.state.settings.lease_ttl + SECOND, &[("a", 1), ("b", 1)]);
    let fence = bench.job("j").fence();
    assert_eq!((fence.generation.0, bench.job("j").gang.as_ref().unwrap().world()), (2, 2));
    let part = pleach_sched::Part::new(key("j"), 1, 1);
    let effects = bench.apply(Event::Reported { worker: worker("c", 1), part, report: Report::Finished });
    assert!(crate::bench::refused(&effects), "the other half has no say");
}

#[test]
fn quorum_changed() {
    let mut bench = Bench::running("j", needs(2, 2));
    bench.pass(SECOND * 5, &[("a", 1), ("b", 1)]);
    assert_eq!(bench.state_of("j").1, 1, "the same members: the same generation");
    let report = Report::Failed { failure: failure("PL0601"), permanent: false, suspects: vec![] };
    bench.report("a", 1, "j", report);
    bench.pass(SECOND * 5, &[("a", 1), ("b", 1)]);
    assert_eq!(bench.state_of("j").1, 2, "a failed step forces a new one, with the same members");
}

#[test]
fn psyche_join_replace_and_shutdown_in_warmup() {
    let mut bench = Bench::running("j", needs(1, 3));
    bench.slow.insert("c".into());
    assert_eq!(prepares(&bench.join("c", 1)).len(), 1, "joins in training: warms up first");
    bench.apply(Event::Disconnected { worker: worker("c", 1) });
    bench.pass(SECOND * 6, &[("a", 1), ("b", 1)]);
    assert_eq!(bench.state_of("j"), (JobState::Running, 1), "its end in warm-up disturbs nobody");
    let given = assignments(&bench.join("b", 2));
    assert_eq!(given[0].0, "a", "a node is replaced: the other goes on meanwhile");
    assert!(bench.state.worker(&worker("b", 2)).unwrap().is_ready_for(&key("j")));
}

#[test]
fn determined_master_restart_queued_and_stopping() {
    let mut bench = Bench::running("j", needs(2, 2));
    bench.submit("k", needs(2, 2));
    bench.apply(Event::CancelAsked { job: key("j"), reason: "enough".into() });
    let jobs = bench.state.jobs.clone();
    bench.state = State::recover(Term(2), bench.state.settings.clone(), jobs);
    assert_eq!((bench.state_of("j").0, bench.state_of("k").0), (JobState::Stopping, JobState::Queued));
    assert!(stops(&bench.join("a", 1)).contains(&("a".into(), StopMode::Drain)), "asked again to drain");
    bench.join("b", 1);
    bench.report("a", 1, "j", Report::Drained);
    bench.report("b", 1, "j", Report::Drained);
    assert_eq!(bench.state_of("j").0, JobState::Cancelled);
    assert_eq!(bench.state_of("k").0, JobState::Starting, "the queue goes on");
    assert_eq!(bench.job("k").fence().term, Term(2));
}
