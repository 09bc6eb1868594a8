//! Two namespaces and every fault between them. Without root the tests say so and pass.

use std::io::Write as _;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use pleach_base::SystemClock;

use super::{Host, Net, available};
use crate::process::Process;

/// Connects from this process, which is on the bridge.
fn reach(host: &Host, port: u16) -> bool {
    let address = SocketAddr::from((host.address(), port));
    TcpStream::connect_timeout(&address, Duration::from_millis(600)).is_ok()
}

/// A host in which something listens: bash answers nothing, but its listener accepts.
fn network() -> Option<(Net, Host)> {
    if let Err(reason) = available() {
        let _ = writeln!(std::io::stderr(), "skipped: {reason:#}");
        return None;
    }
    let mut net = Net::new().unwrap();
    let host = net.host().unwrap();
    Some((net, host))
}

fn listener(host: &Host, port: u16) -> Process {
    let script = format!(
        "import socket,time\ns=socket.create_server(('{}',{port}))\nprint('up',flush=True)\nwhile True:\n c,_=s.accept();c.sendall(b'.');c.close()",
        host.address()
    );
    let mut command = host.command("python3");
    command.args(["-c", &script]);
    let process = Process::start("listener", command).unwrap();
    process.wait_for("up", Duration::from_secs(20)).unwrap();
    process
}

#[test]
fn a_cut_is_a_cut_until_it_is_healed() {
    let Some((net, mut host)) = network() else { return };
    let _listener = listener(&host, 4000);
    assert!(reach(&host, 4000));
    host.cut(&[net.gateway()]).unwrap();
    assert!(!reach(&host, 4000));
    host.heal(&[net.gateway()]).unwrap();
    assert!(reach(&host, 4000));
    host.lose(net.gateway(), 100).unwrap();
    assert!(!reach(&host, 4000), "all packets get lost");
    host.heal(&[net.gateway()]).unwrap();
    assert!(reach(&host, 4000));
    host.slow(1000).unwrap();
    host.fast().unwrap();
}

#[test]
fn a_delayed_path_takes_its_time_and_is_quick_again() {
    let Some((net, mut host)) = network() else { return };
    let _listener = listener(&host, 4001);
    let clock = SystemClock::shared();
    let timed = |host: &Host| {
        let before = clock.elapsed();
        assert!(reach(host, 4001));
        clock.elapsed().saturating_sub(before)
    };
    let by = Duration::from_millis(150);
    let delay = host.delay(net.gateway(), by).unwrap();
    assert!(timed(&host) >= by, "the answer to the handshake is held back");
    host.hurry(delay).unwrap();
    assert!(timed(&host) < by);
}

#[test]
fn namespaces_go_with_their_network() {
    let Some((net, host)) = network() else { return };
    assert!(host.exists());
    assert_eq!(net.gateway(), Ipv4Addr::new(10, net.subnet[0], net.subnet[1], 1));
    assert!(TcpListener::bind((net.gateway(), 0)).is_ok());
    drop(net);
    assert!(!host.exists());
}
