//! One request to a server outside, on a connection of its own, and the response.

use std::error::Error;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::header::SEC_WEBSOCKET_PROTOCOL;
use http::{HeaderMap, Response, StatusCode};
use http_body_util::BodyExt;
use hyper::body::{Body, Bytes, Frame, SizeHint};
use hyper::client::conn::http1;
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tokio::time::timeout;
use tokio_util::task::AbortOnDropHandle;

use super::counted::Counted;
use super::dial::{self, Stream};
use super::head::{self, OutboundRequest};
use super::origin::{Destination, Origin};
use super::setup::Setup;
use super::socket;
use super::watch::ProgressWatch;
use crate::error::{Reason, Result, failed, overloaded};
use crate::http::{Reader, strip, write, write_response};
use crate::limits::{HTTP_PART_BYTES, OUTBOUND_CONNECT_SECS, OUTBOUND_HEAD_BYTES_MAX};
use crate::schema::http_capnp::http_service::client_request_context;

/// Makes the request, and gives `context` the response. Returns when both bodies have ended, or the
/// WebSocket has.
///
/// # Errors
/// As the page on errors says: `overloaded` while nothing was sent, and `unknown:` later.
pub(super) async fn run(
    setup: &Setup,
    target: &Destination,
    (asked, body): (OutboundRequest, Reader),
    context: client_request_context::Client,
    counted: &mut Counted<'_>,
) -> Result<()> {
    let origin = &target.origin;
    let mut not_sent = |why: &dyn Error| {
        counted.not_sent();
        overloaded(format!("nothing was sent to {origin}, try again later: {}", said(why)))
    };
    let limit = Duration::from_secs(OUTBOUND_CONNECT_SECS).min(setup.limits.idle);
    let stream = match timeout(limit, dial::connect(origin, setup.tls.as_ref())).await {
        Ok(stream) => stream.map_err(|error| not_sent(&error))?,
        Err(late) => return Err(not_sent(&late)),
    };
    let (most, watch) = (setup.limits.body_bytes, Rc::new(ProgressWatch::new(setup.limits.idle)));
    let exchange = Exchange { origin, most, watch: watch.clone(), asked, body };
    let ended = tokio::select! {
        biased;
        ended = exchange.run(stream, context) => ended?,
        () = watch.still(|| {}) => {
            let why = format_args!("nothing moved for {:?}", watch.limit());
            return Err(may_have_happened(origin, why));
        }
    };
    match ended {
        ExchangeEnd::Response => Ok(()),
        ExchangeEnd::Accepted(upgraded, headers, context) => {
            socket::run(upgraded, &headers, context, &watch).await
        }
    }
}

/// The end of a request.
enum ExchangeEnd {
    Response,
    /// The server accepted a WebSocket, with these headers.
    Accepted(Upgraded, HeaderMap, client_request_context::Client),
}

/// The request was sent in part at least.
fn may_have_happened(origin: &Origin, why: impl std::fmt::Display) -> capnp::Error {
    Reason::Unknown.error(format_args!("{origin} may have done what was asked: {why}"))
}

struct Exchange<'a> {
    origin: &'a Origin,
    /// Bytes of each body.
    most: u64,
    watch: Rc<ProgressWatch>,
    asked: OutboundRequest,
    body: Reader,
}

impl Exchange<'_> {
    async fn run(
        self,
        stream: Stream,
        context: client_request_context::Client,
    ) -> Result<ExchangeEnd> {
        let Self { origin, most, watch, asked: OutboundRequest { request, key }, body } = self;
        let broke = |error: hyper::Error| may_have_happened(origin, said(&error));
        let mut builder = http1::Builder::new();
        builder.max_buf_size(OUTBOUND_HEAD_BYTES_MAX);
        let (mut sender, connection) =
            builder.handshake(TokioIo::new(stream)).await.map_err(broke)?;
        let _connection =
            AbortOnDropHandle::new(tokio::task::spawn_local(connection.with_upgrades()));
        let offered = request.headers().get(SEC_WEBSOCKET_PROTOCOL).cloned();
        let upload = Upload { body, watch: watch.clone(), left: most };
        let mut response = sender.send_request(request.map(|()| upload)).await.map_err(broke)?;
        watch.moved();
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            let accepts = |key: String| head::accepts(&key, offered.as_ref(), response.headers());
            if !key.is_some_and(accepts) {
                let why = "it changed to a protocol that it wasn't asked for";
                return Err(may_have_happened(origin, why));
            }
            let upgraded = hyper::upgrade::on(&mut response).await.map_err(broke)?;
            let mut headers = std::mem::take(response.headers_mut());
            strip(&mut headers);
            return Ok(ExchangeEnd::Accepted(upgraded, headers, context));
        }
        let download = Download { origin, most, watch: &watch };
        download.run(response, context).await?;
        Ok(ExchangeEnd::Response)
    }
}

/// A response on its way to the object.
struct Download<'a> {
    origin: &'a Origin,
    most: u64,
    watch: &'a ProgressWatch,
}

impl Download<'_> {
    async fn run(
        self,
        response: Response<hyper::body::Incoming>,
        context: client_request_context::Client,
    ) -> Result<()> {
        let Self { origin, most, watch } = self;
        let too_large =
            || may_have_happened(origin, format_args!("its response has more than {most} bytes"));
        let (mut head, mut body) = response.into_parts();
        if !(200..=599).contains(&head.status.as_u16()) {
            return Err(may_have_happened(origin, format_args!("it answered {}", head.status)));
        }
        strip(&mut head.headers);
        let size = if body.is_end_stream() { Some(0) } else { body.size_hint().exact() };
        if size.is_some_and(|size| size > most) {
            return Err(too_large());
        }
        let mut start = context.start_response_request();
        write_response(&Response::from_parts(head, ()), size, start.get().init_response())
            .map_err(|error| may_have_happened(origin, error.extra))?;
        let started = start.send();
        drop(context);
        let to = started.pipeline.get_body();
        if size == Some(0) {
            return started.promise.await.map(drop);
        }
        let mut left = most;
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| may_have_happened(origin, said(&error)))?;
            watch.moved();
            // Trailers reach no object.
            let Ok(bytes) = frame.into_data() else { continue };
            left = left.checked_sub(bytes.len() as u64).ok_or_else(too_large)?;
            for part in bytes.chunks(HTTP_PART_BYTES) {
                write(&to, part).await?;
                watch.moved();
            }
        }
        to.end_request().send().promise.await?;
        started.promise.await.map(drop)
    }
}

/// The request's body, as hyper takes it: no faster than the server does.
struct Upload {
    body: Reader,
    watch: Rc<ProgressWatch>,
    left: u64,
}

impl Body for Upload {
    type Data = Bytes;
    type Error = capnp::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>>>> {
        let upload = self.get_mut();
        upload.body.poll_next(cx).map(|next| match next {
            Ok(None) => None,
            Ok(Some(part)) => {
                upload.watch.moved();
                match upload.left.checked_sub(part.bytes().len() as u64) {
                    Some(left) => {
                        upload.left = left;
                        Some(Ok(Frame::data(Bytes::from_owner(part))))
                    }
                    None => Some(Err(failed("the body of the request is too large"))),
                }
            }
            Err(cut) => Some(Err(cut.error("request"))),
        })
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_over()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size().map(SizeHint::with_exact).unwrap_or_default()
    }
}

/// An error with its cause.
fn said(error: &dyn Error) -> String {
    match error.source() {
        Some(cause) => format!("{error}: {}", said(cause)),
        None => error.to_string(),
    }
}
