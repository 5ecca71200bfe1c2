//! A host on a thread of its own, connected to the supervisor's thread by a socket pair.

use std::os::unix::net::UnixStream;
use std::thread::JoinHandle;

use capnp::capability::Client;
use capnp_rpc::rpc_twoparty_capnp::Side;
use capstead_client::{Connection, Limits};
use tokio::runtime::{Builder, LocalOptions};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use super::builder::ServerError;
use super::start::HostParts;
use crate::schema::cluster_capnp::supervisor;

/// Handlers run on it, and what they call. Of a peer only a chain of promises nests the stack when it
/// is dropped: 5,000 of them fit 2 MiB, and the guard lets 16 pass. The first host has no thread of its
/// own: it runs on the one that started the server, which usually has 8 MiB.
const STACK_BYTES: usize = 16 << 20;

/// One host's thread. Dropping this lets the thread go on; [`HostThread::join`] ends it.
pub(super) struct HostThread {
    finish: CancellationToken,
    is_finished: Option<oneshot::Receiver<()>>,
    stop: CancellationToken,
    thread: JoinHandle<Result<(), ServerError>>,
    /// This side of the socket pair has read everything.
    socket_closed: tokio::task::JoinHandle<()>,
    /// Resolves when the thread ends, by itself or because it was told to.
    pub(super) ended: oneshot::Receiver<()>,
}

impl HostThread {
    /// Starts the thread; `ready` resolves when the host has joined.
    ///
    /// # Errors
    /// When the operating system gives no thread or sockets.
    pub(super) fn spawn(
        parts: HostParts,
        supervisor: supervisor::Client,
    ) -> Result<(Self, oneshot::Receiver<()>), capnp::Error> {
        let (near, far) = UnixStream::pair()?;
        near.set_nonblocking(true)?;
        far.set_nonblocking(true)?;
        let near = tokio::net::UnixStream::from_std(near)?;
        let connection = over(near, Side::Server, Some(supervisor.client))?;
        let socket_closed =
            tokio::task::spawn_local(async move { drop(connection.closed().await) });

        let (finish, stop) = (CancellationToken::new(), CancellationToken::new());
        let (ready, is_ready) = oneshot::channel();
        let (finished, is_finished) = oneshot::channel();
        let (end, ended) = oneshot::channel();
        let name = format!("capstead-host-{}", parts.number);
        let signals = Signals { ready, finish: finish.clone(), finished, stop: stop.clone() };
        let thread =
            std::thread::Builder::new().name(name).stack_size(STACK_BYTES).spawn(move || {
                let _end = end;
                let runtime =
                    Builder::new_current_thread().enable_all().build_local(LocalOptions::default());
                let runtime = runtime.map_err(|error| ServerError::Assembly(error.into()))?;
                runtime.block_on(serve(parts, far, signals))
            })?;
        let is_finished = Some(is_finished);
        Ok((Self { finish, is_finished, stop, thread, socket_closed, ended }, is_ready))
    }

    /// Tells the thread to finish its calls.
    pub(super) fn finish(&self) {
        self.finish.cancel();
    }

    /// Resolves when the thread has finished its calls, or ended.
    pub(super) async fn finished(&mut self) {
        if let Some(finished) = self.is_finished.take() {
            let _ = finished.await;
        }
    }

    /// Ends the thread, after all that it sent was received, and says how it ended.
    pub(super) async fn join(self) -> Result<(), ServerError> {
        self.finish.cancel();
        self.stop.cancel();
        // The sender is dropped as the thread's last act.
        let _ = self.ended.await;
        let _ = self.socket_closed.await;
        self.thread.join().unwrap_or_else(|_| {
            Err(ServerError::Assembly(capnp::Error::failed("a host's thread panicked".into())))
        })
    }
}

/// What the thread tells, and is told.
struct Signals {
    ready: oneshot::Sender<()>,
    finish: CancellationToken,
    finished: oneshot::Sender<()>,
    stop: CancellationToken,
}

async fn serve(parts: HostParts, far: UnixStream, signals: Signals) -> Result<(), ServerError> {
    let far = tokio::net::UnixStream::from_std(far).map_err(capnp::Error::from)?;
    let connection = over(far, Side::Client, None)?;
    let supervisor: supervisor::Client = connection.bootstrap();
    let host = parts.start(&supervisor).await?;
    // Whoever waited may have left already; then `finish` tells.
    let _ = signals.ready.send(());
    let mut ended = tokio::select! {
        ended = host.until(signals.finish.cancelled()) => ended,
        // Without it nobody reaches this host by way of another: the process must start again.
        reason = connection.closed() => Err(ServerError::Assembly(reason)),
    };
    if ended.is_ok() {
        ended = host.finish().await;
        let _ = signals.finished.send(());
        signals.stop.cancelled().await;
    }
    connection.disconnect().await;
    ended.and(host.close().await)
}

fn over(
    socket: tokio::net::UnixStream,
    side: Side,
    bootstrap: Option<Client>,
) -> capnp::Result<Connection> {
    Connection::new(socket, side, bootstrap, Limits::of_trusted())
}
