//! One namespace: what runs in it, and what its packets suffer.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::net::Ipv4Addr;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::Result;

use super::{run, run_with, tun};
use crate::process::{Process, binary};

/// A network namespace with one address.
#[derive(Debug)]
pub struct Host {
    name: String,
    address: Ipv4Addr,
    /// Nothing comes from or goes to these.
    cut: BTreeSet<Ipv4Addr>,
    /// Percent of the packets to these that get lost.
    loss: BTreeMap<Ipv4Addr, u32>,
    delays: u32,
}

/// A path that takes longer, until it is given back to [`Host::hurry`].
#[derive(Debug)]
pub struct Delay {
    forwarder: Process,
    device: String,
    peer: Ipv4Addr,
    by: Duration,
}

impl Host {
    pub(super) fn new(name: String, address: Ipv4Addr) -> Self {
        Self { name, address, cut: BTreeSet::new(), loss: BTreeMap::new(), delays: 0 }
    }

    /// Its address.
    #[must_use]
    pub fn address(&self) -> Ipv4Addr {
        self.address
    }

    fn inside(&self) -> String {
        format!("--net=/run/netns/{}", self.name)
    }

    /// A command that runs in here.
    #[must_use]
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(self.inside()).arg(program);
        command
    }

    /// Drops everything from and to these addresses, besides those that are cut off already.
    ///
    /// # Errors
    /// When the rules are refused.
    pub fn cut(&mut self, peers: &[Ipv4Addr]) -> Result<()> {
        self.cut.extend(peers);
        self.apply()
    }

    /// Loses so many percent of the packets to `peer`.
    ///
    /// # Errors
    /// When the rules are refused.
    pub fn lose(&mut self, peer: Ipv4Addr, percent: u32) -> Result<()> {
        self.loss.insert(peer, percent.min(100));
        self.apply()
    }

    /// Ends cuts and losses for these addresses.
    ///
    /// # Errors
    /// When the rules are refused.
    pub fn heal(&mut self, peers: &[Ipv4Addr]) -> Result<()> {
        self.cut.retain(|peer| !peers.contains(peer));
        self.loss.retain(|peer, _| !peers.contains(peer));
        self.apply()
    }

    /// The whole ruleset in one transaction.
    fn apply(&self) -> Result<()> {
        run_with(&["nsenter", &self.inside(), "nft", "-f", "-"], &self.rules())
    }

    fn rules(&self) -> String {
        let mut out = String::new();
        let mut into = String::new();
        for peer in &self.cut {
            out += &format!("ip daddr {peer} drop\n");
            into += &format!("ip saddr {peer} drop\n");
        }
        for (peer, percent) in &self.loss {
            let some = if *percent >= 100 { String::new() } else { format!("numgen random mod 100 < {percent} ") };
            out += &format!("ip daddr {peer} {some}drop\n");
        }
        format!(
            "table inet faults {{\n}}\nflush table inet faults\ndelete table inet faults\ntable inet faults {{\n\
             chain out {{\ntype filter hook output priority 0;\n{out}}}\n\
             chain into {{\ntype filter hook input priority 0;\n{into}}}\n}}\n"
        )
    }

    /// Lets no more than so many kilobits a second out.
    ///
    /// # Errors
    /// When the kernel has no token bucket filter.
    pub fn slow(&self, kilobits: u32) -> Result<()> {
        let rate = format!("{kilobits}kbit");
        let shape = ["root", "tbf", "rate", &rate, "burst", "32kb", "latency", "500ms"];
        run(&[&["nsenter", &self.inside(), "tc", "qdisc", "replace", "dev", "eth0"], &shape[..]].concat())
    }

    /// Ends [`Host::slow`].
    ///
    /// # Errors
    /// When it was not slow.
    pub fn fast(&self) -> Result<()> {
        run(&["nsenter", &self.inside(), "tc", "qdisc", "del", "dev", "eth0", "root"])
    }

    /// Holds every packet to `peer` back for `by`.
    ///
    /// # Errors
    /// When there are no TUN devices, or `pleach-tund` is not built.
    pub fn delay(&mut self, peer: Ipv4Addr, by: Duration) -> Result<Delay> {
        self.delays += 1;
        let device = format!("tun{}", self.delays);
        let inside = |args: &[&str]| run(&[&["ip", "-n", &self.name], args].concat());
        inside(&["tuntap", "add", "dev", &device, "mode", "tun"])?;
        inside(&["link", "set", &device, "up"])?;
        let mut command = self.command(binary("pleach-tund")?);
        command.args(["--device", &device, "--delay-ms", &by.as_millis().to_string()]);
        let forwarder = Process::start("pleach-tund", command)?;
        forwarder.wait_for("forwarding", Duration::from_secs(10))?;
        let (table, mark) = (tun::TABLE.to_string(), tun::MARK.to_string());
        inside(&[
            "route",
            "replace",
            &peer.to_string(),
            "dev",
            &device,
            "src",
            &self.address.to_string(),
            "table",
            &table,
        ])?;
        // What the forwarder sends on carries the mark, and goes its usual way.
        inside(&["rule", "add", "not", "fwmark", &mark, "to", &peer.to_string(), "lookup", &table])?;
        Ok(Delay { forwarder, device, peer, by })
    }

    /// Ends a delay: what is held back still arrives.
    ///
    /// # Errors
    /// When the route cannot be taken back.
    pub fn hurry(&self, delay: Delay) -> Result<()> {
        let inside = |args: &[&str]| run(&[&["ip", "-n", &self.name], args].concat());
        let (table, mark) = (tun::TABLE.to_string(), tun::MARK.to_string());
        inside(&["rule", "del", "not", "fwmark", &mark, "to", &delay.peer.to_string(), "lookup", &table])?;
        std::thread::sleep(delay.by + Duration::from_millis(20));
        drop(delay.forwarder);
        inside(&["link", "del", &delay.device])
    }

    /// Whether its namespace still exists.
    #[must_use]
    pub fn exists(&self) -> bool {
        Path::new("/run/netns").join(&self.name).exists()
    }
}
