//! Finds the sockets that belong to a Gloo group, so that an abort can shut them down: Gloo's own abort does nothing.
//! Only connected sockets are kept. The listener is left alone; shutting it down ends the process.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::net::{IpAddr, Shutdown, SocketAddr, TcpStream, ToSocketAddrs as _, UdpSocket};
use std::os::fd::{BorrowedFd, OwnedFd, RawFd};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use nix::sys::socket::{MsgFlags, SockType, getsockopt, recv, sockopt};
use pleach_base::SystemClock;

use crate::group::Link;

/// The address of this machine from which `host` is reached. No packet is sent.
pub(crate) fn local_address_towards(host: &str, port: u16) -> io::Result<IpAddr> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, format!("{host} has no address"));
    for target in (host, port).to_socket_addrs()? {
        let any: SocketAddr = if target.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { ([0u16; 8], 0).into() };
        match UdpSocket::bind(any).and_then(|socket| socket.connect(target).and_then(|()| socket.local_addr())) {
            Ok(address) => return Ok(address.ip()),
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// Tries to connect until somebody listens. c10d would do the same, but with a stack trace on standard error a try.
pub(crate) fn wait_for_listener(host: &str, port: u16, timeout: Duration, wanted: impl Fn() -> bool) -> io::Result<()> {
    let clock = SystemClock::shared();
    loop {
        let left = timeout.saturating_sub(clock.elapsed()).max(Duration::from_millis(1));
        let error = match (host, port).to_socket_addrs().and_then(|addresses| reach(addresses, left)) {
            Ok(()) => return Ok(()),
            Err(error) => error,
        };
        if clock.elapsed() + RETRY >= timeout || !wanted() {
            return Err(error);
        }
        std::thread::sleep(RETRY);
    }
}

/// How soon a connection that was refused is tried again.
const RETRY: Duration = Duration::from_millis(100);

fn reach(addresses: impl Iterator<Item = SocketAddr>, timeout: Duration) -> io::Result<()> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for address in addresses {
        match TcpStream::connect_timeout(&address, timeout) {
            Ok(_) => return Ok(()),
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// Runs `open`, which opens one listening socket, and says which address it listens on; `None` when another thread opened
/// a listener at the same moment, so that the two cannot be told apart.
pub(crate) fn listening<T, E>(open: impl FnOnce() -> Result<T, E>) -> Result<(T, Option<SocketAddr>), E> {
    // Groups of one process are built one at a time here; other listeners are not ours to lock.
    static BUILDING: Mutex<()> = Mutex::new(());
    let _guard = BUILDING.lock().unwrap_or_else(PoisonError::into_inner);
    let before = listeners();
    let opened = open()?;
    let new: Vec<SocketAddr> = listeners().difference(&before).copied().collect();
    Ok((opened, if let [only] = new[..] { Some(only) } else { None }))
}

fn listeners() -> BTreeSet<SocketAddr> {
    streams()
        .filter(|socket| getsockopt(socket, sockopt::AcceptConn).unwrap_or(false))
        .filter_map(|socket| socket.local_addr().ok())
        .collect()
}

/// Own duplicates of all TCP sockets of this process.
fn streams() -> impl Iterator<Item = TcpStream> {
    let open = fs::read_dir("/proc/self/fd").into_iter().flatten().flatten();
    open.filter(|entry| fs::read_link(entry.path()).is_ok_and(|to| to.to_string_lossy().starts_with("socket:")))
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter_map(duplicate)
        .filter(|fd| getsockopt(fd, sockopt::SockType) == Ok(SockType::Stream))
        .map(TcpStream::from)
        .filter(|socket| socket.local_addr().is_ok())
}

#[allow(unsafe_code)]
fn duplicate(fd: RawFd) -> Option<OwnedFd> {
    // SAFETY: borrowed for the one call that duplicates it. If another thread closed it since, that call fails or
    // duplicates a newer file; callers look at the addresses of what they got, never at the number.
    unsafe { BorrowedFd::borrow_raw(fd) }.try_clone_to_owned().ok()
}

/// A connection of the group and the rank at its other end.
pub(crate) struct Peer {
    pub(crate) rank: Option<usize>,
    pub(crate) local: SocketAddr,
    pub(crate) remote: SocketAddr,
    socket: TcpStream,
}

impl Peer {
    /// Ends what waits on this connection. It may be closed at the other end already.
    pub(crate) fn shut(&self) {
        let _ = self.socket.shutdown(Shutdown::Both);
    }
}

/// The connections between the listener `mine` and the listeners of the other ranks. The rank is known where this end
/// connected; where it accepted, the other end used a port of its own. A process holds one rank of a group, or two; with
/// more it could not tell its own connections from those between the others.
pub(crate) fn connected(mine: SocketAddr, listeners: &[SocketAddr]) -> Vec<Peer> {
    let mut found: Vec<Peer> = Vec::new();
    for socket in streams() {
        let (Ok(local), Ok(remote)) = (socket.local_addr(), socket.peer_addr()) else { continue };
        let rank = listeners.iter().position(|listener| *listener == remote && remote != mine);
        let known = found.iter().any(|peer| peer.local == local && peer.remote == remote);
        if !known && (local == mine || rank.is_some()) {
            found.push(Peer { rank, local, remote, socket });
        }
    }
    found
}

/// The connections of a group. They are duplicates: the group may close its own at any time, and a file number that was
/// closed may already mean something else.
pub(crate) struct Peers(Mutex<Vec<Peer>>);

impl Peers {
    pub(crate) fn new(peers: Vec<Peer>) -> Self {
        Self(Mutex::new(peers))
    }

    /// Lets go of the duplicates, so that closing the group really closes its connections.
    pub(crate) fn release(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

impl Link for Peers {
    fn sever(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).iter().for_each(Peer::shut);
    }

    fn lost(&self) -> Vec<usize> {
        let peers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let gone = peers.iter().filter(|peer| is_closed(&peer.socket)).filter_map(|peer| peer.rank);
        gone.collect::<BTreeSet<_>>().into_iter().collect()
    }
}

/// Whether the other end closed the connection, without taking any bytes from it.
fn is_closed(socket: &TcpStream) -> bool {
    use std::os::fd::AsRawFd as _;
    let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT;
    !matches!(recv(socket.as_raw_fd(), &mut [0], flags), Ok(1..) | Err(nix::errno::Errno::EAGAIN))
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn only_the_connections_of_the_group_are_found() {
        let (ours, address) = listening(|| TcpListener::bind("127.0.0.1:0")).unwrap();
        let mine = address.unwrap();
        assert_eq!(mine, ours.local_addr().unwrap());
        let theirs = TcpListener::bind("127.0.0.1:0").unwrap();
        let stranger = TcpListener::bind("127.0.0.1:0").unwrap();
        let _accepted = (TcpStream::connect(mine).unwrap(), ours.accept().unwrap());
        let _initiated = TcpStream::connect(theirs.local_addr().unwrap()).unwrap();
        let _other = TcpStream::connect(stranger.local_addr().unwrap()).unwrap();
        let peers = connected(mine, &[mine, theirs.local_addr().unwrap()]);
        let remote: Vec<_> = peers.iter().map(|peer| peer.remote).collect();
        assert!(remote.contains(&theirs.local_addr().unwrap()));
        assert!(!remote.contains(&stranger.local_addr().unwrap()));
    }

    #[test]
    fn the_address_towards_loopback_is_loopback() {
        assert_eq!(local_address_towards("127.0.0.1", 9).unwrap(), IpAddr::from([127, 0, 0, 1]));
        local_address_towards("no such host", 9).unwrap_err();
    }

    #[test]
    fn severing_ends_a_blocked_read_and_names_the_lost() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let client = TcpStream::connect(address).unwrap();
        let (server, _) = listener.accept().unwrap();
        let mut peers = connected(client.local_addr().unwrap(), &[address]);
        peers.retain(|peer| peer.remote == address);
        assert_eq!(peers.len(), 1);
        let peers = Peers::new(peers);
        assert_eq!(peers.lost(), Vec::<usize>::new());
        drop(server);
        std::thread::sleep(std::time::Duration::from_millis(20));
        assert_eq!(peers.lost(), vec![0]);
        peers.sever();
        use std::io::Read as _;
        assert_eq!((&client).read(&mut [0; 8]).unwrap(), 0);
    }
}
