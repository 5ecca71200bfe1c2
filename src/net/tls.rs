//! The proof of a listener by TLS that its server has the key of the cluster.
//!
//! The certificate is made in memory, the same at each start, and signed by the key that it holds.
//! Clients know the key by its hash, so nothing else in the certificate matters. No session is
//! resumed and there is no early data: every connection has the whole handshake, and forward
//! secrecy.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use capstead_client::ALPN;
use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair};
use rustls::ServerConfig;
use rustls::crypto::ring;
use rustls::pki_types::PrivatePkcs8KeyDer;
use rustls::server::NoServerSessionStorage;
use rustls::version::TLS13;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::error::{Result, failed};

/// The name in the certificate, for clients whose library requires one.
const NAME: &str = "capstead";

/// Makes an acceptor for a server of the cluster with this Ed25519 key, in PKCS #8 form.
///
/// # Errors
/// The bytes are no such key.
pub(crate) fn acceptor(pkcs8: &[u8]) -> Result<TlsAcceptor> {
    let pkcs8 = PrivatePkcs8KeyDer::from(pkcs8);
    let wrong = |error: &dyn std::error::Error| failed(format!("no TLS: {error}"));
    let key = KeyPair::try_from(&pkcs8).map_err(|error| wrong(&error))?;
    let mut params = CertificateParams::new([NAME.to_owned()]).map_err(|error| wrong(&error))?;
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, NAME);
    let certificate = params.self_signed(&key).map_err(|error| wrong(&error))?;

    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()));
    let config = config.with_protocol_versions(&[&TLS13]).map_err(|error| wrong(&error))?;
    let config = config
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], pkcs8.clone_key().into());
    let mut config = config.map_err(|error| wrong(&error))?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.send_tls13_tickets = 0;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    Ok(TlsAcceptor::from(Arc::new(config)))
}

/// Does the handshake with a peer, which must finish its part in this time.
pub(crate) async fn handshake<S: AsyncRead + AsyncWrite + Unpin>(
    tls: &TlsAcceptor,
    stream: S,
    limit: Duration,
) -> io::Result<TlsStream<S>> {
    let late = |_| Err(io::Error::new(io::ErrorKind::TimedOut, "it took too long"));
    tokio::time::timeout(limit, tls.accept(stream)).await.unwrap_or_else(late)
}

#[cfg(test)]
mod tests {
    use capstead_client::{Connection, Limits};
    use ed25519_dalek::SigningKey;
    use tokio::io::AsyncReadExt;
    use tokio::net::{TcpListener, TcpStream};

    use super::*;
    use crate::metrics::Metrics;
    use crate::net::{Listener, Places};
    use crate::sturdyref::KeyRing;

    fn keys() -> KeyRing {
        let key = |seed| SigningKey::from_bytes(&[seed; 32]);
        KeyRing::new(key(1), vec![key(2)])
    }

    async fn listen(limits: Limits) -> (Listener, Arc<Metrics>, String, KeyRing) {
        let keys = keys();
        let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = socket.local_addr().unwrap().to_string();
        let tls = Some(acceptor(&keys.cluster_pkcs8()).unwrap());
        let bootstrap = capnp_rpc::new_broken_cap(failed("nothing is here"));
        let metrics = Arc::new(Metrics::default());
        let listener =
            Listener::start(socket, tls, bootstrap, limits, metrics.clone(), Places::new(9, 9));
        (listener, metrics, address, keys)
    }

    // A peer that is silent, or never finishes, occupies one of its address's places, and must not
    // do so for long.
    #[tokio::test(flavor = "local")]
    async fn a_peer_that_does_not_finish_the_handshake_is_cut() {
        let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut silent = TcpStream::connect(socket.local_addr().unwrap()).await.unwrap();
        let (stream, _) = socket.accept().await.unwrap();
        let tls = acceptor(&keys().cluster_pkcs8()).unwrap();
        let shaken = handshake(&tls, stream, Duration::from_millis(1)).await;
        assert_eq!(shaken.err().unwrap().kind(), io::ErrorKind::TimedOut);
        assert_eq!(silent.read(&mut [0]).await.unwrap(), 0);
    }

    #[tokio::test(flavor = "local")]
    async fn a_handshake_has_a_place_and_does_not_hold_up_the_end() {
        let limits = Limits { connections_per_peer: 2, ..Limits::default() };
        let (listener, metrics, address, keys) = listen(limits).await;
        let mut silent = TcpStream::connect(&address).await.unwrap();
        let connection = Connection::dial_tls(&address, keys.cluster()).await.unwrap();
        assert_eq!(metrics.connections.get(), 2);
        let mut third = TcpStream::connect(&address).await.unwrap();
        assert_eq!(third.read(&mut [0]).await.unwrap(), 0, "it is refused without a word");
        listener.disconnect().await;
        assert_eq!(silent.read(&mut [0]).await.unwrap(), 0);
        connection.closed().await;
    }
}
