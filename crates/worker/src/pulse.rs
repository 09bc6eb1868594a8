//! The pulse port: where peers ask whether this process still runs. A plain thread answers, so that a process which is
//! stopped, or a machine that is cut off, is seen not to; the kernel alone would still take connections.
//!
//! Whoever connects gets the incarnation of the worker, 8 bytes, and the end of the stream. It sends nothing, so no
//! caller can keep the thread waiting; and a port that another process took over does not pass for a worker.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream, ToSocketAddrs as _};
use std::time::Duration;

use pleach_base::{Result, ResultExt as _, code};
use pleach_proto::v1::Member;

/// How long an answer may take.
pub(crate) const ANSWER: Duration = Duration::from_millis(500);
/// After a failed accept (no file numbers left), so long is waited.
const PAUSE: Duration = Duration::from_millis(50);

/// Answers on a free port of `host` until the process ends. Returns the port.
///
/// # Errors
/// `COMM_SETUP` when `host` is not an address of this machine.
pub(crate) fn serve(host: &str, incarnation: u64) -> Result<u16> {
    let failed = || format!("--listen-host: cannot answer peers on {host}");
    let listener = TcpListener::bind((host, 0)).or_code(code::COMM_SETUP, failed)?;
    let port = listener.local_addr().or_code(code::COMM_SETUP, failed)?.port();
    std::thread::Builder::new()
        .name("pulse".to_owned())
        .spawn(move || answer(&listener, incarnation))
        .or_code(code::IO, || "cannot start the thread that answers peers".to_owned())?;
    Ok(port)
}

fn answer(listener: &TcpListener, incarnation: u64) {
    loop {
        match listener.accept() {
            // 8 bytes always fit; a caller that is gone already needs no answer.
            Ok((mut stream, _)) => drop(stream.write(&incarnation.to_le_bytes())),
            Err(_) => std::thread::sleep(PAUSE),
        }
    }
}

/// The ranks of `members`, `but` excepted, that do not answer. All are asked at the same time.
pub(crate) fn silent(members: &[Member], but: Option<u32>) -> Vec<u32> {
    let asked: Vec<&Member> = members.iter().filter(|member| Some(member.rank) != but).collect();
    let answers: Vec<bool> = std::thread::scope(|scope| {
        let asking: Vec<_> = asked.iter().map(|member| scope.spawn(|| answers(member))).collect();
        asking.into_iter().map(|asking| asking.join().unwrap_or(false)).collect()
    });
    asked.iter().zip(answers).filter(|(_, answers)| !answers).map(|(member, _)| member.rank).collect()
}

/// Whether this very incarnation answers in time. One that serves no pulse port cannot be asked, and counts as well.
fn answers(member: &Member) -> bool {
    let Some(port) = u16::try_from(member.pulse_port).ok().filter(|port| *port > 0) else { return true };
    let Ok(addresses) = (member.host.as_str(), port).to_socket_addrs() else { return false };
    addresses.into_iter().any(|address| ask(address).is_some_and(|found| found == member.incarnation))
}

fn ask(address: SocketAddr) -> Option<u64> {
    let mut stream = TcpStream::connect_timeout(&address, ANSWER).ok()?;
    stream.set_read_timeout(Some(ANSWER)).ok()?;
    let mut answer = [0; 8];
    stream.read_exact(&mut answer).ok()?;
    Some(u64::from_le_bytes(answer))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(rank: u32, port: u16, incarnation: u64) -> Member {
        let (host, pulse_port) = ("127.0.0.1".to_owned(), u32::from(port));
        Member { rank, host, pulse_port, incarnation, ..Member::default() }
    }

    #[test]
    fn only_the_incarnation_that_is_meant_answers() {
        let port = serve("127.0.0.1", 7).unwrap();
        // It takes connections and says nothing, as a stopped process does.
        let mute = TcpListener::bind("127.0.0.1:0").unwrap();
        let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let mute_port = mute.local_addr().unwrap().port();
        let members = [
            member(0, port, 7),
            member(1, port, 8),
            member(2, mute_port, 7),
            member(3, closed, 7),
            member(4, 0, 7),
            member(5, closed, 7),
        ];
        assert_eq!(silent(&members, Some(5)), [1, 2, 3]);
        assert_eq!(silent(&members[..1], None), Vec::<u32>::new());
    }

    #[test]
    fn a_caller_that_stays_does_not_keep_others_from_being_answered() {
        let port = serve("127.0.0.1", 7).unwrap();
        let _idle: Vec<_> = (0..50).map(|_| TcpStream::connect(("127.0.0.1", port)).unwrap()).collect();
        assert_eq!(silent(&[member(0, port, 7)], None), Vec::<u32>::new());
    }
}
