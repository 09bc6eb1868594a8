//! The ledger in the store: what counts, what is refused, and what retention leaves alone.

use std::time::Duration;

use pleach_base::{Step, Timestamp, code};
use pleach_store::{LedgerRow, Retention, Snapshot};
use rstest::rstest;

use crate::backend::{Backend, Kind, fence, snapshot};

fn row(step: u64, generation: u64) -> LedgerRow {
    LedgerRow {
        task: "tone".into(),
        step: Step(step),
        fence: fence(1, generation),
        epoch: (step - 1) / 4,
        samples: 8,
        digest: format!("{:064x}", step * 100 + generation),
        sample_digest: "0".repeat(64),
        lane_digests: vec!["1".repeat(64), "2".repeat(64)],
        skipped: false,
        tokens: None,
        world: 2,
        unix_ms: 5,
    }
}

fn with_rows(step: u64, rows: impl IntoIterator<Item = LedgerRow>) -> Snapshot {
    Snapshot { ledger: rows.into_iter().collect(), ..snapshot(step, 1) }
}

#[rstest]
#[case(Kind::Folder)]
#[case(Kind::S3)]
#[tokio::test]
async fn chunks_are_split_by_epoch_and_named_by_the_entry(#[case] kind: Kind) {
    let backend = Backend::start(kind).await;
    let task = backend.task();
    let mut writer = task.fence(fence(1, 7)).await.unwrap();
    let one = with_rows(6, (1..=6).map(|step| row(step, 7)));
    let entry = writer.commit(&one).await.unwrap();
    let names: Vec<_> = entry.ledger.iter().map(|chunk| chunk.path.as_str()).collect();
    assert_eq!(
        names,
        ["ledger/000000/00000001-00000004-g0007.parquet", "ledger/000001/00000005-00000006-g0007.parquet"]
    );
    assert_eq!(writer.commit(&one).await.unwrap(), entry, "a repeated commit is the same commit");
    writer.commit(&with_rows(9, (7..=9).map(|step| row(step, 7)))).await.unwrap();
    assert_eq!(
        task.ledger().await.unwrap().rows().cloned().collect::<Vec<_>>(),
        (1..=9).map(|s| row(s, 7)).collect::<Vec<_>>()
    );
    let log = task.entries().await.unwrap();
    let second: Vec<_> = task.ledger_of(&log, 1).await.unwrap().rows().map(|row| row.step.0).collect();
    assert_eq!(second, [5, 6, 7, 8]);
}

#[tokio::test]
async fn a_later_generation_that_makes_steps_again_supersedes_them() {
    let backend = Backend::folder();
    let task = backend.task();
    let mut first = task.fence(fence(1, 1)).await.unwrap();
    first.commit(&with_rows(4, (1..=4).map(|step| row(step, 1)))).await.unwrap();
    first.commit(&with_rows(8, (5..=8).map(|step| row(step, 1)))).await.unwrap();
    let mut second = task.fence(fence(1, 2)).await.unwrap();
    second.commit(&with_rows(7, (5..=7).map(|step| row(step, 1 + step / 6)))).await.unwrap();
    let ledger = task.ledger().await.unwrap();
    let made: Vec<_> = ledger.rows().map(|row| (row.step.0, row.fence.generation.0)).collect();
    assert_eq!(made, [(1, 1), (2, 1), (3, 1), (4, 1), (5, 1), (6, 2), (7, 2)]);
    let superseded: Vec<_> = ledger.superseded().map(|row| row.step.0).collect();
    assert_eq!(superseded, [6, 7, 8]);
}

#[tokio::test]
async fn a_chunk_that_no_entry_names_does_not_count() {
    let backend = Backend::folder();
    let task = backend.task();
    let mut stale = task.fence(fence(1, 1)).await.unwrap();
    task.fence(fence(1, 2)).await.unwrap();
    let refused = stale.commit(&with_rows(2, (1..=2).map(|step| row(step, 1)))).await;
    assert_eq!(refused.expect_err("fenced").code(), code::STORE_FENCED);
    assert!(backend.objects().keys().any(|key| key.starts_with("ledger/")), "the stale writer did write");
    assert_eq!(task.ledger().await.unwrap().rows().count(), 0);
}

#[tokio::test]
async fn a_changed_or_missing_chunk_is_named() {
    let backend = Backend::folder();
    let task = backend.task();
    let mut writer = task.fence(fence(1, 1)).await.unwrap();
    let entry = writer.commit(&with_rows(2, (1..=2).map(|step| row(step, 1)))).await.unwrap();
    let path = backend.root.join("acme/desk/tone").join(&entry.ledger[0].path);
    let mut bytes = std::fs::read(&path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&path, &bytes).unwrap();
    let error = task.ledger().await.expect_err("changed");
    assert_eq!(error.code(), code::STORE_CORRUPT);
    assert!(error.message().contains(&entry.ledger[0].path), "{error}");
    std::fs::remove_file(&path).unwrap();
    assert_eq!(task.ledger().await.expect_err("missing").code(), code::STORE_CORRUPT);
}

#[tokio::test]
async fn retention_leaves_the_ledger_alone() {
    let backend = Backend::folder();
    let mut writer = backend.task().fence(fence(1, 1)).await.unwrap();
    for step in 1..=6 {
        writer.commit(&with_rows(step, [row(step, 1)])).await.unwrap();
    }
    let policy = Retention { last: 1, best: None, min_age: Duration::ZERO };
    let removed = writer.retain(&policy, Timestamp(u64::MAX / 2)).await.unwrap();
    assert_eq!(removed.len(), 5);
    assert_eq!(backend.task().ledger().await.unwrap().rows().count(), 6);
}

#[tokio::test]
async fn entries_without_a_ledger_are_still_read() {
    let backend = Backend::folder();
    let mut writer = backend.task().fence(fence(1, 1)).await.unwrap();
    let entry = writer.commit(&snapshot(1, 1)).await.unwrap();
    let path = backend.root.join(format!("acme/desk/tone/log/{:010}.json", entry.seq));
    assert!(!std::fs::read_to_string(path).unwrap().contains("ledger"), "as earlier releases wrote it");
    assert_eq!(backend.task().ledger().await.unwrap().rows().count(), 0);
}
