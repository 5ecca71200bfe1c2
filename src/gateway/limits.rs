//! Bounds of what HTTP clients take of a server: connections, time and memory.
//!
//! Invariant: no client holds a place, or bytes of the server, for longer than the pace allows.
//! Invariant: bodies count from their first byte here until the last one has left.

use std::net::IpAddr;
use std::num::NonZeroU32;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Semaphore, SemaphorePermit};

use super::clients::Rate;
use super::route_shares::RouteShares;
use crate::http::{Held, Room};
use crate::limits::{HTTP_HEADER_SECS, SURVIVING_AWAY_SECS};
use crate::metrics::Metrics;
use crate::net::{Peers, Place, Places, places_within};

/// Large bodies that go on by one part each before everybody else has their turn.
const TURNS: usize = 8;

/// The limits of what HTTP clients may take of a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct HttpLimits {
    /// Connections of all clients. On one of HTTP/2, each further request that is under way counts
    /// as another.
    pub connections: usize,
    /// Connections from one address. Behind a proxy all come from that. The addresses of one IPv6
    /// network of 64 bits count as one.
    pub connections_per_peer: usize,
    /// Requests that each client may send in a second, on average, and as many at once; none for no
    /// bound. The clients of one IPv6 network of 64 bits count as one.
    pub requests_per_second: Option<NonZeroU32>,
    /// The time for the head of a request, from the last answer on.
    pub head: Duration,
    /// The time for a small body of a request to come, for a pause in a large one, for an object to
    /// begin its response, and for a pause of the client that takes one.
    pub transfer: Duration,
    /// The bytes that a body or a response moves each second, on average, after ten seconds of
    /// grace; the time in which the object lets the client wait doesn't count.
    pub bytes_per_second: usize,
    /// Bytes of request bodies, and of responses that nobody has taken yet, which the gateway holds
    /// all together. Bodies of up to 64 KiB are let in beyond it: each connection that is counted
    /// has one at a time. Messages that wait for clients of WebSockets count here too, and so do
    /// those that the clients have begun.
    pub body_bytes: usize,
    /// The largest message of a WebSocket's client.
    pub socket_message_bytes: usize,
    /// Bytes that one WebSocket's client hasn't read yet: with more it is cut. A single message may
    /// be larger.
    pub socket_unsent_bytes: usize,
    /// The time after which a WebSocket is cut whose client says nothing, though it is pinged after
    /// half of it.
    pub socket_idle: Duration,
    /// The time for which a WebSocket that survives waits for its object's host: if that isn't back
    /// by then, it is closed with the code 1012.
    pub socket_away: Duration,
}

impl Default for HttpLimits {
    fn default() -> Self {
        Self {
            // Below the files that a process may usually have open, so that Cap'n Proto has some.
            connections: 1024,
            connections_per_peer: 512,
            requests_per_second: None,
            head: Duration::from_secs(HTTP_HEADER_SECS),
            transfer: Duration::from_mins(2),
            bytes_per_second: 16 << 10,
            body_bytes: 256 << 20,
            socket_message_bytes: 1 << 20,
            socket_unsent_bytes: 4 << 20,
            socket_idle: Duration::from_mins(1),
            socket_away: Duration::from_secs(SURVIVING_AWAY_SECS),
        }
    }
}

impl HttpLimits {
    /// The same with at most so many connections.
    pub(crate) fn with_connections(self, most: usize) -> Self {
        let wanted = (self.connections, self.connections_per_peer);
        let (connections, connections_per_peer) = places_within(most, wanted);
        Self { connections, connections_per_peer, ..self }
    }

    /// The time that so many bytes may take.
    pub(super) fn time_for(&self, bytes: usize) -> Duration {
        self.stream_time_for(bytes).min(self.transfer)
    }

    /// The time for which the client may be waited for while so many bytes come of a stream, which
    /// may be as long as it likes.
    pub(super) fn stream_time_for(&self, bytes: usize) -> Duration {
        const GRACE: Duration = Duration::from_secs(10);
        let paced = Duration::from_secs((bytes / self.bytes_per_second.max(1)) as u64);
        GRACE.min(self.transfer).saturating_add(paced)
    }
}

/// The pace of all connections.
pub(super) struct Pace {
    pub(super) limits: HttpLimits,
    pub(super) metrics: Arc<Metrics>,
}

/// The connections and bytes that are taken.
pub(super) struct Taken {
    pub(super) limits: HttpLimits,
    pub(super) metrics: Arc<Metrics>,
    pub(super) pace: Arc<Pace>,
    pub(super) rate: Rate,
    pub(super) shares: Rc<RouteShares>,
    peers: Rc<Peers>,
    room: Arc<Room>,
    /// The turn of those that go on with a large body.
    turns: Semaphore,
}

impl Taken {
    pub(super) fn new(limits: HttpLimits, metrics: Arc<Metrics>) -> Rc<Self> {
        let places = Places::new(limits.connections, limits.connections_per_peer);
        let peers = Peers::new(places, metrics.clone(), |all| &all.http_connections);
        let room = Room::of_gateway(limits.body_bytes, metrics.clone());
        let pace = Arc::new(Pace { limits, metrics: metrics.clone() });
        let rate = Rate::new(limits.requests_per_second);
        let (shares, turns) = (RouteShares::new(metrics.clone()), Semaphore::new(TURNS));
        Rc::new(Self { limits, metrics, pace, rate, shares, peers, room, turns })
    }

    /// The place of one more connection, if there is one.
    pub(super) fn connect(&self, peer: IpAddr) -> Option<Place> {
        let refused = |_: &_| self.metrics.http_connections_refused_total.add(1);
        self.peers.take(peer).inspect_err(refused).ok()
    }

    /// Returns when this one may go on, while others have their turn. Those that wait aren't polled
    /// meanwhile, so that all others wait for a few and not for all.
    pub(super) async fn turn(&self) {
        let _turn = self.hold_turn().await;
        tokio::task::yield_now().await;
    }

    /// The same turn, until it is dropped.
    pub(super) async fn hold_turn(&self) -> Option<SemaphorePermit<'_>> {
        // It is never closed, so there always is one.
        self.turns.acquire().await.ok()
    }

    /// The memory that is counted.
    pub(super) fn room(&self) -> &Arc<Room> {
        &self.room
    }

    /// Memory for a body, of which there is nothing yet.
    pub(super) fn body(&self) -> Held {
        self.room.body()
    }
}
