//! A body that a class writes in parts.

use std::fmt;

use futures::future::LocalBoxFuture;

use super::stream::{Cut, keep, unread, write};
use crate::error::Result;
use crate::limits::HTTP_PART_BYTES;
use crate::schema::http_capnp::byte_stream;

/// A writer of a body.
pub(super) type Write = Box<dyn for<'a> FnOnce(&'a mut Outgoing) -> LocalBoxFuture<'a, Result<()>>>;

/// The body of a response, which [`Body::stream`](super::Body::stream) writes.
pub struct Outgoing {
    stream: byte_stream::Client,
    /// Announced bytes that have yet to be written.
    left: Option<u64>,
}

impl Outgoing {
    pub(super) fn new(stream: byte_stream::Client, size: Option<u64>) -> Self {
        Self { stream, left: size }
    }

    /// Sends the next bytes, which leave when what the object wrote to its storage before is
    /// durable. Returns when more may follow: the client has read, or soon will, what came before.
    ///
    /// # Errors
    /// When the client has gone, or more is sent than the response announced.
    pub async fn send(&mut self, part: impl AsRef<[u8]>) -> Result<()> {
        for piece in part.as_ref().chunks(HTTP_PART_BYTES) {
            if let Some(left) = self.left {
                let left = left.checked_sub(piece.len() as u64);
                self.left = Some(left.ok_or_else(|| Cut::TooLong.error("response"))?);
            }
            write(&self.stream, piece).await?;
        }
        Ok(())
    }

    /// Resolves when nobody reads the body any more, most often since its client has gone: a writer
    /// that waits for something to tell need not find that out with the next part. It may be
    /// awaited beside [`send`](Self::send), and is answered by the gateway and by objects that read
    /// the response with [`send`](super::send); for a reader of another kind it never resolves.
    ///
    /// A client of HTTP/1 that closes its connection looks at first like one that only says no
    /// more: it counts as gone when nothing was sent for
    /// [`HttpLimits::transfer`](crate::HttpLimits::transfer), two minutes.
    pub fn gone(&self) -> impl Future<Output = ()> + use<> {
        unread(&self.stream)
    }

    /// It comes after all parts, and isn't waited for.
    pub(super) fn end(self) -> Result<()> {
        if self.left.is_some_and(|left| left > 0) {
            return Err(Cut::TooShort.error("response"));
        }
        keep(self.stream.end_request().send().promise);
        Ok(())
    }
}

impl fmt::Debug for Outgoing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Outgoing").field("left", &self.left).finish_non_exhaustive()
    }
}
