//! The way in by HTTP: its door, its certificate, and the task that serves its clients.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::builder::{CapnpOverHttp, Server};
use super::error::ServerError;
use super::listen::local;
use crate::gateway::{Door, Entrance, Gateway, HttpLimits, Proxies, Routes, is_loopback};
use crate::net::Certificate;

/// The door for HTTP's clients.
///
/// # Errors
/// When an origin or a host is none.
pub(super) fn door(server: &Server) -> Result<Door, ServerError> {
    Door::new(&server.http_origins, &server.http_hosts).map_err(ServerError::Setting)
}

/// The operator's certificate, if there is one.
///
/// # Errors
/// When its files can't be used.
pub(super) fn certificate(server: &Server) -> Result<Option<Arc<Certificate>>, ServerError> {
    let opened = server.certificate.clone().map(Certificate::open).transpose();
    opened.map_err(ServerError::Setting)
}

/// HTTP's way in, if the server has one.
///
/// # Errors
/// When an origin, a host or a proxy is none.
pub(super) fn entrance(
    server: &Server,
    certificate: Option<&Arc<Certificate>>,
) -> Result<Option<Entrance>, ServerError> {
    if server.http.is_none() {
        return Ok(None);
    }
    let door = door(server)?;
    let tls = certificate.map(Certificate::acceptor).transpose().map_err(ServerError::Setting)?;
    let proxies = Proxies::new(&server.http_proxies).map_err(ServerError::Setting)?;
    Ok(Some(Entrance { door, proxies, tls }))
}

/// Tells whether the gateway's way in for Cap'n Proto is at its usual path; none if there is none.
pub(super) fn capnp_way(
    server: &Server,
    routes: &Routes,
    http: Option<SocketAddr>,
) -> Option<bool> {
    let address = http?;
    let is_loopback = is_loopback(address.ip());
    let is_all = server.capnp_over_http == CapnpOverHttp::All && !routes.are_all();
    let is_clear = server.certificate.is_none();
    let has_json = server.json_calls || routes.have_json();
    if (is_all || has_json || routes.take_references()) && !is_loopback && is_clear {
        tracing::warn!(%address, "references come in by HTTP in the clear: whoever is on the way can read and use them; give --http-tls-cert and --http-tls-key, or put a proxy before it that speaks TLS");
    }
    let is_on = match server.capnp_over_http {
        CapnpOverHttp::None => false,
        CapnpOverHttp::Loopback => is_loopback,
        CapnpOverHttp::All => true,
    };
    (is_on || routes.have_capnp()).then_some(is_on && !routes.are_all())
}

/// Serves HTTP until `stop` is cancelled.
///
/// # Errors
/// When the socket can't be used.
pub(super) fn serve_http(
    socket: std::net::TcpListener,
    (entrance, limits): (Entrance, HttpLimits),
    gateway: Rc<Gateway>,
    stop: &CancellationToken,
) -> Result<JoinHandle<()>, ServerError> {
    let address = local(&socket)?;
    if !is_loopback(address.ip()) && entrance.tls.is_none() {
        tracing::warn!(%address, "HTTP is in the clear and asks nobody who they are, but on routes that need a reference: whoever reaches this address may use every object that answers HTTP; name what may be reached in a file for --routes, put a proxy before it that decides, or give --http off");
    }
    let socket = TcpListener::from_std(socket).map_err(capnp::Error::from)?;
    let serve = gateway.serve(socket, entrance, limits, stop.clone().cancelled_owned());
    Ok(tokio::task::spawn_local(serve))
}
