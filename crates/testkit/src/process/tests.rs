//! The runner, on shell scripts.

use std::os::unix::process::ExitStatusExt;
use std::process::Command;
use std::time::Duration;

use nix::sys::signal::kill;
use nix::unistd::Pid;

use super::*;

const SECOND: Duration = Duration::from_secs(1);

fn shell(script: &str) -> Process {
    let mut command = Command::new("sh");
    command.args(["-c", script]);
    Process::start("script", command).unwrap()
}

#[test]
fn lines_of_both_outputs_are_captured_and_found() {
    let mut process = shell("echo one; echo two >&2; printf three; exit 7");
    assert_eq!(process.wait_for("^o.e$", 10 * SECOND).unwrap(), "one");
    assert_eq!(process.wait(10 * SECOND).unwrap().code(), Some(7));
    let lines = process.lines();
    assert!(lines.contains(&Line { is_stderr: true, text: "two".into() }), "{lines:?}");
    assert!(lines.contains(&Line { is_stderr: false, text: "three".into() }), "without an end of line too: {lines:?}");
    let error = process.wait_for("four", 10 * SECOND).unwrap_err().to_string();
    assert!(error.contains("closed its outputs") && error.contains("two"), "{error}");
}

#[test]
fn a_line_is_waited_for_and_the_wait_ends() {
    let process = shell("echo ready; sleep 0.3; echo ready again; sleep 30");
    let (next, _) = process.wait_for_after(0, "ready", 10 * SECOND).unwrap();
    assert_eq!(process.wait_for_after(next, "ready", 10 * SECOND).unwrap().1, "ready again");
    let error = process.wait_for("never", SECOND / 10).unwrap_err().to_string();
    assert!(error.contains("time is up"), "{error}");
}

#[test]
fn signals_arrive() {
    let mut process = shell("trap 'echo drained; exit 0' TERM; echo up; while :; do sleep 0.05; done");
    process.wait_for("up", 10 * SECOND).unwrap();
    process.pause().unwrap();
    process.terminate().unwrap();
    assert!(process.wait(SECOND / 2).is_err(), "a stopped process does not end");
    process.resume().unwrap();
    assert_eq!(process.wait(10 * SECOND).unwrap().code(), Some(0));
    assert_eq!(process.wait_for("drained", SECOND).unwrap(), "drained");
    assert!(process.terminate().is_err(), "it has ended");

    let mut stubborn = shell("trap '' TERM; echo up; while :; do sleep 0.05; done");
    stubborn.wait_for("up", 10 * SECOND).unwrap();
    assert_eq!(stubborn.kill().unwrap().signal(), Some(9));
}

#[test]
fn nothing_outlives_the_value() {
    let process = shell("sleep 60 & echo $!; wait");
    let child: i32 = process.wait_for("[0-9]+", 10 * SECOND).unwrap().parse().unwrap();
    drop(process);
    let gone = || kill(Pid::from_raw(child), None).is_err() || is_zombie(child);
    for _ in 0..100 {
        if gone() {
            return;
        }
        thread::sleep(LOOK_EVERY);
    }
    panic!("the grandchild {child} lives");
}

/// Ended, but nobody has asked how: in a container there may be no init that does.
fn is_zombie(pid: i32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| stat.contains(") Z "))
}

#[test]
fn ports_and_binaries() {
    let port = free_port().unwrap();
    TcpListener::bind(("127.0.0.1", port)).unwrap();
    assert!(binary("no-such-binary").unwrap_err().to_string().contains("cargo build"));
}
