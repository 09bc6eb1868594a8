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
    /// Where callers reach this coordinator; what followers redirect to. `http://` and [`Config::grpc_listen`] when absent.
    pub advertise: Option<String>,
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
    /// In an etcd that several coordinators share: one of them leads.
    Etcd {
        /// Addresses of its members, such as `http://10.0.0.1:2379`.
        endpoints: Vec<String>,
        /// What the names of all keys begin with.
        prefix: String,
    },
}

impl StateStore {
    /// A path, `memory`, or `etcd://host:port[,host:port]/prefix`.
    ///
    /// # Errors
    /// `BAD_VALUE` for an etcd address without a host.
    pub fn parse(text: &str) -> Result<Self> {
        let Some(rest) = text.strip_prefix("etcd://") else {
            return Ok(if text == "memory" { Self::Memory } else { Self::File(text.into()) });
        };
        let (hosts, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        let prefix = prefix.trim_matches('/');
        let bad = |host: &str| host.is_empty() || host.contains(char::is_whitespace);
        if hosts.split(',').any(bad) {
            return Err(code::BAD_VALUE
                .error(format!("state: `{text}` names no member of etcd"))
                .hint("for example etcd://10.0.0.1:2379,10.0.0.2:2379,10.0.0.3:2379/pleach"));
        }
        let endpoint = |host: &str| {
            let port = if host.rsplit(']').next().is_some_and(|end| end.contains(':')) { "" } else { ":2379" };
            format!("http://{host}{port}")
        };
        let prefix = if prefix.is_empty() { "pleach" } else { prefix }.to_owned();
        Ok(Self::Etcd { endpoints: hosts.split(',').map(endpoint).collect(), prefix })
    }
}

impl Config {
    /// Loopback, ports 7700 (gRPC) and 7701 (HTTP), no token.
    #[must_use]
    pub fn new(state: StateStore) -> Self {
        let clock = SystemClock::shared();
        Self {
            grpc_listen: loopback(7700),
            http_listen: Some(loopback(7701)),
            advertise: None,
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
        let shared = matches!(self.state, StateStore::Etcd { .. });
        if shared && self.grpc_listen.ip().is_unspecified() && self.advertise.is_none() {
            return Err(code::BAD_VALUE
                .error(format!("advertise: it is not set, and nobody can be sent to {}", self.grpc_listen.ip()))
                .hint("give the address that callers reach this coordinator at, such as http://10.0.0.1:7700"));
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
    fn state_is_a_path_or_an_etcd() {
        let etcd = |endpoints: &[&str], prefix: &str| {
            let endpoints = endpoints.iter().map(ToString::to_string).collect();
            StateStore::Etcd { endpoints, prefix: prefix.into() }
        };
        for (text, expected) in [
            ("memory", StateStore::Memory),
            ("a/b.redb", StateStore::File("a/b.redb".into())),
            ("etcd://a", etcd(&["http://a:2379"], "pleach")),
            ("etcd://a:1,[::1]:2,[::1]/x/y/", etcd(&["http://a:1", "http://[::1]:2", "http://[::1]:2379"], "x/y")),
        ] {
            assert_eq!(StateStore::parse(text).unwrap(), expected, "{text}");
        }
        for text in ["etcd://", "etcd:///x", "etcd://a,/x"] {
            assert_eq!(StateStore::parse(text).unwrap_err().code(), code::BAD_VALUE, "{text}");
        }
    }

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
