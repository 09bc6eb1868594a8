//! How a rank finds the others. Plain data.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use crate::Forming;

/// Where the rendezvous store listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreAddr {
    /// A host name or address by which every rank reaches it.
    pub host: String,
    /// The port.
    pub port: u16,
}

impl StoreAddr {
    /// The store at `host:port`.
    #[must_use]
    pub fn new(host: impl Into<String>, port: u16) -> Self {
        Self { host: host.into(), port }
    }
}

/// Where this rank listens for the others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Bind {
    /// An address of this machine.
    Address(IpAddr),
    /// The name of a network interface, `eth0`.
    Interface(String),
}

impl Bind {
    /// An address if it reads as one, else the name of an interface.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        text.parse().map_or_else(|_| Self::Interface(text.to_owned()), Self::Address)
    }
}

/// What a rank needs to know to join a group.
#[derive(Clone, Debug)]
pub struct GroupOptions {
    /// The number of this rank, below `world`.
    pub rank: usize,
    /// How many ranks there are.
    pub world: usize,
    /// Names the group in the store, `job/g0007`. Never used twice, not even after a failed attempt.
    pub prefix: String,
    /// The store where the ranks meet.
    pub store: StoreAddr,
    /// How long reaching the store may take, and, once every rank has come, connecting them.
    pub setup_timeout: Duration,
    /// How long the other ranks are waited for. They may have to end something else first; whoever can tell that one will
    /// not come ends the wait through `forming`.
    pub arrival_timeout: Duration,
    /// Shows how far this attempt is, and ends it.
    pub forming: Arc<Forming>,
    /// How long a collective may go without progress.
    pub timeout: Duration,
    /// Where to listen; by default the address from which the store's host is reached.
    pub bind: Option<Bind>,
    /// Exchange a signature before every call, planned or not.
    pub checked: bool,
}

impl GroupOptions {
    /// Fast mode, 3 s to form once all are there, 30 s until they are, 5 min a collective, the default address.
    #[must_use]
    pub fn new(rank: usize, world: usize, prefix: impl Into<String>, store: StoreAddr) -> Self {
        Self {
            rank,
            world,
            prefix: prefix.into(),
            store,
            setup_timeout: Duration::from_secs(3),
            arrival_timeout: Duration::from_secs(30),
            forming: Arc::default(),
            timeout: Duration::from_secs(300),
            bind: None,
            checked: false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Bind;

    #[test]
    fn a_bind_is_an_address_or_an_interface() {
        assert_eq!(Bind::parse("10.0.0.7"), Bind::Address([10, 0, 0, 7].into()));
        assert_eq!(Bind::parse("::1"), Bind::Address(std::net::Ipv6Addr::LOCALHOST.into()));
        assert_eq!(Bind::parse("eth0"), Bind::Interface("eth0".to_owned()));
    }
}
