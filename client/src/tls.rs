//! TLS towards a cluster that a reference names, by whose own key the server is known; and, for
//! `wss://`, towards a server that is known by its name, as in a browser.
//!
//! A reference carries the hash of the key, so there is no certificate authority, and the names,
//! dates and issuers in the certificate mean nothing. The client checks that the certificate holds
//! the key with this hash, and that this key signed the handshake. It sends nothing before that:
//! there is no early data, and no session is resumed.

use crate::sturdyref::ClusterId;
use ed25519_dalek::VerifyingKey;
use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::version::TLS13;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, PeerIncompatible, SignatureScheme,
};
use std::io;
use std::sync::Arc;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// The protocol that client and server agree on in the handshake.
pub const ALPN: &[u8] = b"capstead/1";

/// In a certificate, these bytes precede the 32 bytes of an Ed25519 public key.
const ED25519_KEY: [u8; 12] =
    [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];

/// The protocol within which a WebSocket is opened.
#[cfg(feature = "websocket")]
pub(crate) const HTTP: &[u8] = b"http/1.1";

fn name_of(address: &str) -> io::Result<ServerName<'static>> {
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
    let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
    ServerName::try_from(host).map_err(io::Error::other)
}

/// Verifies that the other end is the server of that name, as browsers do: by a certificate that
/// one of `roots` vouches for.
#[cfg(feature = "websocket")]
pub(crate) async fn connect_by_name(
    stream: TcpStream,
    address: &str,
    roots: rustls::RootCertStore,
) -> io::Result<TlsStream<TcpStream>> {
    let provider = Arc::new(ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider).with_protocol_versions(&[&TLS13]);
    let config = config.map_err(io::Error::other)?.with_root_certificates(roots);
    let mut config = config.with_no_client_auth();
    config.alpn_protocols = vec![HTTP.to_vec()];
    TlsConnector::from(Arc::new(config)).connect(name_of(address)?, stream).await
}

/// The roots that this machine trusts.
#[cfg(feature = "websocket")]
pub(crate) fn roots_of_machine() -> io::Result<rustls::RootCertStore> {
    let mut roots = rustls::RootCertStore::empty();
    let found = rustls_native_certs::load_native_certs();
    roots.add_parsable_certificates(found.certs);
    if roots.is_empty() {
        let why = "this machine has no certificates of authorities: install ca-certificates, or pin the                    cluster with `dial_tls`";
        return Err(io::Error::other(why));
    }
    Ok(roots)
}

/// Verifies that the other end is a server of `cluster`, which speaks `protocol`. `address` is
/// `host:port`.
pub(crate) async fn connect(
    stream: TcpStream,
    address: &str,
    cluster: ClusterId,
    protocol: &[u8],
) -> io::Result<TlsStream<TcpStream>> {
    let mut config = config(cluster).map_err(io::Error::other)?;
    config.alpn_protocols = vec![protocol.to_vec()];
    let connector = TlsConnector::from(Arc::new(config));
    let stream = connector.connect(name_of(address)?, stream).await.map_err(explain)?;
    // A server may use the same key for another protocol, which isn't meant here.
    if stream.get_ref().1.alpn_protocol() != Some(protocol) {
        return Err(io::Error::other("it doesn't speak the protocol of this client"));
    }
    Ok(stream)
}

fn config(cluster: ClusterId) -> Result<ClientConfig, Error> {
    let provider = Arc::new(ring::default_provider());
    let verifier = Arc::new(ClusterVerifier { cluster, provider: provider.clone() });
    let config = ClientConfig::builder_with_provider(provider).with_protocol_versions(&[&TLS13])?;
    let config = config.dangerous().with_custom_certificate_verifier(verifier);
    let mut config = config.with_no_client_auth();
    config.resumption = Resumption::disabled();
    Ok(config)
}

fn explain(error: io::Error) -> io::Error {
    let cause = error.get_ref().and_then(|cause| cause.downcast_ref());
    match cause {
        Some(Error::InvalidCertificate(_)) => io::Error::new(
            io::ErrorKind::PermissionDenied,
            "the server there can't prove that it belongs to the cluster of the reference",
        ),
        Some(Error::InvalidMessage(_)) => io::Error::new(
            io::ErrorKind::InvalidData,
            "the listener there doesn't speak TLS, by which the reference is to be restored: start its \
             server with --tls, or take the reference that it gives out now",
        ),
        _ => error,
    }
}

/// Accepts the servers of one cluster.
#[derive(Debug)]
struct ClusterVerifier {
    cluster: ClusterId,
    provider: Arc<CryptoProvider>,
}

fn key_in(certificate: &CertificateDer) -> Result<VerifyingKey, Error> {
    let key = ParsedCertificate::try_from(certificate)?.subject_public_key_info();
    let key = key.strip_prefix(&ED25519_KEY).and_then(|key| key.try_into().ok());
    let key = key.and_then(|key| VerifyingKey::from_bytes(key).ok());
    key.ok_or(CertificateError::BadEncoding.into())
}

impl ServerCertVerifier for ClusterVerifier {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer,
        _: &[CertificateDer],
        _: &ServerName,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        if ClusterId::of(&key_in(certificate)?) != self.cluster {
            return Err(CertificateError::ApplicationVerificationFailure.into());
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(PeerIncompatible::ServerTlsVersionIsDisabledByOurConfig.into())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }
}
