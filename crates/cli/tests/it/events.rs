//! `pleach events`: the history in sentences.

use pleach_proto::v1::watch_job_response::Update;
use pleach_proto::v1::{CommitRecord, Event, Job, StepRow};
use serde_json::Value;

use crate::fake::Fake;
use crate::{pleach, run};

fn event(second: i64, kind: &str, message: &str) -> Update {
    Update::Event(Event { unix_ms: second * 1_000, kind: kind.into(), message: message.into(), ..Default::default() })
}

fn commit(second: i64, step: u64, generation: u64) -> CommitRecord {
    let unix_ms = second * 1_000;
    CommitRecord {
        task: "search".into(),
        step,
        generation,
        world: 3 - generation as u32,
        unix_ms,
        ..Default::default()
    }
}

async fn against(last_seq: u64, later: Vec<Update>, args: &[&str]) -> (i32, String, String) {
    let job = Job { id: "demo".into(), last_seq, ..Default::default() };
    let mut updates = vec![
        Update::Job(job.clone()),
        event(1, "GangFormed", "generation 1: 2 workers (w0, w1)"),
        event(9, "WorkerLost", "w1 is gone: its lease ended"),
        event(10, "GangFormed", "generation 2: 1 worker (w0)"),
    ];
    updates.extend(later);
    let (fake, address) = Fake::serve(job, updates, None).await;
    fake.record(vec![commit(2, 1, 1), commit(4, 2, 1), commit(6, 3, 1), commit(11, 4, 2)]);
    let mut command = pleach(args);
    command.env("PLEACH_ADDRESS", format!("http://{address}"));
    tokio::task::spawn_blocking(move || run(&mut command)).await.unwrap()
}

const PAST: [&str; 5] = [
    "1970-01-01 00:00:01 GangFormed: generation 1: 2 workers (w0, w1)",
    "1970-01-01 00:00:06 Recorded: search: steps 1 to 3 were recorded by generation 1 of 2 workers",
    "1970-01-01 00:00:09 WorkerLost: w1 is gone: its lease ended",
    "1970-01-01 00:00:10 GangFormed: generation 2: 1 worker (w0)",
    "1970-01-01 00:00:11 Recorded: search: step 4 was recorded by generation 2 of 1 worker",
];

#[tokio::test(flavor = "multi_thread")]
async fn the_past_is_told_in_order_and_ends() {
    let (code, out, err) = against(4, vec![event(12, "Later", "not yet")], &["events", "demo"]).await;
    assert_eq!(code, 0, "{err}");
    assert_eq!(out.lines().collect::<Vec<_>>(), PAST);
}

#[tokio::test(flavor = "multi_thread")]
async fn scripts_get_one_document() {
    let (_, out, err) = against(4, Vec::new(), &["events", "demo", "-o", "json"]).await;
    let value: Value = serde_json::from_str(&out).expect(&err);
    assert_eq!(value.as_array().map(Vec::len), Some(5));
    let range = &value[1];
    assert_eq!(
        (range["from"].as_u64(), range["to"].as_u64(), range["generation"].as_u64()),
        (Some(1), Some(3), Some(1))
    );
    assert_eq!((value[2]["kind"].as_str(), value[2]["from"].as_u64()), (Some("WorkerLost"), None));
}

#[tokio::test(flavor = "multi_thread")]
async fn following_goes_on_and_folds_what_comes() {
    let step = |step| {
        Update::Step(StepRow {
            task: "search".into(),
            step,
            generation: 2,
            world: 1,
            unix_ms: 13_000,
            ..Default::default()
        })
    };
    let later = vec![step(5), step(6), event(14, "Succeeded", "all tasks are done")];
    let (code, out, err) = against(4, later, &["events", "demo", "--follow"]).await;
    assert_eq!(code, 0, "{err}");
    let lines: Vec<_> = out.lines().collect();
    assert_eq!(lines[..5], PAST);
    assert_eq!(
        lines[5..],
        [
            "1970-01-01 00:00:13 Recorded: search: steps 5 to 6 were recorded by generation 2 of 1 worker",
            "1970-01-01 00:00:14 Succeeded: all tasks are done"
        ]
    );
}
