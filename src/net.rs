//! Listening for Cap'n Proto connections.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use capnp::capability::Client;
use capnp_rpc::rpc_twoparty_capnp::Side;
use capstead_client::{Connection, Limits};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::metrics::Metrics;

/// A listener whose peers get one bootstrap capability.
pub(crate) struct Listener {
    accepting: CancellationToken,
    connected: CancellationToken,
    tasks: TaskTracker,
}

impl Listener {
    /// Starts to accept connections.
    pub(crate) fn start(socket: TcpListener, bootstrap: Client, metrics: Arc<Metrics>) -> Self {
        let listener = Self {
            accepting: CancellationToken::new(),
            connected: CancellationToken::new(),
            tasks: TaskTracker::new(),
        };
        let (accepting, connected) = (listener.accepting.clone(), listener.connected.clone());
        let tasks = listener.tasks.clone();
        listener.tasks.spawn_local(async move {
            let accept = accept(socket, bootstrap, metrics, connected, tasks);
            accepting.run_until_cancelled(accept).await;
        });
        listener
    }

    /// Accepts no more connections; those that are open stay.
    pub(crate) fn stop_accepting(&self) {
        self.accepting.cancel();
    }

    /// Ends all connections after what was sent on them has been written.
    pub(crate) async fn disconnect(&self) {
        self.stop_accepting();
        self.connected.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }
}

async fn accept(
    socket: TcpListener,
    bootstrap: Client,
    metrics: Arc<Metrics>,
    connected: CancellationToken,
    tasks: TaskTracker,
) {
    loop {
        let (stream, peer) = match socket.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                rest_after(&error).await;
                continue;
            }
        };
        let (bootstrap, metrics, connected) =
            (bootstrap.clone(), metrics.clone(), connected.clone());
        // Ends with its connection.
        tasks.spawn_local(async move {
            let _ = stream.set_nodelay(true);
            let connection = match Connection::new(stream, Side::Server, Some(bootstrap), Limits::default()) {
                Ok(connection) => connection,
                Err(error) => return tracing::error!(%error, "can't serve a connection"),
            };
            metrics.connections.add(1);
            tokio::select! {
                reason = connection.closed() => tracing::debug!(%peer, %reason, "connection closed"),
                () = connected.cancelled() => connection.disconnect().await,
            }
            metrics.connections.subtract(1);
        });
    }
}

/// Accepting fails while the process has too many files open: trying again at once would spin.
pub(crate) async fn rest_after(error: &io::Error) {
    const REST: Duration = Duration::from_millis(100);
    tracing::warn!(%error, "can't accept a connection; trying again");
    tokio::time::sleep(REST).await;
}
