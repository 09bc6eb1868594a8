//! What heartbeats say, written by everyone and read by the session.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use pleach_base::SharedClock;
use pleach_proto::v1::Heartbeat;
use tokio::sync::Notify;

use crate::reporter::Part;
use crate::times::Untold;

/// The state of the worker as its heartbeats tell it.
#[derive(Debug)]
pub(crate) struct Heart {
    /// Operations done by the training thread.
    progress: AtomicU64,
    draining: AtomicBool,
    /// What the worker works on: the coordinator repeats what got lost and stops what is no longer wanted.
    part: Mutex<Option<Part>>,
    /// Seconds that this rank computed in its last step, as bits.
    compute: AtomicU64,
    /// Where the time of the last steps went.
    pub(crate) times: Untold,
    /// Milliseconds of the clock at which the coordinator was last heard.
    heard: AtomicU64,
    /// Milliseconds that the coordinator lets a gang train without it; 0 before it said so.
    grace: AtomicU64,
    /// Sends a heartbeat now.
    changed: Notify,
    pub(crate) clock: SharedClock,
}

impl Heart {
    pub(crate) fn new(clock: SharedClock) -> Arc<Self> {
        Arc::new(Self {
            progress: AtomicU64::new(0),
            draining: AtomicBool::new(false),
            part: Mutex::new(None),
            compute: AtomicU64::new(0),
            times: Untold::default(),
            heard: AtomicU64::new(millis(clock.elapsed())),
            grace: AtomicU64::new(0),
            changed: Notify::new(),
            clock,
        })
    }

    /// The training thread did something, or waits for others for a good reason.
    pub(crate) fn progresses(&self) {
        self.progress.fetch_add(1, Ordering::SeqCst);
    }

    /// A step took this rank so much computing.
    pub(crate) fn computed(&self, seconds: f64) {
        self.compute.store(seconds.to_bits(), Ordering::SeqCst);
    }

    /// Says at once what the worker works on now; nothing when it is idle.
    pub(crate) fn works_on(&self, part: Option<Part>) {
        if part.is_none() {
            self.computed(0.0);
        }
        *self.part() = part;
        self.changed.notify_one();
    }

    /// Says at once that the worker wants no more work.
    pub(crate) fn drains(&self) {
        self.draining.store(true, Ordering::SeqCst);
        self.changed.notify_one();
    }

    /// Returns when a heartbeat should go out before its time.
    pub(crate) async fn urgent(&self) {
        self.changed.notified().await;
    }

    /// How long the coordinator has been silent.
    pub(crate) fn silence(&self) -> Duration {
        let now = millis(self.clock.elapsed());
        Duration::from_millis(now.saturating_sub(self.heard.load(Ordering::SeqCst)))
    }

    /// The coordinator said something.
    pub(crate) fn hears(&self) {
        self.heard.store(millis(self.clock.elapsed()), Ordering::SeqCst);
    }

    /// How long training goes on without the coordinator, once it said so.
    pub(crate) fn grace(&self) -> Option<Duration> {
        let grace = self.grace.load(Ordering::SeqCst);
        (grace > 0).then(|| Duration::from_millis(grace))
    }

    pub(crate) fn set_grace(&self, millis: u64) {
        self.grace.store(millis, Ordering::SeqCst);
    }

    /// A heartbeat and the part that it is about.
    pub(crate) fn beat(&self) -> (Heartbeat, Option<Part>) {
        let part = self.part().clone();
        let beat = Heartbeat {
            progress: self.progress.load(Ordering::SeqCst),
            idle: part.is_none(),
            draining: self.draining.load(Ordering::SeqCst),
            compute_seconds: f64::from_bits(self.compute.load(Ordering::SeqCst)),
        };
        (beat, part)
    }

    fn part(&self) -> std::sync::MutexGuard<'_, Option<Part>> {
        self.part.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
