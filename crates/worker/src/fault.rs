//! Faults on demand, for tests: a file names a phase of a step and a signal; at that phase this process raises the signal
//! on itself.

use std::path::{Path, PathBuf};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// The file of `--fault-file`.
#[derive(Clone, Debug)]
pub(crate) struct Faults(PathBuf);

impl Faults {
    pub(crate) fn new(path: &Path) -> Self {
        Self(path.to_owned())
    }

    /// Raises what the file orders for this phase. The order is given once: the file goes first.
    pub(crate) fn strike(&self, phase: &str) {
        let Some(signal) = self.take(phase) else { return };
        tracing::warn!("--fault-file: {signal} at {phase}");
        // It is this process: it exists.
        let _ = kill(Pid::this(), signal);
    }

    fn take(&self, phase: &str) -> Option<Signal> {
        let text = std::fs::read_to_string(&self.0).ok()?;
        let signal = ordered(&text, phase)?;
        std::fs::remove_file(&self.0).ok().map(|()| signal)
    }
}

/// The signal of `PHASE kill|stop|term`, if it is for this phase.
fn ordered(text: &str, phase: &str) -> Option<Signal> {
    let mut words = text.split_whitespace();
    if words.next() != Some(phase) {
        return None;
    }
    match words.next()? {
        "kill" => Some(Signal::SIGKILL),
        "stop" => Some(Signal::SIGSTOP),
        "term" => Some(Signal::SIGTERM),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_order_is_taken_once_and_only_at_its_phase() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("fault");
        let faults = Faults::new(&path);
        assert_eq!(faults.take("before_commit"), None, "there is no file");
        std::fs::write(&path, "before_commit stop\n").unwrap();
        assert_eq!(faults.take("after_commit"), None);
        assert!(path.exists());
        assert_eq!(faults.take("before_commit"), Some(Signal::SIGSTOP));
        assert!(!path.exists());
        assert_eq!(faults.take("before_commit"), None);
        assert_eq!(ordered("before_commit explode", "before_commit"), None);
    }
}
