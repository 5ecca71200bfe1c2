//! The stream of Cap'n Proto in the binary messages of a WebSocket, for peers behind a gateway or a
//! proxy that speaks HTTP alone.
//!
//! The borders of the WebSocket's messages mean nothing: their contents are one stream of bytes.
//! The guard of the connection looks at that stream as at any other.
//!
//! Invariant: at most [`MESSAGE_BYTES_MAX`] wait here in either direction. Everything beyond that
//! is counted by the guard.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use futures::{Sink, Stream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::error::CapacityError;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Bytes, Error, Message};

/// The largest message of the WebSocket, as large as the first message of a stranger may be.
/// Messages of Cap'n Proto may be larger: they go in several.
const MESSAGE_BYTES_MAX: usize = 64 << 10;

/// Connections at rest have small buffers.
const READ_BUFFER_BYTES: usize = 4 << 10;

/// Answers to pings that may wait for a peer that doesn't read, with the head of a message. Further
/// ones are left out; and a peer that then gets no message for want of room is no longer served.
const PONGS_BYTES_MAX: usize = 4 << 10;

/// A WebSocket as a stream of bytes.
#[derive(Debug)]
pub struct WebSocketBytes<S> {
    socket: WebSocketStream<S>,
    /// Came, and was not read yet.
    input: Bytes,
    /// The peer sent its last message, or broke a rule.
    has_ended: bool,
    /// A close frame was sent.
    is_closing: bool,
}

fn config() -> WebSocketConfig {
    WebSocketConfig::default()
        .read_buffer_size(READ_BUFFER_BYTES)
        // Messages are large, or the last ones of a poll: nothing is gained by waiting.
        .write_buffer_size(0)
        .max_write_buffer_size(MESSAGE_BYTES_MAX + PONGS_BYTES_MAX)
        .max_message_size(Some(MESSAGE_BYTES_MAX))
        .max_frame_size(Some(MESSAGE_BYTES_MAX))
}

impl<S: AsyncRead + AsyncWrite + Unpin> WebSocketBytes<S> {
    /// The server's side, once the handshake was answered.
    pub async fn accepted(stream: S) -> Self {
        Self::new(WebSocketStream::from_raw_socket(stream, Role::Server, Some(config())).await)
    }

    /// Opens one at `url`, which is that of the stream's other end.
    pub(crate) async fn open(stream: S, url: &str) -> io::Result<Self> {
        let request = url.into_client_request().map_err(refused)?;
        let opening = tokio_tungstenite::client_async_with_config(request, stream, Some(config()));
        opening.await.map(|(socket, _)| Self::new(socket)).map_err(refused)
    }

    fn new(socket: WebSocketStream<S>) -> Self {
        Self { socket, input: Bytes::new(), has_ended: false, is_closing: false }
    }

    /// Says why it ends, as far as the peer reads.
    fn refuse(&mut self, cx: &mut Context<'_>, code: CloseCode, reason: &str) -> io::Error {
        (self.has_ended, self.is_closing) = (true, true);
        let frame = CloseFrame { code, reason: reason.into() };
        let mut socket = Pin::new(&mut self.socket);
        // A peer that doesn't read learns nothing.
        if let Poll::Ready(Ok(())) = socket.as_mut().poll_ready(cx)
            && socket.as_mut().start_send(Message::Close(Some(frame))).is_ok()
        {
            let _ = socket.poll_flush(cx);
        }
        io::Error::new(io::ErrorKind::InvalidData, reason)
    }
}

/// The answer of a server that opens no WebSocket, in words.
fn refused(error: Error) -> io::Error {
    match error {
        Error::Io(error) => error,
        Error::Http(answer) => io::Error::other(format!(
            "the server there opens no WebSocket for Cap'n Proto, and answers {}",
            answer.status()
        )),
        error => io::Error::other(error),
    }
}

fn lost(error: Error) -> io::Error {
    match error {
        Error::Io(error) => error,
        Error::ConnectionClosed | Error::AlreadyClosed => io::ErrorKind::BrokenPipe.into(),
        error => io::Error::new(io::ErrorKind::InvalidData, error),
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for WebSocketBytes<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        to: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        loop {
            if !this.input.is_empty() {
                let bytes = this.input.split_to(this.input.len().min(to.remaining()));
                to.put_slice(&bytes);
                return Poll::Ready(Ok(()));
            }
            if this.has_ended {
                return Poll::Ready(Ok(()));
            }
            match ready!(Pin::new(&mut this.socket).poll_next(cx)) {
                Some(Ok(Message::Binary(bytes))) => this.input = bytes,
                Some(Ok(Message::Text(_))) => {
                    let reason = "Cap'n Proto comes in binary messages";
                    return Poll::Ready(Err(this.refuse(cx, CloseCode::Unsupported, reason)));
                }
                // The library answers pings.
                Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => {}
                Some(Ok(Message::Close(_))) | None => this.has_ended = true,
                Some(Err(Error::Capacity(CapacityError::MessageTooLong { .. }))) => {
                    let reason = "a message of the WebSocket has at most 65536 bytes; one of Cap'n \
                                  Proto may go in several";
                    return Poll::Ready(Err(this.refuse(cx, CloseCode::Size, reason)));
                }
                Some(Err(error)) => {
                    this.has_ended = true;
                    return Poll::Ready(Err(lost(error)));
                }
            }
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for WebSocketBytes<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        ready!(Pin::new(&mut self.socket).poll_ready(cx)).map_err(lost)?;
        let bytes = &bytes[..bytes.len().min(MESSAGE_BYTES_MAX)];
        let message = Message::Binary(Bytes::copy_from_slice(bytes));
        Pin::new(&mut self.socket).start_send(message).map_err(lost)?;
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(cx).map_err(lost)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.is_closing {
            ready!(Pin::new(&mut self.socket).poll_ready(cx)).map_err(lost)?;
            let frame = CloseFrame { code: CloseCode::Normal, reason: "".into() };
            // After the peer's close frame there is none to send.
            let _ = Pin::new(&mut self.socket).start_send(Message::Close(Some(frame)));
            self.is_closing = true;
        }
        Pin::new(&mut self.socket).poll_flush(cx).map_err(lost)
    }
}
