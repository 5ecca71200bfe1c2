//! Signals: those that end a server, one that makes it read a file again, and those by which the
//! system reports that a file can't be read or written, which would otherwise end a process without
//! a message.
//!
//! They have a thread of their own, because the other threads may be blocked.

use std::fs;
use std::io;
use std::sync::{Arc, Once};

use signal_hook::consts::{SIGBUS, SIGHUP, SIGINT, SIGTERM, SIGXFSZ};
use signal_hook::iterator::Signals;
use signal_hook::low_level::{exit, raise};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::STORAGE_FAILED;
use crate::server::{stderr, told_to_end};
use crate::storage::{file_changed, no_space};

/// Reports failures of files, for every command.
pub(super) fn of_files() {
    // If this fails, the system's default action stays.
    let _ = listen(&[SIGXFSZ, SIGBUS], CancellationToken::new(), Arc::default());
}

/// Reports failures of files. The future resolves on the first SIGINT or SIGTERM, and further ones
/// change nothing: each step of the end has its own time already. Each SIGHUP notifies.
///
/// # Errors
/// When the operating system gives no thread, or a signal can't be taken.
pub(super) fn shutdown() -> io::Result<(impl Future<Output = ()>, Arc<Notify>)> {
    let (told, hangups) = (CancellationToken::new(), Arc::new(Notify::new()));
    listen(&[SIGXFSZ, SIGBUS, SIGHUP, SIGINT, SIGTERM], told.clone(), hangups.clone())?;
    let shutdown = async move {
        told.cancelled().await;
        tracing::info!("shutting down: calls under way are finished first");
    };
    Ok((shutdown, hangups))
}

fn listen(signals: &[i32], told: CancellationToken, hangups: Arc<Notify>) -> io::Result<()> {
    let mut signals = Signals::new(signals)?;
    let take = move || {
        // The log line may itself be written to the very file that is full.
        let full = Once::new();
        for signal in signals.forever() {
            match signal {
                SIGBUS => page_lost(),
                SIGXFSZ => full.call_once(|| {
                    tracing::error!("a file may become no longer: the limit of file sizes is reached (ulimit -f)");
                }),
                SIGHUP => hangups.notify_one(),
                _ => {
                    told_to_end();
                    told.cancel();
                }
            }
        }
    };
    std::thread::Builder::new().name("capstead-signals".into()).spawn(take).map(drop)
}

/// Reports a lost page and exits. The thread that touched the page fails on it again and again
/// meanwhile, so nothing more is answered.
fn page_lost() -> ! {
    let reason = file_changed().or_else(no_space).map_or_else(
        || {
            "a page of a file can't be read: its disk failed, or it was cut short; restore a backup"
                .to_owned()
        },
        |known| known.to_string(),
    );
    stderr::put(format!("capstead: the storage failed: {reason}\n").into_bytes());
    stderr::flush();
    exit(STORAGE_FAILED.into())
}

/// Makes the standard library give up SIGBUS, which it handles for stack overflows on other
/// systems. When its handler meets a signal that isn't its own, it restores the system's default
/// action, and the next signal would end the process without a message. It does so only once; so
/// the signal is raised here, where it is harmless.
///
/// This must run before the process starts its first thread: a thread that starts or ends while the
/// handler runs is stopped for good, and no other thread can start or end after that. A process
/// that has threads already keeps the standard library's handler, and dies of the signal.
pub(super) fn take_sigbus() {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    if is_caught(SIGBUS, &status) && field(&status, "Threads") == Some("1") {
        // If the signal could not be raised, nothing has changed.
        let _ = raise(SIGBUS);
    }
}

/// Tells whether the process of this `/proc/self/status` handles the signal.
fn is_caught(signal: i32, status: &str) -> bool {
    let caught = field(status, "SigCgt").and_then(|caught| u64::from_str_radix(caught, 16).ok());
    caught.is_some_and(|caught| caught & (1 << (signal - 1)) != 0)
}

fn field<'a>(status: &'a str, name: &str) -> Option<&'a str> {
    status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim)
}
