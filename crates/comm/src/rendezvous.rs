//! The store where ranks meet: a c10d TCPStore that one worker hosts for its lifetime. It has no authentication; bind it
//! to a network that only the gang's machines reach.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, ToSocketAddrs as _};
use std::os::fd::IntoRawFd as _;
use std::time::Duration;

use pleach_base::{Result, ResultExt as _, code};

use crate::ffi::Store;

/// A store that serves until it is dropped. One server carries any number of groups, each under its own prefix.
pub struct RendezvousServer {
    address: SocketAddr,
    _store: Store,
}

impl RendezvousServer {
    /// Listens on `host`, on `port` or, with 0, on any free port.
    ///
    /// # Errors
    /// `COMM_SETUP` when `host` is not an address of this machine or the port is taken.
    pub fn start(host: &str, port: u16) -> Result<Self> {
        let failed = || format!("cannot serve the rendezvous on {host}:{port}");
        let wanted: Vec<SocketAddr> = (host, port).to_socket_addrs().or_code(code::COMM_SETUP, failed)?.collect();
        let listener = TcpListener::bind(&wanted[..]).or_code(code::COMM_SETUP, failed)?;
        let address = listener.local_addr().or_code(code::COMM_SETUP, failed)?;
        // The server connects to itself once; a wildcard address is not something to connect to.
        let reach = match address.ip() {
            IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
            IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
            ip => ip,
        };
        let store = Store::serve(&reach.to_string(), address.port(), listener.into_raw_fd(), Duration::from_secs(30))
            .map_err(|failure| code::COMM_SETUP.error(format!("{}: {}", failed(), failure.message)))?;
        Ok(Self { address, _store: store })
    }

    /// The port it listens on.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// The address it is bound to.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}
