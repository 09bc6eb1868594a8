//! The lines of the feed log, where there is one.

use pleach_base::{Fence, Result, TaskName};

use super::JobContext;
use crate::engine::StepBatch;
use crate::feed::{FEED_VERSION, FedLane, FeedRow, ResumedFrom};

/// Notes what this rank is about to compute for `step` (from 1).
pub(super) fn fed(cx: &JobContext<'_>, task: &TaskName, step: u64, batch: &StepBatch) -> Result<()> {
    let Some(feed) = &cx.feed else { return Ok(()) };
    let lanes = batch.lanes.iter();
    feed.append(&FeedRow::Fed {
        v: FEED_VERSION,
        job: cx.id.to_string(),
        task: task.to_string(),
        step,
        term: cx.fence.term.0,
        generation: cx.fence.generation.0,
        rank: cx.group.rank() as u32,
        world: cx.group.world() as u32,
        lanes: lanes.map(|(lane, rows)| FedLane { lane: *lane, samples: rows.own_ids() }).collect(),
    })
}

/// Notes where this generation goes on.
pub(super) fn resumed(
    cx: &JobContext<'_>,
    task: &TaskName,
    step: u64,
    (source, made_by): (ResumedFrom, Fence),
) -> Result<()> {
    let Some(feed) = &cx.feed else { return Ok(()) };
    feed.append(&FeedRow::Resume {
        v: FEED_VERSION,
        job: cx.id.to_string(),
        task: task.to_string(),
        step,
        term: cx.fence.term.0,
        generation: cx.fence.generation.0,
        source,
        made_term: made_by.term.0,
        made_generation: made_by.generation.0,
    })
}
