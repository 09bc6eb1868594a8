//! `pleach coordinator`.

use std::net::SocketAddr;
use std::time::Duration;

use pleach_base::shutdown::{Shutdown, on_signals};
use pleach_base::{Result, ResultExt, code};
use pleach_coordinator::{Config, StateStore, serve};
use serde::{Deserialize, Serialize};

use crate::args::{Coordinator, Global};
use crate::out;

/// What the file, the variables `PLEACH_COORDINATOR_*` and the flags may set.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Node {
    /// Address of the gRPC services.
    listen: SocketAddr,
    /// Address of the HTTP side; `off` for none.
    http: String,
    /// File that keeps the jobs, `memory`, or `etcd://...`.
    state: String,
    /// Milliseconds after which a silent worker is lost.
    lease_ttl_ms: u64,
    /// Milliseconds that a gang may train without a coordinator.
    grace_ms: u64,
    /// Where callers reach this coordinator; empty for the address of `listen`.
    advertise: String,
}

/// The flags that were given: absent ones must not stand above other layers.
#[derive(Serialize)]
struct Flags {
    #[serde(skip_serializing_if = "Option::is_none")]
    listen: Option<SocketAddr>,
    #[serde(skip_serializing_if = "Option::is_none")]
    http: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    state: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    lease_ttl_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    grace_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    advertise: Option<String>,
}

pub(super) async fn run(global: &Global, args: Coordinator) -> Result<()> {
    let config = config(global, args)?;
    let shutdown = Shutdown::default();
    on_signals(shutdown.clone()).or_code(code::INTERNAL, || "cannot listen to signals".into())?;
    let running = serve(config, shutdown.clone()).await?;
    // Tools that start a coordinator on port 0 read the address from here.
    out::data(&running.url())?;
    let mut stopped = std::pin::pin!(running.stopped());
    tokio::select! {
        stopped = &mut stopped => return stopped,
        () = shutdown.requested() => {}
    }
    out::note(format!("{}: waiting for open calls to end", shutdown.reason().unwrap_or("stopping")));
    stopped.await
}

fn config(global: &Global, args: Coordinator) -> Result<Config> {
    let defaults = Node {
        listen: SocketAddr::from(([127, 0, 0, 1], 7700)),
        http: "127.0.0.1:7701".into(),
        state: ".pleach/coordinator.redb".into(),
        lease_ttl_ms: 10_000,
        grace_ms: 75_000,
        advertise: String::new(),
    };
    let flags = Flags {
        listen: args.listen,
        http: args.http,
        state: args.state,
        lease_ttl_ms: args.lease_ttl_ms,
        grace_ms: args.grace_ms,
        advertise: args.advertise,
    };
    let node: Node = pleach_spec::node::layered(&defaults, args.config.as_deref(), "PLEACH_COORDINATOR_", &flags)?;
    let mut config = Config::new(StateStore::parse(&node.state)?);
    config.grpc_listen = node.listen;
    config.http_listen = match node.http.as_str() {
        "off" => None,
        text => {
            Some(text.parse().or_code(code::BAD_VALUE, || format!("http: `{text}` is neither an address nor `off`"))?)
        }
    };
    config.token.clone_from(&global.token);
    if node.lease_ttl_ms < 100 {
        return Err(code::BAD_VALUE.error(format!("lease_ttl_ms: {} is below 100", node.lease_ttl_ms)));
    }
    // A gang that may not even wait for a lease to end could never outlive a coordinator.
    if node.grace_ms < node.lease_ttl_ms {
        return Err(code::BAD_VALUE.error(format!("grace_ms: {} is below lease_ttl_ms", node.grace_ms)));
    }
    config.settings.lease_ttl = Duration::from_millis(node.lease_ttl_ms);
    config.settings.grace = Duration::from_millis(node.grace_ms);
    config.advertise = (!node.advertise.is_empty()).then_some(node.advertise);
    Ok(config)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::args::{Cli, Command};

    fn parsed(args: &[&str]) -> Result<Config> {
        let cli = Cli::parse_from(["pleach", "coordinator"].iter().chain(args));
        let Command::Coordinator(args) = cli.command else { panic!("another command") };
        config(&cli.global, args)
    }

    #[test]
    fn flags_stand_above_the_file_and_the_file_above_the_defaults() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("node.yaml");
        std::fs::write(&file, "listen: 127.0.0.1:1\nlease_ttl_ms: 500\nstate: memory\n").unwrap();
        let file = file.to_str().unwrap();
        let config = parsed(&["--config", file, "--listen", "127.0.0.1:2", "--http", "off", "--token", "t"]).unwrap();
        assert_eq!(config.grpc_listen, "127.0.0.1:2".parse().unwrap());
        assert_eq!(config.settings.lease_ttl, Duration::from_millis(500));
        assert_eq!(config.settings.grace, Duration::from_secs(75));
        assert_eq!((config.state, config.http_listen), (StateStore::Memory, None));
        assert_eq!(config.token.as_deref(), Some("t"));
    }

    #[test]
    fn what_cannot_be_is_refused() {
        for args in [["--http", "nowhere"], ["--lease-ttl-ms", "1"], ["--grace-ms", "9999"]] {
            assert_eq!(parsed(&args).map(|_| ()).unwrap_err().code(), code::BAD_VALUE, "{args:?}");
        }
    }
}
