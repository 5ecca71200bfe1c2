//! Listening for Cap'n Proto connections, in the clear or by TLS.
//!
//! A listener does either, never both: who speaks the other way is cut off. All listeners of a server have
//! their connections from one number of places, which leaves descriptors for all else.

pub(crate) mod tls;

use std::cell::RefCell;
use std::collections::HashMap;
use std::io;
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use capnp::capability::Client;
use capstead_client::{Budget, Connection, Limit, Limits};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::metrics::Metrics;

/// The time that a peer may take for the handshake of TLS, in seconds. It has a connection's place
/// meanwhile.
const HANDSHAKE_SECS: u64 = 10;

/// Descriptors that no connection from outside gets: some for each of 64 hosts, and as many again.
const DESCRIPTORS_KEPT: usize = 512;

/// The reason that the peers of a listener that ends are told.
const SHUTTING_DOWN: &str = "the server is shutting down";

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
        places: Arc<Places>,
    ) -> Self {
        let listener = Self {
            accepting: CancellationToken::new(),
            connected: CancellationToken::new(),
            tasks: TaskTracker::new(),
        };
        let (accepting, connected) = (listener.accepting.clone(), listener.connected.clone());
        let peers = RefCell::default();
        let serving = Serving { tls, bootstrap, limits, metrics, places, peers, connected };
        let serving = Rc::new(serving);
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

/// The things with which every connection of a listener is served.
struct Serving {
    tls: Option<TlsAcceptor>,
    bootstrap: Client,
    limits: Limits,
    metrics: Arc<Metrics>,
    places: Arc<Places>,
    /// The number of connections of each address.
    peers: RefCell<HashMap<IpAddr, usize>>,
    connected: CancellationToken,
}

async fn accept(socket: TcpListener, serving: Rc<Serving>, tasks: TaskTracker) {
    loop {
        match socket.accept().await {
            Ok((stream, peer)) => match Place::take(&serving, peer.ip()) {
                // Ends with its connection.
                Ok(place) => drop(tasks.spawn_local(serve(stream, place))),
                // By TLS that would be a handshake's work, which is what there was too much of.
                Err(_) if serving.tls.is_some() => drop(stream),
                Err(Limit::ConnectionsPerPeer) => {
                    Connection::refuse(stream, "too many connections from one address");
                }
                Err(_) => Connection::refuse(stream, "too many connections: try again later"),
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

async fn speak<S>(stream: S, Place { serving, peer, .. }: &Place)
where
    S: AsyncRead + AsyncWrite + Unpin + 'static,
{
    let bites = serving.metrics.limits.clone();
    let (bootstrap, limits) = (serving.bootstrap.clone(), serving.limits);
    let budget = serving.places.budget.clone();
    let connection = match Connection::serve(stream, bootstrap, limits, bites, budget) {
        Ok(connection) => connection,
        Err(error) => return tracing::error!(%error, "can't serve a connection"),
    };
    tokio::select! {
        reason = connection.closed() => tracing::debug!(%peer, %reason, "connection closed"),
        () = serving.connected.cancelled() => connection.disconnect_because(SHUTTING_DOWN).await,
    }
}

/// One of the connections that an address may have.
struct Place {
    serving: Rc<Serving>,
    peer: IpAddr,
    _of_all: Taken,
}

impl Place {
    /// # Errors
    /// When there is none, by which limit.
    fn take(serving: &Rc<Serving>, peer: IpAddr) -> Result<Self, Limit> {
        let refused = |limit| {
            serving.metrics.limits.count(limit);
            limit
        };
        let of_all = Places::take(&serving.places).ok_or_else(|| refused(Limit::Connections))?;
        let mut peers = serving.peers.borrow_mut();
        let places = peers.get(&peer).copied().unwrap_or_default();
        if places >= serving.limits.connections_per_peer {
            return Err(refused(Limit::ConnectionsPerPeer));
        }
        peers.insert(peer, places + 1);
        serving.metrics.connections.add(1);
        Ok(Self { serving: serving.clone(), peer, _of_all: of_all })
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

/// The connections that all listeners of one kind may have together, and what these hold.
#[derive(Debug)]
pub(crate) struct Places {
    max: usize,
    taken: AtomicUsize,
    pub(crate) budget: Budget,
}

/// One of [`Places`], until it is dropped.
#[derive(Debug)]
pub(crate) struct Taken(Arc<Places>);

impl Places {
    pub(crate) fn new(max: usize) -> Arc<Self> {
        Arc::new(Self { max, taken: AtomicUsize::new(0), budget: Budget::default() })
    }

    /// One more, if there is one.
    pub(crate) fn take(places: &Arc<Self>) -> Option<Taken> {
        let taken = Taken(places.clone());
        // Whoever gets none gives back at once what was counted here.
        (places.taken.fetch_add(1, Ordering::Relaxed) < places.max).then_some(taken)
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        self.0.taken.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The numbers of connections that there may be of Cap'n Proto and of HTTP, so that neither takes
/// the descriptors of the other, or those of all else: the storage, links between hosts, the
/// operator, and the page of metrics.
pub(crate) fn connections_max() -> (usize, usize) {
    let open = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    let open = open.map_or(usize::MAX, |open| usize::try_from(open).unwrap_or(usize::MAX));
    let free = open - DESCRIPTORS_KEPT.min(open / 2);
    (free - free / 4, free / 4)
}

/// Accepting fails while the process has too many files open: trying again at once would spin.
pub(crate) async fn rest_after(error: &io::Error) {
    const REST: Duration = Duration::from_millis(100);
    tracing::warn!(%error, "can't accept a connection; trying again");
    tokio::time::sleep(REST).await;
}
