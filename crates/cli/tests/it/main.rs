//! `pleach` as a process: what it prints, where, and how it ends.

#![allow(clippy::unwrap_used)]

mod audit;
mod events;
mod failover;
mod fake;
mod offline;
mod online;
mod plan;
mod real;

use std::process::{Command, Output};

/// `pleach` with these arguments and an environment of its own.
pub(crate) fn pleach(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pleach"));
    command.args(args).current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."));
    for name in ["PLEACH_ADDRESS", "PLEACH_TENANT", "PLEACH_TOKEN", "PLEACH_CA", "PLEACH_LOG", "PLEACH_WORKER_BINARY"] {
        command.env_remove(name);
    }
    command.env("COLUMNS", "100");
    command
}

/// Runs it: exit code, standard output, standard error.
pub(crate) fn run(command: &mut Command) -> (i32, String, String) {
    let Output { status, stdout, stderr } = command.output().expect("pleach starts");
    let text = |bytes| String::from_utf8(bytes).expect("text");
    (status.code().expect("no signal"), text(stdout), text(stderr))
}
