//! Serves HTTP/1 and turns each request into one call of `HttpService`.

use std::cell::OnceCell;
use std::convert::Infallible;
use std::rc::Rc;
use std::sync::Arc;

use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::{Request, Response, StatusCode};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, timeout_at};

use super::ask::{Failure, ask};
use super::cors;
use super::door::Door;
use super::head;
use super::json::JsonCalls;
use super::limits::{HttpLimits, Taken};
use super::objects::{Given, Objects};
use super::paced::Paced;
use super::route::{Route, route};
use crate::error::{Result, is_not_begun, is_revoked};
use crate::http::{Body, Held, Refusal, refuse};
use crate::limits::{HTTP_BODY_BYTES_MAX, NAME_BYTES_MAX};
use crate::metrics::Metrics;
use crate::net::Place;
use crate::schema::restorer_capnp::restorer;

/// The most that a connection buffers, the head of a request among it.
const BUFFER_BYTES_MAX: usize = 64 << 10;

/// Bytes of one body that are taken before others have their turn: a thousand bodies that come at once would
/// keep everybody else waiting for as long as all of them take. A larger body waits for its turn before its
/// first bytes, too.
const IN_A_ROW_BYTES: usize = 32 << 10;

/// The answer to a client for whom there is no place.
const FULL: &[u8] =
    b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: text/plain; charset=utf-8\r\n\
    content-length: 47\r\nconnection: close\r\n\r\nThere are too many connections: try again later";

/// A gateway with the namespaces that it serves.
pub(crate) struct Gateway {
    pub(super) objects: Objects,
    /// Empty where no methods are called in JSON.
    pub(super) json: OnceCell<JsonCalls>,
    metrics: Arc<Metrics>,
}

impl Gateway {
    pub(crate) fn new(
        namespaces: impl IntoIterator<Item = (String, Given)>,
        metrics: Arc<Metrics>,
    ) -> Rc<Self> {
        let (objects, json) = (Objects::new(namespaces.into_iter()), OnceCell::new());
        Rc::new(Self { objects, json, metrics })
    }

    /// Lets any method be called in JSON from now on, with references that `restorer` restores.
    pub(crate) fn serve_json(&self, restorer: restorer::Client) {
        // A second time changes nothing.
        let _ = self.json.set(JsonCalls::new(restorer));
    }

    /// A link broke by which some of its capabilities came: all are asked for anew when they are needed.
    pub(crate) fn forget_all(&self) {
        self.objects.forget_all();
        self.json.get().into_iter().for_each(JsonCalls::forget);
    }

    /// Serves connections until `stop` resolves; then requests under way are answered, and it ends.
    pub(crate) async fn serve(
        self: Rc<Self>,
        listener: TcpListener,
        door: Door,
        limits: HttpLimits,
        stop: impl Future<Output = ()>,
    ) {
        let taken = Taken::new(limits, self.metrics.clone());
        let served = Rc::new(Served { gateway: self, door, taken });
        let graceful = Rc::new(tokio_util::sync::CancellationToken::new());
        let open = tokio_util::task::TaskTracker::new();
        let mut stop = std::pin::pin!(stop);
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = &mut stop => break,
            };
            match accepted {
                Ok((stream, peer)) => match served.taken.connect(peer.ip()) {
                    Some(place) => {
                        let connection = served.clone().connection(stream, graceful.clone());
                        open.spawn_local(async move {
                            let _place: Place = place;
                            connection.await;
                        });
                    }
                    // Nothing waits for a client that has no place.
                    None => drop(stream.try_write(FULL)),
                },
                Err(error) => crate::net::rest_after(&error).await,
            }
        }
        drop(listener);
        graceful.cancel();
        open.close();
        open.wait().await;
    }

    async fn ask(
        &self,
        route: &Route<'_>,
        parts: &http::request::Parts,
        body: &[u8],
        taken: &Taken,
    ) -> Result<std::result::Result<Response<Held>, Failure>> {
        // It was there before the body came, and no class goes.
        let Some(object) = self.objects.get(route)? else { return Ok(Err(Failure::Nothing)) };
        let answer = ask(&object, &route.url, parts, body, taken).await;
        match &answer {
            Err(Failure::Call(error)) if error.kind == capnp::ErrorKind::Disconnected => {
                self.objects.forget(route);
            }
            Err(Failure::Call(error)) if is_revoked(error) => self.objects.forget_class(route),
            _ => return Ok(answer),
        }
        match self.objects.get(route)? {
            // An object's end between two requests is no concern of the next one. A call that began
            // is never made twice, not even to read: it may be what ended the object.
            Some(fresh) if has_not_begun(&answer) => {
                Ok(ask(&fresh, &route.url, parts, body, taken).await)
            }
            _ => Ok(answer),
        }
    }
}

/// The things with which connections are served.
struct Served {
    gateway: Rc<Gateway>,
    door: Door,
    taken: Rc<Taken>,
}

impl Served {
    async fn connection(
        self: Rc<Self>,
        stream: TcpStream,
        stop: Rc<tokio_util::sync::CancellationToken>,
    ) {
        let _ = stream.set_nodelay(true);
        let limits = self.taken.limits;
        let metrics = self.taken.metrics.clone();
        let stream = Paced::new(stream, limits, metrics);
        let service = hyper::service::service_fn(move |request| {
            let served = self.clone();
            async move { Ok::<_, Infallible>(served.answer(request).await) }
        });
        let connection = hyper::server::conn::http1::Builder::new()
            .timer(hyper_util::rt::TokioTimer::new())
            .header_read_timeout(limits.head)
            .max_buf_size(BUFFER_BYTES_MAX)
            // Who has said all may close that side, and still wants to hear.
            .half_close(true)
            .serve_connection(hyper_util::rt::TokioIo::new(stream), service);
        let mut connection = std::pin::pin!(connection);
        tokio::select! {
            ended = connection.as_mut() => log_end(ended),
            () = stop.cancelled() => {
                connection.as_mut().graceful_shutdown();
                log_end(connection.await);
            }
        }
    }

    async fn answer(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        self.gateway.metrics.http_requests_total.add(1);
        let (mut parts, body) = request.into_parts();
        let page = self.door.known_origin(&parts.headers).cloned();
        let mut response = if let Err(refusal) = self.door.admit(&parts) {
            own(refusal.response(&parts.headers))
        } else if page.is_some() && cors::is_preflight(&parts) {
            own(cors::preflight(&parts.headers))
        } else {
            let answer = self.respond(&mut parts, body).await;
            answer.unwrap_or_else(|refusal| own(refusal.response(&parts.headers)))
        };
        if self.door.knows_origins() {
            cors::let_read(response.headers_mut(), page);
        }
        response.map(Full::new)
    }

    async fn respond(
        &self,
        parts: &mut http::request::Parts,
        body: Incoming,
    ) -> std::result::Result<Response<Bytes>, Refusal> {
        let uri = parts.uri.clone();
        let path = uri.path_and_query().map_or("", |path| path.as_str());
        if let Some((calls, path)) = self.gateway.json_path(path) {
            return Ok(self.gateway.answer_json(calls, path, parts, body, &self.taken).await);
        }
        let Some(route) = route(path) else { return Err(nothing()) };
        check_name(&route)?;
        head::strip(&mut parts.headers);
        if let Some(name) = head::not_text(&parts.headers) {
            let reason = format!("The value of the header {name} is not UTF-8.\n");
            return Err(refuse(StatusCode::BAD_REQUEST, reason));
        }
        if self.gateway.objects.get(&route).map_err(refusal)?.is_none() {
            return Err(nothing());
        }
        let body = read_body(body, &self.taken).await?;
        let answer = self.gateway.ask(&route, parts, body.bytes(), &self.taken).await;
        Err(match answer.map_err(refusal)? {
            Ok(response) => return Ok(response.map(Bytes::from_owner)),
            Err(Failure::Nothing) => nothing(),
            Err(Failure::Call(error)) => refusal(error),
            Err(Failure::NoRoom) => {
                let reason = "There is no room for another response: try again later.\n";
                refuse(StatusCode::SERVICE_UNAVAILABLE, reason)
            }
            Err(Failure::Answer(reason)) => {
                tracing::error!(class = route.class, %reason, "a class gave an HTTP response that can't be sent");
                let reason = "The object's response can't be sent; the server's log says why.\n";
                refuse(StatusCode::INTERNAL_SERVER_ERROR, reason)
            }
        })
    }
}

pub(super) fn check_name(route: &Route<'_>) -> std::result::Result<(), Refusal> {
    if route.key.len() <= NAME_BYTES_MAX {
        return Ok(());
    }
    let reason = format!("The name of an object has at most {NAME_BYTES_MAX} bytes.\n");
    Err(refuse(StatusCode::URI_TOO_LONG, reason))
}

/// No class can say the first two: these are the server's.
pub(super) fn refusal(error: capnp::Error) -> Refusal {
    if is_revoked(&error) {
        return Refusal::of(StatusCode::FORBIDDEN, &error);
    }
    if is_not_begun(&error) {
        return Refusal::of(StatusCode::SERVICE_UNAVAILABLE, &error);
    }
    error.into()
}

pub(super) fn nothing() -> Refusal {
    refuse(StatusCode::NOT_FOUND, "There is nothing at this path.\n")
}

/// A response of the gateway's own, which is small.
pub(super) fn own(response: Response<Body>) -> Response<Bytes> {
    response.map(|body| Bytes::from(body.into_bytes()))
}

fn has_not_begun(answer: &std::result::Result<Response<Held>, Failure>) -> bool {
    matches!(answer, Err(Failure::Call(error)) if is_not_begun(error))
}

fn log_end(ended: hyper::Result<()>) {
    if let Err(error) = ended {
        tracing::debug!(%error, "an HTTP connection ended early");
    }
}

/// The whole body, or why there is none.
pub(super) async fn read_body(
    mut body: Incoming,
    taken: &Taken,
) -> std::result::Result<Held, Refusal> {
    let mut held = taken.body();
    if hyper::body::Body::is_end_stream(&body) {
        return Ok(held);
    }
    if hyper::body::Body::size_hint(&body).lower() > HTTP_BODY_BYTES_MAX as u64 {
        return Err(too_large());
    }
    let start = Instant::now();
    let mut in_a_row = 0;
    if hyper::body::Body::size_hint(&body).lower() > IN_A_ROW_BYTES as u64 {
        taken.turn().await;
    }
    loop {
        let due = start + taken.limits.time_for(held.bytes().len());
        let frame = match timeout_at(due, body.frame()).await {
            Ok(None) => return Ok(held),
            Ok(Some(Ok(frame))) => frame,
            Ok(Some(Err(error))) => {
                let reason = format!("The body broke off: {error}\n");
                return Err(refuse(StatusCode::BAD_REQUEST, reason));
            }
            Err(_) => {
                taken.metrics.http_slow_total.add(1);
                return Err(refuse(StatusCode::REQUEST_TIMEOUT, "The body came too slowly.\n"));
            }
        };
        // Trailers reach no object.
        let Ok(bytes) = frame.into_data() else { continue };
        if held.bytes().len() + bytes.len() > HTTP_BODY_BYTES_MAX {
            return Err(too_large());
        }
        if !held.extend(&bytes) {
            let reason = "There is no room for another body: try again later.\n";
            return Err(refuse(StatusCode::SERVICE_UNAVAILABLE, reason));
        }
        in_a_row += bytes.len();
        if in_a_row >= IN_A_ROW_BYTES {
            in_a_row = 0;
            taken.turn().await;
        }
    }
}

fn too_large() -> Refusal {
    let reason = format!("A body has at most {HTTP_BODY_BYTES_MAX} bytes.\n");
    refuse(StatusCode::PAYLOAD_TOO_LARGE, reason)
}
