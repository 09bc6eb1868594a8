//! Ctrl-C and SIGTERM, each time anew: the first asks to drain, the second to abort.

use pleach_base::{Result, ResultExt, code};
use tokio::signal::unix::{Signal, SignalKind, signal};

/// Both signals as one stream.
pub(crate) struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    /// From now on these signals no longer end the process by themselves.
    pub(crate) fn listen() -> Result<Self> {
        let listen = |kind| signal(kind).or_code(code::INTERNAL, || "cannot listen to signals".into());
        Ok(Self { interrupt: listen(SignalKind::interrupt())?, terminate: listen(SignalKind::terminate())? })
    }

    /// Returns at the next one.
    pub(crate) async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}
