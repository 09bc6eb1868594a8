//! A writer that is killed between any two writes never shows a reader half a step.

use std::sync::Arc;
use std::time::Duration;

use object_store::ObjectStore;
use object_store::memory::InMemory;
use object_store::path::Path;
use pleach_base::{ManualClock, Step, Timestamp};
use pleach_store::{EntryKind, Retention, Store, StoreOptions, TaskStore};
use rstest::rstest;

use crate::backend::{fence, snapshot, task_of};
use crate::failing::Failing;

pub(crate) fn over(objects: Arc<dyn ObjectStore>) -> TaskStore {
    let options = StoreOptions { clock: Some(ManualClock::starting_at(1_000_000)), ..StoreOptions::default() };
    task_of(&Store::over(objects, Path::from("root"), "memory", &options))
}

/// Whatever the log reaches is whole.
pub(crate) async fn check_whole(task: &TaskStore) {
    for entry in task.steps().await.unwrap() {
        let read = task.read(&entry).await.unwrap_or_else(|e| panic!("entry {} is not whole: {e:?}", entry.seq));
        assert_eq!(Some(read.step), entry.step);
    }
}

/// Fence, three commits and a retention that removes: about 20 writes.
async fn work(task: &TaskStore) -> pleach_base::Result<()> {
    let mut writer = task.fence(fence(1, 1)).await?;
    let policy = Retention { last: 1, best: None, min_age: Duration::ZERO };
    for step in 1..=3 {
        writer.commit(&snapshot(step, 1)).await?;
        if step > 1 {
            writer.retain(&policy, Timestamp(2_000_000)).await?;
        }
    }
    Ok(())
}

#[rstest]
#[tokio::test]
async fn killed_after_any_write_the_log_reaches_only_whole_steps(#[values(true, false)] last_is_applied: bool) {
    let mut kills = 0;
    for writes in 0.. {
        let memory: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
        let failing = Failing::after(Arc::clone(&memory), writes, last_is_applied);
        let done = work(&over(Arc::clone(&failing) as _)).await;
        assert!(done.is_ok() || failing.is_dead(), "{done:?}");
        let reader = over(memory);
        check_whole(&reader).await;
        // The next generation takes over and goes on, whatever was left.
        let mut next = reader.fence(fence(1, 2)).await.unwrap();
        let entry = next.commit(&snapshot(2, 9)).await.unwrap();
        check_whole(&reader).await;
        assert_eq!(reader.newest().await.unwrap(), Some(entry));
        // And its retention leaves nothing of the killed one but what it keeps.
        next.retain(&Retention { last: 1, best: None, min_age: Duration::ZERO }, Timestamp(u64::MAX)).await.unwrap();
        check_whole(&reader).await;
        assert_eq!(reader.steps().await.unwrap().len(), 1);
        if done.is_ok() {
            break;
        }
        kills += 1;
    }
    assert!(kills > 15, "only {kills} kills: the work has become too small");
}

/// An answer that got lost at the log entry, then the same writer goes on.
#[tokio::test]
async fn a_commit_whose_answer_was_lost_counts_once() {
    let memory: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
    let lossy = Arc::new(crate::failing::LosesOne::at(Arc::clone(&memory), "log/0000000002.json"));
    let task = over(lossy);
    let mut writer = task.fence(fence(1, 1)).await.unwrap();
    writer.commit(&snapshot(1, 1)).await.expect_err("nobody heard the answer");
    let next = writer.commit(&snapshot(2, 1)).await.unwrap();
    assert_eq!(next.seq, 3, "the lost one has number 2");
    let entries = over(memory).entries().await.unwrap();
    let steps: Vec<_> = entries.iter().filter(|e| e.kind == EntryKind::Step).map(|e| e.step).collect();
    assert_eq!(steps, [Some(Step(1)), Some(Step(2))]);
    check_whole(&task).await;
}

#[tokio::test]
async fn a_repeated_commit_finds_its_lost_entry() {
    let memory: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
    let task = over(Arc::new(crate::failing::LosesOne::at(memory, "log/0000000002.json")));
    let mut writer = task.fence(fence(1, 1)).await.unwrap();
    writer.commit(&snapshot(1, 1)).await.expect_err("nobody heard the answer");
    let entry = writer.commit(&snapshot(1, 1)).await.unwrap();
    assert_eq!((entry.seq, task.entries().await.unwrap().len()), (2, 2));
}
