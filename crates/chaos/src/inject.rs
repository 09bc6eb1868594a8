//! Faults put to work on a cluster, and taken back.

use std::fs;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::signal::Signal;
use pleach_testkit::net::Delay;
use pleach_testkit::proxy::Mood;
use pleach_testkit::s3::{Faults, Trouble};

use crate::cluster::Cluster;
use crate::node::{Node, Role};
use crate::plan::{Kind, PHASES, Planned};

/// How long a worker must have run before it is hit: a fault on one that still starts shows nothing.
const SETTLED: Duration = Duration::from_secs(2);
/// A phase that does not come in this time does not come.
const PHASE_LIMIT: Duration = Duration::from_secs(15);

/// A fault that was put to work.
#[derive(Clone, Debug)]
pub(crate) struct Injected {
    pub(crate) kind: Kind,
    /// On whom and how, in words.
    pub(crate) detail: String,
    pub(crate) at: Duration,
    pub(crate) until: Duration,
}

/// What ends a fault.
enum Undo {
    Continue(usize),
    Heal(usize, Vec<Ipv4Addr>),
    Hurry(usize, Delay),
    Fast(usize),
    Unbar(usize),
    Store,
    Disk(usize),
}

/// A fault that waits for a worker to reach a phase.
struct Armed {
    worker: usize,
    file: std::path::PathBuf,
    injected: Injected,
    lasts: Duration,
    since: Duration,
}

/// Everything that is at work now.
pub(crate) struct Injector {
    store: Option<Arc<Faults>>,
    /// The address of the store.
    gateway: Ipv4Addr,
    undo: Vec<(Duration, Undo)>,
    armed: Vec<Armed>,
    pub(crate) done: Vec<Injected>,
    /// Planned faults that found nobody to hit.
    pub(crate) skipped: Vec<String>,
}

impl Injector {
    pub(crate) fn new(store: Option<Arc<Faults>>, gateway: Ipv4Addr) -> Self {
        Self { store, gateway, undo: Vec::new(), armed: Vec::new(), done: Vec::new(), skipped: Vec::new() }
    }

    /// Puts one to work.
    pub(crate) fn inject(
        &mut self,
        cluster: &mut Cluster,
        fault: &Planned,
        now: Duration,
        leader: usize,
    ) -> Result<()> {
        let until = now + fault.lasts;
        let detail = match fault.kind {
            Kind::Kill | Kind::Terminate | Kind::Pause => self.signal(cluster, fault, now)?,
            Kind::PhaseKill | Kind::PhasePause => return self.arm(cluster, fault, now),
            Kind::Partition | Kind::Isolate => self.cut(cluster, fault, now)?,
            Kind::Loss | Kind::Delay | Kind::SlowLink => self.spoil(cluster, fault, now)?,
            Kind::LeaderKill | Kind::LeaderPause | Kind::LeaderCut => self.leader(cluster, fault, now, leader)?,
            Kind::EtcdKill => Self::etcd(cluster, fault, now)?,
            Kind::S3Errors | Kind::S3Slow | Kind::S3Cut => self.store(fault, now),
            Kind::DiskFull => self.fill(cluster, fault, now)?,
        };
        match detail {
            Some(detail) => self.done.push(Injected { kind: fault.kind, detail, at: now, until }),
            None => self.skipped.push(fault.kind.name().to_owned()),
        }
        Ok(())
    }

    /// A worker that no other fault is at work on; one at least is left alone.
    fn victim(cluster: &Cluster, draw: u64, now: Duration) -> Option<usize> {
        let workers = cluster.of(Role::Worker);
        let free: Vec<usize> = workers
            .into_iter()
            .filter(|at| cluster.nodes[*at].is_up(now, SETTLED) && cluster.nodes[*at].busy_until <= now)
            .collect();
        (free.len() >= 2).then(|| free[(draw % free.len() as u64) as usize])
    }

    fn signal(&mut self, cluster: &mut Cluster, fault: &Planned, now: Duration) -> Result<Option<String>> {
        let Some(at) = Self::victim(cluster, fault.draws[0], now) else { return Ok(None) };
        let node = &mut cluster.nodes[at];
        let (signal, ends) = match fault.kind {
            Kind::Kill => (Signal::SIGKILL, true),
            Kind::Terminate => (Signal::SIGTERM, true),
            _ => (Signal::SIGSTOP, false),
        };
        node.signal(signal, ends)?;
        node.busy_until = now + fault.lasts;
        if !ends {
            self.undo.push((now + fault.lasts, Undo::Continue(at)));
        }
        Ok(Some(format!("{} {signal}", node.name)))
    }

    /// Leaves an order in the worker's fault file.
    fn arm(&mut self, cluster: &mut Cluster, fault: &Planned, now: Duration) -> Result<()> {
        let Some(worker) = Self::victim(cluster, fault.draws[0], now) else {
            self.skipped.push(fault.kind.name().to_owned());
            return Ok(());
        };
        let phase = PHASES[(fault.draws[1] % PHASES.len() as u64) as usize];
        let word = if fault.kind == Kind::PhaseKill { "kill" } else { "stop" };
        let name = cluster.nodes[worker].name.clone();
        let file = cluster.fault_file(&name);
        // Whole or not at all: the worker may look at any time.
        let begun = file.with_extension("new");
        fs::write(&begun, format!("{phase} {word}"))?;
        fs::rename(&begun, &file)?;
        cluster.nodes[worker].busy_until = now + PHASE_LIMIT;
        let detail = format!("{name} {word} {phase}");
        let injected = Injected { kind: fault.kind, detail, at: now, until: now };
        self.armed.push(Armed { worker, file, injected, lasts: fault.lasts, since: now });
        Ok(())
    }

    fn cut(&mut self, cluster: &mut Cluster, fault: &Planned, now: Duration) -> Result<Option<String>> {
        let Some(at) = Self::victim(cluster, fault.draws[0], now) else { return Ok(None) };
        if cluster.nodes[at].host.is_none() {
            return Ok(Some(self.bar(&mut cluster.nodes[at], at, fault, now)));
        }
        let others: Vec<Ipv4Addr> =
            cluster.addresses(Role::Worker).into_iter().filter(|peer| *peer != cluster.nodes[at].address).collect();
        let coordinators = cluster.addresses(Role::Coordinator);
        let (peers, words) = match (fault.kind, fault.draws[1] % 4) {
            (Kind::Isolate, _) => ([others, coordinators, vec![self.gateway]].concat(), "everybody".to_owned()),
            (_, 0) => (coordinators, "the coordinators".to_owned()),
            (_, 1) => (vec![self.gateway], "the store".to_owned()),
            _ => {
                let peer = others[(fault.draws[2] % others.len() as u64) as usize];
                (vec![peer], Self::name_of(cluster, peer))
            }
        };
        let node = &mut cluster.nodes[at];
        node.busy_until = now + fault.lasts;
        node.host.as_mut().context("no namespace")?.cut(&peers)?;
        self.undo.push((now + fault.lasts, Undo::Heal(at, peers)));
        Ok(Some(format!("{} | {words}", cluster.nodes[at].name)))
    }

    /// Without namespaces: a worker's ways to the coordinators or to the store are barred or late; its peers are out of reach.
    fn bar(&mut self, node: &mut Node, at: usize, fault: &Planned, now: Duration) -> String {
        let late = Duration::from_millis(10 + fault.draws[2] % 30);
        let (mood, words) = match fault.kind {
            Kind::Delay => (Mood::Late(late), format!("{} ms to", late.as_millis())),
            _ if fault.draws[2].is_multiple_of(2) => (Mood::Broken, "broken off from".to_owned()),
            _ => (Mood::Silent, "cut off from".to_owned()),
        };
        let has_store = node.ways.iter().any(|way| way.to_store);
        let (store, both) = (has_store && fault.draws[1].is_multiple_of(2), fault.kind == Kind::Isolate);
        node.ways.iter().filter(|way| both || way.to_store == store).for_each(|way| way.proxy.set(mood));
        node.busy_until = now + fault.lasts;
        self.undo.push((now + fault.lasts, Undo::Unbar(at)));
        let whom = match (both, store) {
            (true, _) => "coordinators and store",
            (_, true) => "the store",
            _ => "the coordinators",
        };
        format!("{} {words} {whom} (by proxy)", node.name)
    }

    fn name_of(cluster: &Cluster, address: Ipv4Addr) -> String {
        cluster
            .nodes
            .iter()
            .find(|node| node.address == address)
            .map_or_else(|| address.to_string(), |n| n.name.clone())
    }

    /// Loss, delay or a slow link between a worker and one peer, the coordinators' leader or the store.
    fn spoil(&mut self, cluster: &mut Cluster, fault: &Planned, now: Duration) -> Result<Option<String>> {
        let Some(at) = Self::victim(cluster, fault.draws[0], now) else { return Ok(None) };
        if cluster.nodes[at].host.is_none() {
            return Ok(Some(self.bar(&mut cluster.nodes[at], at, fault, now)));
        }
        let own = cluster.nodes[at].address;
        let mut peers: Vec<Ipv4Addr> =
            cluster.addresses(Role::Worker).into_iter().filter(|peer| *peer != own).collect();
        peers.push(self.gateway);
        let peer = peers[(fault.draws[1] % peers.len() as u64) as usize];
        let name = Self::name_of(cluster, peer);
        let node = &mut cluster.nodes[at];
        node.busy_until = now + fault.lasts;
        let host = node.host.as_mut().context("no namespace")?;
        let (undo, words) = match fault.kind {
            Kind::Loss => {
                let percent = 5 + (fault.draws[2] % 15) as u32;
                host.lose(peer, percent)?;
                (Undo::Heal(at, vec![peer]), format!("{percent} % of the packets to {name}"))
            }
            Kind::Delay => {
                let by = Duration::from_millis(10 + fault.draws[2] % 30);
                (Undo::Hurry(at, host.delay(peer, by)?), format!("{} ms to {name}", by.as_millis()))
            }
            _ => {
                let megabits = 8 + (fault.draws[2] % 24) as u32;
                host.slow(megabits * 1000)?;
                (Undo::Fast(at), format!("{megabits} Mbit/s"))
            }
        };
        self.undo.push((now + fault.lasts, undo));
        Ok(Some(format!("{} {words}", cluster.nodes[at].name)))
    }

    fn leader(
        &mut self,
        cluster: &mut Cluster,
        fault: &Planned,
        now: Duration,
        leader: usize,
    ) -> Result<Option<String>> {
        let coordinators = cluster.of(Role::Coordinator);
        let Some(at) = coordinators.get(leader).copied() else { return Ok(None) };
        if !cluster.nodes[at].is_up(now, SETTLED) || cluster.nodes[at].busy_until > now {
            return Ok(None);
        }
        let members = cluster.addresses(Role::Etcd);
        let node = &mut cluster.nodes[at];
        let words = match fault.kind {
            Kind::LeaderKill => {
                node.signal(Signal::SIGKILL, true)?;
                "killed"
            }
            Kind::LeaderPause => {
                node.signal(Signal::SIGSTOP, false)?;
                self.undo.push((now + fault.lasts, Undo::Continue(at)));
                "stopped"
            }
            _ => {
                // From etcd where there is one: it must give way. Else from half of the workers.
                let workers = cluster.addresses(Role::Worker);
                let half = || workers.iter().step_by(2).copied().collect();
                let (peers, words): (Vec<Ipv4Addr>, _) = if members.is_empty() {
                    (half(), "cut off from half of the workers")
                } else {
                    (members, "cut off from etcd")
                };
                cluster.nodes[at].host.as_mut().context("no namespace")?.cut(&peers)?;
                self.undo.push((now + fault.lasts, Undo::Heal(at, peers)));
                words
            }
        };
        cluster.nodes[at].busy_until = now + fault.lasts;
        Ok(Some(format!("{} {words}", cluster.nodes[at].name)))
    }

    /// One member at a time: two of three must live.
    fn etcd(cluster: &mut Cluster, fault: &Planned, now: Duration) -> Result<Option<String>> {
        let members = cluster.of(Role::Etcd);
        let all_well =
            members.iter().all(|at| cluster.nodes[*at].is_up(now, SETTLED) && cluster.nodes[*at].busy_until <= now);
        if members.is_empty() || !all_well {
            return Ok(None);
        }
        let at = members[(fault.draws[0] % members.len() as u64) as usize];
        cluster.nodes[at].signal(Signal::SIGKILL, true)?;
        Ok(Some(format!("{} SIGKILL", cluster.nodes[at].name)))
    }

    fn store(&mut self, fault: &Planned, now: Duration) -> Option<String> {
        let faults = self.store.as_ref()?;
        let (trouble, words) = match fault.kind {
            Kind::S3Errors => {
                let percent = 30 + fault.draws[0] % 71;
                (Trouble::Errors { percent, status: 503 }, format!("{percent} % of the requests get 503"))
            }
            Kind::S3Slow => {
                let by = Duration::from_millis(200 + fault.draws[0] % 1800);
                (Trouble::Slow(by), format!("each request waits {} ms", by.as_millis()))
            }
            _ => {
                let after = 2_000 + fault.draws[0] % 60_000;
                (Trouble::Cut { after }, format!("connections break after {after} bytes"))
            }
        };
        faults.set(trouble);
        self.undo.retain(|(_, undo)| !matches!(undo, Undo::Store));
        self.undo.push((now + fault.lasts, Undo::Store));
        Some(words)
    }

    fn fill(&mut self, cluster: &mut Cluster, fault: &Planned, now: Duration) -> Result<Option<String>> {
        if cluster.disks.is_empty() || self.undo.iter().any(|(_, undo)| matches!(undo, Undo::Disk(_))) {
            return Ok(None);
        }
        let at = (fault.draws[0] % cluster.disks.len() as u64) as usize;
        let name = cluster.disks[at].name.clone();
        cluster.disks[at].fill()?;
        self.undo.push((now + fault.lasts, Undo::Disk(at)));
        // A program may end because of it; that is no finding.
        if let Some(node) = cluster.nodes.iter_mut().find(|node| node.name == name) {
            node.expect_end();
            node.busy_until = now + fault.lasts + Duration::from_secs(3);
        }
        Ok(Some(format!("the disk of {name}")))
    }

    /// Takes back what is over, and notes armed faults that went off.
    pub(crate) fn tend(&mut self, cluster: &mut Cluster, now: Duration) -> Result<()> {
        self.tend_armed(cluster, now)?;
        let (due, rest) = std::mem::take(&mut self.undo).into_iter().partition(|(until, _)| *until <= now);
        self.undo = rest;
        let due: Vec<(Duration, Undo)> = due;
        for (_, undo) in due {
            self.take_back(cluster, undo)?;
        }
        Ok(())
    }

    fn tend_armed(&mut self, cluster: &mut Cluster, now: Duration) -> Result<()> {
        for mut armed in std::mem::take(&mut self.armed) {
            let node = &mut cluster.nodes[armed.worker];
            if !armed.file.exists() {
                (armed.injected.at, armed.injected.until) = (now, now + armed.lasts);
                node.busy_until = now + armed.lasts;
                if armed.injected.kind == Kind::PhasePause {
                    self.undo.push((now + armed.lasts, Undo::Continue(armed.worker)));
                } else {
                    node.expect_end();
                }
                self.done.push(armed.injected);
            } else if now > armed.since + PHASE_LIMIT {
                let _ = fs::remove_file(&armed.file);
                self.skipped.push(format!("{} ({})", armed.injected.kind, armed.injected.detail));
            } else {
                self.armed.push(armed);
            }
        }
        Ok(())
    }

    fn take_back(&mut self, cluster: &mut Cluster, undo: Undo) -> Result<()> {
        match undo {
            // It may have ended meanwhile: stopped processes can be killed.
            Undo::Continue(at) => {
                let _ = cluster.nodes[at].signal(Signal::SIGCONT, false);
            }
            Undo::Heal(at, peers) => cluster.nodes[at].host.as_mut().context("no namespace")?.heal(&peers)?,
            Undo::Hurry(at, delay) => cluster.nodes[at].host.as_ref().context("no namespace")?.hurry(delay)?,
            Undo::Fast(at) => cluster.nodes[at].host.as_ref().context("no namespace")?.fast()?,
            Undo::Unbar(at) => cluster.nodes[at].ways.iter().for_each(|way| way.proxy.set(Mood::Open)),
            Undo::Store => {
                if let Some(store) = &self.store {
                    store.set(Trouble::None);
                }
            }
            Undo::Disk(at) => cluster.disks[at].free()?,
        }
        Ok(())
    }

    /// Takes everything back, whatever its time.
    pub(crate) fn end(&mut self, cluster: &mut Cluster) -> Result<()> {
        for armed in std::mem::take(&mut self.armed) {
            let _ = fs::remove_file(&armed.file);
        }
        for (_, undo) in std::mem::take(&mut self.undo) {
            self.take_back(cluster, undo)?;
        }
        Ok(())
    }
}
