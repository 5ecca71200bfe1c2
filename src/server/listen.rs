//! The addresses of a server: those that are allowed, the sockets that listen on them, and the one
//! that references name.

use std::net::{SocketAddr, TcpListener};

use capstead_client::sturdyref::is_address;

use super::builder::Server;
use super::error::ServerError;
use crate::host::ListenerHint;
use crate::limits::{HOSTS_MAX, INSTANCE_BYTES};
use crate::net::ConnectionsMax;

/// Connections that wait to be accepted, if the system allows that many. In a burst larger than the
/// usual 128, every client would wait a second for the next attempt, honest ones too.
const BACKLOG: i32 = 4096;

/// The flag that says where to listen for Cap'n Proto.
const LISTEN: &str = "--listen";

/// The sockets on which the server listens.
pub(super) struct Sockets {
    pub(super) capnp: TcpListener,
    pub(super) http: Option<TcpListener>,
    pub(super) metrics: Option<TcpListener>,
}

impl Sockets {
    /// # Errors
    /// When one of the addresses can't be listened on: then none is.
    pub(super) fn open(server: &Server) -> Result<Self, ServerError> {
        Ok(Self {
            capnp: bind(server.listen, LISTEN)?,
            http: server.http.map(|address| bind(address, "--http")).transpose()?,
            metrics: server.metrics.map(|address| bind(address, "--metrics")).transpose()?,
        })
    }
}

/// The socket of a further host, on a port that the operating system chooses.
///
/// # Errors
/// When no such socket can be made.
pub(super) fn beside(server: &Server) -> Result<TcpListener, ServerError> {
    bind(SocketAddr::new(server.listen.ip(), 0), LISTEN)
}

/// Refuses settings that can't be served, before anything is made.
pub(super) fn check(server: &Server) -> Result<(), ServerError> {
    check_hosts(server.hosts)?;
    ConnectionsMax::of(server.hosts).map_err(ServerError::Setting)?;
    server.turns.check()?;
    check_awake(server)?;
    check_tls(server)?;
    check_advertised(server)
}

/// Each host needs room for one object.
fn check_awake(server: &Server) -> Result<(), ServerError> {
    let share = server.awake.share(server.hosts);
    if share.objects > 0 && share.bytes >= INSTANCE_BYTES {
        return Ok(());
    }
    let reason = format!(
        "no object could wake: give each of {} hosts at least one of --awake-objects, and \
         {INSTANCE_BYTES} of --awake-bytes",
        server.hosts
    );
    Err(ServerError::Setting(reason))
}

fn check_hosts(hosts: u16) -> Result<(), ServerError> {
    if (1..=HOSTS_MAX).contains(&hosts) {
        return Ok(());
    }
    Err(ServerError::Setting(format!("a server has 1 to {HOSTS_MAX} hosts, not {hosts}")))
}

/// Without TLS, references would cross the network readable.
fn check_tls(server: &Server) -> Result<(), ServerError> {
    let address = server.listen;
    if server.tls || address.ip().is_loopback() {
        return Ok(());
    }
    let reason = "it isn't a loopback address, and references are secrets: give --tls (in a program \
                  `Server::tls`), or listen on 127.0.0.1";
    let source = std::io::Error::new(std::io::ErrorKind::Unsupported, reason);
    Err(ServerError::Listen { flag: LISTEN, address, source })
}

/// This address is part of every reference that is given out, so it is checked.
fn check_advertised(server: &Server) -> Result<(), ServerError> {
    let Some(address) = &server.advertise else { return Ok(()) };
    if is_address(address) {
        return Ok(());
    }
    let reason = format!(
        "can't advertise {address:?}: give --advertise host:port, where the host is a name, an IPv4 address, or an \
         IPv6 address in brackets"
    );
    Err(ServerError::Setting(reason))
}

/// The address that references name as the place where clients reach the server: what the operator
/// advertises, or that of the first listener, with the port that the operating system chose where
/// none was asked for.
///
/// # Errors
/// When the system doesn't tell the listener's port.
pub(super) fn hint(server: &Server, listener: &TcpListener) -> Result<ListenerHint, ServerError> {
    let address = match &server.advertise {
        Some(address) => address.clone(),
        None => local(listener)?.to_string(),
    };
    Ok(ListenerHint { address, tls: server.tls })
}

fn bind(address: SocketAddr, flag: &'static str) -> Result<TcpListener, ServerError> {
    let bound = TcpListener::bind(address).and_then(|socket| {
        socket.set_nonblocking(true)?;
        rustix::net::listen(&socket, BACKLOG)?;
        Ok(socket)
    });
    bound.map_err(|source| ServerError::Listen { flag, address, source })
}

pub(super) fn local(socket: &TcpListener) -> Result<SocketAddr, ServerError> {
    Ok(socket.local_addr().map_err(capnp::Error::from)?)
}
