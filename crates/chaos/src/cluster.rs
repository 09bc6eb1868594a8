//! The cluster: coordinators, members of etcd, workers, each in a network namespace of its own where that is possible.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use pleach_base::rng::CounterRng;
use pleach_testkit::net::{Host, Net};
use pleach_testkit::process::{binary, free_port};
use pleach_testkit::proxy::Proxy;
use tokio::runtime::Handle;

use crate::disk::Disk;
use crate::node::{Node, Program, Role, Way};

/// Everyone's word to the coordinator; addresses that others reach demand one.
pub(crate) const TOKEN: &str = "chaos-run";
/// A lease of workers, and of leaders in etcd: the shortest that etcd grants.
const LEASE_MS: &str = "2000";

/// What a cluster is made of.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) folder: PathBuf,
    pub(crate) workers: u32,
    pub(crate) etcd: bool,
    /// Small disks for what keeps state, so that they can be full.
    pub(crate) disks: bool,
    /// The environment of whoever uses the store.
    pub(crate) env: Vec<(String, String)>,
    /// Whether proxies stand between workers and everybody else where there are no namespaces.
    pub(crate) proxies: bool,
    /// Where proxies run.
    pub(crate) runtime: Handle,
}

pub(crate) struct Cluster {
    // Before the networks and disks that they use: fields are dropped in this order.
    pub(crate) nodes: Vec<Node>,
    pub(crate) disks: Vec<Disk>,
    /// `http://ADDRESS:PORT` of every coordinator.
    pub(crate) endpoints: Vec<String>,
    /// Findings: programs that ended by themselves.
    pub(crate) told: Vec<String>,
    folder: PathBuf,
}

impl Cluster {
    /// Makes all nodes, and starts them.
    pub(crate) fn start(plan: &Plan, net: Option<&mut Net>, now: Duration) -> Result<Self> {
        let mut made = Self {
            nodes: Vec::new(),
            disks: Vec::new(),
            endpoints: Vec::new(),
            told: Vec::new(),
            folder: plan.folder.clone(),
        };
        made.build(plan, net)?;
        for node in &mut made.nodes {
            node.start(now)?;
        }
        Ok(made)
    }

    fn build(&mut self, plan: &Plan, mut net: Option<&mut Net>) -> Result<()> {
        let etcd = if plan.etcd { self.add_etcd(plan, &mut net)? } else { Vec::new() };
        for number in 0..if plan.etcd { 3 } else { 1 } {
            self.add_coordinator(plan, &mut net, number, &etcd)?;
        }
        for number in 0..plan.workers {
            self.add_worker(plan, &mut net, number)?;
        }
        std::fs::create_dir_all(self.feed_folder())?;
        Ok(())
    }

    fn add_worker(&mut self, plan: &Plan, net: &mut Option<&mut Net>, number: u32) -> Result<()> {
        let host = net.as_deref_mut().map(Net::host).transpose()?;
        let address = host.as_ref().map_or(Ipv4Addr::LOCALHOST, Host::address);
        let (mut env, mut ways, mut coordinators) = (plan.env.clone(), Vec::new(), self.endpoints.clone());
        if host.is_none() && plan.proxies {
            for endpoint in &mut coordinators {
                let way = self.way(plan, endpoint, false)?;
                *endpoint = format!("http://{}", way.proxy.address());
                ways.push(way);
            }
            if let Some((_, endpoint)) = env.iter_mut().find(|(name, _)| name == "AWS_ENDPOINT_URL") {
                let way = self.way(plan, endpoint, true)?;
                *endpoint = format!("http://{}", way.proxy.address());
                ways.push(way);
            }
        }
        let (name, at, coordinators) = (format!("w{number}"), address.to_string(), coordinators.join(","));
        let words = ["--coordinator", &coordinators, "--name", &name, "--listen-host", &at, "--comm-bind", &at];
        let mut args: Vec<String> = words.map(str::to_owned).to_vec();
        args.extend(["--threads", "1", "--token", TOKEN].map(str::to_owned));
        args.extend(["--feed-log".to_owned(), self.feed_folder().display().to_string()]);
        args.extend(["--fault-file".to_owned(), self.fault_file(&name).display().to_string()]);
        let program = Program { path: binary("pleach-worker")?, args, env, nice: 0 };
        let mut node = Node::new(&name, Role::Worker, host, program, &plan.folder);
        node.ways = ways;
        self.nodes.push(node);
        Ok(())
    }

    fn way(&self, plan: &Plan, endpoint: &str, to_store: bool) -> Result<Way> {
        let target = endpoint.trim_start_matches("http://").parse().with_context(|| endpoint.to_owned())?;
        Ok(Way { to_store, proxy: plan.runtime.block_on(Proxy::start(target))? })
    }

    fn add_coordinator(&mut self, plan: &Plan, net: &mut Option<&mut Net>, number: u32, etcd: &[String]) -> Result<()> {
        let host = net.as_deref_mut().map(Net::host).transpose()?;
        let address = host.as_ref().map_or(Ipv4Addr::LOCALHOST, Host::address);
        let port = if host.is_some() { 7700 } else { free_port()? };
        let state = if etcd.is_empty() {
            self.state_folder(plan, &format!("c{number}"), 48)?.join("coordinator.redb").display().to_string()
        } else {
            format!("etcd://{}", etcd.join(","))
        };
        let listen = format!("{address}:{port}");
        let words = ["coordinator", "--listen", &listen, "--http", "off", "--state", &state, "--token", TOKEN];
        let mut args: Vec<String> = words.map(str::to_owned).to_vec();
        args.extend(["--lease-ttl-ms", LEASE_MS].map(str::to_owned));
        let program = Program { path: binary("pleach")?, args, env: plan.env.clone(), nice: -10 };
        self.endpoints.push(format!("http://{listen}"));
        self.nodes.push(Node::new(&format!("c{number}"), Role::Coordinator, host, program, &plan.folder));
        Ok(())
    }

    /// Three members; returns their client addresses.
    fn add_etcd(&mut self, plan: &Plan, net: &mut Option<&mut Net>) -> Result<Vec<String>> {
        let mut members = Vec::new();
        for number in 0..3 {
            let host = net.as_deref_mut().map(Net::host).transpose()?;
            let address = host.as_ref().map_or(Ipv4Addr::LOCALHOST, Host::address);
            let ports = if host.is_some() { (2379, 2380) } else { (free_port()?, free_port()?) };
            members.push((format!("e{number}"), host, address, ports));
        }
        let peers = members.iter().map(|(name, _, at, (_, peer))| format!("{name}=http://{at}:{peer}"));
        let peers = peers.collect::<Vec<_>>().join(",");
        let clients = members.iter().map(|(_, _, at, (client, _))| format!("{at}:{client}")).collect();
        for (name, host, at, (client, peer)) in members {
            let data = self.state_folder(plan, &name, 320)?.join("data");
            let (client, peer) = (format!("http://{at}:{client}"), format!("http://{at}:{peer}"));
            let words = [
                ("--name", name.as_str()),
                ("--data-dir", &data.display().to_string()),
                ("--listen-client-urls", &client),
                ("--advertise-client-urls", &client),
                ("--listen-peer-urls", &peer),
                ("--initial-advertise-peer-urls", &peer),
                ("--initial-cluster", &peers),
                ("--initial-cluster-state", "new"),
                ("--log-level", "warn"),
            ]
            .map(|(flag, value)| format!("{flag}={value}"));
            let program = Program { path: "etcd".into(), args: words.to_vec(), env: Vec::new(), nice: -10 };
            self.nodes.push(Node::new(&name, Role::Etcd, host, program, &plan.folder));
        }
        Ok(clients)
    }

    /// Where a node keeps its state: on a disk of its own, of so many megabytes, where that is possible.
    fn state_folder(&mut self, plan: &Plan, name: &str, megabytes: u32) -> Result<PathBuf> {
        let folder = plan.folder.join("state").join(name);
        std::fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
        if plan.disks {
            self.disks.push(Disk::mount(name, &folder, megabytes)?);
        }
        Ok(folder)
    }

    pub(crate) fn feed_folder(&self) -> PathBuf {
        self.folder.join("feed")
    }

    pub(crate) fn fault_file(&self, worker: &str) -> PathBuf {
        self.folder.join(format!("{worker}.fault"))
    }

    /// Looks after all nodes.
    pub(crate) fn supervise(&mut self, now: Duration, rng: &mut CounterRng) -> Result<()> {
        for node in &mut self.nodes {
            let pause = Duration::from_secs_f32(rng.uniform_in(0.5, 2.0));
            if let Some(told) = node.supervise(now, pause)? {
                self.told.push(format!("{:.1} s: {told}", now.as_secs_f64()));
            }
        }
        Ok(())
    }

    /// Numbers of the nodes of a role.
    pub(crate) fn of(&self, role: Role) -> Vec<usize> {
        (0..self.nodes.len()).filter(|at| self.nodes[*at].role == role).collect()
    }

    pub(crate) fn addresses(&self, role: Role) -> Vec<Ipv4Addr> {
        self.of(role).into_iter().map(|at| self.nodes[at].address).collect()
    }

    /// The folder of logs.
    pub(crate) fn logs(&self) -> &Path {
        &self.folder
    }
}
