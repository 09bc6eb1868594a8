//! Machines that are none: network namespaces on one bridge, and what can go wrong between them.
//!
//! Everything needs root and the programs `ip`, `nft`, `tc` and `nsenter`; [`available`] says whether they are there. A
//! namespace's rules are written anew as a whole with each change, so that undoing a fault cannot leave a rule behind. Delay is
//! the work of [`tun`], because the kernel may have no `netem`. Deliberately not here: who is cut off from whom, and when.

mod host;
#[cfg(test)]
mod tests;
pub mod tun;

use std::fs;
use std::net::Ipv4Addr;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result, bail, ensure};

pub use host::{Delay, Host};

/// Namespaces and interfaces of ours are named `plcPID...`: what a killed run left is found by its dead process.
const PREFIX: &str = "plc";
/// Networks that this process has made.
static MADE: AtomicU32 = AtomicU32::new(0);

/// Whether namespaces can be made here; if not, why.
///
/// # Errors
/// The reason, in words.
pub fn available() -> Result<()> {
    ensure!(nix::unistd::geteuid().is_root(), "not root");
    for program in ["ip", "nft", "tc", "nsenter"] {
        let found = ["/usr/sbin", "/sbin", "/usr/bin", "/bin"].iter().any(|at| Path::new(at).join(program).exists());
        ensure!(found, "the program `{program}` is not installed");
    }
    let probe = format!("{PREFIX}{}probe{}", std::process::id(), MADE.fetch_add(1, Ordering::Relaxed));
    run(&["ip", "netns", "add", &probe]).context("network namespaces are not allowed here")?;
    let rules =
        run_with(&["nsenter", &format!("--net=/run/netns/{probe}"), "nft", "-f", "-"], "table inet probe {\n}\n");
    run(&["ip", "netns", "del", &probe])?;
    rules.context("nftables do not work here")
}

/// A bridge with the hosts on it. Dropping it removes them all; processes in them must have ended before.
#[derive(Debug)]
pub struct Net {
    tag: String,
    subnet: [u8; 2],
    hosts: Vec<String>,
    /// Of the next host: the kernel takes its time to forget a name.
    next: u8,
}

impl Net {
    /// A bridge of this process. Removes what runs that were killed left behind.
    ///
    /// # Errors
    /// As [`available`], and when the bridge cannot be made.
    pub fn new() -> Result<Self> {
        sweep();
        let (pid, number) = (std::process::id(), MADE.fetch_add(1, Ordering::Relaxed));
        let place = pid.wrapping_mul(7).wrapping_add(number);
        let subnet = [200 + (place / 250 % 50) as u8, (place % 250) as u8];
        let letter = char::from(b'a' + (number % 26) as u8);
        let net = Self { tag: format!("{PREFIX}{pid}{letter}"), subnet, hosts: Vec::new(), next: 10 };
        let bridge = net.bridge();
        run(&["ip", "link", "add", &bridge, "type", "bridge"]).context("no bridge")?;
        run(&["ip", "addr", "add", &format!("{}/24", net.gateway()), "dev", &bridge])?;
        run(&["ip", "link", "set", &bridge, "up"])?;
        Ok(net)
    }

    fn bridge(&self) -> String {
        format!("{}br", self.tag)
    }

    /// The address of this process in the network.
    #[must_use]
    pub fn gateway(&self) -> Ipv4Addr {
        self.address(1)
    }

    fn address(&self, last: u8) -> Ipv4Addr {
        Ipv4Addr::new(10, self.subnet[0], self.subnet[1], last)
    }

    /// A host of its own on the bridge.
    ///
    /// # Errors
    /// When a namespace or its interface cannot be made.
    pub fn host(&mut self) -> Result<Host> {
        let number = self.next;
        self.next = number.checked_add(1).context("too many hosts")?;
        let (name, address) = (format!("{}n{number}", self.tag), self.address(number));
        let link = format!("{}v{number}", self.tag);
        run(&["ip", "netns", "add", &name])?;
        self.hosts.push(name.clone());
        run(&["ip", "link", "add", &link, "type", "veth", "peer", "name", "eth0", "netns", &name])?;
        run(&["ip", "link", "set", &link, "master", &self.bridge(), "up"])?;
        let inside = |args: &[&str]| run(&[&["ip", "-n", &name], args].concat());
        inside(&["addr", "add", &format!("{address}/24"), "dev", "eth0"])?;
        inside(&["link", "set", "eth0", "up"])?;
        inside(&["link", "set", "lo", "up"])?;
        Ok(Host::new(name, address))
    }

    /// Removes all hosts; processes in them must have ended before.
    pub fn clear(&mut self) {
        for host in self.hosts.drain(..) {
            let _ = run(&["ip", "netns", "del", &host]);
        }
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        self.clear();
        let _ = run(&["ip", "link", "del", &self.bridge()]);
    }
}

/// Removes namespaces and bridges whose process is gone.
fn sweep() {
    let owner = |name: &str| {
        let digits: String = name.strip_prefix(PREFIX)?.chars().take_while(char::is_ascii_digit).collect();
        (!digits.is_empty() && !Path::new("/proc").join(&digits).exists()).then_some(())
    };
    let names = |folder: &str| -> Vec<String> {
        let entries = fs::read_dir(folder).into_iter().flatten();
        entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect()
    };
    for name in names("/run/netns").iter().filter(|name| owner(name).is_some()) {
        let _ = run(&["ip", "netns", "del", name]);
    }
    for name in names("/sys/class/net").iter().filter(|name| owner(name).is_some()) {
        let _ = run(&["ip", "link", "del", name]);
    }
}

pub(super) fn run(words: &[&str]) -> Result<()> {
    run_with(words, "")
}

/// Runs a program with an input; an error carries what it said.
pub(super) fn run_with(words: &[&str], input: &str) -> Result<()> {
    use std::io::Write as _;
    let shown = words.join(" ");
    let [program, args @ ..] = words else { bail!("no program") };
    let mut child = Command::new(program)
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot run `{shown}`"))?;
    child.stdin.take().context("its input is piped")?.write_all(input.as_bytes())?;
    let out = child.wait_with_output()?;
    ensure!(out.status.success(), "`{shown}`: {}", String::from_utf8_lossy(&out.stderr).trim());
    Ok(())
}
