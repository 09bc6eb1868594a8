//! What etcd remembers of values that were overwritten. Heads are overwritten with every step, nobody ever reads an older
//! one, and etcd refuses all writes once its space is spent: so the leader has it forget them.

use std::time::Duration;

use etcd_client::ResponseHeader;

use super::election::LIMIT;
use super::link::Trouble;
use super::{LEADER, Leadership};

/// Has etcd forget what was overwritten longer than `every` ago, again and again while this process leads.
pub(super) async fn forget(leadership: &Leadership, every: Duration) {
    let mut before = None;
    while !leadership.is_lost() {
        match at(leadership, before).await {
            Ok(now) => before = now,
            // Another turn comes, and etcd may have been told to do it by itself.
            Err(Trouble::Away(why)) => tracing::debug!(why, "etcd does not forget its history"),
            Err(Trouble::Refused(error)) => tracing::debug!(%error, "etcd does not forget its history"),
        }
        tokio::time::sleep(every).await;
    }
}

/// Forgets what is older than a revision; returns the revision of now.
async fn at(leadership: &Leadership, before: Option<i64>) -> Result<Option<i64>, Trouble> {
    let link = &leadership.link;
    if let Some(before) = before {
        let mut kv = link.kv();
        link.attempt(LIMIT, kv.compact(before, None)).await?;
    }
    let mut kv = link.kv();
    let answer = link.attempt(LIMIT, kv.get(link.key(LEADER), None)).await?;
    Ok(answer.header().map(ResponseHeader::revision))
}
