//! Forming a group while ranks die, stop or stay away, and many groups in one process.

use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use pleach_base::code;
use pleach_comm::{Abort as _, GroupOptions, ReduceOp, RendezvousServer, StoreAddr, gloo};
use tch::{Kind, Tensor};

use crate::ranks::Rank;

/// How many calls libtorch's flight recorder holds.
const RECORDER: &str = "TORCH_FR_BUFFER_SIZE";

fn options(rank: usize, world: usize, port: u16, group: u32) -> GroupOptions {
    GroupOptions::new(rank, world, format!("job/g{group}"), StoreAddr::new("127.0.0.1", port))
}

#[allow(clippy::disallowed_methods)]
fn now() -> Instant {
    Instant::now()
}

/// Files and threads of this process.
fn held() -> (usize, usize) {
    let count = |path| std::fs::read_dir(path).unwrap().count();
    (count("/proc/self/fd"), count("/proc/self/task"))
}

fn resident_kib() -> u64 {
    let text = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = text.lines().find(|line| line.starts_with("VmRSS")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// Both ranks of each of these groups of two, in this process and at the same time.
fn pairs(port: u16, groups: std::ops::Range<u32>) {
    let ranks: Vec<_> = groups
        .flat_map(|group| [(group, 0), (group, 1)])
        .map(|(group, rank)| {
            let mut options = options(rank, 2, port, group);
            options.setup_timeout = Duration::from_secs(20);
            std::thread::spawn(move || {
                let formed = gloo(&options).unwrap();
                let mut tensor = Tensor::ones([1 << 16], (Kind::Float, tch::Device::Cpu));
                formed.all_reduce(&mut tensor, ReduceOp::Sum).unwrap();
                formed.barrier().unwrap();
            })
        })
        .collect();
    ranks.into_iter().for_each(|rank| rank.join().unwrap());
}

/// Run alone in a process: others would open and close files meanwhile.
#[test]
#[ignore = "started by the test below in a process of its own"]
fn many_groups() {
    // With it on, groups that make their first call at the same moment crash the process, now and then.
    assert_eq!(std::env::var(RECORDER).as_deref(), Ok("0"), "libtorch's flight recorder is on");
    tch::set_num_threads(1);
    let server = RendezvousServer::start("127.0.0.1", 0).unwrap();
    pairs(server.port(), 0..4);
    let settled = |goal: (usize, usize)| {
        let begun = now();
        while (held().0 > goal.0 || held().1 > goal.1) && begun.elapsed() < Duration::from_secs(10) {
            std::thread::sleep(Duration::from_millis(20));
        }
        held()
    };
    std::thread::sleep(Duration::from_millis(500));
    let (before, memory) = (held(), resident_kib());
    (0..5).for_each(|turn| pairs(server.port(), 4 + 4 * turn..8 + 4 * turn));
    // An attempt in vain leaves nothing either.
    let mut alone = options(0, 2, server.port(), 99);
    alone.arrival_timeout = Duration::from_millis(50);
    (99..104).for_each(|group| {
        alone.prefix = format!("job/g{group}");
        alone.forming = Arc::default();
        assert!(gloo(&alone).is_err());
    });
    let after = settled(before);
    assert!(after.0 <= before.0 && after.1 <= before.1, "files and threads: {before:?}, then {after:?}");
    let grown = resident_kib().saturating_sub(memory);
    assert!(grown < 8 << 10, "{grown} KiB more after 20 groups");
}

#[test]
fn twenty_groups_in_one_process_leave_no_sockets_threads_or_memory() {
    let program = std::env::current_exe().unwrap();
    let output = std::process::Command::new(program)
        .args(["forming::many_groups", "--exact", "--ignored", "--nocapture"])
        .env(RECORDER, "2000")
        .output()
        .unwrap();
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
}

#[test]
fn an_abort_ends_the_wait_for_a_rank_that_stays_away() {
    let server = RendezvousServer::start("127.0.0.1", 0).unwrap();
    let mut options = options(0, 3, server.port(), 1);
    options.arrival_timeout = Duration::from_secs(60);
    let forming = Arc::clone(&options.forming);
    let begun = now();
    let waits = std::thread::spawn(move || gloo(&options).err().map(|error| error.code()));
    while forming.missing() != [1, 2] {
        assert!(begun.elapsed() < Duration::from_secs(20), "{forming:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
    let aborted = now();
    forming.abort();
    assert_eq!(waits.join().unwrap(), Some(code::COMM_ABORTED));
    assert!(aborted.elapsed() < Duration::from_secs(2), "took {:?}", aborted.elapsed());
}

#[test]
fn a_store_whose_process_is_stopped_is_given_up_as_rank_0() {
    // The store runs in a process that can be stopped: the kernel still takes connections, nobody answers.
    let host = Rank::spawn_host();
    let port: u16 = host.answer().strip_prefix("hosts ").unwrap().parse().unwrap();
    host.signal(Signal::SIGSTOP);
    let mut options = options(1, 2, port, 1);
    options.setup_timeout = Duration::from_millis(1500);
    let begun = now();
    let Err(error) = gloo(&options) else { panic!("was formed") };
    assert_eq!((error.code(), options.forming.missing()), (code::COMM_SETUP, vec![0]), "{error:?}");
    assert!(begun.elapsed() < Duration::from_secs(10), "took {:?}", begun.elapsed());
    host.signal(Signal::SIGCONT);
}
