//! Requests that an object makes of others that answer HTTP: the other side of
//! [`serve`](super::serve).
//!
//! Invariant: an object that drops a request, or the body of its response, holds neither the call
//! nor the way to the request's body any longer, by which the other side knows that it was given
//! up.

use std::cell::Cell;
use std::fmt;
use std::future::pending;
use std::rc::Rc;
use std::time::Duration;

use capnp::capability::{FromClientHook, Promise};
use futures::future::{FutureExt, LocalBoxFuture};
use http::header::CONTENT_LENGTH;
use http::{Request, Response, StatusCode};
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::body::{Body, Content};
use super::head::{read_response, write_request};
use super::outgoing::Outgoing;
use super::room::Room;
use super::stream::{Cut, Flow, Reader};
use crate::error::{Result, failed};
use crate::limits::HTTP_RESPONSE_BYTES_MAX;
use crate::schema::http_capnp::http_service::client_request_context;
use crate::schema::http_capnp::{byte_stream, http_response, http_service, watched_stream};

/// The time in which a call says why the body of its response broke off.
const REASON_TIME: Duration = Duration::from_secs(1);

/// Makes a request of an object that answers HTTP, or of [`Outbound`](crate::Outbound), and returns
/// when the response begins. The request's body may be [written in parts](Body::stream): then it
/// goes on while the response is awaited and read.
///
/// Dropping the future, or the body of the response, gives the request up.
///
/// ```
/// use capstead::http::{self, Body, Request, StatusCode, http_service};
/// use capstead::{Result, failed};
///
/// /// The weather there, from a service that the operator lets this object call.
/// async fn weather(service: &http_service::Client, place: &str) -> Result<String> {
///     let request = Request::get(format!("/weather?place={place}")).body(Body::default());
///     let response = http::send(service, request.map_err(|e| failed(e.to_string()))?).await?;
///     if response.status() != StatusCode::OK {
///         return Err(failed(format!("the weather service says {}", response.status())));
///     }
///     let body = response.into_body().whole(64 << 10).await?;
///     String::from_utf8(body).map_err(|error| failed(error.to_string()))
/// }
/// ```
///
/// # Errors
/// When the call fails, the answer is impossible, or the writer of the request's body fails.
pub async fn send(
    to: &http_service::Client,
    request: Request<Body>,
) -> Result<Response<ResponseBody>> {
    let (head, mut body) = request.into_parts();
    let content = body.take();
    let size = match &content {
        Content::Whole(bytes) => Some(bytes.len() as u64),
        Content::Stream(_) => {
            let said = head.headers.get(CONTENT_LENGTH).and_then(|said| said.to_str().ok());
            said.and_then(|said| said.parse().ok())
        }
        Content::Socket(_) => return Err(failed("a request has no socket to accept")),
    };
    let (tell, told) = oneshot::channel();
    let mut call = to.request_request();
    write_request(&head, &head.uri.to_string(), size, call.get().init_request())?;
    call.get().set_context(capnp_rpc::new_client(Answering { tell: Cell::new(Some(tell)) }));
    let sent = call.send();
    let way = sent.pipeline.get_request_body();
    let exchange = Exchange {
        upload: upload(content, size, way.clone()),
        call: Some(Promise::from_future(sent.promise.map(|ended| ended.map(drop)))),
        _way: way,
    };
    exchange.answered(told).await
}

fn upload(
    content: Content,
    size: Option<u64>,
    way: byte_stream::Client,
) -> Option<LocalBoxFuture<'static, Result<()>>> {
    match content {
        Content::Whole(bytes) if !bytes.is_empty() => Some(Box::pin(async move {
            let mut to = Outgoing::new(way, size);
            to.send(bytes).await?;
            to.end()
        })),
        Content::Stream(write) => Some(Box::pin(async move {
            let mut to = Outgoing::new(way, size);
            write(&mut to).await?;
            to.end()
        })),
        _ => None,
    }
}

/// A request under way, as its other parts see it.
struct Exchange {
    /// None when it is over, or the other side wants no more.
    upload: Option<LocalBoxFuture<'static, Result<()>>>,
    /// None when it has returned.
    call: Option<Promise<(), capnp::Error>>,
    _way: byte_stream::Client,
}

type Told = Result<(Response<()>, Option<Reader>)>;

impl Exchange {
    async fn answered(
        mut self,
        mut told: oneshot::Receiver<Told>,
    ) -> Result<Response<ResponseBody>> {
        loop {
            let Self { upload, call, .. } = &mut self;
            tokio::select! {
                biased;
                answer = &mut told => {
                    let Ok(answer) = answer else { return Err(self.reason().await) };
                    let (head, reader) = answer?;
                    let size = reader.as_ref().map_or(Some(0), Reader::size);
                    return Ok(head.map(|()| ResponseBody { size, reader, exchange: self }));
                }
                ended = returned(call) => ended?,
                failure = uploaded(upload) => return Err(failure),
            }
        }
    }

    /// The reason why there is no response, which the call says when it ends.
    async fn reason(mut self) -> capnp::Error {
        let ended = returned(&mut self.call).await;
        ended.err().unwrap_or_else(|| failed("the request ended without a response"))
    }
}

/// The end of the call, if that is yet to come.
async fn returned(call: &mut Option<Promise<(), capnp::Error>>) -> Result<()> {
    match call {
        Some(running) => {
            let ended = running.await;
            *call = None;
            ended
        }
        None => pending().await,
    }
}

/// Writes the request's body, and resolves only if its writer fails by itself.
async fn uploaded(upload: &mut Option<LocalBoxFuture<'static, Result<()>>>) -> capnp::Error {
    if let Some(running) = upload {
        let written = running.await;
        *upload = None;
        match written {
            Err(error) if error.kind != capnp::ErrorKind::Disconnected => return error,
            // The other side takes no more: its answer, or the end of the call, says why.
            _ => {}
        }
    }
    pending().await
}

/// The body of a response, of which a part may be here. While the class doesn't read it, only a
/// little more is sent, and waits.
pub struct ResponseBody {
    size: Option<u64>,
    /// None when there is nothing, or no more.
    reader: Option<Reader>,
    exchange: Exchange,
}

impl ResponseBody {
    /// The number of bytes of the whole body, if it was announced. No other number of them comes
    /// without an error.
    pub fn size(&self) -> Option<u64> {
        self.size
    }

    /// The next bytes, as many as are here, as soon as there are any; none at the end. The body is
    /// whole only if its end was read.
    ///
    /// # Errors
    /// When the response breaks off, or the writer of the request's body fails.
    pub async fn next(&mut self) -> Result<Option<Vec<u8>>> {
        let Some(reader) = &self.reader else { return Ok(None) };
        let part = tokio::select! {
            biased;
            part = reader.next() => part,
            failure = uploaded(&mut self.exchange.upload) => return Err(failure),
        };
        match part {
            Ok(Some(part)) => Ok(Some(part.into_bytes())),
            Ok(None) => {
                self.reader = None;
                Ok(None)
            }
            Err(cut) => Err(self.reason(cut).await),
        }
    }

    /// All that wasn't read yet, at most so many bytes.
    ///
    /// # Errors
    /// When there are more, or the response breaks off.
    pub async fn whole(mut self, most: usize) -> Result<Vec<u8>> {
        let too_large = || failed(format!("the body of the response has more than {most} bytes"));
        if self.size.is_some_and(|size| size > most as u64) {
            return Err(too_large());
        }
        let mut whole = Vec::new();
        while let Some(part) = self.next().await? {
            if whole.len() + part.len() > most {
                return Err(too_large());
            }
            whole.extend(part);
        }
        Ok(whole)
    }

    /// The reason why the body broke off, if its writer says one.
    async fn reason(&mut self, cut: Cut) -> capnp::Error {
        let ended = timeout(REASON_TIME, returned(&mut self.exchange.call)).await;
        match (cut, ended) {
            (Cut::Left, Ok(Err(error))) => error,
            _ => cut.error("response"),
        }
    }
}

impl fmt::Debug for ResponseBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseBody").field("size", &self.size).finish_non_exhaustive()
    }
}

/// The answer that one request waits for. Dropped without one, it tells that there is none.
struct Answering {
    tell: Cell<Option<oneshot::Sender<Told>>>,
}

impl client_request_context::Server for Answering {
    async fn start_response(
        self: Rc<Self>,
        params: client_request_context::StartResponseParams,
        mut results: client_request_context::StartResponseResults,
    ) -> Result<()> {
        let tell = self.tell.take().ok_or_else(|| failed("the request was answered already"))?;
        let response = params.get()?.get_response()?;
        let head = match read_head(response) {
            Ok(head) => head,
            Err(error) => {
                // The object has gone if this comes to nobody.
                let _ = tell.send(Err(error.clone()));
                return Err(error);
            }
        };
        let mut reader = None;
        let size = announced(response)?;
        if size != Some(0) {
            let held = Room::here().body();
            let (writer, read) = Flow::open("response", held, size, HTTP_RESPONSE_BYTES_MAX);
            let stream: watched_stream::Client = capnp_rpc::new_client(writer);
            results.get().set_body(FromClientHook::new(stream.into_client_hook()));
            reader = Some(read);
        }
        tell.send(Ok((head, reader))).map_err(|_| Cut::Unread.error("response"))
    }

    async fn start_web_socket(
        self: Rc<Self>,
        _: client_request_context::StartWebSocketParams,
        _: client_request_context::StartWebSocketResults,
    ) -> Result<()> {
        let error = failed("a response was asked for, and no WebSocket: see `Sockets::connect`");
        if let Some(tell) = self.tell.take() {
            let _ = tell.send(Err(error.clone()));
        }
        Err(error)
    }
}

fn read_head(response: http_response::Reader<'_>) -> Result<Response<()>> {
    let head = read_response(response)?;
    match head.status().as_u16() {
        200..=599 => Ok(head),
        _ => Err(failed(format!("{} is no status of a response", head.status()))),
    }
}

fn announced(response: http_response::Reader<'_>) -> Result<Option<u64>> {
    use http_response::body_size::{Fixed, Unknown};
    Ok(match response.get_body_size().which()? {
        Fixed(size) => Some(size),
        Unknown(()) => None,
    })
}

/// The error of a request for a WebSocket that got a response.
pub(super) fn no_socket(status: StatusCode) -> capnp::Error {
    failed(format!("the other side answered {status}, and opened no WebSocket"))
}
