//! Serves HTTP/1 and turns each request into one call of `HttpService`, and those that ask for a
//! WebSocket into a task for its frames.

use std::cell::OnceCell;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use hyper::body::{Bytes, Incoming};
use hyper::upgrade::OnUpgrade;
use hyper::{Request, Response, StatusCode};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::ask::{Accepted, Answered, Asked, Failure, Outcome, ask};
use super::cors;
use super::door::{self, Door};
use super::download::Download;
use super::head;
use super::json::JsonCalls;
use super::limits::{HttpLimits, Taken};
use super::objects::{Given, Objects};
use super::paced::Paced;
use super::route::Route;
use super::routes::Routes;
use super::socket::{self, Pump as SocketPump};
use super::upload::Upload;
use crate::error::{Result, is_not_begun, is_revoked};
use crate::http::{Body, Held, Refusal, refuse};
use crate::limits::NAME_BYTES_MAX;
use crate::metrics::Metrics;
use crate::net::Place;
use crate::schema::restorer_capnp::restorer;

/// The most that a connection buffers, the head of a request among it.
const BUFFER_BYTES_MAX: usize = 64 << 10;

/// The answer to a client for whom there is no place.
const FULL: &[u8] =
    b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: text/plain; charset=utf-8\r\n\
    content-length: 47\r\nconnection: close\r\n\r\nThere are too many connections: try again later";

/// A gateway with the namespaces that it serves.
pub(crate) struct Gateway {
    pub(super) objects: Objects,
    pub(super) routes: Routes,
    /// Empty where no methods are called in JSON.
    pub(super) json: OnceCell<JsonCalls>,
    metrics: Arc<Metrics>,
}

impl Gateway {
    pub(crate) fn new(
        namespaces: impl IntoIterator<Item = (String, Given)>,
        routes: Routes,
        metrics: Arc<Metrics>,
    ) -> Rc<Self> {
        let (objects, json) = (Objects::new(namespaces.into_iter()), OnceCell::new());
        Rc::new(Self { objects, routes, json, metrics })
    }

    /// Lets any method be called in JSON from now on, with references that `restorer` restores.
    pub(crate) fn serve_json(&self, restorer: restorer::Client) {
        // A second time changes nothing.
        let _ = self.json.set(JsonCalls::new(restorer));
    }

    /// A link broke by which some of its capabilities came: all are asked for anew when they are
    /// needed.
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
        let (open, ending) = (TaskTracker::new(), CancellationToken::new());
        let all = (open.clone(), ending.clone());
        let served = Rc::new(Served { gateway: self, door, taken, open: all.0, ending: all.1 });
        let mut stop = std::pin::pin!(stop);
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = &mut stop => break,
            };
            match accepted {
                Ok((stream, peer)) => match served.taken.connect(peer.ip()) {
                    Some(place) => {
                        let client = Client { served: served.clone(), peer, place: Rc::new(place) };
                        open.spawn_local(client.connection(stream));
                    }
                    // Nothing waits for a client that has no place.
                    None => drop(stream.try_write(FULL)),
                },
                Err(error) => crate::net::rest_after(&error).await,
            }
        }
        drop(listener);
        ending.cancel();
        open.close();
        open.wait().await;
    }

    async fn ask(
        &self,
        route: &Route<'_>,
        asked: Asked<'_>,
        upload: Upload<Held>,
        taken: &Taken,
    ) -> Result<Answered> {
        // It was there before the body came, and no class goes.
        let Some(object) = self.objects.get(route)? else { return Ok(Err(Failure::Nothing)) };
        let whole;
        let (upload, again) = match upload {
            Upload::Whole(body) => {
                whole = body;
                (Upload::Whole(&whole), Some(&whole))
            }
            // Bytes that have left are not here to be sent again.
            Upload::Streamed(streamed) => (Upload::Streamed(streamed), None),
        };
        let answer = ask(&object, asked, upload, taken).await;
        match &answer {
            Err(Failure::Call(error)) if error.kind == capnp::ErrorKind::Disconnected => {
                self.objects.forget(route);
            }
            Err(Failure::Call(error)) if is_revoked(error) => self.objects.forget_class(route),
            _ => return Ok(answer),
        }
        let Some(body) = again.filter(|_| has_not_begun(&answer)) else { return Ok(answer) };
        match self.objects.get(route)? {
            // An object's end between two requests is no concern of the next one. A call that began
            // is never made twice, not even to read: it may be what ended the object.
            Some(fresh) => Ok(ask(&fresh, asked, Upload::Whole(body), taken).await),
            None => Ok(answer),
        }
    }
}

/// The things with which connections are served.
struct Served {
    gateway: Rc<Gateway>,
    door: Door,
    taken: Rc<Taken>,
    /// The end of the server waits for these.
    open: TaskTracker,
    /// Cancelled when the server ends.
    ending: CancellationToken,
}

/// The other end of one connection.
struct Client {
    served: Rc<Served>,
    peer: SocketAddr,
    /// Kept while the connection or its WebSocket is open.
    place: Rc<Place>,
}

/// A response, and what it leads to.
type Answer = std::result::Result<Response<Download>, Refusal>;

impl Client {
    async fn connection(self, stream: TcpStream) {
        let _ = stream.set_nodelay(true);
        let ending = self.served.ending.clone();
        let taken = self.served.taken.clone();
        let stream = Paced::new(stream, taken.limits, taken.metrics.clone());
        let client = Rc::new(self);
        let service = hyper::service::service_fn(move |request| {
            let client = client.clone();
            async move { Ok::<_, Infallible>(client.answer(request).await) }
        });
        let connection = hyper::server::conn::http1::Builder::new()
            .timer(hyper_util::rt::TokioTimer::new())
            .header_read_timeout(taken.limits.head)
            .max_buf_size(BUFFER_BYTES_MAX)
            // Who has said all may close that side, and still wants to hear.
            .half_close(true)
            .serve_connection(hyper_util::rt::TokioIo::new(stream), service)
            .with_upgrades();
        let mut connection = std::pin::pin!(connection);
        tokio::select! {
            ended = connection.as_mut() => log_end(ended),
            () = ending.cancelled() => {
                connection.as_mut().graceful_shutdown();
                log_end(connection.await);
            }
        }
    }

    async fn answer(&self, request: Request<Incoming>) -> Response<Download> {
        let Served { gateway, door, .. } = &*self.served;
        gateway.metrics.http_requests_total.add(1);
        let (mut parts, body) = request.into_parts();
        let page = door.known_origin(&parts.headers).cloned();
        let is_upgrade = socket::is_upgrade(&parts);
        let mut response = if let Err(refusal) = door.admit(&parts, is_upgrade) {
            own(refusal.response(&parts.headers)).map(Download::from)
        } else if page.is_some() && cors::is_preflight(&parts) {
            own(cors::preflight(&parts.headers)).map(Download::from)
        } else {
            let answer = if is_upgrade {
                self.open_socket(&mut parts, body).await
            } else {
                self.respond(&mut parts, body).await
            };
            answer
                .unwrap_or_else(|refusal| own(refusal.response(&parts.headers)).map(Download::from))
        };
        socket::say_version(&mut response);
        if door.knows_origins() {
            cors::let_read(response.headers_mut(), page);
        }
        response
    }

    async fn respond(&self, parts: &mut http::request::Parts, body: Incoming) -> Answer {
        let uri = parts.uri.clone();
        let Served { gateway, taken, .. } = &*self.served;
        let path = uri.path_and_query().map_or("", |path| path.as_str());
        if let Some((calls, path)) = gateway.json_path(path) {
            let answer = gateway.answer_json(calls, path, parts, body, taken).await;
            return Ok(answer.map(Download::from));
        }
        let route = self.route(&uri, parts)?;
        let upload = Upload::begin(body, &parts.headers, taken).await?;
        let asked = Asked { url: &route.url, head: parts, is_upgrade: false };
        match self.ask(&route, asked, upload).await? {
            Outcome::Response(response) => Ok(response.map(whole)),
            Outcome::Begun(response) => Ok(response.map(Download::Streamed)),
            Outcome::Socket(_) => Err(unsendable(&route, "it accepts what was not asked for")),
        }
    }

    /// An object that accepts no socket gives an ordinary response.
    async fn open_socket(&self, parts: &mut http::request::Parts, body: Incoming) -> Answer {
        let uri = parts.uri.clone();
        let offered = parts.headers.clone();
        let route = self.route(&uri, parts)?;
        let accepts = socket::asked(&offered)?;
        let upgrade = parts.extensions.remove::<OnUpgrade>();
        let (Some(upgrade), true) = (upgrade, hyper::body::Body::is_end_stream(&body)) else {
            let reason = "The handshake of a WebSocket has no body.\n";
            return Err(refuse(StatusCode::BAD_REQUEST, reason));
        };
        socket::hide(&mut parts.headers);
        let asked = Asked { url: &route.url, head: parts, is_upgrade: true };
        let no_body = Upload::Whole(self.served.taken.body());
        let socket = match self.ask(&route, asked, no_body).await? {
            Outcome::Response(response) => return Ok(response.map(whole)),
            Outcome::Begun(response) => return Ok(response.map(Download::Streamed)),
            Outcome::Socket(socket) => socket,
        };
        let Accepted { headers, up, outbox, call } = socket;
        let head = socket::response(&offered, accepts, headers);
        let head = head.map_err(|reason| unsendable(&route, &reason))?;
        let Served { taken, open, ending, .. } = &*self.served;
        let pump = SocketPump { up, outbox, call, taken: taken.clone(), stop: ending.clone() };
        let place = self.place.clone();
        open.spawn_local(async move {
            let _place = place;
            pump.run(upgrade).await;
        });
        Ok(head.map(|()| Download::Whole(Bytes::new())))
    }

    /// The object that a request is for, once its head is as objects may see it.
    fn route<'a>(
        &'a self,
        uri: &'a hyper::Uri,
        parts: &mut http::request::Parts,
    ) -> std::result::Result<Route<'a>, Refusal> {
        let Gateway { routes, objects, .. } = &*self.served.gateway;
        let path = uri.path_and_query().map_or("", |path| path.as_str());
        let host = door::named_host(uri, &parts.headers);
        let Some(route) = routes.find(host.as_deref(), path) else { return Err(nothing()) };
        check_name(&route)?;
        head::strip(&mut parts.headers);
        head::say_peer(&mut parts.headers, self.peer.ip());
        if let Some(name) = head::not_text(&parts.headers) {
            let reason = format!("The value of the header {name} is not UTF-8.\n");
            return Err(refuse(StatusCode::BAD_REQUEST, reason));
        }
        match objects.get(&route).map_err(refusal)? {
            Some(_) => Ok(route),
            None => Err(nothing()),
        }
    }

    async fn ask(
        &self,
        route: &Route<'_>,
        asked: Asked<'_>,
        upload: Upload<Held>,
    ) -> std::result::Result<Outcome, Refusal> {
        let Served { gateway, taken, open, .. } = &*self.served;
        let failure = match gateway.ask(route, asked, upload, taken).await.map_err(refusal)? {
            Ok((outcome, pump)) => {
                // Both bodies may go on from here.
                if let Some(pump) = pump {
                    open.spawn_local(pump.finish());
                }
                return Ok(outcome);
            }
            Err(failure) => failure,
        };
        Err(match failure {
            Failure::Nothing => nothing(),
            Failure::Call(error) => refusal(error),
            Failure::NoRoom => {
                let reason = "There is no room for another response: try again later.\n";
                refuse(StatusCode::SERVICE_UNAVAILABLE, reason)
            }
            Failure::Answer(reason) => unsendable(route, &reason),
            Failure::Client(refusal) => refusal,
            Failure::Late => late(),
        })
    }
}

/// The client gets nothing of what a class said that can't be.
fn unsendable(route: &Route<'_>, reason: &str) -> Refusal {
    tracing::error!(class = route.class, %reason, "a class gave an HTTP response that can't be sent");
    let reason = "The object's response can't be sent; the server's log says why.\n";
    refuse(StatusCode::INTERNAL_SERVER_ERROR, reason)
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

pub(super) fn late() -> Refusal {
    refuse(StatusCode::GATEWAY_TIMEOUT, "The object did not answer in time.\n")
}

fn whole(body: Held) -> Download {
    Download::Whole(Bytes::from_owner(body))
}

/// A response of the gateway's own, which is small.
pub(super) fn own(response: Response<Body>) -> Response<Bytes> {
    response.map(|body| Bytes::from(body.into_bytes()))
}

fn has_not_begun(answer: &Answered) -> bool {
    matches!(answer, Err(Failure::Call(error)) if is_not_begun(error))
}

fn log_end(ended: hyper::Result<()>) {
    if let Err(error) = ended {
        tracing::debug!(%error, "an HTTP connection ended early");
    }
}
