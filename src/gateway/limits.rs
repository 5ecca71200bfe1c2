//! Bounds of what HTTP clients take of a server: connections, time and memory.
//!
//! Invariant: nobody holds a place, or bytes of the server, for longer than the pace allows.
//! Invariant: bodies count from their first byte here until the last one has left.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crate::limits::HTTP_HEADER_SECS;
use crate::metrics::Metrics;

/// The limits of what HTTP clients may take of a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct HttpLimits {
    /// Connections of all clients.
    pub connections: usize,
    /// Connections from one address. Behind a proxy all come from that.
    pub connections_per_peer: usize,
    /// The time for the head of a request, from the last answer on.
    pub head: Duration,
    /// The time for the body of a request to come, and for a response to be taken.
    pub transfer: Duration,
    /// The bytes that a body or a response moves each second, on average, after ten seconds of grace.
    pub bytes_per_second: usize,
    /// Bytes of request bodies, and of responses that nobody has taken yet, which the gateway holds all
    /// together. Bodies of up to 64 KiB are let in beyond it: each connection has one at a time.
    pub body_bytes: usize,
}

impl Default for HttpLimits {
    fn default() -> Self {
        Self {
            // Below the files that a process may usually have open, so that Cap'n Proto has some.
            connections: 1024,
            connections_per_peer: 512,
            head: Duration::from_secs(HTTP_HEADER_SECS),
            transfer: Duration::from_mins(2),
            bytes_per_second: 16 << 10,
            body_bytes: 256 << 20,
        }
    }
}

impl HttpLimits {
    /// The same with at most so many connections.
    pub(crate) fn with_connections(self, most: usize) -> Self {
        Self { connections: self.connections.min(most), ..self }
    }

    /// The time that so many bytes may take.
    pub(super) fn time_for(&self, bytes: usize) -> Duration {
        const GRACE: Duration = Duration::from_secs(10);
        let paced = Duration::from_secs((bytes / self.bytes_per_second.max(1)) as u64);
        GRACE.saturating_add(paced).min(self.transfer)
    }
}

/// The connections and bytes that are taken.
pub(super) struct Taken {
    pub(super) limits: HttpLimits,
    pub(super) metrics: Arc<Metrics>,
    connections: Cell<usize>,
    peers: RefCell<HashMap<IpAddr, usize>>,
    room: Arc<Room>,
}

impl Taken {
    pub(super) fn new(limits: HttpLimits, metrics: Arc<Metrics>) -> Rc<Self> {
        let room =
            Room { held: AtomicUsize::new(0), most: limits.body_bytes, metrics: metrics.clone() };
        Rc::new(Self {
            limits,
            metrics,
            connections: Cell::default(),
            peers: RefCell::default(),
            room: Arc::new(room),
        })
    }

    /// The place of one more connection, if there is one.
    pub(super) fn connect(self: &Rc<Self>, peer: IpAddr) -> Option<Place> {
        let mut peers = self.peers.borrow_mut();
        let places = peers.get(&peer).copied().unwrap_or_default();
        let is_full = self.connections.get() >= self.limits.connections;
        if is_full || places >= self.limits.connections_per_peer {
            self.metrics.http_connections_refused_total.add(1);
            return None;
        }
        peers.insert(peer, places + 1);
        self.connections.set(self.connections.get() + 1);
        self.metrics.http_connections.add(1);
        Some(Place { taken: self.clone(), peer })
    }

    /// Memory for a body, of which there is nothing yet.
    pub(super) fn body(&self) -> Held {
        Held { room: self.room.clone(), bytes: Vec::new() }
    }
}

/// One of the connections.
pub(super) struct Place {
    taken: Rc<Taken>,
    peer: IpAddr,
}

impl Drop for Place {
    fn drop(&mut self) {
        let Self { taken, peer } = self;
        taken.connections.set(taken.connections.get() - 1);
        taken.metrics.http_connections.subtract(1);
        let mut peers = taken.peers.borrow_mut();
        if let Some(places) = peers.get_mut(peer) {
            *places -= 1;
            if *places == 0 {
                peers.remove(peer);
            }
        }
    }
}

/// The memory for bodies of both kinds.
struct Room {
    held: AtomicUsize,
    most: usize,
    metrics: Arc<Metrics>,
}

/// The bytes of one body. The connection that writes them drops them wherever it is done.
pub(super) struct Held {
    room: Arc<Room>,
    pub(super) bytes: Vec<u8>,
}

impl Held {
    /// Takes these bytes too, and tells whether there was memory for them.
    pub(super) fn extend(&mut self, bytes: &[u8]) -> bool {
        /// Those that read slowly can't keep small answers from all others.
        const SMALL_BYTES: usize = 64 << 10;
        let Room { held, most, metrics } = &*self.room;
        let now = held.load(Ordering::Relaxed) + bytes.len();
        if now > *most && self.bytes.len() + bytes.len() > SMALL_BYTES {
            metrics.http_bodies_refused_total.add(1);
            return false;
        }
        held.fetch_add(bytes.len(), Ordering::Relaxed);
        metrics.http_body_bytes.add(bytes.len() as u64);
        self.bytes.extend_from_slice(bytes);
        true
    }
}

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let Room { held, metrics, .. } = &*self.room;
        held.fetch_sub(self.bytes.len(), Ordering::Relaxed);
        metrics.http_body_bytes.subtract(self.bytes.len() as u64);
    }
}
