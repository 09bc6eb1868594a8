//! What a coordinator is started with.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use pleach_base::{Error, IdSource, Result, SharedClock, SystemClock, UlidSource, code};
use pleach_sched::Settings;

/// Where a coordinator listens, keeps its state, and what it demands of callers.
#[derive(Clone)]
pub struct Config {
    /// Address of the gRPC services; port 0 takes any free port.
    pub grpc_listen: SocketAddr,
    /// Address of `/healthz`, `/readyz`, `/metrics` and the status page; nothing is served when absent.
    pub http_listen: Option<SocketAddr>,
    /// Where jobs are kept.
    pub state: StateStore,
    /// The bearer token that every call must carry. Without one the coordinator binds to loopback addresses only.
    pub token: Option<String>,
    /// Leases, waiting times, limits.
    pub settings: Settings,
    /// Time between ticks of the scheduler.
    pub tick: Duration,
    /// Updates that are kept per job for watchers.
    pub kept_updates: u64,
    /// Source of time.
    pub clock: SharedClock,
    /// Source of ids.
    pub ids: Arc<dyn IdSource>,
}

/// Where jobs are kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StateStore {
    /// In a redb file, created when missing; its folder too.
    File(PathBuf),
    /// In memory: gone with the process.
    Memory,
}

impl Config {
    /// Loopback, ports 7700 (gRPC) and 7701 (HTTP), no token.
    #[must_use]
    pub fn new(state: StateStore) -> Self {
        let clock = SystemClock::shared();
        Self {
            grpc_listen: loopback(7700),
            http_listen: Some(loopback(7701)),
            state,
            token: None,
            settings: Settings::default(),
            tick: Duration::from_millis(100),
            kept_updates: 20_000,
            ids: Arc::new(UlidSource::new(Arc::clone(&clock))),
            clock,
        }
    }

    /// For use inside another process: any free loopback port, no HTTP.
    #[must_use]
    pub fn embedded(state: StateStore) -> Self {
        Self { grpc_listen: loopback(0), http_listen: None, ..Self::new(state) }
    }

    /// # Errors
    /// `BAD_VALUE` when an address that others can reach is to be served without a token.
    pub(crate) fn check(&self) -> Result<()> {
        if self.token.as_deref() == Some("") {
            return Err(code::BAD_VALUE.error("token: it is empty").hint("leave it out, or give a long random text"));
        }
        // The HTTP side shows job names and numbers only, and answers probes, which carry no token.
        if !self.grpc_listen.ip().is_loopback() && self.token.is_none() {
            return Err(open_without_token(self.grpc_listen));
        }
        Ok(())
    }
}

fn open_without_token(address: SocketAddr) -> Error {
    code::BAD_VALUE
        .error(format!("grpc_listen: {address} can be reached by others, and no token is set"))
        .hint("set a token (`--token` or `PLEACH_TOKEN`), or listen on 127.0.0.1")
}

fn loopback(port: u16) -> SocketAddr {
    SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_that_others_reach_needs_a_token() {
        let mut config = Config::new(StateStore::Memory);
        config.check().unwrap();
        config.grpc_listen = "0.0.0.0:7700".parse().unwrap();
        assert_eq!(config.check().unwrap_err().code(), code::BAD_VALUE);
        config.token = Some("secret".into());
        config.check().unwrap();
    }
}
