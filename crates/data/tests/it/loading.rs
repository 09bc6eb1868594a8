//! From a plan to batches, on the loader's thread.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use pleach_base::{TaskName, code};
use pleach_data::{Cursor, Dataset, Encoder, LaneBatch, Loader, Order, Plan, sample_digest};
use pleach_spec::job::DataTask;
use serde_json::json;

use super::{encoder, spec, write};

struct Fixture {
    folder: tempfile::TempDir,
    dataset: Arc<Dataset>,
    encoder: Arc<Encoder>,
    order: Order,
}

/// 23 rows in two files with two malformed ones between, steps of 6 in 4 lanes: the last step has 5 rows.
fn fixture() -> Fixture {
    let folder = tempfile::tempdir().unwrap();
    let row = |n: usize| json!({"text": "cat ".repeat(n + 1)}).to_string() + "\n";
    write(folder.path(), "a.jsonl", (0..9).map(row).collect::<String>() + "oops\n" + &row(9));
    write(folder.path(), "b.jsonl", "{}\n".to_owned() + &(10..23).map(row).collect::<String>());
    let spec = spec(folder.path(), DataTask::CausalLm, &json!({"max_bad_rows": 2}));
    let encoder = Arc::new(encoder(&spec));
    let dataset = Arc::new(Dataset::open(&spec, &encoder).unwrap());
    let plan = Plan::new(dataset.len(), 6, 4, Some(2), None).unwrap();
    Fixture { folder, dataset, encoder, order: Order::new(plan, 5, &TaskName::from("t"), &spec) }
}

impl Fixture {
    fn loader(&self, from: u64, lanes: std::ops::Range<u32>) -> Loader {
        let (dataset, encoder) = (Arc::clone(&self.dataset), Arc::clone(&self.encoder));
        Loader::start(dataset, encoder, Cursor { step: from }.work(self.order.clone(), lanes), 2).unwrap()
    }
}

#[test]
fn two_ranks_together_feed_every_row_once_an_epoch() {
    let fixture = fixture();
    let mut fed: BTreeMap<(u64, u64), u32> = BTreeMap::new();
    for lanes in [0..1, 1..4] {
        for item in fixture.loader(0, lanes.clone()) {
            let LaneBatch { at, batch } = item.unwrap();
            assert!(lanes.contains(&at.lane));
            for (index, sample) in batch.sample_ids.iter().enumerate() {
                *fed.entry((at.epoch, *sample)).or_default() += 1;
                // The fixture's row n has n + 1 words, whatever malformed rows lie before it.
                assert_eq!(batch.inputs.row(index).len() as u64, sample + 1 + 2);
            }
        }
    }
    assert_eq!(fed.len(), 2 * 23);
    assert!(fed.values().all(|times| *times == 1));
}

#[test]
fn a_resumed_loader_gives_what_the_first_one_would_have() {
    let fixture = fixture();
    let all: Vec<_> = fixture.loader(0, 0..4).map(Result::unwrap).collect();
    assert_eq!(all.len(), 8 * 4);
    let rest: Vec<_> = fixture.loader(5, 0..4).map(Result::unwrap).collect();
    assert_eq!(rest, all[5 * 4..]);
    let digests = |batches: &[LaneBatch]| {
        batches.iter().map(|item| sample_digest(item.at.epoch, &item.batch.sample_ids)).collect::<Vec<_>>()
    };
    assert_eq!(digests(&rest), digests(&all[20..]));
    assert_ne!(digests(&all[..16]), digests(&all[16..]));
}

#[test]
fn an_error_is_the_last_item_and_names_the_row() {
    let fixture = fixture();
    let path = fixture.folder.path().join("b.jsonl");
    std::fs::write(&path, "").unwrap();
    let items: Vec<_> = fixture.loader(0, 0..4).collect();
    let (last, before) = items.split_last().unwrap();
    let error = last.as_ref().unwrap_err();
    assert_eq!(error.code(), code::DATA_SOURCE);
    assert!(error.message().contains("b.jsonl:"), "{error}");
    assert!(before.iter().all(Result::is_ok));
}

#[test]
fn it_works_ahead_by_no_more_than_asked_and_stops_when_dropped() {
    let fixture = fixture();
    let asked = Arc::new(AtomicU64::new(0));
    let counter = Arc::clone(&asked);
    let order = fixture.order;
    let endless = (0..u64::MAX).map(move |step| {
        counter.fetch_add(1, Ordering::SeqCst);
        order.lane_rows(step, 0)
    });
    let mut loader = Loader::start(Arc::clone(&fixture.dataset), Arc::clone(&fixture.encoder), endless, 2).unwrap();
    assert_eq!(loader.next().unwrap().unwrap().at.step, 0);
    assert_eq!(loader.next().unwrap().unwrap().at.step, 1);
    // Two taken, two waiting in the channel, one that found it full.
    std::thread::sleep(std::time::Duration::from_millis(200));
    assert!((3..=5).contains(&asked.load(Ordering::SeqCst)));
    drop(loader);
    // The thread is gone with everything that it held.
    assert_eq!(Arc::strong_count(&asked), 1);
    assert_eq!(Arc::strong_count(&fixture.dataset), 1);
}

#[test]
fn a_panic_is_an_error_and_not_an_early_end() {
    let fixture = fixture();
    let order = fixture.order;
    let work = (0..10).map(move |step| if step == 1 { panic!("on purpose") } else { order.lane_rows(step, 0) });
    let loader = Loader::start(Arc::clone(&fixture.dataset), Arc::clone(&fixture.encoder), work, 1).unwrap();
    let items: Vec<_> = loader.collect();
    assert_eq!(items.len(), 2);
    assert_eq!(items[1].as_ref().unwrap_err().code(), code::INTERNAL);
}
