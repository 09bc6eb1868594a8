//! A forwarder that holds packets back: the kernel routes what is to be late into a TUN device, and it is sent on, marked, after
//! its time. One direction only; in order.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read};
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::Duration;

use anyhow::{Context, Result};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, sendto, setsockopt, socket, sockopt,
};
use pleach_base::SystemClock;

/// The mark of packets that have been held back.
pub const MARK: u32 = 0x706c;
/// The routing table that leads into the device.
pub const TABLE: u32 = 7701;

/// Opens an existing TUN device.
fn open(device: &str) -> Result<File> {
    let file = OpenOptions::new().read(true).write(true).open("/dev/net/tun").context("/dev/net/tun")?;
    attach(&file, device)?;
    nix::fcntl::fcntl(&file, nix::fcntl::FcntlArg::F_SETFL(nix::fcntl::OFlag::O_NONBLOCK))?;
    Ok(file)
}

#[allow(unsafe_code, reason = "a TUN device is chosen by an ioctl")]
fn attach(file: &File, device: &str) -> Result<()> {
    nix::ioctl_write_ptr_bad!(
        set_interface,
        nix::request_code_write!(b'T', 202, size_of::<nix::libc::c_int>()),
        nix::libc::ifreq
    );
    anyhow::ensure!(device.len() < nix::libc::IFNAMSIZ, "{device}: too long a name");
    // SAFETY: `ifreq` is plain old data, for which zeroes are a value.
    let mut request: nix::libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(device.bytes()) {
        *to = from as nix::libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (nix::libc::IFF_TUN | nix::libc::IFF_NO_PI) as nix::libc::c_short;
    // SAFETY: the descriptor is open for the call, and the kernel reads and writes within `request` only.
    unsafe { set_interface(file.as_raw_fd(), &raw const request) }.with_context(|| format!("attaching to {device}"))?;
    Ok(())
}

/// A socket that sends whole IP packets, marked.
fn sender() -> Result<OwnedFd> {
    let socket =
        socket(AddressFamily::Inet, SockType::Raw, SockFlag::empty(), SockProtocol::Raw).context("a raw socket")?;
    setsockopt(&socket, sockopt::Mark, &MARK)?;
    Ok(socket)
}

/// Forwards until the process ends; calls `ready` once packets are taken.
///
/// # Errors
/// When the device cannot be opened, or goes away.
pub fn forward(device: &str, delay: Duration, ready: impl FnOnce()) -> Result<()> {
    let (mut tun, out) = (open(device)?, sender()?);
    let clock = SystemClock::shared();
    let mut held: VecDeque<(Duration, Vec<u8>)> = VecDeque::new();
    let mut packet = vec![0; 1 << 16];
    ready();
    loop {
        let now = clock.elapsed();
        while held.front().is_some_and(|(due, _)| *due <= now) {
            if let Some((_, packet)) = held.pop_front() {
                send(&out, &packet);
            }
        }
        let wait = held.front().map_or(Duration::from_secs(1), |(due, _)| due.saturating_sub(now));
        let timeout = PollTimeout::try_from(wait + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX);
        poll(&mut [PollFd::new(tun.as_fd(), PollFlags::POLLIN)], timeout)?;
        match tun.read(&mut packet) {
            Ok(length) => held.push_back((clock.elapsed() + delay, packet[..length].to_vec())),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
            Err(error) => return Err(error).context("the device is gone"),
        }
    }
}

/// A packet that cannot be sent is lost: packets may be.
fn send(out: &OwnedFd, packet: &[u8]) {
    if let (Some(4), Some(&[a, b, c, d])) = (packet.first().map(|byte| byte >> 4), packet.get(16..20)) {
        let to = SockaddrIn::from(std::net::SocketAddrV4::new(Ipv4Addr::new(a, b, c, d), 0));
        let _ = sendto(out.as_raw_fd(), packet, &to, MsgFlags::empty());
    }
}
