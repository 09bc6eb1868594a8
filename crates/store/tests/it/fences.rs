//! Who may write, and what a commit leaves behind.

use pleach_base::{Step, code};
use pleach_store::{EntryKind, LogEntry};
use pleach_testkit::s3::{PutFault, S3Options};
use rstest::rstest;

use crate::backend::{Backend, Kind, fence, snapshot};

#[rstest]
#[tokio::test]
async fn a_commit_is_found_again(#[values(Kind::Folder, Kind::S3)] kind: Kind) {
    let backend = Backend::start(kind).await;
    let task = backend.task();
    assert_eq!(task.newest().await.unwrap(), None);
    let mut writer = task.fence(fence(1, 7)).await.unwrap();
    let entry = writer.commit(&snapshot(1000, 1)).await.unwrap();
    assert_eq!(entry.folder.as_deref(), Some("steps/00001000-g0007"));
    assert_eq!(task.newest().await.unwrap().as_ref(), Some(&entry));
    let mut stored = task.read(&entry).await.unwrap();
    stored.files.sort_by(|a, b| a.name.cmp(&b.name));
    assert_eq!(stored, snapshot(1000, 1));
    let keys: Vec<_> = backend.objects().into_keys().collect();
    assert_eq!(
        keys,
        [
            "latest.json",
            "log/0000000001.json",
            "log/0000000002.json",
            "steps/00001000-g0007/adapter_config.json",
            "steps/00001000-g0007/adapter_model.safetensors",
            "steps/00001000-g0007/manifest.json",
            "steps/00001000-g0007/trainer_state.safetensors",
        ]
    );
    let latest: LogEntry = serde_json::from_slice(&backend.objects()["latest.json"]).unwrap();
    assert_eq!(latest, entry);
    assert_eq!(writer.commit(&snapshot(1000, 1)).await.unwrap(), entry, "the same commit is the same entry");
}

#[rstest]
#[tokio::test]
async fn a_stale_writer_is_told_and_leaves_nothing_that_counts(#[values(Kind::Folder, Kind::S3)] kind: Kind) {
    let backend = Backend::start(kind).await;
    let task = backend.task();
    let mut old = task.fence(fence(1, 1)).await.unwrap();
    old.commit(&snapshot(1, 1)).await.unwrap();
    let mut new = task.fence(fence(1, 2)).await.unwrap();
    let error = old.commit(&snapshot(2, 1)).await.expect_err("stale");
    assert_eq!(error.code(), code::STORE_FENCED);
    assert!(error.message().contains("t1g2") && error.message().contains("t1g1"), "{error}");
    new.commit(&snapshot(2, 2)).await.unwrap();
    let error = old.commit(&snapshot(3, 1)).await.expect_err("still stale");
    assert_eq!(error.code(), code::STORE_FENCED);
    let error = task.fence(fence(1, 1)).await.map(|_| ()).expect_err("cannot come back");
    assert_eq!(error.code(), code::STORE_FENCED);
    let steps = task.steps().await.unwrap();
    assert_eq!(steps.iter().map(|e| (e.step.unwrap().0, e.fence.generation.0)).collect::<Vec<_>>(), [(1, 1), (2, 2)]);
}

#[rstest]
#[tokio::test]
async fn the_same_fence_twice_is_two_writers(#[values(Kind::Folder, Kind::S3)] kind: Kind) {
    let backend = Backend::start(kind).await;
    let mut first = backend.task().fence(fence(1, 1)).await.unwrap();
    let mut second = backend.task().fence(fence(1, 1)).await.unwrap();
    assert_eq!(first.commit(&snapshot(1, 1)).await.expect_err("stale").code(), code::STORE_FENCED);
    let entry = second.commit(&snapshot(1, 1)).await.unwrap();
    assert_eq!(entry.folder.as_deref(), Some("steps/00000001-g0001-2"), "not shared, even with equal bytes");
    assert_eq!(backend.task().read(&entry).await.unwrap().files.len(), 3);
}

/// All fence with the same fence and commit the same step; the last one to fence is the only one that can win.
#[rstest]
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn of_racing_writers_of_one_step_exactly_one_wins(
    #[values(Kind::Folder, Kind::S3)] kind: Kind,
    #[values(true, false)] same_bytes: bool,
) {
    let backend = Backend::start(kind).await;
    for step in 1..=5_u64 {
        let racers = (0..6_u8).map(|racer| {
            let task = backend.task();
            tokio::spawn(async move {
                let mut writer = task.fence(fence(step, 1)).await?;
                writer.commit(&snapshot(step, if same_bytes { 0 } else { racer })).await
            })
        });
        let results: Vec<_> = futures::future::join_all(racers).await.into_iter().map(|r| r.unwrap()).collect();
        let entries = backend.task().entries().await.unwrap();
        let last_fence = entries.iter().rposition(|entry| entry.kind == EntryKind::Fence).unwrap();
        let committed: Vec<_> = entries.iter().filter(|e| e.step == Some(Step(step))).collect();
        let won: Vec<_> = results.iter().filter_map(|result| result.as_ref().ok()).collect();
        // Whoever committed before the next one fenced also won, in its own time.
        assert_eq!(won.len(), committed.len());
        assert!(!won.is_empty());
        for pair in entries.windows(2) {
            let both_steps = pair.iter().all(|entry| entry.kind == EntryKind::Step);
            assert!(!both_steps, "two commits without a fence in between: {pair:?}");
        }
        assert_eq!(entries[last_fence + 1..].len(), 1, "the last to fence, and it alone, commits after the last fence");
        for result in results.iter().filter_map(|result| result.as_ref().err()) {
            assert_eq!(result.code(), code::STORE_FENCED, "{result}");
        }
        let newest = backend.task().newest().await.unwrap().unwrap();
        backend.task().read(&newest).await.unwrap();
    }
}

/// The log entry itself: two holders of the same next number.
#[rstest]
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn of_two_who_want_the_next_entry_one_gets_it(#[values(Kind::Folder, Kind::S3)] kind: Kind) {
    let backend = Backend::start(kind).await;
    let mut writer = backend.task().fence(fence(1, 1)).await.unwrap();
    for round in 1..=20_u64 {
        let task = backend.task();
        let step = snapshot(round, 0);
        let (committed, fenced) = tokio::join!(writer.commit(&step), task.fence(fence(1, round + 1)));
        let mut next = fenced.unwrap();
        let entries = task.entries().await.unwrap();
        let is_there = entries.iter().any(|entry| entry.step == Some(Step(round)));
        assert_eq!(committed.is_ok(), is_there);
        if let Err(error) = committed {
            assert_eq!(error.code(), code::STORE_FENCED);
            next.commit(&step).await.unwrap();
        }
        writer = next;
    }
}

#[tokio::test]
async fn steps_of_one_writer_only_go_up() {
    let backend = Backend::folder();
    let mut writer = backend.task().fence(fence(1, 1)).await.unwrap();
    writer.commit(&snapshot(5, 1)).await.unwrap();
    for (step, flavour) in [(4, 1), (5, 2)] {
        let error = writer.commit(&snapshot(step, flavour)).await.expect_err("not monotone");
        assert!(error.message().contains("commit-monotone"), "{error}");
    }
}

/// Each PUT of a commit in turn is stored, but its answer is a 500: the client repeats it and meets itself.
#[tokio::test]
async fn a_writer_recognises_its_own_entry_when_answers_are_lost() {
    for nth in 1..=6 {
        let fault = PutFault { nth, times: 1, status: 500, applied: true };
        let backend = Backend::s3(S3Options { put_fault: Some(fault), ..S3Options::default() }).await;
        let mut writer = backend.task().fence(fence(1, 1)).await.unwrap();
        let entry = writer.commit(&snapshot(1, 1)).await.unwrap_or_else(|e| panic!("PUT {nth}: {e:?}"));
        assert_eq!(backend.task().entries().await.unwrap().len(), 2, "PUT {nth}");
        backend.task().read(&entry).await.unwrap();
    }
}

/// A server that fails for a while costs time, not steps.
#[rstest]
#[tokio::test]
async fn failures_of_the_server_are_ridden_out(#[values(500, 503)] status: u16) {
    let fault = PutFault { nth: 3, times: 3, status, applied: false };
    let backend = Backend::s3(S3Options { put_fault: Some(fault), ..S3Options::default() }).await;
    let mut writer = backend.task().fence(fence(1, 1)).await.unwrap();
    let entry = writer.commit(&snapshot(1, 1)).await.unwrap();
    assert_eq!(entry.folder.as_deref(), Some("steps/00000001-g0001"));
    assert!(backend.server.as_ref().unwrap().puts() >= 9);
}

/// The same job to a folder and to S3: the same bytes, but for the log, which knows time and writer.
#[tokio::test]
async fn folders_and_s3_hold_the_same_bytes() {
    let mut held = Vec::new();
    for kind in [Kind::Folder, Kind::S3] {
        let backend = Backend::start(kind).await;
        let mut writer = backend.task().fence(fence(1, 1)).await.unwrap();
        for step in 1..=3 {
            backend.clock.advance(std::time::Duration::from_millis(held.len() as u64 + step));
            writer.commit(&snapshot(step, 1)).await.unwrap();
        }
        let mut objects = backend.objects();
        objects.retain(|key, _| key.starts_with("steps/"));
        assert_eq!(objects.len(), 12);
        held.push(objects);
    }
    assert_eq!(held[0], held[1]);
}
