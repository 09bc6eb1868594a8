//! Who leads, when several coordinators share an etcd.
//!
//! The leader's key hangs on a lease of two seconds. Its revision is the guard of every write: a leader that was stopped,
//! or cut off, and wakes up after another one took over writes nothing any more. Terms grow with each election.

mod election;
mod history;
mod link;
mod stand;
#[cfg(test)]
mod tests;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use etcd_client::{Compare, CompareOp, DeleteOptions, GetOptions, KeyValue, Txn, TxnOp};
use pleach_base::{Error, Result, SharedClock, Term, code};

pub(crate) use link::Link;
pub(crate) use stand::{Stand, stand};

use link::Trouble;

/// etcd's shortest lease at its default election timeout.
const TTL: Duration = Duration::from_secs(2);
/// Between two attempts.
const AGAIN_AFTER: Duration = Duration::from_millis(50);
/// An attempt to write is given up after this time, which doubles with each up to the longest: the member may be stopped.
const FIRST_LIMIT: Duration = Duration::from_secs(1);
const LONGEST_LIMIT: Duration = Duration::from_secs(8);
/// Keys that are read at a time.
const PAGE: usize = 256;

/// Name of the leader's key below the prefix.
const LEADER: &str = "leader";

/// A write of a transaction, and how large it is.
pub(crate) struct Op {
    op: TxnOp,
    pub(crate) bytes: usize,
}

impl Op {
    pub(crate) fn put(key: String, value: Vec<u8>) -> Self {
        Self { bytes: key.len() + value.len(), op: TxnOp::put(key, value, None) }
    }

    pub(crate) fn delete(key: String, options: Option<DeleteOptions>) -> Self {
        Self { bytes: key.len(), op: TxnOp::delete(key, options) }
    }
}

/// This process's turn as the leader.
pub(crate) struct Leadership {
    pub(crate) link: Link,
    pub(crate) term: Term,
    lease: i64,
    /// Revision at which the leader's key was written: the guard.
    revision: i64,
    clock: SharedClock,
    lost: AtomicBool,
    /// Milliseconds of the clock up to which the lease cannot have expired.
    valid_until: AtomicU64,
}

impl Leadership {
    /// Whether the lease cannot have expired yet.
    pub(crate) fn is_fresh(&self) -> bool {
        !self.is_lost() && millis(self.clock.elapsed()) < self.valid_until.load(Ordering::SeqCst)
    }

    /// Whether it is known that somebody else may lead.
    pub(crate) fn is_lost(&self) -> bool {
        self.lost.load(Ordering::SeqCst)
    }

    fn lose(&self) {
        self.lost.store(true, Ordering::SeqCst);
    }

    fn renewed(&self, asked_at: Duration) {
        self.valid_until.fetch_max(millis(asked_at + TTL), Ordering::SeqCst);
    }

    /// Writes in one transaction, if this process still leads. Tries again while etcd is away: what is written is absolute,
    /// so a write whose answer was lost may come twice.
    ///
    /// # Errors
    /// `NOT_LEADER`; `IO` when etcd refuses the write itself.
    pub(crate) async fn write(&self, ops: Vec<Op>) -> Result<()> {
        let ops: Vec<_> = ops.into_iter().map(|op| op.op).collect();
        let mut limit = FIRST_LIMIT;
        while !self.is_lost() {
            let guard = Compare::mod_revision(self.link.key(LEADER), CompareOp::Equal, self.revision);
            let mut kv = self.link.kv();
            match self.link.attempt(limit, kv.txn(Txn::new().when([guard]).and_then(ops.clone()))).await {
                Ok(answer) if answer.succeeded() => return Ok(()),
                Ok(_) => self.lose(),
                Err(Trouble::Refused(error)) => return Err(refused(error)),
                Err(Trouble::Away(why)) => {
                    tracing::warn!(why, "etcd does not take a write; trying again");
                    tokio::time::sleep(AGAIN_AFTER).await;
                }
            }
            limit = (limit * 2).min(LONGEST_LIMIT);
        }
        Err(taken_over())
    }

    /// Reads a range; tries again while etcd is away and this process leads.
    pub(crate) async fn get(&self, key: &str, options: GetOptions) -> Result<Vec<KeyValue>> {
        while !self.is_lost() {
            let mut kv = self.link.kv();
            match self.link.attempt(LONGEST_LIMIT, kv.get(key, Some(options.clone()))).await {
                Ok(mut answer) => return Ok(answer.take_kvs()),
                Err(Trouble::Refused(error)) => return Err(refused(error)),
                Err(Trouble::Away(why)) => {
                    tracing::warn!(why, "etcd does not answer; trying again");
                    tokio::time::sleep(AGAIN_AFTER).await;
                }
            }
        }
        Err(taken_over())
    }

    /// Reads all keys below a prefix, in pages.
    pub(crate) async fn scan(&self, prefix: &str, values: bool) -> Result<Vec<KeyValue>> {
        let mut end = prefix.as_bytes().to_vec();
        // The prefix ends with a slash, which has a successor.
        end.last_mut().into_iter().for_each(|last| *last += 1);
        let (mut all, mut from) = (Vec::new(), prefix.to_owned());
        loop {
            let options = GetOptions::new().with_range(end.clone()).with_limit(PAGE as i64);
            let options = if values { options } else { options.with_keys_only() };
            let page = self.get(&from, options).await?;
            let more = page.len() == PAGE;
            if let Some(last) = page.last() {
                from = format!("{}\0", String::from_utf8_lossy(last.key()));
            }
            all.extend(page);
            if !more {
                return Ok(all);
            }
        }
    }

    /// Gives the leadership up.
    pub(crate) async fn resign(&self) {
        self.lose();
        let mut leases = self.link.leases();
        // If it fails the lease expires by itself.
        let _ = self.link.attempt(FIRST_LIMIT, leases.revoke(self.lease)).await;
    }
}

fn taken_over() -> Error {
    code::NOT_LEADER.error("another coordinator leads, or may lead").hint("nothing: this one stands by from now on")
}

fn refused(error: etcd_client::Error) -> Error {
    let hint = "look at etcd's version, its limits and its rules of access";
    code::IO.error("etcd refuses what this coordinator asks").hint(hint).caused_by(error)
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
