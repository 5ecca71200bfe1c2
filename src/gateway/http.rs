//! Serves HTTP/1 and turns each request into one call of `HttpService`.

use std::convert::Infallible;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::{Request, Response, StatusCode};
use tokio::net::{TcpListener, TcpStream};

use super::ask::{Failure, ask};
use super::door::Door;
use super::head;
use super::objects::{Given, Objects};
use super::route::{Route, route};
use crate::error::{Result, is_not_begun, is_revoked};
use crate::http::{Body, explain, text};
use crate::limits::{HTTP_BODY_BYTES_MAX, HTTP_HEADER_SECS, NAME_BYTES_MAX};
use crate::metrics::Metrics;

/// A gateway with the namespaces that it serves.
pub(crate) struct Gateway {
    objects: Objects,
    metrics: Arc<Metrics>,
}

impl Gateway {
    pub(crate) fn new(
        namespaces: impl IntoIterator<Item = (String, Given)>,
        metrics: Arc<Metrics>,
    ) -> Rc<Self> {
        Rc::new(Self { objects: Objects::new(namespaces.into_iter()), metrics })
    }

    /// A link broke by which some of its capabilities came: all are asked for anew when they are needed.
    pub(crate) fn forget_all(&self) {
        self.objects.forget_all();
    }

    /// Serves connections until `stop` resolves; then requests under way are answered, and it ends.
    pub(crate) async fn serve(
        self: Rc<Self>,
        listener: TcpListener,
        door: Door,
        stop: impl Future<Output = ()>,
    ) {
        let door = Rc::new(door);
        let graceful = Rc::new(tokio_util::sync::CancellationToken::new());
        let open = tokio_util::task::TaskTracker::new();
        let mut stop = std::pin::pin!(stop);
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = &mut stop => break,
            };
            match accepted {
                Ok((stream, _)) => {
                    let connection =
                        self.clone().connection(stream, door.clone(), graceful.clone());
                    open.spawn_local(connection);
                }
                Err(error) => crate::net::rest_after(&error).await,
            }
        }
        drop(listener);
        graceful.cancel();
        open.close();
        open.wait().await;
    }

    async fn connection(
        self: Rc<Self>,
        stream: TcpStream,
        door: Rc<Door>,
        stop: Rc<tokio_util::sync::CancellationToken>,
    ) {
        let _ = stream.set_nodelay(true);
        let service = hyper::service::service_fn(move |request| {
            let (gateway, door) = (self.clone(), door.clone());
            async move { Ok::<_, Infallible>(gateway.answer(&door, request).await) }
        });
        let connection = hyper::server::conn::http1::Builder::new()
            .timer(hyper_util::rt::TokioTimer::new())
            .header_read_timeout(Duration::from_secs(HTTP_HEADER_SECS))
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

    async fn answer(&self, door: &Door, request: Request<Incoming>) -> Response<Full<Bytes>> {
        self.metrics.http_requests_total.add(1);
        let (parts, body) = request.into_parts();
        let response = match door.admit(&parts) {
            Ok(()) => self.respond(parts, body).await.unwrap_or_else(|error| refusal(&error)),
            Err(refusal) => *refusal,
        };
        response.map(|body| Full::new(Bytes::from(body.into_bytes())))
    }

    async fn respond(
        &self,
        mut parts: http::request::Parts,
        body: Incoming,
    ) -> Result<Response<Body>> {
        let uri = parts.uri.clone();
        let path = uri.path_and_query().map_or("", |path| path.as_str());
        let Some(route) = route(path) else { return Ok(nothing()) };
        if route.key.len() > NAME_BYTES_MAX {
            let reason = format!("The name of an object has at most {NAME_BYTES_MAX} bytes.\n");
            return Ok(text(StatusCode::URI_TOO_LONG, reason));
        }
        head::strip(&mut parts.headers);
        if let Some(name) = head::not_text(&parts.headers) {
            let reason = format!("The value of the header {name} is not UTF-8.\n");
            return Ok(text(StatusCode::BAD_REQUEST, reason));
        }
        if self.objects.get(&route)?.is_none() {
            return Ok(nothing());
        }
        let body = match read_body(body).await {
            Ok(body) => body,
            Err(refusal) => return Ok(*refusal),
        };
        match self.ask(&route, &parts, &body).await? {
            Ok(response) => Ok(response),
            Err(Failure::Call(error)) => Ok(refusal(&error)),
            Err(Failure::Answer(reason)) => {
                tracing::error!(class = route.class, %reason, "a class gave an HTTP response that can't be sent");
                let reason = "The object's response can't be sent; the server's log says why.\n";
                Ok(text(StatusCode::INTERNAL_SERVER_ERROR, reason))
            }
        }
    }

    async fn ask(
        &self,
        route: &Route<'_>,
        parts: &http::request::Parts,
        body: &[u8],
    ) -> Result<std::result::Result<Response<Body>, Failure>> {
        let Some(object) = self.objects.get(route)? else { return Ok(Ok(nothing())) };
        let answer = ask(&object, &route.url, parts, body).await;
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
            Some(fresh) if has_not_begun(&answer) => Ok(ask(&fresh, &route.url, parts, body).await),
            _ => Ok(answer),
        }
    }
}

/// No class can say the first two: these are the server's.
fn refusal(error: &capnp::Error) -> Response<Body> {
    if is_revoked(error) {
        return text(StatusCode::FORBIDDEN, &error.extra);
    }
    if is_not_begun(error) {
        return text(StatusCode::SERVICE_UNAVAILABLE, &error.extra);
    }
    explain(error)
}

fn nothing() -> Response<Body> {
    text(StatusCode::NOT_FOUND, "There is nothing at this path.\n")
}

fn has_not_begun(answer: &std::result::Result<Response<Body>, Failure>) -> bool {
    matches!(answer, Err(Failure::Call(error)) if is_not_begun(error))
}

fn log_end(ended: hyper::Result<()>) {
    if let Err(error) = ended {
        tracing::debug!(%error, "an HTTP connection ended early");
    }
}

/// The whole body, or the response that says why there is none.
async fn read_body(body: Incoming) -> std::result::Result<Bytes, Box<Response<Body>>> {
    if hyper::body::Body::is_end_stream(&body) {
        return Ok(Bytes::new());
    }
    if hyper::body::Body::size_hint(&body).lower() > HTTP_BODY_BYTES_MAX as u64 {
        return Err(too_large());
    }
    match Limited::new(body, HTTP_BODY_BYTES_MAX).collect().await {
        Ok(body) => Ok(body.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => Err(too_large()),
        Err(error) => {
            let reason = format!("The body broke off: {error}\n");
            Err(Box::new(text(StatusCode::BAD_REQUEST, reason)))
        }
    }
}

fn too_large() -> Box<Response<Body>> {
    let reason = format!("A body has at most {HTTP_BODY_BYTES_MAX} bytes.\n");
    Box::new(text(StatusCode::PAYLOAD_TOO_LARGE, reason))
}
