//! One host of a server: its storage, its listener and its part of the cluster, from its start to
//! its end in order.

use std::cell::OnceCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use capstead_client::Limits;
use tokio::net::TcpListener;
use tokio::sync::SetOnce;
use tokio_rustls::TlsAcceptor;

use super::error::ServerError;
use super::listen::local;
use super::watchdog::{Beating, Watchdog};
use crate::error::panic_reason;
use crate::host::{Agent, ListenerHint, Vat, VatOptions, pass_on_replies};
use crate::limits::SHUTDOWN_SECS;
use crate::membrane::all_passed_on;
use crate::net::{Listener, Places};
use crate::schema::cluster_capnp::supervisor;
use crate::storage::StorageError;
use crate::sturdyref::Keys;

/// Everything that one host needs before it has started.
pub(super) struct HostParts {
    pub(super) number: u16,
    pub(super) vat: VatOptions,
    pub(super) socket: std::net::TcpListener,
    pub(super) common: Common,
}

/// The parts that all hosts of a server share.
#[derive(Clone)]
pub(super) struct Common {
    pub(super) warm: Duration,
    pub(super) watchdog: Watchdog,
    pub(super) keys: Keys,
    pub(super) limits: Limits,
    pub(super) places: Arc<Places>,
    pub(super) tls: Option<TlsAcceptor>,
    /// Written into the texts of references.
    pub(super) hint: ListenerHint,
    /// The operator has chosen the address of the hint.
    pub(super) is_advertised: bool,
    /// The failure of files that belong to all hosts.
    pub(super) lost: Arc<SetOnce<Arc<StorageError>>>,
}

/// A host that serves.
pub(super) struct RunningHost {
    number: u16,
    pub(super) vat: Rc<Vat>,
    pub(super) agent: Rc<Agent>,
    pub(super) listener: Listener,
    watchdog: Watchdog,
    lost: Arc<SetOnce<Arc<StorageError>>>,
    /// Begins when the event loop runs for good: until then its owner may use the thread for other
    /// work.
    beating: OnceCell<Beating>,
}

impl HostParts {
    /// Opens the storage, joins the supervisor, and listens.
    pub(super) async fn start(
        self,
        supervisor: &supervisor::Client,
    ) -> Result<RunningHost, ServerError> {
        let metrics = self.vat.metrics.clone();
        let Common { warm, watchdog, keys, limits, places, tls, hint, is_advertised, lost } =
            self.common;
        // The first host's listener is the server's. The other ones choose ports that an advertised
        // address knows nothing of.
        let address = match self.number {
            number if number > 0 && !is_advertised => local(&self.socket)?.to_string(),
            _ => hint.address.clone(),
        };
        let socket = TcpListener::from_std(self.socket).map_err(capnp::Error::from)?;
        let data = self.vat.data.clone();
        let vat = Vat::open(self.vat).map_err(unusable(&data))?;
        vat.rest_after(warm);
        vat.activity().runs_here();
        watchdog.watch(self.number, vat.activity());
        let agent = Agent::new(vat.clone(), keys);
        agent.join(supervisor, self.number, address, hint).await?;
        let bootstrap = agent.restorer().client;
        let listener = Listener::start(socket, tls, bootstrap, limits, metrics, places);
        let number = self.number;
        let beating = OnceCell::new();
        Ok(RunningHost { number, vat, agent, listener, watchdog, lost, beating })
    }
}

impl RunningHost {
    /// Serves until `stop` resolves.
    ///
    /// # Errors
    /// When the storage failed, or a bug ended what the host can't do without.
    pub(super) async fn until(&self, stop: impl Future<Output = ()>) -> Result<(), ServerError> {
        self.beating.get_or_init(|| self.watchdog.beat(self.number));
        tokio::select! {
            () = stop => Ok(()),
            ended = self.broken() => ended,
        }
    }

    /// Resolves when the host can't continue.
    async fn broken(&self) -> Result<(), ServerError> {
        tokio::select! {
            error = self.vat.failure() => Err(self.storage_failed(&error)),
            reason = self.vat.fault() => Err(ServerError::Host { number: self.number, reason }),
            error = self.lost.wait() => {
                self.vat.fail_storage(error.clone());
                Err(ServerError::Storage(error.to_string()))
            }
        }
    }

    fn storage_failed(&self, error: &StorageError) -> ServerError {
        ServerError::Storage(format!("host {}: {error}", self.number))
    }

    /// Accepts no more calls from outside, and waits until those under way are answered and
    /// everything that was written is durable.
    ///
    /// # Errors
    /// As [`RunningHost::until`].
    pub(super) async fn finish(&self) -> Result<(), ServerError> {
        self.listener.finish();
        self.vat.metrics().hosts_unready.add(1);
        let limit = Duration::from_secs(SHUTDOWN_SECS);
        let finish = async {
            if tokio::time::timeout(limit, self.vat.finish_calls()).await.is_err() {
                tracing::warn!("some calls did not end in time; their callers see a disconnect");
            }
            self.vat.flush().await.map_err(|error| self.storage_failed(&error))
        };
        // A vat that can't continue finishes nothing.
        tokio::select! { finished = finish => finished, ended = self.broken() => ended }
    }

    /// Ends all connections after what was sent has been written, and closes the storage.
    ///
    /// # Errors
    /// When the storage failed.
    pub(super) async fn close(self) -> Result<(), ServerError> {
        pass_on_replies().await;
        // Clients that are still connected read: the others have lost their connections by now.
        let limit = Duration::from_secs(SHUTDOWN_SECS);
        let _ = tokio::time::timeout(limit, all_passed_on()).await;
        self.listener.disconnect().await;
        drop(self.agent);
        // The last commit may take as long as the disk does.
        drop(self.beating);
        // A bug that has ended the host already may make this panic too.
        let close = AssertUnwindSafe(|| self.vat.close());
        let closed = catch_unwind(close).map_err(|panic| {
            let reason = format!("closing panicked: {}", panic_reason(&*panic));
            ServerError::Host { number: self.number, reason }
        })?;
        closed.map_err(|error| ServerError::Storage(format!("host {}: {error}", self.number)))
    }
}

/// Opening a storage failed: nothing was served, and nothing of it was changed.
pub(super) fn unusable(path: &Path) -> impl FnOnce(StorageError) -> ServerError {
    move |error| ServerError::Data { path: path.to_owned(), reason: error.to_string() }
}
