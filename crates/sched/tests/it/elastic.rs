//! Membership that changes while a job trains: getting ready, trouble, records, changes of leaders, priorities.

use std::time::Duration;

use pleach_base::{Fence, Step, Term, WorkerId};
use pleach_sched::{Commit, Effect, Event, JobState, Needs, Part, Report, State, StopMode};

use crate::bench::{Bench, assignments, durable, failure, key, needs, prepares, refused, stops, worker};

const SECOND: Duration = Duration::from_secs(1);

fn commit(bench: &Bench, step: u64, digest: &str) -> Report {
    let fence = bench.job("j").fence();
    Report::Committed { commits: vec![Commit { task: "t".into(), step: Step(step), fence, digest: digest.into() }] }
}

fn names(effects: &[Effect]) -> Vec<String> {
    assignments(effects).into_iter().map(|(name, _)| name).collect()
}

/// `count` workers that train `j` in generation 1; more can join.
pub(crate) fn trio() -> Bench {
    let mut bench = Bench::new();
    bench.submit("j", needs(1, 3));
    for name in ["a", "b", "c"] {
        bench.join(name, 1);
    }
    assert_eq!(bench.state_of("j").1, 1);
    for name in ["a", "b", "c"] {
        bench.report(name, 1, "j", Report::Ready);
    }
    bench
}

fn failed(suspects: &[u32]) -> Report {
    Report::Failed { failure: failure("PL0501"), permanent: false, suspects: suspects.to_vec() }
}

#[test]
fn only_prepared_workers_become_members_and_the_reason_names_the_others() {
    let mut bench = Bench::new();
    bench.slow.insert("b".into());
    bench.submit("j", needs(2, 2));
    bench.join("a", 1);
    bench.join("b", 1);
    bench.pass(SECOND * 4, &[("a", 1), ("b", 1)]);
    let reason = bench.job("j").reason.clone();
    assert_eq!(reason, "1 of 2 workers needed: b is not prepared: loads since 4 s");
    assert_eq!(names(&bench.prepared("b", 1)), ["a", "b"]);
}

#[test]
fn a_worker_that_does_not_get_ready_in_time_is_free_again_and_waits() {
    let mut bench = Bench::new();
    bench.state.settings.prepare_timeout = SECOND;
    bench.slow.insert("a".into());
    bench.submit("j", needs(1, 1));
    bench.join("a", 1);
    let effects = bench.pass(SECOND * 3, &[("a", 1)]);
    let again = prepares(&effects).len();
    assert!((1..=2).contains(&again), "it is asked again after a wait that grows: {again}");
    assert_eq!(bench.state_of("j").0, JobState::Queued);
}

#[test]
fn a_preparation_that_can_never_work_ends_the_job_but_not_one_that_trains() {
    let mut bench = Bench::new();
    bench.slow.insert("a".into());
    bench.submit("j", needs(1, 1));
    bench.join("a", 1);
    let part = Part { job: key("j"), fence: Fence::default() };
    let report = Report::Unprepared { failure: failure("PL0201"), permanent: true, suspects: vec![] };
    bench.apply(Event::Reported { worker: worker("a", 1), part, report: report.clone() });
    assert_eq!(bench.state_of("j").0, JobState::Failed);

    let mut bench = Bench::running("j", needs(1, 3));
    bench.slow.insert("c".into());
    bench.join("c", 1);
    let part = Part { job: key("j"), fence: bench.job("j").fence() };
    bench.apply(Event::Reported { worker: worker("c", 1), part, report });
    assert_eq!(bench.state_of("j"), (JobState::Running, 1), "something is wrong with c alone");
}

#[test]
fn survivors_go_on_at_once_without_the_one_that_died() {
    let mut bench = trio();
    bench.apply(Event::Disconnected { worker: worker("c", 1) });
    bench.report("a", 1, "j", failed(&[]));
    let effects = bench.report("b", 1, "j", failed(&[]));
    assert_eq!(names(&effects), ["a", "b"], "all have spoken: nothing to wait for");
    assert!(bench.state.worker(&worker("c", 1)).is_none());
    assert_eq!(bench.job("j").generation.0, 2);
}

#[test]
fn the_smallest_set_that_explains_a_stall_is_dropped() {
    let mut bench = trio();
    bench.report("a", 1, "j", Report::Stalled { suspects: vec![2] });
    let effects = bench.report("b", 1, "j", Report::Stalled { suspects: vec![2] });
    assert_eq!(names(&effects), ["a", "b"]);
    assert_eq!(stops(&effects).len(), 3, "every part of the old generation ends: {:?}", stops(&effects));
    // Between two that do not reach each other, the one of lower rank stays.
    let mut bench = trio();
    bench.report("a", 1, "j", Report::Stalled { suspects: vec![1] });
    bench.report("b", 1, "j", Report::Stalled { suspects: vec![0] });
    let effects = bench.report("c", 1, "j", Report::Stalled { suspects: vec![] });
    assert_eq!(names(&effects), ["a", "c"]);
}

#[test]
fn one_word_waits_for_the_others_and_progress_takes_it_back() {
    let mut bench = trio();
    assert!(names(&bench.report("a", 1, "j", Report::Stalled { suspects: vec![1] })).is_empty());
    bench.beat("a", 1, 7, false);
    let effects = bench.pass(SECOND, &[("a", 1), ("b", 1), ("c", 1)]);
    assert!(stops(&effects).is_empty() && names(&effects).is_empty());
}

#[test]
fn blame_of_those_who_only_closed_their_connections_does_not_count() {
    let mut bench = trio();
    bench.report("a", 1, "j", failed(&[1]));
    bench.apply(Event::Disconnected { worker: worker("c", 1) });
    let effects = bench.report("b", 1, "j", failed(&[2]));
    assert_eq!(names(&effects), ["a", "b"], "c took b's connection down, and b then a's");
}

#[test]
fn a_dropped_worker_waits_longer_each_time_and_is_forgiven() {
    let mut bench = Bench::running("j", Needs { restarts: 99, ..needs(1, 2) });
    let drop_b = |bench: &mut Bench| {
        bench.report("a", 1, "j", Report::Stalled { suspects: vec![1] });
        bench.report("a", 1, "j", Report::Ready);
        let start = bench.now;
        loop {
            let effects = bench.pass(SECOND / 10, &[("a", 1), ("b", 1)]);
            if !stops(&effects).is_empty() {
                bench.report("a", 1, "j", Report::Drained);
            }
            if bench.job("j").gang.as_ref().is_some_and(|gang| gang.world() == 2) {
                break;
            }
            assert!(bench.now < start + SECOND * 100);
        }
        bench.report("a", 1, "j", Report::Ready);
        bench.report("b", 1, "j", Report::Ready);
        bench.state.worker(&worker("b", 1)).unwrap().record.clone()
    };
    let waits: Vec<_> =
        (0..3).map(|_| drop_b(&mut bench)).map(|record| record.barred_until - record.dropped_at).collect();
    assert!(waits[1] == waits[0] * 2 && waits[2] == waits[0] * 4, "{waits:?}");
    let forgive = bench.state.settings.forgive;
    bench.pass(forgive, &[("a", 1), ("b", 1)]);
    let record = drop_b(&mut bench);
    assert_eq!(record.barred_until - record.dropped_at, waits[0]);
}

#[test]
fn records_follow_each_other_and_only_a_newer_generation_rewrites_them() {
    let mut bench = Bench::running("j", needs(1, 2));
    assert!(!refused(&bench.report("a", 1, "j", commit(&bench, 1, "x"))));
    assert!(!refused(&bench.report("a", 1, "j", commit(&bench, 2, "y"))));
    assert!(!refused(&bench.report("a", 1, "j", commit(&bench, 2, "y"))), "a repeat is no news");
    assert!(refused(&bench.report("a", 1, "j", commit(&bench, 4, "z"))), "a step is missing");
    let stale = commit(&bench, 3, "z");
    let old = Part { job: key("j"), fence: bench.job("j").fence() };
    bench.join("b", 2);
    bench.pass(SECOND, &[("a", 1), ("b", 2)]);
    let of_old = Event::Reported { worker: worker("a", 1), part: old, report: stale.clone() };
    assert!(refused(&bench.apply(of_old)), "its generation has ended");
    assert!(refused(&bench.report("a", 1, "j", stale)), "a record of an older generation in a report of the newer");
    assert_eq!(bench.job("j").heads[&"t".into()].step(), Step(2));
    assert!(!refused(&bench.report("a", 1, "j", commit(&bench, 2, "w"))), "made anew under a newer fence");
    let head = &bench.job("j").heads[&"t".into()];
    assert_eq!(head.recent.iter().map(|c| c.digest.as_str()).collect::<Vec<_>>(), ["x", "w"]);
}

#[test]
fn two_digests_of_one_step_end_the_generation() {
    let mut bench = Bench::running("j", needs(2, 2));
    bench.report("a", 1, "j", commit(&bench, 1, "x"));
    let effects = bench.report("b", 1, "j", commit(&bench, 1, "y"));
    assert!(refused(&effects) && stops(&effects).contains(&("a".into(), StopMode::Abort)));
    assert!(bench.job("j").reason.contains("came out as x and as y"), "{}", bench.job("j").reason);
}

fn new_leader(bench: &mut Bench) {
    let text = serde_json::to_string(&bench.state.jobs).unwrap();
    let jobs: std::collections::BTreeMap<pleach_sched::JobKey, pleach_sched::Job> =
        serde_json::from_str(&text).unwrap();
    bench.state = State::recover(Term(bench.state.term.0 + 1), bench.state.settings.clone(), jobs);
}

fn reattach(bench: &mut Bench, name: &str, fence: Fence) -> Vec<Effect> {
    let id: WorkerId = worker(name, 1);
    let mut effects = bench.join(name, 1);
    let part = Some(Part { job: key("j"), fence });
    let beat = Event::Heartbeat { worker: id, progress: 9, idle: false, draining: false, part, compute_us: 0 };
    effects.extend(bench.apply(beat));
    effects
}

#[test]
fn a_new_leader_waits_for_whoever_holds_the_newest_step_and_may_come_back() {
    let mut bench = Bench::new();
    bench.submit("j", needs(1, 1));
    bench.join("a", 1);
    bench.report("a", 1, "j", Report::Ready);
    assert!(!refused(&bench.report("a", 1, "j", commit(&bench, 1, "x"))));
    bench.report("a", 1, "j", failed(&[]));
    new_leader(&mut bench);
    bench.join("b", 1);
    bench.pass(SECOND * 2, &[("b", 1)]);
    assert_eq!(bench.state_of("j").0, JobState::Queued, "b holds nothing");
    assert_eq!(bench.job("j").reason, "waits for a#1, which holds the newest step");
    bench.join("a", 1);
    bench.pass(SECOND * 2, &[("a", 1), ("b", 1)]);
    let gang = bench.job("j").gang.as_ref().unwrap();
    assert_eq!(gang.members[0].worker, worker("a", 1));
}

#[test]
fn a_holder_that_does_not_come_back_is_waited_for_no_longer_than_its_lease_could_last() {
    let mut bench = Bench::new();
    bench.submit("j", needs(1, 1));
    bench.join("a", 1);
    bench.report("a", 1, "j", Report::Ready);
    bench.report("a", 1, "j", commit(&bench, 1, "x"));
    bench.report("a", 1, "j", failed(&[]));
    new_leader(&mut bench);
    bench.join("b", 1);
    let ttl = bench.state.settings.lease_ttl;
    bench.pass(ttl + SECOND * 2, &[("b", 1)]);
    assert_eq!(bench.job("j").gang.as_ref().unwrap().members[0].worker, worker("b", 1));
}

#[test]
fn a_late_registration_of_a_dead_process_does_not_take_the_name_of_its_successor() {
    let mut bench = Bench::new();
    bench.join("a", 2);
    assert!(refused(&bench.join("a", 1)));
    assert!(bench.state.worker(&worker("a", 2)).is_some());
    assert!(!refused(&bench.join("a", 3)), "a later process takes it");
}

#[test]
fn a_new_leader_keeps_gangs_and_their_fences() {
    let mut bench = Bench::running("j", needs(2, 2));
    let fence = bench.job("j").fence();
    new_leader(&mut bench);
    assert_eq!((bench.state_of("j"), bench.job("j").fence()), ((JobState::Running, 1), fence));
    bench.now += SECOND;
    for name in ["a", "b"] {
        assert!(stops(&reattach(&mut bench, name, fence)).is_empty());
    }
    bench.pass(SECOND * 20, &[("a", 1), ("b", 1)]);
    assert_eq!((bench.state_of("j"), bench.job("j").fence()), ((JobState::Running, 1), fence));
    assert!(!refused(&bench.report("a", 1, "j", commit(&bench, 1, "x"))));
    bench.report("b", 1, "j", failed(&[]));
    bench.report("a", 1, "j", failed(&[]));
    bench.pass(SECOND * 3, &[("a", 1), ("b", 1)]);
    assert_eq!(bench.job("j").fence(), Fence { term: Term(2), generation: pleach_base::Generation(2) });
}

#[test]
fn a_member_that_does_not_come_back_to_a_new_leader_is_evicted_within_two_leases() {
    let mut bench = Bench::running("j", needs(1, 2));
    let (fence, ttl) = (bench.job("j").fence(), bench.state.settings.lease_ttl);
    new_leader(&mut bench);
    reattach(&mut bench, "a", fence);
    bench.pass(ttl - SECOND, &[("a", 1)]);
    assert_eq!(bench.state_of("j").1, 1, "a leader evicts nobody before it is a lease old");
    assert_eq!(names(&bench.pass(ttl, &[("a", 1)])), ["a"]);
}

#[test]
fn a_gang_that_is_silent_as_a_whole_is_left_alone_for_the_time_of_grace() {
    let mut bench = Bench::running("j", needs(1, 2));
    bench.join("c", 1);
    let grace = bench.state.settings.grace;
    bench.pass(grace - SECOND * 2, &[("c", 1)]);
    assert_eq!(bench.state_of("j"), (JobState::Running, 1));
    assert!(bench.job("j").reason.contains("left alone"), "{}", bench.job("j").reason);
    assert_eq!(names(&bench.pass(SECOND * 4, &[("c", 1)])), ["c"]);
}

#[test]
fn a_job_of_higher_priority_takes_workers_at_the_last_durable_step() {
    let mut bench = Bench::running("low", needs(2, 2));
    let effects = bench.submit("high", Needs { priority: 5, ..needs(1, 1) });
    assert_eq!(stops(&effects), [("a".into(), StopMode::Drain), ("b".into(), StopMode::Drain)]);
    assert!(bench.job("high").reason.contains("waits for default/low"), "{}", bench.job("high").reason);
    bench.report("a", 1, "low", durable(3));
    bench.report("a", 1, "low", Report::Drained);
    let given = assignments(&bench.report("b", 1, "low", Report::Drained));
    assert_eq!(given[0].1.job, key("high"));
    assert_eq!(bench.state_of("low").0, JobState::Queued);
    bench.report(&given[0].0, 1, "high", Report::Finished);
    bench.pass(SECOND * 3, &[("a", 1), ("b", 1)]);
    assert_eq!((bench.state_of("low"), bench.job("low").restarts), ((JobState::Starting, 2), 0));
}

#[test]
fn a_straggler_is_told_and_gives_its_place_to_a_spare_once() {
    let mut bench = trio();
    bench.join("d", 1);
    let mut effects = Vec::new();
    for _ in 0..20 {
        bench.now += SECOND;
        for (name, us) in [("a", 100), ("b", 110), ("c", 300), ("d", 0)] {
            let progress = bench.state.worker(&worker(name, 1)).unwrap().progress + 1;
            let (worker, part) = (worker(name, 1), None);
            let idle = name == "d";
            let beat = Event::Heartbeat { worker, progress, idle, draining: false, part, compute_us: us };
            effects.extend(bench.apply(beat));
        }
    }
    assert_eq!(bench.state.worker(&worker("c", 1)).unwrap().pace.percent, 272);
    assert!(effects.iter().any(|effect| matches!(effect, Effect::Note { kind: "Straggler", .. })));
    assert_eq!(stops(&effects).len(), 3);
    bench.report("a", 1, "j", Report::Drained);
    bench.report("b", 1, "j", Report::Drained);
    assert_eq!(names(&bench.report("c", 1, "j", Report::Drained)), ["a", "b", "d"]);
}

#[test]
fn ranks_of_one_host_are_neighbours_and_rank_0_holds_state() {
    let mut bench = Bench::new();
    bench.submit("j", needs(1, 4));
    let on = |bench: &mut Bench, name: &str, host: &str| {
        let (worker, host) = (worker(name, 1), host.to_owned());
        bench.apply(Event::Registered { worker: worker.clone(), host, rendezvous_port: 1, pulse_port: 1 });
        bench.apply(Event::Connected { worker })
    };
    on(&mut bench, "c", "h2");
    bench.pass(SECOND * 3, &[("c", 1)]);
    bench.report("c", 1, "j", Report::Ready);
    bench.report("c", 1, "j", commit(&bench, 1, "x"));
    for (name, host) in [("a", "h1"), ("b", "h2"), ("d", "h1")] {
        bench.slow.insert(name.into());
        on(&mut bench, name, host);
    }
    for name in ["a", "b", "d"] {
        bench.prepared(name, 1);
    }
    assert_eq!(names(&bench.report("c", 1, "j", Report::Drained)), ["c", "b", "a", "d"], "three joined at once");
}
