//! What is said to a coordinator and made of its answers.

use pleach_proto::v1::watch_job_response::Update;
use pleach_proto::v1::*;

use crate::fake::Fake;
use crate::{pleach, run};

fn job(state: JobState, reason: &str) -> Job {
    let task = TaskStatus {
        name: "search".into(),
        method: "lora".into(),
        step: 2,
        total_steps: 4,
        loss: 0.5,
        durable_step: 2,
        durable_folder: "default/demo/search/steps/00000002-g0001".into(),
        ..Default::default()
    };
    Job {
        id: "demo".into(),
        tenant: "default".into(),
        state: state.into(),
        reason: reason.into(),
        spec_json: r#"{"spec":{"checkpoint":{"store":"/stored/"}}}"#.into(),
        tasks: vec![task],
        ..Default::default()
    }
}

fn step(step: u64) -> Update {
    Update::Step(StepRow {
        task: "search".into(),
        step,
        total_steps: 4,
        loss: 1.0 / step as f64,
        tokens: 100,
        step_seconds: 0.5,
        world: 2,
        ..Default::default()
    })
}

fn event(kind: &str, message: &str) -> Update {
    Update::Event(Event { unix_ms: 1_000, kind: kind.into(), message: message.into(), ..Default::default() })
}

/// Runs `pleach` against a coordinator that plays `updates`.
async fn against(
    job: Job,
    updates: Vec<Update>,
    break_after: Option<usize>,
    args: &[&str],
) -> (i32, String, String, Vec<String>) {
    let (fake, address) = Fake::serve(job, updates, break_after).await;
    let mut command = pleach(args);
    command.env("PLEACH_ADDRESS", format!("http://{address}"));
    let (code, out, err) = tokio::task::spawn_blocking(move || run(&mut command)).await.expect("ran");
    (code, out, err, fake.calls())
}

#[tokio::test]
async fn get_lists_for_people_and_prints_records_for_scripts() {
    let (code, out, err, _) = against(job(JobState::Running, "2 of 2 workers"), vec![], None, &["get"]).await;
    assert_eq!((code, err.as_str()), (0, ""));
    let lines: Vec<_> = out.lines().collect();
    assert!(lines[0].starts_with("NAME  STATE    TASKS  STEP  LOSS"), "{out}");
    assert!(lines[1].starts_with("demo  running  1      2/4   0.5000"), "{out}");

    let (_, out, _, _) = against(job(JobState::Running, ""), vec![], None, &["get", "demo", "-o", "json"]).await;
    let value: serde_json::Value = serde_json::from_str(&out).expect("JSON");
    assert_eq!((value["state"].as_str(), value["tasks"][0]["durable_step"].as_u64()), (Some("running"), Some(2)));
    assert_eq!(value["spec"]["spec"]["checkpoint"]["store"], "/stored/");
}

#[tokio::test]
async fn an_error_of_the_coordinator_keeps_its_code_and_hint() {
    let (code, out, err, _) = against(job(JobState::Running, ""), vec![], None, &["get", "dmo"]).await;
    assert_eq!((code, out.as_str()), (1, ""));
    assert_eq!(err, "error: no job `dmo`\nhint: did you mean `demo`?\nsee: pleach explain PL0704\n");
}

#[tokio::test]
async fn tenant_and_token_travel_with_every_call() {
    let args = ["delete", "demo", "--tenant", "acme", "--token", "s3cret"];
    let (code, _, _, calls) = against(job(JobState::Failed, ""), vec![], None, &args).await;
    assert_eq!(code, 0);
    assert_eq!(calls, ["acme|Bearer s3cret|delete"]);
}

#[tokio::test]
async fn submit_follows_to_the_end_and_ends_with_the_adapters() {
    let updates = vec![
        Update::Job(job(JobState::Running, "2 of 2 workers")),
        step(1),
        step(2),
        Update::Job(job(JobState::Succeeded, "all tasks are done")),
    ];
    let args = ["submit", "docs/jobs/lora-retrieval.yaml", "--set", "spec.checkpoint.store=/stored"];
    let (code, out, err, calls) = against(job(JobState::Succeeded, ""), updates, None, &args).await;
    assert_eq!(code, 0, "{err}");
    assert!(err.contains("search  step 2/4") && err.contains("tokens/s 200"), "{err}");
    assert_eq!(out.lines().count(), 2, "standard output is the data alone: {out}");
    assert!(out.contains("search  2     0.5000  /stored/default/demo/search/steps/00000002-g0001"), "{out}");
    assert_eq!(calls[0], "default|-|submit lora-retrieval");
}

#[tokio::test]
async fn submit_without_waiting_prints_the_id_and_asks_nothing_more() {
    let args = ["submit", "docs/jobs/lora-retrieval.yaml", "--no-wait", "--id", "mine"];
    let (code, out, _, calls) = against(job(JobState::Queued, "no workers"), vec![], None, &args).await;
    assert_eq!((code, out.as_str()), (0, "mine\n"));
    assert_eq!(calls, ["default|-|submit mine"]);
}

#[tokio::test]
async fn what_the_coordinator_refuses_is_shown_with_the_line_of_the_file() {
    let set = "spec.tasks[0].adapter.target_modules=[TARGET]";
    let args = ["submit", "docs/jobs/lora-retrieval.yaml", "--set", set];
    let (code, _, err, _) = against(job(JobState::Queued, ""), vec![], None, &args).await;
    assert_eq!(code, 2);
    assert!(err.contains(&format!("--set {set}: spec.tasks[0].adapter.target_modules: nothing matches")), "{err}");
}

#[tokio::test]
async fn a_failed_job_ends_the_watch_with_one_and_says_why() {
    let mut failed = job(JobState::Failed, "search: no usable row in data/pairs.jsonl");
    failed.error_code = "PL0201".into();
    let updates = vec![step(1), Update::Job(failed)];
    let (code, out, err, _) = against(job(JobState::Running, ""), updates, None, &["watch", "demo"]).await;
    assert_eq!(code, 1, "a job's failure is 1 even when its cause was bad input");
    assert!(out.contains("search  step 1/4"), "{out}");
    assert!(err.contains("job demo failed: search: no usable row") && err.contains("pleach explain PL0201"), "{err}");
}

#[tokio::test]
async fn an_outage_is_waited_out_and_nothing_is_seen_twice() {
    let updates = vec![step(1), step(2), step(3), Update::Job(job(JobState::Succeeded, ""))];
    let (code, out, err, calls) = against(job(JobState::Running, ""), updates, Some(2), &["watch", "demo"]).await;
    assert_eq!(code, 0, "{err}");
    let steps: Vec<_> = out.lines().filter_map(|line| line.split("  ").nth(1)).collect();
    assert_eq!(steps, ["step 1/4", "step 2/4", "step 3/4"]);
    assert!(err.contains("waiting up to 120 s for the coordinator"), "{err}");
    assert_eq!(calls, ["default|-|get", "default|-|watch demo after 0", "default|-|watch demo after 2"]);
}

#[tokio::test]
async fn logs_print_lines_and_events_in_order() {
    let line = LogLine { unix_ms: 2_000, worker: "w0".into(), level: "info".into(), text: "loaded".into() };
    let updates = vec![event("GangFormed", "2 workers"), step(1), Update::Log(line)];
    let (code, out, err, _) = against(job(JobState::Succeeded, ""), updates, None, &["logs", "demo"]).await;
    assert_eq!((code, err.as_str()), (0, ""));
    assert_eq!(out, "00:00:01 GangFormed: 2 workers\n00:00:02 INFO  w0: loaded\n");
}

#[tokio::test]
async fn cancel_waits_for_the_end_and_passes_the_reason_on() {
    let updates =
        vec![Update::Job(job(JobState::Stopping, "finishing step 2")), Update::Job(job(JobState::Cancelled, "x"))];
    let args = ["cancel", "demo", "--reason", "too slow"];
    let (code, out, err, calls) = against(job(JobState::Running, ""), updates, None, &args).await;
    assert_eq!((code, out.as_str()), (0, "demo cancelled\n"), "{err}");
    assert!(err.contains("waiting for demo to finish its step and write a checkpoint"), "{err}");
    assert_eq!(calls[0], "default|-|cancel too slow");
}

#[tokio::test]
async fn a_profile_is_shown_and_written_as_a_trace() {
    let (fake, address) = Fake::serve(job(JobState::Running, ""), Vec::new(), None).await;
    let time = |stage: Stage, micros| StageTime { stage: stage.into(), micros };
    let steps = vec![StepTimes {
        tasks: vec!["search".into()],
        step: 3,
        begun_unix_us: 5,
        stages: vec![time(Stage::Data, 250), time(Stage::Forward, 750)],
    }];
    fake.took(GetProfileResponse { generation: 1, ranks: vec![RankTimes { worker: "w0".into(), rank: 0, steps }] });
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("trace.json");
    let mut command = pleach(&["profile", "demo", "-o", "json", "--trace", file.to_str().expect("text")]);
    command.env("PLEACH_ADDRESS", format!("http://{address}"));
    let (code, out, err) = tokio::task::spawn_blocking(move || run(&mut command)).await.expect("ran");
    assert_eq!((code, err.as_str()), (0, ""));
    let value: serde_json::Value = serde_json::from_str(&out).expect("JSON");
    assert_eq!(
        (value["ranks"][0]["input_wait_share"].as_f64(), value["ranks"][0]["steps"].as_u64()),
        (Some(0.25), Some(1))
    );
    let trace: serde_json::Value = serde_json::from_slice(&std::fs::read(file).expect("written")).expect("JSON");
    assert_eq!(trace["traceEvents"].as_array().map(Vec::len), Some(7), "a name, and two bars within one");
}
