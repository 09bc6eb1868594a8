//! Campaigning, keeping the lease, and noticing that a leader is gone.
//!
//! The key is looked at several times a second instead of being watched: a watch on a stopped member is silent.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::time::Duration;

use etcd_client::{Compare, CompareOp, KeyValue, PutOptions, ResponseHeader, Txn, TxnOp};
use pleach_base::{SharedClock, Term};
use serde::{Deserialize, Serialize};
use tokio::net::TcpStream;

use super::link::Trouble;
use super::{AGAIN_AFTER, LEADER, Leadership, Link, TTL, millis};

type Outcome<T> = std::result::Result<T, Trouble>;

pub(super) const LIMIT: Duration = Duration::from_millis(800);
/// Between two renewals of the lease.
const RENEW_EVERY: Duration = Duration::from_millis(400);
/// A leader whose port does not answer this fast may be busy: that proves nothing.
const PROBE_LIMIT: Duration = Duration::from_millis(300);

/// What the leader's key says.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Leader {
    /// One of each attempt of each process.
    pub(super) id: String,
    pub(super) term: u64,
    /// Where callers reach it.
    pub(super) advertise: String,
}

/// Who leads, and since which revision; nobody when absent.
pub(super) async fn look(link: &Link) -> Outcome<Option<(Leader, i64)>> {
    let mut kv = link.kv();
    let answer = link.attempt(LIMIT, kv.get(link.key(LEADER), None)).await?;
    let Some(found) = answer.kvs().first() else { return Ok(None) };
    Ok(Some((serde_json::from_slice(found.value()).unwrap_or_default(), found.mod_revision())))
}

/// Whether nothing listens at an address any more. A refusal is certain, silence is not.
pub(super) async fn is_gone(advertise: &str) -> bool {
    let Ok(uri) = advertise.parse::<tonic::transport::Uri>() else { return false };
    let (Some(host), Some(port)) = (uri.host(), uri.port_u16()) else { return false };
    let connected = tokio::time::timeout(PROBE_LIMIT, TcpStream::connect((host, port))).await;
    matches!(connected, Ok(Err(error)) if error.kind() == std::io::ErrorKind::ConnectionRefused)
}

/// Tries to become the leader: in place of the one whose key has revision `over`, or if there is none (0).
///
/// Terms follow the seconds of the wall clock where those are ahead: coordinators that begin with an empty etcd over a
/// store that earlier ones wrote must not be fenced by it.
pub(super) async fn campaign(link: &Link, clock: &SharedClock, me: Leader, over: i64) -> Outcome<Option<Leadership>> {
    let asked_at = clock.elapsed();
    let mut leases = link.leases();
    let ttl = i64::try_from(TTL.as_secs()).unwrap_or(2);
    let lease = link.attempt(LIMIT, leases.grant(ttl, None)).await?.id();
    let key = link.key("term");
    let mut kv = link.kv();
    let known = link.attempt(LIMIT, kv.get(key.as_str(), None)).await?;
    let known = known.kvs().first();
    let last = known.and_then(|kv| kv.value_str().ok()?.parse::<u64>().ok()).unwrap_or_default();
    let leader = Leader { term: (last + 1).max(clock.now().0 / 1000), ..me };
    let seen = known.map_or(0, KeyValue::mod_revision);
    let conditions = [
        Compare::mod_revision(link.key(LEADER), CompareOp::Equal, over),
        Compare::mod_revision(key.as_str(), CompareOp::Equal, seen),
    ];
    let value = serde_json::to_vec(&leader).unwrap_or_default();
    let writes = [
        TxnOp::put(link.key(LEADER), value, Some(PutOptions::new().with_lease(lease))),
        TxnOp::put(key.as_str(), leader.term.to_string(), None),
    ];
    let mut kv = link.kv();
    let answer = link.attempt(LIMIT, kv.txn(Txn::new().when(conditions).and_then(writes))).await;
    let revision = match answer {
        Ok(answer) if answer.succeeded() => answer.header().map(ResponseHeader::revision),
        Ok(_) => None,
        // Perhaps it was taken all the same.
        Err(Trouble::Away(_)) => look(link).await?.filter(|(found, _)| *found == leader).map(|(_, revision)| revision),
        Err(refused) => return Err(refused),
    };
    let Some(revision) = revision else {
        let mut leases = link.leases();
        // Nothing hangs on it; it expires by itself otherwise.
        let _ = link.attempt(LIMIT, leases.revoke(lease)).await;
        return Ok(None);
    };
    Ok(Some(Leadership {
        link: link.clone(),
        term: Term(leader.term),
        lease,
        revision,
        clock: Arc::clone(clock),
        lost: AtomicBool::new(false),
        valid_until: AtomicU64::new(millis(asked_at + TTL)),
    }))
}

/// Keeps the lease until the leadership is lost. `seen` is told after each look whether the lease certainly stands.
pub(super) async fn keep(leadership: &Leadership, seen: impl Fn(bool)) {
    while !leadership.is_lost() {
        let wait = match renew(leadership).await {
            Ok(()) => RENEW_EVERY,
            Err(Trouble::Refused(error)) => {
                tracing::warn!(%error, "the lease of the leadership is gone");
                leadership.lose();
                return;
            }
            Err(Trouble::Away(why)) => {
                tracing::warn!(why, "the lease of the leadership cannot be renewed");
                AGAIN_AFTER
            }
        };
        seen(leadership.is_fresh());
        tokio::time::sleep(wait).await;
    }
}

async fn renew(leadership: &Leadership) -> Outcome<()> {
    let link = &leadership.link;
    let asked_at = leadership.clock.elapsed();
    // Another one may have taken the key while this process was stopped, although its lease stands.
    if look(link).await?.is_none_or(|(_, revision)| revision != leadership.revision) {
        leadership.lose();
        return Ok(());
    }
    let mut leases = link.leases();
    link.attempt(LIMIT, leases.keep_alive(leadership.lease)).await?;
    leadership.renewed(asked_at);
    Ok(())
}
