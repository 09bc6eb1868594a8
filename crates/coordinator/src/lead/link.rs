//! The members of etcd: one is asked at a time, and another one when it does not answer.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use etcd_client::{Client, ConnectOptions, KvClient, LeaseClient};
use pleach_base::{Result, ResultExt, code};
use tonic::Code;

/// A page of jobs with long files.
const LARGEST_ANSWER: usize = 64 << 20;
const CONNECT_LIMIT: Duration = Duration::from_millis(500);

/// Why a request failed.
#[derive(Debug)]
pub(super) enum Trouble {
    /// The member, or most of etcd, is away: another attempt may help. What was written may have been taken.
    Away(String),
    /// etcd will never take this.
    Refused(etcd_client::Error),
}

/// A connection to each member. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Link {
    clients: Arc<Vec<Client>>,
    current: Arc<AtomicUsize>,
    prefix: Arc<str>,
}

impl Link {
    /// Connections are made when they are needed.
    pub(crate) async fn open(endpoints: &[String], prefix: &str) -> Result<Self> {
        let options = ConnectOptions::new()
            .with_connect_timeout(CONNECT_LIMIT)
            .with_require_leader(true)
            .with_keep_alive(Duration::from_secs(10), Duration::from_secs(3));
        let mut clients = Vec::new();
        for endpoint in endpoints {
            let client = Client::connect([endpoint], Some(options.clone())).await;
            clients.push(client.or_code(code::BAD_VALUE, || format!("state: `{endpoint}` is no address of etcd"))?);
        }
        Ok(Self { clients: Arc::new(clients), current: Arc::new(AtomicUsize::new(0)), prefix: prefix.into() })
    }

    /// The full name of a key.
    pub(crate) fn key(&self, rest: &str) -> String {
        format!("{}/{rest}", self.prefix)
    }

    pub(super) fn kv(&self) -> KvClient {
        self.client().kv_client().max_decoding_message_size(LARGEST_ANSWER)
    }

    pub(super) fn leases(&self) -> LeaseClient {
        self.client().lease_client()
    }

    fn client(&self) -> &Client {
        &self.clients[self.current.load(Ordering::SeqCst) % self.clients.len()]
    }

    /// Waits for a request that was made with [`Link::kv`] or [`Link::leases`]. After a failure the next member is asked.
    pub(super) async fn attempt<T>(
        &self,
        limit: Duration,
        request: impl Future<Output = std::result::Result<T, etcd_client::Error>>,
    ) -> std::result::Result<T, Trouble> {
        let asked = self.current.load(Ordering::SeqCst);
        let trouble = match tokio::time::timeout(limit, request).await {
            Ok(Ok(answer)) => return Ok(answer),
            Ok(Err(error)) if is_final(&error) => return Err(Trouble::Refused(error)),
            Ok(Err(error)) => Trouble::Away(error.to_string()),
            Err(_) => Trouble::Away(format!("no answer in {limit:?}")),
        };
        // Whoever asked at the same time may have turned to another member already.
        let _ = self.current.compare_exchange(asked, asked.wrapping_add(1), Ordering::SeqCst, Ordering::SeqCst);
        Err(trouble)
    }
}

fn is_final(error: &etcd_client::Error) -> bool {
    match error {
        etcd_client::Error::GRpcStatus(status) => matches!(
            status.code(),
            Code::InvalidArgument | Code::PermissionDenied | Code::Unauthenticated | Code::Unimplemented
        ),
        // The lease does not exist any more.
        etcd_client::Error::LeaseKeepAliveError(why) => why.contains("not found"),
        _ => false,
    }
}
