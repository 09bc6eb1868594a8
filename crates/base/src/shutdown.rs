//! Cooperative shutdown: one token that everybody watches, and the reason that it was pulled.

use std::sync::{Arc, OnceLock};

use tokio_util::sync::CancellationToken;

/// A request to stop that any owner can make and every owner sees.
#[derive(Clone, Debug, Default)]
pub struct Shutdown {
    token: CancellationToken,
    reason: Arc<OnceLock<String>>,
}

impl Shutdown {
    /// Asks everybody to stop. The first reason is kept.
    pub fn request(&self, reason: impl Into<String>) {
        let _ = self.reason.set(reason.into());
        self.token.cancel();
    }

    /// Whether somebody asked.
    #[must_use]
    pub fn is_requested(&self) -> bool {
        self.token.is_cancelled()
    }

    /// Why, once somebody asked.
    #[must_use]
    pub fn reason(&self) -> Option<&str> {
        self.reason.get().map(String::as_str)
    }

    /// Returns when somebody asks.
    pub async fn requested(&self) {
        self.token.cancelled().await;
    }

    /// The token below, for libraries that take one.
    #[must_use]
    pub fn token(&self) -> &CancellationToken {
        &self.token
    }
}

/// Requests a shutdown on Ctrl-C or SIGTERM.
///
/// # Errors
/// When the signal handlers cannot be installed.
pub fn on_signals(shutdown: Shutdown) -> std::io::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::spawn(async move {
        let reason = tokio::select! {
            _ = interrupt.recv() => "interrupted (Ctrl-C)",
            _ = terminate.recv() => "asked to terminate (SIGTERM)",
        };
        shutdown.request(reason);
    });
    Ok(())
}
