//! Any bytes as the frames of a WebSocket's client, cut anywhere. Built for fuzzers only.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures::StreamExt;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::error::ProtocolError;
use tokio_tungstenite::tungstenite::protocol::Role;
use tokio_tungstenite::tungstenite::{Error, Message};

use super::under_way::{Followed, UnderWay};
use super::wire::config;
use crate::gateway::limits::{HttpLimits, Taken};

/// A client that says this, so many bytes at a time, and takes all that it is told.
struct Said<'a> {
    bytes: &'a [u8],
    step: usize,
}

impl AsyncRead for Said<'_> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        to: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let length = self.step.min(self.bytes.len()).min(to.remaining());
        let (here, rest) = self.bytes.split_at(length);
        to.put_slice(here);
        self.bytes = rest;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Said<'_> {
    fn poll_write(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// The first byte says how the others are cut. The library, which reads the frames, and the count
/// that follows them find the same messages.
pub(in crate::gateway) async fn frames(bytes: &[u8]) {
    let Some((step, bytes)) = bytes.split_first() else { return };
    let taken = Taken::new(HttpLimits::default(), Arc::default());
    let under_way = UnderWay::new(&taken);
    let stream = Said { bytes, step: usize::from(*step) + 1 };
    let followed = Followed { stream, early: None, under_way: under_way.clone() };
    let config = Some(config(&taken.limits));
    let mut socket = WebSocketStream::from_raw_socket(followed, Role::Server, config).await;
    let mut messages = 0;
    let error = loop {
        match socket.next().await {
            Some(Ok(Message::Text(_) | Message::Binary(_))) => messages += 1,
            Some(Ok(_)) => {}
            Some(Err(error)) => break Some(error),
            None => break None,
        }
        assert!(messages <= under_way.ended());
    };
    // All was read, and understood.
    if let Some(Error::Protocol(ProtocolError::ResetWithoutClosingHandshake)) = error {
        assert_eq!(messages, under_way.ended());
    }
    drop((socket, under_way));
    assert!(taken.room().has_room(taken.limits.body_bytes), "none of its memory is left");
}

/// Frames with which a fuzzer begins.
pub(in crate::gateway) fn samples() -> Vec<Vec<u8>> {
    let text = b"\x81\x85\0\0\0\0hello".as_slice();
    let parts = b"\x01\x83\x01\x01\x01\x01abc\x89\x81\0\0\0\0x\x80\x82\0\0\0\0de".as_slice();
    let long = [b"\x82\xfe\x01\x00\0\0\0\0".as_slice(), &[7; 256]].concat();
    let huge = b"\x82\xff\0\0\0\0\0\x01\0\0\0\0\0\0abc".as_slice();
    let close = b"\x88\x85\0\0\0\0\x03\xe8bye".as_slice();
    let all = [text, parts, &long, close];
    vec![[&[2], all.concat().as_slice()].concat(), [&[255], huge].concat()]
}
