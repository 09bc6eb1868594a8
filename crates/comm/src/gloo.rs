//! Groups over TCP: c10d's Gloo backend, with an abort that works.

use std::net::SocketAddr;
use std::sync::Arc;

use pleach_base::{Error, Result, code};
use tch::{Device, Kind, Tensor};

use crate::ffi::{self, Backend, Failure, Store};
use crate::group::{Group, Link, Transport};
use crate::sockets::{self, Peer, Peers};
use crate::{Bind, Call, Collective, GroupOptions};

/// Joins a group of CPU ranks. Returns when every rank has joined.
///
/// # Errors
/// `COMM_SETUP` when the store or a rank does not answer within `setup_timeout`, or the bind address cannot be used.
pub fn gloo(options: &GroupOptions) -> Result<Box<dyn Collective>> {
    let store = connect(options)?;
    let (hostname, interface) = bind(options)?;
    let (transport, mine) = listen(&hostname, &interface)?;
    let setup = |failure: Failure| setup_error(options, &failure);
    let (rank, world) = (options.rank, options.world);

    store.set(&format!("listen/{rank}"), &mine.to_string()).map_err(setup)?;
    let backend =
        Backend::gloo(&store, &transport, (rank, world), options.setup_timeout, options.timeout).map_err(setup)?;
    let listeners = (0..world)
        .map(|rank| {
            let text = store.get(&format!("listen/{rank}")).map_err(setup)?;
            text.parse().map_err(|_| code::COMM_SETUP.error(format!("rank {rank} listens on {text:?}")))
        })
        .collect::<Result<Vec<SocketAddr>>>()?;
    let mut peers = sockets::connected(mine, &listeners);
    introduce(&backend, options, &listeners, &mut peers)?;
    tracing::debug!(rank, world, prefix = options.prefix, %mine, "group formed");
    let peers = Arc::new(Peers::new(peers));
    Ok(Box::new(Group::new(Gloo { rank, world, peers, backend }, options.checked)))
}

/// Connects to the store under the prefix of the group, for the first time.
pub(crate) fn connect(options: &GroupOptions) -> Result<Store> {
    let GroupOptions { rank, world, prefix, store, setup_timeout, .. } = options;
    if rank >= world || prefix.is_empty() {
        return Err(code::COMM_SETUP.error(format!("rank {rank} of {world} with prefix {prefix:?} is not possible")));
    }
    let unreachable = |why: String| {
        code::COMM_SETUP
            .error(format!("rendezvous store {}:{}: {why}", store.host, store.port))
            .hint("the worker that hosts the store must run and be reachable from here")
    };
    sockets::wait_for_listener(&store.host, store.port, *setup_timeout)
        .map_err(|error| unreachable(error.to_string()))?;
    let connected = Store::connect(&store.host, store.port, prefix, *setup_timeout)
        .map_err(|failure| unreachable(failure.message))?;
    // What an earlier group left under this prefix would lead to ranks that are gone.
    match connected.count(&format!("joined/{rank}")) {
        Ok(1) => Ok(connected),
        Ok(_) => Err(code::COMM_SETUP
            .error(format!("rank {rank} joined a group {prefix} before"))
            .hint("a group is formed once; a new attempt takes a new prefix")),
        Err(failure) => Err(unreachable(failure.message)),
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
    backend
        .run(Call::AllGather, &Tensor::from_slice(&mine), &all, || {})
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
    let GroupOptions { rank, world, prefix, .. } = options;
    code::COMM_SETUP
        .error(format!("rank {rank} of {world} cannot join group {prefix}: {}", failure.message))
        .hint("every rank must join with the same prefix and world within the setup timeout")
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

    fn run(&self, call: Call, input: &Tensor, output: &Tensor, watch: &mut dyn FnMut()) -> Result<(), Failure> {
        self.backend.run(call, input, output, watch)
    }

    fn link(&self) -> Arc<dyn Link> {
        Arc::<Peers>::clone(&self.peers)
    }
}
