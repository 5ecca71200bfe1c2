//! One connection of HTTP: which of its protocols it speaks, and the bounds of a client that sends
//! several requests at once.
//!
//! HTTP/1 has one request at a time, and its limits are those of the stream: [`Paced`] and the time
//! for a head. HTTP/2 has many, and each is held to its own time.
//!
//! Invariant: a request that isn't alone on its connection has a place of its own, as another
//! connection would.
//! Invariant: a connection without a request under way ends after the time for a head.

use std::cell::{Cell, RefCell};
use std::convert::Infallible;
use std::error::Error;
use std::net::IpAddr;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use hyper::body::{Body, Bytes, Frame, Incoming, SizeHint};
use hyper::header::CONTENT_LENGTH;
use hyper::service::service_fn;
use hyper::{HeaderMap, Method, Request, Response, Version};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use slab::Slab;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::limits::{HttpLimits, Taken};
use crate::net::Place;

/// The most that a connection buffers, the head of a request among it.
const BUFFER_BYTES_MAX: usize = 64 << 10;

/// Requests of one HTTP/2 connection that are under way at the same time. RFC 9113 recommends no
/// fewer than 100, which clients take for granted before they are told.
const STREAMS_MAX: u32 = 128;
/// The head of an HTTP/2 request: there may be many at once.
const HEAD_BYTES_MAX: u32 = 16 << 10;
/// Bytes of a request's body that a client may send before they are taken.
const STREAM_WINDOW_BYTES: u32 = 32 << 10;
/// As [`STREAM_WINDOW_BYTES`], of all requests of a connection: some that stall stop no others.
const CONNECTION_WINDOW_BYTES: u32 = 512 << 10;
/// Requests that a client may take back beside as many as were answered. Browsers take some back; a
/// flood of such requests is an attack (CVE-2023-44487).
const TAKEN_BACK_MAX: u32 = 100;

/// The silence after which a client of HTTP/2 is asked whether it is there.
const KEEP_ALIVE: Duration = Duration::from_mins(1);

/// The time between two looks at an HTTP/2 connection.
const LOOK: Duration = Duration::from_secs(1);

/// Bytes of a response that are given at once: the pace of given bytes is watched only together.
const PART_BYTES: usize = 16 << 10;

/// The reason of an end that takes nothing from the client.
const IDLE: &str = "no further request came";

/// The requests of a connection.
pub(super) struct OpenRequests {
    taken: Rc<Taken>,
    peer: IpAddr,
    /// Tells whether any has come.
    has_begun: Cell<bool>,
    is_multiplexed: Cell<bool>,
    under_way: Cell<usize>,
    idle_since: Cell<Instant>,
    answered: Cell<u32>,
    taken_back: Cell<u32>,
    /// Cancelled when too many were taken back.
    flooded: CancellationToken,
    /// The deadline of each response that waits for its client to take the given bytes.
    due: RefCell<Slab<Option<Instant>>>,
    /// Responses that were given whole and aren't taken whole yet. Each holds the requests too:
    /// none may be added once the connection has ended.
    lingering: RefCell<Vec<Lingering>>,
    has_ended: Cell<bool>,
}

/// A response that is on its way.
struct Lingering {
    /// Each part that wasn't sent yet holds it too.
    unsent: Arc<()>,
    due: Instant,
    _underway: Underway,
}

impl OpenRequests {
    pub(super) fn new(taken: Rc<Taken>, peer: IpAddr) -> Rc<Self> {
        Rc::new(Self {
            taken,
            peer,
            has_begun: Cell::default(),
            is_multiplexed: Cell::default(),
            under_way: Cell::default(),
            idle_since: Cell::new(Instant::now()),
            answered: Cell::default(),
            taken_back: Cell::default(),
            flooded: CancellationToken::new(),
            due: RefCell::default(),
            lingering: RefCell::default(),
            has_ended: Cell::default(),
        })
    }

    /// One more request.
    fn begin(self: &Rc<Self>, version: Version) -> Underway {
        self.has_begun.set(true);
        self.is_multiplexed.set(version >= Version::HTTP_2);
        self.forget_sent();
        let place = if self.is_multiplexed.get() && self.under_way.get() > 0 {
            self.taken.connect(self.peer).map_or(Beside::Full, Beside::Placed)
        } else {
            Beside::Nothing
        };
        self.under_way.set(self.under_way.get() + 1);
        Underway { requests: self.clone(), place, is_answered: false }
    }

    /// Resolves with the reason when the connection should end.
    async fn overstayed(&self) -> &'static str {
        // HTTP/1 has its own time for a head, which ends a moment earlier.
        sleep(self.taken.limits.head.saturating_add(LOOK)).await;
        if !self.has_begun.get() {
            return "no request came";
        }
        if !self.is_multiplexed.get() {
            return std::future::pending().await;
        }
        loop {
            if let Some(reason) = self.reason_to_end() {
                return reason;
            }
            sleep(LOOK).await;
        }
    }

    fn reason_to_end(&self) -> Option<&'static str> {
        let now = Instant::now();
        self.forget_sent();
        if self.under_way.get() == 0 {
            let is_idle = now > self.idle_since.get() + self.taken.limits.head;
            return is_idle.then_some(IDLE);
        }
        let is_late = self.due.borrow().iter().any(|(_, due)| due.is_some_and(|due| now > due))
            || self.lingering.borrow().iter().any(|response| now > response.due);
        is_late.then(|| {
            self.taken.metrics.http_slow_total.add(1);
            "its client takes a response too slowly"
        })
    }

    /// Lets go of responses that have been sent by now.
    fn forget_sent(&self) {
        // Dropping one touches nothing of the list.
        self.lingering.borrow_mut().retain(|response| Arc::strong_count(&response.unsent) > 1);
    }

    fn take_back(&self) {
        self.taken_back.set(self.taken_back.get().saturating_add(1));
        if self.taken_back.get() > self.answered.get().saturating_add(TAKEN_BACK_MAX) {
            self.flooded.cancel();
        }
    }
}

/// The place of a request beside the others of its connection.
enum Beside {
    /// It is alone, and the connection has a place.
    Nothing,
    Placed(#[expect(dead_code, reason = "held until the request is over")] Place),
    /// There is no place.
    Full,
}

/// One request, until it is answered or was taken back.
struct Underway {
    requests: Rc<OpenRequests>,
    place: Beside,
    is_answered: bool,
}

impl Underway {
    /// The body of its response, which a client with many requests must take at the pace.
    fn answer<B>(mut self, body: B) -> WatchedBody<B> {
        self.is_answered = true;
        let requests = &self.requests;
        requests.answered.set(requests.answered.get().saturating_add(1));
        let key = requests.is_multiplexed.get().then(|| requests.due.borrow_mut().insert(None));
        let (rest, unsent) = (Bytes::new(), Arc::default());
        WatchedBody { body, underway: Some(self), key, rest, unsent }
    }
}

impl Drop for Underway {
    fn drop(&mut self) {
        let requests = &self.requests;
        requests.under_way.set(requests.under_way.get() - 1);
        requests.idle_since.set(Instant::now());
        if !self.is_answered {
            requests.take_back();
        }
    }
}

/// A body of a connection with many requests, whose client is watched: it has to take each part in
/// time before it gets the next one, and the last part too.
pub(super) struct WatchedBody<B> {
    body: B,
    /// Gone at the end.
    underway: Option<Underway>,
    key: Option<usize>,
    /// Bytes of the body that have yet to be given.
    rest: Bytes,
    unsent: Arc<()>,
}

/// Bytes that weren't sent as long as this is there.
struct Unsent {
    bytes: Bytes,
    _unsent: Arc<()>,
}

impl AsRef<[u8]> for Unsent {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl<B> WatchedBody<B> {
    fn set_due(&self, due: Option<Instant>) {
        if let (Some(key), Some(underway)) = (self.key, &self.underway) {
            underway.requests.due.borrow_mut()[key] = due;
        }
    }

    /// The next part of what is here. Before it goes, the one before it has to.
    fn part(&mut self) -> Frame<Bytes> {
        let bytes = self.rest.split_to(self.rest.len().min(PART_BYTES));
        if let Some(underway) = &self.underway {
            let limits = underway.requests.taken.limits;
            self.set_due(Some(Instant::now() + limits.time_for(2 * PART_BYTES)));
        }
        Frame::data(Bytes::from_owner(Unsent { bytes, _unsent: self.unsent.clone() }))
    }
}

impl<B: Body<Data = Bytes> + Unpin> Body for WatchedBody<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        if self.key.is_none() {
            return Pin::new(&mut self.body).poll_frame(cx);
        }
        // It is asked only when there is room for more.
        self.set_due(None);
        if self.rest.is_empty() {
            match ready!(Pin::new(&mut self.body).poll_frame(cx)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(bytes) => self.rest = bytes,
                    Err(trailers) => return Poll::Ready(Some(Ok(trailers))),
                },
                end => return Poll::Ready(end),
            }
        }
        Poll::Ready(Some(Ok(self.part())))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        // Of a body of known size, the bytes that are here have been counted.
        if self.rest.is_empty() { self.body.size_hint() } else { SizeHint::default() }
    }
}

impl<B> Drop for WatchedBody<B> {
    fn drop(&mut self) {
        let (Some(key), Some(underway)) = (self.key, self.underway.take()) else { return };
        let requests = underway.requests.clone();
        requests.due.borrow_mut().remove(key);
        if Arc::strong_count(&self.unsent) > 1 && !requests.has_ended.get() {
            let due = Instant::now() + requests.taken.limits.time_for(2 * PART_BYTES);
            let unsent = self.unsent.clone();
            requests.lingering.borrow_mut().push(Lingering { unsent, due, _underway: underway });
        }
    }
}

/// Runs the tasks of a connection on its thread.
#[derive(Clone, Copy)]
struct Here;

impl<F: Future<Output: 'static> + 'static> hyper::rt::Executor<F> for Here {
    fn execute(&self, task: F) {
        drop(tokio::task::spawn_local(task));
    }
}

fn protocols(limits: &HttpLimits) -> Builder<Here> {
    let mut builder = Builder::new(Here);
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.head)
        .max_buf_size(BUFFER_BYTES_MAX)
        // A client that has said all may close its side, and still wants to hear.
        .half_close(true);
    builder
        .http2()
        .timer(TokioTimer::new())
        // A client that is gone without a word says so by its silence.
        .keep_alive_interval(Some(KEEP_ALIVE))
        .max_concurrent_streams(STREAMS_MAX)
        .max_header_list_size(HEAD_BYTES_MAX)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_send_buf_size(BUFFER_BYTES_MAX);
    builder
}

/// Forgets what a connection still had on its way when it ends.
struct Forget(Rc<OpenRequests>);

impl Drop for Forget {
    fn drop(&mut self) {
        // Tasks of its streams may end later than the connection.
        self.0.has_ended.set(true);
        let lingering = std::mem::take(&mut *self.0.lingering.borrow_mut());
        drop(lingering);
    }
}

/// Serves a connection until it ends, or until `ending`: then the requests under way are answered.
/// `answer` answers each, and `full` answers those without a place.
pub(super) async fn serve<S, A, B>(
    stream: S,
    requests: Rc<OpenRequests>,
    ending: CancellationToken,
    answer: impl Fn(Request<Incoming>) -> A + Clone + 'static,
    full: fn(&HeaderMap) -> Response<B>,
) where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    A: Future<Output = Response<B>> + 'static,
    B: Body<Data = Bytes, Error: Into<Box<dyn Error + Send + Sync>>>,
    B: From<Bytes> + Unpin + 'static,
{
    let protocols = protocols(&requests.taken.limits);
    let all = requests.clone();
    let service = service_fn(move |request: Request<Incoming>| {
        let (underway, answer) = (all.begin(request.version()), answer.clone());
        async move {
            // The library leaves out the body of a HEAD in HTTP/1 alone.
            let is_bare = request.method() == Method::HEAD && request.version() >= Version::HTTP_2;
            let mut response = match underway.place {
                Beside::Full => full(request.headers()),
                Beside::Nothing | Beside::Placed(_) => answer(request).await,
            };
            if is_bare {
                response = without_body(response);
            }
            Ok::<_, Infallible>(response.map(|body| underway.answer(body)))
        }
    });
    // Dropped after the connection, which may still add some.
    let _forget = Forget(requests.clone());
    let connection = protocols.serve_connection_with_upgrades(TokioIo::new(stream), service);
    let mut connection = pin!(connection);
    let reason = tokio::select! {
        biased;
        ended = connection.as_mut() => return log_end(ended),
        () = ending.cancelled() => {
            connection.as_mut().graceful_shutdown();
            return log_end(connection.await);
        }
        reason = requests.overstayed() => reason,
        () = requests.flooded.cancelled() => "its client takes back most requests",
    };
    if reason == IDLE {
        connection.as_mut().graceful_shutdown();
        let _ = timeout(LOOK, connection).await;
    }
    tracing::debug!(reason, "an HTTP connection is cut");
}

/// A response with the length of the body that is left out.
fn without_body<B: Body + From<Bytes>>(response: Response<B>) -> Response<B> {
    let (mut head, body) = response.into_parts();
    if let Some(length) = body.size_hint().exact().filter(|length| *length > 0) {
        head.headers.entry(CONTENT_LENGTH).or_insert(length.into());
    }
    Response::from_parts(head, B::from(Bytes::new()))
}

fn log_end(ended: Result<(), Box<dyn Error + Send + Sync>>) {
    if let Err(error) = ended {
        tracing::debug!(%error, "an HTTP connection ended early");
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::Empty;

    use super::*;
    use crate::metrics::Metrics;

    /// The library bounds only requests that are taken back before they come here.
    #[tokio::test]
    async fn a_client_that_takes_back_most_requests_is_cut_and_one_that_takes_some_is_not() {
        let taken = Taken::new(HttpLimits::default(), Arc::<Metrics>::default());
        let peer = IpAddr::from([127, 0, 0, 1]);
        let (patient, flooding) =
            (OpenRequests::new(taken.clone(), peer), OpenRequests::new(taken, peer));
        for _ in 0..10 * TAKEN_BACK_MAX {
            drop(patient.begin(Version::HTTP_2).answer(Empty::<Bytes>::new()));
            drop(patient.begin(Version::HTTP_2));
        }
        assert!(!patient.flooded.is_cancelled());
        for _ in 0..TAKEN_BACK_MAX {
            drop(flooding.begin(Version::HTTP_2));
        }
        assert!(!flooding.flooded.is_cancelled());
        drop(flooding.begin(Version::HTTP_2));
        assert!(flooding.flooded.is_cancelled());
    }
}
