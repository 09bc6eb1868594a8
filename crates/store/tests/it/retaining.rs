//! What retention keeps and removes.

use std::collections::BTreeSet;
use std::time::Duration;

use pleach_base::{Step, Timestamp, code};
use pleach_store::{Best, Gate, Retention, TaskStore};
use rstest::rstest;
use serde_json::json;

use crate::backend::{Backend, Kind, fence, snapshot};

fn policy(last: u32, best: Option<&str>, min_age_s: u64) -> Retention {
    Retention { last, best: best.map(Best::by), min_age: Duration::from_secs(min_age_s) }
}

const LATER: Timestamp = Timestamp(100_000_000_000_000);

async fn steps(task: &TaskStore) -> Vec<u64> {
    task.steps().await.unwrap().iter().map(|entry| entry.step.unwrap().0).collect()
}

fn folders(backend: &Backend) -> BTreeSet<String> {
    let objects = backend.objects();
    let names = objects.keys().filter_map(|key| key.strip_prefix("steps/"));
    names.map(|key| key.split('/').next().unwrap().to_owned()).collect()
}

#[rstest]
#[tokio::test]
async fn the_last_and_the_best_stay(#[values(Kind::Folder, Kind::S3)] kind: Kind) {
    let backend = Backend::start(kind).await;
    let task = backend.task();
    let mut writer = task.fence(fence(1, 1)).await.unwrap();
    for (step, loss) in [(1, 0.9), (2, 0.1), (3, 0.5), (4, 0.4), (5, 0.6)] {
        let mut one = snapshot(step, 1);
        one.meta.insert("metrics".to_owned(), json!({"eval/loss": loss, "eval/recall": loss}));
        writer.commit(&one).await.unwrap();
    }
    let gone = task.find(Step(3)).await.unwrap();
    let removed = writer.retain(&policy(2, Some("eval/loss"), 0), LATER).await.unwrap();
    assert_eq!(removed, ["steps/00000001-g0001", "steps/00000003-g0001"]);
    assert_eq!(steps(&task).await, [2, 4, 5]);
    assert_eq!(folders(&backend).len(), 3);
    let empty_folder = backend.root.join("acme/desk/tone/steps/00000001-g0001");
    assert!(kind == Kind::S3 || !empty_folder.exists(), "no empty folder stays behind");
    crate::kills::check_whole(&task).await;
    let error = task.read(&gone).await.expect_err("removed");
    assert_eq!(error.code(), code::CHECKPOINT_NONE, "a reader that was too slow is told why: {error:?}");
    assert_eq!(writer.retain(&policy(2, Some("eval/loss"), 0), LATER).await.unwrap(), Vec::<String>::new());
    writer.retain(&policy(1, Some("eval/recall"), 0), LATER).await.unwrap();
    assert_eq!(steps(&task).await, [5], "the highest recall is the newest too");
    writer.commit(&snapshot(6, 1)).await.unwrap();
}

#[tokio::test]
async fn the_young_stay() {
    let backend = Backend::folder();
    let task = backend.task();
    let mut writer = task.fence(fence(1, 1)).await.unwrap();
    for step in 1..=4 {
        writer.commit(&snapshot(step, 1)).await.unwrap();
        backend.clock.advance(Duration::from_secs(100));
    }
    // Committed at 1000, 1100, 1200 and 1300 s; asked at 1400 s.
    let now = Timestamp(1_400_000);
    writer.retain(&policy(1, None, 300), now).await.unwrap();
    assert_eq!(steps(&task).await, [3, 4]);
}

#[tokio::test]
async fn the_newest_that_passed_its_gate_stays() {
    let backend = Backend::folder();
    let task = backend.task();
    let mut writer = task.fence(fence(1, 1)).await.unwrap();
    for step in 1..=5 {
        let mut one = snapshot(step, 1);
        one.gate = Gate { publishable: step <= 2, findings: Vec::new() };
        let loss = if step > 2 { 0 } else { step };
        one.meta.insert("metrics".to_owned(), json!({"eval/loss": loss}));
        writer.commit(&one).await.unwrap();
    }
    writer.retain(&policy(0, Some("eval/loss"), 0), LATER).await.unwrap();
    assert_eq!(steps(&task).await, [1, 2, 5], "the best that passed, the newest that passed, the newest");
    writer.retain(&policy(0, None, 0), LATER).await.unwrap();
    assert_eq!(steps(&task).await, [2, 5]);
}

#[rstest]
#[tokio::test]
async fn what_a_later_generation_went_back_behind_goes(#[values(Kind::Folder, Kind::S3)] kind: Kind) {
    let backend = Backend::start(kind).await;
    let task = backend.task();
    let mut one = task.fence(fence(1, 1)).await.unwrap();
    for step in 1..=3 {
        one.commit(&snapshot(step, 1)).await.unwrap();
    }
    let mut two = task.fence(fence(1, 2)).await.unwrap();
    two.commit(&snapshot(2, 2)).await.unwrap();
    assert_eq!(steps(&task).await, [1, 2]);
    assert_eq!(task.find(Step(2)).await.unwrap().fence, fence(1, 2));
    let error = one.retain(&policy(1, None, 0), LATER).await.expect_err("stale");
    assert_eq!(error.code(), code::STORE_FENCED);
    assert_eq!(folders(&backend).len(), 4, "a stale writer removes nothing");
    two.retain(&policy(5, None, 0), LATER).await.unwrap();
    assert_eq!(folders(&backend).into_iter().collect::<Vec<_>>(), ["00000001-g0001", "00000002-g0002"]);
}

#[tokio::test]
async fn folders_without_an_entry_go_when_they_are_old_and_of_an_earlier_generation() {
    let backend = Backend::folder();
    let task = backend.task();
    task.fence(fence(1, 1)).await.unwrap();
    for name in ["00000007-g0001", "00000007-g0002", "00000007-g0003"] {
        let folder = backend.root.join("acme/desk/tone/steps").join(name);
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("adapter_config.json"), "{}").unwrap();
    }
    let mut writer = task.fence(fence(1, 2)).await.unwrap();
    assert!(writer.retain(&policy(1, None, 600), Timestamp(0)).await.unwrap().is_empty(), "too young");
    assert_eq!(writer.retain(&policy(1, None, 600), LATER).await.unwrap(), ["steps/00000007-g0001"]);
}
