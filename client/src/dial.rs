//! Connections to addresses: in the clear on this machine, by TLS everywhere.
//!
//! Nothing is ever sent in the clear to another machine, no matter what an address claims.

use crate::connection::Connection;
use crate::limits::Limits;
use crate::sturdyref::{ClusterId, is_loopback};
use crate::tls;
use capnp::Error;
use capnp_rpc::rpc_twoparty_capnp::Side;
use std::fmt::Display;
use std::future::Future;
use std::io;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

/// The time that a listener may take to answer, and then again to prove its cluster, in seconds. An
/// address that swallows all packets is given up then, long before the operating system would. A
/// lost first SYN is sent again after one second.
const DIAL_SECS: u64 = 4;

impl Connection {
    /// Connects to `address`, `host:port`, on this machine, with [`Limits::of_dialler`], and offers
    /// no capability there.
    ///
    /// With the feature `websocket`, `ws://host:port/capnp` goes to the gateway of a server on this
    /// machine. `wss://host/capnp` goes to any machine, by TLS, and the server there proves its
    /// name by a certificate that this machine trusts, as to a browser;
    /// [`dial_tls`](Self::dial_tls) asks for more.
    ///
    /// # Errors
    /// Nothing answers at the address within four seconds, or
    /// [`spawn_local`](tokio::task::spawn_local) is not possible here. `failed` if the address
    /// isn't a loopback one: only [`dial_tls`](Self::dial_tls) and `wss://` connect to others.
    pub async fn dial(address: &str) -> capnp::Result<Self> {
        match Place::of(address)? {
            #[cfg(feature = "websocket")]
            Place { address, url: Some((Scheme::Wss, url)) } => {
                let roots = tls::roots_of_machine().map_err(unreachable(&address))?;
                Self::dial_web(&address, &url, roots).await
            }
            Place { address, url } => {
                let stream = connect_here(&address).await?;
                Self::dialled(stream, &address, url).await
            }
        }
    }

    /// As [`dial`](Self::dial), to any machine, by TLS: the server proves that it belongs to
    /// `cluster` before it is sent anything. The cluster of a reference is
    /// [`Sturdyref::cluster`](crate::sturdyref::Sturdyref::cluster).
    ///
    /// # Errors
    /// Nothing answers at the address within four seconds, or it doesn't prove its cluster within
    /// four more; or [`spawn_local`](tokio::task::spawn_local) is not possible here.
    pub async fn dial_tls(address: &str, cluster: ClusterId) -> capnp::Result<Self> {
        let Place { address, url } = Place::of(address)?;
        let protocol = match &url {
            None => tls::ALPN,
            #[cfg(feature = "websocket")]
            Some((Scheme::Wss, _)) => tls::HTTP,
            Some(_) => {
                let reason = format!("{address} would be asked in the clear: dial wss://{address}");
                return Err(Error::failed(reason));
            }
        };
        let stream = connect(&address).await?;
        let proving = tls::connect(stream, &address, cluster, protocol);
        let stream = in_time(proving).await.map_err(unreachable(&address))?;
        Self::dialled(stream, &address, url).await
    }

    /// Dials a gateway that proves its name by one of these roots.
    #[cfg(feature = "websocket")]
    async fn dial_web(
        address: &str,
        url: &str,
        roots: rustls::RootCertStore,
    ) -> capnp::Result<Self> {
        let stream = connect(address).await?;
        let proving = tls::connect_by_name(stream, address, roots);
        let stream = in_time(proving).await.map_err(unreachable(address))?;
        Self::dialled(stream, address, Some((Scheme::Wss, url.to_owned()))).await
    }

    /// Speaks over a stream, through a WebSocket if the address is a URL.
    async fn dialled<S>(
        stream: S,
        address: &str,
        url: Option<(Scheme, String)>,
    ) -> capnp::Result<Self>
    where
        S: AsyncRead + AsyncWrite + Unpin + 'static,
    {
        let limits = Limits::of_dialler();
        match url {
            None => Self::new(stream, Side::Client, None, limits),
            #[cfg(feature = "websocket")]
            Some((_, url)) => {
                // The handshake takes much room, and those who dial by TCP don't need it.
                let opening = Box::pin(crate::websocket::WebSocketBytes::open(stream, &url));
                let socket = in_time(opening).await.map_err(unreachable(address))?;
                Self::new(socket, Side::Client, None, limits)
            }
            #[cfg(not(feature = "websocket"))]
            Some(_) => Err(Error::failed(format!(
                "{address} is to be dialled over a WebSocket: give the crate capstead-client the feature \
                 websocket"
            ))),
        }
    }
}

/// The kinds of WebSockets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scheme {
    /// In the clear.
    Ws,
    /// By TLS.
    Wss,
}

/// An address, and the URL that it comes from, if it is one of a WebSocket.
#[derive(Debug, PartialEq, Eq)]
struct Place {
    /// `host:port`
    address: String,
    url: Option<(Scheme, String)>,
}

impl Place {
    fn of(text: &str) -> capnp::Result<Self> {
        let with =
            |scheme, prefix, port| text.strip_prefix(prefix).map(|rest| (scheme, rest, port));
        let found = with(Scheme::Ws, "ws://", 80).or_else(|| with(Scheme::Wss, "wss://", 443));
        let Some((scheme, rest, port)) = found else {
            return Ok(Self { address: text.to_owned(), url: None });
        };
        // A URL with more in it might hold a secret, which would go into logs.
        if rest.contains(['#', '?', '@']) {
            let reason = "the URL of a WebSocket has a host and a path alone, like ws://127.0.0.1:8080/capnp: \
                          give the reference to `restore`";
            return Err(Error::failed(reason.into()));
        }
        let host = rest.split('/').next().unwrap_or_default();
        let has_port = host.rfind(':').is_some_and(|at| !host[at..].contains(']'));
        let address = if has_port { host.to_owned() } else { format!("{host}:{port}") };
        Ok(Self { address, url: Some((scheme, text.to_owned())) })
    }
}

/// Connects to an address of this machine.
async fn connect_here(address: &str) -> capnp::Result<TcpStream> {
    let elsewhere = || Error::failed(format!("{address} is not this machine: TLS is needed"));
    if !is_loopback(address) {
        return Err(elsewhere());
    }
    let stream = connect(address).await?;
    let peer = stream.peer_addr().map_err(unreachable(address))?;
    if !peer.ip().to_canonical().is_loopback() {
        return Err(elsewhere());
    }
    Ok(stream)
}

async fn connect(address: &str) -> capnp::Result<TcpStream> {
    let connecting = in_time(TcpStream::connect(address)).await;
    let connected = connecting.and_then(|stream| stream.set_nodelay(true).map(|()| stream));
    connected.map_err(unreachable(address))
}

fn unreachable<E: Display>(address: &str) -> impl Fn(E) -> Error {
    move |cause| Error::disconnected(format!("can't reach {address}: {cause}"))
}

async fn in_time<T>(step: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    let limit = Duration::from_secs(DIAL_SECS);
    let late = |_| io::Error::new(io::ErrorKind::TimedOut, format!("no answer within {limit:?}"));
    tokio::time::timeout(limit, step).await.map_err(late)?
}

#[cfg(test)]
#[cfg(feature = "websocket")]
mod web_tests;

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::TcpListener;

    #[tokio::test(flavor = "local", start_paused = true)]
    async fn an_address_that_is_silent_is_given_up_after_a_while() {
        let error = in_time(std::future::pending::<io::Result<()>>()).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert_eq!(error.to_string(), "no answer within 4s");
    }

    #[tokio::test(flavor = "local", start_paused = true)]
    async fn a_listener_that_proves_nothing_is_given_up_after_a_while() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let dialled = Connection::dial_tls(&address, ClusterId::from_bytes([1; 32])).await;
        let error = dialled.unwrap_err();
        assert_eq!(error.kind, capnp::ErrorKind::Disconnected);
        assert!(error.extra.contains("no answer within 4s"), "{error}");
    }

    #[test]
    fn the_url_of_a_websocket_is_a_host_and_a_path_alone() {
        for (text, address, scheme) in [
            ("127.0.0.1:4000", "127.0.0.1:4000", None),
            ("ws://localhost:8080/capnp", "localhost:8080", Some(Scheme::Ws)),
            ("ws://[::1]/capnp", "[::1]:80", Some(Scheme::Ws)),
            ("wss://app.example", "app.example:443", Some(Scheme::Wss)),
            ("wss://[::1]:9/x", "[::1]:9", Some(Scheme::Wss)),
        ] {
            let place = Place::of(text).unwrap();
            assert_eq!(place.address, address);
            assert_eq!(place.url, scheme.map(|scheme| (scheme, text.to_owned())));
        }
        for text in ["ws://localhost/capnp#secret", "wss://a/?x=secret", "wss://secret@a/"] {
            let error = Place::of(text).unwrap_err();
            assert!(!error.extra.contains("secret"), "{error}");
        }
    }

    // All names but `localhost` may lead anywhere, and none of these is even resolved.
    #[tokio::test(flavor = "local")]
    async fn nothing_but_this_machine_is_dialled_in_the_clear() {
        for address in [
            "192.0.2.1:1",
            "0.0.0.0:1",
            "127.example:1",
            "127.1:1",
            "localhost.:1",
            "[::]:1",
            "[::ffff:192.0.2.1]:1",
            "[2001:db8::1]:1",
            "ws://192.0.2.1/capnp",
            "ws://app.example/capnp",
        ] {
            let error = Connection::dial(address).await.unwrap_err();
            assert_eq!(error.kind, capnp::ErrorKind::Failed, "{address}");
            assert!(error.extra.contains("TLS is needed"), "{error}");
        }
        for address in ["127.0.0.1:1", "127.255.255.254:1", "[::1]:1", "LOCALHOST:1"] {
            let error = Connection::dial(address).await.unwrap_err();
            assert_eq!(error.kind, capnp::ErrorKind::Disconnected, "{address}");
        }
    }
}
