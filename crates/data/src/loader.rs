//! Reads, tokenises and collates ahead of the trainer, on a thread of its own.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;

use pleach_base::{Result, ResultExt, code};

use crate::batch::Batch;
use crate::dataset::Dataset;
use crate::encode::Encoder;
use crate::plan::{LaneRows, LaneStep};

/// A lane's part of a step, ready for the trainer.
#[derive(Clone, Debug, PartialEq)]
pub struct LaneBatch {
    /// Step, epoch, lane, positions.
    pub at: LaneStep,
    /// The examples, in order of position; empty when a short step has no row for the lane.
    pub batch: Batch,
}

/// An iterator of [`LaneBatch`]es that works ahead by a fixed number of them. The first error is its last item.
/// Dropping it stops the thread and waits for it.
#[derive(Debug)]
pub struct Loader {
    batches: Option<Receiver<Result<LaneBatch>>>,
    thread: Option<JoinHandle<()>>,
}

impl Loader {
    /// Starts to load `work` in order, at most `ahead` finished batches beyond the one that is asked for.
    ///
    /// # Errors
    /// `INTERNAL` when no thread can be started.
    pub fn start(
        dataset: Arc<Dataset>,
        encoder: Arc<Encoder>,
        work: impl Iterator<Item = LaneRows> + Send + 'static,
        ahead: usize,
    ) -> Result<Self> {
        let (sender, receiver) = sync_channel(ahead);
        let thread = std::thread::Builder::new()
            .name("pleach-data".into())
            .spawn(move || run(&dataset, &encoder, work, &sender))
            .or_code(code::INTERNAL, || "the reading thread cannot be started".into())?;
        Ok(Self { batches: Some(receiver), thread: Some(thread) })
    }

    /// Reads and encodes the rows of one lane and step, here and now.
    ///
    /// # Errors
    /// As [`Dataset::row`] and [`Encoder::encode`].
    pub fn load(dataset: &Dataset, encoder: &Encoder, work: LaneRows) -> Result<LaneBatch> {
        let examples: Vec<_> =
            work.rows.iter().map(|row| encoder.encode_in(&dataset.row(*row)?, work.at.epoch)).collect::<Result<_>>()?;
        Ok(LaneBatch { at: work.at, batch: Batch::collate(encoder.task(), &examples)? })
    }
}

fn run(
    dataset: &Dataset,
    encoder: &Encoder,
    work: impl Iterator<Item = LaneRows>,
    sender: &SyncSender<Result<LaneBatch>>,
) {
    for rows in work {
        let step = rows.at.step;
        let loaded = catch_unwind(AssertUnwindSafe(|| Loader::load(dataset, encoder, rows)))
            .unwrap_or_else(|_| Err(code::INTERNAL.error(format!("step {step}: reading or encoding panicked"))));
        let failed = loaded.is_err();
        if sender.send(loaded).is_err() || failed {
            return;
        }
    }
}

impl Iterator for Loader {
    type Item = Result<LaneBatch>;

    fn next(&mut self) -> Option<Self::Item> {
        match self.batches.as_ref()?.recv() {
            Ok(item) => Some(item),
            // The thread is done. If it died, the work is not: the end must not look like the end of the epoch.
            Err(_) => {
                self.thread.take()?.join().err().map(|_| Err(code::INTERNAL.error("the reading thread panicked")))
            }
        }
    }
}

impl Drop for Loader {
    fn drop(&mut self) {
        // The thread may wait for room in the channel: closing it first lets the join end.
        drop(self.batches.take());
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::warn!("the reading thread panicked");
        }
    }
}
