//! The `pleach train` that a worker may belong to. Killed outright, that command asks nobody to leave.

use nix::errno::Errno;
use nix::sys::signal::kill;
use nix::unistd::{Pid, getppid};

/// Who started this worker.
#[derive(Debug)]
pub(crate) struct Crew {
    command: Pid,
    /// The parent at the beginning: the command, or what it was started through.
    parent: Pid,
}

impl Crew {
    pub(crate) fn of(command: u32) -> Self {
        // What is no process id names no process, which is then gone.
        Self { command: Pid::from_raw(i32::try_from(command).unwrap_or(i32::MAX)), parent: getppid() }
    }

    /// Whether it has ended. One that ended and was not yet waited for has still a number, but no children any more.
    pub(crate) fn is_gone(&self) -> bool {
        getppid() != self.parent || kill(self.command, None) == Err(Errno::ESRCH)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_that_runs_is_there_and_one_that_ended_is_gone() {
        assert!(!Crew::of(std::process::id()).is_gone());
        let mut short = std::process::Command::new("true").spawn().unwrap();
        short.wait().unwrap();
        assert!(Crew::of(short.id()).is_gone());
    }
}
