//! Logs on standard error, as text or JSON.

use clap::ValueEnum;
use tracing_subscriber::EnvFilter;

use crate::server::ServerError;

/// The form of log lines.
#[derive(Clone, Copy, Debug, Default, ValueEnum)]
pub(crate) enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// Starts logging. `RUST_LOG` says what is logged; by default everything from `info` up.
///
/// # Errors
/// When that can't be understood.
pub(super) fn start(format: LogFormat) -> Result<(), ServerError> {
    let wanted = std::env::var_os(EnvFilter::DEFAULT_ENV).filter(|wanted| !wanted.is_empty());
    let filter = match wanted {
        None => EnvFilter::new("info"),
        Some(wanted) => EnvFilter::try_from_default_env().map_err(|error| {
            ServerError::Setting(format!(
                "the variable RUST_LOG says {}, which is no filter of log lines ({error}): use one \
                 like info or capstead=debug, or unset it",
                wanted.display()
            ))
        })?,
    };
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let log = log.with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()));
    // An embedder may have a subscriber of his own: then ours is not needed.
    let _ = match format {
        LogFormat::Text => log.try_init(),
        LogFormat::Json => log.json().try_init(),
    };
    Ok(())
}
