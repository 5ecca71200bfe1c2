//! The beginning of a connection by TLS.

use std::io;
use std::time::Duration;

use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::paced::Paced;
use crate::net::tls;

/// The answer to a browser that was given `http://` instead of `https://`.
const IN_THE_CLEAR: &[u8] =
    b"HTTP/1.1 400 Bad Request\r\ncontent-type: text/plain; charset=utf-8\r\n\
    content-length: 43\r\nconnection: close\r\n\r\nThis is HTTPS: the URL begins with https://\n";

/// The first byte of all that TLS sends first.
const HANDSHAKE: u8 = 22;

/// Does the handshake with a client, which must finish its part in this time.
///
/// # Errors
/// When it doesn't, or speaks HTTP in the clear: then it was told so.
pub(super) async fn handshake(
    tls: &TlsAcceptor,
    stream: Paced,
    limit: Duration,
) -> io::Result<TlsStream<Paced>> {
    let mut first = [0];
    let seen = tokio::time::timeout(limit, stream.peek(&mut first)).await;
    if matches!(seen, Ok(Ok(1))) && first != [HANDSHAKE] {
        stream.say(IN_THE_CLEAR);
        return Err(io::Error::new(io::ErrorKind::InvalidData, "it speaks in the clear"));
    }
    tls::handshake(tls, stream, limit).await
}
