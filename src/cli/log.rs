//! Logs on standard error, as text or JSON, panics included.

use std::backtrace::{Backtrace, BacktraceStatus};
use std::panic::PanicHookInfo;

use clap::ValueEnum;
use tracing_subscriber::EnvFilter;

use crate::host::present_turn;
use crate::server::{ServerError, stderr};

/// Panics are logged even if `RUST_LOG` excludes everything else, since they are printed without
/// logging too.
const PANICS: &str = "capstead::panic";

/// The libraries that log what clients say on WebSockets, where a reference may be among it. They
/// log nothing below a warning, whatever is asked for.
const TELL_SECRETS: [&str; 2] = ["tungstenite", "tokio_tungstenite"];

/// The form of log lines.
#[derive(Clone, Copy, Debug, Default, ValueEnum)]
pub(crate) enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// The lines that `RUST_LOG` selects; by default everything from `info` up. Verbs that log nothing
/// ask too, so that a mistake in it shows whatever is run.
///
/// # Errors
/// When `RUST_LOG` can't be parsed.
pub(super) fn selected() -> Result<EnvFilter, ServerError> {
    let wanted = std::env::var_os(EnvFilter::DEFAULT_ENV).filter(|wanted| !wanted.is_empty());
    let Some(wanted) = wanted else { return Ok(EnvFilter::new("info")) };
    EnvFilter::try_from_default_env().map_err(|error| {
        ServerError::Setting(format!(
            "the variable RUST_LOG says {}, which is no filter of log lines ({error}): use one like \
             info or capstead=debug, or unset it",
            wanted.display()
        ))
    })
}

/// The same filter with nothing of [`TELL_SECRETS`] below a warning.
fn without_secrets(wanted: &EnvFilter) -> EnvFilter {
    let wanted = wanted.to_string();
    let is_theirs = |directive: &&str| {
        let target = directive.trim().split(['=', ':', '[']).next().unwrap_or_default();
        TELL_SECRETS.contains(&target)
    };
    let mut directives: Vec<_> =
        wanted.split(',').filter(|directive| !is_theirs(directive)).map(str::to_owned).collect();
    directives.extend(TELL_SECRETS.map(|target| format!("{target}=warn")));
    EnvFilter::new(directives.join(","))
}

/// Starts logging.
///
/// # Errors
/// When `RUST_LOG` can't be parsed.
pub(super) fn start(format: LogFormat) -> Result<(), ServerError> {
    let filter = without_secrets(&selected()?);
    let always = format!("{PANICS}=error").parse();
    let filter =
        always.map_or_else(|_| EnvFilter::new("info"), |always| filter.add_directive(always));
    stderr::start().map_err(capnp::Error::from)?;
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(|| stderr::Lines);
    // Internal errors would be printed directly, which may block.
    let log = log.log_internal_errors(false);
    let log = log.with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()));
    // An embedder may have its own subscriber: then ours is not needed.
    let is_ours = match format {
        LogFormat::Text => log.try_init(),
        LogFormat::Json => log.json().try_init(),
    };
    if is_ours.is_ok() {
        std::panic::set_hook(Box::new(report));
    }
    Ok(())
}

/// Logs a panic: its place, its message, and the turn in which it happened.
fn report(panic: &PanicHookInfo<'_>) {
    let reason = panic.payload_as_str().unwrap_or("no reason given");
    let place = panic.location().map_or_else(|| "an unknown place".to_owned(), ToString::to_string);
    let thread = std::thread::current();
    let thread = thread.name().unwrap_or("unnamed");
    let backtrace = Backtrace::capture();
    let backtrace =
        (backtrace.status() == BacktraceStatus::Captured).then(|| backtrace.to_string());
    let turn = present_turn();
    // Others are caught, and their object alone ends: its host doesn't wait for a slow reader of
    // the log. The text is the one with which Rust begins to end the process.
    let is_last = turn.is_none() || reason.starts_with("panic in a ");
    if let Some(turn) = turn {
        let (class, object, method) = (turn.class, turn.object, turn.method_name());
        tracing::error!(target: PANICS, class, ?object, method, thread, backtrace, "panicked at {place}: {reason}");
    } else {
        tracing::error!(target: PANICS, thread, backtrace, "panicked at {place}: {reason}");
    }
    if is_last {
        stderr::flush();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_filter_lets_out_what_clients_say() {
        for wanted in
            ["trace", "tungstenite=trace", "info,tungstenite::protocol::frame=trace,h2=debug"]
        {
            let filter = without_secrets(&EnvFilter::new(wanted)).to_string();
            let theirs: Vec<_> =
                filter.split(',').filter(|directive| directive.contains("tungstenite")).collect();
            assert!(theirs.iter().all(|directive| directive.ends_with("=warn")), "{filter}");
            assert_eq!(theirs.len(), 2, "{filter}");
        }
        let kept = without_secrets(&EnvFilter::new("info,h2=debug")).to_string();
        assert!(kept.contains("info") && kept.contains("h2=debug"), "{kept}");
    }
}
