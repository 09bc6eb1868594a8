//! Gangs that break, shrink and grow: the next one goes on from memory, no sample is lost or repeated, and the adapter is
//! what it would have been.

use std::path::Path;
use std::sync::atomic::Ordering;

use pleach_train::{Phase, ResumedFrom};
use rstest::rstest;
use serde_json::{Value, json};

use crate::crew::{Crew, Deed, stored_steps};
use crate::fixture::llama_job;
use crate::gang::{alone, near};

/// Eight steps of uneven rows: two epochs of three full steps and a short one, with dropout.
const STEPS: u64 = 8;

fn strict_job(folder: &Path) -> Value {
    let mut job = llama_job(folder, 30);
    job["spec"]["train"]["determinism"] = json!("strict");
    job["spec"]["tasks"][0]["adapter"]["lora_dropout"] = json!(0.1);
    job
}

/// The digests of an uninterrupted run by one rank, step by step.
fn uninterrupted(job: &Value, folder: &Path) -> Vec<String> {
    let report = alone(job, folder);
    assert_eq!((report.end.as_str(), report.digests.len()), ("Finished", STEPS as usize), "{}", report.message);
    report.digests
}

/// What was told of each step is what an uninterrupted run makes of it, and every row of an epoch was fed once.
#[track_caller]
fn nothing_is_lost(crew: &Crew, expected: &[String]) {
    for row in crew.recorder.told.lock().unwrap().iter() {
        assert_eq!(row.digest, expected[row.step.0 as usize - 1], "step {} of {}", row.step, row.fence);
    }
    assert_eq!(crew.recorder.head(), STEPS);
    let history = crew.fed.history(crew.generation(), STEPS);
    for epoch in history.chunks(4) {
        let mut rows: Vec<u64> = epoch.iter().flatten().copied().collect();
        rows.sort_unstable();
        assert!(rows.iter().copied().eq(0..30), "{rows:?}");
    }
}

#[rstest]
fn a_rank_that_dies_at_any_phase_costs_nothing_that_was_agreed(
    #[values(Phase::BeforeForward, Phase::AfterBackward, Phase::DuringReduce, Phase::BeforeCommit, Phase::AfterCommit)]
    phase: Phase,
    #[values(0, 1)] victim: usize,
) {
    let folder = tempfile::tempdir().unwrap();
    let mut crew = Crew::new(strict_job(folder.path()));
    let expected = uninterrupted(&crew.job, folder.path());
    let parts = crew.train(&["a", "b"], &[(victim, Deed::DieAt(4, phase))]);
    let survivor = 1 - victim;
    assert_eq!((parts[victim].end().as_str(), parts[survivor].end().as_str()), ("PL0002", "PL0501"), "{phase}");
    crew.dies(["a", "b"][victim]);

    // The survivor and one that knows nothing, which has rank 0 when rank 0 died.
    let names = if victim == 0 { ["c", "b"] } else { ["a", "c"] };
    let parts = crew.train(&names, &[]);
    for part in &parts {
        assert_eq!(part.end(), "Finished", "{phase}: {:?}", part.outcome);
    }
    let (resumed, source, made_by) = crew.fed.resumed(2);
    assert_eq!((source, made_by), (ResumedFrom::Memory, 1));
    assert_eq!(resumed, if phase == Phase::AfterCommit { 5 } else { 4 }, "{phase}");
    nothing_is_lost(&crew, &expected);
    assert!(stored_steps(folder.path()).iter().any(|step| step == "00000008-g0002"));
}

/// Half an upload is no checkpoint, and the next rank 0 makes that one anew.
#[test]
fn a_rank_0_that_dies_uploading_leaves_its_step_to_the_next() {
    let folder = tempfile::tempdir().unwrap();
    let mut job = strict_job(folder.path());
    job["spec"]["checkpoint"]["max_lag"] = json!(1);
    let mut crew = Crew::new(job);
    let expected = uninterrupted(&crew.job, folder.path());
    let parts = crew.train(&["a", "b"], &[(0, Deed::DieUploading)]);
    assert_eq!((parts[0].end().as_str(), parts[1].end().as_str()), ("PL0002", "PL0501"));
    crew.dies("a");
    let parts = crew.train(&["b", "c"], &[]);
    assert_eq!(parts[0].end(), "Finished", "{:?}", parts[0].outcome);
    assert_eq!(crew.fed.resumed(2), (2, ResumedFrom::Memory, 1));
    assert_eq!(parts[0].heard.durable.lock().unwrap()[0], 2);
    nothing_is_lost(&crew, &expected);
}

/// Before all ranks have agreed, nothing of a step is told.
#[test]
fn a_step_is_told_once_all_ranks_agreed_on_it() {
    let folder = tempfile::tempdir().unwrap();
    let mut crew = Crew::new(strict_job(folder.path()));
    crew.train(&["a", "b"], &[(1, Deed::DieAt(4, Phase::BeforeCommit))]);
    assert_eq!(crew.recorder.steps_told_by(1), [1, 2, 3, 4]);
    // What rank 0 made of step 5 alone is not what the next generation begins with.
    crew.dies("b");
    crew.train(&["a"], &[(0, Deed::YieldAfter(6))]);
    assert_eq!(crew.fed.resumed(2), (4, ResumedFrom::Memory, 1));
    assert_eq!(crew.recorder.steps_told_by(2)[0], 5);
}

#[test]
fn gangs_of_other_sizes_take_over_from_memory_and_write_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let mut job = strict_job(folder.path());
    job["spec"]["checkpoint"]["every"] = json!(100);
    let mut crew = Crew::new(job);
    let expected = uninterrupted(&crew.job, folder.path());
    let shapes: [&[&str]; 4] = [&["a", "b"], &["c", "b", "a", "d"], &["d"], &["e", "a", "d"]];
    for (names, until) in shapes.into_iter().zip([2, 4, 6, STEPS]) {
        let deed = [(names.len() - 1, Deed::YieldAfter(until - 1))];
        let parts = crew.train(names, if until == STEPS { &[] } else { &deed });
        let end = if until == STEPS { "Finished" } else { "Yielded" };
        for part in &parts {
            assert_eq!(part.end(), end, "{names:?}: {:?}", part.outcome);
        }
        if until < STEPS {
            assert_eq!(stored_steps(folder.path()), [""; 0]);
        }
    }
    for (generation, step) in [(2, 2), (3, 4), (4, 6)] {
        assert_eq!(crew.fed.resumed(generation), (step, ResumedFrom::Memory, generation - 1));
    }
    nothing_is_lost(&crew, &expected);
}

/// Fast mode adds in the order of ranks: near, whatever the gangs were.
#[test]
fn fast_mode_stays_near_whatever_the_gangs_were() {
    let folder = tempfile::tempdir().unwrap();
    let mut crew = Crew::new(llama_job(folder.path(), 30));
    let whole = alone(&crew.job, folder.path());
    let mut losses = Vec::new();
    for (names, until) in [(&["a", "b"][..], 2), (&["a", "b", "c", "d"], 4), (&["d"], 6), (&["d", "b", "c"], STEPS)] {
        let deed = [(0, Deed::YieldAfter(until - 1))];
        let parts = crew.train(names, if until == STEPS { &[] } else { &deed });
        losses.extend(parts[0].heard.steps.lock().unwrap().iter().map(|row| row.loss));
    }
    near(&whole.losses, &losses, 1e-5);
}

/// While nobody records, steps are made and kept; the next rank 0 tells all of them, and nothing of them is stored before.
#[test]
fn steps_of_an_outage_are_told_by_the_next_rank_0_and_not_stored_before() {
    let folder = tempfile::tempdir().unwrap();
    let mut crew = Crew::new(strict_job(folder.path()));
    let expected = uninterrupted(&crew.job, folder.path());
    crew.recorder.away.store(true, Ordering::SeqCst);
    let parts = crew.train(&["a", "b"], &[(0, Deed::DieAt(5, Phase::AfterCommit))]);
    assert_eq!(parts[1].end(), "PL0501", "{:?}", parts[1].outcome);
    assert_eq!((crew.recorder.head(), stored_steps(folder.path())), (0, Vec::new()));
    crew.dies("a");
    crew.recorder.away.store(false, Ordering::SeqCst);
    let parts = crew.train(&["b", "c"], &[]);
    assert_eq!(parts[0].end(), "Finished", "{:?}", parts[0].outcome);
    assert_eq!(crew.fed.resumed(2), (6, ResumedFrom::Memory, 1));
    assert_eq!(crew.recorder.steps_told_by(2), (1..=STEPS).collect::<Vec<_>>());
    nothing_is_lost(&crew, &expected);
}

/// A worker that was away holds steps that the others made again since; it gets theirs.
#[test]
fn who_comes_back_with_an_older_history_takes_that_of_the_others() {
    let folder = tempfile::tempdir().unwrap();
    let mut crew = Crew::new(llama_job(folder.path(), 30));
    crew.job["spec"]["checkpoint"]["every"] = json!(2);
    // Both make step 5, which nobody records; b is then away, and a dies with all it knew.
    crew.train(&["a", "b"], &[(0, Deed::YieldAfter(3))]);
    crew.recorder.away.store(true, Ordering::SeqCst);
    crew.train(&["a", "b"], &[(0, Deed::YieldAfter(5))]);
    crew.recorder.away.store(false, Ordering::SeqCst);
    crew.dies("a");
    // c knows only the store and goes another way: fast mode, three ranks.
    let parts = crew.train(&["c", "d", "e"], &[(0, Deed::YieldAfter(5))]);
    assert_eq!(parts[0].end(), "Yielded", "{:?}", parts[0].outcome);
    let (from, source, _) = crew.fed.resumed(3);
    assert!(source != ResumedFrom::Memory && from <= 4, "{from} from {source:?}");
    let parts = crew.train(&["b", "c"], &[]);
    for part in &parts {
        assert_eq!(part.end(), "Finished", "{:?}", part.outcome);
    }
    assert_eq!(crew.fed.resumed(4), (6, ResumedFrom::Memory, 3), "generation 2 was overtaken");
    crew.fed.history(4, STEPS);
}

/// What the job file wants after a step is done by whoever goes on from it.
#[test]
fn an_evaluation_and_a_checkpoint_that_were_cut_off_are_made_by_the_next_generation() {
    let folder = tempfile::tempdir().unwrap();
    let mut job = strict_job(folder.path());
    job["spec"]["eval"]["every"] = json!(3);
    job["spec"]["checkpoint"]["every"] = json!(3);
    let whole = alone(&job, folder.path());
    let mut crew = Crew::new(job);
    let first = crew.train(&["a", "b"], &[(1, Deed::DieAt(2, Phase::AfterCommit))]);
    let rest = crew.train(&["a", "b"], &[]);
    assert_eq!(rest[0].end(), "Finished", "{:?}", rest[0].outcome);
    assert_eq!(crew.fed.resumed(2).0, 3);
    let metrics: Vec<_> = [&first[0], &rest[0]]
        .iter()
        .flat_map(|part| part.heard.evals.lock().unwrap().iter().map(|row| row.metrics.clone()).collect::<Vec<_>>())
        .collect();
    assert_eq!(metrics.len(), whole.metrics.len());
    for (one, two) in metrics.iter().zip(&whole.metrics) {
        assert!(one.iter().all(|(name, value)| (value - two[name]).abs() < 1e-5), "{one:?} {two:?}");
    }
    let steps = stored_steps(folder.path());
    assert!(steps.contains(&"00000003-g0002".to_owned()), "{steps:?}");
    let file = |at: &str, name: &str| std::fs::read(folder.path().join(at).join(name)).unwrap();
    for name in ["adapter_model.safetensors", "trainer_state.safetensors"] {
        let (one, two) = ("alone/default/tiny/a/steps/00000003-g0001", "store/default/tiny/a/steps/00000003-g0002");
        assert!(file(one, name) == file(two, name), "{name} of step 3 differs");
    }
}

/// A state that does not arrive as it was sent is not gone on from, and is still there for the next try.
#[test]
fn a_damaged_state_is_noticed_and_sent_again() {
    let folder = tempfile::tempdir().unwrap();
    let mut crew = Crew::new(strict_job(folder.path()));
    let expected = uninterrupted(&crew.job, folder.path());
    crew.train(&["a"], &[(0, Deed::YieldAfter(3))]);
    let parts = crew.train(&["a", "b"], &[(1, Deed::Damages)]);
    assert_eq!((parts[0].end().as_str(), parts[1].end().as_str()), ("PL0501", "PL0802"), "{:?}", parts[1].outcome);
    assert_eq!(crew.recorder.steps_told_by(2), [0; 0]);
    let parts = crew.train(&["a", "b"], &[]);
    assert_eq!(parts[1].end(), "Finished", "{:?}", parts[1].outcome);
    assert_eq!(crew.fed.resumed(3), (4, ResumedFrom::Memory, 1), "generation 2 never was");
    nothing_is_lost(&crew, &expected);
}

/// Several tasks, a method with state of its own, another optimiser: all of it reaches a rank that joins.
#[test]
fn a_joiner_gets_moments_and_a_methods_own_state() {
    let folder = tempfile::tempdir().unwrap();
    let mut job = strict_job(folder.path());
    let adalora =
        json!({"method": "adalora", "init_r": 4, "target_r": 2, "tinit": 1, "tfinal": 2, "orth_reg_weight": 0.5});
    let mut second = job["spec"]["tasks"][0].clone();
    second["name"] = json!("b");
    second["optimizer"] = json!({"name": "sgd", "lr": 0.05, "momentum": 0.9});
    job["spec"]["tasks"][0]["adapter"] = adalora;
    job["spec"]["tasks"].as_array_mut().unwrap().push(second);
    let whole = alone(&job, folder.path());
    let mut crew = Crew::new(job);
    crew.train(&["a", "b"], &[(0, Deed::YieldAfter(3))]);
    crew.dies("b");
    let parts = crew.train(&["c", "a"], &[]);
    assert_eq!(parts[0].end(), "Finished", "{:?}", parts[0].outcome);
    let digests: Vec<_> = parts[0].heard.steps.lock().unwrap().iter().map(|row| row.digest.clone()).collect();
    assert!(!digests.is_empty());
    assert_eq!(digests, whole.digests[whole.digests.len() - digests.len()..]);
}
