//! `wss://`: which servers are believed, by name and by cluster.

use super::*;
use crate::http_capnp::web_socket;
use crate::websocket::WebSocketBytes;
use capnp::ErrorKind;
use ed25519_dalek::VerifyingKey;
use rcgen::{CertificateParams, KeyPair, PKCS_ED25519};
use rustls::crypto::ring;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::version::TLS13;
use rustls::{RootCertStore, ServerConfig};
use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tokio_tungstenite::WebSocketStream;

/// Counts its calls.
#[derive(Default)]
struct Heard(Cell<usize>);

impl web_socket::Server for Heard {
    async fn close(
        self: Rc<Self>,
        _: web_socket::CloseParams,
        _: web_socket::CloseResults,
    ) -> capnp::Result<()> {
        self.0.set(self.0.get() + 1);
        Ok(())
    }
}

/// A certificate for `localhost` that vouches for itself, and the cluster whose key it has.
struct Identity {
    key: KeyPair,
    certificate: CertificateDer<'static>,
    cluster: ClusterId,
}

impl Identity {
    fn new() -> Self {
        let key = KeyPair::generate_for(&PKCS_ED25519).unwrap();
        let names = vec!["localhost".to_owned()];
        let certificate = CertificateParams::new(names).unwrap().self_signed(&key).unwrap();
        let public: [u8; 32] = key.public_key_raw().try_into().unwrap();
        let cluster = ClusterId::of(&VerifyingKey::from_bytes(&public).unwrap());
        Self { certificate: certificate.der().clone(), cluster, key }
    }

    fn roots(&self) -> RootCertStore {
        let mut roots = RootCertStore::empty();
        roots.add(self.certificate.clone()).unwrap();
        roots
    }

    /// A gateway with this certificate, and its URL.
    async fn serve(&self, heard: Rc<Heard>) -> (String, String) {
        let key = PrivateKeyDer::try_from(self.key.serialize_der()).unwrap();
        let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()));
        let config = config.with_protocol_versions(&[&TLS13]).unwrap().with_no_client_auth();
        let mut config = config.with_single_cert(vec![self.certificate.clone()], key).unwrap();
        config.alpn_protocols = vec![tls::HTTP.to_vec()];
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::task::spawn_local(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let Ok(stream) = acceptor.accept(stream).await else { continue };
                let Ok(socket) = tokio_tungstenite::accept_async(stream).await else { continue };
                let stream = WebSocketStream::into_inner(socket);
                let stream = WebSocketBytes::accepted(stream).await;
                let offered: web_socket::Client = crate::capability(heard.clone());
                let limits = Limits::default();
                let served = Connection::new(stream, Side::Server, Some(offered.client), limits);
                tokio::task::spawn_local(async move { served.unwrap().closed().await });
            }
        });
        (format!("localhost:{port}"), format!("wss://localhost:{port}/capnp"))
    }
}

async fn is_served(connection: &Connection) {
    let peer: web_socket::Client = connection.bootstrap();
    peer.close_request().send().promise.await.unwrap();
}

#[tokio::test(flavor = "local")]
async fn a_server_is_believed_by_its_name_or_by_its_cluster() {
    let (server, other) = (Identity::new(), Identity::new());
    let heard = Rc::new(Heard::default());
    let (address, url) = server.serve(heard.clone()).await;
    is_served(&Connection::dial_web(&address, &url, server.roots()).await.unwrap()).await;
    is_served(&Connection::dial_tls(&url, server.cluster).await.unwrap()).await;
    assert_eq!(heard.0.get(), 2);

    // The certificate is for `localhost` alone.
    let by_number = url.replace("localhost", "127.0.0.1");
    let number = address.replace("localhost", "127.0.0.1");
    for refused in [
        Connection::dial_web(&address, &url, other.roots()).await,
        Connection::dial_web(&number, &by_number, server.roots()).await,
        Connection::dial(&url).await,
        Connection::dial_tls(&url, other.cluster).await,
    ] {
        let error = refused.unwrap_err();
        assert_eq!(error.kind, ErrorKind::Disconnected, "{error}");
    }
    // It would be asked in the clear.
    let error = Connection::dial_tls("ws://localhost:1/x", server.cluster).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Failed);
    assert_eq!(heard.0.get(), 2);
}
