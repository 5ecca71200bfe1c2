//! Connections to addresses: in the clear on this machine, by TLS everywhere.
//!
//! Nothing is ever sent in the clear to another machine, no matter what an address claims.

use crate::connection::Connection;
use crate::guard::limits::Limits;
use crate::sturdyref::{ClusterId, is_loopback};
use crate::tls;
use capnp::Error;
use capnp_rpc::rpc_twoparty_capnp::Side;
use std::fmt::Display;
use std::future::Future;
use std::io;
use std::time::Duration;
use tokio::net::TcpStream;

/// The time that a listener may take to answer, and then again to prove its cluster, in seconds. An
/// address that swallows all packets is given up then, long before the operating system would. A
/// lost first SYN is sent again after one second.
const DIAL_SECS: u64 = 4;

impl Connection {
    /// Connects to `address`, `host:port`, on this machine, with [`Limits::of_dialler`], and offers
    /// no capability there.
    ///
    /// # Errors
    /// Nothing answers at the address within four seconds, or
    /// [`spawn_local`](tokio::task::spawn_local) is not possible here. `failed` if the address
    /// isn't a loopback one: only [`dial_tls`](Self::dial_tls) connects to others.
    pub async fn dial(address: &str) -> capnp::Result<Self> {
        let elsewhere = || Error::failed(format!("{address} is not this machine: TLS is needed"));
        if !is_loopback(address) {
            return Err(elsewhere());
        }
        let stream = connect(address).await?;
        let peer = stream.peer_addr().map_err(unreachable(address))?;
        if !peer.ip().to_canonical().is_loopback() {
            return Err(elsewhere());
        }
        Self::new(stream, Side::Client, None, Limits::of_dialler())
    }

    /// As [`dial`](Self::dial), to any machine, by TLS: the server proves that it belongs to
    /// `cluster` before it is sent anything. The cluster of a reference is
    /// [`Sturdyref::cluster`](crate::sturdyref::Sturdyref::cluster).
    ///
    /// # Errors
    /// Nothing answers at the address within four seconds, or it doesn't prove its cluster within
    /// four more; or [`spawn_local`](tokio::task::spawn_local) is not possible here.
    pub async fn dial_tls(address: &str, cluster: ClusterId) -> capnp::Result<Self> {
        let stream = connect(address).await?;
        let proving = tls::connect(stream, address, cluster);
        let stream = in_time(proving).await.map_err(unreachable(address))?;
        Self::new(stream, Side::Client, None, Limits::of_dialler())
    }
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
