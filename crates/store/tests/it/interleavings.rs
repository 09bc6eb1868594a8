//! Random histories of writers on one task, taken one write at a time in any order.

use std::collections::BTreeMap;
use std::sync::Arc;

use object_store::ObjectStore;
use object_store::memory::InMemory;
use pleach_base::Step;
use pleach_store::{EntryKind, LogEntry, TaskStore, Writer};
use proptest::prelude::*;

use crate::backend::{fence, snapshot};
use crate::kills::{check_whole, over};
use crate::turns::Turns;

/// What a writer does next.
#[derive(Clone, Copy, Debug)]
enum Act {
    Fence(u64),
    Commit,
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let act = prop_oneof![(1..5_u64).prop_map(Act::Fence), Just(Act::Commit), Just(Act::Commit)];
    proptest::collection::vec(act, 1..7)
}

/// One writer's program. Refusals are part of the game; anything else is not.
async fn play(task: TaskStore, acts: Vec<Act>, flavour: u8) -> Vec<LogEntry> {
    let mut writer: Option<Writer> = None;
    let mut step = 0;
    let mut won = Vec::new();
    for act in acts {
        let outcome = match (act, &mut writer) {
            (Act::Fence(generation), _) => match task.fence(fence(1, generation)).await {
                Ok(new) => {
                    step = task.newest().await.unwrap().and_then(|entry| entry.step).map_or(0, |step| step.0);
                    writer = Some(new);
                    Ok(())
                }
                Err(error) => Err(error),
            },
            (Act::Commit, Some(writer)) => {
                step += 1;
                writer.commit(&snapshot(step, flavour)).await.map(|entry| won.push(entry))
            }
            (Act::Commit, None) => Ok(()),
        };
        if let Err(error) = outcome {
            assert_eq!(error.code(), pleach_base::code::STORE_FENCED, "{error:?}");
        }
    }
    won
}

fn check_log(log: &[LogEntry]) {
    let mut owner: Option<&LogEntry> = None;
    let mut committed: BTreeMap<Step, (usize, &str)> = BTreeMap::new();
    let mut fences = 0;
    for (index, entry) in log.iter().enumerate() {
        assert_eq!(entry.seq, index as u64 + 1, "no gaps");
        match entry.kind {
            EntryKind::Fence => {
                assert!(owner.is_none_or(|owner| owner.fence <= entry.fence), "fences only go up");
                owner = Some(entry);
                fences += 1;
            }
            EntryKind::Step | EntryKind::Retain => {
                assert_eq!(owner.map(|owner| &owner.writer), Some(&entry.writer), "only the last to fence writes");
            }
        }
        if let (EntryKind::Step, Some(step)) = (entry.kind, entry.step)
            && let Some((fence_then, writer_then)) = committed.insert(step, (fences, &entry.writer))
        {
            assert!(fence_then < fences && writer_then != entry.writer, "step {step} twice without a fence");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn two_writers_in_any_order_keep_the_log_straight(
        one in acts(),
        other in acts(),
        turns in proptest::collection::vec(any::<bool>(), 0..200),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let memory: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
            let (left, right) = Turns::pair(&memory, turns);
            let (won_left, won_right) = tokio::join!(
                async { let won = play(over(Arc::<Turns>::clone(&left)), one, 1).await; left.leave(); won },
                async { let won = play(over(Arc::<Turns>::clone(&right)), other, 2).await; right.leave(); won },
            );
            let reader = over(memory);
            let log = reader.entries().await.unwrap();
            check_log(&log);
            let won = won_left.len() + won_right.len();
            assert_eq!(log.iter().filter(|e| e.kind == EntryKind::Step).count(), won, "what was promised is there");
            for entry in won_left.iter().chain(&won_right) {
                assert_eq!(log.get(entry.seq as usize - 1), Some(entry));
                reader.read(entry).await.unwrap();
            }
            check_whole(&reader).await;
        });
    }
}
