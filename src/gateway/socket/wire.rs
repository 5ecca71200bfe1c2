//! The connection of a WebSocket's client: frames go both ways over it, and while none is read it
//! still tells whether the client is there.
//!
//! Invariant: all that uses it belongs to one task, so nothing waits within a borrow.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use futures::{SinkExt, StreamExt};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use hyper_util::server::conn::auto::upgrade;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio_rustls::server::TlsStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Error, Message};

use super::under_way::{Followed, UnderWay};
use crate::gateway::limits::HttpLimits;
use crate::gateway::paced::{Paced, Presence};

/// Buffers of an idle socket are small; a large message has its own memory while it is here.
const BUFFER_BYTES: usize = 4 << 10;

/// See the head of the file.
pub(super) struct Wire(RefCell<WebSocketStream<Followed<Stream>>>);

impl Wire {
    /// None if the connection is none of the gateway's own.
    pub(super) async fn new(upgraded: Upgraded, under_way: &Rc<UnderWay>) -> Option<Self> {
        let (stream, early) = Stream::of(upgraded)?;
        // None, if it is empty: it would hold the memory in which the head came.
        let early = Some(early).filter(|early| !early.is_empty()).map(Box::new);
        let followed = Followed { stream, early, under_way: under_way.clone() };
        let config = Some(config(&under_way.taken().limits));
        let socket = WebSocketStream::from_raw_socket(followed, Role::Server, config).await;
        Some(Self(RefCell::new(socket)))
    }

    /// The next message; none at the end.
    pub(super) async fn next(&self) -> Option<Result<Message, Error>> {
        poll_fn(|cx| self.0.borrow_mut().poll_next_unpin(cx)).await
    }

    /// Writes frames, and returns when the system has them.
    pub(super) async fn write(&self, frames: Vec<Message>) -> Result<(), Error> {
        for frame in frames {
            poll_fn(|cx| self.0.borrow_mut().poll_ready_unpin(cx)).await?;
            self.0.borrow_mut().start_send_unpin(frame)?;
        }
        self.flush().await
    }

    async fn flush(&self) -> Result<(), Error> {
        poll_fn(|cx| self.0.borrow_mut().poll_flush_unpin(cx)).await
    }

    /// The client as far as it shows without reading.
    pub(super) fn presence(&self) -> Presence {
        self.0.borrow().get_ref().stream.paced().presence()
    }

    /// Ends the connection so that the last frame isn't lost: what the client still sends is thrown
    /// away, as the system would else throw away what it was sent.
    pub(super) async fn end(self) {
        // The answer to the client's close frame may still be here; it may be gone as well.
        let _ = self.flush().await;
        let mut stream = self.0.into_inner().into_inner().stream;
        let mut rest = vec![0; BUFFER_BYTES];
        if stream.shutdown().await.is_ok() {
            while stream.read(&mut rest).await.is_ok_and(|bytes| bytes > 0) {}
        }
    }
}

pub(super) fn config(limits: &HttpLimits) -> WebSocketConfig {
    WebSocketConfig::default()
        .read_buffer_size(BUFFER_BYTES)
        .write_buffer_size(BUFFER_BYTES)
        .max_message_size(Some(limits.socket_message_bytes))
        .max_frame_size(Some(limits.socket_message_bytes))
}

/// The connection without the layers of HTTP that it had.
enum Stream {
    Clear(Paced),
    Encrypted(Box<TlsStream<Paced>>),
}

impl Stream {
    /// With the bytes that came behind the handshake.
    fn of(upgraded: Upgraded) -> Option<(Self, hyper::body::Bytes)> {
        let upgraded = match upgrade::downcast::<TokioIo<Paced>>(upgraded) {
            Ok(parts) => return Some((Self::Clear(parts.io.into_inner()), parts.read_buf)),
            Err(upgraded) => upgraded,
        };
        let parts = upgrade::downcast::<TokioIo<TlsStream<Paced>>>(upgraded).ok()?;
        Some((Self::Encrypted(Box::new(parts.io.into_inner())), parts.read_buf))
    }

    fn paced(&self) -> &Paced {
        match self {
            Self::Clear(paced) => paced,
            Self::Encrypted(stream) => stream.get_ref().0,
        }
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        to: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Clear(stream) => Pin::new(stream).poll_read(cx, to),
            Self::Encrypted(stream) => Pin::new(stream).poll_read(cx, to),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Clear(stream) => Pin::new(stream).poll_write(cx, bytes),
            Self::Encrypted(stream) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Clear(stream) => Pin::new(stream).poll_flush(cx),
            Self::Encrypted(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Clear(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Encrypted(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
