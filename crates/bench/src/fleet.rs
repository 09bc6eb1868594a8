//! All workers: how they come up, and what they count together.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use futures::{StreamExt, TryStreamExt, stream};
use pleach_base::{SharedClock, SystemClock};
use tokio::sync::watch;
use tonic::transport::Endpoint;

use crate::latency::Latency;
use crate::worker::Worker;

/// Workers that come up at the same time.
const AT_ONCE: usize = 64;
/// Connections from one source address: an address has fewer free ports than a large fleet needs.
const PER_ADDRESS: usize = 10_000;

/// What the workers count and wait for.
pub(crate) struct Shared {
    pub(crate) clock: SharedClock,
    pub(crate) beats: Latency,
    pub(crate) commits: Latency,
    lost: AtomicUsize,
    refused: AtomicUsize,
    began: AtomicUsize,
    commit: watch::Sender<bool>,
}

impl Shared {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self {
            clock: SystemClock::shared(),
            beats: Latency::new(),
            commits: Latency::new(),
            lost: AtomicUsize::new(0),
            refused: AtomicUsize::new(0),
            began: AtomicUsize::new(0),
            commit: watch::channel(false).0,
        })
    }

    /// A session broke.
    pub(crate) fn lost(&self) {
        self.lost.fetch_add(1, Ordering::SeqCst);
    }

    /// A commit was refused.
    pub(crate) fn refused(&self) {
        self.refused.fetch_add(1, Ordering::SeqCst);
    }

    /// A job has its worker.
    pub(crate) fn began(&self) {
        self.began.fetch_add(1, Ordering::SeqCst);
    }

    /// Jobs that have their worker.
    pub(crate) fn jobs(&self) -> usize {
        self.began.load(Ordering::SeqCst)
    }

    /// Sessions that broke, and commits that were refused: a measurement with any of them is none.
    pub(crate) fn trouble(&self) -> (usize, usize) {
        (self.lost.load(Ordering::SeqCst), self.refused.load(Ordering::SeqCst))
    }

    pub(crate) fn begin_commits(&self) {
        self.commit.send_replace(true);
    }

    pub(crate) async fn commits_wanted(&self) {
        let _ = self.commit.subscribe().wait_for(|begun| *begun).await;
    }
}

/// Brings all workers up; they live until the runtime ends.
pub(crate) async fn join(url: &str, workers: usize, shared: &Arc<Shared>) -> Result<()> {
    let comers = stream::iter(0..workers).map(|number| come(url, number, shared));
    comers.buffer_unordered(AT_ONCE).try_collect::<()>().await
}

async fn come(url: &str, number: usize, shared: &Arc<Shared>) -> Result<()> {
    let endpoint = Endpoint::from_shared(url.to_owned()).context("the coordinator's address")?;
    let last = u8::try_from(2 + number / PER_ADDRESS).context("too many workers")?;
    let endpoint = endpoint.tcp_nodelay(true).local_address(Some(IpAddr::V4(Ipv4Addr::new(127, 0, 0, last))));
    let mut attempts = 0;
    let (worker, orders) = loop {
        match Worker::join(endpoint.clone(), format!("w{number:06}"), Arc::clone(shared)).await {
            Ok(joined) => break joined,
            // A coordinator on etcd is elected first.
            Err(_) if attempts < 50 => tokio::time::sleep(Duration::from_millis(200)).await,
            Err(error) => return Err(error),
        }
        attempts += 1;
    };
    tokio::spawn(worker.live(orders));
    Ok(())
}
