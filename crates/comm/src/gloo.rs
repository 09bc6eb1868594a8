//! Groups over TCP: c10d's Gloo backend, with an abort that works.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use pleach_base::{Error, Result, code};
use tch::{Device, Kind, Tensor};

use crate::ffi::{self, Backend, Failure, Store};
use crate::forming;
use crate::group::{Group, Link, Transport};
use crate::sockets::{self, Peer, Peers};
use crate::{Bind, Call, Collective, GroupOptions};

/// How often a rank looks who has come; growing, since those who come at all come soon.
const FIRST_LOOK: Duration = Duration::from_millis(1);
const LATER_LOOK: Duration = Duration::from_millis(20);

/// Joins a group of CPU ranks. Returns when every rank has joined.
///
/// # Errors
/// `COMM_SETUP` when the store or a rank does not answer in time ([`crate::Forming::missing`] says which), or the bind
/// address cannot be used; `COMM_ABORTED` when [`GroupOptions::forming`] was aborted.
pub fn gloo(options: &GroupOptions) -> Result<Box<dyn Collective>> {
    forming::run(options, form)
}

fn form(options: &GroupOptions) -> Result<Box<dyn Collective>> {
    let store = connect(options)?;
    let (hostname, interface) = bind(options)?;
    let (transport, mine) = listen(&hostname, &interface)?;
    let setup = |failure: Failure| setup_error(options, &failure);
    let (rank, world) = (options.rank, options.world);

    store.set(&format!("listen/{rank}"), &mine.to_string()).map_err(setup)?;
    arrive(&store, options)?;
    let listeners = (0..world)
        .map(|rank| {
            let text = store.get(&format!("listen/{rank}")).map_err(setup)?;
            text.parse().map_err(|_| code::COMM_SETUP.error(format!("rank {rank} listens on {text:?}")))
        })
        .collect::<Result<Vec<SocketAddr>>>()?;
    options.forming.enter("connecting the ranks", options.setup_timeout);
    let mut backend = Backend::gloo(&store, &transport, (rank, world), options.setup_timeout).map_err(setup)?;
    let mut peers = sockets::connected(mine, &listeners);
    introduce(&backend, options, &listeners, &mut peers)?;
    backend.limit(options.timeout).map_err(setup)?;
    tracing::debug!(rank, world, prefix = options.prefix, %mine, "group formed");
    let peers = Arc::new(Peers::new(peers));
    Ok(Box::new(Group::new(Gloo { rank, world, peers, backend }, options.checked)))
}

/// Connects to the store under the prefix of the group, for the first time.
pub(crate) fn connect(options: &GroupOptions) -> Result<Store> {
    let GroupOptions { rank, world, prefix, store, setup_timeout, forming, .. } = options;
    if rank >= world || prefix.is_empty() {
        return Err(code::COMM_SETUP.error(format!("rank {rank} of {world} with prefix {prefix:?} is not possible")));
    }
    // Rank 0 serves the store: if it does not answer, that rank is what is missing.
    let unreachable = |why: String| {
        forming.note_missing(if *rank == 0 { Vec::new() } else { vec![0] });
        code::COMM_SETUP
            .error(format!("rendezvous store {}:{}: {why}", store.host, store.port))
            .hint("the worker that hosts the store must run and be reachable from here")
    };
    forming.enter("reaching the rendezvous store", *setup_timeout);
    if *rank > 0 {
        forming.note_missing(vec![0]);
    }
    sockets::wait_for_listener(&store.host, store.port, *setup_timeout, || forming.check(options).is_ok())
        .map_err(|error| unreachable(error.to_string()))?;
    let connected = Store::connect(&store.host, store.port, prefix, *setup_timeout)
        .map_err(|failure| unreachable(failure.message))?;
    // What an earlier group left under this prefix would lead to ranks that are gone.
    let count = connected.count(&format!("joined/{rank}")).map_err(|failure| unreachable(failure.message))?;
    forming.note_missing(Vec::new());
    if count == 1 {
        return Ok(connected);
    }
    Err(code::COMM_SETUP
        .error(format!("rank {rank} joined a group {prefix} before"))
        .hint("a group is formed once; a new attempt takes a new prefix"))
}

/// Waits until every rank is at the store. Only then is c10d entered, whose own waits cannot be ended.
pub(crate) fn arrive(store: &Store, options: &GroupOptions) -> Result<()> {
    let forming = &options.forming;
    forming.enter("waiting for all ranks", options.arrival_timeout);
    let mut missing: Vec<usize> = (0..options.world).filter(|rank| *rank != options.rank).collect();
    let mut pause = FIRST_LOOK;
    loop {
        let mut still = Vec::new();
        for rank in missing {
            if !store.has(&format!("listen/{rank}")).map_err(|failure| setup_error(options, &failure))? {
                still.push(rank);
            }
        }
        missing = still;
        forming.note_missing(missing.clone());
        if missing.is_empty() {
            return Ok(());
        }
        forming.check(options)?;
        if forming.left().is_zero() {
            return Err(forming.late(options));
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(LATER_LOOK);
    }
}

/// What this rank listens on: an address, or else the name of an interface.
fn bind(options: &GroupOptions) -> Result<(String, String)> {
    match &options.bind {
        Some(Bind::Address(address)) => Ok((address.to_string(), String::new())),
        Some(Bind::Interface(name)) => Ok((String::new(), name.clone())),
        None => {
            let store = &options.store;
            let address = sockets::local_address_towards(&store.host, store.port).map_err(|error| {
                code::COMM_SETUP.error(format!("no route to the rendezvous store {}", store.host)).caused_by(error)
            })?;
            Ok((address.to_string(), String::new()))
        }
    }
}

/// Opens Gloo's listener and finds out its address; Gloo does not tell.
fn listen(hostname: &str, interface: &str) -> Result<(ffi::Transport, SocketAddr)> {
    let place = if hostname.is_empty() { interface } else { hostname };
    for _ in 0..8 {
        let opened = sockets::listening(|| ffi::Transport::open(hostname, interface)).map_err(|failure| {
            code::COMM_SETUP
                .error(format!("cannot listen on {place}: {}", failure.message))
                .hint("set the bind address or the interface to one of this machine")
        })?;
        if let (transport, Some(address)) = opened {
            return Ok((transport, address));
        }
    }
    Err(code::COMM_SETUP.error(format!("cannot tell the listener on {place} from others that open all the time")))
}

/// Every rank tells every other from which port it connected, so that each connection has a name.
fn introduce(backend: &Backend, options: &GroupOptions, listeners: &[SocketAddr], peers: &mut [Peer]) -> Result<()> {
    let (me, world) = (options.rank, options.world);
    if peers.len() != world - 1 {
        let found = peers.len();
        return Err(code::COMM_SETUP.error(format!("{found} connections found for {world} ranks")));
    }
    let mut mine = vec![0i64; world];
    for peer in peers.iter() {
        if let Some(rank) = peer.rank {
            mine[rank] = i64::from(peer.local.port());
        }
    }
    let size = i64::try_from(world).unwrap_or(i64::MAX);
    let all = Tensor::zeros([size, size], (Kind::Int64, Device::Cpu)); // [rank that connected, rank it connected to]
    let unwanted = || options.forming.check(options).is_err() || options.forming.left().is_zero();
    let watch = || {
        let unwanted = unwanted();
        peers.iter().filter(|_| unwanted).for_each(Peer::shut);
        unwanted
    };
    backend
        .run(Call::AllGather, &Tensor::from_slice(&mine), &all, watch)
        .map_err(|failure| setup_error(options, &failure))?;
    for peer in peers.iter_mut().filter(|peer| peer.rank.is_none()) {
        peer.rank = (0..world).find(|rank| {
            let port = all.int64_value(&[i64::try_from(*rank).unwrap_or(0), i64::try_from(me).unwrap_or(0)]);
            port == i64::from(peer.remote.port()) && listeners[*rank].ip() == peer.remote.ip()
        });
    }
    match peers.iter().find(|peer| peer.rank.is_none()) {
        Some(peer) => Err(code::COMM_SETUP.error(format!("no rank owns the connection from {}", peer.remote))),
        None => Ok(()),
    }
}

pub(crate) fn setup_error(options: &GroupOptions, failure: &Failure) -> Error {
    forming::refused(options, &failure.message)
}

struct Gloo {
    rank: usize,
    world: usize,
    peers: Arc<Peers>,
    backend: Backend,
}

impl Drop for Gloo {
    fn drop(&mut self) {
        self.peers.release();
    }
}

impl Transport for Gloo {
    fn rank(&self) -> usize {
        self.rank
    }

    fn world(&self) -> usize {
        self.world
    }

    fn device(&self) -> Device {
        Device::Cpu
    }

    fn run(&self, call: Call, input: &Tensor, output: &Tensor, watch: &mut dyn FnMut() -> bool) -> Result<(), Failure> {
        self.backend.run(call, input, output, watch)
    }

    fn link(&self) -> Arc<dyn Link> {
        Arc::<Peers>::clone(&self.peers)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{RendezvousServer, StoreAddr};

    #[test]
    fn a_rank_that_arrives_and_then_does_nothing_ends_the_attempt_in_time() {
        let server = RendezvousServer::start("127.0.0.1", 0).unwrap();
        let options = |rank| {
            let mut options = GroupOptions::new(rank, 2, "g1", StoreAddr::new("127.0.0.1", server.port()));
            options.setup_timeout = Duration::from_millis(700);
            options
        };
        // As a process that was stopped at this moment.
        let silent = connect(&options(1)).unwrap();
        silent.set("listen/1", "127.0.0.1:9").unwrap();
        let clock = pleach_base::SystemClock::shared();
        let Err(error) = gloo(&options(0)) else { panic!("was formed") };
        assert_eq!(error.code(), code::COMM_SETUP, "{error:?}");
        assert!(clock.elapsed() < Duration::from_secs(10), "took {:?}", clock.elapsed());
    }
}
