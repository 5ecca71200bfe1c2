//! Bodies in parts, as a class reads and writes them.

use std::fmt;
use std::time::Duration;

use futures::future::LocalBoxFuture;
use http::StatusCode;

use super::Body;
use super::refusal::{Refusal, refuse};
use super::room::{Held, Room};
use super::stream::{Cut, Flow, Progress, Reader, keep, unread, write};
use crate::error::{Result, failed};
use crate::limits::{
    HTTP_BODY_BYTES_MAX, HTTP_BODY_SECS, HTTP_PART_BYTES, HTTP_RESPONSE_BYTES_MAX,
};
use crate::schema::http_capnp::{byte_stream, http_request, http_service};

/// The body of a request, of which a part may be here.
///
/// Nothing is asked for before the first read: a client that waits to be told to send
/// (`Expect: 100-continue`) is told then. While the class doesn't read, only a little is sent, and
/// waits.
pub struct Incoming {
    size: Option<u64>,
    source: Source,
}

enum Source {
    /// There is nothing, or no more.
    Ended,
    /// The stream by which it comes has yet to be offered.
    Unasked(http_service::RequestResults),
    Coming(Reader),
}

impl Incoming {
    pub(super) fn new(
        asked: http_request::Reader<'_>,
        results: http_service::RequestResults,
    ) -> Result<Self> {
        use http_request::body_size::{Fixed, Unknown};
        Ok(match asked.get_body_size().which()? {
            Fixed(0) => Self { size: Some(0), source: Source::Ended },
            Fixed(size) => Self { size: Some(size), source: Source::Unasked(results) },
            Unknown(()) => Self { size: None, source: Source::Unasked(results) },
        })
    }

    /// The number of bytes of the whole body, if the client announced it. No other number of them
    /// comes without an error.
    pub fn size(&self) -> Option<u64> {
        self.size
    }

    /// The next bytes, as many as are here, as soon as there are any; none at the end. Other calls
    /// of the object go on meanwhile, unless its class is exclusive.
    ///
    /// The body is whole only if its end was read.
    ///
    /// # Errors
    /// When the sender has gone, or sent another number of bytes than it announced.
    pub async fn next(&mut self) -> Result<Option<Vec<u8>>> {
        let Some(reader) = self.reader()? else { return Ok(None) };
        match reader.next().await {
            Ok(Some(part)) => Ok(Some(part.into_bytes())),
            Ok(None) => {
                self.source = Source::Ended;
                Ok(None)
            }
            Err(cut) => Err(cut.error("request")),
        }
    }

    /// All that wasn't read yet, at most 1 MiB.
    ///
    /// # Errors
    /// 413 when it is more; 400 when the sender has gone or sent another number of bytes than it
    /// announced; 408 when it doesn't come within two minutes.
    pub async fn whole(mut self) -> std::result::Result<Body, Refusal> {
        if self.size.is_some_and(|size| size > HTTP_BODY_BYTES_MAX as u64) {
            return Err(refused(Cut::TooLarge));
        }
        match self.reader()? {
            None => Ok(Body::default()),
            Some(reader) => {
                reader.collect(HTTP_BODY_BYTES_MAX);
                let body = whole_within(reader, Duration::from_secs(HTTP_BODY_SECS)).await?;
                Ok(Body::from(body.map(Held::into_bytes).unwrap_or_default()))
            }
        }
    }

    /// None at the end.
    fn reader(&mut self) -> Result<Option<&Reader>> {
        if let Source::Unasked(_) = self.source
            && let Source::Unasked(results) = std::mem::replace(&mut self.source, Source::Ended)
        {
            self.source = Source::Coming(offer(results, self.size)?);
        }
        Ok(match &self.source {
            Source::Coming(reader) => Some(reader),
            _ => None,
        })
    }
}

impl fmt::Debug for Incoming {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Incoming").field("size", &self.size).finish_non_exhaustive()
    }
}

/// Offers a stream for the request's body, before there is a reply.
fn offer(mut results: http_service::RequestResults, size: Option<u64>) -> Result<Reader> {
    let held = Room::here().body();
    let (writer, reader) = Flow::open("request", held, size, HTTP_RESPONSE_BYTES_MAX);
    // Only the sender may hold the stream, so that it goes with the sender.
    results.get().set_request_body(capnp_rpc::new_client(writer));
    results.set_pipeline()?;
    Ok(reader)
}

/// The body of a request that is passed on, and a future that resolves when the caller wants no
/// answer any more: it dropped the call and the way to the body.
///
/// A way to the body is offered even if that is empty, since there is no other sign of that.
pub(crate) fn passed_on(
    asked: http_request::Reader<'_>,
    mut results: http_service::RequestResults,
    most: u64,
) -> Result<(Reader, impl Future<Output = ()> + use<>)> {
    use http_request::body_size::{Fixed, Unknown};
    let size = match asked.get_body_size().which()? {
        Fixed(size) => Some(size),
        Unknown(()) => None,
    };
    if size.is_some_and(|size| size > most) {
        return Err(failed(format!("the body of a request has at most {most} bytes here")));
    }
    let held = Room::here().body();
    let (writer, reader) = Flow::open("request", held, size, HTTP_RESPONSE_BYTES_MAX);
    if size == Some(0) {
        writer.end_at_once()?;
    }
    let left = reader.writer_left();
    results.get().set_request_body(capnp_rpc::new_client(writer));
    results.set_pipeline()?;
    Ok((reader, left))
}

/// A sender may stay and be silent.
async fn whole_within(
    reader: &Reader,
    limit: Duration,
) -> std::result::Result<Option<Held>, Refusal> {
    let whole = reader.holds_more_than(usize::MAX);
    if tokio::time::timeout(limit, whole).await.is_err() {
        let reason = format!("the request's body did not end within {limit:?}");
        return Err(refuse(StatusCode::REQUEST_TIMEOUT, reason));
    }
    match reader.progress() {
        Progress::Cut(cut) => Err(refused(cut)),
        _ => Ok(Some(reader.take())),
    }
}

/// The answer to a request whose body can't be had whole.
fn refused(cut: Cut) -> Refusal {
    match cut {
        Cut::TooLarge => {
            let reason = format!("A body has at most {HTTP_BODY_BYTES_MAX} bytes.\n");
            refuse(StatusCode::PAYLOAD_TOO_LARGE, reason)
        }
        Cut::NoRoom => cut.error("request").into(),
        _ => refuse(StatusCode::BAD_REQUEST, cut.error("request").extra),
    }
}

/// A writer of a body.
pub(super) type Write = Box<dyn for<'a> FnOnce(&'a mut Outgoing) -> LocalBoxFuture<'a, Result<()>>>;

/// The body of a response, which [`Body::stream`] writes.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(flavor = "local")]
    async fn a_body_without_an_end_is_not_waited_for_for_ever() {
        let held = Room::of_objects(std::sync::Arc::default()).body();
        let (_writer, reader) = Flow::open("request", held, None, usize::MAX);
        let refusal = whole_within(&reader, Duration::from_millis(1)).await.err().unwrap();
        let response = refusal.response(&http::HeaderMap::new());
        assert_eq!(response.status(), 408);
        assert!(String::from_utf8_lossy(response.body().as_bytes()).contains("did not end"));
    }
}
