//! HTTP for classes: a class whose interface extends `HttpService` answers requests with one call.
//!
//! The wire is the standard `http-over-capnp`; this turns it into the types of the `http` crate and
//! back. Bodies are buffered whole.
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

mod file;
mod json;
mod refusal;
mod room;
mod socket;
mod stream;

use std::cell::Cell;
use std::fmt;
use std::net::IpAddr;
use std::rc::Rc;
use std::time::Duration;

use futures::channel::oneshot;
use futures::future::OptionFuture;
use http::HeaderMap;
use http::header::CONTENT_LENGTH;
pub use http::{HeaderName, HeaderValue, Method, Request, Response, StatusCode};

use crate::error::{Result, failed, overloaded, unimplemented};
use crate::limits::{HTTP_BODY_BYTES_MAX, HTTP_BODY_SECS};
pub use crate::schema::http_capnp::http_service;
use crate::schema::http_capnp::{HttpMethod, http_header, http_request, http_response};
pub use file::StaticFile;
pub(crate) use json::is_json;
pub use json::{json, read_json};
use refusal::Form;
pub use refusal::{Refusal, refuse};
pub(crate) use room::{Held, Room};
pub use socket::{Accept, Closed, Message, Sending, Socket, SocketHandler, Sockets, is_upgrade};
pub(crate) use socket::{
    Entry, Holder, LOST, Lease, SocketTable, View, cut as cut_reason, dispatch, is_close, is_text,
};
pub(crate) use stream::{Parts, Refused, Stream, Taker};

/// The whole body of a request or response.
#[derive(Clone, Debug, Default)]
pub struct Body {
    bytes: Vec<u8>,
    /// In place of bytes: the socket that a response accepts.
    socket: Option<Rc<Accept>>,
}

impl Body {
    /// The body's bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The body's bytes, without a copy.
    pub fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }

    fn of_socket(accept: Accept) -> Self {
        Self { bytes: Vec::new(), socket: Some(Rc::new(accept)) }
    }
}

impl<T: Into<Vec<u8>>> From<T> for Body {
    fn from(bytes: T) -> Self {
        Self { bytes: bytes.into(), socket: None }
    }
}

impl PartialEq for Body {
    fn eq(&self, other: &Self) -> bool {
        let address = |body: &Self| body.socket.as_ref().map(Rc::as_ptr);
        self.bytes == other.bytes && address(self) == address(other)
    }
}

impl Eq for Body {}

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

/// The header by which the gateway says from which address a connection comes.
pub(crate) const PEER: HeaderName = HeaderName::from_static("capstead-peer");

/// The address from which the gateway's client is connected: behind a proxy, the proxy's. None if
/// the request didn't come through a gateway; who calls the object by Cap'n Proto may say what they
/// like.
pub fn peer<B>(request: &Request<B>) -> Option<IpAddr> {
    request.headers().get(PEER)?.to_str().ok()?.parse().ok()
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

/// Answers `HttpService.request` with what `handle` makes of the request.
///
/// An error of `handle` becomes a response with its sentence, as [`Refusal`] says. `handle` sees a
/// HEAD as a GET, and its client gets the head of the answer, with the length of the body that a
/// GET would get. An answer of [`Accept`] opens a WebSocket.
///
/// # Errors
/// When the request is malformed, or whoever asked has gone.
pub async fn serve(
    params: http_service::RequestParams,
    results: http_service::RequestResults,
    handle: impl AsyncFnOnce(Request<Body>) -> Answer,
) -> Result<()> {
    let asked = params.get()?.get_request()?;
    let body = match asked.get_body_size().which()? {
        http_request::body_size::Fixed(0) => Body::default(),
        _ => take_body(results).await?,
    };
    let mut request = read_request(asked, body)?;
    let context = params.get()?.get_context()?;
    let form = Form::wanted(request.headers());
    let is_head = request.method() == Method::HEAD;
    if is_head {
        *request.method_mut() = Method::GET;
    }
    let mut response = handle(request).await.unwrap_or_else(|refusal| refusal.in_form(form));
    if let Some(accept) = response.body_mut().socket.take() {
        return accept.start(&context, response.headers()).await;
    }
    if is_head {
        drop_body(&mut response);
    }
    respond(&context, response)
}

/// Leaves the head of a response, and in it the length of the body that was dropped.
fn drop_body(response: &mut Response<Body>) {
    let body = std::mem::take(response.body_mut());
    let has_length = !matches!(response.status().as_u16(), 204 | 205 | 304);
    let is_said = response.headers().contains_key(CONTENT_LENGTH) && body.bytes.is_empty();
    if has_length && !is_said {
        response.headers_mut().insert(CONTENT_LENGTH, body.bytes.len().into());
    }
}

/// Offers a stream for the request's body, before there is a reply, and waits for its end.
async fn take_body(mut results: http_service::RequestResults) -> Result<Body> {
    let (done, whole) = oneshot::channel();
    let parts = Parts::new(Room::here().body(), HTTP_BODY_BYTES_MAX);
    let collector = Collector { parts, done: Cell::new(Some(done)) };
    results.get().set_request_body(capnp_rpc::new_client(Stream(Rc::new(collector))));
    results.set_pipeline()?;
    // Only who sends the body is to hold the stream, so that it goes when the sender does.
    drop(results);
    whole_within(whole, Duration::from_secs(HTTP_BODY_SECS)).await
}

/// Whoever sends a body may go away without an end, or stay and say no more.
async fn whole_within(whole: oneshot::Receiver<Result<Body>>, limit: Duration) -> Result<Body> {
    match tokio::time::timeout(limit, whole).await {
        Ok(Ok(body)) => body,
        Ok(Err(_)) => Err(failed("the request's body broke off")),
        Err(_) => Err(failed(format!("the request's body did not end within {limit:?}"))),
    }
}

/// Takes the body of one request.
struct Collector {
    parts: Parts,
    done: Cell<Option<oneshot::Sender<Result<Body>>>>,
}

impl Collector {
    fn finish(&self, body: Result<Body>) {
        if let Some(done) = self.done.take() {
            // The handler may have ended already.
            let _ = done.send(body);
        }
    }
}

impl Taker for Collector {
    fn parts(&self) -> &Parts {
        &self.parts
    }

    fn is_waiting(&self) -> bool {
        let done = self.done.take();
        let is_waiting = done.as_ref().is_some_and(|done| !done.is_canceled());
        self.done.set(done);
        is_waiting
    }

    fn take(&self, body: Held) -> Result<()> {
        self.finish(Ok(Body::from(body.into_bytes())));
        Ok(())
    }

    fn refuse(&self, refused: Refused) -> capnp::Error {
        let error = match refused {
            Refused::NoRoom => overloaded("there is no room for another body: try again later"),
            Refused::TooLarge | Refused::TooLong | Refused::TooShort => {
                failed(format!("a body has at most {HTTP_BODY_BYTES_MAX} bytes"))
            }
        };
        self.finish(Err(error.clone()));
        error
    }
}

/// The calls are made in order and not waited for: what comes after them from this object, such as
/// the end of the request, comes after them on the wire. They are kept until they are answered,
/// since a call that nobody waits for any more may be dropped by whoever gets it.
fn respond(
    context: &http_service::client_request_context::Client,
    response: Response<Body>,
) -> Result<()> {
    let mut start = context.start_response_request();
    write_response(&response, start.get().init_response())?;
    let started = start.send();
    let body = response.into_body().bytes;
    let (mut written, mut ended) = (None, None);
    if !body.is_empty() {
        let stream = started.pipeline.get_body();
        let mut write = stream.write_request();
        write.get().set_bytes(&body);
        written = Some(write.send());
        ended = Some(stream.end_request().send().promise);
    }
    // Whether the client took them is for the client to say: the object is done.
    tokio::task::spawn_local(async move {
        let _ = started.promise.await;
        let _ = OptionFuture::from(written).await;
        OptionFuture::from(ended).await.map(drop)
    });
    Ok(())
}

fn read_request(request: http_request::Reader<'_>, body: Body) -> Result<Request<Body>> {
    let method = read_method(request.get_method()?)?;
    let url = request.get_url()?.to_str()?;
    let mut built = Request::builder().method(method).uri(url);
    for header in request.get_headers()? {
        let (name, value) = read_header(header)?;
        built = built.header(name, value);
    }
    built.body(body).map_err(|error| failed(format!("a malformed request: {error}")))
}

pub(crate) fn write_request(
    request: &http::request::Parts,
    url: &str,
    body_bytes: usize,
    mut to: http_request::Builder<'_>,
) -> Result<()> {
    to.set_method(write_method(&request.method)?);
    to.set_url(url);
    write_headers(&request.headers, to.reborrow().init_headers(request.headers.len() as u32))?;
    to.get_body_size().set_fixed(body_bytes as u64);
    Ok(())
}

fn write_response(response: &Response<Body>, mut to: http_response::Builder<'_>) -> Result<()> {
    to.set_status_code(response.status().as_u16());
    write_headers(response.headers(), to.reborrow().init_headers(response.headers().len() as u32))?;
    to.get_body_size().set_fixed(response.body().bytes.len() as u64);
    Ok(())
}

/// The head of a response that an object gave.
pub(crate) fn read_response(response: http_response::Reader<'_>) -> Result<Response<()>> {
    let built = Response::builder().status(response.get_status_code());
    let mut head =
        built.body(()).map_err(|error| failed(format!("a malformed response: {error}")))?;
    *head.headers_mut() = read_headers(response.get_headers()?)?;
    Ok(head)
}

/// Headers that an object gave.
pub(crate) fn read_headers(
    headers: capnp::struct_list::Reader<'_, http_header::Owned>,
) -> Result<HeaderMap> {
    let mut read = HeaderMap::with_capacity(headers.len() as usize);
    for header in headers {
        let (name, value) = read_header(header)?;
        let full = |_| failed("there are too many headers");
        read.try_append(name, value).map_err(full)?;
    }
    Ok(read)
}

/// # Errors
/// When a value isn't UTF-8.
fn write_headers(
    headers: &HeaderMap,
    mut to: capnp::struct_list::Builder<'_, http_header::Owned>,
) -> Result<()> {
    for (at, (name, value)) in (0..).zip(headers) {
        write_header(name, value, to.reborrow().get(at))?;
    }
    Ok(())
}

/// # Errors
/// When the value isn't UTF-8, and so no text of Cap'n Proto.
fn write_header(
    name: &HeaderName,
    value: &HeaderValue,
    to: http_header::Builder<'_>,
) -> Result<()> {
    let text = std::str::from_utf8(value.as_bytes())
        .map_err(|_| failed(format!("the value of the header {name} is not UTF-8")))?;
    let mut pair = to.init_uncommon();
    pair.set_name(name.as_str());
    pair.set_value(text);
    Ok(())
}

fn read_header(header: http_header::Reader<'_>) -> Result<(HeaderName, HeaderValue)> {
    let (name, value) = match header.which()? {
        http_header::Uncommon(pair) => {
            let pair = pair?;
            (pair.get_name()?.to_str()?.to_owned(), pair.get_value()?)
        }
        http_header::Common(common) => {
            use http_header::common::{CommonValue, Value};
            let name = common_name(common.get_name()?);
            match common.which()? {
                Value(value) => (name, value?),
                CommonValue(_) => (name, "gzip, deflate".into()),
            }
        }
    };
    let malformed = |error: &dyn fmt::Display| failed(format!("a malformed header: {error}"));
    let name = HeaderName::try_from(name).map_err(|error| malformed(&error))?;
    let value = HeaderValue::from_bytes(value.as_bytes()).map_err(|error| malformed(&error))?;
    Ok((name, value))
}

/// `acceptCharset` is `accept-charset`, and so on for all of them.
fn common_name(name: crate::schema::http_capnp::CommonHeaderName) -> String {
    match name {
        crate::schema::http_capnp::CommonHeaderName::WwwAuthenticate => "www-authenticate".into(),
        name => kebab(&format!("{name:?}")),
    }
}

fn kebab(camel: &str) -> String {
    let mut kebab = String::new();
    for (at, letter) in camel.char_indices() {
        if letter.is_ascii_uppercase() && at > 0 {
            kebab.push('-');
        }
        kebab.push(letter.to_ascii_lowercase());
    }
    kebab
}

macro_rules! methods {
    ($($method:ident $constant:ident)+) => {
        fn read_method(method: HttpMethod) -> Result<Method> {
            match method {
                $(HttpMethod::$method => Ok(Method::$constant),)+
                other => Err(unimplemented(format!("the method {other:?} is not supported"))),
            }
        }

        fn write_method(method: &Method) -> Result<HttpMethod> {
            $(if method == Method::$constant { return Ok(HttpMethod::$method); })+
            Err(unimplemented(format!("the method {method} is not supported")))
        }
    };
}

methods! { Get GET Head HEAD Post POST Put PUT Delete DELETE Patch PATCH Options OPTIONS Trace TRACE }

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(flavor = "local")]
    async fn a_body_without_an_end_is_not_waited_for_for_ever() {
        let (done, whole) = oneshot::channel();
        let error = whole_within(whole, Duration::from_millis(1)).await.unwrap_err();
        assert!(error.extra.contains("did not end"), "{error}");
        assert!(done.is_canceled());
    }
}
