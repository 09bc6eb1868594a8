//! Words of workers that are heard without a look at everything else.

use std::time::Duration;

use pleach_base::Step;
use pleach_sched::{Commit, Effect, Event, JobState, Part, Report};

use crate::bench::{Bench, key, needs, prepares, refused, worker};

const SECOND: Duration = Duration::from_secs(1);

fn beat(name: &str, progress: u64, draining: bool) -> Event {
    let worker = worker(name, 1);
    Event::Heartbeat { worker, progress, idle: false, draining, part: None, compute_us: 0 }
}

fn said(bench: &Bench, name: &str, report: Report) -> Event {
    let part = Part { job: key("j"), fence: bench.job("j").fence() };
    Event::Reported { worker: worker(name, 1), part, report }
}

fn committed(bench: &Bench, digest: &str) -> Event {
    let fence = bench.job("j").fence();
    let commit = Commit { task: "t".into(), step: Step(1), fence, digest: digest.into() };
    said(bench, "a", Report::Committed { commits: vec![commit] })
}

#[test]
fn life_and_progress_need_no_look_at_others_and_all_else_does() {
    let mut bench = Bench::running("j", needs(1, 2));
    let mut hear = |event: fn(&Bench) -> Event| {
        let event = event(&bench);
        bench.state.hear(bench.now, event).1
    };
    assert!(!hear(|_| beat("a", 1_000, false)));
    assert!(!hear(|bench| committed(bench, "x")));
    assert!(!hear(|bench| said(bench, "a", Report::Durable { step: Step(1) })));
    assert!(!hear(|bench| said(bench, "b", Report::Other)));
    assert!(hear(|_| Event::Connected { worker: worker("a", 1) }));
    assert!(hear(|_| Event::Disconnected { worker: worker("c", 1) }));
    assert!(hear(|_| beat("c", 1, false)), "it holds no lease");
    assert!(hear(|bench| said(bench, "a", Report::Stalled { suspects: vec![] })));
    assert!(hear(|bench| committed(bench, "y")), "one step came out as two");
    assert!(hear(|_| beat("b", 1_000, true)), "it leaves");
}

#[test]
fn what_was_heard_has_its_consequences_for_others_at_the_next_look() {
    let mut bench = Bench::new();
    bench.submit("j", needs(1, 1));
    let registered = Event::Registered { worker: worker("a", 1), host: "h".into(), rendezvous_port: 9, pulse_port: 0 };
    for event in [registered, Event::Connected { worker: worker("a", 1) }] {
        let (effects, soon) = bench.state.hear(bench.now, event);
        assert!(soon && prepares(&effects).is_empty(), "{effects:?}");
    }
    assert_eq!(prepares(&bench.apply(Event::Tick)).len(), 1);
    assert_eq!(bench.state_of("j"), (JobState::Starting, 1));
}

#[test]
fn a_lease_that_ran_out_is_renewed_by_who_is_heard_before_the_look() {
    let mut bench = Bench::running("j", needs(2, 2));
    bench.now += bench.state.settings.grace + SECOND;
    for name in ["a", "b"] {
        let (effects, soon) = bench.state.hear(bench.now, beat(name, 1_000, false));
        assert!(!soon && !refused(&effects));
    }
    let effects = bench.apply(Event::Tick);
    assert!(!effects.iter().any(|effect| matches!(effect, Effect::Released { .. })), "{effects:?}");
}
