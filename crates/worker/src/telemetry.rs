//! Log lines on standard error; the level comes from `PLEACH_LOG` (default `info`).

use pleach_base::human::wants_colour;
use tracing_subscriber::EnvFilter;

use crate::cli::LogFormat;

/// Starts logging. A second call changes nothing.
pub(crate) fn start(format: LogFormat) {
    let filter = EnvFilter::try_from_env("PLEACH_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_target(false)
        .with_ansi(wants_colour(&std::io::stderr()));
    let _ = match format {
        LogFormat::Text => builder.compact().try_init(),
        LogFormat::Json => builder.json().try_init(),
    };
}
