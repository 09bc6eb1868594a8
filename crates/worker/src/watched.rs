//! A group whose calls are seen from outside: the watchdog asks how long the present one has been waiting.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use pleach_base::{Result, SharedClock};
use pleach_comm::{Abort, Collective, ReduceOp, Signature};
use tch::{Device, Tensor};

/// A wait shorter than this is no stall, however short steps are.
const LEAST: Duration = Duration::from_secs(1);
/// A wait of so many median steps is one.
const STEPS: f64 = 4.0;
/// Steps that the median is taken of.
const KEPT: usize = 31;

/// What the training thread waits in, and how long steps are. Written by that thread, read by the watchdog.
#[derive(Debug)]
pub(crate) struct Gauge {
    clock: SharedClock,
    /// Milliseconds of the clock, plus one, at which the present wait began; 0 while the thread works.
    since: AtomicU64,
    steps: Mutex<Vec<f64>>,
}

impl Gauge {
    pub(crate) fn new(clock: SharedClock) -> Arc<Self> {
        Arc::new(Self { clock, since: AtomicU64::new(0), steps: Mutex::default() })
    }

    /// A wait for other ranks begins. It ends when what is returned goes.
    pub(crate) fn wait(&self) -> Waiting<'_> {
        self.since.store(self.now() + 1, Ordering::SeqCst);
        Waiting(self)
    }

    /// A step took so long.
    pub(crate) fn stepped(&self, seconds: f64) {
        let mut steps = self.steps();
        if steps.len() == KEPT {
            steps.remove(0);
        }
        steps.push(seconds);
    }

    /// How long the present wait has lasted; `None` while the thread works.
    pub(crate) fn waiting(&self) -> Option<Duration> {
        let since = self.since.load(Ordering::SeqCst).checked_sub(1)?;
        Some(Duration::from_millis(self.now().saturating_sub(since)))
    }

    /// From when on a wait is a stall.
    pub(crate) fn patience(&self) -> Duration {
        let mut steps = self.steps().clone();
        steps.sort_by(f64::total_cmp);
        let median = steps.get(steps.len() / 2).copied().unwrap_or_default();
        Duration::try_from_secs_f64(median * STEPS).unwrap_or(Duration::MAX).max(LEAST)
    }

    fn now(&self) -> u64 {
        u64::try_from(self.clock.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn steps(&self) -> std::sync::MutexGuard<'_, Vec<f64>> {
        self.steps.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A wait that lasts.
pub(crate) struct Waiting<'a>(&'a Gauge);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.since.store(0, Ordering::SeqCst);
    }
}

/// The group, with every call noted in the gauge.
pub(crate) struct Watched {
    pub(crate) group: Box<dyn Collective>,
    pub(crate) gauge: Arc<Gauge>,
}

impl Collective for Watched {
    fn rank(&self) -> usize {
        self.group.rank()
    }

    fn world(&self) -> usize {
        self.group.world()
    }

    fn device(&self) -> Device {
        self.group.device()
    }

    fn all_reduce(&self, tensor: &mut Tensor, op: ReduceOp) -> Result<()> {
        let _waiting = self.gauge.wait();
        self.group.all_reduce(tensor, op)
    }

    fn all_gather(&self, tensor: &Tensor) -> Result<Vec<Tensor>> {
        let _waiting = self.gauge.wait();
        self.group.all_gather(tensor)
    }

    fn broadcast(&self, tensor: &mut Tensor, root: usize) -> Result<()> {
        let _waiting = self.gauge.wait();
        self.group.broadcast(tensor, root)
    }

    fn reduce_scatter(&self, tensor: &Tensor, op: ReduceOp) -> Result<Tensor> {
        let _waiting = self.gauge.wait();
        self.group.reduce_scatter(tensor, op)
    }

    fn all_to_all(&self, tensor: &Tensor) -> Result<Tensor> {
        let _waiting = self.gauge.wait();
        self.group.all_to_all(tensor)
    }

    fn barrier(&self) -> Result<()> {
        let _waiting = self.gauge.wait();
        self.group.barrier()
    }

    fn verify_plan(&self, calls: &[Signature], rounds: usize) -> Result<()> {
        let _waiting = self.gauge.wait();
        self.group.verify_plan(calls, rounds)
    }

    fn abort_handle(&self) -> Arc<dyn Abort> {
        self.group.abort_handle()
    }

    fn lost(&self) -> Vec<usize> {
        self.group.lost()
    }
}

#[cfg(test)]
mod tests {
    use pleach_base::ManualClock;

    use super::*;

    #[test]
    fn a_wait_is_measured_while_it_lasts_and_patience_follows_the_steps() {
        let clock = ManualClock::starting_at(5);
        let gauge = Gauge::new(Arc::<ManualClock>::clone(&clock));
        assert_eq!((gauge.waiting(), gauge.patience()), (None, LEAST));
        let waiting = gauge.wait();
        clock.advance(Duration::from_millis(70));
        assert_eq!(gauge.waiting(), Some(Duration::from_millis(70)));
        drop(waiting);
        assert_eq!(gauge.waiting(), None);
        [0.01, 2.0, 1.0, 1.0, 90.0].into_iter().for_each(|seconds| gauge.stepped(seconds));
        assert_eq!(gauge.patience(), Duration::from_secs(4));
        (0..KEPT).for_each(|_| gauge.stepped(0.1));
        assert_eq!(gauge.patience(), LEAST, "old steps are forgotten");
    }
}
