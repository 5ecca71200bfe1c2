//! HTTP for classes: a class whose interface extends `HttpService` answers requests with one call.
//!
//! The wire is the standard `http-over-capnp`; this turns it into the types of the `http` crate and
//! back. Bodies come whole to a class that uses [`serve`], and in parts to one that uses
//! [`serve_streaming`]; both may write theirs in parts ([`Body::stream`]).
//!
//! ```
//! use std::rc::Rc;
//!
//! use capstead::counter_capnp::counter; // in your crate: an interface that extends HttpService
//! use capstead::http::{self, Answer, Body, Request, StatusCode, http_service};
//! use capstead::{Context, Object, Result, Stored};
//!
//! /// A list of names.
//! struct Guests {
//!     names: Stored<String>,
//! }
//!
//! impl Guests {
//!     fn http(&self, request: &Request<Body>) -> Answer {
//!         match (request.method().as_str(), request.uri().path()) {
//!             // A HEAD comes here too, and gets the head of this.
//!             ("GET", "/") => {
//!                 http::json(StatusCode::OK, &self.names.get().lines().collect::<Vec<_>>())
//!             }
//!             ("POST", "/") => {
//!                 let name: String = http::read_json(request)?; // or 400, with the reason
//!                 self.names.set(self.names.get() + &name + "\n")?;
//!                 http::json(StatusCode::CREATED, &name)
//!             }
//!             // JSON for those who ask for it.
//!             _ => Err(http::refuse(StatusCode::NOT_FOUND, "there is only /")),
//!         }
//!     }
//! }
//!
//! impl http_service::Server for Guests {
//!     async fn request(
//!         self: Rc<Self>,
//!         params: http_service::RequestParams,
//!         results: http_service::RequestResults,
//!     ) -> Result<()> {
//!         http::serve(params, results, async |request| self.http(&request)).await
//!     }
//! }
//! # impl counter::Server for Guests {}
//! # impl Object for Guests {
//! #     const CLASS: &'static str = "Guests";
//! #     type Client = counter::Client;
//! #     async fn wake(ctx: Context) -> Result<Self> {
//! #         Ok(Guests { names: ctx.stored("names")? })
//! #     }
//! # }
//! ```

mod body;
mod file;
mod head;
mod hop;
mod incoming;
mod json;
mod outgoing;
mod refusal;
mod room;
mod send;
mod socket;
mod stream;

use std::fmt;
use std::net::IpAddr;

use capnp::capability::FromClientHook;
use futures::future::join3;
use http::header::CONTENT_LENGTH;
pub use http::{HeaderName, HeaderValue, Method, Request, Response, StatusCode};

pub use self::body::Body;
use self::body::Content;
pub use self::file::StaticFile;
pub(crate) use self::head::{
    read_headers, read_request, read_response, write_headers, write_request, write_response,
};
pub(crate) use self::hop::{is_of_one_hop, strip};
pub use self::incoming::Incoming;
pub(crate) use self::incoming::passed_on;
pub(crate) use self::json::is_json;
pub use self::json::{json, read_json};
pub use self::outgoing::Outgoing;
use self::refusal::Form;
pub(crate) use self::refusal::OrRefusal;
pub use self::refusal::{Refusal, refuse};
pub(crate) use self::room::{Held, Room};
pub use self::send::{ResponseBody, send};
pub use self::socket::{
    Accept, Closed, Connect, Message, Sending, Socket, SocketHandler, Sockets, is_upgrade,
};
pub(crate) use self::socket::{
    Entry, HasSockets, Holder, LOST, Lease, Records, SocketTable, View, cut as cut_reason,
    dispatch, is_close, is_text, resume,
};
pub(crate) use self::stream::{Cut, Flow, Progress, Reader, keep, write};
use crate::error::{Result, failed, said};
use crate::limits::HTTP_PART_BYTES;
pub use crate::schema::http_capnp::http_service;
use crate::schema::http_capnp::http_service::client_request_context;
use crate::schema::http_capnp::whole_context;

/// The response that a class makes of a request, or the reason why it makes none.
pub type Answer = std::result::Result<Response<Body>, Refusal>;

/// A response of plain text.
pub fn text(status: StatusCode, text: impl fmt::Display) -> Response<Body> {
    let mut response = Response::new(Body::from(text.to_string()));
    *response.status_mut() = status;
    let plain = HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(http::header::CONTENT_TYPE, plain);
    response
}

/// The value of a parameter in the request's query, decoded.
pub fn query<B>(request: &Request<B>, name: &str) -> Option<String> {
    let query = request.uri().query().unwrap_or_default();
    let mut pairs = form_urlencoded::parse(query.as_bytes());
    pairs.find_map(|(key, value)| (key == name).then(|| value.into_owned()))
}

/// The header by which the gateway says from which address a request comes.
pub(crate) const PEER: HeaderName = HeaderName::from_static("capstead-peer");

/// The address of the gateway's client. Behind a proxy it is the one that the proxy says, if
/// [`Server::http_proxy`](crate::Server::http_proxy) names that, and else the proxy's own. None if
/// the request didn't come through a gateway; a caller by Cap'n Proto may set any address.
pub fn peer<B>(request: &Request<B>) -> Option<IpAddr> {
    peer_of(request.headers())
}

pub(crate) fn peer_of(headers: &http::HeaderMap) -> Option<IpAddr> {
    headers.get(PEER)?.to_str().ok()?.parse().ok()
}

/// A secret for a path, as [`Server::route`](crate::Server::route) takes them: 32 random bytes in
/// hex.
///
/// # Errors
/// When the operating system has no randomness.
pub fn new_secret() -> Result<String> {
    let mut random = [0; 32];
    getrandom::fill(&mut random).map_err(|error| failed(format!("no randomness: {error}")))?;
    Ok(hex(&random))
}

/// The SHA-256 of a secret, in hex: what [`Server::route`](crate::Server::route) puts into names in
/// its place.
pub fn secret_hash(secret: &str) -> String {
    use sha2::{Digest, Sha256};
    hex(&Sha256::digest(secret))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |hex, byte| hex + &format!("{byte:02x}"))
}

/// Answers `HttpService.request` with what `handle` makes of the request, whose body comes whole.
///
/// An error of `handle` becomes a response with its sentence, as [`Refusal`] says, and so does a
/// body of more than 1 MiB. `handle` sees a HEAD as a GET, and its client gets the head of the
/// answer, with the length of the body that a GET would get. An answer of [`Accept`] opens a
/// WebSocket, and one of [`Body::stream`] is written in parts.
///
/// # Errors
/// When the request is malformed, the client has gone, or a body in parts was given up.
pub async fn serve(
    params: http_service::RequestParams,
    results: http_service::RequestResults,
    handle: impl AsyncFnOnce(Request<Body>) -> Answer,
) -> Result<()> {
    serve_streaming(params, results, async |request| {
        let (head, incoming) = request.into_parts();
        handle(Request::from_parts(head, incoming.whole().await?)).await
    })
    .await
}

/// As [`serve`], for a class that reads the bodies of its requests in parts, as they come, by
/// [`Incoming::next`]. A request that needs its body whole gets it by [`Incoming::whole`].
///
/// The answer begins when `handle` returns it; what it makes by [`Body::stream`] may still read the
/// request's body, so both go on at once.
///
/// ```
/// use std::rc::Rc;
///
/// use capstead::http::{self, Answer, Body, Incoming, Request, Response, http_service};
/// use capstead::{Context, Result};
///
/// /// Keeps files in pieces, and gives them back.
/// struct Files(Context);
///
/// impl Files {
///     async fn http(self: Rc<Self>, request: Request<Incoming>) -> Answer {
///         let (head, mut body) = request.into_parts();
///         if head.method == "PUT" {
///             let mut pieces = 0_u32;
///             while let Some(piece) = body.next().await? {
///                 self.0.storage().put(pieces.to_be_bytes(), piece)?;
///                 pieces += 1;
///             }
///             return http::json(http::StatusCode::CREATED, &pieces);
///         }
///         Ok(Response::new(Body::stream(async move |to| {
///             for number in 0_u32.. {
///                 let Some(piece) = self.0.storage().get(number.to_be_bytes())? else { break };
///                 to.send(piece).await?; // waits while the client reads slowly
///             }
///             Ok(())
///         })))
///     }
/// }
///
/// impl http_service::Server for Files {
///     async fn request(
///         self: Rc<Self>,
///         params: http_service::RequestParams,
///         results: http_service::RequestResults,
///     ) -> Result<()> {
///         http::serve_streaming(params, results, async |request| self.http(request).await).await
///     }
/// }
/// ```
///
/// # Errors
/// As for [`serve`].
pub async fn serve_streaming(
    params: http_service::RequestParams,
    results: http_service::RequestResults,
    handle: impl AsyncFnOnce(Request<Incoming>) -> Answer,
) -> Result<()> {
    let asked = params.get()?.get_request()?;
    let mut request = read_request(asked, Incoming::new(asked, results)?)?;
    let way = ResponseWay {
        context: params.get()?.get_context()?,
        takes_whole: params.get()?.get_takes_whole(),
    };
    let form = Form::wanted(request.headers());
    let is_head = request.method() == Method::HEAD;
    if is_head {
        *request.method_mut() = Method::GET;
    }
    let mut response = handle(request).await.unwrap_or_else(|refusal| refusal.in_form(form));
    match response.body_mut().take() {
        Content::Socket(accept) => accept.start(&way.context, response.headers()).await,
        Content::Stream(_) if is_head => way.respond(&response, &[]),
        Content::Stream(write) => write_in_parts(&way.context, &response, write).await,
        Content::Whole(bytes) if is_head => {
            keep_length(&mut response, bytes.len());
            way.respond(&response, &[])
        }
        Content::Whole(bytes) => way.respond(&response, &bytes),
    }
}

/// Leaves in a head the length of the body that was dropped.
fn keep_length<B>(response: &mut Response<B>, bytes: usize) {
    let has_length = !matches!(response.status().as_u16(), 204 | 205 | 304);
    let is_said = response.headers().contains_key(CONTENT_LENGTH) && bytes == 0;
    if has_length && !is_said {
        response.headers_mut().insert(CONTENT_LENGTH, bytes.into());
    }
}

/// The way back for the answer to one request.
struct ResponseWay {
    context: client_request_context::Client,
    /// The context is a [`whole_context`], too.
    takes_whole: bool,
}

impl ResponseWay {
    /// The calls are made in order and not waited for: what comes after them from this object, such
    /// as the end of the request, comes after them on the wire. They are kept until they are
    /// answered, since a receiver may drop a call that nobody waits for any more.
    fn respond<B>(self, head: &Response<B>, body: &[u8]) -> Result<()> {
        if self.takes_whole && body.len() <= HTTP_PART_BYTES {
            return self.respond_at_once(head, body);
        }
        let mut start = self.context.start_response_request();
        write_response(head, Some(body.len() as u64), start.get().init_response())?;
        let started = start.send();
        if body.is_empty() {
            keep(started.promise);
        } else {
            let stream = started.pipeline.get_body();
            let mut write = stream.write_request();
            write.get().set_bytes(body);
            keep(join3(started.promise, write.send(), stream.end_request().send().promise));
        }
        Ok(())
    }

    fn respond_at_once<B>(self, head: &Response<B>, body: &[u8]) -> Result<()> {
        let context: whole_context::Client = FromClientHook::new(self.context.into_client_hook());
        let mut whole = context.respond_request();
        let mut params = whole.get();
        write_response(head, Some(body.len() as u64), params.reborrow().init_response())?;
        params.set_body(body);
        keep(whole.send().promise);
        Ok(())
    }
}

/// An error leaves the body without its end.
async fn write_in_parts<B>(
    context: &client_request_context::Client,
    head: &Response<B>,
    write_body: outgoing::Write,
) -> Result<()> {
    let length = head.headers().get(CONTENT_LENGTH).and_then(|length| length.to_str().ok());
    let size = length.and_then(|length| length.parse().ok());
    let mut start = context.start_response_request();
    write_response(head, size, start.get().init_response())?;
    let stream = start.send().pipeline.get_body();
    let mut to = Outgoing::new(stream, size);
    let written = write_body(&mut to).await.and_then(|()| to.end());
    if let Err(error) = &written
        && error.kind != capnp::ErrorKind::Disconnected
    {
        let reason = said(error);
        tracing::warn!(%reason, "a response was cut off: what wrote its body failed");
    }
    written
}
