//! What a step is does not depend on how many processes compute it, and what one of them sees all of them do.

use std::sync::Arc;

use pleach_train::StopSignal;
use rstest::rstest;
use serde_json::{Value, json};

use crate::fixture::{Heard, bert_job, llama_job, lm_row, parity, parse, run, run_alone, stored};
use crate::processes::{Gang, Report, gang};

/// The job in one process, in a folder of its own.
pub(crate) fn alone(job: &Value, folder: &std::path::Path) -> Report {
    let mut job = job.clone();
    job["spec"]["checkpoint"]["store"] = json!(folder.join("alone"));
    let (outcome, heard) = run_alone(&job);
    Report::of(outcome, &heard)
}

#[track_caller]
pub(crate) fn near(a: &[f64], b: &[f64], tolerance: f64) {
    assert_eq!(a.len(), b.len());
    for (step, (a, b)) in a.iter().zip(b).enumerate() {
        assert!((a - b).abs() < tolerance, "step {}: {a} and {b}", step + 1);
    }
}

/// `kill -9` of the rank that writes, then of the other one, each after its steps: the next gangs go on from what is durable,
/// to the bits of a training that nobody disturbed.
#[track_caller]
pub(crate) fn survives_kills(name: &str, job: &Value, folder: &std::path::Path, kills: [u64; 2]) {
    let whole = alone(job, folder);
    assert_eq!(whole.end, "Finished", "{name}: {}", whole.message);
    let mut job = job.clone();
    job["spec"]["checkpoint"]["store"] = json!(folder.join("killed"));
    job["spec"]["checkpoint"]["every"] = json!(1);
    job["spec"]["checkpoint"]["max_lag"] = json!(1);
    for (rank, step) in kills.into_iter().enumerate() {
        let how = Gang { generation: 1 + rank as u64, die: Some((rank, step)), ..Gang::default() };
        let cut = gang(folder, &job, 2, &how);
        let other = &cut[1 - rank];
        assert_eq!(other.end, "PL0501", "{name}: {}", other.message);
    }
    let rest = gang(folder, &job, 2, &Gang { generation: 3, ..Gang::default() });
    assert_eq!(rest[0].end, "Finished", "{name}: {}", rest[0].message);
    let redone = rest[0].digests.len();
    assert!(redone > 0 && redone < whole.digests.len(), "{name}: {redone} steps were made after the kills");
    assert_eq!(rest[0].digests, whole.digests[whole.digests.len() - redone..], "{name}");
}

#[test]
fn two_processes_have_the_losses_of_one_and_agree_on_the_adapter() {
    let folder = tempfile::tempdir().unwrap();
    let job = llama_job(folder.path(), 30);
    let one = alone(&job, folder.path());
    let two = gang(folder.path(), &job, 2, &Gang::default());
    assert_eq!((one.end.as_str(), two[0].end.as_str(), two[1].end.as_str()), ("Finished", "Finished", "Finished"));
    assert_eq!(one.losses.len(), 8, "two epochs of three full steps and a short one");
    near(&one.losses, &two[0].losses, 1e-5);
    assert_eq!(two[0].losses, two[1].losses);
    assert_eq!(two[0].digests, two[1].digests);
    for (one, two) in one.metrics.iter().zip(&two[0].metrics) {
        assert!((one["loss"] - two["loss"]).abs() < 1e-5 && one["accuracy"] == two["accuracy"], "{one:?} {two:?}");
    }
    assert_eq!(two[0].metrics, two[1].metrics);
    assert_eq!((two[0].durable.last(), two[1].durable.len()), (Some(&8), 0), "rank 0 alone writes");
}

#[rstest]
#[case::graphs_kept(None)]
#[case::two_passes(Some(3))]
fn retrieval_sees_the_whole_global_batch(#[case] micro_batch: Option<u32>) {
    let folder = tempfile::tempdir().unwrap();
    let mut job = bert_job(folder.path(), 20);
    let one = alone(&job, folder.path());
    assert_eq!(one.end, "Finished", "{}", one.message);
    job["spec"]["train"]["micro_batch"] = json!(micro_batch);
    for (world, generation) in [(2, 1), (3, 2)] {
        job["spec"]["checkpoint"]["store"] = json!(folder.path().join(format!("store-{world}")));
        let many = gang(folder.path(), &job, world, &Gang { generation, ..Gang::default() });
        near(&one.losses, &many[0].losses, 2e-5);
        for rank in &many {
            assert_eq!((&rank.end, &rank.digests), (&"Finished".to_owned(), &many[0].digests), "{}", rank.message);
            assert_eq!(rank.metrics, many[0].metrics);
        }
        assert_eq!(one.metrics.len(), many[0].metrics.len());
        near(&[one.metrics[0]["mrr"]], &[many[0].metrics[0]["mrr"]], 1e-9);
    }
}

#[rstest]
#[case::language(false, None)]
#[case::retrieval(true, None)]
#[case::a_term_and_a_step_of_the_method(false, Some(json!(
    {"method": "adalora", "init_r": 4, "target_r": 2, "tinit": 1, "tfinal": 2, "orth_reg_weight": 0.5}
)))]
#[case::virtual_tokens(true, Some(json!({"method": "prompt", "num_virtual_tokens": 3})))]
fn strict_gives_the_same_bits_for_any_number_of_processes(#[case] retrieval: bool, #[case] adapter: Option<Value>) {
    let folder = tempfile::tempdir().unwrap();
    let mut job = if retrieval { bert_job(folder.path(), 20) } else { llama_job(folder.path(), 20) };
    job["spec"]["train"]["determinism"] = json!("strict");
    match adapter {
        Some(adapter) => job["spec"]["tasks"][0]["adapter"] = adapter,
        None => job["spec"]["tasks"][0]["adapter"]["lora_dropout"] = json!(0.1),
    }
    let one = alone(&job, folder.path());
    assert_eq!(one.end, "Finished", "{}", one.message);
    for world in 2..=4 {
        job["spec"]["checkpoint"]["store"] = json!(folder.path().join(format!("store-{world}")));
        let many = gang(folder.path(), &job, world, &Gang::default());
        assert_eq!(many[0].end, "Finished", "{}", many[0].message);
        assert_eq!(one.digests, many[0].digests, "{world} processes");
        assert_eq!(one.losses, many[0].losses, "{world} processes");
    }
}

/// A model whose token 255 has an embedding that is not a number, and data in which one row has it.
fn poisoned(folder: &std::path::Path) -> Value {
    let mut job = llama_job(folder, 1);
    let (from, to) = (parity("llama-lora").join("model"), folder.join("model"));
    std::fs::create_dir(&to).unwrap();
    std::fs::copy(from.join("config.json"), to.join("config.json")).unwrap();
    let mut tensors = tch::Tensor::read_safetensors(from.join("model.safetensors")).unwrap();
    for (name, tensor) in &mut tensors {
        if name == "model.embed_tokens.weight" {
            let _ = tensor.get(255).fill_(f64::NAN);
        }
    }
    tch::Tensor::write_safetensors(&tensors, to.join("model.safetensors")).unwrap();
    // File order: step 2 is rows 8 to 15, and row 14 is in the last lane, which rank 1 has.
    let row = |row| if row == 14 { format!("{}\n", json!({"input_ids": [1, 255, 3]})) } else { lm_row(row, 0) };
    std::fs::write(folder.join("train.jsonl"), (0..24).map(row).collect::<String>()).unwrap();
    job["spec"]["backbone"]["path"] = json!(to);
    job["spec"]["data"]["shuffle"] = json!(false);
    job["spec"]["train"]["epochs"] = json!(1);
    job
}

#[test]
fn a_nan_on_one_rank_stops_all_at_the_same_step_and_names_the_sample() {
    let folder = tempfile::tempdir().unwrap();
    let reports = gang(folder.path(), &poisoned(folder.path()), 2, &Gang::default());
    for report in &reports {
        assert_eq!(report.end, "PL0801", "{}", report.message);
        assert_eq!(report.message, reports[0].message);
        assert!(report.message.contains("step 2") && report.message.contains("14"), "{}", report.message);
        assert_eq!(report.losses.len(), 1);
    }
}

#[test]
fn a_nan_on_one_rank_is_skipped_by_all() {
    let folder = tempfile::tempdir().unwrap();
    let mut job = poisoned(folder.path());
    job["spec"]["train"]["non_finite"] = json!("skip");
    let reports = gang(folder.path(), &job, 2, &Gang::default());
    for report in &reports {
        assert_eq!((report.end.as_str(), &report.skipped[..]), ("Finished", &[2][..]), "{}", report.message);
        assert_eq!(report.digests, reports[0].digests);
        assert_eq!(report.digests[0], report.digests[1], "a skipped step changes nothing");
        assert_ne!(report.digests[1], report.digests[2]);
    }
}

#[test]
fn ranks_with_other_parameters_refuse_to_train_together() {
    let folder = tempfile::tempdir().unwrap();
    let job = llama_job(folder.path(), 16);
    let mut other = job.clone();
    other["spec"]["train"]["seed"] = json!(4);
    let reports = gang(folder.path(), &job, 2, &Gang { other: vec![(1, other)], ..Gang::default() });
    for report in reports {
        assert_eq!(report.end, "PL0802", "{}", report.message);
        assert!(report.message.contains("[1]"), "{}", report.message);
    }
}

#[test]
fn ranks_with_other_rows_refuse_to_train_together() {
    let folder = tempfile::tempdir().unwrap();
    let job = llama_job(folder.path(), 16);
    let elsewhere = folder.path().join("elsewhere");
    std::fs::create_dir(&elsewhere).unwrap();
    let other = llama_job(&elsewhere, 17);
    let reports = gang(folder.path(), &job, 2, &Gang { other: vec![(1, other)], ..Gang::default() });
    assert!(reports.iter().all(|report| report.end == "PL0206"), "{reports:?}");
}

/// One rank asks; both stop after the same step; a gang of another size goes on and ends as if nothing had happened.
#[test]
fn a_drained_job_goes_on_with_other_ranks_and_ends_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let mut job = llama_job(folder.path(), 30);
    job["spec"]["train"]["determinism"] = json!("strict");
    let whole = alone(&job, folder.path());
    let how = Gang { generation: 1, drain: Some((1, 3)), ..Gang::default() };
    let drained = gang(folder.path(), &job, 2, &how);
    let steps = drained[0].losses.len();
    assert!((3..=5).contains(&steps), "{steps} steps");
    for report in &drained {
        assert_eq!((report.end.as_str(), report.losses.len()), ("Drained", steps), "{}", report.message);
    }
    assert_eq!(drained[0].durable.last(), Some(&(steps as u64)));
    let rest = gang(folder.path(), &job, 3, &Gang { generation: 2, ..Gang::default() });
    assert_eq!(rest[0].end, "Finished", "{}", rest[0].message);
    let digests: Vec<_> = drained[0].digests.iter().chain(&rest[0].digests).cloned().collect();
    assert_eq!(digests, whole.digests);
    assert_eq!(rest[0].metrics.len(), 1, "the untrained adapter is not evaluated again");
    assert!(!stored(folder.path()).is_empty());
}

/// A rank dies without a word; the other one fails at once, and a new gang goes on from the newest checkpoint.
#[test]
fn a_dead_rank_ends_the_generation_and_the_next_one_redoes_what_was_lost() {
    let folder = tempfile::tempdir().unwrap();
    let job = llama_job(folder.path(), 30);
    let expected = gang(folder.path(), &job, 2, &Gang { generation: 1, ..Gang::default() });
    let mut job = job;
    job["spec"]["checkpoint"]["store"] = json!(folder.path().join("again"));
    let how = Gang { generation: 2, die: Some((1, 5)), ..Gang::default() };
    let first = gang(folder.path(), &job, 2, &how);
    assert_eq!(first[0].end, "PL0501", "{}", first[0].message);
    let rest = gang(folder.path(), &job, 2, &Gang { generation: 3, ..Gang::default() });
    assert_eq!(rest[0].end, "Finished", "{}", rest[0].message);
    let redone = rest[0].losses.len();
    assert!((4..=8).contains(&redone), "{redone} steps");
    assert_eq!(rest[0].digests, expected[0].digests[8 - redone..]);
}

#[test]
fn a_rank_without_lanes_takes_part() {
    let folder = tempfile::tempdir().unwrap();
    let mut job = llama_job(folder.path(), 16);
    job["spec"]["train"]["lanes"] = json!(1);
    let one = alone(&job, folder.path());
    let two = gang(folder.path(), &job, 2, &Gang::default());
    assert_eq!(two[1].end, "Finished", "{}", two[1].message);
    near(&one.losses, &two[1].losses, 1e-6);
}

#[test]
fn an_abort_ends_a_lone_rank_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let (heard, stop) = (Arc::new(Heard::default()), StopSignal::default());
    stop.abort("the test says so");
    let group = pleach_comm::local(tch::Device::Cpu);
    let error = run(parse(&llama_job(folder.path(), 16)), group.as_ref(), 1, &heard, stop).unwrap_err();
    assert_eq!(error.code(), pleach_base::code::CANCELLED);
    assert!(heard.losses().is_empty());
}
