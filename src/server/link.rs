//! The link between a host on a thread of its own and the supervisor's thread: a socket pair, which
//! may break and is then made anew automatically.
//!
//! The reasons that end any connection end this one too: a message that the guard refuses, a panic
//! in the RPC library. Every capability that came over it is then broken for good, like the stubs
//! of a client whose connection is lost. Nothing else is affected, and new stubs work as soon as
//! the host has joined again.
//!
//! Invariants:
//! - Links follow each other: the next one is made after the last one has ended for the supervisor,
//!   and the host releases the last one before it joins by the next.
//! - Callers learn of the end: calls under way fail as `disconnected`, and until the host has
//!   joined again both sides answer for each other with a `disconnected` that says so. The gateway
//!   then forgets all that it holds, since some of it may have come by the link.
//! - The host keeps all that is its own: its storage, its awake objects, the connections of its
//!   clients, its number and its shards.
//! - No link ends a host or the process. Only a host that has left ends its links, and then no
//!   further one is made.
//! - Attempts never stop. They rest in between: longer each time, and a quarter of a second at
//!   most.

use std::cell::OnceCell;
use std::os::unix::net::UnixStream;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use capnp_rpc::rpc_twoparty_capnp::Side;
use capstead_client::{Connection, Limits, Relayed};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::host::RunningHost;
use crate::clock::monotonic;
use crate::error::Result;
use crate::gateway::Gateway;
use crate::metrics::Metrics;
use crate::supervisor::Supervisor;

/// The rest before the first attempt: callers that were cut off wait no longer than for a slow
/// disk.
const REST_FIRST: Duration = Duration::from_millis(10);
/// The longest rest, so that a link that breaks each time costs little. After a link that lasted
/// longer than this, the first rest applies again.
const REST_MAX: Duration = Duration::from_millis(250);

/// The limit of bytes that the supervisor's thread has to send on all links before it stops reading
/// them: a few messages for each host, so that a quick host doesn't wait for a slow one.
const RELAYED_BYTES_MAX: usize = 32 << 20;

/// The common end of all links, on the supervisor's thread.
pub(super) struct Hub {
    pub(super) supervisor: Rc<Supervisor>,
    pub(super) metrics: Arc<Metrics>,
    /// Set once the gateway serves.
    pub(super) gateway: OnceCell<Rc<Gateway>>,
    /// Bounds the bytes on their way from one link to another.
    relayed: Relayed,
}

impl Hub {
    pub(super) fn new(supervisor: Rc<Supervisor>, metrics: Arc<Metrics>) -> Rc<Self> {
        let (gateway, relayed) = (OnceCell::new(), Relayed::new(RELAYED_BYTES_MAX));
        Rc::new(Self { supervisor, metrics, gateway, relayed })
    }
}

/// One host's links, as seen by the supervisor's thread.
pub(super) struct HostLink {
    pub(super) hub: Rc<Hub>,
    pub(super) number: u16,
    /// Passes the host its end of each link.
    pub(super) ends: mpsc::Sender<UnixStream>,
    /// The host has left.
    pub(super) left: CancellationToken,
    /// Lets tests end the link from this side.
    #[cfg(test)]
    pub(super) latest: Latest,
}

/// The supervisor's side of the link that was made last.
#[cfg(test)]
pub(super) type Latest = Rc<std::cell::RefCell<Option<Connection>>>;

impl HostLink {
    /// Makes the first link, whose host hasn't started yet.
    ///
    /// # Errors
    /// When the operating system gives no sockets.
    pub(super) fn first(&self) -> Result<Connection> {
        let (near, far) = self.pair()?;
        self.ends.try_send(far).map_err(|error| capnp::Error::failed(error.to_string()))?;
        Ok(near)
    }

    /// Makes a new link each time one breaks, until the host has left and everything that it sent
    /// is read.
    pub(super) async fn keep(self, first: Connection) {
        let (mut connection, mut rest) = (first, REST_FIRST);
        loop {
            let began = monotonic();
            let reason = connection.closed().await;
            if self.left.is_cancelled() {
                break;
            }
            self.broke(&reason);
            if began.elapsed() > REST_MAX {
                rest = REST_FIRST;
            }
            match self.left.run_until_cancelled(self.again(&mut rest)).await.flatten() {
                Some(next) => connection = next,
                None => break,
            }
            self.joined_again();
        }
        self.hub.supervisor.end(self.number);
    }

    /// The next link, once the host has joined by it; none if the host has left.
    async fn again(&self, rest: &mut Duration) -> Option<Connection> {
        loop {
            tokio::time::sleep(*rest).await;
            *rest = (*rest * 2).min(REST_MAX);
            let (near, far) = match self.pair() {
                Ok(pair) => pair,
                Err(error) => {
                    tracing::warn!(host = self.number, %error, "can't make a link to a host yet");
                    continue;
                }
            };
            self.ends.send(far).await.ok()?;
            tokio::select! {
                biased;
                () = self.hub.supervisor.joined(self.number) => return Some(near),
                reason = near.closed() => {
                    tracing::warn!(host = self.number, %reason, "a link to a host broke at once");
                }
            }
        }
    }

    fn pair(&self) -> Result<(Connection, UnixStream)> {
        let (near, far) = UnixStream::pair()?;
        near.set_nonblocking(true)?;
        far.set_nonblocking(true)?;
        let supervisor = self.hub.supervisor.client().client;
        let near = tokio::net::UnixStream::from_std(near)?;
        let (side, limits, all) = (Side::Server, Limits::of_trusted(), &self.hub.relayed);
        let near = Connection::relaying(near, side, Some(supervisor), limits, all)?;
        #[cfg(test)]
        self.latest.replace(Some(near.clone()));
        Ok((near, far))
    }

    fn broke(&self, reason: &capnp::Error) {
        let host = self.number;
        tracing::warn!(host, %reason, "the link to a host broke, and is made anew");
        self.hub.supervisor.cut_off(host);
        self.hub.metrics.hosts_unready.add(1);
    }

    fn joined_again(&self) {
        if let Some(gateway) = self.hub.gateway.get() {
            gateway.forget_all();
        }
        self.hub.metrics.links_remade_total.add(1);
        self.hub.metrics.hosts_unready.subtract(1);
        tracing::info!(host = self.number, "the host has joined again");
    }
}

/// Work that a test runs on a host's thread.
pub(super) type Probe = Box<dyn FnOnce(&RunningHost, &Connection) + Send>;

/// The host's side of its links.
pub(super) struct HostEnd {
    /// The ends of links, one after the other.
    pub(super) ends: mpsc::Receiver<UnixStream>,
    /// The only way by which tests reach the host's thread.
    pub(super) probes: Option<mpsc::Receiver<Probe>>,
}

impl HostEnd {
    /// The next link; none if the supervisor's thread has ended.
    ///
    /// # Errors
    /// When the operating system refuses the socket.
    pub(super) async fn next(&mut self) -> Result<Option<Connection>> {
        let Some(end) = self.ends.recv().await else { return Ok(None) };
        connect(end).map(Some)
    }

    /// Joins by each further link until the host leaves, and then writes everything that was sent.
    pub(super) async fn stay(
        mut self,
        host: &RunningHost,
        mut link: Connection,
        leave: &CancellationToken,
    ) {
        loop {
            tokio::select! {
                _ = link.closed() => host.agent.cut_off(),
                () = leave.cancelled() => return link.disconnect().await,
                probe = probe(&mut self.probes) => {
                    probe(host, &link);
                    continue;
                }
            }
            match leave.run_until_cancelled(self.join_again(host)).await {
                Some(next) => link = next,
                None => return,
            }
        }
    }

    /// Cancel-safe: a link that isn't joined by yet ends when this future is dropped.
    async fn join_again(&mut self, host: &RunningHost) -> Connection {
        loop {
            match self.next().await {
                Ok(Some(link)) => match host.agent.join_again(&link.bootstrap()).await {
                    Ok(()) => return link,
                    // The link ends when it is dropped, and the supervisor makes another.
                    Err(error) => tracing::warn!(%error, "the host can't join again yet"),
                },
                Ok(None) => std::future::pending().await,
                Err(error) => tracing::warn!(%error, "the host can't use its link"),
            }
        }
    }
}

async fn probe(probes: &mut Option<mpsc::Receiver<Probe>>) -> Probe {
    match probes {
        Some(probes) => match probes.recv().await {
            Some(probe) => probe,
            None => std::future::pending().await,
        },
        None => std::future::pending().await,
    }
}

fn connect(end: UnixStream) -> Result<Connection> {
    let socket = tokio::net::UnixStream::from_std(end)?;
    Connection::new(socket, Side::Client, None, Limits::of_trusted())
}
