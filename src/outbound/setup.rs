//! The settings of the way out, which all hosts of a server share.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio_rustls::TlsConnector;

use super::dial;
use super::origin::Destination;
use crate::limits::{OUTBOUND_BODY_BYTES_MAX, OUTBOUND_CONNECTIONS_MAX, OUTBOUND_IDLE_SECS};
use crate::metrics::Metrics;

/// Limits of the requests that objects make of servers outside.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct OutboundLimits {
    /// The time for which nothing moves either way, before a request ends; two minutes by default.
    /// The head of a response has that time too. A WebSocket's other side is pinged after half of
    /// it.
    pub idle: Duration,
    /// The bytes of the body of a request, and of that of a response; 1 GiB by default.
    pub body_bytes: u64,
    /// Requests and WebSockets of all objects at once; 256 by default, and at most an eighth of the
    /// files that the process may open.
    pub connections: usize,
}

impl Default for OutboundLimits {
    fn default() -> Self {
        Self {
            idle: Duration::from_secs(OUTBOUND_IDLE_SECS),
            body_bytes: OUTBOUND_BODY_BYTES_MAX,
            connections: OUTBOUND_CONNECTIONS_MAX,
        }
    }
}

/// See the head of the file.
pub(crate) struct Setup {
    allowed: Vec<Destination>,
    pub(super) limits: OutboundLimits,
    /// Those that are left for requests.
    pub(super) places: Semaphore,
    /// None if no origin needs it.
    pub(super) tls: Option<TlsConnector>,
    pub(super) metrics: Arc<Metrics>,
}

impl Setup {
    /// Lets objects call these origins, or these parts of them, by so many connections at once.
    ///
    /// # Errors
    /// A sentence, when one is no origin, or this machine trusts nobody.
    pub(crate) fn new(
        allowed: &[String],
        limits: OutboundLimits,
        connections: usize,
        metrics: Arc<Metrics>,
    ) -> Result<Self, String> {
        let allowed: Vec<_> =
            allowed.iter().map(|text| Destination::parse(text)).collect::<Result<_, _>>()?;
        let needs_tls = allowed.iter().any(|target| target.origin.is_tls);
        let tls = needs_tls.then(dial::tls).transpose()?;
        Ok(Self { allowed, limits, places: Semaphore::new(connections), tls, metrics })
    }

    /// The names of the objects for what is allowed.
    pub(crate) fn names(&self) -> Vec<String> {
        self.allowed.iter().map(ToString::to_string).collect()
    }

    pub(super) fn allows(&self, target: &Destination) -> bool {
        self.allowed.iter().any(|allowed| allowed.has(target))
    }

    /// Tells whether the operator named it.
    pub(super) fn is_named(&self, target: &Destination) -> bool {
        self.allowed.contains(target)
    }
}

impl fmt::Debug for Setup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Setup").field("allowed", &self.allowed).finish_non_exhaustive()
    }
}
