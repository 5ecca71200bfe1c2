//! Listening for Cap'n Proto connections, in the clear or by TLS.
//!
//! A listener does either, never both: who speaks the other way is cut off.

pub(crate) mod tls;

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
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::metrics::Metrics;

/// How long a peer may take for the handshake of TLS, in seconds. It has a connection's place meanwhile.
const HANDSHAKE_SECS: u64 = 10;

/// A listener whose peers get one bootstrap capability.
pub(crate) struct Listener {
    accepting: CancellationToken,
    connected: CancellationToken,
    tasks: TaskTracker,
}

impl Listener {
    /// Starts to accept connections, by TLS if that is given.
    pub(crate) fn start(
        socket: TcpListener,
        tls: Option<TlsAcceptor>,
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
        let peers = RefCell::default();
        let serving = Rc::new(Serving { tls, bootstrap, limits, metrics, peers, connected });
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
    tls: Option<TlsAcceptor>,
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
                // By TLS that would be a handshake's work, which is what there was too much of.
                None if serving.tls.is_some() => drop(stream),
                None => Connection::refuse(stream, "too many connections from one address"),
            },
            Err(error) => rest_after(&error).await,
        }
    }
}

async fn serve(stream: TcpStream, place: Place) {
    // Without it answers come later, and no less.
    let _ = stream.set_nodelay(true);
    let Some(tls) = &place.serving.tls else { return speak(stream, &place).await };
    let limit = Duration::from_secs(HANDSHAKE_SECS);
    let shaken = tokio::select! {
        shaken = tls::handshake(tls, stream, limit) => shaken,
        () = place.serving.connected.cancelled() => return,
    };
    match shaken {
        Ok(stream) => speak(stream, &place).await,
        Err(error) => tracing::debug!(peer = %place.peer, %error, "no TLS with a peer"),
    }
}

async fn speak<S>(stream: S, Place { serving, peer }: &Place)
where
    S: AsyncRead + AsyncWrite + Unpin + 'static,
{
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
