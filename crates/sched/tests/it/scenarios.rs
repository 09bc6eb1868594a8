//! One story each, simplest first.

use std::time::Duration;

use pleach_base::code;
use pleach_sched::{Event, JobState, Part, Report, StopMode};

use crate::bench::{Bench, assignments, durable, failure, key, needs, prepares, refused, stops, worker};

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn a_gang_forms_at_once_when_the_maximum_is_there() {
    let mut bench = Bench::new();
    bench.submit("j", needs(1, 2));
    assert!(bench.job("j").reason.contains("needs 1 worker, 0 alive"), "{}", bench.job("j").reason);
    assert!(assignments(&bench.join("a", 1)).is_empty(), "waits for the second");
    let given = assignments(&bench.join("b", 1));
    assert_eq!(given.len(), 2);
    assert_eq!(given[0].1.members[0].lanes, [0]);
    assert_eq!((given[1].1.rank, given[1].1.rendezvous_port), (1, 9));
    assert_eq!(bench.state_of("j"), (JobState::Starting, 1));
}

#[test]
fn a_gang_forms_with_fewer_once_joining_has_settled() {
    let mut bench = Bench::new();
    bench.submit("j", needs(1, 4));
    bench.join("a", 1);
    bench.pass(SECOND, &[("a", 1)]);
    bench.join("b", 1);
    bench.pass(SECOND, &[("a", 1), ("b", 1)]);
    assert_eq!(bench.state_of("j").0, JobState::Queued);
    let given = assignments(&bench.pass(SECOND * 2, &[("a", 1), ("b", 1)]));
    assert_eq!(given.len(), 2);
    assert_eq!(given[0].1.members.iter().map(|m| m.lanes.clone()).collect::<Vec<_>>(), [vec![0, 1], vec![2, 3]]);
}

#[test]
fn joining_without_end_does_not_hold_a_job_back() {
    let mut bench = Bench::new();
    bench.submit("j", needs(1, 100));
    for n in 0..20 {
        bench.join(&format!("w{n}"), 1);
        bench.now += SECOND / 2;
    }
    assert!(bench.state_of("j").1 >= 1);
}

#[test]
fn a_job_runs_and_succeeds_and_frees_its_workers() {
    let mut bench = Bench::running("j", needs(2, 2));
    bench.report("b", 1, "j", Report::Finished);
    assert_eq!(bench.state_of("j").0, JobState::Running, "only rank 0 speaks for all");
    let effects = bench.report("a", 1, "j", Report::Finished);
    assert_eq!(bench.state_of("j").0, JobState::Succeeded);
    assert!(stops(&effects).is_empty());
    assert!(bench.state.workers.values().all(|worker| worker.available(bench.now)));
    assert!(!refused(&bench.report("b", 1, "j", Report::Drained)), "a late word of the last generation does no harm");
}

#[test]
fn a_silent_worker_loses_its_lease_and_the_survivor_goes_on() {
    let mut bench = Bench::running("j", needs(1, 2));
    bench.apply(Event::Disconnected { worker: worker("b", 1) });
    let effects = bench.pass(SECOND * 11, &[("a", 1)]);
    assert!(stops(&effects).contains(&("a".into(), StopMode::Abort)));
    let given = assignments(&effects);
    assert_eq!(given.len(), 1, "{effects:?}");
    assert_eq!((given[0].1.fence.generation.0, given[0].1.members[0].lanes.len()), (2, 2));
    assert_eq!(bench.job("j").restarts, 1);
}

#[test]
fn a_stuck_training_thread_loses_its_lease_though_its_network_lives() {
    let mut bench = Bench::running("j", needs(1, 2));
    let grace = bench.state.settings.stall_grace;
    let stuck = bench.state.worker(&worker("b", 1)).unwrap().progress;
    let end = bench.now + grace + SECOND;
    while bench.now < end {
        bench.now += SECOND;
        bench.beat("b", 1, stuck, false);
        let progress = bench.state.worker(&worker("a", 1)).unwrap().progress + 1;
        bench.beat("a", 1, progress, false);
    }
    assert!(bench.state.worker(&worker("b", 1)).is_none());
    assert_eq!(bench.job("j").restarts, 1);
}

#[test]
fn a_new_incarnation_ends_the_old_one_at_once_and_for_good() {
    let mut bench = Bench::running("j", needs(2, 2));
    let effects = bench.join("b", 2);
    assert!(stops(&effects).contains(&("a".into(), StopMode::Abort)));
    bench.pass(SECOND, &[("a", 1), ("b", 2)]);
    assert_eq!(bench.state_of("j"), (JobState::Starting, 2));
    assert!(refused(&bench.join("b", 1)), "the replaced process does not come back");
    assert_eq!(bench.state_of("j").1, 2);
}

#[test]
fn suspects_are_left_out_until_they_show_life() {
    let mut bench = Bench::running("j", needs(1, 2));
    let failed = Report::Failed { failure: failure("PL0502"), permanent: false, suspects: vec![1] };
    let mut effects = bench.report("a", 1, "j", failed);
    assert!(assignments(&effects).is_empty(), "b may have a word to say");
    effects.extend(bench.pass(SECOND / 2, &[("a", 1)]));
    assert_eq!(assignments(&effects).len(), 1, "a alone");
    assert!(stops(&effects).contains(&("b".into(), StopMode::Abort)));
    bench.report("a", 1, "j", Report::Ready);
    assert!(prepares(&bench.pass(SECOND * 3, &[("a", 1)])).is_empty(), "nothing was heard of b since");
    let mut effects = bench.beat("b", 1, 0, true);
    effects.extend(bench.pass(SECOND * 2, &[("a", 1), ("b", 1)]));
    assert_eq!(prepares(&effects).len(), 1, "it gets ready anew");
    assert!(stops(&effects).contains(&("a".into(), StopMode::Yield)), "b showed life and may join");
}

#[test]
fn a_suspect_whose_session_broke_is_lost_at_once() {
    let mut bench = Bench::running("j", needs(1, 2));
    bench.apply(Event::Disconnected { worker: worker("b", 1) });
    bench.report("a", 1, "j", Report::Failed { failure: failure("PL0501"), permanent: false, suspects: vec![1] });
    assert!(bench.state.worker(&worker("b", 1)).is_none());
}

#[test]
fn reports_of_older_generations_are_refused() {
    let mut bench = Bench::running("j", needs(1, 2));
    let old = Part { job: key("j"), fence: bench.job("j").fence() };
    bench.join("b", 2);
    bench.pass(SECOND, &[("a", 1), ("b", 2)]);
    let before = bench.job("j").clone();
    for report in [Report::Finished, Report::Drained, durable(9), Report::Ready, Report::Other] {
        let effects = bench.apply(Event::Reported { worker: worker("a", 1), part: old.clone(), report });
        assert!(refused(&effects));
    }
    assert_eq!(bench.job("j"), &before);
}

#[test]
fn cancel_drains_then_ends() {
    let mut bench = Bench::running("j", needs(1, 2));
    let effects = bench.apply(Event::CancelAsked { job: key("j"), reason: "enough".into() });
    assert_eq!(stops(&effects), [("a".into(), StopMode::Drain), ("b".into(), StopMode::Drain)]);
    assert_eq!(bench.state_of("j").0, JobState::Stopping);
    bench.report("a", 1, "j", Report::Drained);
    assert_eq!(bench.state_of("j").0, JobState::Stopping);
    bench.join("b", 2);
    assert_eq!(bench.state_of("j"), (JobState::Cancelled, 1), "drained or lost is the same");
    assert!(bench.job("j").reason.contains("enough"));
}

#[test]
fn a_gang_that_does_not_drain_is_aborted() {
    let mut bench = Bench::running("j", needs(1, 2));
    bench.apply(Event::CancelAsked { job: key("j"), reason: String::new() });
    let wait = bench.state.settings.drain_timeout + SECOND;
    let effects = bench.pass(wait, &[("a", 1), ("b", 1)]);
    assert_eq!(stops(&effects), [("a".into(), StopMode::Abort), ("b".into(), StopMode::Abort)]);
    assert_eq!(bench.state_of("j").0, JobState::Cancelled);
}

#[test]
fn a_permanent_failure_ends_the_job_with_its_code() {
    let mut bench = Bench::running("j", needs(1, 2));
    let effects =
        bench.report("b", 1, "j", Report::Failed { failure: failure("PL0201"), permanent: true, suspects: vec![] });
    assert_eq!(stops(&effects), [("a".into(), StopMode::Abort)]);
    assert_eq!(bench.state_of("j").0, JobState::Failed);
    assert_eq!(bench.job("j").failure.as_ref().unwrap().code, "PL0201");
}

#[test]
fn restarts_are_spent() {
    let mut bench = Bench::running("j", needs(2, 2));
    for round in 0..4 {
        assert_eq!(bench.state_of("j").1, round + 1);
        bench.report("b", 1, "j", Report::Failed { failure: failure("PL0501"), permanent: false, suspects: vec![] });
        bench.pass(SECOND * 5, &[("a", 1), ("b", 1)]);
    }
    assert_eq!(bench.state_of("j").0, JobState::Failed);
    assert_eq!(bench.job("j").failure.as_ref().unwrap().code, code::RESTARTS_SPENT.id);
}

#[test]
fn a_running_job_takes_in_more_workers_at_a_step_boundary() {
    let mut bench = Bench::running("j", needs(1, 3));
    let mut effects = bench.join("c", 1);
    effects.extend(bench.pass(SECOND * 2, &[("a", 1), ("b", 1), ("c", 1)]));
    assert_eq!(stops(&effects), [("a".into(), StopMode::Yield), ("b".into(), StopMode::Yield)]);
    bench.report("a", 1, "j", Report::Drained);
    let given = assignments(&bench.report("b", 1, "j", Report::Drained));
    assert_eq!(given.len(), 3);
    assert_eq!((bench.job("j").restarts, bench.job("j").generation.0), (0, 2));
}

#[test]
fn spares_beyond_the_lanes_wait() {
    let mut bench = Bench::running("j", needs(1, 2));
    bench.join("c", 1);
    let effects = bench.pass(SECOND * 30, &[("a", 1), ("b", 1), ("c", 1)]);
    assert!(stops(&effects).is_empty() && assignments(&effects).is_empty());
}

#[test]
fn a_draining_worker_leaves_at_a_step_boundary() {
    let mut bench = Bench::running("j", needs(1, 2));
    let leaving = Event::Heartbeat {
        worker: worker("b", 1),
        progress: 99,
        idle: false,
        draining: true,
        part: None,
        compute_us: 0,
    };
    assert_eq!(stops(&bench.apply(leaving)).len(), 2);
    bench.report("b", 1, "j", Report::Drained);
    let given = assignments(&bench.report("a", 1, "j", Report::Drained));
    assert_eq!(given.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(), ["a"]);
    bench.apply(Event::Disconnected { worker: worker("b", 1) });
    assert!(bench.state.worker(&worker("b", 1)).is_none(), "it left as asked: no lease to wait for");
    assert_eq!(bench.job("j").restarts, 0);
}

#[test]
fn jobs_run_in_order_and_a_large_one_is_not_starved() {
    let mut bench = Bench::new();
    for name in ["a", "b", "c"] {
        bench.join(name, 1);
    }
    bench.now += SECOND * 3;
    bench.submit("first", needs(2, 2));
    bench.submit("large", needs(3, 3));
    bench.submit("small", needs(1, 1));
    assert_eq!(bench.state_of("first").0, JobState::Starting);
    assert_eq!(bench.state_of("small").0, JobState::Queued, "c is kept for the large job");
    bench.report("a", 1, "first", Report::Finished);
    assert_eq!(bench.state_of("large").0, JobState::Starting);
    bench.submit("huge", needs(9, 9));
    bench.submit("tiny", needs(1, 1));
    bench.report("a", 1, "large", Report::Finished);
    assert_eq!(bench.state_of("small").0, JobState::Starting);
    assert_eq!(bench.state_of("tiny").0, JobState::Starting, "a job that cannot run at all blocks nobody");
}

#[test]
fn lost_orders_are_repeated() {
    let mut bench = Bench::new();
    bench.submit("j", needs(1, 1));
    let first = assignments(&bench.join("a", 1));
    bench.apply(Event::Disconnected { worker: worker("a", 1) });
    assert_eq!(assignments(&bench.apply(Event::Connected { worker: worker("a", 1) })), first);
    assert!(assignments(&bench.beat("a", 1, 0, true)).is_empty(), "the first copy may be on its way");
    bench.now += SECOND * 5;
    assert_eq!(assignments(&bench.beat("a", 1, 0, true)), first);
}

#[test]
fn work_on_an_ended_generation_is_stopped() {
    let mut bench = Bench::running("j", needs(2, 2));
    let old = Part { job: key("j"), fence: bench.job("j").fence() };
    bench.join("b", 2);
    let beat = Event::Heartbeat {
        worker: worker("a", 1),
        progress: 50,
        idle: false,
        draining: false,
        part: Some(old),
        compute_us: 0,
    };
    assert_eq!(stops(&bench.apply(beat)), [("a".into(), StopMode::Abort)]);
}

#[test]
fn failures_in_a_row_wait_longer_and_a_checkpoint_resets_that() {
    let mut bench = Bench::running("j", pleach_sched::Needs { restarts: 99, ..needs(2, 2) });
    let wait = |bench: &mut Bench| {
        let report = Report::Failed { failure: failure("PL0601"), permanent: false, suspects: vec![] };
        bench.report("b", 1, "j", report);
        let (start, generation) = (bench.now, bench.job("j").generation);
        while bench.job("j").generation == generation {
            bench.pass(SECOND / 10, &[("a", 1), ("b", 1)]);
        }
        bench.now - start
    };
    let waits: Vec<_> = (0..3).map(|_| wait(&mut bench)).collect();
    assert!(waits[1] > waits[0] && waits[2] > waits[1], "{waits:?}");
    bench.report("a", 1, "j", durable(7));
    assert_eq!(wait(&mut bench), waits[0]);
}

#[test]
fn a_late_word_of_the_old_generation_is_no_failure_to_get_ready() {
    let mut bench = Bench::running("j", needs(2, 2));
    bench.slow.insert("a".into());
    bench.apply(Event::Disconnected { worker: worker("a", 1) });
    bench.report("b", 1, "j", Report::Failed { failure: failure("PL0501"), permanent: false, suspects: vec![0] });
    let mut effects = bench.join("a", 1);
    effects.extend(bench.pass(SECOND, &[("a", 1), ("b", 1)]));
    assert!(
        prepares(&effects).iter().any(|(worker, _)| worker.name == "a"),
        "asked to get ready under the fence of old"
    );
    bench.report("a", 1, "j", Report::Failed { failure: failure("PL0501"), permanent: false, suspects: vec![1] });
    bench.prepared("a", 1);
    bench.pass(SECOND * 2, &[("a", 1), ("b", 1)]);
    assert_eq!(bench.state_of("j"), (JobState::Starting, 2));
}

#[test]
fn who_has_not_found_a_new_leader_yet_is_not_blamed_for_it() {
    let mut bench = Bench::running("j", needs(1, 2));
    let jobs = bench.state.jobs.clone();
    bench.state = pleach_sched::State::recover(pleach_base::Term(2), bench.state.settings.clone(), jobs);
    bench.apply(Event::Tick);
    bench.join("b", 1);
    let old = Part { job: key("j"), fence: bench.job("j").fence() };
    let failed = Report::Failed { failure: failure("PL0803"), permanent: false, suspects: vec![] };
    bench.apply(Event::Reported { worker: worker("b", 1), part: old, report: failed });
    bench.pass(SECOND / 2, &[("b", 1)]);
    assert!(bench.state.worker(&worker("a", 1)).is_some(), "it had no time to come back");
}
