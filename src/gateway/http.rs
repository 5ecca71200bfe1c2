//! Serves HTTP/1 and turns each request into one call of `HttpService`.

use std::cell::{Cell, RefCell};
use std::convert::Infallible;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use capstead_client::Limit;
use futures::FutureExt;
use futures::channel::oneshot;
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::{Request, Response, StatusCode};
use tokio::net::{TcpListener, TcpStream};

use super::objects::{Given, Objects};
use super::route::route;
use crate::error::{Result, failed, is_revoked};
use crate::http::{Body, explain, read_response, text, write_request};
use crate::limits::{HTTP_BODY_BYTES_MAX, HTTP_HEADER_SECS, NAME_BYTES_MAX};
use crate::membrane;
use crate::metrics::Metrics;
use crate::net::Places;
use crate::schema::http_capnp::{byte_stream, http_service, http_service::client_request_context};

/// What a client gets for whom there is no connection left.
const TOO_MANY: &[u8] =
    b"HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\nContent-Length: 0\r\n\r\n";

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
        places: Arc<Places>,
        stop: impl Future<Output = ()>,
    ) {
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
                    let Some(place) = Places::take(&places) else {
                        self.metrics.limits.count(Limit::Connections);
                        // Whether it listens or not.
                        let _ = stream.try_write(TOO_MANY);
                        continue;
                    };
                    let connection = self.clone().connection(stream, graceful.clone());
                    open.spawn_local(connection.map(|()| drop(place)));
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
        stop: Rc<tokio_util::sync::CancellationToken>,
    ) {
        let _ = stream.set_nodelay(true);
        let service = hyper::service::service_fn(move |request| {
            let gateway = self.clone();
            async move { Ok::<_, Infallible>(gateway.answer(request).await) }
        });
        let connection = hyper::server::conn::http1::Builder::new()
            .timer(hyper_util::rt::TokioTimer::new())
            .header_read_timeout(Duration::from_secs(HTTP_HEADER_SECS))
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
        self.metrics.http_requests_total.add(1);
        let response = self.ask(request).await.unwrap_or_else(|error| explain(&error));
        response.map(|body| Full::new(Bytes::from(body.into_bytes())))
    }

    async fn ask(&self, request: Request<Incoming>) -> Result<Response<Body>> {
        let (parts, body) = request.into_parts();
        let path = parts.uri.path_and_query().map_or("", |path| path.as_str());
        let nothing = || text(StatusCode::NOT_FOUND, "There is nothing at this path.\n");
        let Some(route) = route(path) else { return Ok(nothing()) };
        if route.key.len() > NAME_BYTES_MAX {
            let reason = format!("The name of an object has at most {NAME_BYTES_MAX} bytes.\n");
            return Ok(text(StatusCode::URI_TOO_LONG, reason));
        }
        let Some(object) = self.objects.get(&route)? else { return Ok(nothing()) };
        let body = match read_body(body).await {
            Ok(body) => body,
            Err(refusal) => return Ok(*refusal),
        };
        let answer = ask_object(&object, &route.url, &parts, &body).await;
        match &answer {
            Err(error) if error.kind == capnp::ErrorKind::Disconnected => {
                self.objects.forget(&route);
            }
            Err(error) if is_revoked(error) => self.objects.forget_class(&route),
            _ => return answer,
        }
        match self.objects.get(&route)? {
            // Nobody minds if a safe request happens twice.
            Some(fresh) if parts.method.is_safe() => {
                ask_object(&fresh, &route.url, &parts, &body).await
            }
            _ => answer,
        }
    }
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

async fn ask_object(
    object: &http_service::Client,
    url: &str,
    request: &http::request::Parts,
    body: &[u8],
) -> Result<Response<Body>> {
    let (answering, answered) = Answering::new();
    let mut call = object.request_request();
    let mut params = call.get();
    write_request(request, url, body.len(), params.reborrow().init_request())?;
    params.set_context(membrane::serve(answering));
    let sent = call.send();
    if !body.is_empty() {
        let stream = sent.pipeline.get_request_body();
        let mut write = stream.write_request();
        write.get().set_bytes(body);
        drop(write.send());
        drop(stream.end_request().send());
    }
    let ended = sent.promise;
    tokio::select! {
        biased;
        // An object that gave up its answer says why when the call ends.
        Ok(response) = answered => Ok(response),
        ended = ended => {
            ended?;
            Err(failed("the object ended the request without an answer"))
        }
    }
}

/// What one request waits for: the object calls this with its response.
struct Answering {
    head: RefCell<Option<Response<()>>>,
    body: RefCell<Vec<u8>>,
    expected: Cell<Option<usize>>,
    done: Cell<Option<oneshot::Sender<Response<Body>>>>,
}

impl Answering {
    fn new() -> (Rc<Self>, oneshot::Receiver<Response<Body>>) {
        let (done, answered) = oneshot::channel();
        let answering = Self {
            head: RefCell::default(),
            body: RefCell::default(),
            expected: Cell::default(),
            done: Cell::new(Some(done)),
        };
        (Rc::new(answering), answered)
    }

    fn finish(&self) {
        if let (Some(done), Some(head)) = (self.done.take(), self.head.take()) {
            // Whoever asked may have left.
            let _ = done.send(head.map(|()| Body::from(self.body.take())));
        }
    }
}

impl client_request_context::Server for Answering {
    async fn start_response(
        self: Rc<Self>,
        params: client_request_context::StartResponseParams,
        mut results: client_request_context::StartResponseResults,
    ) -> Result<()> {
        use crate::schema::http_capnp::http_response::body_size::{Fixed, Unknown};
        let response = params.get()?.get_response()?;
        *self.head.borrow_mut() = Some(read_response(response)?);
        self.expected.set(match response.get_body_size().which()? {
            Fixed(size) => Some(usize::try_from(size).unwrap_or(usize::MAX)),
            Unknown(()) => None,
        });
        if self.expected.get() == Some(0) {
            self.finish();
        } else {
            results.get().set_body(membrane::serve(self.clone()));
        }
        Ok(())
    }

    async fn start_web_socket(
        self: Rc<Self>,
        _: client_request_context::StartWebSocketParams,
        _: client_request_context::StartWebSocketResults,
    ) -> Result<()> {
        Err(crate::error::unimplemented("this gateway has no WebSockets"))
    }
}

impl byte_stream::Server for Answering {
    async fn write(self: Rc<Self>, params: byte_stream::WriteParams) -> Result<()> {
        let bytes = params.get()?.get_bytes()?;
        let mut body = self.body.borrow_mut();
        if self.expected.get().is_some_and(|expected| body.len() + bytes.len() > expected) {
            return Err(failed("the body is longer than the response announced"));
        }
        body.extend_from_slice(bytes);
        Ok(())
    }

    async fn end(
        self: Rc<Self>,
        _: byte_stream::EndParams,
        _: byte_stream::EndResults,
    ) -> Result<()> {
        if self.expected.get().is_some_and(|expected| self.body.borrow().len() != expected) {
            return Err(failed("the body is shorter than the response announced"));
        }
        self.finish();
        Ok(())
    }

    async fn get_substream(
        self: Rc<Self>,
        _: byte_stream::GetSubstreamParams,
        _: byte_stream::GetSubstreamResults,
    ) -> Result<()> {
        Err(crate::error::unimplemented("this stream can't be divided"))
    }
}
