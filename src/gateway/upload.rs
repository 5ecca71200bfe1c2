//! Bodies of requests: small ones are read whole, others are passed on as they come.
//!
//! Invariants:
//! - Of a streamed body little is here at once, whatever its size: the client isn't read while the
//!   object doesn't read.
//! - Nothing of a streamed body is sent twice.

use std::cell::Cell;
use std::future::pending;
use std::pin::Pin;
use std::rc::Rc;
use std::time::Duration;

use capnp::capability::Promise;
use futures::future::FutureExt;
use http::header::EXPECT;
use http::{HeaderMap, StatusCode};
use http_body_util::BodyExt;
use hyper::body::{Body, Bytes, Incoming};
use tokio::time::{Instant, timeout, timeout_at};

use super::limits::Taken;
use crate::http::{Held, OrRefusal, Refusal, keep, refuse, write};
use crate::limits::{HTTP_PART_BYTES, HTTP_WHOLE_MILLIS};
use crate::schema::http_capnp::byte_stream;

/// Bytes of one body that are taken before others have their turn: a thousand bodies that come at
/// once would keep everybody else waiting for as long as all of them take. A larger body waits for
/// its turn before its first bytes, too.
const IN_A_ROW_BYTES: usize = 32 << 10;

/// The body of one request.
pub(super) enum Upload<W> {
    Whole(W),
    Streamed(Streamed),
}

impl Upload<Held> {
    /// Reads a body whole that is small and comes soon. It has so many bytes at most, if the way
    /// has a limit of its own.
    ///
    /// # Errors
    /// When the client breaks off, or there is no room.
    pub(super) async fn begin(
        (body, most): (Incoming, Option<usize>),
        asked: &HeaderMap,
        taken: &Rc<Taken>,
    ) -> OrRefusal<Self> {
        let (size, most) = (body.size_hint().exact(), most.unwrap_or(usize::MAX));
        if body.size_hint().lower() > most as u64 {
            return Err(too_large(most));
        }
        if body.is_end_stream() || size.is_some_and(|size| size <= HTTP_PART_BYTES as u64) {
            return read_body(body, taken, HTTP_PART_BYTES).await.map(Self::Whole);
        }
        let waits = asked.get(EXPECT).is_some();
        let mut source = Source { body, next: None, waited: Duration::ZERO, read: 0, most };
        let mut begun = taken.body();
        if size.is_none() && !waits {
            // The bytes that came are in `begun`, also if no more come in time.
            let soon = Duration::from_millis(HTTP_WHOLE_MILLIS);
            if let Ok(ended) = timeout(soon, source.read_small(&mut begun)).await
                && ended?
            {
                return Ok(Self::Whole(begun));
            }
        }
        Ok(Self::Streamed(Streamed { begun, source, size, waits, taken: taken.clone() }))
    }
}

impl<W: AsRef<[u8]>> Upload<W> {
    /// The number of its bytes, if that is known.
    pub(super) fn size(&self) -> Option<u64> {
        match self {
            Self::Whole(body) => Some(body.as_ref().len() as u64),
            Self::Streamed(streamed) => streamed.size,
        }
    }
}

/// A body that is passed on as it comes.
pub(super) struct Streamed {
    /// The bytes that came already.
    begun: Held,
    source: Source,
    size: Option<u64>,
    /// The client waits to be told to send it.
    waits: bool,
    taken: Rc<Taken>,
}

/// The body as hyper gives it.
struct Source {
    body: Incoming,
    /// Bytes that came and are yet to be taken.
    next: Option<Bytes>,
    /// The time for which the client was waited for.
    waited: Duration,
    read: usize,
    /// The largest number of bytes that are read.
    most: usize,
}

impl Source {
    /// Reads until the end, or until the body is no longer small; tells whether that was the end.
    async fn read_small(&mut self, to: &mut Held) -> OrRefusal<bool> {
        while let Some(bytes) = self.bytes().await? {
            if !self.take(bytes, to)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Adds what fits into one part; false if that isn't all.
    fn take(&mut self, mut bytes: Bytes, to: &mut Held) -> OrRefusal<bool> {
        let more = bytes.len().min(HTTP_PART_BYTES - to.bytes().len());
        let now = bytes.split_to(more);
        if !bytes.is_empty() {
            self.next = Some(bytes);
        }
        self.read += now.len();
        if self.read > self.most {
            return Err(too_large(self.most));
        }
        if to.extend(&now) { Ok(self.next.is_none()) } else { Err(no_room()) }
    }

    /// The next bytes, of any number; none at the end.
    async fn bytes(&mut self) -> OrRefusal<Option<Bytes>> {
        if let Some(bytes) = self.next.take() {
            return Ok(Some(bytes));
        }
        loop {
            match self.body.frame().await {
                None => return Ok(None),
                // Trailers reach no object.
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(bytes) if !bytes.is_empty() => return Ok(Some(bytes)),
                    _ => {}
                },
                Some(Err(error)) => return Err(broke_off(&error)),
            }
        }
    }

    /// The same, from a client that keeps the pace. A pause has the time of a whole transfer at
    /// most, whatever was sent before.
    async fn paced_bytes(&mut self, taken: &Taken) -> OrRefusal<Option<Bytes>> {
        let since = Instant::now();
        let patience = taken.limits.stream_time_for(self.read).saturating_sub(self.waited);
        let due = since + patience.min(taken.limits.transfer);
        let bytes = timeout_at(due, self.bytes()).await.unwrap_or_else(|_| Err(too_slow(taken)));
        self.waited += since.elapsed();
        bytes
    }
}

/// The end of passing on.
pub(super) enum UploadEnd {
    /// The whole body was passed on, or the object wants no more.
    Done,
    /// The client broke off.
    Client(Refusal),
}

/// A body on its way to an object. Dropped, it is cut off.
pub(super) struct UploadPump {
    run: Pin<Box<dyn Future<Output = UploadEnd>>>,
    progress: Rc<Cell<Option<Instant>>>,
}

impl UploadPump {
    /// The time since when the object has something to do; none while the client is waited for.
    pub(super) fn progress(&self) -> Rc<Cell<Option<Instant>>> {
        self.progress.clone()
    }

    /// Runs the step, if there is one, and clears its place.
    pub(super) async fn end(pump: &mut Option<Self>) -> UploadEnd {
        match pump {
            Some(running) => {
                let end = running.run.as_mut().await;
                *pump = None;
                end
            }
            None => pending().await,
        }
    }

    /// The same, until the call fails that takes the body.
    pub(super) fn until_failed(self, call: Promise<(), capnp::Error>) -> Self {
        let Self { mut run, progress } = self;
        let run = Box::pin(async move {
            tokio::select! {
                end = &mut run => end,
                _ = failure(call) => UploadEnd::Done,
            }
        });
        Self { run, progress }
    }

    /// Runs it in a task of its own.
    pub(super) async fn finish(self) {
        self.run.await;
    }
}

impl Streamed {
    pub(super) fn pump(self, to: byte_stream::Client) -> UploadPump {
        let progress = Rc::new(Cell::new(Some(Instant::now())));
        let shared = progress.clone();
        let run = Box::pin(async move {
            match self.pass_on(&to, &shared).await {
                Ok(()) => UploadEnd::Done,
                Err(refusal) => UploadEnd::Client(refusal),
            }
        });
        UploadPump { run, progress }
    }

    async fn pass_on(
        self,
        to: &byte_stream::Client,
        progress: &Cell<Option<Instant>>,
    ) -> OrRefusal<()> {
        let Self { begun: mut part, mut source, waits, taken, .. } = self;
        // Hyper tells the client to send when it is first read. An object that never takes these
        // no bytes answers without the body.
        if waits && write(to, part.bytes()).await.is_err() {
            return Ok(());
        }
        loop {
            taken.turn().await;
            let mut has_more = true;
            if part.bytes().is_empty() {
                progress.set(None);
                has_more = match source.paced_bytes(&taken).await? {
                    Some(bytes) => source.fill(bytes, &mut part)?,
                    None => false,
                };
            }
            progress.set(Some(Instant::now()));
            if !part.bytes().is_empty() && write_in_turn(&taken, to, part.bytes()).await.is_err() {
                return Ok(());
            }
            part = taken.body();
            if !has_more {
                // It comes after all that was written, and isn't waited for.
                keep(to.end_request().send().promise);
                return Ok(());
            }
        }
    }
}

/// Writes a part beside few others, so that little is on its way to all objects together, and calls
/// don't wait behind it. An object that takes its time keeps nobody waiting.
async fn write_in_turn(
    taken: &Taken,
    to: &byte_stream::Client,
    bytes: &[u8],
) -> crate::error::Result<()> {
    const SOON: Duration = Duration::from_millis(20);
    let mut written = std::pin::pin!(write(to, bytes));
    let turn = taken.hold_turn().await;
    if let Ok(done) = timeout(SOON, written.as_mut()).await {
        return done;
    }
    drop(turn);
    written.await
}

impl Source {
    /// Takes these bytes, and others that are here, so that many small ones become one part. False
    /// at the end.
    fn fill(&mut self, bytes: Bytes, part: &mut Held) -> OrRefusal<bool> {
        let mut bytes = Some(bytes);
        while let Some(more) = bytes.take() {
            if !self.take(more, part)? || part.bytes().len() >= IN_A_ROW_BYTES {
                break;
            }
            match self.bytes().now_or_never() {
                Some(next) => bytes = next?,
                None => return Ok(true),
            }
            if bytes.is_none() {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// Resolves only if the call failed.
pub(super) async fn failure(call: Promise<(), capnp::Error>) -> capnp::Error {
    match call.await {
        Ok(()) => pending().await,
        Err(error) => error,
    }
}

/// The whole body, of so many bytes at most, or why there is none.
pub(super) async fn read_body(mut body: Incoming, taken: &Taken, most: usize) -> OrRefusal<Held> {
    let mut held = taken.body();
    if body.is_end_stream() {
        return Ok(held);
    }
    if body.size_hint().lower() > most as u64 {
        return Err(too_large(most));
    }
    let start = Instant::now();
    let mut in_a_row = 0;
    if body.size_hint().lower() > IN_A_ROW_BYTES as u64 {
        taken.turn().await;
    }
    loop {
        let due = start + taken.limits.time_for(held.bytes().len());
        let frame = match timeout_at(due, body.frame()).await {
            Ok(None) => return Ok(held),
            Ok(Some(Ok(frame))) => frame,
            Ok(Some(Err(error))) => return Err(broke_off(&error)),
            Err(_) => return Err(too_slow(taken)),
        };
        // Trailers reach no object.
        let Ok(bytes) = frame.into_data() else { continue };
        if held.bytes().len() + bytes.len() > most {
            return Err(too_large(most));
        }
        if !held.extend(&bytes) {
            return Err(no_room());
        }
        in_a_row += bytes.len();
        if in_a_row >= IN_A_ROW_BYTES {
            in_a_row = 0;
            taken.turn().await;
        }
    }
}

fn broke_off(error: &hyper::Error) -> Refusal {
    refuse(StatusCode::BAD_REQUEST, format!("The body broke off: {error}\n"))
}

fn too_slow(taken: &Taken) -> Refusal {
    taken.metrics.http_slow_total.add(1);
    refuse(StatusCode::REQUEST_TIMEOUT, "The body came too slowly.\n")
}

fn no_room() -> Refusal {
    let reason = "There is no room for another body: try again later.\n";
    refuse(StatusCode::SERVICE_UNAVAILABLE, reason)
}

fn too_large(most: usize) -> Refusal {
    let reason = format!("A body has at most {most} bytes.\n");
    refuse(StatusCode::PAYLOAD_TOO_LARGE, reason)
}
