//! Connections to servers outside, in the clear or by TLS.

use std::io;
use std::sync::Arc;

use rustls::crypto::ring;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_util::either::Either;

use super::origin::Origin;

pub(super) type Stream = Either<TcpStream, TlsStream<TcpStream>>;

/// The protocol that is spoken (RFC 7301).
const HTTP: &[u8] = b"http/1.1";

/// Believes the authorities that this machine trusts.
///
/// # Errors
/// A sentence, when there is none.
pub(super) fn tls() -> Result<TlsConnector, String> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if roots.is_empty() {
        return Err("this machine has no certificates of authorities, by which an `https` origin \
                    proves that it is one: install ca-certificates, or set SSL_CERT_FILE"
            .to_owned());
    }
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()));
    let config = config.with_safe_default_protocol_versions().map_err(|error| error.to_string())?;
    let mut config = config.with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = vec![HTTP.to_vec()];
    Ok(TlsConnector::from(Arc::new(config)))
}

/// Nothing was sent of a request if this fails.
pub(super) async fn connect(origin: &Origin, tls: Option<&TlsConnector>) -> io::Result<Stream> {
    let (host, port) = origin.address();
    let stream = TcpStream::connect((host, port)).await?;
    stream.set_nodelay(true)?;
    if !origin.is_tls {
        return Ok(Either::Left(stream));
    }
    let tls = tls.ok_or_else(|| io::Error::other("there is no TLS"))?;
    let name = ServerName::try_from(host.to_owned()).map_err(io::Error::other)?;
    Ok(Either::Right(tls.connect(name, stream).await?))
}
