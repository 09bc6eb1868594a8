//! How a rank finds the others. Plain data.

use std::net::IpAddr;
use std::time::Duration;

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
    /// How long forming the group may take.
    pub setup_timeout: Duration,
    /// How long a collective may go without progress.
    pub timeout: Duration,
    /// Where to listen; by default the address from which the store's host is reached.
    pub bind: Option<Bind>,
    /// Exchange a signature before every call, planned or not.
    pub checked: bool,
}

impl GroupOptions {
    /// Fast mode, 30 s to form, 5 min a collective, the default address.
    #[must_use]
    pub fn new(rank: usize, world: usize, prefix: impl Into<String>, store: StoreAddr) -> Self {
        Self {
            rank,
            world,
            prefix: prefix.into(),
            store,
            setup_timeout: Duration::from_secs(30),
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
