//! Listening for Cap'n Proto connections.

use std::cell::RefCell;
use std::collections::HashMap;
use std::io;
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use capnp::capability::Client;
use capnp_rpc::rpc_twoparty_capnp::Side;
use capstead_client::{Connection, Limit, Limits};
use tokio::net::{TcpListener, TcpStream};
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
    pub(crate) fn start(
        socket: TcpListener,
        bootstrap: Client,
        limits: Limits,
        metrics: Arc<Metrics>,
    ) -> Self {
        let listener = Self {
            accepting: CancellationToken::new(),
            connected: CancellationToken::new(),
            tasks: TaskTracker::new(),
        };
        let (accepting, connected) = (listener.accepting.clone(), listener.connected.clone());
        let serving =
            Rc::new(Serving { bootstrap, limits, metrics, peers: RefCell::default(), connected });
        let tasks = listener.tasks.clone();
        listener.tasks.spawn_local(async move {
            accepting.run_until_cancelled(accept(socket, serving, tasks)).await;
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

/// What every connection of a listener is served with.
struct Serving {
    bootstrap: Client,
    limits: Limits,
    metrics: Arc<Metrics>,
    /// How many connections each address has.
    peers: RefCell<HashMap<IpAddr, usize>>,
    connected: CancellationToken,
}

async fn accept(socket: TcpListener, serving: Rc<Serving>, tasks: TaskTracker) {
    loop {
        match socket.accept().await {
            Ok((stream, peer)) => match Place::take(&serving, peer.ip()) {
                // Ends with its connection.
                Some(place) => drop(tasks.spawn_local(serve(stream, place))),
                None => Connection::refuse(stream, "too many connections from one address"),
            },
            Err(error) => rest_after(&error).await,
        }
    }
}

async fn serve(stream: TcpStream, place: Place) {
    let Place { serving, peer } = &place;
    // Without it answers come later, and no less.
    let _ = stream.set_nodelay(true);
    let bites = serving.metrics.limits.clone();
    let (bootstrap, limits) = (Some(serving.bootstrap.clone()), serving.limits);
    let connection = match Connection::counted(stream, Side::Server, bootstrap, limits, bites) {
        Ok(connection) => connection,
        Err(error) => return tracing::error!(%error, "can't serve a connection"),
    };
    tokio::select! {
        reason = connection.closed() => tracing::debug!(%peer, %reason, "connection closed"),
        () = serving.connected.cancelled() => connection.disconnect().await,
    }
}

/// One of the connections that an address may have.
struct Place {
    serving: Rc<Serving>,
    peer: IpAddr,
}

impl Place {
    fn take(serving: &Rc<Serving>, peer: IpAddr) -> Option<Self> {
        let mut peers = serving.peers.borrow_mut();
        let places = peers.get(&peer).copied().unwrap_or_default();
        if places >= serving.limits.connections_per_peer {
            serving.metrics.limits.count(Limit::ConnectionsPerPeer);
            return None;
        }
        peers.insert(peer, places + 1);
        serving.metrics.connections.add(1);
        Some(Self { serving: serving.clone(), peer })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut peers = self.serving.peers.borrow_mut();
        self.serving.metrics.connections.subtract(1);
        if let Some(places) = peers.get_mut(&self.peer) {
            *places -= 1;
            if *places == 0 {
                peers.remove(&self.peer);
            }
        }
    }
}

/// Accepting fails while the process has too many files open: trying again at once would spin.
pub(crate) async fn rest_after(error: &io::Error) {
    const REST: Duration = Duration::from_millis(100);
    tracing::warn!(%error, "can't accept a connection; trying again");
    tokio::time::sleep(REST).await;
}
