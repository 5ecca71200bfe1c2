//! A host on a thread of its own, which [`link`](super::link) joins to the supervisor's thread.
//!
//! Invariants:
//! - However the thread ends, even by a panic, its starter is told the reason.
//! - Its end is a state, and can be awaited any number of times.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::thread::JoinHandle;

use futures::FutureExt;
use tokio::runtime::{Builder, LocalOptions, LocalRuntime};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::error::ServerError;
use super::host::HostParts;
use super::link::{HostEnd, HostLink, Hub};
use crate::error::panic_reason;
use crate::host::rests;

/// Enough stack for handlers and all that they call; a peer's messages never nest it. The first
/// host has no thread of its own: it runs on the one that started the server, which usually has
/// 8 MiB.
const STACK_BYTES: usize = 16 << 20;

/// One host's thread. The thread outlives a dropped handle; [`HostThread::join`] ends it.
pub(super) struct HostThread {
    number: u16,
    signals: Signals,
    thread: JoinHandle<Result<(), ServerError>>,
    /// Ends once everything that the host sent has been read.
    link: tokio::task::JoinHandle<()>,
    #[cfg(test)]
    pub(super) latest: super::link::Latest,
    /// Work for the host's thread.
    #[cfg(test)]
    pub(super) probes: mpsc::Sender<super::link::Probe>,
}

/// The signals between the thread and its starter. Each is a state, so a late waiter sees it too.
#[derive(Clone, Default)]
struct Signals {
    /// The host has joined.
    ready: CancellationToken,
    /// All hosts have joined.
    whole: CancellationToken,
    /// The host is to finish its calls.
    finish: CancellationToken,
    finished: CancellationToken,
    /// The host is to end.
    stop: CancellationToken,
    /// The host uses no link any more.
    left: CancellationToken,
    /// Set by the thread's last act.
    ended: CancellationToken,
}

impl HostThread {
    /// Starts the thread; see [`HostThread::ready`].
    ///
    /// # Errors
    /// When the operating system gives no thread or sockets.
    pub(super) fn spawn(parts: HostParts, hub: Rc<Hub>) -> Result<Self, capnp::Error> {
        let (number, signals) = (parts.number, Signals::default());
        let (sender, ends) = mpsc::channel(1);
        #[cfg(test)]
        let latest = super::link::Latest::default();
        let link = HostLink {
            hub,
            number,
            ends: sender,
            left: signals.left.clone(),
            #[cfg(test)]
            latest: latest.clone(),
        };
        let first = link.first()?;
        #[cfg(test)]
        let (probes, their_probes) = mpsc::channel(1);
        let end = HostEnd {
            ends,
            #[cfg(test)]
            probes: Some(their_probes),
            #[cfg(not(test))]
            probes: None,
        };
        let theirs = signals.clone();
        let run = move || {
            let _ended = theirs.ended.clone().drop_guard();
            let run = || run(parts, end, &theirs);
            let ended = catch_unwind(AssertUnwindSafe(run));
            let ended = ended.unwrap_or_else(|panic| Err(panicked(number, &*panic)));
            if let Err(error) = &ended
                && theirs.ready.is_cancelled()
            {
                tracing::error!(host = number, %error, "a host has ended, and the server ends with it");
            }
            ended
        };
        let name = format!("capstead-host-{number}");
        let thread = std::thread::Builder::new().name(name).stack_size(STACK_BYTES).spawn(run)?;
        let link = tokio::task::spawn_local(link.keep(first));
        Ok(Self {
            number,
            signals,
            thread,
            link,
            #[cfg(test)]
            latest,
            #[cfg(test)]
            probes,
        })
    }

    /// Resolves when the host has joined, or the thread has ended.
    pub(super) async fn ready(&self) {
        tokio::select! { () = self.signals.ready.cancelled() => {}, () = self.ended() => {} }
    }

    /// Tells the thread that all hosts have joined: from now on alarms fire.
    pub(super) fn fire_alarms(&self) {
        self.signals.whole.cancel();
    }

    /// Resolves when the thread has ended, by itself or on request.
    pub(super) async fn ended(&self) {
        self.signals.ended.cancelled().await;
    }

    /// Tells whether the thread has ended.
    pub(super) fn has_ended(&self) -> bool {
        self.signals.ended.is_cancelled()
    }

    /// Tells the thread to finish its calls.
    pub(super) fn finish(&self) {
        self.signals.finish.cancel();
    }

    /// Resolves when the thread has finished its calls, or has ended.
    pub(super) async fn finished(&self) {
        tokio::select! { () = self.signals.finished.cancelled() => {}, () = self.ended() => {} }
    }

    /// Ends the thread, after everything that it sent was received, and returns how it ended.
    pub(super) async fn join(self) -> Result<(), ServerError> {
        self.signals.finish.cancel();
        self.signals.stop.cancel();
        self.ended().await;
        // A task that panicked reads nothing more.
        let _ = self.link.await;
        let number = self.number;
        self.thread.join().unwrap_or_else(|_| {
            Err(ServerError::Host { number, reason: "its thread panicked as it ended".into() })
        })
    }
}

/// A runtime for a host, which notes when it has nothing to do.
///
/// # Errors
/// When the operating system gives it no resources.
pub(crate) fn host_runtime() -> std::io::Result<LocalRuntime> {
    let mut runtime = Builder::new_current_thread();
    runtime.enable_all().on_thread_park(rests).build_local(LocalOptions::default())
}

fn run(parts: HostParts, end: HostEnd, signals: &Signals) -> Result<(), ServerError> {
    let runtime = host_runtime().map_err(|error| ServerError::Assembly(error.into()))?;
    runtime.block_on(serve(parts, end, signals))
}

async fn serve(parts: HostParts, mut end: HostEnd, signals: &Signals) -> Result<(), ServerError> {
    // Set even if an error or a panic leaves this function, and before the link is left.
    let left = signals.left.clone().drop_guard();
    let Some(link) = end.next().await? else { return Ok(()) };
    let number = parts.number;
    let host = parts.start(&link.bootstrap()).await?;
    signals.ready.cancel();
    let life = async {
        let finish = async {
            tokio::select! {
                () = signals.whole.cancelled() => host.vat.fire_alarms(),
                () = signals.finish.cancelled() => return,
            }
            signals.finish.cancelled().await;
        };
        let mut ended = host.until(finish).await;
        if ended.is_ok() {
            ended = host.finish().await;
            signals.finished.cancel();
            signals.stop.cancelled().await;
        }
        drop(left);
        ended
    };
    let stay = end.stay(&host, link, &signals.left);
    let lived = AssertUnwindSafe(futures::future::join(life, stay)).catch_unwind().await;
    let ended = lived.map_or_else(|panic| Err(panicked(number, &*panic)), |(ended, ())| ended);
    ended.and(host.close().await)
}

fn panicked(number: u16, panic: &(dyn Any + Send)) -> ServerError {
    ServerError::Host { number, reason: format!("its thread panicked: {}", panic_reason(panic)) }
}
