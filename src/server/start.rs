//! Starting and ending a server: first the storage, then the parts, then the listeners; in the
//! opposite order at the end.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use futures::future::{OptionFuture, join_all, select_all};
use tokio::sync::SetOnce;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::admin::{self, AdminSocket};
use super::builder::Server;
use super::classes;
use super::data_dir::DataDir;
use super::error::ServerError;
use super::host::{Common, HostParts, RunningHost, unusable};
use super::host_thread::HostThread;
use super::link::Hub;
use super::listen::{self, Sockets, local};
use super::metrics_page::MetricsPage;
use super::namespaces::start_gateway;
use super::watchdog::Watchdog;
use super::web;
use crate::gateway::{CapnpDoor, Routes};
use crate::host::{Class, ListenerHint, VatOptions, pass_on_replies};
use crate::http::Room;
use crate::limits::SHUTDOWN_SECS;
use crate::metrics::Metrics;
use crate::net::{Certificate, ConnectionsMax, Places, places_within, tls};
use crate::storage::{LocalConfig, StorageError};
use crate::sturdyref::Keys;
use crate::supervisor::Supervisor;

/// A server that has started.
pub struct Running {
    capnp: SocketAddr,
    http: Option<SocketAddr>,
    /// None if HTTP is in the clear.
    certificate: Option<Arc<Certificate>>,
    metrics: Option<SocketAddr>,
    namespaces: BTreeMap<String, String>,
    pub(super) parts: ServerParts,
}

pub(super) struct ServerParts {
    pub(super) host: RunningHost,
    pub(super) threads: Vec<HostThread>,
    supervisor: Rc<Supervisor>,
    gateway: Option<JoinHandle<()>>,
    stop_gateway: CancellationToken,
    metrics_page: Option<MetricsPage>,
    admin: Option<AdminSocket>,
    data: Rc<DataDir>,
    /// As in [`Common`].
    lost: Arc<SetOnce<Arc<StorageError>>>,
}

/// The references are secrets, so only the names of their classes are shown.
impl std::fmt::Debug for Running {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Running")
            .field("capnp", &self.capnp)
            .field("http", &self.http)
            .field("metrics", &self.metrics)
            .field("namespaces", &self.namespaces.keys())
            .finish_non_exhaustive()
    }
}

impl Running {
    /// The address at which it listens for Cap'n Proto.
    pub fn capnp(&self) -> SocketAddr {
        self.capnp
    }

    /// The address at which it listens for HTTP, if it does.
    pub fn http(&self) -> Option<SocketAddr> {
        self.http
    }

    /// The URL of what it serves by HTTP, if it does.
    pub fn http_url(&self) -> Option<String> {
        let scheme = if self.certificate.is_some() { "https" } else { "http" };
        self.http.map(|address| format!("{scheme}://{address}"))
    }

    /// The certificate for HTTP, which may be replaced.
    pub(crate) fn certificate(&self) -> Option<Arc<Certificate>> {
        self.certificate.clone()
    }

    /// The address at which it serves its metrics, if it does.
    pub fn metrics(&self) -> Option<SocketAddr> {
        self.metrics
    }

    /// The root references of all classes, as text. **The holder of one may use every object of the
    /// class.**
    pub fn namespaces(&self) -> &BTreeMap<String, String> {
        &self.namespaces
    }

    /// Serves until `shutdown` resolves, then ends in order: no new connections are accepted, calls
    /// under way are answered, everything is committed.
    ///
    /// # Errors
    /// When the storage failed before or meanwhile: acknowledged writes are durable.
    pub async fn until(self, shutdown: impl Future<Output = ()>) -> Result<(), ServerError> {
        let ServerParts {
            host,
            threads,
            supervisor,
            gateway,
            stop_gateway,
            metrics_page,
            admin,
            data,
            lost,
        } = self.parts;
        let a_thread_ended = async {
            match threads.iter().map(|thread| Box::pin(thread.ended())).collect::<Vec<_>>() {
                ended if ended.is_empty() => std::future::pending().await,
                ended => drop(select_all(ended).await),
            }
        };
        let stop = async {
            tokio::select! { () = shutdown => {}, () = a_thread_ended => {} }
        };
        let mut ended = tokio::select! {
            ended = host.until(stop) => ended,
            error = data.changed() => {
                // No host may acknowledge more, so each of them hears.
                let _ = lost.set(error.clone());
                host.vat.fail_storage(error.clone());
                Err(ServerError::Storage(error.to_string()))
            }
        };
        if let Err(error) = &ended {
            tracing::error!(host = 0, %error, "a host has ended, and the server ends with it");
        }
        stop_gateway.cancel();
        if let Some(admin) = admin {
            admin.stop().await;
        }
        if ended.is_ok() {
            // HTTP requests under way are calls to the hosts, so they finish first.
            let ended = OptionFuture::from(gateway);
            let _ = tokio::time::timeout(Duration::from_secs(SHUTDOWN_SECS), ended).await;
        }
        // All hosts finish before any of them closes: calls cross from one to another.
        threads.iter().for_each(HostThread::finish);
        if ended.is_ok() {
            ended = host.finish().await;
        }
        join_all(threads.iter().map(HostThread::finished)).await;
        if !threads.is_empty() {
            settle(&supervisor).await;
        }
        for thread in threads {
            ended = worse(ended, thread.join().await);
        }
        ended = worse(ended, host.close().await);
        drop(metrics_page);
        ended
    }
}

/// Prefers a failure of the storage over all others, and otherwise the first error.
fn worse(first: Result<(), ServerError>, then: Result<(), ServerError>) -> Result<(), ServerError> {
    match (first, then) {
        (Err(first), Err(then @ ServerError::Storage(_)))
            if !matches!(first, ServerError::Storage(_)) =>
        {
            Err(then)
        }
        (first, then) => first.and(then),
    }
}

/// Lets the last replies cross all hosts that they pass, while every link is whole. A host that
/// doesn't answer loses its replies.
async fn settle(supervisor: &Supervisor) {
    /// Each round moves a reply past one more host.
    const ROUNDS: usize = 4;
    const LIMIT: Duration = Duration::from_secs(1);
    let rounds = async {
        for _ in 0..ROUNDS {
            pass_on_replies().await;
            supervisor.sync().await;
        }
    };
    if tokio::time::timeout(LIMIT, rounds).await.is_err() {
        tracing::warn!("a host takes too long to pass on its last replies");
    }
}

impl Server {
    /// Starts the server on the caller's thread, which must be in a local runtime
    /// (`#[tokio::main(flavor = "local")]`) or in a `LocalSet`.
    ///
    /// # Errors
    /// When it can't start; [`ServerError`] says what is true of the data then.
    pub async fn start(self) -> Result<Running, ServerError> {
        let metrics = Arc::new(Metrics::default());
        let classes = classes::bound_classes(&self, &metrics)?;
        let routes = classes::routes(&self)?;
        listen::check(&self)?;
        // Opened before the directory: a server that can't listen must not make one.
        let sockets = Sockets::open(&self)?;
        let data = Rc::new(DataDir::open(&self.data, self.hosts, self.group)?);
        let started = start_on(data.clone(), self, (classes, routes, metrics), sockets).await;
        if started.is_err() {
            data.unmake();
        }
        started
    }
}

async fn start_on(
    data: Rc<DataDir>,
    server: Server,
    (classes, routes, metrics): (Vec<Class>, Routes, Arc<Metrics>),
    sockets: Sockets,
) -> Result<Running, ServerError> {
    let Sockets { capnp: socket, http, metrics: page } = sockets;
    let certificate = web::certificate(&server)?;
    let entrance = web::entrance(&server, certificate.as_ref())?;
    let page_door = web::door(&server)?;
    let keys = Keys::new(data.keys()?);
    let (capnp, http_address) = (local(&socket)?, http.as_ref().map(local).transpose()?);
    let hint = listen::hint(&server, &socket)?;

    let supervisor = open_supervisor(&server, &data)?;
    let most = ConnectionsMax::of(server.hosts).map_err(ServerError::Setting)?;
    most.warn_of_few();
    let common = common(&server, most, &keys, &hint, &metrics)?;
    let bodies = Room::of_objects(metrics.clone());
    let parts = |number, socket| {
        let vat = vat_options(&server, number, &data, &classes, (&metrics, &bodies), &keys);
        HostParts { number, vat, socket, common: common.clone() }
    };
    let host = parts(0, socket).start(&supervisor.client()).await?;
    let hub = Hub::new(supervisor, metrics.clone());
    let others = (1..server.hosts).map(|number| Ok(parts(number, listen::beside(&server)?)));
    let threads = start_threads(others, &hub).await?;
    let has_json_routes = routes.have_json();
    let capnp_way = web::capnp_way(&server, &routes, http_address);
    let (gateway, references) =
        start_gateway(&host, &keys, &classes, &hint, (routes, &metrics)).await?;
    if server.json_calls || has_json_routes {
        gateway.serve_json(host.agent.restorer());
    }
    if let Some(is_at_path) = capnp_way {
        gateway.serve_capnp(CapnpDoor { guests: host.listener.guests(), is_at_path });
    }
    // Set once, here.
    let _ = hub.gateway.set(gateway.clone());
    let stop_gateway = CancellationToken::new();
    let http_limits = server.http_limits.with_connections(most.http - outbound(&server, most));
    let serve =
        |(http, entrance)| web::serve_http(http, (entrance, http_limits), gateway, &stop_gateway);
    let gateway = http.zip(entrance).map(serve).transpose()?;
    let metrics_address = page.as_ref().map(local).transpose()?;
    let page = page.map(|page| (page, page_door));
    let page = page.map(|(page, door)| MetricsPage::start(page, door, metrics.clone(), most.tools));
    let metrics_page = OptionFuture::from(page).await.transpose().map_err(capnp::Error::from)?;
    let admin = start_admin(&data, keys, &hub, server.hosts, most.tools);
    let supervisor = hub.supervisor.clone();
    let lost = common.lost.clone();
    // An alarm's method may call any object of the server.
    host.vat.fire_alarms();
    threads.iter().for_each(HostThread::fire_alarms);
    let parts = ServerParts {
        host,
        threads,
        supervisor,
        gateway,
        stop_gateway,
        metrics_page,
        admin,
        data,
        lost,
    };
    let (http, metrics, namespaces) = (http_address, metrics_address, references);
    Ok(Running { capnp, http, certificate, metrics, namespaces, parts })
}

fn common(
    server: &Server,
    most: ConnectionsMax,
    keys: &Keys,
    hint: &ListenerHint,
    metrics: &Arc<Metrics>,
) -> Result<Common, ServerError> {
    let wanted = (server.limits.connections, server.limits.connections_per_peer);
    let (connections, of_peer) = places_within(most.capnp, wanted);
    let places = Places::new(connections, of_peer);
    // Set once, here.
    let _ = metrics.held.set(places.budget.clone());
    Ok(Common {
        warm: server.warm,
        watchdog: Watchdog::start(server.turns, metrics.clone()).map_err(capnp::Error::from)?,
        keys: keys.clone(),
        limits: server.limits,
        places,
        tls: server.tls.then(|| tls::acceptor(&keys.current().cluster_pkcs8())).transpose()?,
        hint: hint.clone(),
        is_advertised: server.advertise.is_some(),
        lost: Arc::default(),
    })
}

/// The connections of HTTP that are for calls to the outside.
fn outbound(server: &Server, most: ConnectionsMax) -> usize {
    let wanted = server.outbound.as_ref().map_or(0, |_| server.outbound_limits.connections);
    most.outbound(wanted)
}

fn open_supervisor(server: &Server, data: &DataDir) -> Result<Rc<Supervisor>, ServerError> {
    let config = LocalConfig::open(&data.supervisor()).map_err(unusable(&data.supervisor()))?;
    let supervisor = Supervisor::open(&config, server.hosts);
    let path = || server.data.clone();
    supervisor.map_err(|error| ServerError::Data { path: path(), reason: error.extra })
}

fn vat_options(
    server: &Server,
    number: u16,
    data: &DataDir,
    classes: &[Class],
    (metrics, bodies): (&Arc<Metrics>, &Arc<Room>),
    keys: &Keys,
) -> VatOptions {
    VatOptions {
        name: format!("host-{number}"),
        data: data.host(number),
        classes: classes.to_vec(),
        metrics: metrics.clone(),
        log: server.log,
        retention: server.retention,
        reference_cipher: keys.current().reference_cipher(),
        awake: server.awake.share(server.hosts),
        bodies: bodies.clone(),
    }
}

/// Without its socket a server serves as well, and its operator has to stop it first.
fn start_admin(
    data: &Rc<DataDir>,
    keys: Keys,
    hub: &Rc<Hub>,
    hosts: u16,
    tools: usize,
) -> Option<AdminSocket> {
    let supervisor = hub.supervisor.clone();
    let host = Box::new(move |number| supervisor.host_admin(number));
    let socket = AdminSocket::start(data, admin::serve(data.clone(), keys, hosts, host), tools);
    let warn = |error: &std::io::Error| tracing::warn!(%error, "can't listen on admin.sock: stop the server to export, import or back up");
    socket.inspect_err(warn).ok()
}

/// Starts the hosts that have threads of their own, one after the other. After an error none runs.
async fn start_threads(
    hosts: impl Iterator<Item = Result<HostParts, ServerError>>,
    hub: &Rc<Hub>,
) -> Result<Vec<HostThread>, ServerError> {
    let mut threads = Vec::new();
    for parts in hosts {
        let started = match parts {
            Ok(parts) => start_thread(parts, hub).await,
            Err(error) => Err(error),
        };
        match started {
            Ok(thread) => threads.push(thread),
            Err(error) => {
                // They use files that are removed next.
                for thread in threads {
                    let _ = thread.join().await;
                }
                return Err(error);
            }
        }
    }
    Ok(threads)
}

async fn start_thread(parts: HostParts, hub: &Rc<Hub>) -> Result<HostThread, ServerError> {
    let thread = HostThread::spawn(parts, hub.clone())?;
    thread.ready().await;
    if !thread.has_ended() {
        return Ok(thread);
    }
    // The thread says why.
    thread.join().await?;
    Err(capnp::Error::failed("a host's thread ended at once".into()).into())
}
