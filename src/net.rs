//! Listening for Cap'n Proto connections, in the clear or by TLS.
//!
//! A listener accepts one kind, never both: peers that speak the other way are cut off. All
//! listeners of a server share one number of places for connections, which leaves descriptors for
//! everything else.

mod certificate;
mod places;
pub(crate) mod tls;

use std::io;
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use capnp::capability::Client;
use capstead_client::{Connection, Limit, Limits};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::metrics::Metrics;
pub(crate) use certificate::{Certificate, CertificateFiles};
use places::Full;
pub(crate) use places::{Peers, Place, Places, one_client, within as places_within};

/// The time that a peer may take for the TLS handshake, in seconds. It occupies a connection's
/// place meanwhile.
const HANDSHAKE_SECS: u64 = 10;

/// Descriptors of the process that no outside connection gets. 16 of them are open while nothing
/// happens; the others are for files that are open briefly.
const DESCRIPTORS_OF_PROCESS: usize = 32;
/// Descriptors of each host: 13 for its files, its listener, its event loop, its link and the
/// watchdog's look at its thread, and 3 more while its link is made anew.
const DESCRIPTORS_OF_HOST: usize = 16;
/// The most connections for the operator's commands, and the same number for readers of the metrics
/// page: an eighth of what the server itself leaves, within these bounds.
const TOOLS: RangeInclusive<usize> = 4..=64;
/// A server with fewer connections would be useless.
const CONNECTIONS_MIN: usize = 4;
/// Fewer are probably a mistake.
const CONNECTIONS_FEW: usize = 256;

/// The reason that peers get when a listener ends.
const SHUTTING_DOWN: &str = "the server is shutting down";

/// A listener whose peers get one bootstrap capability.
pub(crate) struct Listener {
    serving: Rc<Serving>,
    accepting: CancellationToken,
    finishes: CancellationToken,
    connected: CancellationToken,
    tasks: TaskTracker,
}

impl Listener {
    /// Starts to accept connections, by TLS if an acceptor is given.
    pub(crate) fn start(
        socket: TcpListener,
        tls: Option<TlsAcceptor>,
        bootstrap: Client,
        limits: Limits,
        metrics: Arc<Metrics>,
        places: Arc<Places>,
    ) -> Self {
        let (accepting, finishes) = (CancellationToken::new(), CancellationToken::new());
        let (connected, tasks) = (CancellationToken::new(), TaskTracker::new());
        let peers = Peers::new(places.clone(), metrics.clone(), |all| &all.connections);
        let serving = {
            let (finishes, connected) = (finishes.clone(), connected.clone());
            Serving { tls, bootstrap, limits, metrics, places, peers, finishes, connected }
        };
        let serving = Rc::new(serving);
        let listener = Self { serving: serving.clone(), accepting, finishes, connected, tasks };
        let (accepting, tasks) = (listener.accepting.clone(), listener.tasks.clone());
        listener.tasks.spawn_local(async move {
            accepting.run_until_cancelled(accept(socket, serving, tasks)).await;
        });
        listener
    }

    /// The way in for peers whose bytes come by another way than this socket.
    pub(crate) fn guests(&self) -> Guests {
        let (serving, accepting) = (self.serving.clone(), self.accepting.clone());
        Guests { serving, accepting, tasks: self.tasks.clone() }
    }

    /// Accepts no more connections; open ones stay, if their peers read what waits for them.
    pub(crate) fn finish(&self) {
        self.accepting.cancel();
        self.finishes.cancel();
    }

    /// Ends all connections, after the messages sent on them were written.
    pub(crate) async fn disconnect(&self) {
        self.finish();
        self.connected.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }
}

/// The settings and counters for all connections of a listener.
struct Serving {
    tls: Option<TlsAcceptor>,
    bootstrap: Client,
    limits: Limits,
    metrics: Arc<Metrics>,
    places: Arc<Places>,
    peers: Rc<Peers>,
    finishes: CancellationToken,
    connected: CancellationToken,
}

/// Serves peers that come by another way than a listener's socket, as those that come by that: with
/// the same limits, and to the same end.
#[derive(Clone)]
pub(crate) struct Guests {
    serving: Rc<Serving>,
    accepting: CancellationToken,
    tasks: TaskTracker,
}

impl Guests {
    /// A place for one more peer from this address, if there is one.
    pub(crate) fn take(&self, peer: IpAddr) -> Option<Place> {
        if self.accepting.is_cancelled() {
            return None;
        }
        let refused = |full: &Full| {
            self.serving.count(*full);
        };
        self.serving.peers.take(peer).inspect_err(refused).ok()
    }

    /// Serves a peer once its stream is there, and drops at the end the values that came with it.
    pub(crate) fn serve<S, P>(
        &self,
        place: Place,
        stream: impl Future<Output = Option<(S, P)>> + 'static,
    ) where
        S: AsyncRead + AsyncWrite + Unpin + 'static,
        P: 'static,
    {
        let serving = self.serving.clone();
        self.tasks.spawn_local(async move {
            let stream = tokio::select! {
                stream = stream => stream,
                () = serving.connected.cancelled() => return,
            };
            if let Some((stream, _kept)) = stream {
                speak(stream, &serving, &place).await;
            }
        });
    }
}

impl Serving {
    /// Counts a peer that gets no place, and says why.
    fn count(&self, full: Full) -> &'static str {
        let (limit, reason) = match full {
            Full::OfAll => (Limit::Connections, "too many connections: try again later"),
            Full::OfPeer => (Limit::ConnectionsPerPeer, "too many connections from one address"),
        };
        self.metrics.limits.count(limit);
        reason
    }

    fn refuse(&self, stream: TcpStream, full: Full) {
        let reason = self.count(full);
        // By TLS this would take a handshake, and there are too many of these already.
        if self.tls.is_none() {
            Connection::refuse(stream, reason);
        }
    }
}

async fn accept(socket: TcpListener, serving: Rc<Serving>, tasks: TaskTracker) {
    loop {
        match socket.accept().await {
            Ok((stream, peer)) => match serving.peers.take(peer.ip()) {
                // The task ends with its connection.
                Ok(place) => drop(tasks.spawn_local(serve(stream, serving.clone(), place))),
                Err(full) => serving.refuse(stream, full),
            },
            Err(error) => rest_after(&error).await,
        }
    }
}

async fn serve(stream: TcpStream, serving: Rc<Serving>, place: Place) {
    // If this fails, answers only come a little later.
    let _ = stream.set_nodelay(true);
    let Some(tls) = &serving.tls else { return speak(stream, &serving, &place).await };
    let limit = Duration::from_secs(HANDSHAKE_SECS);
    let shaken = tokio::select! {
        shaken = tls::handshake(tls, stream, limit) => shaken,
        () = serving.connected.cancelled() => return,
    };
    match shaken {
        Ok(stream) => speak(stream, &serving, &place).await,
        Err(error) => tracing::debug!(peer = %place.peer, %error, "no TLS with a peer"),
    }
}

async fn speak<S>(stream: S, serving: &Serving, Place { peer, .. }: &Place)
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
    let hurry = async {
        serving.finishes.cancelled().await;
        connection.hurry();
        std::future::pending::<()>().await;
    };
    tokio::select! {
        () = hurry => {}
        reason = connection.closed() => tracing::debug!(%peer, %reason, "connection closed"),
        () = serving.connected.cancelled() => connection.disconnect_because(SHUTTING_DOWN).await,
    }
}

/// The most connections of each kind that a process may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ConnectionsMax {
    /// Connections of Cap'n Proto.
    pub(crate) capnp: usize,
    /// Connections of HTTP.
    pub(crate) http: usize,
    /// Connections for the operator's commands, and as many for readers of the metrics page.
    pub(crate) tools: usize,
}

impl ConnectionsMax {
    /// The numbers that the limit of open files allows a server with this many hosts.
    ///
    /// # Errors
    /// A sentence, when that is too few to serve.
    pub(crate) fn of(hosts: u16) -> Result<Self, String> {
        let open = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
        let open = open.map_or(usize::MAX, |open| usize::try_from(open).unwrap_or(usize::MAX));
        Self::within(open, hosts)
    }

    /// Divides the descriptors, so that no kind takes those of another, or those for everything
    /// else: the storage, links between hosts, the operator, and the metrics page.
    fn within(open: usize, hosts: u16) -> Result<Self, String> {
        let own = DESCRIPTORS_OF_PROCESS + DESCRIPTORS_OF_HOST * usize::from(hosts);
        let tools = (open.saturating_sub(own) / 8).clamp(*TOOLS.start(), *TOOLS.end());
        match open.checked_sub(own + 2 * tools) {
            Some(free) if free >= CONNECTIONS_MIN => {
                Ok(Self { capnp: free - free / 4, http: free / 4, tools })
            }
            _ => Err(format!(
                "--hosts {hosts} needs {} open files at least, and the process may have {open}: raise that \
                 (`ulimit -n`, LimitNOFILE= of systemd), or give fewer --hosts to new data",
                own + 2 * TOOLS.start() + CONNECTIONS_MIN
            )),
        }
    }

    /// The connections to the outside that there may be, of so many that are wanted: half of those
    /// of HTTP at most, which has so many less.
    pub(crate) fn outbound(self, wanted: usize) -> usize {
        wanted.min(self.http / 2)
    }

    /// Warns in the log if there are few.
    pub(crate) fn warn_of_few(self) {
        let connections = self.capnp + self.http;
        if connections < CONNECTIONS_FEW {
            tracing::warn!(
                connections,
                "the limit of open files leaves few connections: raise it (`ulimit -n`)"
            );
        }
    }
}

/// Waits after an error of accepting. Accepting keeps failing while the process has too many files
/// open, and trying again at once would spin.
pub(crate) async fn rest_after(error: &io::Error) {
    const REST: Duration = Duration::from_millis(100);
    tracing::warn!(%error, "can't accept a connection; trying again");
    tokio::time::sleep(REST).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_grows_with_the_hosts_and_too_little_is_refused_with_the_number_that_is_enough()
    {
        let one = ConnectionsMax::within(1024, 1).unwrap();
        assert_eq!((one.capnp, one.http), (636, 212));
        let refused = ConnectionsMax::within(1024, 64).unwrap_err();
        assert!(refused.contains("--hosts 64 needs 1068 open files"), "{refused}");
        let least = ConnectionsMax { capnp: 3, http: 1, tools: 4 };
        assert_eq!(ConnectionsMax::within(1068, 64), Ok(least));
        assert_eq!(ConnectionsMax::within(60, 1), Ok(least));
        for open in [0, 22, 59] {
            ConnectionsMax::within(open, 1).unwrap_err();
        }
        ConnectionsMax::within(usize::MAX, 64).unwrap();
    }
}
